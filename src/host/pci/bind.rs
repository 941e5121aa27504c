//! Moves one device from its host driver to vfio-pci, and back.
//!
//! Each function looks at the device first and does only what is missing, so that it can be called again after a kill
//! at any point. Whether the device is ours to touch has been decided, and recorded, before.
//! Source: Linux `Documentation/ABI/testing/sysfs-bus-pci`: `driver_override`, `new_id`, `remove_id`, `bind`, `unbind`.

use crate::log::Log;
use crate::paths::Host;
use crate::pci::{ports, sysfs};
use crate::{command, files, guard, open_files};
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::{Error, Result};
use model::lease::{HeldDevice, Role};
use model::step::{Step, VFIO_PCI};
use nix::errno::Errno;
use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// The PF's switch for host drivers on new VFs, from kernel 4.12 on.
pub const AUTOPROBE: &str = "sriov_drivers_autoprobe";

/// The writes of a step, for those who only want to know: files and values. `BindById` writes more than these where
/// vfio-pci binds other devices too.
pub fn writes(step: &Step, host: &Host, device: &PciDevice) -> Vec<(PathBuf, String)> {
    let (folder, address) = (host.device(device.address), device.address.to_string());
    match step {
        Step::RemoveVfs { .. } => vec![(folder.join("sriov_numvfs"), "0".to_owned())],
        Step::LoadVfio => Vec::new(),
        Step::Override => vec![(folder.join("driver_override"), VFIO_PCI.to_owned())],
        Step::Unbind(driver) => vec![(host.driver(driver).join("unbind"), address)],
        Step::Probe => vec![(host.drivers_probe(), address)],
        Step::BindById => {
            let write = |file| (host.driver(VFIO_PCI).join(file), dynamic_id(device));
            vec![write("new_id"), write("remove_id")]
        }
    }
}

fn dynamic_id(device: &PciDevice) -> String {
    format!("{:04x} {:04x}", device.id.vendor, device.id.device)
}

/// The steps that unbind a device from its driver and bind it to vfio-pci, whose module is loaded. The override is set
/// first, so that no host driver binds the device in between, and stays until the device is reattached.
fn to_vfio(device: &PciDevice) -> Vec<Step> {
    let unbind = device.driver.clone().map(Step::Unbind);
    let Some(current) = &device.driver_override else { return unbind.into_iter().chain([Step::BindById]).collect() };
    let set = (current.as_deref() != Some(VFIO_PCI)).then_some(Step::Override);
    set.into_iter().chain(unbind).chain([Step::Probe]).collect()
}

/// How far libvirt is with the managed devices of a guest that is gone, or of a start that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libvirt {
    /// It may still reattach them itself.
    AtWork,
    /// It has done so, or never will.
    Done,
}

/// Detaches and reattaches the devices of one host.
pub struct Binder<'a> {
    /// The host.
    pub host: &'a Host,
    /// Whether a guest has claimed a device. A function of the caller's, because this layer knows no leases.
    pub is_claimed: Box<dyn Fn(PciAddress) -> Result<bool> + 'a>,
    /// Where each change is logged.
    pub log: &'a Log,
    /// For whom it is done (`guest 'web'`); for the log only.
    pub user: String,
    /// How long each step may take.
    pub limit: Duration,
    /// Set once a write was left behind hanging in the kernel, which may carry it out at any later time.
    pub hangs: Cell<bool>,
}

