//! A running guest gets a device of a pool, or loses one.
//!
//! libvirt calls no hook then, so the guest's lease is changed here: it has a device before libvirt attaches it, and until QEMU
//! has let go of it. Whatever is killed in between: the lease then tells of more than the guest has, which
//! [`Hotplug::settle`] finds.

use crate::edit::{self, LIVE, NOT_THERE};
use crate::virsh::{NO_ANSWER, Virsh};
use host::config::pool::Pool;
use host::libvirt::{definitions, runtime};
use host::log::Log;
use host::paths::Host;
use host::pci::sysfs;
use lease::Leases;
use model::address::PciAddress;
use model::domain::{Domain, Hostdev, Request};
use model::error::{Error, Result};
use std::thread;
use std::time::{Duration, Instant};

/// Changes running guests of one host. Whoever calls it holds [`Store::editing`](lease::records::Records::editing), but where it
/// says otherwise.
pub struct Hotplug<'a> {
    /// The host.
    pub host: &'a Host,
    /// Where each change is told.
    pub log: &'a Log,
    /// Who has what.
    pub leases: &'a Leases<'a>,
    /// The way to libvirt.
    pub virsh: &'a Virsh<'a>,
}

impl Hotplug<'_> {
    /// A guest as it runs.
    pub fn domain(&self, guest: &str) -> Result<Domain> {
        if !self.runs(guest) {
            definitions::read(self.host, guest)?;
            return Err(Error::new("it does not run; say --config instead of --live"));
        }
        // virsh takes a name also for an id; a UUID for nothing else.
        let uuid = definitions::read(self.host, guest).and_then(|xml| Ok(Domain::parse(&xml)?.uuid));
        let domain = Domain::parse(self.virsh.read(&["dumpxml", uuid.as_deref().unwrap_or(guest)], "")?.as_bytes())?;
        if domain.name == guest {
            return Ok(domain);
        }
        Err(Error::new(format!("virsh takes this name for guest '{}'", domain.name)))
    }

    fn runs(&self, guest: &str) -> bool {
        runtime::qemu(self.host, guest).is_some()
    }

    /// Gives a running guest a free device of a pool. Returns where that is, and its element as libvirt has made it of what
    /// `element` says for the device. All is undone if anything fails.
    pub fn attach(
        &self,
        guest: &str,
        pool: &Pool,
        element: impl Fn(PciAddress) -> String,
    ) -> Result<(PciAddress, String)> {
        let domain = self.domain(guest)?;
        let uuid = &domain.uuid;
        let address = self.leases.plug(guest, &domain, pool)?;
        let text = element(address);
        if let Err(error) = self.virsh.run(&["attach-device", uuid, "/dev/stdin", LIVE], &text) {
            return Err(self.undo(guest, address, &error));
        }
        if self.host.is_dry() {
            self.log.info(format_args!("virsh metadata {uuid} ... --live: a request of pool '{}'", pool.name));
            return Ok((address, text));
        }
        let attached = self.note(guest, address, &pool.name);
        attached.map(|text| (address, text)).map_err(|error| self.take_back(guest, address, &error))
    }

    /// Writes the request for a new device of a running guest into its metadata; returns the device's element.
    fn note(&self, guest: &str, address: PciAddress, pool: &str) -> Result<String> {
        let domain = self.domain(guest)?;
        let device = domain.devices.iter().find(|device| device.address == address);
        let device =
            device.ok_or_else(|| Error::new(format!("libvirt has attached {address}, and does not show it")))?;
        if let Some(guest_address) = device.guest_address {
            let mut requests = domain.requests.clone();
            requests.retain(|request| request.guest_address != guest_address);
            requests.push(Request { pool: pool.to_owned(), guest_address, moving: None });
            edit::set_requests(self.virsh, &domain.uuid, LIVE, &requests)?;
        }
        Ok(domain.text_of(device))
    }

    /// After libvirt has refused a device.
    fn undo(&self, guest: &str, address: PciAddress, error: &Error) -> Error {
        if error.to_string().contains(NO_ANSWER) {
            // It may still be attached at any time.
            return Error::new(format!(
                "{error}. Run `vfpool reconcile` when it is: if the guest has no {address} then, it is reattached"
            ));
        }
        if !self.runs(guest) {
            return error.clone();
        }
        match self.leases.unplug(guest, || Ok(self.domain(guest)?.assigned())) {
            Ok(()) => error.clone(),
            Err(undo) => Error::new(format!("{error}. Not all could be undone: {undo}")),
        }
    }

    /// Takes away again what was attached, as something else could not be done.
    pub fn take_back(&self, guest: &str, address: PciAddress, error: &Error) -> Error {
        match self.ask(guest, address).and_then(|()| self.give_back(guest, address)) {
            Ok(()) => error.clone(),
            Err(undo) => Error::new(format!("{error}. Not all could be undone: {undo}")),
        }
    }

    /// Has a running guest let go of a device, and waits for it. Needs no lock, as it may take long: the guest has to agree.
    pub fn ask(&self, guest: &str, address: PciAddress) -> Result<()> {
        let domain = self.domain(guest)?;
        let Some(device) = domain.devices.iter().find(|device| device.address == address) else { return Ok(()) };
        let asked = self.virsh.run(&["detach-device", &domain.uuid, "/dev/stdin", LIVE], &domain.text_of(device));
        // It may just let go of it, as it was asked to before.
        asked.or_else(|error| if error.to_string().contains(NOT_THERE) { Ok(()) } else { Err(error) })?;
        let end = Instant::now() + self.virsh.limit;
        while !self.host.is_dry() && self.has(guest, address)? {
            if Instant::now() >= end {
                return Err(Error::new(format!(
                    "it has not let go of {address} within {} s, and keeps it: its system has to agree to a hot-unplug. Should it \
                     do so later, run `vfpool reconcile` then",
                    self.virsh.limit.as_secs()
                )));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Whether QEMU or libvirt has this device of the guest still; a guest that has ended meanwhile has none.
    fn has(&self, guest: &str, address: PciAddress) -> Result<bool> {
        if !self.runs(guest) {
            return Ok(false);
        }
        if sysfs::identity(self.host, address)?.is_some_and(|device| device.in_vfio_use) {
            return Ok(true);
        }
        Ok(self.domain(guest)?.devices.iter().any(|device| device.address == address))
    }

    /// Ends the lease of a device that the guest has let go of, and its request.
    pub fn give_back(&self, guest: &str, address: PciAddress) -> Result<()> {
        if !self.runs(guest) {
            return Ok(());
        }
        let mut live = None;
        self.leases.unplug(guest, || {
            let domain = live.insert(self.domain(guest)?);
            let mut assigned = domain.assigned();
            // In a dry run it has it still.
            assigned.retain(|device| device.address != address);
            Ok(assigned)
        })?;
        let Some(domain) = live else { return Ok(()) };
        let is_over = |request: &Request| {
            let device = domain.device_for(request).map(|device| device.address);
            device.is_none_or(|device| device == address)
        };
        let rest: Vec<Request> = domain.requests.iter().filter(|request| !is_over(request)).cloned().collect();
        if rest.len() < domain.requests.len() {
            edit::set_requests(self.virsh, &domain.uuid, LIVE, &rest)?;
        }
        Ok(())
    }

    /// The devices of a running guest that are asked from a pool, by one of these requests: what was adopted while it ran,
    /// only its definition knows of.
    pub fn pooled<'d>(domain: &'d Domain, requests: &[Request], pool: &str) -> Vec<&'d Hostdev> {
        let is_asked = |device: &&Hostdev| {
            let mut asking = domain.requests.iter().chain(requests).filter(|request| request.pool == pool);
            asking.any(|request| domain.device_for(request).is_some_and(|found| std::ptr::eq(found, *device)))
        };
        domain.devices.iter().filter(is_asked).collect()
    }

    /// Brings leases of running guests in line with what they have, where a hot-plug did not end. Takes the lock itself.
    /// Returns what could not be done.
    pub fn settle(&self) -> Result<Vec<Error>> {
        let guests = self.leases.needing_settlement()?;
        if guests.is_empty() {
            return Ok(Vec::new());
        }
        let _editing = self.leases.store().editing(self.virsh.limit)?;
        let mut errors = Vec::new();
        for guest in guests {
            let mut answers = true;
            let has = || self.domain(&guest).map(|domain| domain.assigned()).inspect_err(|_| answers = false);
            let done = self.leases.unplug(&guest, has);
            // What libvirt does not say now, it will another time; until then the guest keeps what it has.
            if !answers {
                continue;
            }
            errors.extend(done.err().map(|error| error.during(format_args!("guest '{guest}'"))));
        }
        Ok(errors)
    }
}
