//! What a disk is used for: mounts, swap, md, dm and LVM, loop devices, open files.
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
use std::path::PathBuf;

impl Guard<'_> {
    /// Looks at a block device, then at what is made of it, then at its partitions.
    pub(super) fn storage(&self, disk: &str, depth: usize) -> Result<Option<HostUse>> {
        let folder = self.host.path("sys/class/block").join(disk);
        if let Some(at) = self.mount_point(disk, files::read_optional(&folder.join("dev"))?.as_deref())? {
            return Ok(Some(HostUse::Mounted { disk: shown(disk), at }));
        }
        let swaps = self.swaps.get_or_try_init(|| {
            Ok::<_, Error>(files::read_optional(&self.host.path("proc/swaps"))?.unwrap_or_default())
        })?;
        if swaps.lines().filter_map(|line| line.split_whitespace().next()).any(|file| is_node(file, disk)) {
            return Ok(Some(HostUse::Swap { disk: shown(disk) }));
        }
        let mut found = Found::default();
        let made_of_it = files::names(&folder.join("holders"))?.into_iter().map(|holder| (holder, false));
        for (above, is_loop) in made_of_it.chain(self.loops_on(disk)?.into_iter().map(|device| (device, true))) {
            let use_above = if depth < DEEPEST { self.storage(&above, depth + 1)? } else { None };
            // Merely open, it is a member all the same.
            let known = use_above.filter(HostUse::is_vital);
            let member = if is_loop {
                HostUse::Loop { disk: shown(disk), device: above }
            } else {
                let title = files::read_optional(&self.host.path(format!("sys/class/block/{above}/dm/name")))?;
                HostUse::Member { disk: shown(disk), of: title.unwrap_or(above) }
            };
            let known = known.unwrap_or(member);
            if matches!(known, HostUse::Mounted { .. } | HostUse::Swap { .. }) {
                return Ok(Some(known));
            }
            found.add(Some(known));
        }
        for name in files::names(&folder)? {
            if folder.join(&name).join("partition").exists() {
                found.add(self.storage(&name, depth + 1)?);
            }
        }
        if found.is_vital() {
            return Ok(found.0);
        }
        if self.opens_disks && self.is_claimed(disk)? {
            return Ok(Some(HostUse::Claimed { disk: shown(disk) }));
        }
        found.add(self.holder(&self.node(disk))?.map(|by| HostUse::Open { disk: shown(disk), by }));
        Ok(found.0)
    }

    /// The loop devices that are set up on a block device itself, which no process has open. One on a file is seen by
    /// the mount of the file system.
    fn loops_on(&self, disk: &str) -> Result<Vec<String>> {
        let loops = self.loops.get_or_try_init(|| {
            let all = files::names(&self.host.path("sys/class/block"))?.into_iter();
            let mut found = Vec::new();
            for device in all.filter(|name| name.starts_with("loop")) {
                let file = self.host.path(format!("sys/class/block/{device}/loop/backing_file"));
                let file = files::read_optional(&file)?.filter(|file| file.starts_with("/dev/"));
                // Perhaps a link, as those in /dev/disk and /dev/mapper.
                let node = file.map(|file| self.host.path(file.trim_start_matches('/')));
                found.extend(node.map(|node| (node.canonicalize().unwrap_or(node), device)));
            }
            Ok::<_, Error>(found)
        })?;
        let node = self.node(disk);
        Ok(loops.iter().filter(|(file, _)| *file == node).map(|(_, device)| device.clone()).collect())
    }

    fn node(&self, disk: &str) -> PathBuf {
        self.host.path("dev").join(shown(disk))
    }

    /// Where a block device is mounted on the host (as init sees it: libvirtd may have mounts of its own). By number,
    /// or by name for file systems that mount under a number of their own, as btrfs does.
    fn mount_point(&self, disk: &str, number: Option<&str>) -> Result<Option<String>> {
        let mounts = self.mounts()?;
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
        let node = self.node(disk);
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

/// Whether a path in /dev is this block device. `/dev/mapper/x` is known by its number where it is mounted, and swaps
/// are shown by the kernel under their own name.
fn is_node(path: &str, disk: &str) -> bool {
    path.strip_prefix("/dev/").is_some_and(|name| name == shown(disk))
}

/// The name of a block device in /dev: sysfs writes ! for the / in names such as `cciss/c0d0`.
fn shown(disk: &str) -> String {
    disk.replace('!', "/")
}
