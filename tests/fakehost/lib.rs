//! A host in a temporary folder, for the real binaries to work on.
//!
//! [`Host`] lays out `sys`, `proc`, `etc`, `run` and `dev` as the kernel and libvirt do; the library of `kernel.rs`
//! makes the sysfs behave, and the program of `virsh.rs` is its libvirt. A test describes its host, calls the hook as
//! libvirt would, and compares [`Host::snapshot`]s.
#![allow(missing_docs)] // the names say it
#![allow(clippy::missing_panics_doc, clippy::new_without_default, clippy::return_self_not_must_use)] // tests call it

mod definitions;
mod device;
mod expect;
mod guests;
mod host;
mod libvirt;
mod programs;
mod run;
mod systemd;
pub mod tree;
pub mod xml;

pub use definitions::{
    NVME, PF, asking, definition, devices_of, domain, domain_with, group, hostdev, hostdev_at, interface_at, slot,
    source, uuid, vf,
};
pub use device::Device;
pub use expect::{Outcome, Snapshot, wait_until};
pub use guests::{FIRST, Guest, SECOND};
pub use host::Host;
pub use run::{Call, Running};
pub use systemd::Systemd;
