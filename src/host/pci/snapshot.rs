//! One reading of a host's functions: whatever is asked, and how often, each attribute is read once.

use crate::memory::Memory;
use crate::paths::Host;
use crate::pci::sysfs::{self, PciView, functions, group_of, identity_in, with_driver_state};
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::Result;
use once_cell::unsync::OnceCell;
use std::collections::HashMap;
use std::time::Duration;

/// Functions as they were when they were first asked for. What changes devices takes a new one afterwards, or looks at
/// the [`Host`] itself.
pub struct Snapshot<'a> {
    host: &'a Host,
    identities: Memory<PciAddress, Result<Option<PciDevice>>>,
    devices: Memory<PciAddress, Result<Option<PciDevice>>>,
    vfs: Memory<PciAddress, Result<Vec<PciAddress>>>,
    members: Memory<u32, Result<Vec<PciAddress>>>,
    platform: Memory<u32, Result<Vec<String>>>,
    behind: Memory<PciAddress, Result<Vec<PciAddress>>>,
    netdevs: Memory<String, Option<PciAddress>>,
    /// For a snapshot of all functions.
    groups: Option<OnceCell<Groups>>,
}

/// The groups of all functions, and the functions of each group: to list the folder of each group would cost more.
#[derive(Default)]
struct Groups {
    of: HashMap<PciAddress, u32>,
    members: HashMap<u32, Vec<PciAddress>>,
}

impl<'a> Snapshot<'a> {
    /// A snapshot of the few functions that are asked for.
    pub fn new(host: &'a Host) -> Self {
        Self {
            host,
            identities: Memory::default(),
            devices: Memory::default(),
            vfs: Memory::default(),
            members: Memory::default(),
            platform: Memory::default(),
            behind: Memory::default(),
            netdevs: Memory::default(),
            groups: None,
        }
    }

    /// A snapshot of which most functions of the host will be asked for.
    pub fn of_all(host: &'a Host) -> Self {
        Self { groups: Some(OnceCell::new()), ..Self::new(host) }
    }

    /// Makes sure that the driver of a device answers within `limit`; [`PciView::device`] then says what it said.
    pub fn expect_answer(&self, device: &PciDevice, limit: Duration) -> Result<()> {
        let asked = || sysfs::with_driver_state_within(self.host, device.clone(), limit);
        self.devices.get(device.address, |_| asked().map(Some)).map(drop)
    }

    fn groups(&self) -> Result<Option<&Groups>> {
        let Some(cell) = &self.groups else { return Ok(None) };
        let groups = cell.get_or_try_init(|| {
            let mut groups = Groups::default();
            for address in functions(self.host)? {
                if let Some(group) = group_of(self.host, address)? {
                    groups.of.insert(address, group);
                    groups.members.entry(group).or_default().push(address);
                }
            }
            Ok(groups)
        });
        groups.map(Some)
    }
}

impl PciView for Snapshot<'_> {
    fn host(&self) -> &Host {
        self.host
    }

    fn identity(&self, address: PciAddress) -> Result<Option<PciDevice>> {
        self.identities.get(address, |address| {
            identity_in(self.host, *address, || match self.groups()? {
                Some(groups) => Ok(groups.of.get(address).copied()),
                None => group_of(self.host, *address),
            })
        })
    }

    fn device(&self, address: PciAddress) -> Result<Option<PciDevice>> {
        self.devices.get(address, |address| {
            let device = self.identity(*address)?;
            device.map(|device| with_driver_state(self.host, device)).transpose()
        })
    }

    fn group_members(&self, group: u32) -> Result<Vec<PciAddress>> {
        match self.groups()? {
            Some(groups) => Ok(groups.members.get(&group).cloned().unwrap_or_default()),
            None => self.members.get(group, |group| sysfs::group_members(self.host, *group)),
        }
    }

    fn vfs_of(&self, pf: PciAddress) -> Result<Vec<PciAddress>> {
        self.vfs.get(pf, |pf| match self.physfn(*pf)? {
            // A VF has no VFs of its own.
            Some(_) => Ok(Vec::new()),
            None => sysfs::vfs_of(self.host, *pf),
        })
    }

    fn platform_members(&self, group: u32) -> Result<Vec<String>> {
        self.platform.get(group, |group| sysfs::platform_members(self.host, *group))
    }

    fn functions_behind(&self, address: PciAddress) -> Result<Vec<PciAddress>> {
        self.behind.get(address, |address| sysfs::functions_behind(self.host, *address))
    }

    fn function_of(&self, netdev: &str) -> Option<PciAddress> {
        self.netdevs.get(netdev.to_owned(), |netdev| self.host.function_of(netdev))
    }

    fn physfn(&self, address: PciAddress) -> Result<Option<PciAddress>> {
        Ok(self.identity(address)?.and_then(|device| device.physfn))
    }
}
