//! The admin's settings for the whole host, `/etc/vfpool/host.xml`:
//!
//! ```xml
//! <host>
//!   <allow address='0000:02:00.1'/>   <!-- may be taken although the host uses it -->
//!   <devices max='64'/>               <!-- assigned devices a guest may have; 32 without this line -->
//!   <deadline seconds='60'/>          <!-- for each step on a device; 30 without this line -->
//!   <hook seconds='900'/>             <!-- for a hook that was there before vfpool; 300 without this line -->
//! </host>
//! ```

use crate::address::PciAddress;
use crate::error::{Error, Result};
use crate::host::Host;
use serde::Deserialize;
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

/// What may be set for a host. Without a file, each value is its default.
#[derive(Debug, Default, Deserialize)]
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
#[serde(deny_unknown_fields)]
struct Allow {
    #[serde(rename = "@address")]
    address: PciAddress,
}

#[derive(Debug, Deserialize)]
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
    /// Reads the host's settings.
    pub fn load(host: &Host) -> Result<Self> {
        let path = host.settings();
        match fs::read_to_string(&path) {
            Ok(text) => quick_xml::de::from_str(&text).map_err(|cause| {
                Error::new(format!(
                    "Cannot use {}: {cause}; until that is mended, none of its settings counts",
                    path.display()
                ))
            }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(cause) => Err(Error::io("read", &path, &cause)),
        }
    }

    /// Whether the admin lets this device be taken although the host uses it.
    pub fn allows(&self, address: PciAddress) -> bool {
        self.allow.iter().any(|allow| allow.address == address)
    }

    /// How many assigned devices a guest may have.
    pub fn most_devices(&self) -> usize {
        self.devices.max
    }

    /// How long one step on a device may take: a write, or the wait for what it should bring about.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline.seconds.get().into())
    }

    /// How long a hook of somebody else may take. libvirt itself would wait for ever.
    pub fn hook_deadline(&self) -> Duration {
        Duration::from_secs(self.hook.as_ref().map_or(300, |hook| hook.seconds.get().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings> {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        fs::create_dir_all(host.settings().parent().unwrap()).unwrap();
        fs::write(host.settings(), text).unwrap();
        Settings::load(&host)
    }

    #[test]
    fn each_setting_is_read() {
        let settings = load(
            "<host>\n<allow address='02:00.1'/><devices max='64'/><allow address='pci_0000_03_00_0'/>\
             <deadline seconds='2'/><hook seconds='3'/></host>",
        );
        let settings = settings.unwrap();
        assert!(settings.allows("0000:02:00.1".parse().unwrap()));
        assert!(settings.allows("0000:03:00.0".parse().unwrap()));
        assert!(!settings.allows("0000:02:00.0".parse().unwrap()));
        assert_eq!(settings.most_devices(), 64);
        assert_eq!((settings.deadline(), settings.hook_deadline()), (Duration::from_secs(2), Duration::from_secs(3)));
    }

    #[test]
    fn without_a_file_the_guide_holds() {
        let settings = Settings::load(&Host::new("/nonexistent")).unwrap();
        assert_eq!((settings.most_devices(), settings.deadline()), (32, Duration::from_secs(30)));
        assert_eq!(settings.hook_deadline(), Duration::from_secs(300));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("<host><alow address='02:00.1'/></host>", "alow"),
            ("<host><allow address='2:0.1'/></host>", "write it as 0000:02:00.1"),
            ("<host><devices max='many'/></host>", "many"),
            ("<host><deadline seconds='0'/></host>", "nonzero"),
            ("<host><devices", "host.xml"),
        ] {
            let error = load(text).expect_err(text).to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
