//! A running guest gets one more device, or has lost one. libvirt calls no hook then, so whoever has libvirt do it calls
//! these: [`Leases::plug`] before, [`Leases::unplug`] after.

use crate::Leases;
use crate::availability::Standing;
use crate::life::Life;
use crate::records::Turn;
use host::config::pool::Pool;
use host::libvirt::runtime;
use host::open_files;
use host::parked::Parked;
use host::pci::sysfs;
use model::address::PciAddress;
use model::domain::{Assigned, Domain};
use model::error::{Error, Result};
use model::lease::{HeldDevice, Lease, LeaseState, Role};
use model::plan::Refusal;
use std::collections::{BTreeMap, BTreeSet};

impl Leases<'_> {
    /// Chooses a free device of a pool for a running guest, adds it to the guest's lease and takes the rest of its group, as
    /// at a start; or undoes that. `domain` is the guest as it runs.
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
        let availability = self.availability();
        let mut refused = BTreeMap::new();
        let (address, devices) = loop {
            let is_free = |address: PciAddress| {
                // What its lease has beside that, it is just letting go of.
                let is_own = |held: &HeldDevice| held.role != Role::Sibling;
                let has_it =
                    assigned.iter().any(|device| device.address == address) || before.held(address).is_some_and(is_own);
                let may_do = !has_it && !refused.contains_key(&address);
                Ok(may_do && availability.of(guest, address)? == Standing::Free)
            };
            let found = self.first_member(guest, pool, &parked, is_free)?;
            let address = found.ok_or_else(|| self.exhausted(guest, pool, &refused))?;
            let new = Assigned { address, managed: pool.managed, pool: Some(pool.name.clone()) };
            let with_it: Vec<Assigned> = assigned.iter().cloned().chain([new]).collect();
            match self.record(guest, &with_it, make) {
                Ok(devices) => break (address, devices),
                // Somebody was faster, or knows more of the device than we do.
                Err(Refusal { device: Some(device), why }) if device == address => _ = refused.insert(device, why),
                Err(refusal) => return Err(refusal.why),
            }
        };
        let binder = self.binder(guest);
        for held in devices.iter().filter(|held| before.held(held.address).is_none()) {
            if let Err(error) = binder.take(held) {
                let hanging = binder.hangs.get().then_some(held.address);
                return Err(match self.drop_surplus(guest, &assigned, hanging, &turn) {
                    Ok(_) => error,
                    Err(undo) => Error::new(format!("{error}. Not all could be undone: {undo}")),
                });
            }
        }
        self.notify_reconciler(guest);
        Ok(address)
    }

    /// Gives back what was taken for devices that a running guest does not have, or has no more. `domain` is the guest as it
    /// runs now.
    pub fn unplug(&self, guest: &str, domain: &Domain) -> Result<()> {
        self.unplug_all_but(guest, &domain.assigned())
    }

    /// The same by the devices that it has.
    pub fn unplug_all_but(&self, guest: &str, assigned: &[Assigned]) -> Result<()> {
        let turn = self.turn(guest)?;
        if self.drop_surplus(guest, assigned, None, &turn)? {
            self.notify_reconciler(guest);
        }
        Ok(())
    }

    /// The running guests whose leases tell of more than they use, or of something that could not be given back: a hot-plug
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

    /// The lease of a guest that runs, with all that it has.
    fn running_lease(&self, guest: &str, assigned: &[Assigned]) -> Result<Lease> {
        let locked = self.store.lock()?;
        let found = locked.lease(guest)?;
        let qemu = runtime::qemu(self.host, guest);
        if qemu.is_none() {
            return Err(Error::new("it does not run"));
        }
        let mut lease = found.clone().unwrap_or_else(|| {
            let mut lease = Lease::new(runtime::libvirtd(self.host), Vec::new());
            lease.state = LeaseState::Active;
            lease
        });
        if lease.state != LeaseState::Active {
            return Err(Error::new("it is just being started or stopped; try again when that is over"));
        }
        lease.qemu = qemu;
        self.adopt_running(guest, assigned, &mut lease, &locked)?;
        if !lease.devices.is_empty() && found.as_ref() != Some(&lease) {
            locked.write(guest, &lease)?;
        }
        Ok(lease)
    }

    /// Gives back all that a running guest's lease has beside these devices and their groups. What somebody has open stays.
    /// Whether there was anything.
    fn drop_surplus(
        &self,
        guest: &str,
        assigned: &[Assigned],
        hanging: Option<PciAddress>,
        _turn: &Turn,
    ) -> Result<bool> {
        // One that has stopped meanwhile gives back all by itself.
        let Some(lease) = self.lease(guest)?.filter(|lease| lease.is_running(self.host, guest)) else {
            return Ok(false);
        };
        let mut groups = BTreeSet::new();
        for device in assigned {
            groups.extend(sysfs::identity(self.host, device.address)?.and_then(|device| device.group));
        }
        let (mut kept, mut surplus) = (Vec::new(), Vec::new());
        for held in &lease.devices {
            let device = sysfs::identity(self.host, held.address)?;
            let is_own = assigned.iter().any(|device| device.address == held.address);
            let is_in_use = device.as_ref().is_some_and(|device| device.in_vfio_use);
            let group = device.and_then(|device| device.group);
            let is_of_group = group.is_some_and(|group| groups.contains(&group));
            // QEMU has the group before it has the device: with much memory to be pinned, for long.
            let is_open = || group.map_or(Ok(None), |group| open_files::holder_of_group(self.host, group));
            if is_own || is_in_use || !is_of_group && is_open()?.is_some() {
                kept.push(held.clone());
            } else if is_of_group {
                kept.push(HeldDevice { role: Role::Sibling, ..held.clone() });
            } else {
                surplus.push(held.clone());
            }
        }
        if surplus.is_empty() && kept == lease.devices {
            self.store.lock()?.clear_attention(guest)?;
            return Ok(false);
        }
        self.reattach_all(guest, &lease, &surplus, kept, true, hanging)?;
        self.store.lock()?.clear_attention(guest)?;
        Ok(true)
    }
}
