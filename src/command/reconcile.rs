//! `vfpool reconcile`.

use crate::cli::Dry;
use crate::output::all;
use host::log::Log;
use host::paths::Host;
use model::error::Result;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Process the queue until it is idle for one second; report only new failures (used by the systemd unit)
    #[arg(long)]
    queued: bool,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    if arguments.queued && !arguments.dry.dry_run {
        return guest::reconcile::queued(host, log);
    }
    all(guest::reconcile::once(host, log)?)
}
