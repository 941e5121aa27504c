//! Devices of pools at a start: whether one is of its pool, what to say if it cannot be had, and which to take instead where
//! libvirt lets a hook say so.

use crate::Leases;
use crate::availability::Standing;
use crate::life::{Life, reservation};
use crate::stop::Occasion;
use host::config::pool::{OnBusy, Pool};
use host::parked::Parked;
use host::pci::sysfs::{self, PciView};
use host::queue::Entry;
use model::address::PciAddress;
use model::domain::{Assigned, Domain, Hostdev};
use model::error::{Error, Result};
use model::lease::{HeldDevice, LeaseState};
use model::plan::Refusal;
use model::text::shell_word;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a choice is kept for the start that has to follow: libvirt's `prepare` comes in the same call as `restore` and
/// `migrate`, but QEMU's memory image may have to be opened before.
const RESERVED: Duration = Duration::from_secs(60);

/// So many holders are named in a message; a line has to be read.
const NAMED: usize = 8;

impl Leases<'_> {
    /// The guest's XML with its pooled devices pointed at ones that are free on this host; these are kept for it for a while.
    /// `None`: it asks no pool for anything.
    pub fn resolve(&self, guest: &str, domain: &Domain) -> Result<Option<Vec<u8>>> {
        if domain.requests.is_empty() {
            return Ok(None);
        }
        self.expect_all_devices(domain)?;
        let turn = self.turn(guest)?;
        match self.lease(guest)? {
            Some(lease) if lease.is_running(self.host, guest) => {
                return Err(Error::new("it runs already, and holds its devices"));
            }
            Some(lease) if lease.state != LeaseState::Reserved => {
                let _ = self.reattach(guest, &turn, Occasion::Release);
            }
            _ => {}
        }
        let reserve = |devices: Vec<HeldDevice>| reservation(self.host, RESERVED, devices);
        let chosen = self.choose_by(guest, domain, |assigned| self.record(guest, assigned, reserve).map(drop))?;
        Ok(Some(domain.with_addresses(&chosen)))
    }

    /// A device for each request of a guest, such that a start with them is not refused, which `decide` says.
    pub(super) fn choose_by<'d>(
        &self,
        guest: &str,
        domain: &'d Domain,
        decide: impl Fn(&[Assigned]) -> Result<(), Refusal>,
    ) -> Result<Vec<(&'d Hostdev, PciAddress)>> {
        let mut refused = BTreeMap::new();
        loop {
            let chosen = self.choose(guest, domain, &refused)?;
            match decide(&domain.assigned_with(&chosen)) {
                Ok(()) => return Ok(chosen),
                // Somebody was faster, or knows more of the device than we do.
                Err(Refusal { device: Some(device), why })
                    if chosen.iter().any(|(_, address)| *address == device) && !refused.contains_key(&device) =>
                {
                    refused.insert(device, why);
                }
                Err(refusal) => return Err(refusal.why),
            }
        }
    }

    /// Drops what [`resolve`](Self::resolve) has kept for a guest, if no start has taken it over.
    pub fn cancel(&self, guest: &str) -> Result<()> {
        let _turn = self.turn(guest)?;
        let locked = self.store.lock()?;
        match locked.lease(guest)? {
            Some(lease) if lease.state == LeaseState::Reserved => locked.settle(guest, &lease, Vec::new(), None),
            _ => Ok(()),
        }
    }

    /// A device for each request: the one it has if that is free, else the first free one of its pool that no stopped guest
    /// is parked at, else any free one.
    fn choose<'d>(
        &self,
        guest: &str,
        domain: &'d Domain,
        refused: &BTreeMap<PciAddress, Error>,
    ) -> Result<Vec<(&'d Hostdev, PciAddress)>> {
        let parked = Parked::load(self.host);
        let availability = self.availability();
        let pooled: Vec<(&Hostdev, &Pool)> = domain
            .requests
            .iter()
            .filter_map(|request| Some((domain.device_for(request)?, self.pools().find(&request.pool))))
            .map(|(device, pool)| Ok((device, pool?)))
            .collect::<Result<_>>()?;
        let is_pooled = |device: &Hostdev| pooled.iter().any(|(pooled, _)| std::ptr::eq(*pooled, device));
        let mut used: BTreeSet<PciAddress> =
            domain.devices.iter().filter(|device| !is_pooled(device)).map(|device| device.address).collect();
        let is_free = |address: PciAddress, used: &BTreeSet<PciAddress>| {
            Ok(!refused.contains_key(&address)
                && !used.contains(&address)
                && availability.of(guest, address)? == Standing::Free)
        };
        // First those that can stay, so that none of the others gets their device.
        let mut chosen = Vec::new();
        let mut open = Vec::new();
        for (device, pool) in pooled {
            let is_member =
                sysfs::identity(self.host, device.address)?.is_some_and(|found| pool.has_member(self.host, &found));
            if is_member && is_free(device.address, &used)? {
                used.insert(device.address);
                chosen.push((device, device.address));
            } else {
                open.push((device, pool));
            }
        }
        for (device, pool) in open {
            let free = self.first_member(guest, pool, &parked, |address| is_free(address, &used))?;
            let address = free.ok_or_else(|| self.exhausted(guest, pool, refused))?;
            used.insert(address);
            chosen.push((device, address));
        }
        Ok(chosen)
    }

    /// The first free member of a pool, of those that no other stopped guest is parked at if there is one.
    pub(super) fn first_member(
        &self,
        guest: &str,
        pool: &Pool,
        parked: &Parked,
        is_free: impl Fn(PciAddress) -> Result<bool>,
    ) -> Result<Option<PciAddress>> {
        let (members, _) = pool.members(self.host);
        let (others, own): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|address| parked.by_other_than(guest, *address));
        for address in own.into_iter().chain(others) {
            if is_free(address)? {
                return Ok(Some(address));
            }
        }
        Ok(None)
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

    /// A request whose device is just being moved must not start without it. One whose device somebody took out of the
    /// definition asks for nothing any more, and is told of.
    pub(super) fn expect_all_devices(&self, domain: &Domain) -> Result<()> {
        missing_devices(domain)?.iter().for_each(|warning| self.log.warning(warning));
        Ok(())
    }

    /// Puts a refusal into words. Of a pooled device it tells how the pool stands. Beside the words: what the reconciler is
    /// to do about it.
    pub(super) fn words(&self, guest: &str, assigned: &[Assigned], refusal: Refusal) -> (Error, Vec<Entry>) {
        let Refusal { why, device } = refusal;
        let asked = assigned.iter().find(|assigned| Some(assigned.address) == device);
        let Some(name) = asked.and_then(|assigned| assigned.pool.as_ref()) else { return (why, Vec::new()) };
        let mut entries = vec![Entry::Refused(guest.to_owned())];
        let Ok(pool) = self.pools().find(name) else { return (why, entries) };
        let Ok(standings) = self.availability().of_pool(guest, pool) else { return (why, entries) };
        let used = |address: &PciAddress| assigned.iter().any(|assigned| assigned.address == *address);
        let free = standings.iter().find(|(address, standing)| *standing == Standing::Free && !used(address));
        let Some((free, _)) = free else {
            let is_told = standings.iter().any(|(address, _)| Some(*address) == device);
            let held = held(pool, &standings);
            let words = if is_told { held } else { Error::new(why.reason()).remedy(held.to_string()) };
            return (words, entries);
        };
        let then = match pool.on_busy {
            OnBusy::Refuse => {
                format!(
                    "it will be pointed at a free one: start it again in a moment, or run `vfpool start {}`",
                    shell_word(guest)
                )
            }
            OnBusy::Restart => {
                entries.push(Entry::Restart(guest.to_owned()));
                "it is started again by itself with a free one (on-busy='restart')".to_owned()
            }
        };
        // What to do about one certain device does not fit where any of a pool will do.
        let words = Error::new(why.reason()).remedy(format!("{free} of pool '{name}' is free, and {then}"));
        (words, entries)
    }

    pub(super) fn exhausted(&self, guest: &str, pool: &Pool, refused: &BTreeMap<PciAddress, Error>) -> Error {
        if let Some(why) = refused.values().next() {
            return why.clone();
        }
        match self.availability().of_pool(guest, pool) {
            Ok(standings) => held(pool, &standings),
            Err(error) => error,
        }
    }

    /// Leaves the rest to the reconciler.
    pub fn wake(&self, entry: &Entry) {
        if let Err(error) = entry.put(self.host) {
            self.log.warning(&error);
        }
    }
}

