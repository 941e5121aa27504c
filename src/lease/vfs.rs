//! Creates the VFs of the pools, and binds them to vfio-pci before a guest requests one: at boot, when a PF appears,
//! and when the admin runs `vfpool setup`.
//!
//! Looks first and does only what is missing, so that it may be killed anywhere and called again, also twice at the
//! same time. A VF that a guest or the host has is never touched; PFs that are in no pool are not either. Must not be
//! called by a hook or a udev event for a whole PF: that takes seconds.
//! Source: Linux `Documentation/PCI/pci-iov-howto.rst`, `Documentation/ABI/testing/sysfs-bus-pci`.

use crate::Leases;
use crate::life::Life;
use crate::records::Turn;
use host::config::pool::{Pf, Pool};
use host::files;
use host::guard::{self, Guard};
use host::libvirt::{networks, runtime};
use host::log::Log;
use host::paths::Host;
use host::pci::bind::Binder;
use host::pci::{ports, sysfs};
use host::queue::Entry;
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::{Error, Result};
use model::host_use::HostUse;
use model::plan::no_group;
use model::step::VFIO_PCI;
use std::cell::Cell;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

/// Sets up the pools of one host.
pub struct Setup<'a> {
    host: &'a Host,
    log: &'a Log,
    leases: Leases<'a>,
    limit: Duration,
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

/// What a device is to the pools.
#[derive(Debug, Clone, Copy)]
pub enum Membership<'s> {
    /// A PF whose VFs are in a pool.
    Pf,
    /// A VF of this pool.
    Vf(&'s Pool),
    /// A whole function that a pool lists, or a device of no pool: not for us to touch.
    None,
}

impl<'a> Setup<'a> {
    /// Reads settings and pools. [`Setup::all`] reports what is wrong with them.
    pub fn new(host: &'a Host, log: &'a Log) -> Self {
        let leases = Leases::new(host, log);
        let limit = leases.deadline();
        Self { host, log, leases, limit }
    }

