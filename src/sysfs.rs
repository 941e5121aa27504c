//! PCI functions as sysfs shows them, and the writes that move them between drivers.
//!
//! Knows nothing of guests and leases. Attributes become types here, and nowhere else.
//! Sources: Linux `Documentation/ABI/testing/sysfs-bus-pci`, `Documentation/PCI/pci-iov-howto.rst`.

mod picture;

use crate::address::{PciAddress, PciId};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::patient;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
pub use picture::Picture;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A PCI function as it is now.
#[derive(Debug, Clone)]
pub struct Device {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub id: PciId,
    /// Class code, 24 bit: base class, sub-class, interface.
    pub class: u32,
    /// Layout of its configuration space (offset 0x0e without the multi-function bit): 0 is an endpoint,
    /// 1 a bridge or port, 2 a `CardBus` bridge.
    pub header_type: u8,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// Whether that driver gives it to VFIO.
    pub on_vfio: bool,
    /// Whether somebody has it open through VFIO: vfio-pci enables a device only as long as it is used.
    /// Source: Linux `Documentation/PCI/sysfs-pci.rst`, `enable`; `drivers/vfio/pci/vfio_pci_core.c`.
    pub in_vfio_use: bool,
    /// The override in force. The outer `None`: this kernel has no `driver_override`.
    pub driver_override: Option<Option<String>>,
    /// Its IOMMU group; none when the IOMMU is off or does not translate for it.
    pub group: Option<u32>,
    /// The PF, if this is a VF.
    pub physfn: Option<PciAddress>,
    /// How many VFs it has now; 0 also for what is no PF.
    pub numvfs: u32,
    /// Whether host drivers probe its new VFs. None: it is no PF, or this kernel cannot be told.
    pub drivers_autoprobe: Option<bool>,
}

impl Device {
    /// Whether it can be given to a guest at all, as the kernel's vfio-pci and libvirt see it.
    pub fn is_endpoint(&self) -> bool {
        self.header_type == 0
    }

    /// Whether it is one of the host's bridges: base class 6, which has host, ISA and other bridges with an endpoint's
    /// header too. As a sibling such a device is never touched.
    pub fn is_bridge(&self) -> bool {
        !self.is_endpoint() || self.class >> 16 == 0x06
    }

    /// Whether a host driver works with it. Without any driver, or with one that gives it to VFIO, it is free for a guest
    /// as far as VFIO is concerned.
    pub fn on_host_driver(&self) -> bool {
        self.driver.is_some() && !self.on_vfio
    }
}

/// Who tells of functions: a [`Host`] as they are at the moment of each question, a [`Picture`] as they were at the first.
pub trait Look {
    /// The host that is looked at.
    fn host(&self) -> &Host;

    /// As [`identity`].
    fn identity(&self, address: PciAddress) -> Result<Option<Device>>;

    /// As [`group_members`].
    fn group_members(&self, group: u32) -> Result<Vec<PciAddress>>;

    /// As [`function_of`].
    fn function_of(&self, netdev: &str) -> Option<PciAddress>;

    /// The PF of a VF.
    fn physfn(&self, address: PciAddress) -> Result<Option<PciAddress>>;
}

impl Look for Host {
    fn host(&self) -> &Host {
        self
    }

    fn identity(&self, address: PciAddress) -> Result<Option<Device>> {
        identity(self, address)
    }

    fn group_members(&self, group: u32) -> Result<Vec<PciAddress>> {
        group_members(self, group)
    }

    fn function_of(&self, netdev: &str) -> Option<PciAddress> {
        function_of(self, netdev)
    }

    fn physfn(&self, address: PciAddress) -> Result<Option<PciAddress>> {
        link_name(&self.device(address).join("physfn"))?.map(|name| name.parse()).transpose()
    }
}

/// Whether the device in this folder is on a driver that gives it to VFIO.
pub fn is_on_vfio(folder: &Path) -> Result<bool> {
    Ok(gives_to_vfio(link_name(&folder.join("driver"))?.as_deref(), folder))
}

/// Whether a device's driver gives it to VFIO: vfio-pci, a vendor's variant (which have vfio in their names), or whatever has
/// registered it there (newer kernels show that as `vfio-dev`).
fn gives_to_vfio(driver: Option<&str>, folder: &Path) -> bool {
    driver.is_some_and(|name| name.contains("vfio") || folder.join("vfio-dev").exists())
}