impl Binder<'_> {
    /// Detaches a device from its host driver. libvirt detaches managed devices, and a VF goes with its PF: of these,
    /// only the VFs of a PF are removed here.
    pub fn detach(&self, held: &HeldDevice) -> Result<()> {
        let device = self.find(held)?.ok_or_else(|| {
            Error::new(format!(
                "{} went away, or another device took its place, while the guest was being started",
                held.address
            ))
        })?;
        self.carry_out(&device, &self.steps(&device, held.role))?;
        match held.role {
            Role::Unmanaged | Role::Sibling if !device.on_vfio => self.confirm_vfio(&device, held),
            _ => Ok(()),
        }
    }

    /// What [`detach`](Self::detach) does with a device that is found so. Changes nothing.
    pub fn steps(&self, device: &PciDevice, role: Role) -> Vec<Step> {
        let mut steps = Vec::new();
        if device.numvfs > 0 && device.on_host_driver() {
            steps.push(Step::RemoveVfs { count: device.numvfs });
        }
        if matches!(role, Role::Unmanaged | Role::Sibling) && !device.on_vfio {
            if !self.host.driver(VFIO_PCI).exists() {
                steps.push(Step::LoadVfio);
            }
            steps.extend(to_vfio(device));
        }
        steps
    }

    fn carry_out(&self, device: &PciDevice, steps: &[Step]) -> Result<()> {
        for step in steps {
            match step {
                Step::RemoveVfs { .. } => drop(self.set_numvfs(device, 0)?),
                Step::LoadVfio => self.load_vfio()?,
                Step::Unbind(_) => self.unbind(device)?,
                Step::BindById => self.bind_by_id(device)?,
                Step::Override | Step::Probe => {
                    for (path, value) in writes(step, self.host, device) {
                        self.write(&path, &value)?;
                    }
                }
            }
        }
        let is_offered = steps.iter().any(|step| matches!(step, Step::Probe | Step::BindById));
        if is_offered && device.driver.is_none() && !self.host.is_dry() {
            // The kernel announces a new device before it probes it: a host driver may have bound after our look. This
            // time the device has a driver, so that it ends here.
            if sysfs::driver_of(self.host, device.address)?.is_none_or(|driver| driver == VFIO_PCI) {
                return Ok(());
            }
            let now = sysfs::device(self.host, device.address)?;
            if let Some(now) = now.filter(|now| now.id == device.id && now.on_host_driver()) {
                return self.carry_out(&now, &to_vfio(&now));
            }
        }
        Ok(())
    }

    /// Reattaches a device as it was found. While libvirt may still reattach its managed devices, a managed device is
    /// left alone: `Ok(false)` means that libvirt has not reattached it yet.
    pub fn reattach(&self, held: &HeldDevice, libvirt: Libvirt) -> Result<bool> {
        let Some(device) = self.find(held)? else {
            if held.role != Role::Vf {
                self.log.warning(format_args!("{} of {} is gone; nothing to reattach", held.address, self.user));
            }
            return Ok(true);
        };
        if held.role == Role::Managed && libvirt == Libvirt::AtWork && device.driver != held.driver {
            return Ok(false);
        }
        if self.restore_driver(&device, held)? {
            self.restore_vfs(held)?;
        }
        Ok(true)
    }

    /// The device that was taken; not another one that has its address now.
    fn find(&self, held: &HeldDevice) -> Result<Option<PciDevice>> {
        let Some(device) = sysfs::identity(self.host, held.address)?.filter(|device| device.id == held.id) else {
            return Ok(None);
        };
        sysfs::with_driver_state_within(self.host, device, self.limit).map(Some)
    }

    fn write(&self, path: &Path, value: &str) -> Result<()> {
        self.write_within(path, value, self.limit)
    }

    fn write_within(&self, path: &Path, value: &str, limit: Duration) -> Result<()> {
        self.try_write(path, value, limit).map_err(|cause| sysfs::write_error(path, value, limit, &cause))
    }

    fn try_write(&self, path: &Path, value: &str, limit: Duration) -> io::Result<()> {
        if self.host.is_dry() {
            return Ok(());
        }
        sysfs::write(path, value, limit).inspect_err(|cause| {
            if cause.kind() == io::ErrorKind::TimedOut {
                self.hangs.set(true);
            }
        })
    }

    fn confirm_vfio(&self, device: &PciDevice, held: &HeldDevice) -> Result<()> {
        let address = device.address;
        // The kernel has probed vfio-pci before the write returned: without a driver now, vfio-pci did not bind it.
        if !self.host.is_dry() && sysfs::driver_of(self.host, address)?.is_none() {
            let refused = format!("{address}: {VFIO_PCI} does not bind it");
            if held.role != Role::Sibling {
                return Err(Error::new(refused).remedy("See `dmesg` for the reason"));
            }
            // VFIO accepts a sibling without a driver.
            self.log.warning(format_args!("{refused}; it stays on no driver ({})", self.user));
            // A host driver that had it keeps off as long as the override is there.
            return if device.driver.is_none() { self.restore_override(device, held) } else { Ok(()) };
        }
        self.wait_for_driver(address, Some(VFIO_PCI))?;
        self.log.info(format_args!(
            "{address}: {} -> {VFIO_PCI} ({}, {})",
            name(device.driver.as_deref()),
            if held.role == Role::Sibling { "sibling" } else { "unmanaged" },
            self.user
        ));
        Ok(())
    }

    /// Unbinds a device from its driver and binds it to vfio-pci, whose module is loaded.
    pub fn bind_to_vfio(&self, device: &PciDevice) -> Result<()> {
        self.carry_out(device, &to_vfio(device))
    }

    /// For kernels without `driver_override`. `new_id` makes vfio-pci bind every device with this ID that has no
    /// driver. So `remove_id` follows, and the other devices are unbound again, except those that a guest has claimed:
    /// a start is binding them at the same time.
    fn bind_by_id(&self, device: &PciDevice) -> Result<()> {
        let driver = self.host.driver(VFIO_PCI);
        let id = dynamic_id(device);
        let before = files::names(&driver)?;
        let new_id = driver.join("new_id");
        let added = match self.try_write(&new_id, &id, self.limit) {
            Ok(()) => true,
            // Not added here, so not removed here.
            Err(cause) if cause.raw_os_error() == Some(Errno::EEXIST as i32) => false,
            Err(cause) => return Err(sysfs::write_error(&new_id, &id, self.limit, &cause)),
        };
        let bound = match sysfs::driver_of(self.host, device.address)?.as_deref() {
            Some(VFIO_PCI) => Ok(()),
            _ => self.write(&driver.join("bind"), &device.address.to_string()),
        };
        if added {
            self.write(&driver.join("remove_id"), &id)?;
            let new = files::names(&driver)?.into_iter().filter(|name| !before.contains(name));
            for other in new.filter_map(|name| name.parse::<PciAddress>().ok()) {
                if other != device.address && !(self.is_claimed)(other)? {
                    self.write(&driver.join("unbind"), &other.to_string())?;
                }
            }
        }
        bound
    }

    fn unbind(&self, device: &PciDevice) -> Result<()> {
        let Some(driver) = &device.driver else { return Ok(()) };
        let unbind = self.host.driver(driver).join("unbind");
        match self.try_write(&unbind, &device.address.to_string(), self.limit) {
            Ok(()) => Ok(()),
            // It is no longer bound to this driver.
            Err(cause) if cause.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
            Err(cause) => Err(sysfs::write_error(&unbind, &device.address.to_string(), self.limit, &cause)),
        }
    }

    /// `Ok(false)`: another program has moved it since, and it stays there.
    fn restore_driver(&self, device: &PciDevice, held: &HeldDevice) -> Result<bool> {
        let address = device.address;
        let current = device.driver.as_deref();
        let wanted = held.driver.as_deref();
        if current != wanted && device.on_host_driver() && !self.is_probed_vf(device, held) {
            if held.role == Role::Managed {
                // libvirt reattached it. The record differs only if it was learned from the running guest.
                return Ok(false);
            }
            self.log.warning(format_args!(
                "{address} was {} before {} and is {} now; another program has moved it, so it stays",
                on(wanted),
                self.user,
                on(current)
            ));
            return Ok(false);
        }
        // Unbinding from vfio-pci would wait in the kernel until the group is closed.
        if let Some(group) = device.group.filter(|_| current != wanted) {
            if let Some(holder) = open_files::vfio_holder(self.host, address, Some(group))? {
                return Err(Error::new(format!(
                    "Cannot reattach {address} to the host: {holder} has its IOMMU group {group} open"
                ))
                .remedy("It is tried again at the next start or stop of a guest"));
            }
        }
        if device.driver_override.as_ref().is_some_and(|now| *now != held.driver_override) {
            self.restore_override(device, held)?;
        }
        if current == wanted {
            return Ok(true);
        }
        self.unbind(device)?;
        if let Some(driver) = wanted {
            self.bind_host(device, driver, held)
                .map_err(|error| error.during(format_args!("Cannot reattach {address} to {driver}")))?;
        }
        self.wait_for_driver(address, wanted)?;
        self.log.info(format_args!("{address}: {} -> {} (reattached, {})", name(current), name(wanted), self.user));
        Ok(true)
    }

    fn restore_override(&self, device: &PciDevice, held: &HeldDevice) -> Result<()> {
        if device.driver_override.is_none() {
            return Ok(());
        }
        // An empty line clears it.
        let value = held.driver_override.as_deref().unwrap_or("\n");
        self.write(&self.host.device(device.address).join("driver_override"), value)
    }

    /// A VF that was created again where host drivers cannot be kept from probing it: nobody has chosen its driver.
    fn is_probed_vf(&self, device: &PciDevice, held: &HeldDevice) -> bool {
        let has_switch = |pf| self.host.device(pf).join(AUTOPROBE).exists();
        held.role == Role::Vf && device.physfn.is_some_and(|pf| !has_switch(pf))
    }

    /// Binds a device to its host driver by name: others may fit it too. A driver binds only devices in its ID table,
    /// or with `driver_override` set to it. A VF that was created again may have been bound through an override that
    /// was cleared later: the override is set once more for the bind, then restored.
    fn bind_host(&self, device: &PciDevice, driver: &str, held: &HeldDevice) -> Result<()> {
        let bind = self.host.driver(driver).join("bind");
        let address = device.address.to_string();
        match self.try_write(&bind, &address, self.limit) {
            Err(cause) if cause.raw_os_error() == Some(Errno::ENODEV as i32) && device.driver_override.is_some() => {
                self.write(&self.host.device(device.address).join("driver_override"), driver)?;
                let bound = self.write(&bind, &address);
                self.restore_override(device, held)?;
                bound
            }
            result => result.map_err(|cause| sysfs::write_error(&bind, &address, self.limit, &cause)),
        }
    }

    /// Creates the VFs again that were removed when their PF was detached. Host drivers do not probe them: each VF is
    /// reattached by its own record. Kernels without [`AUTOPROBE`] probe them, as they did when the VFs were first
    /// created.
    fn restore_vfs(&self, held: &HeldDevice) -> Result<()> {
        if held.numvfs == 0 {
            return Ok(());
        }
        // As it is now, on its driver again.
        let Some(pf) = self.find(held)? else { return Ok(()) };
        let created = if pf.numvfs > 0 { Ok(()) } else { self.create_vfs(&pf, held) };
        // Also if the VFs could not be created, and after a kill between the writes of an earlier call.
        if held.drivers_autoprobe == Some(true)
            && sysfs::device(self.host, pf.address)?.is_some_and(|pf| pf.drivers_autoprobe == Some(false))
        {
            self.set_autoprobe(pf.address, true)?;
        }
        created
    }

    fn create_vfs(&self, pf: &PciDevice, held: &HeldDevice) -> Result<()> {
        if pf.driver != held.driver {
            return Err(Error::new(format!(
                "Cannot create the {} VFs of {} again: it is {}, and was {}",
                held.numvfs,
                held.address,
                on(pf.driver.as_deref()),
                on(held.driver.as_deref())
            )));
        }
        if pf.drivers_autoprobe == Some(true) {
            self.set_autoprobe(pf.address, false)?;
        }
        let created = self.set_numvfs(pf, held.numvfs).or_else(|error| {
            // bnxt_en and bnx2x create none while the interface is down, and a PF comes back with it down. Only then is
            // it brought up: before udev has named it, that would keep the kernel's name.
            let is_tried_again = !self.hangs.get() && self.bring_up_all(pf.address)?;
            if is_tried_again { self.set_numvfs(pf, held.numvfs) } else { Err(error) }
        })?;
        if created < held.numvfs {
            let (address, had) = (pf.address, held.numvfs);
            self.log.warning(format_args!("{address} had {had} VFs before {}, and has {created} now", self.user));
        }
        Ok(())
    }

    fn bring_up_all(&self, pf: PciAddress) -> Result<bool> {
        let mut has_changed = false;
        for port in ports::ports_of(self.host, pf)? {
            has_changed |= self.bring_up(&port)?;
        }
        Ok(has_changed)
    }

    /// Brings up a network interface. VFs of a PF that is down have no link, and libvirt refuses to set the MAC of one.
    /// `Ok(false)`: it was up.
    pub fn bring_up(&self, netdev: &str) -> Result<bool> {
        let folder = self.host.netdev(netdev);
        if guard::is_up(&folder)? {
            return Ok(false);
        }
        let ip = self.host.path("sbin/ip");
        let up = ["link", "set", "dev", netdev, "up"];
        let done = if self.host.is_dry() { Ok(ExitStatus::default()) } else { command::run(&ip, &up, self.limit) };
        let why = match done {
            Ok(status) if !status.success() => status.to_string(),
            Ok(_) if self.host.is_dry() || guard::is_up(&folder)? => {
                self.log.info(format_args!("{netdev}: down -> up ({})", self.user));
                return Ok(true);
            }
            Ok(_) => "it is still down".to_owned(),
            Err(why) => why,
        };
        Err(Error::new(format!("Cannot bring up {netdev} with {}: {why}", ip.display())).remedy("Try it by hand"))
    }

    /// Changes the number of a PF's VFs, which differs from `pf.numvfs`. Returns the number that it has then: a driver
    /// may create more or fewer than it is asked for; none are an error. The kernel creates and removes VFs one by one,
    /// so the limit is one second longer for each.
    pub fn set_numvfs(&self, pf: &PciDevice, count: u32) -> Result<u32> {
        let limit = self.limit + Duration::from_secs(pf.numvfs.max(count).into());
        let path = self.host.device(pf.address).join("sriov_numvfs");
        let written = self.try_write(&path, &count.to_string(), limit);
        written.map_err(|cause| numvfs_error(&path, pf, count, limit, &cause))?;
        let now = if self.host.is_dry() { count } else { sysfs::numvfs(self.host, pf.address)? };
        let driver = pf.driver.as_deref().unwrap_or("(none)");
        if now == pf.numvfs || (count == 0) != (now == 0) {
            let what = format!("{} has {now} VFs after its driver {driver} was asked for {count}", pf.address);
            return Err(Error::new(what).remedy("See `dmesg` for the reason"));
        }
        let asked = if now == count { String::new() } else { format!(", {count} were requested") };
        self.log.info(format_args!("{}: {} VFs -> {now}{asked} ({})", pf.address, pf.numvfs, self.user));
        Ok(now)
    }

    /// Sets whether the kernel probes host drivers for new VFs of a PF.
    pub fn set_autoprobe(&self, pf: PciAddress, value: bool) -> Result<()> {
        self.write(&self.host.device(pf).join(AUTOPROBE), if value { "1" } else { "0" })
    }

    fn wait_for_driver(&self, address: PciAddress, wanted: Option<&str>) -> Result<()> {
        if self.host.is_dry() {
            return Ok(());
        }
        let now = sysfs::wait_for_driver(self.host, address, wanted, self.limit)?;
        if now.as_deref() == wanted {
            return Ok(());
        }
        let (wanted, now, limit) = (on(wanted), on(now.as_deref()), self.limit.as_secs());
        Err(Error::new(format!(
            "{address} should be {wanted} but is {now} after {limit} s; see `dmesg` for the driver's reason"
        )))
    }

    /// Loads vfio-pci unless it is there.
    pub fn load_vfio(&self) -> Result<()> {
        let driver = self.host.driver(VFIO_PCI);
        if driver.exists() {
            return Ok(());
        }
        if !self.host.is_dry() {
            let modprobe = self.host.path("sbin/modprobe");
            // -b: a blacklist in /etc/modprobe.d counts.
            let result = command::run(&modprobe, &["-b", VFIO_PCI], self.limit);
            let result = result.and_then(|status| {
                let is_there = status.success() && driver.exists();
                if is_there { Ok(()) } else { Err(format!("{status}, and the driver is not there; try it by hand")) }
            });
            result.map_err(|why| {
                Error::new(format!("Cannot load the module {VFIO_PCI} with {}: {why}", modprobe.display()))
            })?;
        }
        self.log.info(format_args!("module {VFIO_PCI} loaded ({})", self.user));
        Ok(())
    }
}

