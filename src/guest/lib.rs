//! What calls libvirt: the guests' definitions, and running guests.
//!
//! No hook depends on this crate: a hook that called libvirt would wait for itself.

pub mod edit;
pub mod hotplug;
pub mod parking;
pub mod reconcile;
pub mod requests;
pub mod start;
pub mod virsh;
