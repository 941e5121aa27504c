//! Whether a guest could have a device right now, and who has it if not: the question of everything that chooses among the
//! members of a pool.
//!
//! Asked without a lock, so the answer is good advice and no more: what decides is the claim, taken under the lock.

use crate::life::Life;
use crate::records::Records;
use host::config::pool::Pool;
use host::guard::{self, Guard};
use host::libvirt::runtime;
use host::paths::Host;
use host::pci::snapshot::Snapshot;
use host::pci::sysfs::PciView;
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::Result;
use model::host_use::HostUse;
use model::lease::{Lease, LeaseState};
use model::settings::Settings;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

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

/// Looks at the devices of one host, once: what it has found out about a guest or the host counts as long as it lives.
pub struct Availability<'a> {
    /// The devices.
    look: &'a dyn PciView,
    /// Who owns what.
    store: &'a Records<'a>,
    /// What the admin allows.
    settings: &'a Settings,
    /// For a look at all devices.
    all: Option<All<'a>>,
    holders: RefCell<BTreeMap<String, Option<Rc<Holder>>>>,
}

/// What is found out once for all devices, in place of once for each.
struct All<'a> {
    guard: Guard<'a>,
    claimed: BTreeSet<PciAddress>,
}

/// A guest that has devices, by its lease.
#[derive(Debug)]
pub struct Holder {
    /// What it has.
    pub lease: Lease,
    /// Whether it runs, or is being started.
    pub is_in_use: bool,
}

impl<'a> Availability<'a> {
    /// A look at the host for one guest.
    pub fn new(host: &'a Host, store: &'a Records<'a>, settings: &'a Settings) -> Self {
        Self { look: host, store, settings, all: None, holders: RefCell::default() }
    }

    /// A look at all devices of a host.
    pub fn of_all(snapshot: &'a Snapshot<'a>, store: &'a Records<'a>, settings: &'a Settings) -> Result<Self> {
        let guard = Guard::new(snapshot.host(), settings.deadline());
        let all = Some(All { guard, claimed: store.claimed()? });
        Ok(Self { look: snapshot, all, ..Self::new(snapshot.host(), store, settings) })
    }

    fn owner(&self, address: PciAddress) -> Result<Option<String>> {
        match &self.all {
            Some(all) if !all.claimed.contains(&address) => Ok(None),
            _ => self.store.owner(address),
        }
    }

    /// A guest's lease, read once.
    pub fn holder(&self, guest: &str) -> Option<Rc<Holder>> {
        if let Some(known) = self.holders.borrow().get(guest) {
            return known.clone();
        }
        let lease = self.store.lease_or_none(guest);
        let holder = lease.map(|lease| Rc::new(Holder { is_in_use: lease.is_in_use(self.look.host(), guest), lease }));
        self.holders.borrow_mut().insert(guest.to_owned(), holder.clone());
        holder
    }

    /// How a device stands for this guest.
    pub fn of(&self, guest: &str, address: PciAddress) -> Result<Standing> {
        let Some(device) = self.look.identity(address)? else { return Ok(Standing::Missing) };
        let Some(group) = device.group.filter(|_| device.is_endpoint()) else { return Ok(Standing::Missing) };
        for member in self.look.group_members(group)? {
            let member = if member == address { Some(device.clone()) } else { self.look.identity(member)? };
            let Some(member) = member.filter(|member| !member.is_bridge()) else { continue };
            if let Some(standing) = self.of_member(guest, &member)? {
                return Ok(standing);
            }
        }
        Ok(Standing::Free)
    }

    /// Why a device keeps this guest from its IOMMU group, if it does.
    pub fn of_member(&self, guest: &str, member: &PciDevice) -> Result<Option<Standing>> {
        match self.owner(member.address)? {
            Some(owner) if owner == guest => return Ok(None),
            Some(owner) => {
                let has_it = match self.holder(&owner) {
                    // Until a guest that is gone has given it back, it is nobody else's.
                    Some(holder) => {
                        let is_over = holder.lease.state == LeaseState::Reserved && !holder.is_in_use;
                        holder.lease.held(member.address).is_some() && !is_over
                    }
                    None => runtime::qemu(self.look.host(), &owner).is_some(),
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
        let need = match &self.all {
            Some(All { guard, .. }) => guard.of_one_of_many(member)?,
            None => guard::of(self.look.host(), member.address, self.settings.deadline())?,
        };
        let need = need.or_else(|| member.in_vfio_use.then(HostUse::in_vfio_by_somebody));
        Ok(need.map(|need| Standing::Needed { by: need.to_string() }))
    }

    /// How each member of a pool stands for this guest, in the pool's order, and what is wrong with the pool.
    pub fn of_pool(&self, guest: &str, pool: &Pool) -> Result<Vec<(PciAddress, Standing)>> {
        let (members, _) = pool.members(self.look);
        members.into_iter().map(|address| Ok((address, self.of(guest, address)?))).collect()
    }
}
