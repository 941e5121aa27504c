//! `vfpool adopt`.

use crate::cli::{Dry, RomOff};
use crate::output::done;
use guest::session::Session;
use host::log::Log;
use host::paths::Host;
use model::address::PciAddress;
use model::error::Result;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The guest
    guest: String,
    /// The pool
    pool: String,
    /// The device, as 0000:01:10.2, 01:10.2 or pci_0000_01_10_2; needed if more than one could be meant
    device: Option<PciAddress>,
    #[command(flatten)]
    rom: RomOff,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    let Arguments { guest, pool, device, rom, .. } = arguments;
    done(host, guest, Session::new(host, log).adopt(guest, pool, *device, rom.rom()))
}
