//! `vfpool explain`: what it says of devices and guests, that it is what the hook then does, and that it changes
//! nothing.

use fakehost::{
    Device, FIRST, Guest, Host, Outcome, PF, SECOND, asking, definition, domain, domain_with, group, hostdev,
    hostdev_at, interface_at, vf,
};
use serde_json::Value;
use std::fs;

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

/// Prepares a guest, and proves that `explain` has foretold it right before: a refusal byte for byte, or else each
/// write.
#[track_caller]
pub(crate) fn prepare_as_foretold(guest: &Guest) -> Outcome {
    let Guest { host, name, xml, .. } = guest;
    let file = format!("etc/libvirt/qemu/{name}.xml");
    let defined = fs::read(host.path(&file));
    host.define(name, xml);
    let (text, json) = (explained(host, &[name]), json(host, name));
    match defined {
        Ok(defined) => host.put(&file, defined),
        Err(_) => fs::remove_file(host.path(&file)).unwrap(),
    }
    let start = &json["guest"]["start"];
    let foretold = writes(host, start);
    let outcome = guest.prepare();
    if outcome.code == Some(0) {
        assert_eq!(start["verdict"], "free", "{text}");
        let made = host.trace();
        let made: Vec<&str> = made.iter().map(String::as_str).filter(|line| line.starts_with("write sys/")).collect();
        if start["left_by"].is_null() {
            assert_eq!(made, foretold, "{text}");
        } else {
            // What goes back first is foretold in words only.
            assert!(made.iter().rev().zip(foretold.iter().rev()).all(|(made, foretold)| made == foretold), "{text}");
        }
    } else {
        let refusal = outcome.stderr.lines().last().unwrap();
        assert_eq!(refusal, format!("vfpool: guest '{name}': {}", start["refusal"].as_str().unwrap_or(&text)));
        assert!(text.contains(&format!("`virsh start {name}` would be refused:\n  {refusal}\n")), "{text}");
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
        ("a PF with VFs, managed='no'", with_vfs_of_one_that_is_down, || domain("web", &[hostdev(PF, false)]), 4),
        ("nothing", Host::new, || domain("web", &[]), 0),
    ];
    for (what, host, xml, count) in cases {
        let (host, xml) = (host(), xml());
        host.define("web", &xml);
        let start = &json(&host, "web")["guest"]["start"];
        assert_eq!(writes(&host, start).len(), count, "{what}: {start}");
        prepare_as_foretold(&host.guest_of("web", xml)).ok();
    }
}

/// With managed='no', the guard keeps one that is up.
fn with_vfs_of_one_that_is_down() -> Host {
    let host = Host::with_vfs(2);
    host.put("sys/class/net/eth3/flags", "0x1002\n");
    host
}

/// A NIC in a group with another one.
fn with_sibling(sibling: impl Fn(Device) -> Device) -> Host {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e"));
    host.add(sibling(Device::new(SECOND).group(8)));
    host
}

/// What is said must be this, but for the root of the host.
#[track_caller]
fn says(host: &Host, name: &str, text: &str) {
    let said = explained(host, &[name]).replace(host.path("").to_str().unwrap(), "/");
    assert_eq!(said, text, "{said}");
}

#[test]
fn devices() {
    // Alone in its group.
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e"));
    host.netdev(FIRST, "enp2s0", true, &["192.0.2.7"]);
    host.put(&format!("sys/bus/pci/devices/{FIRST}/numa_node"), "1\n");
    host.put(&format!("sys/bus/pci/devices/{FIRST}/rom"), "");
    says(
        &host,
        FIRST,
        r"0000:02:00.0  8086:10d3 network (class 0x020000)
  driver        e1000e
  interface     enp2s0
  NUMA node     1
  option ROM    yes
  IOMMU group   8, alone
  verdict       free
a guest with it would:
  0000:02:00.0  libvirt: bind to vfio-pci
and at its stop:
  0000:02:00.0  libvirt: reattach to e1000e
",
    );
    for name in ["02:00.0", "pci_0000_02_00_0", "enp2s0"] {
        assert_eq!(explained(&host, &[name]), explained(&host, &[FIRST]), "{name}");
    }
}

