//! A guest, and how libvirt leads it through its life.

use crate::Host;
use crate::definitions::domain_with;
use crate::expect::Outcome;
use crate::run::Call;
use crate::xml::Node;

/// The two functions of the NIC of [`Host::with_pair`], which are one IOMMU group.
pub const FIRST: &str = "0000:02:00.0";
pub const SECOND: &str = "0000:02:00.1";

/// A guest of a host. What libvirt does is here, hooks and all; a test that needs an order of its own makes the calls
/// one by one.
pub struct Guest<'a> {
    pub host: &'a Host,
    pub name: String,
    pub xml: String,
    /// The devices that libvirt has detached itself, each with the driver that it had.
    detached: Vec<(String, Option<String>)>,
}

impl Host {
    /// A guest with one managed device.
    pub fn guest(&self, name: &str, device: &str) -> Guest<'_> {
        self.guest_of(name, domain_with(name, &[device]))
    }

    /// A guest with this definition.
    pub fn guest_of(&self, name: &str, xml: impl Into<String>) -> Guest<'_> {
        Guest { host: self, name: name.to_owned(), xml: xml.into(), detached: Vec::new() }
    }
}

impl Guest<'_> {
    /// A call of the hook for this guest.
    pub fn hook(&self, operation: &str) -> Call<'_> {
        self.host.hook(&self.name, operation, &self.xml)
    }

    pub fn prepare(&self) -> Outcome {
        self.hook("prepare").run()
    }

    pub fn release(&self) -> Outcome {
        self.hook("release").run()
    }

    /// A start up to the point at which libvirt executes QEMU: its groups are viable then.
    #[track_caller]
    #[must_use]
    pub fn starts(self) -> Self {
        self.prepare().ok();
        let guest = self.detaches();
        guest.hook("start").run().ok();
        for (device, _) in &guest.detached {
            guest.host.assert_viable(guest.host.group_of(device));
        }
        guest
    }

    /// QEMU runs, as process 4000.
    #[track_caller]
    #[must_use]
    pub fn runs(self) -> Self {
        self.host.qemu_runs(&self.name, 4000);
        self.hook("started").run().ok_silently();
        self
    }

    /// QEMU ends, and the guest is stopped.
    #[track_caller]
    pub fn stops(&self) {
        self.host.qemu_ends(&self.name);
        self.hook("stopped").run().ok_silently();
        self.reattaches();
        self.release().ok();
    }

    /// libvirt's own part of a start: it detaches the managed devices.
    #[must_use]
    pub fn detaches(mut self) -> Self {
        for device in managed_devices(&self.xml) {
            self.detached.push((device.clone(), self.host.driver(&device)));
            self.host.libvirt_detaches(&device);
        }
        self
    }

    /// QEMU ends; libvirt reattaches the managed devices, and has not called a hook yet.
    pub fn ends(&self) {
        self.host.qemu_ends(&self.name);
        self.reattaches();
    }

    /// libvirt's own part of a stop: it reattaches the managed devices.
    pub fn reattaches(&self) {
        for (device, driver) in &self.detached {
            self.host.libvirt_reattaches(device, driver.as_deref());
        }
    }
}

/// Devices with `managed='yes'`, which an NVMe disk has at its source.
fn managed_devices(xml: &str) -> Vec<String> {
    let domain = Node::parse(xml).unwrap();
    let devices = domain.child("devices").into_iter().flat_map(|devices| &devices.children);
    let managed = devices.filter_map(|device| {
        let source = device.child("source")?;
        let is_managed = [device, source].iter().any(|node| node.attribute("managed") == Some("yes"));
        source.address().filter(|_| is_managed)
    });
    managed.collect()
}
