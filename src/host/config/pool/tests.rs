//! Pools of a small host, and each mistake in a file.

use super::*;
use crate::pci::sysfs;
use std::fs;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

/// A host with the PFs 0000:01:00.0 (eth3, VFs 01:10.0 and 01:10.2) and 0000:04:00.0 (VF 04:00.1), the plain NIC
/// 0000:02:00.0 (eth4), a bridge br0, and these files.
fn host(files: &[(&str, &str)]) -> (TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::new(folder.path());
    for address in ["01:00.0", "01:10.0", "01:10.2", "02:00.0", "04:00.0", "04:00.1"] {
        let device = host.path(format!("sys/devices/pci0000:00/0000:{address}"));
        fs::create_dir_all(&device).unwrap();
        let link = host.device(address.parse().unwrap());
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(format!("../../../devices/pci0000:00/0000:{address}"), link).unwrap();
        let modalias = "pci:v00008086d000010C9sv00008086sd0000A03Cbc02sc00i00\n";
        fs::write(device.join("modalias"), modalias).unwrap();
        fs::write(device.join("config"), [0; 64]).unwrap();
    }
    let device = |address: &str| host.device(address.parse().unwrap());
    for (pf, vfs) in [("01:00.0", ["01:10.0", "01:10.2"].as_slice()), ("04:00.0", &["04:00.1"])] {
        fs::write(device(pf).join("sriov_totalvfs"), "7").unwrap();
        for (index, vf) in vfs.iter().enumerate() {
            symlink(format!("../0000:{pf}"), device(vf).join("physfn")).unwrap();
            symlink(format!("../0000:{vf}"), device(pf).join(format!("virtfn{index}"))).unwrap();
        }
    }
    for (name, address) in [("eth3", "01:00.0"), ("eth4", "02:00.0")] {
        fs::create_dir_all(device(address).join("net").join(name)).unwrap();
        fs::create_dir_all(host.netdev(name)).unwrap();
        symlink(format!("../../../0000:{address}"), host.netdev(name).join("device")).unwrap();
    }
    fs::create_dir_all(host.netdev("br0")).unwrap();
    fs::create_dir_all(host.pools()).unwrap();
    for (name, text) in files {
        fs::write(host.pools().join(name), text).unwrap();
    }
    (folder, host)
}

fn pool(name: &str, lines: &str) -> String {
    format!("<pool>\n<name>{name}</name>\n<forward mode='hostdev' managed='yes'>\n{lines}\n</forward>\n</pool>\n")
}

fn address(bus: &str, slot: &str, function: &str) -> String {
    format!("<address type='pci' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>")
}

fn texts(errors: &[Error], host: &Host) -> Vec<String> {
    let folder = format!("{}/", host.pools().display());
    errors.iter().map(|error| error.to_string().replace(&folder, "")).collect()
}

/// The members of the pools of these files, and all errors, with file names without their folder.
fn members(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let (_folder, host) = host(files);
    let pools = Pools::load(&host);
    let mut errors = pools.errors.clone();
    let members = pools.pools.iter().map(|pool| {
        let (members, wrong) = pool.members(&host);
        errors.extend(wrong);
        for address in ["01:00.0", "01:10.0", "01:10.2", "02:00.0", "04:00.0", "04:00.1"] {
            let device = sysfs::identity(&host, address.parse().unwrap()).unwrap().unwrap();
            let is_member = members.contains(&device.address);
            assert_eq!(pool.has_member(&host, &device), is_member, "{address} in '{}'", pool.name);
        }
        let members: Vec<String> = members.iter().map(ToString::to_string).collect();
        format!("{}: {}", pool.name, members.join(" "))
    });
    (members.collect(), texts(&errors, &host))
}

#[test]
fn libvirts_network_is_a_pool_as_it_is() {
    let guide = "<network>\n  <name>passthrough</name>\n  <forward mode='hostdev' managed='yes'>\n    <pf \
                 dev='eth3'/>\n  </forward>\n</network>\n";
    let dumped = "<!-- kept by virsh -->\n<network connections='1'>\n  <name>passthrough</name>\n  \
                  <uuid>a6b49429-d353-d7ad-3185-4451cc786437</uuid>\n  <forward mode='hostdev' managed='yes'>\n    \
                  <driver name='vfio'/>\n    <pf dev='eth3'/>\n    <address type='pci' domain='0x0000' bus='0x01' \
                  slot='0x10' function='0x0'/>\n  </forward>\n</network>\n";
    for text in [guide, dumped] {
        let (members, errors) = members(&[("any name.xml", text)]);
        assert_eq!((members, errors), (vec!["passthrough: 0000:01:10.0 0000:01:10.2".to_owned()], vec![]));
    }
}

