//! The host: what it is made of, and what others than vfpool do to it.

use crate::device::Device;
use crate::tree::Tree;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The host. Its libvirtd is this very process, the parent of every hook.
pub struct Host {
    _folder: tempfile::TempDir,
    /// Programs stand elsewhere, as /dev/shm may be mounted noexec.
    programs: OnceLock<tempfile::TempDir>,
    pub(crate) tree: Tree,
}

impl Host {
    /// A host with an IOMMU, drivers, and no devices.
    pub fn new() -> Self {
        // In memory: thousands of small files on a disk that is busy take minutes.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(parent).unwrap();
        let tree = Tree { root: fs::canonicalize(folder.path()).unwrap() };
        let host = Self { _folder: folder, programs: OnceLock::new(), tree };
        for (driver, table) in [
            ("e1000e", "8086:10d3"),
            ("igb", "8086:10c9\nremoves-vfs"),
            ("igbvf", "8086:10ca"),
            ("nvme", "1b36:0010"),
            ("pcieport", "1b36:000c"),
            ("vfio-pci", ""),
        ] {
            host.tree.put(&format!("hw/drivers/{driver}"), table);
            host.add_driver(driver);
        }
        for folder in ["dev/vfio", "etc/vfpool", "run/libvirt/qemu", "sbin", "sys/class/net", "sys/class/block"] {
            host.tree.folder(folder);
        }
        host.tree.put("sys/bus/pci/drivers_probe", "");
        host.tree.put("proc/1/mountinfo", "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n");
        host.tree.put("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        host.process(std::process::id(), 1, 100);
        host.install();
        host
    }

    /// A host with the two functions of a NIC in group 8, behind a root port of its own group.
    pub fn with_pair() -> Self {
        let host = Self::new();
        host.add(Device::new("0000:00:02.0").bridge().group(7));
        host.add_pair("0000:02:00", 8);
        host
    }

    /// Adds another such pair.
    pub fn add_pair(&self, slot: &str, group: u32) {
        for function in 0..2 {
            let device = Device::new(&format!("{slot}.{function}")).behind("0000:00:02.0");
            self.add(device.group(group).driver("e1000e"));
        }
    }

    /// Adds a host driver that knows devices of these ids.
    pub fn host_driver(&self, driver: &str, ids: &str) {
        self.tree.put(&format!("hw/drivers/{driver}"), ids);
        self.add_driver(driver);
    }

    fn add_driver(&self, driver: &str) {
        for attribute in ["bind", "unbind", "new_id", "remove_id"] {
            self.tree.put(&format!("sys/bus/pci/drivers/{driver}/{attribute}"), "");
        }
    }

    /// How a driver answers from now on: lines of its table, see `answers` in `kernel.rs`.
    pub fn driver_answers(&self, driver: &str, lines: &str) {
        self.append(&format!("hw/drivers/{driver}"), &format!("\n{lines}"));
    }

    /// The files that a call opens, and the links that it reads, each with how often.
    pub fn opened_by(&self, call: impl FnOnce()) -> BTreeMap<String, usize> {
        self.put("opened", "");
        call();
        let opened = self.get("opened").unwrap();
        fs::remove_file(self.path("opened")).unwrap();
        let mut counts = BTreeMap::new();
        for file in opened.lines() {
            *counts.entry(file.to_owned()).or_default() += 1;
        }
        counts
    }

    /// Makes vfio-pci a module that is not loaded, with this `modprobe`: a shell script, in which `load` loads it.
    pub fn vfio_is_a_module(&self, modprobe: &str) {
        fs::rename(self.path("sys/bus/pci/drivers/vfio-pci"), self.path("hw/vfio-pci")).unwrap();
        let root = self.tree.root.display();
        let load = format!("load() {{ mv {root}/hw/vfio-pci {root}/sys/bus/pci/drivers/; }}");
        self.program("modprobe", &format!("{load}\necho \"$@\" >{root}/modprobe.called\n{modprobe}"));
    }

    /// Installs an `ip` that brings interfaces up.
    pub fn ip_works(&self) {
        let root = self.tree.root.display();
        self.program(
            "ip",
            &format!("[ \"$*\" = \"link set dev $4 up\" ] && echo 0x1003 >{root}/sys/class/net/$4/flags"),
        );
    }

    /// Installs a shell script as `sbin/NAME`.
    pub fn program(&self, name: &str, script: &str) {
        self.script(&format!("sbin/{name}"), script);
    }

    /// Installs a shell script anywhere, as a link to it.
    pub fn script(&self, below: &str, script: &str) {
        // Not on the fake kernel.
        let again = "[ -z \"$LD_PRELOAD\" ] || { unset LD_PRELOAD; exec \"$0\" \"$@\"; }";
        let script = format!("#!/bin/sh\n{again}\n{script}\n");
        let program = self.programs.get_or_init(|| tempfile::tempdir().unwrap()).path().join(below.replace('/', "-"));
        // Through a child: a test thread that forks while the file is open for writing would make running it fail
        // (ETXTBSY).
        let mut shell = Command::new("/bin/sh");
        let shell = shell.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(&program).stdin(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
        fs::create_dir_all(self.path(below).parent().unwrap()).unwrap();
        // A later script takes the place of an earlier one.
        let _ = fs::remove_file(self.path(below));
        symlink(program, self.path(below)).unwrap();
    }

    pub fn add(&self, device: Device) {
        let Device { function, driver, driver_override, parent, vfs, is_in_own_domain } = device;
        let parent =
            parent.map_or_else(|| "sys/devices/pci0000:00".to_owned(), |bridge| self.tree.device(&bridge).unwrap());
        let domain = function.address.split_once(':').unwrap().0;
        let parent = if is_in_own_domain { format!("{parent}/pci{domain}:00") } else { parent };
        self.tree.add(&function, &parent);
        if driver_override.is_some() {
            self.tree.set_driver_override(&function.address, driver_override.as_deref());
        }
        if let Some(driver) = driver {
            self.tree.bind(&function.address, &driver);
        }
        if !vfs.is_empty() {
            self.tree.put(&format!("hw/sriov/{}", function.address), vfs.join("\n"));
        }
    }

    /// Makes VFs, each on this driver.
    pub fn make_vfs(&self, pf: &str, drivers: &[Option<&str>]) {
        self.tree.make_vfs(pf, drivers.len());
        for (vf, driver) in self.tree.vfs(pf).iter().zip(drivers) {
            self.move_to(&vf.address, *driver);
        }
    }

    /// Gives a device a network interface that is up or not, and has these addresses.
    pub fn netdev(&self, device: &str, name: &str, is_up: bool, addresses: &[&str]) {
        let folder = format!("{}/net/{name}", self.tree.device(device).unwrap());
        let number = self.tree.names("sys/class/net").len() + 2;
        self.tree.put(&format!("{folder}/ifindex"), format!("{number}\n"));
        self.tree.put(&format!("{folder}/flags"), if is_up { "0x1003\n" } else { "0x1002\n" });
        self.tree.link(&format!("{folder}/subsystem"), "sys/class/net");
        self.tree.link(&format!("{folder}/device"), &self.tree.device(device).unwrap());
        self.tree.link(&format!("sys/class/net/{name}"), &folder);
        for address in addresses {
            self.append("addresses", &format!("{name} {address}\n"));
        }
    }

    /// Gives a device an interface as virtio has it: below a device of another bus.
    pub fn virtio_netdev(&self, device: &str, name: &str, is_up: bool) {
        let bus = format!("{}/virtio3", self.tree.device(device).unwrap());
        let folder = format!("{bus}/net/{name}");
        self.tree.put(&format!("{folder}/flags"), if is_up { "0x1003\n" } else { "0x1002\n" });
        self.tree.link(&format!("{folder}/subsystem"), "sys/class/net");
        self.tree.link(&format!("{folder}/device"), &bus);
        self.tree.link(&format!("sys/class/net/{name}"), &folder);
    }

    /// Changes an attribute of a device, as hardware or firmware do.
    pub fn put_attribute(&self, device: &str, name: &str, text: &str) {
        self.tree.put(&format!("{}/{name}", self.tree.device(device).unwrap()), text);
    }

    /// The VFs of a PF go, as when its driver is loaded again.
    pub fn remove_vfs(&self, pf: &str) {
        self.tree.remove_vfs(pf);
    }

    /// Puts an interface of no device (a bridge, a bond, a VLAN) above another: as `master` or as `upper_NAME`.
    pub fn stack(&self, netdev: &str, link: &str, above: &str) {
        let folder = format!("sys/devices/virtual/net/{above}");
        self.tree.put(&format!("{folder}/flags"), "0x1003\n");
        self.tree.link(&format!("sys/class/net/{netdev}/{link}"), &folder);
    }

    /// Adds a route to a network (`10.0.0.0/8`, `::/0`) over these interfaces, its next hops.
    pub fn route(&self, to: &str, metric: u32, over: &[&str]) {
        self.append("routes", &format!("{to} {metric} {}\n", over.join(" ")));
    }

    /// Moves a device's interfaces to another network namespace: sysfs shows those of its reader's own.
    pub fn netdevs_move_away(&self, device: &str) {
        let folder = format!("{}/net", self.tree.device(device).unwrap());
        for netdev in self.tree.names(&folder) {
            fs::remove_dir_all(self.path(&format!("{folder}/{netdev}"))).unwrap();
            self.tree.unlink(&format!("sys/class/net/{netdev}"));
        }
        self.tree.folder(folder);
    }

    /// Makes an empty folder below a device's own.
    pub fn tree_folder(&self, device: &str, path: &str) {
        self.tree.folder(format!("{}/{path}", self.tree.device(device).unwrap()));
    }

    /// Puts what is no PCI function (a mediated device) into an IOMMU group, whose node is there then.
    pub fn in_group(&self, folder: &str, name: &str, group: u32) {
        let group_folder = format!("sys/kernel/iommu_groups/{group}");
        self.tree.link(&format!("{folder}/iommu_group"), &group_folder);
        self.tree.link(&format!("{group_folder}/devices/{name}"), folder);
        self.tree.put(&format!("dev/vfio/{group}"), "");
    }

    /// Says what a disk is made of.
    pub fn slave(&self, disk: &str, below: &str) {
        let folder = |name: &str| {
            let way = fs::canonicalize(self.path(&format!("sys/class/block/{name}"))).unwrap();
            way.strip_prefix(&self.tree.root).unwrap().to_str().unwrap().to_owned()
        };
        self.tree.link(&format!("{}/slaves/{below}", folder(disk)), &folder(below));
    }

    /// Gives a device something of another subsystem by a path below its folder (`uio/uio0`), with this node below /dev
    /// if it has one. Returns its folder.
    pub fn child(&self, device: &str, path: &str, subsystem: &str, node: Option<&str>) -> String {
        let folder = format!("{}/{path}", self.tree.device(device).unwrap());
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        self.tree.folder(&folder);
        self.tree.link(&format!("{folder}/subsystem"), &format!("sys/class/{subsystem}"));
        self.tree.link(&format!("sys/class/{subsystem}/{name}"), &folder);
        if let Some(node) = node {
            self.tree.put(&format!("{folder}/dev"), "246:0\n");
            self.tree.put(&format!("{folder}/uevent"), format!("MAJOR=246\nMINOR=0\nDEVNAME={node}\n"));
            self.tree.put(&format!("dev/{node}"), "");
        }
        folder
    }

    /// A process opens a node, given by its path below /dev.
    pub fn opens(&self, pid: u32, comm: &str, node: &str) {
        self.process(pid, 1, u64::from(pid));
        self.put(&format!("proc/{pid}/comm"), format!("{comm}\n"));
        let fds = self.path(&format!("proc/{pid}/fd"));
        fs::create_dir_all(&fds).unwrap();
        symlink(self.path(&format!("dev/{node}")), fds.join("3")).unwrap();
    }

    /// A keyboard behind a device, by a path below its folder that ends in its input device (`usb1/1-1/input/input3`).
    pub fn keyboard(&self, device: &str, path: &str, name: &str) {
        let folder = self.child(device, path, "input", None);
        self.tree.put(&format!("{folder}/name"), format!("{name}\n"));
        self.tree.put(
            &format!("{folder}/capabilities/key"),
            "1000000000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe\n",
        );
    }

    /// Sets up a loop device on a file or another device.
    pub fn loop_device(&self, name: &str, number: &str, on: &str) {
        let folder = format!("sys/devices/virtual/block/{name}");
        self.block(&folder, number);
        self.tree.put(&format!("{folder}/loop/backing_file"), format!("{on}\n"));
    }

    /// A device that did not come back from a reset, or has lost its link.
    pub fn falls_silent(&self, device: &str) {
        self.tree.put(&format!("{}/config", self.tree.device(device).unwrap()), [0xff; 64]);
    }

    /// A member of an IOMMU group that is no PCI function, on this driver.
    pub fn platform_member(&self, group: u32, name: &str, driver: &str) {
        let folder = format!("sys/devices/platform/{name}");
        self.tree.folder(&folder);
        self.tree.folder(format!("sys/bus/platform/drivers/{driver}"));
        self.tree.link(&format!("{folder}/driver"), &format!("sys/bus/platform/drivers/{driver}"));
        self.tree.link(&format!("sys/kernel/iommu_groups/{group}/devices/{name}"), &folder);
    }

    /// A root file system of this kind and with these options, in place of the one on a local disk.
    pub fn root(&self, number: &str, kind: &str, source: &str, options: &str) {
        self.put("proc/1/mountinfo", format!("21 1 {number} / / rw,relatime shared:1 - {kind} {source} {options}\n"));
    }

    /// Gives a device a disk, by a path below its folder (`nvme/nvme0/nvme0n1`) and its number.
    pub fn disk(&self, device: &str, path: &str, number: &str) {
        let folder = format!("{}/{path}", self.tree.device(device).unwrap());
        self.block(&folder, number);
    }

    /// Adds a disk that is made of another one: md, dm.
    pub fn disk_on(&self, below: &str, name: &str, number: &str) {
        let folder = format!("sys/devices/virtual/block/{name}");
        self.block(&folder, number);
        self.tree.link(&format!("sys/class/block/{below}/holders/{name}"), &folder);
    }

    /// Adds the head of a native NVMe multipath, `nvme0n1`.
    pub fn multipath_head(&self, name: &str, number: &str) {
        self.block(&format!("sys/devices/virtual/nvme-subsystem/nvme-subsys0/{name}"), number);
    }

    fn block(&self, folder: &str, number: &str) {
        let name = Path::new(folder).file_name().unwrap().to_str().unwrap();
        self.tree.put(&format!("{folder}/dev"), format!("{number}\n"));
        self.tree.folder(format!("{folder}/holders"));
        self.tree.link(&format!("{folder}/subsystem"), "sys/class/block");
        self.tree.link(&format!("sys/class/block/{name}"), folder);
        // As the kernel's: / is ! in sysfs.
        self.tree.put(&format!("dev/{}", name.replace('!', "/")), "");
        let by_number = format!("sys/dev/block/{number}");
        self.tree.unlink(&by_number);
        self.tree.link(&by_number, folder);
        let disk = Path::new(folder).parent().unwrap().join("dev");
        if self.path(disk.to_str().unwrap()).exists() {
            self.tree.put(&format!("{folder}/partition"), "1\n");
        }
    }

    /// Mounts a file system: its number, the mount point, the device as /proc/mounts shows it.
    pub fn mount(&self, number: &str, at: &str, source: &str) {
        self.append("proc/1/mountinfo", &format!("44 21 {number} / {at} rw,relatime shared:7 - xfs {source} rw\n"));
    }

    pub fn append(&self, below: &str, text: &str) {
        let old = fs::read_to_string(self.path(below)).unwrap_or_default();
        self.tree.put(below, old + text);
    }

    pub fn put(&self, below: &str, text: impl AsRef<[u8]>) {
        self.tree.put(below, text);
    }

    pub fn get(&self, below: &str) -> Option<String> {
        self.tree.get(below)
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.tree.path(below)
    }

    /// The admin's settings: what is inside `<host>`.
    pub fn settings(&self, inside: &str) {
        self.put("etc/vfpool/host.xml", format!("<host>{inside}</host>"));
    }

    /// What goes wrong from now on, one a line; see `Fault` in `kernel.rs`.
    pub fn faults(&self, lines: &str) {
        self.put("faults", lines);
    }

    /// Adds a process to procfs.
    pub fn process(&self, pid: u32, parent: u32, start: u64) {
        let line = format!("{pid} (a (b) c) S {parent} 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 {start} 0\n");
        self.put(&format!("proc/{pid}/stat"), line);
        self.put(&format!("proc/{pid}/comm"), "qemu-kvm\n");
    }

    /// A process opens a VFIO group and the devices in it that are there for that.
    pub fn opens_group(&self, pid: u32, group: u32) {
        for member in self.tree.names(format!("sys/kernel/iommu_groups/{group}/devices")) {
            if self.driver(&member).as_deref() == Some("vfio-pci") {
                self.tree.put(&format!("{}/enable", self.tree.device(&member).unwrap()), "1\n");
            }
        }
        let fds = self.path(&format!("proc/{pid}/fd"));
        fs::create_dir_all(&fds).unwrap();
        symlink(self.path(&format!("dev/vfio/{group}")), fds.join("9")).unwrap();
    }

    /// A process opens a device by its own node (`iommufd`), and not by its group.
    pub fn opens_itself(&self, pid: u32, device: &str) {
        let number = pid % 100;
        self.child(device, &format!("vfio-dev/vfio{number}"), "vfio-dev", Some(&format!("vfio/devices/vfio{number}")));
        self.opens(pid, "qemu-kvm", &format!("vfio/devices/vfio{number}"));
    }

    /// A device that somebody else than the hook moves.
    pub fn move_to(&self, device: &str, driver: Option<&str>) {
        self.tree.unbind(device);
        if let Some(driver) = driver {
            self.tree.bind(device, driver);
        }
    }

    /// Pulls a device out.
    pub fn remove(&self, device: &str) {
        self.tree.unbind(device);
        self.tree.remove(device);
    }

    pub fn driver(&self, device: &str) -> Option<String> {
        self.tree.driver(device)
    }

    pub fn driver_override(&self, device: &str) -> Option<String> {
        self.tree.driver_override(device)
    }

    /// Seconds since boot.
    pub fn uptime(&self, seconds: u64) {
        self.put("proc/uptime", format!("{seconds}.42 1.00\n"));
    }

    /// The IOMMU group of a device.
    pub fn group_of(&self, device: &str) -> u32 {
        self.tree.points_to(format!("sys/bus/pci/devices/{device}/iommu_group")).unwrap().parse().unwrap()
    }
}
