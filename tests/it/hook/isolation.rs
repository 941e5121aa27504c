//! What one guest's trouble must not do to others, or to its own next start.

use crate::commands::explain::prepare_as_foretold;
use fakehost::{Device, FIRST, Host, SECOND, domain, hostdev};
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

fn hold_turn(host: &Host, guest: &str) -> File {
    let file = File::options().write(true).open(host.path(&format!("run/vfpool/turns/{guest}"))).unwrap();
    fs2::FileExt::lock_exclusive(&file).unwrap();
    file
}

#[test]
fn a_guest_that_is_starting_keeps_what_could_not_go_back_before() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    host.faults("write errno EIO e1000e/bind");
    web.release().ok();
    assert_eq!(host.recorded("attention"), ["web"]);
    web.prepare().ok();
    assert_eq!(host.recorded("attention"), [""; 0]);
    host.faults("");
    host.hook("other", "release", "").run().ok();
    assert_eq!(host.recorded("claims"), [FIRST, SECOND]);
    host.guest("db", FIRST).prepare().refused_saying(&["guest 'web' has it"]);
    web.release().ok();
    assert_eq!(host.driver(SECOND).as_deref(), Some("e1000e"));
    host.assert_no_leases("after the end");
}

#[test]
fn a_vf_in_use_without_a_lease_keeps_its_pf() {
    let host = Host::new();
    host.add(
        Device::new("0000:01:00.0").id("8086:10c9").driver("igb").group(8).vfs("8086:10ca", &[("0000:01:10.0", 11)]),
    );
    host.make_vfs("0000:01:00.0", &[Some("vfio-pci")]);
    let db = host.guest("db", "0000:01:00.0");
    host.process(5000, 1, 5);
    host.opens_group(5000, 11);
    let before = host.snapshot();
    db.prepare().refused_saying(&["0000:01:10.0", "process 5000", "uses it through VFIO"]);
    host.assert_as(&before, "refused");
    db.release().ok();
    host.qemu_ends("nobody");
    std::fs::remove_dir_all(host.path("proc/5000")).unwrap();
    db.prepare().ok();
    host.guest("mail", "0000:01:10.0").prepare().refused_saying(&["guest 'db' has the PF"]);
}

#[test]
fn reconcile_goes_on_after_a_guest_that_hangs() {
    let host = Host::with_pair();
    host.add_pair("0000:03:00", 9);
    host.settings("<deadline seconds='1'/>");
    host.guest("a", FIRST).prepare().ok();
    host.guest("b", "0000:03:00.0").prepare().ok();
    host.libvirtd_dies();
    let _turn = hold_turn(&host, "a");
    let outcome = host.vfpool(&["reconcile"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("guest 'a': Cannot lock"), "{}", outcome.stderr);
    assert_eq!(host.recorded("leases"), ["a"]);
}

#[test]
fn a_driver_that_does_not_answer_holds_up_only_its_own_guest() {
    let host = Host::with_pair();
    host.add_pair("0000:03:00", 9);
    host.settings("<deadline seconds='2'/>");
    let attribute = host.path(&format!("sys/bus/pci/devices/{SECOND}/driver_override")).canonicalize().unwrap();
    std::fs::remove_file(&attribute).unwrap();
    // Nobody ever writes to it, so a read hangs.
    assert!(std::process::Command::new("mkfifo").arg(&attribute).status().unwrap().success());
    let slow = host.guest("web", FIRST).hook("prepare").spawn();
    std::thread::sleep(Duration::from_millis(300));
    let fast = host.guest("fast", "0000:03:00.0").prepare().ok();
    assert!(fast.took < Duration::from_millis(1500), "{:?}", fast.took);
    slow.wait().refused_saying(&["0000:02:00.1 does not answer: its driver e1000e"]);
}

#[test]
fn a_dying_qemu_is_not_dead() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST).starts().runs();
    // The first thread has ended, another one still lets go of the devices.
    host.put("proc/4000/stat", "4000 (q) Z 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 2 0 40000 0\n");
    let fds = host.path("proc/4000/task/4001/fd");
    std::fs::create_dir_all(&fds).unwrap();
    std::os::unix::fs::symlink(host.path("dev/vfio/8"), fds.join("9")).unwrap();
    host.libvirtd_dies();
    let lease = host.get("run/vfpool/leases/web").unwrap();
    assert_eq!(host.vfpool(&["reconcile"]).code, Some(0));
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    // Nor does a lease that does not know of the QEMU make it give up a group that is open.
    host.put("run/vfpool/leases/web", lease.replace("pid=\"4000\"", "pid=\"4009\""));
    assert_eq!(host.vfpool(&["reconcile"]).code, Some(1));
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    web.release().ok();
}

