//! What the host uses: tables of situations, what shows them, the verdict and the words. Every view of a device gives
//! the same answer: the hook, `explain`, `list`, `check`, `setup`, the udev helper.

use crate::commands::explain::prepare_as_foretold;
use fakehost::{Device, FIRST, Host, PF, SECOND, domain, domain_with, hostdev, vf};
use serde_json::Value;

/// A kind of use of [`SECOND`].
struct Case {
    what: &'static str,
    class: u32,
    driver: &'static str,
    make: fn(&Host),
    /// Whether even a guest that names the device is refused.
    is_vital: bool,
    words: &'static str,
    remedy: &'static str,
}

const NIC: u32 = 0x02_0000;
const DISK: u32 = 0x01_0802;
const GPU: u32 = 0x03_0000;
const USB: u32 = 0x0c_0330;

/// A NIC with an interface that is up, and this root file system.
fn root_over(host: &Host, kind: &str, options: &str) {
    host.netdev(SECOND, "eth1", true, &["10.0.0.2"]);
    host.route("10.0.0.0/8", 0, &["eth1"]);
    host.root("0:20", kind, "10.0.0.1:/export", options);
}

fn nvme_disk(host: &Host) {
    host.disk(SECOND, "nvme/nvme0/nvme0n1", "259:0");
}

