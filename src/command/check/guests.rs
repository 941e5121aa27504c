//! Guests' definitions: what they ask pools for, which devices they name, and whether their memory can be locked.

use super::{Context, Finding, Id, Severity};
use host::libvirt::{definitions, runtime};
use host::parked::Parked;
use host::pci::sysfs::{self, PciView};
use model::domain::{Domain, Request};
use model::error::{Error, Result};
use model::plan::Cause;
use model::text::shell_word;
use serde::Deserialize;
use std::path::Path;

impl Context<'_> {
    pub(super) fn guests(&self) -> Vec<Finding> {
        let names = match definitions::names(self.host) {
            Ok(names) => names,
            Err(error) => return vec![Finding::error(Id::Guest, Severity::Failure, &error)],
        };
        let mut findings = Vec::new();
        let parked = Parked::load(self.host);
        // Other tools keep files there, too.
        for guest in names.into_iter().filter(|name| !parked.is_unknown(name)) {
            let found = self.guest(&guest);
            findings.extend(found.unwrap_or_else(|error| vec![unreadable(&guest, &error)]));
        }
        findings
    }

    fn guest(&self, guest: &str) -> Result<Vec<Finding>> {
        let xml = definitions::read(self.host, guest)?;
        let domain = Domain::parse(&xml)?;
        let file = definitions::path(self.host, guest);
        let mut findings: Vec<Finding> =
            domain.requests.iter().filter_map(|request| self.request(guest, &domain, request)).collect();
        // What a running guest has was judged at its start.
        if runtime::qemu(self.host, guest).is_none() {
            findings.extend(self.devices(guest, &domain)?);
        }
        let mut findings: Vec<Finding> = findings
            .into_iter()
            .map(|finding| if finding.evidence.is_some() { finding } else { finding.shown_by_file(&file) })
            .collect();
        if !domain.devices.is_empty() {
            findings.extend(memory(guest, &domain, &file));
        }
        Ok(findings)
    }

    fn request(&self, guest: &str, domain: &Domain, request: &Request) -> Option<Finding> {
        const ID: Id = Id::Request;
        let (pool, address) = (&request.pool, request.guest_address);
        let detach = format!("`vfpool detach {} {} {address} --config`", shell_word(guest), shell_word(pool));
        let device = domain.device_for(request);
        if device.is_none() && request.moving.is_some() {
            let what = format!("Guest '{guest}': its device of pool '{pool}' was not pointed at a free one to the end");
            return Some(Finding::warning(ID, what).cured_by("Run `vfpool reconcile`"));
        }
        let Some(device) = device else {
            let what = format!("Guest '{guest}' asks pool '{pool}' for a device at {address}, where it has none");
            return Some(Finding::warning(ID, what).cured_by(format!("Run {detach}")));
        };
        let found = match self.leases.pools().find(pool) {
            Ok(found) => found,
            Err(error) => {
                let what = format!("Guest '{guest}' cannot start: it asks for a device of pool '{pool}'. {error}");
                let folder = self.host.pools();
                let remedy = format!("Make that pool in {}, or take the device away: run {detach}", folder.display());
                return Some(Finding::failure(ID, what).cured_by(remedy));
            }
        };
        let is_stopped = runtime::qemu(self.host, guest).is_none();
        let at = device.address;
        let is_member = sysfs::identity(self.host, at).ok()?.is_some_and(|device| found.has_member(self.host, &device));
        (is_stopped && !is_member).then(|| {
            let what = format!("Guest '{guest}' points at {at}, which is no device of pool '{pool}' on this host");
            Finding::warning(ID, what).cured_by("Run `vfpool reconcile`")
        })
    }

    /// What the hook would refuse the start of a stopped guest for. That another guest has a device now is no fault:
    /// two guests may take turns. A device of a pool is the reconciler's to choose.
    fn devices(&self, guest: &str, domain: &Domain) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut open = domain.assigned();
        open.retain(|device| device.pool.is_none());
        let view = self.leases.view();
        while let Some(refusal) = view.refusal(Some(guest), &open)? {
            if !matches!(refusal.cause, Cause::Guest(_)) {
                let what = format!("Guest '{guest}' cannot start: {}", refusal.why.reason());
                let finding = Finding::failure(Id::Guest, what);
                findings.push(match refusal.why.what_to_do() {
                    // A command for this guest.
                    _ if refusal.cause == Cause::Missing => finding
                        .cured_by(format!("See `lspci -D`, and correct it with `virsh edit {}`", shell_word(guest))),
                    Some(remedy) => finding.cured_by(remedy),
                    None => finding,
                });
            }
            // What is wrong with the others has to be seen to as well; of a group, which goes as a whole, once is
            // enough.
            let Some(device) = refusal.device else { break };
            let group_of = |address| view.pci.identity(address).ok().flatten().and_then(|device| device.group);
            let group = group_of(device);
            open.retain(|other| other.address != device && (group.is_none() || group_of(other.address) != group));
        }
        Ok(findings)
    }
}

fn unreadable(guest: &str, error: &Error) -> Finding {
    let what = format!("The definition of guest '{guest}' cannot be read: {error}");
    Finding::warning(Id::Guest, what).cured_by(format!("Mend it with `virsh edit {}`", shell_word(guest)))
}

/// What counts here of a definition.
#[derive(Deserialize)]
struct Definition {
    memory: Amount,
    memtune: Option<Memtune>,
}

#[derive(Deserialize)]
struct Memtune {
    hard_limit: Option<Amount>,
}

/// libvirt `docs/formatdomain.rst`, "Memory Allocation": a number in KiB, unless it has another unit.
#[derive(Deserialize)]
struct Amount {
    #[serde(rename = "@unit", default)]
    unit: String,
    #[serde(rename = "$text")]
    number: u64,
}

impl Amount {
    fn kib(&self) -> Option<u64> {
        // libvirt itself writes KiB only.
        matches!(self.unit.as_str(), "" | "KiB" | "k").then_some(self.number)
    }
}

/// A device's DMA needs all of a guest's memory locked, and its own registers mapped. libvirt sees to the limit, by the
/// guest's memory and 1 GiB, unless the admin has set one.
/// Source: libvirt `src/qemu/qemu_domain.c`, `qemuDomainGetMemLockLimitBytes`.
fn memory(guest: &str, domain: &Domain, file: &Path) -> Option<Finding> {
    const MORE: u64 = 1 << 20;
    let definition: Definition = quick_xml::de::from_str(&domain.text()).ok()?;
    let limit = definition.memtune?.hard_limit?.kib()?;
    let memory = definition.memory.kib()?;
    if limit >= memory.saturating_add(MORE) {
        return None;
    }
    let (state, then) = if limit < memory {
        (Severity::Failure, "it cannot start with its PCI device, which needs all of the guest's memory locked")
    } else {
        (Severity::Warning, "QEMU may not start with its PCI device, which needs more locked than the guest's memory")
    };
    let what = format!("Guest '{guest}': {then}");
    Some(
        Finding::new(Id::Memory, state, what)
            .shown_by(format!("{}: <hard_limit> is {limit} KiB, <memory> {memory} KiB", file.display()))
            .cured_by(format!("Run `virsh memtune {} --hard-limit {} --config`", shell_word(guest), memory + MORE)),
    )
}
