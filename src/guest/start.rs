//! `vfpool start`: a guest is started at once with devices that are free now, whatever its definition points at. For
//! guests that outnumber the devices of their pool.
//!
//! The resolved XML counts for this boot only (`virsh create` of a guest that is defined); the definition stays.

use crate::session::Session;
use host::libvirt::definitions;
use lease::Caller;
use model::domain::{Domain, Request};
use model::error::{Error, Result};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, thread};

/// The options of `virsh start`.
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

/// Options of [`Options::passed`] that virsh of RHEL 7 (libvirt 4.5) does not have. `--reset-nvram` came with 8.1.
const NEWER_THAN_4_5: [&str; 1] = ["--reset-nvram"];

impl Session<'_> {
    /// Starts a guest.
    ///
    /// # Errors
    /// Nothing of a start that failed stays. What virsh had to say, it has said on stderr itself.
    pub fn start(&self, guest: &str, options: &Options) -> Result<()> {
        self.try_start(guest, options).map_err(|error| error.during(format_args!("guest '{guest}'")))
    }

    fn try_start(&self, guest: &str, options: &Options) -> Result<()> {
        self.expect_options(&options.passed)?;
        let domain = self.whole(guest)?;
        let uuid = &domain.uuid;
        let flags = [("--bypass-cache", options.bypass_cache), ("--force-boot", options.force_boot)];
        let flags = flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| *flag);
        let plainly: Vec<&str> = ["start", uuid.as_str()].into_iter().chain(flags).collect();
        let is_saved = self.host.saved(guest).exists();
        if is_saved && !options.force_boot {
            // Its devices are as they were saved; libvirt asks the hook's filter for others.
            return self.run(&plainly, &options.passed);
        }
        let started = match self.leases.resolve(guest, &domain, Caller::Admin)? {
            None => {
                if self.host.is_dry() {
                    self.leases.prepare(guest, &domain)?;
                }
                self.run(&plainly, &options.passed)
            }
            // Also where nothing had to be changed: the definition may be in the middle of a move, which began before.
            Some(resolved) => {
                if is_saved {
                    self.virsh.run(&["managedsave-remove", uuid], "")?;
                }
                if self.host.is_dry() {
                    return self.rehearse(guest, (&domain, &resolved), &options.passed);
                }
                self.create(&resolved, &options.passed)
            }
        };
        if started.is_err() && !self.host.is_dry() {
            // A start that came as far as the hook was undone there.
            self.leases.cancel(guest)?;
            self.restore(guest, &domain)?;
        }
        started
    }

    /// Before anything is touched, as a guest's saved state may have to be removed first.
    ///
    /// # Errors
    /// This virsh does not have one of these options.
    fn expect_options(&self, options: &[String]) -> Result<()> {
        for flag in NEWER_THAN_4_5.iter().filter(|flag| options.iter().any(|option| option == *flag)) {
            let help = self.virsh.read(&["help", "create"], "")?;
            if !help.split_whitespace().any(|word| word.trim_matches(['[', ']']) == *flag) {
                let why = format!("virsh on this host does not have the option {flag}: its libvirt is too old");
                return Err(Error::new(why).remedy(format!("Start the guest without {flag}")));
            }
        }
        Ok(())
    }

    /// The guest's definition. While one of its devices is being moved, that is missing there: it is back in a moment.
    fn whole(&self, guest: &str) -> Result<Domain> {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let domain = self.defined(guest)?;
            let is_missing = |request: &Request| request.moving.is_some() && domain.device_for(request).is_none();
            if !domain.requests.iter().any(is_missing) || Instant::now() >= end {
                return Ok(domain);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Shows what would be started, and what the hook would do.
    fn rehearse(&self, guest: &str, (now, resolved): (&Domain, &[u8]), options: &[String]) -> Result<()> {
        let then = Domain::parse(resolved)?;
        for (old, new) in now.devices.iter().zip(&then.devices) {
            if let Some(request) = then.request_for(new) {
                let (pool, from, to) = (&request.pool, old.address, new.address);
                self.log.info(format_args!(
                    "guest '{guest}': {to} of pool '{pool}' for this boot (its definition has {from})"
                ));
            }
        }
        self.leases.prepare(guest, &then)?;
        let create = ["create", "/dev/stdin"].into_iter().chain(options.iter().map(String::as_str));
        self.virsh.show(&create.collect::<Vec<_>>(), &String::from_utf8_lossy(resolved));
        Ok(())
    }

    fn create(&self, xml: &[u8], options: &[String]) -> Result<()> {
        // Not by standard input, which is the console's.
        let file = Temporary::new(self.host.state().join(format!("create.{}", std::process::id())), xml)?;
        let path = file.0.to_string_lossy().into_owned();
        self.run(&["create", &path], options)
    }

    /// Runs virsh in our place: with our terminal, our open files, and as long as a console is open.
    fn run(&self, arguments: &[&str], options: &[String]) -> Result<()> {
        if self.host.is_dry() {
            let options = options.iter().map(String::as_str);
            self.virsh.show(&arguments.iter().copied().chain(options).collect::<Vec<_>>(), "");
            return Ok(());
        }
        let status = self.virsh.command().args(arguments).args(options).status();
        match status.map_err(|cause| Error::new(format!("Cannot run virsh: {cause}")))? {
            status if status.success() => Ok(()),
            _ => Err(Error::new("it was not started; virsh has said why")),
        }
    }

    /// Older libvirt keeps what a failed `create` was given as the definition in memory, until it gets the file's
    /// again.
    fn restore(&self, guest: &str, domain: &Domain) -> Result<()> {
        let Ok(now) = self.virsh.read(&["dumpxml", "--inactive", &domain.uuid], "") else { return Ok(()) };
        if Domain::parse(now.as_bytes())?.assigned() != domain.assigned() {
            self.virsh.run(&["define", &definitions::path(self.host, guest).to_string_lossy()], "")?;
        }
        Ok(())
    }
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