    /// The same with less time for each step, for a caller that is waited for.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = self.limit.min(limit);
        self
    }

    /// Sets up every PF and VF of every pool.
    pub fn all(&self) -> Report {
        let mut report = Report { failures: self.leases.pools().errors.clone(), ..Report::default() };
        let mut has_changed = false;
        for pool in &self.leases.pools().pools {
            for pf in pool.pfs(self.host) {
                if let Some(pf) = report.add(pf) {
                    has_changed |= self.pf(pool, &pf, &mut report);
                }
            }
        }
        // Only now: a pool may list VFs of another pool's PF, which has just got them.
        for pool in &self.leases.pools().pools {
            for function in pool.functions(self.host) {
                if let Some(address) = report.add(function) {
                    has_changed |= self.listed(pool, address, &mut report);
                }
            }
        }
        report.warnings.extend(networks::shared_with(self.leases.pools(), self.host));
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
        // Any interface of its function will do: another port, or a representor.
        let address = name.parse::<PciAddress>().ok();
        let address = address.or_else(|| {
            Some(name).filter(|name| is_file_name(name)).and_then(|name| ports::function_of(self.host, name))
        });
        let mut wrong = Vec::new();
        for pool in &self.leases.pools().pools {
            for pf in pool.pfs(self.host) {
                match pf {
                    Ok(pf) if Some(pf.address) == address => return Ok((pool, pf)),
                    Ok(_) => {}
                    Err(error) => wrong.push(error),
                }
            }
        }
        let known: Vec<String> =
            wrong.iter().chain(&self.leases.pools().errors).map(|error| format!(". {error}")).collect();
        Err(Error::new(format!(
            "{name} is no PF of any pool in {}. Name one by network interface or PCI address, or add it there{}",
            self.host.pools().display(),
            known.concat()
        )))
    }

    /// The function at an address, as udev names one.
    pub fn device(&self, address: PciAddress) -> Result<Option<PciDevice>> {
        sysfs::identity(self.host, address)
    }

    /// What a device is to the pools. Looks at no other device.
    pub fn membership(&self, device: &PciDevice) -> Membership<'_> {
        let mut pools = self.leases.pools().pools.iter();
        if device.physfn.is_some() {
            return pools.find(|pool| pool.has_member(self.host, device)).map_or(Membership::None, Membership::Vf);
        }
        if pools.any(|pool| pool.has_pf(self.host, device.address)) { Membership::Pf } else { Membership::None }
    }

    /// Binds one VF of a pool, which has just appeared; not if its PF is being set up, which has its turn. `Ok(false)`:
    /// it has to be left to [`Setup::all`], as `new_id`, which a kernel without `driver_override` needs, takes other
    /// VFs too.
    pub fn vf(&self, pool: &Pool, device: &PciDevice) -> Result<bool> {
        let Some(pf) = device.physfn else { return Ok(true) };
        let Some(_turn) = self.leases.store.try_turn_of_vf(pf)? else { return Ok(true) };
        if !self.host.device(device.address).join("driver_override").exists() {
            return Ok(device.on_vfio);
        }
        let mut report = Report::default();
        self.bind_all(&self.binder(pool), std::slice::from_ref(device), &mut report);
        for warning in &report.warnings {
            self.log.warning(warning);
        }
        report.failures.pop().map_or(Ok(true), Err)
    }

    /// A pool may list single VFs. A whole function that it lists stays with the host until a guest takes it.
    fn listed(&self, pool: &Pool, address: PciAddress, report: &mut Report) -> bool {
        let Some(device) = report.add(self.device(address)).flatten() else { return false };
        let Some(pf) = device.physfn else { return false };
        let turn = report.add(self.turn(pf));
        turn.is_some() && self.bind_all(&self.binder(pool), &[device], report)
    }

    fn binder(&self, pool: &Pool) -> Binder<'_> {
        Binder {
            host: self.host,
            is_claimed: Box::new(|address| Ok(self.guest_with(address)?.is_some())),
            log: self.log,
            user: format!("pool '{}'", pool.name),
            limit: self.limit,
            hangs: Cell::new(false),
        }
    }

    fn turn(&self, pf: PciAddress) -> Result<Turn> {
        // As long as another one may take for all its VFs.
        let limit = self.limit + Duration::from_secs(sysfs::totalvfs(self.host, pf)?.into());
        self.leases.store.turn_of_pf(pf, limit)?.ok_or_else(|| {
            let other = format!("another `vfpool setup` has been at work on it for {} s", limit.as_secs());
            Error::new(format!("Cannot set up {pf}: {other}, or hangs in the kernel"))
                .remedy("See `dmesg`, and run it again")
        })
    }

    /// The guest that has a device. A claim alone is not enough: its lease may be over, lost, or know nothing of the
    /// device.
    fn guest_with(&self, address: PciAddress) -> Result<Option<String>> {
        let Some(guest) = self.leases.store.owner(address)? else { return Ok(None) };
        let has_it = match self.leases.store.lease_or_none(&guest) {
            Some(lease) => lease.held(address).is_some() && !lease.is_over(self.host),
            None => runtime::qemu(self.host, &guest).is_some(),
        };
        Ok(has_it.then_some(guest))
    }

    /// Sets up one PF. Whether anything changed.
    fn pf(&self, pool: &Pool, pf: &Pf, report: &mut Report) -> bool {
        let Some(_turn) = report.add(self.turn(pf.address)) else { return false };
        let Some(guest) = report.add(self.guest_with(pf.address)) else { return false };
        if let Some(guest) = guest {
            let why = format!("{} is left as it is: guest '{guest}' has the PF itself ({})", pf.address, pf.at);
            report.warnings.push(Error::new(why));
            return false;
        }
        let Some(device) = report.add(self.pf_device(pf)) else { return false };
        let _creating = Creating::begin(self.host);
        let binder = self.binder(pool);
        let mut has_changed = false;
        // First: some drivers (bnxt_en, bnx2x) create no VFs while the interface is down, and the driver of a VF waits
        // for it.
        for port in pf.ports.iter().filter(|_| device.on_host_driver()) {
            has_changed |= report.add(binder.bring_up(port)) == Some(true);
        }
        match self.set_number(pf, &device, &binder, report) {
            Ok(changed) => has_changed |= changed,
            Err(error) => {
                let (now, wanted) = (device.numvfs, pf.vfs.wanted(device.numvfs, pf.totalvfs));
                let what = format!("Cannot bring {} from {now} to {wanted} VFs ({})", pf.address, pf.at);
                report.failures.push(error.during(what));
            }
        }
        let vfs = report.add(self.vfs_of(pf)).unwrap_or_default();
        has_changed | self.bind_all(&binder, &vfs, report)
    }

    /// A PF whose driver answers.
    fn pf_device(&self, pf: &Pf) -> Result<PciDevice> {
        let gone = || Error::new(format!("Cannot set up {}: it went away ({})", pf.address, pf.at));
        let device = self.device(pf.address)?.ok_or_else(gone)?;
        sysfs::with_driver_state_within(self.host, device, self.limit)
    }

    fn vfs_of(&self, pf: &Pf) -> Result<Vec<PciDevice>> {
        let mut vfs = Vec::new();
        for vf in sysfs::vfs_of(self.host, pf.address)? {
            vfs.extend(self.device(vf)?);
        }
        Ok(vfs)
    }

    /// Brings a PF to the number of VFs that its line asks for. Whether anything changed.
    fn set_number(&self, pf: &Pf, device: &PciDevice, binder: &Binder, report: &mut Report) -> Result<bool> {
        let now = device.numvfs;
        let wanted = pf.vfs.wanted(now, pf.totalvfs);
        if wanted > pf.totalvfs {
            return Err(Error::new(format!("it can have {}", pf.totalvfs))
                .remedy(format!("Ask for vfs='{}' there, or allow more in the card's firmware", pf.totalvfs)));
        }
        let is_done = now == wanted || result_of(self.host, pf.address) == Some((wanted, now));
        if !device.on_host_driver() {
            return if is_done { Ok(false) } else { Err(self.without_driver(device)?) };
        }
        let mut has_changed = false;
        // Their own drivers are not to have them in between. A kernel without `driver_override` would keep vfio-pci
        // off, too.
        if device.drivers_autoprobe == Some(true) && device.driver_override.is_some() {
            binder.set_autoprobe(pf.address, false)?;
            self.log.info(format_args!("{}: host drivers are kept from its new VFs ({})", pf.address, binder.user));
            has_changed = true;
        }
        if is_done {
            return Ok(has_changed);
        }
        if now > 0 {
            self.remove_vfs(device, binder)?;
        }
        let without = PciDevice { numvfs: 0, ..device.clone() };
        let created = binder.set_numvfs(&without, wanted).map_err(|error| {
            // Better those that there were than none.
            let again = (now > 0 && !binder.hangs.get()).then(|| binder.set_numvfs(&without, now));
            match again {
                None => error,
                Some(Ok(again)) => error.but(format_args!("the PF has {again} VFs again")),
                Some(Err(other)) => error.but(format_args!("the {now} VFs that it had are gone: {}", other.reason())),
            }
        })?;
        if self.host.is_dry() {
            self.log.info(format_args!("{}: its {wanted} VFs -> {VFIO_PCI} ({})", pf.address, binder.user));
            return Ok(true);
        }
        self.set_result(pf.address, wanted, created)?;
        let driver = device.driver.as_deref().unwrap_or_default();
        let what = format!("{} has {created} VFs, and {} asks for {wanted}: ", pf.address, pf.at);
        if created > wanted {
            let error = Error::new(format!("{what}its driver {driver} creates no fewer"));
            report.warnings.push(error.remedy(format!("Ask for vfs='{created}' there")));
        } else if created < wanted {
            let error = Error::new(format!("{what}its driver {driver} created no more"));
            report.failures.push(error.remedy(format!("See `dmesg` for the reason, or ask for vfs='{created}' there")));
        }
        Ok(true)
    }

    /// Why a PF that is not on its own driver gets no VFs.
    fn without_driver(&self, device: &PciDevice) -> Result<Error> {
        let on = device.driver.as_deref().unwrap_or("no driver");
        let error = Error::new(format!("it is on {on}, and only the PF's own driver creates VFs"));
        let bind = "bind it to its own driver, and run `vfpool setup`";
        Ok(match guard::of(self.host, device.address, self.limit)? {
            Some(used) => error.but(&used).remedy(format!("{}, then {bind}", used.remedy())),
            None => error.remedy("Bind it to its own driver, then run `vfpool setup`"),
        })
    }

    /// The kernel goes from one number of VFs to another only by way of none, which takes them from their users.
    fn remove_vfs(&self, pf: &PciDevice, binder: &Binder) -> Result<()> {
        let vfs = sysfs::vfs_of(self.host, pf.address)?;
        let guard = Guard::new(self.host, self.limit);
        for vf in &vfs {
            let Some(device) = self.device(*vf)? else { continue };
            if let Some(used) = guard.of_device(&device)? {
                return Err(Error::new(format!("{vf} is in use: {used}"))
                    .remedy(format!("{}, then run `vfpool setup`", used.remedy())));
            }
        }
        // Who compares leases after this finds the VFs claimed. The write may take long, and comes without the
        // lock.
        let _claim = {
            let locked = self.leases.store.lock()?;
            for vf in &vfs {
                if let Some(guest) = self.guest_with(*vf)? {
                    return Err(
                        Error::new(format!("guest '{guest}' has {vf}")).remedy("Stop it, then run `vfpool setup`")
                    );
                }
            }
            locked.claim_vfs_of(pf.address)?
        };
        binder.set_numvfs(pf, 0).map(drop)
    }

    fn set_result(&self, pf: PciAddress, wanted: u32, created: u32) -> Result<()> {
        let file = result_file(self.host, pf);
        let done = if wanted == created {
            fs::remove_file(&file)
                .or_else(|cause| if cause.kind() == ErrorKind::NotFound { Ok(()) } else { Err(cause) })
        } else {
            fs::create_dir_all(file.parent().unwrap_or(&file))
                .and_then(|()| fs::write(&file, format!("{wanted} {created}")))
        };
        done.map_err(|cause| Error::io("write", &file, &cause))
    }

    /// Brings VFs of one PF to vfio-pci, but for those that are in use. Whether that changed anything.
    fn bind_all(&self, binder: &Binder, vfs: &[PciDevice], report: &mut Report) -> bool {
        // What all of them lack is reported once.
        let Some(first) = vfs.first() else { return false };
        if report.add(expect_vfio(binder, first)).is_none() {
            return false;
        }
        let guard = Guard::new(self.host, self.limit);
        let mut has_changed = false;
        for vf in vfs {
            match self.bind(binder, &guard, vf) {
                Ok(Bound::Now) => has_changed = true,
                Ok(Bound::Already) => {}
                Ok(Bound::InUse(used)) => report.warnings.push(Error::new(format!(
                    "{} ({}) stays with the host: {used}. {}, then run `vfpool setup`",
                    vf.address,
                    binder.user,
                    used.remedy()
                ))),
                Err(error) => report.failures.push(error),
            }
        }
        has_changed
    }

    fn bind(&self, binder: &Binder, guard: &Guard, device: &PciDevice) -> Result<Bound> {
        let vf = device.address;
        if device.on_vfio || self.guest_with(vf)?.is_some() {
            return Ok(Bound::Already);
        }
        let device = sysfs::with_driver_state_within(self.host, device.clone(), self.limit)?;
        if device.on_host_driver() && !self.leases.settings.allows(vf, device.id) {
            if let Some(used) = guard.of_device(&device)? {
                return Ok(Bound::InUse(used));
            }
        }
        binder.bind_to_vfio(&device)?;
        let now = sysfs::driver_of(self.host, vf)?;
        if now.as_deref() == Some(VFIO_PCI) || self.host.is_dry() {
            let before = device.driver.as_deref().unwrap_or("no driver");
            self.log.info(format_args!("{vf}: {before} -> {VFIO_PCI} ({})", binder.user));
            return Ok(Bound::Now);
        }
        let now = now.as_deref().unwrap_or("no driver");
        let what = format!("Cannot bind {vf} ({}): {VFIO_PCI} does not bind it, it is on {now} now", binder.user);
        Err(Error::new(what).remedy("See `dmesg` for the reason"))
    }
}

