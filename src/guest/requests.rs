//! What an admin changes of a guest's requests: a fixed device becomes one of a pool, the guest gets one more, or
//! loses one; in its definition, in the running guest, or in both. Each returns a line that says what was done.

use crate::session::Session;
use crate::virsh::{CONFIG, Failure};
use host::config::pool::Pool;
use host::libvirt::definitions;
use host::libvirt::networks::{self, Replaced};
use host::parked::Parked;
use host::pci::sysfs;
use host::queue::Entry;
use lease::availability::Standing;
use model::address::PciAddress;
use model::domain::{Domain, Hostdev, Kind, NetworkInterface, Request};
use model::error::{Error, Result};
use model::text::shell_word;

/// What is changed; at least one of the two, as virsh has it.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// The running guest.
    pub live: bool,
    /// Its definition, from the next start on.
    pub config: bool,
}

/// What kind of element a new device gets.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// An interface with this MAC address (libvirt generates one for an empty text) instead of a hostdev.
    pub mac: Option<&'a str>,
    /// Its option ROM.
    pub rom: Rom,
}

/// A device's option ROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rom {
    /// As it is.
    Keep,
    /// Hidden from the guest.
    Off,
}

impl Shape<'_> {
    fn element(self, pool: &Pool, address: PciAddress) -> String {
        let managed = if pool.managed { "yes" } else { "no" };
        let rom = if self.rom == Rom::Off { "<rom bar='off'/>" } else { "" };
        let source = format!("<source>{}</source>{rom}", address.element());
        match self.mac {
            None => format!("<hostdev mode='subsystem' type='pci' managed='{managed}'>{source}</hostdev>"),
            Some("") => format!("<interface type='hostdev' managed='{managed}'>{source}</interface>"),
            Some(mac) => {
                let mac = quick_xml::escape::escape(mac);
                format!("<interface type='hostdev' managed='{managed}'><mac address='{mac}'/>{source}</interface>")
            }
        }
    }
}

