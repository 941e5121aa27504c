//! How guests end, or do not: releases in any number, a libvirtd that dies, records that are lost.

use crate::commands::explain::prepare_as_foretold;
use fakehost::{FIRST, Host, SECOND, asking, domain, domain_with, hostdev, vf, wait_until};
use std::fs::File;
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};

#[test]
fn release_may_come_twice_or_for_nothing() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.release().ok_silently();
    web.prepare().ok();
    web.release().ok();
    web.release().ok_silently();
    host.assert_restored(&before, "after all");
}

#[test]
fn release_needs_no_xml() {
    for xml in ["", "<domain", "no xml"] {
        let host = Host::with_pair();
        let before = host.snapshot();
        host.guest("web", FIRST).prepare().ok();
        host.release("web", xml).ok();
        host.assert_restored(&before, xml);
    }
}

#[test]
fn release_while_qemu_runs_keeps_everything() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest("web", FIRST).starts().runs();
    let in_use = host.snapshot();
    for _ in 0..2 {
        web.release().ok_saying("vfpool: guest 'web': its QEMU still runs, so it keeps its devices\n");
        host.assert_as(&in_use, "after release");
        assert_eq!(host.recorded("leases"), ["web"]);
    }
    host.guest("db", SECOND).prepare().refused_saying(&["guest 'web' has 0000:02:00.0"]);
    web.ends();
    web.release().ok();
    host.assert_restored(&before, "after the end");
}

#[test]
fn a_running_guest_is_not_started_again() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST).starts().runs();
    let in_use = host.snapshot();
    web.prepare().refused("guest 'web': it runs already, and holds its devices");
    host.assert_as(&in_use, "after the refusal");
}

#[test]
fn a_start_that_libvirtd_did_not_finish_is_undone_by_the_next_guest() {
    let host = Host::with_pair();
    let before = host.snapshot();
    for managed in [true, false] {
        let web = host.guest_of("web", domain("web", &[hostdev(FIRST, managed)]));
        web.prepare().ok();
        let _ = web.detaches();
        let db = host.guest("db", SECOND);
        prepare_as_foretold(&db).refused_saying(&["guest 'web' has 0000:02:00.0"]);
        host.libvirtd_dies();
        prepare_as_foretold(&db).ok_saying("vfpool: guest 'web' is no longer running; reattaching its devices\n");
        assert_eq!(host.recorded("leases"), ["db"]);
        host.assert_viable_without(SECOND, 8);
        db.release().ok();
        host.assert_restored(&before, "after release");
    }
}

#[test]
fn a_guest_that_ended_with_libvirtd_is_recovered() {
    for by_command in [true, false] {
        let host = Host::with_pair();
        let before = host.snapshot();
        let _ = host.guest("web", FIRST).starts().runs();
        host.libvirtd_dies();
        assert_eq!(host.vfpool(&["reconcile"]).ok().stderr, "", "the guest runs on without libvirtd");
        assert_eq!(host.recorded("leases"), ["web"]);
        host.qemu_ends("web");
        let told = "guest 'web' is no longer running; reattaching its devices";
        if by_command {
            host.vfpool(&["reconcile"]).ok_saying(told);
        } else {
            let db = host.guest("db", FIRST);
            prepare_as_foretold(&db).ok_saying(told);
            db.release().ok();
        }
        host.assert_restored(&before, "after recovery");
    }
}

#[test]
fn a_qemu_whose_pid_went_to_another_process_is_gone() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let _ = host.guest("web", FIRST).starts().runs();
    host.libvirtd_dies();
    host.process(4000, 1, 77);
    host.vfpool(&["reconcile"]).ok_saying("guest 'web' is no longer running");
    host.assert_as(&before, "after recovery");
}

#[test]
fn the_same_guest_starts_again_after_a_start_that_nobody_ended() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    let web = web.detaches();
    host.libvirtd_dies();
    prepare_as_foretold(&web).ok();
    host.assert_viable_without(FIRST, 8);
    web.release().ok();
    host.assert_restored(&before, "after release");
}

