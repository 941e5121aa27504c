//! `vfpool setup`.

use crate::cli::Dry;
use crate::output::{all, complain};
use host::log::Log;
use host::paths::Host;
use host::queue::Queue;
use lease::vfs::Setup;
use model::error::Result;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these PFs, each by its network interface or PCI address
    #[arg(conflicts_with = "queued")]
    pf: Vec<String>,
    /// Also clear the queue of new PFs (used by the systemd unit)
    #[arg(long)]
    queued: bool,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    let Arguments { pf: pfs, queued, .. } = arguments;
    loop {
        if *queued {
            // First: an entry that is added from now on is for the next round.
            Queue::Setup.take(host)?;
        }
        let setup = Setup::new(host, log);
        let report = if pfs.is_empty() { setup.all() } else { setup.pfs(pfs) };
        for warning in &report.warnings {
            complain(&format!("warning: {warning}"));
        }
        // A dry run leaves the queue as it is.
        if !queued || host.is_dry() || Queue::Setup.is_empty(host)? {
            return all(report.failures);
        }
    }
}
