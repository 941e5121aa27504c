//! Devices and records at one moment: whatever is asked, and how often, each is read once.
//!
//! A start has one view before the lock and one under it; a command that only reads has one. What changes devices or
//! records takes a new one afterwards.

use crate::Leases;
use crate::life::Life;
use crate::records::{Locked, Records};
use host::guard::Guard;
use host::libvirt::runtime;
use host::memory::Memory;
use host::paths::Host;
use host::pci::snapshot::Snapshot;
use host::pci::sysfs::{self, PciView};
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::Result;
use model::host_use::HostUse;
use model::lease::Lease;
use model::settings::Settings;
use once_cell::unsync::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

/// How leases are read: as they are at the moment, or under the lock.
type ReadLease<'a> = Box<dyn Fn(&str) -> Result<Option<Lease>> + 'a>;

/// One reading of what decides about guests' devices.
pub struct View<'a> {
    /// The devices.
    pub pci: Snapshot<'a>,
    pub(crate) host: &'a Host,
    pub(crate) settings: &'a Settings,
    records: &'a Records<'a>,
    read: ReadLease<'a>,
    guard: Guard<'a>,
    /// All devices that are owned, in a view of the whole host.
    claimed: Option<BTreeSet<PciAddress>>,
    owners: Memory<PciAddress, Result<Option<String>>>,
    leases: Memory<String, Result<Option<Lease>>>,
    in_use: Memory<String, bool>,
    running: Memory<String, bool>,
    uses: Memory<PciAddress, Result<Option<HostUse>>>,
    iommu_is_on: OnceCell<bool>,
}

impl<'a> View<'a> {
    /// A view of a few devices, without the lock: good advice, and no more.
    pub(crate) fn new(leases: &'a Leases<'a>) -> Self {
        let Leases { host, store: records, settings, .. } = leases;
        Self {
            pci: Snapshot::new(host),
            host,
            settings,
            records,
            read: Box::new(|guest| records.lease(guest)),
            guard: Guard::new(host, settings.deadline()),
            claimed: None,
            owners: Memory::default(),
            leases: Memory::default(),
            in_use: Memory::default(),
            running: Memory::default(),
            uses: Memory::default(),
            iommu_is_on: OnceCell::new(),
        }
    }

    /// A view of all devices of a host, without the lock.
    pub(crate) fn of_all(leases: &'a Leases<'a>) -> Result<Self> {
        let claimed = Some(leases.store.claimed()?);
        let one = Self::new(leases);
        Ok(Self { pci: Snapshot::of_all(one.host), claimed, guard: one.guard.only_looking(), ..one })
    }

    /// A view under the lock, true until the lock is released.
    pub(crate) fn locked(leases: &'a Leases, locked: &'a Locked) -> Self {
        Self { read: Box::new(|guest| locked.take_lease(guest)), ..leases.view() }
    }

    /// Who owns a device, by its claim.
    pub fn owner(&self, address: PciAddress) -> Result<Option<String>> {
        match &self.claimed {
            Some(claimed) if !claimed.contains(&address) => Ok(None),
            _ => self.owners.get(address, |address| self.records.owner(*address)),
        }
    }

    /// A guest's lease; without the lock, `None` also for a corrupt one.
    pub fn lease(&self, guest: &str) -> Result<Option<Lease>> {
        self.leases.get(guest.to_owned(), |guest| (self.read)(guest))
    }

    /// Whether the guest of this lease still uses its devices, or is about to.
    pub fn is_in_use(&self, guest: &str, lease: &Lease) -> bool {
        self.in_use.get(guest.to_owned(), |guest| lease.is_in_use(self.host, guest))
    }

    /// Whether libvirt runs a QEMU for a guest.
    pub fn is_running(&self, guest: &str) -> bool {
        self.running.get(guest.to_owned(), |guest| runtime::qemu(self.host, guest).is_some())
    }

    /// Makes sure that the driver of a device answers.
    pub(crate) fn expect_answer(&self, device: &PciDevice) -> Result<()> {
        self.pci.expect_answer(device, self.settings.deadline())
    }

    /// Whether the IOMMU translates for any device of this host.
    pub(crate) fn iommu_is_on(&self) -> Result<bool> {
        self.iommu_is_on.get_or_try_init(|| sysfs::iommu_is_on(self.host)).copied()
    }

    /// What the host uses a device for; one that has gone since is not used. In a view of all devices no disk is opened
    /// to find out whether it is claimed. Must not be asked under the lock: it may take long.
    pub(crate) fn host_use(&self, address: PciAddress) -> Result<Option<HostUse>> {
        self.uses.get(address, |address| match self.pci.identity(*address)? {
            Some(device) => self.guard.of_device(&device),
            None => Ok(None),
        })
    }

    /// The same of several devices.
    pub(crate) fn host_uses(&self, addresses: Vec<PciAddress>) -> Result<BTreeMap<PciAddress, Option<HostUse>>> {
        let found = |address: PciAddress| {
            let found = self.host_use(address);
            let found =
                found.map_err(|error| error.during(format_args!("Cannot find out whether the host uses {address}")))?;
            Ok((address, found))
        };
        addresses.into_iter().map(found).collect()
    }
}
