//! The arguments of `vfpool`, and their help.

use clap::{Parser, Subcommand};
use guest::requests;
use guest::start::Options;
use model::address::PciAddress;

/// PCI passthrough and SR-IOV on libvirt/KVM hosts that runs by itself.
#[derive(Parser)]
#[command(version, after_help = "Exit status: 0 done, 1 something could not be done, 2 wrong use.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
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
        /// Print a device as a `hostdev` element only
        #[arg(long)]
        hostdev: bool,
        /// Print a VF of a network card as an `interface` element, for which libvirt sets MAC address and VLAN
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
    /// Brings each PF to the number of VFs that its pool asks for, and its network interface up. VFs that a guest or
    /// the host has are left alone.
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
pub(crate) enum Hook {
    /// Put vfpool's there; one that is there already is kept, and called after it
    Install,
    /// Take vfpool's away, and put back what was there before
    Remove,
}

#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)] // what to look at, and how to show it
pub(crate) struct ListArguments {
    /// Only these pools
    pub(crate) pool: Vec<String>,
    /// By IOMMU group: all members of each
    #[arg(long)]
    pub(crate) groups: bool,
    /// Show it again every 2 seconds, until Ctrl-C
    #[arg(long, conflicts_with_all = ["json", "metrics"])]
    pub(crate) watch: bool,
    /// For programs: all of it as one JSON document
    #[arg(long, conflicts_with = "metrics")]
    pub(crate) json: bool,
    /// For node_exporter's textfile collector: counts, in Prometheus' text format
    #[arg(long, conflicts_with_all = ["groups", "pool"])]
    pub(crate) metrics: bool,
}

#[derive(clap::Args)]
pub(crate) struct Dry {
    /// Tell what would be done, one line each, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct ScopeArguments {
    /// In the guest as it runs
    #[arg(long)]
    pub(crate) live: bool,
    /// From the guest's next start on
    #[arg(long)]
    pub(crate) config: bool,
}

impl ScopeArguments {
    pub(crate) fn scope(&self) -> requests::Scope {
        requests::Scope { live: self.live, config: self.config }
    }
}

impl Command {
    pub(crate) fn is_dry(&self) -> bool {
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
pub(crate) struct StartArguments {
    /// The guest
    pub(crate) guest: String,
    /// Attach to the console after the start
    #[arg(long)]
    pub(crate) console: bool,
    /// Leave the guest paused
    #[arg(long)]
    pub(crate) paused: bool,
    /// Destroy the guest when this virsh disconnects
    #[arg(long)]
    pub(crate) autodestroy: bool,
    /// Do not cache the file of a saved guest
    #[arg(long)]
    pub(crate) bypass_cache: bool,
    /// Boot, and throw away what `virsh managedsave` has kept
    #[arg(long)]
    pub(crate) force_boot: bool,
    /// Make the NVRAM anew from its template
    #[arg(long)]
    pub(crate) reset_nvram: bool,
    /// Pass these open files to the guest
    #[arg(long, value_name = "N,M")]
    pub(crate) pass_fds: Option<String>,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

impl StartArguments {
    pub(crate) fn options(&self) -> Options {
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
