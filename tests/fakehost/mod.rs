//! A host in a temporary folder, for the real binaries to work on.
//!
//! [`Host`] lays out `sys`, `proc`, `etc`, `run` and `dev` as the kernel and libvirt do; the library of `kernel.rs` makes
//! the sysfs behave. A test describes its host, calls the hook as libvirt would, and compares [`Host::snapshot`]s.
//!
//! [`guests`] has its libvirt: definitions, pools, and a virsh.
//!
//! Library and virsh are examples of this package, which plain `cargo test` builds; `cargo test --test hook` alone does not.

pub(crate) mod guests;
#[allow(dead_code)] // the kernel uses the rest
mod tree;
#[allow(dead_code)] // virsh uses the rest
mod xml;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tree::{Function, Tree};

/// A device of the host, as data. What is not said is an Intel 82574 NIC without driver and group.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    function: Function,
    driver: Option<String>,
    driver_override: Option<String>,
    parent: Option<String>,
    vfs: Vec<String>,
}

impl Device {
    pub(crate) fn new(address: &str) -> Self {
        let function = Function {
            address: address.to_owned(),
            id: "8086:10d3".to_owned(),
            class: 0x02_0000,
            header_type: 0,
            group: None,
            has_override: true,
            totalvfs: 0,
            has_autoprobe: true,
        };
        Self { function, driver: None, driver_override: None, parent: None, vfs: Vec::new() }
    }

    pub(crate) fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.function.id);
        self
    }

    /// 24-bit class code.
    pub(crate) fn class(mut self, class: u32) -> Self {
        self.function.class = class;
        self
    }

    pub(crate) fn group(mut self, group: u32) -> Self {
        self.function.group = Some(group);
        self
    }

    pub(crate) fn driver(mut self, driver: &str) -> Self {
        self.driver = Some(driver.to_owned());
        self
    }

    pub(crate) fn driver_override(mut self, driver: &str) -> Self {
        self.driver_override = Some(driver.to_owned());
        self
    }

    /// On a kernel that has no `driver_override`.
    pub(crate) fn without_override(mut self) -> Self {
        self.function.has_override = false;
        self
    }

    /// On a kernel that has no `sriov_drivers_autoprobe`.
    pub(crate) fn without_autoprobe(mut self) -> Self {
        self.function.has_autoprobe = false;
        self
    }

    /// Makes it a PCI-to-PCI bridge, or a port.
    pub(crate) fn bridge(mut self) -> Self {
        self.function.header_type = 1;
        self.function.class = 0x06_0400;
        self.id("1b36:000c").driver("pcieport")
    }

    /// Puts it behind a bridge of this host.
    pub(crate) fn behind(mut self, bridge: &str) -> Self {
        self.parent = Some(bridge.to_owned());
        self
    }

    /// Makes it a PF that can have a VF of this id in each of these places, given as address and group.
    pub(crate) fn vfs(mut self, id: &str, places: &[(&str, u32)]) -> Self {
        let class = self.function.class;
        self.vfs = places.iter().map(|(address, group)| format!("{address} {id} {class:06x} {group}")).collect();
        self.function.totalvfs = u32::try_from(places.len()).unwrap();
        self
    }
}

/// What is compared: everything below `sys` (files with their text, links with their target), and the drivers' dynamic ids.
pub(crate) type Snapshot = BTreeMap<PathBuf, String>;

/// What a program answered.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` if it was killed.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Outcome {
    /// Exit 0 and nothing said to libvirt, which would take it for a new definition.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), ""), "{}", self.stderr);
        self
    }

    /// Exit 0, and a word on stderr.
    #[track_caller]
    pub(crate) fn ok_saying(self, part: &str) -> Self {
        let outcome = self.ok();
        assert!(outcome.stderr.contains(part), "{part:?} is not in {:?}", outcome.stderr);
        outcome
    }

    /// Exit 0, and not a word.
    #[track_caller]
    pub(crate) fn ok_silently(self) {
        let outcome = self.ok();
        assert_eq!(outcome.stderr, "");
    }

    /// Exit 1 with this reason as the last line; the lines before are the log of what was done and undone.
    #[track_caller]
    pub(crate) fn refused(self, reason: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{}", self.stderr);
        assert_eq!(self.stderr.lines().last(), Some(format!("vfpool: {reason}").as_str()), "{}", self.stderr);
    }

    /// Like [`Outcome::refused`], for a reason of which only these parts are sure.
    #[track_caller]
    pub(crate) fn refused_saying(self, parts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{}", self.stderr);
        let reason = self.stderr.lines().last().unwrap_or_default();
        for part in parts {
            assert!(reason.contains(part), "{part:?} is not in {reason:?}");
        }
    }
}

