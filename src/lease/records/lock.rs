//! The locks, and what may be written under them.

use super::store::{LOCK_WAITS, Records};
use host::paths::file_name;
use host::pci::sysfs::PciView;
use model::address::PciAddress;
use model::error::{Error, Result};
use model::lease::{HeldDevice, Lease, LeaseState};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait for the lock, in which only small files are read and written.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// The right to handle one guest's devices, or one PF's VFs. It ends when it is dropped, and each child with a write
/// that hangs has ended.
pub struct Turn {
    _file: File,
    /// Of a guest's turn, the lock file and the lease: the one goes with the other.
    of_guest: Option<(PathBuf, PathBuf)>,
}

impl Turn {
    fn of(file: File) -> Self {
        Self { _file: file, of_guest: None }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((path, lease)) = &self.of_guest {
            if fs::symlink_metadata(lease).is_err() {
                // Who waits for it finds out that it was removed.
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// The right to compare and write leases. Only through it can any record be changed.
pub(crate) struct Locked<'a> {
    store: &'a Records<'a>,
    lock: File,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Not left to close(2): a child that was forked meanwhile would keep it locked.
        let _ = fs2::FileExt::unlock(&self.lock);
    }
}

impl Records<'_> {
    /// Waits for the other events of this guest to end, and keeps new ones off.
    pub(crate) fn turn(&self, guest: &str, limit: Duration) -> Result<Turn> {
        self.turn_of(guest, limit)?.ok_or_else(|| {
            let (path, limit) = (self.path("turns", guest), limit.as_secs());
            let why = "another event of this guest is still at work there, or hangs in the kernel";
            Error::new(format!("Cannot lock {} within {limit} s: {why}", path.display()))
        })
    }

    /// The turn of a guest if it is free now.
    pub(crate) fn try_turn(&self, guest: &str) -> Result<Option<Turn>> {
        self.turn_of(guest, Duration::ZERO)
    }

    fn turn_of(&self, guest: &str, limit: Duration) -> Result<Option<Turn>> {
        let path = self.path("turns", guest);
        let file = self.lock_file(&path, limit)?;
        let of_guest = (!self.host.is_dry()).then(|| (path, self.path("leases", guest)));
        Ok(file.map(|file| Turn { _file: file, of_guest }))
    }

    /// Waits until no other process edits guests' definitions. No hook ever takes this lock, so it may be held while
    /// libvirt is called; nothing but definitions is edited under it, and devices of running guests are plugged. A
    /// virsh that goes on when we are killed keeps the lock until it has ended, so that nobody takes what it is just
    /// doing for undone.
    pub fn editing(&self, limit: Duration) -> Result<Turn> {
        let path = self.host.state().join("editing");
        let why = || Error::new(format!("Another vfpool has been editing definitions for {} s", limit.as_secs()));
        let file = self.lock_file(&path, limit)?.ok_or_else(why)?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| Error::io("keep", &path, &errno.into()))?;
        Ok(Turn::of(file))
    }

    /// Waits for others that make or bind the VFs of this PF, and keeps new ones off. `None` if they are not done in
    /// time.
    pub(crate) fn turn_of_pf(&self, pf: PciAddress, limit: Duration) -> Result<Option<Turn>> {
        let path = self.path("pfs", &pf.to_string());
        Ok(self.lock_file(&path, limit)?.map(Turn::of))
    }

    /// The right to bind single VFs of this PF, which many may have at the same time, if nobody has the turn of the PF.
    pub(crate) fn try_turn_of_vf(&self, pf: PciAddress) -> Result<Option<Turn>> {
        let path = self.path("pfs", &pf.to_string());
        Ok(self.lock_file_by(&path, Duration::ZERO, fs2::FileExt::try_lock_shared)?.map(Turn::of))
    }