#[test]
fn groups() {
    let host = Host::with_pair();
    host.add(Device::new("0000:02:00.2").behind("0000:00:02.0").group(8));
    host.add(Device::new("0000:02:00.3").behind("0000:00:02.0").group(8).driver("vfio-pci"));
    host.add(Device::new("0000:02:01.0").bridge().group(8));
    says(
        &host,
        FIRST,
        r"0000:02:00.0  8086:10d3 network (class 0x020000)
  driver        e1000e
  option ROM    no
  IOMMU group   8, with
    0000:02:00.1  e1000e     would be detached
    0000:02:00.2  no driver  would go to vfio-pci
    0000:02:00.3  vfio-pci   stays there
    0000:02:01.0  pcieport   bridge, never touched
  verdict       free
a guest with it would:
  0000:02:00.1  set driver_override to vfio-pci (sibling)
  0000:02:00.1  unbind from e1000e (sibling)
  0000:02:00.1  offer to vfio-pci (sibling)
  0000:02:00.2  set driver_override to vfio-pci (sibling)
  0000:02:00.2  offer to vfio-pci (sibling)
  0000:02:00.3  stays on vfio-pci (sibling)
  0000:02:00.0  libvirt: bind to vfio-pci
and at its stop:
  0000:02:00.0  libvirt: reattach to e1000e
  0000:02:00.3  stays on vfio-pci (sibling)
  0000:02:00.2  reattach to no driver (sibling)
  0000:02:00.1  reattach to e1000e (sibling)
",
    );
}

#[test]
fn a_device_that_the_host_needs() {
    let host = Host::with_pair();
    host.netdev(SECOND, "enp2s0f1", true, &[]);
    host.route("0.0.0.0/0", 100, &["enp2s0f1"]);
    says(
        &host,
        FIRST,
        "0000:02:00.0  8086:10d3 network (class 0x020000)
  driver        e1000e
  option ROM    no
  IOMMU group   8, with
    0000:02:00.1  e1000e     needed: it carries the default route (enp2s0f1)
  verdict       not free
a guest with it would be refused:
  Cannot detach 0000:02:00.1 (sibling of 0000:02:00.0): it carries the default route (enp2s0f1). Move the route to \
          another interface, or allow it with <allow address='0000:02:00.1' id='8086:10d3'/> in /etc/vfpool/host.xml
",
    );
    says(
        &host,
        SECOND,
        "0000:02:00.1  8086:10d3 network (class 0x020000)
  driver        e1000e
  interface     enp2s0f1
  option ROM    no
  IOMMU group   8, with
    0000:02:00.0  e1000e     would be detached
  used          it carries the default route (enp2s0f1)
  verdict       not free
a guest with it would be refused:
  Cannot detach 0000:02:00.1: it carries the default route (enp2s0f1). Move the route to another interface, or allow \
          it with <allow address='0000:02:00.1' id='8086:10d3'/> in /etc/vfpool/host.xml
",
    );
    host.settings("<allow address='02:00.1'/>");
    assert!(explained(&host, &[FIRST]).contains("0000:02:00.1  e1000e     would be detached\n  verdict       free\n"));
}

#[test]
fn a_bridge() {
    let host = Host::with_pair();
    host.add(Device::new("0000:02:01.0").bridge().group(8));
    says(
        &host,
        "0000:02:01.0",
        r"0000:02:01.0  1b36:000c bridge (class 0x060400)
  driver        pcieport
  option ROM    no
  IOMMU group   8, with
    0000:02:00.0  e1000e     would be detached
    0000:02:00.1  e1000e     would be detached
  verdict       not free
a guest with it would be refused:
  0000:02:01.0 is a bridge, and only endpoints can be assigned to a guest. Assign a device behind it
",
    );
}

