//! `vfpool explain`: who has a device, why it is not free, and what a start would do, or what a guest has and would
//! get.
//!
//! What would happen is what the hook's own code answers ([`Leases::preview`]), and never worked out here. Changes
//! nothing, takes no lock, and does not need libvirt: definitions and the state of guests are read where libvirt keeps
//! them.

mod device;
mod guest;
mod text;

use crate::output::written;
use host::libvirt::{definitions, runtime};
use host::log::Log;
use host::paths::Host;
use host::pci::{bind, ports};
use lease::view::View;
use lease::{Acquired, Leases, Preview};
use model::address::{PciAddress, PciId};
use model::error::{Error, Result};
use model::lease::{HeldDevice, LeaseState, Role};
use model::step::VFIO_PCI;
use model::text::{one_line, shell_word};
use nix::errno::Errno;
use serde::Serialize;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

/// The answer, as `--json` shows it. Values that do not exist are left out.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explanation {
    /// Of this shape: 1. A later one with the same number may have more keys.
    version: u32,
    /// What was asked about.
    #[serde(flatten)]
    subject: Subject,
}

/// The key says which of the two it is.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum Subject {
    Device(Box<DeviceReport>),
    Guest(Box<GuestReport>),
}

/// A PCI function.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeviceReport {
    /// Where it is.
    address: PciAddress,
    /// Vendor and device, as `8086:10ca`.
    id: PciId,
    /// 24 bit class code, as `0x020000`.
    class: String,
    /// The driver it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    /// Its network interfaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    netdevs: Vec<String>,
    /// The NUMA node it is at.
    #[serde(skip_serializing_if = "Option::is_none")]
    numa_node: Option<u32>,
    /// Whether it has an option ROM, which a guest's firmware would run.
    option_rom: bool,
    /// Its PF, if it is a VF.
    #[serde(skip_serializing_if = "Option::is_none")]
    physfn: Option<PciAddress>,
    /// How many VFs it can have, if it is a PF.
    #[serde(skip_serializing_if = "Option::is_none")]
    totalvfs: Option<u32>,
    /// The VFs it has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vfs: Vec<PciAddress>,
    /// Its IOMMU group.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<u32>,
    /// The other members of the group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<Member>,
    /// The pool that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    /// Who has leased it.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<DeviceLease>,
    /// Who or what uses it without a lease: the host, a program, a guest of another tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    used_by: Option<String>,
    /// The guests whose definitions point at it; stopped ones with a pool are parked here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pointed_at_by: Vec<Pointer>,
    /// What would happen to a guest that had it with managed='yes', and no other device.
    start: Start,
}

/// Another member of a device's IOMMU group.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct Member {
    /// Where it is.
    address: PciAddress,
    /// Vendor and device.
    id: PciId,
    /// The driver it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    /// What it means for a guest that wants the device.
    fate: Fate,
    /// The guest that has it, or why the host needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// What a member of a group means for a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum Fate {
    /// A bridge, which is never touched.
    Bridge,
    /// A guest has it, so no other guest can have any device of the group.
    Leased,
    /// The host, or a program, needs it; so no guest can have any device of the group.
    Needed,
    /// It goes to vfio-pci for as long as the guest runs.
    Detached,
    /// A VF that goes with its PF, and comes back with it.
    Vanishes,
    /// It is on vfio-pci already, and stays.
    Stays,
}

/// The lease of one device.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct DeviceLease {
    /// The guest.
    guest: String,
    /// How far the guest is.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<LeaseState>,
    /// Why the device is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    /// The driver it had before, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver_before: Option<String>,
}

/// A definition that points at a device.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct Pointer {
    /// The guest.
    guest: String,
    /// Whether it runs.
    is_running: bool,
    /// The pool that it asks; none if it has the device by a fixed address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
}

/// A guest.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestReport {
    /// Its name.
    name: String,
    /// What it is doing.
    state: GuestState,
    /// The process id of its QEMU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    /// Whether its memory is saved, so that `virsh start` restores it; with devices as `chosen` says.
    is_saved: bool,
    /// The state of its lease, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<LeaseState>,
    /// Why something it had could not be reattached.
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<String>,
    /// The PCI devices of its XML: of the running guest, or else of its definition.
    devices: Vec<GuestDevice>,
    /// What is wrong with its requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// What its start would do, if it is shut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<Start>,
    /// What `vfpool start` would choose, if it is shut off and asks pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen: Option<Chosen>,
    /// What will be done when it stops, if it runs and has a lease.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    at_stop: Vec<Action>,
}

