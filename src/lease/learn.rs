//! What a running guest has, and no lease says: it was hot-plugged by another tool, or the lease was lost.

use crate::Leases;
use crate::records::Locked;
use host::libvirt::runtime;
use host::pci::snapshot::Snapshot;
use host::pci::sysfs::{self, PciView};
use model::device::PciDevice;
use model::domain::{Assigned, Domain};
use model::error::{Error, Result};
use model::lease::{HeldDevice, Lease, LeaseState, Role};
use std::collections::BTreeSet;

/// A function that a running guest has, and why.
type Found = (PciDevice, Role);

impl Leases<'_> {
    /// The guest runs, or libvirt found it running: its lease holds until it stops. A device without a lease is learned
    /// as it is.
    pub fn runs(&self, guest: &str, domain: &Domain) -> Result<()> {
        let assigned = domain.assigned();
        if self.has_no_devices(guest, &assigned) {
            return Ok(());
        }
        let _turn = self.turn(guest)?;
        let found = self.without_lease(guest, &assigned)?;
        let locked = self.store.lock()?;
        let before = locked.take_lease(guest)?;
        let mut lease = before.clone().unwrap_or_else(|| Lease::new(runtime::starter(self.host), Vec::new()));
        lease.state = LeaseState::Active;
        lease.starter = runtime::starter(self.host).or(lease.starter);
        let qemu = runtime::qemu(self.host, guest);
        if qemu.is_some() {
            self.adopt_running(guest, found, &mut lease, &locked)?;
            lease.qemu = qemu;
        }
        if lease.devices.is_empty() || before.as_ref() == Some(&lease) {
            return Ok(());
        }
        locked.write(guest, &lease)
    }

    /// The lease of a guest that runs, with all that it has.
    pub(super) fn running_lease(&self, guest: &str, assigned: &[Assigned]) -> Result<Lease> {
        let found = self.without_lease(guest, assigned)?;
        let locked = self.store.lock()?;
        let before = locked.take_lease(guest)?;
        let qemu = runtime::qemu(self.host, guest);
        if qemu.is_none() {
            return Err(Error::new("it does not run"));
        }
        let mut lease = before.clone().unwrap_or_else(|| {
            let mut lease = Lease::new(runtime::libvirtd(self.host), Vec::new());
            lease.state = LeaseState::Active;
            lease
        });
        if lease.state != LeaseState::Active {
            return Err(Error::new("it is just being started or stopped; try again when that is over"));
        }
        lease.qemu = qemu;
        self.adopt_running(guest, found, &mut lease, &locked)?;
        if !lease.devices.is_empty() && before.as_ref() != Some(&lease) {
            locked.write(guest, &lease)?;
        }
        Ok(lease)
    }

    /// The functions that a running guest has and its lease does not name. Asks drivers, so it comes before the lock.
    fn without_lease(&self, guest: &str, assigned: &[Assigned]) -> Result<Vec<Found>> {
        let lease = self.store.lease_or_none(guest);
        let is_known = |address| lease.as_ref().is_some_and(|lease| lease.held(address).is_some());
        let pci = Snapshot::new(self.host);
        let mut addresses = BTreeSet::new();
        for wanted in assigned.iter().filter(|wanted| !is_known(wanted.address)) {
            let Some(device) = pci.identity(wanted.address)? else { continue };
            match device.group {
                Some(group) => addresses.extend(pci.group_members(group)?),
                None => _ = addresses.insert(wanted.address),
            }
        }
        let mut found = Vec::new();
        for address in addresses.into_iter().filter(|address| !is_known(*address)) {
            let Some(device) = pci.identity(address)? else { continue };
            let role = match assigned.iter().find(|device| device.address == address) {
                Some(assigned) if assigned.managed => Role::Managed,
                Some(_) => Role::Unmanaged,
                None => Role::Sibling,
            };
            if device.is_endpoint() && !(device.is_bridge() && role == Role::Sibling) {
                found.push((sysfs::with_driver_state_within(self.host, device, self.settings.deadline())?, role));
            }
        }
        Ok(found)
    }

    /// Adds functions that a running guest has to its lease. How they were found is not known any more, so they stay on
    /// the driver they have.
    fn adopt_running(&self, guest: &str, found: Vec<Found>, lease: &mut Lease, locked: &Locked) -> Result<()> {
        for (device, role) in found {
            if lease.held(device.address).is_some() {
                continue;
            }
            // Another guest may have had it before, and know.
            let known = match self.store.owner(device.address)? {
                Some(owner) => locked.take_lease(&owner)?.and_then(|lease| lease.held(device.address).cloned()),
                None => None,
            };
            if let Some(known) = known.filter(|held| held.id == device.id) {
                lease.devices.push(HeldDevice { role, ..known });
                continue;
            }
            self.log.warning(format_args!(
                "{}: learned from the running guest '{guest}'; it stays on {} when the guest stops, unless libvirt \
                 reattaches it",
                device.address,
                device.driver.as_deref().unwrap_or("no driver")
            ));
            lease.devices.push(HeldDevice::as_found(&device, role));
        }
        Ok(())
    }
}
