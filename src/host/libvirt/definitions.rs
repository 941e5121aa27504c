//! The persistent definitions of the guests, read where libvirt keeps them: that costs no call, and tells by a file's
//! stamp whether anything changed. Only libvirt writes them.

use crate::files;
use crate::paths::Host;
use model::error::{Error, Result};
use std::path::PathBuf;
use std::{fs, io};

/// Where a guest's definition is.
pub fn path(host: &Host, guest: &str) -> PathBuf {
    host.definitions().join(format!("{guest}.xml"))
}

/// A guest's definition as it is now.
///
/// # Errors
/// Also if there is no such guest.
pub fn read(host: &Host, guest: &str) -> Result<Vec<u8>> {
    let path = path(host, guest);
    match fs::read(&path) {
        // A name is no path.
        _ if guest.contains('/') || guest.is_empty() => Err(unknown(guest)),
        Ok(xml) => Ok(xml),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(unknown(guest)),
        Err(cause) => Err(Error::io("read", &path, &cause)),
    }
}

fn unknown(guest: &str) -> Error {
    Error::new(format!("no guest '{guest}' is defined on this host; see `virsh list --all`"))
}

/// The guests that are defined here, sorted.
pub fn names(host: &Host) -> Result<Vec<String>> {
    let files = files::names(&host.definitions())?;
    let mut guests: Vec<String> = files.iter().filter_map(|file| Some(file.strip_suffix(".xml")?.to_owned())).collect();
    guests.sort_unstable();
    Ok(guests)
}
