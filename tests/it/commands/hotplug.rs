//! A running guest gets a device of a pool and loses it again. libvirt calls no hook then: lease, group, metadata and
//! definition are kept in step by the command, whatever fails or is killed in between.

use fakehost::{Host, Outcome, asking, definition, hostdev_at, slot, vf};
use std::fs;

/// `web` runs without any device; `db` has the first VF.
fn host() -> Host {
    let host = Host::with_vfs(4);
    (0..4).for_each(|number| host.move_to(&vf(number), Some("vfio-pci")));
    host.define("db", &asking("db", &vf(0)));
    host.define("web", &definition("web", &[], &[]));
    host.runs("db");
    host.runs("web");
    let _ = fs::remove_dir_all(host.path("run/vfpool/queue"));
    host
}

fn live(host: &Host, guest: &str) -> String {
    host.virsh(&["dumpxml", guest]).stdout
}

fn lease(host: &Host, guest: &str) -> String {
    host.get(&format!("run/vfpool/leases/{guest}")).unwrap_or_default()
}

/// The devices of a running guest, by libvirt and by its lease.
#[track_caller]
fn has(host: &Host, guest: &str, devices: &[String]) {
    assert_eq!(fakehost::devices_of(&live(host, guest)), devices, "libvirt");
    let lease = lease(host, guest);
    let held: Vec<&str> = lease.split("<device address=\"").skip(1).map(|rest| &rest[..12]).collect();
    assert_eq!(held, devices, "{lease}");
    assert!(devices.is_empty() || lease.contains("state=\"active\""), "{lease}");
}

#[track_caller]
fn done(outcome: Outcome) -> String {
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    outcome.stdout
}

const METADATA: &str = "<vfpool:device pool=\"net\" guest-address=\"0000:00:02.0\"/>";

#[test]
fn a_device_is_plugged_and_unplugged() {
    let host = host();
    let (before, definition) = (host.snapshot(), host.definition("web"));
    assert_eq!(
        done(host.vfpool(&["attach", "web", "net", "--live"])),
        "guest 'web': 0000:01:10.1 of pool 'net' attached to the running guest\n"
    );
    assert_eq!(
        host.virsh_trace(),
        ["dumpxml web", "attach-device web --live", "dumpxml web", "metadata web --live --set"]
    );
    has(&host, "web", &[vf(1)]);
    assert!(live(&host, "web").contains(METADATA), "{}", live(&host, "web"));
    assert_eq!(host.definition("web"), definition, "only as long as it runs");
    assert_eq!(host.queue(), ["guest web"], "whoever is parked there has to move");
    // It is the guest's as any other: nobody gets it, and reconcile and a new libvirtd leave it alone.
    host.define("mail", &asking("mail", &vf(1)));
    host.reconcile().ok();
    assert_eq!(host.points_at("mail"), [vf(2)]);
    host.hook("web", "reconnect", &live(&host, "web")).run().ok();
    has(&host, "web", &[vf(1)]);
    host.virsh_trace();
    host.vfpool(&["detach", "web", "net", "--live"]).refused(
        "guest 'web': a running guest loses a device by this, and there is no terminal to ask. Use --force to do it \
         without asking",
    );
    assert_eq!(host.virsh_trace(), ["dumpxml web"]);
    assert_eq!(
        done(host.vfpool(&["detach", "web", "net", "--live", "--force"])),
        "guest 'web': 0000:01:10.1 of pool 'net' detached from the running guest\n"
    );
    has(&host, "web", &[]);
    assert!(!live(&host, "web").contains("vfpool:"), "{}", live(&host, "web"));
    host.assert_as(&before, "after all");
    assert_eq!(host.recorded("leases"), ["db"]);
    host.vfpool(&["detach", "web", "net", "--live", "--force"])
        .refused("guest 'web': it has no such device of pool 'net' now");
}

