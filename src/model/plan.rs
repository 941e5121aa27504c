//! Decides about a guest's start: facts and leases in; a list of devices to detach, or a refusal, out.
//!
//! Pure. The event gathers the [`Scene`]. Facts that need long to find out (what the host uses a device for) are not in
//! the first scene: [`plan`] asks for them with an [`Answer`], and only if the decision depends on them.

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
    /// The guest's PCI devices, from the XML that libvirt starts it with.
    pub assigned: &'a [Assigned],
    /// Each function that the start could touch: the assigned ones, the other members of their groups, the VFs of the
    /// PFs among them, and what is behind controllers among them.
    pub functions: BTreeMap<PciAddress, Function>,
    /// Assigned functions that do not exist, with their owners: the VFs of a PF that another guest has.
    pub missing: BTreeMap<PciAddress, Owner>,
    /// What the host uses each device for. No entry: not asked yet. `None`: the host does not use it.
    pub uses: BTreeMap<PciAddress, Option<HostUse>>,
    /// The members of these groups that are no PCI functions and have a driver, as `NAME is on DRIVER`.
    pub platform: BTreeMap<u32, Vec<String>>,
    /// Whether any device of this host has an IOMMU group.
    pub iommu_is_on: bool,
    /// The admin's settings.
    pub settings: &'a Settings,
    /// Pooled devices that are not in their pool, and why.
    pub not_members: &'a BTreeMap<PciAddress, Error>,
    /// Why the settings could not be read, if so; added to each refusal that a setting might have prevented.
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
    /// Its record of this device, if the device that has this address now is the recorded one.
    pub held: Option<HeldDevice>,
}

/// What the owner of a device is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    /// It is the guest of this very start.
    Ourselves,
    /// It runs, or is being started.
    InUse,
    /// It is gone. Reattaching its devices has not been tried in this start.
    Gone,
    /// It is gone. Tried: libvirt has not reattached its managed devices yet.
    Stopping,
    /// It is gone. Tried: a device could not be reattached. Nobody uses it, so this guest may take it over, with the
    /// record of how it was found.
    Stuck,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Record these devices, and detach them in this order. They are reattached in reverse order.
    Detach(Vec<HeldDevice>),
    /// Find out what the host uses these devices for, all at once, and ask again.
    FindUses(Vec<PciAddress>),
    /// Reattach what this gone guest left, and ask again.
    Recover(String),
}

/// Why a start is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, for the admin.
    pub why: Error,
    /// The guest's own device that is the reason, if one is.
    pub device: Option<PciAddress>,
    /// What keeps the guest from it.
    pub cause: Cause,
}

/// What keeps a guest from a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Another guest has it, or what goes with it.
    Guest(String),
    /// The host, or a program, uses it or another device of its group.
    InUse(Box<HostUse>),
    /// It is not there.
    Missing,
    /// No guest can have it, whatever else is stopped.
    Unusable,
    /// The guest asks for what it may not have, or it could not be found out.
    Other,
}

impl From<Error> for Refusal {
    fn from(why: Error) -> Self {
        Self { why, device: None, cause: Cause::Other }
    }
}

