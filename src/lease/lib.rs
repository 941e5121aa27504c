//! What happens to a guest, one function each. The hook and the command call these, and nothing else of this crate moves
//! a device.
//!
//! The order is always the same: the guest's turn, then the short lock to compare and record, then, without the lock,
//! the devices. Nothing here calls libvirt: its hooks run while it holds the guest.

pub mod availability;
mod choose;
mod gather;
mod hotplug;
pub mod left_behind;
pub mod life;
mod preview;
pub mod records;
mod release;
mod start;
mod stop;
pub mod vfs;
mod view;

use crate::availability::Availability;
use crate::life::Life;
use crate::records::{Locked, Records, Turn};
pub use choose::missing_devices;
use host::config::pool::Pools;
use host::config::settings;
use host::files;
use host::libvirt::runtime;
use host::log::Log;
use host::paths::Host;
use host::pci::bind::Binder;
use host::pci::sysfs;
use host::queue::Entry;
use model::domain::{Assigned, Domain};
use model::error::{Error, Result};
use model::lease::{HeldDevice, Lease, LeaseState, Role};
use model::settings::Settings;
use once_cell::unsync::OnceCell;
pub use preview::{Acquired, Preview};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;
use stop::Occasion;

/// Handles events on one host.
pub struct Leases<'a> {
    host: &'a Host,
    log: &'a Log,
    store: Records<'a>,
    settings: Settings,
    settings_error: Option<Error>,
    pools: OnceCell<Pools>,
}

impl<'a> Leases<'a> {
    /// Leases on this host. Settings that cannot be read are told of and count as not set: that refuses more, not less.
    pub fn new(host: &'a Host, log: &'a Log) -> Self {
        let (settings, settings_error) = match settings::load(host) {
            Ok(settings) => (settings, None),
            Err(error) => {
                log.warning(&error);
                (Settings::default(), Some(error))
            }
        };
        Self { host, log, store: Records::new(host, log), settings, settings_error, pools: OnceCell::new() }
    }

