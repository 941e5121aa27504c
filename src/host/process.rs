//! Processes, told apart also after a pid was given to another.

use crate::paths::Host;
use model::lease::Process;
use std::fs;

/// The process that has this pid now. `None` if there is none, or it has ended and only waits for its parent.
pub fn with_pid(host: &Host, pid: i32) -> Option<Process> {
    Stat::read(host, pid).map(|stat| Process { pid, start: stat.start })
}

/// Whether a process still runs.
pub fn is_alive(host: &Host, process: &Process) -> bool {
    with_pid(host, process.pid).as_ref() == Some(process)
}

/// The parts of `/proc/PID/stat` that are of use here.
pub(crate) struct Stat {
    pub(crate) parent: i32,
    pub(crate) start: u64,
    pub(crate) is_dying: bool,
}

impl Stat {
    pub(crate) fn read(host: &Host, pid: i32) -> Option<Self> {
        let text = fs::read_to_string(host.process(pid).join("stat")).ok()?;
        // The command name, field 2, may itself hold blanks and brackets.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let (state, threads) = (*fields.first()?, *fields.get(17)?);
        // A dying QEMU's first thread is a zombie while others still let go of memory and devices.
        let is_dying = matches!(state, "Z" | "X" | "x");
        if is_dying && threads.parse::<u32>().ok()? <= 1 {
            return None;
        }
        Some(Self { parent: fields.get(1)?.parse().ok()?, start: fields.get(19)?.parse().ok()?, is_dying })
    }
}

/// Seconds since boot, by `/proc/uptime`: a clock that nobody sets, for records that are gone at reboot anyway.
pub fn uptime(host: &Host) -> Option<u64> {
    let text = fs::read_to_string(host.path("proc/uptime")).ok()?;
    text.split('.').next()?.parse().ok()
}