/// Decides about a guest's start.
///
/// # Errors
/// The reason to refuse it.
pub fn plan(scene: &Scene) -> Result<Answer, Refusal> {
    scene.expect_few()?;
    for wanted in scene.assigned {
        if let Some(why) = scene.not_members.get(&wanted.address) {
            return Err(Refusal { why: why.clone(), device: Some(wanted.address), cause: Cause::Other });
        }
    }
    let missing = scene.assigned.iter().filter_map(|wanted| scene.missing.get_key_value(&wanted.address));
    for (address, owner) in missing {
        let refuse = |why| Refusal { why, device: Some(*address), cause: Cause::Guest(owner.guest.clone()) };
        match owner.state {
            OwnerState::Gone => return Ok(Answer::Recover(owner.guest.clone())),
            OwnerState::Stopping => return Err(refuse(refuse_stopping(*address, owner))),
            OwnerState::InUse => return Err(refuse(refuse_missing(*address, owner))),
            // `needs` refuses it as a device that does not exist.
            OwnerState::Ourselves | OwnerState::Stuck => {}
        }
    }
    let needs = scene.needs()?;
    // In reverse: a refusal then names the guest's own device, which the admin knows.
    for need in needs.iter().rev().chain(&scene.lost(&needs)) {
        if let Some(owner) = &need.function.owner {
            let why = match owner.state {
                OwnerState::Ourselves | OwnerState::Stuck => continue,
                OwnerState::Gone => return Ok(Answer::Recover(owner.guest.clone())),
                OwnerState::InUse => scene.refuse_shared(need, owner),
                OwnerState::Stopping => refuse_stopping(need.function.device.address, owner),
            };
            return Err(Refusal { why, device: Some(need.reason), cause: Cause::Guest(owner.guest.clone()) });
        }
    }
    scene.expect_usable(&needs)?;
    let mut unknown = Vec::new();
    for need in &needs {
        if need.function.is_guarded(need.role, scene.settings) {
            match scene.uses.get(&need.function.device.address) {
                None => unknown.push(need.function.device.address),
                Some(Some(found)) if found.refuses(need.is_named) => {
                    let (why, cause) = (scene.refuse_used(need, found), Cause::InUse(Box::new(found.clone())));
                    return Err(Refusal { why, device: Some(need.reason), cause });
                }
                Some(_) => {}
            }
        }
    }
    if !unknown.is_empty() {
        return Ok(Answer::FindUses(unknown));
    }
    Ok(Answer::Detach(needs.iter().map(Need::record).collect()))
}

impl Function {
    /// Whether the guard has to be asked: the device would leave a host driver or vanish, and the admin has not allowed
    /// that; or, allowed or not, it is in use through VFIO without a lease.
    pub fn is_guarded(&self, role: Role, settings: &Settings) -> bool {
        let device = &self.device;
        if device.on_vfio && self.owner.is_none() {
            return true;
        }
        (device.on_host_driver() || role == Role::Vf) && !settings.allows(device.address, device.id)
    }
}

impl Assigned {
    /// Whether the guest names this device, so that it gets it although the host has it merely up or open, as libvirt
    /// always did. Not with managed='no', where vfpool detaches it, and not a VF of a pool, where any other will do:
    /// those that the host uses stay with the host.
    pub fn names(&self, device: &PciDevice) -> bool {
        self.managed && (self.pool.is_none() || device.physfn.is_none())
    }
}

/// A function that the start needs: to be detached, or to vanish with its PF.
struct Need<'a> {
    function: &'a Function,
    role: Role,
    /// The guest's own device that needs it; for that device, itself.
    reason: PciAddress,
    /// Whether the guest names it.
    is_named: bool,
}

impl Need<'_> {
    /// The record for the lease: as the device was when it was first detached, or as it is now.
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
            Role::Vf => match (self.function.device.physfn, self.function.device.controller) {
                (Some(pf), _) => format!("{address} (VF that goes with {pf})"),
                (None, controller) => format!("{address} (goes with {})", controller.unwrap_or(self.reason)),
            },
        }
    }
}

impl<'a> Scene<'a> {
    fn expect_few(&self) -> Result<(), Error> {
        let (assigned, most) = (self.assigned.len(), self.settings.most_devices());
        if assigned <= most {
            return Ok(());
        }
        let why = format!("it has {assigned} assigned PCI devices, and {most} is the most a guest may have");
        Err(Error::new(why).remedy(format!(
            "Remove some, or raise the limit with <devices max='{assigned}'/> in /etc/vfpool/host.xml{}",
            self.settings_note()
        )))
    }

