//! `vfpool dumpxml`: a pool as `virsh net-dumpxml` shows a network, and a device as the element that gives it to a
//! guest.

use crate::list::{DeviceState, Filter, Listing, PoolView};
use crate::output::{all, written};
use host::config::pool::Pool;
use host::log::Log;
use host::paths::Host;
use host::pci::sysfs;
use lease::Leases;
use model::address::PciAddress;
use model::error::{Error, Result};
use model::lease::Role;
use std::io::{self, Write};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The pool, or the device, as 0000:01:10.2, 01:10.2 or pci_0000_01_10_2
    #[arg(value_name = "POOL|DEVICE")]
    name: String,
    /// Print a device as a `hostdev` element only
    #[arg(long)]
    hostdev: bool,
    /// Print a VF of a network card as an `interface` element, for which libvirt sets MAC address and VLAN
    #[arg(long, conflicts_with = "hostdev")]
    interface: bool,
}

pub(crate) fn run(host: &Host, log: &Log, arguments: &Arguments) -> Result<()> {
    let element = match (arguments.hostdev, arguments.interface) {
        (true, _) => Element::Hostdev,
        (_, true) => Element::Interface,
        _ => Element::Either,
    };
    let (xml, errors) = xml(host, log, &arguments.name, element)?;
    written(io::stdout().write_all(xml.as_bytes()))?;
    all(errors)
}

/// How a guest is to have a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    /// As a `<hostdev>`, and for a VF of a NIC the interface as a comment behind it.
    Either,
    /// As a `<hostdev>`.
    Hostdev,
    /// As an `<interface type='hostdev'>`, for which libvirt sets MAC address and VLAN.
    Interface,
}

/// The XML of a pool, by its name, or of a device; and what is wrong with the pool.
///
/// # Errors
/// There is neither.
fn xml(host: &Host, log: &Log, name: &str, element: Element) -> Result<(String, Vec<Error>)> {
    let leases = Leases::load(host, log);
    let pools = leases.pools();
    match (pools.find(name), name.parse()) {
        (Ok(_), _) if element != Element::Either => Err(Error::new(format!(
            "'{name}' is a pool, and only a device can be shown as one element or the other; give its address"
        ))),
        (Ok(pool), _) => {
            let (xml, mut errors) = pool_xml(host, &leases, pool)?;
            // Other files are no matter here.
            errors.retain(|error| !pools.errors.contains(error));
            Ok((xml, errors))
        }
        (Err(_), Ok(address)) => Ok((device_xml(host, address, element)?, Vec::new())),
        (Err(error), Err(_)) => Err(error),
    }
}

/// Each device that a guest has by its own definition is a connection, as each interface is of a network.
fn pool_xml(host: &Host, leases: &Leases, pool: &Pool) -> Result<(String, Vec<Error>)> {
    let names = [pool.name.clone()];
    let inventory = Listing::gather(host, leases, &Filter { pools: &names, groups: false })?;
    let devices = || inventory.pools.iter().flat_map(PoolView::devices);
    let is_connection =
        |state: &DeviceState| matches!(state, DeviceState::Leased { role: Some(Role::Managed | Role::Unmanaged), .. });
    let connections = devices().filter(|device| is_connection(&device.state)).count();
    let members: Vec<PciAddress> = devices().map(|device| device.address).collect();
    Ok((pool.xml(&members, connections), inventory.errors))
}

fn device_xml(host: &Host, address: PciAddress, element: Element) -> Result<String> {
    let device = sysfs::identity(host, address)?.ok_or_else(|| {
        Error::new(format!("There is no PCI function {address}; `lspci -D` shows those that there are"))
    })?;
    if !device.is_endpoint() {
        return Err(Error::new(format!("{address} is a bridge, which no guest can have")));
    }
    let element_of = |start: &str, end: &str| {
        format!("<{start} managed='yes'>\n  <source>\n    {}\n  </source>\n</{end}>\n", address.element())
    };
    let hostdev = element_of("hostdev mode='subsystem' type='pci'", "hostdev");
    let interface = element_of("interface type='hostdev'", "interface");
    let is_vf_of_nic = device.physfn.is_some() && device.class >> 16 == NETWORK;
    match element {
        Element::Interface if !is_vf_of_nic => Err(Error::new(format!(
            "{address} is no VF of a network card, so it cannot be an interface; leave out --interface"
        ))),
        Element::Interface => Ok(interface),
        Element::Either if is_vf_of_nic => {
            Ok(format!("{hostdev}<!-- or, to have libvirt set its MAC address and VLAN:\n{interface}-->\n"))
        }
        Element::Either | Element::Hostdev => Ok(hostdev),
    }
}

/// Base class of network controllers.
const NETWORK: u32 = 0x02;