#[test]
fn a_release_that_cannot_do_its_work_still_counts() {
    let host = Host::with_pair();
    host.settings("<deadline seconds='1'/>");
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    let turn = hold_turn(&host, "web");
    web.release().ok_saying("vfpool: guest 'web': Cannot lock");
    drop(turn);
    host.guest("db", FIRST).prepare().ok();
}

#[test]
fn a_log_that_is_stuck_does_not_hold_up_a_guest() {
    let host = Host::with_pair();
    let _server = UnixDatagram::bind(host.path("dev/log")).unwrap();
    let client = UnixDatagram::unbound().unwrap();
    client.set_nonblocking(true).unwrap();
    while client.send_to(b"x", host.path("dev/log")).is_ok() {}
    let outcome = host.guest("web", FIRST).prepare().ok();
    assert!(outcome.took < Duration::from_secs(5), "{:?}", outcome.took);
    assert!(outcome.stderr.contains("e1000e -> vfio-pci"), "{}", outcome.stderr);
}

#[test]
fn what_another_guest_knows_of_a_device_is_learned_with_it() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST).starts().runs();
    // The first function is unplugged from web and plugged into app, of which no hook tells; then libvirtd is
    // restarted.
    host.qemu_runs("app", 5000);
    host.opens_group(5000, 8);
    host.qemu_ends("web");
    web.release().ok();
    let app = host.guest("app", FIRST);
    app.hook("reconnect").run().ok();
    host.qemu_ends("app");
    web.reattaches();
    app.release().ok();
    assert_eq!(host.driver(SECOND).as_deref(), Some("e1000e"));
    host.vfpool(&["reconcile"]);
    host.assert_no_leases("after the end");
}

#[test]
fn a_need_that_can_be_overridden_hides_none_that_cannot() {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).id("1b36:0010").class(0x01_0802).driver("nvme"));
    host.disk(FIRST, "nvme/nvme0/nvme0n1", "259:0");
    host.disk(FIRST, "nvme/nvme0/nvme0n1/nvme0n1p1", "259:1");
    host.disk(FIRST, "nvme/nvme0/nvme0n1/nvme0n1p2", "259:2");
    host.process(5000, 1, 5);
    let fds = host.path("proc/5000/fd");
    std::fs::create_dir_all(&fds).unwrap();
    std::os::unix::fs::symlink(host.path("dev/nvme0n1p1"), fds.join("3")).unwrap();
    // The guest's own device may be open somewhere; a sibling, or what we would take, may not.
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    host.release("web", "").ok();
    host.prepare("web", &domain("web", &[hostdev(FIRST, false)]))
        .refused_saying(&["nvme0n1p1 is open in process 5000"]);
    host.mount("259:2", "/srv", "/dev/nvme0n1p2");
    web.prepare().refused_saying(&["nvme0n1p2 is mounted at /srv"]);
}

