//! What a disk is used for: mounts, swap, md, dm and LVM, open files.
//! Sources: proc(5) on mountinfo and swaps; open(2) on `O_EXCL`.

use super::tree::DEEPEST;
use super::{Found, Guard};
use crate::{files, syscall};
use model::error::{Error, Result};
use model::host_use::HostUse;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

impl Guard<'_> {
    /// Looks at a block device, then at what is made of it, then at its partitions.
    pub(super) fn storage(&self, disk: &str, depth: usize) -> Result<Option<HostUse>> {
        let folder = self.host.path("sys/class/block").join(disk);
        if let Some(at) = self.mount_point(disk, files::read_optional(&folder.join("dev"))?.as_deref())? {
            return Ok(Some(HostUse::Mounted { disk: disk.to_owned(), at }));
        }
        let swaps = self.swaps.get_or_try_init(|| {
            Ok::<_, Error>(files::read_optional(&self.host.path("proc/swaps"))?.unwrap_or_default())
        })?;
        if swaps.lines().filter_map(|line| line.split_whitespace().next()).any(|file| is_node(file, disk)) {
            return Ok(Some(HostUse::Swap { disk: disk.to_owned() }));
        }
        let mut found = Found::default();
        for holder in files::names(&folder.join("holders"))? {
            let above = if depth < DEEPEST { self.storage(&holder, depth + 1)? } else { None };
            let title = files::read_optional(&self.host.path(format!("sys/class/block/{holder}/dm/name")))?;
            let member = HostUse::Member { disk: disk.to_owned(), of: title.unwrap_or(holder) };
            // Merely open, it is a member all the same.
            let need = above.filter(HostUse::is_vital).unwrap_or(member);
            if matches!(need, HostUse::Mounted { .. } | HostUse::Swap { .. }) {
                return Ok(Some(need));
            }
            found.add(Some(need));
        }
        for name in files::names(&folder)? {
            if folder.join(&name).join("partition").exists() {
                found.add(self.storage(&name, depth + 1)?);
            }
        }
        if found.is_vital() {
            return Ok(found.0);
        }
        // Only a list has looked at all.
        if self.below.get().is_none() && self.is_claimed(disk)? {
            return Ok(Some(HostUse::Claimed { disk: disk.to_owned() }));
        }
        let holder = self.holder(&self.host.path("dev").join(disk))?;
        found.add(holder.map(|by| HostUse::Open { disk: disk.to_owned(), by }));
        Ok(found.0)
    }

    /// Where a block device is mounted on the host (as init sees it: libvirtd may have mounts of its own). By number, or
    /// by name for file systems that mount under a number of their own, as btrfs does.
    fn mount_point(&self, disk: &str, number: Option<&str>) -> Result<Option<String>> {
        let mounts = self.mounts.get_or_try_init(|| files::read(&self.host.path("proc/1/mountinfo")))?;
        Ok(mounts.lines().find_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(2);
            let (of, at) = (mount.next()?, mount.nth(1)?);
            let same = Some(of) == number || source.split(' ').nth(1).is_some_and(|source| is_node(source, disk));
            same.then(|| at.to_owned())
        }))
    }

    /// Asks the kernel: a block device that anything holds cannot be opened exclusively (open(2), `O_EXCL`).
    fn is_claimed(&self, disk: &str) -> Result<bool> {
        let node = self.host.path("dev").join(disk);
        let path = CString::new(node.as_os_str().as_bytes()).map_err(|cause| Error::new(cause.to_string()))?;
        let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match syscall::within(self.limit, || open(path.as_c_str(), flags, Mode::empty()).map(drop)) {
            Ok(()) => Ok(false),
            Err(cause) => match cause.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EBUSY) => Ok(true),
                // No node, no medium, or a device that is just going away.
                Some(Errno::ENOENT | Errno::ENOMEDIUM | Errno::ENXIO | Errno::ENODEV) => Ok(false),
                _ => Err(Error::io("find out who uses", &node, &cause)),
            },
        }
    }
}

/// Whether a path in /dev is this block device. `/dev/mapper/x` is told by its number where it is mounted, and swaps are
/// shown by the kernel under their own name.
fn is_node(path: &str, disk: &str) -> bool {
    // sysfs writes ! for the / in names such as cciss/c0d0.
    path.strip_prefix("/dev/").is_some_and(|name| name == disk.replace('!', "/"))
}