#[test]
fn lost_records_are_learned_from_a_running_guest() {
    for operation in ["reconnect", "started"] {
        let host = Host::with_pair();
        let web = host.guest("web", FIRST).starts().runs();
        std::fs::remove_dir_all(host.path("run/vfpool")).unwrap();
        let in_use = host.snapshot();
        web.hook(operation).run().ok_saying(
            "vfpool: 0000:02:00.1: learned from the running guest 'web'; it stays on vfio-pci when the guest stops, \
             unless libvirt reattaches it\n",
        );
        host.assert_as(&in_use, operation);
        assert_eq!(host.recorded("claims"), [FIRST, SECOND]);
        web.hook("reconnect").run().ok_silently();
        host.guest("db", FIRST).prepare().refused_saying(&["guest 'web' has it"]);
        host.assert_as(&in_use, "after the refusal");
        web.ends();
        web.release().ok();
        host.assert_no_leases("after release");
    }
}

#[test]
fn a_device_that_somebody_else_moved_stays_there() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST).starts().runs();
    web.ends();
    host.libvirt_reattaches(SECOND, Some("igb"));
    web.release().ok_saying(
        "vfpool: 0000:02:00.1 was on e1000e before guest 'web' and is on igb now; another program has moved it, so it \
         stays\n",
    );
    assert_eq!(host.driver(SECOND).as_deref(), Some("igb"));
    host.assert_no_leases("after release");
}

#[test]
fn a_device_that_was_pulled_out_is_forgotten() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST).starts().runs();
    host.qemu_ends("web");
    host.remove(SECOND);
    web.release().ok_saying("vfpool: 0000:02:00.1 of guest 'web' is gone; nothing to reattach\n");
    host.assert_no_leases("after release");
}

#[test]
fn another_device_at_the_address_is_left_alone() {
    use fakehost::Device;
    let host = Host::with_pair();
    let web = host.guest("web", FIRST).starts().runs();
    web.ends();
    host.remove(SECOND);
    host.add(Device::new(SECOND).id("8086:10c9").driver("vfio-pci").group(8));
    let before = host.snapshot();
    web.release().ok();
    host.assert_restored(&before, "after release");
}

#[test]
fn a_group_that_somebody_has_open_is_not_pulled_away() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest("web", FIRST).starts().runs();
    web.ends();
    host.process(5000, 1, 5);
    host.opens_group(5000, 8);
    let told = "Cannot reattach 0000:02:00.1 to the host: process 5000 (qemu-kvm) has its IOMMU group 8 open. It is \
                tried again at the next start or stop of a guest";
    web.release().ok_saying(&format!("vfpool: {told}\n"));
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    assert_eq!(host.get("run/vfpool/attention/web").as_deref(), Some(told));
    assert_eq!(host.recorded("claims"), [SECOND], "what went back is free");
    let list = host.vfpool(&["list", "--json"]).stdout;
    assert!(list.contains(told), "{list}");
    std::fs::remove_dir_all(host.path("proc/5000")).unwrap();
    // Any event of any guest.
    host.release("other", "").ok_saying("0000:02:00.1: vfio-pci -> e1000e (reattached, guest 'web')");
    host.assert_restored(&before, "after the second try");
}

/// A process that keeps the lock, as one does that hangs.
fn lock(host: &Host) -> File {
    let lock = File::options().write(true).open(host.path("run/vfpool/lock")).unwrap();
    fs2::FileExt::lock_exclusive(&lock).unwrap();
    lock
}

#[test]
fn a_release_that_gets_no_lock_is_carried_out_later() {
    for later in ["another guest's event", "reconcile", "the next start"] {
        let host = Host::with_pair();
        let before = host.snapshot();
        let web = host.guest("web", FIRST);
        web.prepare().ok();
        let held = lock(&host);
        // After 10 s.
        web.release().ok_saying("Cannot lock ");
        drop(held);
        assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"), "not yet");
        assert_eq!(host.queue(), ["guest web"], "systemd starts the reconciler");
        match later {
            "reconcile" => assert_eq!(host.reconcile().code, Some(0)),
            "another guest's event" => _ = host.release("nobody", "").ok(),
            _ => {
                host.guest("web", FIRST).prepare().ok();
                assert!(host.get("run/vfpool/leases/web").unwrap().contains("state=\"pending\""));
                assert_eq!(host.recorded("ended"), [""; 0], "this start has not ended");
                host.guest("db", FIRST).prepare().refused_saying(&["guest 'web' has it"]);
                continue;
            }
        }
        host.assert_restored(&before, later);
        assert_eq!(host.recorded("ended"), [""; 0]);
    }
}

