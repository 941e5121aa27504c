//! `vfpool adopt`, `attach` and `detach`: what guests request from pools.

use super::start::host;
use fakehost::{Host, asking, definition, hostdev_at, interface_at, slot, source, vf};

/// A guest's definition after `vfpool COMMAND web net ARGUMENTS`.
#[track_caller]
fn edited(host: &Host, arguments: &[&str]) -> String {
    let outcome = host.vfpool(arguments);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.starts_with("guest 'web': "), "{}", outcome.stdout);
    assert_eq!(outcome.stderr, format!("vfpool: {}", outcome.stdout), "the log has the same");
    assert!(host.queue().contains(&"guest web".to_owned()), "to be parked");
    std::fs::remove_dir_all(host.path("run/vfpool/queue")).unwrap();
    host.definition("web")
}

#[test]
fn a_device_with_a_fixed_address_becomes_one_of_a_pool() {
    let two = [hostdev_at(&vf(0), 0, ""), interface_at(&vf(1), 1)];
    let foreign = "0000:77:00.0";
    // The only device of the pool; the only one at all, from another host; the one that is named, in each notation.
    for (devices, arguments, adopted) in [
        (vec![hostdev_at(foreign, 1, ""), hostdev_at(&vf(1), 0, "")], vec![], 0),
        (vec![hostdev_at(foreign, 0, "")], vec![], 0),
        (vec![interface_at(&vf(1), 3)], vec![], 3),
        (two.to_vec(), vec!["0000:01:10.1"], 1),
        (two.to_vec(), vec!["01:10.0"], 0),
        (two.to_vec(), vec!["pci_0000_01_10_0"], 0),
    ] {
        let host = Host::with_vfs(2);
        host.define("web", &definition("web", &[], &devices));
        let xml = edited(&host, &[&["adopt", "web", "net"], arguments.as_slice()].concat());
        assert_eq!(xml, definition("web", &[("net", adopted)], &devices), "{arguments:?}");
        assert_eq!(host.virsh_trace(), ["metadata web --set"]);
        host.reconcile().ok();
    }
    // One after the other.
    let host = Host::with_vfs(2);
    host.define("web", &definition("web", &[], &two));
    edited(&host, &["adopt", "web", "net", "01:10.1"]);
    assert_eq!(edited(&host, &["adopt", "web", "net"]), definition("web", &[("net", 1), ("net", 0)], &two));
}

#[test]
fn what_cannot_be_adopted_is_told() {
    let disk = source(&vf(1)).replace("<source>", "<source type='pci' managed='yes' namespace='1'>");
    let disk = format!("    <disk type='nvme'>{disk}<target dev='vda'/></disk>\n");
    let nowhere = hostdev_at(&vf(0), 0, "");
    let nowhere =
        nowhere.replace("      <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>\n", "");
    let two = vec![hostdev_at(&vf(0), 0, ""), interface_at(&vf(1), 1)];
    for (requests, devices, arguments, reason) in [
        (vec![], vec![], vec![], "it has no PCI device. Add one with `vfpool attach`"),
        (
            vec![("net", 0)],
            vec![hostdev_at(&vf(0), 0, "")],
            vec![],
            "all of its PCI devices are requested from pools already",
        ),
        (vec![], two.clone(), vec![], "it has several devices (0000:01:10.1, 0000:01:10.0). Name one after the pool"),
        (
            vec![],
            two.clone(),
            vec!["01:10.7"],
            "0000:01:10.7 is not one of its devices; it has 0000:01:10.1, 0000:01:10.0",
        ),
        (
            vec![("net", 0)],
            two.clone(),
            vec!["01:10.0"],
            "0000:01:10.0 is requested from a pool already, or is not a hostdev or interface; it has 0000:01:10.1",
        ),
        (
            vec![],
            vec![disk],
            vec!["01:10.1"],
            "0000:01:10.1 is requested from a pool already, or is not a hostdev or interface; it has no other",
        ),
        (
            vec![],
            vec![nowhere],
            vec![],
            "0000:01:10.0 has no PCI address in the guest; `virsh edit` once, so that libvirt gives it one",
        ),
    ] {
        let host = Host::with_vfs(2);
        let xml = definition("web", &requests, &devices);
        host.define("web", &xml);
        host.vfpool(&[&["adopt", "web", "net"], arguments.as_slice()].concat())
            .refused(&format!("guest 'web': {reason}"));
        assert_eq!((host.definition("web"), host.virsh_trace()), (xml, vec![]), "{reason}");
    }
    let host = Host::with_vfs(2);
    let hidden = hostdev_at(&vf(0), 0, "").replace(
        "<address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>",
        "<address type='unassigned'/>",
    );
    host.define("web", &definition("web", &[], &[hidden]));
    host.vfpool(&["adopt", "web", "net"]).refused(
        "guest 'web': 0000:01:10.0 is reserved for it, and the guest does not see it. Remove <address \
         type='unassigned'/> with `virsh edit web` if the guest is to have it",
    );
    std::fs::remove_file(host.path("etc/libvirt/qemu/web.xml")).unwrap();
    host.vfpool(&["adopt", "web", "net"]).refused_saying(&["guest 'web': no guest 'web' is defined on this host"]);
    host.vfpool(&["adopt", "web", "lan"]).refused_saying(&["guest 'web': There is no pool 'lan': "]);
    assert_eq!(host.vfpool(&["adopt", "web", "net", "1:2"]).code, Some(2));
    host.define("web", &definition("web", &[], &two));
    host.virsh_faults("metadata fail Timed out during operation: cannot acquire state change lock");
    host.vfpool(&["adopt", "web", "net", "01:10.0"])
        .refused("guest 'web': virsh metadata: Timed out during operation: cannot acquire state change lock");
    assert_eq!(host.queue(), [""; 0]);
}

