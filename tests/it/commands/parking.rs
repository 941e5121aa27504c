//! Stopped guests are pointed at free devices.

use fakehost::{Host, asking, definition, hostdev_at, interface_at, vf, wait_until};
use std::collections::BTreeSet;

/// Guests `g0`, `g1`, ... that all point at the first VF.
fn crowd(host: &Host, count: usize) -> Vec<String> {
    let guests: Vec<String> = (0..count).map(|number| format!("g{number}")).collect();
    for guest in &guests {
        host.define(guest, &asking(guest, &vf(0)));
    }
    guests
}

fn places(host: &Host, guests: &[String]) -> Vec<String> {
    guests.iter().flat_map(|guest| host.points_at(guest)).collect()
}

#[test]
fn each_guest_has_a_device_of_its_own() {
    let host = Host::with_vfs(7);
    let guests = crowd(&host, 7);
    host.reconcile().ok_saying("guest 'g1': parked at 0000:01:10.1 of pool 'net' (was 0000:01:10.0)");
    let places = places(&host, &guests);
    assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), 7, "{places:?}");
    // Each is otherwise as it was, and the next run has nothing to do.
    for (guest, place) in guests.iter().zip(&places) {
        assert_eq!(host.definition(guest), asking(guest, place));
    }
    host.virsh_trace();
    host.reconcile().ok_silently();
    assert_eq!(host.virsh_trace(), [""; 0]);
}

#[test]
fn guests_that_outnumber_the_devices_share_them_evenly() {
    let host = Host::with_vfs(3);
    let guests = crowd(&host, 8);
    host.reconcile().ok();
    let places = places(&host, &guests);
    let mut shares: Vec<usize> =
        (0..3).map(|number| places.iter().filter(|place| **place == vf(number)).count()).collect();
    shares.sort_unstable();
    assert_eq!(shares, [2, 3, 3], "{places:?}");
    host.virsh_trace();
    host.reconcile().ok_silently();
    assert_eq!(host.virsh_trace(), [""; 0]);
}

#[test]
fn whatever_starts_a_parked_guest_boots_it() {
    let host = Host::with_vfs(4);
    let guests = crowd(&host, 4);
    host.reconcile().ok();
    for guest in &guests {
        host.runs(guest);
    }
    assert_eq!(host.recorded("leases"), guests);
    for guest in &guests {
        host.stops(guest);
    }
    host.assert_no_leases("after all stopped");
}

#[test]
fn an_interface_is_moved_as_any_device() {
    let host = Host::with_vfs(4);
    let xml = |own: [usize; 3]| {
        let devices = [interface_at(&vf(own[0]), 0), interface_at(&vf(own[1]), 1), hostdev_at(&vf(own[2]), 2, "")];
        definition("web", &[("net", 0), ("net", 1)], &devices)
    };
    host.define("web", &xml([0, 0, 1]));
    host.reconcile().ok();
    assert_eq!(
        host.virsh_trace(),
        ["metadata web --set moving", "detach-device web", "attach-device web", "metadata web --set"]
    );
    assert_eq!(host.definition("web"), xml([0, 2, 1]));
}

#[test]
fn guests_that_run_or_are_being_started_are_left_alone() {
    let host = Host::with_vfs(4);
    let stopped = crowd(&host, 1);
    for guest in ["running", "starting", "chosen", "unknown"] {
        host.define(guest, &asking(guest, &vf(0)));
    }
    host.runs("running");
    host.prepare("starting", &asking("starting", &vf(1))).ok();
    assert_eq!(host.vfpool_with(&["rewrite"], asking("chosen", &vf(2)).as_bytes()).run().code, Some(0));
    // Its lease was lost.
    host.qemu_runs("unknown", 5000);
    host.reconcile().ok();
    for guest in ["running", "starting", "chosen", "unknown"] {
        assert_eq!(host.definition(guest), asking(guest, &vf(0)), "{guest}");
    }
    assert_eq!(places(&host, &stopped), [vf(3)]);
    // When they are stopped, it is their turn; with enough devices, nobody moves twice.
    host.stops("running");
    host.release("starting", "").ok();
    host.uptime(2000);
    host.reconcile().ok();
    assert_eq!(places(&host, &stopped), [vf(3)]);
    let all = ["running", "starting", "chosen"].map(|guest| host.points_at(guest).remove(0));
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 3, "{all:?}");
}

