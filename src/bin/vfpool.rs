//! `vfpool`: the admin's command.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use vfpool::error::{Error, Result};
use vfpool::event::Events;
use vfpool::host::Host;
use vfpool::lease::Store;
use vfpool::log::Log;

/// PCI passthrough and SR-IOV on libvirt/KVM hosts that runs by itself.
#[derive(Parser)]
#[command(version, after_help = "Exit status: 0 done, 1 something could not be done, 2 wrong use.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show which guest holds which devices, and what could not be given back
    List,
    /// Give back what guests left behind that are gone without a word
    Reconcile,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let host = Host::new(std::env::var_os("VFPOOL_ROOT").unwrap_or_else(|| "/".into()));
    let log = Log::new(&host, "vfpool");
    let result = match arguments.command {
        Command::List => list(&host, &log),
        Command::Reconcile => reconcile(&host, &log),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("vfpool: {error}");
    ExitCode::FAILURE
}

fn reconcile(host: &Host, log: &Log) -> Result<()> {
    all(Events::new(host, log).reconcile()?)
}

fn list(host: &Host, log: &Log) -> Result<()> {
    let store = Store::new(host, log);
    let mut failures = Vec::new();
    for guest in store.guests()? {
        // A name may hold anything; here, too, it must not make lines of its own.
        let name = guest.escape_debug();
        match store.lock()?.lease(&guest) {
            Ok(lease) => {
                for held in lease.iter().flat_map(|lease| &lease.devices) {
                    let driver = held.driver.as_deref().unwrap_or("no driver");
                    println!("{name}  {}  {}, was on {driver}", held.address, held.role);
                }
            }
            Err(error) => failures.push(error),
        }
        if let Some(why) = store.attention(&guest)? {
            println!("{name}  needs attention: {}", Error::new(why));
        }
    }
    all(failures)
}

/// The last of some failures, after the others were told.
fn all(mut failures: Vec<Error>) -> Result<()> {
    let last = failures.pop();
    for error in failures {
        eprintln!("vfpool: {error}");
    }
    last.map_or(Ok(()), Err)
}
