//! PCI functions: read from sysfs, and moved between drivers.

pub mod bind;
pub mod ports;
pub mod snapshot;
pub mod sysfs;
