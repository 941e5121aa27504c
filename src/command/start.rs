//! `vfpool start`.

use crate::cli::Dry;
use guest::session::Session;
use guest::start::Options;
use host::log::Log;
use host::paths::Host;
use model::error::Result;

#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)] // flags of virsh start
pub(crate) struct Arguments {
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
    /// Boot, and discard what `virsh managedsave` has saved
    #[arg(long)]
    force_boot: bool,
    /// Reset NVRAM to its template
    #[arg(long)]
    reset_nvram: bool,
    /// Pass these open files to the guest
    #[arg(long, value_name = "N,M")]
    pass_fds: Option<String>,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

impl Arguments {
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

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    Session::new(host, log).start(&arguments.guest, &arguments.options())
}
