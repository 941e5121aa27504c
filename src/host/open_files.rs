//! Who has a device open: the fds of all processes.

use crate::files;
use crate::libvirt::runtime;
use crate::paths::Host;
use crate::process::Stat;
use model::address::PciAddress;
use model::error::{Error, Result};
use model::host_use::Holder;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The nodes below /dev that processes have open, each with one of them; `None` where nobody has a node open that was
/// asked about. A VFIO group's node is exclusive, and opening it to find out could make a QEMU that is just starting
/// fail; so the fds of all processes are looked at.
pub struct OpenNodes(BTreeMap<PathBuf, Holder>);

impl OpenNodes {
    /// Looks at all processes, once.
    ///
    /// # Errors
    /// procfs cannot be listed.
    pub fn read(host: &Host) -> Result<Self> {
        let dev = host.path("dev");
        let mut holders = BTreeMap::new();
        for pid in files::names(&host.path("proc"))?.iter().filter_map(|name| name.parse::<i32>().ok()) {
            let process = host.process(pid);
            let nodes = |fds: PathBuf| -> Vec<PathBuf> {
                // Processes come and go while we look.
                let targets =
                    fs::read_dir(fds).into_iter().flatten().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
                targets.filter(|target| target.starts_with(&dev)).collect()
            };
            let mut open = nodes(process.join("fd"));
            // The first thread of a dying process shows no fds while others still hold them.
            if open.is_empty() && Stat::read(host, pid).is_some_and(|stat| stat.is_dying) {
                let threads = files::names(&process.join("task")).unwrap_or_default();
                open = threads.iter().flat_map(|thread| nodes(process.join("task").join(thread).join("fd"))).collect();
            }
            open.retain(|node| !holders.contains_key(node));
            if !open.is_empty() {
                let comm = files::read(&process.join("comm")).unwrap_or_else(|_: Error| "ended since".to_owned());
                let holder = Holder { pid, comm, guest: None };
                holders.extend(open.into_iter().map(|node| (node, holder.clone())));
            }
        }
        Ok(Self(holders))
    }

    /// A process that has this node open, with the name of its guest if it is a QEMU.
    pub fn holder(&self, host: &Host, node: &Path) -> Option<Holder> {
        let holder = self.0.get(node)?.clone();
        let guest = runtime::guest_of(host, holder.pid);
        Some(Holder { guest, ..holder })
    }

    /// A process that uses a device through VFIO: by its group, or by the node of this device or another of the group
    /// (/dev/vfio/devices, of iommufd).
    pub fn vfio_holder(&self, host: &Host, device: PciAddress, group: Option<u32>) -> Result<Option<Holder>> {
        let mut nodes = vfio_nodes(host, device)?;
        if let Some(group) = group {
            nodes.push(host.path(format!("dev/vfio/{group}")));
            for member in crate::pci::sysfs::group_members(host, group)?.into_iter().filter(|member| *member != device)
            {
                nodes.extend(vfio_nodes(host, member)?);
            }
        }
        Ok(nodes.iter().find_map(|node| self.holder(host, node)))
    }
}

/// The nodes of a device that is on a VFIO driver, by kernels that have iommufd.
/// Source: Linux `Documentation/driver-api/vfio.rst`, "VFIO device cdev".
fn vfio_nodes(host: &Host, device: PciAddress) -> Result<Vec<PathBuf>> {
    let names = files::names(&host.device(device).join("vfio-dev"))?;
    Ok(names.into_iter().map(|name| host.path("dev/vfio/devices").join(name)).collect())
}

/// A process that uses a device through VFIO, found by a look at all processes.
pub fn vfio_holder(host: &Host, device: PciAddress, group: Option<u32>) -> Result<Option<Holder>> {
    OpenNodes::read(host)?.vfio_holder(host, device, group)
}
