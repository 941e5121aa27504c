//! Who holds which device: the records below /run/vfpool, and the locks that keep them true.
//!
//! | path | what |
//! |---|---|
//! | `lock` | held for the short while in which leases are compared and written; never while a device is moved |
//! | `turns/GUEST` | held through an event of this guest: no two work on the same devices; removed with its lease |
//! | `editing` | held by the one process that edits definitions or plugs devices through libvirt; never by a hook |
//! | `removals/ADDRESS` | held while setup removes the VFs of this PF: no guest may claim one |
//! | `pfs/ADDRESS` | held while the VFs of this PF are created and bound; shared by those that bind a single one |
//! | `leases/GUEST` | what the guest holds and how it was found: all that is needed to reattach it |
//! | `claims/ADDRESS` | link to the lease that owns this device now |
//! | `ended/GUEST` | libvirt has said that this guest is gone; written without the lock, so that it is never lost |
//! | `unstarted/GUEST` | its last start was refused here, and libvirt has not called `release` yet |
//! | `attention/GUEST` | why a device could not be reattached |
//! | `libvirtd` | the libvirtd whose hook was last called |
//! | `lock-waits` | a byte for each wait for one of these locks |
//! | `corrupt/` | leases that could not be read, for the admin to look at |
//!
//! A claim decides who owns a device, a lease what to do with it. A lease is written before its claims, and both before
//! the first device is touched; whatever is killed in between leaves a lease without claims, which touches nothing.
//! A guest with the mark `ended` has a lease that reads as `returning`, whatever its file says.

mod lock;
mod store;

pub(crate) use lock::Locked;
pub use lock::Turn;
pub use store::Records;
