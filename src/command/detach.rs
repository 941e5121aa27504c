//! `vfpool detach`.

use crate::cli::{Dry, Scope};
use crate::output::{confirm, done};
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
    /// The device, by its address on the host or in the guest; needed if the guest has several of this pool
    device: Option<PciAddress>,
    /// Detach it from a running guest without asking
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    let Arguments { guest, pool, device, force, scope, .. } = arguments;
    let confirm = |question: &str| confirm(question, *force);
    done(host, guest, Session::new(host, log).detach(guest, pool, *device, scope.scope(), confirm))
}
