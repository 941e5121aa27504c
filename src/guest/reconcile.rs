//! What systemd runs after something changed, and an admin by hand: first everything that guests left behind is given back,
//! then what a killed `vfpool attach` or `detach` began is brought to an end, then every stopped guest is parked.

use crate::hotplug::Hotplug;
use crate::parking::Parking;
use crate::requests::{self, Requests};
use crate::start::{self, Options};
use crate::virsh::Virsh;
use host::libvirt::runtime;
use host::log::Log;
use host::paths::Host;
use host::queue::Queue;
use lease::Leases;
use model::error::{Error, Result};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

/// How long to look for more to do. A change of a definition that systemd's watch has missed, because it was just telling of
/// the one before, comes within this time; and a burst of starts becomes a few runs.
const SETTLE: Duration = Duration::from_secs(1);

/// Brings leases and definitions in line, once. Returns what could not be done.
pub fn once(host: &Host, log: &Log) -> Result<Vec<Error>> {
    let entries = Queue::Reconcile.take(host)?;
    run(host, log, &entries, false).inspect_err(|_| put_back(host, &entries))
}

/// What was asked for stays asked for.
fn put_back(host: &Host, entries: &[String]) {
    for entry in entries {
        let _ = Queue::Reconcile.put(host, entry);
    }
}

/// Does what the queue asks for, until nothing has changed for a while.
pub fn queued(host: &Host, log: &Log) -> Result<()> {
    loop {
        let seen = definitions_changed(host);
        let entries = Queue::Reconcile.take(host)?;
        match run(host, log, &entries, true) {
            Ok(errors) => errors.iter().for_each(|error| log.error(error)),
            Err(error) => {
                log.error(&error);
                put_back(host, &entries);
                thread::sleep(SETTLE);
            }
        }
        let end = Instant::now() + SETTLE;
        while definitions_changed(host) == seen && Queue::Reconcile.is_empty(host)? {
            if Instant::now() >= end {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// libvirt writes definitions by renames, so the folder tells of each.
fn definitions_changed(host: &Host) -> Option<SystemTime> {
    fs::metadata(host.definitions()).and_then(|data| data.modified()).ok()
}

fn run(host: &Host, log: &Log, entries: &[String], only_news: bool) -> Result<Vec<Error>> {
    let leases = Leases::new(host, log);
    let mut errors = leases.reconcile()?;
    let about = |what: &str| -> Vec<String> {
        entries.iter().filter_map(|entry| entry.strip_prefix(what)).map(str::to_owned).collect()
    };
    let virsh = Virsh { host, log, limit: leases.deadline() };
    let requests = Requests { host, log, leases: &leases, virsh: &virsh };
    // What could not be ended now keeps nobody else waiting.
    let mut unfinished = None;
    for note in about(requests::ATTACHED) {
        unfinished = requests.finish(&note).err().or(unfinished);
    }
    errors.extend(Hotplug { host, log, leases: &leases, virsh: &virsh }.settle()?);
    let parking = Parking { host, log, leases: &leases, virsh };
    errors.extend(parking.park(&about("refused "), only_news)?);
    // Somebody may have started it meanwhile.
    for guest in about("restart ").into_iter().filter(|guest| runtime::qemu(host, guest).is_none()) {
        let started = start::start(host, log, &leases, &guest, &Options::default());
        match started {
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
