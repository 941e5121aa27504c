//! PCI addresses and ids: the one parser for each of the notations that users and the kernel write.

use crate::error::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A PCI function's address: domain (up to 32 bit: VMD uses 0x10000 and up), bus, slot (0-31), function (0-7).
///
/// Read from `0000:02:00.1` (sysfs, lspci -D), `02:00.1` (lspci, the guide) and `pci_0000_02_00_1` (virsh nodedev).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    slot: u8,
    function: u8,
}

impl PciAddress {
    /// An address from its four numbers, as libvirt's `<address>` element gives them. `None` where one is out of range.
    pub fn from_numbers(domain: u32, bus: u32, slot: u32, function: u32) -> Option<Self> {
        if slot > 0x1f || function > 7 {
            return None;
        }
        Some(Self {
            domain,
            bus: u8::try_from(bus).ok()?,
            slot: u8::try_from(slot).ok()?,
            function: u8::try_from(function).ok()?,
        })
    }

    /// Domain, bus, slot and function, each with the text that libvirt writes for it.
    pub fn numbers(&self) -> [(u32, String); 4] {
        [
            (self.domain, format!("0x{:04x}", self.domain)),
            (self.bus.into(), format!("0x{:02x}", self.bus)),
            (self.slot.into(), format!("0x{:02x}", self.slot)),
            (self.function.into(), format!("0x{:x}", self.function)),
        ]
    }

    /// As libvirt's element.
    pub fn element(&self) -> String {
        let [(_, domain), (_, bus), (_, slot), (_, function)] = self.numbers();
        format!("<address type='pci' domain='{domain}' bus='{bus}' slot='{slot}' function='{function}'/>")
    }

    /// Its name for `virsh nodedev-dumpxml`: `pci_0000_02_00_1`.
    pub fn nodedev_name(&self) -> String {
        format!("pci_{:04x}_{:02x}_{:02x}_{:x}", self.domain, self.bus, self.slot, self.function)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.slot, self.function)
    }
}

/// Exactly `digits` hexadecimal digits (`u32::from_str_radix` alone would take a sign, and any length).
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    if !digits.contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(text, 16).ok()
}

impl FromStr for PciAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (numbers, dot) = match text.strip_prefix("pci_") {
                Some(rest) => (rest.replacen('_', ":", 2), '_'),
                None => (text.to_owned(), '.'),
            };
            let (front, function) = numbers.rsplit_once(dot)?;
            let (front, slot) = front.rsplit_once(':')?;
            let (domain, bus) = front.rsplit_once(':').unwrap_or(("0000", front));
            Self::from_numbers(hex(domain, 4..=8)?, hex(bus, 2..=2)?, hex(slot, 2..=2)?, hex(function, 1..=1)?)
        };
        parse().ok_or_else(|| {
            Error::new(format!("'{text}' is no PCI address; write it as 0000:02:00.1, 02:00.1 or pci_0000_02_00_1"))
        })
    }
}

/// Vendor and device id of a function, as `8086:10d3`. Addresses move; a device is believed only with its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciId {
    /// Vendor id, configuration space offset 0.
    pub vendor: u16,
    /// Device id, configuration space offset 2.
    pub device: u16,
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

impl FromStr for PciId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (vendor, device) = text.split_once(':')?;
            Some(Self {
                vendor: u16::try_from(hex(vendor, 4..=4)?).ok()?,
                device: u16::try_from(hex(device, 4..=4)?).ok()?,
            })
        };
        parse().ok_or_else(|| Error::new(format!("'{text}' is no PCI id; write it as 8086:10d3")))
    }
}

/// Both types are written in files the way they are shown.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
serde_as_text!(PciAddress);
serde_as_text!(PciId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notation_is_one_address() {
        for text in ["0000:02:00.1", "02:00.1", "pci_0000_02_00_1"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), "0000:02:00.1", "{text}");
        }
        assert_eq!("10000:E1:1f.7".parse::<PciAddress>().unwrap().to_string(), "10000:e1:1f.7");
    }

    #[test]
    fn bad_addresses_are_refused() {
        for text in [
            "",
            "02",
            "02:00",
            "2:0.1",
            "02:20.0",
            "02:00.8",
            "02:00.",
            "0:02:00.1",
            "0000:02:00.1 ",
            "+002:00.1",
            "0000:02:00.1.2",
            "0000:0000:02:00.1",
            "pci_02_00_1_0_0",
            "pci_0000_02_00.1",
            "0000_02_00_1",
            "../02:00.1",
            "g0:00.0",
            "123456789:00:00.0",
        ] {
            let error = text.parse::<PciAddress>().expect_err(text).to_string();
            assert!(error.contains("write it as"), "{error}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(PciAddress::from_numbers(0, 0x100, 0, 0).is_none());
        assert!(PciAddress::from_numbers(0, 0, 0x20, 0).is_none());
        assert!(PciAddress::from_numbers(0, 0, 0, 8).is_none());
    }
}
