//! One device of a stopped guest is pointed elsewhere, in steps between which anything may happen: a kill, a refusal, a
//! hang, somebody's edit. The device is never lost, and neither is the edit.

use fakehost::{Host, asking, definition, hostdev_at, interface_at, slot, vf};
use std::time::Duration;

/// A guest whose first device has to move from the first VF, which `db` has.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Hostdev,
    /// It is the only device with a boot order: libvirt takes no such device again after it was detached.
    OnlyBoot,
    /// An interface has a boot order, too.
    Boot,
    /// Another hostdev, which is none of ours, stands behind it.
    Two,
    Interface,
}

const SHAPES: [Shape; 5] = [Shape::Hostdev, Shape::OnlyBoot, Shape::Boot, Shape::Two, Shape::Interface];

const ROM: &str = "<rom bar='off' file='/usr/share/x&amp;y.rom'/><alias name='ua-&quot;nic&quot;'/>";

impl Shape {
    /// The definition before (`0`) and after (`1`) the move.
    fn xml(self, number: usize) -> String {
        let address = vf(number);
        let with_boot = format!("<boot order='1'/>{ROM}");
        let other = hostdev_at(&vf(7), 1, "");
        let devices = match self {
            Self::Hostdev => vec![hostdev_at(&address, 0, ROM)],
            Self::OnlyBoot => vec![hostdev_at(&address, 0, &with_boot)],
            Self::Boot => {
                let nic = interface_at("0000:07:00.0", 1);
                let nic = nic.replacen("<driver", "<boot order='2'/>\n      <driver", 1);
                vec![hostdev_at(&address, 0, &with_boot), nic]
            }
            // libvirt puts what it attaches behind the others.
            Self::Two if number == 0 => vec![hostdev_at(&address, 0, ROM), other],
            Self::Two => vec![other, hostdev_at(&address, 0, ROM)],
            Self::Interface => vec![interface_at(&address, 0)],
        };
        definition("web", &[("net", 0)], &devices)
    }

    fn host(self) -> Host {
        let host = Host::with_vfs(2);
        host.runs_with("db", &vf(0));
        host.define("web", &self.xml(0));
        host
    }

    fn commands(self) -> &'static [&'static str] {
        match self {
            Self::Hostdev | Self::Two | Self::Interface => {
                &["metadata web --set moving", "detach-device web", "attach-device web", "metadata web --set"]
            }
            Self::OnlyBoot | Self::Boot => &[
                "metadata web --set moving",
                "attach-device web",
                "detach-device web",
                "attach-device web",
                "detach-device web",
                "metadata web --set",
            ],
        }
    }

    /// So many of the commands move the device; the others tidy up, when all guests have been moved.
    fn steps(self) -> usize {
        match self {
            Self::Hostdev | Self::Two | Self::Interface => 3,
            Self::OnlyBoot | Self::Boot => 4,
        }
    }
}

#[test]
fn a_move_changes_the_source_address_and_nothing_else() {
    for shape in SHAPES {
        let host = shape.host();
        host.reconcile().ok_saying("guest 'web': parked at 0000:01:10.1 of pool 'net' (was 0000:01:10.0)");
        assert_eq!(host.definition("web"), shape.xml(1), "{shape:?}");
        assert_eq!(host.virsh_trace(), shape.commands(), "{shape:?}");
        host.reconcile().ok_silently();
        assert_eq!(host.virsh_trace(), [""; 0], "{shape:?}");
    }
}

#[test]
fn two_devices_with_a_boot_order_are_moved_with_one_placeholder() {
    let host = Host::with_vfs(4);
    for (number, guest) in ["db", "mail"].into_iter().enumerate() {
        host.prepare(guest, &asking(guest, &vf(number))).ok();
    }
    let xml = |own: [usize; 2]| {
        let device = |number: usize| hostdev_at(&vf(own[number]), number, &format!("<boot order='{}'/>", number + 1));
        definition("web", &[("net", 0), ("net", 1)], &[device(0), device(1)])
    };
    host.define("web", &xml([0, 1]));
    host.reconcile().ok();
    assert_eq!(host.definition("web"), xml([2, 3]));
    assert_eq!(host.virsh_trace().len(), 9);
}

