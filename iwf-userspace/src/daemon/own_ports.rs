//! The ports this machine uses itself: what listens or is bound where the WAN could reach it, and what its
//! administrator has reserved. No LAN host may get them as external ports.
//!
//! Read before editing: sock_diag(7), ip(7), Documentation/networking/ip-sysctl.rst (ip_local_reserved_ports).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use tracing::{debug, warn};

use super::netstate::NetState;
use super::raw_netlink::{self as raw, NLMSG_ERROR, message};
use crate::types::Protocol;

/// Ports that are kept; the lowest ones. More: warned about, and the others are not protected.
const MAX: usize = 2048;

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// linux/netlink.h.
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
/// linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// net/tcp_states.h, as bits: a listener, and a UDP socket that is bound, connected or not. What speaks UDP keeps its port:
/// the data plane gives it to no LAN host as long as answers may come.
const LISTEN: u32 = 1 << 10;
const BOUND: u32 = 1 << 1 | 1 << 7;

/// The ports in use at this moment. What cannot be asked is left out; a kernel without socket diagnosis tells nothing.
pub(super) fn now(network: &NetState) -> BTreeSet<(Protocol, u16)> {
    let mut ports = BTreeSet::new();
    let external: Vec<_> = network
        .external_addr
        .iter()
        .chain(&network.wan.pool)
        .copied()
        .collect();
    for (protocol, states) in [(Protocol::Tcp, LISTEN), (Protocol::Udp, BOUND)] {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut take = |socket: Bound| {
                if socket.faces(network.wan_ifindex, &external) {
                    ports.insert((protocol, socket.port));
                }
            };
            if let Err(error) = sockets(family, protocol, states, &mut take) {
                debug!(%protocol, family, "cannot list this machine's sockets: {error}");
            }
        }
    }
    let reserved = std::fs::read_to_string(RESERVED).unwrap_or_default();
    for range in ranges(&reserved) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            ports.extend(range.clone().map(|port| (protocol, port)));
        }
    }
    if ports.len() > MAX {
        warn!(
            ports = ports.len(),
            kept = MAX,
            "this machine uses more ports than can be kept from LAN hosts"
        );
        ports = ports.into_iter().take(MAX).collect();
    }
    ports
}

/// Ranges of `8080,9000-9010`. What is no number is left out.
fn ranges(text: &str) -> impl Iterator<Item = std::ops::RangeInclusive<u16>> {
    text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    })
}

/// Where a socket is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    port: u16,
    /// `None`: an IPv6 address that is not every address and not an IPv4 one.
    addr: Option<Ipv4Addr>,
    /// 0: every interface.
    interface: u32,
}

impl Bound {
    /// Whether packets to an external address would reach it.
    fn faces(self, wan: Option<u32>, external: &[Ipv4Addr]) -> bool {
        let here = self.interface == 0 || Some(self.interface) == wan;
        let addressed = self
            .addr
            .is_some_and(|addr| addr.is_unspecified() || external.contains(&addr));
        here && addressed && self.port != 0
    }
}

/// Hands every socket of that kind to `each`.
fn sockets(
    family: i32,
    protocol: Protocol,
    states: u32,
    each: &mut impl FnMut(Bound),
) -> io::Result<()> {
    let socket = raw::socket(NETLINK_SOCK_DIAG)?;
    let family = u8::try_from(family).unwrap_or_default();
    socket.send(&request(family, protocol.number(), states), 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some((kind, body, next)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(raw::error(body)),
                _ => {
                    if let Some(bound) = bound(body) {
                        each(bound);
                    }
                }
            }
            rest = next;
        }
    }
}

/// struct inet_diag_req_v2: family, protocol, extensions, padding, states, and an id of 48 octets that is zero for a
/// dump.
fn request(family: u8, protocol: u8, states: u32) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.resize(56, 0);
    raw::request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, &body)
}

