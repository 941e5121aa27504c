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

/// Of the attributes of PCI functions with one of these names, none is opened more often than that.
fn expect_reads(opened: &BTreeMap<String, usize>, names: &[&str], most: usize) {
    let is_named = |file: &str| names.iter().any(|name| file.ends_with(name));
    let attributes = opened.iter().filter(|(file, _)| file.starts_with("sys/bus/pci/devices/") && is_named(file));
    let read: Vec<_> = attributes.collect();
    assert!(!read.is_empty(), "{opened:#?}");
    for (file, count) in read {
        assert!(*count <= most, "{file} is read {count} times: {opened:#?}");
    }
}

#[test]
fn a_start_reads_each_device_once_before_the_lock_once_under_it_and_once_when_it_is_detached() {
    let host = Host::with_vfs(2);
    (0..2).for_each(|number| host.move_to(&vf(number), Some("vfio-pci")));
    let opened = host.opened_by(|| _ = host.prepare("web", &asking("web", &vf(0))).ok());
    // All of them.
    expect_reads(&opened, &[""], 3);
    let total: usize = opened.values().sum();
    println!("a pooled VF: {total} files and links");
    assert!(total <= 40, "{total}: {opened:#?}");
}

#[test]
fn a_release_gets_the_lock_twice() {
    let host = Host::with_vfs(2);
    host.move_to(&vf(0), Some("vfio-pci"));
    host.prepare("web", &asking("web", &vf(0))).ok();
    let opened = host.opened_by(|| _ = host.release("web", "").ok());
    // To record the stop before a device is touched, and to drop the lease when all are reattached.
    assert_eq!(opened.get("run/vfpool/lock"), Some(&2), "{opened:#?}");
    assert!(host.recorded("leases").is_empty());
}

#[test]
fn udev_waits_for_little_when_a_vf_appears() {
    let host = Host::with_vfs(2);
    let opened = host.opened_by(|| _ = host.udev(&[&vf(0)]).ok());
    assert_eq!(host.driver(&vf(0)).as_deref(), Some("vfio-pci"));
    let total: usize = opened.values().sum();
    println!("a VF appears: {total} files and links");
    assert!(total <= 18, "{total}: {opened:#?}");
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
        // Once in each phase. The driver and the override also by who writes and waits.
        expect_reads(&opened, &["modalias", "config", "iommu_group", "physfn", "sriov_numvfs"], 3);
        expect_reads(&opened, &[""], 5);
        let total = opened.values().sum::<usize>();
        println!("a group of {size}: {total} files and links");
        total
    };
    let counts = [1, 2, 4, 8].map(count);
    assert!(counts[3] <= 400, "{counts:?}");
    let growth = (counts[2] - counts[1]) / 2;
    assert!(counts[3] - counts[2] <= 4 * growth + 8, "{counts:?}");
}
