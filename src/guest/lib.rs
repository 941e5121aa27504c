//! What calls libvirt: the guests' definitions, and running guests.
//!
//! No hook depends on this crate: a hook that called libvirt would wait for itself.

mod edit;
mod hotplug;
mod parking;
pub mod reconcile;
pub mod requests;
pub mod session;
pub mod start;
pub mod virsh;
