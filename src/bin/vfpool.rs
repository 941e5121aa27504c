//! `vfpool`: the admin's command.

use clap::{Parser, Subcommand};
use std::io::{self, Write};
use std::process::ExitCode;
use vfpool::address::PciAddress;
use vfpool::chain;
use vfpool::domain::{self, Domain};
use vfpool::error::{Error, Result};
use vfpool::event::Events;
use vfpool::host::Host;
use vfpool::lease::Store;
use vfpool::log::Log;
use vfpool::queue::Queue;
use vfpool::reconcile;
use vfpool::request::Requests;
use vfpool::setup::Setup;
use vfpool::start::{self, Options};
use vfpool::virsh::Virsh;

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
    /// Give back what gone guests left behind, and point every stopped guest at a free device
    Reconcile {
        /// As systemd runs it: do what is queued, tell only what is new, end when nothing has changed for a second
        #[arg(long)]
        queued: bool,
    },
    /// Start a guest with devices that are free now, whatever its definition points at
    Start(StartArguments),
    /// Print a guest's XML with its pooled devices pointed at free ones, kept for it for a minute: for `virsh create`
    #[command(after_help = "Example: vfpool rewrite <web01.xml >now.xml && virsh create now.xml")]
    Rewrite,
    /// Make a device that a guest has by a fixed address any device of a pool
    #[command(after_help = "Example: vfpool adopt web01 passthrough")]
    Adopt {
        /// The guest
        guest: String,
        /// The pool
        pool: String,
        /// The device, as 0000:01:10.2, 01:10.2 or pci_0000_01_10_2; needed if more than one could be meant
        device: Option<PciAddress>,
    },
    /// Give a guest one more device of a pool
    #[command(after_help = "Example: vfpool attach web01 passthrough --interface 52:54:00:6d:90:02 --config")]
    Attach {
        /// The guest
        guest: String,
        /// The pool
        pool: String,
        /// As a network interface, for which libvirt sets the MAC address (of its own making, if none is given)
        #[arg(long, value_name = "MAC", num_args = 0..=1, default_missing_value = "")]
        interface: Option<String>,
        /// From the guest's next start on
        #[arg(long, required = true)]
        config: bool,
    },
    /// Take a device of a pool away from a guest
    Detach {
        /// The guest
        guest: String,
        /// The pool
        pool: String,
        /// The device, by its address on the host or in the guest; needed if the guest has several of this pool
        device: Option<PciAddress>,
        /// From the guest's next start on
        #[arg(long, required = true)]
        config: bool,
    },
    /// Make the VFs of the pools and have them on vfio-pci
    ///
    /// Brings each PF to the number of VFs that its pool asks for, and its network interface up. VFs that a guest or the
    /// host has are left alone.
    #[command(after_help = "Example: vfpool setup eth3 0000:04:00.0")]
    Setup {
        /// Only these PFs, each by its network interface or PCI address
        #[arg(conflicts_with = "queued")]
        pf: Vec<String>,
        /// Also forget what udev has noted: all of it is done now
        #[arg(long)]
        queued: bool,
    },
    /// Make vfpool libvirt's hook, or no longer: what packages do when they are installed and removed
    #[command(after_help = "libvirt looks for hooks when it is started or reloaded: systemctl reload libvirtd")]
    Hook {
        /// What to do
        action: Hook,
    },
}

/// What to do with libvirt's hook.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Hook {
    /// Put vfpool's there; one that is there already is kept, and called after it
    Install,
    /// Take vfpool's away, and put back what was there before
    Remove,
}

#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)] // flags of virsh start
struct StartArguments {
    /// The guest
    guest: String,
    /// Attach to the console after the start
    #[arg(long)]
    console: bool,
    /// Leave the guest paused
    #[arg(long)]
    paused: bool,
    /// Destroy the guest when this virsh disconnects
    #[arg(long)]
    autodestroy: bool,
    /// Do not cache the file of a saved guest
    #[arg(long)]
    bypass_cache: bool,
    /// Boot, and throw away what `virsh managedsave` has kept
    #[arg(long)]
    force_boot: bool,
    /// Make the NVRAM anew from its template
    #[arg(long)]
    reset_nvram: bool,
    /// Pass these open files to the guest
    #[arg(long, value_name = "N,M")]
    pass_fds: Option<String>,
}

