//! Guests of the fake host as libvirt keeps them, its pools, and its virsh.

use crate::Host;
use crate::device::Device;
use crate::expect::Outcome;
use crate::programs::{fake_virsh, product};
use crate::xml::Node;
use std::fs;
use std::os::unix::fs::symlink;

pub const PF: &str = "0000:01:00.0";

/// The nth VF of that PF.
pub fn vf(number: usize) -> String {
    let routing_id = number + 128;
    format!("0000:{:02x}:{:02x}.{}", 1 + routing_id / 256, routing_id % 256 / 8, routing_id % 8)
}

/// The IOMMU group of that VF.
pub fn group(number: usize) -> u32 {
    u32::try_from(number).unwrap() + 100
}

/// A guest's own address for its devices; numbers start at slot 5.
pub fn slot(number: usize) -> String {
    format!("0000:00:{:02x}.0", number + 5)
}

fn guest_address(number: usize) -> String {
    format!("<address type='pci' domain='0x0000' bus='0x00' slot='0x{:02x}' function='0x0'/>", number + 5)
}

/// A PCI device of a guest's definition.
pub fn hostdev(address: &str, managed: bool) -> String {
    let managed = if managed { "yes" } else { "no" };
    format!("<hostdev mode='subsystem' type='pci' managed='{managed}'>{}</hostdev>\n", source(address))
}

/// The `<source>` of a PCI device, as libvirt writes it.
pub fn source(address: &str) -> String {
    let field: Vec<&str> = address.split([':', '.']).collect();
    let [domain, bus, slot, function] = field.as_slice() else { panic!("{address}") };
    format!(
        "<source><address type='pci' domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/></source>"
    )
}

/// A guest's definition with these devices, among others that are none of ours.
pub fn domain(guest: &str, devices: &[String]) -> String {
    format!(
        "<domain type='kvm' id='3'>\n  <name>{guest}</name>\n  <devices>\n<disk type='file' device='disk'><source \
         file='/x.qcow2'/><target dev='vda'/><address type='pci' domain='0x0000' bus='0x00' slot='0x07' \
         function='0x0'/></disk>\n{}<interface type='network'><source network='default'/></interface>\n</devices>\n</domain>\n",
        devices.concat()
    )
}

/// A guest with these managed devices.
pub fn domain_with(guest: &str, addresses: &[&str]) -> String {
    let devices: Vec<String> = addresses.iter().map(|address| hostdev(address, true)).collect();
    domain(guest, &devices)
}

fn element(text: &str) -> String {
    Node::parse(text).unwrap().format(2)
}

/// A hostdev as it stands in a definition, at a guest's nth address, with more elements behind its source.
pub fn hostdev_at(address: &str, number: usize, more: &str) -> String {
    let (source, own) = (source(address).replace(" type='pci'", ""), guest_address(number));
    element(&format!("<hostdev mode='subsystem' type='pci' managed='yes'>{source}{more}{own}</hostdev>"))
}

/// The same as an interface with a MAC address of its own, and a VLAN.
pub fn interface_at(address: &str, number: usize) -> String {
    let (source, own) = (source(address), guest_address(number));
    element(&format!(
        "<interface type='hostdev' managed='yes'><mac address='52:54:00:aa:00:{number:02x}'/><driver name='vfio'/>{source}\
         <vlan><tag id='42'/></vlan><alias name='ua-net{number}'/>{own}</interface>"
    ))
}

/// The UUID of a guest of the fake host.
pub fn uuid(guest: &str) -> String {
    let bytes = guest.bytes().fold(5381u64, |hash, byte| hash.wrapping_mul(33) ^ u64::from(byte));
    format!("6a1c1f5e-0000-4000-8000-{:012x}", bytes & 0xffff_ffff_ffff)
}

/// A definition as libvirt writes it. A request is a pool and the number of a guest's address.
pub fn definition(guest: &str, requests: &[(&str, usize)], devices: &[String]) -> String {
    let request = |(pool, number): &(&str, usize)| {
        format!("      <vfpool:device pool=\"{pool}\" guest-address=\"{}\"/>\n", slot(*number))
    };
    let requests = match requests {
        [] => String::new(),
        requests => format!(
            "    <vfpool:request xmlns:vfpool=\"urn:vfpool:domain:1\">\n{}    </vfpool:request>\n",
            requests.iter().map(request).collect::<String>()
        ),
    };
    let is_interface = |device: &&String| device.contains("<interface");
    let (interfaces, hostdevs): (Vec<_>, Vec<_>) = devices.iter().partition(is_interface);
    let boot = if devices.iter().any(|device| device.contains("<boot ")) { "" } else { "    <boot dev='hd'/>\n" };
    format!(
        "<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE.\n  virsh edit {guest}\n-->\n\n<domain type='kvm'>\n  <name>{guest}</name>\n  \
         <uuid>{}</uuid>\n  <metadata>\n    <app:owner xmlns:app=\"urn:app\">R&amp;D <app:x a=\"'\"/></app:owner>\n{requests}  \
         </metadata>\n  <memory unit='KiB'>65536</memory>\n  <os>\n    <type arch='x86_64' machine='pc'>hvm</type>\n{boot}  \
         </os>\n  <devices>\n    <emulator>/usr/bin/qemu</emulator>\n{}    <input type='mouse' bus='ps2'/>\n{}    <memballoon \
         model='virtio'>\n      <address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/>\n    </memballoon>\n  \
         </devices>\n</domain>\n",
        uuid(guest),
        interfaces.into_iter().cloned().collect::<String>(),
        hostdevs.into_iter().cloned().collect::<String>(),
    )
}

/// A guest that asks the pool `net` for one hostdev, and points at this one now.
pub fn asking(guest: &str, address: &str) -> String {
    definition(guest, &[("net", 0)], &[hostdev_at(address, 0, "")])
}

impl Host {
    /// A host with a PF (`eth3`) and this many VFs, each without a driver and in a group of its own; all VFs are the pool
    /// `net`.
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

    /// Seconds since boot.
    pub fn uptime(&self, seconds: u64) {
        self.put("proc/uptime", format!("{seconds}.42 1.00\n"));
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
}

/// The PCI devices of a guest's XML, in its order.
pub fn devices_of(xml: &str) -> Vec<String> {
    let domain = Node::parse(xml).unwrap();
    let devices = domain.child("devices").into_iter().flat_map(|devices| &devices.children);
    devices.filter_map(Node::source).collect()
}