#[test]
fn what_libvirt_cannot_tell_apart_is_left_to_the_admin() {
    let two = [hostdev_at(&vf(0), 0, ""), hostdev_at(&vf(0), 1, "")];
    for requests in [vec![("net", 0), ("net", 1)], vec![("net", 1)]] {
        let host = Host::with_vfs(3);
        let xml = definition("web", &requests, &two);
        host.define("web", &xml);
        host.define("zoo", &asking("zoo", &vf(5)));
        let reason = "guest 'web': its definition has 0000:01:10.0 twice, and libvirt does not tell the two apart. \
                      Give one of them another address with `virsh edit`";
        host.reconcile().refused(reason);
        host.vfpool(&["detach", "web", "net", &slot(1), "--config"]).refused(reason);
        assert_eq!(host.definition("web"), xml, "it would detach the first, and that is perhaps the other one");
        assert_ne!(host.points_at("zoo"), [vf(5)]);
    }
}

/// The guest has its device, or its request has it and keeps the guest from starting.
#[track_caller]
fn nothing_is_lost(host: &Host, when: &str) {
    let xml = host.definition("web");
    if host.points_at("web").iter().any(|address| [vf(0), vf(1)].contains(address)) {
        return;
    }
    assert!(xml.contains("&lt;hostdev") || xml.contains("&lt;interface"), "{when}: {xml}");
    let outcome = host.prepare("web", &xml);
    assert!(outcome.stderr.contains("is just being pointed at a free one"), "{when}: {}", outcome.stderr);
    host.release("web", "").ok();
}

#[test]
fn a_move_that_was_killed_between_any_two_steps_is_finished_by_the_next_run() {
    for shape in SHAPES {
        for number in 1..=shape.commands().len() {
            for fault in ["killed", "kills"] {
                let when = format!("{shape:?}: {} {fault}", shape.commands()[number - 1]);
                let host = shape.host();
                host.virsh_faults(&format!("{number} {fault}"));
                assert_eq!(host.reconcile().code, None, "{when}");
                nothing_is_lost(&host, &when);
                host.virsh_faults("");
                host.reconcile().ok();
                assert_eq!(host.definition("web"), shape.xml(1), "{when}");
                if !matches!(shape, Shape::Boot | Shape::Two) {
                    host.runs("web");
                }
            }
        }
    }
}

#[test]
fn a_move_that_was_killed_at_any_write_of_its_own_is_finished_by_the_next_run() {
    let host = Shape::Hostdev.host();
    host.trace();
    host.reconcile().ok();
    let changes = host.trace().len();
    for number in 1..=changes {
        let host = Shape::Hostdev.host();
        host.trace();
        assert_eq!(host.vfpool_with(&["reconcile"], b"").killed_at(number).run().code, None);
        nothing_is_lost(&host, "killed");
        host.reconcile().ok();
        assert_eq!(host.definition("web"), Shape::Hostdev.xml(1), "killed at {number} of {changes}");
    }
}

#[test]
fn a_refusal_of_libvirt_at_any_step_is_told_and_the_next_run_goes_on() {
    for shape in SHAPES {
        for (index, command) in shape.commands().iter().enumerate() {
            let when = format!("{shape:?}: {command}");
            let host = shape.host();
            // This guest has to move, too; and must not suffer.
            host.define("zoo", &asking("zoo", &vf(5)));
            // Its three steps come before the tidying up.
            let place = if index < shape.steps() { index + 1 } else { index + 4 };
            host.virsh_faults(&format!("{place} fail internal error: cannot do it now"));
            let outcome = host.reconcile();
            assert_eq!(outcome.code, Some(1), "{when}: {}", outcome.stderr);
            let name = command.split(' ').next().unwrap();
            let told = format!("vfpool: guest 'web': virsh {name}: internal error: cannot do it now");
            let lines: Vec<&str> = outcome.stderr.lines().filter(|line| !line.contains("parked at")).collect();
            assert_eq!(lines, [told], "{when}");
            nothing_is_lost(&host, &when);
            assert_eq!(host.points_at("zoo"), [vf(1)], "{when}");
            host.virsh_faults("");
            host.reconcile().ok();
            assert_eq!(host.definition("web"), shape.xml(1), "{when}");
        }
    }
}

