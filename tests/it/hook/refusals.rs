//! Starts that are refused: the reason, word for word where an admin reads it, and a host on which nothing has changed.

use crate::commands::explain::prepare_as_foretold;
use fakehost::{Device, FIRST, Host, SECOND, Snapshot, domain, domain_with, hostdev};

/// The start of `web` with this XML is refused for this reason, and leaves no trace.
#[track_caller]
fn refused(host: &Host, xml: &str, reason: &str) {
    let (before, web) = (host.snapshot(), host.guest_of("web", xml));
    prepare_as_foretold(&web).refused(&format!("guest 'web': {reason}"));
    untouched(host, &before);
    // libvirt tells of the end of a start that failed.
    web.hook("stopped").run().ok_silently();
    web.release().ok_silently();
    untouched(host, &before);
}

#[track_caller]
fn untouched(host: &Host, before: &Snapshot) {
    host.assert_restored(before, "after a refusal");
    let trace = host.trace();
    assert!(!trace.iter().any(|line| line.contains(" sys/")), "{trace:?}");
}

#[test]
fn a_group_goes_to_one_guest() {
    let host = Host::with_pair();
    host.guest("web", FIRST).prepare().ok();
    let running = host.snapshot();
    for (device, reason) in [
        (FIRST, "0000:02:00.0 is not free: guest 'web' has it. Stop 'web' first, or use another device"),
        (
            SECOND,
            "0000:02:00.1 is not free: guest 'web' has 0000:02:00.0 of the same IOMMU group 8, and a group goes to one \
             guest as a whole. Stop 'web' first, or use another device",
        ),
    ] {
        let db = host.guest("db", device);
        db.prepare().refused(&format!("guest 'db': {reason}"));
        // libvirt calls these for the start that failed; they must not free what the other guest holds.
        db.hook("stopped").run().ok_silently();
        db.release().ok_silently();
        host.assert_as(&running, "after the loser's release");
        assert_eq!(host.recorded("leases"), ["web"]);
        assert_eq!(host.recorded("claims"), [FIRST, SECOND]);
    }
}

#[test]
fn a_device_that_joins_a_group_in_use_is_refused() {
    let host = Host::with_pair();
    host.guest("web", FIRST).prepare().ok();
    host.add(Device::new("0000:02:00.2").behind("0000:00:02.0").group(8));
    host.guest("db", "0000:02:00.2").prepare().refused(
        "guest 'db': 0000:02:00.2 is not free: guest 'web' has 0000:02:00.0 of the same IOMMU group 8, and a group \
         goes to one guest as a whole. Stop 'web' first, or use another device",
    );
}

#[test]
fn the_limit_on_devices_can_be_raised() {
    let host = Host::new();
    let addresses: Vec<String> = (0..33).map(|number| format!("0000:{:02x}:00.0", number + 2)).collect();
    for (group, address) in (8..).zip(&addresses) {
        host.add(Device::new(address).group(group).driver("e1000e"));
    }
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    host.prepare("web", &domain_with("web", &addresses[..32])).ok();
    host.release("web", "").ok();
    refused(
        &host,
        &domain_with("web", &addresses),
        "it has 33 assigned PCI devices, and 32 is the most a guest may have. Remove some, or raise the limit with \
         <devices max='33'/> in /etc/vfpool/host.xml",
    );
    host.settings("<devices max='33'/>");
    host.prepare("web", &domain_with("web", &addresses)).ok();
}

#[test]
fn a_device_that_cannot_be_given_away() {
    let host = Host::with_pair();
    host.add(Device::new("0000:04:00.0").driver("e1000e"));
    for (device, reason) in [
        (
            "0000:0b:00.0",
            "there is no PCI device 0000:0b:00.0 on this host. See `lspci -D` for what there is; a guest is corrected \
             with `virsh edit`",
        ),
        (
            "0000:00:02.0",
            "0000:00:02.0 is a bridge, and only endpoints can be assigned to a guest. Assign a device behind it",
        ),
        (
            "0000:04:00.0",
            "0000:04:00.0 has no IOMMU group: the IOMMU is on, but does not translate for this device. See `dmesg | \
             grep -i -e iommu -e DMAR -e AMD-Vi` for the reason, or use another device",
        ),
    ] {
        refused(&host, &domain_with("web", &[device]), reason);
        // One bad device keeps the good ones, too, where they are.
        refused(&host, &domain_with("web", &[FIRST, device]), reason);
    }
}

