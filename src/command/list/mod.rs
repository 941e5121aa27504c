//! What `vfpool list` shows: one look at the host as pools see it. Pool, PF, VF, who has it; devices that guests hold
//! beside that; what could not be reattached.
//!
//! Reads only, takes no lock, asks no libvirt, and reads each attribute of sysfs once, so that it is fast on a host
//! with thousands of VFs. The types here are also the shape of `vfpool list --json`: what is absent is left out.

mod gather;
mod metrics;
mod text;
mod watch;

use crate::output;
pub use gather::Filter;
use host::log::Log;
use host::paths::Host;
use lease::Leases;
use model::address::PciAddress;
use model::error::{Error, Result};
use model::lease::{LeaseState, Role};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

/// A host's devices at one moment.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Listing {
    /// Of this shape: 1. It changes when a field goes away or means something else, not when one is added.
    pub version: u32,
    /// The pools, in the order of their files.
    pub pools: Vec<PoolView>,
    /// Devices of no pool that guests hold: fixed ones, and siblings.
    pub others: Vec<DeviceView>,
    /// With `--groups`: the IOMMU groups of the host by their numbers, then the devices that are in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<GroupView>>,
    /// The leases, by their guests' names.
    pub leases: Vec<LeaseView>,
    /// What could not be reattached, or was not yet.
    pub attention: Vec<Attention>,
    /// How often a process had to wait for one of our locks since boot.
    pub lock_waits: u64,
    /// What is wrong with pools and settings, one line each.
    #[serde(serialize_with = "as_texts")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub errors: Vec<Error>,
    /// How many of the errors are about pools.
    #[serde(skip)]
    pool_errors: usize,
}

/// A pool.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: String,
    /// Its PFs, in file order.
    pub pfs: Vec<PfView>,
    /// Its devices that are listed one by one.
    pub devices: Vec<DeviceView>,
}

/// A PF of a pool.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PfView {
    /// As the pool's file has it: network interface or address.
    pub name: String,
    /// Where it is. Absent: it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddress>,
    /// Its network interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netdev: Option<String>,
    /// What is known of it while it is there.
    #[serde(flatten)]
    pub found: Found,
    /// The guest that has the PF itself; its VFs are gone as long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// How many VFs it lacks. A PF that is missing lacks those that its line asks for, or one if that tells no number.
    pub missing: u32,
    /// Why it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Its VFs that are in the pool.
    pub devices: Vec<DeviceView>,
}

/// A PCI function as the host has it; all absent if it is missing.
#[derive(Debug, Clone, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Found {
    /// Its driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Its IOMMU group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<u32>,
    /// Its NUMA node, where the machine has several; a VF is where its PF is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
}

/// A device.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceView {
    /// Where it is.
    pub address: PciAddress,
    /// What is known of it while it is there.
    #[serde(flatten)]
    pub found: Found,
    /// Its pool; among groups only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// How it stands.
    #[serde(flatten)]
    pub state: DeviceState,
}

/// How a device stands: `"state"`, and what belongs to it.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum DeviceState {
    /// A guest could have it.
    Free,
    /// It is free, and the next start of a stopped guest would take it.
    Parked {
        /// Who points at it.
        guests: Vec<String>,
    },
    /// A guest has it.
    Leased {
        /// The guest.
        guest: String,
        /// Why the guest has it. Absent: it only has another device of the same IOMMU group.
        #[serde(skip_serializing_if = "Option::is_none")]
        role: Option<Role>,
        /// How far the lease is.
        #[serde(skip_serializing_if = "Option::is_none")]
        lease: Option<LeaseState>,
        /// The driver that it goes back to, if that is not the one it is on.
        #[serde(skip_serializing_if = "Option::is_none")]
        was_on: Option<String>,
    },
    /// The host, or a user without a lease, uses it or a device of its group.
    InUse {
        /// Who or what.
        by: String,
    },
    /// It is listed, and not there.
    Missing {
        /// What is wrong.
        why: String,
    },
    /// It is there, and an admin has to act before a guest can have it.
    Attention {
        /// The guest that left it so, if one did.
        #[serde(skip_serializing_if = "Option::is_none")]
        guest: Option<String>,
        /// What is wrong.
        why: String,
    },
    /// A bridge or port, which is never assigned to a guest; among groups only.
    Bridge,
}

