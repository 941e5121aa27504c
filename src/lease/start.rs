//! A start: what the guest needs is found out, decided on, recorded, and only then detached.

use crate::Leases;
use crate::gather::Facts;
use crate::records::{Locked, Turn};
use crate::stop::Occasion;
use crate::view::View;
use host::libvirt::runtime;
use model::address::PciAddress;
use model::domain::Assigned;
use model::error::Result;
use model::lease::{HeldDevice, Lease, LeaseState};
use model::plan::{Answer, Refusal, plan};

impl Leases<'_> {
    /// Acquires and detaches what a guest's devices need, or undoes all of it.
    pub(super) fn acquire(&self, guest: &str, assigned: &[Assigned], turn: &Turn) -> Result<()> {
        let pending = |devices| Lease::new(runtime::starter(self.host), devices);
        let recorded = self.record(guest, assigned, pending);
        let devices = recorded.map_err(|refusal| {
            let (why, entries) = self.explain_refusal(guest, assigned, refusal, &self.view());
            for entry in entries {
                self.wake(&entry);
            }
            why
        })?;
        self.detach_all(guest, &devices, |hanging| self.reattach(guest, turn, Occasion::Undo { hanging }))
    }

    /// Detaches devices that are recorded. If one fails, `undo` reattaches them; it gets the device with a call that
    /// hangs.
    pub(super) fn detach_all<'h>(
        &self,
        guest: &str,
        devices: impl IntoIterator<Item = &'h HeldDevice>,
        undo: impl FnOnce(Option<PciAddress>) -> Result<()>,
    ) -> Result<()> {
        let binder = self.binder(guest);
        for held in devices {
            if let Err(error) = binder.detach(held) {
                return Err(match undo(binder.hangs.get().then_some(held.address)) {
                    Ok(()) => error,
                    Err(undo) => error.but_not_undone(&undo),
                });
            }
        }
        Ok(())
    }

    /// Decides what the guest takes and writes it down, both under the lock; returns it for the work outside.
    pub(super) fn record(
        &self,
        guest: &str,
        assigned: &[Assigned],
        make: impl Fn(Vec<HeldDevice>) -> Lease,
    ) -> Result<Vec<HeldDevice>, Refusal> {
        let before = self.view();
        let mut facts = Facts::new(self, Some(guest), assigned, &before)?;
        // What the host uses takes long to find out. What has changed under the lock is asked again.
        let asked = facts.scene(&before).map(|scene| plan(&scene));
        if let Ok(Ok(Answer::FindUses(addresses))) = asked {
            facts.find_uses(addresses, &before)?;
        }
        drop(before);
        // Held until the lease is written, so that nobody else reattaches what this start takes over.
        let mut turns = Vec::new();
        loop {
            let locked = self.store.lock()?;
            let answer = plan(&facts.scene(&View::locked(self, &locked))?)?;
            match answer {
                Answer::Detach(devices) => {
                    write_new(guest, &make, &devices, &locked)?;
                    return Ok(devices);
                }
                Answer::FindUses(addresses) => {
                    drop(locked);
                    facts.find_uses(addresses, &self.view())?;
                }
                Answer::Recover(other) => {
                    drop(locked);
                    // Two starts do not wait for each other here: each has reattached its own leftovers before. Only if
                    // that failed for both do they wait until the deadline, and are refused.
                    let turn = self.turn(&other)?;
                    // An error does not matter: what could not be reattached is `Stuck` in the next scene.
                    let _ = self.reattach(&other, &turn, Occasion::Retry);
                    turns.push(turn);
                    facts.recovered.insert(other);
                }
            }
        }
    }
}

/// Writes the lease: these devices, and those that an earlier event of this guest detached and that have to be
/// reattached still. Devices of a reservation are dropped.
fn write_new(
    guest: &str,
    make: impl Fn(Vec<HeldDevice>) -> Lease,
    devices: &[HeldDevice],
    locked: &Locked,
) -> Result<()> {
    let own = locked.take_lease(guest)?;
    let own = own.as_ref();
    if let Some(own) = own.filter(|own| own.state == LeaseState::Reserved) {
        locked.settle(guest, own, Vec::new(), None)?;
    }
    let taken = own.filter(|own| own.state != LeaseState::Reserved);
    let carried = taken.into_iter().flat_map(|lease| &lease.devices);
    let carried = carried.filter(|old| devices.iter().all(|new| new.address != old.address));
    let lease = make(carried.chain(devices).cloned().collect());
    if taken == Some(&lease) {
        return Ok(());
    }
    locked.write(guest, &lease).inspect_err(|_| {
        // A half-written first record has touched nothing yet. A later one leaves the earlier, or adds devices
        // without claims, which are not touched either.
        if own.is_none() {
            let _ = locked.settle(guest, &lease, Vec::new(), None);
        }
    })
}
