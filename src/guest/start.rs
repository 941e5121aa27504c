//! `vfpool start`: a guest is started at once with devices that are free now, whatever its definition points at. For guests
//! that outnumber the devices of their pool.
//!
//! The resolved XML counts for this boot only (`virsh create` of a guest that is defined); the definition stays.

use crate::virsh::Virsh;
use host::libvirt::definitions;
use host::log::Log;
use host::paths::Host;
use lease::{Caller, Leases};
use model::domain::{Domain, Request};
use model::error::{Error, Result};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, thread};

/// What `virsh start` can be told, and so we.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Options that `virsh create` has by the same names: `--console`, `--paused`, `--autodestroy`, `--reset-nvram`,
    /// `--pass-fds N,M`.
    pub passed: Vec<String>,
    /// Read a saved guest past the page cache.
    pub bypass_cache: bool,
    /// Boot, and throw the saved state away.
    pub force_boot: bool,
}

/// Starts a guest.
///
/// # Errors
/// Nothing of a start that failed stays. What virsh had to say, it has said on stderr itself.
pub fn start(host: &Host, log: &Log, leases: &Leases, guest: &str, options: &Options) -> Result<()> {
    let virsh = Virsh { host, log, limit: leases.deadline() };
    let domain = whole(host, guest)?;
    let uuid = &domain.uuid;
    let flags = [("--bypass-cache", options.bypass_cache), ("--force-boot", options.force_boot)];
    let flags = flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| *flag);
    let plainly: Vec<&str> = ["start", uuid.as_str()].into_iter().chain(flags).collect();
    let is_saved = host.saved(guest).exists();
    if is_saved && !options.force_boot {
        // Its devices are as they were saved; libvirt asks the hook's filter for others.
        return show(&virsh, guest, &plainly, &options.passed);
    }
    let resolved =
        leases.resolve(guest, &domain, Caller::Admin).map_err(|error| error.during(format_args!("guest '{guest}'")))?;
    let started = match resolved {
        None => {
            if host.is_dry() {
                leases.prepare(guest, &domain).map_err(|error| error.during(format_args!("guest '{guest}'")))?;
            }
            show(&virsh, guest, &plainly, &options.passed)
        }
        // Also where nothing had to be changed: the definition may be in the middle of a move, which began before.
        Some(resolved) => {
            if is_saved {
                virsh.run(&["managedsave-remove", uuid], "")?;
            }
            if host.is_dry() {
                return rehearse(log, &virsh, leases, guest, (&domain, &resolved), &options.passed);
            }
            create(host, &virsh, guest, &resolved, &options.passed)
        }
    };
    if started.is_err() && !host.is_dry() {
        // A start that came as far as the hook was undone there.
        leases.cancel(guest)?;
        restore(&virsh, &definitions::path(host, guest), &domain)?;
    }
    started
}

/// The guest's definition. While one of its devices is being moved, that is missing there: it is back in a moment.
fn whole(host: &Host, guest: &str) -> Result<Domain> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let domain = Domain::parse(&definitions::read(host, guest)?)?;
        let is_missing = |request: &Request| request.moving.is_some() && domain.device_for(request).is_none();
        if !domain.requests.iter().any(is_missing) || Instant::now() >= end {
            return Ok(domain);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Tells what would be started, and what the hook would do.
fn rehearse(
    log: &Log,
    virsh: &Virsh,
    leases: &Leases,
    guest: &str,
    (now, resolved): (&Domain, &[u8]),
    options: &[String],
) -> Result<()> {
    let then = Domain::parse(resolved)?;
    for (old, new) in now.devices.iter().zip(&then.devices) {
        if let Some(request) = then.request_for(new) {
            let (pool, from, to) = (&request.pool, old.address, new.address);
            log.info(format_args!("guest '{guest}': {to} of pool '{pool}' for this boot (its definition has {from})"));
        }
    }
    leases.prepare(guest, &then).map_err(|error| error.during(format_args!("guest '{guest}'")))?;
    let create = ["create", "/dev/stdin"].into_iter().chain(options.iter().map(String::as_str));
    virsh.tell(&create.collect::<Vec<_>>(), &String::from_utf8_lossy(resolved));
    Ok(())
}

fn create(host: &Host, virsh: &Virsh, guest: &str, xml: &[u8], options: &[String]) -> Result<()> {
    // Not by standard input, which is the console's.
    let file = Temporary::new(host.state().join(format!("create.{}", std::process::id())), xml)?;
    let path = file.0.to_string_lossy().into_owned();
    show(virsh, guest, &["create", &path], options)
}

/// Runs virsh in our place: with our terminal, our open files, and as long as a console is open.
fn show(virsh: &Virsh, guest: &str, arguments: &[&str], options: &[String]) -> Result<()> {
    if virsh.host.is_dry() {
        let options = options.iter().map(String::as_str);
        virsh.tell(&arguments.iter().copied().chain(options).collect::<Vec<_>>(), "");
        return Ok(());
    }
    let status = virsh.command().args(arguments).args(options).status();
    match status.map_err(|cause| Error::new(format!("Cannot run virsh: {cause}")))? {
        status if status.success() => Ok(()),
        _ => Err(Error::new(format!("guest '{guest}' was not started; virsh has said why"))),
    }
}

/// Older libvirt keeps what a failed `create` was given as the definition in memory, until it is told the file's again.
fn restore(virsh: &Virsh, path: &std::path::Path, domain: &Domain) -> Result<()> {
    let Ok(now) = virsh.read(&["dumpxml", "--inactive", &domain.uuid], "") else { return Ok(()) };
    if Domain::parse(now.as_bytes())?.assigned() != domain.assigned() {
        virsh.run(&["define", &path.to_string_lossy()], "")?;
    }
    Ok(())
}

/// A file of ours that goes when it is not needed any more.
struct Temporary(PathBuf);

impl Temporary {
    fn new(path: PathBuf, text: &[u8]) -> Result<Self> {
        let open = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = open.and_then(|mut file| file.write_all(text));
        written.map_err(|cause| Error::io("write", &path, &cause))?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
