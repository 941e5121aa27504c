//! What the host itself needs of a device: the guard that keeps a disk or a network from being taken from under it.
//!
//! Starts at the device and goes down to the disks and network interfaces that hang off it, so it costs nothing for all
//! others. Reads sysfs, procfs and the interfaces' addresses; changes nothing.
//! Sources: proc(5) on mountinfo, swaps, net/route; Linux `Documentation/ABI/testing/sysfs-class-net`.

use crate::address::PciAddress;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::sysfs::{self, Device};
use crate::{patient, process};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage};
use nix::sys::stat::Mode;
use once_cell::unsync::OnceCell;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the host needs a device. Shown as the end of "… is used by the host: ".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
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

impl fmt::Display for Need {
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

impl Need {
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

/// Why the host needs this device, if it does.
///
/// # Errors
/// What cannot be found out is an error: a device is taken only if it is known to be free.
pub fn of(host: &Host, address: PciAddress, limit: Duration) -> Result<Option<Need>> {
    let folder = host.device(address);
    let guard = Guard::new(host, limit);
    if sysfs::is_on_vfio(&folder)?
        && let Some(group) = sysfs::link_number(&folder.join("iommu_group"))?
    {
        return guard.in_vfio(group);
    }
    let mut below = Below::default();
    below.search(&folder, 0)?;
    guard.of_below(&below)
}

/// The need that says most: a vital one, if there is any.
#[derive(Default)]
struct Found(Option<Need>);

impl Found {
    fn add(&mut self, need: Option<Need>) {
        if need.as_ref().is_some_and(|need| self.0.is_none() || need.is_vital() && !self.is_vital()) {
            self.0 = need;
        }
    }

    fn is_vital(&self) -> bool {
        self.0.as_ref().is_some_and(Need::is_vital)
    }
}

/// Interfaces and whole block devices that hang off a device.
#[derive(Debug, Default)]
struct Below {
    netdevs: Vec<String>,
    disks: Vec<String>,
}

/// Far deeper than any controller's tree (a USB disk behind hubs has about 15 levels); a bound, should sysfs surprise us.
const DEEPEST: usize = 32;

impl Below {
    /// Goes through real folders only, as links lead away from the device.
    fn search(&mut self, folder: &Path, depth: usize) -> Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) if depth < DEEPEST => entries,
            Ok(_) => return Err(Error::new(format!("{} is nested too deep to be searched", folder.display()))),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => return Err(Error::io("list", folder, &cause)),
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            match sysfs::link_name(&path.join("subsystem"))?.as_deref() {
                Some("net") => self.netdevs.push(name),
                Some("block") => {
                    // What is below it are its partitions, of which a hidden NVMe path has none.
                    self.disks.push(nvme_head(&name).unwrap_or(name));
                    continue;
                }
                _ => {}
            }
            self.search(&path, depth + 1)?;
        }
        Ok(())
    }
}

/// What hangs off each device that has anything: by the links of all interfaces and block devices, each of which tells the
/// whole way to it.
fn all_below(host: &Host) -> Result<BTreeMap<PciAddress, Below>> {
    let mut all: BTreeMap<PciAddress, Below> = BTreeMap::new();
    for class in ["net", "block"] {
        let folder = host.path("sys/class").join(class);
        for name in sysfs::names(&folder)? {
            // It went away, or is a file (bonding_masters).
            let Ok(target) = fs::read_link(folder.join(&name)) else { continue };
            let way: Vec<&str> = target.iter().filter_map(OsStr::to_str).collect();
            // What is below a disk are its partitions.
            let is_partition = |disk: &&str| class == "block" && folder.join(disk).exists();
            if way.iter().rev().nth(1).is_some_and(is_partition) {
                continue;
            }
            for address in way.iter().filter_map(|part| part.parse().ok()) {
                let below = all.entry(address).or_default();
                match class {
                    "net" => below.netdevs.push(name.clone()),
                    _ => below.disks.push(nvme_head(&name).unwrap_or_else(|| name.clone())),
                }
            }
        }
    }
    Ok(all)
}

