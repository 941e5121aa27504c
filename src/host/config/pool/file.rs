//! A pool's file: from XML to lines, strictly. What is not known here would not be done either, so it is an error.

use super::line::{Line, Members, PfName, Place, overlap};
use super::{Driver, OnBusy, Pool, Vfs};
use model::address::PciAddress;
use model::domain::libvirt_number;
use model::error::{Error, Result};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use std::path::Path;
use std::{fmt, fs};

/// Reads one pool.
pub(super) fn read(file: &Path) -> Result<Pool> {
    let text = fs::read_to_string(file).map_err(|cause| Error::io("read", file, &cause))?;
    // A byte order mark, as editors on Windows write it: the reader would leave it out of its positions.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Parser { file, text, reader: Reader::from_str(text), begin: 0, depth: 0 }.pool()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RootXml {
    #[serde(rename = "@on-busy", default)]
    on_busy: OnBusy,
    /// Of a network or pool as `virsh net-dumpxml` or `vfpool dumpxml` shows it.
    #[serde(rename = "@connections")]
    connections: Option<u32>,
    /// Says nothing about a device that a guest has itself.
    #[serde(rename = "@trustGuestRxFilters")]
    #[allow(dead_code)]
    trust_guest_rx_filters: Option<YesNo>,
    #[serde(rename = "@ipv6")]
    #[allow(dead_code)]
    ipv6: Option<YesNo>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForwardXml {
    #[serde(rename = "@mode")]
    #[allow(dead_code)]
    mode: Mode,
    #[serde(rename = "@managed", default)]
    managed: YesNo,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Hostdev,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "lowercase")]
enum YesNo {
    Yes,
    #[default]
    No,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DriverXml {
    #[serde(rename = "@name")]
    #[allow(dead_code)]
    name: Option<Vfio>,
    #[serde(rename = "@model")]
    model: Option<Model>,
}

/// The driver that a device is bound to, from libvirt 10.0 on.
#[derive(Deserialize)]
enum Model {
    #[serde(rename = "vfio-pci")]
    VfioPci,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Vfio {
    Vfio,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PfXml {
    #[serde(rename = "@dev")]
    pub(crate) dev: Option<String>,
    #[serde(rename = "@address")]
    address: Option<PciAddress>,
    #[serde(rename = "@vfs", default)]
    vfs: Vfs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddressXml {
    #[serde(rename = "@type")]
    #[allow(dead_code)]
    kind: Pci,
    #[serde(rename = "@domain", default)]
    domain: Number,
    #[serde(rename = "@bus")]
    bus: Number,
    #[serde(rename = "@slot")]
    slot: Number,
    #[serde(rename = "@function")]
    function: Number,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Pci {
    Pci,
}

impl AddressXml {
    pub(crate) fn address(&self) -> Option<PciAddress> {
        PciAddress::from_numbers(self.domain.0, self.bus.0, self.slot.0, self.function.0)
    }
}

#[derive(Default)]
struct Number(u32);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        libvirt_number(&text).map(Self).ok_or_else(|| D::Error::custom(format!("'{text}' is no number")))
    }
}

impl<'de> Deserialize<'de> for Vfs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match (text.as_str(), text.parse()) {
            ("max", _) => Ok(Self::Max),
            (_, Ok(count)) if count > 0 && !text.starts_with('+') => Ok(Self::Count(count)),
            _ => Err(D::Error::custom(format!("vfs='{text}' is neither a number from 1 on nor 'max'"))),
        }
    }
}

/// Goes through the file; where it is, is the line that an error names.
struct Parser<'a> {
    file: &'a Path,
    text: &'a str,
    reader: Reader<&'a [u8]>,
    /// Where the last event begins, in bytes.
    begin: u64,
    /// How many elements are open.
    depth: usize,
}

/// What `<forward>` says.
struct Forward {
    managed: bool,
    driver: Option<Driver>,
    lines: Vec<Line>,
}

/// What follows inside an element.
enum Next<'a> {
    Element { start: BytesStart<'a>, is_empty: bool },
    End,
}

/// Elements of libvirt's networks that change nothing for a device of a guest's own.
const WITHOUT_EFFECT: [&str; 5] = ["title", "description", "metadata", "virtualport", "mac"];

const MEND: &str = "Mend it (see `man vfpool-pool`)";