#[test]
fn the_guest_is_read_before_and_after_it_gets_a_device() {
    let host = host();
    let opened = host.opened_by(|| _ = done(host.vfpool(&["attach", "web", "net", "--live"])));
    assert_eq!(host.virsh_trace().iter().filter(|call| *call == "dumpxml web").count(), 2);
    assert_eq!(opened.get("etc/libvirt/qemu/web.xml"), Some(&1), "{opened:#?}");
}

#[test]
fn live_and_config_are_one_device() {
    for (flags, element) in [
        (vec![], "<hostdev "),
        (vec!["--rom-off"], "<rom bar='off'/>"),
        (vec!["--interface", "52:54:00:aa:00:77"], "<mac address='52:54:00:aa:00:77'/>"),
    ] {
        let host = host();
        let before = host.definition("web");
        done(host.vfpool(&[&["attach", "web", "net", "--live", "--config"], flags.as_slice()].concat()));
        has(&host, "web", &[vf(1)]);
        let now = definition("web", &[], &[]);
        assert_ne!(host.definition("web"), now);
        for xml in [host.definition("web"), live(&host, "web")] {
            assert!(xml.contains(METADATA) && xml.contains(element), "{xml}");
            assert_eq!(fakehost::devices_of(&xml), [vf(1)]);
        }
        // After the next start it still is one of the pool.
        host.stops("web");
        assert_eq!(host.recorded("leases"), ["db"]);
        host.runs_with("mail", &vf(1));
        host.reconcile().ok();
        assert_eq!(host.points_at("web"), [vf(2)]);
        host.runs("web");
        has(&host, "web", &[vf(2)]);
        done(host.vfpool(&["detach", "web", "net", &vf(2), "--live", "--config", "--force"]));
        has(&host, "web", &[]);
        assert_eq!(host.definition("web"), before, "{flags:?}");
    }
}

#[test]
fn the_definition_may_have_no_room_at_the_same_guest_address() {
    let host = host();
    let other = hostdev_at("0000:07:00.0", 0, "").replace("slot='0x05'", "slot='0x02'");
    host.define("web", &definition("web", &[], &[other]));
    done(host.vfpool(&["attach", "web", "net", "--live", "--config"]));
    assert!(host.definition("web").contains("guest-address=\"0000:00:04.0\""), "{}", host.definition("web"));
    assert!(live(&host, "web").contains(METADATA));
}

#[test]
fn a_guest_keeps_its_device_until_its_system_agrees() {
    let host = host();
    done(host.vfpool(&["attach", "web", "net", "--live", "--config"]));
    let (definition, held) = (host.definition("web"), lease(&host, "web"));
    host.put("hw/keeps-devices/web", "");
    // Longer than virsh takes on a machine that is busy with other things.
    host.settings("<deadline seconds='5'/>");
    let detach = ["detach", "web", "net", "--live", "--config", "--force"];
    host.vfpool(&detach).refused(
        "guest 'web': it has not let go of 0000:01:10.1 within 5 s, and keeps it: the guest's system has to agree to a \
         hot-unplug. If it does so later, run `vfpool reconcile` then",
    );
    assert_eq!((host.definition("web"), lease(&host, "web")), (definition, held));
    has(&host, "web", &[vf(1)]);
    // It lets go while it is waited for; nobody else has to wait meanwhile.
    host.settings("<deadline seconds='20'/>");
    let waiting = host.command(&detach).spawn();
    while !host.virsh_trace().iter().any(|line| line.starts_with("detach-device")) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    host.define("mail", &asking("mail", &vf(0)));
    host.reconcile().ok();
    done(host.virsh(&["eject", "web"]));
    done(waiting.wait());
    has(&host, "web", &[]);
    // And later than that.
    done(host.vfpool(&["attach", "web", "net", "--live"]));
    host.settings("<deadline seconds='5'/>");
    assert_eq!(host.vfpool(&["detach", "web", "net", "--live", "--force"]).code, Some(1));
    done(host.virsh(&["eject", "web"]));
    host.settings("<deadline seconds='20'/>");
    host.reconcile().ok();
    has(&host, "web", &[]);
    // Or it stops.
    done(host.vfpool(&["attach", "web", "net", "--live"]));
    let waiting = host.command(&["detach", "web", "net", "--live", "--force"]).spawn();
    while host.get("hw/asked/web").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    host.stops("web");
    done(waiting.wait());
    assert_eq!(host.recorded("leases"), ["db"]);
}

