//! Pools set up by `vfpool setup` and by udev's helper.

use fakehost::{Device, Host, NVME, PF, Snapshot};
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
            "vfpool: 0000:01:00.0: host drivers are kept from its new VFs (pool 'net')",
            "vfpool: 0000:01:00.0: 0 VFs -> 3 (pool 'net')",
            "vfpool: 0000:01:10.0: no driver -> vfio-pci (pool 'net')",
            "vfpool: 0000:01:10.2: no driver -> vfio-pci (pool 'net')",
            "vfpool: 0000:01:10.4: no driver -> vfio-pci (pool 'net')",
            "vfpool: eth3: down -> up (pool 'net')",
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
        "Cannot make 4 VFs of 0000:01:00.0: it can have 3. Mend <pf dev='eth3' vfs='4'> in {} line 4, or allow more in \
         the card's firmware",
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
        &|host| host.opens_itself(VFS[0]),
        "0000:01:10.0 is in use: a program that has it open uses it through VFIO. Stop a program that has it open",
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
    assert_eq!(drivers(&host), ["igbvf", "igbvf", "vfio-pci"]);
    host.settings("<allow address='01:10.0'/>");
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
        "Cannot bind 0000:01:10.0 (pool 'net') to vfio-pci: it has no IOMMU group",
        "intel_iommu=on",
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
         the PF's own driver makes VFs. Bind it to that, then run `vfpool setup`",
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