/// What a guest is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum GuestState {
    /// Its QEMU runs.
    Running,
    /// Between `prepare` and the start of its QEMU.
    Starting,
    /// Neither.
    ShutOff,
}

/// A PCI device of a guest.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct GuestDevice {
    /// Where it is on the host.
    address: PciAddress,
    /// The element: `hostdev`, `interface` or `disk`.
    kind: &'static str,
    /// Whether libvirt itself takes it and reattaches it.
    is_managed: bool,
    /// Where the guest sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_address: Option<PciAddress>,
    /// The pool it is asked from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    /// How it stands for this guest.
    verdict: Verdict,
    /// Why it is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// What would come of a start, or of one device at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// It would be taken.
    Free,
    /// The guest in question has it already.
    Own,
    /// Guests that are gone have left devices; only when these were reattached can be told more.
    Left,
    /// It would be refused.
    Refused,
}

/// A start that is foreseen.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct Start {
    /// What would come of it.
    verdict: Verdict,
    /// Why it would be refused, as the hook would say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    /// The guests that are gone and whose devices would be reattached first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_by: Vec<String>,
    /// How these devices would be reattached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left: Vec<Action>,
    /// What would be done, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    steps: Vec<Action>,
    /// What would be done when the guest stops again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    at_stop: Vec<Action>,
}

/// One thing that is done to a device.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct Action {
    /// The device.
    address: PciAddress,
    /// Why it is touched.
    role: Role,
    /// Who does it; nobody has to, if it only stays or goes with another device.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<Actor>,
    /// What is done.
    what: String,
    /// The writes to sysfs that do it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    writes: Vec<FileWrite>,
}

/// Who does something to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum Actor {
    Vfpool,
    Libvirt,
}

/// A write to a file of sysfs.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct FileWrite {
    file: String,
    value: String,
}

/// The devices that `vfpool start` would choose.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct Chosen {
    /// One for each request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    devices: Vec<Choice>,
    /// Why it would not start the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
}

/// A device that would be chosen for a request.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct Choice {
    /// The pool.
    pool: String,
    /// Where the guest would see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_address: Option<PciAddress>,
    /// The device.
    address: PciAddress,
}

/// Explains the device or guest of this name; with `only_guest`, a guest only.
///
/// # Errors
/// There is none, or both.
pub fn explain(host: &Host, leases: &Leases, name: &str, only_guest: bool) -> Result<Explanation> {
    let view = leases.view();
    let is_guest = is_guest(host, leases, name)?;
    let device = if only_guest { None } else { device_of(host, name) };
    let subject = match (is_guest, device) {
        (true, Some(address)) if host.device(address).exists() => {
            return Err(Error::new(format!("'{name}' is a guest, and the device {address}, too")).remedy(format!(
                "Say `vfpool explain --guest {}`, or `vfpool explain {}`",
                shell_word(name),
                address.nodedev_name()
            )));
        }
        (true, _) => Subject::Guest(Box::new(guest::explain(host, leases, &view, name)?)),
        (false, Some(address)) => Subject::Device(Box::new(device::explain(host, leases, &view, address)?)),
        (false, None) if only_guest => {
            return Err(Error::new(format!("there is no guest '{name}' on this host; see `virsh list --all`")));
        }
        (false, None) => {
            return Err(Error::new(format!(
                "'{name}' is no PCI device, no network interface of one, and no guest of this host; see `lspci -D`, \
                 `ip link` and `virsh list --all`"
            )));
        }
    };
    Ok(Explanation { version: 1, subject })
}

impl Explanation {
    /// The answer as one JSON document.
    pub fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        text.map(|text| text + "\n").map_err(|cause| Error::new(format!("Cannot write the answer as JSON: {cause}")))
    }

    /// The answer for a person.
    pub fn text(&self) -> String {
        let lines = match &self.subject {
            Subject::Device(device) => text::device(device),
            Subject::Guest(guest) => text::guest(guest),
        };
        // A name in a line may hold anything.
        lines.iter().map(|line| one_line(line) + "\n").collect()
    }
}

