//! What the command prints, and what it asks.

use host::paths::Host;
use model::error::{Error, Result};
use model::text::one_line;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// The command's exit statuses. Each says what a script may rely on.
#[derive(Clone, Copy)]
pub(crate) enum Exit {
    /// What was asked for is done. Of `check`: the host is ready; of `explain`: also of a device that is not free.
    Done = 0,
    /// Something could not be done, or was refused; standard error says what. Of `check`: the host is not ready.
    Failed = 1,
    /// The arguments are wrong, and nothing was looked at.
    WrongUse = 2,
    /// Of `check` only: the host is ready, with warnings.
    Warnings = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A reader that has seen enough (`| head`) is no failure.
pub(crate) fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|cause| Error::new(format!("Cannot write to standard output: {cause}"))),
    }
}

/// A standard error that cannot be written to is no reason to end.
pub(crate) fn complain(line: &dyn Display) {
    let _ = writeln!(io::stderr(), "vfpool: {line}");
}

/// The last of some failures, after the others were printed.
pub(crate) fn all(mut failures: Vec<Error>) -> Result<()> {
    let last = failures.pop();
    for error in failures {
        complain(&error);
    }
    last.map_or(Ok(()), Err)
}

/// Prints what was done to a guest, or says whom an error is about. A dry run has printed it already.
pub(crate) fn done(host: &Host, guest: &str, result: Result<String>) -> Result<()> {
    let line = result.map_err(|error| error.during(format_args!("guest '{guest}'")))?;
    if !host.is_dry() {
        // A name may hold anything; what is one line stays one.
        let _ = writeln!(io::stdout(), "{}", one_line(&line));
    }
    Ok(())
}

/// Without a terminal, nobody can be asked.
pub(crate) fn confirm(question: &str, is_forced: bool) -> Result<()> {
    if is_forced {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let why = "a running guest loses a device by this, and there is no terminal to ask";
        return Err(Error::new(why).remedy("Use --force to do it without asking"));
    }
    eprint!("{} [y/N] ", one_line(question));
    let mut answer = String::new();
    let asked = io::stdin().read_line(&mut answer);
    asked.map_err(|cause| Error::new(format!("Cannot read an answer: {cause}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Error::new("nothing was changed")) }
}
