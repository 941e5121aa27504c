//! One device: what it is, its group, and who has it.

use super::{DeviceLease, DeviceReport, Fate, Member, Pointer, Start};
use host::files;
use host::libvirt::{definitions, runtime};
use host::paths::Host;
use host::pci::sysfs::{self, PciView};
use lease::availability::Standing;
use lease::life::Life;
use lease::view::View;
use lease::{Leases, Preview};
use model::address::PciAddress;
use model::device::PciDevice;
use model::domain::{Assigned, Domain};
use model::error::{Error, Result};
use model::lease::Role;

pub(super) fn explain(host: &Host, leases: &Leases, view: &View, address: PciAddress) -> Result<DeviceReport> {
    let device = view.pci.identity(address)?;
    let mut pools = leases.pools().pools.iter();
    let pool = device.as_ref().and_then(|device| pools.find(|pool| pool.has_member(&view.pci, device)));
    // As a guest has it that asks its pool for it; of no pool, as one that names it.
    let fixed = Assigned { address, managed: true, pool: None };
    let assigned = [pool.map_or(fixed, |pool| pool.assigned(address))];
    let forecast = leases.preview(view, None, &assigned);
    let Some(found) = device else {
        return Err(match forecast {
            // These words tell who has taken it away, if anybody has.
            Err(refusal) => refusal.why,
            Ok(Preview { left_by, .. }) => match left_by.first() {
                Some(guest) => Error::new(format!(
                    "{address} is not there, as guest '{guest}', which is gone, has left the PF that it belongs to"
                ))
                .remedy("Run `vfpool reconcile`"),
                None => Error::new(format!("{address} has just gone away")),
            },
        });
    };
    let folder = host.device(address);
    let mut netdevs = files::names(&folder.join("net"))?;
    netdevs.sort_unstable();
    let role = if assigned[0].managed { Role::Managed } else { Role::Unmanaged };
    Ok(DeviceReport {
        address,
        id: found.id,
        class: format!("0x{:06x}", found.class),
        netdevs,
        numa_node: sysfs::numa_node(host, address)?,
        option_rom: folder.join("rom").exists(),
        physfn: found.physfn,
        totalvfs: if folder.join("sriov_totalvfs").exists() { Some(sysfs::totalvfs(host, address)?) } else { None },
        vfs: view.pci.vfs_of(address)?,
        group: found.group,
        members: members(view, &found)?,
        pool: pool.map(|pool| pool.name.clone()),
        lease: lease(host, view, address)?,
        used_by: match standing(view, &found, role, assigned[0].names(&found)) {
            Some(Standing::InUse { by }) => Some(by),
            _ => None,
        },
        pointed_at_by: pointers(host, address)?,
        start: match forecast {
            Ok(forecast) => Start::foreseen(host, view, forecast)?,
            Err(refusal) => Start::refused(&refusal.why),
        },
        driver: found.driver,
    })
}

/// Whether a member of a group vanishes with another one.
fn goes_with(member: &PciDevice, all: &[PciAddress]) -> bool {
    member.physfn.or(member.controller).is_some_and(|other| all.contains(&other))
}

/// The other members of the group.
fn members(view: &View, device: &PciDevice) -> Result<Vec<Member>> {
    let Some(group) = device.group else { return Ok(Vec::new()) };
    let all = view.pci.group_members(group)?;
    let mut members = Vec::new();
    for address in all.iter().copied().filter(|member| *member != device.address) {
        let Some(member) = view.pci.identity(address)? else { continue };
        let (fate, why) = if member.is_bridge() {
            (Fate::Bridge, None)
        } else {
            match standing(view, &member, Role::Sibling, false) {
                Some(Standing::Leased { guest }) => (Fate::Leased, Some(guest)),
                Some(Standing::InUse { by }) => (Fate::Needed, Some(by)),
                _ if goes_with(&member, &all) => (Fate::Vanishes, None),
                _ if member.on_vfio => (Fate::Stays, None),
                _ => (Fate::Detached, None),
            }
        };
        members.push(Member { address, id: member.id, driver: member.driver, fate, why });
    }
    Ok(members)
}

/// Who has a device, or why the host needs it. What cannot be found out counts as needed, as it does for the hook.
fn standing(view: &View, device: &PciDevice, role: Role, is_named: bool) -> Option<Standing> {
    let found = view.standing_of_member(device, role, is_named);
    found.unwrap_or_else(|error| Some(Standing::InUse { by: error.to_string() }))
}

fn lease(host: &Host, view: &View, address: PciAddress) -> Result<Option<DeviceLease>> {
    let Some(guest) = view.owner(address)? else { return Ok(None) };
    let lease = view.lease(&guest)?;
    if lease.as_ref().is_some_and(|lease| lease.is_over(host)) {
        return Ok(None);
    }
    let held = lease.as_ref().and_then(|lease| lease.held(address));
    Ok(Some(DeviceLease {
        state: lease.as_ref().map(|lease| lease.state),
        role: held.map(|held| held.role),
        driver_before: held.and_then(|held| held.driver.clone()),
        guest,
    }))
}

/// The definitions that have this device. One that cannot be understood has none that libvirt would start.
fn pointers(host: &Host, address: PciAddress) -> Result<Vec<Pointer>> {
    let mut pointers = Vec::new();
    for guest in definitions::names(host)? {
        let Ok(xml) = definitions::read(host, &guest) else { continue };
        let Ok(domain) = Domain::parse(&xml) else { continue };
        if let Some(assigned) = domain.assigned().into_iter().find(|assigned| assigned.address == address) {
            let is_running = runtime::qemu(host, &guest).is_some();
            pointers.push(Pointer { guest, is_running, pool: assigned.pool });
        }
    }
    Ok(pointers)
}
