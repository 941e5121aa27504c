//! Who holds which device: the records below /run/vfpool, and the locks that keep them true.
//!
//! | path | what |
//! |---|---|
//! | `lock` | held for the short while in which leases are compared and written; never while a device is moved |
//! | `turns/GUEST` | held through an event of this guest, so that two never work on the same devices |
//! | `editing` | held by the one process that edits definitions or plugs devices through libvirt; no hook ever takes it |
//! | `pfs/ADDRESS` | held while the VFs of this PF are made and bound; shared by those that bind a single one |
//! | `removals/ADDRESS` | held while setup removes the VFs of this PF: no guest may claim one |
//! | `leases/GUEST` | what the guest holds and how it was found: all that is needed to give it back |
//! | `claims/ADDRESS` | link to the lease that owns this device now |
//! | `attention/GUEST` | why something could not be given back |
//! | `lock-waits` | a byte for each time that somebody had to wait for one of these locks |
//! | `corrupt/` | leases that could not be read, for the admin to look at |
//!
//! A claim decides who owns a device, a lease what to do with it. A lease is written before its claims, and both before
//! the first device is touched; whatever is killed in between leaves a lease without claims, which touches nothing.
//! Lock files are never removed: an unlinked file would be locked by one and made anew by another.

use host::log::Log;
use host::paths::{Host, file_name, guest_name};
use host::pci::sysfs::PciView;
use model::address::PciAddress;
use model::error::{Error, Result};
use model::lease::{HeldDevice, Lease, LeaseState, VERSION};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use quick_xml::DeError;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait for the lock, in which only small files are read and written.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// The records of one host.
pub struct Records<'a> {
    host: &'a Host,
    log: &'a Log,
}

