//! The persistent definitions of the guests, read where libvirt keeps them: that costs no call, and tells by a file's
//! stamp whether anything changed. Only libvirt writes them.

use crate::domain::{NAMESPACE, Request, request_text};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::virsh::Virsh;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    let files = crate::sysfs::names(&host.definitions())?;
    let mut guests: Vec<String> = files.iter().filter_map(|file| Some(file.strip_suffix(".xml")?.to_owned())).collect();
    guests.sort_unstable();
    Ok(guests)
}

/// Changes whenever libvirt writes the file, which it does by a rename. `None`: there is none.
pub fn stamp(path: &Path) -> Option<String> {
    let data = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(format!("{}-{}-{}.{:09}", data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

/// Has libvirt replace a guest's requests, and nothing else of the definition.
///
/// # Errors
/// What virsh said.
pub fn set_requests(virsh: &Virsh, uuid: &str, requests: &[Request]) -> Result<()> {
    let uri = NAMESPACE;
    let set = if requests.is_empty() {
        format!("metadata {uuid} --uri {uri} --config --remove")
    } else {
        // Between single quotes virsh takes everything as it is.
        let text = request_text(requests).replace('\'', "&apos;");
        format!("metadata {uuid} --uri {uri} --key vfpool --config --set '{text}'")
    };
    virsh.run(&[&set], "")
}
