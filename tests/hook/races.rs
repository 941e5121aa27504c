//! Many hooks at once, as real processes.

use crate::fakehost::{Host, domain_with};
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
        let outcomes: Vec<_> = calls.into_iter().map(crate::fakehost::Running::wait).collect();
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
        host.assert_as(&before, "after the winner's release");
        host.assert_no_leases("after the winner's release");
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
    host.assert_as(&before, "after all rounds");
    host.assert_no_leases("after all rounds");
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
        host.assert_as(&before, "after the last release");
        host.assert_no_leases("after the last release");
    }
}
