//! Whether the guest of a lease still uses its devices, or will: facts of this moment, which a lease itself cannot
//! tell.

use host::libvirt::runtime;
use host::paths::Host;
use host::pci::bind::Libvirt;
use host::process;
use model::lease::{HeldDevice, Lease, LeaseState};
use std::time::Duration;

/// A reservation of devices that are free, for a guest whose start should follow within `limit`.
pub(crate) fn reservation(host: &Host, limit: Duration, devices: Vec<HeldDevice>) -> Lease {
    let until = process::uptime(host).map(|now| now + limit.as_secs());
    Lease { state: LeaseState::Reserved, until, ..Lease::new(runtime::starter(host), devices) }
}

/// How a lease stands at this moment.
pub trait Life {
    /// Whether the guest still is, or will be, using its devices.
    fn is_in_use(&self, host: &Host, guest: &str) -> bool;

    /// Whether it is a reservation that was not used in time: there is nothing to reattach.
    fn is_over(&self, host: &Host) -> bool;

    /// Whether libvirt is just starting or stopping the guest, for all that the records say.
    fn is_between(&self, host: &Host, guest: &str) -> bool;

    /// Whether the guest's QEMU runs.
    fn is_running(&self, host: &Host, guest: &str) -> bool;

    /// Whether the libvirtd that asked for this lease still runs. If not, no start will be finished or undone.
    fn libvirt_lives(&self, host: &Host) -> bool;

    /// How far libvirt is with the devices of a guest that is gone.
    fn libvirt(&self, host: &Host) -> Libvirt;
}

/// Its maker may have to end before the start begins, as `vfpool rewrite` does; so time alone decides.
fn is_reserved(lease: &Lease, host: &Host) -> bool {
    lease.until.is_some_and(|until| process::uptime(host).is_some_and(|now| now < until))
}

impl Life for Lease {
    fn is_in_use(&self, host: &Host, guest: &str) -> bool {
        match self.state {
            LeaseState::Reserved => is_reserved(self, host),
            LeaseState::Pending if self.libvirt_lives(host) => true,
            _ => self.is_running(host, guest),
        }
    }

    fn is_over(&self, host: &Host) -> bool {
        self.state == LeaseState::Reserved && !is_reserved(self, host)
    }

    fn is_between(&self, host: &Host, guest: &str) -> bool {
        self.state.is_held() && self.libvirt_lives(host) && !self.is_running(host, guest)
    }

    fn is_running(&self, host: &Host, guest: &str) -> bool {
        match &self.qemu {
            Some(qemu) => process::is_alive(host, qemu),
            None => runtime::qemu(host, guest).is_some(),
        }
    }

    fn libvirt_lives(&self, host: &Host) -> bool {
        self.starter.as_ref().is_some_and(|starter| process::is_alive(host, starter))
    }

    fn libvirt(&self, host: &Host) -> Libvirt {
        let is_at_work = self.state != LeaseState::Returning && self.libvirt_lives(host);
        if is_at_work { Libvirt::AtWork } else { Libvirt::Done }
    }
}
