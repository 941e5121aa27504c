//! From the text of a guest's XML to what it says.

use super::edit::{FIELDS, Source};
use super::{Domain, Hostdev, Kind, NAMESPACE, Request};
use crate::address::PciAddress;
use crate::error::{Error, Result};
use quick_xml::NsReader;
use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, ResolveResult};
use std::borrow::Cow;
use std::ops::Range;

impl Domain {
    /// Understands a domain's XML: `<hostdev type='pci'>`, `<interface type='hostdev'>` and `<disk type='nvme'>` (its
    /// backing files too), and our requests. USB, SCSI, mdev and vHBA devices are none of ours.
    pub fn parse(xml: &[u8]) -> Result<Self> {
        if xml.iter().all(u8::is_ascii_whitespace) {
            return Err(Error::new("The domain XML is empty; libvirt's hook gets the guest's XML on standard input"));
        }
        // A byte order mark, which the reader skips without counting it.
        let xml = xml.strip_prefix(b"\xef\xbb\xbf").unwrap_or(xml);
        let mut walk = Walk { xml, ..Walk::default() };
        let mut reader = NsReader::from_reader(xml);
        loop {
            let start = offset(reader.buffer_position());
            let event = reader.read_event().map_err(|cause| bad_xml(xml, reader.error_position(), &cause))?;
            let position = reader.buffer_position();
            let wrong = |cause: Error| bad_xml(xml, position, &cause);
            let end = offset(position);
            match &event {
                Event::Start(element) | Event::Empty(element) => {
                    let (namespace, _) = reader.resolver().resolve_element(element.name());
                    let is_ours = namespace == ResolveResult::Bound(Namespace(NAMESPACE.as_bytes()));
                    walk.enter(element, is_ours, &(start..end)).map_err(wrong)?;
                    if matches!(event, Event::Empty(_)) {
                        walk.leave(end..end);
                    }
                }
                Event::End(_) => walk.leave(start..end),
                Event::Eof => break,
                _ => {}
            }
        }
        if !walk.seen_domain {
            return Err(Error::new("The XML is no libvirt domain: it has no <domain> element"));
        }
        if let Some(open) = walk.path.last() {
            let open = String::from_utf8_lossy(open);
            return Err(Error::new(format!("The domain XML is cut off: <{open}> is not closed")));
        }
        let text = |range: Range<usize>| {
            let text = String::from_utf8_lossy(&xml[range]);
            unescape(&text).map_or_else(|_| String::new(), |text| text.trim().to_owned())
        };
        let (name, uuid) = (text(walk.name), text(walk.uuid));
        // In the order of the text: an inner source ends before the outer one.
        walk.devices.sort_by_key(|device| device.source.start);
        Ok(Self { xml: xml.to_owned(), name, uuid, devices: walk.devices, requests: walk.requests })
    }
}

fn offset(position: u64) -> usize {
    // A position in a slice.
    usize::try_from(position).unwrap_or(usize::MAX)
}

fn bad_xml(xml: &[u8], position: u64, cause: &dyn std::fmt::Display) -> Error {
    let before = &xml[..offset(position).min(xml.len())];
    let line = before.split(|byte| *byte == b'\n').count();
    Error::new(format!("The domain XML is wrong at line {line}: {cause}"))
}

/// Where the reader is, and what it has found.
#[derive(Default)]
struct Walk<'a> {
    xml: &'a [u8],
    path: Vec<Vec<u8>>,
    seen_domain: bool,
    name: Range<usize>,
    uuid: Range<usize>,
    /// Whether we are in our own metadata.
    in_request: bool,
    /// Start of what a request holds.
    moving: usize,
    /// The PCI devices we are in, the innermost last: the files behind a disk have sources in sources.
    open: Vec<Open>,
    devices: Vec<Hostdev>,
    requests: Vec<Request>,
}

/// A device whose element is not closed yet.
struct Open {
    kind: Kind,
    managed: bool,
    guest_address: Option<PciAddress>,
    sources: Vec<(PciAddress, Source)>,
    rom: Option<(usize, Option<Range<usize>>)>,
    start: usize,
    /// Depth at which it was opened.
    depth: usize,
}

