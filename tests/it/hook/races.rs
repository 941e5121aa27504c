//! Many hooks at once, as real processes.

use fakehost::{Host, asking, domain_with, vf};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

#[test]
fn of_many_guests_for_one_pair_exactly_one_wins() {
    let host = Host::with_pair();
    let before = host.snapshot();
    for round in 0..4 {
        let guests: Vec<String> = (0..16).map(|number| format!("guest{number}")).collect();
        let calls: Vec<_> = guests
            .iter()
            .enumerate()
            .map(|(number, guest)| {
                let device = ["0000:02:00.0", "0000:02:00.1"][number % 2];
                host.hook(guest, "prepare", &domain_with(guest, &[device])).spawn()
            })
            .collect();
        let outcomes: Vec<_> = calls.into_iter().map(fakehost::Running::wait).collect();
        let winners: Vec<usize> = (0..16).filter(|number| outcomes[*number].code == Some(0)).collect();
        let [winner] = winners.as_slice() else { panic!("round {round}: {winners:?} {outcomes:?}") };
        assert_eq!(host.recorded("leases"), [guests[*winner].as_str()]);
        host.assert_viable_without(["0000:02:00.0", "0000:02:00.1"][*winner % 2], 8);
        let named = format!("is not free: guest '{}' has ", guests[*winner]);
        for (number, outcome) in outcomes.into_iter().enumerate().filter(|(number, _)| number != winner) {
            outcome.refused_saying(&[&format!("guest '{}': 0000:02:00.{}", guests[number], number % 2), &named]);
        }
        // libvirt calls release for each start that failed, the winner's in the midst of them.
        let in_use = host.snapshot();
        let losers = guests.iter().filter(|guest| **guest != guests[*winner]);
        let calls: Vec<_> = losers.map(|guest| host.hook(guest, "release", "").spawn()).collect();
        for call in calls {
            call.wait().ok_silently();
        }
        host.assert_as(&in_use, "after the losers' release");
        host.release(&guests[*winner], "").ok();
        host.assert_restored(&before, "after the winner's release");
    }
}

#[test]
fn guests_on_pairs_of_their_own_do_not_meet() {
    let host = Host::with_pair();
    for pair in 1..8 {
        host.add_pair(&format!("0000:{:02x}:00", pair + 2), 8 + pair);
    }
    let before = host.snapshot();
    thread::scope(|scope| {
        for pair in 0..8u32 {
            let host = &host;
            scope.spawn(move || {
                let guest = format!("guest{pair}");
                let device = format!("0000:{:02x}:00.{}", pair + 2, pair % 2);
                let xml = domain_with(&guest, &[&device]);
                for _ in 0..20 {
                    host.prepare(&guest, &xml).ok_saying("e1000e -> vfio-pci");
                    host.assert_viable_without(&device, 8 + pair);
                    host.release(&guest, &xml).ok_saying("vfio-pci -> e1000e");
                }
            });
        }
    });
    host.assert_restored(&before, "after all rounds");
}

#[test]
fn start_and_stop_of_one_guest_take_turns() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let xml = domain_with("web", &["0000:02:00.0"]);
    for _ in 0..5 {
        let calls: Vec<_> = (0..8)
            .map(|number| host.hook("web", if number % 2 == 0 { "prepare" } else { "release" }, &xml).spawn())
            .collect();
        for call in calls {
            call.wait().ok();
        }
        host.release("web", &xml).ok();
        host.assert_restored(&before, "after the last release");
    }
}