#[test]
fn a_pf_and_its_vfs() {
    let host = Host::with_vfs(3);
    says(
        &host,
        "eth3",
        r"0000:01:00.0  8086:10c9 network (class 0x020000)
  driver        igb
  interface     eth3
  VFs           3 of 3
  option ROM    no
  IOMMU group   8, alone
  verdict       free
a guest with it would:
  0000:01:10.0  goes with its PF
  0000:01:10.1  goes with its PF
  0000:01:10.2  goes with its PF
  0000:01:00.0  remove its 3 VFs
  0000:01:00.0  libvirt: bind to vfio-pci
and at its stop:
  0000:01:00.0  libvirt: reattach to igb
  0000:01:00.0  make its 3 VFs again
  0000:01:10.2  comes back with its PF, on no driver
  0000:01:10.1  comes back with its PF, on no driver
  0000:01:10.0  comes back with its PF, on no driver
",
    );
    for (guest, number) in [("db", 0), ("web", 1)] {
        host.define(guest, &asking(guest, &vf(number)));
    }
    host.define("fixed", &definition("fixed", &[], &[hostdev_at(&vf(1), 0, "")]));
    host.put("etc/libvirt/qemu/broken.xml", "<domain");
    host.runs("db");
    says(
        &host,
        &vf(0),
        r"0000:01:10.0  8086:10ca network (class 0x020000)
  driver        vfio-pci
  VF of         0000:01:00.0
  option ROM    no
  IOMMU group   100, alone
  pool          net
  leased to     guest 'db' (active, managed), was on no driver
  defined for   guest 'db' (runs)
  verdict       not free
a guest with it would be refused:
  0000:01:10.0 is not free: guest 'db' has it. Stop 'db' first, or use another device
",
    );
    says(
        &host,
        &vf(1),
        r"0000:01:10.1  8086:10ca network (class 0x020000)
  driver        no driver
  VF of         0000:01:00.0
  option ROM    no
  IOMMU group   101, alone
  pool          net
  defined for   guest 'fixed'
  parked by     guest 'web' (pool 'net')
  verdict       free
a guest with it would:
  0000:01:10.1  libvirt: bind to vfio-pci
and at its stop:
  0000:01:10.1  libvirt: unbind (it had no driver)
",
    );
    says(
        &host,
        &vf(2),
        r"0000:01:10.2  8086:10ca network (class 0x020000)
  driver        no driver
  VF of         0000:01:00.0
  option ROM    no
  IOMMU group   102, alone
  pool          net
  verdict       free
a guest with it would:
  0000:01:10.2  libvirt: bind to vfio-pci
and at its stop:
  0000:01:10.2  libvirt: unbind (it had no driver)
",
    );
    says(
        &host,
        PF,
        r"0000:01:00.0  8086:10c9 network (class 0x020000)
  driver        igb
  interface     eth3
  VFs           3 of 3
  option ROM    no
  IOMMU group   8, alone
  verdict       not free
a guest with it would be refused:
  0000:01:10.0 (VF that goes with 0000:01:00.0) is not free: guest 'db' has it. Stop 'db' first, or use another device
",
    );
}

#[test]
fn who_uses_it_without_a_lease() {
    let host = Host::with_vfs(2);
    host.qemu_runs("other", 4711);
    host.move_to(&vf(0), Some("vfio-pci"));
    host.opens_group(4711, group(0));
    says(
        &host,
        &vf(0),
        "0000:01:10.0  8086:10ca network (class 0x020000)
  driver        vfio-pci
  VF of         0000:01:00.0
  option ROM    no
  IOMMU group   100, alone
  pool          net
  used          guest 'other' (process 4711) uses it through VFIO
  verdict       not free
a guest with it would be refused:
  0000:01:10.0 is not free: guest 'other' (process 4711) uses it through VFIO. Stop guest 'other' first, or use \
         another device
",
    );
    host.process(4712, 1, 5);
    host.move_to(&vf(1), Some("vfio-pci"));
    host.opens_group(4712, group(1));
    says(
        &host,
        &vf(1),
        "0000:01:10.1  8086:10ca network (class 0x020000)
  driver        vfio-pci
  VF of         0000:01:00.0
  option ROM    no
  IOMMU group   101, alone
  pool          net
  used          process 4712 (qemu-kvm) uses it through VFIO
  verdict       not free
a guest with it would be refused:
  0000:01:10.1 is not free: process 4712 (qemu-kvm) uses it through VFIO. Stop process 4712 (qemu-kvm) first, or use \
          another device
",
    );
}