impl<'a> Parser<'a> {
    fn pool(mut self) -> Result<Pool> {
        let Next::Element { start, is_empty } = self.next()? else {
            return Err(Error::new(format!("Cannot use {}: it is empty", self.file.display()))
                .remedy("Write a <pool> into it, or remove it"));
        };
        let root = name_of(&start);
        if root != "pool" && root != "network" {
            return Err(self.unknown(&start, "the root is a <pool>, or libvirt's <network>"));
        }
        let RootXml { on_busy, connections, .. } = self.attributes(&start)?;
        let at_root = self.place(&start);
        let (mut name, mut uuid, mut forward) = (None, None, None);
        while let Next::Element { start, is_empty } = self.next_in(is_empty)? {
            let at = self.place(&start);
            match name_of(&start).as_str() {
                "name" if name.is_none() => name = Some(self.content(&start, is_empty)?),
                "uuid" => uuid = Some(self.content(&start, is_empty)?),
                name if WITHOUT_EFFECT.contains(&name) => self.skip(&start, is_empty)?,
                "vlan" => {
                    let what = "a pool sets no VLAN";
                    return Err(at.error(what).remedy(
                        "Move the <vlan> into the <interface type='hostdev'> of each guest of this pool: it stays \
                         there when the device changes",
                    ));
                }
                "portgroup" => {
                    let what = "a pool has no port groups";
                    return Err(at.error(what).remedy(
                        "Move its <vlan> and <virtualport> into the <interface type='hostdev'> of each guest that \
                         names the port group",
                    ));
                }
                "forward" if forward.is_none() => forward = Some(self.forward(&start, is_empty)?),
                "name" | "forward" => return Err(at.error("it is there twice").remedy("Remove one")),
                _ => return Err(self.unknown(&start, "a pool has <name> and <forward>")),
            }
        }
        if let Next::Element { start, .. } = self.next()? {
            return Err(self.unknown(&start, "one file is one pool"));
        }
        let missing = |what: &str| at_root.error(format_args!("{what} is missing")).remedy("Add it");
        let name =
            name.filter(|name| !name.is_empty()).ok_or_else(|| missing("<name>, by which guests ask for it,"))?;
        let Forward { managed, driver, mut lines } =
            forward.ok_or_else(|| missing("<forward mode='hostdev' managed='yes'>"))?;
        if lines.is_empty() {
            return Err(missing("each <pf> and <address>, which would make devices members of the pool,"));
        }
        for line in &mut lines {
            line.pool.clone_from(&name);
        }
        for (index, line) in lines.iter().enumerate() {
            if let Some(other) = lines[..index].iter().find(|other| other.is_same(line)) {
                return Err(overlap(line, "it", other));
            }
        }
        let root = if root == "network" { "network" } else { "pool" };
        let is_dump = root == "network" || connections.is_some();
        let (file, earlier) = (self.file.to_owned(), Vec::new());
        Ok(Pool { name, file, on_busy, managed, uuid, lines, earlier, root, is_dump, driver })
    }

    fn forward(&mut self, start: &BytesStart, is_empty: bool) -> Result<Forward> {
        let ForwardXml { managed, .. } = self.attributes(start)?;
        let (mut driver, mut lines) = (None, Vec::new());
        while let Next::Element { start, is_empty } = self.next_in(is_empty)? {
            let at = self.place(&start);
            let members = match name_of(&start).as_str() {
                "driver" => {
                    let DriverXml { name, model } = self.attributes(&start)?;
                    driver = Some(Driver { is_named: name.is_some(), has_model: model.is_some() });
                    None
                }
                "pf" => Some(self.pf(&start)?),
                "address" => {
                    let address = self.attributes::<AddressXml>(&start)?.address();
                    let why = "its numbers are no PCI address: bus to 0xff, slot to 0x1f, function to 7";
                    Some(Members::Function(address.ok_or_else(|| at.error(why).remedy("Mend it"))?))
                }
                _ => return Err(self.unknown(&start, "<forward> has <pf> and <address>")),
            };
            lines.extend(members.map(|members| Line { at, pool: String::new(), members }));
            if let Next::Element { start, .. } = self.next_in(is_empty)? {
                return Err(self.unknown(&start, "nothing stands inside this element"));
            }
        }
        Ok(Forward { managed: managed == YesNo::Yes, driver, lines })
    }

