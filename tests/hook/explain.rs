//! `vfpool explain`: what it says of devices and guests, that it is what the hook then does, and that it changes nothing.

use crate::fakehost::guests::{PF, asking, definition, group, hostdev_at, interface_at, slot, vf};
use crate::fakehost::{Device, Host, Outcome, domain, domain_with, hostdev};
use serde_json::Value;
use std::fs;

const FIRST: &str = "0000:02:00.0";
const SECOND: &str = "0000:02:00.1";

/// What is said of a device or guest. That nothing was changed for it is seen to.
#[track_caller]
fn explained(host: &Host, arguments: &[&str]) -> String {
    host.trace();
    let before = host.snapshot();
    let outcome = host.vfpool(&[&["explain"], arguments].concat());
    assert_eq!(outcome.code, Some(0), "{arguments:?}: {}", outcome.stderr);
    assert_eq!(host.trace(), [""; 0], "{arguments:?}");
    host.assert_as(&before, "after explain");
    outcome.stdout
}

#[track_caller]
fn json(host: &Host, name: &str) -> Value {
    serde_json::from_str(&explained(host, &[name, "--json"])).unwrap()
}

/// Prepares a guest, and proves that `explain` has foretold it right before: a refusal byte for byte, or else each write.
#[track_caller]
pub(crate) fn prepare_as_foretold(host: &Host, guest: &str, xml: &str) -> Outcome {
    let file = format!("etc/libvirt/qemu/{guest}.xml");
    let defined = fs::read(host.path(&file));
    host.define(guest, xml);
    let (text, json) = (explained(host, &[guest]), json(host, guest));
    match defined {
        Ok(defined) => host.put(&file, defined),
        Err(_) => fs::remove_file(host.path(&file)).unwrap(),
    }
    let start = &json["guest"]["start"];
    let foretold = writes(host, start);
    let outcome = host.prepare(guest, xml);
    if outcome.code == Some(0) {
        assert_eq!(start["verdict"], "free", "{text}");
        let made = host.trace();
        let made: Vec<&str> = made.iter().map(String::as_str).filter(|line| line.starts_with("write sys/")).collect();
        assert_eq!(made, foretold, "{text}");
    } else {
        let refusal = outcome.stderr.lines().last().unwrap();
        assert_eq!(refusal, format!("vfpool: guest '{guest}': {}", start["refusal"].as_str().unwrap_or(&text)));
        assert!(text.contains(&format!("`virsh start {guest}` would be refused:\n  {refusal}\n")), "{text}");
    }
    outcome
}

/// The writes of a start that is foretold, as the fake kernel will trace them.
fn writes(host: &Host, start: &Value) -> Vec<String> {
    let steps = start["steps"].as_array().into_iter().flatten();
    let writes = steps.flat_map(|step| step["writes"].as_array().into_iter().flatten());
    let trace = |write: &Value| {
        let file = fs::canonicalize(write["file"].as_str().unwrap()).unwrap();
        let file = file.strip_prefix(host.path("")).unwrap().display().to_string();
        format!("write {file} {}", write["value"].as_str().unwrap())
    };
    writes.map(trace).collect()
}

#[test]
fn each_write_of_a_start_is_foretold() {
    type Case = (&'static str, fn() -> Host, fn() -> String, usize);
    let nic = || domain_with("web", &[FIRST]);
    let cases: [Case; 12] = [
        ("a sibling", Host::with_pair, nic, 3),
        ("both functions", Host::with_pair, || domain_with("web", &[FIRST, SECOND]), 0),
        ("managed='no'", Host::with_pair, || domain("web", &[hostdev(FIRST, false)]), 6),
        ("a sibling without a driver", || with_sibling(|sibling| sibling), nic, 2),
        ("a sibling on vfio-pci", || with_sibling(|sibling| sibling.driver("vfio-pci")), nic, 0),
        ("an override", || with_sibling(|sibling| sibling.driver("e1000e").driver_override("vfio-pci")), nic, 2),
        ("no driver_override", || with_sibling(|sibling| sibling.driver("e1000e").without_override()), nic, 3),
        (
            "vfio-pci is not loaded",
            || {
                let host = Host::with_pair();
                host.vfio_is_a_module("load");
                host
            },
            || domain("web", &[hostdev(FIRST, false)]),
            6,
        ),
        ("a VF of a pool", || Host::with_vfs(2), || asking("web", &vf(1)), 0),
        ("a PF with VFs", || Host::with_vfs(2), || domain_with("web", &[PF]), 1),
        ("a PF with VFs, managed='no'", || Host::with_vfs(2), || domain("web", &[hostdev(PF, false)]), 4),
        ("nothing", Host::new, || domain("web", &[]), 0),
    ];
    for (what, host, xml, count) in cases {
        let (host, xml) = (host(), xml());
        host.define("web", &xml);
        let start = &json(&host, "web")["guest"]["start"];
        assert_eq!(writes(&host, start).len(), count, "{what}: {start}");
        prepare_as_foretold(&host, "web", &xml).ok();
    }
}

/// A NIC in a group with another one.
fn with_sibling(sibling: impl Fn(Device) -> Device) -> Host {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e"));
    host.add(sibling(Device::new(SECOND).group(8)));
    host
}
