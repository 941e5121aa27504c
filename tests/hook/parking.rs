//! Stopped guests are pointed at free devices.

use crate::fakehost::Host;
use crate::fakehost::guests::{asking, definition, hostdev_at, interface_at, vf};
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
fn an_interface_is_updated_in_one_step() {
    let host = Host::with_vfs(4);
    let xml = |own: [usize; 3]| {
        let devices = [interface_at(&vf(own[0]), 0), interface_at(&vf(own[1]), 1), hostdev_at(&vf(own[2]), 2, "")];
        definition("web", &[("net", 0), ("net", 1)], &devices)
    };
    host.define("web", &xml([0, 0, 1]));
    host.reconcile().ok();
    assert_eq!(host.virsh_trace(), ["update-device web"]);
    assert_eq!(host.definition("web"), xml([0, 2, 1]));
}
