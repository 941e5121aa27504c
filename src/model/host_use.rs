//! What the host uses a device for. Data and words only: `host::guard` finds it out.

use std::fmt;

/// Why the host needs a device. Shown as the end of "… is used by the host: ".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostUse {
    /// The host's way out: the interface of its best default route.
    DefaultRoute {
        /// Network interface.
        netdev: String,
    },
    /// An interface that is up and has an address of its own (link-local ones are given to any interface).
    Address {
        /// Network interface.
        netdev: String,
        /// IPv4 or IPv6 address.
        address: String,
    },
    /// A port of a bridge, bond or team, or the carrier of a VLAN, macvtap or other upper device.
    Carries {
        /// Network interface.
        netdev: String,
        /// The interface above it.
        upper: String,
    },
    /// A mounted file system, perhaps through md, dm or LVM.
    Mounted {
        /// Block device that is mounted.
        disk: String,
        /// Mount point.
        at: String,
    },
    /// Swap space in use.
    Swap {
        /// Block device swapped to.
        disk: String,
    },
    /// A member of an assembled md array or an active dm or LVM volume.
    Member {
        /// Block device.
        disk: String,
        /// The device made of it.
        of: String,
    },
    /// Open in a process: the disk of a guest that uses it raw, a database.
    Open {
        /// Block device.
        disk: String,
        /// Who has it open.
        by: String,
    },
    /// In use through VFIO: by another guest that has it hot-plugged, DPDK, SPDK.
    InVfio {
        /// Who has its group open.
        by: String,
    },
    /// Claimed exclusively by something in the kernel: ZFS, btrfs with several devices, a mount in a container.
    Claimed {
        /// Block device.
        disk: String,
    },
}

impl fmt::Display for HostUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute { netdev } => write!(f, "it carries the default route ({netdev})"),
            Self::Address { netdev, address } => write!(f, "{netdev} is up and has the address {address}"),
            Self::Carries { netdev, upper } => write!(f, "{netdev} belongs to {upper}"),
            Self::Mounted { disk, at } => write!(f, "{disk} is mounted at {at}"),
            Self::Swap { disk } => write!(f, "{disk} is swapped to"),
            Self::Member { disk, of } => write!(f, "{disk} is a member of {of}"),
            Self::Open { disk, by } => write!(f, "{disk} is open in {by}"),
            Self::InVfio { by } => write!(f, "{by} uses it through VFIO"),
            Self::Claimed { disk } => write!(f, "{disk} is in use (claimed in the kernel)"),
        }
    }
}

impl HostUse {
    /// It is in use through VFIO, but not by its group: by /dev/vfio/devices.
    pub fn in_vfio_by_somebody() -> Self {
        Self::InVfio { by: "a program that has it open".to_owned() }
    }

    /// What the admin can do to free the device.
    pub fn remedy(&self) -> String {
        match self {
            Self::DefaultRoute { .. } => "Move the route to another interface".into(),
            Self::Address { netdev, .. } => format!("Take {netdev} down or its address away"),
            Self::Carries { netdev, upper } => format!("Take {netdev} out of {upper}"),
            Self::Mounted { at, .. } => format!("Unmount {at}"),
            Self::Swap { disk } => format!("Run swapoff /dev/{disk}"),
            Self::Member { of, .. } => format!("Stop {of}"),
            Self::Open { by, .. } | Self::InVfio { by } => format!("Stop {by}"),
            Self::Claimed { disk } => format!("Stop what uses /dev/{disk}"),
        }
    }

    /// Whether this forbids even what the guest asks for by itself. A NIC that merely has an address, as NetworkManager
    /// gives to each it finds, or a disk that something has open, is taken for a guest that names it, as libvirt always
    /// did; the host's last way out, or a disk in use, never is.
    pub fn is_vital(&self) -> bool {
        !matches!(self, Self::Address { .. } | Self::Open { .. })
    }
}
