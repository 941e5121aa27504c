//! PFs and their VFs.

use fakehost::{Device, Host, PF, domain, hostdev};

const OTHER: &str = "0000:01:00.1";
const VFS: [&str; 3] = ["0000:01:10.0", "0000:01:10.2", "0000:01:10.4"];

/// A PF of igb that can have three VFs in groups of their own, and a NIC that shares the PF's group.
fn host(pf: impl Fn(Device) -> Device) -> Host {
    let host = Host::new();
    let places = [(VFS[0], 11), (VFS[1], 12), (VFS[2], 13)];
    host.add(pf(Device::new(PF).id("8086:10c9").driver("igb").group(8).vfs("8086:10ca", &places)));
    host.add(Device::new(OTHER).group(8).driver("e1000e"));
    host
}

#[test]
fn a_vf_needs_nothing_but_itself() {
    let host = host(|pf| pf);
    host.make_vfs(PF, &[Some("igbvf"), Some("vfio-pci")]);
    let before = host.snapshot();
    let web = host.guest("web", VFS[0]);
    web.prepare().ok_silently();
    host.guest("db", VFS[1]).prepare().ok_silently();
    assert_eq!(host.recorded("claims"), [VFS[0], VFS[1]]);
    host.guest("mail", VFS[0])
        .prepare()
        .refused("guest 'mail': 0000:01:10.0 is not free: guest 'web' has it. Stop 'web' first, or use another device");
    host.assert_as(&before, "a managed VF without siblings is all libvirt's");
    web.release().ok_silently();
    assert_eq!(host.recorded("claims"), [VFS[1]]);
}

#[test]
fn the_vfs_of_a_sibling_come_back_with_their_drivers() {
    for (autoprobe, drivers) in [
        (true, [Some("igbvf"), None, Some("vfio-pci")]),
        // Without the switch the host's driver probes them, as it did at first.
        (false, [Some("igbvf"), Some("igbvf"), Some("vfio-pci")]),
    ] {
        let host = host(|pf| if autoprobe { pf } else { pf.without_autoprobe() });
        host.make_vfs(PF, &drivers);
        let before = host.snapshot();
        let web = host.guest("web", OTHER);
        web.prepare().ok_saying("0000:01:00.0: 3 VFs -> 0 (guest 'web')");
        assert_eq!(host.driver(PF).as_deref(), Some("vfio-pci"));
        assert_eq!(host.recorded("claims"), [PF, OTHER, VFS[0], VFS[1], VFS[2]]);
        host.assert_viable_without(OTHER, 8);
        web.release().ok_saying("0000:01:00.0: 0 VFs -> 3 (guest 'web')");
        host.assert_restored(&before, &format!("autoprobe {autoprobe}"));
    }
}

#[test]
fn the_vfs_of_an_unmanaged_pf_come_back() {
    let host = host(|pf| pf);
    host.make_vfs(PF, &[Some("igbvf"), None]);
    let before = host.snapshot();
    let web = host.guest_of("web", domain("web", &[hostdev(PF, false)]));
    web.prepare().ok();
    host.assert_viable(8);
    web.release().ok();
    host.assert_restored(&before, "after release");
}

#[test]
fn the_vfs_of_a_managed_pf_come_back() {
    let host = host(|pf| pf);
    host.make_vfs(PF, &[Some("igbvf"), None]);
    let before = host.snapshot();
    let web = host.guest("web", PF);
    web.prepare().ok_saying("0000:01:00.0: 2 VFs -> 0 (guest 'web')");
    let web = web.detaches();
    web.hook("start").run().ok();
    host.assert_viable(8);
    web.reattaches();
    web.release().ok_saying("0000:01:00.0: 0 VFs -> 2 (guest 'web')");
    host.assert_restored(&before, "after release");
}

#[test]
fn a_nvme_pf_keeps_its_vfs_until_told() {
    // nvme leaves its VFs when it is unbound, and vfio-pci then refuses the PF.
    let host = host(|pf| pf.id("1b36:0010").class(0x01_0802).driver("nvme"));
    host.make_vfs(PF, &[Some("igbvf")]);
    let before = host.snapshot();
    let web = host.guest("web", OTHER);
    web.prepare().ok();
    assert_eq!(host.driver(PF).as_deref(), Some("vfio-pci"));
    web.release().ok();
    host.assert_as(&before, "after release");
}

