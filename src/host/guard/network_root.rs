//! The servers that the root file system comes from, if it comes over a network: NFS, CIFS, iSCSI, NVMe over TCP or
//! RDMA. Sources: proc(5) on mountinfo; nfs(5), `addr=`; Linux `Documentation/ABI/stable/sysfs-transport-iscsi` and
//! `drivers/nvme/host/sysfs.c`, `address`.

use super::Guard;
use super::tree::DEEPEST;
use crate::files;
use model::error::Result;
use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

impl Guard<'_> {
    pub(super) fn root_servers(&self) -> Result<Vec<IpAddr>> {
        // The last one at a place covers the others.
        let root = self.mounts()?.lines().filter_map(Mount::of).rfind(|mount| mount.at == "/");
        root.map_or(Ok(Vec::new()), |root| self.servers_of(&root))
    }

    fn servers_of(&self, root: &Mount) -> Result<Vec<IpAddr>> {
        let by_option = root.options.split(',').filter_map(|option| option.strip_prefix("addr=")?.parse().ok());
        let mut servers: Vec<IpAddr> = by_option.collect();
        let by_number = files::link_name(&self.host.path("sys/dev/block").join(root.number))?;
        let by_name = || root.source.strip_prefix("/dev/").map(|name| name.replace('/', "!"));
        if let Some(disk) = by_number.or_else(by_name) {
            self.servers_of_disk(&disk, 0, &mut servers)?;
        }
        servers.sort_unstable();
        servers.dedup();
        Ok(servers)
    }

    /// Looks through what a disk is made of.
    fn servers_of_disk(&self, disk: &str, depth: usize, servers: &mut Vec<IpAddr>) -> Result<()> {
        let link = self.host.path("sys/class/block").join(disk);
        let Ok(way) = fs::read_link(&link) else { return Ok(()) };
        for slave in files::names(&link.join("slaves"))?.into_iter().filter(|_| depth < DEEPEST) {
            self.servers_of_disk(&slave, depth + 1, servers)?;
        }
        for part in way.iter().filter_map(OsStr::to_str) {
            if let Some(session) = part.strip_prefix("session") {
                let connections = self.host.path("sys/class/iscsi_connection");
                let ours = format!("connection{session}:");
                for name in files::names(&connections)?.iter().filter(|name| name.starts_with(&ours)) {
                    for file in ["address", "persistent_address"] {
                        let address = files::read_optional(&connections.join(name).join(file))?;
                        servers.extend(address.and_then(|address| address.parse::<IpAddr>().ok()));
                    }
                }
            } else if is_controller(part) {
                servers.extend(nvme_server(&self.host.path("sys/class/nvme").join(part))?);
            } else if part.starts_with("nvme-subsys") {
                let paths = self.host.path("sys/class/nvme-subsystem").join(part);
                for name in files::names(&paths)?.iter().filter(|name| is_controller(name)) {
                    servers.extend(nvme_server(&paths.join(name))?);
                }
            }
        }
        Ok(())
    }
}

/// `nvme0`, and not `nvme0n1`.
fn is_controller(name: &str) -> bool {
    name.strip_prefix("nvme").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The address of a controller that is reached over a network: `traddr=192.0.2.1,trsvcid=4420`. One of PCI has its own
/// there.
fn nvme_server(controller: &Path) -> Result<Option<IpAddr>> {
    let address = files::read_optional(&controller.join("address"))?.unwrap_or_default();
    Ok(address.split(',').find_map(|part| part.strip_prefix("traddr=")?.parse().ok()))
}

/// A line of mountinfo.
struct Mount<'a> {
    number: &'a str,
    at: &'a str,
    source: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (mount, source) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let mut source = source.split(' ').skip(1);
        let (number, at) = (mount.next()?, mount.nth(1)?);
        Some(Self { number, at, source: source.next()?, options: source.next().unwrap_or_default() })
    }
}
