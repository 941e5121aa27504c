//! Whether a guest could have a device right now, and who has it if not: the question of everything that chooses among the
//! members of a pool.
//!
//! Asked without a lock, so the answer is good advice and no more: what decides is the claim, taken under the lock.

use crate::address::PciAddress;
use crate::error::Result;
use crate::host::Host;
use crate::lease::Store;
use crate::needs;
use crate::pool::Pool;
use crate::process;
use crate::settings::Settings;
use crate::sysfs::{self, Device};
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

/// Looks at the devices of one host.
pub struct Availability<'a> {
    /// The host.
    pub host: &'a Host,
    /// Who owns what.
    pub store: &'a Store<'a>,
    /// What the admin allows.
    pub settings: &'a Settings,
}

impl Availability<'_> {
    /// How a device stands for this guest.
    pub fn of(&self, guest: &str, address: PciAddress) -> Result<Standing> {
        let Some(device) = sysfs::identity(self.host, address)? else { return Ok(Standing::Missing) };
        let Some(group) = device.group.filter(|_| device.is_endpoint()) else { return Ok(Standing::Missing) };
        for member in sysfs::group_members(self.host, group)? {
            let member = if member == address { Some(device.clone()) } else { sysfs::identity(self.host, member)? };
            let Some(member) = member.filter(|member| !member.is_bridge()) else { continue };
            if let Some(standing) = self.of_member(guest, &member)? {
                return Ok(standing);
            }
        }
        Ok(Standing::Free)
    }

    /// Why a device keeps this guest from its IOMMU group, if it does.
    pub fn of_member(&self, guest: &str, member: &Device) -> Result<Option<Standing>> {
        match self.store.owner(member.address)? {
            Some(owner) if owner == guest => return Ok(None),
            Some(owner) => {
                let has_it = match self.store.peek(&owner) {
                    // Until a guest that is gone has given it back, it is nobody else's.
                    Some(lease) => lease.held(member.address).is_some() && !lease.is_over(self.host),
                    None => process::qemu(self.host, &owner).is_some(),
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
        let need = needs::of(self.host, member.address, self.settings.deadline())?;
        Ok(need.map(|need| Standing::Needed { by: need.to_string() }))
    }

    /// How each member of a pool stands for this guest, in the pool's order, and what is wrong with the pool.
    pub fn of_pool(&self, guest: &str, pool: &Pool) -> Result<Vec<(PciAddress, Standing)>> {
        let (members, _) = pool.members(self.host);
        members.into_iter().map(|address| Ok((address, self.of(guest, address)?))).collect()
    }
}