/// A guest that is defined, runs, or has left something behind.
fn is_guest(host: &Host, leases: &Leases, name: &str) -> Result<bool> {
    if name.is_empty() || name.contains('/') {
        return Ok(false);
    }
    let path = definitions::path(host, name);
    match fs::metadata(&path) {
        Ok(data) if data.is_file() => return Ok(true),
        // A name that is too long for a file is no guest's.
        Ok(_) => {}
        Err(cause) => match cause.raw_os_error().map(Errno::from_raw) {
            // A name that is too long for a file is no guest's.
            Some(Errno::ENOENT | Errno::ENAMETOOLONG) => {}
            _ => return Err(Error::io("read", &path, &cause)),
        },
    }
    Ok(leases.store().has_lease(name) || runtime::qemu(host, name).is_some())
}

fn device_of(host: &Host, name: &str) -> Option<PciAddress> {
    let is_netdev = !name.is_empty() && !name.contains('/');
    name.parse().ok().or_else(|| is_netdev.then(|| ports::function_of(host, name)).flatten())
}

impl Start {
    fn refused(why: &Error) -> Self {
        Self {
            verdict: Verdict::Refused,
            refusal: Some(why.to_string()),
            left_by: Vec::new(),
            left: Vec::new(),
            steps: Vec::new(),
            at_stop: Vec::new(),
        }
    }

    fn foreseen(host: &Host, view: &View, forecast: Preview) -> Result<Self> {
        let mut left = Vec::new();
        for guest in &forecast.left_by {
            let lease = view.lease(guest)?;
            // libvirt does nothing any more.
            left.extend(at_stop(lease.iter().flat_map(|lease| &lease.devices), Actor::Vfpool));
        }
        let verdict = if forecast.taken.is_some() { Verdict::Free } else { Verdict::Left };
        let taken = forecast.taken.unwrap_or_default();
        Ok(Self {
            verdict,
            refusal: None,
            left_by: forecast.left_by,
            left,
            steps: taken.iter().flat_map(|taken| at_start(host, taken)).collect(),
            at_stop: at_stop(taken.iter().map(|taken| &taken.held), Actor::Libvirt),
        })
    }
}

/// The steps of a start for one device; the last one of a managed device is libvirt's.
fn at_start(host: &Host, Acquired { device, held, steps }: &Acquired) -> Vec<Action> {
    let action = |by, what, writes| Action { address: held.address, role: held.role, by, what, writes };
    let writes = |writes: Vec<(PathBuf, String)>| {
        writes.into_iter().map(|(file, value)| FileWrite { file: file.display().to_string(), value }).collect()
    };
    let own = steps
        .iter()
        .map(|step| action(Some(Actor::Vfpool), step.to_string(), writes(bind::writes(step, host, device))));
    let mut actions: Vec<Action> = own.collect();
    match (held.role, &device.driver) {
        (Role::Vf, _) => actions.push(action(None, "goes with its PF".to_owned(), Vec::new())),
        (_, Some(driver)) if device.on_vfio => actions.push(action(None, format!("stays on {driver}"), Vec::new())),
        (Role::Managed, _) => actions.push(action(Some(Actor::Libvirt), format!("bind to {VFIO_PCI}"), Vec::new())),
        _ => {}
    }
    actions
}

/// What brings devices back to where they were found, when the guest has stopped; `managed` does it with managed ones.
fn at_stop<'a>(devices: impl DoubleEndedIterator<Item = &'a HeldDevice>, managed: Actor) -> Vec<Action> {
    let mut actions = Vec::new();
    for held in devices.rev() {
        let action = |by, what| Action { address: held.address, role: held.role, by, what, writes: Vec::new() };
        actions.push(match (held.role, held.driver.as_deref()) {
            (Role::Vf, driver) => action(None, format!("comes back with its PF, on {}", driver.unwrap_or("no driver"))),
            (_, Some(driver)) if driver.contains("vfio") => action(None, format!("stays on {driver}")),
            (Role::Managed, Some(driver)) => action(Some(managed), format!("reattach to {driver}")),
            (Role::Managed, None) => action(Some(managed), "unbind (it had no driver)".to_owned()),
            (_, driver) => action(Some(Actor::Vfpool), format!("reattach to {}", driver.unwrap_or("no driver"))),
        });
        if held.numvfs > 0 {
            actions.push(action(Some(Actor::Vfpool), format!("make its {} VFs again", held.numvfs)));
        }
    }
    actions
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A device, as 0000:01:10.2, 01:10.2, pci_0000_01_10_2 or its network interface; or a guest
    name: String,
    /// Treat NAME as a guest even if a device has the same name
    #[arg(long)]
    guest: bool,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    let explained = explain(host, &Leases::new(host, log), &arguments.name, arguments.guest)?;
    let text = if arguments.json { explained.json()? } else { explained.text() };
    written(io::stdout().write_all(text.as_bytes()))
}