#[test]
fn members_stand_in_file_order() {
    let lines = format!("{}<pf address='04:00.0' vfs='max'/>{}<pf dev='eth3' vfs='2'/>", address("02", "0", "0"), "");
    let text = pool("all", &lines).replace("<pool>", "<pool on-busy='restart'>");
    let (_folder, host) = host(&[("b.xml", &text), (".hidden.xml", "<"), ("b.xml.rpmnew", "<"), ("README", "<")]);
    let pools = Pools::load(&host);
    assert_eq!(pools.errors, []);
    let all = pools.find("all").unwrap();
    assert_eq!((all.on_busy, all.managed), (OnBusy::Restart, true));
    let (members, errors) = all.members(&host);
    let members: Vec<String> = members.iter().map(ToString::to_string).collect();
    assert_eq!(members, ["0000:04:00.1", "0000:01:10.0", "0000:01:10.2", "0000:02:00.0"]);
    assert_eq!(errors, []);
    let pfs: Vec<Pf> = all.pfs(&host).into_iter().map(Result::unwrap).collect();
    assert_eq!((pfs[0].vfs, pfs[0].ports.as_slice()), (Vfs::Max, &[][..]));
    assert_eq!((pfs[1].vfs, pfs[1].ports.as_slice()), (Vfs::Count(2), &["eth3".to_owned()][..]));
    assert_eq!(pfs[1].at.to_string(), format!("<pf dev='eth3' vfs='2'> in {}/b.xml line 4", host.pools().display()));
}

#[test]
fn a_bad_file_is_told_with_its_line() {
    let with = |line: &str| pool("x", line);
    for (text, message) in [
        (String::new(), "Cannot use x.xml: it is empty. Write a <pool> into it, or remove it"),
        ("pool".into(), "Cannot use the text 'pool' in x.xml line 1: no text stands here. Remove it"),
        ("<domain/>".into(), "Cannot use <domain> in x.xml line 1: this element is not known here; the root is a"),
        ("<pool/>".into(), "Cannot use <pool> in x.xml line 1: <name>, by which guests ask for it, is missing. Add it"),
        ("<pool><name>x</name></pool>".into(), "<forward mode='hostdev' managed='yes'> is missing. Add it"),
        (
            with("<pf dev='eth3'/>").replace("<name>x</name>", "<name> </name>"),
            "Cannot use <pool> in x.xml line 1: <name>, by",
        ),
        (with(""), "Cannot use <pool> in x.xml line 1: each <pf> and <address>, which would"),
        (with("<pf dev='eth3'/>").replace("</name>", "</name><name>y</name>"), "line 2: it is there twice. Remove"),
        (with("<pf dev='eth3'/>").replace("<pool>", "<pool onbusy='restart'>"), "line 1: unknown field `onbusy`"),
        (with("<pf dev='eth3'/>").replace("<pool>", "<pool on-busy='wait'>"), "unknown variant `wait`, expected"),
        (with("<pf dev='eth3'/>").replace("hostdev", "nat"), "line 3: unknown variant `nat`, expected `hostdev`"),
        (with("<pf dev='eth3'/>").replace("mode='hostdev' ", ""), "line 3: missing field `mode`"),
        (with("<pf dev='eth3'/>").replace("'yes'", "'maybe'"), "unknown variant `maybe`, expected `yes` or `no`"),
        (with("<driver name='kvm'/>"), "unknown variant `kvm`, expected `vfio`"),
        (with("\n<interface dev='eth3'/>"), "<interface dev='eth3'> in x.xml line 5: this element is not known"),
        (with("<pf  vf='7'\n dev='eth3'/>"), "<pf vf='7' dev='eth3'> in x.xml line 4: unknown field `vf`, expected"),
        (with("<pf dev='eth3' vfs='0'/>"), "vfs='0' is neither a number from 1 on nor 'max'"),
        (with("<pf dev='eth3' vfs='many'/>"), "vfs='many' is neither"),
        (with("<pf/>"), "line 4: a PF has either dev='eth3' (its network interface) or address="),
        (with("<pf dev='eth3' address='01:00.0'/>"), "a PF has either"),
        (with("<pf dev='../eth3'/>"), "a PF has either"),
        (with("<pf address='1:0.0'/>"), "'1:0.0' is no PCI address; write it as 0000:02:00.1"),
        (with("<pf dev='eth3'><vf/></pf>"), "<vf> in x.xml line 4: this element is not known here; nothing stands"),
        (with("<pf dev='eth3'/>\n\n  eth4"), "Cannot use the text 'eth4' in x.xml line 6: no text stands here"),
        (with("<address bus='1' slot='0' function='0'/>"), "line 4: missing field `type`"),
        (with("<address type='usb' bus='1' slot='0' function='0'/>"), "unknown variant `usb`, expected `pci`"),
        (with("<address type='pci' bus='1' slot='zero' function='0'/>"), "'zero' is no number"),
        (with(&address("01", "20", "0")), "line 4: its numbers are no PCI address"),
        (
            with("<pf dev='eth3'/>\n<pf dev='eth3' vfs='2'/>"),
            "Cannot use <pf dev='eth3' vfs='2'> in x.xml line 5 (pool 'x'): it is listed already by <pf dev='eth3'> \
             in x.xml line 4. Remove one of the two",
        ),
        (with("<pf address='01:00.0'/>\n<pf address='0000:01:00.0'/>"), "line 5 (pool 'x'): it is listed already by"),
        (with(&format!("{0}\n{0}", address("01", "10", "0"))), "line 5 (pool 'x'): it is listed already by <address"),
        (with("<pf dev='eth3'/>") + "<pool/>", "<pool> in x.xml line 7: this element is not known here; one file is"),
        ("<pool>\n<name>x".into(), "Cannot use x.xml: it is no XML at line"),
        ("<pool>\n<name>x</name>".into(), "Cannot use x.xml: it is no XML at line 2: it ends before its elements do"),
        ("<pool>\n</name>".into(), "it is no XML at line 2"),
        (with("<pf dev='eth3'"), "line 4: error while parsing attribute"),
        (with("<pf dev='eth3' vfs=7/>"), "line 4: "),
    ] {
        let (members, errors) = members(&[("x.xml", &text), ("z.xml", &pool("good", "<pf dev='eth3'/>"))]);
        assert_eq!(members, ["good: 0000:01:10.0 0000:01:10.2"], "{text}");
        assert_eq!(errors.len(), 1, "{text}: {errors:?}");
        assert!(errors[0].contains(message), "{message} is not in {}", errors[0]);
    }
}

