//! `vfpool`: the admin's command.

use clap::{Parser, Subcommand};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use vfpool::address::PciAddress;
use vfpool::domain::{self, Domain};
use vfpool::error::{Error, Result};
use vfpool::event::Events;
use vfpool::host::Host;
use vfpool::lease::Store;
use vfpool::log::Log;
use vfpool::queue::Queue;
use vfpool::reconcile;
use vfpool::request::{Requests, Scope, Shape};
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
        #[command(flatten)]
        dry: Dry,
    },
    /// Start a guest with devices that are free now, whatever its definition points at
    Start(StartArguments),
    /// Print a guest's XML with its pooled devices pointed at free ones, kept for it for a minute: for `virsh create`
    #[command(after_help = "Example: vfpool rewrite <web01.xml >now.xml && virsh create now.xml")]
    Rewrite {
        /// Keep nothing for the guest: its start may find them taken
        #[arg(long)]
        dry_run: bool,
    },
    /// Make a device that a guest has by a fixed address any device of a pool
    #[command(after_help = "Example: vfpool adopt web01 passthrough")]
    Adopt {
        /// The guest
        guest: String,
        /// The pool
        pool: String,
        /// The device, as 0000:01:10.2, 01:10.2 or pci_0000_01_10_2; needed if more than one could be meant
        device: Option<PciAddress>,
        /// Keep the device's option ROM from the guest, whose firmware might not get along with it
        #[arg(long)]
        rom_off: bool,
        #[command(flatten)]
        dry: Dry,
    },
    /// Give a guest one more device of a pool
    #[command(after_help = "Example: vfpool attach web01 passthrough --interface 52:54:00:6d:90:02 --live --config")]
    Attach {
        /// The guest
        guest: String,
        /// The pool
        pool: String,
        /// As a network interface, for which libvirt sets the MAC address (of its own making, if none is given)
        #[arg(long, value_name = "MAC", num_args = 0..=1, default_missing_value = "")]
        interface: Option<String>,
        /// Keep the device's option ROM from the guest, whose firmware might not get along with it
        #[arg(long)]
        rom_off: bool,
        #[command(flatten)]
        scope: ScopeArguments,
        #[command(flatten)]
        dry: Dry,
    },
    /// Take a device of a pool away from a guest
    Detach {
        /// The guest
        guest: String,
        /// The pool
        pool: String,
        /// The device, by its address on the host or in the guest; needed if the guest has several of this pool
        device: Option<PciAddress>,
        /// Take it from a running guest without asking
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        scope: ScopeArguments,
        #[command(flatten)]
        dry: Dry,
    },
    /// Give back what a guest that does not run still holds
    #[command(after_help = "Example: vfpool release web01 0000:01:10.2")]
    Release {
        /// The guest
        guest: String,
        /// Only this device and its IOMMU group, as 0000:01:10.2, 01:10.2 or pci_0000_01_10_2
        device: Option<PciAddress>,
        /// Also while libvirtd may still be at work on the guest; never what a program has open
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        dry: Dry,
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
        #[command(flatten)]
        dry: Dry,
    },
}

