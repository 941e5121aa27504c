//! What an interface is used for: routes, addresses, bridges and bonds.
//! Sources: proc(5) on net/route; Linux `Documentation/ABI/testing/sysfs-class-net`.

use super::Guard;
use crate::files;
use model::error::{Error, Result};
use model::host_use::HostUse;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage};
use std::collections::BTreeMap;
use std::path::Path;

impl Guard<'_> {
    pub(super) fn network(&self, netdev: &str) -> Result<Option<HostUse>> {
        let folder = self.host.path("sys/class/net").join(netdev);
        if let Some(upper) = files::link_name(&folder.join("master"))? {
            return Ok(Some(HostUse::Carries { netdev: netdev.to_owned(), upper }));
        }
        if let Some(upper) = files::names(&folder)?.iter().find_map(|name| name.strip_prefix("upper_")) {
            return Ok(Some(HostUse::Carries { netdev: netdev.to_owned(), upper: upper.to_owned() }));
        }
        if !is_up(&folder)? {
            return Ok(None);
        }
        if self.routes.get_or_try_init(|| self.default_routes())?.iter().any(|interface| interface == netdev) {
            return Ok(Some(HostUse::DefaultRoute { netdev: netdev.to_owned() }));
        }
        let addresses = self.addresses.get_or_try_init(addresses)?;
        Ok(addresses
            .get(netdev)
            .map(|address| HostUse::Address { netdev: netdev.to_owned(), address: address.clone() }))
    }

    /// The interfaces of the best IPv4 and of the best IPv6 default route. An interface with a worse one only has an
    /// address, too, and is judged by that.
    fn default_routes(&self) -> Result<Vec<String>> {
        const RTF_REJECT: u32 = 0x200;
        let mut best = Vec::new();
        for (file, ipv6) in [("proc/net/route", false), ("proc/net/ipv6_route", true)] {
            let table = files::read_optional(&self.host.path(file))?.unwrap_or_default();
            let routes = table.lines().filter_map(|line| {
                let field: Vec<&str> = line.split_whitespace().collect();
                let (interface, destination, mask, flags, metric) = if ipv6 {
                    (field.get(9)?, field.first()?, field.get(1)?, field.get(8)?, hex(field.get(5)?)?)
                } else {
                    (field.first()?, field.get(1)?, field.get(7)?, field.get(3)?, field.get(6)?.parse().ok()?)
                };
                let is_default = hex(mask)? == 0 && destination.bytes().all(|digit| digit == b'0');
                let is_usable = hex(flags)? & RTF_REJECT == 0 && *interface != "lo";
                (is_default && is_usable).then(|| (metric, (*interface).to_owned()))
            });
            let routes: Vec<(u32, String)> = routes.collect();
            let lowest = routes.iter().map(|(metric, _)| *metric).min();
            best.extend(routes.into_iter().filter(|(metric, _)| Some(*metric) == lowest).map(|(_, netdev)| netdev));
        }
        Ok(best)
    }
}

/// Whether a network interface, given by its folder, is up.
pub fn is_up(netdev: &Path) -> Result<bool> {
    const IFF_UP: u32 = 1;
    let Some(flags) = files::read_optional(&netdev.join("flags"))? else { return Ok(false) };
    Ok(hex(&flags).is_none_or(|flags| flags & IFF_UP != 0))
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// Of each interface an address that was given to it on purpose.
fn addresses() -> Result<BTreeMap<String, String>> {
    let all = nix::ifaddrs::getifaddrs()
        .map_err(|errno| Error::new(format!("Cannot list the addresses of the host's interfaces: {errno}")))?;
    let mut addresses = BTreeMap::new();
    for entry in all {
        let given = entry.address.and_then(|address: SockaddrStorage| match address.family()? {
            AddressFamily::Inet => Some(address.as_sockaddr_in()?.ip().to_string()),
            AddressFamily::Inet6 => {
                let ip = address.as_sockaddr_in6()?.ip();
                (!ip.is_unicast_link_local()).then(|| ip.to_string())
            }
            _ => None,
        });
        // An address with a label is shown under that, as eth0:1.
        let interface = entry.interface_name.split(':').next().unwrap_or_default();
        if let Some(address) = given {
            addresses.entry(interface.to_owned()).or_insert(address);
        }
    }
    Ok(addresses)
}
