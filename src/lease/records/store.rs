//! What is recorded, as everybody may read it.

use host::log::Log;
use host::paths::{Host, file_name, guest_name};
use model::address::PciAddress;
use model::error::{Error, Result};
use model::lease::{Lease, LeaseState, Process, Unreadable, VERSION};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

/// The file that counts waits by its size.
pub(super) const LOCK_WAITS: &str = "lock-waits";

/// The records of one host.
pub struct Records<'a> {
    pub(super) host: &'a Host,
    pub(super) log: &'a Log,
}

impl<'a> Records<'a> {
    /// The records of this host.
    pub fn new(host: &'a Host, log: &'a Log) -> Self {
        Self { host, log }
    }

    pub(super) fn path(&self, folder: &str, name: &str) -> PathBuf {
        self.host.state().join(folder).join(file_name(name))
    }

    /// Whether a guest has a lease, as most have none; costs one system call.
    pub fn has_lease(&self, guest: &str) -> bool {
        fs::symlink_metadata(self.path("leases", guest)).is_ok()
    }

    /// The guests with a lease.
    pub fn guests(&self) -> Result<Vec<String>> {
        self.guests_in("leases")
    }

    /// The guests with a device that could not be reattached, or whose stop was not finished.
    pub fn guests_needing_attention(&self) -> Result<Vec<String>> {
        let mut guests = self.guests_in("attention")?;
        guests.extend(self.guests_in("ended")?);
        guests.sort_unstable();
        guests.dedup();
        Ok(guests)
    }

    fn guests_in(&self, folder: &str) -> Result<Vec<String>> {
        let mut guests: Vec<String> =
            host::files::names(&self.host.state().join(folder))?.iter().filter_map(guest_name).collect();
        guests.sort_unstable();
        Ok(guests)
    }

    /// A guest's lease as it is at this moment, `None` if it is corrupt. For advice only.
    ///
    /// # Errors
    /// It cannot be read, or another version of vfpool has written it in a later format.
    pub fn lease(&self, guest: &str) -> Result<Option<Lease>> {
        Ok(self.read(guest)?.and_then(std::result::Result::ok))
    }

    /// A guest's lease as it is at this moment; `None` also for one that cannot be read. For advice only.
    pub fn lease_or_none(&self, guest: &str) -> Option<Lease> {
        self.lease(guest).ok().flatten()
    }

    /// Which writing of a guest's lease is there: each makes a new file. Two starts may write the same text.
    pub(crate) fn written(&self, guest: &str) -> Option<String> {
        host::files::stamp(&self.path("leases", guest))
    }

    /// The lease of a guest, if there is one; why it is corrupt, if so.
    pub(super) fn read(&self, guest: &str) -> Result<Option<Result<Lease, String>>> {
        let path = self.path("leases", guest);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io("read", &path, &cause)),
        };
        let text = std::str::from_utf8(&text).map_err(|cause| Unreadable::Corrupt(cause.to_string()));
        match text.and_then(Lease::parse) {
            Ok(mut lease) => {
                if lease.state.is_held() && self.has_ended(guest) {
                    lease.state = LeaseState::Returning;
                }
                Ok(Some(Ok(lease)))
            }
            Err(Unreadable::Corrupt(cause)) => Ok(Some(Err(cause))),
            Err(Unreadable::Version(version)) => Err(Error::new(format!(
                "Cannot use the lease {}: it has format {version}, this vfpool knows {VERSION}",
                path.display()
            ))
            .remedy("Install the version of vfpool that wrote it; or stop the guest and reboot")),
        }
    }

    fn has_ended(&self, guest: &str) -> bool {
        fs::symlink_metadata(self.path("ended", guest)).is_ok()
    }

    /// Marks a guest, without the lock: what must not be lost must not wait for one. On a full disk it goes on without.
    pub(crate) fn mark(&self, mark: &str, guest: &str) {
        if self.host.is_dry() {
            return;
        }
        let path = self.path(mark, guest);
        let mut open = File::options();
        open.write(true).create(true).truncate(false).mode(0o600);
        let made = open.open(&path).or_else(|cause| match cause.kind() {
            io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap_or(&path))?;
                open.open(&path)
            }
            _ => Err(cause),
        });
        if let Err(cause) = made {
            self.log.warning(Error::io("write", &path, &cause));
        }
    }

    /// Takes a mark away; whether there was one.
    pub(crate) fn unmark(&self, mark: &str, guest: &str) -> bool {
        let path = self.path(mark, guest);
        // Most guests have none.
        fs::symlink_metadata(&path).is_ok() && fs::remove_file(&path).is_ok()
    }

    /// Who owns a device, by its claim. That guest's lease may say nothing of it, or not exist.
    pub fn owner(&self, address: PciAddress) -> Result<Option<String>> {
        let name = host::files::link_name(&self.path("claims", &address.to_string()))?;
        Ok(name.and_then(|name| guest_name(&name)))
    }

    /// The devices that a guest owns.
    pub fn claimed(&self) -> Result<BTreeSet<PciAddress>> {
        let names = host::files::names(&self.host.state().join("claims"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Why a device of a guest could not be reattached, or that its stop was not finished.
    pub fn attention(&self, guest: &str) -> Result<Option<String>> {
        let why = host::files::read_optional(&self.path("attention", guest))?;
        Ok(why.or_else(|| self.has_ended(guest).then(|| "its stop was not finished".to_owned())))
    }

    /// Whether the libvirtd that calls this hook is another one than at the last event. One that died finishes nothing
    /// that it had begun.
    pub(crate) fn is_new_libvirtd(&self, libvirtd: &Process) -> bool {
        let text = fs::read_to_string(self.libvirtd()).unwrap_or_default();
        text != seen(libvirtd)
    }

    /// Remembers the libvirtd that calls this hook.
    pub(crate) fn remember_libvirtd(&self, libvirtd: &Process) {
        // Lost, all leases are looked at once more.
        let _ = if self.host.is_dry() { Ok(()) } else { fs::write(self.libvirtd(), seen(libvirtd)) };
    }

    fn libvirtd(&self) -> PathBuf {
        self.host.state().join("libvirtd")
    }

    /// How many waits there were for a lock since boot.
    pub fn lock_waits(&self) -> u64 {
        fs::metadata(self.host.state().join(LOCK_WAITS)).map_or(0, |data| data.len())
    }
}

fn seen(libvirtd: &Process) -> String {
    format!("{} {}", libvirtd.pid, libvirtd.start)
}
