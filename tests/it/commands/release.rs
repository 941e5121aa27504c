//! `vfpool release`: what a guest still holds is reattached by hand, and never more than that.

use fakehost::{FIRST, Host, PF, asking, domain_with, group, vf};

/// `web` was being started with one function of a pair; its libvirtd lives, and it never ran.
fn stuck() -> (Host, fakehost::Snapshot) {
    let host = Host::with_pair();
    let before = host.snapshot();
    host.guest("web", FIRST).prepare().ok();
    (host, before)
}

#[test]
fn a_guest_that_runs_or_is_being_started_keeps_its_devices() {
    let (host, before) = stuck();
    let pid = std::process::id();
    host.vfpool(&["release", "web"]).refused(&format!(
        "guest 'web': it is being started by libvirtd (process {pid}). If `virsh domstate web` says that it is not, \
         say --force"
    ));
    host.qemu_runs("web", 5000);
    for force in [&["release", "web"] as &[&str], &["release", "web", "02:00.0", "--force"]] {
        host.vfpool(force).refused("guest 'web': it runs, and has its devices. Stop it first: virsh destroy web");
    }
    host.guest("web", FIRST).hook("started").run().ok();
    host.vfpool(&["release", "web", "--force"])
        .refused("guest 'web': it runs (QEMU is process 5000), and has its devices. Stop it first: virsh destroy web");
    assert_eq!(host.recorded("claims"), [FIRST, "0000:02:00.1"]);
    host.qemu_ends("web");
    assert_eq!(host.vfpool(&["release", "web", "--force"]).code, Some(0));
    host.assert_as(&before, "after release");
}

#[test]
fn what_is_left_goes_back_by_hand() {
    let (host, before) = stuck();
    let outcome = host.vfpool(&["release", "web", "--force"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "guest 'web': released by hand: 0000:02:00.1, 0000:02:00.0\n");
    assert!(outcome.stderr.contains("0000:02:00.1: vfio-pci -> e1000e (reattached, guest 'web')"));
    host.assert_restored(&before, "after release");
    // Its libvirtd is gone: nobody has to be forced.
    let (host, before) = stuck();
    host.libvirtd_dies();
    assert_eq!(host.vfpool(&["release", "web"]).code, Some(0));
    host.assert_restored(&before, "after release");
    // A reservation.
    let host = Host::with_vfs(2);
    let rewritten = host.vfpool_with(&["rewrite"], asking("web", &vf(0)).as_bytes()).run();
    assert_eq!((rewritten.code, host.recorded("claims")), (Some(0), vec![vf(0)]));
    assert_eq!(host.vfpool(&["release", "web"]).stdout, "guest 'web': released by hand: 0000:01:10.0\n");
    host.assert_no_leases("after release");
    for arguments in [&["release", "web"] as &[&str], &["release", "web", "01:10.0", "--force"]] {
        host.vfpool(arguments).refused("guest 'web': it holds nothing; see `vfpool list`");
    }
}

#[test]
fn what_needs_attention_is_tried_again() {
    let (host, before) = stuck();
    host.faults("write errno EIO e1000e/bind");
    host.release("web", "").ok();
    assert_eq!(host.recorded("attention"), ["web"]);
    host.vfpool(&["release", "web"]).refused_saying(&["guest 'web': Cannot reattach 0000:02:00.1 to e1000e"]);
    assert_eq!(host.recorded("attention"), ["web"]);
    host.faults("");
    assert_eq!(host.vfpool(&["release", "web"]).code, Some(0));
    host.assert_restored(&before, "after release");
}

#[test]
fn what_libvirt_may_still_give_back_needs_force() {
    let (host, before) = stuck();
    // The start fails here, after libvirt has taken its part; it never tells of the end.
    host.libvirt_detaches(FIRST);
    host.faults("write errno EIO e1000e/bind");
    host.hook("web", "start", &domain_with("web", &[FIRST, "0000:77:00.0"])).run();
    host.faults("");
    let lease = host.get("run/vfpool/leases/web").unwrap().replace("\"pending\"", "\"failed\"");
    host.put("run/vfpool/leases/web", lease);
    host.vfpool(&["release", "web"]).refused(
        "guest 'web': libvirt has to reattach 0000:02:00.0, and libvirtd, which stops or starts the guest, is still \
         running. If it has nothing to do with the guest any more, say --force",
    );
    assert_eq!(host.driver("0000:02:00.1").as_deref(), Some("e1000e"), "what is ours is back");
    assert_eq!(host.vfpool(&["release", "web", "--force"]).code, Some(0));
    host.assert_restored(&before, "after release");
}

#[test]
fn what_a_program_has_open_stays_whatever_is_said() {
    let host = Host::with_vfs(3);
    host.move_to(&vf(0), Some("vfio-pci"));
    host.prepare("web", &asking("web", &vf(0))).ok();
    host.libvirtd_dies();
    host.process(6000, 1, 60000);
    host.opens_group(6000, group(0));
    for arguments in
        [&["release", "web"] as &[&str], &["release", "web", "--force"], &["release", "web", "01:10.0", "--force"]]
    {
        host.vfpool(arguments).refused(
            "guest 'web': Cannot reattach 0000:01:10.0: process 6000 (qemu-kvm) uses it through VFIO. Stop \
             process 6000 (qemu-kvm) first",
        );
        assert_eq!(host.recorded("claims"), [vf(0)]);
    }
    std::fs::remove_dir_all(host.path("proc/6000")).unwrap();
    host.opens_itself(6001, &vf(0));
    host.vfpool(&["release", "web", "--force"]).refused_saying(&["process 6001 (qemu-kvm) uses it through VFIO"]);
}

#[test]
fn a_device_goes_with_its_group_and_the_others_stay() {
    let host = Host::with_pair();
    host.add_pair("0000:03:00", 9);
    let before = host.snapshot();
    let web = host.guest_of("web", domain_with("web", &[FIRST, "0000:03:00.1"]));
    web.prepare().ok();
    host.libvirtd_dies();
    host.vfpool(&["release", "web", PF])
        .refused_saying(&["guest 'web': it does not hold 0000:01:00.0, but 0000:02:00.1, 0000:03:00.0, "]);
    for (device, left) in [("pci_0000_02_00_1", vec!["0000:03:00.0", "0000:03:00.1"]), ("03:00.1", vec![])] {
        let outcome = host.vfpool(&["release", "web", device]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert_eq!(host.recorded("claims"), left);
    }
    host.assert_restored(&before, "after release");
}
