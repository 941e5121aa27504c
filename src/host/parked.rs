//! Which stopped guest is parked at which device, and what is known of each definition: the reconciler's memory, so
//! that it reads only what changed.
//!
//! `/run/vfpool/parked`, written by the reconciler alone, a whole file at a time. Losing it costs one full look.

use crate::paths::Host;
use model::address::PciAddress;
use model::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::OpenOptionsExt;
use std::{fs, io};

/// What the reconciler knows of the guests' definitions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "parked")]
pub struct Parked {
    /// The guests, in the order of their names.
    #[serde(rename = "guest", default)]
    pub guests: Vec<ParkedGuest>,
}

/// A guest's definition as it was when it was last read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedGuest {
    /// The guest's name.
    #[serde(rename = "@name")]
    pub name: String,
    /// Tells whether the file is still the same.
    #[serde(rename = "@stamp")]
    pub stamp: String,
    /// The libvirtd (pid and start) that says there is no such guest: only a file is kept there.
    #[serde(rename = "@unknown-to", skip_serializing_if = "Option::is_none", default)]
    pub unknown_to: Option<String>,
    /// When a start of it was refused, in seconds since boot: someone is waiting for it.
    #[serde(rename = "@refused", skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<u64>,
    /// Its pooled devices.
    #[serde(rename = "device", default)]
    pub devices: Vec<PooledDevice>,
    /// Where else on the host it has devices: not for any of the pooled ones.
    #[serde(rename = "other", default)]
    pub others: Vec<OtherDevice>,
}

/// A device that a guest requests from a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PooledDevice {
    /// The pool it is requested from.
    #[serde(rename = "@pool")]
    pub pool: String,
    /// Where the guest has it.
    #[serde(rename = "@guest-address")]
    pub guest_address: PciAddress,
    /// The device that its definition points at. None: the definition has lost it in the midst of a move.
    #[serde(rename = "@address", skip_serializing_if = "Option::is_none", default)]
    pub address: Option<PciAddress>,
    /// Whether the request still holds what it held for a move.
    #[serde(rename = "@moving", default)]
    pub moving: bool,
}

/// A device that is not requested from a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherDevice {
    /// Where it is.
    #[serde(rename = "@address")]
    pub address: PciAddress,
}

impl Parked {
    /// What was written last; nothing if that cannot be read.
    pub fn load(host: &Host) -> Self {
        let text = fs::read_to_string(host.parked()).unwrap_or_default();
        quick_xml::de::from_str(&text).unwrap_or_default()
    }

    /// Writes it all at once.
    pub fn save(&self, host: &Host) -> Result<()> {
        if host.is_dry() {
            return Ok(());
        }
        let path = host.parked();
        let text = quick_xml::se::to_string(self)
            .map_err(|cause| Error::new(format!("Cannot write {}: {cause}", path.display())))?;
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            io::Write::write_all(&mut file, text.as_bytes())?;
            fs::rename(&new, &path)
        };
        write().map_err(|cause| Error::io("write", &path, &cause))
    }

    /// What is known of a guest.
    pub fn guest(&self, name: &str) -> Option<&ParkedGuest> {
        self.place(name).ok().map(|place| &self.guests[place])
    }

    /// Replaces what is known of a guest.
    pub fn put(&mut self, name: &str, guest: Option<ParkedGuest>) {
        let place = self.place(name);
        let (Ok(at) | Err(at)) = place;
        self.guests.splice(at..at + usize::from(place.is_ok()), guest);
    }

    /// Whether libvirt says that it knows no such guest, though there is a file of that name.
    pub fn is_unknown(&self, guest: &str) -> bool {
        self.guest(guest).is_some_and(|guest| guest.unknown_to.is_some())
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.guests.binary_search_by(|guest| guest.name.as_str().cmp(name))
    }

    /// Whether another guest's definition points at this device.
    pub fn by_other_than(&self, guest: &str, address: PciAddress) -> bool {
        let mut others = self.guests.iter().filter(|other| other.name != guest && other.unknown_to.is_none());
        others.any(|other| other.devices.iter().any(|place| place.address == Some(address)))
    }
}
