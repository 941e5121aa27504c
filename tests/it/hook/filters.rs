//! The filters: a guest's XML with its pooled devices pointed at free ones, and not another byte changed.

use fakehost::{Call, Host, PF, asking, definition, domain_with, hostdev_at, interface_at, slot, vf};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Each way to have a guest's XML resolved: the two operations of the hook, and the command.
const WAYS: [&str; 3] = ["migrate", "restore", "rewrite"];

fn filter<'a>(host: &'a Host, way: &str, guest: &str, xml: &str) -> Call<'a> {
    match way {
        "rewrite" => host.vfpool_with(&["rewrite"], xml.as_bytes()),
        way => host.hook(guest, way, xml),
    }
}

#[track_caller]
fn resolved(host: &Host, way: &str, guest: &str, xml: &str) -> String {
    let outcome = filter(host, way, guest, xml).run();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{way}");
    outcome.stdout
}

#[test]
fn what_need_not_change_is_not_printed_to_libvirt() {
    for way in WAYS {
        let host = Host::with_vfs(2);
        let as_it_was = |xml: &str| if way == "rewrite" { xml.to_owned() } else { String::new() };
        for xml in [asking("web", &vf(1)), definition("web", &[("net", 0)], &[])] {
            let outcome = filter(&host, way, "web", &xml).run();
            assert_eq!((outcome.code, outcome.stdout), (Some(0), as_it_was(&xml)), "{way}: {}", outcome.stderr);
        }
        // Neither is a guest that asks for nothing, even if it cannot start so.
        host.prepare("db", &asking("db", &vf(0))).ok();
        for devices in [vec![hostdev_at(&vf(0), 0, "")], vec![interface_at("0000:77:00.0", 0)], Vec::new()] {
            let xml = definition("mail", &[], &devices);
            assert_eq!(resolved(&host, way, "mail", &xml), as_it_was(&xml), "{way}");
        }
    }
}

#[test]
fn without_a_free_device_there_is_one_line_and_no_xml() {
    let moving = asking("web", &vf(0)).replace("\"0000:00:05.0\"/>", "\"0000:00:06.0\">x</vfpool:device>");
    for (xml, reason) in [
        (
            asking("web", &vf(0)),
            "guest 'web': no device of pool 'net' is free: 0000:01:10.0 (guest 'db'), 0000:01:10.1 (guest 'mail'). \
             Stop one of these first",
        ),
        (definition("web", &[("lan", 0)], &[hostdev_at(&vf(0), 0, "")]), "guest 'web': There is no pool 'lan': "),
        (
            moving,
            "guest 'web': its device of pool 'net' (in the guest at 0000:00:06.0) is just being pointed at a free one.",
        ),
        ("<domain><name>web</name>".into(), "The domain XML is cut off: <domain> is not closed"),
        (
            asking("web", &vf(0)).replace("function='0x0'/>\n      </source>", "function='8'/></source>"),
            "is no PCI address",
        ),
    ] {
        for way in WAYS {
            let host = Host::with_vfs(2);
            host.prepare("db", &asking("db", &vf(0))).ok();
            host.prepare("mail", &asking("mail", &vf(1))).ok();
            let outcome = filter(&host, way, "web", &xml).run();
            assert_eq!(outcome.stderr.lines().count(), 1, "{way}: {}", outcome.stderr);
            outcome.refused_saying(&[reason]);
            assert_eq!(host.recorded("leases"), ["db", "mail"], "{way}");
        }
    }
    let host = Host::with_vfs(1);
    host.vfpool_with(&["rewrite"], b"<domain/>").run().refused("The domain XML has no <name>");
}

#[test]
fn a_guest_that_runs_is_not_resolved() {
    let host = Host::with_vfs(2);
    host.runs_with("web", &vf(0));
    let lease = host.get("run/vfpool/leases/web");
    for way in WAYS {
        let reason = "guest 'web': it runs already, and holds its devices";
        filter(&host, way, "web", &asking("web", &vf(0))).run().refused(reason);
    }
    assert_eq!(host.get("run/vfpool/leases/web"), lease);
}

