//! How guests end, or do not: releases in any number, a libvirtd that dies, records that are lost.

use crate::commands::explain::prepare_as_foretold;
use fakehost::{FIRST, Host, SECOND, domain, hostdev};

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
        "vfpool: 0000:02:00.1 was on e1000e before guest 'web' and is on igb now; somebody else has moved it, so it \
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
