//! The guest's XML: which PCI devices it has, which of them it asks a pool for, and where in the text their addresses
//! stand.
//!
//! Read as a stream of events, never as a document: what is not ours may be anything that any libvirt writes, and what is
//! written back is the same text with other source addresses, byte for byte.
//! Source: libvirt `docs/formatdomain.rst`, "Host device assignment", "NVMe disks", "General metadata".

use crate::address::{PciAddress, libvirt_number};
use crate::error::{Error, Result};
use quick_xml::NsReader;
use quick_xml::escape::{partial_escape, unescape};
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, ResolveResult};
use std::borrow::Cow;
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
/// The device that carries a request out is the one at that address in the guest. While it is moved to another device of
/// the pool, the request holds the text of its element, so that it cannot get lost between libvirt's two steps.
pub const NAMESPACE: &str = "urn:vfpool:domain:1";

/// A PCI device that a guest has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Where the device is on the host.
    pub address: PciAddress,
    /// Whether libvirt itself takes it from its host driver and gives it back.
    pub managed: bool,
    /// The pool that the guest asks for this device.
    pub pool: Option<String>,
}

/// An element of the guest's XML that stands for a PCI device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where the device is on the host.
    pub address: PciAddress,
    /// Whether libvirt itself takes it from its host driver and gives it back.
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

/// Where the numbers of a source address stand in the XML.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Source {
    /// Right after the tag's name: there goes a number that was left out.
    start: usize,
    /// The values of [`FIELDS`], with the number each has.
    values: [Option<(Range<usize>, u32)>; 4],
}

/// The attributes of libvirt's PCI addresses.
const FIELDS: [&str; 4] = ["domain", "bus", "slot", "function"];

/// What a guest's XML says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain<'a> {
    xml: &'a [u8],
    /// The guest's name.
    pub name: String,
    /// Its UUID, which virsh takes for nothing else, as it may a name.
    pub uuid: String,
    /// Its PCI devices in the order of the XML.
    pub devices: Vec<Device>,
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

impl<'a> Domain<'a> {
    /// Understands a domain's XML: `<hostdev type='pci'>`, `<interface type='hostdev'>` and `<disk type='nvme'>` (its
    /// backing files too), and our requests. USB, SCSI, mdev and vHBA devices are none of ours.
    pub fn parse(xml: &'a [u8]) -> Result<Self> {
        if xml.iter().all(u8::is_ascii_whitespace) {
            return Err(Error::new("The domain XML is empty; libvirt's hook gets the guest's XML on standard input"));
        }
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
        Ok(Self { xml, name, uuid, devices: walk.devices, requests: walk.requests })
    }

    /// The PCI devices, each once.
    pub fn assigned(&self) -> Vec<Assigned> {
        self.assigned_with(&[])
    }

    /// The PCI devices, each once, with other source addresses for these.
    pub fn assigned_with(&self, changes: &[(&Device, PciAddress)]) -> Vec<Assigned> {
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
    pub fn request_for(&self, device: &Device) -> Option<&Request> {
        let is_same =
            |request: &&Request| device.kind != Kind::Disk && device.guest_address == Some(request.guest_address);
        self.requests.iter().find(is_same)
    }

    /// The device that carries out a request. None: somebody has removed it, or it is just being moved.
    pub fn device_for(&self, request: &Request) -> Option<&Device> {
        let mut devices = self.devices.iter();
        devices.find(|device| device.kind != Kind::Disk && device.guest_address == Some(request.guest_address))
    }

    /// libvirt finds a hostdev by its source address alone, and takes the first that has it.
    ///
    /// # Errors
    /// Another device has the same one.
    pub fn expect_only(&self, device: &Device) -> Result<()> {
        let address = device.address;
        if device.kind == Kind::Interface || self.devices.iter().filter(|other| other.address == address).count() < 2 {
            return Ok(());
        }
        Err(Error::new(format!("its definition has {address} twice, and libvirt does not tell the two apart"))
            .remedy("Give one of them another address with `virsh edit`"))
    }

    /// The whole text.
    pub fn text(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.xml)
    }

    /// The text of a device's element.
    pub fn text_of(&self, device: &Device) -> String {
        String::from_utf8_lossy(&self.xml[device.element.clone()]).into_owned()
    }

    /// The text of a device's element with another source address.
    pub fn text_at(&self, device: &Device, address: PciAddress) -> String {
        let mut edits = device.source.edits(address);
        for (range, _) in &mut edits {
            *range = range.start - device.element.start..range.end - device.element.start;
        }
        String::from_utf8_lossy(&splice(&self.xml[device.element.clone()], edits)).into_owned()
    }

