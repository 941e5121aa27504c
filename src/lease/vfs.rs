//! Makes the VFs of the pools, and has them on vfio-pci before a guest asks: at boot, when a PF appears, when the admin
//! says so.
//!
//! Looks first and does only what is missing, so that it may be killed anywhere and called again, also twice at the same
//! time. A VF that a guest or the host has is never touched; PFs that are in no pool are not either. Must not be called by
//! a hook or a udev event for a whole PF: that takes seconds.
//! Source: Linux `Documentation/PCI/pci-iov-howto.rst`, `Documentation/ABI/testing/sysfs-bus-pci`.

use crate::records::{Records, Turn};
use host::config::pool::{Pf, Pool, Pools};
use host::config::settings;
use host::libvirt::networks;
use host::log::Log;
use host::paths::Host;
use host::pci::bind::Binder;
use host::pci::sysfs;
use host::queue::Entry;
use host::{command, files, guard};
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::{Error, Result};
use model::host_use::HostUse;
use model::settings::Settings;
use model::step::VFIO_PCI;
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Sets up the pools of one host.
pub struct Setup<'a> {
    host: &'a Host,
    log: &'a Log,
    store: Records<'a>,
    settings: Settings,
    limit: Duration,
    pools: Pools,
}

/// What came of it, beside what was logged as done. One line each.
#[derive(Debug, Default)]
pub struct Report {
    /// What could not be done.
    pub failures: Vec<Error>,
    /// What was left as it is on purpose, or will bite later.
    pub warnings: Vec<Error>,
}

impl Report {
    fn add<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failures.push(error)).ok()
    }
}

/// What a udev helper is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// A PF whose VFs are in a pool.
    Pf,
    /// A VF of a pool.
    Vf,
    /// A whole function that a pool lists, or a device of no pool: not for us to touch.
    None,
}

impl<'a> Setup<'a> {
    /// Reads settings and pools. What is wrong with them is told by [`Setup::all`].
    pub fn new(host: &'a Host, log: &'a Log) -> Self {
        // Settings that cannot be read count as not set: that leaves more alone, not less.
        let settings = settings::load(host).unwrap_or_else(|error| {
            log.warning(&error);
            Settings::default()
        });
        let limit = settings.deadline();
        Self { host, log, store: Records::new(host, log), settings, limit, pools: Pools::load(host) }
    }