/// struct inet_diag_msg: family, state, timer, retransmissions, then source port, destination port, source address
/// (16), destination address (16), interface.
fn bound(body: &[u8]) -> Option<Bound> {
    let family = i32::from(*body.first()?);
    let port = u16::from_be_bytes(*body.get(4..)?.first_chunk()?);
    let addr: [u8; 16] = *body.get(8..)?.first_chunk()?;
    let interface = u32::from_ne_bytes(*body.get(40..)?.first_chunk()?);
    let addr = if family == libc::AF_INET {
        let [a, b, c, d, ..] = addr;
        Some(Ipv4Addr::new(a, b, c, d))
    } else if addr == [0; 16] {
        // An IPv6 socket takes IPv4 as well, unless it has said otherwise, which is not told here.
        Some(Ipv4Addr::UNSPECIFIED)
    } else {
        std::net::Ipv6Addr::from(addr).to_ipv4_mapped()
    };
    Some(Bound {
        port,
        addr,
        interface,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(family: i32, port: u16, addr: [u8; 16], interface: u32) -> Vec<u8> {
        let mut body = vec![u8::try_from(family).expect("small"), 10, 0, 0];
        body.extend(port.to_be_bytes());
        body.extend([0; 2]);
        body.extend(addr);
        body.extend([0; 16]);
        body.extend(interface.to_ne_bytes());
        body.extend([0; 8 + 20]);
        body
    }

    #[test]
    fn a_record_is_read_by_its_fields_and_cut_short_is_nothing() {
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&[100, 64, 0, 2]);
        let body = record(libc::AF_INET, 8080, v4, 7);
        let read = bound(&body).expect("whole");
        assert_eq!(
            (read.port, read.addr, read.interface),
            (8080, Some(Ipv4Addr::new(100, 64, 0, 2)), 7)
        );
        for cut in 0..44 {
            assert_eq!(bound(&body[..cut]), None, "cut at {cut}");
        }
        let any = record(libc::AF_INET6, 53, [0; 16], 0);
        assert_eq!(
            bound(&any).and_then(|b| b.addr),
            Some(Ipv4Addr::UNSPECIFIED)
        );
        let mapped = Ipv4Addr::new(1, 2, 3, 4).to_ipv6_mapped().octets();
        let mapped = record(libc::AF_INET6, 53, mapped, 0);
        assert_eq!(
            bound(&mapped).and_then(|b| b.addr),
            Some(Ipv4Addr::new(1, 2, 3, 4))
        );
    }

    #[test]
    fn only_what_the_wan_can_reach_counts() {
        let wan = Ipv4Addr::new(100, 64, 0, 2);
        let at = |addr, interface| Bound {
            port: 53,
            addr,
            interface,
        };
        let pooled = Ipv4Addr::new(100, 64, 0, 3);
        let faces = |bound: Bound| bound.faces(Some(3), &[wan, pooled]);
        assert!(faces(at(Some(pooled), 0)));
        assert!(faces(at(Some(Ipv4Addr::UNSPECIFIED), 0)));
        assert!(faces(at(Some(wan), 3)));
        assert!(!faces(at(Some(Ipv4Addr::UNSPECIFIED), 4)));
        assert!(!faces(at(Some(Ipv4Addr::new(192, 168, 1, 1)), 0)));
        assert!(!faces(at(Some(Ipv4Addr::LOCALHOST), 0)));
        assert!(!faces(at(None, 0)));
    }

    #[test]
    fn reserved_ranges_are_read() {
        let all: Vec<_> = ranges("8080,9000-9002,x,\n").collect();
        assert_eq!(all, [8080..=8080, 9000..=9002]);
        assert_eq!(ranges("\n").count(), 0);
    }

    #[test]
    fn what_speaks_udp_is_found_connected_or_not() {
        #[expect(clippy::disallowed_types, reason = "the kernel is asked about it")]
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = socket.local_addr().expect("bound").port();
        let network = NetState {
            external_addr: Some(Ipv4Addr::LOCALHOST),
            ..NetState::default()
        };
        let found = || now(&network).contains(&(Protocol::Udp, port));
        assert!(found());
        socket.connect(("127.0.0.1", 9)).expect("an address");
        assert!(found());
        drop(socket);
        assert!(!found());
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        #[expect(clippy::disallowed_types, reason = "the kernel is asked about it")]
        let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let found = |ports: BTreeSet<_>| ports.contains(&(Protocol::Tcp, port));
        assert!(found(now(&NetState::default())));
        drop(listener);
        assert!(!found(now(&NetState::default())));
    }
}
