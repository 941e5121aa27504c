//! The same snapshot again and again, until Ctrl-C.

use model::error::{Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Milliseconds between two pictures.
const PAUSE: u16 = 2000;

/// Writes what `draw` makes every 2 seconds, on a terminal in place of what was there. Ends with Ctrl-C, or with the
/// reader.
pub(super) fn watch(mut draw: impl FnMut() -> String, is_terminal: bool, out: &mut dyn Write) -> Result<()> {
    let mut interrupt = SigSet::empty();
    interrupt.add(Signal::SIGINT);
    let cannot = |errno: nix::Error| Error::new(format!("Cannot wait for Ctrl-C: {errno}"));
    interrupt.thread_block().map_err(cannot)?;
    let interrupted = SignalFd::new(&interrupt).map_err(cannot)?;
    loop {
        let mut snapshot = draw();
        if is_terminal {
            // From the top, each line over an old one, and nothing of the old one below.
            snapshot = format!("\x1b[H{}\x1b[J", snapshot.replace('\n', "\x1b[K\n"));
        }
        match out.write_all(snapshot.as_bytes()).and_then(|()| out.flush()) {
            Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.map_err(|cause| Error::new(format!("Cannot write the list: {cause}")))?,
        }
        let mut waiting = [PollFd::new(interrupted.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::from(PAUSE)) {
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(cannot(errno)),
        }
    }
}
