//! Work that a hook or a udev helper leaves to a systemd unit, because it must not do it itself.
//!
//! An entry is an empty file in `/run/vfpool/queue/KIND` whose name is the entry's text. A text that is too long for a
//! file name (a guest and a pool may have long ones) is the file's content instead. The unit's path watches the folder
//! for being not empty: that is level-triggered, not edge-triggered, so no entry is lost, whatever the unit is doing
//! when it comes.
//! Source: systemd.path(5), `DirectoryNotEmpty=`.

use crate::files;
use crate::paths::{Host, file_name, guest_name};
use model::address::PciAddress;
use model::error::{Error, Result};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Who is to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// `vfpool setup --queued`, which creates VFs.
    Setup,
    /// `vfpool reconcile --queued`, which parks guests.
    Reconcile,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// This PF appeared: its VFs are to be created.
    Pf(PciAddress),
    /// VFs were created.
    Setup,
    /// Definitions of guests changed.
    Definitions,
    /// A lease or the definition of this guest changed.
    Guest(String),
    /// libvirt was about to call `release` for this guest, which had a lease.
    Stopped(String),
    /// A start of this guest was refused, as the device that its definition points at was in use.
    Refused(String),
    /// This guest is to be started again after a start that was refused. It stays in the queue until then: a start of
    /// the guest by another program removes it.
    Restart(String),
    /// A device is being attached to a guest's definition, and its request has still to be written there.
    Attached {
        /// The device on the host.
        address: PciAddress,
        /// The guest.
        guest: String,
        /// The pool that the request is to name.
        pool: String,
    },
}

/// The longest file name of Linux, in bytes (`NAME_MAX`).
const LONGEST_NAME: usize = 255;

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pf(address) => write!(f, "{address}"),
            Self::Setup => f.write_str("setup"),
            Self::Definitions => f.write_str("definitions"),
            Self::Guest(guest) => write!(f, "guest {guest}"),
            Self::Stopped(guest) => write!(f, "stopped {guest}"),
            Self::Refused(guest) => write!(f, "refused {guest}"),
            Self::Restart(guest) => write!(f, "restart {guest}"),
            // No guest has a slash in its name.
            Self::Attached { address, guest, pool } => write!(f, "attached {address} {guest}/{pool}"),
        }
    }
}

/// Not the text of an entry.
#[derive(Debug)]
pub struct NoEntry;

impl FromStr for Entry {
    type Err = NoEntry;

    fn from_str(text: &str) -> Result<Self, NoEntry> {
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        Ok(match (kind, rest) {
            ("setup", "") => Self::Setup,
            ("definitions", "") => Self::Definitions,
            ("guest", guest) => Self::Guest(guest.to_owned()),
            ("stopped", guest) => Self::Stopped(guest.to_owned()),
            ("refused", guest) => Self::Refused(guest.to_owned()),
            ("restart", guest) => Self::Restart(guest.to_owned()),
            ("attached", rest) => {
                let (address, names) = rest.split_once(' ').ok_or(NoEntry)?;
                let (guest, pool) = names.split_once('/').ok_or(NoEntry)?;
                let address = address.parse().map_err(|_| NoEntry)?;
                Self::Attached { address, guest: guest.to_owned(), pool: pool.to_owned() }
            }
            _ => Self::Pf(text.parse().map_err(|_| NoEntry)?),
        })
    }
}

impl Entry {
    fn queue(&self) -> Queue {
        if matches!(self, Self::Pf(_)) { Queue::Setup } else { Queue::Reconcile }
    }

    /// Where it is, and what has to be in the file.
    fn file(&self, host: &Host) -> (PathBuf, String) {
        let text = self.to_string();
        let name = file_name(&text);
        let folder = self.queue().folder(host);
        if name.len() <= LONGEST_NAME {
            return (folder.join(name), String::new());
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        (folder.join(format!("long {:016x}", hasher.finish())), text)
    }

    /// Adds it to its queue; the same entry again is one entry.
    pub fn put(&self, host: &Host) -> Result<()> {
        if host.is_dry() {
            return Ok(());
        }
        let (path, text) = self.file(host);
        let put = || if text.is_empty() { touch(&path) } else { write(host, &path, &text) };
        let done = put().or_else(|cause| match cause.kind() {
            io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(self.queue().folder(host))?;
                put()
            }
            _ => Err(cause),
        });
        done.map_err(|cause| Error::io("write", &path, &cause))
    }

