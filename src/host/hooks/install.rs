//! vfpool's hook in libvirt's folder: put there beside an earlier hook, and taken away again.

use crate::paths::Host;
use model::error::{Error, Result};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// What the link in libvirt's folder of hooks points at.
pub const OURS: &str = "/usr/sbin/vfpool-hook";

/// Puts ours into its place. A hook that is there moves to [`Host::earlier_hook`] and is called from then on; at no
/// moment is there none. Returns what was done, for the admin.
pub fn install(host: &Host) -> Result<String> {
    let (hook, earlier) = (host.hook(), host.earlier_hook());
    if is_ours(&hook) {
        if is_overwritten(host) {
            return keep_overwriting(host);
        }
        return Ok(format!("{} is vfpool's already", hook.display()));
    }
    // Links are not followed: one to nowhere is another's, too.
    let file = |path: &Path| fs::symlink_metadata(path).ok().map(|data| (data.dev(), data.ino()));
    let (theirs, kept) = (file(&hook), file(&earlier));
    // The same file under both names was left by one of us that was killed.
    if theirs.is_some() && kept.is_some() && theirs != kept {
        return Err(Error::new(format!(
            "{} is another hook, and so is {}, which was there when vfpool came",
            hook.display(),
            earlier.display()
        ))
        .remedy("Make one of the two, and run `vfpool hook install` again"));
    }
    let after = theirs.or(kept).map(|_| format!("; what was there is {} now, and called after it", earlier.display()));
    let learns = "; libvirt learns of it by `systemctl reload libvirtd`";
    let done = format!("{} -> {OURS}{}{learns}", hook.display(), after.unwrap_or_default());
    if host.is_dry() {
        return Ok(done);
    }
    if let Some(folder) = hook.parent() {
        fs::create_dir_all(folder).map_err(|cause| Error::io("make the folder", folder, &cause))?;
    }
    if theirs.is_some() && kept.is_none() {
        fs::hard_link(&hook, &earlier).map_err(|cause| Error::io("link", &earlier, &cause))?;
    }
    let new = hook.with_extension("vfpool-new");
    let _ = fs::remove_file(&new);
    symlink(OURS, &new).map_err(|cause| Error::io("link", &new, &cause))?;
    fs::rename(&new, &hook).map_err(|cause| Error::io("write", &hook, &cause))?;
    Ok(done)
}

/// Takes ours away, and puts back the hook that was there before.
pub fn remove(host: &Host) -> Result<String> {
    let (hook, earlier) = (host.hook(), host.earlier_hook());
    let (is_there, has_earlier) = (fs::symlink_metadata(&hook).is_ok(), fs::symlink_metadata(&earlier).is_ok());
    if !is_ours(&hook) && (is_there || !has_earlier) {
        return Ok(format!("{} is not vfpool's; not touched", hook.display()));
    }
    if !host.is_dry() {
        let done = if has_earlier { fs::rename(&earlier, &hook) } else { fs::remove_file(&hook) };
        done.map_err(|cause| Error::io("remove", &hook, &cause))?;
    }
    let now = if has_earlier { "the hook again that was there before vfpool" } else { "removed" };
    Ok(format!("{} is {now}; libvirt learns of it by `systemctl reload libvirtd`", hook.display()))
}

fn program(host: &Host) -> PathBuf {
    host.path(OURS.trim_start_matches('/'))
}

/// Whether a script stands where our program was: `cp` and `wget -O` to libvirt's hook write through the link.
pub fn is_overwritten(host: &Host) -> bool {
    let mut start = [0; 4];
    let read = fs::File::open(program(host)).and_then(|mut file| file.read_exact(&mut start));
    match read {
        Ok(()) => start != *b"\x7fELF",
        Err(cause) => cause.kind() == std::io::ErrorKind::UnexpectedEof,
    }
}

/// Keeps what was written over our program as the earlier hook. It also stays where it is until the package is
/// installed again: libvirt before 6.5 refuses each start without a hook that it has seen.
fn keep_overwriting(host: &Host) -> Result<String> {
    let (program, earlier) = (program(host), host.earlier_hook());
    let text = |path: &Path| fs::read(path).map_err(|cause| Error::io("read", path, &cause));
    if fs::symlink_metadata(&earlier).is_err() {
        if !host.is_dry() {
            let new = earlier.with_extension("vfpool-new");
            let copied = fs::copy(&program, &new).and_then(|_| fs::rename(&new, &earlier));
            copied.map_err(|cause| Error::io("write", &earlier, &cause))?;
        }
    } else if text(&earlier)? != text(&program)? {
        return Err(Error::new(format!(
            "{} was written over by another hook, and {} is one that was there before",
            program.display(),
            earlier.display()
        ))
        .remedy("Make one of the two, and run `vfpool hook install` again"));
    }
    Ok(format!(
        "{} was written over by another hook, which is {} now: install vfpool again, and it is called after vfpool's",
        program.display(),
        earlier.display()
    ))
}

fn is_ours(hook: &Path) -> bool {
    fs::read_link(hook).is_ok_and(|target| target == Path::new(OURS))
}
