//! What the host uses a device for: each kind of use with its words, whether it keeps even a device that a guest names,
//! and what frees the device. Data and words only: `host::guard` finds it out. The same table is in vfpool-hook(8).

use crate::address::{PciAddress, PciId};
use std::fmt;

/// A process that has a device open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: i32,
    /// Its name, by proc(5)'s `/proc/PID/comm`.
    pub comm: String,
    /// The guest whose QEMU it is, if it is one.
    pub guest: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.guest {
            Some(guest) => write!(f, "guest '{guest}' (process {})", self.pid),
            None => write!(f, "process {} ({})", self.pid, self.comm),
        }
    }
}

/// Why the host needs a device. Shown as the end of "… is used by the host: ".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostUse {
    /// The interface of the host's best default route, by any of its next hops.
    DefaultRoute {
        /// Network interface.
        netdev: String,
    },
    /// The interface that leads to the server of the root file system: NFS, iSCSI, NVMe over TCP.
    NetworkRoot {
        /// Network interface.
        netdev: String,
        /// The server's address.
        server: String,
    },
    /// Its interface is in another network namespace: a container has it, or a router made by `ip netns`.
    OtherNamespace,
    /// A port of a bridge, bond or team, or the carrier of a VLAN, macvtap or other upper device.
    Carries {
        /// Network interface.
        netdev: String,
        /// The interface above it.
        upper: String,
    },
    /// An interface that is up and has an address of its own (link-local ones are given to any interface).
    Address {
        /// Network interface.
        netdev: String,
        /// IPv4 or IPv6 address.
        address: String,
    },
    /// An interface that is merely up: DHCP is not done yet, a capture port, PPPoE, the carrier of a macvlan in a
    /// container.
    Up {
        /// Network interface.
        netdev: String,
    },
    /// A mounted file system, perhaps through md, dm, LVM or a loop device.
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
    /// A loop device is set up on it.
    Loop {
        /// Block device.
        disk: String,
        /// The loop device.
        device: String,
    },
    /// Claimed exclusively by something in the kernel: ZFS, btrfs with several devices, a mount in a container.
    Claimed {
        /// Block device.
        disk: String,
    },
    /// A block device that a process has open: the disk of a guest that uses it raw, a database.
    Open {
        /// Block device.
        disk: String,
        /// Who has it open.
        by: Holder,
    },
    /// In use through VFIO: by another guest that has it hot-plugged, DPDK, SPDK.
    InVfio {
        /// Who has it open.
        by: Holder,
    },
    /// A mediated device (vGPU) was created on it.
    Mediated {
        /// Its UUID.
        uuid: String,
        /// Who has it open.
        by: Option<Holder>,
    },
    /// A vDPA device was created on it.
    Vdpa {
        /// Its name.
        name: String,
    },
    /// Another device node of it, or of what is behind it, is open: UIO, RDMA, graphics, input, USB, SCSI generic,
    /// serial.
    Node {
        /// The node's path.
        node: String,
        /// Who has it open.
        by: Holder,
    },
    /// The host's console is on it: its frame buffer, its serial line, or the firmware's own display.
    Console {
        /// What shows that.
        shown_by: String,
    },
    /// The host has no keyboard but what is behind it.
    Keyboard {
        /// The keyboard's name.
        name: String,
    },
}

const RUNS_FROM_IT: &str = "The host runs from it: use another device";

impl fmt::Display for HostUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute { netdev } => write!(f, "it carries the default route ({netdev})"),
            Self::NetworkRoot { netdev, server } => {
                write!(f, "the root file system comes over it ({netdev}, from {server})")
            }
            Self::OtherNamespace => f.write_str("its network interface is in another network namespace"),
            Self::Carries { netdev, upper } => write!(f, "{netdev} belongs to {upper}"),
            Self::Address { netdev, address } => write!(f, "{netdev} is up and has the address {address}"),
            Self::Up { netdev } => write!(f, "{netdev} is up"),
            Self::Mounted { disk, at } => write!(f, "{disk} is mounted at {at}"),
            Self::Swap { disk } => write!(f, "{disk} is swapped to"),
            Self::Member { disk, of } => write!(f, "{disk} is a member of {of}"),
            Self::Loop { disk, device } => write!(f, "the loop device {device} is set up on {disk}"),
            Self::Claimed { disk } => write!(f, "{disk} is in use (claimed in the kernel)"),
            Self::Open { disk, by } => write!(f, "{disk} is open in {by}"),
            Self::InVfio { by } => write!(f, "{by} uses it through VFIO"),
            Self::Mediated { uuid, by: None } => write!(f, "it has the mediated device {uuid}"),
            Self::Mediated { uuid, by: Some(by) } => write!(f, "{by} uses its mediated device {uuid}"),
            Self::Vdpa { name } => write!(f, "it has the vDPA device {name}"),
            Self::Node { node, by } => write!(f, "{by} uses it through {node}"),
            Self::Console { shown_by } => write!(f, "the host's console is on it ({shown_by})"),
            Self::Keyboard { name } => write!(f, "the host's only keyboard is behind it ({name})"),
        }
    }
}

