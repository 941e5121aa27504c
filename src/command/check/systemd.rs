//! The units, and what systemd tells of them. Source: systemd.unit(5).

use super::daemon::DAEMONS;
use super::{Finding, Id, LIMIT, boot};
use host::paths::Host;
use host::{command, files};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// The units that have to be enabled, and what then starts them.
const ENABLED: [(&str, &str); 5] = [
    ("vfpool-setup.service", "multi-user.target"),
    ("vfpool-setup.path", "multi-user.target"),
    ("vfpool-reconcile.path", "multi-user.target"),
    ("vfpool-definitions.path", "multi-user.target"),
    ("vfpool-definitions.service", "libvirtd.service"),
];

/// What systemd knows of units: name to properties. Nothing where there is no systemd to ask.
pub(super) struct Systemd(HashMap<String, HashMap<String, String>>);

impl Systemd {
    pub(super) fn ask(host: &Host) -> Self {
        let daemons = DAEMONS.iter().map(|(daemon, _)| format!("{daemon}.service"));
        let units = ENABLED.iter().map(|(unit, _)| *unit).chain(["vfpool-reconcile.service"]);
        let units = units.map(str::to_owned).chain(daemons);
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
    pub(super) fn reloaded(&self, unit: &str) -> Option<SystemTime> {
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

pub(super) fn units(host: &Host, systemd: &Systemd) -> Vec<Finding> {
    const ID: Id = Id::Units;
    let (ours, admins) = (host.path("usr/lib/systemd/system"), host.path("etc/systemd/system"));
    let wants: Vec<PathBuf> = files::names(&admins)
        .unwrap_or_default()
        .iter()
        .filter(|name| Path::new(name).extension().is_some_and(|kind| kind == "wants" || kind == "requires"))
        .map(|name| admins.join(name))
        .collect();
    let mut findings = Vec::new();
    for (unit, starter) in ENABLED {
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
            let link = admins.join(format!("{starter}.wants")).join(unit);
            findings.push(failure("is not enabled", link, enable));
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
