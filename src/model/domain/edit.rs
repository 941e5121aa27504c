//! The same text with other source addresses, byte for byte.

use super::{Domain, Hostdev, Request};
use crate::address::PciAddress;
use quick_xml::escape::partial_escape;
use std::borrow::Cow;
use std::ops::Range;

/// Where the numbers of a source address stand in the XML.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Source {
    /// Right after the tag's name: there goes a number that was left out.
    pub(super) start: usize,
    /// The values of [`FIELDS`], with the number each has.
    pub(super) values: [Option<(Range<usize>, u32)>; 4],
}

/// The attributes of libvirt's PCI addresses.
pub(super) const FIELDS: [&str; 4] = ["domain", "bus", "slot", "function"];

impl Domain {
    /// The whole text.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.xml)
    }

    /// The text of a device's element.
    pub fn text_of(&self, device: &Hostdev) -> String {
        String::from_utf8_lossy(&self.xml[device.element.clone()]).into_owned()
    }

    /// The text of a device's element with another source address.
    pub fn text_at(&self, device: &Hostdev, address: PciAddress) -> String {
        let mut edits = device.source.edits(address);
        for (range, _) in &mut edits {
            *range = range.start - device.element.start..range.end - device.element.start;
        }
        String::from_utf8_lossy(&splice(&self.xml[device.element.clone()], edits)).into_owned()
    }

    /// The text of a device's element with `<rom bar='off'/>`: the guest sees no option ROM of it.
    pub fn text_without_rom(&self, device: &Hostdev) -> String {
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
    pub fn with_addresses(&self, changes: &[(&Hostdev, PciAddress)]) -> Vec<u8> {
        splice(&self.xml, changes.iter().flat_map(|(device, address)| device.source.edits(*address)).collect())
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

pub(super) fn splice(text: &[u8], mut edits: Vec<(Range<usize>, String)>) -> Vec<u8> {
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
