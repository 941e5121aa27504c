//! What a start depends on: the devices, their owners, and what the host uses. Changes nothing, so that a start can be
//! foreseen as well as carried out; who carries it out looks under the lock.

use crate::Leases;
use crate::life::Life;
use host::guard;
use host::libvirt::runtime;
use host::pci::sysfs;
use model::address::{PciAddress, PciId};
use model::domain::Assigned;
use model::error::{Error, Result};
use model::host_use::HostUse;
use model::lease::{Lease, LeaseState};
use model::plan::{Function, Owner, OwnerState, Scene};
use std::collections::{BTreeMap, BTreeSet};

/// How leases are read.
type ReadLease<'a> = &'a dyn Fn(&str) -> Result<Option<Lease>>;

/// The facts about one guest's start.
pub(super) struct Facts<'a> {
    leases: &'a Leases<'a>,
    guest: &'a str,
    assigned: &'a [Assigned],
    not_members: BTreeMap<PciAddress, Error>,
    uses: BTreeMap<PciAddress, Option<HostUse>>,
    /// The gone guests that have given back by now what they could.
    pub(super) recovered: BTreeSet<String>,
}

impl<'a> Facts<'a> {
    /// Those that are found out without the lock.
    pub(super) fn new(leases: &'a Leases, guest: &'a str, assigned: &'a [Assigned]) -> Result<Self> {
        let facts = Self {
            leases,
            guest,
            assigned,
            not_members: leases.not_members(assigned)?,
            uses: BTreeMap::new(),
            recovered: BTreeSet::new(),
        };
        facts.expect_answers()?;
        Ok(facts)
    }

    /// All that decides, as it is now.
    pub(super) fn scene(&self, leases: ReadLease) -> Result<Scene<'_>> {
        let (functions, missing) = self.functions(leases)?;
        Ok(Scene {
            assigned: self.assigned,
            functions,
            missing,
            uses: &self.uses,
            not_members: &self.not_members,
            settings: &self.leases.settings,
            settings_error: self.leases.settings_error.as_ref(),
        })
    }

    /// Finds out what the host uses of a device.
    pub(super) fn find_use(&mut self, address: PciAddress) -> Result<()> {
        let need = guard::of(self.leases.host, address, self.leases.settings.deadline())
            .map_err(|error| error.during(format_args!("Cannot find out whether the host uses {address}")))?;
        self.uses.insert(address, need);
        Ok(())
    }

    /// Under the lock, drivers are asked about devices. That a driver which hangs does not hang everybody is found out
    /// before. What others own is not asked about, and vfio-pci has nothing to hang on.
    fn expect_answers(&self) -> Result<()> {
        for wanted in self.assigned {
            let group = sysfs::identity(self.leases.host, wanted.address)?.and_then(|device| device.group);
            for member in group.map_or(Ok(Vec::new()), |group| sysfs::group_members(self.leases.host, group))? {
                let is_theirs = self.leases.store.owner(member)?.is_some_and(|owner| owner != self.guest);
                match sysfs::identity(self.leases.host, member)? {
                    Some(device) if !is_theirs && device.on_host_driver() && !device.is_bridge() => {
                        sysfs::expect_answer(self.leases.host, &device, self.leases.settings.deadline())?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The functions that a guest's start could touch, with their owners, and who owns what is missing.
    fn functions(&self, leases: ReadLease) -> Result<(BTreeMap<PciAddress, Function>, BTreeMap<PciAddress, Owner>)> {
        let (mut functions, mut missing) = (BTreeMap::new(), BTreeMap::new());
        let mut open: Vec<PciAddress> = self.assigned.iter().map(|device| device.address).collect();
        let mut groups = BTreeSet::new();
        while let Some(address) = open.pop() {
            if functions.contains_key(&address) {
                continue;
            }
            let Some(device) = sysfs::identity(self.leases.host, address)? else {
                let owner = self.owner(address, None, leases)?;
                missing.extend(owner.map(|owner| (address, owner)));
                continue;
            };
            let owner = self.owner(address, Some(device.id), leases)?;
            // A driver may hang while it has to do with a device that another guest owns; so nothing is asked of it.
            let is_ours =
                owner.as_ref().is_none_or(|owner| matches!(owner.state, OwnerState::Ourselves | OwnerState::Stuck));
            let device = if is_ours { sysfs::device(self.leases.host, address)?.unwrap_or(device) } else { device };
            let is_assigned = self.assigned.iter().any(|device| device.address == address);
            if let Some(group) = device.group.filter(|group| is_assigned && groups.insert(*group)) {
                open.extend(sysfs::group_members(self.leases.host, group)?);
            }
            open.extend(sysfs::vfs_of(self.leases.host, address)?);
            functions.insert(address, Function { device, owner });
        }
        Ok((functions, missing))
    }

    /// Who owns a device. A claim counts if its lease tells of the device that is here now, if one is. A reservation that was
    /// not used in time counts no more, and uses no other guest's turn: two guests may want each other's.
    fn owner(&self, address: PciAddress, id: Option<PciId>, leases: ReadLease) -> Result<Option<Owner>> {
        let record = |lease: &Lease| lease.held(address).filter(|held| id.is_none_or(|id| held.id == id)).cloned();
        let Some(owner) = self.leases.store.owner(address)? else { return Ok(None) };
        let lease = leases(&owner)?;
        if owner == self.guest {
            let held = lease.as_ref().and_then(record);
            return Ok(held.map(|held| Owner { guest: owner, state: OwnerState::Ourselves, held: Some(held) }));
        }
        let Some(lease) = lease else {
            // The lease was lost. Only the guest itself can still need the device.
            let runs = runtime::qemu(self.leases.host, &owner).is_some();
            return Ok(runs.then_some(Owner { guest: owner, state: OwnerState::InUse, held: None }));
        };
        // What a dry run has given back is still on record.
        if lease.is_over(self.leases.host) || self.leases.host.is_dry() && self.recovered.contains(&owner) {
            return Ok(None);
        }
        let state = if lease.is_in_use(self.leases.host, &owner) {
            OwnerState::InUse
        } else if !self.recovered.contains(&owner) {
            OwnerState::Gone
        } else if lease.state == LeaseState::Returning {
            OwnerState::Stuck
        } else {
            OwnerState::Stopping
        };
        Ok(record(&lease).map(|held| Owner { guest: owner, state, held: Some(held) }))
    }
}
