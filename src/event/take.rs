//! A start: what the guest needs is found out, decided on, recorded, and only then taken.

use super::Events;
use super::give_back::Occasion;
use crate::address::{PciAddress, PciId};
use crate::domain::Assigned;
use crate::error::{Error, Result};
use crate::lease::{Held, Lease, Locked, State, Turn};
use crate::needs::{self, Need};
use crate::plan::{Answer, Function, Owner, OwnerState, Refusal, Scene, plan};
use crate::process;
use crate::sysfs;
use std::collections::{BTreeMap, BTreeSet};

impl Events<'_> {
    /// Takes what a guest's devices need, or undoes all of it.
    pub(super) fn take(&self, guest: &str, assigned: &[Assigned], turn: &Turn) -> Result<()> {
        let pending = |devices| Lease::new(process::starter(self.host), devices);
        let recorded = self.record(guest, assigned, pending);
        let devices = recorded.map_err(|refusal| self.tell(guest, assigned, refusal))?;
        let mover = self.mover(guest);
        for held in &devices {
            if let Err(error) = mover.take(held) {
                let hanging = mover.hangs.get().then_some(held.address);
                return Err(match self.give_back(guest, turn, Occasion::Undo { hanging }) {
                    Ok(()) => error,
                    Err(undo) => Error::new(format!("{error}. Not all could be undone: {undo}")),
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
        make: impl Fn(Vec<Held>) -> Lease,
    ) -> Result<Vec<Held>, Refusal> {
        let mut needs = BTreeMap::new();
        self.expect_answers(guest, assigned)?;
        let strangers = self.strangers(assigned)?;
        // Kept to the end, so that nobody else gives back what we are about to take over.
        let mut recovered = BTreeMap::new();
        loop {
            let locked = self.store.lock()?;
            let own = locked.lease(guest)?;
            let (functions, missing) = self.functions((guest, own.as_ref()), assigned, &locked, &recovered)?;
            let scene = Scene {
                assigned,
                functions,
                missing,
                needs: std::mem::take(&mut needs),
                strangers: strangers.clone(),
                settings: &self.settings,
                settings_error: self.settings_error.as_ref(),
            };
            match plan(&scene)? {
                Answer::Take(devices) => {
                    write_new(guest, own.as_ref(), &make, &devices, &locked)?;
                    return Ok(devices);
                }
                Answer::FindNeed(address) => {
                    drop(locked);
                    needs = scene.needs;
                    needs.insert(address, self.need(address)?);
                }
                Answer::Recover(other) => {
                    drop(locked);
                    needs = scene.needs;
                    let turn = self.turn(&other)?;
                    // What stays with it is known next time round.
                    let _ = self.give_back(&other, &turn, Occasion::Retry);
                    recovered.insert(other, turn);
                }
            }
        }
    }

    /// Under the lock, drivers are asked about devices. That a driver which hangs does not hang everybody is found out
    /// before. What others own is not asked about, and vfio-pci has nothing to hang on.
    fn expect_answers(&self, guest: &str, assigned: &[Assigned]) -> Result<()> {
        for wanted in assigned {
            let group = sysfs::identity(self.host, wanted.address)?.and_then(|device| device.group);
            for member in group.map_or(Ok(Vec::new()), |group| sysfs::group_members(self.host, group))? {
                let is_theirs = self.store.owner(member)?.is_some_and(|owner| owner != guest);
                match sysfs::identity(self.host, member)? {
                    Some(device) if !is_theirs && device.on_host_driver() && !device.is_bridge() => {
                        sysfs::expect_answer(self.host, &device, self.settings.deadline())?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn need(&self, address: PciAddress) -> Result<Option<Need>> {
        needs::of(self.host, address, self.settings.deadline())
            .map_err(|error| error.during(format_args!("Cannot find out whether the host uses {address}")))
    }

    /// The functions that a guest's start could touch, with their owners, and who owns what is missing.
    fn functions(
        &self,
        own: (&str, Option<&Lease>),
        assigned: &[Assigned],
        locked: &Locked,
        recovered: &BTreeMap<String, Turn>,
    ) -> Result<(BTreeMap<PciAddress, Function>, BTreeMap<PciAddress, Owner>)> {
        let (mut functions, mut missing) = (BTreeMap::new(), BTreeMap::new());
        let mut open: Vec<PciAddress> = assigned.iter().map(|device| device.address).collect();
        let mut groups = BTreeSet::new();
        while let Some(address) = open.pop() {
            if functions.contains_key(&address) {
                continue;
            }
            let Some(device) = sysfs::identity(self.host, address)? else {
                let owner = self.owner(address, None, own, locked, recovered)?;
                missing.extend(owner.map(|owner| (address, owner)));
                continue;
            };
            let owner = self.owner(address, Some(device.id), own, locked, recovered)?;
            // A driver may hang while it has to do with a device that another guest owns; so nothing is asked of it.
            let is_ours =
                owner.as_ref().is_none_or(|owner| matches!(owner.state, OwnerState::Ourselves | OwnerState::Stuck));
            let device = if is_ours { sysfs::device(self.host, address)?.unwrap_or(device) } else { device };
            let is_assigned = assigned.iter().any(|device| device.address == address);
            if let Some(group) = device.group.filter(|group| is_assigned && groups.insert(*group)) {
                open.extend(sysfs::group_members(self.host, group)?);
            }
            open.extend(sysfs::vfs_of(self.host, address)?);
            functions.insert(address, Function { device, owner });
        }
        Ok((functions, missing))
    }

    /// Who owns a device. A claim counts if its lease tells of the device that is here now, if one is. A reservation that was
    /// not used in time counts no more, and needs no other guest's turn: two guests may want each other's.
    fn owner(
        &self,
        address: PciAddress,
        id: Option<PciId>,
        (guest, own): (&str, Option<&Lease>),
        locked: &Locked,
        recovered: &BTreeMap<String, Turn>,
    ) -> Result<Option<Owner>> {
        let record = |lease: &Lease| lease.held(address).filter(|held| id.is_none_or(|id| held.id == id)).cloned();
        let Some(owner) = self.store.owner(address)? else { return Ok(None) };
        if owner == guest {
            let held = own.and_then(record);
            return Ok(held.map(|held| Owner { guest: owner, state: OwnerState::Ourselves, held: Some(held) }));
        }
        let Some(lease) = locked.lease(&owner)? else {
            // The lease was lost. Only the guest itself can still need the device.
            let runs = process::qemu(self.host, &owner).is_some();
            return Ok(runs.then_some(Owner { guest: owner, state: OwnerState::InUse, held: None }));
        };
        // What a dry run has given back is still on record.
        if lease.is_over(self.host) || self.host.is_dry() && recovered.contains_key(&owner) {
            return Ok(None);
        }
        let state = if lease.is_in_use(self.host, &owner) {
            OwnerState::InUse
        } else if !recovered.contains_key(&owner) {
            OwnerState::Gone
        } else if lease.state == State::Returning {
            OwnerState::Stuck
        } else {
            OwnerState::Stopping
        };
        Ok(record(&lease).map(|held| Owner { guest: owner, state, held: Some(held) }))
    }
}

/// Records what is taken, beside what an earlier event of the guest took and is not asked for any more. What was only
/// reserved is not carried along.
fn write_new(
    guest: &str,
    own: Option<&Lease>,
    make: impl Fn(Vec<Held>) -> Lease,
    devices: &[Held],
    locked: &Locked,
) -> Result<()> {
    if let Some(own) = own.filter(|own| own.state == State::Reserved) {
        locked.settle(guest, own, Vec::new(), None)?;
    }
    let taken = own.filter(|own| own.state != State::Reserved);
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