#[test]
fn the_device_it_has_comes_first_and_then_one_that_nobody_is_parked_at() {
    let host = Host::with_vfs(4);
    for (number, guest) in ["a", "b"].into_iter().enumerate() {
        host.define(guest, &asking(guest, &vf(number)));
    }
    host.reconcile().ok();
    let gone = "0000:77:00.0";
    // What it points at, even if another guest is parked there; then the free ones; then those of parked guests.
    for (guest, current, chosen) in
        [("c", vf(0), vf(0)), ("d", vf(0), vf(2)), ("e", gone.into(), vf(3)), ("f", gone.into(), vf(1))]
    {
        let xml = asking(guest, &current);
        assert_eq!(resolved(&host, "rewrite", guest, &xml), asking(guest, &chosen), "{guest}");
        host.prepare(guest, &asking(guest, &chosen)).ok();
    }
    filter(&host, "rewrite", "g", &asking("g", gone)).run().refused_saying(&["no device of pool 'net' is free"]);
}

#[test]
fn two_devices_of_a_guest_are_never_the_same_one() {
    for way in WAYS {
        let host = Host::with_vfs(4);
        host.prepare("db", &asking("db", &vf(0))).ok();
        // Both point at the same one, and a third device, which is not pooled, is a member of the pool.
        let xml = |own: [usize; 3]| {
            let devices =
                [interface_at(&vf(own[0]), 0), hostdev_at(&vf(own[1]), 1, ""), hostdev_at(&vf(own[2]), 2, "")];
            definition("web", &[("net", 0), ("net", 1)], &devices)
        };
        assert_eq!(resolved(&host, way, "web", &xml([0, 0, 1])), xml([2, 3, 1]), "{way}");
        assert_eq!(host.recorded("claims"), [vf(0), vf(1), vf(2), vf(3)], "{way}: all are kept");
        host.release("web", "").ok();
        // One of the two may keep what both have, but not what the third has.
        for (now, then) in [([2, 2, 1], [2, 3, 1]), ([1, 3, 1], [2, 3, 1]), ([0, 0, 2], [1, 3, 2])] {
            assert_eq!(resolved(&host, way, "web", &xml(now)), xml(then), "{way}: {now:?}");
            assert_eq!(host.recorded("claims"), [vf(0), vf(1), vf(2), vf(3)], "{way}: {now:?}");
            host.release("web", "").ok();
        }
        host.prepare("mail", &asking("mail", &vf(3))).ok();
        filter(&host, way, "web", &xml([0, 0, 1])).run().refused_saying(&["no device of pool 'net' is free"]);
    }
}

#[test]
fn pools_do_not_mix() {
    let host = Host::with_vfs(2);
    host.pool("a", "<address type='pci' bus='0x01' slot='0x10' function='0x1'/>");
    // (The earlier file has it.)
    let xml = |own: [usize; 2]| {
        definition("web", &[("net", 0), ("a", 1)], &[hostdev_at(&vf(own[0]), 0, ""), hostdev_at(&vf(own[1]), 1, "")])
    };
    assert_eq!(resolved(&host, "migrate", "web", &xml([1, 0])), xml([0, 1]));
    // A whole PF may be one, too.
    host.pool("b", "<address type='pci' bus='0x01' slot='0x00' function='0x0'/>");
    let whole = definition("db", &[("b", 0)], &[hostdev_at(PF, 0, "")]);
    filter(&host, "migrate", "db", &whole).run().refused_saying(&["guest 'db': ", "0000:01:00.0 (guest 'web')"]);
    host.release("web", "").ok();
    assert_eq!(resolved(&host, "migrate", "db", &whole), "");
}

/// A piece of a guest's XML.
#[derive(Debug, Clone)]
enum Piece {
    /// Must stay as it is.
    Text(String),
    /// A field of a pooled device's address, as it is written; the quote comes after it.
    Number { device: usize, field: usize, text: String },
    /// Where numbers go that were left out.
    Left { device: usize, fields: Vec<usize> },
}