/// A pair in one group, of which the first is the pool `nics`; `web` runs.
fn pair() -> Host {
    let host = Host::with_pair();
    host.pool("nics", "<address type='pci' bus='0x02' slot='0x00' function='0x0'/>");
    host.define("web", &definition("web", &[], &[]));
    host.runs("web");
    host
}

#[test]
fn the_rest_of_the_group_goes_with_it_and_comes_back() {
    let host = pair();
    let before = host.snapshot();
    done(host.vfpool(&["attach", "web", "nics", "--live"]));
    assert_eq!(host.recorded("claims"), ["0000:02:00.0", "0000:02:00.1"]);
    host.assert_viable(8);
    done(host.vfpool(&["detach", "web", "nics", "--live", "--force"]));
    host.assert_restored(&before, "after detach");
    // The guest stops with it.
    done(host.vfpool(&["attach", "web", "nics", "--live"]));
    host.stops("web");
    host.assert_restored(&before, "after the stop");
}

#[test]
fn what_fails_on_the_way_is_undone() {
    // Each command in turn, of a hot-plug into guest and definition.
    for (number, command) in
        [(2, "attach-device"), (3, "dumpxml"), (4, "metadata"), (5, "attach-device"), (6, "metadata")]
    {
        let host = pair();
        let (before, definition) = (host.snapshot(), host.definition("web"));
        // The definition may take the device at another address.
        let faults = match number {
            5 => "5 fail no\n6 fail no",
            6 => "6 fail no\n9 fail no",
            number => &format!("{number} fail no"),
        };
        host.virsh_faults(faults);
        host.vfpool(&["attach", "web", "nics", "--live", "--config"])
            .refused(&format!("guest 'web': virsh {command}: no"));
        host.assert_restored(&before, command);
        assert!(!live(&host, "web").contains("vfpool:"), "{number}");
        assert_eq!(host.definition("web"), definition, "{number}");
        assert!(host.queue().iter().all(|entry| !entry.starts_with("attached")), "{number}");
    }
    // What cannot be undone, as the guest does not let go, is said; and stays the guest's.
    let host = pair();
    host.settings("<deadline seconds='5'/>");
    host.put("hw/keeps-devices/web", "");
    host.virsh_faults("metadata fail no");
    host.vfpool(&["attach", "web", "nics", "--live"])
        .refused_saying(&["virsh metadata: no. Not all could be undone: it has not let go of 0000:02:00.0 within 5 s"]);
    assert_eq!(host.recorded("claims"), ["0000:02:00.0", "0000:02:00.1"]);
    // A write of our own: nothing of libvirt is touched then.
    let host = pair();
    let before = host.snapshot();
    host.faults("write errno EIO drivers_probe");
    host.virsh_trace();
    host.vfpool(&["attach", "web", "nics", "--live"]).refused_saying(&["guest 'web': Cannot write", "drivers_probe"]);
    assert_eq!(host.virsh_trace(), ["dumpxml web"]);
    host.faults("");
    host.reconcile().ok();
    host.assert_restored(&before, "after the failure");
}

