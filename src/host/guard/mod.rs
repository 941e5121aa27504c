//! What the host itself needs of a device: the guard that keeps a disk or a network from being taken from under it.
//!
//! Starts at the device and goes down to what hangs off it, so it costs nothing for all others. Reads sysfs, procfs and
//! the kernel's routing tables; changes nothing. Each kind of use is a [`HostUse`], which has the words. Sources:
//! proc(5) on mountinfo and swaps; Linux `Documentation/ABI/testing/sysfs-class-net`,
//! `Documentation/driver-api/vfio-mediated-device.rst`.

mod netlink;
mod network;
mod network_root;
mod storage;
mod tree;

use crate::files;
use crate::open_files::OpenNodes;
use crate::paths::Host;
use crate::pci::sysfs;
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::{Error, Result};
use model::host_use::{Holder, HostUse};
use network::WaysOut;
pub use network::is_up;
use once_cell::unsync::OnceCell;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tree::{Below, is_keyboard};

/// Why the host needs this device, if it does.
///
/// # Errors
/// What cannot be found out is an error: a device is detached only if it is known to be free.
pub fn of(host: &Host, address: PciAddress, limit: Duration) -> Result<Option<HostUse>> {
    Guard::new(host, limit).of(address)
}

/// The use that says most: a vital one, if there is any.
#[derive(Default)]
struct Found(Option<HostUse>);

impl Found {
    fn add(&mut self, found: Option<HostUse>) {
        if found.as_ref().is_some_and(|found| self.0.is_none() || found.is_vital() && !self.is_vital()) {
            self.0 = found;
        }
    }

    fn is_vital(&self) -> bool {
        self.0.as_ref().is_some_and(HostUse::is_vital)
    }
}

/// Finds out what the host needs. What is the same for all devices (routes, mounts, open files) is read once, when it
/// is first needed; so a guard is good for one look.
pub struct Guard<'a> {
    host: &'a Host,
    limit: Duration,
    opens_disks: bool,
    ways: OnceCell<WaysOut>,
    addresses: OnceCell<Vec<(u32, IpAddr)>>,
    mounts: OnceCell<String>,
    swaps: OnceCell<String>,
    loops: OnceCell<Vec<(PathBuf, String)>>,
    keyboards: OnceCell<Vec<String>>,
    open: OnceCell<OpenNodes>,
}

impl<'a> Guard<'a> {
    /// A guard that gives up each question to the kernel which may hang after `limit`.
    pub fn new(host: &'a Host, limit: Duration) -> Self {
        Self {
            host,
            limit,
            opens_disks: true,
            ways: OnceCell::new(),
            addresses: OnceCell::new(),
            mounts: OnceCell::new(),
            swaps: OnceCell::new(),
            loops: OnceCell::new(),
            keyboards: OnceCell::new(),
            open: OnceCell::new(),
        }
    }

    /// For a caller that decides nothing and is called often: opens no disk to find out whether it is claimed, as that
    /// claims it for a moment.
    #[must_use]
    pub fn only_looking(self) -> Self {
        Self { opens_disks: false, ..self }
    }

    /// As the function [`of`].
    pub fn of(&self, address: PciAddress) -> Result<Option<HostUse>> {
        sysfs::identity(self.host, address)?.map_or(Ok(None), |device| self.of_device(&device))
    }

    /// Why the host needs this device, if it does.
    ///
    /// # Errors
    /// What cannot be found out.
    pub fn of_device(&self, device: &PciDevice) -> Result<Option<HostUse>> {
        if device.on_vfio {
            return self.in_vfio(device);
        }
        let folder = self.host.device(device.address);
        let below = Below::of(&folder)?;
        let mut found = Found::default();
        for netdev in &below.netdevs {
            found.add(self.network(netdev)?);
        }
        found.add(below.has_hidden_netdevs.then_some(HostUse::OtherNamespace));
        for (uuid, group) in &below.mediated {
            let node = group.map(|group| self.host.path(format!("dev/vfio/{group}")));
            let by = node.map_or(Ok(None), |node| self.holder(&node))?;
            found.add(Some(HostUse::Mediated { uuid: uuid.clone(), by }));
        }
        found.add(below.vdpa.first().map(|name| HostUse::Vdpa { name: name.clone() }));
        for disk in &below.disks {
            found.add(self.storage(disk, 0)?);
        }
        for group in &below.groups {
            let by = self.holder(&self.host.path(format!("dev/vfio/{group}")))?;
            found.add(by.map(|by| HostUse::InVfio { by }));
        }
        for node in &below.nodes {
            let by = self.holder(&self.host.path("dev").join(node))?;
            found.add(by.map(|by| HostUse::Node { node: format!("/dev/{node}"), by }));
        }
        found.add(self.console(&folder, &below)?);
        found.add(self.only_keyboard(&below)?);
        Ok(found.0)
    }

    /// By the open node, and not by the kernel's count of its users, which a write to `enable` changes as well.
    fn in_vfio(&self, device: &PciDevice) -> Result<Option<HostUse>> {
        let by = self.open_nodes()?.vfio_holder(self.host, device.address, device.group)?;
        Ok(by.map(|by| HostUse::InVfio { by }))
    }

    /// What the firmware has shown its messages on, a frame buffer, or a serial line that the kernel writes to.
    fn console(&self, folder: &Path, below: &Below) -> Result<Option<HostUse>> {
        let is_boot_display = files::read_optional(&folder.join("boot_vga"))?.as_deref() == Some("1");
        let mut shown_by = below.framebuffers.first().cloned();
        if shown_by.is_none() && !below.ttys.is_empty() {
            let active = files::read_optional(&self.host.path("sys/class/tty/console/active"))?.unwrap_or_default();
            shown_by = active.split_whitespace().map(str::to_owned).find(|tty| below.ttys.contains(tty));
        }
        Ok(shown_by
            .or_else(|| is_boot_display.then(|| "boot_vga".to_owned()))
            .map(|shown_by| HostUse::Console { shown_by }))
    }

    fn only_keyboard(&self, below: &Below) -> Result<Option<HostUse>> {
        let Some(first) = below.keyboards.first() else { return Ok(None) };
        let folder = self.host.path("sys/class/input");
        let all = self.keyboards.get_or_try_init(|| {
            let mut all = Vec::new();
            for name in files::names(&folder)? {
                // What programs make up (uinput) is no keyboard that anybody types on.
                let is_real =
                    || folder.join(&name).canonicalize().is_ok_and(|way| !way.iter().any(|part| part == "virtual"));
                if is_keyboard(&folder.join(&name))? && is_real() {
                    all.push(name);
                }
            }
            Ok::<_, Error>(all)
        })?;
        if all.iter().any(|name| !below.keyboards.contains(name)) {
            return Ok(None);
        }
        let name = files::read_optional(&folder.join(first).join("name"))?.unwrap_or_else(|| first.clone());
        Ok(Some(HostUse::Keyboard { name }))
    }

    fn mounts(&self) -> Result<&str> {
        let read = || files::read(&self.host.path("proc/1/mountinfo"));
        self.mounts.get_or_try_init(read).map(String::as_str)
    }

    fn open_nodes(&self) -> Result<&OpenNodes> {
        self.open.get_or_try_init(|| OpenNodes::read(self.host))
    }

    fn holder(&self, node: &Path) -> Result<Option<Holder>> {
        Ok(self.open_nodes()?.holder(self.host, node))
    }
}
