//! The guest's XML: which PCI devices it has, which of them it asks a pool for, and where in the text their addresses
//! stand.
//!
//! Read as a stream of events, never as a document: what is not ours may be anything that any libvirt writes, and what
//! is written back is the same text with other source addresses, byte for byte. Source: libvirt
//! `docs/formatdomain.rst`, "Host device assignment", "NVMe disks", "General metadata".

mod edit;
mod networks;
mod parse;

use crate::address::PciAddress;
use crate::error::{Error, Result};
use edit::Source;
pub use edit::request_text;
pub use networks::NetworkInterface;
pub use parse::libvirt_number;
use std::io::Read;
use std::ops::Range;

/// The largest definition that is read, in bytes. libvirt's own remote protocol passes strings of at most 4 MiB.
pub const LARGEST: u64 = 16 << 20;

/// The XML namespace of a guest's request, which libvirt keeps with the guest wherever it goes:
///
/// ```xml
/// <metadata>
///   <vfpool:request xmlns:vfpool="urn:vfpool:domain:1">
///     <device pool="passthrough" guest-address="0000:00:05.0"/>
///   </vfpool:request>
/// </metadata>
/// ```
///
/// The device that carries a request out is the one at that address in the guest. While it is moved to another device
/// of the pool, the request holds the text of its element, so that it cannot get lost between libvirt's two steps.
pub const NAMESPACE: &str = "urn:vfpool:domain:1";

/// A PCI device that a guest has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Where the device is on the host.
    pub address: PciAddress,
    /// Whether libvirt itself takes it from its host driver and reattaches it.
    pub managed: bool,
    /// The pool that the guest asks for this device.
    pub pool: Option<String>,
}

/// An element of the guest's XML that stands for a PCI device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostdev {
    /// Where the device is on the host.
    pub address: PciAddress,
    /// Whether libvirt itself takes it from its host driver and reattaches it.
    pub managed: bool,
    /// What kind of element it is.
    pub kind: Kind,
    /// Where the guest sees it; libvirt gives every device such an address when a guest is defined.
    pub guest_address: Option<PciAddress>,
    /// The element, in bytes of the XML.
    element: Range<usize>,
    source: Source,
    /// Its `<rom>`, if it has one: right after the tag's name, and the value of its `bar`.
    rom: Option<(usize, Option<Range<usize>>)>,
}

/// The kinds of elements that stand for a PCI device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `<hostdev>`
    Hostdev,
    /// `<interface type='hostdev'>`, for which libvirt sets MAC address and VLAN.
    Interface,
    /// `<disk type='nvme'>`; never pooled.
    Disk,
}

/// A guest's request for one device of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The pool's name.
    pub pool: String,
    /// Where the guest has the device.
    pub guest_address: PciAddress,
    /// The device's element, while it is being moved.
    pub moving: Option<String>,
}

/// A guest's XML, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    xml: Vec<u8>,
    /// The guest's name.
    pub name: String,
    /// Its UUID, which virsh takes for nothing else, as it may a name.
    pub uuid: String,
    /// Its PCI devices in the order of the XML.
    pub devices: Vec<Hostdev>,
    /// What it asks pools for.
    pub requests: Vec<Request>,
}

/// Reads a definition from a stream, which libvirt ends.
pub fn read(stream: impl Read) -> Result<Vec<u8>> {
    let mut xml = Vec::new();
    stream
        .take(LARGEST + 1)
        .read_to_end(&mut xml)
        .map_err(|cause| Error::new(format!("Cannot read the domain XML from standard input: {cause}")))?;
    if xml.len() as u64 > LARGEST {
        return Err(Error::new(format!("The domain XML is larger than {} MiB; no libvirt writes that", LARGEST >> 20)));
    }
    Ok(xml)
}

impl Domain {
    /// The whole text, as it was read.
    pub fn xml(&self) -> &[u8] {
        &self.xml
    }

    /// The PCI devices, each once.
    pub fn assigned(&self) -> Vec<Assigned> {
        self.assigned_with(&[])
    }

    /// The PCI devices, each once, with other source addresses for these.
    pub fn assigned_with(&self, changes: &[(&Hostdev, PciAddress)]) -> Vec<Assigned> {
        let mut assigned: Vec<Assigned> = Vec::new();
        for device in &self.devices {
            // Two may have the same address now.
            let change = changes.iter().find(|(changed, _)| std::ptr::eq(*changed, device));
            let address = change.map_or(device.address, |(_, address)| *address);
            if !assigned.iter().any(|other| other.address == address) {
                let pool = self.request_for(device).map(|request| request.pool.clone());
                assigned.push(Assigned { address, managed: device.managed, pool });
            }
        }
        assigned
    }

    /// The request that a device carries out.
    pub fn request_for(&self, device: &Hostdev) -> Option<&Request> {
        let is_same =
            |request: &&Request| device.kind != Kind::Disk && device.guest_address == Some(request.guest_address);
        self.requests.iter().find(is_same)
    }

    /// The device that carries out a request. None: it was removed, or is just being moved.
    pub fn device_for(&self, request: &Request) -> Option<&Hostdev> {
        let mut devices = self.devices.iter();
        devices.find(|device| device.kind != Kind::Disk && device.guest_address == Some(request.guest_address))
    }

    /// libvirt finds a hostdev by its source address alone, and takes the first that has it.
    ///
    /// # Errors
    /// Another device has the same one.
    pub fn expect_only(&self, device: &Hostdev) -> Result<()> {
        let address = device.address;
        if device.kind == Kind::Interface || self.devices.iter().filter(|other| other.address == address).count() < 2 {
            return Ok(());
        }
        Err(Error::new(format!("its definition has {address} twice, and libvirt does not tell the two apart"))
            .remedy("Give one of them another address with `virsh edit`"))
    }
}

#[cfg(test)]
mod tests;
