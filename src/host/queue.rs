//! Work that a hook or a udev helper leaves to a systemd unit, because it must not do it itself.
//!
//! An entry is an empty file in `/run/vfpool/queue/KIND`. The unit's path watches the folder for being not empty: that is
//! a level and no edge, so that no entry is lost, whatever the unit is doing when it comes.
//! Source: systemd.path(5), `DirectoryNotEmpty=`.

use crate::files;
use crate::paths::{Host, file_name, guest_name};
use model::error::{Error, Result};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// A PF appeared: its VFs are to be made.
    Setup,
    /// A lease or a definition changed: guests are to be parked.
    Reconcile,
}

impl Queue {
    fn folder(self, host: &Host) -> PathBuf {
        host.state().join(match self {
            Self::Setup => "queue/setup",
            Self::Reconcile => "queue/reconcile",
        })
    }

    /// Adds an entry; the same one again is one entry.
    pub fn put(self, host: &Host, entry: &str) -> Result<()> {
        if host.is_dry() {
            return Ok(());
        }
        let folder = self.folder(host);
        let path = folder.join(file_name(entry));
        let open = || File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let made = open().or_else(|cause| match cause.kind() {
            io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
                open()
            }
            _ => Err(cause),
        });
        made.map(drop).map_err(|cause| Error::io("write", &path, &cause))
    }

    /// Takes one entry out, if it is there still.
    pub fn remove(self, host: &Host, entry: &str) {
        if !host.is_dry() {
            let _ = fs::remove_file(self.folder(host).join(file_name(entry)));
        }
    }

    /// Whether nothing is to be done.
    pub fn is_empty(self, host: &Host) -> Result<bool> {
        Ok(files::names(&self.folder(host))?.is_empty())
    }

    /// Takes all entries out. Whatever is put in from now on is found by the next call.
    pub fn take(self, host: &Host) -> Result<Vec<String>> {
        let folder = self.folder(host);
        let mut entries = Vec::new();
        for file in files::names(&folder)? {
            match if host.is_dry() { Ok(()) } else { fs::remove_file(folder.join(&file)) } {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &folder.join(&file), &cause));
                }
                _ => entries.extend(guest_name(&file)),
            }
        }
        Ok(entries)
    }
}
