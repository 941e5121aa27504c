//! The daemon that runs the hook on this host: virtqemud, or libvirtd.

use super::{Finding, Id};
use host::paths::Host;
use host::{files, process};
use std::fs;
use std::time::SystemTime;

/// The daemons that may run the hook.
pub(super) const DAEMONS: [(&str, &str); 2] = [("virtqemud", "virtqemud-sock"), ("libvirtd", "libvirt-sock")];

/// The daemon that runs the hook on this host.
pub(super) struct Daemon {
    pub(super) name: &'static str,
    /// When it started; `None`: it does not run.
    pub(super) since: Option<SystemTime>,
    /// Whether systemd starts it when a client connects.
    is_awaited: bool,
}

impl Daemon {
    pub(super) fn find(host: &Host) -> Self {
        let sockets = files::read(&host.path("proc/net/unix")).unwrap_or_default();
        // Flags with __SO_ACCEPTCON: a program listens. Without a daemon, that is systemd.
        let listens = |socket: &str| {
            let is_it = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.get(3) == Some(&"00010000")
                    && words.last().is_some_and(|path| path.ends_with(&format!("/{socket}")))
            };
            sockets.lines().any(is_it)
        };
        let found = DAEMONS.map(|(name, socket)| {
            let file = host.path(format!("run/{name}.pid"));
            let pid = files::read(&file).ok().and_then(|pid| pid.parse::<i32>().ok());
            let is_it = |pid: i32| {
                let comm = files::read(&host.process(pid).join("comm"));
                process::with_pid(host, pid).is_some() && comm.is_ok_and(|comm| comm == name)
            };
            // libvirt writes the file when it starts.
            let written = || fs::metadata(&file).and_then(|data| data.modified()).ok();
            Self { name, since: pid.filter(|pid| is_it(*pid)).and_then(|_| written()), is_awaited: listens(socket) }
        });
        let [virtqemud, libvirtd] = found;
        // Beside virtqemud, libvirt's old socket is only a proxy's.
        if virtqemud.since.is_some() || virtqemud.is_awaited && libvirtd.since.is_none() { virtqemud } else { libvirtd }
    }

    pub(super) fn finding(&self, host: &Host) -> Finding {
        const ID: Id = Id::Libvirtd;
        let name = self.name;
        if self.since.is_some() {
            return Finding::ok(ID, format!("{name} runs")).shown_by_file(host.path(format!("run/{name}.pid")));
        }
        let sockets = host.path("proc/net/unix");
        if self.is_awaited {
            return Finding::ok(ID, format!("{name} is started when it is called")).shown_by_file(&sockets);
        }
        Finding::failure(ID, format!("{name} is down: no guest can be started; the rest was checked without it"))
            .shown_by(format!("{} has no socket of libvirt that is listened on", sockets.display()))
            .cured_by(format!("Run `systemctl start {name}`"))
    }

    /// A command, and that libvirtd looks again after it.
    pub(super) fn then_reload(&self, command: &str) -> String {
        match self.since {
            Some(_) => format!("Run `{command} && systemctl reload {}`", self.name),
            None => format!("Run `{command}`"),
        }
    }
}