#[test]
fn what_a_gone_guest_has_left() {
    let host = Host::with_pair();
    let xml = domain_with("web", &[FIRST]);
    host.prepare("web", &xml).ok();
    host.define("web", &xml);
    says(
        &host,
        "web",
        r"guest 'web' is being started
  lease         pending
  device        0000:02:00.0 (hostdev): has it
at its stop:
  0000:02:00.0  libvirt: reattach to e1000e
  0000:02:00.1  reattach to e1000e (sibling)
",
    );
    host.libvirtd_dies();
    says(
        &host,
        FIRST,
        r"0000:02:00.0  8086:10d3 network (class 0x020000)
  driver        e1000e
  option ROM    no
  IOMMU group   8, with
    0000:02:00.1  vfio-pci   guest 'web' has it
  leased to     guest 'web' (pending, managed), was on e1000e
  defined for   guest 'web'
  verdict       free once the devices that guest 'web' left are reattached
first, the devices that guest 'web' left would be reattached:
  0000:02:00.0  reattach to e1000e
  0000:02:00.1  reattach to e1000e (sibling)
a guest with it would:
  0000:02:00.1  set driver_override to vfio-pci (sibling)
  0000:02:00.1  unbind from e1000e (sibling)
  0000:02:00.1  offer to vfio-pci (sibling)
  0000:02:00.0  libvirt: bind to vfio-pci
and at its stop:
  0000:02:00.0  libvirt: reattach to e1000e
  0000:02:00.1  reattach to e1000e (sibling)
",
    );
    let starts = |guest: &str, device: &str, sibling: &str| {
        format!(
            r"first, the devices that guest 'web' left would be reattached:
  0000:02:00.0  reattach to e1000e
  0000:02:00.1  reattach to e1000e (sibling)
`virsh start {guest}` would:
  {sibling}  set driver_override to vfio-pci (sibling)
  {sibling}  unbind from e1000e (sibling)
  {sibling}  offer to vfio-pci (sibling)
  {device}  libvirt: bind to vfio-pci
and at its stop:
  {device}  libvirt: reattach to e1000e
  {sibling}  reattach to e1000e (sibling)
"
        )
    };
    let web = "guest 'web' is shut off\n  lease         pending\n  device        0000:02:00.0 (hostdev): free\n";
    says(&host, "web", &format!("{web}{}", starts("web", FIRST, SECOND)));
    host.define("db", &domain_with("db", &[SECOND]));
    let db = "guest 'db' is shut off\n  device        0000:02:00.1 (hostdev): free\n";
    says(&host, "db", &format!("{db}{}", starts("db", SECOND, FIRST)));
    prepare_as_foretold(&host.guest("db", SECOND)).ok();
}