    /// The text of a device's element with `<rom bar='off'/>`: the guest sees no option ROM of it.
    pub fn text_without_rom(&self, device: &Device) -> String {
        let edit = match &device.rom {
            Some((_, Some(bar))) => (bar.clone(), "off".to_owned()),
            Some((start, None)) => (*start..*start, " bar='off'".to_owned()),
            None => {
                let text = &self.xml[device.element.clone()];
                let end = text.windows(2).rposition(|pair| pair == b"</").unwrap_or(text.len());
                let end = device.element.start + end;
                (end..end, "<rom bar='off'/>".to_owned())
            }
        };
        let edit = (edit.0.start - device.element.start..edit.0.end - device.element.start, edit.1);
        String::from_utf8_lossy(&splice(&self.xml[device.element.clone()], vec![edit])).into_owned()
    }

    /// The XML with other source addresses for these devices, and nothing else changed.
    pub fn with_addresses(&self, changes: &[(&Device, PciAddress)]) -> Vec<u8> {
        splice(self.xml, changes.iter().flat_map(|(device, address)| device.source.edits(*address)).collect())
    }
}

/// The text of a request, as `virsh metadata --key vfpool` takes it.
pub fn request_text(requests: &[Request]) -> String {
    let device = |request: &Request| {
        let pool = partial_escape(request.pool.as_str()).replace('"', "&quot;");
        let start = format!("<device pool=\"{pool}\" guest-address=\"{}\"", request.guest_address);
        match &request.moving {
            None => format!("{start}/>"),
            Some(element) => format!("{start}>{}</device>", partial_escape(element.as_str())),
        }
    };
    format!("<request>{}</request>", requests.iter().map(device).collect::<String>())
}

/// The PCI devices of a domain in the order of its XML, each once.
pub fn assigned_devices(xml: &[u8]) -> Result<Vec<Assigned>> {
    Domain::parse(xml).map(|domain| domain.assigned())
}

impl Source {
    /// What has to be replaced for another address; numbers that stay are left as they are written.
    fn edits(&self, address: PciAddress) -> Vec<(Range<usize>, String)> {
        let mut edits = Vec::new();
        for ((field, value), (number, digits)) in FIELDS.iter().zip(&self.values).zip(address.numbers()) {
            match value {
                Some((_, old)) if *old == number => {}
                Some((range, _)) => edits.push((range.clone(), digits)),
                None if number == 0 => {}
                None => edits.push((self.start..self.start, format!(" {field}='{digits}'"))),
            }
        }
        edits
    }
}