fn expect_vfio(binder: &Binder, vf: &PciDevice) -> Result<()> {
    if vf.group.is_none() {
        let why = no_group(vf.address, sysfs::iommu_is_on(binder.host)?);
        return Err(why.during(format_args!("Cannot bind {} ({}) to {VFIO_PCI}", vf.address, binder.user)));
    }
    binder.load_vfio()
}

/// What came of the last change of a PF's number of VFs, if that was another number than asked for: the numbers asked
/// for and created. Another try would end in the same, so it is reported once and then left alone.
pub fn result_of(host: &Host, pf: PciAddress) -> Option<(u32, u32)> {
    let text = files::read_optional(&result_file(host, pf)).ok()??;
    let (wanted, created) = text.split_once(' ')?;
    Some((wanted.parse().ok()?, created.parse().ok()?))
}

fn result_file(host: &Host, pf: PciAddress) -> PathBuf {
    host.state().join("results").join(pf.to_string())
}

/// Whether this can be the name of a file in `/sys/class/net`.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

/// As long as this is there, udev's rules start no helper for each new VF. One that a killed setup has left goes with
/// the next one.
struct Creating(Option<PathBuf>);

impl Creating {
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

impl Drop for Creating {
    fn drop(&mut self) {
        let _ = self.0.as_ref().map(fs::remove_file);
    }
}

enum Bound {
    Now,
    Already,
    InUse(HostUse),
}
