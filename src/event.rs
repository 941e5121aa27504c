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
use crate::sysfs;
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
        if self.store.has_lease(guest) {
            if process::qemu(self.host, guest).is_some() {
                return Err(Error::new("it runs already, and holds its devices"));
            }
            // A start that nobody ended. What cannot go back now stays on record, and may do for this start.
            let _ = self.give_back(guest, &turn, true);
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
        self.learn(guest, &assigned, &mut lease)?;
        if found.as_ref() == Some(&lease) {
            return Ok(());
        }
        locked.write(guest, &lease)
    }

    /// The guest is gone, or its start was given up; also when that has been told before, or nothing was ever taken.
    pub fn release(&self, guest: &str) -> Result<()> {
        let result = if self.store.has_lease(guest) {
            let turn = self.turn(guest)?;
            self.give_back_unless_running(guest, &turn, true)
        } else {
            Ok(())
        };
        self.try_again_elsewhere(guest);
        result
    }

    /// Gives back what guests left that no longer run and that nobody is starting. Returns what could not be given back.
    pub fn reconcile(&self) -> Result<Vec<Error>> {
        let mut failures = Vec::new();
        for guest in self.store.guests()? {
            let turn = self.turn(&guest)?;
            let in_use = match self.store.lock()?.lease(&guest)? {
                Some(lease) => lease.is_in_use(self.host, &guest),
                None => true,
            };
            if !in_use {
                self.log.warning(format_args!("guest '{guest}' is gone without a word; giving its devices back"));
                failures.extend(self.give_back(&guest, &turn, false).err());
            }
        }
        Ok(failures)
    }

    /// Most guests have no PCI device, and never had one.
    fn is_none_of_ours(&self, guest: &str, assigned: &[Assigned]) -> bool {
        assigned.is_empty() && !self.store.has_lease(guest)
    }

    fn turn(&self, guest: &str) -> Result<Turn> {
        self.store.turn(guest, self.settings.deadline())
    }

    fn mover<'b>(&'b self, guest: &'b str) -> Mover<'b> {
        Mover { host: self.host, log: self.log, guest, limit: self.settings.deadline(), hangs: Cell::new(false) }
    }

    fn take(&self, guest: &str, assigned: &[Assigned], turn: &Turn) -> Result<()> {
        let devices = self.record(guest, assigned)?;
        let mover = self.mover(guest);
        for held in &devices {
            if let Err(error) = mover.take(held) {
                let hanging = mover.hangs.get().then_some(held.address);
                return Err(match self.give_back_but(hanging, guest, turn, false) {
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
        let mut recovered = BTreeSet::new();
        loop {
            let locked = self.store.lock()?;
            let own = locked.lease(guest)?;
            let functions = self.functions(guest, own.as_ref(), assigned, &locked, &recovered)?;
            let scene = Scene {
                guest,
                assigned,
                functions,
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
                    self.log.warning(format_args!("guest '{other}' is gone without a word; giving its devices back"));
                    let turn = self.turn(&other)?;
                    // What stays with it is known next time round.
                    let _ = self.give_back_unless_running(&other, &turn, false);
                    recovered.insert(other);
                }
            }
        }
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

    /// The functions that a guest's start could touch, with their owners.
    fn functions(
        &self,
        guest: &str,
        own: Option<&Lease>,
        assigned: &[Assigned],
        locked: &Locked,
        recovered: &BTreeSet<String>,
    ) -> Result<BTreeMap<PciAddress, Function>> {
        let mut functions = BTreeMap::new();
        let mut open: Vec<PciAddress> = assigned.iter().map(|device| device.address).collect();
        let mut groups = BTreeSet::new();
        while let Some(address) = open.pop() {
            if functions.contains_key(&address) {
                continue;
            }
            let Some(device) = sysfs::device(self.host, address)? else { continue };
            let is_assigned = assigned.iter().any(|device| device.address == address);
            if let Some(group) = device.group.filter(|group| is_assigned && groups.insert(*group)) {
                open.extend(sysfs::group_members(self.host, group)?);
            }
            open.extend(sysfs::vfs_of(self.host, &device)?);
            let owner = match self.store.owner(address)? {
                Some(owner) if owner == guest => {
                    own.map(|lease| (owner, OwnerState::Ourselves, lease.held(address).cloned()))
                }
                Some(owner) => self.other_owner(owner, address, locked, recovered)?,
                None => None,
            };
            let owner = owner.map(|(guest, state, held)| Owner {
                guest,
                state,
                held: held.filter(|held| held.id == device.id),
            });
            functions.insert(address, Function { device, owner });
        }
        Ok(functions)
    }

    fn other_owner(
        &self,
        owner: String,
        address: PciAddress,
        locked: &Locked,
        recovered: &BTreeSet<String>,
    ) -> Result<Option<(String, OwnerState, Option<Held>)>> {
        let Some(lease) = locked.lease(&owner)? else {
            // A claim without a lease: it was lost. Only the guest itself can still need the device.
            let runs = process::qemu(self.host, &owner).is_some();
            return Ok(runs.then_some((owner, OwnerState::InUse, None)));
        };
        let state = if lease.is_in_use(self.host, &owner) {
            OwnerState::InUse
        } else if recovered.contains(&owner) {
            OwnerState::Stuck
        } else {
            OwnerState::Gone
        };
        let held = lease.held(address).cloned();
        Ok(held.map(|held| (owner, state, Some(held))))
    }

    /// Adds the groups of devices that a running guest has and its lease does not tell of. How they were found is not
    /// known any more, so they stay on the driver they have.
    fn learn(&self, guest: &str, assigned: &[Assigned], lease: &mut Lease) -> Result<()> {
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

    fn give_back_unless_running(&self, guest: &str, turn: &Turn, libvirt_done: bool) -> Result<()> {
        let lease = self.store.lock()?.lease(guest)?;
        let runs = |lease: &Lease| match &lease.qemu {
            Some(qemu) => qemu.is_alive(self.host),
            None => process::qemu(self.host, guest).is_some(),
        };
        if lease.as_ref().is_some_and(runs) {
            self.log.warning(format_args!(
                "guest '{guest}' was said to be gone, but its QEMU still runs; it keeps its devices"
            ));
            return Ok(());
        }
        self.give_back(guest, turn, libvirt_done)
    }

    /// Gives back what the guest's lease tells of and the guest still owns, in reverse. What fails is kept on record, and
    /// so is what libvirt itself still has to give back: that is over with the guest's `release` (`libvirt_done`), or when
    /// that libvirtd has died.
    fn give_back(&self, guest: &str, turn: &Turn, libvirt_done: bool) -> Result<()> {
        self.give_back_but(None, guest, turn, libvirt_done)
    }

    /// Keeps the device of a call that hangs on record: it looks as it did before, and what is done to it now, the call
    /// may spoil when it comes back. The child that makes it holds the guest's turn until then.
    fn give_back_but(&self, hanging: Option<PciAddress>, guest: &str, _turn: &Turn, libvirt_done: bool) -> Result<()> {
        let lease = {
            let locked = self.store.lock()?;
            let Some(mut lease) = locked.lease(guest)? else { return Ok(()) };
            if libvirt_done || !lease.libvirt_lives(self.host) {
                lease.state = State::Returning;
            }
            let mut owned = Vec::new();
            for held in lease.devices {
                if self.store.owner(held.address)?.as_deref() == Some(guest) {
                    owned.push(held);
                }
            }
            lease.devices = owned;
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
            } else if hanging == Some(held.address) {
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
                let _ = self.give_back_unless_running(other, &turn, false);
            }
        }
    }
}
