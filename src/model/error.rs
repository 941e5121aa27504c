//! The one error of this crate: a line for the admin.
//!
//! libvirt shows a failing hook's stderr to the user who started the guest, so an error is a sentence that says what
//! could not be done, to which device or file, why, and what to do. It is made where the most is known about it.

use crate::text::one_line;
use std::path::Path;
use std::{fmt, io};

/// A failure, told in one line.
///
/// Boxed: a result of most functions here is one of these, and small ones make smaller and faster programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Text>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Text {
    reason: String,
    remedy: Option<String>,
}

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with this message.
    pub fn new(message: impl AsRef<str>) -> Self {
        Self(Box::new(Text { reason: one_line(message.as_ref()), remedy: None }))
    }

    /// "Cannot `verb` `path`: `cause`".
    pub fn io(verb: &str, path: &Path, cause: &io::Error) -> Self {
        Self::new(format!("Cannot {verb} {}: {cause}", path.display()))
    }

    /// The same error with what to do about it, a sentence of its own.
    #[must_use]
    pub fn remedy(mut self, remedy: impl AsRef<str>) -> Self {
        self.0.remedy = Some(one_line(remedy.as_ref()));
        self
    }

    /// The same error with what was being done put before it.
    #[must_use]
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.0.reason = one_line(&format!("{what}: {}", self.0.reason));
        self
    }

    /// The same error with what else is so put after it.
    #[must_use]
    pub fn but(mut self, what: impl fmt::Display) -> Self {
        self.0.reason = one_line(&format!("{}; {what}", self.0.reason));
        self
    }

    /// The same error, after what could not be undone when it came up.
    #[must_use]
    pub fn but_not_undone(&self, undo: &Self) -> Self {
        Self::new(format!("{self}. Not all could be undone: {undo}"))
    }

    /// What to do about it, if there is anything to do.
    pub fn what_to_do(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// What went wrong and why, without what to do about it.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.reason)?;
        self.0.remedy.iter().try_for_each(|remedy| write!(f, ". {remedy}"))
    }
}

impl std::error::Error for Error {}