/// Depth of a device's element in `/domain/devices/hostdev`, and of ours in `/domain/metadata/vfpool:request`.
pub(super) const DEVICE: usize = 3;

impl Walk<'_> {
    fn enter(&mut self, element: &BytesStart, is_ours: bool, tag: &Range<usize>) -> Result<()> {
        if self.path.is_empty() {
            if element.name().as_ref() != b"domain" {
                let name = String::from_utf8_lossy(element.name().as_ref()).into_owned();
                return Err(Error::new(format!("it is no libvirt domain but a <{name}>")));
            }
            self.seen_domain = true;
        }
        self.path.push(element.local_name().as_ref().to_vec());
        let depth = self.path.len();
        if depth < 2 {
            return Ok(());
        }
        match self.path[1].as_slice() {
            b"name" if depth == 2 => self.name = tag.end..tag.end,
            b"uuid" if depth == 2 => self.uuid = tag.end..tag.end,
            b"metadata" => return self.enter_metadata(element, is_ours, tag),
            b"devices" if depth >= DEVICE => return self.enter_device(element, tag),
            _ => {}
        }
        Ok(())
    }

    fn enter_metadata(&mut self, element: &BytesStart, is_ours: bool, tag: &Range<usize>) -> Result<()> {
        match self.path.len() {
            DEVICE => self.in_request = is_ours && element.local_name().as_ref() == b"request",
            4 if self.in_request => {
                let required = |name: &str| {
                    attribute(element, name)?
                        .ok_or_else(|| Error::new(format!("<device> in vfpool's <request> has no {name}= attribute")))
                };
                if element.local_name().as_ref() != b"device" {
                    let name = String::from_utf8_lossy(element.name().as_ref()).into_owned();
                    return Err(Error::new(format!("vfpool's <request> knows only <device>, and no <{name}>")));
                }
                let guest_address = required("guest-address")?.parse()?;
                self.requests.push(Request { pool: required("pool")?, guest_address, moving: None });
                self.moving = tag.end;
            }
            _ => {}
        }
        Ok(())
    }

    fn enter_device(&mut self, element: &BytesStart, tag: &Range<usize>) -> Result<()> {
        let depth = self.path.len();
        let kind = self.path[DEVICE - 1].as_slice();
        let name = element.name();
        let (kind, is_pci) = match (kind, name.as_ref()) {
            (b"hostdev", _) if depth == DEVICE => {
                (Kind::Hostdev, has(element, "type", "pci")? && !has(element, "mode", "capabilities")?)
            }
            (b"interface", _) if depth == DEVICE => (Kind::Interface, has(element, "type", "hostdev")?),
            (b"disk", b"source") => (Kind::Disk, has(element, "type", "pci")?),
            (_, b"address") => return self.enter_address(element, tag),
            (_, b"rom") if depth == DEVICE + 1 => {
                let bar = find(element, "bar")?.map(|value| range_in(self.xml, &value));
                if let Some(device) = self.open.last_mut() {
                    device.rom = Some((tag.start + "<rom".len(), bar));
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        if is_pci {
            self.open.push(Open {
                kind,
                managed: has(element, "managed", "yes")?,
                guest_address: None,
                sources: Vec::new(),
                rom: None,
                start: tag.start,
                depth,
            });
        }
        Ok(())
    }

    /// The address inside `<source>` is the host's; the one beside it is the guest's.
    fn enter_address(&mut self, element: &BytesStart, tag: &Range<usize>) -> Result<()> {
        let depth = self.path.len();
        let in_source = self.path[depth - 2] == b"source";
        let Some(device) = self.open.last_mut() else { return Ok(()) };
        // The source of a disk is the device itself; that of the others is right below it.
        let parent = if device.kind == Kind::Disk { device.depth } else { device.depth + 1 };
        if in_source && depth == parent + 1 {
            let (address, values) = address(self.xml, element)?;
            device.sources.push((address, Source { start: tag.start + "<address".len(), values }));
        } else if depth == DEVICE + 1 && has(element, "type", "pci")? {
            // A guest's own address is libvirt's business, whatever it says.
            device.guest_address = address(self.xml, element).ok().map(|(address, _)| address);
        }
        Ok(())
    }

    fn leave(&mut self, tag: Range<usize>) {
        let depth = self.path.len();
        if self.open.last().is_some_and(|device| device.depth == depth) {
            self.close_device(tag.end);
        }
        match self.path.get(1).map(Vec::as_slice) {
            Some(b"name") if depth == 2 => self.name.end = tag.start,
            Some(b"uuid") if depth == 2 => self.uuid.end = tag.start,
            _ => {}
        }
        if let Some(request) = self.requests.last_mut().filter(|_| depth == 4 && self.in_request) {
            // As text: elements would get our prefix from libvirt.
            let text = String::from_utf8_lossy(&self.xml[self.moving..tag.start]);
            request.moving = unescape(text.trim()).ok().filter(|text| !text.is_empty()).map(Cow::into_owned);
        }
        if depth == DEVICE {
            self.in_request = false;
        }
        self.path.pop();
    }

    fn close_device(&mut self, end: usize) {
        let Some(Open { kind, managed, guest_address, sources, rom, start, .. }) = self.open.pop() else { return };
        for (address, source) in sources {
            let (element, rom) = (start..end, rom.clone());
            self.devices.push(Hostdev { address, managed, kind, guest_address, element, source, rom });
        }
    }
}

type Values = [Option<(Range<usize>, u32)>; 4];

/// The address that a libvirt `<address>` element gives, and where its numbers stand.
fn address(xml: &[u8], element: &BytesStart) -> Result<(PciAddress, Values)> {
    let mut values = Values::default();
    for (value, name) in values.iter_mut().zip(FIELDS) {
        let Some(attribute) = find(element, name)? else { continue };
        let text = String::from_utf8_lossy(&attribute);
        let number = unescape(&text).ok().and_then(|text| libvirt_number(&text));
        let number = number
            .ok_or_else(|| Error::new(format!("{name}='{text}' in a device's <source><address> is no number")))?;
        *value = Some((range_in(xml, &attribute), number));
    }
    let number = |index: usize| values[index].as_ref().map_or(0, |(_, number)| *number);
    let (domain, bus, slot, function) = (number(0), number(1), number(2), number(3));
    let address = PciAddress::from_numbers(domain, bus, slot, function).ok_or_else(|| {
        let text = format!("domain {domain:#x} bus {bus:#x} slot {slot:#x} function {function:#x}");
        Error::new(format!("{text} in a device's <source><address> is no PCI address"))
    })?;
    Ok((address, values))
}

/// Where an attribute's raw value stands: the reader lends out pieces of the text it was given.
fn range_in(xml: &[u8], value: &[u8]) -> Range<usize> {
    let start = value.as_ptr() as usize - xml.as_ptr() as usize;
    start..start + value.len()
}

/// The raw value of an attribute.
fn find<'b>(element: &'b BytesStart, name: &str) -> Result<Option<Cow<'b, [u8]>>> {
    let found = element.try_get_attribute(name);
    found.map(|found| found.map(|found| found.value)).map_err(|cause| Error::new(format!("attribute {name}: {cause}")))
}

fn attribute(element: &BytesStart, name: &str) -> Result<Option<String>> {
    let wrong = |cause: &dyn std::fmt::Display| Error::new(format!("attribute {name}: {cause}"));
    let Some(value) = find(element, name)? else { return Ok(None) };
    let text = std::str::from_utf8(&value).map_err(|cause| wrong(&cause))?;
    unescape(text).map(|text| Some(text.into_owned())).map_err(|cause| wrong(&cause))
}

fn has(element: &BytesStart, name: &str, value: &str) -> Result<bool> {
    Ok(attribute(element, name)?.as_deref() == Some(value))
}

/// A number in an `<address>` element. libvirt reads it as strtoul(3) with base 0: blanks and a plus sign may come
/// before it and nothing after it; hexadecimal after 0x, octal after 0, else decimal.
/// Source: libvirt `src/util/virstring.c`, `virStrToLong_uip`.
pub fn libvirt_number(text: &str) -> Option<u32> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}
