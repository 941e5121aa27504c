//! `vfpool rewrite`: the hook's filter, for `virsh create` and other tools.

use host::log::Log;
use host::paths::Host;
use lease::{Caller, Leases};
use model::domain::{self, Domain};
use model::error::{Error, Result};
use std::io::{self, Write};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Reserve nothing for the guest: its start may find the devices in use
    #[arg(long)]
    pub(crate) dry_run: bool,
}

pub(crate) fn run(host: &Host, log: &Log) -> Result<()> {
    let domain = Domain::parse(&domain::read(io::stdin().lock())?)?;
    let guest = &domain.name;
    if guest.is_empty() {
        return Err(Error::new("The domain XML has no <name>"));
    }
    let resolved = Leases::new(host, log).resolve(guest, &domain, Caller::Admin);
    let resolved = resolved.map_err(|error| error.during(format_args!("guest '{guest}'")))?;
    let written = io::stdout().write_all(resolved.as_deref().unwrap_or(domain.xml()));
    written.map_err(|cause| Error::new(format!("Cannot write the XML: {cause}")))
}
