//! Where everything is on a host. Made once in a main from the root directory, so that every test runs the real code
//! on another root. Holds no state and does no I/O.

use crate::address::PciAddress;
use std::path::{Path, PathBuf};

/// The host that is worked on, given by its root directory (`/` in production).
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The host below this root directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A path of this host, given relative to its root (`proc/swaps`).
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The sysfs folder of a PCI function.
    pub fn device(&self, address: PciAddress) -> PathBuf {
        self.path(format!("sys/bus/pci/devices/{address}"))
    }

    /// The sysfs folder of a PCI driver.
    pub fn driver(&self, name: &str) -> PathBuf {
        self.path("sys/bus/pci/drivers").join(name)
    }

    /// Writing an address here makes the kernel look for a driver for it, `driver_override` first.
    pub fn drivers_probe(&self) -> PathBuf {
        self.path("sys/bus/pci/drivers_probe")
    }

    /// The folder whose entries are the members of an IOMMU group.
    pub fn group_devices(&self, group: u32) -> PathBuf {
        self.path(format!("sys/kernel/iommu_groups/{group}/devices"))
    }

    /// The process's folder in procfs.
    pub fn process(&self, pid: i32) -> PathBuf {
        self.path(format!("proc/{pid}"))
    }

    /// Our state: root only, gone at reboot as leases must be.
    pub fn state(&self) -> PathBuf {
        self.path("run/vfpool")
    }

    /// The admin's settings for the whole host.
    pub fn settings(&self) -> PathBuf {
        self.path("etc/vfpool/host.xml")
    }
}
