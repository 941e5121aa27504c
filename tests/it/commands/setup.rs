//! Pools set up by `vfpool setup` and by udev's helper.

use fakehost::{Device, Host, NVME, PF, Snapshot, asking, vf};
use std::fs;

const VFS: [&str; 3] = ["0000:01:10.0", "0000:01:10.2", "0000:01:10.4"];
const NVME_VF: &str = "0000:06:00.1";

/// A PF of igb with eth3, down, that can have three VFs, and one of nvme that can have one.
fn host_with(change: impl Fn(Device) -> Device) -> Host {
    let host = Host::new();
    let places = [(VFS[0], 11), (VFS[1], 12), (VFS[2], 13)];
    host.add(change(Device::new(PF).id("8086:10c9").driver("igb").group(8).vfs("8086:10ca", &places)));
    host.netdev(PF, "eth3", false, &[]);
    let nvme = Device::new(NVME).id("1b36:0010").class(0x01_0802).driver("nvme").group(20);
    host.add(change(nvme.vfs("1b36:0010", &[(NVME_VF, 21)])));
    host.ip_works();
    host
}

fn host() -> Host {
    host_with(|device| device)
}

/// Writes a pool's file with these lines from line 4 on.
fn pool(host: &Host, name: &str, lines: &str) {
    let text =
        format!("<pool>\n<name>{name}</name>\n<forward mode='hostdev' managed='yes'>\n{lines}\n</forward>\n</pool>\n");
    host.put(&format!("etc/vfpool/pools.d/{name}.xml"), text);
}

/// The drivers of the VFs that there are, `-` for none.
fn drivers(host: &Host) -> Vec<String> {
    let vfs = VFS.iter().filter(|vf| host.path(&format!("sys/bus/pci/devices/{vf}")).exists());
    vfs.map(|vf| host.driver(vf).unwrap_or_else(|| "-".to_owned())).collect()
}

fn attribute(host: &Host, device: &str, name: &str) -> String {
    host.get(&format!("sys/bus/pci/devices/{device}/{name}")).unwrap()
}

/// The file of a pool as messages name it.
fn file(host: &Host, name: &str) -> String {
    host.path(&format!("etc/vfpool/pools.d/{name}.xml")).display().to_string()
}

/// What was changed in sysfs since the last time, without the folders.
fn writes(host: &Host) -> Vec<String> {
    let writes = host.trace().into_iter().filter_map(|line| line.strip_prefix("write sys/").map(str::to_owned));
    writes
        .map(|line| line.rsplit('/').take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("/"))
        .collect()
}

#[test]
fn vfs_are_made_and_ready() {
    let host = host();
    pool(&host, "net", "<pf dev='eth3'/>");
    let outcome = host.vfpool(&["setup"]).ok();
    assert_eq!(
        outcome.stderr.lines().collect::<Vec<_>>(),
        [
            "vfpool: eth3: down -> up (pool 'net')",
            "vfpool: 0000:01:00.0: host drivers are kept from its new VFs (pool 'net')",
            "vfpool: 0000:01:00.0: 0 VFs -> 3 (pool 'net')",
            "vfpool: 0000:01:10.0: no driver -> vfio-pci (pool 'net')",
            "vfpool: 0000:01:10.2: no driver -> vfio-pci (pool 'net')",
            "vfpool: 0000:01:10.4: no driver -> vfio-pci (pool 'net')",
        ]
    );
    assert_eq!(drivers(&host), ["vfio-pci"; 3]);
    assert_eq!(host.get("sys/class/net/eth3/flags").as_deref(), Some("0x1003"));
    assert_eq!(host.recorded("queue/reconcile"), ["setup"]);
    let writes = writes(&host);
    assert_eq!(
        writes[..3],
        [
            "0000:01:00.0/sriov_drivers_autoprobe 0",
            "0000:01:00.0/sriov_numvfs 3",
            "0000:01:10.0/driver_override vfio-pci"
        ]
    );
    // The PF that is in no pool.
    assert_eq!(attribute(&host, NVME, "sriov_numvfs"), "0");
    assert_eq!(attribute(&host, NVME, "sriov_drivers_autoprobe"), "1");

    let ready = host.snapshot();
    fs::remove_file(host.path("run/vfpool/queue/reconcile/setup")).unwrap();
    host.vfpool(&["setup"]).ok_silently();
    host.assert_as(&ready, "after the second setup");
    assert_eq!(host.recorded("queue/reconcile"), [""; 0]);
}

#[test]
fn each_pf_gets_the_number_of_vfs_that_its_line_says() {
    for (line, before, after) in [
        ("<pf dev='eth3'/>", 0, 3),
        ("<pf dev='eth3'/>", 2, 2),
        ("<pf dev='eth3' vfs='max'/>", 0, 3),
        ("<pf dev='eth3' vfs='max'/>", 2, 3),
        ("<pf dev='eth3' vfs='2'/>", 0, 2),
        ("<pf dev='eth3' vfs='2'/>", 2, 2),
        ("<pf dev='eth3' vfs='1'/>", 3, 1),
        ("<pf address='01:00.0' vfs='2'/>", 1, 2),
    ] {
        let host = host();
        host.make_vfs(PF, &vec![Some("igbvf"); before]);
        pool(&host, "net", line);
        host.vfpool(&["setup"]).ok();
        assert_eq!(drivers(&host), vec!["vfio-pci"; after], "{line}, {before}");
        assert_eq!(attribute(&host, PF, "sriov_numvfs"), after.to_string(), "{line}, {before}");
        let numbers: Vec<String> = writes(&host).into_iter().filter(|line| line.contains("numvfs")).collect();
        match (before, after) {
            _ if before == after => assert_eq!(numbers, [""; 0]),
            (0, _) => assert_eq!(numbers, [format!("{PF}/sriov_numvfs {after}")]),
            _ => assert_eq!(numbers, [format!("{PF}/sriov_numvfs 0"), format!("{PF}/sriov_numvfs {after}")]),
        }
    }
}

