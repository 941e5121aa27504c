//! What happens to a guest, one function each. The hook and the command call these, and nothing else of this crate moves
//! a device.
//!
//! The order is always the same: the guest's turn, then the short lock to compare and record, then, without the lock,
//! the devices. Nothing here calls libvirt: its hooks run while it holds the guest.

use crate::address::PciAddress;
use crate::apply::Mover;
use crate::domain::{self, Assigned};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lease::{Held, Lease, Locked, Role, State, Store, Turn};
use crate::log::Log;
use crate::needs::{self, Need};
use crate::plan::{Answer, Function, Owner, OwnerState, Scene, plan};
use crate::process;
use crate::settings::Settings;
use crate::sysfs::{self, Device};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

/// Handles events on one host.
pub struct Events<'a> {
    host: &'a Host,
    log: &'a Log,
    store: Store<'a>,
    settings: Settings,
    settings_error: Option<Error>,
}

/// On what occasion devices are given back.
#[derive(Clone, Copy)]
enum Occasion {
    /// A start fails here; libvirt undoes its part after that, and tells us by `release`.
    Undo {
        /// The device of a call that hangs. It looks as it did before, and what is done to it now, the call may spoil
        /// when it comes back; so it is kept. The child that makes the call holds the guest's turn until then.
        hanging: Option<PciAddress>,
    },
    /// libvirt says that the guest is gone, and has done its part.
    Release,
    /// Nobody says anything; perhaps the guest is gone.
    Retry,
}

impl<'a> Events<'a> {
    /// Events on this host. Settings that cannot be read are told of and count as not set: that refuses more, not less.
    pub fn new(host: &'a Host, log: &'a Log) -> Self {
        let (settings, settings_error) = match Settings::load(host) {
            Ok(settings) => (settings, None),
            Err(error) => {
                log.warning(&error);
                (Settings::default(), Some(error))
            }
        };
        Self { host, log, store: Store::new(host, log), settings, settings_error }
    }

    /// libvirt is about to start a guest: takes what its devices need, or refuses and leaves everything as it was.
    pub fn prepare(&self, guest: &str, xml: &[u8]) -> Result<()> {
        let assigned = domain::assigned_devices(xml)?;
        if self.is_none_of_ours(guest, &assigned) {
            return Ok(());
        }
        let turn = self.turn(guest)?;
        if let Some(lease) = self.lease(guest)? {
            if lease.is_running(self.host, guest) {
                return Err(Error::new("it runs already, and holds its devices"));
            }
            // A start that nobody ended. What cannot go back now stays on record, and may do for this start.
            let _ = self.give_back(guest, &turn, Occasion::Release);
        }
        self.take(guest, &assigned, &turn)?;
        self.try_again_elsewhere(guest);
        Ok(())
    }

    /// The devices that libvirt itself chose are known now; takes what they need beyond what `prepare` took.
    pub fn start(&self, guest: &str, xml: &[u8]) -> Result<()> {
        let assigned = domain::assigned_devices(xml)?;
        if self.is_none_of_ours(guest, &assigned) {
            return Ok(());
        }
        let turn = self.turn(guest)?;
        self.take(guest, &assigned, &turn)
    }

    /// The guest runs, or libvirt found it running: its lease holds until it stops. A device that no lease tells of (one
    /// hot-plugged, or the lease was lost) is learned as it is.
    pub fn runs(&self, guest: &str, xml: &[u8]) -> Result<()> {
        let assigned = domain::assigned_devices(xml)?;
        if self.is_none_of_ours(guest, &assigned) {
            return Ok(());
        }
        let _turn = self.turn(guest)?;
        let locked = self.store.lock()?;
        let found = locked.lease(guest)?;
        let mut lease = found.clone().unwrap_or_else(|| Lease::new(process::starter(self.host), Vec::new()));
        lease.state = State::Active;
        lease.starter = process::starter(self.host).or(lease.starter);
        lease.qemu = process::qemu(self.host, guest).or(lease.qemu);
        self.learn(guest, &assigned, &mut lease, &locked)?;
        if found.as_ref() == Some(&lease) {
            return Ok(());
        }
        locked.write(guest, &lease)
    }

    /// The guest is gone, or its start was given up; also when that has been told before, or nothing was ever taken.
    pub fn release(&self, guest: &str) -> Result<()> {
        let result = if self.store.has_lease(guest) { self.end(guest) } else { Ok(()) };
        self.try_again_elsewhere(guest);
        result
    }