/// With native NVMe multipath, a controller has hidden paths (`nvme0c1n1`) only; what is mounted is the head, `nvme0n1`.
fn nvme_head(name: &str) -> Option<String> {
    let (subsystem, path) = name.strip_prefix("nvme")?.split_once('c')?;
    let (_, namespace) = path.split_once('n')?;
    Some(format!("nvme{subsystem}n{namespace}"))
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

    /// As [`of`], for a caller that asks about many devices and decides nothing: looks at all interfaces and disks of the host
    /// once, and not below each device. Opens no disk to find out whether it is claimed, as that claims it for a moment.
    pub fn of_one_of_many(&self, device: &Device) -> Result<Option<Need>> {
        match device.group {
            Some(group) if device.on_vfio => self.in_vfio(group),
            _ => match self.below.get_or_try_init(|| all_below(self.host))?.get(&device.address) {
                Some(below) => self.of_below(below),
                None => Ok(None),
            },
        }
    }

    fn in_vfio(&self, group: u32) -> Result<Option<Need>> {
        Ok(self.holder(&self.host.path(format!("dev/vfio/{group}")))?.map(|by| Need::InVfio { by }))
    }

    fn of_below(&self, below: &Below) -> Result<Option<Need>> {
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
        let holders = self.holders.get_or_try_init(|| process::open_nodes(self.host))?;
        Ok(holders.get(node).cloned())
    }

    fn network(&self, netdev: &str) -> Result<Option<Need>> {
        let folder = self.host.path("sys/class/net").join(netdev);
        if let Some(upper) = sysfs::link_name(&folder.join("master"))? {
            return Ok(Some(Need::Carries { netdev: netdev.to_owned(), upper }));
        }
        if let Some(upper) = sysfs::names(&folder)?.iter().find_map(|name| name.strip_prefix("upper_")) {
            return Ok(Some(Need::Carries { netdev: netdev.to_owned(), upper: upper.to_owned() }));
        }
        if !is_up(&folder)? {
            return Ok(None);
        }
        if self.routes.get_or_try_init(|| self.default_routes())?.iter().any(|interface| interface == netdev) {
            return Ok(Some(Need::DefaultRoute { netdev: netdev.to_owned() }));
        }
        let addresses = self.addresses.get_or_try_init(addresses)?;
        Ok(addresses.get(netdev).map(|address| Need::Address { netdev: netdev.to_owned(), address: address.clone() }))
    }

    /// The interfaces of the best IPv4 and of the best IPv6 default route. An interface with a worse one only has an
    /// address, too, and is judged by that.
    fn default_routes(&self) -> Result<Vec<String>> {
        const RTF_REJECT: u32 = 0x200;
        let mut best = Vec::new();
        for (file, ipv6) in [("proc/net/route", false), ("proc/net/ipv6_route", true)] {
            let table = sysfs::read_optional(&self.host.path(file))?.unwrap_or_default();
            let routes = table.lines().filter_map(|line| {
                let field: Vec<&str> = line.split_whitespace().collect();
                let (interface, destination, mask, flags, metric) = if ipv6 {
                    (field.get(9)?, field.first()?, field.get(1)?, field.get(8)?, hex(field.get(5)?)?)
                } else {
                    (field.first()?, field.get(1)?, field.get(7)?, field.get(3)?, field.get(6)?.parse().ok()?)
                };
                let is_default = hex(mask)? == 0 && destination.bytes().all(|digit| digit == b'0');
                let is_usable = hex(flags)? & RTF_REJECT == 0 && *interface != "lo";
                (is_default && is_usable).then(|| (metric, (*interface).to_owned()))
            });
            let routes: Vec<(u32, String)> = routes.collect();
            let lowest = routes.iter().map(|(metric, _)| *metric).min();
            best.extend(routes.into_iter().filter(|(metric, _)| Some(*metric) == lowest).map(|(_, netdev)| netdev));
        }
        Ok(best)
    }

    /// Looks at a block device, then at what is made of it, then at its partitions.
    fn storage(&self, disk: &str, depth: usize) -> Result<Option<Need>> {
        let folder = self.host.path("sys/class/block").join(disk);
        if let Some(at) = self.mount_point(disk, sysfs::read_optional(&folder.join("dev"))?.as_deref())? {
            return Ok(Some(Need::Mounted { disk: disk.to_owned(), at }));
        }
        let swaps = self.swaps.get_or_try_init(|| {
            Ok::<_, Error>(sysfs::read_optional(&self.host.path("proc/swaps"))?.unwrap_or_default())
        })?;
        if swaps.lines().filter_map(|line| line.split_whitespace().next()).any(|file| is_node(file, disk)) {
            return Ok(Some(Need::Swap { disk: disk.to_owned() }));
        }
        let mut found = Found::default();
        for holder in sysfs::names(&folder.join("holders"))? {
            let above = if depth < DEEPEST { self.storage(&holder, depth + 1)? } else { None };
            let title = sysfs::read_optional(&self.host.path(format!("sys/class/block/{holder}/dm/name")))?;
            let member = Need::Member { disk: disk.to_owned(), of: title.unwrap_or(holder) };
            // Merely open, it is a member all the same.
            let need = above.filter(Need::is_vital).unwrap_or(member);
            if matches!(need, Need::Mounted { .. } | Need::Swap { .. }) {
                return Ok(Some(need));
            }
            found.add(Some(need));
        }
        for name in sysfs::names(&folder)? {
            if folder.join(&name).join("partition").exists() {
                found.add(self.storage(&name, depth + 1)?);
            }
        }
        if found.is_vital() {
            return Ok(found.0);
        }
        // Only a list has looked at all.
        if self.below.get().is_none() && self.is_claimed(disk)? {
            return Ok(Some(Need::Claimed { disk: disk.to_owned() }));
        }
        let holder = self.holder(&self.host.path("dev").join(disk))?;
        found.add(holder.map(|by| Need::Open { disk: disk.to_owned(), by }));
        Ok(found.0)
    }

    /// Where a block device is mounted on the host (as init sees it: libvirtd may have mounts of its own). By number, or
    /// by name for file systems that mount under a number of their own, as btrfs does.
    fn mount_point(&self, disk: &str, number: Option<&str>) -> Result<Option<String>> {
        let mounts = self.mounts.get_or_try_init(|| sysfs::read(&self.host.path("proc/1/mountinfo")))?;
        Ok(mounts.lines().find_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(2);
            let (of, at) = (mount.next()?, mount.nth(1)?);
            let same = Some(of) == number || source.split(' ').nth(1).is_some_and(|source| is_node(source, disk));
            same.then(|| at.to_owned())
        }))
    }

    /// Asks the kernel: a block device that anything holds cannot be opened exclusively (open(2), `O_EXCL`).
    fn is_claimed(&self, disk: &str) -> Result<bool> {
        let node = self.host.path("dev").join(disk);
        let path = CString::new(node.as_os_str().as_bytes()).map_err(|cause| Error::new(cause.to_string()))?;
        let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match patient::run(self.limit, || open(path.as_c_str(), flags, Mode::empty()).map(drop)) {
            Ok(()) => Ok(false),
            Err(cause) => match cause.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EBUSY) => Ok(true),
                // No node, no medium, or a device that is just going away.
                Some(Errno::ENOENT | Errno::ENOMEDIUM | Errno::ENXIO | Errno::ENODEV) => Ok(false),
                _ => Err(Error::io("find out who uses", &node, &cause)),
            },
        }
    }
}

