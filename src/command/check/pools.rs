//! Pools: their files, PFs, VFs and groups, and who else has their devices.

use super::{Context, Finding, Id, Severity};
use host::config::pool::{Pf, Pool};
use host::guard::{self, Guard};
use host::libvirt::networks;
use host::pci::sysfs;
use lease::vfs;
use model::device::PciDevice;
use model::error::{Error, Result};
use model::plan::Cause;
use std::collections::BTreeMap;

const ID: Id = Id::Pool;

impl Context<'_> {
    pub(super) fn pools(&self) -> Vec<Finding> {
        let folder = self.host.pools();
        let wrong = |error: &Error| Finding::error(ID, Severity::Failure, error).shown_by_file(&folder);
        let mut findings: Vec<Finding> = self.leases.pools().errors.iter().map(wrong).collect();
        if self.leases.pools().pools.is_empty() && findings.is_empty() {
            let what = "There are no pools; guests have the devices that they name, and nothing more";
            findings.push(Finding::note(ID, what).shown_by(format!("{} is empty", folder.display())));
        }
        for pool in &self.leases.pools().pools {
            let found = self
                .pool(pool)
                .unwrap_or_else(|error| vec![Finding::error(ID, Severity::Failure, &error).shown_by_file(&pool.file)]);
            findings.extend(found);
        }
        let networks = self.host.path("etc/libvirt/qemu/networks");
        let shared = networks::shared_with(self.leases.pools(), self.host);
        findings.extend(
            shared.iter().map(|error| Finding::error(Id::Network, Severity::Warning, error).shown_by_file(&networks)),
        );
        findings
    }

    fn pool(&self, pool: &Pool) -> Result<Vec<Finding>> {
        let (members, errors) = pool.members(self.host);
        let mut findings: Vec<Finding> =
            errors.iter().map(|error| Finding::error(ID, Severity::Failure, error).shown_by_file(&pool.file)).collect();
        // What is wrong with a PF is among these errors already.
        for pf in pool.pfs(self.host).into_iter().flatten() {
            findings.extend(self.pf(&pf)?);
        }
        let mut devices = Vec::new();
        for member in &members {
            devices.extend(sysfs::identity(self.host, *member)?);
        }
        findings.extend(self.groups(pool, &devices)?);
        if findings.is_empty() {
            let what = format!("Pool '{}': {} devices, each for a guest of its own", pool.name, devices.len());
            findings.push(Finding::ok(ID, what).shown_by_file(&pool.file));
        }
        Ok(findings)
    }

    fn pf(&self, pf: &Pf) -> Result<Vec<Finding>> {
        let (host, address) = (self.host, pf.address);
        if let Some(guest) = self.leases.store().owner(address)? {
            let what = format!("PF {address} is with guest '{guest}', and its VFs with it ({})", pf.at);
            return Ok(vec![Finding::note(Id::Pf, what)]);
        }
        let Some(device) = sysfs::identity(host, address)? else { return Ok(Vec::new()) };
        let device = match sysfs::with_driver_state_within(host, device, self.leases.deadline()) {
            Ok(device) => device,
            Err(error) => return Ok(vec![Finding::error(Id::Pf, Severity::Failure, &error)]),
        };
        if !device.on_host_driver() {
            // Setup cannot change anything before.
            return Ok(vec![self.without_driver(&device)?]);
        }
        let mut findings = Vec::new();
        let setup = format!("Run `vfpool setup {address}`");
        for netdev in &pf.ports {
            if guard::is_up(&host.netdev(netdev))? {
                continue;
            }
            findings.push(
                Finding::failure(Id::Pf, format!("PF {address} is down ({netdev}), so its VFs have no link"))
                    .shown_by_file(host.netdev(netdev).join("flags"))
                    .cured_by(&setup),
            );
        }
        findings.extend(self.vfs(pf, &device, &setup)?);
        Ok(findings)
    }

    /// udev gives its interface the name that pools know, before the setup uses it.
    fn without_driver(&self, pf: &PciDevice) -> Result<Finding> {
        let (address, folder) = (pf.address, self.host.device(pf.address));
        let probe = self.host.drivers_probe();
        let (folder, probe) = (folder.display(), probe.display());
        let clear = format!("[ ! -e {folder}/driver_override ] || echo >{folder}/driver_override");
        let unbind =
            if pf.driver.is_some() { format!("; echo {address} >{folder}/driver/unbind") } else { String::new() };
        let on = pf.driver.as_deref().unwrap_or("no driver");
        let what = format!("PF {address} is on {on}, and only its own driver creates VFs");
        let shown = format!("{folder}/driver");
        if let Some(used) = guard::of(self.host, address, self.leases.deadline())? {
            return Ok(Finding::failure(Id::Pf, format!("{what}; {used}")).shown_by(shown).cured_by(format!(
                "{}, then bind it to its own driver, and run `vfpool setup {address}`",
                used.remedy()
            )));
        }
        let command = format!("{clear}{unbind}; echo {address} >{probe}; udevadm settle; vfpool setup {address}");
        Ok(Finding::failure(Id::Pf, what).shown_by(shown).cured_by(format!("Run `{command}`")))
    }

    /// How many VFs the PF has, and whether they are ready.
    fn vfs(&self, pf: &Pf, device: &PciDevice, setup: &str) -> Result<Vec<Finding>> {
        let (host, address, now) = (self.host, pf.address, device.numvfs);
        let totalvfs = pf.totalvfs;
        let folder = host.device(address);
        let wanted = pf.vfs.wanted(now, totalvfs);
        let mut findings = Vec::new();
        if wanted > totalvfs {
            let what = format!("PF {address} cannot have {wanted} VFs, as {} asks for", pf.at);
            findings.push(
                Finding::failure(Id::Vfs, what)
                    .shown_by(format!("{} is {totalvfs}", folder.join("sriov_totalvfs").display()))
                    .cured_by(format!(
                        "Ask for vfs='max' there, or allow more in the card's firmware, then {}",
                        lower(setup)
                    )),
            );
        } else if vfs::result_of(host, address) == Some((wanted, now)) {
            let state = if now < wanted { Severity::Failure } else { Severity::Warning };
            let what = format!("PF {address} has {now} VFs: its driver was asked for {wanted}, by {}", pf.at);
            findings.push(
                Finding::new(Id::Vfs, state, what)
                    .shown_by(format!("{} is {now}", folder.join("sriov_numvfs").display()))
                    .cured_by(format!(
                        "See `dmesg` for the reason. If it cannot have others, ask for vfs='{now}' there"
                    )),
            );
        } else if wanted != now {
            let state = if now < wanted { Severity::Failure } else { Severity::Warning };
            findings.push(
                Finding::new(Id::Vfs, state, format!("PF {address} has {now} VFs, and {} asks for {wanted}", pf.at))
                    .shown_by(format!("{} is {now}", folder.join("sriov_numvfs").display()))
                    .cured_by(setup),
            );
        }
        let mut elsewhere = Vec::new();
        let guard = Guard::new(host, self.leases.deadline());
        for vf in sysfs::vfs_of(host, address)? {
            let Some(vf) = sysfs::identity(host, vf)? else { continue };
            // One that the host uses stays with it, and is reported below.
            let is_ready = vf.on_vfio || self.leases.store().owner(vf.address)?.is_some();
            if !is_ready && guard.of(vf.address)?.is_none() {
                elsewhere.push(vf);
            }
        }
        if let Some(first) = elsewhere.first() {
            let on = first.driver.as_deref().unwrap_or("no driver");
            let count = elsewhere.len();
            let what =
                format!("{count} of the {now} VFs of PF {address} are not on vfio-pci; {} is on {on}", first.address);
            findings.push(
                Finding::warning(Id::Vfs, what)
                    .shown_by_file(host.device(first.address).join("driver"))
                    .cured_by(setup),
            );
        }
        Ok(findings)
    }

    /// A group goes to one guest as a whole.
    fn groups(&self, pool: &Pool, devices: &[PciDevice]) -> Result<Vec<Finding>> {
        let mut groups: BTreeMap<u32, Vec<&PciDevice>> = BTreeMap::new();
        for device in devices {
            // Without a group there is no IOMMU, which is reported.
            if let Some(group) = device.group {
                groups.entry(group).or_default().push(device);
            }
        }
        let mut findings = Vec::new();
        for (group, members) in &groups {
            findings.extend(self.group(pool, *group, members)?);
        }
        let grouped: usize = groups.values().map(Vec::len).sum();
        if findings.is_empty() && groups.len() < grouped {
            let guests = if groups.len() == 1 { "one guest".to_owned() } else { format!("{} guests", groups.len()) };
            let shared = groups.iter().find(|(_, members)| members.len() > 1).map_or(0, |(group, _)| *group);
            let what = format!(
                "Pool '{}' can serve {guests} only at a time: its {grouped} devices share {} IOMMU group{}, as no port \
                 between them has ACS, and a group goes to one guest",
                pool.name,
                groups.len(),
                if groups.len() == 1 { "" } else { "s" }
            );
            findings.push(
                Finding::warning(Id::Group, what)
                    .shown_by_file(self.host.group_devices(shared))
                    .cured_by("Put the card into a slot whose port has ACS (`lspci -vv` shows it), or live with that"),
            );
        }
        Ok(findings)
    }

    /// Why no guest can have a group at all.
    fn group(&self, pool: &Pool, group: u32, members: &[&PciDevice]) -> Result<Option<Finding>> {
        let folder = self.host.group_devices(group);
        let devices = match members {
            [one] => format!("{} of pool '{}'", one.address, pool.name),
            [one, ..] => format!("{} and {} more of pool '{}'", one.address, members.len() - 1, pool.name),
            [] => return Ok(None),
        };
        let unusable = |why: &str| {
            Finding::failure(Id::Group, format!("No guest can have {devices}: {why}")).shown_by_file(&folder)
        };
        let view = self.leases.view();
        let mut first = None;
        for member in members {
            match view.refusal(None, &[pool.assigned(member.address)])? {
                Some(refusal) if !matches!(refusal.cause, Cause::Guest(_)) => _ = first.get_or_insert(refusal),
                // Another guest has it now, or a guest could have it.
                _ => return Ok(None),
            }
        }
        let Some(refusal) = first else { return Ok(None) };
        let finding = unusable(refusal.why.reason());
        Ok(Some(match refusal.why.what_to_do() {
            Some(remedy) => finding.cured_by(remedy),
            None => finding,
        }))
    }
}

fn lower(sentence: &str) -> String {
    sentence.replacen("Run", "run", 1)
}
