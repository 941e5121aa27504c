//! `vfpool dumpxml`.

use super::list::shown;
use fakehost::{Device, FIRST, Host, NVME, vf};
use std::fs;

#[test]
fn a_pool_is_printed_as_libvirt_prints_a_network_and_can_be_read_back() {
    let host = Host::with_vfs(2);
    host.add(Device::new(NVME).id("1b36:0010").class(0x01_0802).driver("nvme").group(20));
    host.runs_with("db", &vf(0));
    // The guide's.
    let network = "<network>\n  <name>pass&lt;through</name>\n  <uuid>a6b49429-d353-d7ad-3185-4451cc786437</uuid>\n  \
                   <forward mode='hostdev' managed='yes'>\n    <driver name='vfio'/>\n    <pf \
                   dev='eth3'/>\n  </forward>\n</network>\n";
    let addresses = "    <address type='pci' domain='0x0000' bus='0x01' slot='0x10' function='0x0'/>\n    <address \
                     type='pci' domain='0x0000' bus='0x01' slot='0x10' function='0x1'/>\n";
    host.put("etc/vfpool/pools.d/net.xml", network);
    let outcome = shown(&host, &["dumpxml", "pass<through"]);
    let expected = network.replace("<network>", "<network connections='1'>");
    let expected = expected.replace("  </forward>", &format!("{addresses}  </forward>"));
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), expected.as_str()), "{}", outcome.stderr);
    // All that a pool may say beyond it, and a second one that is wrong.
    let pool = "<pool on-busy='restart'><name>net</name><forward mode='hostdev'><pf dev='eth3' vfs='2'/><pf \
                address='01:00.1' vfs='max'/><address type='pci' bus='6' slot='0' function='0'/></forward></pool>";
    host.put("etc/vfpool/pools.d/net.xml", pool);
    host.put("etc/vfpool/pools.d/odd.xml", "<pool>");
    let outcome = shown(&host, &["dumpxml", "net"]);
    let expected = format!(
        "<pool connections='1' on-busy='restart'>\n  <name>net</name>\n  <forward mode='hostdev' \
         managed='no'>\n    <pf dev='eth3' vfs='2'/>\n    <pf address='0000:01:00.1' vfs='max'/>\n{addresses}    \
         <address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x0'/>\n  </forward>\n</pool>\n"
    );
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), expected.as_str()));
    assert!(outcome.stderr.contains("<pf address='01:00.1' vfs='max'>") && outcome.stderr.lines().count() == 1);
    fs::remove_file(host.path("etc/vfpool/pools.d/odd.xml")).unwrap();
    host.put("etc/vfpool/pools.d/net.xml", &outcome.stdout);
    let again = shown(&host, &["dumpxml", "net"]);
    assert_eq!((again.stdout, again.stderr.lines().count()), (outcome.stdout, 1));
}

#[test]
fn a_device_is_printed_as_the_element_that_gives_it_to_a_guest() {
    let host = Host::with_vfs(1);
    host.add(Device::new(FIRST).driver("e1000e").group(9));
    let hostdev = |bus: &str, slot: &str| {
        format!(
            "<hostdev mode='subsystem' type='pci' managed='yes'>\n  <source>\n    <address type='pci' domain='0x0000' \
             bus='{bus}' slot='{slot}' function='0x0'/>\n  </source>\n</hostdev>\n"
        )
    };
    let interface = "<interface type='hostdev' managed='yes'>\n  <source>\n    <address type='pci' domain='0x0000' \
                     bus='0x01' slot='0x10' function='0x0'/>\n  </source>\n</interface>\n";
    let vf = hostdev("0x01", "0x10");
    for (arguments, expected) in [
        (
            &["dumpxml", "pci_0000_01_10_0"] as &[&str],
            format!("{vf}<!-- or, to have libvirt set its MAC address and VLAN:\n{interface}-->\n"),
        ),
        (&["dumpxml", "01:10.0", "--hostdev"], vf.clone()),
        (&["dumpxml", "0000:01:10.0", "--interface"], interface.to_owned()),
        (&["dumpxml", "02:00.0"], hostdev("0x02", "0x00")),
    ] {
        let outcome = host.vfpool(arguments);
        assert_eq!((outcome.code, outcome.stdout, outcome.stderr), (Some(0), expected, String::new()), "{arguments:?}");
    }
}
