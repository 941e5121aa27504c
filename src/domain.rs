//! The guest's XML, as libvirt hands it to the hook: which PCI devices it has.
//!
//! Read as a stream of events, never as a document: what is not ours may be anything that any libvirt writes.
//! Source: libvirt `docs/formatdomain.rst`, "Host device assignment", "NVMe disks".

use crate::address::{PciAddress, libvirt_number};
use crate::error::{Error, Result};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use std::io::Read;

/// The largest definition that is read, in bytes. libvirt's own remote protocol passes strings of at most 4 MiB.
pub const LARGEST: u64 = 16 << 20;

/// A PCI device that a guest has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Where the device is on the host.
    pub address: PciAddress,
    /// Whether libvirt itself takes it from its host driver and gives it back.
    pub managed: bool,
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

/// The PCI devices of a domain in the order of its XML, each once: `<hostdev type='pci'>`, `<interface type='hostdev'>`
/// and `<disk type='nvme'>` (its backing files too). USB, SCSI, mdev and vHBA devices are none.
pub fn assigned_devices(xml: &[u8]) -> Result<Vec<Assigned>> {
    if xml.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::new("The domain XML on standard input is empty; libvirt's hook gets the guest's XML there"));
    }
    let mut walk = Walk::default();
    let mut reader = Reader::from_reader(xml);
    loop {
        let event = reader.read_event().map_err(|cause| bad_xml(xml, reader.error_position(), &cause))?;
        let position = reader.buffer_position();
        let wrong = |cause: Error| bad_xml(xml, position, &cause);
        match event {
            Event::Start(element) => walk.enter(&element).map_err(wrong)?,
            Event::Empty(element) => {
                walk.enter(&element).map_err(wrong)?;
                walk.leave();
            }
            Event::End(_) => walk.leave(),
            Event::Eof => break,
            _ => {}
        }
    }
    if !walk.seen_domain {
        return Err(Error::new("The XML on standard input is no libvirt domain: it has no <domain> element"));
    }
    if let Some(open) = walk.path.last() {
        let open = String::from_utf8_lossy(open);
        return Err(Error::new(format!("The domain XML on standard input is cut off: <{open}> is not closed")));
    }
    Ok(walk.found)
}

fn bad_xml(xml: &[u8], position: u64, cause: &dyn std::fmt::Display) -> Error {
    let before = &xml[..usize::try_from(position).unwrap_or(xml.len()).min(xml.len())];
    let line = before.split(|byte| *byte == b'\n').count();
    Error::new(format!("The domain XML on standard input is wrong at line {line}: {cause}"))
}

/// Where the reader is, and what it has found.
#[derive(Default)]
struct Walk {
    path: Vec<Vec<u8>>,
    seen_domain: bool,
    /// Whether the device we are in is a PCI device, by its own attributes.
    is_pci: bool,
    /// Whether the innermost open element that can say so is managed.
    managed: bool,
    found: Vec<Assigned>,
}

/// Depth of a device's element in `/domain/devices/hostdev`.
const DEVICE: usize = 3;

