//! What a start depends on: the devices, their owners, and what the host uses. Changes nothing, so that a start can be
//! foreseen as well as carried out; who carries it out looks under the lock.

use crate::Leases;
use crate::life::Life;
use crate::view::View;
use host::pci::sysfs::PciView;
use model::address::{PciAddress, PciId};
use model::device::PciDevice;
use model::domain::Assigned;
use model::error::{Error, Result};
use model::host_use::HostUse;
use model::lease::{Lease, LeaseState};
use model::plan::{Function, Owner, OwnerState, Scene};
use std::collections::{BTreeMap, BTreeSet};

/// The facts about one guest's start.
pub(super) struct Facts<'a> {
    leases: &'a Leases<'a>,
    guest: Option<&'a str>,
    assigned: &'a [Assigned],
    not_members: BTreeMap<PciAddress, Error>,
    uses: BTreeMap<PciAddress, Option<HostUse>>,
    /// The gone guests that have reattached by now what they could.
    pub(super) recovered: BTreeSet<String>,
}

impl<'a> Facts<'a> {
    /// Those that are found out without the lock.
    pub(super) fn new(
        leases: &'a Leases,
        guest: Option<&'a str>,
        assigned: &'a [Assigned],
        view: &View,
    ) -> Result<Self> {
        let facts = Self {
            leases,
            guest,
            assigned,
            not_members: leases.not_members(assigned, &view.pci)?,
            uses: BTreeMap::new(),
            recovered: BTreeSet::new(),
        };
        facts.expect_answers(view)?;
        Ok(facts)
    }

    /// All that decides, in this view.
    pub(super) fn scene<'s>(&'s self, view: &'s View) -> Result<Scene<'s>> {
        let scene = view.scene(self.assigned, |address, found| {
            let owner = self.owner(address, found.as_ref().map(|device| device.id), view)?;
            // A driver may hang while it has to do with a device that another guest owns; so nothing is asked of it.
            let is_ours =
                owner.as_ref().is_none_or(|owner| matches!(owner.state, OwnerState::Ourselves | OwnerState::Stuck));
            let asked = if found.is_some() && is_ours { view.pci.device(address)? } else { None };
            Ok((asked.or(found), owner))
        })?;
        Ok(Scene {
            uses: self.uses.clone(),
            not_members: &self.not_members,
            settings_error: self.leases.settings_error.as_ref(),
            ..scene
        })
    }

    /// Finds out what the host uses these devices for.
    pub(super) fn find_uses(&mut self, addresses: Vec<PciAddress>, view: &View) -> Result<()> {
        self.uses.extend(view.host_uses(addresses)?);
        Ok(())
    }

    /// Under the lock, drivers are asked about devices. That none of them hangs, vfio-pci's unbinding included, is
    /// found out before. What others own is not asked about.
    fn expect_answers(&self, view: &View) -> Result<()> {
        let mut members = BTreeSet::new();
        for wanted in self.assigned {
            if let Some(group) = view.pci.identity(wanted.address)?.and_then(|device| device.group) {
                members.extend(view.pci.group_members(group)?);
            }
        }
        for member in members {
            let is_theirs = view.owner(member)?.is_some_and(|owner| Some(owner.as_str()) != self.guest);
            match view.pci.identity(member)? {
                Some(device) if !is_theirs && device.driver.is_some() && !device.is_bridge() => {
                    view.expect_answer(&device)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Who owns a device. A claim counts if its lease tells of the device that is here now, if one is. A reservation
    /// that was not used in time counts no more, and uses no other guest's turn: two guests may want each other's.
    fn owner(&self, address: PciAddress, id: Option<PciId>, view: &View) -> Result<Option<Owner>> {
        let record = |lease: &Lease| lease.held(address).filter(|held| id.is_none_or(|id| held.id == id)).cloned();
        let Some(owner) = view.owner(address)? else { return Ok(None) };
        let lease = view.lease(&owner)?;
        if Some(owner.as_str()) == self.guest {
            let held = lease.as_ref().and_then(record);
            return Ok(held.map(|held| Owner { guest: owner, state: OwnerState::Ourselves, held: Some(held) }));
        }
        let Some(lease) = lease else {
            // The lease was lost. Only the guest itself can still need the device.
            return Ok(view.is_running(&owner).then_some(Owner { guest: owner, state: OwnerState::InUse, held: None }));
        };
        // What a dry run has reattached is still on record.
        if lease.is_over(self.leases.host) || self.leases.host.is_dry() && self.recovered.contains(&owner) {
            return Ok(None);
        }
        let state = if view.is_in_use(&owner, &lease) {
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

/// No pool was asked.
static NONE: BTreeMap<PciAddress, Error> = BTreeMap::new();

impl View<'_> {
    /// The functions that a start with these devices could touch, and whether their platform lets it. `look` says what
    /// is to be known of a function that is here, or missing, and who owns it.
    pub(crate) fn scene<'s>(
        &'s self,
        assigned: &'s [Assigned],
        look: impl Fn(PciAddress, Option<PciDevice>) -> Result<(Option<PciDevice>, Option<Owner>)>,
    ) -> Result<Scene<'s>> {
        let (mut functions, mut missing, mut platform) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut open: Vec<PciAddress> = assigned.iter().map(|device| device.address).collect();
        while let Some(address) = open.pop() {
            if functions.contains_key(&address) {
                continue;
            }
            let (device, owner) = look(address, self.pci.identity(address)?)?;
            let Some(mut device) = device else {
                // The VFs of a PF that a guest has are gone, and will be back.
                missing.extend(owner.map(|owner| (address, owner)));
                continue;
            };
            let is_assigned = assigned.iter().any(|device| device.address == address);
            if let Some(group) = device.group.filter(|group| is_assigned && !platform.contains_key(group)) {
                open.extend(self.pci.group_members(group)?);
                platform.insert(group, self.pci.platform_members(group)?);
            }
            let vfs = self.pci.vfs_of(address)?;
            device.numvfs = device.numvfs.max(u32::try_from(vfs.len()).unwrap_or(u32::MAX));
            open.extend(vfs);
            if device.on_host_driver() && !device.is_bridge() {
                open.extend(self.pci.functions_behind(address)?);
            }
            functions.insert(address, Function { device, owner });
        }
        let has_group = |function: &Function| function.device.group.is_some();
        Ok(Scene {
            assigned,
            missing,
            uses: BTreeMap::new(),
            iommu_is_on: functions.values().all(has_group) || self.iommu_is_on()?,
            platform,
            functions,
            not_members: &NONE,
            settings: self.settings,
            settings_error: None,
        })
    }
}