#[test]
fn a_virsh_that_gives_no_answer_may_do_it_yet() {
    let host = host();
    host.settings("<deadline seconds='5'/>");
    host.virsh_faults("attach-device hang");
    host.vfpool(&["attach", "web", "net", "--live"]).refused_saying(&[
        "virsh attach-device: no answer for 5 s. Run `vfpool reconcile` when libvirtd answers again: if the \
         guest does not have 0000:01:10.1 then, it is reattached to the host",
    ]);
    assert_eq!(host.recorded("claims"), [vf(0), vf(1)], "nobody else gets it meanwhile");
    host.virsh_faults("");
    host.settings("<deadline seconds='20'/>");
    host.reconcile().ok();
    assert_eq!(host.recorded("claims"), [vf(0)]);
}

#[test]
fn what_a_virsh_is_just_doing_is_not_taken_for_undone() {
    let host = host();
    host.virsh_faults("attach-device sh kill -9 $(cut -d ' ' -f 4 /proc/$PPID/stat); sleep 1");
    let killed = host.vfpool(&["attach", "web", "net", "--live"]);
    assert_eq!(killed.code, None, "{}", killed.stderr);
    host.virsh_faults("");
    assert_eq!(host.recorded("claims"), [vf(0), vf(1)]);
    host.reconcile().ok();
    assert_eq!(host.recorded("claims"), [vf(0), vf(1)], "the guest has it by now");
}

#[test]
fn killed_at_any_step_the_next_run_brings_all_in_line() {
    for (guest_has_it, arguments) in [
        (false, vec!["attach", "web", "nics", "--live", "--config"]),
        (true, vec!["detach", "web", "nics", "--live", "--config", "--force"]),
    ] {
        let make = || {
            let host = pair();
            let before = host.snapshot();
            if guest_has_it {
                done(host.vfpool(&["attach", "web", "nics", "--live", "--config"]));
            }
            host.reconcile().ok();
            host.virsh_trace();
            host.trace();
            (host, before)
        };
        let (host, _) = make();
        done(host.vfpool(&arguments));
        let (commands, changes) = (host.virsh_trace().len(), host.trace().len());
        assert!(commands >= 6 && changes > 5, "{commands} {changes}");
        let check = |host: &Host, before: &fakehost::Snapshot, when: &str| {
            host.virsh_faults("");
            host.reconcile().ok();
            host.reconcile().ok();
            let xml = host.definition("web");
            let asks = xml.contains("vfpool:device");
            // A request without a device asks for nothing; a device without one would be a fixed one.
            assert!(asks || !xml.contains("<hostdev"), "{when}: {xml}");
            if live(host, "web").contains("<hostdev") {
                assert_eq!(host.recorded("claims").len(), 2, "{when}");
                host.assert_viable(8);
            } else {
                host.assert_restored(before, when);
            }
            host.stops("web");
            host.assert_restored(before, when);
            host.runs("web");
        };
        for number in 1..=commands {
            for fault in ["killed", "kills"] {
                let (host, before) = make();
                host.virsh_faults(&format!("{number} {fault}"));
                assert_eq!(host.vfpool(&arguments).code, None);
                check(&host, &before, &format!("{arguments:?}: {fault} at command {number}"));
            }
        }
        for number in 1..=changes {
            let (host, before) = make();
            assert_eq!(host.command(&arguments).killed_after(number).run().code, None);
            check(&host, &before, &format!("{arguments:?}: killed after change {number}"));
        }
    }
}