#[allow(clippy::too_many_lines)] // a table
fn cases() -> Vec<Case> {
    let case =
        |what, class, driver, make, words, remedy| Case { what, class, driver, make, is_vital: false, words, remedy };
    let vital = |what, class, driver, make, words, remedy| Case {
        is_vital: true,
        ..case(what, class, driver, make, words, remedy)
    };
    vec![
        vital(
            "an interface in a container",
            NIC,
            "e1000e",
            |host| {
                host.netdev(SECOND, "eth1", true, &[]);
                host.netdevs_move_away(SECOND);
            },
            "its network interface is in another network namespace",
            "Stop the container, or take the interface out of that namespace",
        ),
        vital(
            "the interface of a virtio NIC in a container",
            NIC,
            "virtio-pci",
            |host| {
                host.tree_folder(SECOND, "virtio2/net");
            },
            "its network interface is in another network namespace",
            "Stop the container",
        ),
        case(
            "DHCP is not done yet; a capture port; a macvlan in a container",
            NIC,
            "e1000e",
            |host| host.netdev(SECOND, "eth1", true, &["fe80::1"]),
            "eth1 is up",
            "Take eth1 down",
        ),
        vital(
            "the second next hop of the default route",
            NIC,
            "e1000e",
            |host| {
                host.netdev(SECOND, "eth1", true, &["192.0.2.7"]);
                host.route("0.0.0.0/0", 100, &["eth0", "eth1"]);
            },
            "it carries the default route (eth1)",
            "Move the route to another interface",
        ),
        vital(
            "NFS root, over an interface that is no default route",
            NIC,
            "e1000e",
            |host| root_over(host, "nfs4", "rw,addr=10.0.0.1"),
            "the root file system comes over it (eth1, from 10.0.0.1)",
            "The host runs from it: use another device",
        ),
        vital(
            "iSCSI root, below LVM",
            NIC,
            "e1000e",
            |host| {
                root_over(host, "xfs", "rw");
                host.root("253:0", "xfs", "/dev/mapper/vg-root", "rw");
                host.disk("0000:00:02.0", "host2/session1/target2:0:0/2:0:0:1/block/sdb", "8:16");
                host.disk_on("sdb", "dm-0", "253:0");
                host.slave("dm-0", "sdb");
                host.put("sys/class/iscsi_connection/connection1:0/address", "10.0.0.1\n");
            },
            "the root file system comes over it (eth1, from 10.0.0.1)",
            "The host runs from it",
        ),
        vital(
            "NVMe over TCP root",
            NIC,
            "e1000e",
            |host| {
                root_over(host, "xfs", "rw");
                host.root("259:7", "xfs", "/dev/nvme4n1", "rw");
                host.disk("0000:00:02.0", "nvme-fabrics/ctl/nvme4/nvme4n1", "259:7");
                host.put("sys/class/nvme/nvme4/address", "traddr=10.0.0.1,trsvcid=4420,src_addr=10.0.0.2\n");
            },
            "the root file system comes over it (eth1, from 10.0.0.1)",
            "The host runs from it",
        ),
        vital(
            "a loop device on a disk, by another name of the disk",
            DISK,
            "nvme",
            |host| {
                nvme_disk(host);
                std::fs::create_dir_all(host.path("dev/disk/by-id")).unwrap();
                std::os::unix::fs::symlink("../../nvme0n1", host.path("dev/disk/by-id/x")).unwrap();
                host.loop_device("loop3", "7:3", "/dev/disk/by-id/x");
            },
            "the loop device loop3 is set up on nvme0n1",
            "Run losetup -d /dev/loop3",
        ),
        vital(
            "a file system on such a loop device",
            DISK,
            "nvme",
            |host| {
                nvme_disk(host);
                host.loop_device("loop3", "7:3", "/dev/nvme0n1");
                host.mount("7:3", "/srv", "/dev/loop3");
            },
            "loop3 is mounted at /srv",
            "Unmount /srv",
        ),
        case(
            "a disk with a slash in its name",
            DISK,
            "cciss",
            |host| {
                host.disk(SECOND, "cciss0/c0d0/block/cciss!c0d0", "104:0");
                host.opens(5000, "fio", "cciss/c0d0");
            },
            "cciss/c0d0 is open in process 5000 (fio)",
            "Stop process 5000 (fio)",
        ),
        case(
            "DPDK over UIO",
            NIC,
            "uio_pci_generic",
            |host| {
                host.child(SECOND, "uio/uio0", "uio", Some("uio0"));
                host.opens(5000, "testpmd", "uio0");
            },
            "process 5000 (testpmd) uses it through /dev/uio0",
            "Stop process 5000 (testpmd)",
        ),
        case(
            "RDMA",
            NIC,
            "mlx5_core",
            |host| {
                host.child(SECOND, "infiniband_verbs/uverbs0", "infiniband_verbs", Some("infiniband/uverbs0"));
                host.opens(5000, "ib_send_bw", "infiniband/uverbs0");
            },
            "process 5000 (ib_send_bw) uses it through /dev/infiniband/uverbs0",
            "Stop process 5000 (ib_send_bw)",
        ),
        case(
            "NVMe's generic node",
            DISK,
            "nvme",
            |host| {
                host.child(SECOND, "nvme/nvme1/ng1n1", "nvme-generic", Some("ng1n1"));
                host.opens(5000, "xnvme", "ng1n1");
            },
            "process 5000 (xnvme) uses it through /dev/ng1n1",
            "Stop process 5000 (xnvme)",
        ),
        case(
            "a tape",
            0x01_0700,
            "mpt3sas",
            |host| {
                host.child(SECOND, "host1/target1:0:0/1:0:0:0/scsi_tape/nst0", "scsi_tape", Some("nst0"));
                host.opens(5000, "bareos-sd", "nst0");
            },
            "process 5000 (bareos-sd) uses it through /dev/nst0",
            "Stop process 5000 (bareos-sd)",
        ),
        case(
            "a SCSI device of another guest",
            0x01_0700,
            "mpt3sas",
            |host| {
                host.child(SECOND, "host1/target1:0:0/1:0:0:0/scsi_generic/sg3", "scsi_generic", Some("sg3"));
                host.qemu_runs("db", 5000);
                host.opens(5000, "qemu-kvm", "sg3");
                host.process(5000, 1, 50000);
            },
            "guest 'db' (process 5000) uses it through /dev/sg3",
            "Stop guest 'db'",
        ),
        case(
            "a USB device of another guest",
            USB,
            "xhci_hcd",
            |host| {
                host.child(SECOND, "usb1/1-1", "usb", Some("bus/usb/001/002"));
                host.opens(5000, "qemu-kvm", "bus/usb/001/002");
            },
            "process 5000 (qemu-kvm) uses it through /dev/bus/usb/001/002",
            "Stop process 5000 (qemu-kvm)",
        ),
        case(
            "the only keyboard",
            USB,
            "xhci_hcd",
            |host| host.keyboard(SECOND, "usb1/1-1/1-1:1.0/input/input3", "Old Keyboard"),
            "the host's only keyboard is behind it (Old Keyboard)",
            "Plug a keyboard in elsewhere",
        ),
        case(
            "the display of a desktop",
            GPU,
            "amdgpu",
            |host| {
                host.child(SECOND, "drm/card0", "drm", Some("dri/card0"));
                host.child(SECOND, "graphics/fb0", "graphics", Some("fb0"));
                host.opens(5000, "Xorg", "dri/card0");
            },
            "process 5000 (Xorg) uses it through /dev/dri/card0",
            "Stop process 5000 (Xorg)",
        ),
        case(
            "a frame buffer without a program",
            GPU,
            "amdgpu",
            |host| _ = host.child(SECOND, "graphics/fb0", "graphics", Some("fb0")),
            "the host's console is on it (fb0)",
            "Move the console to another device",
        ),
        case(
            "the display of the firmware",
            GPU,
            "amdgpu",
            |host| host.put(&format!("sys/bus/pci/devices/{SECOND}/boot_vga"), "1\n"),
            "the host's console is on it (boot_vga)",
            "Move the console to another device",
        ),
        case(
            "a serial line with the kernel's console",
            0x07_0002,
            "serial",
            |host| {
                host.child(SECOND, "tty/ttyS4", "tty", Some("ttyS4"));
                host.put("sys/class/tty/console/active", "tty0 ttyS4\n");
            },
            "the host's console is on it (ttyS4)",
            "Move the console to another device",
        ),
        vital(
            "the parent of a mediated device of another guest",
            GPU,
            "nvidia",
            |host| {
                let uuid = "c2177883-f1bb-47f0-914d-32a22e3a8804";
                let folder = host.child(SECOND, uuid, "mdev", None);
                host.in_group(&folder, uuid, 77);
                host.opens(5000, "qemu-kvm", "vfio/77");
            },
            "process 5000 (qemu-kvm) uses its mediated device c2177883-f1bb-47f0-914d-32a22e3a8804",
            "Stop process 5000 (qemu-kvm)",
        ),
        vital(
            "a mediated device that nobody uses now",
            GPU,
            "nvidia",
            |host| _ = host.child(SECOND, "c2177883-f1bb-47f0-914d-32a22e3a8804", "mdev", None),
            "it has the mediated device c2177883-f1bb-47f0-914d-32a22e3a8804",
            "Run mdevctl stop --uuid c2177883-f1bb-47f0-914d-32a22e3a8804",
        ),
        vital(
            "a vDPA device",
            NIC,
            "mlx5_core",
            |host| {
                host.child(SECOND, "vdpa0", "vdpa", None);
                host.child(SECOND, "vdpa0/vhost-vdpa-0", "vhost-vdpa", Some("vhost-vdpa-0"));
                host.opens(5000, "qemu-kvm", "vhost-vdpa-0");
            },
            "it has the vDPA device vdpa0",
            "Run vdpa dev del vdpa0",
        ),
    ]
}