    /// Removes it from its queue; whether it was there.
    pub fn remove(&self, host: &Host) -> bool {
        let path = self.file(host).0;
        if host.is_dry() { path.exists() } else { fs::remove_file(path).is_ok() }
    }
}

fn touch(path: &Path) -> io::Result<()> {
    File::options().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

/// The file appears with its content.
fn write(host: &Host, path: &Path, text: &str) -> io::Result<()> {
    let new = host.state().join(format!("queue/new.{}", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| _ = fs::remove_file(&new))
}

impl Queue {
    fn folder(self, host: &Host) -> PathBuf {
        host.state().join(match self {
            Self::Setup => "queue/setup",
            Self::Reconcile => "queue/reconcile",
        })
    }

    /// Whether nothing is to be done.
    pub fn is_empty(self, host: &Host) -> Result<bool> {
        Ok(files::names(&self.folder(host))?.is_empty())
    }

    /// Takes all entries out, each once, but for [`Entry::Restart`], which the caller removes. What is put in from now
    /// on is found by the next call. Whatever else is in the folder goes too: it would have systemd start the unit
    /// again and again.
    pub fn take(self, host: &Host) -> Result<BTreeSet<Entry>> {
        let folder = self.folder(host);
        let mut entries = BTreeSet::new();
        for name in files::names(&folder)? {
            let path = folder.join(&name);
            let content = fs::read_to_string(&path).unwrap_or_default();
            let text = if content.is_empty() { guest_name(&name) } else { Some(content) };
            let entry = text.and_then(|text| text.parse::<Entry>().ok());
            let stays = host.is_dry() || matches!(entry, Some(Entry::Restart(_)));
            match if stays { Ok(()) } else { remove(&path) } {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, &cause));
                }
                _ => {}
            }
            entries.extend(entry);
        }
        Ok(entries)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let is_folder = fs::symlink_metadata(path)?.is_dir();
    if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let address: PciAddress = "0000:01:10.1".parse().unwrap();
        let attached = |guest: &str, pool: &str| Entry::Attached { address, guest: guest.into(), pool: pool.into() };
        vec![
            Entry::Pf(address),
            Entry::Setup,
            Entry::Definitions,
            Entry::Guest("web 01".into()),
            Entry::Guest("g".repeat(250)),
            Entry::Stopped("web 01".into()),
            Entry::Refused("%".repeat(86)),
            Entry::Restart("a\nb".into()),
            attached("web", "net"),
            attached("my guest", "a/b c"),
            attached(&"g".repeat(180), &"p".repeat(60)),
            attached(&"g".repeat(180), &"q".repeat(60)),
        ]
    }

    #[test]
    fn an_entry_comes_back_from_its_text() {
        for entry in entries() {
            assert_eq!(entry.to_string().parse::<Entry>().unwrap(), entry);
        }
        for text in ["", "x", "attached", "attached 0000:01:10.1", "attached x web/net", "setup now"] {
            assert!(text.parse::<Entry>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_put_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        for entry in entries().iter().chain(&entries()) {
            entry.put(&host).unwrap();
        }
        // Made by systemd's `touch`, and by mistake.
        fs::create_dir_all(root.path().join("run/vfpool/queue/reconcile/a folder/b")).unwrap();
        fs::write(root.path().join("run/vfpool/queue/reconcile/no entry"), "").unwrap();
        let mut taken = Queue::Setup.take(&host).unwrap();
        assert_eq!(taken.len(), 1);
        taken.append(&mut Queue::Reconcile.take(&host).unwrap());
        assert_eq!(taken, entries().into_iter().collect());
        let restart = Entry::Restart("a\nb".into());
        assert_eq!(Queue::Reconcile.take(&host).unwrap(), [restart.clone()].into(), "until its guest is started");
        assert!(restart.remove(&host) && !restart.remove(&host));
        assert!(Queue::Reconcile.is_empty(&host).unwrap() && Queue::Setup.is_empty(&host).unwrap());
        for entry in entries() {
            entry.put(&host).unwrap();
            entry.remove(&host);
        }
        assert!(Queue::Reconcile.is_empty(&host).unwrap() && Queue::Setup.is_empty(&host).unwrap());
    }
}
