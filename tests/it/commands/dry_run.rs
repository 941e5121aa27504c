//! `--dry-run`: tells what would be done, one line each, and changes nothing on the whole host.

use fakehost::{Device, Host, asking, definition, hostdev_at, interface_at, uuid, vf};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every file and link of the host.
fn everything(host: &Host) -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            // What the fakes themselves note.
            if path.ends_with("virsh.trace") || path.ends_with("hw/virsh.locks") || path.ends_with("trace") {
                continue;
            }
            let what = if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                walk(&path, found);
                "folder".to_owned()
            } else {
                String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
            };
            found.insert(path, what);
        }
    }
    let mut found = BTreeMap::new();
    walk(&host.path(""), &mut found);
    found
}

/// What a dry run tells, after it was seen to change nothing.
#[track_caller]
fn told(host: &Host, arguments: &[&str]) -> Vec<String> {
    let before = everything(host);
    host.virsh_trace();
    let outcome = host.vfpool(&[arguments, &["--dry-run"]].concat());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    let now = everything(host);
    let changed: Vec<_> = before
        .keys()
        .chain(now.keys())
        .filter(|path| before.get(*path) != now.get(*path) && !path.starts_with(host.path("virsh.trace")))
        .collect();
    assert!(changed.is_empty(), "{arguments:?}: {changed:?}");
    for line in host.virsh_trace() {
        assert!(line.starts_with("dumpxml"), "{arguments:?}: {line}");
    }
    outcome.stdout.lines().map(|line| line.replace(&uuid("web"), "WEB")).collect()
}

const SOURCE: &str = "<source><address type='pci' domain='0x0000' bus='0x01' slot='0x10' function='0x1'/></source>";

/// A shell's word in single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[test]
fn requests() {
    let host = Host::with_vfs(3);
    host.runs_with("db", &vf(0));
    let fixed = hostdev_at(&vf(1), 0, "");
    host.define("web", &definition("web", &[], std::slice::from_ref(&fixed)));
    let flat = |text: &str| text.lines().map(str::trim).collect::<String>();
    let request =
        |more: &str| quoted(&format!("<request><device pool=\"net\" guest-address=\"0000:00:05.0\"{more}</request>"));
    let metadata = |more: &str| {
        format!("virsh metadata WEB --uri urn:vfpool:domain:1 --key vfpool --config --set {}", request(more))
    };
    let adopted = "guest 'web': 0000:01:10.1 (in the guest at 0000:00:05.0) is now any device of pool 'net'";
    assert_eq!(told(&host, &["adopt", "web", "net"]), [metadata("/>"), adopted.to_owned()]);
    let lines = told(&host, &["adopt", "web", "net", "--rom-off"]);
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].starts_with("virsh metadata WEB") && lines[0].contains("&lt;rom bar="), "{}", lines[0]);
    assert_eq!(lines[1], format!("virsh detach-device WEB /dev/stdin --config <<<{}", quoted(&flat(&fixed))));
    let without = fixed.replace("</hostdev>", "<rom bar='off'/></hostdev>");
    assert_eq!(lines[2], format!("virsh attach-device WEB /dev/stdin --config <<<{}", quoted(&flat(&without))));
    let new = SOURCE.replace("'0x1'", "'0x2'");
    let new = format!("<hostdev mode='subsystem' type='pci' managed='yes'>{new}</hostdev>");
    assert_eq!(
        told(&host, &["attach", "web", "net", "--config"]),
        [
            format!("virsh attach-device WEB /dev/stdin --config <<<{}", quoted(&new)),
            "virsh metadata web ... --config: a request of pool 'net'".to_owned(),
            "guest 'web': a device of pool 'net' attached, from the next start on; it points at 0000:01:10.2 for now"
                .to_owned(),
        ]
    );
    host.define("web", &definition("web", &[("net", 0)], std::slice::from_ref(&fixed)));
    assert_eq!(
        told(&host, &["detach", "web", "net", "--config"]),
        [
            format!("virsh detach-device WEB /dev/stdin --config <<<{}", quoted(flat(&fixed).as_str())),
            "virsh metadata WEB --uri urn:vfpool:domain:1 --config --remove".to_owned(),
            "guest 'web': a device of pool 'net' detached, from the next start on".to_owned(),
        ]
    );
}

#[test]
fn hot_plug_with_its_group() {
    let host = Host::with_pair();
    host.pool("nics", "<address type='pci' bus='0x02' slot='0x00' function='0x0'/>");
    host.define("web", &definition("web", &[], &[]));
    host.runs("web");
    let lines = told(&host, &["attach", "web", "nics", "--live"]);
    assert_eq!(lines[0], "0000:02:00.1: e1000e -> vfio-pci (sibling, guest 'web')");
    assert!(lines[1].starts_with("virsh attach-device WEB /dev/stdin --live <<<'<hostdev "), "{}", lines[1]);
    assert_eq!(
        lines[2..],
        [
            "virsh metadata WEB ... --live: a request of pool 'nics'",
            "guest 'web': 0000:02:00.0 of pool 'nics' attached to the running guest",
        ]
    );
    assert_eq!(host.vfpool(&["attach", "web", "nics", "--live", "--config"]).code, Some(0));
    let lines = told(&host, &["detach", "web", "nics", "--live", "--config"]);
    assert!(lines[0].starts_with("virsh detach-device WEB /dev/stdin --live <<<'<hostdev "), "{}", lines[0]);
    assert_eq!(lines[1], "0000:02:00.1: vfio-pci -> e1000e (reattached, guest 'web')");
    assert_eq!(lines[2], "virsh metadata WEB --uri urn:vfpool:domain:1 --live --remove");
    assert!(lines[3].starts_with("virsh detach-device WEB /dev/stdin --config <<<'<hostdev "), "{}", lines[3]);
    assert_eq!(lines.len(), 6, "{lines:?}");
}