#[test]
fn a_virsh_that_says_nothing_or_is_not_there_is_told_too() {
    let host = Shape::Interface.host();
    host.virsh_faults("1 sh kill -9 $PPID");
    host.reconcile().refused("guest 'web': virsh metadata: signal: 9 (SIGKILL), with no error message");
    std::fs::remove_file(host.path("usr/bin/virsh")).unwrap();
    host.reconcile().refused("guest 'web': virsh metadata: No such file or directory (os error 2)");
}

#[test]
fn what_libvirt_refuses_again_and_again_is_never_without_a_record() {
    for faults in ["metadata fail no\nattach-device fail no", "attach-device fail no", "detach-device fail no"] {
        for shape in SHAPES {
            let host = shape.host();
            host.virsh_faults(faults);
            for _ in 0..3 {
                assert_eq!(host.reconcile().code, Some(1), "{faults}");
                nothing_is_lost(&host, faults);
            }
            host.virsh_faults("");
            host.reconcile().ok();
            assert_eq!(host.definition("web"), shape.xml(1), "{shape:?}: {faults}");
        }
    }
}

#[test]
fn a_virsh_that_hangs_holds_up_its_own_guest_only() {
    for (number, shape) in [(1, Shape::Hostdev), (3, Shape::Hostdev), (2, Shape::Interface)] {
        let host = shape.host();
        host.settings("<deadline seconds='1'/>");
        host.define("zoo", &asking("zoo", &vf(5)));
        host.virsh_faults(&format!("{number} hang"));
        let outcome = host.reconcile();
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        let name = shape.commands()[number - 1].split(' ').next().unwrap();
        let told = format!("guest 'web': virsh {name}: no answer for 1 s. See with `systemctl status libvirtd`");
        assert!(outcome.stderr.contains(&told), "{}", outcome.stderr);
        assert!(outcome.took > Duration::from_secs(1));
        assert_eq!(host.points_at("zoo"), [vf(1)]);
        nothing_is_lost(&host, name);
        host.virsh_faults("");
        host.reconcile().ok();
        assert_eq!(host.definition("web"), shape.xml(1));
    }
}

#[test]
fn an_edit_between_any_two_steps_is_kept() {
    let edits = [
        ("sed -i 's/>65536</>131072</' etc/libvirt/qemu/web.xml", ">65536<", ">131072<"),
        (
            "usr/bin/virsh metadata web --uri urn:b --key b --config --set '<note>x</note>'",
            "    <vfpool:request",
            "    <b:note xmlns:b=\"urn:b\">x</b:note>\n    <vfpool:request",
        ),
        (
            "printf '<interface type=\"user\"><mac address=\"52:54:00:bb:00:01\"/></interface>' | usr/bin/virsh \
             attach-device web /dev/stdin --config",
            "",
            "52:54:00:bb:00:01",
        ),
    ];
    for shape in SHAPES {
        for number in 1..=shape.commands().len() {
            for (script, old, new) in edits {
                let when = format!("{shape:?}: before {number}: {script}");
                let host = shape.host();
                host.virsh_faults(&format!("{number} sh {script}"));
                host.reconcile().ok();
                host.virsh_faults("");
                host.reconcile().ok();
                let xml = host.definition("web");
                match old {
                    "" => assert!(xml.contains(new), "{when}"),
                    // The request may stand before or behind the other metadata.
                    "    <vfpool:request" => {
                        let line = new.lines().next().unwrap();
                        assert_eq!(xml.replace(&format!("{line}\n"), ""), shape.xml(1), "{when}");
                    }
                    old => assert_eq!(xml, shape.xml(1).replace(old, new), "{when}"),
                }
                assert!(host.points_at("web").contains(&vf(1)), "{when}");
                assert!(!xml.contains("&lt;"), "{when}: {xml}");
            }
        }
    }
}