/// The function at this address; `None` where there is none.
///
/// The kernel shows `driver_override` and the SR-IOV attributes only when no call into the device's driver is under way: of a
/// driver that hangs, use [`identity`].
pub fn device(host: &Host, address: PciAddress) -> Result<Option<Device>> {
    let Some(device) = identity(host, address)? else { return Ok(None) };
    let folder = host.device(address);
    Ok(Some(Device {
        driver_override: read_optional(&folder.join("driver_override"))?
            .map(|text| Some(text).filter(|text| !text.is_empty() && text != "(null)")),
        numvfs: match read_optional(&folder.join("sriov_numvfs"))? {
            Some(text) => number(&folder.join("sriov_numvfs"), &text)?,
            None => 0,
        },
        drivers_autoprobe: read_optional(&folder.join("sriov_drivers_autoprobe"))?.map(|text| text != "0"),
        ..device
    }))
}

/// What can be told of a function without waiting for its driver: all but its override and its VFs.
pub fn identity(host: &Host, address: PciAddress) -> Result<Option<Device>> {
    identity_in(host, address, || group_of(host, address))
}

/// The same of a function whose group may be known already.
fn identity_in(
    host: &Host,
    address: PciAddress,
    group: impl FnOnce() -> Result<Option<u32>>,
) -> Result<Option<Device>> {
    let folder = host.device(address);
    let Some(vendor) = attribute(&folder.join("vendor"))? else { return Ok(None) };
    let driver = link_name(&folder.join("driver"))?;
    let physfn = host.physfn(address)?;
    let on_vfio = gives_to_vfio(driver.as_deref(), &folder);
    Ok(Some(Device {
        address,
        id: PciId { vendor: number(&folder.join("vendor"), &vendor)?, device: required(&folder.join("device"))? },
        class: required(&folder.join("class"))?,
        // A VF is always an endpoint (PCI Express, SR-IOV: "VF header type").
        header_type: if physfn.is_some() { 0 } else { header_type(&folder.join("config"))? },
        driver,
        on_vfio,
        in_vfio_use: on_vfio && attribute(&folder.join("enable"))?.is_some_and(|count| count != "0"),
        driver_override: None,
        group: group()?,
        physfn,
        numvfs: 0,
        drivers_autoprobe: None,
    }))
}

/// The IOMMU group of a function.
fn group_of(host: &Host, address: PciAddress) -> Result<Option<u32>> {
    link_number(&host.device(address).join("iommu_group"))
}

/// The addresses of all members of an IOMMU group, bridges included.
pub fn group_members(host: &Host, group: u32) -> Result<Vec<PciAddress>> {
    let mut members = Vec::new();
    for name in names(&host.group_devices(group))? {
        // A group may also hold platform devices, which no PCI guest can have.
        members.extend(name.parse::<PciAddress>());
    }
    members.sort_unstable();
    Ok(members)
}

/// The addresses of the VFs that a PF has now, in the order of their numbers. Does not wait for its driver.
pub fn vfs_of(host: &Host, pf: PciAddress) -> Result<Vec<PciAddress>> {
    let folder = host.device(pf);
    let mut vfs = Vec::new();
    while let Some(name) = link_name(&folder.join(format!("virtfn{}", vfs.len())))? {
        vfs.push(name.parse()?);
    }
    Ok(vfs)
}

/// Whether a function has an option ROM, which its guest's firmware would run.
pub fn has_rom(host: &Host, address: PciAddress) -> bool {
    host.device(address).join("rom").exists()
}

/// How many VFs a PF can have.
pub fn totalvfs(host: &Host, pf: PciAddress) -> Result<u32> {
    let path = host.device(pf).join("sriov_totalvfs");
    number(&path, &read(&path)?)
}

/// The PCI function that a network interface belongs to, if it is there and belongs to one.
pub fn function_of(host: &Host, netdev: &str) -> Option<PciAddress> {
    link_name(&host.netdev(netdev).join("device")).ok()??.parse().ok()
}

