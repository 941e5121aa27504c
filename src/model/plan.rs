//! What a guest's start takes: facts and leases in, a list of devices to take or a refusal out.
//!
//! Pure. [`Scene`] is gathered by the event; a fact that is dear to find out (what the host uses, who is busy) is asked
//! for by an [`Answer`] when the decision really hangs on it.

use crate::address::PciAddress;
use crate::device::PciDevice;
use crate::domain::Assigned;
use crate::error::Error;
use crate::host_use::HostUse;
use crate::lease::{HeldDevice, Role};
use crate::settings::Settings;
use std::collections::BTreeMap;

/// All that decides about the start of one guest.
pub struct Scene<'a> {
    /// What the guest's definition asks for.
    pub assigned: &'a [Assigned],
    /// Each function that the start could touch: the assigned ones, the other members of their groups, and the VFs of the
    /// PFs among them.
    pub functions: BTreeMap<PciAddress, Function>,
    /// Who owns functions that are asked for and not there: VFs go with a PF that another guest has.
    pub missing: BTreeMap<PciAddress, Owner>,
    /// What the host uses each device for, as far as that has been asked.
    pub uses: &'a BTreeMap<PciAddress, Option<HostUse>>,
    /// The admin's settings.
    pub settings: &'a Settings,
    /// Why devices that are asked for from a pool are none of it.
    pub not_members: &'a BTreeMap<PciAddress, Error>,
    /// Why the settings could not be read, if so; told with a refusal that they might have prevented.
    pub settings_error: Option<&'a Error>,
}

/// A function and who owns it.
#[derive(Debug)]
pub struct Function {
    /// As it is now.
    pub device: PciDevice,
    /// The owner of its claim.
    pub owner: Option<Owner>,
}

/// The guest that has claimed a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The guest's name.
    pub guest: String,
    /// Whether it still uses the device.
    pub state: OwnerState,
    /// Its record of this device, if there is one that fits the device which is here now.
    pub held: Option<HeldDevice>,
}

/// What the owner of a device is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    /// It is the guest of this very start.
    Ourselves,
    /// It runs, or is being started.
    InUse,
    /// It is gone, but its devices were not given back.
    Gone,
    /// It is gone, and libvirt is just giving its devices back.
    Stopping,
    /// It is gone, and giving its devices back has been tried in vain.
    Stuck,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Record this and take these, in this order; the last ones go first back.
    Take(Vec<HeldDevice>),
    /// Find out what the host uses these devices for, all at once, and ask again.
    FindUses(Vec<PciAddress>),
    /// Give back what this gone guest left, and ask again.
    Recover(String),
}

/// Why a start is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, for the admin.
    pub why: Error,
    /// The guest's own device because of which it is, if it is one.
    pub device: Option<PciAddress>,
}

impl From<Error> for Refusal {
    fn from(why: Error) -> Self {
        Self { why, device: None }
    }
}

/// Decides about a guest's start.
///
/// # Errors
/// The reason to refuse it.
pub fn plan(scene: &Scene) -> Result<Answer, Refusal> {
    let about = |device: PciAddress| move |why: Error| Refusal { why, device: Some(device) };
    let assigned = scene.assigned.len();
    let most = scene.settings.most_devices();
    if assigned > most {
        return Err(Error::new(format!(
            "it has {assigned} assigned PCI devices, and {most} is the most a guest may have"
        ))
        .remedy(format!(
            "Remove some, or raise the limit with <devices max='{assigned}'/> in /etc/vfpool/host.xml{}",
            scene.settings_note()
        ))
        .into());
    }
    for wanted in scene.assigned {
        if let Some(why) = scene.not_members.get(&wanted.address) {
            return Err(about(wanted.address)(why.clone()));
        }
    }
    let missing = scene.assigned.iter().filter_map(|wanted| scene.missing.get_key_value(&wanted.address));
    for (address, owner) in missing {
        match owner.state {
            OwnerState::Gone => return Ok(Answer::Recover(owner.guest.clone())),
            OwnerState::Stopping => return Err(about(*address)(refuse_stopping(*address, owner))),
            OwnerState::InUse => return Err(about(*address)(refuse_missing(*address, owner))),
            OwnerState::Ourselves | OwnerState::Stuck => {}
        }
    }
    let taken = scene.taken()?;
    // The guest's own devices, which come last, are what the admin knows of.
    for take in taken.iter().rev() {
        if let Some(owner) = &take.function.owner {
            match owner.state {
                OwnerState::Ourselves | OwnerState::Stuck => {}
                OwnerState::Gone => return Ok(Answer::Recover(owner.guest.clone())),
                OwnerState::InUse => return Err(about(take.reason)(scene.refuse_shared(take, owner))),
                OwnerState::Stopping => {
                    return Err(about(take.reason)(refuse_stopping(take.function.device.address, owner)));
                }
            }
        }
    }
    let mut unknown = Vec::new();
    for take in &taken {
        if scene.wants_guard(take) {
            match scene.uses.get(&take.function.device.address) {
                None => unknown.push(take.function.device.address),
                Some(Some(need)) if need.is_vital() || take.role != Role::Managed => {
                    return Err(about(take.reason)(scene.refuse_needed(take, need)));
                }
                Some(_) => {}
            }
        }
    }
    if !unknown.is_empty() {
        return Ok(Answer::FindUses(unknown));
    }
    Ok(Answer::Take(taken.iter().map(Take::record).collect()))
}

