//! `vfpool`, the admin's command: one file for each thing that it shows. What it changes is done by `lease` and
//! `guest`.
//!
//! The only crate with clap, serde_json and colours.

pub mod check;
mod cli;
pub mod dumpxml;
pub mod explain;
pub mod list;
mod output;

use crate::check::{Report, Severity};
use crate::dumpxml::Element;
use crate::list::{Filter, Listing};
use clap::Parser;
use cli::{Arguments, Command, Dry, Hook, ListArguments};
use guest::reconcile;
use guest::requests::{Rom, Shape};
use guest::session::Session;
use host::hooks::install;
use host::log::Log;
use host::paths::Host;
use host::queue::Queue;
use lease::left_behind::left_behind;
use lease::records::Records;
use lease::vfs::Setup;
use lease::{Caller, Leases};
use model::domain::{self, Domain};
use model::error::{Error, Result};
use output::{all, complain, confirm, show, written};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// Reads the arguments and does what they say, on the host below `root`. Without a root of its own, only for root: who
/// has which device, and the guests' definitions, are not for everybody.
pub fn run(root: Option<std::ffi::OsString>) -> ExitCode {
    let arguments = Arguments::parse();
    let is_real = root.is_none();
    let mut host = Host::new(root.unwrap_or_else(|| "/".into()));
    let mut log = Log::new(&host, "vfpool");
    if arguments.command.is_dry() {
        host = host.dry();
        // The standard output of one is for the XML.
        let is_rewrite = matches!(arguments.command, Command::Rewrite { .. });
        log = if is_rewrite { log.dry_run(io::stderr()) } else { log.dry_run(io::stdout()) };
    }
    let allowed = if is_real { expect_root() } else { Ok(()) };
    allowed.and_then(|()| dispatch(&host, &log, &arguments.command)).unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

fn dispatch(host: &Host, log: &Log, command: &Command) -> Result<ExitCode> {
    let done = match command {
        Command::Check { json } => return print_check(host, log, *json),
        Command::Explain { name, guest, json } => {
            let explained = explain::explain(host, &Leases::new(host, log), name, *guest)?;
            let text = if *json { explained.json()? } else { explained.text() };
            written(io::stdout().write_all(text.as_bytes()))
        }
        Command::List(arguments) => print_list(host, log, arguments),
        Command::Dumpxml { name, hostdev, interface } => {
            let element = match (hostdev, interface) {
                (true, _) => Element::Hostdev,
                (_, true) => Element::Interface,
                _ => Element::Either,
            };
            let (xml, errors) = dumpxml::xml(host, log, name, element)?;
            written(io::stdout().write_all(xml.as_bytes()))?;
            all(errors)
        }
        Command::Reconcile { queued: true, dry: Dry { dry_run: false } } => reconcile::queued(host, log),
        Command::Reconcile { .. } => all(reconcile::once(host, log)?),
        Command::Setup { pf, queued, .. } => setup(host, log, pf, *queued),
        Command::Start(arguments) => Session::new(host, log).start(&arguments.guest, &arguments.options()),
        Command::Hook { action, .. } => {
            let lines = match action {
                Hook::Install => vec![install::install(host)?],
                Hook::Remove => [vec![install::remove(host)?], left_behind(&Records::new(host, log))?].concat(),
            };
            written(io::stdout().write_all((lines.join("\n") + "\n").as_bytes()))
        }
        Command::Rewrite { .. } => rewrite(&Leases::new(host, log)),
        Command::Adopt { guest, pool, device, rom_off, .. } => {
            let rom = if *rom_off { Rom::Off } else { Rom::Keep };
            edit(host, log, guest, |session| session.adopt(guest, pool, *device, rom))
        }
        Command::Attach { guest, pool, interface, rom_off, scope, .. } => edit(host, log, guest, |session| {
            let rom = if *rom_off { Rom::Off } else { Rom::Keep };
            let shape = Shape { mac: interface.as_deref(), rom };
            session.attach(guest, pool, shape, scope.scope())
        }),
        Command::Detach { guest, pool, device, scope, force, .. } => edit(host, log, guest, |session| {
            session.detach(guest, pool, *device, scope.scope(), |question| confirm(question, *force))
        }),
        Command::Release { guest, device, force, .. } => {
            let leases = Leases::new(host, log);
            let released = leases.release_by_admin(guest, *device, *force);
            released.map(|line| show(host, &line)).map_err(|error| error.during(format_args!("guest '{guest}'")))
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn print_check(host: &Host, log: &Log, json: bool) -> Result<ExitCode> {
    let report = Report::of(host, log);
    // Takes the colours out where no terminal wants them.
    let mut out = anstream::stdout().lock();
    let written = if json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        report.write(&mut out)
    };
    self::written(written)?;
    Ok(match report.state {
        Severity::Ok | Severity::Note => ExitCode::SUCCESS,
        Severity::Warning => ExitCode::from(3),
        Severity::Failure => ExitCode::FAILURE,
    })
}

fn edit(host: &Host, log: &Log, guest: &str, edit: impl FnOnce(&Session) -> Result<String>) -> Result<()> {
    let edited = edit(&Session::new(host, log));
    edited.map(|line| show(host, &line)).map_err(|error| error.during(format_args!("guest '{guest}'")))
}

fn rewrite(leases: &Leases) -> Result<()> {
    let domain = Domain::parse(&domain::read(io::stdin().lock())?)?;
    let guest = &domain.name;
    if guest.is_empty() {
        return Err(Error::new("The domain XML has no <name>"));
    }
    let resolved =
        leases.resolve(guest, &domain, Caller::Admin).map_err(|error| error.during(format_args!("guest '{guest}'")))?;
    let written = io::stdout().write_all(resolved.as_deref().unwrap_or(domain.xml()));
    written.map_err(|cause| Error::new(format!("Cannot write the XML: {cause}")))
}

fn setup(host: &Host, log: &Log, pfs: &[String], queued: bool) -> Result<()> {
    loop {
        if queued {
            // First: an entry that is added from now on is for the next round.
            Queue::Setup.take(host)?;
        }
        let setup = Setup::new(host, log);
        let report = if pfs.is_empty() { setup.all() } else { setup.pfs(pfs) };
        for warning in &report.warnings {
            complain(&format!("warning: {warning}"));
        }
        // A dry run leaves the queue as it is.
        if !queued || host.is_dry() || Queue::Setup.is_empty(host)? {
            return all(report.failures);
        }
    }
}

fn print_list(host: &Host, log: &Log, arguments: &ListArguments) -> Result<()> {
    let ListArguments { pool, groups, watch, json, metrics } = arguments;
    let gather = || Listing::gather(host, log, &Filter { pools: pool, groups: *groups });
    let is_plain = anstream::AutoStream::choice(&io::stdout()) == anstream::ColorChoice::Never;
    let tree = |inventory: &Listing| {
        let text = inventory.to_string();
        if is_plain { anstream::adapter::strip_str(&text).to_string() } else { text }
    };
    if *watch {
        let draw = || match gather() {
            Ok(inventory) => {
                inventory.errors.iter().fold(tree(&inventory), |text, error| format!("{text}vfpool: {error}\n"))
            }
            Err(error) => format!("vfpool: {error}\n"),
        };
        return list::watch(draw, io::stdout().is_terminal(), &mut io::stdout());
    }
    let inventory = gather()?;
    let text = match (json, metrics) {
        (true, _) => inventory.json()?,
        (_, true) => inventory.metrics(),
        _ => tree(&inventory),
    };
    written(io::stdout().write_all(text.as_bytes()))?;
    match all(inventory.errors) {
        // The metrics tell of them, so the file that they are written to is to be used.
        Err(error) if *metrics => {
            complain(&error);
            Ok(())
        }
        result => result,
    }
}

/// Who has what is for root's eyes only, and so are guests' definitions.
fn expect_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Error::new("this needs root; run it with sudo")) }
}
