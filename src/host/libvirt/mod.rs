//! libvirt by its files. Reads only.

pub mod definitions;
pub mod networks;
pub mod runtime;