#[test]
fn a_device_of_a_pool_is_attached_and_taken_away_again() {
    for (flags, element) in [
        (vec!["--config"], "<hostdev "),
        (vec!["--config", "--interface"], "<interface type='hostdev'"),
        (vec!["--interface", "52:54:00:aa:00:77", "--config"], "<mac address='52:54:00:aa:00:77'/>"),
    ] {
        let host = host();
        let before = definition("web", &[], &[]);
        host.define("web", &before);
        host.define("mail", &asking("mail", &vf(1)));
        host.reconcile().ok();
        host.vfpool(&["reconcile", "--queued"]).ok();
        host.virsh_trace();
        let xml = edited(&host, &[&["attach", "web", "net"], flags.as_slice()].concat());
        assert!(xml.contains(element), "{xml}");
        assert_eq!(host.points_at("web"), [vf(2)], "the one that is free, and nobody is parked at");
        assert_eq!(host.virsh_trace(), ["attach-device web", "metadata web --set"]);
        host.runs("web");
        host.stops("web");
        // Every device is taken, or parked at; there is still one to point at.
        let _ = std::fs::remove_dir_all(host.path("run/vfpool/queue"));
        edited(&host, &["attach", "web", "net", "--config"]);
        assert_eq!(host.points_at("web").len(), 2);
        host.vfpool(&["detach", "web", "net", "--config"])
            .refused_saying(&["guest 'web': it has several devices (0000:01:10.", "Name one after the pool"]);
        let first = host.points_at("web").into_iter().find(|address| *address != vf(2)).unwrap();
        host.virsh_trace();
        edited(&host, &["detach", "web", "net", &first, "--config"]);
        assert_eq!(host.virsh_trace(), ["detach-device web", "metadata web --set"]);
        assert_eq!(host.points_at("web"), [vf(2)]);
        assert_eq!(edited(&host, &["detach", "web", "net", "--config"]), before, "{flags:?}");
        assert_eq!(host.virsh_trace(), ["detach-device web", "metadata web --remove"]);
        host.vfpool(&["detach", "web", "net", "--config"])
            .refused("guest 'web': its definition requests no such device from pool 'net'");
    }
}

#[test]
fn a_request_is_taken_away_by_the_address_in_the_guest_and_without_its_device() {
    let host = Host::with_vfs(3);
    let devices = [interface_at(&vf(0), 0), interface_at(&vf(0), 1)];
    host.define("web", &definition("web", &[("net", 0), ("net", 1), ("lan", 2)], &devices));
    edited(&host, &["detach", "web", "net", &slot(1), "--config"]);
    assert_eq!(host.definition("web"), definition("web", &[("net", 0), ("lan", 2)], &devices[..1]));
    // The device is gone, and so is the pool.
    edited(&host, &["detach", "web", "lan", "--config"]);
    assert_eq!(host.definition("web"), definition("web", &[("net", 0)], &devices[..1]));
}