/// Two functions of one group, the second of this class and on this driver.
fn host(class: u32, driver: &str) -> Host {
    let host = Host::new();
    host.add(Device::new("0000:00:02.0").bridge().group(7));
    host.add(Device::new(FIRST).behind("0000:00:02.0").group(8).driver("e1000e"));
    if !host.path(&format!("sys/bus/pci/drivers/{driver}")).exists() {
        host.host_driver(driver, "1234:0002");
    }
    host.add(Device::new(SECOND).behind("0000:00:02.0").group(8).id("1234:0002").class(class).driver(driver));
    host
}

fn json(host: &Host, arguments: &[&str]) -> Value {
    serde_json::from_str(&host.vfpool(arguments).stdout).unwrap()
}

#[test]
fn each_kind_of_use_in_every_view() {
    for Case { what, class, driver, make, is_vital, words, remedy } in cases() {
        println!("{what}");
        let host = host(class, driver);
        make(&host);
        let before = host.snapshot();
        // As a sibling, and with managed='no', it stays.
        let allow = if remedy.starts_with("The host runs") {
            ""
        } else {
            "or allow it with <allow address='0000:02:00.1' id='"
        };
        let sibling = format!("Cannot detach {SECOND} (sibling of {FIRST}): {words}. {remedy}");
        prepare_as_foretold(&host.guest_of("web", domain_with("web", &[FIRST]))).refused_saying(&[&sibling, allow]);
        let itself = format!("Cannot detach {SECOND}: {words}. {remedy}");
        let unmanaged = domain("web", &[hostdev(FIRST, true), hostdev(SECOND, false)]);
        prepare_as_foretold(&host.guest_of("web", &unmanaged)).refused_saying(&[&itself, allow]);
        host.assert_as(&before, what);
        // What the others say of it.
        host.pool("pool", "<address type='pci' bus='0x02' slot='0x00' function='0x0'/>");
        let device = &json(&host, &["list", "--json"])["pools"][0]["devices"][0];
        assert_eq!((&device["state"], &device["by"]), (&"in-use".into(), &words.into()), "{what}: {device}");
        let device = &json(&host, &["explain", FIRST, "--json"])["device"];
        assert_eq!(device["start"]["verdict"], "refused", "{what}: {device}");
        assert_eq!(
            (&device["members"][0]["fate"], &device["members"][0]["why"]),
            (&"needed".into(), &words.into()),
            "{what}"
        );
        let findings = &json(&host, &["check", "--json"])["findings"];
        let group = findings.as_array().unwrap().iter().find(|finding| finding["id"] == "group").unwrap();
        assert!(group["what"].as_str().unwrap().ends_with(words), "{what}: {group}");
        assert!(group["remedy"].as_str().unwrap().starts_with(remedy), "{what}: {group}");
        host.assert_as(&before, what);
        // Named by the guest.
        let named = domain_with("web", &[FIRST, SECOND]);
        if is_vital {
            prepare_as_foretold(&host.guest_of("web", &named)).refused_saying(&[&itself, allow]);
            host.assert_as(&before, what);
            assert_eq!(json(&host, &["explain", SECOND, "--json"])["device"]["used_by"], words, "{what}");
        } else {
            prepare_as_foretold(&host.guest_of("web", &named)).ok();
            host.release("web", &named).ok();
            assert_eq!(json(&host, &["explain", SECOND, "--json"])["device"]["used_by"], Value::Null, "{what}");
        }
        // Allowed.
        host.settings("<allow address='02:00.1'/>");
        prepare_as_foretold(&host.guest_of("web", domain_with("web", &[FIRST]))).ok_saying("(sibling, guest 'web')");
    }
}