#[test]
fn what_the_hardware_does_not_have_is_told_and_the_rest_counts() {
    let taken = "0000:01:10.0 0000:01:10.2";
    for (line, message, rest) in [
        ("<pf dev='eth9'/>".to_owned(), "there is no network interface eth9. Put the card back, or name one", taken),
        ("<pf dev='br0'/>".into(), "the network interface br0 belongs to no PCI function. Name the interface", taken),
        ("<pf address='09:00.0'/>".into(), "there is no PCI function at this address. Put the card back", taken),
        ("<pf dev='eth4'/>".into(), "0000:02:00.0 has no SR-IOV. Enable it in the firmware", taken),
        ("<pf address='04:00.1'/>".into(), "0000:04:00.1 is itself a VF. Name its PF, which is 0000:04:00.0", taken),
        ("<pf address='01:00.0'/>".into(), "0000:01:00.0 is listed already by <pf dev='eth3'> in x.xml line 4", taken),
        (address("09", "0", "0"), "there is no PCI function at this address", taken),
        (
            address("01", "10", "2"),
            "0000:01:10.2 is listed already by <pf dev='eth3'> in x.xml line 4. Remove one",
            taken,
        ),
    ] {
        let (members, errors) = members(&[("x.xml", &pool("x", &format!("<pf dev='eth3'/>\n{line}")))]);
        assert_eq!(members, [format!("x: {rest}")], "{line}");
        assert_eq!(errors.len(), 1, "{line}: {errors:?}");
        let (text, at) = (&errors[0], "in x.xml line 5 (pool 'x'): ");
        assert!(text.contains(message) && text.contains(at), "{message} is not in {text}");
    }
}

