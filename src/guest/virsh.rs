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

/// virsh's option for the definition.
pub const CONFIG: &str = "--config";
/// virsh's option for the guest as it runs.
pub const LIVE: &str = "--live";

/// virsh on one host.
pub struct Virsh<'a> {
    /// The host.
    pub host: &'a Host,
    /// Where a dry run writes what would be run.
    pub log: &'a Log,
    /// How long a call may take.
    pub limit: Duration,
}

/// Why a command of virsh failed, with what it said.
#[derive(Debug)]
pub enum Failure {
    /// virsh did not end in time: libvirtd may still do what it was asked to.
    NoAnswer(Error),
    /// A device that is to be detached is not there (`VIR_ERR_DEVICE_MISSING`).
    NotThere(Error),
    /// libvirt knows no such guest (`VIR_ERR_NO_DOMAIN`).
    NoGuest(Error),
    /// Anything else, or virsh was not even called.
    Said(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoAnswer(error) | Failure::NotThere(error) | Failure::NoGuest(error) | Failure::Said(error) => {
                error
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Said(error)
    }
}

impl Failure {
    /// By virsh's own words, which it has no other sign for. They are those of libvirt 4.5 and later.
    fn of(said: &str, error: Error) -> Self {
        if said.contains("device not found") {
            Self::NotThere(error)
        } else if said.contains("failed to get domain") {
            Self::NoGuest(error)
        } else {
            Self::Said(error)
        }
    }
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
    pub fn run(&self, arguments: &[&str], stdin: &str) -> Result<(), Failure> {
        if self.host.is_dry() {
            self.show(arguments, stdin);
            return Ok(());
        }
        self.read(arguments, stdin).map(drop)
    }

    /// Writes what would be run, in one line as a shell takes it.
    pub fn show(&self, arguments: &[&str], stdin: &str) {
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
    pub fn read(&self, arguments: &[&str], stdin: &str) -> Result<String, Failure> {
        let name = arguments.first().copied().unwrap_or_default();
        let cannot = |why: &str| Error::new(format!("virsh {name}: {why}"));
        let ended = command::communicate(self.command().args(arguments), stdin.as_bytes(), self.limit);
        let output = ended.map_err(|cause| match cause.kind() {
            ErrorKind::TimedOut => {
                let error = cannot(&format!("no answer for {} s", self.limit.as_secs()));
                Failure::NoAnswer(error.remedy("See with `systemctl status libvirtd` whether libvirtd is running"))
            }
            _ => Failure::Said(cannot(&cause.to_string())),
        })?;
        let (status, said) = (output.status, String::from_utf8_lossy(&output.stderr));
        if status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let lines: Vec<&str> = said.lines().map(|line| line.trim_start_matches("error: ")).collect();
        match lines.join("; ").trim_matches(['\n', ' ', ';']) {
            "" => Err(Failure::Said(cannot(&format!("{status}, with no error message")))),
            why => Err(Failure::of(why, cannot(why))),
        }
    }
}
