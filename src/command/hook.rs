//! `vfpool hook`.

use crate::cli::Dry;
use crate::output::written;
use host::hooks::install;
use host::log::Log;
use host::paths::Host;
use lease::left_behind::left_behind;
use lease::records::Records;
use model::error::Result;
use std::io::{self, Write};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to do
    action: Action,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

/// What to do with libvirt's hook.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Action {
    /// Install vfpool's; a hook that is there already is kept, and called after it
    Install,
    /// Remove vfpool's, and put back the hook that was there before
    Remove,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    let lines = match arguments.action {
        Action::Install => vec![install::install(host)?],
        Action::Remove => [vec![install::remove(host)?], left_behind(&Records::new(host, log))?].concat(),
    };
    written(io::stdout().write_all((lines.join("\n") + "\n").as_bytes()))
}