#[test]
fn more_vfs_than_the_card_can_have_are_an_error() {
    let host = host();
    host.make_vfs(PF, &[Some("igbvf")]);
    pool(&host, "net", "<pf dev='eth3' vfs='4'/>\n<pf address='06:00.0'/>");
    host.vfpool(&["setup"]).refused(&format!(
        "Cannot bring 0000:01:00.0 from 1 to 4 VFs (<pf dev='eth3' vfs='4'> in {} line 4): it can have 3. Ask for \
         vfs='3' there, or allow more in the card's firmware",
        file(&host, "net")
    ));
    assert_eq!(drivers(&host), ["vfio-pci"], "those that are there are made ready all the same");
    assert_eq!(host.driver(NVME_VF).as_deref(), Some("vfio-pci"));
}

#[test]
fn what_is_missing_does_not_keep_the_rest_from_being_set_up() {
    let host = host();
    pool(&host, "first", "<pf dev='eth9'/>");
    pool(&host, "net", "<pf dev='eth3'/>\n<pf address='09:00.0'/>");
    host.put("etc/vfpool/pools.d/odd.xml", "<pool>\n<nme>odd</nme></pool>");
    pool(&host, "disk", "<pf address='06:00.0'/>");
    let outcome = host.vfpool(&["setup"]);
    assert_eq!(outcome.code, Some(1));
    for part in [
        format!("<nme> in {} line 2: this element is not known here", file(&host, "odd")),
        format!(
            "<pf dev='eth9'> in {} line 4 (pool 'first'): there is no network interface eth9.",
            file(&host, "first")
        ),
        format!("<pf address='09:00.0'> in {} line 5 (pool 'net'): there is no PCI function", file(&host, "net")),
    ] {
        let lines = outcome.stderr.lines().filter(|line| line.contains(&part)).count();
        assert_eq!(lines, 1, "{part} is not once in {}", outcome.stderr);
    }
    assert_eq!(drivers(&host), ["vfio-pci"; 3]);
    assert_eq!(host.driver(NVME_VF).as_deref(), Some("vfio-pci"));
}

#[test]
fn only_the_pfs_that_are_named() {
    for name in ["eth3", "0000:01:00.0", "01:00.0", "pci_0000_01_00_0"] {
        let host = host();
        pool(&host, "net", "<pf dev='eth3'/>\n<pf dev='eth9'/>\n<pf address='06:00.0'/>");
        host.vfpool(&["setup", name]).ok();
        assert_eq!(drivers(&host), ["vfio-pci"; 3], "{name}");
        assert_eq!(attribute(&host, NVME, "sriov_numvfs"), "0", "{name}");
    }
    let host = host();
    pool(&host, "net", "<pf dev='eth3'/>");
    let before = host.snapshot();
    for name in ["eth9", "06:00.0", "x/../y", ""] {
        host.vfpool(&["setup", name]).refused(&format!(
            "{name} is no PF of any pool in {}. Name one by network interface or PCI address, or add it there",
            host.path("etc/vfpool/pools.d").display()
        ));
    }
    host.assert_as(&before, "nothing was named");
}

#[test]
fn vfs_in_use_are_never_taken_away() {
    let line = "<pf dev='eth3' vfs='2'/>";
    let at = |host: &Host| {
        format!("Cannot bring 0000:01:00.0 from 3 to 2 VFs ({line} in {} line 4)", file(host, "net"))
            .replace("/> in", "> in")
    };
    let with = |prepare: &dyn Fn(&Host), why: &str| {
        let host = host();
        host.make_vfs(PF, &[Some("vfio-pci"), Some("vfio-pci"), Some("igbvf")]);
        pool(&host, "net", line);
        prepare(&host);
        let outcome = host.vfpool(&["setup"]);
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        let expected = format!("vfpool: {}: {why}, then run `vfpool setup`", at(&host));
        assert_eq!(outcome.stderr.lines().last(), Some(expected.as_str()), "{}", outcome.stderr);
        assert_eq!(attribute(&host, PF, "sriov_numvfs"), "3", "{why}");
        host
    };
    let claimed = with(&|host| drop(host.guest("web", VFS[1]).prepare().ok()), "guest 'web' has 0000:01:10.2. Stop it");
    assert_eq!(drivers(&claimed), ["vfio-pci"; 3]);
    with(
        &|host| {
            host.process(77, 1, 5);
            host.opens_group(77, 12);
        },
        "0000:01:10.2 is in use: process 77 (qemu-kvm) uses it through VFIO. Stop process 77 (qemu-kvm)",
    );
    with(
        &|host| host.opens_itself(5003, VFS[0]),
        "0000:01:10.0 is in use: process 5003 (qemu-kvm) uses it through VFIO. Stop process 5003 (qemu-kvm)",
    );
    let carrying = with(
        &|host| host.netdev(VFS[2], "eth3v2", true, &["192.0.2.7"]),
        "0000:01:10.4 is in use: eth3v2 is up and has the address 192.0.2.7. Take eth3v2 down or its address away",
    );
    assert_eq!(drivers(&carrying), ["vfio-pci", "vfio-pci", "igbvf"]);
    // Once the guest has stopped, it is done.
    claimed.release("web", "").ok();
    claimed.vfpool(&["setup"]).ok();
    assert_eq!(drivers(&claimed), ["vfio-pci"; 2]);
}