/// Why a PF does not get this number of VFs. What the kernel answers has a meaning of its own here.
/// Source: Linux `drivers/pci/iov.c` and `pci-sysfs.c`, `sriov_numvfs_store`.
fn numvfs_error(path: &Path, pf: &PciDevice, count: u32, limit: Duration, cause: &io::Error) -> Error {
    let error = sysfs::write_error(path, &count.to_string(), limit, cause);
    let Some(errno) = cause.raw_os_error().filter(|_| count > 0).map(Errno::from_raw) else { return error };
    let driver = pf.driver.as_deref().unwrap_or("(none)");
    match errno {
        Errno::ENOMEM => error.but("the firmware has reserved no address space for the VFs").remedy(
            "Enable SR-IOV and \"Above 4G Decoding\" in the firmware's setup, or boot with pci=realloc on the kernel's \
             command line",
        ),
        Errno::ENOENT | Errno::ENOSYS => {
            error.but(format_args!("its driver {driver} does not create VFs at run time")).remedy(format!(
                "Set the number in the parameters of the module {driver}, if it has one (`modinfo -p {driver}`), or \
                 bind the PF to a driver that creates VFs"
            ))
        }
        Errno::EPERM | Errno::EACCES | Errno::EOPNOTSUPP => {
            error.but(format_args!("its driver {driver} does not allow VFs")).remedy(format!(
                "Enable them in the card's firmware or in the parameters of the module {driver} (`modinfo -p \
                 {driver}`; `dmesg` says more), then reboot"
            ))
        }
        _ => error.remedy("See `dmesg` for the reason"),
    }
}

fn name(driver: Option<&str>) -> &str {
    driver.unwrap_or("no driver")
}

fn on(driver: Option<&str>) -> String {
    driver.map_or_else(|| "on no driver".to_owned(), |driver| format!("on {driver}"))
}
