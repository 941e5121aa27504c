//! What happens to a guest, one function each. The hook and the command call these, and nothing else of this crate
//! moves a device.
//!
//! The order is always the same: the guest's turn, then the short lock to compare and record, then, without the lock,
//! the devices. Nothing here calls libvirt: its hooks run while it holds the guest.

pub mod availability;
mod choose;
mod gather;
mod hotplug;
mod learn;
pub mod left_behind;
pub mod life;
mod preview;
pub mod records;
mod refusal;
mod release;
mod start;
mod stop;
pub mod vfs;
pub mod view;

use crate::life::Life;
use crate::records::{Records, Turn};
use crate::view::View;
use host::config::pool::Pools;
use host::config::settings;
use host::files;
use host::log::Log;
use host::paths::Host;
use host::pci::bind::Binder;
use host::queue::Entry;
use model::domain::{Assigned, Domain};
use model::error::{Error, Result};
use model::lease::{Lease, LeaseState};
use model::settings::Settings;
use model::text::shell_word;
use once_cell::unsync::OnceCell;
pub use preview::{Acquired, Preview};
pub use refusal::missing_devices;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;
use stop::Occasion;

/// Who has a guest started.
#[derive(Clone, Copy)]
pub enum Caller {
    /// libvirt, by its hook. It does one thing at a time with a guest, so whatever it did before is over.
    Libvirt,
    /// The admin, or a tool: libvirt may be starting or stopping the guest at this very moment.
    Admin,
}

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
    /// Leases on this host, with its settings and pools; logs what is wrong with the settings.
    pub fn new(host: &'a Host, log: &'a Log) -> Self {
        let leases = Self::load(host, log);
        leases.settings_error().into_iter().for_each(|error| log.warning(error));
        leases
    }

    /// The same for a caller that has another place for [`settings_error`](Self::settings_error).
    pub fn load(host: &'a Host, log: &'a Log) -> Self {
        let (settings, settings_error) = settings::load(host);
        Self { host, log, store: Records::new(host, log), settings, settings_error, pools: OnceCell::new() }
    }

    /// Why the admin's settings do not count, and defaults do.
    pub fn settings_error(&self) -> Option<&Error> {
        self.settings_error.as_ref()
    }

    /// The records that these events keep.
    pub fn store(&self) -> &Records<'a> {
        &self.store
    }

    /// A reading of devices and records that begins now.
    pub fn view(&self) -> View<'_> {
        View::new(self)
    }

    /// The same of all devices of the host.
    pub fn view_of_all(&self) -> Result<View<'_>> {
        View::of_all(self)
    }

    /// How long one step on the host may take.
    pub fn deadline(&self) -> Duration {
        self.settings.deadline()
    }

    /// libvirt is about to start a guest: detaches what its devices need, or refuses and leaves everything as it was.
    pub fn prepare(&self, guest: &str, domain: &Domain) -> Result<()> {
        let assigned = domain.assigned();
        self.expect_all_devices(domain)?;
        if self.has_no_devices(guest, &assigned) {
            return Ok(());
        }
        let turn = self.begin(guest, Caller::Libvirt)?;
        if let Err(error) = self.acquire(guest, &assigned, &turn) {
            // It was kept for this start.
            let _ = self.drop_reservation(guest, &turn);
            self.store.mark("unstarted", guest);
            return Err(error);
        }
        // Who starts the guest decides, and no start that was refused before.
        let _ = Entry::Restart(guest.to_owned()).remove(self.host);
        self.notify_reconciler(guest);
        self.retry_others(guest);
        Ok(())
    }

    /// The turn of a guest that is to be started, once all that an earlier start left is back, as far as it can be.
    ///
    /// # Errors
    /// The guest runs, or is being started or stopped.
    fn begin(&self, guest: &str, caller: Caller) -> Result<Turn> {
        let turn = self.turn(guest)?;
        let Some(lease) = self.lease(guest)? else { return Ok(turn) };
        if lease.is_running(self.host, guest) {
            return Err(Error::new("it runs already, and holds its devices"));
        }
        match caller {
            _ if lease.state == LeaseState::Reserved => {}
            // What cannot go back now stays on record, and may do for this start.
            Caller::Libvirt => _ = self.reattach(guest, &turn, Occasion::Release),
            Caller::Admin if lease.is_between(self.host, guest) => {
                let what = if lease.state == LeaseState::Pending { "started" } else { "stopped" };
                let quoted = shell_word(guest);
                return Err(Error::new(format!("it is just being {what} by libvirt")).remedy(format!(
                    "Try again when that is over; if `virsh domstate {quoted}` says that it is, run `vfpool reconcile` \
                     first"
                )));
            }
            Caller::Admin => _ = self.reattach(guest, &turn, Occasion::Retry),
        }
        Ok(turn)
    }

    /// The devices that libvirt itself chose are known now; takes what they need beyond what `prepare` took.
    pub fn start(&self, guest: &str, domain: &Domain) -> Result<()> {
        let assigned = domain.assigned();
        if self.has_no_devices(guest, &assigned) {
            return Ok(());
        }
        let turn = self.turn(guest)?;
        self.acquire(guest, &assigned, &turn)?;
        self.notify_reconciler(guest);
        Ok(())
    }

    /// libvirt ends a stop, or a start that failed, and calls `release` next. If that is killed before it has recorded
    /// anything, the reconciler finds it.
    pub fn stopped(&self, guest: &str) {
        if self.store.has_lease(guest) {
            self.wake(&Entry::Stopped(guest.to_owned()));
        }
    }

    /// The guest is gone, or its start was given up; also when that was reported before, or nothing was ever acquired.
    pub fn release(&self, guest: &str) -> Result<()> {
        // The end of a start that was refused says nothing of the next one, which may have reserved devices since.
        let is_next = self.store.unmark("unstarted", guest) && self.is_reserved(guest);
        let result = if self.store.has_lease(guest) && !is_next {
            let result = self.end(guest);
            if result.is_err() {
                self.wake(&Entry::Guest(guest.to_owned()));
            } else {
                self.notify_reconciler(guest);
            }
            result
        } else {
            Ok(())
        };
        self.retry_others(guest);
        result
    }

    fn is_reserved(&self, guest: &str) -> bool {
        self.store.lease_or_none(guest).is_some_and(|lease| lease.state == LeaseState::Reserved)
    }

    fn end(&self, guest: &str) -> Result<()> {
        // If nobody else has the turn, others leave the guest to us.
        let turn = self.store.try_turn(guest).ok().flatten();
        // Before any waiting: whatever stops us from here on, the next event goes on with it.
        self.store.mark("ended", guest);
        let turn = turn.map_or_else(|| self.turn(guest), Ok)?;
        self.reattach(guest, &turn, Occasion::Release)
    }

    /// Reattaches what guests left that no longer run and that are not being started. Returns what could not be done.
    ///
    /// `is_off` tells whether libvirt has ended a guest, as far as is known. It is called without any lock, for guests
    /// that libvirt may just be starting or stopping.
    pub fn reconcile(&self, mut is_off: impl FnMut(&str) -> bool) -> Result<Vec<Error>> {
        let mut failures = Vec::new();
        let guests = self.store.guests()?.into_iter().chain(self.store.guests_needing_attention()?);
        for guest in guests.collect::<BTreeSet<_>>() {
            let done = self.reconcile_guest(&guest, &mut is_off);
            failures.extend(done.err().map(|error| error.during(format_args!("guest '{guest}'"))));
        }
        Ok(failures)
    }

    fn reconcile_guest(&self, guest: &str, is_off: impl FnOnce(&str) -> bool) -> Result<()> {
        let asked = self.store.written(guest);
        let is_between = |lease: Lease| lease.is_between(self.host, guest);
        let is_off = self.store.lease_or_none(guest).is_some_and(is_between) && is_off(guest);
        let turn = self.turn(guest)?;
        // A later start has written its own lease, and a later stop has changed it, before we got the turn.
        if is_off && self.store.written(guest) == asked {
            self.log
                .warning(format_args!("guest '{guest}' is off, and its release did not end; reattaching its devices"));
            return self.reattach(guest, &turn, Occasion::Release);
        }
        self.reattach(guest, &turn, Occasion::Retry)
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
        if self.store.has_lease(guest) { self.store.lock()?.take_lease(guest) } else { Ok(None) }
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
}
