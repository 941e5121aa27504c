//! `vfpool start` and `rewrite`: a guest is started with devices that are free.

use fakehost::{FIRST, Host, asking, definition, hostdev_at, interface_at, vf};

/// A guest that points at a VF which `db` has.
pub(crate) fn host() -> Host {
    let host = Host::with_vfs(3);
    host.runs_with("db", &vf(0));
    host.define("web", &asking("web", &vf(0)));
    host
}

fn state(host: &Host, guest: &str) -> String {
    let lease = host.get(&format!("run/vfpool/leases/{guest}")).unwrap_or_default();
    let (_, rest) = lease.split_once("state=\"").unwrap_or(("", "\""));
    rest.split('"').next().unwrap().to_owned()
}

#[test]
fn a_guest_is_started_with_a_device_that_is_free() {
    let host = host();
    let outcome = host.vfpool(&["start", "web"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), "Domain 'web' created\n"), "{}", outcome.stderr);
    assert_eq!(host.virsh_trace(), ["create web"]);
    assert_eq!(host.definition("web"), asking("web", &vf(0)), "for this boot only");
    assert_eq!((host.recorded("claims"), state(&host, "web")), (vec![vf(0), vf(1)], "active".into()));
    let left: Vec<String> = host.recorded("").into_iter().filter(|name| name.starts_with("create.")).collect();
    assert_eq!(left, [""; 0], "the XML that virsh was given");
    host.vfpool(&["start", "web"]).refused("guest 'web': it runs already, and holds its devices");
    host.vfpool(&["start", "nobody"])
        .refused("guest 'nobody': no guest 'nobody' is defined on this host; see `virsh list --all`");
    for name in ["../web", ""] {
        host.vfpool(&["start", name]).refused_saying(&["is defined on this host"]);
    }
    host.define("mail", &asking("mail", &vf(0)));
    host.define("dns", &asking("dns", &vf(0)));
    assert_eq!(host.vfpool(&["start", "mail"]).code, Some(0));
    host.vfpool(&["start", "dns"]).refused(
        "guest 'dns': no device of pool 'net' is free: 0000:01:10.0 (guest 'db'), 0000:01:10.1 (guest 'web'), \
         0000:01:10.2 (guest 'mail'). Stop one of these first",
    );
    host.stops("web");
    assert_eq!(host.recorded("claims"), [vf(0), vf(2)]);
}

#[test]
fn a_rewritten_guest_can_be_created() {
    let host = host();
    let now = host.vfpool_with(&["rewrite"], host.definition("web").as_bytes()).run();
    assert_eq!((now.code, state(&host, "web")), (Some(0), "reserved".into()));
    host.put("now.xml", now.stdout);
    assert_eq!(host.virsh(&["create", host.path("now.xml").to_str().unwrap()]).code, Some(0));
    assert_eq!((host.recorded("claims"), state(&host, "web")), (vec![vf(0), vf(1)], "active".into()));
}

