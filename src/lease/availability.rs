//! Whether a guest could have a device right now, and who has it if not: the question of everything that chooses among
//! the members of a pool, and of every view of the host's devices. Answered by the decision about a start itself,
//! [`plan`].
//!
//! Asked without a lock, so the answer is good advice and no more: what decides is the claim, taken under the lock.

use crate::view::View;
use host::config::pool::Pool;
use model::address::PciAddress;
use model::device::PciDevice;
use model::domain::Assigned;
use model::error::{Error, Result};
use model::lease::{LeaseState, Role};
use model::plan::{Answer, Cause, Function, Owner, OwnerState, Refusal, plan};
use std::fmt;

/// How a device stands for one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It could be taken now.
    Free,
    /// There is no such device.
    Missing,
    /// No guest could have it, whatever else is stopped.
    Unusable {
        /// The reason.
        why: String,
    },
    /// Another guest has it, or a device of its IOMMU group.
    Leased {
        /// The other guest.
        guest: String,
    },
    /// A user without a lease, or the host itself, uses it or a device of its group.
    InUse {
        /// Who or what.
        by: String,
    },
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("free"),
            Self::Missing => f.write_str("missing"),
            Self::Unusable { why } => f.write_str(why),
            Self::Leased { guest } => write!(f, "guest '{guest}'"),
            Self::InUse { by } => f.write_str(by),
        }
    }
}

impl View<'_> {
    /// How a device stands for this guest, or for one that is only thought of: as a start with this device alone would
    /// find it.
    pub fn standing(&self, guest: Option<&str>, wanted: &Assigned) -> Result<Standing> {
        let Some(refusal) = self.refusal(guest, std::slice::from_ref(wanted))? else { return Ok(Standing::Free) };
        match refusal.cause {
            Cause::Guest(guest) => Ok(Standing::Leased { guest }),
            Cause::InUse(found) => Ok(Standing::InUse { by: found.to_string() }),
            Cause::Missing => Ok(Standing::Missing),
            Cause::Unusable => Ok(Standing::Unusable { why: refusal.why.reason().to_owned() }),
            Cause::Other => Err(refusal.why),
        }
    }

    /// Why a start with these devices would be refused, if it would: the hook's own decision, on what can be read
    /// without waiting for any driver.
    pub fn refusal(&self, guest: Option<&str>, assigned: &[Assigned]) -> Result<Option<Refusal>> {
        let mut scene = self.scene(assigned, |address, found| Ok((found, self.user(guest, address)?)))?;
        loop {
            match plan(&scene) {
                Ok(Answer::Detach(_)) => return Ok(None),
                Ok(Answer::FindUses(addresses)) => scene.uses.extend(self.host_uses(addresses)?),
                // For this reading, what a gone guest has left is still its.
                Ok(Answer::Recover(guest)) => {
                    let why = Error::new(format!("guest '{guest}' has it"));
                    return Ok(Some(Refusal { why, device: None, cause: Cause::Guest(guest) }));
                }
                Err(refusal) => return Ok(Some(refusal)),
            }
        }
    }

    /// The guest that has a device, as [`plan`] wants to know it.
    fn user(&self, guest: Option<&str>, address: PciAddress) -> Result<Option<Owner>> {
        let Some(owner) = self.owner(address)? else { return Ok(None) };
        let lease = self.lease(&owner).ok().flatten();
        let held = lease.as_ref().and_then(|lease| lease.held(address).cloned());
        let has_it = match &lease {
            // Until a guest that is gone has reattached it, it is no other guest's.
            Some(lease) => held.is_some() && (lease.state != LeaseState::Reserved || self.is_in_use(&owner, lease)),
            None => self.is_running(&owner),
        };
        let is_ours = guest == Some(owner.as_str());
        let state = if is_ours { OwnerState::Ourselves } else { OwnerState::InUse };
        Ok((is_ours || has_it).then_some(Owner { guest: owner, state, held }))
    }

    /// Why a device by itself keeps a guest that would have it in this role, if it does: another guest, or the host.
    pub fn standing_of_member(&self, member: &PciDevice, role: Role, is_named: bool) -> Result<Option<Standing>> {
        let function = Function { owner: self.user(None, member.address)?, device: member.clone() };
        if let Some(owner) = function.owner {
            return Ok(Some(Standing::Leased { guest: owner.guest }));
        }
        if !function.is_guarded(role, self.settings) {
            return Ok(None);
        }
        let found = self.host_use(member.address)?.filter(|found| found.refuses(is_named));
        Ok(found.map(|found| Standing::InUse { by: found.to_string() }))
    }

    /// How each member of a pool stands for this guest, in the pool's order.
    pub fn standings(&self, guest: Option<&str>, pool: &Pool) -> Result<Vec<(PciAddress, Standing)>> {
        let (members, _) = pool.members(&self.pci);
        let standing = |address| Ok((address, self.standing(guest, &pool.assigned(address))?));
        members.into_iter().map(standing).collect()
    }
}
