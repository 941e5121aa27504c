//! A PCI function as sysfs shows it. Data only: `host::pci::sysfs` reads it.
//! Sources: Linux `Documentation/ABI/testing/sysfs-bus-pci`, `Documentation/PCI/pci-iov-howto.rst`.

use crate::address::{PciAddress, PciId};

/// A PCI function as it is now.
#[derive(Debug, Clone)]
pub struct PciDevice {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub id: PciId,
    /// Class code, 24 bit: base class, sub-class, interface.
    pub class: u32,
    /// Whether its configuration space can be read. One that did not come back from a reset, or has lost its link,
    /// reads all ones, and so does each register of it.
    pub answers: bool,
    /// Layout of its configuration space (offset 0x0e without the multi-function bit): 0 is an endpoint,
    /// 1 a bridge or port, 2 a `CardBus` bridge.
    pub header_type: u8,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// Whether that driver gives it to VFIO.
    pub on_vfio: bool,
    /// Whether a program has it open through VFIO: vfio-pci enables a device only as long as it is used.
    /// Source: Linux `Documentation/PCI/sysfs-pci.rst`, `enable`; `drivers/vfio/pci/vfio_pci_core.c`.
    pub in_vfio_use: bool,
    /// The override in force. The outer `None`: this kernel has no `driver_override`.
    pub driver_override: Option<Option<String>>,
    /// Its IOMMU group; none when the IOMMU is off or does not translate for it.
    pub group: Option<u32>,
    /// The PF, if this is a VF.
    pub physfn: Option<PciAddress>,
    /// The function whose driver has brought this one about, with a PCI domain of its own: Intel VMD. It goes when that
    /// driver goes.
    pub controller: Option<PciAddress>,
    /// How many VFs it has now; 0 also for what is no PF.
    pub numvfs: u32,
    /// Whether host drivers probe its new VFs. None: it is no PF, or this kernel cannot be told.
    pub drivers_autoprobe: Option<bool>,
}

impl PciDevice {
    /// Whether it can be assigned to a guest at all, as the kernel's vfio-pci and libvirt see it.
    pub fn is_endpoint(&self) -> bool {
        self.header_type == 0
    }

    /// Whether it is one of the host's bridges, which are never assigned to a guest and never touched: one with a
    /// bridge's header, a host bridge or an ISA bridge. Other kinds of base class 6 with an endpoint's header (an
    /// `NVSwitch` is `0680`) are endpoints like any other.
    pub fn is_bridge(&self) -> bool {
        !self.is_endpoint() || matches!(self.class >> 8, 0x0600 | 0x0601)
    }

    /// Whether VFIO refuses the group for the sake of this bridge. What has a bridge's header may be on any driver;
    /// what has not, on no driver, on one of VFIO's, or on pci-stub. Source: Linux `drivers/vfio/vfio.c`,
    /// `vfio_dev_viable`; from 5.19 on `iommu_device_use_default_domain`.
    pub fn blocks_its_group(&self) -> bool {
        self.is_bridge() && self.is_endpoint() && self.on_host_driver() && self.driver.as_deref() != Some("pci-stub")
    }

    /// Whether a host driver works with it. Without any driver, or with one that gives it to VFIO, it is free for a
    /// guest as far as VFIO is concerned.
    pub fn on_host_driver(&self) -> bool {
        self.driver.is_some() && !self.on_vfio
    }
}
