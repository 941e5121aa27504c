//! What a start costs on a host with many devices and many guests: as much as on a small one.

use crate::hook::races::fast;
use fakehost::{Host, asking, vf};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A host with this many VFs in a pool, of which guests have so many; and the XML of one that wants the next one.
fn host(vfs: usize, leases: usize) -> (Host, PathBuf) {
    let host = Host::with_vfs(vfs);
    host.put("wanted.xml", asking("web", &vf(leases)));
    host.prepare("g", &asking("g", &vf(0))).ok();
    let lease = host.get("run/vfpool/leases/g").unwrap();
    host.release("g", "").ok();
    for number in 0..leases {
        host.put(&format!("run/vfpool/leases/g{number}"), lease.replace(&vf(0), &vf(number)));
        host.put(&format!("run/vfpool/turns/g{number}"), "");
        symlink(format!("../leases/g{number}"), host.path(&format!("run/vfpool/claims/{}", vf(number)))).unwrap();
    }
    let wanted = host.path("wanted.xml");
    (host, wanted)
}

fn time(host: &Host, wanted: &Path) -> Duration {
    let begun = Instant::now();
    let prepared = fast(host, "web", "prepare", wanted).output().unwrap();
    let took = begun.elapsed();
    assert_eq!(String::from_utf8_lossy(&prepared.stderr), "");
    assert!(fast(host, "web", "release", wanted).status().unwrap().success());
    took
}

#[test]
fn a_start_costs_as_much_with_4096_devices_and_1000_guests_as_with_8_devices() {
    let hosts = [host(8, 0), host(4096, 1000)];
    // Another guest's device is refused, so the leases count.
    hosts[1]
        .0
        .prepare("web", &asking("web", &vf(999)))
        .refused_saying(&["0000:05:0c.7 is not free: guest 'g999' has it."]);
    let opened = hosts.each_ref().map(|(host, wanted)| {
        host.put("opened", "");
        host.prepare("web", &std::fs::read_to_string(wanted).unwrap()).ok();
        let opened = host.get("opened").unwrap();
        std::fs::remove_file(host.path("opened")).unwrap();
        host.release("web", "").ok();
        opened.lines().count()
    });
    assert_eq!(opened[0], opened[1], "the same files are looked at");
    assert!(opened[0] < 100, "{}", opened[0]);
    let ratio = || {
        let mut times: [Vec<Duration>; 2] = Default::default();
        for _ in 0..40 {
            for ((host, wanted), times) in hosts.iter().zip(&mut times) {
                times.push(time(host, wanted));
            }
        }
        let [small, large] = times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64()
        });
        large / small
    };
    // Other work on this machine may come in between.
    let mut ratios = Vec::new();
    while ratios.len() < 5 && ratios.iter().all(|ratio| *ratio > 1.5) {
        ratios.push(ratio());
    }
    assert!(ratios.iter().any(|ratio| *ratio <= 1.5), "{ratios:?}");
}
