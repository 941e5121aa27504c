//! Processes that decide whether a lease is still good: the libvirtd that starts a guest, the guest's QEMU, whoever has
//! a VFIO group open. And programs of the host that do what no file in /sys can.

use crate::error::{Error, Result};
use crate::host::Host;
use crate::sysfs;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, mem, thread};

/// One process, also after its pid was given to another: told apart by its start time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    #[serde(rename = "@pid")]
    pub pid: i32,
    /// Start time in clock ticks since boot, field 22 of proc(5)'s `/proc/PID/stat`.
    #[serde(rename = "@start")]
    pub start: u64,
}

impl Process {
    /// The process that has this pid now. `None` if there is none, or it has ended and only waits for its parent.
    pub fn with_pid(host: &Host, pid: i32) -> Option<Self> {
        Stat::read(host, pid).map(|stat| Self { pid, start: stat.start })
    }

    /// Whether it still runs.
    pub fn is_alive(&self, host: &Host) -> bool {
        Self::with_pid(host, self.pid).as_ref() == Some(self)
    }
}

/// The parts of `/proc/PID/stat` that are of use here.
struct Stat {
    parent: i32,
    start: u64,
    is_dying: bool,
}

impl Stat {
    fn read(host: &Host, pid: i32) -> Option<Self> {
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

/// The libvirtd (or virtqemud) that runs this hook: our ancestor right below init, as a hook may be called through other
/// scripts. `None` once it has died: orphans are handed to init.
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
    // The second is that of libvirt before 6.
    let files = ["run/libvirt/qemu/driver.pid", "run/libvirtd.pid"].into_iter();
    let mut pids = files.filter_map(|file| fs::read_to_string(host.path(file)).ok()?.trim().parse().ok());
    pids.find_map(|pid| Process::with_pid(host, pid))
}

/// Seconds since boot, by `/proc/uptime`: a clock that nobody sets, for records that are gone at reboot anyway.
pub fn uptime(host: &Host) -> Option<u64> {
    let text = fs::read_to_string(host.path("proc/uptime")).ok()?;
    text.split('.').next()?.parse().ok()
}

/// The guest's QEMU, by the pid file that libvirt keeps from fork to stop. `None` when the guest does not run.
pub fn qemu(host: &Host, guest: &str) -> Option<Process> {
    let pid_file = host.path("run/libvirt/qemu").join(format!("{guest}.pid"));
    let pid = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    Process::with_pid(host, pid)
}

/// Runs a program and waits for its end, at most for `limit`. It gets none of our fds: libvirt waits for the end of each.
///
/// # Errors
/// Why it has no exit status, for the caller's own line.
pub fn run(program: &Path, arguments: &[&str], limit: Duration) -> Result<ExitStatus, String> {
    let ended = communicate(Command::new(program).args(arguments), b"", limit);
    ended.map(|output| output.status).map_err(|cause| cause.to_string())
}

/// The same with something on its standard input, and what it has printed. What it leaves running in the background may
/// keep its output open; that is not waited for. One that takes too long is killed, with all of its process group if it
/// leads one.
///
/// # Errors
/// `TimedOut`, or why it cannot be run.
pub fn communicate(command: &mut Command, input: &[u8], limit: Duration) -> io::Result<Output> {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (stdin, input) = (child.stdin.take(), input.to_vec());
    // One that does not read it all may still be content.
    thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
    let (stdout, stderr) = (Collected::from(child.stdout.take()), Collected::from(child.stderr.take()));
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Output { status, stdout: stdout.text(), stderr: stderr.text() }),
            None if Instant::now() >= deadline => {
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                let _ = child.kill();
                let why = format!("it has not ended for {} s", limit.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// What comes out of a pipe.
struct Collected {
    text: Arc<Mutex<Vec<u8>>>,
    end: Receiver<()>,
}

impl Collected {
    fn from(pipe: Option<impl Read + Send + 'static>) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let (sender, end) = mpsc::channel();
        let shared = Arc::clone(&text);
        thread::spawn(move || {
            let mut pipe = pipe;
            let mut buffer = [0; 8192];
            while let Some(Ok(count @ 1..)) = pipe.as_mut().map(|pipe| pipe.read(&mut buffer)) {
                shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
            let _ = sender.send(());
        });
        Self { text, end }
    }

    /// All of it, or, if somebody in the background keeps the pipe open, what has come.
    fn text(self) -> Vec<u8> {
        let _ = self.end.recv_timeout(Duration::from_millis(200));
        mem::take(&mut *self.text.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The nodes below /dev that processes have open, each with pid and name of one of them. A VFIO group's node is exclusive, and
/// opening it to find out could make a QEMU that is just starting fail; so the fds of all processes are looked at.
pub fn open_nodes(host: &Host) -> Result<BTreeMap<PathBuf, String>> {
    let dev = host.path("dev");
    let mut holders = BTreeMap::new();
    for pid in sysfs::names(&host.path("proc"))?.iter().filter_map(|name| name.parse::<i32>().ok()) {
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
            let threads = sysfs::names(&process.join("task")).unwrap_or_default();
            open = threads.iter().flat_map(|thread| nodes(process.join("task").join(thread).join("fd"))).collect();
        }
        open.retain(|node| !holders.contains_key(node));
        if !open.is_empty() {
            let name = sysfs::read(&process.join("comm")).unwrap_or_else(|_: Error| "ended meanwhile".to_owned());
            holders.extend(open.into_iter().map(|node| (node, format!("process {pid} ({name})"))));
        }
    }
    Ok(holders)
}

/// Pid and name of a process that has a VFIO group open.
pub fn holder_of_group(host: &Host, group: u32) -> Result<Option<String>> {
    Ok(open_nodes(host)?.remove(&host.path(format!("dev/vfio/{group}"))))
}

/// A word of a command that an admin is told to run, as a shell takes it.
pub fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:,@%=".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_of_commands_are_quoted() {
        for (word, quote) in
            [("web-01", "web-01"), ("my guest", "'my guest'"), ("it's", r"'it'\''s'"), ("", "''"), ("$(x)", "'$(x)'")]
        {
            assert_eq!(quoted(word), quote);
        }
    }
}
