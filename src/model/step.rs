//! The steps on a device's way to vfio-pci. Data and words only: `host::pci::bind` carries them out.

use std::fmt;

/// The kernel's own driver that gives a device to VFIO.
pub const VFIO_PCI: &str = "vfio-pci";

/// One change on a device's way to vfio-pci.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The VFs of a PF go.
    RemoveVfs {
        /// How many there are.
        count: u32,
    },
    /// The module vfio-pci is loaded, by modprobe.
    LoadVfio,
    /// No driver but vfio-pci is to take it.
    Override,
    /// It leaves this driver.
    Unbind(String),
    /// The kernel looks for a driver for it.
    Probe,
    /// vfio-pci takes it by its id: the way of kernels without `driver_override`.
    BindById,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveVfs { count } => write!(f, "remove its {count} VFs"),
            Self::LoadVfio => write!(f, "load the module {VFIO_PCI}"),
            Self::Override => write!(f, "set driver_override to {VFIO_PCI}"),
            Self::Unbind(driver) => write!(f, "unbind from {driver}"),
            Self::Probe => write!(f, "offer to {VFIO_PCI}"),
            Self::BindById => write!(f, "have {VFIO_PCI} take it by its id"),
        }
    }
}
