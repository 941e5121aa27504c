//! `vfpool`, the admin's command: one file or folder for each of its commands, with the arguments and what is printed.
//! What a command changes is done by `lease` and `guest`.
//!
//! The only crate with clap, serde_json and colours.

mod adopt;
mod attach;
pub mod check;
mod cli;
mod detach;
mod dumpxml;
pub mod explain;
mod hook;
pub mod list;
mod output;
mod reconcile;
mod release;
mod rewrite;
mod setup;
mod start;

use clap::Parser;
use cli::{Arguments, Command};
use host::log::Log;
use host::paths::Host;
use model::error::{Error, Result};
use output::{Exit, complain};
use std::io;
use std::process::ExitCode;

/// Reads the arguments and does what they say, on the host below `root`. Without a root of its own, only for root: who
/// has which device, and the guests' definitions, are not for everybody.
pub fn run(root: Option<std::ffi::OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(shown) => {
            let _ = shown.print();
            // Help and version are shown so, too.
            return if shown.use_stderr() { Exit::WrongUse } else { Exit::Done }.into();
        }
    };
    let is_real = root.is_none();
    let mut host = Host::new(root.unwrap_or_else(|| "/".into()));
    let mut log = Log::new(&host, "vfpool");
    if arguments.command.is_dry() {
        host = host.dry();
        // The standard output of one is for the XML.
        let is_rewrite = matches!(arguments.command, Command::Rewrite(_));
        log = if is_rewrite { log.dry_run(io::stderr()) } else { log.dry_run(io::stdout()) };
    }
    let allowed = if is_real { expect_root() } else { Ok(()) };
    let exit = allowed.and_then(|()| dispatch(&host, &log, &arguments.command)).unwrap_or_else(|error| {
        complain(&error);
        Exit::Failed
    });
    exit.into()
}

fn dispatch(host: &Host, log: &Log, command: &Command) -> Result<Exit> {
    let done = match command {
        Command::Check(arguments) => return check::run(host, log, arguments),
        Command::List(arguments) => list::run(host, log, arguments),
        Command::Explain(arguments) => explain::run(host, log, arguments),
        Command::Dumpxml(arguments) => dumpxml::run(host, log, arguments),
        Command::Adopt(arguments) => adopt::run(host, log, arguments),
        Command::Attach(arguments) => attach::run(host, log, arguments),
        Command::Detach(arguments) => detach::run(host, log, arguments),
        Command::Start(arguments) => start::run(host, log, arguments),
        Command::Rewrite(_) => rewrite::run(host, log),
        Command::Setup(arguments) => setup::run(host, log, arguments),
        Command::Reconcile(arguments) => reconcile::run(host, log, arguments),
        Command::Release(arguments) => release::run(host, log, arguments),
        Command::Hook(arguments) => hook::run(host, log, arguments),
    };
    done.map(|()| Exit::Done)
}

/// Who has what is for root's eyes only, and so are guests' definitions.
fn expect_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Error::new("this needs root; run it with sudo")) }
}
