//! What hangs off a device: its network interfaces and disks.

use crate::files;
use crate::paths::Host;
use model::address::PciAddress;
use model::error::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

/// Interfaces and whole block devices that hang off a device.
#[derive(Debug, Default)]
pub(super) struct Below {
    pub(super) netdevs: Vec<String>,
    pub(super) disks: Vec<String>,
}

/// Far deeper than any controller's tree (a USB disk behind hubs has about 15 levels); a bound, should sysfs surprise us.
pub(super) const DEEPEST: usize = 32;

impl Below {
    /// Goes through real folders only, as links lead away from the device.
    pub(super) fn search(&mut self, folder: &Path, depth: usize) -> Result<()> {
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
            match files::link_name(&path.join("subsystem"))?.as_deref() {
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
pub(super) fn all_below(host: &Host) -> Result<BTreeMap<PciAddress, Below>> {
    let mut all: BTreeMap<PciAddress, Below> = BTreeMap::new();
    for class in ["net", "block"] {
        let folder = host.path("sys/class").join(class);
        for name in files::names(&folder)? {
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