#[test]
fn what_is_merely_there_is_no_use() {
    type Free = (&'static str, u32, &'static str, fn(&Host));
    let free: [Free; 6] = [
        ("nodes that nobody has open", NIC, "mlx5_core", |host| {
            host.child(SECOND, "infiniband_verbs/uverbs0", "infiniband_verbs", Some("infiniband/uverbs0"));
            host.opens(5000, "other", "infiniband/uverbs1");
        }),
        ("the controls of a sound card, and its jacks", 0x04_0300, "snd_hda_intel", |host| {
            host.child(SECOND, "sound/card1", "sound", None);
            host.child(SECOND, "sound/card1/controlC1", "sound", Some("snd/controlC1"));
            host.child(SECOND, "sound/card1/input9/event9", "input", Some("input/event9"));
            host.opens(5000, "pipewire", "snd/controlC1");
            host.opens(5001, "Xorg", "input/event9");
        }),
        ("one of two keyboards", USB, "xhci_hcd", |host| {
            host.keyboard(SECOND, "usb1/1-1/1-1:1.0/input/input3", "Old Keyboard");
            host.keyboard("0000:00:02.0", "serio0/input/input1", "AT Keyboard");
        }),
        ("a mouse", USB, "xhci_hcd", |host| {
            let folder = host.child(SECOND, "usb1/1-1/1-1:1.0/input/input3", "input", None);
            host.put(&format!("{folder}/capabilities/key"), "ff0000 0 0 0 0\n");
        }),
        ("a display that is not the firmware's", GPU, "amdgpu", |host| {
            host.put(&format!("sys/bus/pci/devices/{SECOND}/boot_vga"), "0\n");
        }),
        ("a serial line that is no console", 0x07_0002, "serial", |host| {
            host.child(SECOND, "tty/ttyS4", "tty", Some("ttyS4"));
            host.put("sys/class/tty/console/active", "tty0 ttyS0\n");
        }),
    ];
    for (what, class, driver, make) in free {
        println!("{what}");
        let host = host(class, driver);
        make(&host);
        prepare_as_foretold(&host.guest_of("web", domain_with("web", &[FIRST]))).ok_saying("(sibling, guest 'web')");
    }
}

