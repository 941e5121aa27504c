//! One line of a pool's file, and what it stands for on the host now.

use super::Vfs;
use crate::files;
use crate::pci::ports;
use crate::pci::sysfs::PciView;
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::{Error, Result};
use std::fmt;
use std::path::PathBuf;

/// A PF of a pool, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pf {
    /// Where it is.
    pub address: PciAddress,
    /// How many VFs it is to have.
    pub vfs: Vfs,
    /// How many VFs it can have; at least 1.
    pub totalvfs: u32,
    /// Its network interfaces, one for each of its ports, if it is a NIC with a driver. First the one that the line
    /// names.
    pub ports: Vec<String>,
    /// Its line, for messages.
    pub at: Place,
}

/// A line of a pool's file; shown as `<pf dev='eth3'> in FILE line N`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub(super) element: String,
    pub(super) file: PathBuf,
    pub(super) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} line {}", self.element, self.file.display(), self.line)
    }
}

impl Place {
    /// Why this line cannot be used.
    pub(super) fn error(&self, why: impl fmt::Display) -> Error {
        Error::new(format!("Cannot use {self}: {why}"))
    }
}

/// What one line makes members of its pool.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) at: Place,
    pub(super) pool: String,
    pub(super) members: Members,
}

#[derive(Debug, Clone)]
pub(super) enum Members {
    VfsOf { pf: PfName, vfs: Vfs },
    Function(PciAddress),
}

/// A PF as the admin named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PfName {
    /// By its network interface.
    Netdev(String),
    /// By its address.
    Address(PciAddress),
}

impl fmt::Display for PfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netdev(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl PfName {
    /// Where it is now; `None` for a network interface that is not there, or belongs to no PCI function.
    fn address(&self, look: &dyn PciView) -> Option<PciAddress> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Netdev(name) => look.function_of(name),
        }
    }
}

const NO_SRIOV: &str = "Enable it in the firmware and the card's settings, or list the function as <address>";

impl Line {
    /// Why it cannot be used.
    pub(super) fn error(&self, why: impl fmt::Display) -> Error {
        Error::new(format!("Cannot use {} (pool '{}'): {why}", self.at, self.pool))
    }

    pub(super) fn no_function(&self) -> Error {
        self.error("there is no PCI function at this address")
            .remedy("Put the card back, or name one that `lspci -D` shows")
    }

    /// The driver, or what the card's firmware allows, sets the limit.
    fn no_vfs(&self, look: &dyn PciView, address: PciAddress) -> Error {
        let driver = look.identity(address).ok().flatten().and_then(|device| device.driver);
        let remedy = match driver.as_deref() {
            Some(driver @ ("i915" | "xe")) => format!(
                "Boot with {driver}.max_vfs=7 on the kernel's command line, if this kernel's {driver} has SR-IOV, or \
                 list the function as <address>"
            ),
            _ => "Allow VFs in the card's firmware or in the parameters of its driver, then reboot, or list the \
                  function as <address>"
                .to_owned(),
        };
        self.error(format_args!("{address} can have no VFs: its sriov_totalvfs is 0")).remedy(remedy)
    }

    pub(super) fn has_member(&self, look: &dyn PciView, device: &PciDevice) -> bool {
        match &self.members {
            Members::VfsOf { pf, .. } => device.physfn.is_some_and(|physfn| pf.address(look) == Some(physfn)),
            Members::Function(address) => device.address == *address,
        }
    }

    pub(super) fn is_pf(&self, look: &dyn PciView, address: PciAddress) -> bool {
        matches!(&self.members, Members::VfsOf { pf, .. } if pf.address(look) == Some(address))
    }

    pub(super) fn is_function(&self, address: PciAddress) -> bool {
        matches!(self.members, Members::Function(function) if function == address)
    }

    /// Whether both lines say the same, as far as can be told without looking at the hardware.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (&self.members, &other.members) {
            (Members::VfsOf { pf: one, .. }, Members::VfsOf { pf: other, .. }) => one == other,
            (Members::Function(one), Members::Function(other)) => one == other,
            _ => false,
        }
    }

    /// The PF of this line as it is now.
    pub(super) fn pf(&self, look: &dyn PciView) -> Option<Result<Pf>> {
        let Members::VfsOf { pf, vfs } = &self.members else { return None };
        let resolve = || {
            let address = pf.address(look).ok_or_else(|| match pf {
                PfName::Netdev(name) if look.host().netdev(name).exists() => self
                    .error(format_args!("the network interface {name} belongs to no PCI function"))
                    .remedy("Name the interface of the card itself"),
                PfName::Netdev(name) => self
                    .error(format_args!("there is no network interface {name}"))
                    .remedy("Put the card back, or name one that `ip link` shows, or its address"),
                PfName::Address(_) => unreachable!("an address is where it is"),
            })?;
            let folder = look.host().device(address);
            if !folder.exists() {
                return Err(self.no_function());
            }
            if let Some(pf) = look.physfn(address)? {
                return Err(self
                    .error(format_args!("{address} is itself a VF"))
                    .remedy(format!("Name its PF, which is {pf}")));
            }
            let path = folder.join("sriov_totalvfs");
            let totalvfs = match files::read_optional(&path)? {
                Some(text) => files::number(&path, &text)?,
                None => return Err(self.error(format_args!("{address} has no SR-IOV")).remedy(NO_SRIOV)),
            };
            if totalvfs == 0 {
                return Err(self.no_vfs(look, address));
            }
            let mut ports = ports::ports_of(look.host(), address)?;
            if let PfName::Netdev(name) = pf {
                ports.sort_by_key(|port| port != name);
            }
            Ok(Pf { address, vfs: *vfs, totalvfs, ports, at: self.at.clone() })
        };
        Some(resolve())
    }
}

/// Two lines have the same member: what to say of the later one.
pub(super) fn overlap(line: &Line, what: impl fmt::Display, other: &Line) -> Error {
    let pool = if line.pool == other.pool { String::new() } else { format!(" of pool '{}'", other.pool) };
    let is_split = line.pool != other.pool
        && matches!((&line.members, &other.members), (Members::Function(_), Members::VfsOf { .. }));
    let split = if is_split {
        ", or rename this file so that it comes first: its pool then has this VF, and the other pool the rest"
    } else {
        ""
    };
    line.error(format_args!("{what} is listed already by {}{pool}", other.at))
        .remedy(format!("Remove one of the two{split}"))
}