    fn end(&self, guest: &str) -> Result<()> {
        // First of all, so that others can take over should we be killed, or a call into a driver hang.
        let locked = self.store.lock()?;
        if let Some(mut lease) = locked.lease(guest)?
            && !lease.is_running(self.host, guest)
        {
            lease.state = State::Returning;
            // On a full disk the old record will do.
            let _ = locked.write(guest, &lease);
        }
        drop(locked);
        let turn = self.turn(guest)?;
        self.give_back(guest, &turn, Occasion::Release)
    }

    /// Gives back what guests left that no longer run and that nobody is starting. Returns what could not be done.
    pub fn reconcile(&self) -> Result<Vec<Error>> {
        let mut failures = Vec::new();
        for guest in self.store.guests()? {
            let done = self.turn(&guest).and_then(|turn| self.give_back(&guest, &turn, Occasion::Retry));
            failures.extend(done.err().map(|error| error.during(format_args!("guest '{guest}'"))));
        }
        Ok(failures)
    }

    /// Most guests have no PCI device, and never had one.
    fn is_none_of_ours(&self, guest: &str, assigned: &[Assigned]) -> bool {
        assigned.is_empty() && !self.store.has_lease(guest)
    }

    fn lease(&self, guest: &str) -> Result<Option<Lease>> {
        if self.store.has_lease(guest) { self.store.lock()?.lease(guest) } else { Ok(None) }
    }

    fn turn(&self, guest: &str) -> Result<Turn> {
        self.store.turn(guest, self.settings.deadline())
    }

    fn mover<'b>(&'b self, guest: &'b str) -> Mover<'b> {
        Mover {
            host: self.host,
            store: &self.store,
            log: self.log,
            guest,
            limit: self.settings.deadline(),
            hangs: Cell::new(false),
        }
    }

    fn take(&self, guest: &str, assigned: &[Assigned], turn: &Turn) -> Result<()> {
        let devices = self.record(guest, assigned)?;
        let mover = self.mover(guest);
        for held in &devices {
            if let Err(error) = mover.take(held) {
                let hanging = mover.hangs.get().then_some(held.address);
                return Err(match self.give_back(guest, turn, Occasion::Undo { hanging }) {
                    Ok(()) => error,
                    Err(undo) => Error::new(format!("{error}. Not all could be undone: {undo}")),
                });
            }
        }
        Ok(())
    }

    /// Decides what the guest takes and writes it down, both under the lock; returns it for the work outside.
    fn record(&self, guest: &str, assigned: &[Assigned]) -> Result<Vec<Held>> {
        let mut needs = BTreeMap::new();
        self.expect_answers(guest, assigned)?;
        // Kept to the end, so that nobody else gives back what we are about to take over.
        let mut recovered = BTreeMap::new();
        loop {
            let locked = self.store.lock()?;
            let own = locked.lease(guest)?;
            let (functions, missing) = self.functions((guest, own.as_ref()), assigned, &locked, &recovered)?;
            let scene = Scene {
                guest,
                assigned,
                functions,
                missing,
                needs: std::mem::take(&mut needs),
                settings: &self.settings,
                settings_error: self.settings_error.as_ref(),
            };
            match plan(&scene)? {
                Answer::Take(devices) => {
                    self.write_new(guest, own.as_ref(), &devices, &locked)?;
                    return Ok(devices);
                }
                Answer::FindNeed(address) => {
                    drop(locked);
                    needs = scene.needs;
                    needs.insert(address, self.need(address)?);
                }
                Answer::Recover(other) => {
                    drop(locked);
                    needs = scene.needs;
                    let turn = self.turn(&other)?;
                    // What stays with it is known next time round.
                    let _ = self.give_back(&other, &turn, Occasion::Retry);
                    recovered.insert(other, turn);
                }
            }
        }
    }

