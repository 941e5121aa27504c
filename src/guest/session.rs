//! What each use case here works with: one host, who has which device there, and the way to libvirt.

use crate::virsh::Virsh;
use host::libvirt::definitions;
use host::log::Log;
use host::paths::Host;
use lease::Leases;
use lease::records::Turn;
use model::domain::Domain;
use model::error::Result;

/// One command, or one run of the reconciler. Its methods are in the files of this crate, by subject.
pub struct Session<'a> {
    /// The host.
    pub host: &'a Host,
    /// Where each change is written.
    pub log: &'a Log,
    /// Who has which device.
    pub leases: Leases<'a>,
    /// The way to libvirt.
    pub virsh: Virsh<'a>,
}

impl<'a> Session<'a> {
    /// A session on this host.
    pub fn new(host: &'a Host, log: &'a Log) -> Self {
        let leases = Leases::new(host, log);
        let virsh = Virsh { host, log, limit: leases.deadline() };
        Self { host, log, leases, virsh }
    }

    /// A guest as it is defined.
    pub(crate) fn defined(&self, guest: &str) -> Result<Domain> {
        Domain::parse(&definitions::read(self.host, guest)?)
    }

    /// The right to edit definitions and to hot-plug. Held until dropped.
    pub(crate) fn editing(&self) -> Result<Turn> {
        self.leases.store().editing(self.virsh.limit)
    }
}
