//! A running guest gets one more device, or has lost one. libvirt calls no hook then, so whoever has libvirt do it
//! calls these: [`Leases::plug`] before, [`Leases::unplug`] after.

use crate::Leases;
use crate::availability::Standing;
use crate::choose::{first_member, until_accepted};
use crate::life::Life;
use crate::records::Turn;
use crate::refusal;
use crate::stop::Part;
use host::config::pool::Pool;
use host::libvirt::runtime;
use host::open_files;
use host::parked::Parked;
use host::pci::bind::Libvirt;
use host::pci::sysfs;
use model::address::PciAddress;
use model::domain::{Assigned, Domain};
use model::error::{Error, Result};
use model::lease::{HeldDevice, Lease, LeaseState, Process, Role};
use std::collections::{BTreeMap, BTreeSet};

impl Leases<'_> {
    /// Chooses a free device of a pool for a running guest, adds it to the guest's lease and detaches the rest of its
    /// group, as at a start; or undoes that. `domain` is the guest as it runs.
    pub fn plug(&self, guest: &str, domain: &Domain, pool: &Pool) -> Result<PciAddress> {
        let mut assigned = domain.assigned();
        // It has these already, whatever the pools say now.
        for device in &mut assigned {
            device.pool = None;
        }
        let turn = self.turn(guest)?;
        let before = self.running_lease(guest, &assigned)?;
        let make = |devices| {
            let mut lease = before.clone();
            lease.devices = devices;
            lease
        };
        let parked = Parked::load(self.host);
        let view = self.view();
        let choose = |refused: &BTreeMap<PciAddress, Error>| {
            let is_free = |address: PciAddress| {
                // What its lease has beside that, it is just letting go of.
                let is_own = |held: &HeldDevice| held.role != Role::Sibling;
                let has_it =
                    assigned.iter().any(|device| device.address == address) || before.held(address).is_some_and(is_own);
                let may_do = !has_it && !refused.contains_key(&address);
                Ok(may_do && view.standing(Some(guest), &pool.assigned(address))? == Standing::Free)
            };
            let found = first_member(guest, pool, &parked, &view, is_free)?;
            found.map(|address| vec![(pool, address)]).ok_or_else(|| refusal::exhausted(guest, pool, refused, &view))
        };
        let (chosen, devices) = until_accepted(choose, |chosen| {
            let new = chosen.iter().map(|(pool, address)| pool.assigned(*address));
            self.record(guest, &assigned.iter().cloned().chain(new).collect::<Vec<_>>(), make)
        })?;
        let new = devices.iter().filter(|held| before.held(held.address).is_none());
        self.detach_all(guest, new, |hanging| match &before.qemu {
            Some(qemu) => self.drop_surplus(guest, &assigned, qemu, hanging, &turn).map(drop),
            None => Ok(()),
        })?;
        self.notify_reconciler(guest);
        Ok(chosen[0].1)
    }

    /// Reattaches what was detached for devices that a running guest does not have, or has no more. `has` finds out
    /// which it has now; if the guest is stopped and started again in between, nothing is done.
    pub fn unplug(&self, guest: &str, has: impl FnOnce() -> Result<Vec<Assigned>>) -> Result<()> {
        let Some(qemu) = runtime::qemu(self.host, guest) else { return Ok(()) };
        let assigned = has()?;
        let turn = self.turn(guest)?;
        if self.drop_surplus(guest, &assigned, &qemu, None, &turn)? {
            self.notify_reconciler(guest);
        }
        Ok(())
    }

    /// The running guests whose leases name more than they use, or a device that could not be reattached: a hot-plug
    /// did not end, or the guest let go of a device later than it was asked to.
    pub fn needing_settlement(&self) -> Result<Vec<String>> {
        let mut guests = Vec::new();
        for guest in self.store.guests()? {
            let Some(lease) = self.store.lease_or_none(&guest) else { continue };
            if lease.state == LeaseState::Active
                && lease.is_running(self.host, &guest)
                && (self.store.attention(&guest)?.is_some() || self.is_idle(&lease)?)
            {
                guests.push(guest);
            }
        }
        Ok(guests)
    }

    /// Whether QEMU does not use one of the guest's own devices.
    fn is_idle(&self, lease: &Lease) -> Result<bool> {
        for held in lease.devices.iter().filter(|held| matches!(held.role, Role::Managed | Role::Unmanaged)) {
            if !sysfs::identity(self.host, held.address)?.is_some_and(|device| device.in_vfio_use) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reattaches all that a running guest's lease has beside these devices and their groups. What a process has open
    /// stays. Whether there was anything.
    fn drop_surplus(
        &self,
        guest: &str,
        assigned: &[Assigned],
        qemu: &Process,
        hanging: Option<PciAddress>,
        _turn: &Turn,
    ) -> Result<bool> {
        // One that has stopped since gets all reattached by that, and one that was started again has other devices.
        let is_same = |lease: &Lease| lease.qemu.as_ref() == Some(qemu) && lease.is_running(self.host, guest);
        let Some(lease) = self.lease(guest)?.filter(is_same) else {
            return Ok(false);
        };
        let mut groups = BTreeSet::new();
        for device in assigned {
            groups.extend(sysfs::identity(self.host, device.address)?.and_then(|device| device.group));
        }
        let mut kept = Vec::new();
        for held in &lease.devices {
            let device = sysfs::identity(self.host, held.address)?;
            let is_own = assigned.iter().any(|device| device.address == held.address);
            let is_in_use = device.as_ref().is_some_and(|device| device.in_vfio_use);
            let group = device.and_then(|device| device.group);
            let is_of_group = group.is_some_and(|group| groups.contains(&group));
            // QEMU has the group before it has the device: with much memory to be pinned, for long.
            let is_open = || open_files::vfio_holder(self.host, held.address, group);
            if is_own || is_in_use || !is_of_group && is_open()?.is_some() {
                kept.push(held.clone());
            } else if is_of_group {
                kept.push(HeldDevice { role: Role::Sibling, ..held.clone() });
            }
        }
        if kept == lease.devices {
            self.store.lock()?.clear_attention(guest)?;
            return Ok(false);
        }
        self.reattach_all(Part { guest, lease: &lease, kept, libvirt: Libvirt::Done, hanging })?;
        self.store.lock()?.clear_attention(guest)?;
        Ok(true)
    }
}