#[test]
fn one_interface_of_a_function_does_not_hide_another() {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("mlx4_core"));
    host.netdev(FIRST, "eth0", true, &["192.0.2.7"]);
    host.netdev(FIRST, "eth1", true, &["192.0.2.8"]);
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    host.release("web", "").ok();
    host.route("0.0.0.0/0", 0, &["eth1"]);
    web.prepare().refused_saying(&["it carries the default route (eth1)"]);
}

#[test]
fn what_libvirt_is_still_giving_back_is_not_taken_over() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST).starts().runs();
    // The guest has shut down; libvirt has not come to its devices yet.
    host.qemu_ends("web");
    let db = host.guest("db", FIRST);
    prepare_as_foretold(&db).refused_saying(&["not free yet: guest 'web' is just being stopped"]);
    db.release().ok();
    web.reattaches();
    web.release().ok();
    prepare_as_foretold(&db).ok();
    // The first guest's release once more takes nothing from the second.
    web.release().ok();
    assert_eq!(host.recorded("claims"), [FIRST, SECOND]);
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    db.release().ok();
    host.assert_no_leases("after the end");
}

#[test]
fn a_vf_comes_back_when_the_guest_with_its_pf_is_gone() {
    let host = Host::new();
    host.add(
        Device::new("0000:01:00.0").id("8086:10c9").driver("igb").group(8).vfs("8086:10ca", &[("0000:01:10.0", 11)]),
    );
    host.make_vfs("0000:01:00.0", &[Some("igbvf")]);
    host.guest("web", "0000:01:00.0").prepare().ok();
    let db = host.guest("db", "0000:01:10.0");
    db.prepare().refused_saying(&["0000:01:10.0 is not there as long as guest 'web' has the PF"]);
    host.libvirtd_dies();
    db.prepare().ok_saying("guest 'web' is no longer running");
    assert_eq!(host.recorded("claims"), ["0000:01:10.0"]);
}

#[test]
fn a_release_during_the_death_of_qemu_is_finished_later() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST).starts().runs();
    web.release().ok_saying("its QEMU still runs");
    host.qemu_ends("web");
    // libvirt has given up on its part, and does not come again.
    host.hook("other", "release", "").run().ok();
    assert_eq!(host.driver(FIRST).as_deref(), Some("e1000e"));
    assert_eq!(host.driver(SECOND).as_deref(), Some("e1000e"));
    host.assert_no_leases("after the end");
    assert_eq!(host.recorded("attention"), [""; 0]);
}

#[test]
fn a_sibling_that_vfio_does_not_take_may_stay_without_a_driver() {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e"));
    host.add(Device::new(SECOND).group(8));
    let before = host.snapshot();
    host.faults("write ignore drivers_probe");
    host.guest("web", FIRST).prepare().ok_saying("vfio-pci does not bind it");
    host.assert_as(&before, "prepared");
    host.release("web", "").ok();
    host.assert_no_leases("after the end");
}

#[test]
fn a_sibling_that_vfio_does_not_take_is_judged_the_same_whatever_it_was_on() {
    let host = Host::with_pair();
    let before = host.snapshot();
    host.faults("write ignore drivers_probe");
    let web = host.guest("web", FIRST);
    let outcome = web.prepare().ok_saying("0000:02:00.1: vfio-pci does not bind it; it stays on no driver");
    assert!(outcome.took < Duration::from_secs(25), "at once, and not after the deadline");
    assert_eq!(host.driver(SECOND), None);
    assert_eq!(host.driver_override(SECOND).as_deref(), Some("vfio-pci"), "the host's drivers keep off");
    host.faults("");
    web.release().ok();
    host.assert_restored(&before, "after the end");
    // The guest's own device has to be on vfio-pci.
    host.faults("write ignore drivers_probe");
    let own = host.guest_of("web", domain("web", &[hostdev(FIRST, false)]));
    own.prepare().refused_saying(&["0000:02:00.0: vfio-pci does not bind it. See `dmesg` for the reason"]);
    host.faults("");
    own.release().ok();
    host.assert_restored(&before, "refused");
}
