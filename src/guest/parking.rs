//! Parking: every stopped guest that requests a device from a pool points at a free one, so that whatever starts it
//! (virsh, autostart, virt-manager) boots it with that.
//!
//! libvirt edits the definitions, one device at a time and never a whole one, so that no concurrent edit is lost. A
//! device is detached and attached again; between the two steps its request in the guest's metadata holds it, and the
//! hook lets no guest start without it. After a kill at any point the next run goes on from what the definition says.

use crate::edit::PLACEHOLDER;
use crate::session::Session;
use crate::virsh::{CONFIG, Failure};
use host::files;
use host::libvirt::{definitions, runtime};
use host::parked::{OtherDevice, Parked, ParkedGuest, PooledDevice};
use host::pci::sysfs;
use host::process;
use lease::availability::Standing;
use lease::life::Life;
use model::address::PciAddress;
use model::assign::{Want, assign};
use model::domain::{Domain, Kind, NetworkInterface, Request};
use model::error::{Error, Result};
use model::text::shell_word;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Which failures of a run are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// All of them.
    All,
    /// Those of guests that changed since the last run, or whose start was just refused.
    News,
}

/// What one run has to do, and what came of it.
#[derive(Default)]
struct Run {
    /// Guests whose definition is new.
    changed: BTreeSet<String>,
    /// What could not be done, of which guest.
    failures: Vec<(String, Error)>,
}