/// A call of the hook or the command that is still to be made.
pub(crate) struct Call<'a> {
    host: &'a Host,
    command: Command,
    input: Vec<u8>,
}

/// A call that is being made.
pub(crate) struct Running {
    child: Child,
    begun: Instant,
    stdin: PathBuf,
    outputs: [mpsc::Receiver<String>; 2],
    host: PathBuf,
}

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

impl Call<'_> {
    /// Kills the hook right before its nth change, counted from 1.
    pub(crate) fn killed_at(mut self, number: usize) -> Self {
        self.command.env("FAKE_KILL_AT", number.to_string());
        self
    }

    /// Kills the hook right after its nth change.
    pub(crate) fn killed_after(mut self, number: usize) -> Self {
        self.command.env("FAKE_KILL_AFTER", number.to_string());
        self
    }

    pub(crate) fn run(self) -> Outcome {
        self.spawn().wait()
    }

    pub(crate) fn spawn(mut self) -> Running {
        let pipes = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = pipes.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let pipe = fs::read_link(format!("/proc/self/fd/{}", stdin.as_raw_fd())).unwrap();
        thread::spawn(move || {
            // A hook need not read what it has no use for.
            let _ = stdin.write_all(&self.input);
        });
        let outputs = [collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap())];
        Running { child, begun, stdin: pipe, outputs, host: self.host.tree.root.clone() }
    }
}

/// Reads a pipe to its end.
fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        let _ = sender.send(String::from_utf8(bytes).unwrap());
    });
    receiver
}

impl Running {
    /// Waits for the end of the program, and as libvirt for the end of each of its pipes: a child that is left behind with
    /// one of them fails the test.
    pub(crate) fn wait(mut self) -> Outcome {
        while self.child.try_wait().unwrap().is_none() {
            if self.begun.elapsed() > PATIENCE {
                self.child.kill().unwrap();
                panic!("it has not ended within {PATIENCE:?}");
            }
            thread::sleep(Duration::from_micros(500));
        }
        let status = self.child.wait().unwrap();
        let took = self.begun.elapsed();
        let [stdout, stderr] = self.outputs.map(|pipe| {
            pipe.recv_timeout(Duration::from_secs(5)).expect("a child that is left behind keeps stdout or stderr open")
        });
        if let Ok(panic) = fs::read_to_string(self.host.join("kernel.panic")) {
            panic!("the fake kernel has a bug: {panic}");
        }
        if let Ok(bug) = fs::read_to_string(self.host.join("virsh.bug")) {
            panic!("{bug}");
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let holds = fs::read_link(process.path().join("fd/0")).is_ok_and(|open| open == self.stdin);
            assert!(!holds, "a child that is left behind keeps stdin open: {}", process.path().display());
        }
        Outcome { code: status.code(), stdout, stderr, took }
    }
}

/// The host. Its libvirtd is this very process, the parent of every hook.
pub(crate) struct Host {
    _folder: tempfile::TempDir,
    /// Programs stand elsewhere, as /dev/shm may be mounted noexec.
    programs: OnceLock<tempfile::TempDir>,
    tree: Tree,
}

impl Host {
    /// A host with an IOMMU, drivers, and no devices.
    pub(crate) fn new() -> Self {
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
        host.tree.put(
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n",
        );
        host.process(std::process::id(), 1, 100);
        host.install();
        host
    }

    /// A host with the two functions of a NIC in group 8, behind a root port of its own group.
    pub(crate) fn with_pair() -> Self {
        let host = Self::new();
        host.add(Device::new("0000:00:02.0").bridge().group(7));
        host.add_pair("0000:02:00", 8);
        host
    }

    /// Adds another such pair.
    pub(crate) fn add_pair(&self, slot: &str, group: u32) {
        for function in 0..2 {
            let device = Device::new(&format!("{slot}.{function}")).behind("0000:00:02.0");
            self.add(device.group(group).driver("e1000e"));
        }
    }

