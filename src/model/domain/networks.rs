//! Interfaces on libvirt's networks, and what each becomes on a device of its own.

use super::Domain;
use super::edit::splice;
use super::parse::{DEVICE, libvirt_number};
use crate::address::PciAddress;
use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;
use std::ops::Range;

/// An `<interface type='network'>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkInterface {
    /// The network's name.
    pub network: String,
    /// The network's port group that it names.
    pub portgroup: Option<String>,
    /// Where the guest sees it.
    pub guest_address: Option<PciAddress>,
    /// Its element.
    pub text: String,
    has_vlan: bool,
    /// In bytes of the element: the value of `type=`, and its children that a device of its own does not have as they
    /// are.
    kind: Range<usize>,
    source: Range<usize>,
    target: Option<Range<usize>>,
}

impl NetworkInterface {
    /// The same as an `<interface type='hostdev'>` with the device at this address. What the network adds goes with it:
    /// `more`, and `vlan` if it has none of its own.
    pub fn on_device(&self, address: PciAddress, managed: bool, vlan: Option<&str>, more: &str) -> String {
        let tag = "<interface".len();
        let managed = if managed { " managed='yes'" } else { " managed='no'" };
        let vlan = vlan.filter(|_| !self.has_vlan).unwrap_or_default();
        let source = format!("<source>{}</source>{vlan}{more}", address.element());
        let mut edits = vec![
            (tag..tag, managed.to_owned()),
            (self.kind.clone(), "hostdev".to_owned()),
            (self.source.clone(), source),
        ];
        edits.extend(self.target.clone().map(|target| (target, String::new())));
        String::from_utf8_lossy(&splice(self.text.as_bytes(), edits)).into_owned()
    }
}

impl Domain {
    /// The interfaces on libvirt's networks, in the order of the XML.
    pub fn network_interfaces(&self) -> Vec<NetworkInterface> {
        let mut reader = Reader::from_reader(self.xml());
        let mut found = Vec::new();
        let (mut depth, mut open, mut child) = (0, None::<Open>, 0..0);
        let mut in_devices = false;
        loop {
            let start = position(&reader);
            // It was understood before, as a whole.
            let Ok(event) = reader.read_event() else { return found };
            let end = position(&reader);
            let (entered, left) = match &event {
                Event::Start(element) => (Some(element), false),
                Event::Empty(element) => (Some(element), true),
                Event::End(_) => (None, true),
                Event::Eof => return found,
                _ => continue,
            };
            if let Some(element) = entered {
                depth += 1;
                match depth {
                    2 => in_devices = element.name().as_ref() == b"devices",
                    DEVICE if in_devices && element.name().as_ref() == b"interface" => {
                        open = Open::new(self.xml(), start, element);
                    }
                    4 => {
                        child = start..start;
                        if let Some(open) = &mut open {
                            open.enter(element);
                        }
                    }
                    _ => {}
                }
            }
            if left {
                if let Some(open) = open.as_mut().filter(|_| depth == 4) {
                    open.leave(child.start..end);
                }
                if depth == DEVICE {
                    found.extend(open.take().and_then(|open| open.close(self.xml(), end)));
                }
                depth -= 1;
            }
        }
    }
}

fn position(reader: &Reader<&[u8]>) -> usize {
    // A position in a slice.
    usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX)
}

fn attribute(element: &BytesStart, name: &str) -> Option<String> {
    let value = element.try_get_attribute(name).ok()??.value;
    Some(unescape(&String::from_utf8_lossy(&value)).ok()?.into_owned())
}

/// An interface whose element is not closed yet; positions in the whole text.
#[derive(Default)]
struct Open {
    start: usize,
    kind: Range<usize>,
    child: Vec<u8>,
    network: Option<String>,
    portgroup: Option<String>,
    guest_address: Option<PciAddress>,
    has_vlan: bool,
    source: Range<usize>,
    target: Option<Range<usize>>,
}

impl Open {
    fn new(xml: &[u8], start: usize, element: &BytesStart) -> Option<Self> {
        let kind = element.try_get_attribute("type").ok()??.value;
        let at = kind.as_ptr() as usize - xml.as_ptr() as usize;
        let kind = (&*kind == b"network").then(|| at..at + kind.len())?;
        Some(Self { start, kind, ..Self::default() })
    }

    fn enter(&mut self, element: &BytesStart) {
        self.child = element.name().as_ref().to_vec();
        match self.child.as_slice() {
            b"source" => {
                self.network = attribute(element, "network");
                self.portgroup = attribute(element, "portgroup");
            }
            b"address" if attribute(element, "type").as_deref() == Some("pci") => {
                let number = |name| attribute(element, name).map_or(Some(0), |text| libvirt_number(&text));
                let numbers = [number("domain"), number("bus"), number("slot"), number("function")];
                if let [Some(domain), Some(bus), Some(slot), Some(function)] = numbers {
                    self.guest_address = PciAddress::from_numbers(domain, bus, slot, function);
                }
            }
            b"vlan" => self.has_vlan = true,
            _ => {}
        }
    }

    fn leave(&mut self, child: Range<usize>) {
        match self.child.as_slice() {
            b"source" => self.source = child,
            b"target" => self.target = Some(child),
            _ => {}
        }
    }

    fn close(self, xml: &[u8], end: usize) -> Option<NetworkInterface> {
        let within = |range: Range<usize>| range.start - self.start..range.end - self.start;
        Some(NetworkInterface {
            network: self.network?,
            portgroup: self.portgroup,
            guest_address: self.guest_address,
            text: String::from_utf8_lossy(&xml[self.start..end]).into_owned(),
            has_vlan: self.has_vlan,
            kind: within(self.kind),
            source: within(self.source),
            target: self.target.map(within),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_keeps_all_but_its_network() {
        let interface = |kind: &str, source: &str, target: &str| {
            format!(
                "<interface {kind}>\n  <mac address='52:54:00:aa:00:01'/>\n  {source}\n  {target}<model \
                 type='virtio'/>\n  <boot order='1'/><alias name='ua-x'/>\n  <address type='pci' domain='0x0000' \
                 bus='0x00' slot='0x05' function='0x0'/>\n</interface>"
            )
        };
        let text = interface("type='network'", "<source network='a&amp;b' portgroup='p'/>", "<target dev='vnet0'/>");
        let xml = format!(
            "<domain><metadata><devices><interface type='network'/></devices></metadata><devices>\n<interface \
             type='user'/>{text}<interface type='network'><source network='n'/><vlan><tag id='7'/></vlan></interface>\
             </devices></domain>"
        );
        let found = Domain::parse(xml.as_bytes()).unwrap().network_interfaces();
        let [first, second] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((first.network.as_str(), first.portgroup.as_deref()), ("a&b", Some("p")));
        assert_eq!((&first.text, first.guest_address.unwrap().to_string()), (&text, "0000:00:05.0".to_owned()));
        let address: PciAddress = "0000:01:10.1".parse().unwrap();
        let vlan = "<vlan><tag id='42'/></vlan>";
        let source = format!("<source>{}</source>", address.element());
        assert_eq!(
            first.on_device(address, true, Some(vlan), ""),
            interface("managed='yes' type='hostdev'", &format!("{source}{vlan}"), "")
        );
        let second = second.on_device(address, false, Some(vlan), "<rom bar='off'/>");
        assert_eq!(
            second,
            format!(
                "<interface managed='no' type='hostdev'>{source}<rom bar='off'/><vlan><tag id='7'/></vlan></interface>"
            )
        );
    }
}
