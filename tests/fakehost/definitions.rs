//! Definitions of guests: the XML that hooks get, and the files that libvirt keeps.

use crate::xml::Node;

/// The PF of [`Host::with_vfs`](crate::Host::with_vfs).
pub const PF: &str = "0000:01:00.0";

/// Where tests put an NVMe disk.
pub const NVME: &str = "0000:06:00.0";

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
        "<source><address type='pci' domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' \
         function='0x{function}'/></source>"
    )
}

/// A guest's definition with these devices, among others that are none of ours.
pub fn domain(guest: &str, devices: &[String]) -> String {
    format!(
        "<domain type='kvm' id='3'>\n  <name>{guest}</name>\n  <devices>\n<disk type='file' device='disk'><source \
         file='/x.qcow2'/><target dev='vda'/><address type='pci' domain='0x0000' bus='0x00' slot='0x07' \
         function='0x0'/></disk>\n{}<interface type='network'><source \
         network='default'/></interface>\n</devices>\n</domain>\n",
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
        "<interface type='hostdev' managed='yes'><mac address='52:54:00:aa:00:{number:02x}'/><driver \
         name='vfio'/>{source}<vlan><tag id='42'/></vlan><alias name='ua-net{number}'/>{own}</interface>"
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
        "<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE.\n  virsh edit {guest}\n-->\n\n<domain \
         type='kvm'>\n  <name>{guest}</name>\n  <uuid>{}</uuid>\n  <metadata>\n    <app:owner \
         xmlns:app=\"urn:app\">R&amp;D <app:x a=\"'\"/></app:owner>\n{requests}  </metadata>\n  <memory \
         unit='KiB'>65536</memory>\n  <os>\n    <type arch='x86_64' machine='pc'>hvm</type>\n{boot}  \
         </os>\n  <devices>\n    <emulator>/usr/bin/qemu</emulator>\n{}    <input type='mouse' bus='ps2'/>\n{}    \
         <memballoon model='virtio'>\n      <address type='pci' domain='0x0000' bus='0x00' slot='0x03' \
         function='0x0'/>\n    </memballoon>\n  </devices>\n</domain>\n",
        uuid(guest),
        interfaces.into_iter().cloned().collect::<String>(),
        hostdevs.into_iter().cloned().collect::<String>(),
    )
}

/// A guest that asks the pool `net` for one hostdev, and points at this one now.
pub fn asking(guest: &str, address: &str) -> String {
    definition(guest, &[("net", 0)], &[hostdev_at(address, 0, "")])
}

/// The PCI devices of a guest's XML, in its order.
pub fn devices_of(xml: &str) -> Vec<String> {
    let domain = Node::parse(xml).unwrap();
    let devices = domain.child("devices").into_iter().flat_map(|devices| &devices.children);
    devices.filter_map(Node::source).collect()
}