#[test]
fn guests() {
    let host = Host::with_vfs(3);
    host.add(Device::new("0000:00:02.0").bridge().group(7));
    host.add_pair("0000:02:00", 9);
    let devices = [interface_at(&vf(0), 0), hostdev_at(FIRST, 1, "")];
    let xml = definition("web", &[("net", 0), ("net", 7)], &devices);
    host.define("web", &xml);
    says(
        &host,
        "web",
        r"guest 'web' is shut off
  device        0000:01:10.0 (interface, pool 'net'): free
  device        0000:02:00.0 (hostdev): free
  warning       guest 'web' asks pool 'net' for a device at 0000:00:0c.0, where it has none; see `vfpool detach`
`virsh start web` would:
  0000:02:00.1  set driver_override to vfio-pci (sibling)
  0000:02:00.1  unbind from e1000e (sibling)
  0000:02:00.1  offer to vfio-pci (sibling)
  0000:01:10.0  libvirt: bind to vfio-pci
  0000:02:00.0  libvirt: bind to vfio-pci
and at its stop:
  0000:02:00.0  libvirt: reattach to e1000e
  0000:01:10.0  libvirt: unbind (it had no driver)
  0000:02:00.1  reattach to e1000e (sibling)
`vfpool start web` would choose:
  0000:01:10.0  of pool 'net'
",
    );
    host.runs_with("db", &vf(0));
    says(
        &host,
        "web",
        "guest 'web' is shut off
  device        0000:01:10.0 (interface, pool 'net'): not free
  device        0000:02:00.0 (hostdev): free
  warning       guest 'web' asks pool 'net' for a device at 0000:00:0c.0, where it has none; see `vfpool detach`
`virsh start web` would be refused:
  vfpool: guest 'web': 0000:01:10.0 is not free: guest 'db' has it. 0000:01:10.1 of pool 'net' is free, and it will be \
          pointed at a free one: start it again in a moment, or run `vfpool start web`
`vfpool start web` would choose:
  0000:01:10.1  of pool 'net'
",
    );
    says(
        &host,
        "db",
        r"guest 'db' runs (pid 5000000)
  lease         active
  device        0000:01:10.0 (hostdev, pool 'net'): has it
at its stop:
  0000:01:10.0  libvirt: unbind (it had no driver)
",
    );
    host.define("plain", &domain("plain", &[]));
    says(
        &host,
        "plain",
        r"guest 'plain' is shut off
  devices       none of PCI
`virsh start plain` would have nothing to do here
",
    );
    host.define(
        "moving",
        &asking("moving", &vf(0)).replace("\"0000:00:05.0\"/>", "\"0000:00:06.0\">x</vfpool:device>"),
    );
    says(
        &host,
        "moving",
        "guest 'moving' is shut off
  device        0000:01:10.0 (hostdev): not free
                0000:01:10.0 is not free: guest 'db' has it. Stop 'db' first, or use another device
`virsh start moving` would be refused:
  vfpool: guest 'moving': its device of pool 'net' (in the guest at 0000:00:06.0) is just being pointed at a free one. \
          Start it again in a moment; if that does not help, run `vfpool reconcile`
`vfpool start moving` would be refused:
  vfpool: guest 'moving': its device of pool 'net' (in the guest at 0000:00:06.0) is just being pointed at a free one. \
          Start it again in a moment; if that does not help, run `vfpool reconcile`
",
    );
    host.put("etc/libvirt/qemu/broken.xml", "<domain");
    says(
        &host,
        "broken",
        "guest 'broken' is shut off
  devices       none of PCI
`virsh start broken` would be refused:
  vfpool: guest 'broken': The domain XML is wrong at line 1: syntax error: tag not closed: `>` not found before end of \
          input
",
    );
    host.put("var/lib/libvirt/qemu/save/web.save", &xml);
    assert!(explained(&host, &["web"]).contains("\n  saved         `virsh start` restores it"));
}

#[test]
fn a_guest_that_runs() {
    let host = Host::with_vfs(3);
    host.add(Device::new("0000:00:02.0").bridge().group(7));
    host.add_pair("0000:02:00", 9);
    let xml = definition("web", &[("net", 0)], &[interface_at(&vf(0), 0), hostdev_at(FIRST, 1, "")]);
    host.define("web", &xml);
    host.runs("web");
    // It runs with something else than is defined now.
    host.define("web", &asking("web", &vf(2)));
    let live = xml.replace("  </devices>", &format!("{}  </devices>", hostdev_at(&vf(1), 2, "")));
    let status = "<domstatus state='running' pid='5000001'><devices/>\n";
    host.put("run/libvirt/qemu/web.xml", format!("{status}{}</domstatus>", live.split_once("-->\n\n").unwrap().1));
    let text = r"guest 'web' runs (pid 5000000)
  lease         active
  device        0000:01:10.0 (interface, pool 'net'): has it
  device        0000:02:00.0 (hostdev): has it
  device        0000:01:10.1 (hostdev): has it
                no lease tells of it: it came while the guest ran, or from a definition that changed since
at its stop:
  0000:02:00.0  libvirt: reattach to e1000e
  0000:01:10.0  libvirt: unbind (it had no driver)
  0000:02:00.1  reattach to e1000e (sibling)
";
    says(&host, "web", text);
    // It was defined nowhere but there.
    fs::remove_file(host.path("etc/libvirt/qemu/web.xml")).unwrap();
    says(&host, "web", text);
    fs::remove_file(host.path("run/libvirt/qemu/web.xml")).unwrap();
    says(
        &host,
        "web",
        r"guest 'web' runs (pid 5000000)
  lease         active
at its stop:
  0000:02:00.0  libvirt: reattach to e1000e
  0000:01:10.0  libvirt: unbind (it had no driver)
  0000:02:00.1  reattach to e1000e (sibling)
",
    );
}

