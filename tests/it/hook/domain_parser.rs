//! The domain parser on anything: it answers, and never with a device that is not in the XML.

use fakehost::{domain, hostdev, source};
use model::domain::{Assigned, Domain};
use model::error::Result;
use proptest::prelude::*;

fn assigned_devices(xml: &[u8]) -> Result<Vec<Assigned>> {
    Domain::parse(xml).map(|domain| domain.assigned())
}

fn xml() -> Vec<u8> {
    let nvme = source("0000:04:00.0").replace("<source>", "<source type='pci' managed='no' namespace='1'>");
    let devices = [
        hostdev("0000:02:00.0", true),
        format!("<interface type='hostdev' managed='yes'>{}</interface>", source("0000:03:1f.7")),
        format!("<disk type='nvme' device='disk'>{nvme}<target dev='vde'/></disk>"),
    ];
    domain("web", &devices).into_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_changed_anywhere(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut xml = xml();
        for (place, byte) in changes {
            let place = place.index(xml.len());
            xml[place] = byte;
        }
        if let Err(error) = assigned_devices(&xml) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn cut_off_anywhere(place in any::<prop::sample::Index>()) {
        let xml = xml();
        let end = xml.len() - "\n".len();
        prop_assert!(assigned_devices(&xml[..place.index(end)]).is_err());
    }

    #[test]
    fn pieces_left_out_or_repeated(
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        twice: bool,
    ) {
        let xml = xml();
        let (from, to) = (from.index(xml.len()), to.index(xml.len()));
        let (from, to) = (from.min(to), from.max(to));
        let middle = if twice { xml[from..to].repeat(2) } else { Vec::new() };
        let _ = assigned_devices(&[&xml[..from], &middle, &xml[to..]].concat());
    }

    #[test]
    fn every_address_is_found(bus: u8, slot in 0..32u8, function in 0..8u8, managed: bool) {
        let address = format!("0000:{bus:02x}:{slot:02x}.{function}");
        let found = assigned_devices(domain("web", &[hostdev(&address, managed)]).as_bytes()).unwrap();
        prop_assert_eq!(found.len(), 1);
        prop_assert_eq!((found[0].address.to_string(), found[0].managed), (address, managed));
    }
}
