//! What a guest still holds is reattached because the admin says so: after something went wrong that no event told of.

use crate::Leases;
use crate::life::Life;
use crate::stop::{Occasion, Part};
use host::guard;
use host::pci::bind::Libvirt;
use host::pci::sysfs;
use model::address::PciAddress;
use model::error::{Error, Result};
use model::lease::{HeldDevice, Lease, LeaseState};
use model::text::shell_word;
use std::collections::BTreeSet;

impl Leases<'_> {
    /// Reattaches what a guest that does not run still holds; only `device` and its IOMMU group, if one is given.
    /// Returns a line that says so.
    ///
    /// `libvirt`: what the admin knows of it beyond the lease. A device that a program has open stays.
    pub fn release_by_admin(&self, guest: &str, device: Option<PciAddress>, libvirt: Libvirt) -> Result<String> {
        let nothing = || Error::new("it holds nothing; see `vfpool list`");
        if !self.store.has_lease(guest) && self.store.attention(guest)?.is_none() {
            return Err(nothing());
        }
        let turn = self.turn(guest)?;
        let lease = {
            let locked = self.store.lock()?;
            let Some(mut lease) = locked.take_lease(guest)? else {
                if self.store.attention(guest)?.is_some() {
                    locked.clear_attention(guest)?;
                    return Ok(format!("guest '{guest}': nothing is left to reattach"));
                }
                return Err(nothing());
            };
            self.expect_over(guest, &lease, libvirt)?;
            lease.devices = locked.owned(guest, lease.devices)?;
            lease
        };
        let wanted = self.of_group(&lease, device)?;
        for held in &wanted {
            self.expect_closed(held)?;
        }
        let addresses: Vec<PciAddress> = wanted.iter().map(|held| held.address).collect();
        let kept: Vec<HeldDevice> = lease.devices.iter().filter(|held| !wanted.contains(held)).cloned().collect();
        if lease.state == LeaseState::Reserved {
            // Nothing of it was touched yet.
            self.store.lock()?.settle(guest, &lease, kept, None)?;
        } else if kept.is_empty() {
            let occasion = if libvirt == Libvirt::Done { Occasion::Release } else { Occasion::Retry };
            self.reattach(guest, &turn, occasion)?;
        } else {
            let libvirt = if libvirt == Libvirt::Done { libvirt } else { lease.libvirt(self.host) };
            self.reattach_all(Part { guest, lease: &lease, kept, libvirt, hanging: None })?;
        }
        let left = if self.host.is_dry() { None } else { self.lease(guest)? };
        let left = left.iter().flat_map(|lease| &lease.devices).find(|held| addresses.contains(&held.address));
        if let Some(held) = left {
            return Err(Error::new(format!(
                "libvirt has to reattach {}, and libvirtd, which stops or starts the guest, is still running",
                held.address
            ))
            .remedy("If it has nothing to do with the guest any more, say --force"));
        }
        self.notify_reconciler(guest);
        let addresses: Vec<String> = addresses.iter().map(PciAddress::to_string).collect();
        let line = format!("guest '{guest}': released by hand: {}", addresses.join(", "));
        self.log.info(&line);
        Ok(line)
    }

    /// A guest that uses its devices, or is about to, keeps them.
    fn expect_over(&self, guest: &str, lease: &Lease, libvirt: Libvirt) -> Result<()> {
        let quoted = shell_word(guest);
        if lease.is_running(self.host, guest) {
            let pid = lease.qemu.as_ref().map_or_else(String::new, |qemu| format!(" (QEMU is process {})", qemu.pid));
            return Err(Error::new(format!("it runs{pid}, and has its devices"))
                .remedy(format!("Stop it first: virsh destroy {quoted}")));
        }
        if lease.state == LeaseState::Pending && lease.libvirt_lives(self.host) && libvirt == Libvirt::AtWork {
            let pid = lease.starter.as_ref().map_or(0, |starter| starter.pid);
            return Err(Error::new(format!("it is being started by libvirtd (process {pid})"))
                .remedy(format!("If `virsh domstate {quoted}` says that it is not, say --force")));
        }
        Ok(())
    }

    /// Whatever a lease says.
    fn expect_closed(&self, held: &HeldDevice) -> Result<()> {
        if !sysfs::identity(self.host, held.address)?.is_some_and(|device| device.on_vfio) {
            return Ok(());
        }
        match guard::of(self.host, held.address, self.settings.deadline())? {
            Some(found) => {
                Err(Error::new(format!("Cannot reattach {}: {found}. {} first", held.address, found.remedy())))
            }
            None => Ok(()),
        }
    }

    /// A lease's devices; of those, if one is given, it and the others of its group.
    fn of_group(&self, lease: &Lease, device: Option<PciAddress>) -> Result<Vec<HeldDevice>> {
        let Some(device) = device else { return Ok(lease.devices.clone()) };
        if lease.held(device).is_none() {
            let devices: Vec<String> = lease.devices.iter().map(|held| held.address.to_string()).collect();
            return Err(Error::new(format!("it does not hold {device}, but {}", devices.join(", "))));
        }
        let group = sysfs::identity(self.host, device)?.and_then(|device| device.group);
        let mut members = BTreeSet::from([device]);
        if let Some(group) = group {
            members.extend(sysfs::group_members(self.host, group)?);
        }
        Ok(lease.devices.iter().filter(|held| members.contains(&held.address)).cloned().collect())
    }

    /// Whether a guest uses the devices of its lease, or is about to.
    pub fn is_in_use(&self, guest: &str) -> bool {
        self.store.lease_or_none(guest).is_some_and(|lease| lease.is_in_use(self.host, guest))
    }
}
