//! Programs of the host that do what no file in /sys can, run with a deadline.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, thread};

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
                let _ = i32::try_from(child.id()).map(|group| killpg(Pid::from_raw(group), Signal::SIGKILL));
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
