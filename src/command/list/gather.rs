//! One look at the host, as pools see it.

use super::{Attention, DeviceState, DeviceView, Found, GroupView, LeaseView, Listing, PfView, PoolView};
use host::config::pool::{Pf, PfName, Pool, Vfs};
use host::memory::Memory;
use host::parked::Parked;
use host::paths::Host;
use host::pci::sysfs::{self, PciView};
use lease::Leases;
use lease::availability::Standing;
use lease::life::Life;
use model::address::PciAddress;
use model::device::PciDevice;
use model::domain::Assigned;
use model::error::{Error, Result};
use model::lease::LeaseState;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What to look at.
#[derive(Debug, Default)]
pub struct Filter<'a> {
    /// These pools only, and nothing beside them.
    pub pools: &'a [String],
    /// The IOMMU groups, too.
    pub groups: bool,
}

impl Listing {
    /// Looks at the host.
    ///
    /// # Errors
    /// Not for what is wrong with single pools or devices: that is part of the answer.
    pub fn gather(host: &Host, leases: &Leases, scope: &Filter) -> Result<Self> {
        let pools = leases.pools();
        let wanted: Vec<&Pool> = match scope.pools {
            [] => pools.pools.iter().collect(),
            names => {
                let found: BTreeSet<&str> =
                    names.iter().map(|name| Ok(pools.find(name)?.name.as_str())).collect::<Result<_>>()?;
                pools.pools.iter().filter(|pool| found.contains(pool.name.as_str())).collect()
            }
        };
        let mut errors = pools.errors.clone();
        let now = leases.view_of_all()?;
        let mut view = View {
            host,
            leases,
            now: &now,
            parked: BTreeMap::new(),
            devices: Memory::default(),
            numa: Memory::default(),
        };
        view.parked = view.parked();
        let views: Vec<PoolView> = wanted.into_iter().map(|pool| view.pool(pool, &mut errors)).collect();
        let pool_errors = errors.len();
        errors.extend(leases.settings_error().cloned());
        let members: HashMap<PciAddress, &str> =
            views.iter().flat_map(|pool| pool.devices().map(|device| (device.address, pool.name.as_str()))).collect();
        let is_part = !scope.pools.is_empty();
        let groups = scope.groups.then(|| view.groups(&views, &members, is_part)).transpose()?;
        let lock_waits = leases.store().lock_waits();
        let (leases, attention) = view.leases()?;
        let others = if is_part { Vec::new() } else { view.others(&leases, &members) };
        Ok(Self { version: 1, others, groups, leases, attention, lock_waits, errors, pool_errors, pools: views })
    }
}

/// What one look has at hand.
struct View<'a> {
    host: &'a Host,
    leases: &'a Leases<'a>,
    now: &'a lease::view::View<'a>,
    /// Who is parked where.
    parked: BTreeMap<PciAddress, Vec<String>>,
    devices: Memory<PciAddress, DeviceView>,
    numa: Memory<PciAddress, Option<u32>>,
}

