//! libvirt, by its own command. Never called from a hook, and never with a lock that a hook takes: while libvirt runs a
//! hook it keeps the guest to itself, and each would wait for the other.

use host::command;
use host::log::Log;
use host::paths::Host;
use model::error::{Error, Result};
use model::text::shell_word;
use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

/// Part of the error when virsh did not end in time: libvirtd may still do what it was told.
pub const NO_ANSWER: &str = "no answer for";

/// virsh on one host.
pub struct Virsh<'a> {
    /// The host.
    pub host: &'a Host,
    /// Where a dry run tells what would be run.
    pub log: &'a Log,
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

    /// Has one command of virsh change something, with this text as its `/dev/stdin`.
    ///
    /// # Errors
    /// What virsh said.
    pub fn run(&self, arguments: &[&str], stdin: &str) -> Result<()> {
        if self.host.is_dry() {
            self.tell(arguments, stdin);
            return Ok(());
        }
        self.read(arguments, stdin).map(drop)
    }

    /// Tells what would be run, in one line as a shell takes it.
    pub fn tell(&self, arguments: &[&str], stdin: &str) {
        let words: Vec<String> = arguments.iter().map(|word| shell_word(word)).collect();
        let mut line = format!("virsh {}", words.join(" "));
        if !stdin.is_empty() {
            let text: String = stdin.lines().map(str::trim).collect();
            line += " <<<";
            line += &shell_word(&text);
        }
        self.log.info(line);
    }

    /// Asks virsh, and returns what it printed.
    ///
    /// # Errors
    /// What virsh said.
    pub fn read(&self, arguments: &[&str], stdin: &str) -> Result<String> {
        let name = arguments.first().copied().unwrap_or_default();
        let cannot = |why: &str| Error::new(format!("virsh {name}: {why}"));
        let ended = command::communicate(self.command().args(arguments), stdin.as_bytes(), self.limit);
        let output = ended.map_err(|cause| match cause.kind() {
            ErrorKind::TimedOut => cannot(&format!("{NO_ANSWER} {} s; is libvirtd at work?", self.limit.as_secs())),
            _ => cannot(&cause.to_string()),
        })?;
        let (status, said) = (output.status, String::from_utf8_lossy(&output.stderr));
        if status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let lines: Vec<&str> = said.lines().map(|line| line.trim_start_matches("error: ")).collect();
        match lines.join("; ").trim_matches(['\n', ' ', ';']) {
            "" => Err(cannot(&format!("{status}, and not a word why"))),
            why => Err(cannot(why)),
        }
    }
}
