//! Programs of the host that do what no file in /sys can, run with a deadline.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Runs a program and waits for its end, at most for `limit`. It gets none of our fds: libvirt waits for the end of
/// each.
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
    let (mut stdout, mut stderr) = (Collected::new(child.stdout.take())?, Collected::new(child.stderr.take())?);
    let deadline = Instant::now() + limit;
    loop {
        // In this order: all that an ended program has written is in its pipes.
        let ended = child.try_wait()?;
        let has_read = stdout.read() | stderr.read();
        match ended {
            Some(status) => return Ok(Output { status, stdout: stdout.text, stderr: stderr.text }),
            None if Instant::now() >= deadline => {
                let _ = i32::try_from(child.id()).map(|group| killpg(Pid::from_raw(group), Signal::SIGKILL));
                let _ = child.kill();
                let why = format!("it has not ended for {} s", limit.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            None if !has_read => thread::sleep(Duration::from_millis(2)),
            None => {}
        }
    }
}

/// What comes out of a pipe. It is never waited for.
struct Collected<P> {
    pipe: Option<P>,
    text: Vec<u8>,
}

impl<P: Read + AsFd> Collected<P> {
    /// More than a pipe holds, pipe(7).
    const AT_ONCE: u64 = 1 << 20;

    fn new(pipe: Option<P>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { pipe, text: Vec::new() })
    }

    /// Reads what is there now; whether that was anything.
    fn read(&mut self) -> bool {
        let before = self.text.len();
        if let Some(pipe) = &mut self.pipe {
            // That there is no more for now is no error.
            let _ = pipe.take(Self::AT_ONCE).read_to_end(&mut self.text);
        }
        self.text.len() > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Output {
        communicate(Command::new("/bin/sh").args(["-c", script]), b"", Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn all_that_a_program_has_printed_is_there_when_it_has_ended() {
        // More than a pipe holds, and something in the background that keeps both pipes open.
        let output = shell("sleep 5 & head -c 300000 /dev/zero; echo done >&2; exit 3");
        assert_eq!((output.stdout.len(), output.stderr.as_slice()), (300_000, &b"done\n"[..]));
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn one_that_takes_too_long_is_killed() {
        let begun = Instant::now();
        let ended = communicate(Command::new("/bin/sleep").arg("60"), b"", Duration::from_millis(50));
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
