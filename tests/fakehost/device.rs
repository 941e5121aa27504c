//! A device as a test describes it.

use crate::tree::Function;

/// A device of the host, as data. What is not said is an Intel 82574 NIC without driver and group.
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) function: Function,
    pub(crate) driver: Option<String>,
    pub(crate) driver_override: Option<String>,
    pub(crate) parent: Option<String>,
    pub(crate) vfs: Vec<String>,
    pub(crate) is_in_own_domain: bool,
}

impl Device {
    pub fn new(address: &str) -> Self {
        let function = Function {
            address: address.to_owned(),
            id: "8086:10d3".to_owned(),
            class: 0x02_0000,
            header_type: 0,
            group: None,
            has_override: true,
            totalvfs: 0,
            has_autoprobe: true,
        };
        Self { function, driver: None, driver_override: None, parent: None, vfs: Vec::new(), is_in_own_domain: false }
    }

    pub fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.function.id);
        self
    }

    /// 24-bit class code.
    pub fn class(mut self, class: u32) -> Self {
        self.function.class = class;
        self
    }

    pub fn group(mut self, group: u32) -> Self {
        self.function.group = Some(group);
        self
    }

    pub fn driver(mut self, driver: &str) -> Self {
        self.driver = Some(driver.to_owned());
        self
    }

    pub fn driver_override(mut self, driver: &str) -> Self {
        self.driver_override = Some(driver.to_owned());
        self
    }

    /// On a kernel that has no `driver_override`.
    pub fn without_override(mut self) -> Self {
        self.function.has_override = false;
        self
    }

    /// On a kernel that has no `sriov_drivers_autoprobe`.
    pub fn without_autoprobe(mut self) -> Self {
        self.function.has_autoprobe = false;
        self
    }

    /// Makes it a PCI-to-PCI bridge, or a port.
    pub fn bridge(mut self) -> Self {
        self.function.header_type = 1;
        self.function.class = 0x06_0400;
        self.id("1b36:000c").driver("pcieport")
    }

    /// Puts it behind a bridge of this host.
    pub fn behind(mut self, bridge: &str) -> Self {
        self.parent = Some(bridge.to_owned());
        self
    }

    /// Puts it behind a controller that shows it in a PCI domain of its own, as Intel's VMD does.
    pub fn behind_controller(mut self, controller: &str) -> Self {
        self.parent = Some(controller.to_owned());
        self.is_in_own_domain = true;
        self
    }

    /// Makes it a PF that can have a VF of this id in each of these places, given as address and group.
    pub fn vfs(mut self, id: &str, places: &[(&str, u32)]) -> Self {
        let class = self.function.class;
        self.vfs = places.iter().map(|(address, group)| format!("{address} {id} {class:06x} {group}")).collect();
        self.function.totalvfs = u32::try_from(places.len()).unwrap();
        self
    }
}