/// The right to handle one guest's devices, or one PF's VFs; ends when dropped (and when each child that still has a write hanging ended).
pub struct Turn(#[allow(dead_code)] File);

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

impl<'a> Records<'a> {
    /// The records of this host.
    pub fn new(host: &'a Host, log: &'a Log) -> Self {
        Self { host, log }
    }

    fn path(&self, folder: &str, name: &str) -> PathBuf {
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

    /// The guests of which something could not be given back.
    pub fn guests_needing_attention(&self) -> Result<Vec<String>> {
        self.guests_in("attention")
    }

    fn guests_in(&self, folder: &str) -> Result<Vec<String>> {
        let mut guests: Vec<String> =
            host::files::names(&self.host.state().join(folder))?.iter().filter_map(guest_name).collect();
        guests.sort_unstable();
        Ok(guests)
    }

    /// Waits for the other events of this guest to end, and keeps new ones off.
    pub(crate) fn turn(&self, guest: &str, limit: Duration) -> Result<Turn> {
        let path = self.path("turns", guest);
        let file = self.lock_file(&path, limit)?;
        file.map(Turn).ok_or_else(|| {
            let why = "another event of this guest is still at work there, or hangs in the kernel";
            Error::new(format!("Cannot lock {} within {} s: {why}", path.display(), limit.as_secs()))
        })
    }

    /// The turn of a guest if it is free now.
    pub(crate) fn try_turn(&self, guest: &str) -> Result<Option<Turn>> {
        Ok(self.lock_file(&self.path("turns", guest), Duration::ZERO)?.map(Turn))
    }

    /// Waits until no other process edits guests' definitions. No hook ever takes this lock, so it may be held while libvirt
    /// is called; nothing but definitions is edited under it, and devices of running guests are plugged. A virsh that goes on
    /// when we are killed keeps the lock until it has ended, so that nobody takes what it is just doing for undone.
    pub fn editing(&self, limit: Duration) -> Result<Turn> {
        let path = self.host.state().join("editing");
        let why = || Error::new(format!("Another vfpool has been editing definitions for {} s", limit.as_secs()));
        let file = self.lock_file(&path, limit)?.ok_or_else(why)?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| Error::io("keep", &path, &errno.into()))?;
        Ok(Turn(file))
    }

    /// Waits for others that make or bind the VFs of this PF, and keeps new ones off. `None` if they are not done in time.
    pub(crate) fn turn_of_pf(&self, pf: PciAddress, limit: Duration) -> Result<Option<Turn>> {
        let path = self.path("pfs", &pf.to_string());
        Ok(self.lock_file(&path, limit)?.map(Turn))
    }

    /// The right to bind single VFs of this PF, which many may have at the same time, if nobody has the turn of the PF.
    pub(crate) fn try_turn_of_vf(&self, pf: PciAddress) -> Result<Option<Turn>> {
        let path = self.path("pfs", &pf.to_string());
        Ok(self.lock_file_by(&path, Duration::ZERO, fs2::FileExt::try_lock_shared)?.map(Turn))
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

    /// A guest's lease as it is at this moment; `None` also for one that cannot be read. For advice only.
    pub fn lease_or_none(&self, guest: &str) -> Option<Lease> {
        quick_xml::de::from_str(&fs::read_to_string(self.path("leases", guest)).ok()?).ok()
    }

    /// A guest's lease as it is at this moment, `None` if it is corrupt. For advice only.
    pub fn look(&self, guest: &str) -> Result<Option<Lease>> {
        Ok(self.read(guest)?.and_then(std::result::Result::ok))
    }

    /// The lease of a guest, if there is one; why it is corrupt, if so.
    fn read(&self, guest: &str) -> Result<Option<Result<Lease, DeError>>> {
        let path = self.path("leases", guest);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io("read", &path, &cause)),
        };
        let text = std::str::from_utf8(&text).map_err(|cause| DeError::Custom(cause.to_string()));
        match text.and_then(quick_xml::de::from_str::<Lease>) {
            Ok(lease) if lease.version != VERSION => {
                let versions = format!("it has format {}, this vfpool knows {VERSION}", lease.version);
                Err(Error::new(format!("Cannot use the lease {}: {versions}", path.display())))
            }
            read => Ok(Some(read)),
        }
    }

    /// Who owns a device, by its claim. That guest's lease may say nothing of it, or not exist.
    pub fn owner(&self, address: PciAddress) -> Result<Option<String>> {
        let name = host::files::link_name(&self.path("claims", &address.to_string()))?;
        Ok(name.and_then(|name| guest_name(&name)))
    }

    /// The devices that somebody owns.
    pub fn claimed(&self) -> Result<BTreeSet<PciAddress>> {
        let names = host::files::names(&self.host.state().join("claims"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Why something of a guest could not be given back.
    pub fn attention(&self, guest: &str) -> Result<Option<String>> {
        host::files::read_optional(&self.path("attention", guest))
    }

    /// How often somebody had to wait for a lock since boot.
    pub fn lock_waits(&self) -> u64 {
        fs::metadata(self.host.state().join(LOCK_WAITS)).map_or(0, |data| data.len())
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
        let file = match open.open(path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                make_folder(path.parent().unwrap_or(path))?;
                open.open(path)
            }
            result => result,
        };
        let file = file.map_err(|cause| Error::io("open", path, &cause))?;
        let deadline = Instant::now() + limit;
        let mut has_waited = false;
        loop {
            match try_lock(&file) {
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

/// The file that counts waits by its size.
const LOCK_WAITS: &str = "lock-waits";

impl Locked<'_> {
    /// A guest's lease. One that is no lease is set aside and told of: it is trusted no more, and must not keep the guest
    /// from starting ever again.
    pub(crate) fn lease(&self, guest: &str) -> Result<Option<Lease>> {
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
            "The lease of guest '{guest}' is corrupt ({cause}) and set aside as {}; the guest's devices are not reattached \
             automatically",
            aside.display()
        )));
        Ok(None)
    }

    /// Claims the VFs of a PF, of which no guest has one, until the turn ends: also that of a child whose write hangs.
    pub(crate) fn claim_vfs_of(&self, pf: PciAddress) -> Result<Turn> {
        let path = self.store.path("removals", &pf.to_string());
        self.store.lock_file(&path, Duration::ZERO)?.map(Turn).ok_or_else(|| {
            Error::new("another `vfpool setup` is removing them, or hangs in the kernel").remedy("See `dmesg`")
        })
    }

    /// Whether a device may be claimed for a start: not a VF that setup is just removing.
    fn expect_to_stay(&self, address: PciAddress) -> Result<()> {
        let Some(pf) = self.store.host.physfn(address)? else { return Ok(()) };
        let path = self.store.path("removals", &pf.to_string());
        // There is none as long as no number of VFs was changed.
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
        }
        let text =
            quick_xml::se::to_string(lease).map_err(|cause| Error::new(format!("Cannot write a lease: {cause}")))?;
        self.replace("leases", guest, |temporary| {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
            file.write_all(text.as_bytes())
        })?;
        for held in &lease.devices {
            if self.store.owner(held.address)?.as_deref() != Some(guest) {
                let target = Path::new("../leases").join(file_name(guest));
                self.replace("claims", &held.address.to_string(), |temporary| symlink(&target, temporary))?;
            }
        }
        Ok(())
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

    /// Drops what was given back: the claims of all devices of the lease but those in `kept`, for which `why` says what
    /// went wrong, if anything did. Without any left, the lease is over.
    pub(crate) fn settle(&self, guest: &str, lease: &Lease, kept: Vec<HeldDevice>, why: Option<&str>) -> Result<()> {
        let kept = self.owned(guest, kept)?;
        for held in self.owned(guest, lease.devices.clone())? {
            if !kept.contains(&held) {
                self.remove("claims", &held.address.to_string())?;
            }
        }
        if kept.is_empty() {
            self.remove("leases", guest)?;
            return self.clear_attention(guest);
        }
        self.write(guest, &Lease { devices: kept, ..lease.clone() })?;
        match why {
            Some(why) => self.set_attention(guest, why),
            None => Ok(()),
        }
    }

    /// Notes that nothing of a guest is left to be given back.
    pub(crate) fn clear_attention(&self, guest: &str) -> Result<()> {
        self.remove("attention", guest)
    }

    /// Notes that something of a guest has still to be given back; the next event of any guest tries it.
    pub(crate) fn set_attention(&self, guest: &str, why: &str) -> Result<()> {
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

fn make_folder(folder: &Path) -> Result<()> {
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