impl Session<'_> {
    /// Replaces a guest's fixed device with a request for any device of a pool: the given device, else the only one
    /// that is a member, else the only one at all (a guest from another host). Its definition points where it did
    /// until it is parked.
    pub fn adopt(&self, guest: &str, pool: &str, device: Option<PciAddress>, rom: Rom) -> Result<String> {
        let pool = self.leases.pools().find(pool)?;
        let _editing = self.editing()?;
        let domain = self.defined(guest)?;
        let networked = self.networked(&domain, pool, device)?;
        if let Some((interface, network)) = networked {
            return self.adopt_networked(&domain, pool, &interface, network.vlan.as_deref(), rom);
        }
        let device = self.adoptable(&domain, pool, device)?;
        if domain.text_of(device).contains("<address type='unassigned'/>") {
            let why = format!("{} is reserved for it, and the guest does not see it", device.address);
            return Err(Error::new(why).remedy(format!(
                "Remove <address type='unassigned'/> with `virsh edit {}` if the guest is to have it",
                shell_word(guest)
            )));
        }
        let guest_address = device.guest_address.ok_or_else(|| {
            Error::new(format!(
                "{} has no PCI address in the guest; `virsh edit` once, so that libvirt gives it one",
                device.address
            ))
        })?;
        let mut requests = domain.requests.clone();
        requests.push(Request { pool: pool.name.clone(), guest_address, moving: None });
        let (old, address) = (domain.text_of(device), device.address);
        let text = if rom == Rom::Off { domain.text_without_rom(device) } else { old.clone() };
        if text == old {
            self.set_requests(&domain.uuid, CONFIG, &requests)?;
        } else {
            // Its request holds it while it is moved.
            self.wake(guest);
            self.replace(&domain, &requests, guest_address, &text)?;
        }
        let place = format!("{address} (in the guest at {guest_address}{})", self.rom(address, rom));
        Ok(self.done(guest, &format!("{place} is now any device of pool '{}'", pool.name)))
    }

    /// The interface that the guest has on a network in whose place the pool is used: the one at the given address in
    /// the guest, else the only one. Fixed devices come first: the one with this address on the host, else any.
    fn networked(
        &self,
        domain: &Domain,
        pool: &Pool,
        wanted: Option<PciAddress>,
    ) -> Result<Option<(NetworkInterface, Replaced)>> {
        let mut fixed = domain.devices.iter().filter(|device| domain.request_for(device).is_none());
        if fixed.any(|device| wanted.is_none_or(|wanted| device.address == wanted)) {
            return Ok(None);
        }
        let interfaces = domain.network_interfaces().into_iter();
        let wanted = interfaces.filter(|interface| wanted.is_none() || interface.guest_address == wanted);
        let mut found: Vec<(NetworkInterface, Replaced)> = wanted
            .filter_map(|interface| {
                let portgroup = interface.portgroup.as_deref();
                let network = networks::replaced(self.host, &interface.network, portgroup, pool)?;
                Some((interface, network))
            })
            .collect();
        if found.len() > 1 {
            let addresses = found.iter().filter_map(|(interface, _)| interface.guest_address);
            let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
            let why = format!("it has several interfaces on such networks (in the guest at {})", addresses.join(", "));
            return Err(Error::new(why).remedy("Name one by that address after the pool"));
        }
        Ok(found.pop())
    }

    /// Replaces an interface on libvirt's network by one with a device of the pool: MAC address, address in the guest
    /// and all else stay, and what the network itself says of VLANs goes with it.
    fn adopt_networked(
        &self,
        domain: &Domain,
        pool: &Pool,
        interface: &NetworkInterface,
        vlan: Option<&str>,
        rom: Rom,
    ) -> Result<String> {
        let (guest, network) = (&domain.name, &interface.network);
        let guest_address = interface.guest_address.ok_or_else(|| {
            Error::new(format!("its interface on network '{network}' has no PCI address in the guest"))
        })?;
        let address = self.any_member(guest, domain, pool)?;
        let more = if rom == Rom::Off { "<rom bar='off'/>" } else { "" };
        let text = interface.on_device(address, pool.managed, vlan, more);
        let mut requests = domain.requests.clone();
        requests.push(Request { pool: pool.name.clone(), guest_address, moving: None });
        self.wake(guest);
        self.swap(domain, &requests, guest_address, &interface.text, &text)?;
        Ok(self.done(
            guest,
            &format!(
                "its interface on network '{network}' (in the guest at {guest_address}{}) is now any device of pool \
                 '{}'",
                self.rom(address, rom),
                pool.name
            ),
        ))
    }

    fn adoptable<'d>(&self, domain: &'d Domain, pool: &Pool, wanted: Option<PciAddress>) -> Result<&'d Hostdev> {
        let fixed = domain.devices.iter().filter(|device| device.kind != Kind::Disk);
        let fixed: Vec<&Hostdev> = fixed.filter(|device| domain.request_for(device).is_none()).collect();
        if let Some(wanted) = wanted {
            let found = fixed.iter().find(|device| device.address == wanted);
            return found.copied().ok_or_else(|| {
                let has = if domain.devices.iter().any(|device| device.address == wanted) {
                    "is requested from a pool already, or is not a hostdev or interface"
                } else {
                    "is not one of its devices"
                };
                Error::new(format!("{wanted} {has}; it has {}", list(&fixed)))
            });
        }
        let is_member = |device: &&&Hostdev| {
            let found = sysfs::identity(self.host, device.address).ok().flatten();
            found.is_some_and(|found| pool.has_member(self.host, &found))
        };
        let members: Vec<&Hostdev> = fixed.iter().filter(is_member).copied().collect();
        match (members.as_slice(), fixed.as_slice()) {
            // One that is here is what it is; one that is not was left behind on another host.
            ([], [device]) if sysfs::identity(self.host, device.address)?.is_some() => {
                let address = device.address;
                Err(Error::new(format!("its only device, {address}, is not in pool '{}'", pool.name))
                    .remedy(format!("To adopt it nevertheless, name {address} after the pool")))
            }
            ([device], _) | ([], [device]) => Ok(device),
            ([], []) if domain.requests.is_empty() => {
                Err(Error::new("it has no PCI device").remedy("Add one with `vfpool attach`"))
            }
            ([], []) => Err(Error::new("all of its PCI devices are requested from pools already")),
            _ => Err(several(&fixed)),
        }
    }

    /// Gives a guest one more device of a pool.
    pub fn attach(&self, guest: &str, pool: &str, shape: Shape, scope: Scope) -> Result<String> {
        let pool = self.leases.pools().find(pool)?;
        let _editing = self.editing()?;
        if scope.config {
            // What cannot be edited is said before the running guest is touched.
            self.defined(guest)?;
        }
        let mut told = Vec::new();
        let address = if scope.live {
            let (address, text) = self.plug(guest, pool, |address| shape.element(pool, address))?;
            let rom = self.rom(address, shape.rom);
            told.push(format!("{address}{rom} of pool '{}' attached to the running guest", pool.name));
            if scope.config {
                // With the same guest address and MAC, if its definition has room for it there.
                let added = self.add(guest, pool, address, &text);
                let added = added.or_else(|_| self.add(guest, pool, address, &shape.element(pool, address)));
                told.push(added.map_err(|error| self.unplug(guest, address, &error))?);
            }
            address
        } else {
            let address = self.any_member(guest, &self.defined(guest)?, pool)?;
            told.push(self.add(guest, pool, address, &shape.element(pool, address))?);
            address
        };
        if !scope.live {
            let rom = self.rom(address, shape.rom);
            told.push(format!("it points at {address}{rom} for now"));
        }
        Ok(self.done(guest, &told.join("; ")))
    }

    /// Adds a device to a guest's definition, and the request for it. Should we be killed in between, the reconciler
    /// does the rest.
    fn add(&self, guest: &str, pool: &Pool, address: PciAddress, element: &str) -> Result<String> {
        let entry = Entry::Attached { address, guest: guest.to_owned(), pool: pool.name.clone() };
        entry.put(self.host)?;
        let attached = self.attach_device(&self.defined(guest)?.uuid, element);
        // Without an answer, it may still come.
        if let Err(Failure::NotThere(_) | Failure::NoGuest(_) | Failure::Said(_)) = attached {
            entry.remove(self.host);
        }
        attached?;
        let name = &pool.name;
        if self.host.is_dry() {
            self.log.info(format_args!("virsh metadata {guest} ... --config: a request of pool '{name}'"));
            return Ok(format!("a device of pool '{name}' attached, from the next start on"));
        }
        let requested = self.request(guest, name, address).inspect_err(|_| {
            if self.drop_device(guest, address).is_ok() {
                entry.remove(self.host);
            }
        });
        let guest_address = requested?.ok_or_else(|| {
            Error::new(format!(
                "{address} was attached, but libvirt gives it no PCI address; `vfpool adopt` it when it has"
            ))
        })?;
        Ok(format!("a device of pool '{name}' attached, in the guest at {guest_address} from the next start on"))
    }

    /// Removes a device without a request from a guest's definition again.
    fn drop_device(&self, guest: &str, address: PciAddress) -> Result<()> {
        let domain = self.defined(guest)?;
        let mut new = domain.devices.iter().filter(|device| domain.request_for(device).is_none());
        let Some(device) = new.find(|device| device.address == address) else { return Ok(()) };
        Ok(self.detach_device(&domain.uuid, &domain.text_of(device))?)
    }

    /// Writes the request for a device that a guest's definition has just got. `None`: it is not there, or asked for
    /// already.
    fn request(&self, guest: &str, pool: &str, address: PciAddress) -> Result<Option<PciAddress>> {
        let domain = self.defined(guest)?;
        let mut new = domain.devices.iter().filter(|device| domain.request_for(device).is_none());
        let new = new.find(|device| device.kind != Kind::Disk && device.address == address);
        let Some(guest_address) = new.and_then(|device| device.guest_address) else { return Ok(None) };
        let mut requests = domain.requests.clone();
        requests.push(Request { pool: pool.to_owned(), guest_address, moving: None });
        self.set_requests(&domain.uuid, CONFIG, &requests)?;
        Ok(Some(guest_address))
    }

    /// Ends what a killed [`attach`](Self::attach) has begun: a device was, or is being, attached to a definition.
    pub(crate) fn end_attach(&self, guest: &str, pool: &str, address: PciAddress) -> Result<()> {
        let _editing = self.editing()?;
        if !definitions::path(self.host, guest).exists() {
            return Ok(());
        }
        let about = |error: Error| error.during(format_args!("guest '{guest}'"));
        if let Err(error) = self.defined(guest) {
            // Another time it is no better.
            self.log.error(about(error.during(format_args!("{address} of pool '{pool}' stays a fixed device"))));
            return Ok(());
        }
        let requested = self.request(guest, pool, address).map_err(about)?;
        if let Some(guest_address) = requested {
            self.log.warning(format_args!(
                "guest '{guest}': a device of pool '{pool}', in the guest at {guest_address}, was attached by a \
                 command that did not end"
            ));
        }
        Ok(())
    }

    /// A free member that no guest is parked at; else a free one, else any: parking moves it.
    fn any_member(&self, guest: &str, domain: &Domain, pool: &Pool) -> Result<PciAddress> {
        let parked = Parked::load(self.host);
        let mut standings = self.leases.view().standings(Some(guest), pool)?;
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

    /// Detaches a device of a pool from a guest: the given one, by its address on the host or in the guest, or its
    /// only one. `confirm` is asked before a running guest loses one.
    pub fn detach(
        &self,
        guest: &str,
        pool: &str,
        device: Option<PciAddress>,
        scope: Scope,
        confirm: impl FnOnce(&str) -> Result<()>,
    ) -> Result<String> {
        let mut told = Vec::new();
        let mut device = device;
        if scope.live {
            let domain = self.live(guest)?;
            let defined = self.defined(guest).map(|domain| domain.requests).unwrap_or_default();
            let found = chosen(Self::pooled(&domain, &defined, pool), pool, device)?;
            let address = found.address;
            if scope.config {
                device = found.guest_address;
                self.request_of(guest, pool, device)?;
            }
            if !self.host.is_dry() {
                confirm(&format!("Detach {address} from the running guest '{guest}'?"))?;
            }
            self.ask(guest, address)?;
            let _editing = self.editing()?;
            self.let_go(guest, address)?;
            told.push(format!("{address} of pool '{pool}' detached from the running guest"));
        }
        if scope.config {
            let _editing = self.editing()?;
            self.remove(guest, pool, device)?;
            told.push(format!("a device of pool '{pool}' detached, from the next start on"));
        }
        Ok(self.done(guest, &told.join("; ")))
    }

    /// Removes a device, and the request for it, from a guest's definition.
    fn remove(&self, guest: &str, pool: &str, device: Option<PciAddress>) -> Result<()> {
        let request = self.request_of(guest, pool, device)?;
        let domain = self.defined(guest)?;
        if let Some(device) = domain.device_for(&request) {
            domain.expect_only(device)?;
            self.detach_device(&domain.uuid, &domain.text_of(device))?;
        }
        let rest: Vec<Request> = domain.requests.iter().filter(|other| **other != request).cloned().collect();
        Ok(self.set_requests(&domain.uuid, CONFIG, &rest)?)
    }

    /// The one request of a guest's definition that is meant.
    fn request_of(&self, guest: &str, pool: &str, device: Option<PciAddress>) -> Result<Request> {
        let domain = self.defined(guest)?;
        let matches = |request: &&Request| {
            let address = domain.device_for(request).map(|device| device.address);
            request.pool == pool
                && device.is_none_or(|device| address == Some(device) || request.guest_address == device)
        };
        let found: Vec<&Request> = domain.requests.iter().filter(matches).collect();
        match found.as_slice() {
            [request] => Ok((*request).clone()),
            [] => Err(Error::new(format!("its definition requests no such device from pool '{pool}'"))),
            _ => {
                let devices: Vec<&Hostdev> = found.iter().filter_map(|request| domain.device_for(request)).collect();
                Err(several(&devices))
            }
        }
    }

    /// What to know of a device's option ROM.
    fn rom(&self, address: PciAddress, rom: Rom) -> &'static str {
        match (sysfs::has_rom(self.host, address), rom) {
            (_, Rom::Off) => ", option ROM off",
            (true, Rom::Keep) => ", with its option ROM (--rom-off hides it)",
            (false, Rom::Keep) => "",
        }
    }

    fn wake(&self, guest: &str) {
        self.leases.wake(&Entry::Guest(guest.to_owned()));
    }

    /// Says what was done to a guest, which may have to be parked now.
    fn done(&self, guest: &str, what: &str) -> String {
        let line = format!("guest '{guest}': {what}");
        self.log.info(&line);
        self.wake(guest);
        line
    }
}

/// The one of a guest's devices that is meant.
fn chosen<'d>(devices: Vec<&'d Hostdev>, pool: &str, wanted: Option<PciAddress>) -> Result<&'d Hostdev> {
    let is_it = |device: &&Hostdev| {
        wanted.is_none_or(|wanted| device.address == wanted || device.guest_address == Some(wanted))
    };
    let found: Vec<&Hostdev> = devices.into_iter().filter(is_it).collect();
    match found.as_slice() {
        [device] => Ok(device),
        [] => Err(Error::new(format!("it has no such device of pool '{pool}' now"))),
        _ => Err(several(&found)),
    }
}

fn several(devices: &[&Hostdev]) -> Error {
    Error::new(format!("it has several devices ({})", list(devices))).remedy("Name one after the pool")
}

fn list(devices: &[&Hostdev]) -> String {
    let addresses: Vec<String> = devices.iter().map(|device| device.address.to_string()).collect();
    if addresses.is_empty() { "no other".into() } else { addresses.join(", ") }
}
