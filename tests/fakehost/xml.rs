//! XML as the fake virsh needs it: a document as nodes that know where they stand in the text, and a node in libvirt's
//! style.
//!
//! Knows nothing of the product's own parser, whose mistakes it has to find.

use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};
use std::fmt::Write;
use std::ops::Range;

#[derive(Debug, Clone, Default)]
pub struct Node {
    pub name: String,
    pub attributes: Vec<(String, String)>,
    pub children: Vec<Node>,
    pub text: String,
    /// The whole element, in bytes of the text.
    pub range: Range<usize>,
    /// Where its end tag begins; the end of an element that has none.
    pub inner_end: usize,
}

impl Node {
    /// The root element.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = quick_xml::Reader::from_str(text);
        let mut open = vec![Self::default()];
        let offset = |position: u64| usize::try_from(position).unwrap();
        loop {
            let start = offset(reader.buffer_position());
            let event = reader.read_event().map_err(|cause| format!("XML error: {cause}"))?;
            let end = offset(reader.buffer_position());
            match event {
                Event::Start(tag) => open.push(Self::new(&tag, start..end)?),
                Event::Empty(tag) => {
                    let node = Self { inner_end: end, ..Self::new(&tag, start..end)? };
                    open.last_mut().unwrap().children.push(node);
                }
                Event::End(_) => {
                    let mut node = open.pop().unwrap();
                    (node.range.end, node.inner_end) = (end, start);
                    open.last_mut().ok_or("XML error: too many ends")?.children.push(node);
                }
                Event::Text(_) | Event::GeneralRef(_) | Event::CData(_) => {
                    let text = unescape(&text[start..end]).map_err(|cause| format!("XML error: {cause}"))?;
                    open.last_mut().unwrap().text.push_str(&text);
                }
                Event::Eof => break,
                _ => {}
            }
        }
        if open.len() != 1 || open[0].children.len() != 1 {
            return Err("XML error: not one element".to_owned());
        }
        Ok(open.remove(0).children.remove(0))
    }

    fn new(tag: &BytesStart, range: Range<usize>) -> Result<Self, String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut attributes = Vec::new();
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(|cause| format!("XML error: {cause}"))?;
            let value = unescape(&text(&attribute.value)).map_err(|cause| format!("XML error: {cause}"))?.into_owned();
            attributes.push((text(attribute.key.as_ref()), value));
        }
        Ok(Self { name: text(tag.name().as_ref()), attributes, range, ..Self::default() })
    }

    pub fn attribute(&self, name: &str) -> Option<&str> {
        let mut attributes = self.attributes.iter();
        attributes.find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// A PCI address among the children, as `0000:01:10.0`; numbers as strtoul(3) reads them.
    pub fn address(&self) -> Option<String> {
        let address = self.child("address").filter(|address| address.attribute("type").is_none_or(|it| it == "pci"))?;
        let number = |name| {
            let text = address.attribute(name).unwrap_or("0");
            let (digits, radix) = match text.as_bytes() {
                [b'0', b'x' | b'X', ..] => (&text[2..], 16),
                [b'0', _, ..] => (&text[1..], 8),
                _ => (text, 10),
            };
            u32::from_str_radix(digits, radix).unwrap()
        };
        let [domain, bus, slot, function] = ["domain", "bus", "slot", "function"].map(number);
        Some(format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
    }

    /// Where on the host a PCI device is.
    pub fn source(&self) -> Option<String> {
        let is_pci = match self.name.as_str() {
            "hostdev" => self.attribute("type") == Some("pci"),
            "interface" => self.attribute("type") == Some("hostdev"),
            _ => false,
        };
        self.child("source").filter(|_| is_pci)?.address()
    }

    /// The element as libvirt formats it, at this depth: one element a line.
    pub fn format(&self, depth: usize) -> String {
        self.format_with(depth, '\'')
    }

    /// The same with the quotes that metadata get.
    pub fn format_with(&self, depth: usize, quote: char) -> String {
        let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let indent = "  ".repeat(depth);
        let mut out = format!("{indent}<{}", self.name);
        for (key, value) in &self.attributes {
            let value = escape(value).replace(quote, if quote == '"' { "&quot;" } else { "&apos;" });
            write!(out, " {key}={quote}{value}{quote}").unwrap();
        }
        let has_text = !self.text.trim().is_empty();
        if self.children.is_empty() && !has_text {
            return out + "/>\n";
        }
        out.push('>');
        if has_text {
            out += &escape(&self.text);
        } else {
            out.push('\n');
            out.extend(self.children.iter().map(|child| child.format_with(depth + 1, quote)));
            out += &indent;
        }
        write!(out, "</{}>", self.name).unwrap();
        out + "\n"
    }
}