#[track_caller]
fn document(host: &Host, name: &str, text: &str) {
    let said = explained(host, &[name, "--json"]).replace(host.path("").to_str().unwrap(), "/");
    assert_eq!(said, text, "{said}");
}

#[test]
fn the_document_of_a_device() {
    let host = Host::with_pair();
    document(
        &host,
        FIRST,
        r#"{
  "version": 1,
  "device": {
    "address": "0000:02:00.0",
    "id": "8086:10d3",
    "class": "0x020000",
    "driver": "e1000e",
    "option_rom": false,
    "group": 8,
    "members": [
      {
        "address": "0000:02:00.1",
        "id": "8086:10d3",
        "driver": "e1000e",
        "fate": "detached"
      }
    ],
    "start": {
      "verdict": "free",
      "steps": [
        {
          "address": "0000:02:00.1",
          "role": "sibling",
          "by": "vfpool",
          "what": "set driver_override to vfio-pci",
          "writes": [
            {
              "file": "/sys/bus/pci/devices/0000:02:00.1/driver_override",
              "value": "vfio-pci"
            }
          ]
        },
        {
          "address": "0000:02:00.1",
          "role": "sibling",
          "by": "vfpool",
          "what": "unbind from e1000e",
          "writes": [
            {
              "file": "/sys/bus/pci/drivers/e1000e/unbind",
              "value": "0000:02:00.1"
            }
          ]
        },
        {
          "address": "0000:02:00.1",
          "role": "sibling",
          "by": "vfpool",
          "what": "offer to vfio-pci",
          "writes": [
            {
              "file": "/sys/bus/pci/drivers_probe",
              "value": "0000:02:00.1"
            }
          ]
        },
        {
          "address": "0000:02:00.0",
          "role": "managed",
          "by": "libvirt",
          "what": "bind to vfio-pci"
        }
      ],
      "at_stop": [
        {
          "address": "0000:02:00.0",
          "role": "managed",
          "by": "libvirt",
          "what": "reattach to e1000e"
        },
        {
          "address": "0000:02:00.1",
          "role": "sibling",
          "by": "vfpool",
          "what": "reattach to e1000e"
        }
      ]
    }
  }
}
"#,
    );
}

#[test]
fn the_document_of_what_is_not_free() {
    let host = Host::with_vfs(2);
    host.runs_with("db", &vf(0));
    host.define("web", &asking("web", &vf(0)));
    let refusal = "0000:01:10.0 is not free: guest 'db' has it. 0000:01:10.1 of pool 'net' is free, and it will be \
                   pointed at a free one: start it again in a moment, or run `vfpool start web`";
    document(
        &host,
        "web",
        &r#"{
  "version": 1,
  "guest": {
    "name": "web",
    "state": "shut_off",
    "is_saved": false,
    "devices": [
      {
        "address": "0000:01:10.0",
        "kind": "hostdev",
        "is_managed": true,
        "guest_address": "0000:00:05.0",
        "pool": "net",
        "verdict": "refused",
        "why": "0000:01:10.0 is not free: guest 'db' has it. Stop 'db' first, or use another device"
      }
    ],
    "start": {
      "verdict": "refused",
      "refusal": "REFUSAL"
    },
    "chosen": {
      "devices": [
        {
          "pool": "net",
          "guest_address": "0000:00:05.0",
          "address": "0000:01:10.1"
        }
      ]
    }
  }
}
"#
        .replace("REFUSAL", refusal),
    );
    document(
        &host,
        &vf(0),
        r#"{
  "version": 1,
  "device": {
    "address": "0000:01:10.0",
    "id": "8086:10ca",
    "class": "0x020000",
    "driver": "vfio-pci",
    "option_rom": false,
    "physfn": "0000:01:00.0",
    "group": 100,
    "pool": "net",
    "lease": {
      "guest": "db",
      "state": "active",
      "role": "managed"
    },
    "pointed_at_by": [
      {
        "guest": "db",
        "is_running": true,
        "pool": "net"
      },
      {
        "guest": "web",
        "is_running": false,
        "pool": "net"
      }
    ],
    "start": {
      "verdict": "refused",
      "refusal": "0000:01:10.0 is not free: guest 'db' has it. Stop 'db' first, or use another device"
    }
  }
}
"#,
    );
}

