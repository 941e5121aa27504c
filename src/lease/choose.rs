//! Devices of pools at a start: whether one is of its pool, what to say if it cannot be had, and which to take instead
//! where libvirt lets a hook say so.

use crate::availability::Standing;
use crate::life::reservation;
use crate::records::Turn;
use crate::refusal::{self, NAMED};
use crate::view::View;
use crate::{Caller, Leases};
use host::config::pool::Pool;
use host::parked::Parked;
use host::pci::sysfs::PciView;
use host::queue::Entry;
use model::address::PciAddress;
use model::domain::{Assigned, Domain, Hostdev};
use model::error::{Error, Result};
use model::lease::{HeldDevice, LeaseState};
use model::plan::Refusal;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a choice is kept for the start that has to follow: libvirt's `prepare` comes in the same call as `restore`
/// and `migrate`, but QEMU's memory image may have to be opened before.
const RESERVED: Duration = Duration::from_secs(60);

impl Leases<'_> {
    /// The guest's XML with its pooled devices pointed at ones that are free on this host; these are kept for it for a
    /// while. `None`: it asks no pool for anything.
    pub fn resolve(&self, guest: &str, domain: &Domain, caller: Caller) -> Result<Option<Vec<u8>>> {
        if domain.requests.is_empty() {
            return Ok(None);
        }
        self.expect_all_devices(domain)?;
        let _turn = self.begin(guest, caller)?;
        let reserve = |devices: Vec<HeldDevice>| reservation(self.host, RESERVED, devices);
        let chosen =
            self.choose(guest, domain, &self.view(), |assigned| self.record(guest, assigned, reserve).map(drop))?;
        Ok(Some(domain.with_addresses(&chosen)))
    }

    /// A device for each request of a guest, such that a start with them is not refused, which `decide` says.
    pub fn choose<'d>(
        &self,
        guest: &str,
        domain: &'d Domain,
        view: &View,
        decide: impl Fn(&[Assigned]) -> Result<(), Refusal>,
    ) -> Result<Vec<(&'d Hostdev, PciAddress)>> {
        let choose = |refused: &BTreeMap<_, _>| self.first_free(guest, domain, view, refused);
        let (chosen, ()) = until_accepted(choose, |chosen| decide(&domain.assigned_with(chosen)))?;
        Ok(chosen)
    }

    /// Drops what [`resolve`](Self::resolve) has kept for a guest, if no start has taken it over.
    pub fn cancel(&self, guest: &str) -> Result<()> {
        let turn = self.turn(guest)?;
        self.drop_reservation(guest, &turn)
    }

    pub(super) fn drop_reservation(&self, guest: &str, _turn: &Turn) -> Result<()> {
        if !self.store.has_lease(guest) {
            return Ok(());
        }
        let locked = self.store.lock()?;
        match locked.take_lease(guest)? {
            Some(lease) if lease.state == LeaseState::Reserved => locked.settle(guest, &lease, Vec::new(), None),
            _ => Ok(()),
        }
    }

    /// A device for each request: the one it has if that is free, else the first free one of its pool that no stopped
    /// guest is parked at, else any free one.
    fn first_free<'d>(
        &self,
        guest: &str,
        domain: &'d Domain,
        view: &View,
        refused: &BTreeMap<PciAddress, Error>,
    ) -> Result<Vec<(&'d Hostdev, PciAddress)>> {
        let parked = Parked::load(self.host);
        let pooled: Vec<(&Hostdev, &Pool)> = domain
            .requests
            .iter()
            .filter_map(|request| Some((domain.device_for(request)?, self.pools().find(&request.pool))))
            .map(|(device, pool)| Ok((device, pool?)))
            .collect::<Result<_>>()?;
        let is_pooled = |device: &Hostdev| pooled.iter().any(|(pooled, _)| std::ptr::eq(*pooled, device));
        let mut used: BTreeSet<PciAddress> =
            domain.devices.iter().filter(|device| !is_pooled(device)).map(|device| device.address).collect();
        let is_free = |device: &Hostdev, pool: &Pool, address: PciAddress, used: &BTreeSet<PciAddress>| {
            let wanted = Assigned { managed: device.managed, ..pool.assigned(address) };
            Ok(!refused.contains_key(&address)
                && !used.contains(&address)
                && view.standing(Some(guest), &wanted)? == Standing::Free)
        };
        // First those that can stay, so that none of the others gets their device.
        let mut chosen = Vec::new();
        let mut open = Vec::new();
        for (device, pool) in pooled {
            let is_member = view.pci.identity(device.address)?.is_some_and(|found| pool.has_member(&view.pci, &found));
            if is_member && is_free(device, pool, device.address, &used)? {
                used.insert(device.address);
                chosen.push((device, device.address));
            } else {
                open.push((device, pool));
            }
        }
        for (device, pool) in open {
            let is_free = |address| is_free(device, pool, address, &used);
            let free = first_member(guest, pool, &parked, view, is_free)?;
            let address = free.ok_or_else(|| refusal::exhausted(guest, pool, refused, view))?;
            used.insert(address);
            chosen.push((device, address));
        }
        Ok(chosen)
    }

    /// Why devices are none of the pool that they are asked from.
    pub(super) fn not_members(&self, assigned: &[Assigned], pci: &dyn PciView) -> Result<BTreeMap<PciAddress, Error>> {
        let mut not_members = BTreeMap::new();
        for Assigned { address, pool, .. } in assigned {
            let Some(name) = pool else { continue };
            match self.pools().find(name) {
                Err(error) => _ = not_members.insert(*address, error),
                Ok(pool) => {
                    // One that is not there is refused for that.
                    if pci.identity(*address)?.is_some_and(|device| !pool.has_member(pci, &device)) {
                        not_members.insert(
                            *address,
                            Error::new(format!("{address} is no device of pool '{name}' on this host")),
                        );
                    }
                }
            }
        }
        Ok(not_members)
    }

    /// A request whose device is just being moved must not start without it. One whose device was removed from the
    /// definition requests nothing any more, and is logged.
    pub(super) fn expect_all_devices(&self, domain: &Domain) -> Result<()> {
        let warnings = refusal::missing_devices(domain)?;
        warnings.iter().take(NAMED).for_each(|warning| self.log.warning(warning));
        if let more @ 1.. = warnings.len().saturating_sub(NAMED) {
            self.log.warning(format_args!("guest '{}': {more} more requests without a device", domain.name));
        }
        Ok(())
    }

    /// Leaves the rest to the reconciler.
    pub fn wake(&self, entry: &Entry) {
        if let Err(error) = entry.put(self.host) {
            self.log.warning(&error);
        }
    }
}