    /// Waits for the lock.
    pub(crate) fn lock(&self) -> Result<Locked<'_>> {
        let path = self.host.state().join("lock");
        match self.lock_file(&path, LOCK_LIMIT)? {
            Some(lock) => Ok(Locked { store: self, lock }),
            None => Err(Error::new(format!(
                "Cannot lock {} within {} s; see with `fuser -v {0}` who holds it",
                path.display(),
                LOCK_LIMIT.as_secs()
            ))),
        }
    }

    /// Locks a file, made if need be; `None` if it is still locked by another when the limit is over.
    fn lock_file(&self, path: &Path, limit: Duration) -> Result<Option<File>> {
        self.lock_file_by(path, limit, fs2::FileExt::try_lock_exclusive)
    }

    fn lock_file_by(
        &self,
        path: &Path,
        limit: Duration,
        try_lock: fn(&File) -> io::Result<()>,
    ) -> Result<Option<File>> {
        if self.host.is_dry() {
            // Only looks, and keeps nobody waiting for it.
            let null = Path::new("/dev/null");
            return File::open(null).map(Some).map_err(|cause| Error::io("open", null, &cause));
        }
        let mut open = File::options();
        open.write(true).create(true).truncate(false).mode(0o600);
        let open = || match open.open(path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                make_folder(path.parent().unwrap_or(path))?;
                open.open(path).map_err(|cause| Error::io("open", path, &cause))
            }
            result => result.map_err(|cause| Error::io("open", path, &cause)),
        };
        let mut file = open()?;
        let deadline = Instant::now() + limit;
        let mut has_waited = false;
        loop {
            match try_lock(&file) {
                // Its last owner has removed it, so others lock another file of this name.
                Ok(()) if file.metadata().is_ok_and(|data| data.nlink() == 0) => {
                    file = open()?;
                    continue;
                }
                Ok(()) => return Ok(Some(file)),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                Err(cause) => return Err(Error::io("lock", path, &cause)),
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            if !std::mem::replace(&mut has_waited, true) {
                self.count_wait();
            }
            // flock(2) itself knows no deadline.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// An appended byte needs no lock. That it may fail (a full disk) holds nobody up.
    fn count_wait(&self) {
        let path = self.host.state().join(LOCK_WAITS);
        let open = File::options().append(true).create(true).mode(0o600).open(path);
        let _ = open.and_then(|mut file| file.write_all(b"."));
    }
}

impl Locked<'_> {
    /// A guest's lease. One that is corrupt is set aside and reported: it is not trusted any more, and must not keep
    /// the guest from starting.
    pub(crate) fn take_lease(&self, guest: &str) -> Result<Option<Lease>> {
        let cause = match self.store.read(guest)? {
            None => return Ok(None),
            Some(Ok(lease)) => return Ok(Some(lease)),
            Some(Err(cause)) => cause,
        };
        let path = self.store.path("leases", guest);
        let aside = self.store.path("corrupt", guest);
        if !self.store.host.is_dry() {
            make_folder(aside.parent().unwrap_or(&aside))?;
            rename(&path, &aside)?;
        }
        self.store.log.error(Error::new(format!(
            "The lease of guest '{guest}' is corrupt ({cause}) and set aside as {}; the guest's devices are not \
             reattached automatically",
            aside.display()
        )));
        Ok(None)
    }

    /// Claims the VFs of a PF, of which no guest has one, until the turn ends: also that of a child whose write hangs.
    pub(crate) fn claim_vfs_of(&self, pf: PciAddress) -> Result<Turn> {
        let path = self.store.path("removals", &pf.to_string());
        self.store.lock_file(&path, Duration::ZERO)?.map(Turn::of).ok_or_else(|| {
            Error::new("another `vfpool setup` is removing them, or hangs in the kernel").remedy("See `dmesg`")
        })
    }

    /// Whether a device may be claimed for a start: not a VF that setup is just removing.
    fn expect_to_stay(&self, address: PciAddress) -> Result<()> {
        // There is none as long as no number of VFs was changed.
        if !self.store.host.state().join("removals").exists() {
            return Ok(());
        }
        let Some(pf) = self.store.host.physfn(address)? else { return Ok(()) };
        let path = self.store.path("removals", &pf.to_string());
        if !path.exists() || self.store.lock_file(&path, Duration::ZERO)?.is_some() {
            return Ok(());
        }
        let what = format!("{address} is going away: `vfpool setup` is changing the number of VFs of {pf}");
        Err(Error::new(what).remedy("Start the guest when it is done"))
    }

    /// Records a lease, then claims its devices. What went wrong before a new start is over with it.
    pub(crate) fn write(&self, guest: &str, lease: &Lease) -> Result<()> {
        if matches!(lease.state, LeaseState::Pending | LeaseState::Reserved) {
            lease.devices.iter().try_for_each(|held| self.expect_to_stay(held.address))?;
        }
        if lease.state == LeaseState::Pending {
            self.clear_attention(guest)?;
        } else if lease.state != LeaseState::Returning {
            self.remove("ended", guest)?;
        }
        self.record(guest, lease)?;
        for held in &lease.devices {
            if self.store.owner(held.address)?.as_deref() != Some(guest) {
                let target = Path::new("../leases").join(file_name(guest));
                self.replace("claims", &held.address.to_string(), |temporary| symlink(&target, temporary))?;
            }
        }
        Ok(())
    }

    /// Records a lease of devices that the guest owns already.
    pub(crate) fn record(&self, guest: &str, lease: &Lease) -> Result<()> {
        let text =
            quick_xml::se::to_string(lease).map_err(|cause| Error::new(format!("Cannot write a lease: {cause}")))?;
        self.replace("leases", guest, |temporary| {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
            file.write_all(text.as_bytes())
        })
    }

    /// Those of the lease's devices that the guest still owns.
    pub(crate) fn owned(&self, guest: &str, devices: Vec<HeldDevice>) -> Result<Vec<HeldDevice>> {
        let mut owned = Vec::new();
        for held in devices {
            if self.store.owner(held.address)?.as_deref() == Some(guest) {
                owned.push(held);
            }
        }
        Ok(owned)
    }

    /// Drops what was reattached: the claims of all devices of the lease but those in `kept`, for which `why` says what
    /// went wrong, if anything did. Without any left, the lease is over.
    pub(crate) fn settle(
        &self,
        guest: &str,
        lease: &Lease,
        mut kept: Vec<HeldDevice>,
        why: Option<&str>,
    ) -> Result<()> {
        let owned = self.owned(guest, lease.devices.clone())?;
        let has = |devices: &[HeldDevice], held: &HeldDevice| devices.iter().any(|other| other.address == held.address);
        kept.retain(|held| has(&owned, held));
        for held in owned.iter().filter(|held| !has(&kept, held)) {
            self.remove("claims", &held.address.to_string())?;
        }
        if kept.is_empty() {
            self.remove("leases", guest)?;
            return self.clear_attention(guest);
        }
        self.record(guest, &Lease { devices: kept, ..lease.clone() })?;
        if let Some(why) = why {
            self.set_attention(guest, why)?;
        }
        self.remove("ended", guest)
    }

    /// Records that no device of a guest is left to reattach, and that its stop is finished.
    pub(crate) fn clear_attention(&self, guest: &str) -> Result<()> {
        self.remove("attention", guest)?;
        self.remove("ended", guest)
    }

    /// Records that a device of a guest has still to be reattached; the next event of any guest tries it.
    fn set_attention(&self, guest: &str, why: &str) -> Result<()> {
        self.replace("attention", guest, |temporary| fs::write(temporary, why))
    }

    fn remove(&self, folder: &str, name: &str) -> Result<()> {
        if self.store.host.is_dry() { Ok(()) } else { remove(&self.store.path(folder, name)) }
    }

    /// Makes a file of a new content appear at once.
    fn replace(&self, folder: &str, name: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        if self.store.host.is_dry() {
            return Ok(());
        }
        let path = self.store.path(folder, name);
        make_folder(path.parent().unwrap_or(&path))?;
        // One name is enough under the lock; what a killed process left there is written over.
        let temporary = self.store.host.state().join("new");
        remove(&temporary)?;
        let written = make(&temporary).map_err(|cause| Error::io("write", &path, &cause));
        written.and_then(|()| rename(&temporary, &path)).inspect_err(|_| {
            let _ = remove(&temporary);
        })
    }
}

pub(super) fn make_folder(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|cause| Error::io("make the folder", folder, &cause))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|cause| Error::io("write", to, &cause))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, &cause)),
        _ => Ok(()),
    }
}
