//! PCI passthrough and SR-IOV on libvirt/KVM hosts that runs by itself.
//!
//! The modules build on each other, downwards only:
//!
//! | module | knows |
//! |---|---|
//! | [`error`], [`address`] | words: addresses, the one-line error |
//! | [`host`], [`log`] | where things are on this host, and where to tell about changes |
//! | [`patient`], [`sysfs`], [`process`], [`needs`] | the kernel: devices, processes, what the host itself needs |
//! | [`domain`], [`settings`], [`lease`], [`queue`] | the guest's XML, the admin's wishes, who holds what, what is left to do |
//! | [`pool`] | which devices are interchangeable for a guest |
//! | [`plan`] | pure: facts and leases in, a lease to take or a refusal out |
//! | [`apply`] | one device taken off its driver, or given back to it |
//! | [`event`] | one function for each thing that happens to a guest |
//!
//! Nothing here reads the environment, prints or exits: the mains do.

pub mod address;
pub mod apply;
pub mod domain;
pub mod error;
pub mod event;
pub mod host;
pub mod lease;
pub mod log;
pub mod needs;
pub mod patient;
pub mod plan;
pub mod pool;
pub mod process;
pub mod queue;
pub mod settings;
pub mod sysfs;