#[test]
fn of_two_pools_with_the_same_member_the_first_has_it() {
    let both = |one: &str, other: &str| members(&[("a.xml", &pool("a", one)), ("b.xml", &pool("b", other))]);
    let vf = address("01", "10", "0");
    let nvme = "<pf address='04:00.0'/>";
    for (one, other, found, message) in [
        (
            "<pf dev='eth3'/>",
            format!("{nvme}\n<pf dev='eth3'/>"),
            ["a: 0000:01:10.0 0000:01:10.2", "b: 0000:04:00.1"],
            "Cannot use <pf dev='eth3'> in b.xml line 5 (pool 'b'): it is listed already by <pf dev='eth3'> in a.xml \
             line 4 of pool 'a'",
        ),
        (
            "<pf dev='eth3'/>",
            format!("{nvme}\n<pf address='01:00.0'/>"),
            ["a: 0000:01:10.0 0000:01:10.2", "b: 0000:04:00.1"],
            "<pf address='01:00.0'> in b.xml line 5 (pool 'b'): 0000:01:00.0 is listed already by <pf dev='eth3'> in \
             a.xml line 4",
        ),
        (
            "<pf dev='eth3'/>",
            format!("{nvme}\n{vf}"),
            ["a: 0000:01:10.0 0000:01:10.2", "b: 0000:04:00.1"],
            "in b.xml line 5 (pool 'b'): 0000:01:10.0 is listed already by <pf dev='eth3'> in a.xml line 4",
        ),
        (
            &vf,
            format!("{nvme}\n{vf}"),
            ["a: 0000:01:10.0", "b: 0000:04:00.1"],
            "b.xml line 5 (pool 'b'): it is listed already by <address",
        ),
    ] {
        let (members, errors) = both(one, &other);
        assert_eq!(members, found);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(message), "{message} is not in {}", errors[0]);
    }
}

#[test]
fn a_pool_is_found_by_its_name() {
    let (_folder, host) = host(&[
        ("a.xml", &pool("net", "<pf dev='eth3'/>")),
        ("b.xml", &pool("net", "<pf address='04:00.0'/>")),
        ("disk.xml", "<pool>"),
    ]);
    let pools = Pools::load(&host);
    assert_eq!(pools.find("net").unwrap().file, host.pools().join("a.xml"));
    let folder = host.pools().display().to_string();
    let errors = texts(&pools.errors, &host);
    assert_eq!(errors[0], "Cannot use b.xml: a.xml is the pool 'net' already. Give one of them another <name>");
    let unknown = |name: &str| pools.find(name).unwrap_err().to_string();
    assert_eq!(unknown("x"), format!("There is no pool 'x': {folder} has 'net'"));
    assert_eq!(unknown("disk"), format!("There is no pool 'disk': {folder} has 'net'. {}", pools.errors[1]));
    let none = Pools::load(&Host::new("/nonexistent"));
    assert_eq!(
        none.find("x").unwrap_err().to_string(),
        "There is no pool 'x': /nonexistent/etc/vfpool/pools.d has none; make one there"
    );
}

