use super::*;

fn found(devices: &str) -> Vec<String> {
    let xml = format!("<domain type='kvm'>\n<name>g</name><devices>{devices}</devices></domain>");
    let found = Domain::parse(xml.as_bytes()).map(|domain| domain.assigned()).unwrap();
    found.iter().map(|device| format!("{} {}", device.address, device.managed)).collect()
}

const SOURCE: &str = "<source><address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x1'/></source>";

#[test]
fn the_rom_is_hidden_and_nothing_else_changes() {
    for (rom, hidden) in [
        ("", "<rom bar='off'/>"),
        ("<rom bar='on'/>", "<rom bar='off'/>"),
        ("<rom file='/x/off.rom' bar = \"on\" />", "<rom file='/x/off.rom' bar = \"off\" />"),
        ("<rom file='/x.rom'></rom>", "<rom bar='off' file='/x.rom'></rom>"),
        ("<rom bar='off'/>", "<rom bar='off'/>"),
    ] {
        let xml = |rom: &str| format!("<hostdev type='pci' managed='yes'>{SOURCE}{rom}</hostdev >");
        let domain = format!("<domain><devices><rom bar='x'/>{}</devices></domain>", xml(rom));
        let domain = Domain::parse(domain.as_bytes()).unwrap();
        assert_eq!(domain.text_without_rom(&domain.devices[0]), xml(hidden));
    }
}

#[test]
fn finds_each_kind_of_pci_device() {
    let guest_address = "<address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>";
    for (device, managed) in [
        (format!("<hostdev mode='subsystem' type='pci' managed='yes'>{SOURCE}{guest_address}</hostdev>"), true),
        (format!("<hostdev mode='subsystem' type='pci' managed='no'>{SOURCE}</hostdev>"), false),
        (format!("<hostdev mode='subsystem' type='pci'><driver name='vfio'/>{SOURCE}</hostdev>"), false),
        (
            format!("<interface type='hostdev' managed='yes'><mac address='52:54:00:6d:90:02'/>{SOURCE}</interface>"),
            true,
        ),
        (
            format!(
                "<disk type='nvme' device='disk'>{}<target dev='vde'/></disk>",
                SOURCE.replace("<source>", "<source type='pci' managed='yes' namespace='1'>")
            ),
            true,
        ),
        (
            format!(
                "<disk type='file'><source file='/x'/><backingStore type='nvme'>{}</backingStore></disk>",
                SOURCE.replace("<source>", "<source type='pci' managed='no' namespace='1'>")
            ),
            false,
        ),
    ] {
        assert_eq!(found(&device), [format!("0000:02:00.1 {managed}")], "{device}");
    }
}

#[test]
fn leaves_everything_else_alone() {
    for device in [
        "<hostdev mode='subsystem' type='usb'><source><address bus='2' device='0'/></source></hostdev>",
        "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/><address bus='0' target='0' \
         unit='0'/></source></hostdev>",
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address \
         uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>",
        "<interface type='network'><source network='default'/><address type='pci' bus='1'/></interface>",
        "<disk type='block'><source dev='/dev/sda'/><address type='pci' bus='2'/></disk>",
        "<controller type='pci'><source><address type='pci' bus='2'/></source></controller>",
    ] {
        assert_eq!(found(device), [""; 0], "{device}");
    }
}

#[test]
fn a_device_in_metadata_is_none_of_ours() {
    let xml = format!(
        "<domain><metadata><x><domain><devices><hostdev \
         type='pci'>{SOURCE}</hostdev></devices></domain></x></metadata></domain>"
    );
    assert_eq!(Domain::parse(xml.as_bytes()).map(|domain| domain.assigned()).unwrap(), []);
}

