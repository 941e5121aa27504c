//! What is behind a device: its network interfaces, its disks, and whatever else has a node in /dev.
//! Sources: Linux `Documentation/admin-guide/devices.rst`; `drivers/base/core.c`, `dev_uevent` (DEVNAME) and
//! `class_dir_create_and_add`.

use crate::files;
use crate::pci::sysfs;
use model::address::PciAddress;
use model::error::{Error, Result};
use std::fs;
use std::path::Path;

/// What hangs off a device.
#[derive(Debug, Default)]
pub(super) struct Below {
    /// Network interfaces.
    pub(super) netdevs: Vec<String>,
    /// Whether there are interfaces that are in other network namespaces only.
    pub(super) has_hidden_netdevs: bool,
    /// Whole block devices.
    pub(super) disks: Vec<String>,
    /// Other nodes, by their paths below /dev.
    pub(super) nodes: Vec<String>,
    /// UUIDs of mediated devices, with their IOMMU groups.
    pub(super) mediated: Vec<(String, Option<u32>)>,
    /// vDPA devices.
    pub(super) vdpa: Vec<String>,
    /// Frame buffers, `fb0`.
    pub(super) framebuffers: Vec<String>,
    /// Serial lines, `ttyS4`.
    pub(super) ttys: Vec<String>,
    /// Input devices that have the keys of a keyboard.
    pub(super) keyboards: Vec<String>,
    /// IOMMU groups of functions behind this one that VFIO has.
    pub(super) groups: Vec<u32>,
}

/// Far deeper than any controller's tree (a USB disk behind hubs has about 15 levels); a bound, should sysfs surprise
/// us.
pub(super) const DEEPEST: usize = 32;

impl Below {
    /// What hangs off the function in this folder.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let mut below = Self::default();
        below.search(folder, 0)?;
        Ok(below)
    }

    /// Goes through real folders only, as links lead away from the device. Whether the folder has any.
    fn search(&mut self, folder: &Path, depth: usize) -> Result<bool> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) if depth < DEEPEST => entries,
            Ok(_) => return Err(Error::new(format!("{} is nested too deep to be searched", folder.display()))),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(cause) => return Err(Error::io("list", folder, &cause)),
        };
        let mut has_folders = false;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                has_folders = true;
                self.look_at(&entry.path(), name, depth + 1)?;
            } else if name == "dev" {
                self.nodes.push(node_of(folder)?);
            }
        }
        Ok(has_folders)
    }

    fn look_at(&mut self, path: &Path, name: String, depth: usize) -> Result<()> {
        let subsystem = files::link_name(&path.join("subsystem"))?;
        match subsystem.as_deref() {
            // What is below a disk are its partitions, of which a hidden NVMe path has none.
            Some("block") => {
                self.disks.push(nvme_head(&name).unwrap_or(name));
                return Ok(());
            }
            // A program that plays sound has the controls of each card open; the card of a GPU goes with it. So do the
            // input devices of its jacks, which are below the card.
            Some("sound") => return Ok(()),
            Some("mdev") => {
                let group = files::link_number(&path.join("iommu_group"))?;
                self.mediated.push((name, group));
                return Ok(());
            }
            Some("vdpa") => {
                self.vdpa.push(name);
                return Ok(());
            }
            Some("net") => self.netdevs.push(name),
            Some("graphics") => self.framebuffers.push(name),
            Some("tty") => self.ttys.push(name),
            Some("input") if is_keyboard(path)? => self.keyboards.push(name),
            Some("pci") if name.parse::<PciAddress>().is_ok() && sysfs::is_on_vfio(path)? => {
                self.groups.extend(files::link_number(&path.join("iommu_group"))?);
            }
            // The folder of a class is there as long as the device has anything of the class, and shows what is in our
            // own network namespace.
            None if name == "net" => {
                self.has_hidden_netdevs |= !self.search(path, depth)?;
                return Ok(());
            }
            _ => {}
        }
        self.search(path, depth).map(drop)
    }
}

/// The path below /dev of a device that has a node.
fn node_of(folder: &Path) -> Result<String> {
    let uevent = files::read_optional(&folder.join("uevent"))?.unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let own = || folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(name.map_or_else(own, |name| name.trim_start_matches("/dev/").to_owned()))
}

/// Whether an input device has the keys 1 to 31, which udev asks of a keyboard.
/// Source: systemd `src/udev/udev-builtin-input_id.c`, `test_key`.
pub(super) fn is_keyboard(input: &Path) -> Result<bool> {
    const KEYS: u64 = 0xffff_fffe;
    let keys = files::read_optional(&input.join("capabilities/key"))?.unwrap_or_default();
    // The last word has the lowest bits.
    let lowest = keys.split_whitespace().last().and_then(|word| u64::from_str_radix(word, 16).ok());
    Ok(lowest.is_some_and(|lowest| lowest & KEYS == KEYS))
}

/// With native NVMe multipath, a controller has hidden paths (`nvme0c1n1`) only; what is mounted is the head,
/// `nvme0n1`.
fn nvme_head(name: &str) -> Option<String> {
    let (subsystem, path) = name.strip_prefix("nvme")?.split_once('c')?;
    let (_, namespace) = path.split_once('n')?;
    Some(format!("nvme{subsystem}n{namespace}"))
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