#[test]
fn each_flag_of_virsh_start_is_passed_on() {
    for (flags, saved, commands) in [
        (vec!["--console", "--paused"], false, vec!["create web --console --paused"]),
        (
            vec!["--autodestroy", "--reset-nvram", "--pass-fds", "5,6"],
            false,
            vec!["help create", "create web --autodestroy --reset-nvram --pass-fds 5,6"],
        ),
        (vec!["--bypass-cache"], false, vec!["create web"]),
        (vec!["--force-boot"], false, vec!["create web"]),
        (vec!["--bypass-cache", "--paused"], true, vec!["start web --bypass-cache --paused"]),
        (vec!["--force-boot", "--paused"], true, vec!["managedsave-remove web", "create web --paused"]),
    ] {
        let host = host();
        if saved {
            host.put("var/lib/libvirt/qemu/save/web.save", asking("web", &vf(0)));
        }
        let outcome = host.vfpool(&[&["start", "web"], flags.as_slice()].concat());
        assert_eq!(outcome.code, Some(0), "{flags:?}: {}", outcome.stderr);
        assert_eq!(host.virsh_trace(), commands, "{flags:?}");
        assert_eq!((host.recorded("claims"), state(&host, "web")), (vec![vf(0), vf(1)], "active".into()), "{flags:?}");
        assert!(!host.path("var/lib/libvirt/qemu/save/web.save").exists(), "{flags:?}");
    }
    // Also one whose definition is right: that may just be moved, and lack its device when libvirt reads it.
    let pointed = host();
    pointed.define("web", &asking("web", &vf(1)));
    assert_eq!(pointed.vfpool(&["start", "web"]).code, Some(0));
    assert_eq!(pointed.virsh_trace(), ["create web"]);
    // A guest that asks for nothing is libvirt's alone.
    let host = host();
    host.define("plain", &definition("plain", &[], &[hostdev_at(&vf(2), 0, "")]));
    assert_eq!(host.vfpool(&["start", "plain", "--force-boot", "--paused"]).code, Some(0));
    assert_eq!(host.virsh_trace(), ["start plain --force-boot --paused"]);
    for wrong in [&["start"] as &[&str], &["start", "web", "--validate"], &["start", "web", "db"]] {
        assert_eq!(host.vfpool(wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn an_option_that_this_virsh_does_not_have_is_refused_before_anything_is_touched() {
    let host = host();
    host.put("hw/no-reset-nvram", "");
    host.put("var/lib/libvirt/qemu/save/web.save", asking("web", &vf(0)));
    let before = host.recorded("leases");
    host.vfpool(&["start", "web", "--force-boot", "--reset-nvram"]).refused(
        "guest 'web': virsh on this host does not have the option --reset-nvram: its libvirt is too old. Start \
         the guest without --reset-nvram",
    );
    assert_eq!((host.virsh_trace(), host.recorded("leases")), (vec!["help create".to_owned()], before));
    assert!(host.path("var/lib/libvirt/qemu/save/web.save").exists());
    assert_eq!(host.vfpool(&["start", "web", "--force-boot", "--paused"]).code, Some(0));
}

#[test]
fn a_saved_guest_is_restored_with_a_device_that_is_free() {
    let host = host();
    host.put("var/lib/libvirt/qemu/save/web.save", asking("web", &vf(0)));
    host.runs("web");
    assert_eq!(host.recorded("claims"), [vf(0), vf(1)]);
    host.stops("web");
    // Without one, its image stays.
    host.put("var/lib/libvirt/qemu/save/web.save", asking("web", &vf(0)));
    for (number, guest) in ["mail", "dns"].into_iter().enumerate() {
        host.prepare(guest, &asking(guest, &vf(number + 1))).ok();
    }
    let outcome = host.vfpool(&["start", "web"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("no device of pool 'net' is free"), "{}", outcome.stderr);
    assert!(
        outcome.stderr.ends_with("vfpool: guest 'web': it was not started; virsh has said why\n"),
        "{}",
        outcome.stderr
    );
    assert!(host.path("var/lib/libvirt/qemu/save/web.save").exists());
    assert_eq!(host.recorded("leases"), ["db", "dns", "mail"]);
}

#[test]
fn of_a_start_that_failed_nothing_stays() {
    for (when, faults, keeps) in [
        ("before the hook is asked", "create fail no", false),
        ("after prepare", "qemu fail no", false),
        ("before the hook, on an older libvirt", "", true),
    ] {
        let host = host();
        let before = host.snapshot();
        host.virsh_faults(faults);
        if keeps {
            // A device besides, which is not there; libvirt finds that out before it asks the hook.
            let devices = [hostdev_at(&vf(0), 0, ""), interface_at(&vf(1), 1)];
            host.define("web", &definition("web", &[("net", 0)], &devices));
            host.put("hw/keeps-failed-create", "");
            host.virsh_faults(&format!("create sh mv sys/bus/pci/devices/{} gone", vf(1)));
        }
        let definition = host.definition("web");
        let outcome = host.vfpool(&["start", "web"]);
        assert_eq!(outcome.code, Some(1), "{when}");
        assert!(
            outcome.stderr.ends_with("vfpool: guest 'web': it was not started; virsh has said why\n"),
            "{}",
            outcome.stderr
        );
        assert_eq!((host.recorded("leases"), host.recorded("claims")), (vec!["db".into()], vec![vf(0)]), "{when}");
        assert_eq!(host.definition("web"), definition, "{when}");
        assert_eq!(host.virsh(&["dumpxml", "--inactive", "web"]).stdout.trim_end(), definition.trim_end(), "{when}");
        assert_eq!(host.virsh_trace().last().unwrap(), if keeps { "define web" } else { "dumpxml --inactive web" });
        if keeps {
            std::fs::rename(host.path("gone"), host.path(&format!("sys/bus/pci/devices/{}", vf(1)))).unwrap();
        }
        host.assert_as(&before, when);
        host.virsh_faults("");
        assert_eq!(host.vfpool(&["start", "web"]).code, Some(0), "{when}");
    }
    // In prepare: somebody was faster with another device of the guest.
    let host = host();
    host.define("web", &definition("web", &[("net", 0)], &[hostdev_at(&vf(0), 0, ""), hostdev_at(&vf(2), 1, "")]));
    host.prepare("mail", &asking("mail", &vf(2))).ok();
    host.vfpool(&["start", "web"])
        .refused_saying(&["guest 'web': 0000:01:10.2 is not free: guest 'mail' has it. Stop"]);
    assert_eq!(host.recorded("leases"), ["db", "mail"]);
}

#[test]
fn a_start_that_was_killed_reserves_for_a_minute_only() {
    let host = host();
    host.virsh_faults("create killed");
    assert_eq!(host.vfpool(&["start", "web"]).code, None);
    assert_eq!(state(&host, "web"), "reserved");
    host.uptime(2000);
    host.virsh_faults("");
    host.reconcile().ok();
    assert_eq!(host.recorded("leases"), ["db"]);
    host.runs("web");
}

#[test]
fn a_start_or_stop_under_way_is_left_alone() {
    for how in ["rewrite", "start"] {
        let host = Host::with_pair();
        host.pool("nics", "<address type='pci' bus='0x02' slot='0x00' function='0x0'/>");
        let xml = definition("web", &[("nics", 0)], &[hostdev_at(FIRST, 0, "")]);
        host.define("web", &xml);
        let asked = || match how {
            "rewrite" => host.vfpool_with(&["rewrite"], xml.as_bytes()).run(),
            _ => host.vfpool(&["start", "web"]),
        };
        let web = host.guest_of("web", &xml).starts();
        let under_way = host.snapshot();
        let refused = "guest 'web': it is just being started by libvirt. Try again when that is over; if `virsh \
                       domstate web` says that it is, run `vfpool reconcile` first";
        asked().refused(refused);
        host.assert_as(&under_way, how);
        // Its QEMU has ended, and libvirt has not reattached its part yet.
        let web = web.runs();
        host.qemu_ends("web");
        asked().refused(&refused.replace("started", "stopped"));
        host.assert_as(&under_way, how);
        assert_eq!(state(&host, "web"), "active");
        web.reattaches();
        web.release().ok();
        assert_eq!(asked().code, Some(0));
    }
}