#[test]
fn numbers_are_read_as_libvirt_reads_them() {
    let device =
        "<hostdev type='pci'><source><address domain='65536' bus='0XfF' slot='010' function='7'/></source></hostdev>";
    assert_eq!(found(device), ["10000:ff:08.7 false"]);
    for (bus, expected) in [
        ("&#48;x81", Some("81")),
        ("&#x30;x8&#49;", Some("81")),
        (" 0x81", Some("81")),
        ("\n\t129", Some("81")),
        ("+0x81", Some("81")),
        ("&#32;&#9;0x81", Some("81")),
        ("0x81 ", None),
        ("-1", None),
        ("+-1", None),
        ("0x+1", None),
        ("0x", None),
        ("08", None),
        ("", None),
        (" ", None),
        ("&#48", None),
    ] {
        let text = format!("<hostdev type='pci'><source><address bus='{bus}' function='1'/></source></hostdev>");
        let xml = format!("<domain><devices>{text}</devices></domain>");
        let read = Domain::parse(xml.as_bytes());
        let address = read.as_ref().ok().map(|domain| domain.devices[0].address.to_string());
        assert_eq!(address, expected.map(|bus| format!("0000:{bus}:00.1")), "{bus:?}");
        // Another address replaces the whole of it.
        if let Ok(domain) = read {
            let moved = domain.with_addresses(&[(&domain.devices[0], "0000:82:00.1".parse().unwrap())]);
            let expected = xml.replace(&format!("bus='{bus}'"), "bus='0x82'");
            assert_eq!(String::from_utf8(moved).unwrap(), expected, "{bus:?}");
        }
    }
}