#[test]
fn a_release_that_is_killed_anywhere_is_finished_by_the_next_event() {
    // Before its mark, which is the third change after a lock and a folder, only libvirt knows that the guest is off.
    let (reconciler, other) = (("the reconciler", 1), ("another guest's event", 4));
    for ((event, first), has_run) in [(reconciler, false), (reconciler, true), (other, false), (other, true)] {
        for step in first.. {
            let host = Host::with_pair();
            let before = host.snapshot();
            let web = host.guest("web", FIRST).starts();
            let web = if has_run { web.runs() } else { web };
            host.qemu_ends("web");
            web.hook("stopped").run().ok_silently();
            web.reattaches();
            host.trace();
            let killed = web.hook("release").killed_at(step).run();
            if killed.code.is_some() {
                assert!(step > 8, "{step}: it makes some changes");
                break;
            }
            // The child that made the last change may have the turn for a moment longer.
            let end = Instant::now() + Duration::from_secs(10);
            while !host.recorded("leases").is_empty() && Instant::now() < end {
                match event {
                    "the reconciler" => {
                        assert_eq!(host.queue(), ["stopped web"], "{step}: systemd starts it");
                        host.vfpool(&["reconcile", "--queued"]).ok();
                    }
                    _ => _ = host.release("nobody", "").ok(),
                }
            }
            host.assert_restored(&before, &format!("killed before change {step}, then {event} ({has_run})"));
        }
    }
}

#[test]
fn a_start_that_libvirt_has_not_ended_is_left_alone() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest("web", FIRST).starts();
    let in_use = host.snapshot();
    host.reconcile().ok_silently();
    host.assert_as(&in_use, "while libvirt starts it");
    // libvirt would answer late.
    host.virsh_faults("domid fail it is not to be asked now");
    host.put("run/vfpool/queue/reconcile/guest web", "");
    host.vfpool(&["reconcile", "--queued"]).ok_silently();
    host.assert_as(&in_use, "while libvirt starts it");
    // Nor is it touched while libvirt cannot be asked, and that is tried again.
    web.hook("stopped").run().ok_silently();
    host.virsh_faults("domid fail failed to connect to the hypervisor");
    let failed = host.reconcile();
    assert_eq!(failed.code, Some(1));
    assert!(failed.stderr.contains("guest 'web': virsh domid: failed to connect"), "{}", failed.stderr);
    host.assert_as(&in_use, "while libvirt says nothing");
    assert_eq!(host.queue(), ["stopped web"]);
    // A guest that is defined is off, and one that is not is gone.
    for is_defined in [false, true] {
        host.virsh_faults("");
        if is_defined {
            host.define("web", &web.xml);
            host.prepare("web", &web.xml).ok();
            host.hook("web", "stopped", "").run().ok_silently();
        }
        web.reattaches();
        host.reconcile().ok_saying("guest 'web' is off, and its release did not end; reattaching its devices");
        host.assert_restored(&before, "when it has ended");
    }
}

#[test]
fn a_start_that_begins_when_libvirt_was_asked_about_the_last_is_left_alone() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    web.hook("stopped").run().ok_silently();
    host.virsh_faults("domid then touch answered; while [ ! -e go ]; do sleep 0.01; done");
    let reconciler = host.command(&["reconcile"]).spawn();
    wait_until("the answer", || host.path("answered").exists());
    let old = host.get("run/vfpool/leases/web");
    web.prepare().ok();
    assert_eq!(host.get("run/vfpool/leases/web"), old, "the new lease reads as the old one");
    host.put("go", "");
    reconciler.wait().ok_silently();
    assert_eq!(host.get("run/vfpool/leases/web"), old);
    host.assert_viable_without(FIRST, 8);
}

#[test]
fn what_a_dead_libvirtd_left_is_reattached_by_an_event_of_any_guest() {
    for event in ["prepare", "release"] {
        let host = Host::with_pair();
        host.add_pair("0000:03:00", 9);
        // Both have been seen by this libvirtd.
        host.release("nobody", "").ok();
        let web = host.guest("web", FIRST).starts();
        host.libvirtd_dies();
        web.reattaches();
        let outcome = match event {
            "prepare" => host.guest("db", "0000:03:00.0").prepare(),
            _ => host.release("nobody", ""),
        };
        outcome.ok_saying("guest 'web' is no longer running; reattaching its devices");
        assert_eq!(host.driver(SECOND).as_deref(), Some("e1000e"), "{event}");
        assert!(!host.recorded("leases").contains(&"web".to_owned()), "{event}");
    }
}

