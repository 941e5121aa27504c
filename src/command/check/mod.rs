//! `vfpool check`: whether this host is ready, and what to do where it is not.
//!
//! Looks and changes nothing, takes no lock, and asks libvirt nothing, so that it works when libvirtd is down. Each
//! finding says what is so, what shows it, and what cures it on this very host: a command in backquotes cures it when
//! it is run as it stands. What a guest's start would refuse is reported here before the start.

mod boot;
mod daemon;
mod guests;
mod install;
mod platform;
mod pools;
mod systemd;

use crate::output::{self, Exit};
use anstyle::{AnsiColor, Style};
use host::log::Log;
use host::paths::Host;
use lease::Leases;
use model::error::{Error, Result};
use model::text::one_line;
use serde::Serialize;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fmt, fs};

/// What was found on a host.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Report {
    /// Of this document's shape; 1.
    version: u32,
    /// The worst state of any finding; `ok` where that is a note.
    pub state: Severity,
    /// In the order in which a guest's device depends on them: platform, installation, pools, guests.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// What it is about, in one word that stays the same.
    pub id: Id,
    /// How bad it is.
    pub state: Severity,
    /// What is so; one line.
    pub what: String,
    /// The file, or the value in it, that shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// What to do on this host, with commands in backquotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // each is explained in vfpool(8)
pub enum Id {
    Settings,
    Iommu,
    InterruptRemapping,
    UnsafeInterrupts,
    Vfio,
    Libvirtd,
    Hook,
    Units,
    Udev,
    State,
    Leases,
    Pool,
    Pf,
    Vfs,
    Group,
    Network,
    Request,
    Guest,
    Memory,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// Works now, or for most guests; will bite.
    Warning,
    /// A guest cannot have its device until this is fixed.
    Failure,
}

impl Severity {
    fn style(self) -> Style {
        let color = match self {
            Self::Ok => AnsiColor::Green,
            Self::Note => AnsiColor::Cyan,
            Self::Warning => AnsiColor::Yellow,
            Self::Failure => AnsiColor::Red,
        };
        color.on_default()
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Failure => "failure",
        })
    }
}

impl Finding {
    /// Names from files and guests may hold anything; each part stays one line.
    fn new(id: Id, state: Severity, what: impl AsRef<str>) -> Self {
        Self { id, state, what: one_line(what.as_ref()), evidence: None, remedy: None }
    }

    fn ok(id: Id, what: impl AsRef<str>) -> Self {
        Self::new(id, Severity::Ok, what)
    }

    fn note(id: Id, what: impl AsRef<str>) -> Self {
        Self::new(id, Severity::Note, what)
    }

    fn warning(id: Id, what: impl AsRef<str>) -> Self {
        Self::new(id, Severity::Warning, what)
    }

    fn failure(id: Id, what: impl AsRef<str>) -> Self {
        Self::new(id, Severity::Failure, what)
    }

    fn error(id: Id, state: Severity, error: &Error) -> Self {
        Self { remedy: error.what_to_do().map(one_line), ..Self::new(id, state, error.reason()) }
    }

    fn shown_by(self, evidence: impl AsRef<str>) -> Self {
        Self { evidence: Some(one_line(evidence.as_ref())), ..self }
    }

    fn shown_by_file(self, path: impl AsRef<Path>) -> Self {
        self.shown_by(path.as_ref().display().to_string())
    }

    fn cured_by(self, remedy: impl AsRef<str>) -> Self {
        Self { remedy: Some(one_line(remedy.as_ref())), ..self }
    }
}

impl Report {
    /// Looks at everything.
    pub fn of(host: &Host, log: &Log) -> Self {
        let context = Context { host, leases: Leases::load(host, log) };
        let settings_error = context.leases.settings_error().map(|error| settings_error(host, error));
        let mut findings: Vec<Finding> = settings_error.into_iter().collect();
        findings.extend(platform::findings(host));
        findings.extend(install::findings(host, context.leases.store()));
        findings.extend(context.pools());
        findings.extend(context.guests());
        let worst = findings.iter().map(|finding| finding.state).max().unwrap_or(Severity::Ok);
        let state = if worst == Severity::Note { Severity::Ok } else { worst };
        Self { version: 1, state, findings }
    }

    /// Tells it to a person, with colours, which the caller takes out where they do not belong.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for Finding { state, what, evidence, remedy, .. } in &self.findings {
            let style = state.style();
            writeln!(out, "{style}{state:<9}{style:#}{what}")?;
            if let Some(evidence) = evidence {
                writeln!(out, "         shown by: {evidence}")?;
            }
            if let Some(remedy) = remedy {
                writeln!(out, "         remedy: {remedy}")?;
            }
        }
        let count = |state: Severity, one: &str| match self.findings.iter().filter(|found| found.state == state).count()
        {
            0 => None,
            1 => Some(format!("1 {one}")),
            many => Some(format!("{many} {one}s")),
        };
        let counts: Vec<String> =
            [count(Severity::Failure, "failure"), count(Severity::Warning, "warning")].into_iter().flatten().collect();
        let (verdict, colon) = match self.state {
            Severity::Failure => ("not ready", ": "),
            Severity::Warning => ("ready", ", with "),
            Severity::Ok | Severity::Note => ("ready", ""),
        };
        let style = self.state.style();
        writeln!(out, "{style}{verdict}{style:#}{colon}{}", counts.join(" and "))
    }
}

fn settings_error(host: &Host, error: &Error) -> Finding {
    let path = host.settings();
    let remedy = format!("Mend {0}, or remove it if nothing has to be set", path.display());
    Finding::failure(Id::Settings, error.to_string()).shown_by_file(&path).cured_by(remedy)
}

/// How long another program may take to tell something.
const LIMIT: Duration = Duration::from_secs(10);

/// Whose a file is.
fn owner(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|data| data.uid())
}

/// What pools and guests are judged by.
struct Context<'a> {
    host: &'a Host,
    leases: Leases<'a>,
}

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<Exit> {
    let report = Report::of(host, log);
    // Removes the colours where no terminal wants them.
    let mut out = anstream::stdout().lock();
    let written = if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        report.write(&mut out)
    };
    output::written(written)?;
    Ok(match report.state {
        Severity::Ok | Severity::Note => Exit::Done,
        Severity::Warning => Exit::Warnings,
        Severity::Failure => Exit::Failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_makes_lines_of_its_own() {
        let finding =
            Finding::error(Id::Pool, Severity::Failure, &Error::new("pool 'a\n\u{1b}[2Jb' is odd").remedy("Mend\nit"));
        assert_eq!(finding.what, "pool 'a\\n\\u{1b}[2Jb' is odd");
        assert_eq!(finding.remedy.as_deref(), Some("Mend\\nit"));
    }
}