#[test]
fn vfs_of_guests_and_of_the_host_stay_where_they_are() {
    let host = host();
    host.make_vfs(PF, &[Some("igbvf"), Some("igbvf"), Some("igbvf")]);
    host.netdev(VFS[0], "eth3v0", false, &[]);
    host.stack("eth3v0", "master", "br0");
    host.netdev(VFS[2], "eth3v2", true, &[]);
    pool(&host, "net", "<pf dev='eth3'/>");
    host.guest("web", VFS[1]).prepare().ok();
    host.vfpool(&["setup"]).ok_saying(
        "vfpool: warning: 0000:01:10.0 (pool 'net') stays with the host: eth3v0 belongs to br0. Take eth3v0 out of \
         br0, then run `vfpool setup`",
    );
    // One that is merely up may have its address in a moment.
    host.vfpool(&["setup"]).ok_saying("0000:01:10.4 (pool 'net') stays with the host: eth3v2 is up. Take eth3v2 down");
    assert_eq!(drivers(&host), ["igbvf"; 3]);
    host.settings("<allow address='01:10.0'/><allow address='01:10.4'/>");
    host.vfpool(&["setup"]).ok();
    assert_eq!(drivers(&host), ["vfio-pci", "igbvf", "vfio-pci"]);
}

#[test]
fn old_kernels() {
    type Change = fn(Device) -> Device;
    for (name, change) in [
        ("no sriov_drivers_autoprobe", Device::without_autoprobe as Change),
        ("no driver_override", Device::without_override),
        ("neither", |device| device.without_autoprobe().without_override()),
    ] {
        let host = host_with(change);
        // An identical VF that is in no pool, and must not stay grabbed.
        host.add(change(Device::new("0000:05:00.0").id("8086:10ca").group(30)));
        pool(&host, "net", "<pf dev='eth3'/>\n<pf address='06:00.0'/>");
        host.vfpool(&["setup"]).ok();
        assert_eq!(drivers(&host), ["vfio-pci"; 3], "{name}");
        assert_eq!(host.driver(NVME_VF).as_deref(), Some("vfio-pci"), "{name}");
        assert_eq!(host.driver(NVME).as_deref(), Some("nvme"), "{name}");
        assert_eq!(host.driver("0000:05:00.0"), None, "{name}");
        let ready = host.snapshot();
        host.vfpool(&["setup"]).ok_silently();
        host.assert_as(&ready, name);
    }
}

/// Without the dynamic ids of drivers. The kernel shows no list of them, so that after a kill nobody can tell ours from
/// one that the admin gave.
fn sysfs(host: &Host) -> Snapshot {
    host.snapshot().into_iter().filter(|(path, _)| path.starts_with("sys")).collect()
}

#[test]
fn killed_anywhere_the_next_run_completes_it() {
    type Make = fn() -> Host;
    let fresh: Make = || {
        let host = host();
        pool(&host, "net", "<pf dev='eth3'/>");
        host
    };
    let other_number: Make = || {
        let host = host();
        host.make_vfs(PF, &[Some("igbvf"), Some("vfio-pci"), None]);
        pool(&host, "net", "<pf dev='eth3' vfs='2'/>");
        host
    };
    let old_kernel: Make = || {
        let host = host_with(|device| device.without_autoprobe().without_override());
        pool(&host, "net", "<pf dev='eth3' vfs='2'/>");
        host
    };
    for make in [fresh, other_number, old_kernel] {
        let host = make();
        host.vfpool(&["setup"]).ok();
        let ready = sysfs(&host);
        let steps = host.trace().len();
        for step in 1..=steps {
            for after in [false, true] {
                let host = make();
                let call = host.command(&["setup"]);
                let outcome = if after { call.killed_after(step) } else { call.killed_at(step) }.run();
                assert_eq!(outcome.code, None, "{step}");
                host.trace();
                host.vfpool(&["setup"]).ok();
                let when = if after { "after" } else { "before" };
                assert!(sysfs(&host) == ready, "killed {when} step {step}: {:?}", sysfs(&host));
            }
        }
    }
}

#[test]
fn many_at_once_do_it_once() {
    for _ in 0..4 {
        let host = host();
        pool(&host, "net", "<pf dev='eth3' vfs='2'/>\n<pf address='06:00.0'/>");
        host.make_vfs(PF, &[Some("igbvf"), Some("igbvf"), None]);
        let calls: Vec<_> = (0..8).map(|_| host.command(&["setup"]).spawn()).collect();
        for call in calls {
            call.wait().ok();
        }
        assert_eq!(drivers(&host), ["vfio-pci"; 2]);
        assert_eq!(host.driver(NVME_VF).as_deref(), Some("vfio-pci"));
        let writes = writes(&host);
        let count = |what: &str| writes.iter().filter(|line| line.contains(what)).count();
        assert_eq!((count("numvfs"), count("drivers_probe"), count("unbind")), (3, 3, 0), "{writes:?}");
    }
}

