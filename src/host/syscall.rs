//! A system call that may hang in the kernel, with a deadline for its caller.
//!
//! Unbinding a busy device or opening a dead disk can sleep in the kernel where no signal reaches it. A thread would
//! keep the whole process from ending, and libvirt waits for its hook without a time-out; so the call is made by a
//! child process which can be left behind. The child has none of the fds 0-2 (libvirt waits for their end of file
//! too). It inherits the lock file of the guest's turn: as long as the call hangs, nothing else touches the same
//! devices. It closes what is meant for programs that we run (it has no close-on-exec flag): the right to edit any
//! guest's definition.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Makes the system calls of `call` in a child process and waits for them at most `limit`.
///
/// `call` runs between fork and exit: it may make system calls, but neither allocate nor take a lock.
///
/// # Errors
/// What `call` returned, or `TimedOut`: then the call may still happen at any later time.
pub fn within(limit: Duration, call: impl FnOnce() -> nix::Result<()>) -> io::Result<()> {
    let (ended, alive) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let child = begin(call)?;
    drop(alive);
    if !ended_within(&ended, limit)? {
        let _ = kill(child, Signal::SIGKILL);
        return Err(io::ErrorKind::TimedOut.into());
    }
    outcome(child)
}

/// A child process that makes the system calls of `call` and ends with what it returned.
fn begin(call: impl FnOnce() -> nix::Result<()>) -> io::Result<Pid> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: the child makes async-signal-safe system calls only, and leaves by _exit without running any destructor.
    #[allow(unsafe_code)]
    match unsafe { fork() }? {
        ForkResult::Child => {
            let result = dup2_stdin(&null)
                .and_then(|()| dup2_stdout(&null))
                .and_then(|()| dup2_stderr(&null))
                .map(|()| close_what_programs_get())
                .and_then(|()| call());
            let code = result.err().map_or(0, |errno| errno as i32);
            // SAFETY: _exit is always safe to call.
            unsafe { nix::libc::_exit(code) }
        }
        ForkResult::Parent { child } => Ok(child),
    }
}

/// What `call` writes into its pipe, in a child process as with [`within`]: for what has to read from where the kernel
/// may hang.
///
/// # Errors
/// What `call` returned, or `TimedOut`.
pub fn read_within(limit: Duration, call: impl FnOnce(BorrowedFd) -> nix::Result<()>) -> io::Result<Vec<u8>> {
    let begun = Instant::now();
    let (from, into) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let child = begin(|| call(into.as_fd()))?;
    drop(into);
    let mut from = File::from(from);
    let (mut found, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        if !ended_within(&from, limit.saturating_sub(begun.elapsed()))? {
            let _ = kill(child, Signal::SIGKILL);
            return Err(io::ErrorKind::TimedOut.into());
        }
        match from.read(&mut buffer)? {
            0 => break,
            length => found.extend_from_slice(&buffer[..length]),
        }
    }
    outcome(child).map(|()| found)
}

fn outcome(child: Pid) -> io::Result<()> {
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// Our files have low numbers: hooks and commands open few at a time.
fn close_what_programs_get() {
    for fd in 3..64 {
        // SAFETY: both calls take any number; nothing in this child uses a file that it closes.
        #[allow(unsafe_code)]
        unsafe {
            if nix::libc::fcntl(fd, nix::libc::F_GETFD) == 0 {
                nix::libc::close(fd);
            }
        }
    }
}

/// Whether the other end of the pipe, which only the child holds, was closed or written to before the limit was over.
fn ended_within(pipe: &impl AsFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            result => return Ok(result? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_the_call_returned() {
        let limit = Duration::from_secs(5);
        assert!(within(limit, || Ok(())).is_ok());
        assert_eq!(within(limit, || Err(Errno::EBUSY)).unwrap_err().raw_os_error(), Some(Errno::EBUSY as i32));
    }

    #[test]
    fn tells_what_the_call_has_read() {
        let limit = Duration::from_secs(5);
        let read = read_within(limit, |into| (0..5000).try_for_each(|_| nix::unistd::write(into, &[7; 32]).map(drop)));
        assert_eq!(read.unwrap(), vec![7; 160_000]);
        assert_eq!(read_within(limit, |_| Err(Errno::EPERM)).unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        let hangs = read_within(Duration::from_millis(50), |_| {
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        });
        assert_eq!(hangs.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn leaves_a_hanging_call_behind() {
        let begun = Instant::now();
        let result = within(Duration::from_millis(50), || {
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        });
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
