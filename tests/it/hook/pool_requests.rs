//! Guests that ask pools for devices, at their start: what is verified, what a refusal says and brings about, and
//! what a choice that was made before is worth.

use crate::commands::explain::prepare_as_foretold;
use fakehost::{Device, Host, asking, definition, domain, group, hostdev, hostdev_at, slot, source, vf};
use std::fs;

/// A guest that runs with this VF, asked from `net`.
fn has(host: &Host, guest: &str, number: usize) {
    host.prepare(guest, &asking(guest, &vf(number))).ok();
}

const AGAIN: &str = "and it will be pointed at a free one: start it again in a moment, or run `vfpool start web`";

#[test]
fn a_device_that_cannot_be_had_is_refused_with_the_holder_and_the_way_out() {
    type Case = (&'static str, fn(&Host), &'static str, usize, &'static str);
    let broken = "<pool><name>lan</name><forward mode='hostdev'><pf dev='eth3' vf='2'/></forward></pool>";
    let cases: [Case; 7] = [
        (
            "taken",
            |host| has(host, "db", 0),
            "net",
            0,
            "0000:01:10.0 is not free: guest 'db' has it. 0000:01:10.1 of pool 'net' is free, AGAIN",
        ),
        (
            "all are taken",
            |host| (0..3).for_each(|number| has(host, ["db", "mail", "dns"][number], number)),
            "net",
            1,
            "no device of pool 'net' is free: 0000:01:10.0 (guest 'db'), 0000:01:10.1 (guest 'mail'), 0000:01:10.2 \
             (guest 'dns'). Stop one of these first",
        ),
        (
            "vanished",
            |host| has(host, "db", 0),
            "net",
            3,
            "there is no PCI device 0000:01:10.3 on this host. 0000:01:10.1 of pool 'net' is free, AGAIN",
        ),
        (
            "of another pool",
            |host| host.pool("net", "<address type='pci' domain='0' bus='0x01' slot='0x10' function='0x2'/>"),
            "net",
            1,
            "0000:01:10.1 is no device of pool 'net' on this host. 0000:01:10.2 of pool 'net' is free, AGAIN",
        ),
        (
            "the pool has lost its devices",
            |host| host.pool("net", "<address type='pci' domain='0' bus='0x07' slot='0x10' function='0x2'/>"),
            "net",
            1,
            "0000:01:10.1 is no device of pool 'net' on this host. pool 'net' has no devices now; run `vfpool setup` \
             to see why",
        ),
        ("unknown pool", |_| (), "lan", 0, "There is no pool 'lan': ROOT/etc/vfpool/pools.d has 'net'"),
        (
            "unknown, the only one",
            |host| fs::remove_file(host.path("etc/vfpool/pools.d/net.xml")).unwrap(),
            "net",
            0,
            "There is no pool 'net': ROOT/etc/vfpool/pools.d has none; make one there",
        ),
    ];
    for (what, happens, pool, number, reason) in cases {
        let host = Host::with_vfs(3);
        happens(&host);
        let leases = host.recorded("leases");
        let xml = definition("web", &[(pool, 0)], &[hostdev_at(&vf(number), 0, "")]);
        let _ = fs::remove_dir_all(host.path("run/vfpool/queue"));
        let root = host.path("").display().to_string();
        let reason = reason.replace("AGAIN", AGAIN).replace("ROOT/", &root);
        host.define("web", &xml);
        prepare_as_foretold(&host.guest_of("web", &xml)).refused(&format!("guest 'web': {reason}"));
        assert_eq!(host.queue(), ["refused web"], "{what}: parked anew");
        host.release("web", &xml).ok_silently();
        assert_eq!(host.recorded("leases"), leases, "{what}");
    }
    // One that has a mistake in it is said to, and keeps no other from working.
    let host = Host::with_vfs(1);
    host.put("etc/vfpool/pools.d/lan.xml", broken);
    host.prepare("web", &definition("web", &[("lan", 0)], &[hostdev_at(&vf(0), 0, "")])).refused_saying(&[
        "guest 'web': There is no pool 'lan': ",
        "has 'net'. Cannot use ",
        "lan.xml line 1",
        "vf",
    ]);
    host.prepare("web", &asking("web", &vf(0))).ok();
}

#[test]
fn a_guest_without_a_definition_gets_words_that_hold_for_it() {
    for on_busy in ["", " on-busy='restart'"] {
        let host = Host::with_vfs(2);
        host.put(
            "etc/vfpool/pools.d/net.xml",
            format!(
                "<pool{on_busy}><name>net</name><forward mode='hostdev' managed='yes'><pf dev='eth3'/></forward></pool>"
            ),
        );
        has(&host, "db", 0);
        let xml = asking("web", &vf(0));
        host.prepare("web", &xml).refused(
            "guest 'web': 0000:01:10.0 is not free: guest 'db' has it. 0000:01:10.1 of pool 'net' is free, and libvirt \
             keeps no definition of this guest that could be pointed at it: pass its XML through vfpool rewrite before \
             virsh create",
        );
        host.release("web", &xml).ok();
        assert!(!host.queue().contains(&"restart web".to_owned()), "nothing could be started again");
        // That works.
        let now = host.vfpool_with(&["rewrite"], xml.as_bytes()).run();
        assert_eq!(now.code, Some(0), "{}", now.stderr);
        host.prepare("web", &now.stdout).ok();
        assert_eq!(host.recorded("claims"), [vf(0), vf(1)]);
    }
}

#[test]
fn requests_without_devices_do_not_flood_the_log() {
    let host = Host::with_vfs(1);
    let requests: Vec<(&str, usize)> = (1..20).map(|number| ("net", number)).collect();
    let outcome = host.prepare("web", &definition("web", &requests, &[])).ok();
    assert_eq!(outcome.stderr.lines().count(), 9, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("guest 'web': 11 more requests without a device"), "{}", outcome.stderr);
}

#[test]
fn many_holders_are_counted() {
    let host = Host::with_vfs(11);
    for number in 0..11 {
        has(&host, &format!("g{number}"), number);
    }
    host.prepare("web", &asking("web", &vf(4)))
        .refused_saying(&["0000:01:10.7 (guest 'g7') and 3 more. Stop one of these first"]);
}

#[test]
fn a_request_without_a_device_asks_for_nothing() {
    let host = Host::with_vfs(2);
    let gone = definition("web", &[("net", 0), ("net", 1)], &[hostdev_at(&vf(1), 1, "")]);
    host.prepare("web", &gone).ok_saying(
        "vfpool: guest 'web' asks pool 'net' for a device at 0000:00:05.0, where it has none; see `vfpool detach`\n",
    );
    assert_eq!(host.recorded("claims"), [vf(1)]);
    host.release("web", &gone).ok();
    // Neither does one for a device that is no PCI device, or is a disk.
    let disk = source(&vf(0)).replace("<source>", "<source type='pci' managed='yes' namespace='1'>");
    let disk = format!("<disk type='nvme'>{disk}{}</disk>", "<address type='pci' slot='5'/>");
    host.pool("net", "<address type='pci' bus='0x01' slot='0x10' function='0x1'/>");
    host.prepare("web", &definition("web", &[("net", 0)], &[disk])).ok_saying("where it has none");
}

#[test]
fn a_guest_does_not_start_in_the_midst_of_a_move() {
    let host = Host::with_vfs(2);
    let moving = definition("web", &[("net", 0)], &[])
        .replace("\"0000:00:05.0\"/>", "\"0000:00:05.0\">&lt;hostdev/&gt;</vfpool:device>");
    let reason = "guest 'web': its device of pool 'net' (in the guest at 0000:00:05.0) is just being pointed at a free \
                  one. Start it again in a moment; if that does not help, run `vfpool reconcile`";
    for operation in ["prepare", "restore", "migrate"] {
        host.hook("web", operation, &moving).run().refused(reason);
    }
    host.assert_no_leases("after refusals");
}

#[test]
fn who_uses_a_device_without_a_lease_has_it() {
    let host = Host::with_vfs(2);
    host.move_to(&vf(0), Some("vfio-pci"));
    host.qemu_runs("app", 5000);
    host.opens_group(5000, group(0));
    host.define("web", &asking("web", &vf(0)));
    host.prepare("web", &asking("web", &vf(0))).refused(&format!(
        "guest 'web': 0000:01:10.0 is not free: guest 'app' (process 5000) uses it through VFIO. 0000:01:10.1 of \
         pool 'net' is free, {AGAIN}"
    ));
    has(&host, "db", 1);
    host.prepare("web", &asking("web", &vf(1)))
        .refused_saying(&["0000:01:10.0 (guest 'app' (process 5000) uses it through VFIO), 0000:01:10.1 (guest 'db')"]);
    // Without a pool, too.
    host.guest("web", &vf(0)).prepare().refused_saying(&["uses it through VFIO. Stop guest 'app'"]);
    // An enabled device that nobody has open is free.
    fs::remove_dir_all(host.path("proc/5000")).unwrap();
    has(&host, "web", 0);
}

#[test]
fn a_hot_plugged_device_is_learned_and_then_known_by_its_guest() {
    let host = Host::with_vfs(2);
    let app = host.guest("app", &vf(0));
    host.move_to(&vf(0), Some("vfio-pci"));
    host.qemu_runs("app", 5000);
    host.opens_group(5000, group(0));
    app.hook("reconnect").run().ok();
    host.prepare("web", &asking("web", &vf(0))).refused_saying(&["0000:01:10.0 is not free: guest 'app' has it"]);
}

#[test]
fn a_vf_that_libvirts_network_chose_is_leased_at_start() {
    let host = Host::with_vfs(2);
    host.prepare("web", &domain("web", &[])).ok_silently();
    let interface = format!("<interface type='hostdev' managed='yes'>{}</interface>", source(&vf(0)));
    let xml = domain("web", &[interface]);
    host.hook("web", "start", &xml).run().ok();
    assert_eq!((host.recorded("claims"), host.queue()), (vec![vf(0)], vec!["guest web".to_owned()]));
    host.prepare("db", &asking("db", &vf(0)))
        .refused_saying(&["guest 'web' has it. 0000:01:10.1 of pool 'net' is free"]);
    // One that it chose although it is taken is refused here, too.
    host.hook("db", "start", &xml).run().refused_saying(&["guest 'db': 0000:01:10.0 is not free: guest 'web' has it"]);
    host.release("web", &xml).ok();
    host.assert_no_leases("after release");
}

/// `web` is told which devices to take, here the second one, and these are kept for it.
fn reserve(host: &Host, guest: &str, xml: &str) -> String {
    let outcome = host.hook(guest, "migrate", xml).run();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    outcome.stdout
}

#[test]
fn a_choice_is_kept_for_its_guest_for_a_minute() {
    let host = Host::with_vfs(2);
    has(&host, "db", 0);
    let chosen = reserve(&host, "web", &asking("web", &vf(0)));
    assert_eq!(chosen, asking("web", &vf(1)));
    let other = asking("mail", &vf(1));
    host.uptime(1059);
    host.prepare("mail", &other).refused_saying(&["0000:01:10.1 (guest 'web')"]);
    host.release("mail", &other).ok();
    host.uptime(1060);
    host.prepare("mail", &other).ok();
    // Too late; and it does not take it from the other.
    host.prepare("web", &chosen).refused_saying(&["0000:01:10.1 (guest 'mail')"]);
    host.release("web", &chosen).ok();
    assert_eq!(host.recorded("leases"), ["db", "mail"]);
}

#[test]
fn a_start_takes_over_what_was_kept_for_it_and_drops_the_rest() {
    let host = Host::with_vfs(4);
    let both = definition("web", &[("net", 0), ("net", 1)], &[hostdev_at(&vf(0), 0, ""), hostdev_at(&vf(1), 1, "")]);
    let before = host.snapshot();
    assert_eq!(reserve(&host, "web", &both), "", "nothing to change");
    assert_eq!(host.recorded("claims"), [vf(0), vf(1)]);
    assert!(host.get("run/vfpool/leases/web").unwrap().contains("state=\"reserved\""));
    host.assert_as(&before, "nothing is touched");
    // A choice that is made again replaces the one before.
    assert_eq!(reserve(&host, "web", &asking("web", &vf(1))), "");
    assert_eq!(host.recorded("claims"), [vf(1)]);
    reserve(&host, "web", &both);
    host.prepare("web", &asking("web", &vf(2))).ok();
    assert_eq!(host.recorded("claims"), [vf(2)], "it is started with another one");
    host.release("web", "").ok();
    host.assert_no_leases("after release");
    // A start that fails, at once or later, drops it, too; and so does the reconciler, in time.
    reserve(&host, "web", &both);
    host.release("web", &both).ok();
    host.assert_no_leases("after the release of a start that came to nothing");
    reserve(&host, "web", &both);
    host.reconcile().ok();
    assert_eq!(host.recorded("leases"), ["web"]);
    host.uptime(2000);
    host.reconcile().ok();
    host.assert_no_leases("after its time");
}

#[test]
fn two_guests_may_each_want_what_was_kept_for_the_other() {
    let host = Host::with_vfs(2);
    host.settings("<deadline seconds='5'/>");
    for _ in 0..10 {
        host.uptime(1000);
        reserve(&host, "a", &asking("a", &vf(0)));
        reserve(&host, "b", &asking("b", &vf(1)));
        host.uptime(2000);
        let calls = [("a", vf(1)), ("b", vf(0))];
        let calls = calls.map(|(guest, vf)| host.hook(guest, "prepare", &asking(guest, &vf)).spawn());
        for call in calls {
            call.wait().ok();
        }
        for guest in ["a", "b"] {
            host.release(guest, "").ok();
        }
        host.assert_no_leases("after both");
    }
}

#[test]
fn a_pooled_device_of_a_group_takes_its_siblings() {
    let host = Host::with_pair();
    host.pool("nics", "<address type='pci' bus='0x02' slot='0x00' function='0x0'/>");
    let before = host.snapshot();
    let xml = definition("web", &[("nics", 0)], &[hostdev_at("0000:02:00.0", 0, "")]);
    host.prepare("db", &domain("db", &[hostdev("0000:02:00.1", true)])).ok();
    host.prepare("web", &xml).refused_saying(&["no device of pool 'nics' is free: 0000:02:00.0 (guest 'db'). Stop"]);
    host.release("db", "").ok();
    host.prepare("web", &xml).ok_saying("0000:02:00.1: e1000e -> vfio-pci (sibling, guest 'web')");
    host.release("web", &xml).ok();
    host.assert_as(&before, "after release");
    // A sibling that the host needs makes it one that nobody can have.
    host.add(Device::new("0000:03:00.0").group(9).driver("e1000e"));
    host.add(Device::new("0000:03:00.1").group(9).driver("e1000e"));
    host.netdev("0000:03:00.1", "eth9", true, &["192.0.2.7"]);
    host.pool("nics", "<address type='pci' bus='0x03' slot='0x00' function='0x0'/>");
    let xml = definition("web", &[("nics", 0)], &[hostdev_at("0000:03:00.0", 0, "")]);
    host.prepare("web", &xml).refused_saying(&["no device of pool 'nics' is free: 0000:03:00.0 (eth9 is up and has"]);
    assert_eq!(slot(0), "0000:00:05.0");
}