    /// The same with less time for each step, for a caller that is waited for.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = self.limit.min(limit);
        self
    }

    /// Sets up every PF and VF of every pool.
    pub fn all(&self) -> Report {
        let mut report = Report { failures: self.pools.errors.clone(), ..Report::default() };
        let mut has_changed = false;
        for pool in &self.pools.pools {
            for pf in pool.pfs(self.host) {
                if let Some(pf) = report.add(pf) {
                    has_changed |= self.pf(pool, &pf, &mut report);
                }
            }
            for function in pool.functions(self.host) {
                if let Some(address) = report.add(function) {
                    has_changed |= self.listed(pool, address, &mut report);
                }
            }
        }
        report.warnings.extend(networks::shared_with(&self.pools, self.host));
        self.finish(has_changed, report)
    }

    /// Sets up these PFs only, each given as network interface or PCI address.
    pub fn pfs(&self, names: &[String]) -> Report {
        let mut report = Report::default();
        let mut has_changed = false;
        for name in names {
            if let Some((pool, pf)) = report.add(self.find_pf(name)) {
                has_changed |= self.pf(pool, &pf, &mut report);
            }
        }
        self.finish(has_changed, report)
    }

    /// New devices may be better for some guests' definitions.
    fn finish(&self, has_changed: bool, mut report: Report) -> Report {
        if has_changed {
            report.add(Entry::Setup.put(self.host));
        }
        report
    }

    fn find_pf(&self, name: &str) -> Result<(&Pool, Pf)> {
        let address = name.parse::<PciAddress>().ok();
        let mut wrong = Vec::new();
        for pool in &self.pools.pools {
            for pf in pool.pfs(self.host) {
                match pf {
                    Ok(pf) if Some(pf.address) == address || pf.netdev.as_deref() == Some(name) => {
                        return Ok((pool, pf));
                    }
                    Ok(_) => {}
                    Err(error) => wrong.push(error),
                }
            }
        }
        let known: Vec<String> = wrong.iter().chain(&self.pools.errors).map(|error| format!(". {error}")).collect();
        Err(Error::new(format!(
            "{name} is no PF of any pool in {}. Name one by network interface or PCI address, or add it there{}",
            self.host.pools().display(),
            known.concat()
        )))
    }

    /// What a device is to the pools. Looks at no other device.
    pub fn membership(&self, address: PciAddress) -> Result<Membership> {
        let Some(device) = sysfs::identity(self.host, address)? else { return Ok(Membership::None) };
        let pools = &self.pools.pools;
        Ok(match device.physfn {
            Some(_) if pools.iter().any(|pool| pool.has_member(self.host, &device)) => Membership::Vf,
            None if pools.iter().any(|pool| pool.has_pf(self.host, address)) => Membership::Pf,
            _ => Membership::None,
        })
    }

    /// Binds one VF of a pool, which has just appeared; not if its PF is being set up, which has its turn. `Ok(false)`: it
    /// has to be left to [`Setup::all`], as `new_id`, which a kernel without `driver_override` needs, takes other VFs too.
    pub fn vf(&self, address: PciAddress) -> Result<bool> {
        let Some(device) = sysfs::identity(self.host, address)? else { return Ok(true) };
        let pool = self.pools.pools.iter().find(|pool| pool.has_member(self.host, &device));
        let (Some(pool), Some(pf)) = (pool, device.physfn) else { return Ok(true) };
        let Some(_turn) = self.store.try_turn_of_vf(pf)? else { return Ok(true) };
        if !self.host.device(address).join("driver_override").exists() {
            return Ok(device.on_vfio);
        }
        let mut report = Report::default();
        self.bind_all(&self.binder(pool), &[address], &mut report);
        for warning in &report.warnings {
            self.log.warning(warning);
        }
        report.failures.pop().map_or(Ok(true), Err)
    }

    /// A pool may list single VFs. A whole function that it lists stays with the host until a guest takes it.
    fn listed(&self, pool: &Pool, address: PciAddress, report: &mut Report) -> bool {
        let device = report.add(sysfs::identity(self.host, address)).flatten();
        let Some(pf) = device.and_then(|device| device.physfn) else { return false };
        let turn = report.add(self.turn(pf));
        turn.is_some() && self.bind_all(&self.binder(pool), &[address], report)
    }

    fn binder(&self, pool: &Pool) -> Binder<'_> {
        Binder {
            host: self.host,
            is_claimed: Box::new(|address| Ok(self.store.owner(address)?.is_some())),
            log: self.log,
            user: format!("pool '{}'", pool.name),
            limit: self.limit,
            hangs: Cell::new(false),
        }
    }

    fn turn(&self, pf: PciAddress) -> Result<Turn> {
        // As long as another one may take for all its VFs.
        let limit = self.limit + Duration::from_secs(sysfs::totalvfs(self.host, pf)?.into());
        self.store.turn_of_pf(pf, limit)?.ok_or_else(|| {
            let other = format!("another `vfpool setup` has been at work on it for {} s", limit.as_secs());
            Error::new(format!("Cannot set up {pf}: {other}, or hangs in the kernel"))
                .remedy("See `dmesg`, and run it again")
        })
    }

    /// Sets up one PF. Whether anything changed.
    fn pf(&self, pool: &Pool, pf: &Pf, report: &mut Report) -> bool {
        let Some(_turn) = report.add(self.turn(pf.address)) else { return false };
        let Some(owner) = report.add(self.store.owner(pf.address)) else { return false };
        if let Some(guest) = owner {
            let why = format!("{} is left as it is: guest '{guest}' has the PF itself ({})", pf.address, pf.at);
            report.warnings.push(Error::new(why));
            return false;
        }
        let Some(device) = report.add(self.device(pf)) else { return false };
        let _making = Making::begin(self.host);
        let binder = self.binder(pool);
        // A host driver that probes a VF waits for the PF's interface. Where none does, the interface comes last: one that is
        // up would be closed and opened again for the VFs.
        let are_probed = device.drivers_autoprobe.is_none() || device.driver_override.is_none();
        let mut has_changed = are_probed && report.add(self.bring_up(pf, &binder)) == Some(true);
        has_changed |= report.add(self.make_vfs(pf, &device, &binder)) == Some(true);
        let vfs = report.add(sysfs::vfs_of(self.host, pf.address)).unwrap_or_default();
        has_changed |= self.bind_all(&binder, &vfs, report);
        has_changed | (!are_probed && report.add(self.bring_up(pf, &binder)) == Some(true))
    }

    /// A PF whose driver answers.
    fn device(&self, pf: &Pf) -> Result<PciDevice> {
        let gone = || Error::new(format!("Cannot set up {}: it went away ({})", pf.address, pf.at));
        let device = sysfs::identity(self.host, pf.address)?.ok_or_else(gone)?;
        sysfs::expect_answer(self.host, &device, self.limit)?;
        sysfs::device(self.host, pf.address)?.ok_or_else(gone)
    }

    /// VFs of a PF that is down have no link, and libvirt refuses to set the MAC of one.
    fn bring_up(&self, pf: &Pf, binder: &Binder) -> Result<bool> {
        let Some(netdev) = &pf.netdev else { return Ok(false) };
        if guard::is_up(&self.host.netdev(netdev))? {
            return Ok(false);
        }
        let ip = self.host.path("sbin/ip");
        let up = ["link", "set", "dev", netdev, "up"];
        let done = if self.host.is_dry() { Ok(ExitStatus::default()) } else { command::run(&ip, &up, self.limit) };
        let why = match done {
            Ok(status) if status.success() => {
                self.log.info(format_args!("{netdev}: down -> up ({})", binder.user));
                return Ok(true);
            }
            Ok(status) => status.to_string(),
            Err(why) => why,
        };
        Err(Error::new(format!("Cannot bring up {netdev} with {}: {why}", ip.display())).remedy("Try it by hand"))
    }

    /// Brings a PF to the number of VFs that its line asks for.
    fn make_vfs(&self, pf: &Pf, device: &PciDevice, binder: &Binder) -> Result<bool> {
        let totalvfs = sysfs::totalvfs(self.host, pf.address)?;
        let mut has_changed = false;
        // Their own drivers are not to have them in between. A kernel without `driver_override` would keep vfio-pci off, too.
        if device.drivers_autoprobe == Some(true) && device.driver_override.is_some() {
            binder.set_autoprobe(pf.address, false)?;
            self.log.info(format_args!("{}: host drivers are kept from its new VFs ({})", pf.address, binder.user));
            has_changed = true;
        }
        let now = device.numvfs;
        let wanted = pf.vfs.wanted(now, totalvfs);
        if wanted > totalvfs {
            return Err(Error::new(format!("Cannot make {wanted} VFs of {}: it can have {totalvfs}", pf.address))
                .remedy(format!("Mend {}, or allow more in the card's firmware", pf.at)));
        }
        if now == wanted {
            return Ok(has_changed);
        }
        let during = |error: Error| {
            error.during(format_args!("Cannot bring {} from {now} to {wanted} VFs ({})", pf.address, pf.at))
        };
        if !device.on_host_driver() {
            let driver = device.driver.as_deref().unwrap_or("no driver");
            let error = Error::new(format!("it is on {driver}, and only the PF's own driver makes VFs"));
            return Err(during(error.remedy("Bind it to that, then run `vfpool setup`")));
        }
        if now > 0 {
            self.remove_vfs(device, binder).map_err(during)?;
        }
        binder.set_numvfs(&PciDevice { numvfs: 0, ..device.clone() }, wanted)?;
        if self.host.is_dry() {
            self.log.info(format_args!("{}: its {wanted} VFs -> {VFIO_PCI} ({})", pf.address, binder.user));
            return Ok(true);
        }
        let made = sysfs::vfs_of(self.host, pf.address)?.len();
        if made != wanted as usize {
            let error = Error::new(format!("its driver made {made}"));
            return Err(during(error.remedy("See `dmesg` for the reason")));
        }
        Ok(true)
    }

    /// The kernel goes from one number of VFs to another only by way of none, which takes them from whoever has one.
    fn remove_vfs(&self, pf: &PciDevice, binder: &Binder) -> Result<()> {
        let vfs = sysfs::vfs_of(self.host, pf.address)?;
        for vf in &vfs {
            if let Some(need) = self.need(*vf)? {
                return Err(Error::new(format!("{vf} is in use: {need}"))
                    .remedy(format!("{}, then run `vfpool setup`", need.remedy())));
            }
        }
        // No guest may take one between the look and the write.
        let _locked = self.store.lock()?;
        for vf in &vfs {
            if let Some(guest) = self.store.owner(*vf)? {
                return Err(Error::new(format!("guest '{guest}' has {vf}")).remedy("Stop it, then run `vfpool setup`"));
            }
        }
        binder.set_numvfs(pf, 0)
    }

    /// Why the host, or somebody through VFIO, needs a VF.
    fn need(&self, vf: PciAddress) -> Result<Option<HostUse>> {
        let enabled = files::read_optional(&self.host.device(vf).join("enable"))?;
        match sysfs::identity(self.host, vf)? {
            // Nobody has it open; to look at all processes for each of 256 VFs would take long.
            Some(device) if device.on_vfio && enabled.as_deref() == Some("0") => Ok(None),
            Some(device) if device.in_vfio_use => {
                Ok(Some(guard::of(self.host, vf, self.limit)?.unwrap_or_else(HostUse::in_vfio_by_somebody)))
            }
            _ => guard::of(self.host, vf, self.limit),
        }
    }

    /// Brings VFs of one PF to vfio-pci, but for those that somebody has. Whether that changed anything.
    fn bind_all(&self, binder: &Binder, vfs: &[PciAddress], report: &mut Report) -> bool {
        // What is missing for all is told once.
        let Some(first) = vfs.first() else { return false };
        if report.add(self.expect_vfio(binder, *first)).is_none() {
            return false;
        }
        let mut has_changed = false;
        for vf in vfs {
            match self.bind(binder, *vf) {
                Ok(Bound::Now) => has_changed = true,
                Ok(Bound::Already) => {}
                Ok(Bound::Needed(need)) => report.warnings.push(Error::new(format!(
                    "{vf} ({}) stays with the host: {need}. {}, then run `vfpool setup`",
                    binder.user,
                    need.remedy()
                ))),
                Err(error) => report.failures.push(error),
            }
        }
        has_changed
    }

    fn expect_vfio(&self, binder: &Binder, vf: PciAddress) -> Result<()> {
        if sysfs::identity(self.host, vf)?.is_some_and(|device| device.group.is_none()) {
            return Err(Error::new(format!("Cannot bind {vf} ({}) to {VFIO_PCI}: it has no IOMMU group", binder.user))
                .remedy(
                    "Switch the IOMMU on, in the firmware and with intel_iommu=on (Intel) on the kernel's command line",
                ));
        }
        binder.load_vfio()
    }

    fn bind(&self, binder: &Binder, vf: PciAddress) -> Result<Bound> {
        let gone = || Error::new(format!("Cannot bind {vf} ({}): it went away", binder.user));
        let device = sysfs::identity(self.host, vf)?.ok_or_else(gone)?;
        if device.on_vfio || self.store.owner(vf)?.is_some() {
            return Ok(Bound::Already);
        }
        if device.on_host_driver() {
            sysfs::expect_answer(self.host, &device, self.limit)?;
            let need = if self.settings.allows(vf) { None } else { self.need(vf)? };
            if let Some(need) = need {
                return Ok(Bound::Needed(need));
            }
        }
        let device = sysfs::device(self.host, vf)?.ok_or_else(gone)?;
        binder.probe_vfio(&device)?;
        match sysfs::driver_of(self.host, vf)? {
            now if now.as_deref() == Some(VFIO_PCI) || self.host.is_dry() => {
                let before = device.driver.as_deref().unwrap_or("no driver");
                self.log.info(format_args!("{vf}: {before} -> {VFIO_PCI} ({})", binder.user));
                Ok(Bound::Now)
            }
            now => {
                let now = now.as_deref().unwrap_or("no driver");
                let what =
                    format!("Cannot bind {vf} ({}): {VFIO_PCI} does not take it, it is on {now} now", binder.user);
                Err(Error::new(what).remedy("See `dmesg` for the reason"))
            }
        }
    }
}

/// As long as this is there, udev's rules start no helper for each new VF. One that a killed setup has left goes with the
/// next one.
struct Making(Option<PathBuf>);

impl Making {
    fn begin(host: &Host) -> Self {
        let path = host.state().join("making-vfs");
        if host.is_dry() {
            return Self(None);
        }
        // Without it, helpers are started that find nothing to do.
        let _ = fs::write(&path, "");
        Self(Some(path))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let _ = self.0.as_ref().map(fs::remove_file);
    }
}

enum Bound {
    Now,
    Already,
    Needed(HostUse),
}