    fn add_driver(&self, driver: &str) {
        for attribute in ["bind", "unbind", "new_id", "remove_id"] {
            self.tree.put(&format!("sys/bus/pci/drivers/{driver}/{attribute}"), "");
        }
    }

    /// Makes vfio-pci a module that is not loaded, with this `modprobe`: a shell script, in which `load` loads it.
    pub(crate) fn vfio_is_a_module(&self, modprobe: &str) {
        fs::rename(self.path("sys/bus/pci/drivers/vfio-pci"), self.path("hw/vfio-pci")).unwrap();
        let root = self.tree.root.display();
        let load = format!("load() {{ mv {root}/hw/vfio-pci {root}/sys/bus/pci/drivers/; }}");
        self.program("modprobe", &format!("{load}\necho \"$@\" >{root}/modprobe.called\n{modprobe}"));
    }

    /// Installs an `ip` that brings interfaces up.
    pub(crate) fn ip_works(&self) {
        let root = self.tree.root.display();
        self.program(
            "ip",
            &format!("[ \"$*\" = \"link set dev $4 up\" ] && echo 0x1003 >{root}/sys/class/net/$4/flags"),
        );
    }

    /// Installs a shell script as `sbin/NAME`.
    pub(crate) fn program(&self, name: &str, script: &str) {
        self.script(&format!("sbin/{name}"), script);
    }