/// A call of the hook without the fake kernel and without the care of [`fakehost::Call`], for thousands of them: for
/// devices that libvirt takes by itself, which the hook only records.
pub(crate) fn fast(host: &Host, guest: &str, operation: &str, xml: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vfpool-hook"));
    command.args([guest, operation, "begin", "-"]).env_clear().env("VFPOOL_ROOT", host.path(""));
    command.stdin(File::open(xml).unwrap()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn of_two_guests_for_each_device_of_a_pool_exactly_one_wins() {
    const DEVICES: usize = 32;
    const ROUNDS: usize = 200;
    let host = Host::with_vfs(DEVICES);
    // The hook is told the guest's name beside the XML.
    let xml = |number: usize| host.path(&format!("want{number}.xml"));
    for number in 0..DEVICES {
        host.put(&format!("want{number}.xml"), asking("any", &vf(number)));
    }
    host.put("nothing.xml", "");
    let guests: Vec<String> = (0..2 * DEVICES).map(|number| format!("g{number}")).collect();
    for round in 0..ROUNDS {
        let wanted = |guest: usize| (guest * (2 * (round % 16) + 1) + round) % DEVICES;
        let call = |operation: &str, file: &dyn Fn(usize) -> PathBuf| -> Vec<Output> {
            let calls: Vec<_> = guests
                .iter()
                .enumerate()
                .map(|(number, guest)| fast(&host, guest, operation, &file(number)).spawn().unwrap())
                .collect();
            calls.into_iter().map(|call| call.wait_with_output().unwrap()).collect()
        };
        let outputs = call("prepare", &|guest| xml(wanted(guest)));
        assert_eq!(host.recorded("claims").len(), DEVICES, "round {round}");
        let mut winners = BTreeSet::new();
        for (number, output) in outputs.iter().enumerate() {
            let (device, said) = (vf(wanted(number)), String::from_utf8_lossy(&output.stderr));
            let owner = host.points_to(&format!("run/vfpool/claims/{device}"));
            if output.status.success() {
                assert_eq!((owner.as_deref(), &*said), (Some(guests[number].as_str()), ""), "round {round}");
                assert!(winners.insert(device), "round {round}");
            } else {
                let one = format!(
                    "vfpool: guest '{}': {device} is not free: guest '{}' has it.",
                    guests[number],
                    owner.unwrap()
                );
                let all = format!("vfpool: guest '{}': no device of pool 'net' is free: ", guests[number]);
                assert!(said.starts_with(&one) || said.starts_with(&all), "round {round}: {said}");
            }
        }
        assert_eq!((winners.len(), host.recorded("leases").len()), (DEVICES, DEVICES), "round {round}");
        if round % 20 == 0 {
            // libvirt calls it for each start, also for those that failed.
            call("release", &|_| host.path("nothing.xml"));
            host.assert_no_leases("after a release of all");
        } else {
            std::fs::remove_dir_all(host.path("run/vfpool")).unwrap();
        }
    }
}

#[test]
fn of_many_starts_at_once_as_many_work_as_there_are_devices() {
    for _ in 0..5 {
        let host = Host::with_vfs(3);
        let guests: Vec<String> = (0..6).map(|number| format!("g{number}")).collect();
        for guest in &guests {
            host.define(guest, &asking(guest, &vf(0)));
        }
        let starts: Vec<_> = guests.iter().map(|guest| host.vfpool_with(&["start", guest], b"").spawn()).collect();
        let outcomes: Vec<_> = starts.into_iter().map(fakehost::Running::wait).collect();
        let started: Vec<&String> = guests
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| outcome.code == Some(0))
            .map(|(guest, _)| guest)
            .collect();
        assert_eq!(host.recorded("leases").iter().collect::<Vec<_>>(), started, "{outcomes:?}");
        assert_eq!((started.len(), host.recorded("claims")), (3, vec![vf(0), vf(1), vf(2)]), "{outcomes:?}");
        for outcome in outcomes.into_iter().filter(|outcome| outcome.code != Some(0)) {
            assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
            outcome.refused_saying(&["free: "]);
        }
    }
}

#[test]
fn of_many_starts_of_one_guest_one_works() {
    for _ in 0..5 {
        let host = Host::with_vfs(3);
        host.define("web", &asking("web", &vf(2)));
        let starts: Vec<_> = (0..4).map(|_| host.vfpool_with(&["start", "web"], b"").spawn()).collect();
        let codes: Vec<_> = starts.into_iter().map(|start| start.wait().code).collect();
        assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
        assert!(host.get("run/vfpool/leases/web").unwrap().contains("state=\"active\""));
        assert_eq!(host.recorded("claims").len(), 1);
        assert_eq!(host.points_at("web"), [vf(2)]);
    }
}
