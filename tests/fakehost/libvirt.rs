//! The host's libvirt: definitions, pools, QEMUs, and a virsh.

use crate::Host;
use crate::definitions::{PF, asking, devices_of, group, vf};
use crate::device::Device;
use crate::expect::Outcome;
use crate::programs::{fake_virsh, product};
use std::fs;
use std::os::unix::fs::symlink;

impl Host {
    /// A host with a PF (`eth3`) and this many VFs, each without a driver and in a group of its own; all VFs are the
    /// pool `net`.
    pub fn with_vfs(count: usize) -> Self {
        let host = Self::new();
        let places: Vec<(String, u32)> = (0..count).map(|number| (vf(number), group(number))).collect();
        let places: Vec<(&str, u32)> = places.iter().map(|(address, group)| (address.as_str(), *group)).collect();
        host.add(Device::new(PF).id("8086:10c9").driver("igb").group(8).vfs("8086:10ca", &places));
        host.make_vfs(PF, &vec![None; count]);
        host.netdev(PF, "eth3", true, &[]);
        host.pool("net", "<pf dev='eth3'/>");
        host
    }

    /// A pool in a file of its own, with this inside of `<forward>`.
    pub fn pool(&self, name: &str, inside: &str) {
        let text = format!("<pool><name>{name}</name><forward mode='hostdev' managed='yes'>{inside}</forward></pool>");
        self.put(&format!("etc/vfpool/pools.d/{name}.xml"), text);
    }

    pub(super) fn install(&self) {
        for folder in ["usr/bin", "etc/libvirt/hooks", "etc/libvirt/qemu"] {
            self.tree.folder(folder);
        }
        symlink(fake_virsh(), self.path("usr/bin/virsh")).unwrap();
        symlink(product("vfpool-hook"), self.path("etc/libvirt/hooks/qemu")).unwrap();
        self.put("hw/libvirtd", std::process::id().to_string());
        self.put("run/libvirtd.pid", std::process::id().to_string());
        self.uptime(1000);
    }

    /// Defines a guest, or replaces its definition, as libvirt does.
    pub fn define(&self, guest: &str, xml: &str) {
        self.put(&format!("etc/libvirt/qemu/{guest}.xml"), xml);
    }

    /// A guest's definition, byte for byte.
    #[track_caller]
    pub fn definition(&self, guest: &str) -> String {
        fs::read_to_string(self.path(&format!("etc/libvirt/qemu/{guest}.xml"))).unwrap()
    }

    /// The devices that a guest's definition points at, in its order.
    #[track_caller]
    pub fn points_at(&self, guest: &str) -> Vec<String> {
        devices_of(&self.definition(guest))
    }

    /// As the admin calls it, or libvirt's autostart.
    pub fn virsh(&self, arguments: &[&str]) -> Outcome {
        let mut call = self.call(self.path("usr/bin/virsh"), arguments, b"");
        call.command.env("FAKE_ADMIN", "1");
        call.run()
    }

    /// Starts a guest, which then runs.
    #[track_caller]
    pub fn runs(&self, guest: &str) {
        let outcome = self.virsh(&["start", guest]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }

    /// Defines a guest that requests one device of the pool `net` and points at this one, and starts it.
    #[track_caller]
    pub fn runs_with(&self, guest: &str, address: &str) {
        self.define(guest, &asking(guest, address));
        self.runs(guest);
    }

    #[track_caller]
    pub fn stops(&self, guest: &str) {
        let outcome = self.virsh(&["destroy", guest]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }

    /// What goes wrong with virsh from now on; see `Fault` in `virsh.rs`.
    pub fn virsh_faults(&self, lines: &str) {
        self.put("virsh.faults", lines);
    }

    /// What vfpool had virsh do since the last time this was asked.
    pub fn virsh_trace(&self) -> Vec<String> {
        let trace = self.get("virsh.trace").unwrap_or_default();
        self.tree.unlink("virsh.trace");
        trace.lines().map(str::to_owned).collect()
    }

    /// The last part of a link's target.
    pub fn points_to(&self, below: &str) -> Option<String> {
        self.tree.points_to(below)
    }

    /// The reconciler's queue.
    pub fn queue(&self) -> Vec<String> {
        self.tree.names("run/vfpool/queue/reconcile")
    }

    #[track_caller]
    pub fn reconcile(&self) -> Outcome {
        self.vfpool(&["reconcile"])
    }

    /// The libvirtd that calls the hooks dies, and its pid goes to another process.
    pub fn libvirtd_dies(&self) {
        static START: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1000);
        let start = START.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.process(std::process::id(), 1, start);
    }

    /// The guest's QEMU starts under this pid.
    pub fn qemu_runs(&self, guest: &str, pid: u32) {
        self.process(pid, 1, u64::from(pid) * 10);
        self.put(&format!("run/libvirt/qemu/{guest}.pid"), format!("{pid}"));
    }

    /// The guest's QEMU ends; libvirt then takes its pid file away.
    pub fn qemu_ends(&self, guest: &str) {
        let Some(pid) = self.get(&format!("run/libvirt/qemu/{guest}.pid")) else { return };
        fs::remove_dir_all(self.path(&format!("proc/{pid}"))).unwrap();
        self.tree.unlink(&format!("run/libvirt/qemu/{guest}.pid"));
    }

    /// libvirt's own part for a managed device at a start, between `prepare` and `start`.
    pub fn libvirt_detaches(&self, device: &str) {
        self.tree.set_driver_override(device, Some("vfio-pci"));
        self.move_to(device, Some("vfio-pci"));
        self.tree.set_driver_override(device, None);
    }

    /// libvirt's own part at a stop, between `stopped` and `release`: a host driver that knows the device gets it.
    pub fn libvirt_reattaches(&self, device: &str, driver: Option<&str>) {
        self.tree.set_driver_override(device, None);
        self.move_to(device, driver);
    }
}