#[test]
fn a_start_that_was_refused_works_the_next_time() {
    let host = Host::with_vfs(2);
    let guests = crowd(&host, 2);
    host.runs(&guests[0]);
    let outcome = host.virsh(&["start", &guests[1]]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("0000:01:10.0 is not free: guest 'g0' has it"), "{}", outcome.stderr);
    assert_eq!(host.queue(), ["guest g0", "refused g1"]);
    let begun = host.vfpool(&["reconcile", "--queued"]).ok();
    assert!(begun.took.as_secs() >= 1, "it looks for more");
    assert_eq!(host.queue(), [""; 0]);
    host.runs(&guests[1]);
    assert_eq!(host.recorded("claims"), [vf(0), vf(1)]);
}

#[test]
fn a_start_that_was_refused_is_made_again_only_if_the_pool_says_so() {
    for on_busy in [false, true] {
        let host = Host::with_vfs(2);
        if on_busy {
            let pool = host.get("etc/vfpool/pools.d/net.xml").unwrap();
            host.put("etc/vfpool/pools.d/net.xml", pool.replace("<pool>", "<pool on-busy='restart'>"));
        }
        let guests = crowd(&host, 3);
        host.runs(&guests[0]);
        let outcome = host.virsh(&["start", &guests[1]]);
        assert_eq!(outcome.code, Some(1));
        let promise = "and it is started again by itself with a free one (on-busy='restart')";
        assert_eq!(outcome.stderr.contains(promise), on_busy, "{}", outcome.stderr);
        assert_eq!(host.queue().contains(&"restart g1".to_owned()), on_busy);
        host.vfpool(&["reconcile", "--queued"]);
        assert_eq!((host.queue(), host.recorded("leases").contains(&guests[1])), (Vec::new(), on_busy));
        // Without a free one, nobody promises anything.
        host.virsh(&["start", &guests[1]]);
        let outcome = host.virsh(&["start", &guests[2]]);
        assert!(outcome.stderr.ends_with("Stop one of these first\n\n"), "{}", outcome.stderr);
        assert!(!host.queue().contains(&"restart g2".to_owned()));
    }
}

#[test]
fn who_was_refused_last_chooses_first() {
    for refused in ["g1", "g2", "g3"] {
        let host = Host::with_vfs(3);
        crowd(&host, 1);
        host.prepare("db", &asking("db", &vf(2))).ok();
        // One device is left for three guests.
        for guest in ["g1", "g2", "g3"] {
            host.define(guest, &asking(guest, &vf(2)));
        }
        host.prepare(refused, &asking(refused, &vf(2)))
            .refused_saying(&["is free, and it will be pointed at a free one"]);
        host.reconcile().ok();
        assert_eq!(host.points_at(refused), [vf(1)]);
    }
}

#[test]
fn what_somebody_has_started_meanwhile_is_not_started_again() {
    let host = Host::with_vfs(2);
    let guests = crowd(&host, 1);
    host.put("run/vfpool/queue/reconcile/restart g0", "");
    host.runs(&guests[0]);
    assert_eq!(host.vfpool(&["reconcile", "--queued"]).ok().stderr, "");
    assert_eq!(host.virsh_trace(), [""; 0]);
}

