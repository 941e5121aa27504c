//! What the package brings: the hook and whether libvirtd knows it, units, udev's rule, the state's folder.
//! Sources: libvirt `docs/hooks.rst`, `src/util/virhook.c` (hooks are looked for at the start and at SIGHUP, and have
//! to be executable then); systemd.unit(5); udev(7).

use super::{Finding, Id, Severity, boot};
use host::paths::Host;
use host::{command, files, process};
use lease::records::Records;
use model::text::shell_word;
use std::collections::HashMap;
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

/// How long another program may take to tell something.
const LIMIT: Duration = Duration::from_secs(10);

/// The units that have to be enabled.
const ENABLED: [&str; 4] =
    ["vfpool-setup.service", "vfpool-setup.path", "vfpool-reconcile.path", "vfpool-definitions.path"];

/// The daemons that may run the hook.
const DAEMONS: [(&str, &str); 2] = [("virtqemud", "virtqemud-sock"), ("libvirtd", "libvirt-sock")];

/// What systemd knows of units: name to properties. Nothing where there is no systemd to ask.
struct Systemd(HashMap<String, HashMap<String, String>>);

impl Systemd {
    fn ask(host: &Host) -> Self {
        let daemons = DAEMONS.iter().map(|(daemon, _)| format!("{daemon}.service"));
        let services = ["vfpool-reconcile.service", "vfpool-definitions.service"];
        let units = ENABLED.iter().chain(&services).map(|unit| (*unit).to_owned()).chain(daemons);
        let mut command = Command::new(host.path("bin/systemctl"));
        // Without `-p`: systemd 219 then stops at the first unit that lacks one of the properties.
        let command = command.arg("show").args(units).env("TZ", "UTC").env("LC_ALL", "C");
        // One that does not answer is as good as none.
        let shown = command::communicate(command, b"", LIMIT);
        let shown = shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let unit = |block: &str| -> Option<(String, HashMap<String, String>)> {
            let properties = block.lines().filter_map(|line| line.split_once('='));
            let properties: HashMap<String, String> =
                properties.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            Some((properties.get("Id")?.clone(), properties))
        };
        Self(shown.split("\n\n").filter_map(unit).collect())
    }

    fn property(&self, unit: &str, name: &str) -> Option<&str> {
        self.0.get(unit)?.get(name).map(String::as_str)
    }

    /// When systemd last started this unit or had it reload; a second is the best it tells. It forgets the run of
    /// `ExecReload` when it reads its units again, and older ones tell of no change of state.
    fn reloaded(&self, unit: &str) -> Option<SystemTime> {
        let run = self.property(unit, "ExecReload").and_then(|run| run.split_once("start_time=[")?.1.split(']').next());
        let change = self.property(unit, "StateChangeTimestamp");
        run.into_iter().chain(change).filter_map(Self::time).max()
    }

    fn time(text: &str) -> Option<SystemTime> {
        // Thu 2026-11-19 12:02:26 UTC
        let mut words = text.split_whitespace().skip(1);
        let numbers = |text: &str, by: char| -> Option<[u64; 3]> {
            let numbers: Vec<u64> = text.split(by).map(|number| number.parse().ok()).collect::<Option<_>>()?;
            numbers.try_into().ok()
        };
        let ([year, month, day], [hour, minute, second]) = (numbers(words.next()?, '-')?, numbers(words.next()?, ':')?);
        // Days since 1970-01-01, counted in years that begin in March: leap days come last.
        let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
        let days =
            (year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day).checked_sub(719_469)?;
        let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }
}

/// The daemon that runs the hook on this host.
struct Daemon {
    name: &'static str,
    /// When it started; `None`: it does not run.
    since: Option<SystemTime>,
    /// Whether systemd starts it when a client connects.
    is_awaited: bool,
}