#[test]
fn a_nic_with_an_address_that_a_pool_lists() {
    let host = host(NIC, "e1000e");
    host.remove(SECOND);
    host.netdev(FIRST, "enp2s0", true, &["192.0.2.7"]);
    host.pool("net", "<address type='pci' bus='0x02' slot='0x00' function='0x0'/>");
    let xml = fakehost::definition("web", &[("net", 0)], &[fakehost::hostdev_at(FIRST, 0, "")]);
    host.define("web", &xml);
    let all_say = |is_free: bool| {
        let state = &json(&host, &["list", "--json"])["pools"][0]["devices"][0]["state"];
        assert_eq!(state, if is_free { "free" } else { "in-use" });
        let device = &json(&host, &["explain", FIRST, "--json"])["device"];
        assert_eq!(device["start"]["verdict"], if is_free { "free" } else { "refused" }, "{device}");
        assert_eq!(device["used_by"].is_null(), is_free, "{device}");
        let guest = &json(&host, &["explain", "web", "--json"])["guest"];
        assert_eq!(guest["devices"][0]["verdict"], if is_free { "free" } else { "refused" }, "{guest}");
        assert_eq!(guest["chosen"]["refusal"].is_null(), is_free, "{guest}");
        let findings = json(&host, &["check", "--json"]);
        let group = findings["findings"].as_array().unwrap().iter().any(|finding| finding["id"] == "group");
        assert_eq!(group, !is_free, "{findings}");
        let rewrite = host.vfpool_with(&["rewrite"], xml.as_bytes()).run();
        assert_eq!(rewrite.code, Some(i32::from(!is_free)), "{}", rewrite.stderr);
        host.hook("web", "release", &xml).run();
        host.vfpool(&["release", "web"]);
        host.reconcile();
        let prepare = host.prepare("web", &xml);
        assert_eq!(prepare.code, Some(i32::from(!is_free)), "{}", prepare.stderr);
        host.release("web", &xml);
        rewrite.stderr
    };
    // Whoever listed it gave it away, as NetworkManager gives an address to each it finds.
    host.vfpool(&["list"]);
    all_say(true);
    host.route("0.0.0.0/0", 100, &["enp2s0"]);
    let refused = all_say(false);
    assert!(refused.contains("it carries the default route (enp2s0)") && !refused.contains("Stop one"), "{refused}");
}

