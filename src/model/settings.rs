//! The admin's settings for the whole host, `/etc/vfpool/host.xml`:
//!
//! ```xml
//! <host>
//!   <allow address='0000:02:00.1' id='8086:10d3'/>   <!-- may be assigned although the host uses it -->
//!   <devices max='64'/>               <!-- assigned devices a guest may have; 32 without this line -->
//!   <deadline seconds='60'/>          <!-- for each step on a device; 30 without this line -->
//!   <hook seconds='900'/>             <!-- for a hook that was there before vfpool; 300 without this line -->
//! </host>
//! ```

use crate::address::{PciAddress, PciId};
use quick_xml::DeError;
use serde::Deserialize;
use std::num::NonZeroU32;
use std::time::Duration;

/// What may be set for a host. Without a file, each value is its default.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename = "host", deny_unknown_fields)]
pub struct Settings {
    #[serde(default)]
    allow: Vec<Allow>,
    #[serde(default)]
    devices: Devices,
    #[serde(default)]
    deadline: Deadline,
    hook: Option<Deadline>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Allow {
    #[serde(rename = "@address")]
    address: PciAddress,
    /// Addresses move when a card is added or the firmware is updated: the line then allows no other device.
    #[serde(rename = "@id")]
    id: Option<PciId>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Devices {
    #[serde(rename = "@max")]
    max: usize,
}

impl Default for Devices {
    /// RHEL 7 Virtualization Deployment and Administration Guide, 16.1: 32 assigned devices for a guest.
    fn default() -> Self {
        Self { max: 32 }
    }
}

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Deadline {
    #[serde(rename = "@seconds")]
    seconds: NonZeroU32,
}

impl Default for Deadline {
    /// Some drivers take several seconds to let go of a card; more than this is a hang.
    fn default() -> Self {
        Self { seconds: NonZeroU32::new(30).expect("30 is not 0") }
    }
}

impl Settings {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// What the text has that is no setting, or no value of one.
    pub fn parse(text: &str) -> Result<Self, DeError> {
        quick_xml::de::from_str(text)
    }

    /// Whether the admin lets this device be assigned although the host uses it.
    pub fn allows(&self, address: PciAddress, id: PciId) -> bool {
        self.allow.iter().any(|allow| allow.address == address && allow.id.is_none_or(|only| only == id))
    }

    /// How many assigned devices a guest may have.
    pub fn most_devices(&self) -> usize {
        self.devices.max
    }

    /// How long one step on a device may take: a write, or the wait for what it should bring about.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline.seconds.get().into())
    }

    /// How long another hook may take. libvirt itself sets no limit.
    pub fn hook_deadline(&self) -> Duration {
        Duration::from_secs(self.hook.as_ref().map_or(300, |hook| hook.seconds.get().into()))
    }
}
