//! Devices and records at one moment: whatever is asked, and how often, each is read once.
//!
//! A start has one view before the lock and one under it. What changes devices or records takes a new one afterwards.

use crate::Leases;
use crate::life::Life;
use crate::records::Locked;
use host::guard::Guard;
use host::libvirt::runtime;
use host::memory::Memory;
use host::pci::snapshot::Snapshot;
use model::address::PciAddress;
use model::error::Result;
use model::host_use::HostUse;
use model::lease::Lease;
use std::collections::BTreeMap;

/// How leases are read: as they are at the moment, or under the lock.
type ReadLease<'a> = Box<dyn Fn(&str) -> Result<Option<Lease>> + 'a>;

/// One reading of what decides about guests' devices.
pub(crate) struct View<'a> {
    /// The devices.
    pub(crate) pci: Snapshot<'a>,
    leases: &'a Leases<'a>,
    read: ReadLease<'a>,
    guard: Guard<'a>,
    owners: Memory<PciAddress, Result<Option<String>>>,
    known: Memory<String, Result<Option<Lease>>>,
    in_use: Memory<String, bool>,
    running: Memory<String, bool>,
    uses: Memory<PciAddress, Result<Option<HostUse>>>,
}

impl<'a> View<'a> {
    fn read_by(leases: &'a Leases, read: ReadLease<'a>) -> Self {
        Self {
            pci: Snapshot::new(leases.host),
            leases,
            read,
            guard: Guard::new(leases.host, leases.settings.deadline()),
            owners: Memory::default(),
            known: Memory::default(),
            in_use: Memory::default(),
            running: Memory::default(),
            uses: Memory::default(),
        }
    }

    /// A view without the lock: good advice, and no more.
    pub(crate) fn new(leases: &'a Leases) -> Self {
        Self::read_by(leases, Box::new(|guest| leases.store.look(guest)))
    }

    /// A view under the lock, true until the lock is released.
    pub(crate) fn locked(leases: &'a Leases, locked: &'a Locked) -> Self {
        Self::read_by(leases, Box::new(|guest| locked.lease(guest)))
    }

    /// Who owns a device, by its claim.
    pub(crate) fn owner(&self, address: PciAddress) -> Result<Option<String>> {
        self.owners.get(address, |address| self.leases.store.owner(*address))
    }

    /// A guest's lease.
    pub(crate) fn lease(&self, guest: &str) -> Result<Option<Lease>> {
        self.known.get(guest.to_owned(), |guest| (self.read)(guest))
    }

    /// Whether the guest of this lease still uses its devices, or is about to.
    pub(crate) fn is_in_use(&self, guest: &str, lease: &Lease) -> bool {
        self.in_use.get(guest.to_owned(), |guest| lease.is_in_use(self.leases.host, guest))
    }

    /// Whether libvirt runs a QEMU for a guest.
    pub(crate) fn is_running(&self, guest: &str) -> bool {
        self.running.get(guest.to_owned(), |guest| runtime::qemu(self.leases.host, guest).is_some())
    }

    /// What the host uses these devices for. Must not be asked under the lock: that may take long.
    pub(crate) fn uses(&self, addresses: Vec<PciAddress>) -> Result<BTreeMap<PciAddress, Option<HostUse>>> {
        let found = |address: PciAddress| {
            let found = self.uses.get(address, |address| self.guard.of(*address));
            let found =
                found.map_err(|error| error.during(format_args!("Cannot find out whether the host uses {address}")))?;
            Ok((address, found))
        };
        addresses.into_iter().map(found).collect()
    }
}