impl Walk {
    fn enter(&mut self, element: &BytesStart) -> Result<()> {
        if self.path.is_empty() {
            if element.name().as_ref() != b"domain" {
                let name = String::from_utf8_lossy(element.name().as_ref()).into_owned();
                return Err(Error::new(format!("it is no libvirt domain but a <{name}>")));
            }
            self.seen_domain = true;
        }
        self.path.push(element.name().as_ref().to_vec());
        if self.path.len() < DEVICE || self.path[1] != b"devices" {
            return Ok(());
        }
        let kind = self.path[DEVICE - 1].as_slice();
        let name = element.name();
        match (kind, name.as_ref()) {
            (b"hostdev", b"hostdev") if self.path.len() == DEVICE => {
                self.is_pci = has(element, "type", "pci")? && !has(element, "mode", "capabilities")?;
                self.managed = has(element, "managed", "yes")?;
            }
            (b"interface", b"interface") if self.path.len() == DEVICE => {
                self.is_pci = has(element, "type", "hostdev")?;
                self.managed = has(element, "managed", "yes")?;
            }
            (b"disk", b"source") => {
                self.is_pci = has(element, "type", "pci")?;
                self.managed = has(element, "managed", "yes")?;
            }
            (b"hostdev" | b"interface", b"address") if self.path.len() == DEVICE + 2 => self.source_address(element)?,
            (b"disk", b"address") => self.source_address(element)?,
            _ => {}
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.path.pop();
        if self.path.len() < DEVICE {
            self.is_pci = false;
        }
    }

    /// The address inside `<source>` is the host's; the one beside it is the guest's.
    fn source_address(&mut self, element: &BytesStart) -> Result<()> {
        let in_source = self.path[self.path.len() - 2] == b"source";
        if !self.is_pci || !in_source {
            return Ok(());
        }
        let number = |name| match attribute(element, name)? {
            Some(text) => libvirt_number(&text)
                .ok_or_else(|| Error::new(format!("{name}='{text}' in a device's <source><address> is no number"))),
            None => Ok(0),
        };
        let (domain, bus, slot, function) = (number("domain")?, number("bus")?, number("slot")?, number("function")?);
        let address = PciAddress::from_numbers(domain, bus, slot, function).ok_or_else(|| {
            let text = format!("domain {domain:#x} bus {bus:#x} slot {slot:#x} function {function:#x}");
            Error::new(format!("{text} in a device's <source><address> is no PCI address"))
        })?;
        if !self.found.iter().any(|device| device.address == address) {
            self.found.push(Assigned { address, managed: self.managed });
        }
        Ok(())
    }
}

fn attribute(element: &BytesStart, name: &str) -> Result<Option<String>> {
    let wrong = |cause: &dyn std::fmt::Display| Error::new(format!("attribute {name}: {cause}"));
    let Some(attribute) = element.try_get_attribute(name).map_err(|cause| wrong(&cause))? else { return Ok(None) };
    match std::str::from_utf8(&attribute.value) {
        // None of the values looked at may hold an entity.
        Ok(text) => Ok(Some(text.to_owned())),
        Err(cause) => Err(wrong(&cause)),
    }
}

fn has(element: &BytesStart, name: &str, value: &str) -> Result<bool> {
    Ok(attribute(element, name)?.as_deref() == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(devices: &str) -> Vec<String> {
        let xml = format!("<domain type='kvm'>\n<name>g</name><devices>{devices}</devices></domain>");
        let found = assigned_devices(xml.as_bytes()).unwrap();
        found.iter().map(|device| format!("{} {}", device.address, device.managed)).collect()
    }

    const SOURCE: &str = "<source><address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x1'/></source>";

    #[test]
    fn finds_each_kind_of_pci_device() {
        let guest_address = "<address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>";
        for (device, managed) in [
            (format!("<hostdev mode='subsystem' type='pci' managed='yes'>{SOURCE}{guest_address}</hostdev>"), true),
            (format!("<hostdev mode='subsystem' type='pci' managed='no'>{SOURCE}</hostdev>"), false),
            (format!("<hostdev mode='subsystem' type='pci'><driver name='vfio'/>{SOURCE}</hostdev>"), false),
            (
                format!(
                    "<interface type='hostdev' managed='yes'><mac address='52:54:00:6d:90:02'/>{SOURCE}</interface>"
                ),
                true,
            ),
            (
                format!(
                    "<disk type='nvme' device='disk'>{}<target dev='vde'/></disk>",
                    SOURCE.replace("<source>", "<source type='pci' managed='yes' namespace='1'>")
                ),
                true,
            ),
            (
                format!(
                    "<disk type='file'><source file='/x'/><backingStore type='nvme'>{}</backingStore></disk>",
                    SOURCE.replace("<source>", "<source type='pci' managed='no' namespace='1'>")
                ),
                false,
            ),
        ] {
            assert_eq!(found(&device), [format!("0000:02:00.1 {managed}")], "{device}");
        }
    }

    #[test]
    fn leaves_everything_else_alone() {
        for device in [
            "<hostdev mode='subsystem' type='usb'><source><address bus='2' device='0'/></source></hostdev>",
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/></source></hostdev>",
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>",
            "<interface type='network'><source network='default'/><address type='pci' bus='1'/></interface>",
            "<disk type='block'><source dev='/dev/sda'/><address type='pci' bus='2'/></disk>",
            "<controller type='pci'><source><address type='pci' bus='2'/></source></controller>",
        ] {
            assert_eq!(found(device), [""; 0], "{device}");
        }
    }

    #[test]
    fn a_device_in_metadata_is_none_of_ours() {
        let xml = format!(
            "<domain><metadata><x><domain><devices><hostdev type='pci'>{SOURCE}</hostdev></devices></domain></x></metadata></domain>"
        );
        assert_eq!(assigned_devices(xml.as_bytes()).unwrap(), []);
    }

    #[test]
    fn numbers_are_read_as_libvirt_reads_them() {
        let device = "<hostdev type='pci'><source><address domain='65536' bus='0XfF' slot='010' function='7'/></source></hostdev>";
        assert_eq!(found(device), ["10000:ff:08.7 false"]);
    }

    #[test]
    fn bad_xml_is_told_apart() {
        for (xml, message) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("<network><name>x</name></network>", "wrong at line 1: it is no libvirt domain but a <network>"),
            ("hello", "no libvirt domain"),
            ("<domain>\n<devices>", "cut off: <devices> is not closed"),
            ("<domain>\n<devices><hostdev type='p", "wrong at line 2"),
            ("<domain>\n\n</devices>", "wrong at line 3"),
            (
                "<domain><devices><hostdev type='pci'><source><address bus='x'/></source></hostdev></devices></domain>",
                "bus='x'",
            ),
            (
                "<domain><devices><hostdev type='pci'><source><address bus='0x100'/></source></hostdev></devices></domain>",
                "no PCI address",
            ),
        ] {
            let error = assigned_devices(xml.as_bytes()).expect_err(xml).to_string();
            assert!(error.contains(message), "{xml}: {error}");
        }
    }

    #[test]
    fn gives_up_on_endless_xml() {
        assert!(read(std::io::repeat(b'x')).unwrap_err().to_string().contains("larger than 16 MiB"));
    }
}