const FIELDS: [&str; 4] = ["domain", "bus", "slot", "function"];

/// How a device is written.
#[derive(Debug, Clone)]
struct Style {
    is_interface: bool,
    vf: usize,
    order: Vec<usize>,
    /// Decimal, octal, hexadecimal in small and capital letters, with zeros before.
    notation: Vec<usize>,
    double: bool,
    space: String,
    more: String,
    omits_zero: bool,
}

fn styles() -> impl Strategy<Value = Vec<Style>> {
    let order = Just(vec![0, 1, 2, 3, 4]).prop_shuffle();
    let space = select(vec![" ", "\n\t", "  \n", " \r\n "]).prop_map(str::to_owned);
    let more = select(vec![
        "",
        "<rom bar='off'/>",
        "<!-- <address bus='1'/> -->",
        "<alias name='ua-&lt;x&gt;'/>",
        "<boot order='1'/>\n",
    ]);
    let style = (
        any::<bool>(),
        0..4usize,
        order,
        prop::collection::vec(0..5usize, 4),
        any::<bool>(),
        space,
        more,
        any::<bool>(),
    );
    let style = style.prop_map(|(is_interface, vf, order, notation, double, space, more, omits_zero)| Style {
        is_interface,
        vf,
        order,
        notation,
        double,
        space,
        more: more.to_owned(),
        omits_zero,
    });
    prop::collection::vec(style, 1..=3)
}

fn write(number: u32, notation: usize) -> String {
    match notation {
        0 => number.to_string(),
        1 => format!("0{number:o}"),
        2 => format!("0x{number:02x}"),
        3 => format!("0X{number:X}"),
        _ => format!("0x{number:06x}"),
    }
}

fn numbers(address: &str) -> [u32; 4] {
    let parts: Vec<u32> = address.split([':', '.']).map(|part| u32::from_str_radix(part, 16).unwrap()).collect();
    parts.try_into().unwrap()
}

/// A guest with these devices, all of them pooled.
fn pieces(styles: &[Style]) -> Vec<Piece> {
    let request = |device: usize| format!("<device guest-address='{}' pool=\"net\"/>", slot(device));
    let requests = (0..styles.len()).map(request).collect::<Vec<_>>().concat();
    let mut pieces = vec![Piece::Text(format!(
        "<?xml version='1.0'?>\n<!-- <hostdev> --><domain\ttype=\"kvm\">\n<name>web</name><metadata><x:y \
         xmlns:x='urn:x'><hostdev type='pci'/></x:y><request \
         xmlns='urn:vfpool:domain:1'>{requests}</request></metadata><devices>"
    ))];
    for (device, style) in styles.iter().enumerate() {
        let (quote, space) = (if style.double { '"' } else { '\'' }, &style.space);
        let mut text = |text: String| pieces.push(Piece::Text(text));
        if style.is_interface {
            text(format!(
                "<interface{space}type={quote}hostdev{quote}{space}managed='yes'><mac address='52:54:00:00:00:01'/>"
            ));
        } else {
            text(format!("<hostdev{space}managed='yes'{space}type={quote}pci{quote} mode='subsystem'>\n"));
        }
        text(format!("{}<source >{space}<address", style.more));
        let values = numbers(&vf(style.vf));
        let is_left = |field: usize| style.omits_zero && values[field] == 0;
        pieces.push(Piece::Left { device, fields: (0..4).filter(|field| is_left(*field)).collect() });
        for field in &style.order {
            let (field, mut text) = (*field, |text: String| pieces.push(Piece::Text(text)));
            match FIELDS.get(field) {
                None => text(format!("{space}type='pci'")),
                Some(_) if is_left(field) => {}
                Some(name) => {
                    text(format!("{space}{name}={quote}"));
                    pieces.push(Piece::Number { device, field, text: write(values[field], style.notation[field]) });
                    pieces.push(Piece::Text(quote.to_string()));
                }
            }
        }
        let name = if style.is_interface { "interface" } else { "hostdev" };
        let own = slot(device);
        let own = &own[8..10];
        pieces.push(Piece::Text(format!(
            "{space}></address></source>{space}<address function='0x0' type={quote}pci{quote} \
             slot='0x{own}'/></{name}>{space}"
        )));
    }
    pieces.push(Piece::Text(
        "<hostdev type='usb'><source><address bus='1'/></source></hostdev></devices>\n</domain>\n ".into(),
    ));
    pieces
}

