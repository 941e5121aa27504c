//! Whether a guest could have a device right now, and who has it if not: the question of everything that chooses among the
//! members of a pool.
//!
//! Asked without a lock, so the answer is good advice and no more: what decides is the claim, taken under the lock.

use crate::view::View;
use host::config::pool::Pool;
use host::pci::sysfs::PciView;
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::Result;
use model::host_use::HostUse;
use model::lease::LeaseState;
use std::fmt;

/// How a device stands for one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It could be taken now.
    Free,
    /// There is no such device, or none that a guest could have.
    Missing,
    /// Another guest has it, or a device of its IOMMU group.
    Leased {
        /// The other guest.
        guest: String,
    },
    /// Somebody of whom no lease tells, or the host itself, uses it or a device of its group.
    Needed {
        /// Who or what.
        by: String,
    },
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("free"),
            Self::Missing => f.write_str("missing"),
            Self::Leased { guest } => write!(f, "guest '{guest}'"),
            Self::Needed { by } => f.write_str(by),
        }
    }
}

impl View<'_> {
    /// How a device stands for this guest; for one that is only thought of, without a guest.
    pub fn standing(&self, guest: Option<&str>, address: PciAddress) -> Result<Standing> {
        let Some(device) = self.pci.identity(address)? else { return Ok(Standing::Missing) };
        let Some(group) = device.group.filter(|_| device.is_endpoint()) else { return Ok(Standing::Missing) };
        for member in self.pci.group_members(group)? {
            let Some(member) = self.pci.identity(member)?.filter(|member| !member.is_bridge()) else { continue };
            if let Some(standing) = self.standing_of_member(guest, &member)? {
                return Ok(standing);
            }
        }
        Ok(Standing::Free)
    }

    /// Why a device keeps this guest from its IOMMU group, if it does.
    pub fn standing_of_member(&self, guest: Option<&str>, member: &PciDevice) -> Result<Option<Standing>> {
        match self.owner(member.address)? {
            Some(owner) if Some(owner.as_str()) == guest => return Ok(None),
            Some(owner) => {
                let has_it = match self.lease(&owner).ok().flatten() {
                    // Until a guest that is gone has given it back, it is nobody else's.
                    Some(lease) => {
                        let is_over = lease.state == LeaseState::Reserved && !self.is_in_use(&owner, &lease);
                        lease.held(member.address).is_some() && !is_over
                    }
                    None => self.is_running(&owner),
                };
                if has_it {
                    return Ok(Some(Standing::Leased { guest: owner }));
                }
            }
            None => {}
        }
        let asks = member.in_vfio_use || member.on_host_driver() && !self.settings.allows(member.address);
        if !asks {
            return Ok(None);
        }
        let found = self.host_use(member)?.or_else(|| member.in_vfio_use.then(HostUse::in_vfio_by_somebody));
        Ok(found.map(|found| Standing::Needed { by: found.to_string() }))
    }

    /// How each member of a pool stands for this guest, in the pool's order.
    pub fn standings(&self, guest: Option<&str>, pool: &Pool) -> Result<Vec<(PciAddress, Standing)>> {
        let (members, _) = pool.members(&self.pci);
        members.into_iter().map(|address| Ok((address, self.standing(guest, address)?))).collect()
    }
}