/// The sibling carries a network interface, `enp2s0f1`.
fn host_with_netdev(is_up: bool, addresses: &[&str]) -> Host {
    let host = Host::with_pair();
    host.netdev(SECOND, "enp2s0f1", is_up, addresses);
    host
}

/// `web`, which wants the other function of the pair, is refused for the sake of the sibling.
#[track_caller]
fn sibling_is_needed(host: &Host, need: &str, remedy: &str) {
    let part = |name| host.get(&format!("sys/bus/pci/devices/{SECOND}/{name}")).unwrap().replace("0x", "");
    let id = format!("{}:{}", part("vendor"), part("device"));
    let allow = format!("or allow it with <allow address='0000:02:00.1' id='{id}'/> in /etc/vfpool/host.xml");
    let reason = format!("Cannot detach 0000:02:00.1 (sibling of 0000:02:00.0): {need}. {remedy}, {allow}");
    refused(host, &domain_with("web", &[FIRST]), &reason);
}

#[track_caller]
fn sibling_is_free(host: &Host) {
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok_saying("0000:02:00.1: e1000e -> vfio-pci");
    web.release().ok();
    host.assert_as(&before, "after release");
}

#[test]
fn the_default_route_is_needed() {
    let host = host_with_netdev(true, &["192.0.2.7"]);
    host.route("0.0.0.0/0", 100, &["enp2s0f1"]);
    sibling_is_needed(&host, "it carries the default route (enp2s0f1)", "Move the route to another interface");

    // An IPv6 one, and no address but the link's own.
    let host = host_with_netdev(true, &["fe80::1"]);
    host.route("::/0", 1024, &["enp2s0f1"]);
    sibling_is_needed(&host, "it carries the default route (enp2s0f1)", "Move the route to another interface");
}

#[test]
fn a_worse_default_route_counts_as_an_address() {
    let host = host_with_netdev(true, &["192.0.2.7"]);
    host.route("0.0.0.0/0", 200, &["enp2s0f1"]);
    host.route("0.0.0.0/0", 100, &["eno1"]);
    sibling_is_needed(&host, "enp2s0f1 is up and has the address 192.0.2.7", "Take enp2s0f1 down or its address away");
}

#[test]
fn an_address_is_needed_while_the_interface_is_up() {
    for address in ["192.0.2.7", "2001:db8::7"] {
        let host = host_with_netdev(true, &["fe80::1", address]);
        let need = format!("enp2s0f1 is up and has the address {address}");
        sibling_is_needed(&host, &need, "Take enp2s0f1 down or its address away");
    }
    sibling_is_free(&host_with_netdev(false, &["192.0.2.7"]));
    // DHCP is not done yet. A route into a network, and a black hole by default, are no way out.
    for address in [&[][..], &["fe80::1"]] {
        let host = host_with_netdev(true, address);
        host.route("10.0.2.0/24", 0, &["enp2s0f1"]);
        host.route("0.0.0.0/0", 0, &["blackhole"]);
        sibling_is_needed(&host, "enp2s0f1 is up", "Take enp2s0f1 down");
    }
}

#[test]
fn a_port_or_a_carrier_is_needed() {
    for (link, above) in
        [("master", "br0"), ("master", "bond0"), ("upper_vlan7", "vlan7"), ("upper_macvtap0", "macvtap0")]
    {
        // Even one that is down.
        let host = host_with_netdev(false, &[]);
        host.stack("enp2s0f1", link, above);
        sibling_is_needed(&host, &format!("enp2s0f1 belongs to {above}"), &format!("Take enp2s0f1 out of {above}"));
    }
}

