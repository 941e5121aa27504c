//! One look at a host's functions: whatever is asked, and how often, each attribute is read once.

use crate::paths::Host;
use crate::pci::sysfs::{PciView, functions, group_of, identity_in};
use model::address::PciAddress;
use model::device::PciDevice;
use model::error::Result;
use once_cell::unsync::OnceCell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;

/// Functions as they were when they were first asked for. For a command that reads and ends; what changes devices looks at
/// the [`Host`] itself.
pub struct Snapshot<'a> {
    host: &'a Host,
    devices: Memory<PciAddress, Result<Option<PciDevice>>>,
    groups: OnceCell<Groups>,
    netdevs: Memory<String, Option<PciAddress>>,
}

/// The groups of all functions, and the functions of each group: to list the folder of each group would cost more.
#[derive(Default)]
struct Groups {
    of: HashMap<PciAddress, u32>,
    members: HashMap<u32, Vec<PciAddress>>,
}

type Memory<K, V> = RefCell<HashMap<K, V>>;

impl<'a> Snapshot<'a> {
    /// A look at this host, which begins with the first question.
    pub fn new(host: &'a Host) -> Self {
        Self { host, devices: Memory::default(), groups: OnceCell::new(), netdevs: Memory::default() }
    }

    fn groups(&self) -> Result<&Groups> {
        self.groups.get_or_try_init(|| {
            let mut groups = Groups::default();
            for address in functions(self.host)? {
                if let Some(group) = group_of(self.host, address)? {
                    groups.of.insert(address, group);
                    groups.members.entry(group).or_default().push(address);
                }
            }
            Ok(groups)
        })
    }
}

fn remembered<K: Eq + Hash, V: Clone>(memory: &Memory<K, V>, key: K, read: impl FnOnce(&K) -> V) -> V {
    if let Some(known) = memory.borrow().get(&key) {
        return known.clone();
    }
    let value = read(&key);
    memory.borrow_mut().insert(key, value.clone());
    value
}

impl PciView for Snapshot<'_> {
    fn host(&self) -> &Host {
        self.host
    }

    fn identity(&self, address: PciAddress) -> Result<Option<PciDevice>> {
        remembered(&self.devices, address, |address| {
            identity_in(self.host, *address, || Ok(self.groups()?.of.get(address).copied()))
        })
    }

    fn group_members(&self, group: u32) -> Result<Vec<PciAddress>> {
        Ok(self.groups()?.members.get(&group).cloned().unwrap_or_default())
    }

    fn function_of(&self, netdev: &str) -> Option<PciAddress> {
        remembered(&self.netdevs, netdev.to_owned(), |netdev| self.host.function_of(netdev))
    }

    fn physfn(&self, address: PciAddress) -> Result<Option<PciAddress>> {
        Ok(self.identity(address)?.and_then(|device| device.physfn))
    }
}
