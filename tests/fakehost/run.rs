//! Programs on the host: the product's own, as libvirt, udev and the admin call them.

use crate::Host;
use crate::expect::Outcome;
use crate::programs::{fake_kernel, product};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// A call of the hook or the command that is still to be made.
pub struct Call<'a> {
    host: &'a Host,
    pub(crate) command: Command,
    input: Vec<u8>,
}

/// A call that is being made.
pub struct Running {
    child: Child,
    begun: Instant,
    stdin: PathBuf,
    outputs: [mpsc::Receiver<String>; 2],
    host: PathBuf,
}

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

impl Call<'_> {
    /// Kills the hook right before its nth change, counted from 1.
    pub fn killed_at(mut self, number: usize) -> Self {
        self.command.env("FAKE_KILL_AT", number.to_string());
        self
    }

    /// Kills the hook right after its nth change.
    pub fn killed_after(mut self, number: usize) -> Self {
        self.command.env("FAKE_KILL_AFTER", number.to_string());
        self
    }

    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }

    pub fn spawn(mut self) -> Running {
        let pipes = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = pipes.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let pipe = fs::read_link(format!("/proc/self/fd/{}", stdin.as_raw_fd())).unwrap();
        thread::spawn(move || {
            // A hook need not read what it has no use for.
            let _ = stdin.write_all(&self.input);
        });
        let outputs = [collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap())];
        Running { child, begun, stdin: pipe, outputs, host: self.host.tree.root.clone() }
    }
}

/// Reads a pipe to its end.
fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        let _ = sender.send(String::from_utf8(bytes).unwrap());
    });
    receiver
}

impl Running {
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills the program, and nothing that it has begun.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end of the program, and as libvirt for the end of each of its pipes: a child that is left behind
    /// with one of them fails the test.
    pub fn wait(mut self) -> Outcome {
        while self.child.try_wait().unwrap().is_none() {
            if self.begun.elapsed() > PATIENCE {
                self.child.kill().unwrap();
                panic!("it has not ended within {PATIENCE:?}");
            }
            thread::sleep(Duration::from_micros(500));
        }
        let status = self.child.wait().unwrap();
        let took = self.begun.elapsed();
        let [stdout, stderr] = self.outputs.map(|pipe| {
            pipe.recv_timeout(Duration::from_secs(5)).expect("a child that is left behind keeps stdout or stderr open")
        });
        if let Ok(panic) = fs::read_to_string(self.host.join("kernel.panic")) {
            panic!("the fake kernel has a bug: {panic}");
        }
        if let Ok(bug) = fs::read_to_string(self.host.join("virsh.bug")) {
            panic!("{bug}");
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let holds = fs::read_link(process.path().join("fd/0")).is_ok_and(|open| open == self.stdin);
            assert!(!holds, "a child that is left behind keeps stdin open: {}", process.path().display());
        }
        Outcome { code: status.code(), stdout, stderr, took }
    }
}

impl Host {
    pub(crate) fn call(&self, program: impl AsRef<OsStr>, arguments: &[&str], input: &[u8]) -> Call<'_> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").env_clear();
        command.env("LC_ALL", "C").env("PATH", "/bin:/usr/bin");
        command.env("VFPOOL_ROOT", &self.tree.root).env("LD_PRELOAD", fake_kernel());
        Call { host: self, command, input: input.to_owned() }
    }

    /// The hook with any arguments.
    pub fn hook_with(&self, arguments: &[&str], input: &[u8]) -> Call<'_> {
        self.call(product("vfpool-hook"), arguments, input)
    }

    /// The hook as libvirt calls it. A guest has an id from before its start to its end.
    pub fn hook(&self, guest: &str, operation: &str, xml: &str) -> Call<'_> {
        let end = matches!(operation, "release" | "stopped");
        let active = format!("hw/active/{guest}.id");
        if operation == "prepare" {
            self.put(&active, "");
        } else if end {
            self.tree.unlink(&active);
        }
        self.hook_with(&[guest, operation, if end { "end" } else { "begin" }, "-"], xml.as_bytes())
    }

    /// The admin's command, still to be called.
    pub fn command(&self, arguments: &[&str]) -> Call<'_> {
        self.call(product("vfpool"), arguments, b"")
    }

    /// The admin's command.
    pub fn vfpool(&self, arguments: &[&str]) -> Outcome {
        self.command(arguments).run()
    }

    /// The helper as udev's rules run it.
    pub fn udev(&self, arguments: &[&str]) -> Outcome {
        self.call(product("vfpool-device"), arguments, b"").run()
    }

    /// The admin's command with this on standard input.
    pub fn vfpool_with(&self, arguments: &[&str], input: &[u8]) -> Call<'_> {
        self.call(product("vfpool"), arguments, input)
    }

    pub fn prepare(&self, guest: &str, xml: &str) -> Outcome {
        self.hook(guest, "prepare", xml).run()
    }

    pub fn release(&self, guest: &str, xml: &str) -> Outcome {
        self.hook(guest, "release", xml).run()
    }
}