    /// Every function that the start needs: first the VFs that go with their PF, then siblings, then the guest's own.
    /// They are reattached in reverse order, so the VFs come last, when their PF is back.
    fn needs(&'a self) -> Result<Vec<Need<'a>>, Refusal> {
        let mut own = Vec::new();
        let mut siblings: Vec<Need> = Vec::new();
        for wanted in self.assigned {
            let Some(function) = self.functions.get(&wanted.address) else {
                let why = Error::new(format!("there is no PCI device {} on this host", wanted.address))
                    .remedy("See `lspci -D` for what there is; a guest is corrected with `virsh edit`");
                return Err(Refusal { why, device: Some(wanted.address), cause: Cause::Missing });
            };
            // What another guest has is refused for that.
            let is_ours = |owner: &Owner| matches!(owner.state, OwnerState::Ourselves | OwnerState::Stuck);
            if function.owner.as_ref().is_none_or(is_ours) {
                self.expect_assignable(&function.device)?;
            }
            let role = if wanted.managed { Role::Managed } else { Role::Unmanaged };
            let is_named = wanted.names(&function.device);
            own.push(Need { function, role, reason: wanted.address, is_named });
            let Some(group) = function.device.group else { continue };
            for member in self.functions.values().filter(|member| member.device.group == Some(group)) {
                let address = member.device.address;
                let known = self.assigned.iter().any(|other| other.address == address)
                    || siblings.iter().any(|sibling| sibling.function.device.address == address);
                if !member.device.is_bridge() && !known {
                    let role = Role::Sibling;
                    siblings.push(Need { function: member, role, reason: wanted.address, is_named: false });
                }
            }
        }
        // The guest's device because of which a PF leaves its host driver. A PF on vfio-pci has no VFs to lose: they
        // went with its host driver, or are vfio-pci's own.
        let lost_for = |pf: PciAddress| {
            let lost = |device: &PciDevice| device.address == pf && device.numvfs > 0 && device.on_host_driver();
            siblings.iter().chain(&own).find(|need| lost(&need.function.device)).map(|need| need.reason)
        };
        let vfs: Vec<Need> = self
            .functions
            .values()
            .filter(|function| !own.iter().any(|need| std::ptr::eq(need.function, *function)))
            .filter_map(|function| Some((function, lost_for(function.device.physfn?)?)))
            .map(|(function, reason)| Need { function, role: Role::Vf, reason, is_named: false })
            .collect();
        // A VF in the group of the guest's device is recorded once, as a VF.
        siblings.retain(|sibling| !vfs.iter().any(|vf| std::ptr::eq(vf.function, sibling.function)));
        Ok(vfs.into_iter().chain(siblings).chain(own).collect())
    }

    /// The functions behind a controller that the guest needs, which vanish with the controller's driver. They are not
    /// recorded: that driver finds them again.
    fn lost(&'a self, needs: &[Need<'a>]) -> Vec<Need<'a>> {
        let behind = |need: &Need<'a>| {
            let controller = need.function.device.address;
            let reason = need.reason;
            let is_behind = move |function: &&Function| function.device.controller == Some(controller);
            let found = self.functions.values().filter(is_behind);
            found.map(move |function| Need { function, role: Role::Vf, reason, is_named: false })
        };
        let leaves = |need: &&Need| need.function.device.on_host_driver();
        let lost = needs.iter().filter(leaves).flat_map(behind);
        lost.filter(|lost| !needs.iter().any(|need| std::ptr::eq(need.function, lost.function))).collect()
    }

    /// A device that a guest may have.
    fn expect_assignable(&self, device: &PciDevice) -> Result<(), Refusal> {
        let address = device.address;
        let why = if !device.answers {
            refuse_silent(address)
        } else if device.is_bridge() {
            Error::new(format!("{address} is a bridge, and only endpoints can be assigned to a guest"))
                .remedy("Assign a device behind it")
        } else if device.group.is_some() {
            return Ok(());
        } else {
            no_group(address, self.iommu_is_on)
        };
        Err(Refusal { why, device: Some(address), cause: Cause::Unusable })
    }

    /// A group that VFIO will accept, and that leaves the guest its devices.
    fn expect_usable(&self, needs: &[Need]) -> Result<(), Refusal> {
        let is_lost = |host: PciAddress| {
            needs
                .iter()
                .map(|need| &need.function.device)
                .find(|device| device.address == host && device.on_host_driver())
        };
        for need in needs {
            let device = &need.function.device;
            let is_own = matches!(need.role, Role::Managed | Role::Unmanaged);
            let bridges = self.functions.values().map(|function| &function.device);
            let mut bridges = bridges.filter(|member| member.group == device.group && member.blocks_its_group());
            let mut platform = device.group.and_then(|group| self.platform.get(&group)).into_iter().flatten();
            let why = if !device.answers && !device.on_vfio {
                refuse_silent(device.address)
            } else if !is_own {
                continue;
            } else if let Some(pf) = device.physfn.and_then(is_lost).filter(|pf| pf.numvfs > 0) {
                refuse_vf(device, pf)
            } else if let Some(controller) = device.controller.and_then(is_lost) {
                refuse_behind(device, controller)
            } else if let Some(bridge) = bridges.next() {
                let driver = bridge.driver.as_deref().unwrap_or_default();
                refuse_group(device, &format!("the host's bridge {} is on {driver}", bridge.address))
            } else if let Some(member) = platform.next() {
                refuse_group(device, member)
            } else {
                continue;
            };
            return Err(Refusal { why, device: Some(need.reason), cause: Cause::Unusable });
        }
        Ok(())
    }

    fn refuse_shared(&self, need: &Need, owner: &Owner) -> Error {
        let other = &owner.guest;
        let group = need.function.device.group;
        // Of a group, the device that the other guest asked for explains more than its siblings.
        let theirs = self.functions.values().find(|function| {
            let held =
                function.owner.as_ref().filter(|owner| owner.guest == *other).and_then(|owner| owner.held.as_ref());
            function.device.group == group
                && held.is_some_and(|held| matches!(held.role, Role::Managed | Role::Unmanaged))
        });
        let what = match (theirs.map(|function| function.device.address), group) {
            (Some(theirs), Some(group)) if theirs != need.reason && need.role != Role::Vf => format!(
                "{} is not free: guest '{other}' has {theirs} of the same IOMMU group {group}, and a group goes to one \
                 guest as a whole",
                need.reason
            ),
            _ => format!("{} is not free: guest '{other}' has it", need.describe()),
        };
        Error::new(what).remedy(format!("Stop '{other}' first, or use another device"))
    }

    /// Settings that cannot be read have no effect, and a refusal says so.
    fn settings_note(&self) -> String {
        self.settings_error.map_or_else(String::new, |error| format!(". {error}"))
    }

    fn refuse_used(&self, need: &Need, found: &HostUse) -> Error {
        let what = need.describe();
        if matches!(found, HostUse::InVfio { .. }) {
            let remedy = format!("{} first, or use another device", found.remedy());
            return Error::new(format!("{what} is not free: {found}")).remedy(remedy);
        }
        let device = &need.function.device;
        let remedy = found.remedy_or_allow(device.address, device.id);
        Error::new(format!("Cannot detach {what}: {found}")).remedy(format!("{remedy}{}", self.settings_note()))
    }
}