impl View<'_> {
    /// The stopped guests that point at devices of pools.
    fn parked(&self) -> BTreeMap<PciAddress, Vec<String>> {
        let mut parked: BTreeMap<PciAddress, Vec<String>> = BTreeMap::new();
        for guest in Parked::load(self.host).guests {
            let places: BTreeSet<PciAddress> = guest.devices.iter().filter_map(|place| place.address).collect();
            let runs = || {
                let lease = || self.now.lease(&guest.name).ok().flatten();
                self.now.is_running(&guest.name) || lease().is_some_and(|lease| self.now.is_in_use(&guest.name, &lease))
            };
            if places.is_empty() || runs() {
                continue;
            }
            for place in places {
                parked.entry(place).or_default().push(guest.name.clone());
            }
        }
        parked
    }

    fn pool(&self, pool: &Pool, errors: &mut Vec<Error>) -> PoolView {
        let pfs = pool.pf_names().zip(pool.pfs(&self.now.pci));
        let pfs = pfs.map(|((name, vfs), pf)| self.pf(pool, name, vfs, pf, errors)).collect();
        let listed = pool.listed(&self.now.pci).into_iter().map(|(address, is_member)| match is_member {
            Ok(()) => match self.device(address) {
                DeviceView { state: DeviceState::Bridge, .. } => {
                    let state = DeviceState::Attention {
                        guest: None,
                        why: "it is a bridge, which no guest can have".to_owned(),
                    };
                    DeviceView { state, ..self.device(address) }
                }
                device => device,
            },
            Err(error) => {
                let why = error.to_string();
                errors.push(error);
                DeviceView { state: DeviceState::Missing { why }, ..self.device(address) }
            }
        });
        let devices = listed.collect();
        PoolView { name: pool.name.clone(), file: pool.file.display().to_string(), pfs, devices }
    }

    fn pf(&self, pool: &Pool, name: &PfName, vfs: Vfs, pf: Result<Pf>, errors: &mut Vec<Error>) -> PfView {
        let found = pf.and_then(|pf| {
            let device = self.now.pci.identity(pf.address)?;
            let (members, elsewhere) = pool.vfs(&self.now.pci, &pf)?;
            let now = u32::try_from(members.len() + elsewhere).unwrap_or(u32::MAX);
            let guest = self.leases.store().owner(pf.address)?;
            let wanted = vfs.wanted(now, pf.totalvfs);
            Ok((pf, device, members, guest, wanted.saturating_sub(now)))
        });
        match found {
            Ok((pf, device, members, guest, missing)) => PfView {
                name: name.to_string(),
                address: Some(pf.address),
                netdev: pf.ports.into_iter().next(),
                found: self.found(pf.address, device),
                guest,
                missing,
                why: None,
                devices: members.into_iter().map(|vf| self.device(vf)).collect(),
            },
            Err(error) => {
                let why = error.to_string();
                errors.push(error);
                PfView {
                    name: name.to_string(),
                    address: None,
                    netdev: None,
                    found: Found::default(),
                    guest: None,
                    missing: if let Vfs::Count(count) = vfs { count } else { 1 },
                    why: Some(why),
                    devices: Vec::new(),
                }
            }
        }
    }

    /// A device, read once: a member of a pool is also in a group.
    fn device(&self, address: PciAddress) -> DeviceView {
        self.devices.get(address, |_| {
            // What cannot be read is part of its state.
            let device = self.now.pci.identity(address).ok().flatten();
            let unknown = |error: Error| DeviceState::Attention { guest: None, why: error.to_string() };
            let state = self.state(address).unwrap_or_else(unknown);
            DeviceView { address, found: self.found(address, device), pool: None, state }
        })
    }

    fn found(&self, address: PciAddress, device: Option<PciDevice>) -> Found {
        let place = device.as_ref().and_then(|device| device.physfn).unwrap_or(address);
        // Nothing hangs on it.
        let numa_node = self.numa.get(place, |place| sysfs::numa_node(self.host, *place).ok().flatten());
        let (driver, iommu_group) = device.map_or((None, None), |device| (device.driver, device.group));
        Found { driver, iommu_group, numa_node }
    }

    fn state(&self, address: PciAddress) -> Result<DeviceState> {
        let device = self.now.pci.identity(address)?;
        let is_member = |pool: &&Pool| device.as_ref().is_some_and(|device| pool.has_member(&self.now.pci, device));
        let fixed = Assigned { address, managed: true, pool: None };
        let wanted = self.leases.pools().pools.iter().find(is_member).map_or(fixed, |pool| pool.assigned(address));
        Ok(match self.now.standing(None, &wanted)? {
            Standing::Free => match self.parked.get(&address) {
                Some(guests) => DeviceState::Parked { guests: guests.clone() },
                None => DeviceState::Free,
            },
            Standing::Leased { guest } => self.leased(address, guest)?,
            Standing::InUse { by } => DeviceState::InUse { by },
            Standing::Unusable { .. } if device.is_some_and(|device| device.is_bridge()) => DeviceState::Bridge,
            Standing::Unusable { why } => DeviceState::Attention { guest: None, why },
            Standing::Missing => DeviceState::Missing { why: "there is no PCI function at this address".to_owned() },
        })
    }

    fn leased(&self, address: PciAddress, guest: String) -> Result<DeviceState> {
        let Some(lease) = self.now.lease(&guest).ok().flatten() else {
            return Ok(DeviceState::Leased { guest, role: None, lease: None, was_on: None });
        };
        if !self.now.is_in_use(&guest, &lease) {
            let left = self.leases.store().attention(&guest)?;
            let is_forgotten = lease.state != LeaseState::Returning && !lease.libvirt_lives(self.host);
            let forgotten = || format!("guest '{guest}' is no longer running; `vfpool reconcile` reattaches it");
            if let Some(why) = left.or_else(|| is_forgotten.then(forgotten)) {
                return Ok(DeviceState::Attention { guest: Some(guest), why });
            }
        }
        let held = lease.held(address);
        let driver = self.now.pci.identity(address)?.and_then(|device| device.driver);
        let was_on = held.and_then(|held| held.driver.clone()).filter(|was| Some(was) != driver.as_ref());
        Ok(DeviceState::Leased { guest, role: held.map(|held| held.role), lease: Some(lease.state), was_on })
    }

    /// All leases, and what needs attention.
    fn leases(&self) -> Result<(Vec<LeaseView>, Vec<Attention>)> {
        let (mut leases, mut attention) = (Vec::new(), Vec::new());
        let marked = self.leases.store().guests_needing_attention()?;
        let guests: BTreeSet<String> = self.leases.store().guests()?.into_iter().chain(marked).collect();
        for guest in guests {
            let why = self.leases.store().attention(&guest)?;
            match self.now.lease(&guest).ok().flatten() {
                Some(lease) => leases.push(LeaseView { guest: guest.clone(), state: lease.state }),
                None if why.is_none() && self.leases.store().has_lease(&guest) => {
                    let why = "its lease cannot be read; the next event of the guest sets it aside".to_owned();
                    attention.push(Attention { guest: guest.clone(), why });
                }
                None => {}
            }
            attention.extend(why.map(|why| Attention { guest, why }));
        }
        Ok((leases, attention))
    }

    /// The devices of the leases that are in no pool.
    fn others(&self, leases: &[LeaseView], members: &HashMap<PciAddress, &str>) -> Vec<DeviceView> {
        let leases = leases.iter().filter_map(|lease| self.now.lease(&lease.guest).ok().flatten());
        let held: BTreeSet<PciAddress> = leases.flat_map(|lease| lease.devices).map(|held| held.address).collect();
        let others = held.into_iter().filter(|address| !members.contains_key(address));
        others.map(|address| self.device(address)).collect()
    }

    /// The groups of these members, or all of the host.
    fn groups(
        &self,
        pools: &[PoolView],
        members: &HashMap<PciAddress, &str>,
        of_members: bool,
    ) -> Result<Vec<GroupView>> {
        let pfs = pools.iter().flat_map(|pool| pool.pfs.iter().filter_map(|pf| Some((pf.address?, &pool.name))));
        let pfs: HashMap<PciAddress, &String> = pfs.collect();
        let mut groups: BTreeMap<Option<u32>, Vec<DeviceView>> = BTreeMap::new();
        for address in sysfs::functions(self.host)? {
            let mut device = self.device(address);
            device.pool = members.get(&address).map(|pool| (*pool).to_owned());
            // Of a PF that no guest has itself, that says more than who has one of its VFs.
            let has_no_lease = matches!(device.state, DeviceState::Free | DeviceState::Leased { role: None, .. });
            if let (true, Some(pool)) = (has_no_lease, pfs.get(&address)) {
                device.state = DeviceState::InUse { by: format!("its VFs are pool '{pool}'") };
            }
            groups.entry(device.found.iommu_group).or_default().push(device);
        }
        if of_members {
            groups.retain(|_, devices| devices.iter().any(|device| device.pool.is_some()));
        }
        let mut groups: Vec<GroupView> =
            groups.into_iter().map(|(group, devices)| GroupView { group, devices }).collect();
        if groups.first().is_some_and(|group| group.group.is_none()) {
            groups.rotate_left(1);
        }
        Ok(groups)
    }
}