#[test]
fn a_vf_of_a_pool_that_the_host_uses_stays_with_it() {
    let host = Host::with_vfs(2);
    host.ip_works();
    for number in 0..2 {
        host.move_to(&vf(number), Some("igbvf"));
        host.netdev(&vf(number), &format!("eth3v{number}"), true, &[]);
    }
    host.netdevs_move_away(&vf(1));
    let all = ["eth3v0 is up", "its network interface is in another network namespace"];
    for (number, words) in all.into_iter().enumerate() {
        let device = &json(&host, &["list", "--json"])["pools"][0]["pfs"][0]["devices"][number];
        assert_eq!((&device["state"], &device["by"]), (&"in-use".into(), &words.into()));
        let outcome = host.udev(&[&vf(number)]);
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
        assert_eq!(host.driver(&vf(number)).as_deref(), Some("igbvf"));
        // A guest that asks the pool does not get it, and one that names it gets what libvirt always gave it.
        host.prepare("web", &fakehost::asking("web", &vf(number))).refused_saying(&[words]);
    }
    let setup = host.vfpool(&["setup"]);
    assert!(all.iter().all(|words| setup.stderr.contains(words)), "{}", setup.stderr);
    host.prepare("web", &domain_with("web", &[&vf(0)])).ok();
    host.prepare("db", &domain_with("db", &[&vf(1)])).refused_saying(&[all[1]]);
    assert!(host.driver(PF).is_some());
}

#[test]
fn functions_behind_a_controller() {
    const VMD: &str = "0000:00:0e.0";
    const BEHIND: &str = "10000:00:01.0";
    let with_vmd = |group: u32| {
        let host = Host::new();
        host.host_driver("vmd", "8086:9a0b");
        host.add(Device::new(VMD).id("8086:9a0b").class(0x01_0400).group(8).driver("vmd"));
        let device = Device::new(BEHIND).id("1b36:0010").class(0x01_0802).behind_controller(VMD);
        host.add(device.group(group).driver("nvme"));
        host
    };
    // One group: the controller would go with the device.
    let host = with_vmd(8);
    let before = host.snapshot();
    prepare_as_foretold(&host.guest_of("web", domain_with("web", &[BEHIND]))).refused_saying(&[
        "10000:00:01.0 cannot be assigned to a guest: the controller 0000:00:0e.0 that it is behind is of the same \
         IOMMU group",
        "without its driver vmd the device vanishes. Switch vmd off in the firmware's setup",
    ]);
    host.assert_as(&before, "VMD");
    // Its disk is the host's.
    host.disk(BEHIND, "nvme/nvme0/nvme0n1", "259:0");
    host.mount("259:0", "/", "/dev/nvme0n1");
    let outcome = prepare_as_foretold(&host.guest_of("web", domain_with("web", &[VMD])));
    assert!(!outcome.stderr.contains("<allow"), "{}", outcome.stderr);
    outcome.refused_saying(&["nvme0n1 is mounted at /. The host runs from it: use another device"]);
    // Another guest has what is behind it.
    let host = with_vmd(9);
    host.prepare("a", &domain_with("a", &[BEHIND])).ok();
    prepare_as_foretold(&host.guest_of("b", domain_with("b", &[VMD])))
        .refused_saying(&["10000:00:01.0 (goes with 0000:00:0e.0) is not free: guest 'a' has it. Stop 'a' first"]);
    host.pool("raid", "<address type='pci' bus='0' slot='0x0e' function='0'/>");
    let device = &json(&host, &["list", "--json"])["pools"][0]["devices"][0];
    assert_eq!((&device["state"], &device["guest"]), (&"leased".into(), &"a".into()), "{device}");
}