#[test]
fn a_release_of_an_earlier_start_leaves_what_is_reserved_for_the_next() {
    let host = Host::with_vfs(2);
    host.prepare("db", &asking("db", &vf(0))).ok();
    host.prepare("web", &asking("web", &vf(0))).refused_saying(&["guest 'db'"]);
    let chosen = host.vfpool_with(&["rewrite"], asking("web", &vf(0)).as_bytes()).run();
    assert_eq!((chosen.code, chosen.stdout), (Some(0), asking("web", &vf(1))));
    // Of the start that was refused.
    host.release("web", "").ok();
    host.prepare("mail", &asking("mail", &vf(1))).refused_saying(&["0000:01:10.1 (guest 'web')"]);
    host.prepare("web", &asking("web", &vf(1))).ok();
    host.release("web", "").ok();
    assert_eq!(host.recorded("leases"), ["db"]);
}

#[test]
fn a_lease_in_a_later_format_is_left_as_it_is() {
    for (state, role) in [("active", "sibling"), ("paused", "sibling"), ("active", "peer")] {
        let host = Host::with_pair();
        let web = host.guest("web", FIRST).starts().runs();
        let lease = host.get("run/vfpool/leases/web").unwrap();
        let later = lease.replace("version=\"1\"", "version=\"2\"").replace("\"active\"", &format!("\"{state}\""));
        let later = later.replace("\"sibling\"", &format!("\"{role}\""));
        host.put("run/vfpool/leases/web", &later);
        let why = "it has format 2, this vfpool knows 1. Install the version of vfpool that wrote it";
        let reconciled = host.reconcile();
        assert_eq!(reconciled.code, Some(1));
        assert!(reconciled.stderr.contains(why), "{}", reconciled.stderr);
        web.ends();
        web.release().ok_saying(why);
        host.guest("db", FIRST).prepare().refused_saying(&[why]);
        web.prepare().refused_saying(&[why]);
        assert_eq!(host.get("run/vfpool/leases/web"), Some(later), "{state} {role}");
        assert_eq!(host.recorded("corrupt"), [""; 0]);
        assert_eq!(host.recorded("claims"), [FIRST, SECOND]);
    }
}

#[test]
fn libvirtd_is_not_the_qemu_of_a_guest_named_driver() {
    let host = Host::with_pair();
    let before = host.snapshot();
    // libvirt 6 and later keep their own pid there.
    host.put("run/libvirt/qemu/driver.pid", std::process::id().to_string());
    let guest = host.guest("driver", FIRST);
    guest.prepare().ok();
    guest.release().ok();
    host.assert_restored(&before, "after the start that failed");
    // libvirt before 6 has the guest's QEMU there, and its own pid elsewhere.
    host.put("run/libvirtd.pid", std::process::id().to_string());
    let guest = guest.starts().runs();
    host.guest("db", FIRST).prepare().refused_saying(&["guest 'driver' has it"]);
    guest.release().ok_saying("its QEMU still runs");
    guest.ends();
    guest.release().ok();
    host.assert_restored(&before, "after its end");
}

#[test]
fn a_turn_goes_with_its_lease() {
    let host = Host::with_pair();
    for number in 0..3 {
        let guest = host.guest(&format!("transient{number}"), FIRST);
        guest.prepare().ok();
        assert_eq!(host.recorded("turns"), [guest.name.as_str()]);
        host.guest("db", FIRST).prepare().refused_saying(&["has it"]);
        host.release("db", "").ok();
        assert_eq!(host.recorded("turns"), [guest.name.as_str()]);
        guest.release().ok();
    }
    assert_eq!(host.recorded("turns"), [""; 0]);
}

#[test]
fn the_libvirtd_of_a_user_moves_nothing() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let xml = domain_with("web", &[FIRST]);
    // The state belongs to root; here, to another user than the hook's.
    chown(host.path("run"), Some(12345), None).unwrap();
    for operation in ["prepare", "start", "started", "stopped", "release"] {
        host.hook("web", operation, &xml).run().ok_silently();
        host.assert_as(&before, operation);
    }
    assert_eq!(host.recorded("leases"), [""; 0]);
}
