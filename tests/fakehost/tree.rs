//! The fake host's sysfs as files and links, shaped as the kernel shapes it: real folders below `sys/devices`, relative
//! links everywhere else.
//!
//! Shared by the builder (which makes a host) and the fake kernel (which changes it while the hook runs). Moves links
//! and decides nothing: what the kernel would allow is decided in `kernel.rs`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

/// A PCI function as data. Addresses are full (`0000:02:00.1`), ids as `8086:10d3`.
#[derive(Debug, Clone)]
pub struct Function {
    pub address: String,
    pub id: String,
    pub class: u32,
    pub header_type: u8,
    pub group: Option<u32>,
    /// Whether this kernel has `driver_override` (from 3.16 on, and RHEL 7's).
    pub has_override: bool,
    /// `sriov_totalvfs`; 0 for what is no PF.
    pub totalvfs: u32,
    /// Whether this kernel has `sriov_drivers_autoprobe` (from 4.12 on).
    pub has_autoprobe: bool,
}

pub struct Tree {
    pub root: PathBuf,
}

impl Tree {
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// Makes a file appear with its whole content at once, as an attribute never reads half-changed.
    pub fn put(&self, below: &str, text: impl AsRef<[u8]>) {
        let path = self.path(below);
        self.folder(path.parent().unwrap());
        let temporary = self.path(format!("tmp-{}-{:?}", std::process::id(), std::thread::current().id()));
        fs::write(&temporary, text).unwrap();
        fs::rename(&temporary, &path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    }

    pub fn get(&self, below: impl AsRef<Path>) -> Option<String> {
        Some(fs::read_to_string(self.path(below)).ok()?.trim_end().to_owned())
    }

    pub fn folder(&self, below: impl AsRef<Path>) {
        fs::create_dir_all(self.path(below)).unwrap();
    }

    /// A relative link at `at` to `to`, both below the root.
    pub fn link(&self, at: &str, to: &str) {
        self.folder(self.path(at).parent().unwrap());
        let up = Path::new(at).components().count() - 1;
        let above = Path::new(to).parent().unwrap().components();
        let common = Path::new(at).components().zip(above).take_while(|(a, b)| a == b).count();
        let mut target: PathBuf = (common..up).map(|_| Component::ParentDir).collect();
        target.extend(Path::new(to).components().skip(common));
        symlink(target, self.path(at)).unwrap_or_else(|cause| panic!("{at}: {cause}"));
    }

    pub fn unlink(&self, below: &str) {
        match fs::remove_file(self.path(below)) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => panic!("{below}: {cause}"),
            _ => {}
        }
    }

    /// The last part of a link's target.
    pub fn points_to(&self, below: impl AsRef<Path>) -> Option<String> {
        Some(fs::read_link(self.path(below)).ok()?.file_name()?.to_str()?.to_owned())
    }

    pub fn names(&self, below: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(below)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        names
    }

    /// The real folder of a device, below the root (`sys/devices/pci0000:00/…`).
    pub fn device(&self, address: &str) -> Option<String> {
        let real = fs::canonicalize(self.path(format!("sys/bus/pci/devices/{address}"))).ok()?;
        Some(real.strip_prefix(&self.root).unwrap().to_str().unwrap().to_owned())
    }

    pub fn attribute(&self, address: &str, name: &str) -> Option<String> {
        self.get(format!("sys/bus/pci/devices/{address}/{name}"))
    }

    pub fn driver(&self, address: &str) -> Option<String> {
        self.points_to(format!("sys/bus/pci/devices/{address}/driver"))
    }

    /// The override in force.
    pub fn driver_override(&self, address: &str) -> Option<String> {
        self.attribute(address, "driver_override").filter(|text| text != "(null)" && !text.is_empty())
    }

    pub fn set_driver_override(&self, address: &str, driver: Option<&str>) {
        let folder = self.device(address).unwrap();
        self.put(&format!("{folder}/driver_override"), format!("{}\n", driver.unwrap_or("(null)")));
    }