#[test]
fn what_cannot_be_attached_or_taken_away_is_told() {
    let host = Host::with_vfs(1);
    host.define("web", &definition("web", &[], &[]));
    for wrong in [
        &["attach", "web", "net"] as &[&str],
        &["detach", "web", "net"],
        &["attach", "web", "--config"],
        &["detach", "web", "net", "x", "--config"],
    ] {
        assert_eq!(host.vfpool(wrong).code, Some(2), "{wrong:?}");
    }
    host.vfpool(&["attach", "no", "net", "--config"]).refused_saying(&["guest 'no': no guest 'no' is defined"]);
    host.vfpool(&["attach", "web", "lan", "--config"]).refused_saying(&["guest 'web': There is no pool 'lan'"]);
    host.vfpool(&["detach", "web", "lan", "--config"])
        .refused("guest 'web': its definition requests no such device from pool 'lan'");
    host.virsh_faults("attach-device fail internal error: No more available PCI slots");
    host.vfpool(&["attach", "web", "net", "--config"])
        .refused("guest 'web': virsh attach-device: internal error: No more available PCI slots");
    host.virsh_faults("detach-device fail no");
    edited(&host, &["attach", "web", "net", "--config"]);
    let xml = host.definition("web");
    host.vfpool(&["attach", "web", "net", "--config"])
        .refused("guest 'web': pool 'net' has no device on this host that it does not have yet; see `vfpool setup`");
    host.vfpool(&["detach", "web", "net", "--config"]).refused("guest 'web': virsh detach-device: no");
    assert_eq!(host.definition("web"), xml);
    // An editor that is at work is waited for, but not for ever.
    host.settings("<deadline seconds='1'/>");
    let editing = std::fs::File::options().write(true).open(host.path("run/vfpool/editing")).unwrap();
    fs2::FileExt::lock_exclusive(&editing).unwrap();
    for command in
        [["adopt", "web", "net", "01:10.0"], ["attach", "web", "net", "--config"], ["detach", "web", "net", "--config"]]
    {
        host.vfpool(&command).refused("guest 'web': Another vfpool has been editing definitions for 1 s");
    }
    host.vfpool(&["reconcile"]).refused("Another vfpool has been editing definitions for 1 s");
    host.virsh_faults("");
    drop(editing);
    edited(&host, &["detach", "web", "net", "--config"]);
}

