//! The one error of this crate: a line for the admin.
//!
//! libvirt shows a failing hook's stderr to whoever started the guest, so an error is a sentence that says what could
//! not be done, to which device or file, why, and what to do. It is made where the most is known about it.

use std::fmt;
use std::io;
use std::path::Path;

/// A failure, told in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with this message. Control characters (a guest's name may hold a newline) are escaped, so that it
    /// stays one line in any log.
    pub fn new(message: impl AsRef<str>) -> Self {
        let mut line = String::with_capacity(message.as_ref().len());
        for character in message.as_ref().chars() {
            if character.is_control() {
                line.extend(character.escape_default());
            } else {
                line.push(character);
            }
        }
        Self(line)
    }

    /// "Cannot `verb` `path`: `cause`".
    pub fn io(verb: &str, path: &Path, cause: &io::Error) -> Self {
        Self::new(format!("Cannot {verb} {}: {cause}", path.display()))
    }

    /// The same error with what was being done put before it.
    #[must_use]
    pub fn during(self, what: impl fmt::Display) -> Self {
        Self::new(format!("{what}: {}", self.0))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_on_one_line() {
        assert_eq!(Error::new("guest 'a\nb'").to_string(), "guest 'a\\nb'");
    }
}