    /// Installs a shell script anywhere, as a link to it.
    pub(crate) fn script(&self, below: &str, script: &str) {
        // Not on the fake kernel.
        let again = "[ -z \"$LD_PRELOAD\" ] || { unset LD_PRELOAD; exec \"$0\" \"$@\"; }";
        let script = format!("#!/bin/sh\n{again}\n{script}\n");
        let program = self.programs.get_or_init(|| tempfile::tempdir().unwrap()).path().join(below.replace('/', "-"));
        // Through a child: a test thread that forks while the file is open for writing would make running it fail (ETXTBSY).
        let mut shell = Command::new("/bin/sh");
        let shell = shell.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(&program).stdin(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
        fs::create_dir_all(self.path(below).parent().unwrap()).unwrap();
        symlink(program, self.path(below)).unwrap();
    }

    pub(crate) fn add(&self, device: Device) {
        let Device { function, driver, driver_override, parent, vfs } = device;
        let parent =
            parent.map_or_else(|| "sys/devices/pci0000:00".to_owned(), |bridge| self.tree.device(&bridge).unwrap());
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
    pub(crate) fn make_vfs(&self, pf: &str, drivers: &[Option<&str>]) {
        self.tree.make_vfs(pf, drivers.len());
        for (vf, driver) in self.tree.vfs(pf).iter().zip(drivers) {
            self.move_to(&vf.address, *driver);
        }
    }

    /// Gives a device a network interface that is up or not, and has these addresses.
    pub(crate) fn netdev(&self, device: &str, name: &str, is_up: bool, addresses: &[&str]) {
        let folder = format!("{}/net/{name}", self.tree.device(device).unwrap());
        self.tree.put(&format!("{folder}/flags"), if is_up { "0x1003\n" } else { "0x1002\n" });
        self.tree.link(&format!("{folder}/subsystem"), "sys/class/net");
        self.tree.link(&format!("{folder}/device"), &self.tree.device(device).unwrap());
        self.tree.link(&format!("sys/class/net/{name}"), &folder);
        for address in addresses {
            self.append("addresses", &format!("{name} {address}\n"));
        }
    }

    /// Puts an interface of no device (a bridge, a bond, a VLAN) above another: as `master` or as `upper_NAME`.
    pub(crate) fn stack(&self, netdev: &str, link: &str, above: &str) {
        let folder = format!("sys/devices/virtual/net/{above}");
        self.tree.put(&format!("{folder}/flags"), "0x1003\n");
        self.tree.link(&format!("sys/class/net/{netdev}/{link}"), &folder);
    }

    /// Adds a line to `proc/net/route`: destination and mask in hexadecimal, metric in decimal.
    pub(crate) fn route(&self, netdev: &str, destination: &str, mask: &str, metric: u32) {
        let line = format!("{netdev}\t{destination}\t0102A8C0\t0003\t0\t0\t{metric}\t{mask}\t0\t0\t0\n");
        self.append("proc/net/route", &line);
    }

    /// Gives a device a disk, by a path below its folder (`nvme/nvme0/nvme0n1`) and its number.
    pub(crate) fn disk(&self, device: &str, path: &str, number: &str) {
        let folder = format!("{}/{path}", self.tree.device(device).unwrap());
        self.block(&folder, number);
    }

    /// Adds a disk that is made of another one: md, dm.
    pub(crate) fn disk_on(&self, below: &str, name: &str, number: &str) {
        let folder = format!("sys/devices/virtual/block/{name}");
        self.block(&folder, number);
        self.tree.link(&format!("sys/class/block/{below}/holders/{name}"), &folder);
    }

    /// Adds the head of a native NVMe multipath, `nvme0n1`.
    pub(crate) fn multipath_head(&self, name: &str, number: &str) {
        self.block(&format!("sys/devices/virtual/nvme-subsystem/nvme-subsys0/{name}"), number);
    }

    fn block(&self, folder: &str, number: &str) {
        let name = Path::new(folder).file_name().unwrap().to_str().unwrap();
        self.tree.put(&format!("{folder}/dev"), format!("{number}\n"));
        self.tree.folder(format!("{folder}/holders"));
        self.tree.link(&format!("{folder}/subsystem"), "sys/class/block");
        self.tree.link(&format!("sys/class/block/{name}"), folder);
        self.tree.put(&format!("dev/{name}"), "");
        let disk = Path::new(folder).parent().unwrap().join("dev");
        if self.path(disk.to_str().unwrap()).exists() {
            self.tree.put(&format!("{folder}/partition"), "1\n");
        }
    }

    /// Mounts a file system: its number, the mount point, the device as /proc/mounts shows it.
    pub(crate) fn mount(&self, number: &str, at: &str, source: &str) {
        self.append("proc/1/mountinfo", &format!("44 21 {number} / {at} rw,relatime shared:7 - xfs {source} rw\n"));
    }

    pub(crate) fn append(&self, below: &str, text: &str) {
        let old = fs::read_to_string(self.path(below)).unwrap_or_default();
        self.tree.put(below, old + text);
    }

    pub(crate) fn put(&self, below: &str, text: impl AsRef<[u8]>) {
        self.tree.put(below, text);
    }

    pub(crate) fn get(&self, below: &str) -> Option<String> {
        self.tree.get(below)
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.tree.path(below)
    }

    /// The admin's settings: what is inside `<host>`.
    pub(crate) fn settings(&self, inside: &str) {
        self.put("etc/vfpool/host.xml", format!("<host>{inside}</host>"));
    }

    /// What goes wrong from now on, one a line; see `Fault` in `kernel.rs`.
    pub(crate) fn faults(&self, lines: &str) {
        self.put("faults", lines);
    }

    /// Adds a process to procfs.
    pub(crate) fn process(&self, pid: u32, parent: u32, start: u64) {
        let line = format!("{pid} (a (b) c) S {parent} 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 {start} 0\n");
        self.put(&format!("proc/{pid}/stat"), line);
        self.put(&format!("proc/{pid}/comm"), "qemu-kvm\n");
    }

    /// The libvirtd that calls the hooks dies, and its pid goes to another process.
    pub(crate) fn libvirtd_dies(&self) {
        static START: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1000);
        let start = START.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.process(std::process::id(), 1, start);
    }

    /// The guest's QEMU starts under this pid.
    pub(crate) fn qemu_runs(&self, guest: &str, pid: u32) {
        self.process(pid, 1, u64::from(pid) * 10);
        self.put(&format!("run/libvirt/qemu/{guest}.pid"), format!("{pid}"));
    }

    /// The guest's QEMU ends; libvirt then takes its pid file away.
    pub(crate) fn qemu_ends(&self, guest: &str) {
        let Some(pid) = self.get(&format!("run/libvirt/qemu/{guest}.pid")) else { return };
        fs::remove_dir_all(self.path(&format!("proc/{pid}"))).unwrap();
        self.tree.unlink(&format!("run/libvirt/qemu/{guest}.pid"));
    }

    /// A process opens a VFIO group and the devices in it that are there for that.
    pub(crate) fn opens_group(&self, pid: u32, group: u32) {
        for member in self.tree.names(format!("sys/kernel/iommu_groups/{group}/devices")) {
            if self.driver(&member).as_deref() == Some("vfio-pci") {
                self.tree.put(&format!("{}/enable", self.tree.device(&member).unwrap()), "1\n");
            }
        }
        let fds = self.path(&format!("proc/{pid}/fd"));
        fs::create_dir_all(&fds).unwrap();
        symlink(self.path(&format!("dev/vfio/{group}")), fds.join("9")).unwrap();
    }

    /// A device that somebody has open without its group, by /dev/vfio/devices.
    pub(crate) fn opens_itself(&self, device: &str) {
        self.tree.put(&format!("{}/enable", self.tree.device(device).unwrap()), "1\n");
    }

    /// A device that somebody else than the hook moves.
    pub(crate) fn move_to(&self, device: &str, driver: Option<&str>) {
        self.tree.unbind(device);
        if let Some(driver) = driver {
            self.tree.bind(device, driver);
        }
    }

    /// Pulls a device out.
    pub(crate) fn remove(&self, device: &str) {
        self.tree.unbind(device);
        self.tree.remove(device);
    }

    /// libvirt's own part for a managed device at a start, between `prepare` and `start`.
    pub(crate) fn libvirt_takes(&self, device: &str) {
        self.tree.set_driver_override(device, Some("vfio-pci"));
        self.move_to(device, Some("vfio-pci"));
        self.tree.set_driver_override(device, None);
    }

    /// libvirt's own part at a stop, between `stopped` and `release`: a host driver that knows the device gets it.
    pub(crate) fn libvirt_returns(&self, device: &str, driver: &str) {
        self.tree.set_driver_override(device, None);
        self.move_to(device, Some(driver));
    }

    pub(crate) fn driver(&self, device: &str) -> Option<String> {
        self.tree.driver(device)
    }

    pub(crate) fn driver_override(&self, device: &str) -> Option<String> {
        self.tree.driver_override(device)
    }

    /// What VFIO asks of a group before QEMU may have it: no endpoint on a host driver.
    #[track_caller]
    pub(crate) fn assert_viable(&self, group: u32) {
        self.assert_viable_without("", group);
    }

    /// The same before libvirt has taken this device.
    #[track_caller]
    pub(crate) fn assert_viable_without(&self, device: &str, group: u32) {
        for member in self.tree.names(format!("sys/kernel/iommu_groups/{group}/devices")) {
            let driver = self.driver(&member);
            let is_free = matches!(driver.as_deref(), None | Some("vfio-pci" | "pcieport"));
            assert!(is_free || member == device, "group {group} is not viable: {member} is on {driver:?}");
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut found = Snapshot::new();
        for folder in ["sys", "hw/dynids"] {
            self.walk(&self.path(folder), &mut found);
        }
        found
    }

    fn walk(&self, folder: &Path, found: &mut Snapshot) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            let what = if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                self.walk(&path, found);
                continue;
            } else {
                String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
            };
            // A driver that never had a dynamic id, and one that has none any more, are the same.
            if !(what.is_empty() && path.starts_with(self.path("hw"))) {
                found.insert(path.strip_prefix(&self.tree.root).unwrap().to_owned(), what);
            }
        }
    }

    /// The host is exactly as it was then.
    #[track_caller]
    pub(crate) fn assert_as(&self, before: &Snapshot, when: &str) {
        let now = self.snapshot();
        let paths = before.keys().chain(now.keys().filter(|path| !before.contains_key(*path)));
        let changes = paths.filter(|path| before.get(*path) != now.get(*path));
        let changes: Vec<String> =
            changes.map(|path| format!("{}: {:?} -> {:?}", path.display(), before.get(path), now.get(path))).collect();
        assert!(
            changes.is_empty(),
            "{when}:\n{}\ntrace:\n{}",
            changes.join("\n"),
            self.get("trace").unwrap_or_default()
        );
    }

    /// The guests that have a file in one of the state's folders (`leases`, `claims`, `attention`, `corrupt`).
    pub(crate) fn recorded(&self, folder: &str) -> Vec<String> {
        self.tree.names(format!("run/vfpool/{folder}"))
    }

    /// No lease, no claim, nothing to attend to.
    #[track_caller]
    pub(crate) fn assert_no_leases(&self, when: &str) {
        for folder in ["leases", "claims", "attention"] {
            assert_eq!(self.recorded(folder), [""; 0], "{when}: {folder}\n{}", self.get("trace").unwrap_or_default());
        }
    }

    /// What the hook and its children changed since the last time this was asked, one call a line.
    pub(crate) fn trace(&self) -> Vec<String> {
        let trace = self.get("trace").unwrap_or_default();
        self.tree.unlink("trace");
        trace.lines().map(str::to_owned).collect()
    }

    fn call(&self, program: &str, arguments: &[&str], input: &[u8]) -> Call<'_> {
        let library = Path::new(env!("CARGO_BIN_EXE_vfpool-hook")).with_file_name("examples/libfakekernel.so");
        assert!(library.exists(), "{} is not built; run `cargo build --example fakekernel`", library.display());
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").env_clear();
        command.env("LC_ALL", "C").env("PATH", "/bin:/usr/bin");
        command.env("VFPOOL_ROOT", &self.tree.root).env("LD_PRELOAD", library);
        Call { host: self, command, input: input.to_owned() }
    }

    /// The hook with any arguments.
    pub(crate) fn hook_with(&self, arguments: &[&str], input: &[u8]) -> Call<'_> {
        self.call(env!("CARGO_BIN_EXE_vfpool-hook"), arguments, input)
    }

    /// The hook as libvirt calls it.
    pub(crate) fn hook(&self, guest: &str, operation: &str, xml: &str) -> Call<'_> {
        let end = matches!(operation, "release" | "stopped");
        self.hook_with(&[guest, operation, if end { "end" } else { "begin" }, "-"], xml.as_bytes())
    }

    /// The admin's command, still to be called.
    pub(crate) fn command(&self, arguments: &[&str]) -> Call<'_> {
        self.call(env!("CARGO_BIN_EXE_vfpool"), arguments, b"")
    }

    /// The admin's command.
    pub(crate) fn vfpool(&self, arguments: &[&str]) -> Outcome {
        self.command(arguments).run()
    }

    /// The helper as udev's rules run it.
    pub(crate) fn udev(&self, arguments: &[&str]) -> Outcome {
        self.call(env!("CARGO_BIN_EXE_vfpool-device"), arguments, b"").run()
    }

    /// The admin's command with this on standard input.
    pub(crate) fn vfpool_with(&self, arguments: &[&str], input: &[u8]) -> Call<'_> {
        self.call(env!("CARGO_BIN_EXE_vfpool"), arguments, input)
    }

    pub(crate) fn prepare(&self, guest: &str, xml: &str) -> Outcome {
        self.hook(guest, "prepare", xml).run()
    }

    pub(crate) fn release(&self, guest: &str, xml: &str) -> Outcome {
        self.hook(guest, "release", xml).run()
    }
}

