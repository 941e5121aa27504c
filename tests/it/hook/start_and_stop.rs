//! What goes well: a guest starts, runs and stops, and the host is as it was before.

use fakehost::{Device, FIRST, Host, SECOND, domain, domain_with, hostdev, source};

#[test]
fn the_sibling_goes_and_comes_back() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok_saying("vfpool: 0000:02:00.1: e1000e -> vfio-pci (sibling, guest 'web')\n");
    assert_eq!(host.driver(FIRST).as_deref(), Some("e1000e"), "libvirt detaches a managed device itself");
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    assert_eq!(host.driver("0000:00:02.0").as_deref(), Some("pcieport"));
    let web = web.detaches();
    host.assert_viable(8);
    web.hook("start").run().ok_silently();
    let web = web.runs();
    assert!(host.get("run/vfpool/leases/web").unwrap().contains("state=\"active\""));
    host.qemu_ends("web");
    web.hook("stopped").run().ok_silently();
    web.reattaches();
    web.release().ok_saying("vfpool: 0000:02:00.1: vfio-pci -> e1000e (reattached, guest 'web')\n");
    host.assert_restored(&before, "after release");
}

#[test]
fn an_unmanaged_device_is_taken_and_given_back() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest_of("web", domain("web", &[hostdev(FIRST, false)]));
    let outcome = web.prepare().ok_saying("0000:02:00.0: e1000e -> vfio-pci (unmanaged, guest 'web')");
    assert_eq!(outcome.stderr.lines().count(), 2, "one line a change: {}", outcome.stderr);
    host.assert_viable(8);
    let outcome = web.release().ok_saying("0000:02:00.0: vfio-pci -> e1000e (reattached, guest 'web')");
    assert_eq!(outcome.stderr.lines().count(), 2, "{}", outcome.stderr);
    host.assert_restored(&before, "after release");
}

#[test]
fn the_writes_are_those_the_kernel_documents() {
    let host = Host::with_pair();
    let web = host.guest("web", FIRST);
    let sysfs = |trace: Vec<String>| -> Vec<String> {
        let writes = trace.into_iter().filter_map(|line| Some(line.strip_prefix("write sys/")?.to_owned()));
        writes.map(|line| line.replace("devices/pci0000:00/0000:00:02.0/", "")).collect()
    };
    web.prepare().ok();
    assert_eq!(
        sysfs(host.trace()),
        [
            "0000:02:00.1/driver_override vfio-pci",
            "bus/pci/drivers/e1000e/unbind 0000:02:00.1",
            "bus/pci/drivers_probe 0000:02:00.1",
        ]
    );
    web.release().ok();
    assert_eq!(
        sysfs(host.trace()),
        [
            "0000:02:00.1/driver_override",
            "bus/pci/drivers/vfio-pci/unbind 0000:02:00.1",
            "bus/pci/drivers/e1000e/bind 0000:02:00.1",
        ]
    );
}

#[test]
fn both_functions_of_a_card_to_one_guest() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest_of("web", domain_with("web", &[FIRST, SECOND]));
    web.prepare().ok_silently();
    host.assert_as(&before, "libvirt takes both");
    assert_eq!(host.recorded("claims"), [FIRST, SECOND]);
    web.release().ok_silently();
    host.assert_no_leases("after release");
}

#[test]
fn every_kind_of_pci_device_takes_its_group() {
    let nvme = source(FIRST).replace("<source>", "<source type='pci' managed='yes' namespace='1'>");
    for device in [
        format!(
            "<interface type='hostdev' managed='yes'><mac address='52:54:00:6d:90:02'/>{}</interface>",
            source(FIRST)
        ),
        format!("<disk type='nvme' device='disk'><driver name='qemu' type='raw'/>{nvme}<target dev='vde'/></disk>"),
    ] {
        let host = Host::with_pair();
        let before = host.snapshot();
        host.guest_of("web", domain("web", &[device])).starts().runs().stops();
        host.assert_restored(&before, "after release");
    }
}

#[test]
fn other_host_devices_are_none_of_ours() {
    let host = Host::with_pair();
    let before = host.snapshot();
    let web = host.guest_of("web", domain("web", &[
            "<hostdev mode='subsystem' type='usb'><source><address bus='2' device='0'/></source></hostdev>".into(),
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/><address bus='0' target='0' \
             unit='0'/></source></hostdev>"
                .into(),
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address \
             uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>"
                .into(),
        ]));
    for operation in ["prepare", "start", "started", "stopped", "release", "reconnect"] {
        web.hook(operation).run().ok_silently();
    }
    assert_eq!(host.trace(), [""; 0], "not even a lock");
    host.assert_as(&before, "after all");
}

#[test]
fn a_sibling_stays_on_the_vfio_driver_it_had() {
    let host = Host::with_pair();
    host.move_to(SECOND, Some("vfio-pci"));
    let before = host.snapshot();
    host.guest("web", FIRST).starts().runs().stops();
    host.assert_restored(&before, "after release");
}

#[test]
fn a_sibling_without_a_driver_has_none_again() {
    let host = Host::with_pair();
    host.move_to(SECOND, None);
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok_saying("0000:02:00.1: no driver -> vfio-pci (sibling, guest 'web')");
    web.release().ok_saying("0000:02:00.1: vfio-pci -> no driver (reattached, guest 'web')");
    host.assert_as(&before, "after release");
}

#[test]
fn a_driver_override_is_restored_to_what_it_was() {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e"));
    host.add(Device::new(SECOND).group(8).driver("e1000e").driver_override("e1000e"));
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    web.release().ok();
    assert_eq!(host.driver_override(SECOND).as_deref(), Some("e1000e"));
    host.assert_as(&before, "after release");
}

