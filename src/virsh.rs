//! libvirt, by its own command. Never called from a hook, and never with a lock that a hook takes: while libvirt runs a
//! hook it keeps the guest to itself, and each would wait for the other.

use crate::error::{Error, Result};
use crate::host::Host;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// virsh on one host.
pub struct Virsh<'a> {
    /// The host.
    pub host: &'a Host,
    /// How long a call may take.
    pub limit: Duration,
}

impl Virsh<'_> {
    /// The command, for the system's libvirt.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.host.path("usr/bin/virsh"));
        command.args(["-q", "-c", "qemu:///system"]).env("LC_ALL", "C");
        command
    }

    /// Runs one command of virsh with this text as its `/dev/stdin`.
    ///
    /// # Errors
    /// What virsh said.
    pub fn run(&self, arguments: &[&str], stdin: &str) -> Result<()> {
        let name = arguments.first().copied().unwrap_or_default();
        let cannot = |why: &str| Error::new(format!("virsh {name}: {why}"));
        let io = |cause: std::io::Error| cannot(&cause.to_string());
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(io)?;
        if let Some(mut pipe) = child.stdin.take() {
            // One that has failed already does not read.
            let _ = pipe.write_all(stdin.as_bytes());
        }
        // Its standard error ends with it, which needs no looking again and again.
        let (sender, said) = mpsc::channel();
        let mut pipe = child.stderr.take();
        thread::spawn(move || {
            let mut said = String::new();
            let _ = pipe.as_mut().map(|pipe| pipe.read_to_string(&mut said));
            let _ = sender.send(said);
        });
        let Ok(said) = said.recv_timeout(self.limit) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(cannot(&format!("no answer for {} s; is libvirtd at work?", self.limit.as_secs())));
        };
        let status = child.wait().map_err(io)?;
        if status.success() {
            return Ok(());
        }
        let lines: Vec<&str> = said.lines().map(|line| line.trim_start_matches("error: ")).collect();
        match lines.join("; ").trim_matches(['\n', ' ', ';']) {
            "" => Err(cannot(&format!("{status}, and not a word why"))),
            why => Err(cannot(why)),
        }
    }
}