/// A PCI device of a guest's definition.
pub(crate) fn hostdev(address: &str, managed: bool) -> String {
    let managed = if managed { "yes" } else { "no" };
    format!("<hostdev mode='subsystem' type='pci' managed='{managed}'>{}</hostdev>\n", source(address))
}

/// The `<source>` of a PCI device, as libvirt writes it.
pub(crate) fn source(address: &str) -> String {
    let field: Vec<&str> = address.split([':', '.']).collect();
    let [domain, bus, slot, function] = field.as_slice() else { panic!("{address}") };
    format!(
        "<source><address type='pci' domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/></source>"
    )
}

/// A guest's definition with these devices, among others that are none of ours.
pub(crate) fn domain(guest: &str, devices: &[String]) -> String {
    format!(
        "<domain type='kvm' id='3'>\n  <name>{guest}</name>\n  <devices>\n<disk type='file' device='disk'><source \
         file='/x.qcow2'/><target dev='vda'/><address type='pci' domain='0x0000' bus='0x00' slot='0x07' \
         function='0x0'/></disk>\n{}<interface type='network'><source network='default'/></interface>\n</devices>\n</domain>\n",
        devices.concat()
    )
}

/// A guest with these managed devices.
pub(crate) fn domain_with(guest: &str, addresses: &[&str]) -> String {
    let devices: Vec<String> = addresses.iter().map(|address| hostdev(address, true)).collect();
    domain(guest, &devices)
}
