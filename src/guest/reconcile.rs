//! What systemd runs after something changed, and an admin by hand: first all devices that guests left behind are
//! reattached, then what a killed `vfpool attach` or `detach` began is brought to an end, then every stopped guest is
//! parked.

use crate::parking::Report;
use crate::session::Session;
use crate::start::Options;
use crate::virsh::Failure;
use host::libvirt::runtime;
use host::log::Log;
use host::paths::Host;
use host::queue::{Entry, Queue};
use model::error::{Error, Result};
use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

/// How long to look for more to do. A change of a definition that systemd's watch has missed, because it was just
/// reporting the one before, comes within this time; and a burst of starts becomes a few runs.
const SETTLE: Duration = Duration::from_secs(1);

/// When to begin no further run: systemd ends the unit after a while, and that must not be in the midst of a move.
const LIMIT: Duration = Duration::from_secs(10);

/// Brings leases and definitions in line, once. Returns what could not be done.
///
/// # Errors
/// Nothing, or not all that was queued, could be done; the queue is kept.
pub fn once(host: &Host, log: &Log) -> Result<Vec<Error>> {
    let entries = Queue::Reconcile.take(host)?;
    run(host, log, &entries, Report::All).inspect_err(|_| put_back(host, &entries))
}

/// What was to be done still is. A restart is in the queue until it is carried out or dropped.
fn put_back(host: &Host, entries: &BTreeSet<Entry>) {
    for entry in entries.iter().filter(|entry| !matches!(entry, Entry::Restart(_))) {
        let _ = entry.put(host);
    }
}

/// Does what the queue asks for, until nothing has changed for a while, or for long enough: what is in the queue then
/// has systemd start the unit again.
///
/// # Errors
/// The queue cannot be read or emptied.
pub fn queued(host: &Host, log: &Log) -> Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        let seen = definitions_changed(host);
        // Nobody starts this again and again at once.
        let entries = Queue::Reconcile.take(host).inspect_err(|_| thread::sleep(LIMIT))?;
        match run(host, log, &entries, Report::News) {
            Ok(errors) => errors.iter().for_each(|error| log.error(error)),
            Err(error) => {
                log.error(&error);
                put_back(host, &entries);
                thread::sleep(SETTLE);
            }
        }
        let settled = Instant::now() + SETTLE;
        while definitions_changed(host) == seen && Queue::Reconcile.is_empty(host)? {
            if Instant::now() >= settled {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        if Instant::now() >= end {
            return if definitions_changed(host) == seen { Ok(()) } else { Entry::Definitions.put(host) };
        }
    }
}

/// libvirt writes definitions by renames, so the folder's time changes with each.
fn definitions_changed(host: &Host) -> Option<SystemTime> {
    fs::metadata(host.definitions()).and_then(|data| data.modified()).ok()
}

impl Session<'_> {
    /// Whether libvirt has ended a guest. A guest that is being started has an id: libvirt gives it one before it calls
    /// `prepare` (`qemuProcessInit`), and takes it away before `stopped`. It answers when no hook of the guest runs.
    fn is_off(&self, guest: &str) -> Result<bool> {
        match self.virsh.read(&["domid", "--domain", guest], "") {
            Ok(id) => Ok(id.trim() == "-"),
            Err(Failure::NoGuest(_)) => Ok(true),
            Err(failure) => Err(Error::from(failure).during(format_args!("guest '{guest}'"))),
        }
    }
}

fn run(host: &Host, log: &Log, entries: &BTreeSet<Entry>, report: Report) -> Result<Vec<Error>> {
    let session = Session::new(host, log);
    // What could not be ended now keeps no other guest waiting.
    let mut unfinished = None;
    let mut errors = session.leases.reconcile(|guest| {
        // During a start, libvirt answers late, and the next `stopped` comes anyway. By hand, all are asked about.
        let is_due = matches!(report, Report::All) || entries.contains(&Entry::Stopped(guest.to_owned()));
        is_due
            && session.is_off(guest).unwrap_or_else(|error| {
                unfinished = Some(error);
                false
            })
    })?;
    let (mut refused, mut restarts) = (BTreeSet::new(), Vec::new());
    for entry in entries {
        match entry {
            Entry::Attached { address, guest, pool } => {
                unfinished = session.end_attach(guest, pool, *address).err().or(unfinished);
            }
            Entry::Refused(guest) => _ = refused.insert(guest.clone()),
            Entry::Restart(guest) => restarts.push(guest),
            Entry::Pf(_) | Entry::Setup | Entry::Definitions | Entry::Guest(_) | Entry::Stopped(_) => {}
        }
    }
    errors.extend(session.settle()?);
    errors.extend(session.park(&refused, report)?);
    for guest in restarts {
        // A start since has removed it. One that is under way holds devices.
        let is_wanted = Entry::Restart(guest.clone()).remove(host);
        if !is_wanted || runtime::qemu(host, guest).is_some() || session.leases.is_in_use(guest) {
            continue;
        }
        match session.start(guest, &Options::default()) {
            Ok(()) => log.info(format_args!("guest '{guest}': started again with a free device (on-busy='restart')")),
            Err(error) => errors.push(error),
        }
    }
    match unfinished {
        None => Ok(errors),
        Some(error) => {
            for error in &errors {
                log.error(error);
            }
            Err(error)
        }
    }
}
