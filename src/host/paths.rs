//! Where everything is on a host. Made once in a main from the root directory, so that every test runs the real code
//! on another root. Holds no state and does no I/O.

use model::address::PciAddress;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The host that is worked on, given by its root directory (`/` in production).
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    is_dry: bool,
}

impl Host {
    /// The host below this root directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), is_dry: false }
    }

    /// The same host for a dry run: what writes to it tells its [`Log`](crate::log::Log) instead. Those that read back
    /// what they wrote have to know.
    #[must_use]
    pub fn dry(self) -> Self {
        Self { is_dry: true, ..self }
    }

    /// Whether nothing may be changed, in sysfs, in our state, through libvirt.
    pub fn is_dry(&self) -> bool {
        self.is_dry
    }

    /// A path of this host, given relative to its root (`proc/swaps`).
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The sysfs folder of a PCI function.
    pub fn device(&self, address: PciAddress) -> PathBuf {
        self.path(format!("sys/bus/pci/devices/{address}"))
    }

    /// The sysfs folder of a PCI driver.
    pub fn driver(&self, name: &str) -> PathBuf {
        self.path("sys/bus/pci/drivers").join(name)
    }

    /// Writing an address here makes the kernel look for a driver for it, `driver_override` first.
    pub fn drivers_probe(&self) -> PathBuf {
        self.path("sys/bus/pci/drivers_probe")
    }

    /// The folder whose entries are the members of an IOMMU group.
    pub fn group_devices(&self, group: u32) -> PathBuf {
        self.path(format!("sys/kernel/iommu_groups/{group}/devices"))
    }

    /// The process's folder in procfs.
    pub fn process(&self, pid: i32) -> PathBuf {
        self.path(format!("proc/{pid}"))
    }

    /// Our state: root only, gone at reboot as leases must be.
    pub fn state(&self) -> PathBuf {
        self.path("run/vfpool")
    }

    /// What the reconciler remembers of the guests' definitions.
    pub fn parked(&self) -> PathBuf {
        self.state().join("parked")
    }

    /// libvirt's own files of the guests' definitions, `GUEST.xml`. Read only: they are libvirt's to write.
    pub fn definitions(&self) -> PathBuf {
        self.path("etc/libvirt/qemu")
    }

    /// The sysfs folder of a network interface.
    pub fn netdev(&self, name: &str) -> PathBuf {
        self.path("sys/class/net").join(name)
    }

    /// The folder with one file for each pool.
    pub fn pools(&self) -> PathBuf {
        self.path("etc/vfpool/pools.d")
    }

    /// The memory of a guest that libvirt saved by itself (`virsh managedsave`).
    pub fn saved(&self, guest: &str) -> PathBuf {
        self.path("var/lib/libvirt/qemu/save").join(format!("{guest}.save"))
    }

    /// The file that libvirt calls when something happens to a guest.
    pub fn hook(&self) -> PathBuf {
        self.path("etc/libvirt/hooks/qemu")
    }

    /// Where the hook is kept that was there before ours. In the same folder: scripts look for files
    /// beside them.
    pub fn earlier_hook(&self) -> PathBuf {
        self.path("etc/libvirt/hooks/qemu.before-vfpool")
    }

    /// The admin's settings for the whole host.
    pub fn settings(&self) -> PathBuf {
        self.path("etc/vfpool/host.xml")
    }
}

/// A guest's name as a file name. libvirt itself makes files of it, so only what it would not allow there, and what
/// would be hidden or mistaken, is escaped; anything else stays readable.
pub fn file_name(guest: &str) -> String {
    let mut name = String::with_capacity(guest.len());
    for (index, character) in guest.char_indices() {
        if character == '%' || character == '/' || character.is_control() || (index == 0 && character == '.') {
            name.extend(character.to_string().bytes().map(|byte| format!("%{byte:02X}")));
        } else {
            name.push(character);
        }
    }
    name
}

/// The reverse of [`file_name`]. `None` for a name that it does not make.
pub fn guest_name(file: impl AsRef<OsStr>) -> Option<String> {
    let file = file.as_ref().to_str()?;
    let mut parts = file.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok().filter(|guest| file_name(guest) == file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_names_become_file_names_and_back() {
        for (guest, file) in [
            ("web01", "web01"),
            ("my guest \"x\" 'y'", "my guest \"x\" 'y'"),
            ("..", "%2E."),
            ("a/../b", "a%2F..%2Fb"),
            ("a\nb", "a%0Ab"),
            ("50%", "50%25"),
            ("gäst-日本", "gäst-日本"),
        ] {
            assert_eq!(file_name(guest), file);
            assert_eq!(guest_name(file).as_deref(), Some(guest));
        }
        for file in ["a%2", "a%zz", "%", ".hidden", "a%41"] {
            assert_eq!(guest_name(file), None, "{file}");
        }
    }
}