impl StartArguments {
    fn options(&self) -> Options {
        let flags = [
            ("--console", self.console),
            ("--paused", self.paused),
            ("--autodestroy", self.autodestroy),
            ("--reset-nvram", self.reset_nvram),
        ];
        let mut passed: Vec<String> =
            flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| (*flag).to_owned()).collect();
        if let Some(fds) = &self.pass_fds {
            passed.extend(["--pass-fds".to_owned(), fds.clone()]);
        }
        Options { passed, bypass_cache: self.bypass_cache, force_boot: self.force_boot }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let host = Host::new(std::env::var_os("VFPOOL_ROOT").unwrap_or_else(|| "/".into()));
    let log = Log::new(&host, "vfpool");
    let Err(error) = run(&host, &log, &arguments.command) else { return ExitCode::SUCCESS };
    eprintln!("vfpool: {error}");
    ExitCode::FAILURE
}

fn run(host: &Host, log: &Log, command: &Command) -> Result<()> {
    match command {
        Command::List => list(host, log),
        Command::Reconcile { queued: true } => reconcile::queued(host, log),
        Command::Reconcile { queued: false } => all(reconcile::once(host, log)?),
        Command::Setup { pf, queued } => setup(host, log, pf, *queued),
        Command::Start(arguments) => {
            start::start(host, &Events::new(host, log), &arguments.guest, &arguments.options())
        }
        Command::Hook { action: Hook::Install } => {
            println!("{}", chain::install(host)?);
            Ok(())
        }
        Command::Hook { action: Hook::Remove } => {
            println!("{}", chain::remove(host)?);
            for line in chain::left_behind(&Store::new(host, log))? {
                println!("{line}");
            }
            Ok(())
        }
        Command::Rewrite => rewrite(&Events::new(host, log)),
        Command::Adopt { guest, pool, device } => {
            edit(host, log, guest, |requests| requests.adopt(guest, pool, *device))
        }
        Command::Attach { guest, pool, interface, .. } => {
            edit(host, log, guest, |requests| requests.attach(guest, pool, interface.as_deref()))
        }
        Command::Detach { guest, pool, device, .. } => {
            edit(host, log, guest, |requests| requests.detach(guest, pool, *device))
        }
    }
}

fn edit(host: &Host, log: &Log, guest: &str, edit: impl FnOnce(&Requests) -> Result<()>) -> Result<()> {
    let events = Events::new(host, log);
    let virsh = Virsh { host, limit: events.deadline() };
    edit(&Requests { host, log, events: &events, virsh }).map_err(|error| error.during(format_args!("guest '{guest}'")))
}

fn rewrite(events: &Events) -> Result<()> {
    let xml = domain::read(io::stdin().lock())?;
    let guest = Domain::parse(&xml)?.name;
    if guest.is_empty() {
        return Err(Error::new("The domain XML has no <name>"));
    }
    let resolved = events.resolve(&guest, &xml).map_err(|error| error.during(format_args!("guest '{guest}'")))?;
    let written = io::stdout().write_all(resolved.as_ref().unwrap_or(&xml));
    written.map_err(|cause| Error::new(format!("Cannot write the XML: {cause}")))
}

fn setup(host: &Host, log: &Log, pfs: &[String], queued: bool) -> Result<()> {
    if queued {
        // First: what comes while we are at work is work again.
        Queue::Setup.take(host)?;
    }
    let setup = Setup::new(host, log);
    let report = if pfs.is_empty() { setup.all() } else { setup.pfs(pfs) };
    for warning in &report.warnings {
        eprintln!("vfpool: warning: {warning}");
    }
    all(report.failures)
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