#[test]
fn starts_and_what_they_take() {
    let host = Host::with_vfs(3);
    host.runs_with("db", &vf(0));
    host.define("web", &asking("web", &vf(0)));
    let lines = told(&host, &["start", "web", "--paused"]);
    assert_eq!(lines[0], "guest 'web': 0000:01:10.1 of pool 'net' for this boot (its definition has 0000:01:10.0)");
    assert!(lines[1].starts_with("virsh create /dev/stdin --paused <<<'"), "{}", lines[1]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    host.define("plain", &definition("plain", &[], &[]));
    assert_eq!(told(&host, &["start", "plain"]), [format!("virsh start {}", uuid("plain"))]);
    // What would be refused is.
    host.define("no", &definition("no", &[("lan", 0)], &[hostdev_at(&vf(0), 0, "")]));
    host.vfpool(&["start", "no", "--dry-run"]).refused_saying(&["guest 'no': There is no pool 'lan'"]);
    let before = everything(&host);
    let rewritten = host.vfpool_with(&["rewrite", "--dry-run"], asking("web", &vf(0)).as_bytes()).run();
    assert_eq!((rewritten.code, rewritten.stderr.as_str()), (Some(0), ""));
    assert_eq!(rewritten.stdout, asking("web", &vf(1)));
    assert_eq!(everything(&host), before, "nothing is reserved");
    // A gone guest's device would be reattached first.
    let host = Host::with_pair();
    host.guest("gone", "0000:02:00.1").prepare().ok();
    host.libvirtd_dies();
    host.define("web", &definition("web", &[], &[hostdev_at("0000:02:00.0", 0, "")]));
    let before = everything(&host);
    let outcome = host.vfpool(&["start", "web", "--dry-run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(outcome.stderr, "vfpool: guest 'gone' is no longer running; reattaching its devices\n");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], "0000:02:00.0: vfio-pci -> e1000e (reattached, guest 'gone')");
    assert!(lines.last().unwrap().starts_with("virsh start "), "{lines:?}");
    assert_eq!(everything(&host), before);
}

#[test]
fn setup_and_its_vfs() {
    let host = Host::new();
    let places: Vec<(String, u32)> = (0..3).map(|number| (vf(number), 100)).collect();
    let places: Vec<(&str, u32)> = places.iter().map(|(address, group)| (address.as_str(), *group)).collect();
    host.add(Device::new("0000:01:00.0").id("8086:10c9").driver("igb").group(8).vfs("8086:10ca", &places));
    host.netdev("0000:01:00.0", "eth3", false, &[]);
    host.pool("net", "<pf dev='eth3' vfs='2'/>");
    host.ip_works();
    host.vfio_is_a_module("load");
    assert_eq!(
        told(&host, &["setup"]),
        [
            "eth3: down -> up (pool 'net')",
            "0000:01:00.0: host drivers are kept from its new VFs (pool 'net')",
            "0000:01:00.0: 0 VFs -> 2 (pool 'net')",
            "0000:01:00.0: its 2 VFs -> vfio-pci (pool 'net')",
        ]
    );
    host.make_vfs("0000:01:00.0", &[Some("igbvf"), None]);
    let lines = told(&host, &["setup", "eth3"]);
    assert!(lines.contains(&"module vfio-pci loaded (pool 'net')".to_owned()), "{lines:?}");
    assert!(lines.contains(&"0000:01:10.0: igbvf -> vfio-pci (pool 'net')".to_owned()), "{lines:?}");
    assert!(lines.contains(&"0000:01:10.1: no driver -> vfio-pci (pool 'net')".to_owned()), "{lines:?}");
}

#[test]
fn reconcile_and_release() {
    let host = Host::with_vfs(4);
    host.runs_with("db", &vf(0));
    host.define("web", &asking("web", &vf(0)));
    host.define("nic", &definition("nic", &[("net", 0)], &[interface_at(&vf(0), 0)]));
    let lines = told(&host, &["reconcile"]);
    assert!(lines[2].starts_with("virsh attach-device ") && lines[2].contains("52:54:00:aa:00:00"), "{lines:?}");
    assert_eq!(lines[3], "guest 'nic': parked at 0000:01:10.1 of pool 'net' (was 0000:01:10.0)");
    assert_eq!(lines[7], "guest 'web': parked at 0000:01:10.2 of pool 'net' (was 0000:01:10.0)");
    assert_eq!(lines.len(), 8, "{lines:?}");
    // It would do just that, and then has nothing to do.
    host.reconcile().ok();
    assert_eq!((host.points_at("nic"), host.points_at("web")), (vec![vf(1)], vec![vf(2)]));
    assert_eq!(told(&host, &["reconcile"]), [""; 0]);
    assert_eq!(told(&host, &["reconcile", "--queued"]), [""; 0]);
    let host = Host::with_pair();
    host.guest("web", "0000:02:00.0").prepare().ok();
    assert_eq!(
        told(&host, &["release", "web", "--force"]),
        [
            "0000:02:00.1: vfio-pci -> e1000e (reattached, guest 'web')",
            "guest 'web': released by hand: 0000:02:00.1, 0000:02:00.0",
        ]
    );
    host.vfpool(&["release", "web", "--dry-run"]).refused_saying(&["it is being started by libvirtd"]);
}
