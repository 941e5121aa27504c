//! Small files and links of the host: sysfs, procfs, our own records.

use model::error::{Error, Result};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The names in a folder; none if it does not exist.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(Error::io("list", folder, &cause)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|cause| Error::io("list", folder, &cause))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Changes whenever a rename replaces the file, as libvirt does with its definitions and we do with our leases. `None`:
/// there is none.
pub fn stamp(path: &Path) -> Option<String> {
    let data = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(format!("{}-{}-{}.{:09}", data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

/// The last part of a link's target, which in sysfs is the name of what it points to; `None` where there is no link.
pub fn link_name(path: &Path) -> Result<Option<String>> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(cause) if gone(&cause) => Ok(None),
        Err(cause) => Err(Error::io("read the link", path, &cause)),
    }
}

/// An attribute's text without the newline.
pub fn read(path: &Path) -> Result<String> {
    read_optional(path)?.ok_or_else(|| Error::io("read", path, &io::ErrorKind::NotFound.into()))
}

/// Like [`read`]; `None` where there is no such attribute, or the device has gone away.
pub fn read_optional(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(cause) if gone(&cause) => Ok(None),
        Err(cause) => Err(Error::io("read", path, &cause)),
    }
}

/// ENODEV is what an open attribute gives once its device has been removed.
pub(crate) fn gone(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::NotFound || cause.raw_os_error() == Some(nix::libc::ENODEV)
}

/// An attribute's number: hexadecimal with 0x, else decimal.
pub(crate) fn number<T: TryFrom<u32>>(path: &Path, text: &str) -> Result<T> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| Error::new(format!("Cannot read {}: '{text}' is not the number expected there", path.display())))
}

/// The number of what a link points to, as of a device's IOMMU group.
pub fn link_number(path: &Path) -> Result<Option<u32>> {
    match link_name(path)? {
        Some(name) => number(path, &name).map(Some),
        None => Ok(None),
    }
}

/// A device's attribute of one short line, in one read(2); `None` where there is no such attribute, or the device has
/// gone away.
pub(crate) fn attribute(path: &Path) -> Result<Option<String>> {
    let mut text = [0; 64];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut text));
    match read {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&text[..length]).trim_end().to_owned())),
        Err(cause) if gone(&cause) => Ok(None),
        Err(cause) => Err(Error::io("read", path, &cause)),
    }
}
