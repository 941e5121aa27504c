//! The addresses and routes of the host, by rtnetlink: procfs shows one next hop of a route only.
//!
//! A dump waits for the kernel's lock on all interfaces, which a driver that hangs may hold; so it is made by a child
//! process with a deadline. Of a routing table of a million routes only those come back that were asked for. Sources:
//! rtnetlink(7), netlink(7); Linux `include/uapi/linux/rtnetlink.h`, `if_addr.h`.

use crate::syscall;
use model::error::{Error, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A header of 16 bytes: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// `struct rtmsg`.
const RTMSG: usize = 12;
/// `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// Where it leads to, and how many bits of that count.
    pub(super) to: IpAddr,
    pub(super) bits: u8,
    /// The lower, the better.
    pub(super) metric: u32,
    /// The interfaces of all its next hops, by number.
    pub(super) interfaces: Vec<u32>,
}

/// The default routes, and those that lead to these addresses.
pub(super) fn routes(wanted: &[IpAddr], limit: Duration) -> Result<Vec<Route>> {
    let counts = |message: &[u8]| {
        let head = Head::of(message);
        head.kind == RTM_NEWROUTE && {
            let bits = message.get(HEADER + 1).copied().unwrap_or(0);
            bits == 0 || destination(message).is_some_and(|to| wanted.iter().any(|wanted| contains(to, bits, *wanted)))
        }
    };
    let mut routes = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let answer = dump(RTM_GETROUTE, family, RTMSG, limit, counts)?;
        routes.extend(messages(&answer).filter_map(route));
    }
    Ok(routes)
}

/// The interfaces' addresses, by the numbers of the interfaces.
pub(super) fn addresses(limit: Duration) -> Result<Vec<(u32, IpAddr)>> {
    let answer = dump(RTM_GETADDR, 0, IFADDRMSG, limit, |message| Head::of(message).kind == RTM_NEWADDR)?;
    Ok(messages(&answer).filter_map(address).collect())
}

/// Whether an address is in a network.
pub(super) fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let (network, address) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u128::from(u32::from(network)) << 96, u128::from(u32::from(address)) << 96)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.into(), address.into()),
        _ => return false,
    };
    bits == 0 || (network ^ address) >> (128 - u32::from(bits.min(128))) == 0
}

/// All messages of a dump that count, one behind the other.
fn dump(kind: u16, family: u8, length: usize, limit: Duration, counts: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
    let mut request = [0; HEADER + RTMSG];
    let request = &mut request[..HEADER + length];
    let size = u32::try_from(request.len()).unwrap_or_default();
    request[..4].copy_from_slice(&size.to_ne_bytes());
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request[HEADER] = family;
    // As large as the kernel makes a part of a dump. The child may not allocate.
    let mut buffer = vec![0; 32 << 10];
    let answer = syscall::read_within(limit, |into| exchange(request, into, &mut buffer, &counts));
    answer.map_err(|cause| Error::new(format!("Cannot ask the kernel for the host's addresses and routes: {cause}")))
}

/// Between fork and exit: makes system calls only.
fn exchange(request: &[u8], into: BorrowedFd, buffer: &mut [u8], counts: &impl Fn(&[u8]) -> bool) -> nix::Result<()> {
    let route = SockProtocol::NetlinkRoute;
    let kernel = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, route)?;
    sendto(kernel.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    loop {
        let length = recv(kernel.as_raw_fd(), buffer, MsgFlags::empty())?;
        for message in messages(&buffer[..length]) {
            match Head::of(message).kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let error = message.get(HEADER..HEADER + 4).and_then(|error| error.try_into().ok());
                    return Err(Errno::from_raw(error.map_or(0, |error| -i32::from_ne_bytes(error))));
                }
                _ if counts(message) => write_all(into, message)?,
                _ => {}
            }
        }
    }
}

fn write_all(into: BorrowedFd, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[nix::unistd::write(into, bytes)?..];
    }
    Ok(())
}

struct Head {
    length: usize,
    kind: u16,
}

