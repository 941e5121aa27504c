//! What runs of libvirt, by the files that it keeps: its daemon, the guests' QEMU, their XML.

use crate::files;
use crate::paths::Host;
use crate::process::{self, Stat};
use model::lease::Process;
use std::fs;

/// The libvirtd (or virtqemud) that runs this hook: our ancestor right below init, as a hook may be called through
/// other scripts. `None` once it has died: orphans are handed to init.
pub fn starter(host: &Host) -> Option<Process> {
    let mut pid = nix::unistd::getppid().as_raw();
    loop {
        if pid <= 1 {
            return None;
        }
        let stat = Stat::read(host, pid)?;
        if stat.parent <= 1 {
            return Some(Process { pid, start: stat.start });
        }
        pid = stat.parent;
    }
}

/// The libvirtd (or virtqemud) of this host, by the pid file that it keeps. `None` when it does not run.
pub fn libvirtd(host: &Host) -> Option<Process> {
    // The second is kept by libvirt 6 and later; before, it may be that of a guest with the name `driver`.
    let files = ["run/libvirtd.pid", "run/libvirt/qemu/driver.pid"].into_iter();
    let mut pids = files.filter_map(|file| fs::read_to_string(host.path(file)).ok()?.trim().parse().ok());
    pids.find_map(|pid| process::with_pid(host, pid))
}

/// The guest's QEMU, by the pid file that libvirt keeps from fork to stop. `None` when the guest does not run.
pub fn qemu(host: &Host, guest: &str) -> Option<Process> {
    let pid_file = host.path("run/libvirt/qemu").join(format!("{guest}.pid"));
    let pid = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    // libvirt 6 and later keep their own pid under this name.
    let is_libvirtd = |process: &Process| {
        guest == "driver" && [libvirtd(host), starter(host)].iter().flatten().any(|daemon| daemon == process)
    };
    process::with_pid(host, pid).filter(|process| !is_libvirtd(process))
}

/// The guest whose QEMU has this pid.
pub fn guest_of(host: &Host, pid: i32) -> Option<String> {
    let names = files::names(&host.path("run/libvirt/qemu")).ok()?;
    let mut guests = names.iter().filter_map(|file| file.strip_suffix(".pid"));
    guests.find(|guest| qemu(host, guest).is_some_and(|qemu| qemu.pid == pid)).map(str::to_owned)
}

/// A running guest's XML as libvirt keeps it, inside of its own status. `None`: it does not run.
pub fn live(host: &Host, guest: &str) -> Option<Vec<u8>> {
    let status = fs::read_to_string(host.path("run/libvirt/qemu").join(format!("{guest}.xml"))).ok()?;
    let end = "</domain>";
    let range = status.find("<domain ")?..status.rfind(end)? + end.len();
    status.get(range).map(|xml| xml.as_bytes().to_owned())
}