    /// Makes a device in `parent`, a folder below the root, without a driver.
    pub fn add(&self, function: &Function, parent: &str) {
        let Function { address, id, .. } = function;
        let folder = format!("{parent}/{address}");
        let (vendor, device) = id.split_once(':').unwrap();
        let mut config = vec![0; 64];
        // Bit 7 says that the device has several functions; it is no part of the type.
        config[0x0e] = function.header_type | 0x80;
        self.put(&format!("{folder}/config"), config);
        self.put(&format!("{folder}/vendor"), format!("0x{vendor}\n"));
        self.put(&format!("{folder}/device"), format!("0x{device}\n"));
        self.put(&format!("{folder}/class"), format!("0x{:06x}\n", function.class));
        let [_, base, sub, interface] = function.class.to_be_bytes();
        let (vendor_id, device_id) = (vendor.to_uppercase(), device.to_uppercase());
        let ids = format!("v0000{vendor_id:0>4}d0000{device_id:0>4}sv00000000sd00000000");
        let class = format!("bc{base:02X}sc{sub:02X}i{interface:02X}");
        self.put(&format!("{folder}/modalias"), format!("pci:{ids}{class}\n"));
        self.put(&format!("{folder}/enable"), "0\n");
        self.link(&format!("{folder}/subsystem"), "sys/bus/pci");
        if function.has_override {
            self.put(&format!("{folder}/driver_override"), "(null)\n");
        }
        if function.totalvfs > 0 {
            self.put(&format!("{folder}/sriov_totalvfs"), format!("{}\n", function.totalvfs));
            self.put(&format!("{folder}/sriov_numvfs"), "0\n");
            if function.has_autoprobe {
                self.put(&format!("{folder}/sriov_drivers_autoprobe"), "1\n");
            }
        }
        if let Some(group) = function.group {
            let group = format!("sys/kernel/iommu_groups/{group}");
            self.link(&format!("{folder}/iommu_group"), &group);
            self.link(&format!("{group}/devices/{address}"), &folder);
        }
        self.link(&format!("sys/bus/pci/devices/{address}"), &folder);
    }

    /// Takes a device without a driver out of the tree.
    pub fn remove(&self, address: &str) {
        let folder = self.device(address).unwrap();
        if let Some(group) = self.points_to(format!("{folder}/iommu_group")) {
            let group = format!("sys/kernel/iommu_groups/{group}");
            self.unlink(&format!("{group}/devices/{address}"));
            if self.names(format!("{group}/devices")).is_empty() {
                fs::remove_dir_all(self.path(group)).unwrap();
            }
        }
        self.unlink(&format!("sys/bus/pci/devices/{address}"));
        fs::remove_dir_all(self.path(folder)).unwrap();
    }

    /// A host driver enables its device; vfio-pci does that only when somebody opens it.
    pub fn bind(&self, address: &str, driver: &str) {
        let folder = self.device(address).unwrap();
        self.put(&format!("{folder}/enable"), if driver.contains("vfio") { "0\n" } else { "1\n" });
        let driver = format!("sys/bus/pci/drivers/{driver}");
        self.link(&format!("{driver}/{address}"), &folder);
        self.link(&format!("{folder}/driver"), &driver);
    }

    pub fn unbind(&self, address: &str) {
        let Some(driver) = self.driver(address) else { return };
        self.put(&format!("{}/enable", self.device(address).unwrap()), "0\n");
        self.unlink(&format!("sys/bus/pci/devices/{address}/driver"));
        self.unlink(&format!("sys/bus/pci/drivers/{driver}/{address}"));
    }

    /// The functions that a PF can have, `hw/sriov/PF`, one a line: address, id, class, group or `-`.
    pub fn vfs(&self, pf: &str) -> Vec<Function> {
        let table = self.get(format!("hw/sriov/{pf}")).unwrap_or_default();
        let vfs = table.lines().map(|line| {
            let field: Vec<&str> = line.split(' ').collect();
            Function {
                address: field[0].to_owned(),
                id: field[1].to_owned(),
                class: u32::from_str_radix(field[2], 16).unwrap(),
                header_type: 0,
                group: field[3].parse().ok(),
                has_override: self.attribute(pf, "driver_override").is_some(),
                totalvfs: 0,
                has_autoprobe: true,
            }
        });
        vfs.collect()
    }

    /// Makes the first `count` VFs of a PF, without drivers.
    pub fn make_vfs(&self, pf: &str, count: usize) {
        let folder = self.device(pf).unwrap();
        let parent = Path::new(&folder).parent().unwrap().to_str().unwrap();
        for (index, vf) in self.vfs(pf).iter().take(count).enumerate() {
            self.add(vf, parent);
            self.link(&format!("{parent}/{}/physfn", vf.address), &folder);
            self.link(&format!("{folder}/virtfn{index}"), &format!("{parent}/{}", vf.address));
        }
        self.put(&format!("{folder}/sriov_numvfs"), format!("{count}\n"));
    }

    pub fn remove_vfs(&self, pf: &str) {
        let folder = self.device(pf).unwrap();
        for link in self.names(&folder).iter().filter(|name| name.starts_with("virtfn")) {
            let vf = self.points_to(format!("{folder}/{link}")).unwrap();
            self.unlink(&format!("{folder}/{link}"));
            self.unbind(&vf);
            self.remove(&vf);
        }
        self.put(&format!("{folder}/sriov_numvfs"), "0\n");
    }
}
