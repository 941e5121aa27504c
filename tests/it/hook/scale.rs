//! What a start costs on a host with many devices and many guests: as much as on a small one.

use crate::hook::races::fast;
use fakehost::{Device, Host, asking, domain_with, vf};
use std::collections::BTreeMap;
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

/// No PCI function is read more often than that: each reading begins with its vendor. (Its driver is also read back
/// after each step, and its override is asked for first, as a driver that hangs holds it back.)
fn expect_reads(opened: &BTreeMap<String, usize>, most: usize) {
    for (file, count) in opened.iter().filter(|(file, _)| file.ends_with("/vendor")) {
        assert!(*count <= most, "{file} is read {count} times: {opened:#?}");
    }
}

#[test]
fn a_start_reads_each_device_once_before_the_lock_once_under_it_and_once_when_it_is_detached() {
    let host = Host::with_vfs(2);
    (0..2).for_each(|number| host.move_to(&vf(number), Some("vfio-pci")));
    let opened = host.opened_by(|| _ = host.prepare("web", &asking("web", &vf(0))).ok());
    expect_reads(&opened, 3);
    let total: usize = opened.values().sum();
    println!("a pooled VF: {total} files and links");
    assert!(total <= 50, "{total}: {opened:#?}");
}

#[test]
fn the_cost_of_a_group_grows_with_its_size_and_not_faster() {
    let count = |size: usize| {
        let host = Host::new();
        let addresses: Vec<String> = (0..size).map(|function| format!("0000:02:00.{function}")).collect();
        for address in &addresses {
            host.add(Device::new(address).group(8).driver("e1000e"));
        }
        let opened = host.opened_by(|| _ = host.prepare("web", &domain_with("web", &[&addresses[0]])).ok());
        // The driver and the override also by whoever asks the driver, guards, writes and waits.
        expect_reads(&opened, 5);
        let is_fixed = |file: &str| ["vendor", "config", "iommu_group"].iter().any(|name| file.ends_with(name));
        expect_reads(
            &opened.iter().filter(|(file, _)| is_fixed(file)).map(|(file, count)| (file.clone(), *count)).collect(),
            3,
        );
        let total = opened.values().sum::<usize>();
        println!("a group of {size}: {total} files and links");
        total
    };
    let counts = [1, 2, 4, 8].map(count);
    assert!(counts[3] <= 400, "{counts:?}");
    let growth = (counts[2] - counts[1]) / 2;
    assert!(counts[3] - counts[2] <= 4 * growth + 8, "{counts:?}");
}