#[test]
fn an_attach_that_was_killed_before_its_request_is_ended_by_the_next_run() {
    let host = Host::with_vfs(2);
    host.define("web", &definition("web", &[], &[]));
    host.virsh_faults("metadata killed");
    assert_eq!(host.vfpool(&["attach", "web", "net", "--config"]).code, None);
    assert_eq!(host.queue(), ["attached 0000:01:10.0 web%2Fnet"]);
    assert!(!host.definition("web").contains("vfpool:"));
    host.virsh_faults("metadata fail cannot connect");
    host.reconcile().refused("guest 'web': virsh metadata: cannot connect");
    assert_eq!(host.queue(), ["attached 0000:01:10.0 web%2Fnet"], "not forgotten");
    host.virsh_faults("");
    host.reconcile().ok_saying(
        "guest 'web': a device of pool 'net', in the guest at 0000:00:02.0, was attached by a command that did not end",
    );
    assert!(host.definition("web").contains(METADATA));
    assert_eq!(host.queue(), [""; 0]);
    // One whose definition is broken keeps nobody from being parked, and is told of once.
    host.put("etc/libvirt/qemu/broken.xml", "<domain");
    host.put("run/vfpool/queue/reconcile/attached 0000:01:10.0 broken%2Fnet", "");
    host.define("db", &asking("db", &vf(0)));
    let outcome = host.reconcile();
    assert!(
        outcome.stderr.contains("guest 'broken': 0000:01:10.0 of pool 'net' stays a fixed device"),
        "{}",
        outcome.stderr
    );
    assert_ne!(host.points_at("db"), host.points_at("web"));
    assert_eq!(host.queue(), [""; 0]);
    fs::remove_file(host.path("etc/libvirt/qemu/broken.xml")).unwrap();
    fs::remove_file(host.path("etc/libvirt/qemu/db.xml")).unwrap();
    // What is not there, or asked for already, is left as it is; and so is a guest that is gone.
    let xml = host.definition("web");
    for entry in [
        "attached 0000:01:10.0 web%2Fnet",
        "attached 0000:01:10.1 web%2Fnet",
        "attached 0000:01:10.1 no%2Fnet",
        "attached x",
    ] {
        host.put(&format!("run/vfpool/queue/reconcile/{entry}"), "");
        host.reconcile().ok_silently();
        assert_eq!(host.definition("web"), xml, "{entry}");
    }
}

#[test]
fn what_cannot_be_plugged_is_told() {
    let host = host();
    let attach = |guest: &str| host.vfpool(&["attach", guest, "net", "--live"]);
    host.define("off", &definition("off", &[], &[]));
    attach("off").refused("guest 'off': it is not running. Use --config instead of --live");
    host.vfpool(&["detach", "off", "net", "--live", "--force"])
        .refused("guest 'off': it is not running. Use --config instead of --live");
    attach("no").refused("guest 'no': no guest 'no' is defined on this host; see `virsh list --all`");
    host.vfpool(&["attach", "web", "lan", "--live"]).refused_saying(&["guest 'web': There is no pool 'lan'"]);
    for wrong in [
        &["attach", "web", "net"] as &[&str],
        &["detach", "web", "net", "--force"],
        &["attach", "web", "net", "--live", "--force"],
        &["release"],
    ] {
        assert_eq!(host.vfpool(wrong).code, Some(2), "{wrong:?}");
    }
    host.virsh_faults("dumpxml fail failed to connect to the hypervisor");
    attach("web").refused("guest 'web': virsh dumpxml: failed to connect to the hypervisor");
    host.virsh_faults("");
    for number in 1..4 {
        let guest = format!("g{number}");
        host.define(&guest, &asking(&guest, &vf(number)));
        host.runs(&guest);
    }
    let before = host.snapshot();
    attach("web").refused(
        "guest 'web': no device of pool 'net' is free: 0000:01:10.0 (guest 'db'), 0000:01:10.1 (guest 'g1'), \
         0000:01:10.2 (guest 'g2'), 0000:01:10.3 (guest 'g3'). Stop one of these first",
    );
    host.assert_as(&before, "after refusals");
    assert_eq!(host.recorded("leases"), ["db", "g1", "g2", "g3"]);
    // The host needs the rest of the group: as at a start.
    let host = pair();
    host.netdev("0000:02:00.1", "eth9", true, &["192.0.2.7"]);
    let before = host.snapshot();
    host.vfpool(&["attach", "web", "nics", "--live"]).refused(
        "guest 'web': no device of pool 'nics' is free: 0000:02:00.0 (eth9 is up and has the address \
                  192.0.2.7). `vfpool explain` says of each what frees it",
    );
    host.assert_restored(&before, "after the refusal");
}