impl Daemon {
    fn find(host: &Host) -> Self {
        let sockets = files::read(&host.path("proc/net/unix")).unwrap_or_default();
        // Flags with __SO_ACCEPTCON: a program listens. Without a daemon, that is systemd.
        let listens = |socket: &str| {
            let is_it = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.get(3) == Some(&"00010000")
                    && words.last().is_some_and(|path| path.ends_with(&format!("/{socket}")))
            };
            sockets.lines().any(is_it)
        };
        let found = DAEMONS.map(|(name, socket)| {
            let file = host.path(format!("run/{name}.pid"));
            let pid = files::read(&file).ok().and_then(|pid| pid.parse::<i32>().ok());
            let is_it = |pid: i32| {
                let comm = files::read(&host.process(pid).join("comm"));
                process::with_pid(host, pid).is_some() && comm.is_ok_and(|comm| comm == name)
            };
            // libvirt writes the file when it starts.
            let written = || fs::metadata(&file).and_then(|data| data.modified()).ok();
            Self { name, since: pid.filter(|pid| is_it(*pid)).and_then(|_| written()), is_awaited: listens(socket) }
        });
        let [virtqemud, libvirtd] = found;
        // Beside virtqemud, libvirt's old socket is only a proxy's.
        if virtqemud.since.is_some() || virtqemud.is_awaited && libvirtd.since.is_none() { virtqemud } else { libvirtd }
    }

    fn finding(&self, host: &Host) -> Finding {
        const ID: Id = Id::Libvirtd;
        let name = self.name;
        if self.since.is_some() {
            return Finding::ok(ID, format!("{name} runs")).shown_by_file(host.path(format!("run/{name}.pid")));
        }
        let sockets = host.path("proc/net/unix");
        if self.is_awaited {
            return Finding::ok(ID, format!("{name} is started when it is called")).shown_by_file(&sockets);
        }
        Finding::failure(ID, format!("{name} is down: no guest can be started; the rest was checked without it"))
            .shown_by(format!("{} has no socket of libvirt that is listened on", sockets.display()))
            .cured_by(format!("Run `systemctl start {name}`"))
    }

    /// A command, and that libvirtd looks again after it.
    fn then_reload(&self, command: &str) -> String {
        match self.since {
            Some(_) => format!("Run `{command} && systemctl reload {}`", self.name),
            None => format!("Run `{command}`"),
        }
    }
}

fn hook(host: &Host, daemon: &Daemon, systemd: &Systemd) -> Vec<Finding> {
    const ID: Id = Id::Hook;
    let (own, hook) = (host.path("usr/sbin/vfpool-hook"), host.path("etc/libvirt/hooks/qemu"));
    let Ok(own_data) = fs::metadata(&own) else {
        return vec![
            Finding::failure(ID, "The hook's program is not there").shown_by_file(&own).cured_by(boot::reinstall(host)),
        ];
    };
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

fn units(host: &Host, systemd: &Systemd) -> Vec<Finding> {
    const ID: Id = Id::Units;
    let (ours, admins) = (host.path("usr/lib/systemd/system"), host.path("etc/systemd/system"));
    let wants: Vec<PathBuf> = files::names(&admins)
        .unwrap_or_default()
        .iter()
        .filter(|name| Path::new(name).extension().is_some_and(|kind| kind == "wants" || kind == "requires"))
        .map(|name| admins.join(name))
        .collect();
    let mut findings = Vec::new();
    for unit in ENABLED {
        let failure = |what: &str, shown: PathBuf, remedy: String| {
            Finding::failure(ID, format!("{unit} {what}")).shown_by_file(shown).cured_by(remedy)
        };
        let enable = format!("Run `systemctl enable --now {unit}`");
        let watches = unit.strip_suffix(".path").is_some();
        let is_enabled = wants.iter().any(|folder| fs::symlink_metadata(folder.join(unit)).is_ok());
        if fs::read_link(admins.join(unit)).is_ok_and(|target| target == Path::new("/dev/null")) {
            let remedy = format!("Run `systemctl unmask {unit} && systemctl enable --now {unit}`");
            findings.push(failure("is masked", admins.join(unit), remedy));
        } else if !ours.join(unit).exists() && !admins.join(unit).exists() {
            findings.push(failure("is not installed", ours.join(unit), boot::reinstall(host)));
        } else if !is_enabled {
            findings.push(failure("is not enabled", admins.join("multi-user.target.wants").join(unit), enable));
        } else if let Some(state) = systemd.property(unit, "ActiveState").filter(|state| watches && *state != "active")
        {
            let finding = Finding::failure(ID, format!("{unit} is enabled but not active"));
            findings.push(finding.shown_by(format!("systemctl: ActiveState={state}")).cured_by(enable));
        }
    }
    for service in ["vfpool-setup.service", "vfpool-reconcile.service", "vfpool-definitions.service"] {
        let Some(result) = systemd.property(service, "Result").filter(|result| *result != "success") else { continue };
        findings.push(
            Finding::warning(ID, format!("The last run of {service} failed"))
                .shown_by(format!("systemctl: Result={result}"))
                .cured_by(format!(
                    "Read `journalctl -u {service}`, mend what it tells, then run `systemctl start {service}`"
                )),
        );
    }
    if findings.is_empty() {
        let shown = admins.join("multi-user.target.wants");
        findings.push(Finding::ok(ID, "The units are enabled").shown_by_file(shown));
    }
    findings
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