#[test]
fn bridges_and_ports_of_the_group_are_never_touched() {
    let host = Host::new();
    host.add(Device::new("0000:00:02.0").bridge().group(8));
    // An ISA bridge has an endpoint's header.
    host.add(Device::new("0000:00:1f.0").group(8).class(0x06_0100).id("8086:2918"));
    host.add_pair("0000:02:00", 8);
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    let outcome = web.prepare().ok();
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert_eq!(host.recorded("claims"), [FIRST, SECOND]);
    web.release().ok();
    host.assert_as(&before, "after release");
}

/// The pair, and a card of the same kind that has no driver, on a kernel without `driver_override`.
fn old_host() -> Host {
    let host = Host::new();
    host.add(Device::new(FIRST).group(8).driver("e1000e").without_override());
    host.add(Device::new(SECOND).group(8).driver("e1000e").without_override());
    host.add(Device::new("0000:03:00.0").group(9).without_override());
    host
}

#[test]
fn new_id_grabs_no_other_card_for_long() {
    let host = old_host();
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok_saying("0000:02:00.1: e1000e -> vfio-pci (sibling, guest 'web')");
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    assert_eq!(host.driver("0000:03:00.0"), None, "an identical card without a driver stays without");
    assert_eq!(host.get("hw/dynids/vfio-pci").as_deref(), Some(""), "the id goes away again");
    web.release().ok();
    host.assert_as(&before, "after release");
}

#[test]
fn an_id_that_the_admin_gave_stays() {
    let host = old_host();
    host.put("hw/dynids/vfio-pci", "8086:10d3");
    let before = host.snapshot();
    let web = host.guest("web", FIRST);
    web.prepare().ok();
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    web.release().ok();
    host.assert_as(&before, "after release");
}

#[test]
fn the_module_is_loaded_when_it_is_not() {
    let host = Host::with_pair();
    host.vfio_is_a_module("load");
    let web = host.guest("web", FIRST);
    web.prepare().ok_saying("vfpool: module vfio-pci loaded (guest 'web')");
    assert_eq!(host.get("modprobe.called").as_deref(), Some("-b vfio-pci"));
    assert_eq!(host.driver(SECOND).as_deref(), Some("vfio-pci"));
    web.release().ok();
    assert_eq!(host.driver(SECOND).as_deref(), Some("e1000e"));
}

#[test]
fn a_module_that_does_not_load_is_named() {
    for (modprobe, reason) in [
        ("exit 1", "exit status: 1, and the driver is not there; try it by hand"),
        ("exit 0", "exit status: 0, and the driver is not there; try it by hand"),
        ("exec sleep 20", "it has not ended for 1 s"),
    ] {
        let host = Host::with_pair();
        host.settings("<deadline seconds='1'/>");
        host.vfio_is_a_module(modprobe);
        let before = host.snapshot();
        let outcome = host.guest("web", FIRST).prepare();
        assert!(outcome.took.as_secs() < 5, "{:?}", outcome.took);
        let program = host.path("sbin/modprobe");
        let program = program.display();
        outcome.refused(&format!("guest 'web': Cannot load the module vfio-pci with {program}: {reason}"));
        host.assert_restored(&before, modprobe);
    }
}

#[test]
fn a_device_that_libvirt_chose_is_taken_at_start() {
    let host = Host::with_pair();
    let before = host.snapshot();
    host.prepare("web", &domain("web", &[])).ok_silently();
    host.libvirt_detaches(FIRST);
    let interface = format!("<interface type='hostdev' managed='yes'>{}</interface>", source(FIRST));
    let web = host.guest_of("web", domain("web", &[interface]));
    web.hook("start").run().ok_saying("0000:02:00.1: e1000e -> vfio-pci (sibling, guest 'web')");
    host.assert_viable(8);
    host.libvirt_reattaches(FIRST, Some("e1000e"));
    web.release().ok();
    host.assert_restored(&before, "after release");
}

#[test]
fn syslog_gets_one_line_a_change() {
    let host = Host::with_pair();
    let syslog = std::os::unix::net::UnixDatagram::bind(host.path("dev/log")).unwrap();
    syslog.set_nonblocking(true).unwrap();
    let lines = || {
        let mut lines = Vec::new();
        let mut line = [0; 4096];
        while let Ok(length) = syslog.recv(&mut line) {
            lines.push(String::from_utf8(line[..length].to_vec()).unwrap());
        }
        lines
    };
    let web = host.guest("web", FIRST);
    web.prepare().ok_silently();
    let told = lines();
    let [line] = told.as_slice() else { panic!("{told:?}") };
    // Facility daemon (3), severity info (6). The time is the daemon's.
    let (start, line) = line.split_once("]: ").unwrap();
    assert!(start.strip_prefix("<30>vfpool[").is_some_and(|pid| pid.parse::<u32>().is_ok()), "{start}");
    assert_eq!(line, "0000:02:00.1: e1000e -> vfio-pci (sibling, guest 'web')");
    web.hook("start").run().ok_silently();
    assert_eq!(lines(), [""; 0]);
    host.guest("db", SECOND).prepare().refused(
        "guest 'db': 0000:02:00.1 is not free: guest 'web' has 0000:02:00.0 of the same IOMMU group 8, and a group \
         goes to one guest as a whole. Stop 'web' first, or use another device",
    );
    let told = lines();
    assert!(matches!(told.as_slice(), [line] if line.starts_with("<27>") && line.contains("guest 'db'")), "{told:?}");
    web.release().ok_silently();
    assert_eq!(lines().len(), 1);
}