/// The sibling is an NVMe controller with a disk of two partitions.
fn host_with_disk() -> Host {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e"));
    host.add(Device::new(SECOND).group(8).id("1b36:0010").class(0x01_0802).driver("nvme"));
    host.disk(SECOND, "nvme/nvme0/nvme0n1", "259:0");
    host.disk(SECOND, "nvme/nvme0/nvme0n1/nvme0n1p1", "259:1");
    host.disk(SECOND, "nvme/nvme0/nvme0n1/nvme0n1p2", "259:2");
    host
}

#[test]
fn a_disk_that_nobody_uses_is_free() {
    let host = host_with_disk();
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok_saying("0000:02:00.1: nvme -> vfio-pci");
    web.release().ok();
    host.assert_as(&before, "after release");
}

#[test]
fn a_mounted_disk_is_needed() {
    let host = host_with_disk();
    host.mount("259:2", "/srv", "/dev/disk/by-label/srv");
    sibling_is_needed(&host, "nvme0n1p2 is mounted at /srv", "Unmount /srv");

    // btrfs has a number of its own, and only its name tells.
    let host = host_with_disk();
    host.mount("0:41", "/home", "/dev/nvme0n1p1");
    sibling_is_needed(&host, "nvme0n1p1 is mounted at /home", "Unmount /home");
}

#[test]
fn swap_is_needed() {
    let host = host_with_disk();
    host.append("proc/swaps", "/dev/nvme0n1p2                          partition\t976892\t0\t-2\n");
    sibling_is_needed(&host, "nvme0n1p2 is swapped to", "Run swapoff /dev/nvme0n1p2");
}

#[test]
fn what_is_made_of_a_disk_is_looked_through() {
    let host = host_with_disk();
    host.disk_on("nvme0n1p2", "md0", "9:0");
    sibling_is_needed(&host, "nvme0n1p2 is a member of md0", "Stop md0");
    host.disk_on("md0", "dm-3", "253:3");
    host.put("sys/devices/virtual/block/dm-3/dm/name", "vg-home\n");
    sibling_is_needed(&host, "md0 is a member of vg-home", "Stop vg-home");
    host.mount("253:3", "/home", "/dev/mapper/vg-home");
    sibling_is_needed(&host, "dm-3 is mounted at /home", "Unmount /home");

    let host = host_with_disk();
    host.disk_on("nvme0n1", "dm-1", "253:1");
    host.put("sys/devices/virtual/block/dm-1/dm/name", "vg-var\n");
    sibling_is_needed(&host, "nvme0n1 is a member of vg-var", "Stop vg-var");
}

#[test]
fn a_disk_that_the_kernel_holds_is_needed() {
    let host = host_with_disk();
    host.faults("open errno EBUSY dev/nvme0n1p1");
    sibling_is_needed(&host, "nvme0n1p1 is in use (claimed in the kernel)", "Stop what uses /dev/nvme0n1p1");
}

#[test]
fn a_disk_that_does_not_answer_is_not_taken() {
    let host = host_with_disk();
    host.settings("<deadline seconds='1'/>");
    let node = host.path("dev/nvme0n1").display().to_string();
    for (fault, cause) in [("errno EIO", "Input/output error (os error 5)"), ("hang", "timed out")] {
        host.faults(&format!("open {fault} dev/nvme0n1"));
        refused(
            &host,
            &domain_with("web", &[FIRST]),
            &format!("Cannot find out whether the host uses 0000:02:00.1: Cannot find out who uses {node}: {cause}"),
        );
        host.faults("");
    }
}

#[test]
fn the_head_of_an_nvme_multipath_is_looked_at() {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e"));
    host.add(Device::new(SECOND).group(8).id("1b36:0010").class(0x01_0802).driver("nvme"));
    host.disk(SECOND, "nvme/nvme0/nvme0c0n1", "259:5");
    host.multipath_head("nvme0n1", "259:0");
    host.mount("259:0", "/srv", "/dev/nvme0n1");
    sibling_is_needed(&host, "nvme0n1 is mounted at /srv", "Unmount /srv");
}