#[test]
fn names_that_cannot_be_explained() {
    let host = Host::with_vfs(1);
    host.define("eth3", &domain("eth3", &[]));
    host.put("sys/class/net/br0/flags", "0x1003\n");
    let nothing = |name: &str| {
        format!(
            "'{name}' is no PCI device, no network interface of one, and no guest of this host; see `lspci -D`, `ip \
             link` and `virsh list --all`"
        )
    };
    let long = "x".repeat(300);
    for name in ["nobody", "", "..", "../qemu/eth3", "br0", "01:00", &long] {
        host.vfpool(&["explain", name]).refused(&nothing(name));
    }
    host.vfpool(&["explain", "a\nb\u{1b}[2J"]).refused(&nothing("a\\nb\\u{1b}[2J"));
    host.vfpool(&["explain", "0000:0b:00.0"]).refused(
        "there is no PCI device 0000:0b:00.0 on this host. See `lspci -D` for what there is; a guest is corrected with \
         `virsh edit`",
    );
    host.vfpool(&["explain", "eth3"]).refused(
        "'eth3' is a guest, and the device 0000:01:00.0, too. Say `vfpool explain --guest eth3`, or `vfpool explain \
         pci_0000_01_00_0`",
    );
    assert!(explained(&host, &["--guest", "eth3"]).starts_with("guest 'eth3' is shut off\n"));
    assert!(explained(&host, &["01:00.0"]).starts_with("0000:01:00.0  "));
    host.vfpool(&["explain", "--guest", "01:00.0"])
        .refused("there is no guest '01:00.0' on this host; see `virsh list --all`");
    for wrong in [&["explain"] as &[&str], &["explain", "eth3", "eth3"], &["explain", "--yaml", "eth3"]] {
        assert_eq!(host.vfpool(wrong).code, Some(2), "{wrong:?}");
    }
    assert_eq!(host.recorded(""), [""; 0], "nothing was made for it");
}

#[test]
fn a_name_makes_no_lines_and_no_control_sequences() {
    let host = Host::with_pair();
    let name = "a\u{1b}[2J\nb";
    host.prepare(name, &domain_with("a", &[FIRST])).ok();
    for name in [name, FIRST] {
        let said = explained(&host, &[name]);
        assert!(said.contains("'a\\u{1b}[2J\\nb'") && !said.contains('\u{1b}'), "{said}");
    }
}

/// A VF that went with a PF tells who has that.
#[test]
fn a_vf_that_is_not_there() {
    let host = Host::with_vfs(2);
    host.guest("db", PF).prepare().ok();
    host.vfpool(&["explain", &vf(0)]).refused(
        "0000:01:10.0 is not there as long as guest 'db' has the PF that it belongs to. Stop 'db' first, or use \
         another device",
    );
    host.libvirtd_dies();
    host.vfpool(&["explain", &vf(0)]).refused(
        "0000:01:10.0 is not there, as guest 'db', which is gone, has left the PF that it belongs to. Run `vfpool \
         reconcile`",
    );
}

#[test]
fn each_file_is_read_once() {
    let host = Host::with_vfs(3);
    (0..3).for_each(|number| host.move_to(&vf(number), Some("vfio-pci")));
    host.prepare("db", &asking("db", &vf(1))).ok();
    host.define("web", &asking("web", &vf(0)));
    let device = vf(0);
    for name in ["web", &device] {
        let opened = host.opened_by(|| assert_eq!(host.vfpool(&["explain", name]).code, Some(0)));
        println!("explain {name}: {} files and links", opened.values().sum::<usize>());
        for (file, count) in &opened {
            assert!(*count <= 1, "{file}: {opened:#?}");
        }
    }
}