    /// Under the lock, drivers are asked about devices. That a driver which hangs does not hang everybody is found out
    /// before. What others own is not asked about, and vfio-pci has nothing to hang on.
    fn expect_answers(&self, guest: &str, assigned: &[Assigned]) -> Result<()> {
        for wanted in assigned {
            let group = sysfs::identity(self.host, wanted.address)?.and_then(|device| device.group);
            for member in group.map_or(Ok(Vec::new()), |group| sysfs::group_members(self.host, group))? {
                let is_theirs = self.store.owner(member)?.is_some_and(|owner| owner != guest);
                match sysfs::identity(self.host, member)? {
                    Some(device) if !is_theirs && device.on_host_driver() && !device.is_bridge() => {
                        sysfs::expect_answer(self.host, &device, self.settings.deadline())?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn need(&self, address: PciAddress) -> Result<Option<Need>> {
        needs::of(self.host, address, self.settings.deadline())
            .map_err(|error| error.during(format_args!("Cannot find out whether the host uses {address}")))
    }

    /// Records what is taken, beside what an earlier event of the guest took and is not asked for any more.
    fn write_new(&self, guest: &str, own: Option<&Lease>, devices: &[Held], locked: &Locked) -> Result<()> {
        let carried = own.into_iter().flat_map(|lease| &lease.devices);
        let carried = carried.filter(|old| devices.iter().all(|new| new.address != old.address));
        let lease = Lease::new(process::starter(self.host), carried.chain(devices).cloned().collect());
        if own == Some(&lease) {
            return Ok(());
        }
        locked.write(guest, &lease).inspect_err(|_| {
            // A half-written first record has touched nothing yet. A later one leaves the earlier, or adds devices
            // without claims, which are not touched either.
            if own.is_none() {
                let _ = locked.settle(guest, &lease, Vec::new(), None);
            }
        })
    }

    /// The functions that a guest's start could touch, with their owners, and who owns what is missing.
    fn functions(
        &self,
        own: (&str, Option<&Lease>),
        assigned: &[Assigned],
        locked: &Locked,
        recovered: &BTreeMap<String, Turn>,
    ) -> Result<(BTreeMap<PciAddress, Function>, BTreeMap<PciAddress, String>)> {
        let (mut functions, mut missing) = (BTreeMap::new(), BTreeMap::new());
        let mut open: Vec<PciAddress> = assigned.iter().map(|device| device.address).collect();
        let mut groups = BTreeSet::new();
        while let Some(address) = open.pop() {
            if functions.contains_key(&address) {
                continue;
            }
            let Some(device) = sysfs::identity(self.host, address)? else {
                let owner = self.store.owner(address)?.filter(|owner| owner != own.0 && self.store.has_lease(owner));
                missing.extend(owner.map(|owner| (address, owner)));
                continue;
            };
            let owner = self.owner(&device, own, locked, recovered)?;
            // A driver may hang while it has to do with a device that another guest owns; so nothing is asked of it.
            let is_ours =
                owner.as_ref().is_none_or(|owner| matches!(owner.state, OwnerState::Ourselves | OwnerState::Stuck));
            let device = if is_ours { sysfs::device(self.host, address)?.unwrap_or(device) } else { device };
            let is_assigned = assigned.iter().any(|device| device.address == address);
            if let Some(group) = device.group.filter(|group| is_assigned && groups.insert(*group)) {
                open.extend(sysfs::group_members(self.host, group)?);
            }
            open.extend(sysfs::vfs_of(self.host, &device)?);
            functions.insert(address, Function { device, owner });
        }
        Ok((functions, missing))
    }

    /// Who owns a device. A claim counts if its lease tells of the device that is here now.
    fn owner(
        &self,
        device: &Device,
        (guest, own): (&str, Option<&Lease>),
        locked: &Locked,
        recovered: &BTreeMap<String, Turn>,
    ) -> Result<Option<Owner>> {
        let record = |lease: &Lease| lease.held(device.address).filter(|held| held.id == device.id).cloned();
        let Some(owner) = self.store.owner(device.address)? else { return Ok(None) };
        if owner == guest {
            let held = own.and_then(record);
            return Ok(held.map(|held| Owner { guest: owner, state: OwnerState::Ourselves, held: Some(held) }));
        }
        let Some(lease) = locked.lease(&owner)? else {
            // The lease was lost. Only the guest itself can still need the device.
            let runs = process::qemu(self.host, &owner).is_some();
            return Ok(runs.then_some(Owner { guest: owner, state: OwnerState::InUse, held: None }));
        };
        let state = if lease.is_in_use(self.host, &owner) {
            OwnerState::InUse
        } else if recovered.contains_key(&owner) {
            OwnerState::Stuck
        } else {
            OwnerState::Gone
        };
        Ok(record(&lease).map(|held| Owner { guest: owner, state, held: Some(held) }))
    }

    /// Adds the groups of devices that a running guest has and its lease does not tell of. How they were found is not
    /// known any more, so they stay on the driver they have.
    fn learn(&self, guest: &str, assigned: &[Assigned], lease: &mut Lease, locked: &Locked) -> Result<()> {
        for wanted in assigned {
            if lease.held(wanted.address).is_some() {
                continue;
            }
            let Some(device) = sysfs::device(self.host, wanted.address)? else { continue };
            let members = match device.group {
                Some(group) => sysfs::group_members(self.host, group)?,
                None => vec![wanted.address],
            };
            for member in members {
                let Some(device) = sysfs::device(self.host, member)? else { continue };
                let role = match assigned.iter().find(|device| device.address == member) {
                    Some(assigned) if assigned.managed => Role::Managed,
                    Some(_) => Role::Unmanaged,
                    None => Role::Sibling,
                };
                if lease.held(member).is_some() || device.is_bridge() && role == Role::Sibling {
                    continue;
                }
                // Another guest may have had it before, and know.
                let known = match self.store.owner(member)? {
                    Some(owner) => locked.lease(&owner)?.and_then(|lease| lease.held(member).cloned()),
                    None => None,
                };
                if let Some(known) = known.filter(|held| held.id == device.id) {
                    lease.devices.push(Held { role, ..known });
                    continue;
                }
                self.log.warning(format_args!(
                    "{member}: learned from the running guest '{guest}'; it stays on {} when the guest stops, unless libvirt \
                     gives it back",
                    device.driver.as_deref().unwrap_or("no driver")
                ));
                lease.devices.push(Held {
                    address: member,
                    id: device.id,
                    role,
                    driver: device.driver,
                    driver_override: device.driver_override.flatten(),
                    numvfs: device.numvfs,
                    drivers_autoprobe: device.drivers_autoprobe.filter(|_| device.numvfs > 0),
                });
            }
        }
        Ok(())
    }

    /// Gives back what the guest's lease tells of and the guest still owns, in reverse. What fails is kept on record, and
    /// so is what libvirt itself still has to give back: that is over with the guest's `release`, or when that libvirtd
    /// has died.
    fn give_back(&self, guest: &str, _turn: &Turn, occasion: Occasion) -> Result<()> {
        let lease = {
            let locked = self.store.lock()?;
            let Some(mut lease) = locked.lease(guest)? else { return Ok(()) };
            match occasion {
                Occasion::Retry if lease.is_in_use(self.host, guest) => return Ok(()),
                Occasion::Release if lease.is_running(self.host, guest) => {
                    return Err(Error::new("its QEMU still runs, so it keeps its devices"));
                }
                Occasion::Release => lease.state = State::Returning,
                _ if !lease.libvirt_lives(self.host) => {
                    self.log.warning(format_args!("guest '{guest}' is gone without a word; giving its devices back"));
                    lease.state = State::Returning;
                }
                Occasion::Undo { .. } => lease.state = State::Failed,
                Occasion::Retry => {}
            }
            lease.devices = locked.owned(guest, lease.devices)?;
            // On a full disk the record stays as it was, which is enough to give back by.
            if let Err(error) = locked.write(guest, &lease) {
                self.log.warning(&error);
            }
            lease
        };
        let mover = self.mover(guest);
        let mut kept = Vec::new();
        let mut failure = None;
        for held in lease.devices.iter().rev() {
            // VFs come back only with their PF, which stands behind them.
            let result = if held.role == Role::Vf && kept.iter().any(|kept: &Held| kept.numvfs > 0) {
                Ok(false)
            } else if matches!(occasion, Occasion::Undo { hanging: Some(address) } if address == held.address) {
                Err(Error::new(format!(
                    "{} stays on record until the kernel is done with it; it is given back at the next start or stop of a \
                     guest after that",
                    held.address
                )))
            } else {
                mover.give_back(held, lease.state == State::Returning)
            };
            if !matches!(result, Ok(true)) {
                kept.insert(0, held.clone());
            }
            if let Err(error) = result {
                self.log.error(&error);
                failure.get_or_insert(error);
            }
        }
        let why = failure.as_ref().map(Error::to_string);
        self.store.lock()?.settle(guest, &lease, kept, why.as_deref())?;
        failure.map_or(Ok(()), Err)
    }

    /// What another guest could not give back may go now. Failures are told and stay on record; a guest whose turn is
    /// taken is at work on it, or hangs.
    fn try_again_elsewhere(&self, guest: &str) {
        let Ok(others) = self.store.guests_needing_attention() else { return };
        for other in others.iter().filter(|other| *other != guest) {
            if let Ok(Some(turn)) = self.store.try_turn(other) {
                let _ = self.give_back(other, &turn, Occasion::Retry);
            }
        }
    }
}
