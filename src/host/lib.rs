//! The host, one fact read or one thing written at a time: the kernel's files, processes, libvirt's files, our
//! settings.
//!
//! Decides nothing, and never runs virsh.

pub mod command;
pub mod config;
pub mod files;
pub mod guard;
pub mod hooks;
pub mod libvirt;
pub mod log;
pub mod memory;
pub mod open_files;
pub mod parked;
pub mod paths;
pub mod pci;
pub mod process;
pub mod queue;
pub mod syscall;