impl Session<'_> {
    /// Points every stopped guest at a free device, first the one whose start was refused last: `refused` were just
    /// now. Returns what could not be done.
    pub(crate) fn park(&self, refused: &BTreeSet<String>, report: Report) -> Result<Vec<Error>> {
        let mut run = Run::default();
        let _editing = self.editing()?;
        let before = Parked::load(self.host);
        let mut parked = self.look(&before, &mut run)?;
        for guest in parked.guests.iter_mut().filter(|guest| refused.contains(&guest.name)) {
            guest.refused = process::uptime(self.host);
        }
        let moved = self.move_all(&mut parked, &mut run);
        // What the move has left in the requests matters to nobody who starts a guest.
        for guest in moved {
            self.tidy(&guest, &mut parked, &mut run);
        }
        if parked != before {
            parked.save(self.host)?;
        }
        let Run { changed, failures } = run;
        let is_reported = |guest: &String| report == Report::All || changed.contains(guest) || refused.contains(guest);
        let reported = failures.into_iter().filter(|(guest, _)| is_reported(guest));
        Ok(reported.map(|(guest, error)| error.during(format_args!("guest '{guest}'"))).collect())
    }

    /// Reads the definitions that changed.
    fn look(&self, before: &Parked, run: &mut Run) -> Result<Parked> {
        let mut parked = Parked::default();
        for name in definitions::names(self.host)? {
            let Some(stamp) = files::stamp(&definitions::path(self.host, &name)) else { continue };
            match before.guest(&name) {
                Some(guest)
                    if guest.stamp == stamp && (guest.unknown_to.is_none() || guest.unknown_to == self.libvirtd()) =>
                {
                    parked.guests.push(guest.clone());
                }
                _ => {
                    run.changed.insert(name.clone());
                    let refused = before.guest(&name).and_then(|guest| guest.refused);
                    parked.guests.push(ParkedGuest { refused, ..self.read(&name, stamp, run) });
                }
            }
        }
        Ok(parked)
    }

    /// Understands one definition.
    fn read(&self, name: &str, stamp: String, run: &mut Run) -> ParkedGuest {
        let mut guest = ParkedGuest { name: name.to_owned(), stamp, ..ParkedGuest::default() };
        let xml = match definitions::read(self.host, name) {
            Ok(xml) => xml,
            Err(error) => {
                run.failures.push((name.to_owned(), error));
                return guest;
            }
        };
        let domain = match Domain::parse(&xml) {
            Ok(domain) => domain,
            Err(error) => {
                let path = definitions::path(self.host, name);
                run.failures.push((name.to_owned(), error.during(path.display())));
                return guest;
            }
        };
        for request in &domain.requests {
            guest.devices.push(PooledDevice {
                pool: request.pool.clone(),
                guest_address: request.guest_address,
                address: domain.device_for(request).map(|device| device.address),
                moving: request.moving.is_some(),
            });
        }
        let others = domain.devices.iter().filter(|device| domain.request_for(device).is_none());
        guest.others = others.map(|device| OtherDevice { address: device.address }).collect();
        guest
    }

    /// Reads one guest again after it was, or may have been, changed.
    fn look_again(&self, name: &str, parked: &mut Parked, run: &mut Run) {
        let stamp = files::stamp(&definitions::path(self.host, name));
        let refused = parked.guest(name).and_then(|guest| guest.refused);
        let new = stamp.map(|stamp| ParkedGuest { refused, ..self.read(name, stamp, run) });
        parked.put(name, new);
    }

    /// Whether libvirt would take the guest's definition for its next start only. One that is just being started is
    /// left alone, too.
    fn is_stopped(&self, guest: &str) -> bool {
        runtime::qemu(self.host, guest).is_none()
            && self.leases.store().lease_or_none(guest).is_none_or(|lease| !lease.is_in_use(self.host, guest))
    }

    /// Points guests elsewhere; returns those that were touched.
    fn move_all(&self, parked: &mut Parked, run: &mut Run) -> BTreeSet<String> {
        let mut touched = BTreeSet::new();
        let is_unfinished =
            |guest: &&ParkedGuest| guest.unknown_to.is_none() && guest.devices.iter().any(|device| device.moving);
        let unfinished = parked.guests.iter().filter(is_unfinished).map(|guest| guest.name.clone());
        for guest in unfinished.collect::<Vec<_>>() {
            let done = self.finish(&guest);
            self.moved(&guest, done, parked, run);
            touched.insert(guest);
        }
        for (guest, guest_address, to) in self.decide(parked, run) {
            if parked.is_unknown(&guest) {
                continue;
            }
            let done = self.point(&guest, guest_address, to);
            self.moved(&guest, done, parked, run);
            touched.insert(guest);
        }
        touched.retain(|guest| !parked.is_unknown(guest));
        touched
    }

    /// Notes what came of a move.
    fn moved(&self, guest: &str, done: Result<(), Failure>, parked: &mut Parked, run: &mut Run) {
        self.look_again(guest, parked, run);
        match done {
            Ok(()) => {}
            Err(Failure::NoGuest(_)) => {
                let path = definitions::path(self.host, guest);
                self.log.info(format_args!("{}: libvirt has no such guest; the file is ignored", path.display()));
                let unknown =
                    parked.guest(guest).map(|guest| ParkedGuest { unknown_to: self.libvirtd(), ..guest.clone() });
                parked.put(guest, unknown);
            }
            Err(failure) => run.failures.push((guest.to_owned(), failure.into())),
        }
    }

    /// This libvirtd, and no later one: that reads all definitions again.
    fn libvirtd(&self) -> Option<String> {
        runtime::libvirtd(self.host).map(|process| format!("{}-{}", process.pid, process.start))
    }

    /// What is to be moved where.
    fn decide(&self, parked: &Parked, run: &mut Run) -> Vec<(String, PciAddress, PciAddress)> {
        let is_asking = |guest: &&ParkedGuest| {
            guest.unknown_to.is_none() && guest.devices.iter().any(|device| device.address.is_some())
        };
        let mut guests: Vec<&ParkedGuest> =
            parked.guests.iter().filter(is_asking).filter(|guest| self.is_stopped(&guest.name)).collect();
        guests.sort_by_key(|guest| Reverse(guest.refused));
        let mut wants = Vec::new();
        let mut keys = Vec::new();
        for guest in &guests {
            for device in &guest.devices {
                let Some(current) = device.address else { continue };
                wants.push(Want { guest: &guest.name, pool: &device.pool, current });
                keys.push(device.guest_address);
            }
        }
        let mut free = BTreeMap::new();
        for want in &wants {
            if free.contains_key(want.pool) {
                continue;
            }
            let found = self.free(want.pool);
            let (members, errors) = found.unwrap_or_else(|error| (Vec::new(), vec![error]));
            for error in errors {
                let asking = wants.iter().filter(|other| other.pool == want.pool);
                run.failures.extend(asking.map(|other| (other.guest.to_owned(), error.clone())));
            }
            free.insert(want.pool, members);
        }
        let mut others = BTreeMap::new();
        for guest in &guests {
            others.insert(guest.name.as_str(), guest.others.iter().map(|other| other.address).collect());
        }
        let places = assign(&wants, &free, &others);
        let moves = wants.iter().zip(keys).zip(places).filter(|((want, _), to)| want.current != *to);
        moves.map(|((want, key), to)| (want.guest.to_owned(), key, to)).collect()
    }

    /// The free members of a pool, and what is wrong with it.
    fn free(&self, name: &str) -> Result<(Vec<PciAddress>, Vec<Error>)> {
        let pool = self.leases.pools().find(name)?;
        let view = self.leases.view();
        let (members, mut errors) = pool.members(&view.pci);
        let mut free = Vec::new();
        for address in members {
            match view.standing(None, &pool.assigned(address)) {
                Ok(Standing::Free) => free.push(address),
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        Ok((free, errors))
    }

    /// Points one device of a guest at another one.
    fn point(&self, guest: &str, guest_address: PciAddress, to: PciAddress) -> Result<(), Failure> {
        let domain = self.defined(guest)?;
        let request = domain.requests.iter().find(|request| request.guest_address == guest_address);
        let found = request.and_then(|request| Some((request, domain.device_for(request)?)));
        // The guest has just been edited. That makes another run.
        let Some((request, device)) = found else { return Ok(()) };
        let (from, text) = (device.address, domain.text_at(device, to));
        self.replace(&domain, &domain.requests, guest_address, &text)?;
        self.log.info(format_args!("guest '{guest}': parked at {to} of pool '{}' (was {from})", request.pool));
        Ok(())
    }

    /// Attaches what a run that did not end has detached. Each only once: its request then holds it no more.
    fn finish(&self, guest: &str) -> Result<(), Failure> {
        let domain = self.defined(guest)?;
        let mut requests = domain.requests.clone();
        for index in 0..requests.len() {
            let request = requests[index].clone();
            let Some(text) = request.moving.as_ref().filter(|_| domain.device_for(&request).is_none()) else {
                continue;
            };
            self.expect_requested(guest, &request, text)?;
            // An adoption was killed before it detached this.
            let is_there = |interface: &&NetworkInterface| interface.guest_address == Some(request.guest_address);
            if let Some(old) = domain.network_interfaces().iter().find(is_there) {
                self.detach_device(&domain.uuid, &old.text)?;
            }
            self.attach_device(&domain.uuid, text)?;
            self.log.warning(format_args!(
                "guest '{guest}': its device of pool '{}' is back in its definition, after a move that did not end",
                request.pool
            ));
            requests[index].moving = None;
            self.set_requests(&domain.uuid, CONFIG, &requests)?;
        }
        Ok(())
    }

    /// The text that a request holds is part of the guest's XML, which others may write, and root's virsh is to attach
    /// it.
    ///
    /// # Errors
    /// It is anything but the one device that the request stands for.
    fn expect_requested(&self, guest: &str, request: &Request, text: &str) -> Result<()> {
        let Request { pool: name, guest_address, .. } = request;
        let wrong = |why: &str| {
            Error::new(format!("the element in its request for a device of pool '{name}' is not attached: {why}"))
                .remedy(format!(
                    "Run `vfpool detach {} {} {guest_address} --config`, then attach the device again",
                    shell_word(guest),
                    shell_word(name)
                ))
        };
        let pool = self.leases.pools().find(name)?;
        let xml = format!("<domain><devices>{text}</devices></domain>");
        let domain = Domain::parse(xml.as_bytes()).map_err(|error| wrong(error.reason()))?;
        let [device] = domain.devices.as_slice() else { return Err(wrong("it is not one PCI device")) };
        let address = device.address;
        if device.kind == Kind::Disk || domain.text_of(device) != text {
            return Err(wrong("it is not one hostdev or interface"));
        }
        if device.guest_address != Some(*guest_address) {
            return Err(wrong(&format!("it is not at {guest_address} in the guest")));
        }
        let found = sysfs::identity(self.host, address)?;
        if !found.is_some_and(|found| pool.has_member(self.host, &found)) {
            return Err(wrong(&format!("{address} is not in the pool")));
        }
        Ok(())
    }

    /// Removes from a guest's definition what was only needed for the move.
    fn tidy(&self, guest: &str, parked: &mut Parked, run: &mut Run) {
        let places = parked.guest(guest).map(|guest| guest.devices.clone()).unwrap_or_default();
        if let Err(error) = self.try_tidy(guest, &places) {
            run.failures.push((guest.to_owned(), error));
        }
        self.look_again(guest, parked, run);
    }

    /// `places`: the guest's devices after the move. One that has gone since was removed by someone else.
    fn try_tidy(&self, guest: &str, places: &[PooledDevice]) -> Result<()> {
        let domain = self.defined(guest)?;
        let was_there = |request: &Request| {
            let mut places = places.iter();
            places.any(|place| place.guest_address == request.guest_address && place.address.is_some())
        };
        let is_over = |request: &Request| was_there(request) || domain.device_for(request).is_some();
        let is_moving = |request: &&Request| request.moving.is_some();
        if domain.text().contains(PLACEHOLDER) && domain.requests.iter().filter(is_moving).all(is_over) {
            let bare = format!("<interface type='user'><mac address='{PLACEHOLDER}'/></interface>");
            self.detach_device(&domain.uuid, &bare)?;
        }
        if !domain.requests.iter().filter(is_moving).any(is_over) {
            return Ok(());
        }
        let requests = domain
            .requests
            .iter()
            .map(|request| Request { moving: request.moving.clone().filter(|_| !is_over(request)), ..request.clone() });
        Ok(self.set_requests(&domain.uuid, CONFIG, &requests.collect::<Vec<_>>())?)
    }
}