/// Whether a path in /dev is this block device. `/dev/mapper/x` is told by its number where it is mounted, and swaps are
/// shown by the kernel under their own name.
fn is_node(path: &str, disk: &str) -> bool {
    // sysfs writes ! for the / in names such as cciss/c0d0.
    path.strip_prefix("/dev/").is_some_and(|name| name == disk.replace('!', "/"))
}

/// Whether a network interface, given by its folder, is up.
pub fn is_up(netdev: &Path) -> Result<bool> {
    const IFF_UP: u32 = 1;
    let Some(flags) = sysfs::read_optional(&netdev.join("flags"))? else { return Ok(false) };
    Ok(hex(&flags).is_none_or(|flags| flags & IFF_UP != 0))
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// Of each interface an address that was given to it on purpose.
fn addresses() -> Result<BTreeMap<String, String>> {
    let all = nix::ifaddrs::getifaddrs()
        .map_err(|errno| Error::new(format!("Cannot list the addresses of the host's interfaces: {errno}")))?;
    let mut addresses = BTreeMap::new();
    for entry in all {
        let given = entry.address.and_then(|address: SockaddrStorage| match address.family()? {
            AddressFamily::Inet => Some(address.as_sockaddr_in()?.ip().to_string()),
            AddressFamily::Inet6 => {
                let ip = address.as_sockaddr_in6()?.ip();
                (!ip.is_unicast_link_local()).then(|| ip.to_string())
            }
            _ => None,
        });
        // An address with a label is shown under that, as eth0:1.
        let interface = entry.interface_name.split(':').next().unwrap_or_default();
        if let Some(address) = given {
            addresses.entry(interface.to_owned()).or_insert(address);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::nvme_head;

    #[test]
    fn nvme_paths_lead_to_their_head() {
        assert_eq!(nvme_head("nvme0c12n1").as_deref(), Some("nvme0n1"));
        for name in ["nvme0n1", "nvme0n1p1", "sda", "mmcblk0"] {
            assert_eq!(nvme_head(name), None, "{name}");
        }
    }
}