#[test]
fn a_pf_whose_vf_has_a_guest_is_not_taken() {
    let host = host(|pf| pf);
    host.make_vfs(PF, &[Some("vfio-pci")]);
    host.guest("web", VFS[0]).prepare().ok();
    let running = host.snapshot();
    host.guest("db", OTHER).prepare().refused(
        "guest 'db': 0000:01:10.0 (VF that goes with 0000:01:00.0) is not free: guest 'web' has it. Stop 'web' first, \
         or use another device",
    );
    host.assert_as(&running, "after the refusal");
}

#[test]
fn a_vf_that_shares_the_group_of_its_pf_is_refused() {
    let host = Host::new();
    let places = [(VFS[0], 8), (VFS[1], 8)];
    host.add(Device::new(PF).id("8086:10c9").driver("igb").group(8).vfs("8086:10ca", &places));
    host.make_vfs(PF, &[Some("igbvf"), Some("igbvf")]);
    let before = host.snapshot();
    host.guest("web", VFS[0]).prepare().refused(
        "guest 'web': 0000:01:10.0 cannot be assigned to a guest: its PF 0000:01:00.0 is detached with it, and without \
         the PF's driver the VF vanishes. Put the card into a slot with ACS, so that each VF has an IOMMU group of its \
         own, or give the guest 0000:01:00.0 alone",
    );
    host.assert_restored(&before, "after the refusal");
    // The PF alone goes, and brings its VFs back.
    host.guest("web", PF).starts().runs().stops();
    host.assert_as(&before, "after release");
}

#[test]
fn a_vf_that_carries_the_network_keeps_its_pf() {
    let host = host(|pf| pf);
    host.make_vfs(PF, &[Some("igbvf")]);
    host.netdev(VFS[0], "enp1s0v0", true, &["192.0.2.7"]);
    let before = host.snapshot();
    host.guest("web", OTHER).prepare().refused(
        "guest 'web': Cannot detach 0000:01:10.0 (VF that goes with 0000:01:00.0): enp1s0v0 is up and has the address \
         192.0.2.7. Take enp1s0v0 down or its address away, or allow it with <allow address='0000:01:10.0' \
         id='8086:10ca'/> in /etc/vfpool/host.xml",
    );
    host.assert_as(&before, "after the refusal");
}

/// A PF comes back from a guest with its interface down, and its driver then creates no VFs.
#[test]
fn vfs_that_need_their_pfs_link_come_back() {
    for (answers, tried) in [("vfs-need-link nothing", true), ("vfs-need-link EINVAL", true), ("", false)] {
        let host = host(|pf| pf);
        host.netdev(PF, "eth3", false, &[]);
        host.ip_works();
        host.make_vfs(PF, &[Some("igbvf"), Some("vfio-pci"), None]);
        host.driver_answers("igb", answers);
        let web = host.guest("web", OTHER);
        web.prepare().ok();
        let told = web.release().ok();
        assert!(told.stderr.contains("0000:01:00.0: 0 VFs -> 3 (guest 'web')"), "{answers}: {}", told.stderr);
        // Only where it is needed.
        assert_eq!(told.stderr.contains("eth3: down -> up (guest 'web')"), tried, "{answers}: {}", told.stderr);
        assert_eq!(
            VFS.map(|vf| host.driver(vf)),
            [Some("igbvf"), Some("vfio-pci"), None].map(|name| name.map(str::to_owned))
        );
        host.assert_no_leases(answers);
    }
    // One that cannot be brought up: nothing says that there are VFs, and it is kept for the next try.
    let host = host(|pf| pf);
    host.netdev(PF, "eth3", false, &[]);
    host.make_vfs(PF, &[Some("igbvf")]);
    host.driver_answers("igb", "vfs-need-link nothing");
    let web = host.guest("web", OTHER);
    web.prepare().ok();
    let told = web.release();
    assert!(told.stderr.contains("Cannot bring up eth3 with ") && !told.stderr.contains("0 VFs ->"), "{}", told.stderr);
    assert_eq!(host.recorded("attention"), ["web"]);
    host.ip_works();
    host.vfpool(&["reconcile"]).ok();
    assert_eq!(host.driver(VFS[0]).as_deref(), Some("igbvf"));
    host.assert_no_leases("at the next try");
}
