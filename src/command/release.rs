//! `vfpool release`.

use crate::cli::Dry;
use crate::output::done;
use host::log::Log;
use host::paths::Host;
use host::pci::bind::Libvirt;
use lease::Leases;
use model::address::PciAddress;
use model::error::Result;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The guest
    guest: String,
    /// Only this device and its IOMMU group, as 0000:01:10.2, 01:10.2 or pci_0000_01_10_2
    device: Option<PciAddress>,
    /// Also while libvirtd may still be working on the guest; never what a program has open
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    let Arguments { guest, device, force, .. } = arguments;
    let libvirt = if *force { Libvirt::Done } else { Libvirt::AtWork };
    done(host, guest, Leases::new(host, log).release_by_admin(guest, *device, libvirt))
}
