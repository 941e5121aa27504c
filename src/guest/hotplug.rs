//! A running guest gets a device of a pool, or loses one.
//!
//! libvirt calls no hook then, so the guest's lease is changed here: it has a device before libvirt attaches it, and
//! until QEMU has let go of it. Whatever is killed in between: the lease then names more than the guest has, which
//! [`settle`](Session::settle) finds. All but `ask` and `settle` are called with [`editing`](Session::editing) held.

use crate::session::Session;
use crate::virsh::{Failure, LIVE};
use host::config::pool::Pool;
use host::libvirt::{definitions, runtime};
use host::pci::sysfs;
use model::address::PciAddress;
use model::domain::{Domain, Hostdev, Request};
use model::error::{Error, Result};
use std::thread;
use std::time::{Duration, Instant};

impl Session<'_> {
    /// A guest as it runs.
    pub(crate) fn live(&self, guest: &str) -> Result<Domain> {
        if !self.runs(guest) {
            definitions::read(self.host, guest)?;
            return Err(Error::new("it is not running").remedy("Use --config instead of --live"));
        }
        // virsh takes a name also for an id; a UUID for nothing else.
        let uuid = self.defined(guest).map(|domain| domain.uuid);
        let domain = self.dump(uuid.as_deref().unwrap_or(guest))?;
        if domain.name == guest {
            return Ok(domain);
        }
        Err(Error::new(format!("virsh takes this name for guest '{}'", domain.name)))
    }

    fn dump(&self, uuid: &str) -> Result<Domain> {
        Domain::parse(self.virsh.read(&["dumpxml", uuid], "")?.as_bytes())
    }

    fn runs(&self, guest: &str) -> bool {
        runtime::qemu(self.host, guest).is_some()
    }

    /// Gives a running guest a free device of a pool. Returns where that is, and its element as libvirt has made it of
    /// what `element` says for the device. All is undone if anything fails.
    pub(crate) fn plug(
        &self,
        guest: &str,
        pool: &Pool,
        element: impl Fn(PciAddress) -> String,
    ) -> Result<(PciAddress, String)> {
        let domain = self.live(guest)?;
        let uuid = &domain.uuid;
        let address = self.leases.plug(guest, &domain, pool)?;
        let text = element(address);
        if let Err(failure) = self.virsh.run(&["attach-device", uuid, "/dev/stdin", LIVE], &text) {
            return Err(self.undo(guest, address, failure));
        }
        if self.host.is_dry() {
            self.log.info(format_args!("virsh metadata {uuid} ... --live: a request of pool '{}'", pool.name));
            return Ok((address, text));
        }
        let attached = self.note(uuid, address, &pool.name);
        attached.map(|text| (address, text)).map_err(|error| self.unplug(guest, address, &error))
    }

    /// Writes the request for a new device of a running guest into its metadata; returns the device's element.
    fn note(&self, uuid: &str, address: PciAddress, pool: &str) -> Result<String> {
        let domain = self.dump(uuid)?;
        let device = domain.devices.iter().find(|device| device.address == address);
        let device =
            device.ok_or_else(|| Error::new(format!("libvirt has attached {address}, and does not show it")))?;
        if let Some(guest_address) = device.guest_address {
            let mut requests = domain.requests.clone();
            requests.retain(|request| request.guest_address != guest_address);
            requests.push(Request { pool: pool.to_owned(), guest_address, moving: None });
            self.set_requests(&domain.uuid, LIVE, &requests)?;
        }
        Ok(domain.text_of(device))
    }

    /// After libvirt has refused a device.
    fn undo(&self, guest: &str, address: PciAddress, failure: Failure) -> Error {
        if let Failure::NoAnswer(error) = failure {
            // It may still be attached at any time.
            return error.remedy(format!(
                "Run `vfpool reconcile` when libvirtd answers again: if the guest does not have {address} then, \
                 it is reattached to the host"
            ));
        }
        let error = failure.into();
        if !self.runs(guest) {
            return error;
        }
        let undone = self.leases.unplug(guest, || Ok(self.live(guest)?.assigned()));
        undone.map_or_else(|undo| error.but_not_undone(&undo), |()| error.clone())
    }

    /// Detaches again what was attached, as something else could not be done.
    pub(crate) fn unplug(&self, guest: &str, address: PciAddress, error: &Error) -> Error {
        let undone = self.ask(guest, address).and_then(|()| self.let_go(guest, address));
        undone.map_or_else(|undo| error.but_not_undone(&undo), |()| error.clone())
    }

    /// Asks a running guest to let go of a device, and waits for it. Needs no lock, as it may take long: the guest has
    /// to agree.
    pub(crate) fn ask(&self, guest: &str, address: PciAddress) -> Result<()> {
        let domain = self.live(guest)?;
        let Some(device) = domain.devices.iter().find(|device| device.address == address) else { return Ok(()) };
        match self.virsh.run(&["detach-device", &domain.uuid, "/dev/stdin", LIVE], &domain.text_of(device)) {
            // The guest may just be letting go of it, as it was asked to before.
            Ok(()) | Err(Failure::NotThere(_)) => {}
            Err(failure) => return Err(failure.into()),
        }
        let end = Instant::now() + self.virsh.limit;
        while !self.host.is_dry() && self.has(guest, address)? {
            if Instant::now() >= end {
                return Err(Error::new(format!(
                    "it has not let go of {address} within {} s, and keeps it: the guest's system has to agree to a \
                     hot-unplug",
                    self.virsh.limit.as_secs()
                ))
                .remedy("If it does so later, run `vfpool reconcile` then"));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Whether QEMU or libvirt has this device of the guest still; a guest that has ended has none.
    fn has(&self, guest: &str, address: PciAddress) -> Result<bool> {
        if !self.runs(guest) {
            return Ok(false);
        }
        if sysfs::identity(self.host, address)?.is_some_and(|device| device.in_vfio_use) {
            return Ok(true);
        }
        Ok(self.live(guest)?.devices.iter().any(|device| device.address == address))
    }

    /// Releases the device that the guest has let go of, and removes its request; by what the guest has now.
    pub(crate) fn let_go(&self, guest: &str, address: PciAddress) -> Result<()> {
        if !self.runs(guest) {
            return Ok(());
        }
        let mut live = None;
        self.leases.unplug(guest, || {
            let domain = live.insert(self.live(guest)?);
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
            self.set_requests(&domain.uuid, LIVE, &rest)?;
        }
        Ok(())
    }

    /// The devices of a running guest that are requested from a pool, by its own requests or by these of its
    /// definition: a device that was adopted while the guest ran has its request only there.
    pub(crate) fn pooled<'d>(domain: &'d Domain, requests: &[Request], pool: &str) -> Vec<&'d Hostdev> {
        let is_requested = |device: &&Hostdev| {
            let mut requesting = domain.requests.iter().chain(requests).filter(|request| request.pool == pool);
            requesting.any(|request| domain.device_for(request).is_some_and(|found| std::ptr::eq(found, *device)))
        };
        domain.devices.iter().filter(is_requested).collect()
    }

    /// Brings leases of running guests in line with what they have, where a hot-plug did not end. Takes the lock
    /// itself. Returns what could not be done.
    pub(crate) fn settle(&self) -> Result<Vec<Error>> {
        let guests = self.leases.needing_settlement()?;
        if guests.is_empty() {
            return Ok(Vec::new());
        }
        let _editing = self.editing()?;
        let mut errors = Vec::new();
        for guest in guests {
            let mut answers = true;
            let has = || self.live(&guest).map(|domain| domain.assigned()).inspect_err(|_| answers = false);
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
