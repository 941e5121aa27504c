//! What an interface is used for: routes, addresses, bridges and bonds.
//! Source: Linux `Documentation/ABI/testing/sysfs-class-net`.

use super::{Guard, netlink};
use crate::files;
use model::error::Result;
use model::host_use::HostUse;
use std::net::IpAddr;
use std::path::Path;

/// The interfaces, by their numbers, that the host cannot be without.
#[derive(Debug, Default)]
pub(super) struct WaysOut {
    /// Those of the best IPv4 and of the best IPv6 default route. An interface with a worse one only has an address,
    /// too, and is judged by that.
    default: Vec<u32>,
    /// Those that lead to the servers of the root file system.
    root: Vec<(u32, IpAddr)>,
}

impl Guard<'_> {
    pub(super) fn network(&self, netdev: &str) -> Result<Option<HostUse>> {
        let folder = self.host.netdev(netdev);
        let netdev = netdev.to_owned();
        if let Some(upper) = files::link_name(&folder.join("master"))? {
            return Ok(Some(HostUse::Carries { netdev, upper }));
        }
        if let Some(upper) = files::names(&folder)?.iter().find_map(|name| name.strip_prefix("upper_")) {
            return Ok(Some(HostUse::Carries { netdev, upper: upper.to_owned() }));
        }
        if !is_up(&folder)? {
            return Ok(None);
        }
        let Some(number) = files::read_optional(&folder.join("ifindex"))?.and_then(|text| text.parse().ok()) else {
            return Ok(Some(HostUse::Up { netdev }));
        };
        let ways = self.ways.get_or_try_init(|| self.ways_out())?;
        if ways.default.contains(&number) {
            return Ok(Some(HostUse::DefaultRoute { netdev }));
        }
        if let Some((_, server)) = ways.root.iter().find(|(interface, _)| *interface == number) {
            return Ok(Some(HostUse::NetworkRoot { netdev, server: server.to_string() }));
        }
        let addresses = self.addresses.get_or_try_init(|| netlink::addresses(self.limit))?;
        let own = addresses.iter().find(|(interface, _)| *interface == number);
        Ok(Some(match own {
            Some((_, address)) => HostUse::Address { netdev, address: address.to_string() },
            None => HostUse::Up { netdev },
        }))
    }

    fn ways_out(&self) -> Result<WaysOut> {
        let servers = self.root_servers()?;
        let routes = netlink::routes(&servers, self.limit)?;
        let mut ways = WaysOut::default();
        for is_ipv6 in [false, true] {
            let routes = routes.iter().filter(|route| route.bits == 0 && route.to.is_ipv6() == is_ipv6);
            let lowest = routes.clone().map(|route| route.metric).min();
            let best = routes.filter(|route| Some(route.metric) == lowest);
            ways.default.extend(best.flat_map(|route| &route.interfaces));
        }
        for server in servers {
            let routes = routes.iter().filter(|route| netlink::contains(route.to, route.bits, server));
            // As the kernel does: the longest prefix, then the lowest metric.
            let rank = |route: &&netlink::Route| (u8::MAX - route.bits, route.metric);
            let best = routes.clone().map(|route| rank(&route)).min();
            let best = routes.filter(|route| Some(rank(route)) == best);
            ways.root.extend(best.flat_map(|route| &route.interfaces).map(|interface| (*interface, server)));
        }
        Ok(ways)
    }
}

/// Whether a network interface, given by its folder, is up.
pub fn is_up(netdev: &Path) -> Result<bool> {
    const IFF_UP: u32 = 1;
    let Some(flags) = files::read_optional(&netdev.join("flags"))? else { return Ok(false) };
    let flags = u32::from_str_radix(flags.strip_prefix("0x").unwrap_or(&flags), 16);
    Ok(flags.is_ok_and(|flags| flags & IFF_UP != 0))
}