#[test]
fn a_device_that_the_admin_takes_away_meanwhile_stays_away() {
    let shapes = [Shape::Hostdev, Shape::OnlyBoot, Shape::Interface];
    for shape in shapes {
        for number in 1..=shape.commands().len() {
            let when = format!("{shape:?}: before {number} ({})", shape.commands()[number - 1]);
            let host = shape.host();
            // Whichever device it points at by then; nothing if it is just being moved.
            let element = if matches!(shape, Shape::Interface) { "interface" } else { "hostdev" };
            let cut = format!(
                "grep -q '^    <{element}' etc/libvirt/qemu/web.xml || exit 0; touch removed; sed -i '/^    \
                 <{element}/,/^    <.{element}>/d' etc/libvirt/qemu/web.xml"
            );
            host.virsh_faults(&format!("{number} sh {cut}"));
            let first = host.reconcile();
            let is_removed = host.path("removed").exists();
            host.virsh_faults("");
            host.reconcile();
            host.reconcile().ok();
            let xml = host.definition("web");
            let wanted: Vec<String> = if is_removed { Vec::new() } else { vec![vf(1)] };
            assert_eq!(host.points_at("web"), wanted, "{when}: {}\n{xml}", first.stderr);
            assert!(!xml.contains("&lt;"), "{when}: {xml}");
            assert!(!xml.contains("52:54:00:76:66:70"), "{when}: {xml}");
            assert!(xml.contains("vfpool:device"), "{when}: only `vfpool detach` takes a request away");
        }
    }
}

#[test]
fn a_device_that_is_taken_away_before_all_is_tidied_up_stays_away() {
    let host = Shape::Hostdev.host();
    host.define("zoo", &asking("zoo", &vf(5)));
    // `zoo` is moved after `web`, and both are tidied up after that.
    host.virsh_faults("4 sh sed -i '/^    <hostdev/,/^    <.hostdev>/d' etc/libvirt/qemu/web.xml");
    host.reconcile().ok();
    assert_eq!(host.virsh_trace()[3], "metadata zoo --set moving");
    host.reconcile().ok();
    assert_eq!(host.definition("web"), definition("web", &[("net", 0)], &[]));
}

#[test]
fn two_runs_at_once_do_the_work_once() {
    for _ in 0..5 {
        let host = Host::with_vfs(6);
        for number in 0..6 {
            host.define(&format!("g{number}"), &asking(&format!("g{number}"), &vf(0)));
        }
        let runs = [0, 1, 2].map(|_| host.vfpool_with(&["reconcile"], b"").spawn());
        for run in runs {
            run.wait().ok();
        }
        let mut places: Vec<String> = (0..6).flat_map(|number| host.points_at(&format!("g{number}"))).collect();
        places.sort_unstable();
        assert_eq!(places, (0..6).map(vf).collect::<Vec<_>>());
        let trace = host.virsh_trace();
        assert_eq!(trace.iter().filter(|line| line.starts_with("detach")).count(), 5, "{trace:?}");
    }
}

#[test]
fn an_interface_survives_fifty_moves_with_all_that_it_has() {
    let host = Host::with_vfs(2);
    let nic = |number: usize| {
        let nic = interface_at(&vf(number), 0).replacen("<driver", "<boot order='2'/>\n      <driver", 1);
        nic.replacen("<driver", "<model type='virtio'/>\n      <driver", 1)
    };
    let other = interface_at("0000:07:00.0", 1);
    let xml = |number: usize, devices: [String; 3]| {
        assert!(devices.iter().any(|device| *device == nic(number)));
        definition("web", &[("net", 0)], &devices)
    };
    let behind = |number: usize| xml(number, [other.clone(), nic(number), hostdev_at("0000:08:00.0", 2, "")]);
    host.define("web", &xml(0, [nic(0), other.clone(), hostdev_at("0000:08:00.0", 2, "")]));
    for round in 0..50 {
        // Whoever takes its device makes it move.
        let (now, then) = (round % 2, (round + 1) % 2);
        host.prepare("db", &asking("db", &vf(now))).ok();
        host.reconcile().ok();
        assert_eq!(host.definition("web"), behind(then), "move {round}");
        host.release("db", "").ok();
    }
    assert!(host.virsh_trace().iter().all(|line| !line.starts_with("update-device")));
}

/// What a request of `web` holds, as somebody may have written it.
fn holding(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let device = format!("guest-address=\"{}\"", slot(0));
    definition("web", &[("net", 0)], &[]).replace(&format!("{device}/>"), &format!("{device}>{text}</vfpool:device>"))
}