/// Chooses devices, and again without those of them that `decide` refuses, until it accepts. Each stands beside what
/// it is for. Returns the choice, and what came of the decision.
pub(super) fn until_accepted<'c, C: ?Sized, T>(
    choose: impl Fn(&BTreeMap<PciAddress, Error>) -> Result<Vec<(&'c C, PciAddress)>>,
    decide: impl Fn(&[(&'c C, PciAddress)]) -> Result<T, Refusal>,
) -> Result<(Vec<(&'c C, PciAddress)>, T)> {
    let mut refused = BTreeMap::new();
    loop {
        let chosen = choose(&refused)?;
        match decide(&chosen) {
            Ok(accepted) => return Ok((chosen, accepted)),
            // Another guest was faster, or the plan knows more of the device than the choice did.
            Err(Refusal { device: Some(device), why, .. })
                if chosen.iter().any(|(_, address)| *address == device) && !refused.contains_key(&device) =>
            {
                refused.insert(device, why);
            }
            Err(refusal) => return Err(refusal.why),
        }
    }
}

/// The first free member of a pool, of those that no other stopped guest is parked at if there is one.
pub(super) fn first_member(
    guest: &str,
    pool: &Pool,
    parked: &Parked,
    view: &View,
    is_free: impl Fn(PciAddress) -> Result<bool>,
) -> Result<Option<PciAddress>> {
    let (members, _) = pool.members(&view.pci);
    let (others, own): (Vec<_>, Vec<_>) =
        members.into_iter().partition(|address| parked.by_other_than(guest, *address));
    for address in own.into_iter().chain(others) {
        if is_free(address)? {
            return Ok(Some(address));
        }
    }
    Ok(None)
}