#[test]
fn a_device_that_was_attached_by_hand_is_learned_with_the_next_one() {
    let host = host();
    host.put("dev.xml", hostdev_at(&vf(2), 9, ""));
    done(host.virsh(&["attach-device", "web", host.path("dev.xml").to_str().unwrap(), "--live"]));
    assert_eq!(host.recorded("claims"), [vf(0)]);
    let outcome = host.vfpool(&["attach", "web", "net", "--live"]);
    assert!(outcome.stderr.contains("0000:01:10.2: learned from the running guest 'web'"), "{}", outcome.stderr);
    done(outcome);
    has(&host, "web", &[vf(2), vf(1)]);
    // Only what was asked from the pool is taken from the guest.
    done(host.vfpool(&["detach", "web", "net", "--live", "--force"]));
    has(&host, "web", &[vf(2)]);
    host.vfpool(&["detach", "web", "net", &vf(2), "--live", "--force"])
        .refused("guest 'web': it has no such device of pool 'net' now");
    // One that was adopted while it ran is.
    host.define("web", &definition("web", &[("net", 9)], &[hostdev_at(&vf(2), 9, "")]));
    done(host.vfpool(&["detach", "web", "net", &slot(9), "--live", "--config", "--force"]));
    has(&host, "web", &[]);
    assert_eq!(host.points_at("web"), [""; 0]);
}

#[test]
fn two_attaches_at_once_get_two_devices() {
    let host = host();
    let both = [0, 1].map(|_| host.command(&["attach", "web", "net", "--live", "--config"]).spawn());
    for call in both {
        done(call.wait());
    }
    assert_eq!(host.recorded("claims"), [vf(0), vf(1), vf(2)]);
    assert_eq!(host.points_at("web").len(), 2);
    // One goes while another comes.
    let calls = [
        host.command(&["detach", "web", "net", &vf(1), "--live", "--config", "--force"]).spawn(),
        host.command(&["attach", "web", "net", "--live", "--config"]).spawn(),
    ];
    for call in calls {
        done(call.wait());
    }
    let claims = host.recorded("claims");
    assert_eq!(claims.len(), 3, "{claims:?}");
    let lease = lease(&host, "web");
    for address in fakehost::devices_of(&live(&host, "web")) {
        assert!(lease.contains(&address), "{lease}");
    }
}

#[test]
fn an_attach_never_gets_what_a_detach_is_just_taking() {
    for _ in 0..6 {
        let host = host();
        done(host.vfpool(&["attach", "web", "net", "--live"]));
        has(&host, "web", &[vf(1)]);
        // Both wait for the right to edit; libvirt has detached the device by then.
        let lock = fs::File::options().write(true).open(host.path("run/vfpool/editing")).unwrap();
        fs2::FileExt::lock_exclusive(&lock).unwrap();
        host.virsh_trace();
        let detach = host.command(&["detach", "web", "net", "--live", "--force"]).spawn();
        while !live(&host, "web").contains("<devices>") || !fakehost::devices_of(&live(&host, "web")).is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let attach = host.command(&["attach", "web", "net", "--live"]).spawn();
        std::thread::sleep(std::time::Duration::from_millis(100));
        fs2::FileExt::unlock(&lock).unwrap();
        done(detach.wait());
        let attached = done(attach.wait());
        let devices = fakehost::devices_of(&live(&host, "web"));
        assert!(devices.len() == 1 && attached.contains(&devices[0]), "{attached}");
        has(&host, "web", &devices);
        assert!(live(&host, "web").contains("vfpool:device"));
    }
}

