//! What a guest holds: the format of a lease, and the states of its life. Data only: `lease::records` keeps leases
//! below /run/vfpool.

use crate::address::{PciAddress, PciId};
use crate::device::PciDevice;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One process, also after its pid was given to another: told apart by its start time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    #[serde(rename = "@pid")]
    pub pid: i32,
    /// Start time in clock ticks since boot, field 22 of proc(5)'s `/proc/PID/stat`.
    #[serde(rename = "@start")]
    pub start: u64,
}

/// The format written here. A lease with another one is not touched.
pub const VERSION: u32 = 1;

/// What each format has.
#[derive(Deserialize)]
struct Format {
    #[serde(rename = "@version")]
    version: u32,
}

/// Why a record is no lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// It has another format than [`VERSION`].
    Version(u32),
    /// It is no lease in any format.
    Corrupt(String),
}

/// What a guest holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "lease")]
pub struct Lease {
    /// The format, [`VERSION`] for what is written here.
    #[serde(rename = "@version")]
    pub version: u32,
    /// How far the guest is.
    #[serde(rename = "@state")]
    pub state: LeaseState,
    /// When a reservation ends by itself, in seconds since boot.
    #[serde(rename = "@until", skip_serializing_if = "Option::is_none", default)]
    pub until: Option<u64>,
    /// The libvirtd that starts or watches the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starter: Option<Process>,
    /// The guest's QEMU, once it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qemu: Option<Process>,
    /// The devices, in the order in which they were taken.
    #[serde(rename = "device", default)]
    pub devices: Vec<HeldDevice>,
}

/// The life of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// Chosen for a guest that is about to be started; nothing was touched yet.
    Reserved,
    /// Between `prepare` and `started`.
    Pending,
    /// The guest runs.
    Active,
    /// The start failed here; libvirt undoes its part and then says so.
    Failed,
    /// The guest is gone, libvirt has done its part of the stop, and the rest goes back.
    Returning,
}

impl LeaseState {
    /// All of them, in the order of a lease's life.
    pub const ALL: [Self; 5] = [Self::Reserved, Self::Pending, Self::Active, Self::Failed, Self::Returning];
}

impl LeaseState {
    /// Whether the guest has its devices, as far as the lease itself says.
    pub fn is_held(self) -> bool {
        matches!(self, Self::Pending | Self::Active | Self::Failed)
    }
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserved => "reserved",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Failed => "failed",
            Self::Returning => "returning",
        })
    }
}

/// A device that a guest holds, and how it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldDevice {
    /// Where it is.
    #[serde(rename = "@address")]
    pub address: PciAddress,
    /// What it is; another device at the same address is not ours.
    #[serde(rename = "@id")]
    pub id: PciId,
    /// Why it is held.
    #[serde(rename = "@role")]
    pub role: Role,
    /// The driver it had. None is restored as well: the device is left without a driver.
    #[serde(rename = "@driver", skip_serializing_if = "Option::is_none", default)]
    pub driver: Option<String>,
    /// The `driver_override` it had.
    #[serde(rename = "@override", skip_serializing_if = "Option::is_none", default)]
    pub driver_override: Option<String>,
    /// The number of VFs it had; they go when a PF leaves its driver.
    #[serde(rename = "@numvfs", skip_serializing_if = "is_zero", default)]
    pub numvfs: u32,
    /// The `sriov_drivers_autoprobe` it had; it is off while the VFs are made again.
    #[serde(rename = "@autoprobe", skip_serializing_if = "Option::is_none", default)]
    pub drivers_autoprobe: Option<bool>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Why a guest holds a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The guest's own; libvirt detaches and reattaches it.
    Managed,
    /// The guest's own, with managed='no': we detach and reattach it.
    Unmanaged,
    /// Of the same IOMMU group: VFIO wants it off its host driver.
    Sibling,
    /// VF of a PF that is taken: it vanishes, and is made again.
    Vf,
}

impl HeldDevice {
    /// The record of a device that is held from now on, as it is now.
    pub fn as_found(device: &PciDevice, role: Role) -> Self {
        Self {
            address: device.address,
            id: device.id,
            role,
            driver: device.driver.clone(),
            driver_override: device.driver_override.clone().flatten(),
            numvfs: device.numvfs,
            drivers_autoprobe: device.drivers_autoprobe.filter(|_| device.numvfs > 0),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Managed => "managed",
            Self::Unmanaged => "unmanaged",
            Self::Sibling => "sibling",
            Self::Vf => "vf",
        })
    }
}

impl Lease {
    /// A lease of a guest that is being started.
    pub fn new(starter: Option<Process>, devices: Vec<HeldDevice>) -> Self {
        Self { version: VERSION, state: LeaseState::Pending, until: None, starter, qemu: None, devices }
    }

    /// Reads a lease as it was recorded.
    ///
    /// # Errors
    /// It is not one that this version could have written.
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        // First, as a later format may differ in anything else.
        let Format { version } =
            quick_xml::de::from_str(text).map_err(|cause| Unreadable::Corrupt(cause.to_string()))?;
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        quick_xml::de::from_str(text).map_err(|cause| Unreadable::Corrupt(cause.to_string()))
    }

    /// The record of one device.
    pub fn held(&self, address: PciAddress) -> Option<&HeldDevice> {
        self.devices.iter().find(|held| held.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        let held = |address: &str, role, driver: Option<&str>| HeldDevice {
            address: address.parse().unwrap(),
            id: "8086:10d3".parse().unwrap(),
            role,
            driver: driver.map(str::to_owned),
            driver_override: None,
            numvfs: 0,
            drivers_autoprobe: None,
        };
        let devices = vec![
            held("0000:02:00.0", Role::Managed, Some("e1000e")),
            HeldDevice { numvfs: 7, driver_override: Some("x".into()), ..held("0000:02:00.1", Role::Sibling, None) },
        ];
        Lease { qemu: Some(Process { pid: 5, start: 6 }), ..Lease::new(Some(Process { pid: 3, start: 4 }), devices) }
    }

    /// The format of version 1, as it is on hosts: never to be edited.
    const VERSION_1: &str = "<lease version=\"1\" state=\"pending\">\
        <starter pid=\"3\" start=\"4\"/><qemu pid=\"5\" start=\"6\"/>\
        <device address=\"0000:02:00.0\" id=\"8086:10d3\" role=\"managed\" driver=\"e1000e\"/>\
        <device address=\"0000:02:00.1\" id=\"8086:10d3\" role=\"sibling\" override=\"x\" numvfs=\"7\"/></lease>";

    #[test]
    fn the_format_stays() {
        assert_eq!(quick_xml::se::to_string(&lease()).unwrap(), VERSION_1);
        assert_eq!(quick_xml::de::from_str::<Lease>(VERSION_1).unwrap(), lease());
        let none = Lease::new(None, Vec::new());
        assert_eq!(quick_xml::de::from_str::<Lease>(&quick_xml::se::to_string(&none).unwrap()).unwrap(), none);
    }
}
