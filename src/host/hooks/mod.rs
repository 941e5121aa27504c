//! libvirt's hooks: ours, and those that were there before.

pub mod chain;
pub mod install;
