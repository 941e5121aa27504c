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

/// A running guest's XML as libvirt keeps it, inside of its own status. `None`: it does not run.
pub fn live(host: &Host, guest: &str) -> Option<Vec<u8>> {
    let status = fs::read_to_string(host.path("run/libvirt/qemu").join(format!("{guest}.xml"))).ok()?;
    let end = "</domain>";
    let range = status.find("<domain ")?..status.rfind(end)? + end.len();
    status.get(range).map(|xml| xml.as_bytes().to_owned())
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
    if requests.is_empty() {
        return virsh.run(&["metadata", uuid, "--uri", NAMESPACE, "--config", "--remove"], "");
    }
    let text = request_text(requests);
    virsh.run(&["metadata", uuid, "--uri", NAMESPACE, "--key", "vfpool", "--config", "--set", &text], "")
}

/// Has libvirt attach, detach or update one device of a guest's definition: this element. `command` is virsh's.
///
/// # Errors
/// What virsh said.
pub fn edit_device(virsh: &Virsh, command: &str, uuid: &str, element: &str) -> Result<()> {
    virsh.run(&[command, uuid, "/dev/stdin", "--config"], element)
}
