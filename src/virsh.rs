//! libvirt, by its own command. Never called from a hook, and never with a lock that a hook takes: while libvirt runs a
//! hook it keeps the guest to itself, and each would wait for the other.

use crate::error::{Error, Result};
use crate::host::Host;
use crate::log::Log;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

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
        let is_plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "-_/.:".contains(c));
        let quote = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
        let words = arguments.iter().map(|word| if is_plain(word) { (*word).to_owned() } else { quote(word) });
        let mut line = format!("virsh {}", words.collect::<Vec<_>>().join(" "));
        if !stdin.is_empty() {
            let text: String = stdin.lines().map(str::trim).collect();
            line += " <<<";
            line += &quote(&text);
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
        let io = |cause: std::io::Error| cannot(&cause.to_string());
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(io)?;
        if let Some(mut pipe) = child.stdin.take() {
            // One that has failed already does not read.
            let _ = pipe.write_all(stdin.as_bytes());
        }
        // Its outputs end with it, which needs no looking again and again.
        let outputs = [child.stdout.take().map(collect), child.stderr.take().map(collect)];
        let end = Instant::now() + self.limit;
        let [printed, said] = outputs.map(|output| {
            let left = end.saturating_duration_since(Instant::now());
            output.and_then(|output| output.recv_timeout(left).ok())
        });
        let (Some(printed), Some(said)) = (printed, said) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(cannot(&format!("{NO_ANSWER} {} s; is libvirtd at work?", self.limit.as_secs())));
        };
        let status = child.wait().map_err(io)?;
        if status.success() {
            return Ok(printed);
        }
        let lines: Vec<&str> = said.lines().map(|line| line.trim_start_matches("error: ")).collect();
        match lines.join("; ").trim_matches(['\n', ' ', ';']) {
            "" => Err(cannot(&format!("{status}, and not a word why"))),
            why => Err(cannot(why)),
        }
    }
}

/// Reads a pipe to its end.
fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}