/// Writes a value to an attribute: opened for writing only, never created or truncated, in one write(2), and given up
/// after `limit`. The error is the kernel's; [`write_error`] puts it into words.
pub fn write(path: &Path, value: &str, limit: Duration) -> io::Result<()> {
    let attribute = c_path(path)?;
    patient::run(limit, || {
        let file = open(attribute.as_c_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        nix::unistd::write(file, value.as_bytes()).map(|_| ())
    })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// The admin's words for a failed write.
pub fn write_error(path: &Path, value: &str, limit: Duration, cause: &io::Error) -> Error {
    let verb = format!("write '{}' to", value.trim());
    if cause.kind() == io::ErrorKind::TimedOut {
        let hangs = format!("the kernel has not come back from it for {} s", limit.as_secs());
        return Error::io(&verb, path, &io::Error::other(hangs));
    }
    Error::io(&verb, path, cause)
}

/// Makes sure that [`device`] will not hang on a function: its driver has to be done with any other call within `limit`.
pub fn expect_answer(host: &Host, device: &Device, limit: Duration) -> Result<()> {
    let path = host.device(device.address).join("driver_override");
    let attribute = c_path(&path).map_err(|cause| Error::io("read", &path, &cause))?;
    let asked = patient::run(limit, || {
        let file = open(attribute.as_c_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        nix::unistd::read(file, &mut [0; 64]).map(|_| ())
    });
    match asked {
        Err(cause) if cause.kind() == io::ErrorKind::TimedOut => Err(Error::new(format!(
            "{} does not answer: its driver {} has been at something else for {} s",
            device.address,
            device.driver.as_deref().unwrap_or("(none)"),
            limit.as_secs()
        ))
        .remedy("See `dmesg` for what hangs")),
        // Anything else is for those to tell who need the attribute.
        _ => Ok(()),
    }
}

/// The NUMA node that a function is at; `None` where the machine has only one, or the firmware does not tell.
pub fn numa_node(host: &Host, address: PciAddress) -> Result<Option<u32>> {
    // -1: no node.
    Ok(read_optional(&host.device(address).join("numa_node"))?.and_then(|text| text.parse().ok()))
}

/// The addresses of all functions of the host.
pub fn functions(host: &Host) -> Result<Vec<PciAddress>> {
    let names = names(&host.path("sys/bus/pci/devices"))?;
    let mut functions: Vec<PciAddress> = names.iter().filter_map(|name| name.parse().ok()).collect();
    functions.sort_unstable();
    Ok(functions)
}

/// The driver that a function is bound to.
pub fn driver_of(host: &Host, address: PciAddress) -> Result<Option<String>> {
    link_name(&host.device(address).join("driver"))
}

/// Looks again and again until a function is on this driver, at most for `limit`; returns the one it is on then.
pub fn wait_for_driver(
    host: &Host,
    address: PciAddress,
    wanted: Option<&str>,
    limit: Duration,
) -> Result<Option<String>> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        let driver = driver_of(host, address)?;
        if driver.as_deref() == wanted || Instant::now() >= deadline {
            return Ok(driver);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// The names in a folder; none if it does not exist.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(Error::io("list", folder, &cause)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|cause| Error::io("list", folder, &cause))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// The last part of a link's target, which in sysfs is the name of what it points to; `None` where there is no link.
pub fn link_name(path: &Path) -> Result<Option<String>> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(cause) if gone(&cause) => Ok(None),
        Err(cause) => Err(Error::io("read the link", path, &cause)),
    }
}

/// An attribute's text without the newline.
pub fn read(path: &Path) -> Result<String> {
    read_optional(path)?.ok_or_else(|| Error::io("read", path, &io::ErrorKind::NotFound.into()))
}

/// A device's attribute of one short line, in one read(2); `None` where there is no such attribute, or the device went away
/// meanwhile.
fn attribute(path: &Path) -> Result<Option<String>> {
    let mut text = [0; 64];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut text));
    match read {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&text[..length]).trim_end().to_owned())),
        Err(cause) if gone(&cause) => Ok(None),
        Err(cause) => Err(Error::io("read", path, &cause)),
    }
}

/// An attribute that each device has.
fn required<T: TryFrom<u32>>(path: &Path) -> Result<T> {
    let text = attribute(path)?.ok_or_else(|| Error::io("read", path, &io::ErrorKind::NotFound.into()))?;
    number(path, &text)
}

/// Like [`read`]; `None` where there is no such attribute, or the device went away meanwhile.
pub fn read_optional(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(cause) if gone(&cause) => Ok(None),
        Err(cause) => Err(Error::io("read", path, &cause)),
    }
}

/// ENODEV is what an open attribute gives once its device has been removed.
fn gone(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::NotFound || cause.raw_os_error() == Some(nix::libc::ENODEV)
}

/// An attribute's number: hexadecimal with 0x, else decimal.
fn number<T: TryFrom<u32>>(path: &Path, text: &str) -> Result<T> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| Error::new(format!("Cannot read {}: '{text}' is not the number expected there", path.display())))
}

/// The number of what a link points to, as of a device's IOMMU group.
pub fn link_number(path: &Path) -> Result<Option<u32>> {
    match link_name(path)? {
        Some(name) => number(path, &name).map(Some),
        None => Ok(None),
    }
}

fn header_type(config: &Path) -> Result<u8> {
    const HEADER_TYPE: usize = 0x0e;
    let mut space = [0; HEADER_TYPE + 1];
    fs::File::open(config)
        .and_then(|mut file| file.read_exact(&mut space))
        .map_err(|cause| Error::io("read", config, &cause))?;
    Ok(space[HEADER_TYPE] & 0x7f)
}
