//! `vfpool`: the admin's command.

use clap::{Parser, Subcommand};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use vfpool::address::PciAddress;
use vfpool::chain;
use vfpool::check::{Report, State};
use vfpool::domain::{self, Domain};
use vfpool::dumpxml::{self, Element};
use vfpool::error::{Error, Result};
use vfpool::event::Events;
use vfpool::explain;
use vfpool::host::Host;
use vfpool::inventory::{self, Inventory, Scope};
use vfpool::lease::Store;
use vfpool::log::Log;
use vfpool::queue::Queue;
use vfpool::reconcile;
use vfpool::request::{self, Requests, Shape};
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
    /// Tell whether this host is ready, and what to do where it is not
    ///
    /// Changes nothing. A command in backquotes cures what it stands under when it is run as it is.
    #[command(after_help = "Exit status: 0 ready, 3 ready with warnings, 1 not ready, 2 wrong use.")]
    Check {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show pools, their devices and who has them, what guests hold beside that, and what could not be given back
    #[command(after_help = "Example: vfpool list --metrics >/var/lib/node_exporter/vfpool.prom.new")]
    List(ListArguments),
    /// Say who has a device or what a guest has, why it is not free, and what a start would do
    #[command(after_help = "Examples: vfpool explain 01:10.2; vfpool explain eth3; vfpool explain web01\n\n\
                            Exit status: 0 also for what is not free, 1 if it cannot be explained.")]
    Explain {
        /// A device, as 0000:01:10.2, 01:10.2, pci_0000_01_10_2 or its network interface; or a guest
        name: String,
        /// NAME is a guest's, whatever else has that name
        #[arg(long)]
        guest: bool,
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Print a pool as `virsh net-dumpxml` does a network, or a device as the element that gives it to a guest
    #[command(after_help = "Example: vfpool dumpxml 01:10.2 | virsh attach-device web01 /dev/stdin --config")]
    Dumpxml {
        /// The pool, or the device, as 0000:01:10.2, 01:10.2 or pci_0000_01_10_2
        #[arg(value_name = "POOL|DEVICE")]
        name: String,
        /// Of a device: only the <hostdev>
        #[arg(long)]
        hostdev: bool,
        /// Of a network card's VF: the <interface>, for which libvirt sets MAC address and VLAN
        #[arg(long, conflicts_with = "hostdev")]
        interface: bool,
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
    /// Start a guest with devices that are free now, whatever its definition points at
    Start(StartArguments),
    /// Print a guest's XML with its pooled devices pointed at free ones, kept for it for a minute: for `virsh create`
    #[command(after_help = "Example: vfpool rewrite <web01.xml >now.xml && virsh create now.xml")]
    Rewrite {
        /// Keep nothing for the guest: its start may find them taken
        #[arg(long)]
        dry_run: bool,
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
    /// Give back what gone guests left behind, and point every stopped guest at a free device
    Reconcile {
        /// As systemd runs it: do what is queued, tell only what is new, end when nothing has changed for a second
        #[arg(long)]
        queued: bool,
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
    /// Make vfpool libvirt's hook, or no longer: what packages do when they are installed and removed
    #[command(after_help = "libvirt looks for hooks when it is started or reloaded: systemctl reload libvirtd")]
    Hook {
        /// What to do
        action: Hook,
        #[command(flatten)]
        dry: Dry,
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
#[allow(clippy::struct_excessive_bools)] // what to look at, and how to show it
struct ListArguments {
    /// Only these pools
    pool: Vec<String>,
    /// By IOMMU group: all members of each
    #[arg(long)]
    groups: bool,
    /// Show it again every 2 seconds, until Ctrl-C
    #[arg(long, conflicts_with_all = ["json", "metrics"])]
    watch: bool,
    /// For programs: all of it as one JSON document
    #[arg(long, conflicts_with = "metrics")]
    json: bool,
    /// For node_exporter's textfile collector: counts, in Prometheus' text format
    #[arg(long, conflicts_with_all = ["groups", "pool"])]
    metrics: bool,
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
    fn scope(&self) -> request::Scope {
        request::Scope { live: self.live, config: self.config }
    }
}

impl Command {
    fn is_dry(&self) -> bool {
        match self {
            Self::List(_) | Self::Dumpxml { .. } | Self::Explain { .. } | Self::Check { .. } => false,
            Self::Rewrite { dry_run } => *dry_run,
            Self::Start(StartArguments { dry, .. })
            | Self::Reconcile { dry, .. }
            | Self::Adopt { dry, .. }
            | Self::Attach { dry, .. }
            | Self::Detach { dry, .. }
            | Self::Release { dry, .. }
            | Self::Hook { dry, .. }
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
    let allowed = if is_real { expect_root() } else { Ok(()) };
    allowed.and_then(|()| run(&host, &log, &arguments.command)).unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

fn run(host: &Host, log: &Log, command: &Command) -> Result<ExitCode> {
    let done = match command {
        Command::Check { json } => return check(host, log, *json),
        Command::Explain { name, guest, json } => {
            let explained = explain::explain(host, &Events::new(host, log), name, *guest)?;
            let text = if *json { explained.json()? } else { explained.text() };
            written(io::stdout().write_all(text.as_bytes()))
        }
        Command::List(arguments) => list(host, log, arguments),
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
        Command::Start(arguments) => {
            start::start(host, log, &Events::new(host, log), &arguments.guest, &arguments.options())
        }
        Command::Hook { action, .. } => {
            let lines = match action {
                Hook::Install => vec![chain::install(host)?],
                Hook::Remove => [vec![chain::remove(host)?], chain::left_behind(&Store::new(host, log))?].concat(),
            };
            written(io::stdout().write_all((lines.join("\n") + "\n").as_bytes()))
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
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn check(host: &Host, log: &Log, json: bool) -> Result<ExitCode> {
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
        State::Ok | State::Note => ExitCode::SUCCESS,
        State::Warning => ExitCode::from(3),
        State::Failure => ExitCode::FAILURE,
    })
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

/// Who has what is for root's eyes only, and so are guests' definitions.
fn expect_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Error::new("this needs root; run it with sudo")) }
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
        complain(&format!("warning: {warning}"));
    }
    all(report.failures)
}

fn list(host: &Host, log: &Log, arguments: &ListArguments) -> Result<()> {
    let ListArguments { pool, groups, watch, json, metrics } = arguments;
    let gather = || Inventory::gather(host, log, &Scope { pools: pool, groups: *groups });
    let is_plain = anstream::AutoStream::choice(&io::stdout()) == anstream::ColorChoice::Never;
    let tree = |inventory: &Inventory| {
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
        return inventory::watch(draw, io::stdout().is_terminal(), &mut io::stdout());
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

/// A reader that has seen enough (`| head`) is no failure.
fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|cause| Error::new(format!("Cannot write to standard output: {cause}"))),
    }
}

/// A standard error that nobody reads is no reason to end.
fn complain(line: &dyn Display) {
    let _ = writeln!(io::stderr(), "vfpool: {line}");
}

/// The last of some failures, after the others were told.
fn all(mut failures: Vec<Error>) -> Result<()> {
    let last = failures.pop();
    for error in failures {
        complain(&error);
    }
    last.map_or(Ok(()), Err)
}