/// What is to be told of requests without a device.
///
/// # Errors
/// One of them is just being moved.
pub fn missing_devices(domain: &Domain) -> Result<Vec<Error>> {
    let mut warnings = Vec::new();
    for request in &domain.requests {
        let (pool, address) = (&request.pool, request.guest_address);
        match (domain.device_for(request), &request.moving) {
            (None, Some(_)) => {
                return Err(Error::new(format!(
                    "its device of pool '{pool}' (in the guest at {address}) is just being pointed at a free one"
                ))
                .remedy("Start it again in a moment; if that does not help, run `vfpool reconcile`"));
            }
            (None, None) => warnings.push(Error::new(format!(
                "guest '{}' asks pool '{pool}' for a device at {address}, where it has none; see `vfpool detach`",
                domain.name
            ))),
            _ => {}
        }
    }
    Ok(warnings)
}

/// Who has the devices of a pool of which none is free.
fn held(pool: &Pool, standings: &[(PciAddress, Standing)]) -> Error {
    if standings.is_empty() {
        return Error::new(format!("pool '{}' has no devices now; run `vfpool setup` to see why", pool.name));
    }
    let who = |standing: &Standing| match standing {
        Standing::Free => "this guest's other device".to_owned(),
        standing => standing.to_string(),
    };
    let named = standings.iter().take(NAMED).map(|(address, standing)| format!("{address} ({})", who(standing)));
    let named: Vec<String> = named.collect();
    let more = match standings.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Error::new(format!("no device of pool '{}' is free: {}{more}", pool.name, named.join(", ")))
        .remedy("Stop one of these first")
}