fn splice(text: &[u8], mut edits: Vec<(Range<usize>, String)>) -> Vec<u8> {
    edits.sort_by_key(|(range, _)| range.start);
    let mut spliced = Vec::with_capacity(text.len() + 16);
    let mut done = 0;
    for (range, new) in edits {
        spliced.extend_from_slice(&text[done..range.start]);
        spliced.extend_from_slice(new.as_bytes());
        done = range.end;
    }
    spliced.extend_from_slice(&text[done..]);
    spliced
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
    /// The device we are in, if it is one of PCI by its own attributes.
    device: Option<Open>,
    devices: Vec<Device>,
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
const DEVICE: usize = 3;

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
                if let Some(device) = &mut self.device {
                    device.rom = Some((tag.start + "<rom".len(), bar));
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        // The files behind a disk may have sources in sources; the outer one has its address first.
        self.close_device(tag.start);
        if is_pci {
            self.device = Some(Open {
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
        let Some(device) = &mut self.device else { return Ok(()) };
        if in_source && (device.kind == Kind::Disk || depth == DEVICE + 2) {
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
        if self.device.as_ref().is_some_and(|device| device.depth == depth) {
            self.close_device(tag.end);
        }
        match self.path.get(1).map(Vec::as_slice) {
            Some(b"name") if depth == 2 => self.name.end = tag.start,
            Some(b"uuid") if depth == 2 => self.uuid.end = tag.start,
            _ => {}
        }
        if depth == 4
            && self.in_request
            && let Some(request) = self.requests.last_mut()
        {
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
        let Some(Open { kind, managed, guest_address, sources, rom, start, .. }) = self.device.take() else { return };
        for (address, source) in sources {
            let (element, rom) = (start..end, rom.clone());
            self.devices.push(Device { address, managed, kind, guest_address, element, source, rom });
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
        let number = libvirt_number(&text)
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
    fn the_rom_is_hidden_and_nothing_else_changes() {
        for (rom, hidden) in [
            ("", "<rom bar='off'/>"),
            ("<rom bar='on'/>", "<rom bar='off'/>"),
            ("<rom file='/x/off.rom' bar = \"on\" />", "<rom file='/x/off.rom' bar = \"off\" />"),
            ("<rom file='/x.rom'></rom>", "<rom bar='off' file='/x.rom'></rom>"),
            ("<rom bar='off'/>", "<rom bar='off'/>"),
        ] {
            let xml = |rom: &str| format!("<hostdev type='pci' managed='yes'>{SOURCE}{rom}</hostdev >");
            let domain = format!("<domain><devices><rom bar='x'/>{}</devices></domain>", xml(rom));
            let domain = Domain::parse(domain.as_bytes()).unwrap();
            assert_eq!(domain.text_without_rom(&domain.devices[0]), xml(hidden));
        }
    }

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

    const REQUESTS: &str = "<metadata><app:x xmlns:app='urn:app'><request><device pool='no'/></request></app:x>\
        <v:request xmlns:v='urn:vfpool:domain:1'><device pool='a &amp; b' guest-address='0000:00:05.0'/>\
        <v:device pool='c' guest-address='00:06.0'>&lt;hostdev type='pci'>&lt;x a='&amp;lt;'/></v:device></v:request></metadata>";

    const DEVICES: &str = "<devices><interface  type='hostdev'><mac address='52:54:00:6d:90:02'/>\n\
        <source><address type='pci' bus=\"1\" slot='020' function='0x2' /></source>\
        <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/><rom bar='off'/></interface></devices>";

    #[test]
    fn requests_are_found_in_our_namespace_only() {
        let xml = format!("<domain><name>a&lt;b</name>{REQUESTS}{DEVICES}</domain>");
        let domain = Domain::parse(xml.as_bytes()).unwrap();
        assert_eq!(domain.name, "a<b");
        let [first, second] = domain.requests.as_slice() else { panic!("{domain:?}") };
        assert_eq!((first.pool.as_str(), first.moving.as_deref()), ("a & b", None));
        assert_eq!((second.pool.as_str(), second.moving.as_deref()), ("c", Some("<hostdev type='pci'><x a='&lt;'/>")));
        assert_eq!(domain.device_for(first), Some(&domain.devices[0]));
        assert_eq!(domain.device_for(second), None);
        assert_eq!(domain.assigned()[0].pool.as_deref(), Some("a & b"));
        let text = request_text(&domain.requests).replace("<request>", "<request xmlns='urn:vfpool:domain:1'>");
        let again = format!("<domain><metadata>{text}</metadata></domain>");
        assert_eq!(Domain::parse(again.as_bytes()).unwrap().requests, domain.requests);
    }

    #[test]
    fn only_the_numbers_that_differ_are_written() {
        let xml = format!("<domain>{DEVICES}</domain>");
        let domain = Domain::parse(xml.as_bytes()).unwrap();
        let device = &domain.devices[0];
        assert_eq!(device.address.to_string(), "0000:01:10.2");
        for (address, written) in [
            ("0000:01:10.2", r#"type='pci' bus="1" slot='020' function='0x2' />"#),
            ("0000:01:11.2", r#"type='pci' bus="1" slot='0x11' function='0x2' />"#),
            ("10000:02:10.0", r#"domain='0x10000' type='pci' bus="0x02" slot='020' function='0x0' />"#),
        ] {
            let expected = xml.replace(r#"type='pci' bus="1" slot='020' function='0x2' />"#, written);
            let address = address.parse().unwrap();
            assert_eq!(String::from_utf8(domain.with_addresses(&[(device, address)])).unwrap(), expected);
            assert!(expected.contains(&domain.text_at(device, address)));
        }
        assert_eq!(domain.text_of(device), DEVICES.replace("<devices>", "").replace("</devices>", ""));
    }

    #[test]
    fn a_wrong_request_is_told() {
        for (request, message) in [
            ("<device guest-address='00:05.0'/>", "has no pool= attribute"),
            ("<device pool='x'/>", "has no guest-address= attribute"),
            ("<device pool='x' guest-address='5'/>", "'5' is no PCI address"),
            ("<devices/>", "knows only <device>, and no <devices>"),
        ] {
            let xml = format!("<domain><metadata><request xmlns='{NAMESPACE}'>{request}</request></metadata></domain>");
            let error = Domain::parse(xml.as_bytes()).expect_err(request).to_string();
            assert!(error.contains(message), "{error}");
        }
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
