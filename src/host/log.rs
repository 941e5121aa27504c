//! One syslog line for each change on the host, so that the admin can read afterwards what was done and why.
//!
//! Connects on the first line only: most guests have no PCI devices and their starts should cost nothing.

use crate::paths::Host;
use model::error::Error;
use model::text::one_line;
use once_cell::unsync::OnceCell;
use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

type Syslog = Logger<LoggerBackend, Formatter3164>;

/// The way to syslog, or to stderr where there is none.
pub struct Log {
    socket: PathBuf,
    program: &'static str,
    syslog: OnceCell<Option<RefCell<Syslog>>>,
    dry_run: Option<RefCell<Box<dyn Write>>>,
}

impl Log {
    /// A log that writes as `program` to the host's `/dev/log`.
    pub fn new(host: &Host, program: &'static str) -> Self {
        Self { socket: host.path("dev/log"), program, syslog: OnceCell::new(), dry_run: None }
    }

    /// A log for a dry run, whose changes were not made: they are printed to `out`, and nothing goes to syslog.
    #[must_use]
    pub fn dry_run(self, out: impl Write + 'static) -> Self {
        Self { dry_run: Some(RefCell::new(Box::new(out))), ..self }
    }

    /// A change that was made as it should be.
    pub fn info(&self, line: impl Display) {
        let line = one_line(&line.to_string());
        if let Some(out) = &self.dry_run {
            let _ = writeln!(out.borrow_mut(), "{line}");
        } else if !self.send(|syslog| syslog.info(&line)) {
            self.complain(&line);
        }
    }

    /// Something an admin should know of.
    pub fn warning(&self, line: impl Display) {
        let line = one_line(&line.to_string());
        if !self.send(|syslog| syslog.warning(&line)) {
            self.complain(&line);
        }
    }

    /// Something that could not be done.
    pub fn error(&self, line: impl Display) {
        let line = one_line(&line.to_string());
        if !self.send(|syslog| syslog.err(&line)) {
            self.complain(&line);
        }
    }

    /// The reason of a refusal: on stderr, where libvirt takes it from, and in syslog for afterwards.
    pub fn refusal(&self, reason: &Error) {
        self.complain(&reason.to_string());
        self.send(|syslog| syslog.err(reason));
    }

    fn complain(&self, line: &str) {
        // eprintln would panic on a closed stderr, and a log line must never fail an event.
        let _ = writeln!(std::io::stderr(), "{}: {line}", self.program);
    }

    fn send(&self, write: impl FnOnce(&mut Syslog) -> syslog::Result<()>) -> bool {
        if self.dry_run.is_some() {
            return false;
        }
        let syslog = self.syslog.get_or_init(|| {
            let formatter = Formatter3164 {
                facility: Facility::LOG_DAEMON,
                hostname: None,
                process: self.program.to_owned(),
                pid: std::process::id(),
            };
            let backend = LoggerBackend::Unix(connect(&self.socket).ok()?);
            Some(RefCell::new(Logger { formatter, backend }))
        });
        syslog.as_ref().is_some_and(|syslog| write(&mut syslog.borrow_mut()).is_ok())
    }
}

/// A log that is stuck must not hold up a guest: each line waits a little, then goes to stderr.
fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(Duration::from_millis(500)))?;
    socket.connect(path)?;
    Ok(socket)
}