impl HostUse {
    /// What the admin can do to free the device.
    pub fn remedy(&self) -> String {
        let stop = |by: &Holder| match &by.guest {
            Some(guest) => format!("Stop guest '{guest}'"),
            None => format!("Stop {by}"),
        };
        match self {
            Self::DefaultRoute { .. } => "Move the route to another interface".into(),
            Self::OtherNamespace => "Stop the container, or take the interface out of that namespace".into(),
            Self::Carries { netdev, upper } => format!("Take {netdev} out of {upper}"),
            Self::Address { netdev, .. } => format!("Take {netdev} down or its address away"),
            Self::Up { netdev } => format!("Take {netdev} down"),
            Self::NetworkRoot { .. } => RUNS_FROM_IT.into(),
            Self::Mounted { .. } if self.is_root() => RUNS_FROM_IT.into(),
            Self::Mounted { at, .. } => format!("Unmount {at}"),
            Self::Swap { disk } => format!("Run swapoff /dev/{disk}"),
            Self::Member { of, .. } => format!("Stop {of}"),
            Self::Loop { device, .. } => format!("Run losetup -d /dev/{device}"),
            Self::Claimed { disk } => format!("Stop what uses /dev/{disk}"),
            Self::Open { by, .. }
            | Self::InVfio { by }
            | Self::Mediated { by: Some(by), .. }
            | Self::Node { by, .. } => stop(by),
            Self::Mediated { uuid, by: None } => format!("Run mdevctl stop --uuid {uuid}"),
            Self::Vdpa { name } => format!("Run vdpa dev del {name}"),
            Self::Console { .. } => "Move the console to another device".into(),
            Self::Keyboard { .. } => "Plug a keyboard in elsewhere".into(),
        }
    }

    /// [`remedy`](Self::remedy), or the line in the admin's settings that lets the device go in spite of it. What the
    /// host itself runs from is no such device.
    pub fn remedy_or_allow(&self, device: PciAddress, id: PciId) -> String {
        if self.is_root() {
            return self.remedy();
        }
        let line = format!("<allow address='{device}' id='{id}'/>");
        format!("{}, or allow it with {line} in /etc/vfpool/host.xml", self.remedy())
    }

    fn is_root(&self) -> bool {
        match self {
            Self::NetworkRoot { .. } => true,
            Self::Mounted { at, .. } => at == "/",
            _ => false,
        }
    }

    /// Whether this keeps the device from a guest. `is_named`: the guest's definition names the device with
    /// managed='yes', and libvirt always did as it says.
    pub fn refuses(&self, is_named: bool) -> bool {
        self.is_vital() || !is_named
    }

    /// Whether this forbids even what the guest asks for by itself. A NIC that merely has an address, as NetworkManager
    /// gives to each it finds, or a disk that something has open, goes to a guest that names it; the host's last way
    /// out, a disk in use, what another guest works with never does.
    pub fn is_vital(&self) -> bool {
        match self {
            Self::DefaultRoute { .. }
            | Self::NetworkRoot { .. }
            | Self::OtherNamespace
            | Self::Carries { .. }
            | Self::Mounted { .. }
            | Self::Swap { .. }
            | Self::Member { .. }
            | Self::Loop { .. }
            | Self::Claimed { .. }
            | Self::InVfio { .. }
            | Self::Mediated { .. }
            | Self::Vdpa { .. } => true,
            Self::Address { .. }
            | Self::Up { .. }
            | Self::Open { .. }
            | Self::Node { .. }
            | Self::Console { .. }
            | Self::Keyboard { .. } => false,
        }
    }

    /// One of each kind, with the names that vfpool-hook(8) has for what differs.
    pub fn kinds() -> Vec<Self> {
        let [netdev, disk] = ["IFACE", "DISK"].map(str::to_owned);
        let by = Holder { pid: 0, comm: "NAME".to_owned(), guest: None };
        vec![
            Self::DefaultRoute { netdev: netdev.clone() },
            Self::NetworkRoot { netdev: netdev.clone(), server: "SERVER".to_owned() },
            Self::OtherNamespace,
            Self::Carries { netdev: netdev.clone(), upper: "UPPER".to_owned() },
            Self::Address { netdev: netdev.clone(), address: "ADDRESS".to_owned() },
            Self::Up { netdev },
            Self::Mounted { disk: disk.clone(), at: "PLACE".to_owned() },
            Self::Swap { disk: disk.clone() },
            Self::Member { disk: disk.clone(), of: "VOLUME".to_owned() },
            Self::Loop { disk: disk.clone(), device: "LOOP".to_owned() },
            Self::Claimed { disk: disk.clone() },
            Self::Open { disk, by: by.clone() },
            Self::InVfio { by: by.clone() },
            Self::Mediated { uuid: "UUID".to_owned(), by: None },
            Self::Vdpa { name: "VDPA".to_owned() },
            Self::Node { node: "/dev/NODE".to_owned(), by },
            Self::Console { shown_by: "CONSOLE".to_owned() },
            Self::Keyboard { name: "KEYBOARD".to_owned() },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_runs_from_is_never_offered() {
        let (device, id) = ("0000:02:00.0".parse().unwrap(), "8086:10d3".parse().unwrap());
        let mounted = |at: &str| HostUse::Mounted { disk: "sda1".to_owned(), at: at.to_owned() };
        assert_eq!(mounted("/").remedy_or_allow(device, id), "The host runs from it: use another device");
        let allow = "Unmount /srv, or allow it with <allow address='0000:02:00.0' id='8086:10d3'/> in \
                     /etc/vfpool/host.xml";
        assert_eq!(mounted("/srv").remedy_or_allow(device, id), allow);
        for kind in HostUse::kinds() {
            let is_root = matches!(kind, HostUse::NetworkRoot { .. });
            assert_eq!(kind.remedy_or_allow(device, id).contains("<allow"), !is_root, "{kind}");
            assert!(kind.refuses(false), "{kind}");
            assert_eq!(kind.refuses(true), kind.is_vital(), "{kind}");
        }
    }
}
