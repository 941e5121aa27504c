//! What vfpool knows and decides: addresses, devices, leases, the guest's XML, and the plan of a start.
//!
//! Pure: this crate depends on serde and quick-xml only, and `clippy.toml` beside it forbids files, processes and the
//! environment.

pub mod address;
pub mod assign;
pub mod device;
pub mod domain;
pub mod error;
pub mod host_use;
pub mod lease;
pub mod operation;
pub mod plan;
#[cfg(feature = "schema")]
mod schema;
pub mod settings;
pub mod step;
pub mod text;