/// An IOMMU group.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GroupView {
    /// Its number. Absent: these devices are in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// All members.
    pub devices: Vec<DeviceView>,
}

/// A guest's lease.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LeaseView {
    /// The guest.
    pub guest: String,
    /// How far it is.
    pub state: LeaseState,
}

/// What was not reattached.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Attention {
    /// By this guest.
    pub guest: String,
    /// What went wrong.
    pub why: String,
}

fn as_texts<S: serde::Serializer>(errors: &[Error], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(errors.iter().map(ToString::to_string))
}

impl PoolView {
    /// All of its devices, those of its PFs first.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceView> {
        self.pfs.iter().flat_map(|pf| &pf.devices).chain(&self.devices)
    }

    /// How many of its devices stand in each way, by the name of that.
    fn count(&self) -> BTreeMap<&'static str, u64> {
        let mut count = BTreeMap::new();
        for state in STATES {
            count.insert(state, 0);
        }
        for device in self.devices() {
            *count.entry(device.state.name()).or_default() += 1;
        }
        *count.entry("missing").or_default() += self.pfs.iter().map(|pf| u64::from(pf.missing)).sum::<u64>();
        count
    }
}

/// The names of the states that a pool's device can be in.
const STATES: [&str; 6] = ["free", "parked", "leased", "in-use", "missing", "attention"];

impl DeviceState {
    fn name(&self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Parked { .. } => "parked",
            Self::Leased { .. } => "leased",
            Self::InUse { .. } => "in-use",
            Self::Missing { .. } => "missing",
            Self::Attention { .. } => "attention",
            Self::Bridge => "bridge",
        }
    }
}

#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)] // what to look at, and how to show it
pub(crate) struct Arguments {
    /// Only these pools
    pool: Vec<String>,
    /// Group by IOMMU group, showing all members
    #[arg(long)]
    groups: bool,
    /// Show it again every 2 seconds, until Ctrl-C
    #[arg(long, conflicts_with_all = ["json", "metrics"])]
    watch: bool,
    /// As one JSON document
    #[arg(long, conflicts_with = "metrics")]
    json: bool,
    /// Counts for node_exporter's textfile collector, in Prometheus' text format
    #[arg(long, conflicts_with_all = ["groups", "pool"])]
    metrics: bool,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    let Arguments { pool, groups, watch: is_watch, json, metrics } = arguments;
    let gather = || Listing::gather(host, &Leases::load(host, log), &Filter { pools: pool, groups: *groups });
    let is_plain = anstream::AutoStream::choice(&io::stdout()) == anstream::ColorChoice::Never;
    let tree = |listing: &Listing| {
        let text = listing.to_string();
        if is_plain { anstream::adapter::strip_str(&text).to_string() } else { text }
    };
    if *is_watch {
        let draw = || match gather() {
            Ok(listing) => listing.errors.iter().fold(tree(&listing), |text, error| format!("{text}vfpool: {error}\n")),
            Err(error) => format!("vfpool: {error}\n"),
        };
        return watch::watch(draw, io::stdout().is_terminal(), &mut io::stdout());
    }
    let listing = gather()?;
    let text = match (json, metrics) {
        (true, _) => listing.json()?,
        (_, true) => listing.metrics(),
        _ => tree(&listing),
    };
    output::written(io::stdout().write_all(text.as_bytes()))?;
    match output::all(listing.errors) {
        // The metrics count them, so the file that they are written to is to be used.
        Err(error) if *metrics => {
            output::complain(&error);
            Ok(())
        }
        result => result,
    }
}
