//! What the host itself needs of a device: the guard that keeps a disk or a network from being taken from under it.
//!
//! Starts at the device and goes down to the disks and network interfaces that hang off it, so it costs nothing for all
//! others. Reads sysfs, procfs and the interfaces' addresses; changes nothing.
//! Sources: proc(5) on mountinfo, swaps, net/route; Linux `Documentation/ABI/testing/sysfs-class-net`.

mod network;
mod storage;
mod tree;

use crate::paths::Host;
use crate::pci::sysfs;
use crate::{files, open_files};
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::Result;
use model::host_use::HostUse;
pub use network::is_up;
use once_cell::unsync::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tree::{Below, all_below};

/// Why the host needs this device, if it does.
///
/// # Errors
/// What cannot be found out is an error: a device is taken only if it is known to be free.
pub fn of(host: &Host, address: PciAddress, limit: Duration) -> Result<Option<HostUse>> {
    Guard::new(host, limit).of(address)
}

/// The need that says most: a vital one, if there is any.
#[derive(Default)]
struct Found(Option<HostUse>);

impl Found {
    fn add(&mut self, need: Option<HostUse>) {
        if need.as_ref().is_some_and(|need| self.0.is_none() || need.is_vital() && !self.is_vital()) {
            self.0 = need;
        }
    }

    fn is_vital(&self) -> bool {
        self.0.as_ref().is_some_and(HostUse::is_vital)
    }
}

/// Finds out what the host needs. What is the same for all devices (routes, mounts, open files) is read once, when it is first
/// needed; so a guard is good for one look.
pub struct Guard<'a> {
    host: &'a Host,
    limit: Duration,
    below: OnceCell<BTreeMap<PciAddress, Below>>,
    routes: OnceCell<Vec<String>>,
    addresses: OnceCell<BTreeMap<String, String>>,
    mounts: OnceCell<String>,
    swaps: OnceCell<String>,
    holders: OnceCell<BTreeMap<PathBuf, String>>,
}

impl<'a> Guard<'a> {
    /// A guard that gives up each question to the kernel which may hang after `limit`.
    pub fn new(host: &'a Host, limit: Duration) -> Self {
        Self {
            host,
            limit,
            below: OnceCell::new(),
            routes: OnceCell::new(),
            addresses: OnceCell::new(),
            mounts: OnceCell::new(),
            swaps: OnceCell::new(),
            holders: OnceCell::new(),
        }
    }

    /// As the function [`of`], for several devices.
    pub fn of(&self, address: PciAddress) -> Result<Option<HostUse>> {
        let folder = self.host.device(address);
        if sysfs::is_on_vfio(&folder)? {
            if let Some(group) = files::link_number(&folder.join("iommu_group"))? {
                return self.in_vfio(group);
            }
        }
        let mut below = Below::default();
        below.search(&folder, 0)?;
        self.of_below(&below)
    }

    /// As [`of`], for a caller that asks about many devices and decides nothing: looks at all interfaces and disks of the host
    /// once, and not below each device. Opens no disk to find out whether it is claimed, as that claims it for a moment.
    pub fn of_one_of_many(&self, device: &PciDevice) -> Result<Option<HostUse>> {
        match device.group {
            Some(group) if device.on_vfio => self.in_vfio(group),
            _ => match self.below.get_or_try_init(|| all_below(self.host))?.get(&device.address) {
                Some(below) => self.of_below(below),
                None => Ok(None),
            },
        }
    }

    fn in_vfio(&self, group: u32) -> Result<Option<HostUse>> {
        Ok(self.holder(&self.host.path(format!("dev/vfio/{group}")))?.map(|by| HostUse::InVfio { by }))
    }

    fn of_below(&self, below: &Below) -> Result<Option<HostUse>> {
        let mut found = Found::default();
        for netdev in &below.netdevs {
            found.add(self.network(netdev)?);
        }
        for disk in &below.disks {
            found.add(self.storage(disk, 0)?);
        }
        Ok(found.0)
    }

    fn holder(&self, node: &Path) -> Result<Option<String>> {
        let holders = self.holders.get_or_try_init(|| open_files::open_nodes(self.host))?;
        Ok(holders.get(node).cloned())
    }
}