    fn pf(&self, start: &BytesStart) -> Result<Members> {
        let PfXml { dev, address, vfs } = self.attributes(start)?;
        let pf = match (dev, address) {
            // As a name of a file in /sys/class/net, too.
            (Some(dev), None) if !dev.is_empty() && !dev.starts_with('.') && !dev.contains('/') => PfName::Netdev(dev),
            (None, Some(address)) => PfName::Address(address),
            _ => {
                let why = "a PF has either dev='eth3' (its network interface) or address='0000:04:00.0'";
                return Err(self.place(start).error(why).remedy("Give it one of them"));
            }
        };
        Ok(Members::VfsOf { pf, vfs })
    }

    /// The text of an element that holds nothing else.
    fn content(&mut self, start: &BytesStart, is_empty: bool) -> Result<String> {
        self.attributes::<NoAttributes>(start)?;
        if is_empty {
            return Ok(String::new());
        }
        let at = self.place(start);
        let inside = self.reader.read_text(start.name()).map_err(|cause| self.wrong_xml(&cause))?;
        self.depth -= 1;
        let text = quick_xml::de::from_str::<String>(&format!("<text>{}</text>", String::from_utf8_lossy(&inside)));
        text.map(|text| text.trim().to_owned()).map_err(|cause| at.error(cause).remedy(MEND))
    }

    /// Passes over an element that says nothing to us, with all that is in it.
    fn skip(&mut self, start: &BytesStart, is_empty: bool) -> Result<()> {
        if !is_empty {
            self.reader.read_to_end(start.name()).map_err(|cause| self.wrong_xml(&cause))?;
            self.depth -= 1;
        }
        Ok(())
    }

    /// An element's attributes. serde knows which there are, and tells what is wrong.
    fn attributes<T: DeserializeOwned>(&self, start: &BytesStart) -> Result<T> {
        let element = format!("<{}/>", String::from_utf8_lossy(start).trim_end());
        quick_xml::de::from_str(&element).map_err(|cause| {
            // As serde tells attributes from elements.
            self.place(start).error(cause.to_string().replace("`@", "`")).remedy(MEND)
        })
    }

    fn next_in(&mut self, is_empty: bool) -> Result<Next<'a>> {
        if is_empty { Ok(Next::End) } else { self.next() }
    }

    /// The next element, or the end of the one we are in.
    fn next(&mut self) -> Result<Next<'a>> {
        loop {
            self.begin = self.reader.buffer_position();
            match self.reader.read_event().map_err(|cause| self.wrong_xml(&cause))? {
                Event::Start(start) => {
                    self.depth += 1;
                    return Ok(Next::Element { start, is_empty: false });
                }
                Event::Empty(start) => return Ok(Next::Element { start, is_empty: true }),
                Event::End(_) => {
                    self.depth -= 1;
                    return Ok(Next::End);
                }
                Event::Eof if self.depth == 0 => return Ok(Next::End),
                Event::Eof => return Err(self.wrong_xml(&"it ends before its elements do")),
                Event::Text(text) if !text.iter().all(u8::is_ascii_whitespace) => {
                    self.begin += text.iter().take_while(|byte| byte.is_ascii_whitespace()).count() as u64;
                    let text = String::from_utf8_lossy(&text).trim().to_owned();
                    let at = self.place_of(&format!("the text '{text}'"));
                    return Err(at.error("no text stands here").remedy("Remove it"));
                }
                _ => {}
            }
        }
    }

    fn unknown(&self, start: &BytesStart, known: &str) -> Error {
        self.place(start).error(format_args!("this element is not known here; {known}")).remedy("Remove it")
    }

    fn wrong_xml(&self, cause: &dyn fmt::Display) -> Error {
        let line = self.line(self.reader.error_position().max(self.begin));
        Error::new(format!("Cannot use {}: it is no XML at line {line}: {cause}", self.file.display()))
            .remedy("Mend it")
    }

    /// Of the element just read.
    fn place(&self, start: &BytesStart) -> Place {
        let element: Vec<&str> = std::str::from_utf8(start).unwrap_or_default().split_whitespace().collect();
        self.place_of(&format!("<{}>", element.join(" ")))
    }

    fn place_of(&self, element: &str) -> Place {
        Place { element: element.to_owned(), file: self.file.to_owned(), line: self.line(self.begin) }
    }

    fn line(&self, position: u64) -> usize {
        1 + self.text.get(..index(position)).unwrap_or(self.text).matches('\n').count()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoAttributes {}

fn name_of(start: &BytesStart) -> String {
    String::from_utf8_lossy(start.name().as_ref()).into_owned()
}

/// A file that was read as a whole has no position beyond `usize`.
fn index(position: u64) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX)
}