#[test]
fn an_option_rom_is_shown_and_hidden() {
    let boot = "<boot order='1'/>";
    for (device, hidden, commands) in [
        (
            hostdev_at(&vf(0), 0, ""),
            hostdev_at(&vf(0), 0, "").replace("</hostdev>", "  <rom bar='off'/>\n    </hostdev>"),
            vec!["metadata web --set moving", "detach-device web", "attach-device web"],
        ),
        (
            hostdev_at(&vf(0), 0, "<rom bar='on' file='/x.rom'/>"),
            hostdev_at(&vf(0), 0, "<rom bar='off' file='/x.rom'/>"),
            vec!["metadata web --set moving", "detach-device web", "attach-device web"],
        ),
        (
            hostdev_at(&vf(0), 0, boot),
            hostdev_at(&vf(0), 0, boot).replace("</hostdev>", "  <rom bar='off'/>\n    </hostdev>"),
            vec!["metadata web --set moving", "attach-device web", "detach-device web", "attach-device web"],
        ),
        (
            interface_at(&vf(0), 0),
            interface_at(&vf(0), 0).replace("</interface>", "  <rom bar='off'/>\n    </interface>"),
            vec!["metadata web --set moving", "detach-device web", "attach-device web"],
        ),
        (
            hostdev_at(&vf(0), 0, "<rom bar='off'/>"),
            hostdev_at(&vf(0), 0, "<rom bar='off'/>"),
            vec!["metadata web --set"],
        ),
    ] {
        let host = Host::with_vfs(2);
        host.put(&format!("sys/devices/pci0000:00/{}/rom", vf(0)), "");
        host.define("web", &definition("web", &[], std::slice::from_ref(&device)));
        let outcome = host.vfpool(&["adopt", "web", "net", "--rom-off"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert_eq!(
            outcome.stdout,
            "guest 'web': 0000:01:10.0 (in the guest at 0000:00:05.0, option ROM off) is now any device of pool 'net'\n"
        );
        assert_eq!(host.virsh_trace(), commands);
        // The reconciler tidies up.
        host.reconcile().ok();
        assert_eq!(host.definition("web"), definition("web", &[("net", 0)], &[hidden]));
    }
    let host = Host::with_vfs(2);
    host.put(&format!("sys/devices/pci0000:00/{}/rom", vf(0)), "");
    host.define("web", &definition("web", &[], &[hostdev_at(&vf(0), 0, "")]));
    let shown = ", with its option ROM (--rom-off hides it)";
    assert!(host.vfpool(&["adopt", "web", "net"]).stdout.contains(shown));
    host.define("web", &definition("web", &[], &[]));
    assert!(host.vfpool(&["attach", "web", "net", "--config"]).stdout.contains(&format!("0000:01:10.0{shown}")));
    let attached = host.vfpool(&["attach", "web", "net", "--config", "--rom-off"]);
    assert!(attached.stdout.contains("0000:01:10.1, option ROM off"), "{}", attached.stdout);
    assert!(host.definition("web").contains("<rom bar='off'/>"));
}

#[test]
fn an_adoption_that_was_killed_is_ended_by_the_next_run() {
    let device = hostdev_at(&vf(0), 0, "<boot order='1'/>");
    let hidden = device.replace("</hostdev>", "  <rom bar='off'/>\n    </hostdev>");
    for number in 1..=4 {
        for fault in ["killed", "kills"] {
            let host = Host::with_vfs(2);
            host.define("web", &definition("web", &[], std::slice::from_ref(&device)));
            host.virsh_faults(&format!("{number} {fault}"));
            assert_eq!(host.vfpool(&["adopt", "web", "net", "--rom-off"]).code, None);
            host.virsh_faults("");
            host.reconcile().ok();
            let xml = host.definition("web");
            let asked = definition("web", &[("net", 0)], std::slice::from_ref(&hidden));
            let asked_only = definition("web", &[("net", 0)], std::slice::from_ref(&device));
            let plain = definition("web", &[], std::slice::from_ref(&device));
            assert!([asked, asked_only, plain].contains(&xml), "{fault} at {number}: {xml}");
        }
    }
}

/// A host whose network `lan` has the VFs of the pool `net`, with a VLAN; `web` has an interface on it.
fn networked() -> (Host, String) {
    let host = Host::with_vfs(2);
    host.put(
        "etc/libvirt/qemu/networks/lan.xml",
        "<network><name>lan</name><forward mode='hostdev' managed='yes'><pf dev='eth3'/></forward><vlan><tag \
         id='42'/></vlan></network>",
    );
    let nic = interface_at(&vf(0), 0);
    let (start, end) = (nic.find("      <source>").unwrap(), nic.find("</source>\n").unwrap() + "</source>\n".len());
    let nic = format!("{}      <source network='lan'/>\n{}", &nic[..start], &nic[end..]);
    let (start, end) = (nic.find("      <vlan>").unwrap(), nic.find("</vlan>\n").unwrap() + "</vlan>\n".len());
    let nic = format!("{}{}", &nic[..start], &nic[end..]);
    let nic = nic.replace("type='hostdev' managed='yes'", "type='network'");
    host.define("web", &definition("web", &[], &[nic]));
    let xml = host.definition("web");
    (host, xml)
}

#[track_caller]
fn has_moved_over(host: &Host, when: &str) {
    let xml = host.definition("web");
    assert_eq!(host.points_at("web").len(), 1, "{when}: {xml}");
    for kept in ["52:54:00:aa:00:00", "<tag id='42'/>", "slot='0x05'", "ua-net0", "vfpool:device pool=\"net\""] {
        assert!(xml.contains(kept), "{when}: {kept}: {xml}");
    }
    assert!(!xml.contains("type='network'") && !xml.contains("&lt;"), "{when}: {xml}");
}

#[test]
fn an_interface_on_a_network_in_whose_place_the_pool_is_used_is_adopted() {
    let (host, _) = networked();
    let outcome = host.vfpool(&["adopt", "web", "net"]);
    assert_eq!(
        outcome.stdout,
        "guest 'web': its interface on network 'lan' (in the guest at 0000:00:05.0) is now any device of pool 'net'\n",
        "{}",
        outcome.stderr
    );
    host.reconcile().ok();
    has_moved_over(&host, "adopted");
    host.runs("web");
    // `check` says so for each guest that still uses the network.
    let (host, _) = networked();
    let check = host.vfpool(&["check", "--json"]).stdout;
    assert!(check.contains("run `vfpool adopt web net && virsh net-undefine lan`"), "{check}");
    // Its address in the guest may be the one of another device on the host.
    let (host, xml) = networked();
    let (start, end) = xml.split_at(xml.find("  </devices>").unwrap());
    host.define("web", &format!("{start}{}{end}", hostdev_at("0000:00:05.0", 1, "")));
    assert_eq!(
        host.vfpool(&["adopt", "web", "net", "00:05.0"]).stdout,
        "guest 'web': 0000:00:05.0 (in the guest at 0000:00:06.0) is now any device of pool 'net'\n"
    );
    assert!(host.definition("web").contains("type='network'"));
    // Another network's interface is none of the pool's.
    let (host, xml) = networked();
    host.define("web", &xml.replace("network='lan'", "network='default'"));
    host.vfpool(&["adopt", "web", "net"]).refused("guest 'web': it has no PCI device. Add one with `vfpool attach`");
}

#[test]
fn an_adoption_of_an_interface_that_was_killed_is_ended_by_the_next_run() {
    for number in 1..=3 {
        for fault in ["killed", "kills"] {
            let when = format!("{fault} at {number}");
            let (host, before) = networked();
            host.virsh_faults(&format!("{number} {fault}"));
            assert_eq!(host.vfpool(&["adopt", "web", "net"]).code, None, "{when}");
            host.virsh_faults("");
            host.reconcile().ok();
            if (number, fault) == (1, "killed") {
                assert_eq!(host.definition("web"), before, "{when}");
            } else {
                has_moved_over(&host, &when);
            }
        }
    }
}

#[test]
fn what_virt_install_and_virt_manager_write_is_adopted() {
    // virt-install --hostdev 01:10.1 and --host-device; virt-manager's "PCI Host Device" with its ROM BAR; virt-install
    // --network type=hostdev,source.address...: as they hand it to libvirt, with other quotes and numbers than its own.
    let own = "<address type=\"pci\" domain=\"0x0000\" bus=\"0x00\" slot=\"0x05\" function=\"0x0\"/>";
    for device in [
        "<hostdev mode=\"subsystem\" type=\"pci\" managed=\"yes\">\n      <source>\n        <address domain=\"0\" \
         bus=\"1\" slot=\"16\" function=\"1\"/>\n      </source>\n      OWN\n    </hostdev>",
        "<hostdev mode=\"subsystem\" type=\"pci\" managed=\"yes\">\n      <source>\n        <address domain=\"0x0000\" \
         bus=\"0x01\" slot=\"0x10\" function=\"0x1\"/>\n      </source>\n      <rom \
         bar=\"on\"/>\n      OWN\n    </hostdev>",
        "<interface type=\"hostdev\" managed=\"yes\">\n      <source>\n        <address type=\"pci\" domain=\"0x0000\" \
         bus=\"0x01\" slot=\"0x10\" function=\"0x1\"/>\n      </source>\n      <mac \
         address=\"52:54:00:5c:3a:11\"/>\n      OWN\n    </interface>",
    ] {
        let host = Host::with_vfs(3);
        let device = format!("    {}\n", device.replace("OWN", own));
        host.define("web", &definition("web", &[], std::slice::from_ref(&device)));
        let xml = edited(&host, &["adopt", "web", "net"]);
        assert_eq!(xml, definition("web", &[("net", 0)], std::slice::from_ref(&device)));
        // It is moved, and started with another one, as any other.
        host.runs_with("db", &vf(1));
        let now = host.vfpool_with(&["rewrite", "--dry-run"], xml.as_bytes()).run().stdout;
        assert_eq!(fakehost::devices_of(&now), [vf(0)]);
        host.reconcile().ok();
        assert_eq!(host.points_at("web"), [vf(0)]);
    }
}
