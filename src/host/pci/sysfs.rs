//! PCI functions as sysfs shows them, and the writes that move them between drivers.
//!
//! Knows nothing of guests and leases. Attributes become types here, and nowhere else.
//! Sources: Linux `Documentation/ABI/testing/sysfs-bus-pci`, `Documentation/PCI/pci-iov-howto.rst`.

use crate::files::{attribute, gone, link_name, link_number, names, number, read, read_optional};
use crate::paths::Host;
use crate::pci::ports::function_of;
use crate::syscall;
use model::address::{PciAddress, PciId};
use model::device::PciDevice;
use model::error::{Error, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Who tells of functions: a [`Host`] as they are at the moment of each question, a
/// [`Snapshot`](super::snapshot::Snapshot) as they were at the first.
pub trait PciView {
    /// The host that is looked at.
    fn host(&self) -> &Host;

    /// As [`identity`].
    fn identity(&self, address: PciAddress) -> Result<Option<PciDevice>>;

    /// As [`device`].
    fn device(&self, address: PciAddress) -> Result<Option<PciDevice>>;

    /// As [`group_members`].
    fn group_members(&self, group: u32) -> Result<Vec<PciAddress>>;

    /// As [`vfs_of`].
    fn vfs_of(&self, pf: PciAddress) -> Result<Vec<PciAddress>>;

    /// As [`platform_members`].
    fn platform_members(&self, group: u32) -> Result<Vec<String>> {
        platform_members(self.host(), group)
    }

    /// As [`functions_behind`].
    fn functions_behind(&self, address: PciAddress) -> Result<Vec<PciAddress>> {
        functions_behind(self.host(), address)
    }

    /// As [`function_of`].
    fn function_of(&self, netdev: &str) -> Option<PciAddress>;

    /// The PF of a VF.
    fn physfn(&self, address: PciAddress) -> Result<Option<PciAddress>>;
}

impl PciView for Host {
    fn host(&self) -> &Host {
        self
    }

    fn identity(&self, address: PciAddress) -> Result<Option<PciDevice>> {
        identity(self, address)
    }

    fn device(&self, address: PciAddress) -> Result<Option<PciDevice>> {
        device(self, address)
    }

    fn group_members(&self, group: u32) -> Result<Vec<PciAddress>> {
        group_members(self, group)
    }

    fn vfs_of(&self, pf: PciAddress) -> Result<Vec<PciAddress>> {
        vfs_of(self, pf)
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

/// Whether a device's driver gives it to VFIO: vfio-pci, a vendor's variant (which have vfio in their names), or
/// whatever has registered it there (newer kernels show that as `vfio-dev`).
fn gives_to_vfio(driver: Option<&str>, folder: &Path) -> bool {
    driver.is_some_and(|name| name.contains("vfio") || folder.join("vfio-dev").exists())
}

/// The function at this address; `None` where there is none.
///
/// The kernel shows `driver_override` and the SR-IOV attributes only when no call into the device's driver is under
/// way: of a driver that hangs, use [`identity`].
pub fn device(host: &Host, address: PciAddress) -> Result<Option<PciDevice>> {
    identity(host, address)?.map(|device| with_driver_state(host, device)).transpose()
}

/// The same function with what waits for its driver: its override and its VFs.
pub fn with_driver_state(host: &Host, device: PciDevice) -> Result<PciDevice> {
    let text = read_optional(&host.device(device.address).join("driver_override"))?;
    with_override(host, device, text)
}

/// The same. An error if the driver does not answer within `limit`, as it hangs in another call.
pub fn with_driver_state_within(host: &Host, device: PciDevice, limit: Duration) -> Result<PciDevice> {
    let text = ask(host, &device, limit)?;
    with_override(host, device, text)
}

fn with_override(host: &Host, device: PciDevice, text: Option<String>) -> Result<PciDevice> {
    let folder = host.device(device.address);
    // A VF has no VFs of its own.
    let sriov = |name: &str| if device.physfn.is_some() { Ok(None) } else { read_optional(&folder.join(name)) };
    Ok(PciDevice {
        driver_override: text.map(|text| Some(text).filter(|text| !text.is_empty() && text != "(null)")),
        numvfs: if device.physfn.is_some() { 0 } else { numvfs(host, device.address)? },
        drivers_autoprobe: sriov("sriov_drivers_autoprobe")?.map(|text| text != "0"),
        ..device
    })
}

/// How many VFs a function has; 0 also for what is no PF. May wait for its driver.
pub fn numvfs(host: &Host, address: PciAddress) -> Result<u32> {
    let path = host.device(address).join("sriov_numvfs");
    read_optional(&path)?.map_or(Ok(0), |text| number(&path, &text))
}

/// What can be told of a function without waiting for its driver: all but its override and its VFs.
pub fn identity(host: &Host, address: PciAddress) -> Result<Option<PciDevice>> {
    identity_in(host, address, || group_of(host, address))
}

/// The same of a function whose group may be known already.
pub(super) fn identity_in(
    host: &Host,
    address: PciAddress,
    group: impl FnOnce() -> Result<Option<u32>>,
) -> Result<Option<PciDevice>> {
    let folder = host.device(address);
    let modalias = folder.join("modalias");
    let Some(text) = attribute(&modalias)? else { return Ok(None) };
    let wrong = || Error::new(format!("Cannot read {}: '{text}' is no PCI function's", modalias.display()));
    let (id, class) = id_and_class(&text).ok_or_else(wrong)?;
    let driver = link_name(&folder.join("driver"))?;
    let physfn = host.physfn(address)?;
    // A VF is always an endpoint (PCI Express, SR-IOV: "VF header type"), and lives and dies with its PF.
    let header = if physfn.is_some() { 0 } else { header_type(&folder.join("config"))? };
    let answers = header != ALL_ONES;
    let on_vfio = gives_to_vfio(driver.as_deref(), &folder);
    Ok(Some(PciDevice {
        address,
        id,
        class,
        answers,
        // The multi-function bit says nothing of the type.
        header_type: if answers { header & 0x7f } else { 0 },
        driver,
        on_vfio,
        in_vfio_use: on_vfio && attribute(&folder.join("enable"))?.is_some_and(|count| count != "0"),
        driver_override: None,
        group: group()?,
        physfn,
        controller: controller_of(&folder)?,
        numvfs: 0,
        drivers_autoprobe: None,
    }))
}

/// The one attribute that has both: `pci:v00008086d000010EDsv…sd…bc02sc00i00`, as long since 2.6.
/// Source: Linux `drivers/pci/pci-sysfs.c`, `modalias_show`.
fn id_and_class(modalias: &str) -> Option<(PciId, u32)> {
    let number = |at: usize, name: &str, length: usize| {
        let text = modalias.get(at..)?.strip_prefix(name)?.get(..length)?;
        u32::from_str_radix(text, 16).ok()
    };
    let id = |at, name| u16::try_from(number(at, name, 8)?).ok();
    let class = number(42, "bc", 2)? << 16 | number(46, "sc", 2)? << 8 | number(50, "i", 2)?;
    Some((PciId { vendor: id(0, "pci:v")?, device: id(13, "d")? }, class))
}

/// What a function reads that does not answer. No header has this type.
const ALL_ONES: u8 = 0xff;

/// The nearest function above this one that is no bridge: it has a PCI domain of its own below it
/// (`…/0000:00:0e.0/pci10000:00/…`).
fn controller_of(folder: &Path) -> Result<Option<PciAddress>> {
    let way = match fs::read_link(folder) {
        Ok(way) => way,
        Err(cause) if gone(&cause) => return Ok(None),
        Err(cause) => return Err(Error::io("read the link", folder, &cause)),
    };
    let way: Vec<&str> = way.iter().filter_map(OsStr::to_str).collect();
    let domain = way.iter().rposition(|part| part.starts_with("pci"));
    Ok(domain.and_then(|domain| way[..domain].last()?.parse().ok()))
}

/// The functions in the PCI domains that a function's driver has brought about, at any depth; none for nearly all.
pub fn functions_behind(host: &Host, address: PciAddress) -> Result<Vec<PciAddress>> {
    let folder = host.device(address);
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = names(&folder)?
        .into_iter()
        .filter(|name| name.starts_with("pci") && name.contains(':'))
        .map(|name| folder.join(name))
        .collect();
    while let Some(folder) = open.pop() {
        for name in names(&folder)? {
            if let Ok(address) = name.parse::<PciAddress>() {
                found.push(address);
                open.push(folder.join(name));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Members of an IOMMU group that are no PCI functions and have a driver, as `NAME is on DRIVER`: VFIO refuses such a
/// group.
pub fn platform_members(host: &Host, group: u32) -> Result<Vec<String>> {
    let folder = host.group_devices(group);
    let mut members = Vec::new();
    for name in names(&folder)?.into_iter().filter(|name| name.parse::<PciAddress>().is_err()) {
        if let Some(driver) = link_name(&folder.join(&name).join("driver"))?.filter(|driver| !driver.contains("vfio")) {
            members.push(format!("{name} is on {driver}"));
        }
    }
    members.sort_unstable();
    Ok(members)
}

/// Whether the IOMMU is on: any device has a group.
pub fn iommu_is_on(host: &Host) -> Result<bool> {
    Ok(!names(&host.path("sys/kernel/iommu_groups"))?.is_empty())
}

/// The IOMMU group of a function.
pub(super) fn group_of(host: &Host, address: PciAddress) -> Result<Option<u32>> {
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

/// Writes a value to an attribute: opened for writing only, never created or truncated, in one write(2), and given up
/// after `limit`. The error is the kernel's; [`write_error`] puts it into words.
pub fn write(path: &Path, value: &str, limit: Duration) -> io::Result<()> {
    let attribute = c_path(path)?;
    syscall::within(limit, || {
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

/// The text of a function's override. Its driver has to be done with any other call within `limit`: a child process
/// reads it.
fn ask(host: &Host, device: &PciDevice, limit: Duration) -> Result<Option<String>> {
    let path = host.device(device.address).join("driver_override");
    let attribute = c_path(&path).map_err(|cause| Error::io("read", &path, &cause))?;
    let asked = syscall::read_within(limit, |pipe| {
        let file = open(attribute.as_c_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        // An attribute is a page at most.
        let mut text = [0; 4096];
        let length = nix::unistd::read(file, &mut text)?;
        nix::unistd::write(pipe, &text[..length]).map(drop)
    });
    match asked {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim_end().to_owned())),
        Err(cause) if gone(&cause) => Ok(None),
        Err(cause) if cause.kind() == io::ErrorKind::TimedOut => Err(Error::new(format!(
            "{} does not answer: its driver {} has been at something else for {} s",
            device.address,
            device.driver.as_deref().unwrap_or("(none)"),
            limit.as_secs()
        ))
        .remedy("See `dmesg` for what hangs")),
        Err(cause) => Err(Error::io("read", &path, &cause)),
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

fn header_type(config: &Path) -> Result<u8> {
    const HEADER_TYPE: usize = 0x0e;
    let mut space = [0; HEADER_TYPE + 1];
    fs::File::open(config)
        .and_then(|mut file| file.read_exact(&mut space))
        .map_err(|cause| Error::io("read", config, &cause))?;
    Ok(space[HEADER_TYPE])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_has_id_and_class() {
        let (id, class) = id_and_class("pci:v00008086d000010EDsv00008086sd00001521bc02sc80i1F").unwrap();
        assert_eq!((id.vendor, id.device, class), (0x8086, 0x10ed, 0x02_801f));
        for wrong in
            ["", "pci:v00008086", "usb:v00008086d000010EDsv00008086sd00001521bc02sc80i1F", "pci:v00018086d000010ED"]
        {
            assert!(id_and_class(wrong).is_none(), "{wrong}");
        }
    }
}
