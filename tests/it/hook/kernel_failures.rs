//! The kernel says no, or says nothing at all.

use fakehost::{FIRST, Host, SECOND, domain, domain_with, hostdev};
use std::time::{Duration, Instant};

/// The device's folder in sysfs.
const FOLDER: &str = "sys/bus/pci/devices/0000:02:00.1";

#[test]
fn a_write_of_a_start_that_fails_is_named_and_undone() {
    for (fault, path, value, cause) in [
        (
            "EIO 0000:02:00.1/driver_override",
            &*format!("{FOLDER}/driver_override"),
            "vfio-pci",
            "Input/output error (os error 5)",
        ),
        ("EBUSY e1000e/unbind", "sys/bus/pci/drivers/e1000e/unbind", SECOND, "Device or resource busy (os error 16)"),
        ("ENOMEM drivers_probe", "sys/bus/pci/drivers_probe", SECOND, "Cannot allocate memory (os error 12)"),
    ] {
        for xml in [domain_with("web", &[FIRST]), domain("web", &[hostdev(FIRST, false)])] {
            let host = Host::with_pair();
            let before = host.snapshot();
            host.faults(&format!("write errno {fault}"));
            let path = host.path(path).display().to_string();
            host.prepare("web", &xml).refused(&format!("guest 'web': Cannot write '{value}' to {path}: {cause}"));
            host.assert_restored(&before, fault);
            host.release("web", &xml).ok_silently();
            // Nothing is left that would hinder the next try.
            host.faults("");
            host.prepare("web", &xml).ok();
            host.release("web", &xml).ok();
            host.assert_as(&before, fault);
        }
    }
}

#[test]
fn a_driver_that_does_not_take_the_device_is_named_and_undone() {
    let host = Host::with_pair();
    host.settings("<deadline seconds='1'/>");
    let before = host.snapshot();
    host.faults("write ignore drivers_probe");
    host.guest_of("web", domain("web", &[hostdev(SECOND, false)]))
        .prepare()
        .refused_saying(&["guest 'web': ", ": vfio-pci does not bind it. See `dmesg` for the reason"]);
    host.assert_restored(&before, "after the refusal");
}

#[test]
fn a_second_failure_while_undoing_is_told_and_kept() {
    let host = Host::with_pair();
    let before = host.snapshot();
    host.faults(
        "write errno EIO drivers_probe\nwrite errno ENODEV e1000e/bind\nwrite errno EIO \
                 0000:02:00.1/driver_override e1000e",
    );
    let web = host.guest("web", FIRST);
    let probe = host.path("sys/bus/pci/drivers_probe").display().to_string();
    web.prepare().refused_saying(&[
        &format!(
            "guest 'web': Cannot write '0000:02:00.1' to {probe}: Input/output error (os error 5). Not all could \
                  be undone: "
        ),
        "Cannot reattach 0000:02:00.1 to e1000e: Cannot write",
    ]);
    assert_eq!(host.recorded("attention"), ["web"]);
    assert_eq!(host.recorded("claims"), [SECOND]);
    host.faults("");
    web.release().ok_saying("0000:02:00.1: no driver -> e1000e (reattached, guest 'web')");
    host.assert_restored(&before, "after release");
}

#[test]
fn a_failed_give_back_is_kept_shown_and_tried_again() {
    for (fault, path, value) in [
        ("0000:02:00.1/driver_override", &*format!("{FOLDER}/driver_override"), ""),
        ("vfio-pci/unbind", "sys/bus/pci/drivers/vfio-pci/unbind", SECOND),
        ("e1000e/bind", "sys/bus/pci/drivers/e1000e/bind", SECOND),
    ] {
        let host = Host::with_pair();
        let before = host.snapshot();
        let web = host.guest("web", FIRST);
        web.prepare().ok();
        host.faults(&format!("write errno EIO {fault}"));
        let path = host.path(path).display().to_string();
        let told = format!("Cannot write '{value}' to {path}: Input/output error (os error 5)");
        web.release().ok_saying(&told);
        assert!(host.get("run/vfpool/attention/web").unwrap().ends_with(&told));
        assert_eq!(host.recorded("claims"), [SECOND]);
        let list = host.vfpool(&["list", "--json"]).stdout;
        assert!(list.contains(&told), "{list}");
        // Another guest's event tries it again, and is not harmed when it fails again.
        host.hook("other", "release", "").run().ok_saying(&told);
        assert_eq!(host.recorded("attention"), ["web"]);
        // Once it works, the next start does it on its way.
        host.faults("");
        let db = domain_with("db", &[SECOND]);
        host.prepare("db", &db).ok();
        assert_eq!(host.recorded("leases"), ["db"]);
        assert_eq!(host.recorded("attention"), [""; 0]);
        host.release("db", &db).ok();
        host.assert_restored(&before, fault);
    }
}