#[test]
fn bridges_have_one_answer() {
    const ISA: &str = "0000:00:1f.0";
    let host = Host::new();
    host.host_driver("lpc_ich", "8086:a30d");
    host.host_driver("snd_hda_intel", "8086:a348");
    host.add(Device::new(ISA).id("8086:a30d").class(0x06_0100).group(9).driver("lpc_ich"));
    host.add(Device::new("0000:00:1f.3").id("8086:a348").class(0x04_0300).group(9).driver("snd_hda_intel"));
    let before = host.snapshot();
    prepare_as_foretold(&host.guest_of("web", domain_with("web", &[ISA]))).refused(
        "guest 'web': 0000:00:1f.0 is a bridge, and only endpoints can be assigned to a guest. Assign a device behind \
         it",
    );
    assert_eq!(json(&host, &["explain", ISA, "--json"])["device"]["start"]["verdict"], "refused");
    prepare_as_foretold(&host.guest_of("web", domain_with("web", &["0000:00:1f.3"]))).refused(
        "guest 'web': 0000:00:1f.3 cannot be assigned to a guest: the host's bridge 0000:00:1f.0 is on lpc_ich in the \
         same IOMMU group 9, and VFIO accepts no group with such a device on a host driver. Put the card into another \
         slot, or use another device",
    );
    let groups = &json(&host, &["list", "--groups", "--json"])["groups"][0]["devices"];
    assert_eq!(groups[0]["state"], "bridge", "{groups}");
    assert_eq!(groups[1]["state"], "attention", "{groups}");
    assert!(groups[1]["why"].as_str().unwrap().contains("the host's bridge 0000:00:1f.0 is on lpc_ich"), "{groups}");
    host.assert_as(&before, "refused before anything is touched");
    // Off its driver, it keeps nobody from the group.
    host.move_to(ISA, None);
    host.prepare("web", &domain_with("web", &["0000:00:1f.3"])).ok();
    assert_eq!(host.driver(ISA), None);
}

#[test]
fn other_bridges_are_endpoints() {
    // NVSwitches.
    let host = Host::new();
    host.host_driver("nvidia-nvswitch", "10de:22a3");
    for device in [FIRST, SECOND] {
        host.add(Device::new(device).id("10de:22a3").class(0x06_8000).group(8).driver("nvidia-nvswitch"));
    }
    host.pool(
        "switches",
        "<address type='pci' bus='2' slot='0' function='0'/><address type='pci' bus='2' slot='0' function='1'/>",
    );
    let states = || {
        let list = json(&host, &["list", "--json"]);
        [0, 1].map(|number| list["pools"][0]["devices"][number]["state"].clone())
    };
    assert_eq!(states(), ["free", "free"]);
    prepare_as_foretold(&host.guest_of("web", domain_with("web", &[FIRST])))
        .ok_saying("0000:02:00.1: nvidia-nvswitch -> vfio-pci");
    assert_eq!(states(), ["leased", "leased"]);
    host.prepare("db", &domain_with("db", &[SECOND]))
        .refused_saying(&["guest 'web' has 0000:02:00.0 of the same IOMMU group"]);
}

#[test]
fn a_device_that_does_not_answer() {
    let reason = "0000:02:00.0 does not answer: its configuration space reads all ones";
    let host = Host::with_pair();
    host.pool("nics", "<address type='pci' bus='2' slot='0' function='0'/>");
    let web = host.guest("web", FIRST).starts().runs();
    host.falls_silent(FIRST);
    // It stays leased.
    let device = || json(&host, &["list", "--json"])["pools"][0]["devices"][0].clone();
    assert_eq!(device()["state"], "leased", "{}", device());
    web.stops();
    let before = host.snapshot();
    assert_eq!((&device()["state"], &device()["why"]), (&"attention".into(), &reason.into()));
    for wanted in [FIRST, SECOND] {
        prepare_as_foretold(&host.guest_of("db", domain_with("db", &[wanted])))
            .refused_saying(&[reason, "Power the host off and on"]);
        host.assert_as(&before, wanted);
    }
    let findings = json(&host, &["check", "--json"]);
    let group = findings["findings"].as_array().unwrap().iter().find(|finding| finding["id"] == "group").unwrap();
    assert!(group["what"].as_str().unwrap().ends_with(reason), "{group}");
}

