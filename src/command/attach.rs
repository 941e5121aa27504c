//! `vfpool attach`.

use crate::cli::{Dry, RomOff, Scope};
use crate::output::done;
use guest::requests::Shape;
use guest::session::Session;
use host::log::Log;
use host::paths::Host;
use model::error::Result;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The guest
    guest: String,
    /// The pool
    pool: String,
    /// Attach as a network interface (type='hostdev') with this MAC address; generated if omitted
    #[arg(long, value_name = "MAC", num_args = 0..=1, default_missing_value = "")]
    interface: Option<String>,
    #[command(flatten)]
    rom: RomOff,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    let Arguments { guest, pool, interface, rom, scope, .. } = arguments;
    let shape = Shape { mac: interface.as_deref(), rom: rom.rom() };
    done(host, guest, Session::new(host, log).attach(guest, pool, shape, scope.scope()))
}