#[test]
fn a_partition_of_a_multipath_head_is_looked_at() {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e"));
    host.add(Device::new(SECOND).group(8).id("1b36:0010").class(0x01_0802).driver("nvme"));
    host.disk(SECOND, "nvme/nvme0/nvme0c0n1", "259:5");
    host.multipath_head("nvme0n1", "259:0");
    host.multipath_head("nvme0n1/nvme0n1p1", "259:1");
    host.mount("259:1", "/srv", "/dev/nvme0n1p1");
    sibling_is_needed(&host, "nvme0n1p1 is mounted at /srv", "Unmount /srv");
}

#[test]
fn an_allowed_device_is_taken_all_the_same() {
    let host = host_with_netdev(true, &["192.0.2.7"]);
    host.route("0.0.0.0/0", 100, &["enp2s0f1"]);
    host.settings("<allow address='02:00.0'/>");
    sibling_is_needed(&host, "it carries the default route (enp2s0f1)", "Move the route to another interface");
    // Another device has come to the address.
    host.settings("<allow address='02:00.1' id='1b36:0010'/>");
    sibling_is_needed(&host, "it carries the default route (enp2s0f1)", "Move the route to another interface");
    for allowed in ["<allow address='02:00.1'/>", "<allow address='02:00.1' id='8086:10d3'/>"] {
        host.settings(allowed);
        sibling_is_free(&host);
    }
}

#[test]
fn broken_settings_refuse_more_and_are_named() {
    let host = host_with_netdev(true, &["192.0.2.7"]);
    let file = host.path("etc/vfpool/host.xml").display().to_string();
    host.put("etc/vfpool/host.xml", "<host><alow address='0000:02:00.1'/></host>");
    let before = host.snapshot();
    let outcome = host.guest("web", FIRST).prepare();
    outcome.refused_saying(&[
        "guest 'web': Cannot detach 0000:02:00.1 (sibling of 0000:02:00.0): enp2s0f1 is up and has the address \
         192.0.2.7. ",
        "in /etc/vfpool/host.xml. ",
        &format!("Cannot use {file}: unknown field `alow`"),
        "using default settings until it is fixed",
    ]);
    untouched(&host, &before);
    // A guest that needs none of the settings starts.
    let host = Host::with_pair();
    host.put("etc/vfpool/host.xml", "<host");
    host.guest("web", FIRST).prepare().ok_saying("using default settings until it is fixed");
}

#[test]
fn the_guests_own_device_may_have_an_address_but_no_more() {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e"));
    host.netdev(FIRST, "enp2s0", true, &["192.0.2.7"]);
    host.guest("web", FIRST).prepare().ok_silently();
    host.release("web", "").ok_silently();
    // With managed='no' it is we who would take it.
    let allow = "or allow it with <allow address='0000:02:00.0' id='8086:10d3'/> in /etc/vfpool/host.xml";
    refused(
        &host,
        &domain("web", &[hostdev(FIRST, false)]),
        &format!(
            "Cannot detach 0000:02:00.0: enp2s0 is up and has the address 192.0.2.7. Take enp2s0 down or its address \
             away, {allow}"
        ),
    );
    host.route("0.0.0.0/0", 0, &["enp2s0"]);
    refused(
        &host,
        &domain_with("web", &[FIRST]),
        &format!(
            "Cannot detach 0000:02:00.0: it carries the default route (enp2s0). Move the route to another interface, \
             {allow}"
        ),
    );

    let host = Host::new();
    host.add(Device::new(FIRST).group(8).id("1b36:0010").class(0x01_0802).driver("nvme"));
    host.disk(FIRST, "nvme/nvme0/nvme0n1", "259:0");
    host.mount("259:0", "/", "/dev/nvme0n1");
    refused(
        &host,
        &domain_with("web", &[FIRST]),
        "Cannot detach 0000:02:00.0: nvme0n1 is mounted at /. The host runs from it: use another device",
    );
}