impl Head {
    /// Of at least [`HEADER`] bytes; of fewer, one of no length.
    fn of(bytes: &[u8]) -> Self {
        let kind = bytes.get(4..6).map_or(0, |kind| u16::from_ne_bytes([kind[0], kind[1]]));
        Self { length: number(bytes, 0).map_or(0, |length| length as usize), kind }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Messages begin at multiples of 4.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = Head::of(bytes).length;
        let message = bytes.get(..length).filter(|_| length >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes of a message: type and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

fn destination(message: &[u8]) -> Option<IpAddr> {
    const RTA_DST: u16 = 1;
    attributes(message.get(HEADER + RTMSG..)?).find(|(kind, _)| *kind == RTA_DST).and_then(|(_, value)| ip(value))
}

fn route(message: &[u8]) -> Option<Route> {
    const RTA_OIF: u16 = 4;
    const RTA_PRIORITY: u16 = 6;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_TABLE: u16 = 15;
    const MAIN: u32 = 254;
    const RTN_UNICAST: u8 = 1;
    let fixed = message.get(HEADER..HEADER + RTMSG)?;
    let (family, bits, mut table, kind) = (fixed[0], fixed[1], u32::from(fixed[4]), fixed[7]);
    let (mut metric, mut interfaces) = (0, Vec::new());
    for (attribute, value) in attributes(&message[HEADER + RTMSG..]) {
        match attribute {
            RTA_OIF => interfaces.extend(number(value, 0)),
            RTA_PRIORITY => metric = number(value, 0)?,
            RTA_TABLE => table = number(value, 0)?,
            RTA_MULTIPATH => interfaces.extend(next_hops(value)),
            _ => {}
        }
    }
    let any = if family == AF_INET { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let to = destination(message).unwrap_or(any);
    // Black holes and prohibitions are no way out.
    (table == MAIN && kind == RTN_UNICAST).then_some(Route { to, bits, metric, interfaces })
}

/// The interfaces of `struct rtnexthop`s: length (16 bit), flags, hops, interface, then attributes.
fn next_hops(mut bytes: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let interface = number(bytes, 4).filter(|_| length >= 8)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(interface)
    })
}

/// An address that was given to an interface on purpose.
fn address(message: &[u8]) -> Option<(u32, IpAddr)> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let interface = number(message, HEADER + 4)?;
    let all = || attributes(&message[HEADER + IFADDRMSG..]);
    // Of a point-to-point link, the first is the other end's.
    let own = all().find(|(kind, _)| *kind == IFA_LOCAL).or_else(|| all().find(|(kind, _)| *kind == IFA_ADDRESS));
    let address = ip(own?.1)?;
    let is_given = !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    is_given.then_some((interface, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes: Vec<u8> = length.to_ne_bytes().into_iter().chain(kind.to_ne_bytes()).collect();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, fixed: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
        let body: Vec<u8> = fixed.iter().copied().chain(attributes.concat()).collect();
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes: Vec<u8> = length.to_ne_bytes().into_iter().chain(kind.to_ne_bytes()).collect();
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    /// Family, bits, source bits, TOS, table, protocol, scope, type, flags.
    fn rtmsg(family: u8, bits: u8, table: u8, kind: u8) -> [u8; RTMSG] {
        [family, bits, 0, 0, table, 3, 0, kind, 0, 0, 0, 0]
    }

    #[test]
    fn every_next_hop_of_a_route_counts() {
        let hop = |interface: u32| -> Vec<u8> {
            let gateway = attribute(5, &[192, 0, 2, 1]);
            let length = u16::try_from(8 + gateway.len()).unwrap();
            [&length.to_ne_bytes()[..], &[0, 0], &interface.to_ne_bytes(), &gateway].concat()
        };
        let several = attribute(9, &[hop(2), hop(7)].concat());
        let table = [
            message(RTM_NEWROUTE, &rtmsg(AF_INET, 0, 254, 1), &[attribute(6, &100u32.to_ne_bytes()), several]),
            message(
                RTM_NEWROUTE,
                &rtmsg(AF_INET, 8, 254, 1),
                &[attribute(1, &[10, 0, 0, 0]), attribute(4, &3u32.to_ne_bytes())],
            ),
            // A black hole, and a table of its own.
            message(RTM_NEWROUTE, &rtmsg(AF_INET, 0, 254, 6), &[]),
            message(RTM_NEWROUTE, &rtmsg(AF_INET6, 0, 0, 1), &[attribute(15, &1000u32.to_ne_bytes())]),
        ];
        let found: Vec<Route> = messages(&table.concat()).filter_map(route).collect();
        let expected = |to: [u8; 4], bits, metric, interfaces: &[u32]| Route {
            to: IpAddr::from(to),
            bits,
            metric,
            interfaces: interfaces.to_vec(),
        };
        assert_eq!(found, [expected([0; 4], 0, 100, &[2, 7]), expected([10, 0, 0, 0], 8, 0, &[3])]);
    }

    #[test]
    fn an_address_is_that_of_this_end() {
        let fixed = |interface: u32| [&[AF_INET, 24, 0, 0][..], &interface.to_ne_bytes()].concat();
        let v6 = |text: &str| attribute(1, &text.parse::<Ipv6Addr>().unwrap().octets());
        let table = [
            message(RTM_NEWADDR, &fixed(4), &[attribute(1, &[192, 0, 2, 9]), attribute(2, &[192, 0, 2, 7])]),
            message(RTM_NEWADDR, &fixed(5), &[v6("fe80::1")]),
            message(RTM_NEWADDR, &fixed(6), &[v6("2001:db8::7")]),
        ];
        let found: Vec<(u32, IpAddr)> = messages(&table.concat()).filter_map(address).collect();
        assert_eq!(found, [(4, [192, 0, 2, 7].into()), (6, "2001:db8::7".parse().unwrap())]);
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        let whole = message(RTM_NEWROUTE, &rtmsg(AF_INET, 0, 254, 1), &[attribute(4, &3u32.to_ne_bytes())]);
        for length in 0..whole.len() {
            let mut part = whole[..length].to_vec();
            assert_eq!(messages(&part).count(), 0, "{length}");
            if length >= 4 {
                part[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
                let _ = messages(&part).filter_map(route).count();
            }
        }
    }

    #[test]
    fn networks() {
        let contains =
            |network: &str, bits, address: &str| contains(network.parse().unwrap(), bits, address.parse().unwrap());
        assert!(contains("10.0.0.0", 8, "10.255.1.2") && !contains("10.0.0.0", 8, "11.0.0.1"));
        assert!(contains("0.0.0.0", 0, "192.0.2.1") && contains("192.0.2.1", 32, "192.0.2.1"));
        assert!(contains("2001:db8::", 32, "2001:db8::1") && !contains("2001:db8::", 128, "2001:db8::1"));
        assert!(!contains("::", 0, "192.0.2.1"));
    }

    #[test]
    fn this_kernel_answers() {
        // Of any machine: the loopback interface, number 1.
        let limit = Duration::from_secs(10);
        let all = addresses(limit).unwrap();
        assert!(all.is_empty() || all.iter().any(|(interface, _)| *interface > 0), "{all:?}");
        routes(&[[127, 0, 0, 1].into()], limit).unwrap();
    }
}
