//! What the package brings: the hook and whether libvirtd knows it, units, udev's rule, the state's folder.
//! Sources: libvirt `docs/hooks.rst`, `src/util/virhook.c` (hooks are looked for at the start and at SIGHUP, and have
//! to be executable then); udev(7).

use super::daemon::{DAEMONS, Daemon};
use super::systemd::{Systemd, units};
use super::{Finding, Id, LIMIT, Severity, boot};
use host::hooks::install::is_overwritten;
use host::paths::Host;
use host::{command, files};
use lease::records::Records;
use model::text::shell_word;
use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

pub(super) fn findings(host: &Host, store: &Records) -> Vec<Finding> {
    let systemd = Systemd::ask(host);
    let daemon = Daemon::find(host);
    let mut findings = vec![daemon.finding(host)];
    findings.extend(hook(host, &daemon, &systemd));
    findings.extend(units(host, &systemd));
    findings.push(udev(host));
    findings.push(state(host));
    findings.extend(attention(store));
    findings
}

fn hook(host: &Host, daemon: &Daemon, systemd: &Systemd) -> Vec<Finding> {
    const ID: Id = Id::Hook;
    let (own, hook) = (host.path("usr/sbin/vfpool-hook"), host.path("etc/libvirt/hooks/qemu"));
    let Ok(own_data) = fs::metadata(&own) else {
        return vec![
            Finding::failure(ID, "The hook's program is not there").shown_by_file(&own).cured_by(boot::reinstall(host)),
        ];
    };
    if is_overwritten(host) {
        return vec![
            Finding::failure(ID, "Another hook was written over vfpool's program")
                .shown_by(format!("{} is no program of vfpool's", own.display()))
                .cured_by(format!(
                    "Run `vfpool hook install`, which keeps that hook to be called after it. {}",
                    boot::reinstall(host)
                )),
        ];
    }
    let link = format!("ln -sfn {} {}", own.display(), hook.display());
    let Ok(data) = fs::metadata(&hook) else {
        let folder = hook.parent().unwrap_or(&hook).display();
        return vec![
            Finding::failure(ID, "libvirt has no hook, so that a guest's devices are taken without us")
                .shown_by(format!("{} is not there, or leads nowhere", hook.display()))
                .cured_by(daemon.then_reload(&format!("mkdir -p {folder} && {link}"))),
        ];
    };
    let mut findings = Vec::new();
    let is_ours = (data.dev(), data.ino()) == (own_data.dev(), own_data.ino());
    if !is_ours {
        let finding = another_hook(&hook, &own, daemon);
        if finding.state == Severity::Failure {
            return vec![finding];
        }
        findings.push(finding);
    }
    if data.permissions().mode() & 0o111 == 0 {
        findings.push(
            Finding::failure(ID, "The hook is not executable, so that libvirt does not run it")
                .shown_by(format!("mode {:o} of {}", data.mode() & 0o7777, resolved(&hook).display()))
                .cured_by(
                    daemon.then_reload(&format!("chmod 755 {}", shell_word(&resolved(&hook).display().to_string()))),
                ),
        );
        return findings;
    }
    // What another hook calls is run as from libvirtd itself.
    findings.extend(if is_ours { confinement(host, &hook, &own, &link) } else { None });
    findings.extend(label(host, &hook, &own));
    findings.extend(known(host, &hook, &data, daemon, systemd));
    if findings.is_empty() {
        let seen =
            if daemon.since.is_some() { "is installed, and the running libvirt knows it" } else { "is installed" };
        findings.push(Finding::ok(ID, format!("The hook {seen}")).shown_by_file(&hook));
    }
    findings
}

fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Another hook may call ours.
fn another_hook(hook: &Path, own: &Path, daemon: &Daemon) -> Finding {
    const ID: Id = Id::Hook;
    let text = fs::read(hook).unwrap_or_default();
    let name = b"vfpool-hook";
    if text.starts_with(b"#!") && text.windows(name.len()).any(|part| part == name) {
        return Finding::note(ID, "libvirt's hook is another one, which names ours").shown_by_file(hook);
    }
    Finding::failure(ID, "libvirt's hook is another one, so that a guest's devices are taken without us")
        .shown_by(format!("{} is not {}", hook.display(), own.display()))
        .cured_by(format!("{}: that one is kept, and called after it", daemon.then_reload("vfpool hook install")))
}

/// AppArmor's profile of libvirtd runs what stands right in these folders unconfined. In the hooks' own folder, a
/// program is within libvirtd's limits, in which no module can be loaded; elsewhere, it is not run.
fn confinement(host: &Host, hook: &Path, own: &Path, link: &str) -> Option<Finding> {
    let file = host.path("sys/kernel/security/apparmor/profiles");
    let profiles = files::read(&file).ok()?;
    let is_daemon = |name: &str| DAEMONS.iter().any(|(daemon, _)| name.rsplit('/').next() == Some(*daemon));
    let profile = profiles.lines().filter_map(|line| line.strip_suffix(" (enforce)")).find(|name| is_daemon(name))?;
    let folders = ["usr/sbin", "usr/bin", "sbin", "bin"].map(|folder| resolved(&host.path(folder)));
    let at = resolved(hook);
    if folders.iter().any(|folder| at.parent() == Some(folder)) {
        return None;
    }
    let ours = resolved(own);
    let is_well_placed = folders.iter().any(|folder| ours.parent() == Some(folder));
    let remedy = if is_well_placed { format!("Run `{link}`") } else { boot::reinstall(host) };
    Some(
        Finding::failure(
            Id::Hook,
            format!("AppArmor keeps the hook from its work: it may only stand in {}", folders[0].display()),
        )
        .shown_by(format!("{} has {profile} (enforce), and the hook is {}", file.display(), at.display()))
        .cured_by(remedy),
    )
}