#[test]
fn what_cannot_go_back_may_still_be_taken() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    host.faults("write errno EIO vfio-pci/unbind");
    web.release().ok_saying("Input/output error");
    // On vfio-pci it is just where the next guest wants it, and the record of how it was found passes on.
    let db = domain_with("db", &[FIRST]);
    host.prepare("db", &db).ok();
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    host.faults("");
    web.release().ok();
    host.assert_viable_without(FIRST, 8);
    host.release("db", &db).ok();
    host.assert_restored(&before, "after release");
}

/// `prepare` of a guest whose sibling hangs in this write ends within the deadline of 1 s, and is undone as far as it
/// can be; nobody else waits for it; once the kernel is back, the next event of anybody makes it whole.
fn hangs_while_starting(fault: &str) {
    let host = Host::with_pair();
    host.add_pair("0000:03:00", 9);
    host.settings("<deadline seconds='1'/>");
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    host.faults(&format!("write hang {fault}"));
    let hanging = web.hook("prepare").spawn();
    let db = host.guest("db", "0000:03:00.0");
    let outcome = db.prepare().ok_saying("0000:03:00.1: e1000e -> vfio-pci");
    assert!(outcome.took < Duration::from_millis(900), "{fault}: the other guest waited for {:?}", outcome.took);
    let outcome = hanging.wait();
    assert!(outcome.took < Duration::from_secs(4), "{fault}: {:?}", outcome.took);
    outcome.refused_saying(&["guest 'web': Cannot write '", "the kernel has not come back from it for 1 s"]);
    db.release().ok();
    host.faults("");
    // The call that hung is made after all.
    std::thread::sleep(Duration::from_millis(100));
    web.release().ok();
    db.release().ok();
    host.assert_restored(&before, fault);
}

#[test]
fn a_hanging_override_ends_within_the_deadline() {
    hangs_while_starting("0000:02:00.1/driver_override vfio-pci");
}

#[test]
fn a_hanging_unbind_ends_within_the_deadline() {
    hangs_while_starting("e1000e/unbind 0000:02:00.1");
}

#[test]
fn a_hanging_probe_ends_within_the_deadline() {
    hangs_while_starting("drivers_probe 0000:02:00.1");
}

/// The same for a write of the reattachment.
fn hangs_while_stopping(fault: &str) {
    let host = Host::with_pair();
    host.add_pair("0000:03:00", 9);
    host.settings("<deadline seconds='1'/>");
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    host.faults(&format!("write hang {fault}"));
    let hanging = web.hook("release").spawn();
    let db = host.guest("db", "0000:03:00.0");
    let outcome = db.prepare().ok();
    assert!(outcome.took < Duration::from_millis(900), "{fault}: the other guest waited for {:?}", outcome.took);
    let outcome = hanging.wait();
    assert!(outcome.took < Duration::from_secs(3), "{fault}: {:?}", outcome.took);
    outcome.ok_saying("the kernel has not come back from it for 1 s");
    assert_eq!(host.recorded("attention"), ["web"]);
    // While it hangs, nobody touches the device, and nobody waits for it but its own guest.
    let outcome = db.release().ok();
    assert!(outcome.took < Duration::from_millis(900), "{fault}: {:?}", outcome.took);
    let outcome = web.prepare();
    assert!(outcome.took < Duration::from_secs(3), "{fault}: {:?}", outcome.took);
    outcome.refused_saying(&[
        "guest 'web': Cannot lock",
        "another event of this guest is still at work there, or hangs in the kernel",
    ]);
    host.faults("");
    std::thread::sleep(Duration::from_millis(100));
    host.release("other", "").ok();
    host.assert_restored(&before, fault);
}

#[test]
fn a_hanging_clear_of_the_override_is_left_behind() {
    hangs_while_stopping("0000:02:00.1/driver_override");
}

#[test]
fn a_hanging_unbind_from_vfio_is_left_behind() {
    hangs_while_stopping("vfio-pci/unbind 0000:02:00.1");
}

#[test]
fn a_hanging_bind_to_the_host_is_left_behind() {
    hangs_while_stopping("e1000e/bind 0000:02:00.1");
}

#[test]
fn a_driver_that_hangs_is_never_waited_for_longer_than_the_deadline() {
    let host = Host::with_pair();
    let before = host.snapshot();
    host.settings("<deadline seconds='2'/>");
    let web = host.guest("web", FIRST);
    // By hand, a driver is being unbound that waits for its user: that keeps the device's lock.
    let hangs = "open hang 0000:02:00.1/driver_override";
    for operation in ["prepare", "release"] {
        if operation == "release" {
            web.prepare().ok();
        }
        host.faults(hangs);
        let outcome = web.hook(operation).run();
        assert!(outcome.took < Duration::from_secs(20), "{operation}: {:?}", outcome.took);
        assert!(outcome.stderr.contains("0000:02:00.1 does not answer: its driver "), "{}", outcome.stderr);
        assert_eq!(outcome.code, Some(i32::from(operation == "prepare")));
        host.faults("");
    }
    // Others have started meanwhile, and what is left is tried again.
    let end = Instant::now() + Duration::from_secs(10);
    while !host.recorded("leases").is_empty() && Instant::now() < end {
        host.release("nobody", "").ok();
    }
    host.assert_restored(&before, "when the driver is back");
}