/// libvirt looks for each element by its name, whatever its place among the others.
#[test]
fn a_source_in_a_source_may_stand_before_its_address() {
    let address = |bus: &str| format!("<address domain='0' bus='{bus}' slot='0' function='0'/>");
    let source = |bus: &str, before: &str, after: &str| {
        format!("<source type='pci' managed='yes' namespace='1'>{before}{}{after}</source>", address(bus))
    };
    let store = |inner: &str| format!("<dataStore type='nvme'><format type='raw'/>{inner}</dataStore>");
    let file = "<dataStore type='file'><source file='/x'><address bus='9'/></source></dataStore>";
    for (disk, expected) in [
        (source("1", "", &store(&source("2", "", ""))), &["0000:01:00.0 true", "0000:02:00.0 true"][..]),
        (source("1", &store(&source("2", "", "")), ""), &["0000:02:00.0 true", "0000:01:00.0 true"]),
        (
            source("1", &store(&source("2", &store(&source("3", "", "")), "")), ""),
            &["0000:03:00.0 true", "0000:02:00.0 true", "0000:01:00.0 true"],
        ),
        (source("1", file, ""), &["0000:01:00.0 true"]),
        (format!("<source file='/x'>{}</source>", store(&source("2", "", ""))), &["0000:02:00.0 true"]),
    ] {
        let disk = format!("<disk type='nvme'>{disk}<target dev='vda'/><address type='pci' bus='7'/></disk>");
        assert_eq!(found(&disk), expected, "{disk}");
        let after = format!("{disk}<hostdev type='pci'>{SOURCE}</hostdev>");
        assert_eq!(found(&after), [expected, &["0000:02:00.1 false"]].concat(), "{after}");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let xml = format!("<domain><name>a</name><uuid>b</uuid>{REQUESTS}{DEVICES}</domain>");
    let marked = Domain::parse(format!("\u{feff}{xml}").as_bytes()).unwrap();
    let plain = Domain::parse(xml.as_bytes()).unwrap();
    assert_eq!((marked.name.as_str(), marked.uuid.as_str()), ("a", "b"));
    assert_eq!((&marked.requests, &marked.devices), (&plain.requests, &plain.devices));
    let address = "0000:01:11.2".parse().unwrap();
    let moved = |domain: &Domain| domain.with_addresses(&[(&domain.devices[0], address)]);
    assert_eq!(moved(&marked), moved(&plain));
    let error = Domain::parse("\u{feff}<domain>\n\n</devices>".as_bytes()).unwrap_err();
    assert!(error.to_string().contains("wrong at line 3"), "{error}");
}

const REQUESTS: &str = "<metadata><app:x xmlns:app='urn:app'><request><device pool='no'/></request></app:x>\
    <v:request xmlns:v='urn:vfpool:domain:1'><device pool='a &amp; b' guest-address='0000:00:05.0'/>\
    <v:device pool='c' guest-address='00:06.0'>&lt;hostdev type='pci'>&lt;x \
    a='&amp;lt;'/></v:device></v:request></metadata>";

const DEVICES: &str = "<devices><interface  type='hostdev'><mac address='52:54:00:6d:90:02'/>\n\
    <source><address type='pci' bus=\"1\" slot='020' function='0x2' /></source>\
    <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/><rom bar='off'/></interface></devices>";

#[test]
fn requests_are_found_in_our_namespace_only() {
    let xml = format!("<domain><name>a&lt;b</name>{REQUESTS}{DEVICES}</domain>");
    let domain = Domain::parse(xml.as_bytes()).unwrap();
    assert_eq!(domain.name, "a<b");
    let [first, second] = domain.requests.as_slice() else { panic!("{domain:?}") };
    assert_eq!((first.pool.as_str(), first.moving.as_deref()), ("a & b", None));
    assert_eq!((second.pool.as_str(), second.moving.as_deref()), ("c", Some("<hostdev type='pci'><x a='&lt;'/>")));
    assert_eq!(domain.device_for(first), Some(&domain.devices[0]));
    assert_eq!(domain.device_for(second), None);
    assert_eq!(domain.assigned()[0].pool.as_deref(), Some("a & b"));
    let text = request_text(&domain.requests).replace("<request>", "<request xmlns='urn:vfpool:domain:1'>");
    let again = format!("<domain><metadata>{text}</metadata></domain>");
    assert_eq!(Domain::parse(again.as_bytes()).unwrap().requests, domain.requests);
}

#[test]
fn only_the_numbers_that_differ_are_written() {
    let xml = format!("<domain>{DEVICES}</domain>");
    let domain = Domain::parse(xml.as_bytes()).unwrap();
    let device = &domain.devices[0];
    assert_eq!(device.address.to_string(), "0000:01:10.2");
    for (address, written) in [
        ("0000:01:10.2", r#"type='pci' bus="1" slot='020' function='0x2' />"#),
        ("0000:01:11.2", r#"type='pci' bus="1" slot='0x11' function='0x2' />"#),
        ("10000:02:10.0", r#"domain='0x10000' type='pci' bus="0x02" slot='020' function='0x0' />"#),
    ] {
        let expected = xml.replace(r#"type='pci' bus="1" slot='020' function='0x2' />"#, written);
        let address = address.parse().unwrap();
        assert_eq!(String::from_utf8(domain.with_addresses(&[(device, address)])).unwrap(), expected);
        assert!(expected.contains(&domain.text_at(device, address)));
    }
    assert_eq!(domain.text_of(device), DEVICES.replace("<devices>", "").replace("</devices>", ""));
}

#[test]
fn a_wrong_request_is_told() {
    for (request, message) in [
        ("<device guest-address='00:05.0'/>", "has no pool= attribute"),
        ("<device pool='x'/>", "has no guest-address= attribute"),
        ("<device pool='x' guest-address='5'/>", "'5' is no PCI address"),
        ("<devices/>", "knows only <device>, and no <devices>"),
    ] {
        let xml = format!("<domain><metadata><request xmlns='{NAMESPACE}'>{request}</request></metadata></domain>");
        let error = Domain::parse(xml.as_bytes()).expect_err(request).to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn bad_xml_is_told_apart() {
    for (xml, message) in [
        ("", "is empty"),
        (" \n", "is empty"),
        ("<network><name>x</name></network>", "wrong at line 1: it is no libvirt domain but a <network>"),
        ("hello", "no libvirt domain"),
        ("<domain>\n<devices>", "cut off: <devices> is not closed"),
        ("<domain>\n<devices><hostdev type='p", "wrong at line 2"),
        ("<domain>\n\n</devices>", "wrong at line 3"),
        (
            "<domain><devices><hostdev type='pci'><source><address bus='x'/></source></hostdev></devices></domain>",
            "bus='x'",
        ),
        (
            "<domain><devices><hostdev type='pci'><source><address bus='0x100'/></source></hostdev></devices></domain>",
            "no PCI address",
        ),
    ] {
        let error = Domain::parse(xml.as_bytes()).map(|domain| domain.assigned()).expect_err(xml).to_string();
        assert!(error.contains(message), "{xml}: {error}");
    }
}

#[test]
fn gives_up_on_endless_xml() {
    assert!(read(std::io::repeat(b'x')).unwrap_err().to_string().contains("larger than 16 MiB"));
}
