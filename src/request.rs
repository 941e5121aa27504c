//! What an admin asks of a guest's definition: a device of a pool instead of a certain one, another one, or one less.

use crate::address::PciAddress;
use crate::availability::Standing;
use crate::definition;
use crate::domain::{Device, Domain, Kind, Request};
use crate::error::{Error, Result};
use crate::event::Events;
use crate::host::Host;
use crate::log::Log;
use crate::parked::Parked;
use crate::pool::Pool;
use crate::virsh::Virsh;

/// Edits requests on one host.
pub struct Requests<'a> {
    /// The host.
    pub host: &'a Host,
    /// Where each change is told.
    pub log: &'a Log,
    /// Who has what.
    pub events: &'a Events<'a>,
    /// The way to libvirt.
    pub virsh: Virsh<'a>,
}

impl Requests<'_> {
    /// Makes a device that the guest has already, by a fixed address, one of a pool: the given one, else the only one that is
    /// a member, else the only one at all (a guest from another host). Its definition points where it did until it is parked.
    pub fn adopt(&self, guest: &str, pool: &str, device: Option<PciAddress>) -> Result<()> {
        let pool = self.events.pools().find(pool)?;
        let _editing = self.events.store().editing(self.virsh.limit)?;
        let xml = definition::read(self.host, guest)?;
        let domain = Domain::parse(&xml)?;
        let device = self.adoptable(&domain, pool, device)?;
        let guest_address = device.guest_address.ok_or_else(|| {
            Error::new(format!(
                "{} has no PCI address in the guest; `virsh edit` once, so that libvirt gives it one",
                device.address
            ))
        })?;
        let mut requests = domain.requests.clone();
        requests.push(Request { pool: pool.name.clone(), guest_address, moving: None });
        definition::set_requests(&self.virsh, &domain.uuid, &requests)?;
        let (address, pool) = (device.address, &pool.name);
        self.log.info(format_args!(
            "guest '{guest}': {address} (in the guest at {guest_address}) is now any device of pool '{pool}'"
        ));
        self.events.wake(&format!("guest {guest}"));
        Ok(())
    }

    fn adoptable<'d>(&self, domain: &'d Domain, pool: &Pool, wanted: Option<PciAddress>) -> Result<&'d Device> {
        let fixed = domain.devices.iter().filter(|device| device.kind != Kind::Disk);
        let fixed: Vec<&Device> = fixed.filter(|device| domain.request_for(device).is_none()).collect();
        if let Some(wanted) = wanted {
            let found = fixed.iter().find(|device| device.address == wanted);
            return found.copied().ok_or_else(|| {
                let has = if domain.devices.iter().any(|device| device.address == wanted) {
                    "is asked from a pool already, or no hostdev or interface"
                } else {
                    "is none of its devices"
                };
                Error::new(format!("{wanted} {has}; it has {}", list(&fixed)))
            });
        }
        let is_member = |device: &&&Device| {
            let found = crate::sysfs::identity(self.host, device.address).ok().flatten();
            found.is_some_and(|found| pool.has_member(self.host, &found))
        };
        let members: Vec<&Device> = fixed.iter().filter(is_member).copied().collect();
        match (members.as_slice(), fixed.as_slice()) {
            ([device], _) | ([], [device]) => Ok(device),
            ([], []) if domain.requests.is_empty() => {
                Err(Error::new("it has no PCI device; give it one with `vfpool attach`"))
            }
            ([], []) => Err(Error::new("all of its PCI devices are asked from pools already")),
            _ => Err(Error::new(format!("it has {}; say which of them, after the pool", list(&fixed)))),
        }
    }

    /// Gives a guest one more device of a pool, from its next start on: a hostdev, or an interface with this MAC address
    /// (libvirt makes one up for an empty text).
    pub fn attach(&self, guest: &str, pool: &str, mac: Option<&str>) -> Result<()> {
        let pool = self.events.pools().find(pool)?;
        let _editing = self.events.store().editing(self.virsh.limit)?;
        let xml = definition::read(self.host, guest)?;
        let domain = Domain::parse(&xml)?;
        let address = self.any_member(guest, &domain, pool)?;
        let managed = if pool.managed { "yes" } else { "no" };
        let source = format!("<source>{}</source>", address.element());
        let element = match mac {
            None => format!("<hostdev mode='subsystem' type='pci' managed='{managed}'>{source}</hostdev>"),
            Some("") => format!("<interface type='hostdev' managed='{managed}'>{source}</interface>"),
            Some(mac) => {
                let mac = quick_xml::escape::escape(mac);
                format!("<interface type='hostdev' managed='{managed}'><mac address='{mac}'/>{source}</interface>")
            }
        };
        definition::edit_device(&self.virsh, "attach-device", &domain.uuid, &element)?;
        let xml = definition::read(self.host, guest)?;
        let domain = Domain::parse(&xml)?;
        let new =
            domain.devices.iter().find(|device| device.address == address && domain.request_for(device).is_none());
        let guest_address = new.and_then(|device| device.guest_address).ok_or_else(|| {
            Error::new(format!(
                "{address} was attached, but libvirt gives it no PCI address; `vfpool adopt` it when it has"
            ))
        })?;
        let mut requests = domain.requests.clone();
        requests.push(Request { pool: pool.name.clone(), guest_address, moving: None });
        definition::set_requests(&self.virsh, &domain.uuid, &requests)?;
        self.log.info(format_args!(
            "guest '{guest}': a device of pool '{}' attached, in the guest at {guest_address}",
            pool.name
        ));
        self.events.wake(&format!("guest {guest}"));
        Ok(())
    }

    /// A free member that nobody is parked at; else a free one, else any: parking moves it.
    fn any_member(&self, guest: &str, domain: &Domain, pool: &Pool) -> Result<PciAddress> {
        let parked = Parked::load(self.host);
        let mut standings = self.events.availability().of_pool(guest, pool)?;
        standings.retain(|(address, _)| domain.devices.iter().all(|device| device.address != *address));
        let best = standings
            .iter()
            .min_by_key(|(address, standing)| (*standing != Standing::Free, parked.by_other_than(guest, *address)));
        best.map(|(address, _)| *address).ok_or_else(|| {
            Error::new(format!(
                "pool '{}' has no device on this host that it does not have yet; see `vfpool setup`",
                pool.name
            ))
        })
    }

    /// Takes a device of a pool, and the request for it, out of a guest's definition: the given one, or its only one.
    pub fn detach(&self, guest: &str, pool: &str, device: Option<PciAddress>) -> Result<()> {
        let _editing = self.events.store().editing(self.virsh.limit)?;
        let xml = definition::read(self.host, guest)?;
        let domain = Domain::parse(&xml)?;
        let matches = |request: &&Request| {
            let address = domain.device_for(request).map(|device| device.address);
            request.pool == pool
                && device.is_none_or(|device| address == Some(device) || request.guest_address == device)
        };
        let found: Vec<&Request> = domain.requests.iter().filter(matches).collect();
        let request = match found.as_slice() {
            [request] => *request,
            [] => return Err(Error::new(format!("it asks pool '{pool}' for no such device"))),
            _ => {
                let devices: Vec<&Device> = found.iter().filter_map(|request| domain.device_for(request)).collect();
                return Err(Error::new(format!("it has {} of pool '{pool}'; say which of them", list(&devices))));
            }
        };
        if let Some(device) = domain.device_for(request) {
            domain.expect_only(device)?;
            definition::edit_device(&self.virsh, "detach-device", &domain.uuid, &domain.text_of(device))?;
        }
        let rest: Vec<Request> = domain.requests.iter().filter(|other| *other != request).cloned().collect();
        definition::set_requests(&self.virsh, &domain.uuid, &rest)?;
        self.log.info(format_args!("guest '{guest}': a device of pool '{pool}' detached"));
        self.events.wake(&format!("guest {guest}"));
        Ok(())
    }
}

fn list(devices: &[&Device]) -> String {
    let addresses: Vec<String> = devices.iter().map(|device| device.address.to_string()).collect();
    if addresses.is_empty() { "no other".into() } else { addresses.join(", ") }
}
