//! What the command prints, and what it asks.

use host::paths::Host;
use model::error::{Error, Result};
use model::text::one_line;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// A reader that has seen enough (`| head`) is no failure.
pub(crate) fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|cause| Error::new(format!("Cannot write to standard output: {cause}"))),
    }
}

/// A standard error that nobody reads is no reason to end.
pub(crate) fn complain(line: &dyn Display) {
    let _ = writeln!(io::stderr(), "vfpool: {line}");
}

/// The last of some failures, after the others were told.
pub(crate) fn all(mut failures: Vec<Error>) -> Result<()> {
    let last = failures.pop();
    for error in failures {
        complain(&error);
    }
    last.map_or(Ok(()), Err)
}

/// What was done; a dry run has told it already.
pub(crate) fn show(host: &Host, line: &str) {
    if !host.is_dry() {
        // A name may hold anything; what is one line stays one.
        let _ = writeln!(io::stdout(), "{}", one_line(line));
    }
}

/// Without a terminal there is nobody to ask.
pub(crate) fn confirm(question: &str, is_forced: bool) -> Result<()> {
    if is_forced {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Error::new("a running guest loses a device by this, and there is no terminal to ask; say --force"));
    }
    eprint!("{} [y/N] ", one_line(question));
    let mut answer = String::new();
    let asked = io::stdin().read_line(&mut answer);
    asked.map_err(|cause| Error::new(format!("Cannot read an answer: {cause}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Error::new("nothing was changed")) }
}