#[test]
fn what_all_vfs_lack_is_told_once() {
    let host = Host::new();
    host.add(Device::new(PF).id("8086:10c9").driver("igb").vfs("8086:10ca", &[(VFS[0], 11), (VFS[1], 12)]));
    host.put(&format!("hw/sriov/{PF}"), format!("{} 8086:10ca 020000 -\n{} 8086:10ca 020000 -", VFS[0], VFS[1]));
    pool(&host, "net", "<pf address='01:00.0'/>");
    let outcome = host.vfpool(&["setup"]);
    assert_eq!(outcome.stderr.lines().filter(|line| line.contains("Cannot")).count(), 1, "{}", outcome.stderr);
    outcome.refused_saying(&[
        "Cannot bind 0000:01:10.0 (pool 'net') to vfio-pci: 0000:01:10.0 has no IOMMU group: ",
        "the IOMMU is off. See `vfpool check`",
    ]);
    assert_eq!(drivers(&host), ["-"; 2]);

    let host = self::host();
    host.vfio_is_a_module("exit 1");
    pool(&host, "net", "<pf dev='eth3'/>");
    let outcome = host.vfpool(&["setup"]);
    assert_eq!(outcome.stderr.lines().filter(|line| line.contains("Cannot")).count(), 1, "{}", outcome.stderr);
    outcome.refused_saying(&["Cannot load the module vfio-pci with "]);
    fs::remove_file(host.path("sbin/modprobe")).unwrap();
    fs::rename(host.path("hw/vfio-pci"), host.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    host.vfpool(&["setup"]).ok();
    assert_eq!(drivers(&host), ["vfio-pci"; 3]);
}

#[test]
fn a_pf_without_its_driver_is_told() {
    let host = host();
    host.move_to(PF, None);
    pool(&host, "net", "<pf address='01:00.0'/>\n<pf address='06:00.0'/>");
    host.vfpool(&["setup"]).refused(&format!(
        "Cannot bring 0000:01:00.0 from 0 to 3 VFs (<pf address='01:00.0'> in {} line 4): it is on no driver, and only \
         the PF's own driver creates VFs. Bind it to its own driver, then run `vfpool setup`",
        file(&host, "net")
    ));
    assert_eq!(host.driver(NVME_VF).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_pf_that_a_guest_has_is_left_to_it() {
    let host = host();
    pool(&host, "net", "<pf address='01:00.0'/>");
    let web = host.guest("web", PF);
    web.prepare().ok();
    host.libvirt_detaches(PF);
    let running = host.snapshot();
    host.vfpool(&["setup"]).ok_saying("0000:01:00.0 is left as it is: guest 'web' has the PF itself");
    host.assert_as(&running, "the guest runs");
}

#[test]
fn an_interface_that_stays_down_does_not_keep_its_vfs_from_being_made() {
    let host = host();
    pool(&host, "net", "<pf dev='eth3'/>");
    fs::remove_file(host.path("sbin/ip")).unwrap();
    host.vfpool(&["setup"]).refused_saying(&["Cannot bring up eth3 with ", "/sbin/ip: No such file", "Try it by hand"]);
    assert_eq!(drivers(&host), ["vfio-pci"; 3]);
}

#[test]
fn a_driver_that_hangs_holds_up_its_own_pf_only() {
    let host = host();
    host.settings("<deadline seconds='1'/>");
    pool(&host, "a", "<pf address='01:00.0' vfs='1'/>");
    pool(&host, "b", "<pf address='06:00.0'/>");
    host.faults("write hang sriov_numvfs 1");
    host.put(&format!("hw/sriov/{NVME}"), "");
    let outcome = host.vfpool(&["setup", "01:00.0"]);
    assert!(outcome.took.as_secs() < 10, "{:?}", outcome.took);
    outcome.refused_saying(&["Cannot write '1' to ", "/sriov_numvfs: the kernel has not come back from it for 2 s"]);
    // The write still hangs, and has the PF.
    host.vfpool(&["setup", "01:00.0"])
        .refused_saying(&["Cannot set up 0000:01:00.0: another `vfpool setup` has been at work"]);
    host.faults("");
    host.vfpool(&["setup", "01:00.0"]).ok();
    assert_eq!(drivers(&host), ["vfio-pci"]);
}

#[test]
fn a_listed_vf_is_bound_and_a_listed_function_is_not() {
    let host = host();
    host.make_vfs(PF, &[Some("igbvf"), Some("igbvf")]);
    host.add(Device::new("0000:02:00.0").group(9).driver("e1000e"));
    pool(
        &host,
        "some",
        "<address type='pci' bus='0x01' slot='0x10' function='0x2'/>\n<address type='pci' bus='2' slot='0' \
         function='0'/>",
    );
    host.vfpool(&["setup"]).ok();
    assert_eq!(drivers(&host), ["igbvf", "vfio-pci"]);
    assert_eq!(host.driver("0000:02:00.0").as_deref(), Some("e1000e"));
}

#[test]
fn a_libvirt_network_with_the_same_devices_is_told() {
    let network = |inside: &str| {
        format!(
            "<!--\nWARNING: THIS IS AN AUTO-GENERATED \
             FILE.\n-->\n\n<network>\n  <name>old</name>\n  <uuid>a6b49429</uuid>\n  <forward mode='hostdev' \
             managed='yes'>\n    <driver name='vfio'/>\n    {inside}\n  </forward>\n</network>\n"
        )
    };
    for (inside, shared) in [
        ("<pf dev='eth3'/>", "VFs of the PF eth3"),
        ("<address type='pci' domain='0x0000' bus='0x01' slot='0x10' function='0x2'/>", "0000:01:10.2"),
    ] {
        let host = host();
        host.make_vfs(PF, &[Some("vfio-pci"), Some("vfio-pci")]);
        pool(&host, "net", "<pf address='01:00.0'/>");
        host.put("etc/libvirt/qemu/networks/old.xml", network(inside));
        host.put(
            "etc/libvirt/qemu/networks/default.xml",
            "<network><name>default</name><forward mode='nat'/></network>",
        );
        host.put("etc/libvirt/qemu/networks/odd.xml", "<network");
        let outcome = host.vfpool(&["setup"]).ok_saying(&format!(
            "vfpool: warning: libvirt's network 'old' and pool 'net' both have {shared}, so a guest of one may get \
             what a guest of the other is to have."
        ));
        assert_eq!(outcome.stderr.matches("warning").count(), 1, "{}", outcome.stderr);
    }
    let host = host();
    pool(&host, "net", "<pf address='06:00.0'/>");
    host.put("etc/libvirt/qemu/networks/old.xml", network("<pf dev='eth3'/>"));
    assert!(!host.vfpool(&["setup"]).ok().stderr.contains("warning"));
}

#[test]
fn udev_only_notes_a_pf() {
    let host = host();
    pool(&host, "net", "<pf dev='eth3'/>");
    let before = host.snapshot();
    for other in [NVME, "0000:02:00.0", "0000:99:00.0"] {
        host.udev(&[other]).ok_silently();
    }
    assert_eq!(host.recorded("queue/setup"), [""; 0]);
    host.udev(&[PF]).ok_silently();
    assert_eq!(host.recorded("queue/setup"), [PF]);
    host.assert_as(&before, "after the event");
    host.vfpool(&["setup", "--queued"]).ok();
    assert_eq!(host.recorded("queue/setup"), [""; 0]);
    assert_eq!(drivers(&host), ["vfio-pci"; 3]);
}

#[test]
fn udev_binds_the_vfs_of_pools() {
    let host = host();
    pool(&host, "net", "<pf dev='eth3'/>");
    host.make_vfs(PF, &[Some("igbvf"), None, Some("igbvf")]);
    host.make_vfs(NVME, &[Some("nvme")]);
    host.guest("web", VFS[2]).prepare().ok();
    for vf in VFS.iter().chain([&NVME_VF]) {
        host.udev(&[vf]).ok();
    }
    assert_eq!(drivers(&host), ["vfio-pci", "vfio-pci", "igbvf"]);
    assert_eq!(host.driver(NVME_VF).as_deref(), Some("nvme"));
    assert_eq!(host.recorded("queue/setup"), [""; 0]);
    for (device, code) in [(VFS[0], 0), (NVME_VF, 1), (PF, 1), ("0000:99:00.0", 1)] {
        assert_eq!(host.udev(&["member", device]).code, Some(code), "{device}");
    }
}

#[test]
fn udev_leaves_to_the_unit_what_it_should_not_do() {
    // While the PF is being set up, its VFs are not for others.
    let host = host();
    pool(&host, "net", "<pf dev='eth3'/>");
    host.make_vfs(PF, &[Some("igbvf")]);
    host.put(&format!("run/vfpool/pfs/{PF}"), "");
    let lock = fs::File::open(host.path(&format!("run/vfpool/pfs/{PF}"))).unwrap();
    fs2::FileExt::lock_exclusive(&lock).unwrap();
    host.udev(&[VFS[0]]).ok_silently();
    assert_eq!(drivers(&host), ["igbvf"]);
    drop(lock);
    // What fails is tried again with more time.
    host.faults("write errno EIO drivers_probe");
    host.udev(&[VFS[0]]).refused_saying(&["drivers_probe", "Input/output error"]);
    assert_eq!(host.recorded("queue/setup"), [VFS[0]]);
    host.faults("");
    host.vfpool(&["setup", "--queued"]).ok();
    assert_eq!(drivers(&host), ["vfio-pci"]);
    // new_id would take other VFs, too.
    let host = host_with(Device::without_override);
    pool(&host, "net", "<pf dev='eth3'/>");
    host.make_vfs(PF, &[Some("igbvf")]);
    host.udev(&[VFS[0]]).ok_silently();
    assert_eq!((drivers(&host), host.recorded("queue/setup")), (vec!["igbvf".to_owned()], vec![VFS[0].to_owned()]));
    // A helper that hangs ends in time.
    let host = self::host();
    host.settings("<deadline seconds='1'/>");
    pool(&host, "net", "<pf dev='eth3'/>");
    host.make_vfs(PF, &[Some("igbvf")]);
    host.faults("write hang drivers/igbvf/unbind");
    let outcome = host.udev(&[VFS[0]]);
    assert!(outcome.took.as_secs() < 5, "{:?}", outcome.took);
    outcome.refused_saying(&["the kernel has not come back from it"]);
    host.faults("");
}

/// What a PF's own driver answers, what is done then, and that a second run leaves alone what it cannot change.
#[test]
#[allow(clippy::too_many_lines)] // a table
fn what_drivers_answer() {
    /// A situation: the driver's answers, faults, the pool's line, how many VFs there are, how many there are then, the
    /// exit status, what is said, and what the second run ends with.
    type Row = (&'static str, &'static str, &'static str, usize, usize, i32, &'static [&'static str], i32);
    const DMESG: &str = "See `dmesg` for the reason";
    let rows: [Row; 12] = [
        // It creates none while its interface is down, and says nothing (bnxt_en) or EINVAL (bnx2x).
        ("vfs-need-link nothing", "", "vfs='2'", 0, 2, 0, &["0000:01:00.0: 0 VFs -> 2 (pool 'net')"], 0),
        ("vfs-need-link EINVAL", "", "vfs='2'", 0, 2, 0, &["0000:01:00.0: 0 VFs -> 2 (pool 'net')"], 0),
        // It creates all it can (QAT), or fewer.
        (
            "vfs-at-least 3",
            "",
            "vfs='2'",
            0,
            3,
            0,
            &[
                "0000:01:00.0: 0 VFs -> 3, 2 were requested (pool 'net')",
                "warning: 0000:01:00.0 has 3 VFs, and <pf dev='eth3' vfs='2'> in ",
                " asks for 2: its driver igb creates no fewer. Ask for vfs='3' there",
            ],
            0,
        ),
        (
            "vfs-at-most 2",
            "",
            "vfs='max'",
            0,
            2,
            1,
            &[
                "0000:01:00.0: 0 VFs -> 2, 3 were requested (pool 'net')",
                " asks for 3: its driver igb created no more. See `dmesg` for the reason, or ask for vfs='2' there",
            ],
            0,
        ),
        // A driver without the call (mlx4_core, igb_uio); on old kernels the call is not there.
        (
            "no-vfs -",
            "",
            "",
            0,
            0,
            1,
            &["No such file or directory", "igb does not create VFs at run time. Set the number"],
            1,
        ),
        (
            "",
            "write errno ENOSYS sriov_numvfs",
            "",
            0,
            0,
            1,
            &["igb does not create VFs at run time. Set the number"],
            1,
        ),
        (
            "",
            "write errno EPERM sriov_numvfs",
            "",
            0,
            0,
            1,
            &["igb does not allow VFs. Enable them in the card's firmware"],
            1,
        ),
        ("", "write errno EOPNOTSUPP sriov_numvfs", "", 0, 0, 1, &["igb does not allow VFs"], 1),
        (
            "",
            "write errno ENOMEM sriov_numvfs",
            "",
            0,
            0,
            1,
            &[
                "Cannot allocate memory",
                "reserved no address space for the VFs. Enable SR-IOV and \"Above 4G",
                "pci=realloc",
            ],
            1,
        ),
        ("", "write errno EINVAL sriov_numvfs", "", 0, 0, 1, &["Invalid argument", DMESG], 1),
        // The number that there was is created again.
        (
            "",
            "write errno ENOMEM sriov_numvfs 3",
            "vfs='3'",
            2,
            2,
            1,
            &["0000:01:00.0: 0 VFs -> 2 (pool 'net')", "no address space for the VFs; the PF has 2 VFs again. Enable"],
            1,
        ),
        (
            "",
            "write errno ENOMEM sriov_numvfs 3\nwrite errno EIO sriov_numvfs 2",
            "vfs='3'",
            2,
            0,
            1,
            &["; the 2 VFs that it had are gone: Cannot write '2' to ", "Input/output error"],
            1,
        ),
    ];
    for (answers, faults, vfs, before, after, code, said, again) in rows {
        let case = format!("{answers}{faults} {vfs}");
        let host = host();
        host.driver_answers("igb", answers);
        host.make_vfs(PF, &vec![Some("vfio-pci"); before]);
        pool(&host, "net", format!("<pf dev='eth3' {vfs}/>").replace(" />", "/>").as_str());
        host.faults(faults);
        let outcome = host.vfpool(&["setup"]);
        assert_eq!(outcome.code, Some(code), "{case}: {}", outcome.stderr);
        for part in said {
            assert!(outcome.stderr.contains(part), "{case}: {part} is not in {}", outcome.stderr);
        }
        assert_eq!(attribute(&host, PF, "sriov_numvfs"), after.to_string(), "{case}");
        // Nothing says more than was read back.
        let mut logged = outcome.stderr.lines().filter_map(|line| line.split_once(" VFs -> "));
        let last = logged.next_back().map(|(_, rest)| rest.starts_with(&after.to_string()));
        assert!(last != Some(false), "{case}: {}", outcome.stderr);
        assert_eq!(drivers(&host), vec!["vfio-pci"; after], "{case}");
        if again == 0 {
            let ready = host.snapshot();
            host.trace();
            host.vfpool(&["setup"]).ok_silently();
            host.assert_as(&ready, &case);
            assert_eq!(host.trace().iter().filter(|line| line.contains("sriov_numvfs")).count(), 0, "{case}");
        } else {
            assert_eq!(host.vfpool(&["setup"]).code, Some(again), "{case}");
        }
    }
}

#[test]
fn a_result_is_forgotten_when_the_line_or_the_number_changes() {
    let host = host();
    host.driver_answers("igb", "vfs-at-most 2");
    pool(&host, "net", "<pf dev='eth3' vfs='3'/>");
    host.vfpool(&["setup"]).refused_saying(&["created no more"]);
    host.vfpool(&["setup"]).ok_silently();
    // Another number.
    pool(&host, "net", "<pf dev='eth3' vfs='1'/>");
    host.vfpool(&["setup"]).ok();
    assert_eq!(attribute(&host, PF, "sriov_numvfs"), "1");
    pool(&host, "net", "<pf dev='eth3' vfs='3'/>");
    host.vfpool(&["setup"]).refused_saying(&["created no more"]);
    // The driver was loaded again.
    host.remove_vfs(PF);
    host.put("hw/drivers/igb", "8086:10c9\nremoves-vfs");
    host.vfpool(&["setup"]).ok();
    assert_eq!(attribute(&host, PF, "sriov_numvfs"), "3");
}

#[test]
fn a_pf_that_can_have_no_vfs_is_an_error() {
    for (driver, line, remedy) in [
        ("igb", "<pf dev='eth3'/>", "Allow VFs in the card's firmware or in the parameters of its driver"),
        ("igb", "<pf dev='eth3' vfs='max'/>", "Allow VFs in"),
        ("i915", "<pf address='01:00.0' vfs='7'/>", "Boot with i915.max_vfs=7 on the kernel's command line"),
    ] {
        let host = host();
        host.put("hw/drivers/i915", "");
        host.put("sys/bus/pci/drivers/i915/bind", "");
        host.move_to(PF, Some(driver));
        host.put_attribute(PF, "sriov_totalvfs", "0\n");
        pool(&host, "net", line);
        host.vfpool(&["setup"]).refused_saying(&[
            &format!("Cannot use {} in ", line.replace("/>", ">")),
            "(pool 'net'): 0000:01:00.0 can have no VFs: its sriov_totalvfs is 0. ",
            remedy,
        ]);
        let listed = host.vfpool(&["list"]);
        assert!(listed.stderr.contains("can have no VFs"), "{}", listed.stderr);
        let check = host.vfpool(&["check"]);
        assert_eq!(check.code, Some(1));
        assert!(check.stdout.contains("can have no VFs") && check.stdout.contains(remedy), "{}", check.stdout);
    }
}

#[test]
fn each_port_of_a_pf_is_brought_up_and_no_representor() {
    let host = host();
    host.netdev(PF, "eth3p1", false, &[]);
    host.netdev(PF, "aa_rep", false, &[]);
    for (netdev, port) in [("eth3", "p0"), ("eth3p1", "p1"), ("aa_rep", "pf0vf1")] {
        host.put(&format!("sys/class/net/{netdev}/phys_port_name"), format!("{port}\n"));
        host.put(&format!("sys/class/net/{netdev}/phys_switch_id"), "e41d2d0300\n");
    }
    for (line, name) in [
        ("<pf address='01:00.0'/>", "eth3"),
        ("<pf dev='eth3p1'/>", "eth3p1"),
        ("<pf dev='eth3'/>", "aa_rep"),
        ("<pf dev='aa_rep'/>", "01:00.0"),
    ] {
        for port in ["eth3", "eth3p1"] {
            host.put(&format!("sys/class/net/{port}/flags"), "0x1002\n");
        }
        pool(&host, "net", line);
        let check = host.vfpool(&["check"]);
        for port in ["eth3", "eth3p1"] {
            assert!(check.stdout.contains(&format!("PF 0000:01:00.0 is down ({port})")), "{line}: {}", check.stdout);
        }
        host.vfpool(&["setup", name]).ok();
        let flags = |netdev: &str| host.get(&format!("sys/class/net/{netdev}/flags")).unwrap();
        assert_eq!(["eth3", "eth3p1", "aa_rep"].map(flags), ["0x1003", "0x1003", "0x1002"], "{line}");
        assert!(!host.vfpool(&["check"]).stdout.contains("PF 0000:01:00.0 is down"), "{line}");
    }
}

/// A virtio network card has its interface below a virtio device.
#[test]
fn a_pf_with_a_bus_between_it_and_its_interface() {
    let host = host();
    host.virtio_netdev(PF, "eth7", false);
    pool(&host, "net", "<pf dev='eth7'/>");
    fs::remove_dir_all(host.path(&format!("sys/bus/pci/devices/{PF}/net"))).unwrap();
    fs::remove_file(host.path("sys/class/net/eth3")).unwrap();
    host.vfpool(&["setup"]).ok_saying("eth7: down -> up (pool 'net')");
    assert_eq!(drivers(&host), ["vfio-pci"; 3]);
    host.vfpool(&["setup", "eth7"]).ok_silently();
}

/// Two pools share a PF: one lists some of its VFs, and exists before they do.
#[test]
fn pfs_come_before_the_addresses_of_their_vfs() {
    let host = host();
    let vf = |function: u32| format!("<address type='pci' bus='0x01' slot='0x10' function='{function}'/>");
    pool(&host, "a", &format!("{}\n{}", vf(0), vf(4)));
    pool(&host, "b", "<pf dev='eth3' vfs='3'/>");
    let outcome = host.vfpool(&["setup"]).ok();
    assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);
    assert_eq!(drivers(&host), ["vfio-pci"; 3]);
    host.vfpool(&["setup"]).ok_silently();
    let members = |name: &str| {
        let xml = host.vfpool(&["dumpxml", name]).stdout;
        xml.lines()
            .filter(|line| line.contains("<address"))
            .map(|line| line.chars().rev().nth(3).unwrap())
            .collect::<String>()
    };
    assert_eq!((members("a"), members("b")), ("04".to_owned(), "2".to_owned()));
    let list = host.vfpool(&["list"]);
    assert_eq!((list.code, list.stderr.as_str()), (Some(0), ""));
}

/// A VF is announced before it is probed: its host driver binds between our look and our override.
#[test]
fn a_vf_that_its_host_driver_binds_in_between_is_moved() {
    for change in [Device::without_autoprobe as fn(Device) -> Device, |device| device] {
        let host = host_with(change);
        pool(&host, "net", "<pf dev='eth3'/>");
        host.make_vfs(PF, &[None]);
        host.faults("write probe driver_override vfio-pci");
        host.udev(&[VFS[0]]).ok();
        assert_eq!(drivers(&host), ["vfio-pci"]);
        // Also a sibling in a guest's start.
        host.add(Device::new("0000:00:02.0").bridge().group(7));
        host.add_pair("0000:03:00", 9);
        host.move_to("0000:03:00.1", None);
        host.guest("web", "0000:03:00.0").prepare().ok();
        assert_eq!(host.driver("0000:03:00.1").as_deref(), Some("vfio-pci"));
    }
}

/// Setup removes VFs without the lock: whoever has nothing to do with them goes on, also when setup is killed in the
/// write.
#[test]
fn while_vfs_are_removed_other_guests_start() {
    for is_killed in [false, true] {
        let host = host();
        host.add(Device::new("0000:00:02.0").bridge().group(7));
        host.add_pair("0000:03:00", 9);
        host.make_vfs(PF, &[Some("vfio-pci"), Some("vfio-pci"), Some("vfio-pci")]);
        pool(&host, "net", "<pf dev='eth3' vfs='2'/>");
        let failing = host.guest("failing", "0000:03:00.0");
        failing.prepare().ok();
        host.faults("write hang sriov_numvfs 0");
        let mut setup = Some(host.command(&["setup"]).spawn());
        while !host.path(&format!("run/vfpool/removals/{PF}")).exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        if is_killed {
            setup.take().unwrap().kill();
        }
        let began = std::time::Instant::now();
        failing.release().ok();
        host.guest("web", "0000:03:00.0").prepare().ok();
        assert!(began.elapsed().as_secs() < 8, "{:?}", began.elapsed());
        // One of these VFs is another matter.
        host.guest("db", VFS[0]).prepare().refused_saying(&[
            "0000:01:10.0 is going away: `vfpool setup` is changing the number of VFs of 0000:01:00.0. Start the \
             guest when it is done",
        ]);
        assert_eq!(host.recorded("claims"), ["0000:03:00.0", "0000:03:00.1"]);
        host.faults("");
        match setup {
            Some(setup) => drop(setup.wait().ok()),
            None => {
                while host.path(&format!("sys/bus/pci/devices/{}", VFS[0])).exists() {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
        host.vfpool(&["setup"]).ok();
        assert_eq!(drivers(&host), ["vfio-pci"; 2]);
        host.guest("db", VFS[0]).prepare().ok();
    }
}

/// A claim alone does not keep setup from its work.
#[test]
fn claims_that_are_over_do_not_count() {
    for over in ["reservation", "corrupt lease"] {
        let host = Host::with_vfs(3);
        host.ip_works();
        if over == "reservation" {
            let outcome = host.vfpool_with(&["rewrite"], asking("web", &vf(0)).as_bytes()).run();
            assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
            host.pool("net", "<pf dev='eth3' vfs='2'/>");
            host.vfpool(&["setup"]).refused_saying(&["guest 'web' has 0000:01:10.0"]);
            host.uptime(5000);
        } else {
            host.guest_of("web", asking("web", &vf(0))).prepare().ok();
            host.put("run/vfpool/leases/web", "rubbish");
        }
        assert_eq!(host.recorded("claims"), [vf(0)], "{over}");
        host.pool("net", "<pf dev='eth3' vfs='2'/>");
        host.vfpool(&["setup"]).ok();
        assert_eq!(attribute(&host, PF, "sriov_numvfs"), "2", "{over}");
    }
}

/// Who has which file open is read once for all VFs of a PF.
#[test]
fn processes_are_looked_at_once_for_all_vfs() {
    let host = host();
    host.make_vfs(PF, &[Some("vfio-pci"), Some("vfio-pci"), Some("vfio-pci")]);
    for group in [11, 12, 13] {
        host.process(7000 + group, 1, 5);
        host.opens_group(7000 + group, group);
    }
    host.process(6000, 1, 5);
    fs::create_dir_all(host.path("proc/6000/fd")).unwrap();
    std::os::unix::fs::symlink("/dev/null", host.path("proc/6000/fd/9")).unwrap();
    for (line, looks) in [("<pf dev='eth3'/>", 0), ("<pf dev='eth3' vfs='2'/>", 1)] {
        pool(&host, "net", line);
        host.put("opened", "");
        host.vfpool(&["setup"]);
        let opened = host.get("opened").unwrap_or_default();
        let count = opened.lines().filter(|line| *line == "proc/6000/fd/9").count();
        assert_eq!(count, looks, "{line}");
    }
}

/// udev waits for its helper: of the VF, each file is opened once.
#[test]
fn a_new_vf_is_read_once() {
    let host = host();
    pool(&host, "net", "<pf dev='eth3'/>");
    host.make_vfs(PF, &[None]);
    host.put("opened", "");
    host.udev(&[VFS[0]]).ok();
    let opened = host.get("opened").unwrap_or_default();
    let mut counts = std::collections::BTreeMap::new();
    for line in opened.lines() {
        *counts.entry(line).or_insert(0) += 1;
    }
    // Its driver is read back after the write, its override read and written.
    let again = |file: &str| file.ends_with("/driver") || file.ends_with("/driver_override");
    let twice: Vec<_> =
        counts.iter().filter(|(file, count)| file.starts_with("sys/") && **count > 1 && !again(file)).collect();
    assert_eq!(twice, [], "{opened}");
    assert!(opened.lines().count() <= 18, "{} opens:\n{opened}", opened.lines().count());
}

/// A PF that a program uses through VFIO: setup changes nothing, and names it.
#[test]
fn a_pf_that_a_program_uses() {
    let host = host();
    host.move_to(PF, Some("vfio-pci"));
    host.process(77, 1, 5);
    host.opens_group(77, 8);
    pool(&host, "net", "<pf address='01:00.0'/>");
    let before = host.snapshot();
    host.vfpool(&["setup"]).refused_saying(&[
        "it is on vfio-pci, and only the PF's own driver creates VFs; process 77 (qemu-kvm) uses it through VFIO. \
         Stop process 77 (qemu-kvm), then bind it to its own driver, and run `vfpool setup`",
    ]);
    host.assert_as(&before, "a program uses it");
    let check = host.vfpool(&["check"]);
    assert!(check.stdout.contains("process 77 (qemu-kvm) uses it through VFIO"), "{}", check.stdout);
    assert!(!check.stdout.contains("/unbind"), "{}", check.stdout);
}