/// What libvirt's own examples of hostdev networks have, and what each makes of a pool: the message, or none.
#[test]
fn elements_of_libvirt_networks() {
    let pf = "<pf dev='eth3'/>";
    for (place, xml, message) in [
        ("", "<title>A network</title><description>of VFs</description>", None),
        ("", "<metadata><a:b xmlns:a='http://a'><a:c>1 &lt; 2</a:c></a:b></metadata>", None),
        ("", "<virtualport type='802.1Qbh'><parameters profileid='p'/></virtualport>", None),
        ("", "<mac address='52:54:00:00:00:01'/>", None),
        ("root", "trustGuestRxFilters='yes'", None),
        ("root", "ipv6='yes' connections='3'", None),
        ("forward", "<driver name='vfio'/>", None),
        ("forward", "<driver name='vfio' model='vfio-pci'/>", None),
        ("forward", "<driver model='vfio-pci'/>", None),
        (
            "forward",
            "<driver name='vfio' model='mlx5_vfio_pci'/>",
            Some("unknown variant `mlx5_vfio_pci`, expected `vfio-pci`"),
        ),
        (
            "",
            "<vlan><tag id='42'/></vlan>",
            Some(
                "<vlan> in x.xml line 3: a pool sets no VLAN. Move the <vlan> into the <interface type='hostdev'> of \
                 each guest of this pool",
            ),
        ),
        (
            "",
            "<portgroup name='a' default='yes'><vlan><tag id='42'/></vlan></portgroup>",
            Some(
                "a pool has no port groups. Move its <vlan> and <virtualport> into the <interface type='hostdev'> of \
                 each",
            ),
        ),
        ("", "<bridge name='virbr0'/>", Some("<bridge name='virbr0'> in x.xml line 3: this element is not known here")),
        ("", "<ip address='10.0.0.1'/>", Some("this element is not known here")),
    ] {
        let text = pool("x", pf).replace("pool>", "network>");
        let text = match place {
            "root" => text.replace("<network>", &format!("<network {xml}>")),
            "forward" => text.replace(pf, &format!("{xml}{pf}")),
            _ => text.replace("<forward", &format!("{xml}<forward")),
        };
        let (members, errors) = members(&[("x.xml", &text), ("z.xml", &pool("good", "<pf address='04:00.0'/>"))]);
        assert_eq!(errors.len(), usize::from(message.is_some()), "{xml}: {errors:?}");
        assert!(errors.iter().all(|error| error.contains(message.unwrap())), "{xml}: {errors:?}");
        assert_eq!(members.last().unwrap(), "good: 0000:04:00.1");
        assert_eq!(members.len(), 2 - errors.len(), "{xml}");
        // What is shown can be used again.
        if message.is_none() {
            let (_folder, host) = host(&[("x.xml", &text)]);
            let shown = Pools::load(&host).pools[0].xml(&[], 0);
            assert_eq!(self::members(&[("x.xml", &shown)]).1, [""; 0], "{shown}");
            assert_eq!(shown.contains("model='vfio-pci'"), xml.contains("model="), "{shown}");
        }
    }
}

#[test]
fn a_byte_order_mark_is_no_text() {
    for (start, name) in
        [("\u{feff}", "net"), ("\u{feff}<?x é?>", "né"), ("<?x é?>\n", "net"), ("\u{feff}\n<!--é-->", "net")]
    {
        let text = format!("{start}{}", pool(name, "<pf dev='eth3'/>"));
        let expected = vec![format!("{name}: 0000:01:10.0 0000:01:10.2")];
        assert_eq!(members(&[("x.xml", &text)]), (expected, vec![]), "{text}");
    }
    let text = format!("\u{feff}{}", pool("net", "<pf dev='eth3'/>\n<pf/>"));
    assert!(members(&[("x.xml", &text)]).1[0].contains("line 5"), "positions count from behind it");
}

#[test]
fn two_pools_share_a_pf() {
    // The addresses come first: their pool has these VFs, and the other pool the rest.
    let files = |one, other| [(one, pool("a", &address("01", "10", "0"))), (other, pool("b", "<pf dev='eth3'/>"))];
    let [one, other] = files("a.xml", "b.xml");
    let (found, errors) = members(&[(one.0, &one.1), (other.0, &other.1)]);
    assert_eq!((found, errors), (vec!["a: 0000:01:10.0".to_owned(), "b: 0000:01:10.2".to_owned()], vec![]));
    // Otherwise the PF's pool has them all, and the message says how it is done.
    let [one, other] = files("z.xml", "b.xml");
    let (found, errors) = members(&[(one.0, &one.1), (other.0, &other.1)]);
    assert_eq!(found, ["b: 0000:01:10.0 0000:01:10.2", "a: "]);
    assert!(errors[0].contains("Remove one of the two, or rename this file so that it comes first"), "{errors:?}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None,
        cases: 64,
        ..Default::default()
    })]

    /// Whatever is in a file, it is read or refused, and the other file counts.
    #[test]
    fn no_file_disables_another(
        start in ".{0,8}",
        cut in 0_usize..160,
        inserted in "\\PC{0,12}|[<>/&'\"=é\u{feff} ]{0,6}",
    ) {
        let text = pool("x", "<pf dev='eth3'/>\n<address type='pci' bus='2' slot='0' function='0'/>");
        let cut = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        let (_folder, host) = host(&[("z.xml", &pool("good", "<pf address='04:00.0'/>"))]);
        for bytes in [
            format!("{start}{}{inserted}{}", &text[..cut], &text[cut..]).into_bytes(),
            [text.as_bytes(), &[0xff, 0xfe]].concat(),
            text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        ] {
            fs::write(host.pools().join("x.xml"), bytes).unwrap();
            let pools = Pools::load(&host);
            let good = pools.find("good").unwrap().members(&host);
            proptest::prop_assert_eq!(good.0.len(), 1);
        }
    }
}