#[test]
fn only_the_device_that_a_request_stands_for_is_attached() {
    let ours = hostdev_at(&vf(1), 0, ROM).trim().to_owned();
    let interface = interface_at(&vf(1), 0).trim().to_owned();
    for (text, why) in [
        ("<interface type='bridge'><source bridge='br0'/></interface>".to_owned(), "it is not one PCI device"),
        ("<interface type='user'/>".to_owned(), "it is not one PCI device"),
        (
            "<hostdev mode='subsystem' type='usb'><source><vendor id='1'/></source></hostdev>".into(),
            "it is not one PCI",
        ),
        (hostdev_at("0000:05:00.0", 0, "").trim().into(), "0000:05:00.0 is not in the pool"),
        (hostdev_at(&vf(1), 3, "").trim().into(), "it is not at 0000:00:05.0 in the guest"),
        (format!("{ours}{ours}"), "it is not one PCI device"),
        (format!("{ours}<disk type='file'/>"), "it is not one hostdev or interface"),
        (format!("<filesystem/>{ours}"), "it is not one hostdev or interface"),
        (format!("{ours}</devices><devices>"), "it is not one hostdev or interface"),
        ("<hostdev".into(), "wrong at line 1"),
    ] {
        let host = Host::with_vfs(2);
        let xml = holding(&text);
        host.define("web", &xml);
        for command in [&["reconcile"] as &[&str], &["reconcile", "--queued"]] {
            let outcome = host.vfpool(command);
            assert!(outcome.stderr.contains(why), "{text}: {}", outcome.stderr);
            assert!(outcome.stderr.contains("Run `vfpool detach web net 0000:00:05.0 --config`"), "{}", outcome.stderr);
            assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
            assert_eq!(host.virsh_trace(), [""; 0], "{text}");
            assert_eq!(host.definition("web"), xml);
            // What changes makes news.
            host.define("web", &xml);
        }
        // What it says to do about it.
        assert_eq!(host.vfpool(&["detach", "web", "net", "0000:00:05.0", "--config"]).code, Some(0));
        host.reconcile().ok();
        host.runs("web");
    }
    for text in [ours, interface] {
        let host = Host::with_vfs(2);
        host.define("web", &holding(&text));
        host.reconcile().ok();
        assert_eq!(host.points_at("web"), [vf(1)]);
        assert!(!host.definition("web").contains("&lt;"));
    }
}

#[test]
fn a_move_is_finished_once() {
    let host = Host::with_vfs(2);
    host.define("web", &holding(hostdev_at(&vf(1), 0, "").trim()));
    // libvirt says that it has done it, and somebody removes it at once.
    host.virsh_faults("2 sh sed -i '/^    <hostdev/,/^    <.hostdev>/d' etc/libvirt/qemu/web.xml");
    host.vfpool(&["reconcile", "--queued"]).ok();
    let attached = host.virsh_trace().iter().filter(|line| line.starts_with("attach-device")).count();
    assert_eq!((attached, host.points_at("web")), (1, vec![]));
}

#[test]
fn a_file_that_libvirt_does_not_know_is_no_guest() {
    let host = Host::with_vfs(3);
    host.prepare("db", &asking("db", &vf(0))).ok();
    host.define("cluster", &asking("cluster", &vf(0)));
    host.put("hw/no-guest/cluster", "");
    let outcome = host.reconcile().ok();
    let line = format!(
        "{}: libvirt has no such guest; the file is ignored",
        host.path("etc/libvirt/qemu/cluster.xml").display()
    );
    assert_eq!(outcome.stderr, format!("vfpool: {line}\n"));
    assert_eq!(host.virsh_trace().len(), 1);
    // Nothing more, whatever changes, and no device is kept for it.
    host.define("web", &asking("web", &vf(0)));
    host.reconcile().ok();
    assert_eq!(host.points_at("web"), [vf(1)]);
    assert!(host.virsh_trace().iter().all(|line| line.ends_with("web") || line.contains("web ")));
    host.reconcile().ok_silently();
    // Until it becomes one: libvirt writes the file, or another libvirtd reads it.
    std::fs::remove_file(host.path("hw/no-guest/cluster")).unwrap();
    host.process(4321, 1, 77);
    host.put("run/libvirtd.pid", "4321");
    host.reconcile().ok();
    assert_eq!(host.points_at("cluster"), [vf(2)]);
}