    /// The records that these events keep.
    pub fn store(&self) -> &Records<'a> {
        &self.store
    }

    /// How devices stand for guests.
    pub fn availability(&self) -> Availability<'_> {
        Availability::new(self.host, &self.store, &self.settings)
    }

    /// How long one step on the host may take.
    pub fn deadline(&self) -> Duration {
        self.settings.deadline()
    }

    /// libvirt is about to start a guest: takes what its devices need, or refuses and leaves everything as it was.
    pub fn prepare(&self, guest: &str, domain: &Domain) -> Result<()> {
        let assigned = domain.assigned();
        self.expect_all_devices(domain)?;
        if self.has_no_devices(guest, &assigned) {
            return Ok(());
        }
        let turn = self.turn(guest)?;
        if let Some(lease) = self.lease(guest)? {
            if lease.is_running(self.host, guest) {
                return Err(Error::new("it runs already, and holds its devices"));
            }
            if lease.state != LeaseState::Reserved {
                // A start that nobody ended. What cannot go back now stays on record, and may do for this start.
                let _ = self.reattach(guest, &turn, Occasion::Release);
            }
        }
        self.take(guest, &assigned, &turn)?;
        self.notify_reconciler(guest);
        self.retry_others(guest);
        Ok(())
    }

    /// The devices that libvirt itself chose are known now; takes what they need beyond what `prepare` took.
    pub fn start(&self, guest: &str, domain: &Domain) -> Result<()> {
        let assigned = domain.assigned();
        if self.has_no_devices(guest, &assigned) {
            return Ok(());
        }
        let turn = self.turn(guest)?;
        self.take(guest, &assigned, &turn)?;
        self.notify_reconciler(guest);
        Ok(())
    }

    /// The guest runs, or libvirt found it running: its lease holds until it stops. A device that no lease tells of (one
    /// hot-plugged, or the lease was lost) is learned as it is.
    pub fn runs(&self, guest: &str, domain: &Domain) -> Result<()> {
        let assigned = domain.assigned();
        if self.has_no_devices(guest, &assigned) {
            return Ok(());
        }
        let _turn = self.turn(guest)?;
        let locked = self.store.lock()?;
        let found = locked.lease(guest)?;
        let mut lease = found.clone().unwrap_or_else(|| Lease::new(runtime::starter(self.host), Vec::new()));
        lease.state = LeaseState::Active;
        lease.starter = runtime::starter(self.host).or(lease.starter);
        let qemu = runtime::qemu(self.host, guest);
        if qemu.is_some() {
            self.adopt_running(guest, &assigned, &mut lease, &locked)?;
            lease.qemu = qemu;
        }
        if lease.devices.is_empty() || found.as_ref() == Some(&lease) {
            return Ok(());
        }
        locked.write(guest, &lease)
    }

    /// The guest is gone, or its start was given up; also when that has been told before, or nothing was ever taken.
    pub fn release(&self, guest: &str) -> Result<()> {
        let result = if self.store.has_lease(guest) {
            let result = self.end(guest);
            self.notify_reconciler(guest);
            result
        } else {
            Ok(())
        };
        self.retry_others(guest);
        result
    }

    fn end(&self, guest: &str) -> Result<()> {
        let turn = self.store.try_turn(guest)?;
        // Before any waiting, so that others can go on with it should we be killed, a call into a driver hang, or QEMU not
        // have ended yet. On a full disk the old record will do.
        let locked = self.store.lock()?;
        if let Some(mut lease) = locked.lease(guest)? {
            lease.state = LeaseState::Returning;
            lease.devices = locked.owned(guest, lease.devices)?;
            let _ = locked.write(guest, &lease).and_then(|()| locked.set_attention(guest, "its stop was not finished"));
        }
        drop(locked);
        let turn = turn.map_or_else(|| self.turn(guest), Ok)?;
        self.reattach(guest, &turn, Occasion::Release)
    }

    /// Gives back what guests left that no longer run and that nobody is starting. Returns what could not be done.
    pub fn reconcile(&self) -> Result<Vec<Error>> {
        let mut failures = Vec::new();
        let guests = self.store.guests()?.into_iter().chain(self.store.guests_needing_attention()?);
        for guest in guests.collect::<BTreeSet<_>>() {
            let done = self.turn(&guest).and_then(|turn| self.reattach(&guest, &turn, Occasion::Retry));
            failures.extend(done.err().map(|error| error.during(format_args!("guest '{guest}'"))));
        }
        Ok(failures)
    }

    /// The pools of this host, read when a guest first asks for one.
    pub fn pools(&self) -> &Pools {
        self.pools.get_or_init(|| Pools::load(self.host))
    }

    /// After a lease changed, guests may have to be pointed at other devices, if any guest here asks pools.
    fn notify_reconciler(&self, guest: &str) {
        if files::names(&self.host.pools()).is_ok_and(|names| !names.is_empty()) {
            self.wake(&Entry::Guest(guest.to_owned()));
        }
    }

    /// Most guests have no PCI device, and never had one.
    fn has_no_devices(&self, guest: &str, assigned: &[Assigned]) -> bool {
        assigned.is_empty() && !self.store.has_lease(guest)
    }

    fn lease(&self, guest: &str) -> Result<Option<Lease>> {
        if self.store.has_lease(guest) { self.store.lock()?.lease(guest) } else { Ok(None) }
    }

    fn turn(&self, guest: &str) -> Result<Turn> {
        self.store.turn(guest, self.settings.deadline())
    }

    fn binder(&self, guest: &str) -> Binder<'_> {
        Binder {
            host: self.host,
            is_claimed: Box::new(|address| Ok(self.store.owner(address)?.is_some())),
            log: self.log,
            user: format!("guest '{guest}'"),
            limit: self.settings.deadline(),
            hangs: Cell::new(false),
        }
    }

    /// Adds the groups of devices that a running guest has and its lease does not tell of. How they were found is not
    /// known any more, so they stay on the driver they have.
    fn adopt_running(&self, guest: &str, assigned: &[Assigned], lease: &mut Lease, locked: &Locked) -> Result<()> {
        for wanted in assigned {
            if lease.held(wanted.address).is_some() {
                continue;
            }
            let Some(device) = sysfs::device(self.host, wanted.address)? else { continue };
            let members = match device.group {
                Some(group) => sysfs::group_members(self.host, group)?,
                None => vec![wanted.address],
            };
            for member in members {
                let Some(device) = sysfs::device(self.host, member)? else { continue };
                let role = match assigned.iter().find(|device| device.address == member) {
                    Some(assigned) if assigned.managed => Role::Managed,
                    Some(_) => Role::Unmanaged,
                    None => Role::Sibling,
                };
                if lease.held(member).is_some() || !device.is_endpoint() || device.is_bridge() && role == Role::Sibling
                {
                    continue;
                }
                // Another guest may have had it before, and know.
                let known = match self.store.owner(member)? {
                    Some(owner) => locked.lease(&owner)?.and_then(|lease| lease.held(member).cloned()),
                    None => None,
                };
                if let Some(known) = known.filter(|held| held.id == device.id) {
                    lease.devices.push(HeldDevice { role, ..known });
                    continue;
                }
                self.log.warning(format_args!(
                    "{member}: learned from the running guest '{guest}'; it stays on {} when the guest stops, unless libvirt \
                     reattaches it",
                    device.driver.as_deref().unwrap_or("no driver")
                ));
                lease.devices.push(HeldDevice::as_found(&device, role));
            }
        }
        Ok(())
    }
}
