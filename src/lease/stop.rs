//! Reattaching: after a stop, after a start that failed, and for guests whose end no event reported.

use crate::Leases;
use crate::life::Life;
use crate::records::Turn;
use host::libvirt::runtime;
use host::pci::bind::Libvirt;
use model::address::PciAddress;
use model::error::{Error, Result};
use model::lease::{HeldDevice, Lease, LeaseState, Role};
use std::collections::BTreeSet;

/// When devices are reattached.
#[derive(Clone, Copy)]
pub(super) enum Occasion {
    /// A start fails here; libvirt undoes its part after that, and tells us by `release`.
    Undo {
        /// As of a [`Part`].
        hanging: Option<PciAddress>,
    },
    /// libvirt says that the guest is gone, and has done its part.
    Release,
    /// No event: reattach only if the guest no longer runs.
    Retry,
}

/// The devices of a lease that are to be reattached: all but those that are kept.
pub(super) struct Part<'a> {
    pub(super) guest: &'a str,
    pub(super) lease: &'a Lease,
    /// What the lease is to have afterwards.
    pub(super) kept: Vec<HeldDevice>,
    pub(super) libvirt: Libvirt,
    /// The device of a call that hangs. The write still hangs in the kernel and may take effect later, so the device
    /// is not touched and stays on record. The child that makes the call holds the guest's turn until then.
    pub(super) hanging: Option<PciAddress>,
}

impl Leases<'_> {
    /// Reattaches what the guest's lease tells of and the guest still owns, in reverse. What fails is kept on record,
    /// and so is what libvirt itself still has to reattach: that is over with the guest's `release`, or when that
    /// libvirtd has died.
    pub(super) fn reattach(&self, guest: &str, _turn: &Turn, occasion: Occasion) -> Result<()> {
        let lease = {
            let locked = self.store.lock()?;
            let Some(mut lease) = locked.take_lease(guest)? else { return locked.clear_attention(guest) };
            if lease.state == LeaseState::Reserved {
                let is_kept = matches!(occasion, Occasion::Retry) && !lease.is_over(self.host);
                return if is_kept { Ok(()) } else { locked.settle(guest, &lease, Vec::new(), None) };
            }
            let before = lease.state;
            match occasion {
                Occasion::Retry if lease.is_in_use(self.host, guest) => return Ok(()),
                Occasion::Release if lease.is_running(self.host, guest) => {
                    return Err(Error::new("its QEMU still runs, so it keeps its devices"));
                }
                Occasion::Release => lease.state = LeaseState::Returning,
                _ if lease.state != LeaseState::Returning && !lease.libvirt_lives(self.host) => {
                    self.log.warning(format_args!("guest '{guest}' is no longer running; reattaching its devices"));
                    lease.state = LeaseState::Returning;
                }
                Occasion::Undo { .. } => lease.state = LeaseState::Failed,
                Occasion::Retry => {}
            }
            lease.devices = locked.owned(guest, lease.devices)?;
            // On a full disk the record stays as it was, which is enough to reattach by.
            if lease.state != before {
                locked.record(guest, &lease).unwrap_or_else(|error| self.log.warning(&error));
            }
            lease
        };
        let hanging = if let Occasion::Undo { hanging } = occasion { hanging } else { None };
        let libvirt = if lease.state == LeaseState::Returning { Libvirt::Done } else { Libvirt::AtWork };
        self.reattach_all(Part { guest, lease: &lease, kept: Vec::new(), libvirt, hanging })
    }

    /// Reattaches devices of a lease, in reverse, and writes down what is left: what is kept, and what could not go.
    pub(super) fn reattach_all(&self, part: Part) -> Result<()> {
        let Part { guest, lease, mut kept, libvirt, hanging } = part;
        let binder = self.binder(guest);
        let mut failure = None;
        let is_kept: BTreeSet<PciAddress> = kept.iter().map(|held| held.address).collect();
        for held in lease.devices.iter().rev().filter(|held| !is_kept.contains(&held.address)) {
            // VFs exist again only when their PF is reattached, which comes after them in the lease. The record of a VF
            // does not name its PF, so they wait until every PF of the lease is back.
            let result = if held.role == Role::Vf && kept.iter().any(|kept: &HeldDevice| kept.numvfs > 0) {
                Ok(false)
            } else if hanging == Some(held.address) {
                Err(Error::new(format!(
                    "{} stays on record until the kernel is done with it; it is reattached at the next start or stop \
                     of a guest after that",
                    held.address
                )))
            } else {
                binder.reattach(held, libvirt)
            };
            if !matches!(result, Ok(true)) {
                kept.insert(0, held.clone());
            }
            if let Err(error) = result {
                self.log.error(&error);
                failure.get_or_insert(error);
            }
        }
        let why = failure.as_ref().map(Error::to_string);
        self.store.lock()?.settle(guest, lease, kept, why.as_deref())?;
        failure.map_or(Ok(()), Err)
    }

    /// What could not be reattached of another guest may go now. Failures are reported and stay on record; a guest
    /// whose turn is taken is at work on it, or hangs.
    pub(super) fn retry_others(&self, guest: &str) {
        // (A dry run does not remember it.)
        let libvirtd = runtime::starter(self.host).filter(|_| !self.host.is_dry());
        let libvirtd = libvirtd.filter(|libvirtd| self.store.is_new_libvirtd(libvirtd));
        // A libvirtd that has died ends no start and no stop that it had begun.
        let others = if libvirtd.is_some() { self.store.guests() } else { self.store.guests_needing_attention() };
        let Ok(others) = others else { return };
        if others.is_empty() {
            return;
        }
        // What failed a moment ago will fail again.
        for other in others.iter().filter(|other| *other != guest || !self.store.has_lease(guest)) {
            if let Ok(Some(turn)) = self.store.try_turn(other) {
                let _ = self.reattach(other, &turn, Occasion::Retry);
            }
        }
        if let Some(libvirtd) = libvirtd {
            self.store.remember_libvirtd(&libvirtd);
        }
    }
}