/// The policy itself tells which label the hook has to have.
fn label(host: &Host, hook: &Path, own: &Path) -> Option<Finding> {
    if !host.path("sys/fs/selinux/enforce").exists() {
        return None;
    }
    let mut command = Command::new(host.path("sbin/restorecon"));
    let asked = command::communicate(command.arg("-nv").args([hook, own]), b"", LIMIT).ok()?;
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    let line = said.lines().next()?;
    Some(
        Finding::failure(Id::Hook, "The hook has a label with which SELinux may keep libvirt from running it")
            .shown_by(format!("restorecon -nv: {line}"))
            .cured_by(format!("Run `restorecon -v {} {}`", hook.display(), own.display())),
    )
}

/// libvirtd looks for the hook when it starts and when it reloads, and never else.
fn known(host: &Host, hook: &Path, data: &Metadata, daemon: &Daemon, systemd: &Systemd) -> Option<Finding> {
    let since = daemon.since?;
    let changed = |data: &Metadata| {
        let (seconds, nanoseconds) = (u64::try_from(data.ctime()).ok()?, u32::try_from(data.ctime_nsec()).ok()?);
        Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds))
    };
    // Both the link and what it leads to had to be there, and executable.
    let link = fs::symlink_metadata(hook).ok()?;
    let there = [&link, data].into_iter().filter_map(changed).max()?;
    let reloaded = systemd.reloaded(&format!("{}.service", daemon.name));
    // A reload in the very second in which the hook came is one after it: the one who adds the hook reloads then.
    let is_reloaded = reloaded.is_some_and(|reloaded| reloaded + Duration::from_secs(1) > there);
    if since >= there || is_reloaded {
        return None;
    }
    let name = daemon.name;
    Some(
        Finding::failure(
            Id::Hook,
            format!("The running {name} does not know the hook: it looks for it only when it starts"),
        )
        .shown_by(format!(
            "{} is older than {}",
            host.path(format!("run/{name}.pid")).display(),
            if changed(&link) == Some(there) { hook.to_owned() } else { resolved(hook) }.display()
        ))
        .cured_by(format!("Run `systemctl reload {name}`")),
    )
}

fn udev(host: &Host) -> Finding {
    const ID: Id = Id::Udev;
    let rule = "60-vfpool.rules";
    let (ours, helper) = (host.path("usr/lib/udev/rules.d").join(rule), host.path("usr/lib/udev/vfpool-device"));
    if let Some(missing) = [&ours, &helper].into_iter().find(|path| !path.exists()) {
        return Finding::failure(ID, "udev does not tell us of new PFs and VFs")
            .shown_by(format!("{} is not there", missing.display()))
            .cured_by(format!("{}, then run `udevadm control --reload`", boot::reinstall(host)));
    }
    let is_executable = fs::metadata(&helper).is_ok_and(|data| data.permissions().mode() & 0o111 != 0);
    if !is_executable {
        return Finding::failure(ID, "udev cannot run our helper")
            .shown_by(format!("{} is not executable", helper.display()))
            .cured_by(format!("Run `chmod 755 {}`", helper.display()));
    }
    for folder in ["etc/udev/rules.d", "run/udev/rules.d"] {
        let other = host.path(folder).join(rule);
        if fs::symlink_metadata(&other).is_ok() {
            return Finding::failure(ID, "Another file takes the place of our rule, so that udev tells us nothing")
                .shown_by_file(&other)
                .cured_by(format!("Run `rm {} && udevadm control --reload`", other.display()));
        }
    }
    Finding::ok(ID, "udev's rule is installed").shown_by_file(&ours)
}

fn state(host: &Host) -> Finding {
    const ID: Id = Id::State;
    let folder = host.state();
    let remedy = "Run `systemd-tmpfiles --create vfpool.conf`";
    let wrong = |what: &str, path: &Path, shown: String| {
        let what = format!("{} {what}", path.display());
        Finding::failure(ID, what).shown_by(shown).cured_by(remedy)
    };
    for path in [folder.clone(), folder.join("queue/setup"), folder.join("queue/reconcile")] {
        match fs::symlink_metadata(&path) {
            Err(cause) => return wrong("is not there: leases and work to do have no place", &path, cause.to_string()),
            Ok(data) if !data.is_dir() => {
                let finding = wrong("is no folder", &path, path.display().to_string());
                return finding
                    .cured_by(format!("Run `rm {} && systemd-tmpfiles --create vfpool.conf`", path.display()));
            }
            Ok(data) if data.mode() & 0o077 != 0 => {
                return wrong("is open to others than root", &path, format!("its mode is {:o}", data.mode() & 0o7777));
            }
            Ok(data) if Some(data.uid()) != super::owner(&host.path("")) => {
                return wrong("is not root's", &path, format!("its owner is uid {}", data.uid()));
            }
            Ok(_) => {}
        }
    }
    Finding::ok(ID, "Leases have their place").shown_by_file(&folder)
}

fn attention(store: &Records) -> Vec<Finding> {
    let guests = store.guests_needing_attention().unwrap_or_default();
    let finding = |guest: &String| {
        let why = store.attention(guest).ok().flatten().unwrap_or_default();
        let what = format!("Not all devices of guest '{guest}' could be reattached: {why}");
        Finding::warning(Id::Leases, what).cured_by("Run `vfpool reconcile`")
    };
    guests.iter().map(finding).collect()
}