#[derive(clap::Args)]
struct Dry {
    /// Tell what would be done, one line each, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = true)]
struct ScopeArguments {
    /// In the guest as it runs
    #[arg(long)]
    live: bool,
    /// From the guest's next start on
    #[arg(long)]
    config: bool,
}

impl ScopeArguments {
    fn scope(&self) -> Scope {
        Scope { live: self.live, config: self.config }
    }
}

impl Command {
    fn is_dry(&self) -> bool {
        match self {
            Self::List => false,
            Self::Rewrite { dry_run } => *dry_run,
            Self::Start(StartArguments { dry, .. })
            | Self::Reconcile { dry, .. }
            | Self::Adopt { dry, .. }
            | Self::Attach { dry, .. }
            | Self::Detach { dry, .. }
            | Self::Release { dry, .. }
            | Self::Setup { dry, .. } => dry.dry_run,
        }
    }
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
    #[command(flatten)]
    dry: Dry,
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
    let root = std::env::var_os("VFPOOL_ROOT");
    let is_real = root.is_none();
    let mut host = Host::new(root.unwrap_or_else(|| "/".into()));
    let mut log = Log::new(&host, "vfpool");
    if arguments.command.is_dry() {
        host = host.dry();
        // The standard output of one is for the XML.
        let is_rewrite = matches!(arguments.command, Command::Rewrite { .. });
        log = if is_rewrite { log.rehearsal(io::stderr()) } else { log.rehearsal(io::stdout()) };
    }
    let allowed = if is_real { expect_root(&arguments.command) } else { Ok(()) };
    let Err(error) = allowed.and_then(|()| run(&host, &log, &arguments.command)) else { return ExitCode::SUCCESS };
    eprintln!("vfpool: {error}");
    ExitCode::FAILURE
}

fn run(host: &Host, log: &Log, command: &Command) -> Result<()> {
    match command {
        Command::List => list(host, log),
        Command::Reconcile { queued: true, dry: Dry { dry_run: false } } => reconcile::queued(host, log),
        Command::Reconcile { .. } => all(reconcile::once(host, log)?),
        Command::Setup { pf, queued, .. } => setup(host, log, pf, *queued),
        Command::Start(arguments) => {
            start::start(host, log, &Events::new(host, log), &arguments.guest, &arguments.options())
        }
        Command::Rewrite { .. } => rewrite(&Events::new(host, log)),
        Command::Adopt { guest, pool, device, rom_off, .. } => {
            edit(host, log, guest, |requests| requests.adopt(guest, pool, *device, *rom_off))
        }
        Command::Attach { guest, pool, interface, rom_off, scope, .. } => edit(host, log, guest, |requests| {
            let shape = Shape { mac: interface.as_deref(), rom_off: *rom_off };
            requests.attach(guest, pool, shape, scope.scope())
        }),
        Command::Detach { guest, pool, device, scope, force, .. } => edit(host, log, guest, |requests| {
            requests.detach(guest, pool, *device, scope.scope(), |question| confirm(question, *force))
        }),
        Command::Release { guest, device, force, .. } => {
            let events = Events::new(host, log);
            let released = events.release_by_hand(guest, *device, *force);
            released.map(|line| show(host, &line)).map_err(|error| error.during(format_args!("guest '{guest}'")))
        }
    }
}

fn edit(host: &Host, log: &Log, guest: &str, edit: impl FnOnce(&Requests) -> Result<String>) -> Result<()> {
    let events = Events::new(host, log);
    let virsh = Virsh { host, log, limit: events.deadline() };
    let edited = edit(&Requests { host, log, events: &events, virsh: &virsh });
    edited.map(|line| show(host, &line)).map_err(|error| error.during(format_args!("guest '{guest}'")))
}

/// What was done; a dry run has told it already.
fn show(host: &Host, line: &str) {
    if !host.is_dry() {
        // A name may hold anything; what is one line stays one.
        let _ = writeln!(io::stdout(), "{}", Error::new(line));
    }
}

/// Without a terminal there is nobody to ask.
fn confirm(question: &str, is_forced: bool) -> Result<()> {
    if is_forced {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Error::new("a running guest loses a device by this, and there is no terminal to ask; say --force"));
    }
    eprint!("{} [y/N] ", Error::new(question));
    let mut answer = String::new();
    let asked = io::stdin().read_line(&mut answer);
    asked.map_err(|cause| Error::new(format!("Cannot read an answer: {cause}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Error::new("nothing was changed")) }
}

/// All that changes something, or tells what it would change, needs files that only root may see.
fn expect_root(command: &Command) -> Result<()> {
    if matches!(command, Command::List) || nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new("this needs root; run it with sudo"))
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