/// Refuses a device without an IOMMU group. The IOMMU is off only if no device of the host has one.
pub fn no_group(device: PciAddress, iommu_is_on: bool) -> Error {
    if iommu_is_on {
        return Error::new(format!(
            "{device} has no IOMMU group: the IOMMU is on, but does not translate for this device"
        ))
        .remedy("See `dmesg | grep -i -e iommu -e DMAR -e AMD-Vi` for the reason, or use another device");
    }
    Error::new(format!("{device} has no IOMMU group: the IOMMU is off"))
        .remedy("See `vfpool check` for how to switch it on")
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

fn refuse_vf(vf: &PciDevice, pf: &PciDevice) -> Error {
    let (vf, pf) = (vf.address, pf.address);
    Error::new(format!(
        "{vf} cannot be assigned to a guest: its PF {pf} is detached with it, and without the PF's driver the VF \
         vanishes"
    ))
    .remedy(format!(
        "Put the card into a slot with ACS, so that each VF has an IOMMU group of its own, or give the guest {pf} alone"
    ))
}

fn refuse_behind(device: &PciDevice, controller: &PciDevice) -> Error {
    let (device, driver) = (device.address, controller.driver.as_deref().unwrap_or_default());
    let controller = controller.address;
    Error::new(format!(
        "{device} cannot be assigned to a guest: the controller {controller} that it is behind is of the same IOMMU \
         group and detached with it, and without its driver {driver} the device vanishes"
    ))
    .remedy(format!(
        "Switch {driver} off in the firmware's setup (Intel calls it VMD), or give the guest {controller} alone"
    ))
}

fn refuse_group(device: &PciDevice, member: &str) -> Error {
    Error::new(format!(
        "{} cannot be assigned to a guest: {member} in the same IOMMU group {}, and VFIO accepts no group with such a \
         device on a host driver",
        device.address,
        device.group.map_or_else(String::new, |group| group.to_string())
    ))
    .remedy("Put the card into another slot, or use another device")
}

fn refuse_silent(address: PciAddress) -> Error {
    Error::new(format!("{address} does not answer: its configuration space reads all ones")).remedy(
        "Power the host off and on; a device that did not come back from a reset needs that, or use another device",
    )
}

#[cfg(test)]
mod tests;
