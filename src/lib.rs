//! PCI passthrough and SR-IOV on libvirt/KVM hosts that runs by itself.
//!
//! The modules build on each other, downwards only:
//!
//! | module | knows |
//! |---|---|
//! | [`error`], [`address`] | words: addresses, the one-line error |
//! | [`host`], [`log`] | where things are on this host, and where to tell about changes |
//! | [`patient`], [`sysfs`], [`process`], [`needs`] | the kernel: devices, processes, what the host itself needs |
//! | [`domain`], [`settings`], [`lease`], [`queue`] | the guest's XML, the admin's wishes, who holds what, what is left to do |
//! | [`pool`], [`parked`] | which devices are interchangeable for a guest, and which one a stopped guest points at |
//! | [`availability`] | whether a guest could have a device now, and who has it if not |
//! | [`plan`] | pure: facts and leases in, a lease to take or a refusal out |
//! | [`apply`] | one device taken off its driver, or given back to it |
//! | [`setup`] | the VFs of the pools made, and ready for guests |
//! | [`event`] | one function for each thing that happens to a guest |
//! | [`chain`] | the hooks of others, called after ours |
//! | [`virsh`], [`definition`], [`assign`] | libvirt by its command, the guests' persistent definitions, who should point where |
//! | [`parking`], [`start`], [`hotplug`], [`request`], [`reconcile`] | what is done to definitions, by systemd and by the admin |
//! | [`inventory`], [`dumpxml`], [`explain`], [`check`] | what the admin is shown: what there is, why it stands as it does, and what is wrong |
//!
//! Nothing here reads the environment, prints or exits: the mains do.

pub mod address;
pub mod apply;
pub mod assign;
pub mod availability;
pub mod chain;
pub mod check;
pub mod definition;
pub mod domain;
pub mod dumpxml;
pub mod error;
pub mod event;
pub mod explain;
pub mod host;
pub mod hotplug;
pub mod inventory;
pub mod lease;
pub mod log;
pub mod needs;
pub mod parked;
pub mod parking;
pub mod patient;
pub mod plan;
pub mod pool;
pub mod process;
pub mod queue;
pub mod reconcile;
pub mod request;
pub mod settings;
pub mod setup;
pub mod start;
pub mod sysfs;
pub mod virsh;