/// (What happens before the reconciler comes to a queued restart, whether it starts the guest.)
#[test]
fn a_queued_restart_is_dropped_when_the_guest_is_started_or_stopped() {
    for (what, is_started) in [
        ("nothing", true),
        ("it is started and runs", false),
        ("it was started and stopped", false),
        ("it is being started", false),
        ("the same while it is parked", false),
        ("it is refused again", true),
    ] {
        let host = Host::with_vfs(2);
        let pool = host.get("etc/vfpool/pools.d/net.xml").unwrap();
        host.put("etc/vfpool/pools.d/net.xml", pool.replace("<pool>", "<pool on-busy='restart'>"));
        let guests = crowd(&host, 2);
        host.runs(&guests[0]);
        assert_eq!(host.virsh(&["start", "g1"]).code, Some(1));
        assert!(host.queue().contains(&"restart g1".to_owned()));
        let by_hand = |host: &Host| host.define("g1", &asking("g1", &vf(1)));
        match what {
            "it is started and runs" => {
                by_hand(&host);
                host.runs("g1");
            }
            "it was started and stopped" => {
                by_hand(&host);
                host.runs("g1");
                host.stops("g1");
            }
            "it is being started" => {
                by_hand(&host);
                host.prepare("g1", &asking("g1", &vf(1))).ok();
            }
            // It points at a free device by then.
            "the same while it is parked" => {
                host.virsh_faults("attach-device then usr/bin/virsh start g1 && usr/bin/virsh destroy g1");
            }
            "it is refused again" => assert_eq!(host.virsh(&["start", "g1"]).code, Some(1)),
            _ => {}
        }
        host.virsh_trace();
        let outcome = host.vfpool(&["reconcile", "--queued"]);
        assert_eq!(outcome.code, Some(0), "{what}: {}", outcome.stderr);
        let trace = host.virsh_trace();
        let started = trace.iter().any(|line| line == "start g1" || line == "create g1");
        assert_eq!(started, is_started, "{what}: {trace:?}");
        assert!(!outcome.stderr.contains("it is just being started"), "{what}: {}", outcome.stderr);
        assert!(!host.queue().contains(&"restart g1".to_owned()), "{what}");
    }
}

#[test]
fn what_comes_while_the_reconciler_runs_is_seen() {
    let host = Host::with_vfs(3);
    let guests = crowd(&host, 1);
    let queue = "run/vfpool/queue/reconcile";
    host.put(&format!("{queue}/definitions"), "");
    let run = host.vfpool_with(&["reconcile", "--queued"], b"").spawn();
    wait_until("it has begun", || host.path("run/vfpool/parked").exists() && host.queue().is_empty());
    // A definition changed, of which nobody told.
    host.define("late", &asking("late", &vf(0)));
    wait_until("it is parked", || host.points_at("late") != [vf(0)]);
    // An entry, without any change of a definition.
    host.put(&format!("{queue}/guest late"), "");
    wait_until("it is taken", || host.queue().is_empty());
    run.wait().ok();
    assert_eq!(places(&host, &guests), [vf(0)]);
    // Nothing to do is done at once, and ends.
    host.virsh_trace();
    host.vfpool(&["reconcile", "--queued"]).ok_silently();
    assert_eq!(host.virsh_trace(), [""; 0]);
}