#[test]
fn long_names_go_through_the_queue() {
    let (guest, pool) = ("g".repeat(180), "p".repeat(60));
    let host = Host::with_vfs(2);
    fs::remove_file(host.path("etc/vfpool/pools.d/net.xml")).unwrap();
    host.pool(&pool, "<pf dev='eth3'/>");
    host.define(&guest, &definition(&guest, &[], &[]));
    host.virsh_faults("metadata killed");
    let killed = host.vfpool(&["attach", &guest, &pool, "--config"]);
    assert_eq!(killed.code, None, "{}", killed.stderr);
    host.virsh_faults("");
    assert_eq!(host.queue().len(), 1);
    host.reconcile().ok();
    assert!(host.definition(&guest).contains(&format!("vfpool:device pool=\"{pool}\"")));
    assert_eq!(host.queue(), [""; 0]);
    done(host.vfpool(&["detach", &guest, &pool, "--config"]));
    // As long as a name can be here.
    let (host, guest) = (Host::with_vfs(2), "g".repeat(250));
    host.prepare(&guest, &asking(&guest, &vf(0))).ok();
    host.prepare("db", &asking("db", &vf(0)));
    host.release(&guest, "").ok();
    host.reconcile();
    assert_eq!(host.queue(), [""; 0]);
}

#[test]
fn a_hang_in_the_kernel_keeps_no_other_guest_from_being_edited() {
    let host = pair();
    host.settings("<deadline seconds='1'/>");
    host.define("mail", &definition("mail", &[], &[]));
    host.faults("write hang e1000e/unbind 0000:02:00.1");
    assert_eq!(host.vfpool(&["attach", "web", "nics", "--live"]).code, Some(1));
    done(host.vfpool(&["attach", "mail", "nics", "--config"]));
    // Also when the one that waits for the kernel is killed.
    let host = pair();
    host.define("mail", &definition("mail", &[], &[]));
    host.faults("write hang e1000e/unbind 0000:02:00.1");
    let mut attach = host.command(&["attach", "web", "nics", "--live"]).spawn();
    while host.recorded("claims").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    attach.kill();
    done(host.vfpool(&["attach", "mail", "nics", "--config"]));
    host.faults("");
}

#[test]
fn a_sibling_may_become_the_guests_own_and_a_sibling_again() {
    let host = pair();
    let before = host.snapshot();
    host.pool("both", "<address type='pci' bus='0x02' slot='0x00' function='0x1'/>");
    done(host.vfpool(&["attach", "web", "nics", "--live"]));
    done(host.vfpool(&["attach", "web", "both", "--live"]));
    assert!(
        lease(&host, "web").contains("0000:02:00.1\" id=\"8086:10d3\" role=\"managed\""),
        "{}",
        lease(&host, "web")
    );
    done(host.vfpool(&["detach", "web", "both", "--live", "--force"]));
    assert!(
        lease(&host, "web").contains("0000:02:00.1\" id=\"8086:10d3\" role=\"sibling\""),
        "{}",
        lease(&host, "web")
    );
    host.assert_viable(8);
    host.stops("web");
    host.assert_as(&before, "after the stop");
}

#[test]
fn a_guest_that_was_started_again_keeps_what_it_has_now() {
    let host = Host::with_vfs(3);
    (0..3).for_each(|number| host.move_to(&vf(number), Some("vfio-pci")));
    host.runs_with("web", &vf(0));
    // It let go of its device by itself, so its lease is looked at.
    let enable = host.path(&format!("sys/bus/pci/devices/{}/enable", vf(0)));
    fs::write(enable, "0\n").unwrap();
    // When libvirt has answered what the guest has, it is stopped and started with another device.
    host.put("again.xml", asking("web", &vf(1)));
    host.virsh_faults(
        "dumpxml then usr/bin/virsh destroy web; usr/bin/virsh define again.xml; usr/bin/virsh start web",
    );
    assert_eq!(host.reconcile().code, Some(0));
    assert_eq!(host.recorded("claims"), [vf(1)], "of the guest as it runs now");
    assert_eq!(host.recorded("leases"), ["web"]);
}
