//! The arguments of `vfpool`, and their help. What each command takes is beside what it does, in the command's own
//! file.

use crate::{adopt, attach, check, detach, dumpxml, explain, hook, list, reconcile, release, rewrite, setup, start};
use clap::{Parser, Subcommand};

/// Automatic PCI passthrough and SR-IOV for libvirt/KVM.
#[derive(Parser)]
#[command(name = "vfpool", version, after_help = "Exit status: 0 done, 1 something could not be done, 2 wrong use.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Check that this host is ready, and print a fix for each problem
    ///
    /// Changes nothing. Run the command in backquotes to fix the finding above it.
    #[command(after_help = "Exit status: 0 ready, 3 ready with warnings, 1 not ready, 2 wrong use.")]
    Check(check::Arguments),
    /// List pools, their devices and users, other devices held by guests, and devices that could not be reattached
    #[command(after_help = "Example: vfpool list --metrics >/var/lib/node_exporter/vfpool.prom.new")]
    List(list::Arguments),
    /// Explain who has a device or what a guest has, why it is not free, and what a start would do
    #[command(after_help = "Examples: vfpool explain 01:10.2; vfpool explain eth3; vfpool explain web01\n\n\
                            Exit status: 0 also for what is not free, 1 if it cannot be explained.")]
    Explain(explain::Arguments),
    /// Print a pool as `virsh net-dumpxml` prints a network, or a device as the element that assigns it to a guest
    #[command(after_help = "Example: vfpool dumpxml 01:10.2 | virsh attach-device web01 /dev/stdin --config")]
    Dumpxml(dumpxml::Arguments),
    /// Replace a guest's fixed device with a request for any device of a pool
    #[command(after_help = "Example: vfpool adopt web01 passthrough")]
    Adopt(adopt::Arguments),
    /// Attach one more device of a pool to a guest
    #[command(after_help = "Example: vfpool attach web01 passthrough --interface 52:54:00:6d:90:02 --live --config")]
    Attach(attach::Arguments),
    /// Detach a device of a pool from a guest
    Detach(detach::Arguments),
    /// Start a guest with devices that are free now, whatever its definition points at
    Start(start::Arguments),
    /// Print a guest's XML with its pooled devices pointed at free ones, reserved for a minute: for `virsh create`
    #[command(after_help = "Example: vfpool rewrite <web01.xml >now.xml && virsh create now.xml")]
    Rewrite(rewrite::Arguments),
    /// Create the VFs of the pools and bind them to vfio-pci
    ///
    /// Brings each PF to the number of VFs that its pool asks for, and its network interface up. VFs that a guest or
    /// the host uses are left alone.
    #[command(after_help = "Example: vfpool setup eth3 0000:04:00.0")]
    Setup(setup::Arguments),
    /// Reattach devices left behind by guests that no longer run, and point every stopped guest at a free device
    Reconcile(reconcile::Arguments),
    /// Reattach to the host what a guest that is not running still holds
    #[command(after_help = "Example: vfpool release web01 0000:01:10.2")]
    Release(release::Arguments),
    /// Install or remove the libvirt qemu hook (packages do this)
    #[command(after_help = "libvirt looks for hooks when it is started or reloaded: systemctl reload libvirtd")]
    Hook(hook::Arguments),
}

impl Command {
    pub(crate) fn is_dry(&self) -> bool {
        match self {
            Self::List(_) | Self::Dumpxml(_) | Self::Explain(_) | Self::Check(_) => false,
            Self::Adopt(arguments) => arguments.dry.dry_run,
            Self::Attach(arguments) => arguments.dry.dry_run,
            Self::Detach(arguments) => arguments.dry.dry_run,
            Self::Start(arguments) => arguments.dry.dry_run,
            Self::Rewrite(arguments) => arguments.dry_run,
            Self::Setup(arguments) => arguments.dry.dry_run,
            Self::Reconcile(arguments) => arguments.dry.dry_run,
            Self::Release(arguments) => arguments.dry.dry_run,
            Self::Hook(arguments) => arguments.dry.dry_run,
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Dry {
    /// Print what would be done, one line each, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Scope {
    /// The running guest
    #[arg(long)]
    live: bool,
    /// The guest's definition, from its next start on
    #[arg(long)]
    config: bool,
}

impl Scope {
    pub(crate) fn scope(&self) -> guest::requests::Scope {
        guest::requests::Scope { live: self.live, config: self.config }
    }
}

#[derive(clap::Args)]
pub(crate) struct RomOff {
    /// Hide the device's option ROM from the guest, whose firmware might not get along with it
    #[arg(long)]
    rom_off: bool,
}

impl RomOff {
    pub(crate) fn rom(&self) -> guest::requests::Rom {
        if self.rom_off { guest::requests::Rom::Off } else { guest::requests::Rom::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_command_is_answered_with_the_right_one() {
        let error = Arguments::try_parse_from(["vfpool", "chekc"]).err().unwrap().to_string();
        assert!(error.contains("a similar subcommand exists: 'check'"), "{error}");
    }
}
