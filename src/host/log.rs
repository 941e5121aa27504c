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
use syslog::{Facility, LogFormat, Logger, LoggerBackend, Severity};

type Syslog = Logger<LoggerBackend, Line>;

/// How a line is sent, by its severity.
type SendLine = fn(&mut Syslog, &str) -> syslog::Result<()>;

/// A line as RFC 3164 has it, without the time: the daemon puts its own there. The crate's own format has that of UTC.
struct Line {
    program: &'static str,
}

impl LogFormat<&str> for Line {
    fn format<W: Write>(&self, to: &mut W, severity: Severity, line: &str) -> syslog::Result<()> {
        let priority = Facility::LOG_DAEMON as u8 | severity as u8;
        write!(to, "<{priority}>{}[{}]: {line}", self.program, std::process::id()).map_err(syslog::Error::Write)
    }
}

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
        match &self.dry_run {
            Some(out) => _ = writeln!(out.borrow_mut(), "{}", one_line(&line.to_string())),
            None => self.line(&line, |syslog, line| syslog.info(line)),
        }
    }

    /// Something an admin should know of.
    pub fn warning(&self, line: impl Display) {
        self.line(&line, |syslog, line| syslog.warning(line));
    }

    /// Something that could not be done.
    pub fn error(&self, line: impl Display) {
        self.line(&line, |syslog, line| syslog.err(line));
    }

    /// The reason of a refusal: on stderr, where libvirt takes it from, and in syslog for afterwards.
    pub fn refusal(&self, reason: &Error) {
        let reason = reason.to_string();
        self.complain(&reason);
        self.send(&reason, |syslog, line| syslog.err(line));
    }

    fn line(&self, line: &dyn Display, send: SendLine) {
        let line = one_line(&line.to_string());
        if !self.send(&line, send) {
            self.complain(&line);
        }
    }

    fn complain(&self, line: &str) {
        // eprintln would panic on a closed stderr, and a log line must never fail an event.
        let _ = writeln!(std::io::stderr(), "{}: {line}", self.program);
    }

    /// Whether syslog has the line now. A dry run's goes to stderr only.
    fn send(&self, line: &str, send: SendLine) -> bool {
        if self.dry_run.is_some() {
            return false;
        }
        let syslog = self.syslog.get_or_init(|| {
            let backend = LoggerBackend::Unix(connect(&self.socket).ok()?);
            Some(RefCell::new(Logger::new(backend, Line { program: self.program })))
        });
        syslog.as_ref().is_some_and(|syslog| send(&mut syslog.borrow_mut(), line).is_ok())
    }
}

/// A log that is stuck must not hold up a guest: each line waits a little, then goes to stderr.
fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(Duration::from_millis(500)))?;
    socket.connect(path)?;
    Ok(socket)
}
