//! Who has a device open: the fds of all processes.

use crate::files;
use crate::paths::Host;
use crate::process::Stat;
use model::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// The nodes below /dev that processes have open, each with pid and name of one of them. A VFIO group's node is exclusive, and
/// opening it to find out could make a QEMU that is just starting fail; so the fds of all processes are looked at.
pub fn open_nodes(host: &Host) -> Result<BTreeMap<PathBuf, String>> {
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
            let name = files::read(&process.join("comm")).unwrap_or_else(|_: Error| "ended meanwhile".to_owned());
            holders.extend(open.into_iter().map(|node| (node, format!("process {pid} ({name})"))));
        }
    }
    Ok(holders)
}

/// Pid and name of a process that has a VFIO group open.
pub fn holder_of_group(host: &Host, group: u32) -> Result<Option<String>> {
    Ok(open_nodes(host)?.remove(&host.path(format!("dev/vfio/{group}"))))
}