#[test]
fn a_run_ends_while_things_go_on_happening_and_leaves_them_in_the_queue() {
    let host = Host::with_vfs(2);
    host.put("run/vfpool/queue/reconcile/guest x", "");
    let mut run = host.vfpool_with(&["reconcile", "--queued"], b"").spawn();
    let begun = std::time::Instant::now();
    while run.is_running() {
        assert!(begun.elapsed().as_secs() < 25, "it never ends");
        host.put("run/vfpool/queue/reconcile/guest x", "");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    run.wait().ok_silently();
    assert_eq!(host.queue(), ["guest x"]);
}

#[test]
fn a_folder_in_the_queue_does_not_start_the_unit_again_and_again() {
    let host = Host::with_vfs(2);
    host.ip_works();
    for (folder, command) in [("reconcile", "reconcile"), ("setup", "setup")] {
        let path = format!("run/vfpool/queue/{folder}");
        std::fs::create_dir_all(host.path(&format!("{path}/folder/more"))).unwrap();
        host.vfpool(&[command, "--queued"]).ok();
        assert_eq!(host.recorded(&format!("queue/{folder}")), [""; 0]);
    }
}

#[test]
fn what_is_wrong_is_told_once_by_the_unit_and_always_to_the_admin() {
    let host = Host::with_vfs(2);
    host.define("bad", "<domain><name>bad</name>");
    host.define("lost", &definition("lost", &[("lan", 0)], &[hostdev_at(&vf(0), 0, "")]));
    host.define("good", &asking("good", &vf(9)));
    let bad = "guest 'bad': ROOT/etc/libvirt/qemu/bad.xml: The domain XML is cut off: <domain> is not closed";
    let lost = "guest 'lost': There is no pool 'lan': ROOT/etc/vfpool/pools.d has 'net'";
    let root = host.path("").display().to_string();
    let lines = |outcome: fakehost::Outcome| -> Vec<String> {
        outcome.stderr.lines().map(|line| line.replace(&root, "ROOT/").replace("vfpool: ", "")).collect()
    };
    let queued = || {
        host.put("run/vfpool/queue/reconcile/guest other", "");
        lines(host.vfpool(&["reconcile", "--queued"]).ok())
    };
    assert_eq!(queued()[1..], [bad, lost], "it is the first time");
    assert_eq!(host.points_at("good"), [vf(0)]);
    assert_eq!(queued(), [""; 0]);
    host.put("run/vfpool/queue/reconcile/refused lost", "");
    assert_eq!(queued(), [lost], "somebody waits for it");
    let outcome = host.reconcile();
    assert_eq!(outcome.code, Some(1));
    assert_eq!(lines(outcome), [lost]);
}

#[test]
fn a_pool_with_a_mistake_keeps_no_other_from_being_parked() {
    let host = Host::with_vfs(3);
    crowd(&host, 2);
    host.put("etc/vfpool/pools.d/a.xml", "<pool><nme/></pool>");
    host.pool("z", "<pf dev='eth9'/>");
    host.define("z", &definition("z", &[("z", 0)], &[hostdev_at(&vf(0), 0, "")]));
    let outcome = host.reconcile();
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("guest 'z': Cannot use <pf dev='eth9'>"), "{}", outcome.stderr);
    assert_eq!((host.points_at("g1"), host.points_at("z")), (vec![vf(1)], vec![vf(0)]));
}

#[test]
fn a_guest_may_have_any_name() {
    let host = Host::with_vfs(3);
    let names = ["my \"guest\" 'x'; y", "7", "-q", "gäst%", "a&b"];
    for name in names {
        let xml = asking(name, &vf(9)).replace("<name>a&b<", "<name>a&amp;b<").replace("virsh edit -q", "");
        host.define(name, &xml);
        host.reconcile().ok();
        assert_ne!(host.points_at(name), [vf(9)], "{name}");
        host.runs(name);
        host.define("other", &asking("other", &host.points_at(name)[0]));
        host.reconcile().ok();
        assert_ne!(host.points_at("other"), host.points_at(name));
        host.stops(name);
        std::fs::remove_file(host.path(&format!("etc/libvirt/qemu/{name}.xml"))).unwrap();
        std::fs::remove_file(host.path("etc/libvirt/qemu/other.xml")).unwrap();
    }
}

#[test]
fn of_a_thousand_guests_only_those_that_changed_are_read() {
    let host = Host::with_vfs(1000);
    let guests: Vec<String> = (0..1000).map(|number| format!("g{number}")).collect();
    for (number, guest) in guests.iter().enumerate() {
        host.define(guest, &asking(guest, &vf(number)));
    }
    host.reconcile().ok_silently();
    assert_eq!(host.virsh_trace(), [""; 0], "all are where they should be");
    // What stands in a file counts no more, as long as it looks the same from outside.
    for guest in &guests {
        let path = host.path(&format!("etc/libvirt/qemu/{guest}.xml"));
        let data = std::fs::metadata(&path).unwrap();
        let mut file = std::fs::File::options().write(true).open(path).unwrap();
        let length = usize::try_from(data.len()).unwrap();
        std::io::Write::write_all(&mut file, &vec![b'<'; length]).unwrap();
        file.set_modified(data.modified().unwrap()).unwrap();
    }
    host.reconcile().ok_silently();
    host.define("g500", &asking("g500", &vf(0)));
    host.reconcile().ok_saying("guest 'g500': parked at 0000:03:0e.4 of pool 'net' (was 0000:01:10.0)");
    assert_eq!(host.virsh_trace().len(), 4);
    // One that was only touched is read.
    let file = std::fs::File::options().write(true).open(host.path("etc/libvirt/qemu/g7.xml")).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    assert!(host.reconcile().stderr.contains("guest 'g7': "));
}