#[test]
fn in_use_through_its_own_node() {
    let host = Host::with_vfs(2);
    host.move_to(&vf(0), Some("vfio-pci"));
    host.opens_itself(5003, &vf(0));
    let words = "process 5003 (qemu-kvm) uses it through VFIO";
    let device = &json(&host, &["explain", &vf(0), "--json"])["device"];
    assert_eq!((&device["used_by"], &device["start"]["verdict"]), (&words.into(), &"refused".into()));
    prepare_as_foretold(&host.guest_of("web", domain_with("web", &[&vf(0)])))
        .refused_saying(&["0000:01:10.0 is not free", words]);
    assert_eq!(json(&host, &["list", "--json"])["pools"][0]["pfs"][0]["devices"][0]["by"], words);
    // Nor is it taken off vfio-pci at the release of a guest that had it.
    let host = Host::with_pair();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    host.opens_itself(5003, SECOND);
    let outcome = web.release().ok();
    assert!(outcome.stderr.contains("process 5003 (qemu-kvm) has its IOMMU group 8 open"), "{}", outcome.stderr);
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_group_with_a_platform_device() {
    let host = Host::with_pair();
    host.platform_member(8, "fff51000.dma", "xgene-dma");
    let before = host.snapshot();
    prepare_as_foretold(&host.guest_of("web", domain_with("web", &[FIRST])))
        .refused_saying(&["fff51000.dma is on xgene-dma in the same IOMMU group 8"]);
    host.assert_as(&before, "refused");
}

#[test]
fn one_device_without_a_group_does_not_say_that_the_iommu_is_off() {
    let host = Host::with_pair();
    host.add(Device::new("0000:00:1f.6").driver("e1000e"));
    let xml = domain_with("web", &["0000:00:1f.6"]);
    prepare_as_foretold(&host.guest_of("web", &xml))
        .refused_saying(&["the IOMMU is on, but does not translate for this device"]);
    assert!(!host.vfpool(&["explain", "0000:00:1f.6"]).stdout.contains("IOMMU is off"));
    let host = Host::new();
    host.add(Device::new("0000:00:1f.6").driver("e1000e"));
    prepare_as_foretold(&host.guest_of("web", &xml))
        .refused_saying(&["no IOMMU group: the IOMMU is off. See `vfpool check` for how to switch it on"]);
}

#[test]
fn a_kernel_that_hangs_on_a_question_about_interfaces_refuses_the_start() {
    let host = host(NIC, "e1000e");
    host.settings("<deadline seconds='1'/>");
    host.netdev(SECOND, "eth1", true, &[]);
    for table in ["routes", "addresses"] {
        host.faults(&format!("netlink hang {table}"));
        let outcome = host.prepare("web", &domain_with("web", &[FIRST]));
        assert!(outcome.took.as_secs() < 20, "{:?}", outcome.took);
        outcome.refused_saying(&["Cannot ask the kernel for the host's addresses and routes: timed out"]);
        host.faults("");
    }
}

/// The hook asks about the device at hand, and looks at all processes once.
#[test]
fn the_open_files_are_looked_at_once() {
    let host = host(DISK, "nvme");
    nvme_disk(&host);
    for number in 0..4 {
        host.child(SECOND, &format!("nvme/nvme0/ng0n{number}"), "nvme-generic", Some(&format!("ng0n{number}")));
    }
    host.opens(5000, "other", "null");
    host.put("opened", "");
    host.prepare("web", &domain_with("web", &[FIRST])).ok();
    let opened = host.get("opened").unwrap_or_default();
    assert_eq!(opened.lines().filter(|line| *line == "proc/5000/fd/3").count(), 1, "{opened}");
}