/// A function that the start would take.
struct Take<'a> {
    function: &'a Function,
    role: Role,
    /// The guest's device because of which it is taken; itself, for that one.
    reason: PciAddress,
}

impl Take<'_> {
    /// What is known of it now, or was when it was first taken.
    fn record(&self) -> HeldDevice {
        let device = &self.function.device;
        let before = self.function.owner.as_ref().and_then(|owner| owner.held.clone());
        HeldDevice { role: self.role, ..before.unwrap_or_else(|| HeldDevice::as_found(device, self.role)) }
    }

    fn describe(&self) -> String {
        let address = self.function.device.address;
        match self.role {
            Role::Managed | Role::Unmanaged => address.to_string(),
            Role::Sibling => format!("{address} (sibling of {})", self.reason),
            Role::Vf => format!("{address} (VF that goes with {})", self.reason),
        }
    }
}

impl<'a> Scene<'a> {
    /// Every function that the start takes: first the VFs that go with their PF, then siblings, then the guest's own.
    fn taken(&'a self) -> Result<Vec<Take<'a>>, Refusal> {
        let mut own = Vec::new();
        let mut siblings: Vec<Take> = Vec::new();
        for wanted in self.assigned {
            let about = |why| Refusal { why, device: Some(wanted.address) };
            let (function, group) = self.assignable(wanted.address).map_err(about)?;
            let role = if wanted.managed { Role::Managed } else { Role::Unmanaged };
            own.push(Take { function, role, reason: wanted.address });
            for member in self.functions.values().filter(|member| member.device.group == Some(group)) {
                let address = member.device.address;
                let known = self.assigned.iter().any(|other| other.address == address)
                    || siblings.iter().any(|sibling| sibling.function.device.address == address);
                if !member.device.is_bridge() && !known {
                    siblings.push(Take { function: member, role: Role::Sibling, reason: wanted.address });
                }
            }
        }
        let loses_vfs = |pf: PciAddress| {
            let mut taken = siblings.iter().chain(&own).map(|take| &take.function.device);
            taken.any(|device| device.address == pf && device.numvfs > 0 && device.on_host_driver())
        };
        if let Some(vf) = own.iter().find(|take| take.function.device.physfn.is_some_and(&loses_vfs)) {
            return Err(Refusal { why: refuse_vf(&vf.function.device), device: Some(vf.function.device.address) });
        }
        let vfs: Vec<Take> = self
            .functions
            .values()
            .filter_map(|function| Some((function, function.device.physfn?)))
            .filter(|(_, pf)| loses_vfs(*pf))
            .map(|(function, reason)| Take { function, role: Role::Vf, reason })
            .collect();
        siblings.retain(|sibling| !vfs.iter().any(|vf| std::ptr::eq(vf.function, sibling.function)));
        Ok(vfs.into_iter().chain(siblings).chain(own).collect())
    }

    /// The function at an address that a guest may have, and its group.
    fn assignable(&'a self, address: PciAddress) -> Result<(&'a Function, u32), Error> {
        let Some(function) = self.functions.get(&address) else {
            return Err(Error::new(format!("there is no PCI device {address} on this host"))
                .remedy("See `lspci -D` for what there is; a guest is corrected with `virsh edit`"));
        };
        if !function.device.is_endpoint() {
            return Err(Error::new(format!("{address} is a bridge, and only endpoints can be given to a guest"))
                .remedy("Assign a device behind it"));
        }
        let Some(group) = function.device.group else {
            return Err(Error::new(format!("{address} has no IOMMU group: the IOMMU is off")).remedy(
                "Switch VT-d or AMD-Vi on in the firmware, add 'intel_iommu=on iommu=pt' (AMD: 'iommu=pt') to \
                 GRUB_CMDLINE_LINUX in /etc/default/grub, run grub2-mkconfig (Debian: update-grub) and reboot",
            ));
        };
        Ok((function, group))
    }

    /// The guard asks only for devices that would leave a host driver, or vanish, and that the admin has not allowed; and
    /// for those that somebody uses of whom no lease tells.
    fn wants_guard(&self, take: &Take) -> bool {
        let device = &take.function.device;
        if device.in_vfio_use && take.function.owner.is_none() {
            return true;
        }
        (device.on_host_driver() || take.role == Role::Vf) && !self.settings.allows(device.address)
    }

    fn refuse_shared(&self, take: &Take, owner: &Owner) -> Error {
        let other = &owner.guest;
        let group = take.function.device.group;
        // Of a group, the device that the other guest asked for explains more than its siblings.
        let theirs = self.functions.values().find(|function| {
            let held =
                function.owner.as_ref().filter(|owner| owner.guest == *other).and_then(|owner| owner.held.as_ref());
            function.device.group == group
                && held.is_some_and(|held| matches!(held.role, Role::Managed | Role::Unmanaged))
        });
        let what = match (theirs.map(|function| function.device.address), group) {
            (Some(theirs), Some(group)) if theirs != take.reason && take.role != Role::Vf => format!(
                "{} is not free: guest '{other}' has {theirs} of the same IOMMU group {group}, and a group goes to one \
                 guest as a whole",
                take.reason
            ),
            _ => format!("{} is not free: guest '{other}' has it", take.describe()),
        };
        Error::new(what).remedy(format!("Stop '{other}' first, or use another device"))
    }

    /// Settings that were made and do not count explain many a refusal.
    fn settings_note(&self) -> String {
        self.settings_error.map_or_else(String::new, |error| format!(". {error}"))
    }

    fn refuse_needed(&self, take: &Take, need: &HostUse) -> Error {
        let address = take.function.device.address;
        if matches!(need, HostUse::InVfio { .. }) {
            let what = take.describe();
            return Error::new(format!("{what} is not free: {need}"))
                .remedy(format!("{} first, or use another device", need.remedy()));
        }
        Error::new(format!("Cannot detach {}: {need}", take.describe())).remedy(format!(
            "{}, or allow it with <allow address='{address}'/> in /etc/vfpool/host.xml{}",
            need.remedy(),
            self.settings_note()
        ))
    }
}

fn refuse_missing(address: PciAddress, owner: &Owner) -> Error {
    let other = &owner.guest;
    Error::new(format!("{address} is not there as long as guest '{other}' has the PF that it belongs to"))
        .remedy(format!("Stop '{other}' first, or use another device"))
}

fn refuse_stopping(address: PciAddress, owner: &Owner) -> Error {
    let other = &owner.guest;
    Error::new(format!("{address} is not free yet: guest '{other}' is just being stopped"))
        .remedy("Try again when that is over")
}

fn refuse_vf(vf: &PciDevice) -> Error {
    let pf = vf.physfn.map_or_else(String::new, |pf| pf.to_string());
    Error::new(format!(
        "{} cannot be given to a guest: its PF {pf} is taken with it, and without the PF's driver the VF vanishes",
        vf.address
    ))
    .remedy(format!(
        "Put the card into a slot with ACS, so that each VF has an IOMMU group of its own, or give the guest {pf} alone"
    ))
}