/// What the pieces have become in `xml`: the address of each device.
fn compare(pieces: &[Piece], styles: &[Style], xml: &str) -> Result<Vec<String>, TestCaseError> {
    let mut addresses: Vec<[u32; 4]> = styles.iter().map(|style| numbers(&vf(style.vf))).collect();
    let mut rest = xml;
    for piece in pieces {
        match piece {
            Piece::Text(text) => {
                let next = rest.strip_prefix(text.as_str());
                rest = next.ok_or_else(|| TestCaseError::fail(format!("{text:?} is not at {rest:?}")))?;
            }
            Piece::Number { device, field, text } => {
                let (now, _) = rest.split_once(['\'', '"']).unwrap();
                rest = &rest[now.len()..];
                if now != text {
                    let digits = now.strip_prefix("0x").unwrap();
                    let number = u32::from_str_radix(digits, 16).unwrap();
                    prop_assert!(number != addresses[*device][*field], "{text} -> {now} is the same");
                    addresses[*device][*field] = number;
                }
            }
            Piece::Left { device, fields } => {
                for field in fields {
                    if let Some(next) = rest.strip_prefix(&format!(" {}='0x", FIELDS[*field])) {
                        let (digits, next) = next.split_once('\'').unwrap();
                        addresses[*device][*field] = u32::from_str_radix(digits, 16).unwrap();
                        rest = next;
                    }
                }
            }
        }
    }
    prop_assert_eq!(rest, "");
    Ok(addresses
        .iter()
        .map(|[domain, bus, slot, function]| format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}"))
        .collect())
}

#[test]
fn only_the_bytes_of_source_addresses_change_however_they_are_written() {
    let host = Host::with_vfs(10);
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let strategy = (styles(), prop::collection::vec(any::<Index>(), 0..3));
    let result = runner.run(&strategy, |(styles, taken)| {
        let _ = std::fs::remove_dir_all(host.path("run/vfpool"));
        host.trace();
        // Some of the first four, which guests point at, belong to others.
        let mut others: Vec<usize> = taken.iter().map(|index| index.index(4)).collect();
        others.sort_unstable();
        others.dedup();
        for number in &others {
            host.prepare(&format!("g{number}"), &domain_with(&format!("g{number}"), &[&vf(*number)])).ok();
        }
        let pieces = pieces(&styles);
        let xml: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) | Piece::Number { text, .. } => text.as_str(),
                Piece::Left { .. } => "",
            })
            .collect();
        let outcome = host.hook("web", "restore", &xml).run();
        prop_assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
        let output = if outcome.stdout.is_empty() { xml } else { outcome.stdout };
        let now = compare(&pieces, &styles, &output)?;
        for (device, address) in now.iter().enumerate() {
            let number = (0..10).find(|number| vf(*number) == *address);
            prop_assert!(number.is_some_and(|number| !others.contains(&number)), "{} is not free", address);
            prop_assert!(!now[..device].contains(address), "{} is there twice", address);
            let had = vf(styles[device].vf);
            let is_wanted_twice = styles.iter().filter(|style| vf(style.vf) == had).count() > 1;
            let could_stay = !others.contains(&styles[device].vf) && !is_wanted_twice;
            prop_assert!(!could_stay || *address == had, "{} -> {}", had, address);
        }
        let mut claims = now.clone();
        claims.extend(others.iter().map(|number| vf(*number)));
        claims.sort_unstable();
        prop_assert_eq!(host.recorded("claims"), claims);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
