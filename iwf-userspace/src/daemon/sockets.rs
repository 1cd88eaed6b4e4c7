//! Sockets with the options that their protocols need.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::netstate::LanLink;
use crate::proto::gena::At;
use crate::wire::ssdp;

/// Connections the kernel holds before they are accepted. One that finds no room comes again after a second, so they are
/// as many as a burst may be; each is accepted within some microseconds, to be served or closed.
const BACKLOG: i32 = 4096;
/// How long the kernel keeps what a host does not take, and asks a host that is not there any more.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Port on which PCP servers announce their restarts (RFC 6887 section 19.1), to all nodes of the link.
pub(super) const PCP_CLIENT_PORT: u16 = 5350;
const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A listener that accepts only what arrives on the interface: the address alone would also be reachable from
/// the other side of the router.
pub(super) fn tcp_listener(interface: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let family = Domain::for_address(address);
    let socket = Socket::new(family, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    // Those that are accepted have it as well.
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// A listener at an address of this machine, whichever interface has it.
pub(super) fn tcp_listener_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// A socket towards a subscriber: from our address on its link and by that interface, so that it leads nowhere else
/// whatever the routes say.
pub(super) fn subscriber(interface: &str, from: At) -> io::Result<TcpSocket> {
    let own = on_link(from.own, 0, from.interface);
    let socket = Socket::new(Domain::for_address(own), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&own.into())?;
    socket.set_nonblocking(true)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// An address with the port as a socket of this interface is bound to it: those of the link need to be told which.
pub(super) fn on_link(addr: IpAddr, port: u16, ifindex: u32) -> SocketAddr {
    match addr {
        IpAddr::V4(addr) => SocketAddrV4::new(addr, port).into(),
        IpAddr::V6(addr) => {
            let of_link = addr.is_unicast_link_local() || addr.is_multicast();
            let scope = if of_link { ifindex } else { 0 };
            SocketAddrV6::new(addr, port, 0, scope).into()
        }
    }
}

/// What is sent to the discovery group of this address on its interface, and nothing else.
pub(super) fn ssdp_group(link: &LanLink) -> io::Result<UdpSocket> {
    let group = on_link(ssdp::group(link.addr), ssdp::PORT, link.ifindex);
    let socket = udp_of(Domain::for_address(group))?;
    // Other discovery programs on this machine listen there as well.
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(link.interface.as_bytes()))?;
    socket.bind(&group.into())?;
    match (link.addr, group.ip()) {
        (IpAddr::V4(addr), IpAddr::V4(group)) => socket.join_multicast_v4(&group, &addr)?,
        (_, IpAddr::V6(group)) => socket.join_multicast_v6(&group, link.ifindex)?,
        (IpAddr::V6(_), IpAddr::V4(_)) => return Err(io::ErrorKind::AddrNotAvailable.into()),
    }
    UdpSocket::from_std(socket.into())
}

/// Discovery by this address: unicast searches come in, answers and announcements go out. On another port where a
/// program of this machine has the usual one for itself alone; what is sent has to say so then.
pub(super) fn ssdp_unicast(link: &LanLink, ttl: u8) -> io::Result<UdpSocket> {
    let bound = |port| {
        let own = on_link(link.addr, port, link.ifindex);
        let socket = udp_of(Domain::for_address(own))?;
        // The usual one is shared with other discovery programs.
        socket.set_reuse_address(port == ssdp::PORT)?;
        socket.bind_device(Some(link.interface.as_bytes()))?;
        socket.bind(&own.into())?;
        Ok(socket)
    };
    let is_taken = |result: &io::Result<Socket>| {
        result
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    let mut socket = bound(ssdp::PORT);
    let mut others = ssdp::SEARCH_PORTS;
    while is_taken(&socket) {
        let Some(port) = others.next() else { break };
        socket = bound(port);
    }
    let socket = socket?;
    match link.addr {
        IpAddr::V4(addr) => {
            socket.set_multicast_if_v4(&addr)?;
            socket.set_multicast_ttl_v4(u32::from(ttl))?;
        }
        IpAddr::V6(_) => {
            socket.set_multicast_if_v6(link.ifindex)?;
            socket.set_multicast_hops_v6(u32::from(ttl))?;
        }
    }
    UdpSocket::from_std(socket.into())
}

/// Lets a socket send from its address also when that is no longer ours.
pub(super) fn outlive_address(socket: &UdpSocket) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    if socket.domain()? == Domain::IPV6 {
        socket.set_ip_transparent_v6(true)
    } else {
        socket.set_ip_transparent_v4(true)
    }
}

/// Searches for gateways leave from here, and answers come back to it. They do not leave the link.
pub(super) fn ssdp_search(interface: &str, own: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = udp_of(Domain::IPV4)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(own, 0).into())?;
    socket.set_multicast_if_v4(&own)?;
    socket.set_multicast_ttl_v4(1)?;
    UdpSocket::from_std(socket.into())
}

/// A connection by that interface from that address, whatever the routes say.
pub(super) async fn tcp_client(
    interface: &str,
    own: Ipv4Addr,
    server: SocketAddrV4,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(SocketAddrV4::new(own, 0).into())?;
    socket.connect(server.into()).await
}

/// A client socket for one PCP server, on a port that the kernel picks at random. Connected: the kernel drops
/// datagrams of others and reports hard ICMP errors. By that interface whatever the routes say: a server knows of what
/// is behind it (RFC 7291 section 7). Returned twice: for sending at once, and for waiting.
pub(super) fn pcp_client(
    interface: &str,
    own: IpAddr,
    server: SocketAddr,
) -> io::Result<(Socket, UdpSocket)> {
    let socket = udp_of(Domain::for_address(server))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::new(own, 0).into())?;
    socket.connect(&server.into())?;
    let receiving = socket.try_clone()?;
    Ok((socket, UdpSocket::from_std(receiving.into())?))
}

/// The announcements of PCP servers that arrive on the interface of this address, to the group of its family.
pub(super) fn pcp_announcements(
    interface: &str,
    ifindex: u32,
    own: IpAddr,
) -> io::Result<UdpSocket> {
    let group: SocketAddr = match own {
        IpAddr::V4(_) => (ALL_HOSTS, PCP_CLIENT_PORT).into(),
        IpAddr::V6(_) => SocketAddrV6::new(ALL_NODES, PCP_CLIENT_PORT, 0, ifindex).into(),
    };
    let socket = udp_of(Domain::for_address(group))?;
    // Every PCP client of a machine shares this port (RFC 6887 section 14.1.1).
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&group.into())?;
    match own {
        IpAddr::V4(addr) => socket.join_multicast_v4(&ALL_HOSTS, &addr)?,
        IpAddr::V6(_) => socket.join_multicast_v6(&ALL_NODES, ifindex)?,
    }
    UdpSocket::from_std(socket.into())
}

fn udp_of(family: Domain) -> io::Result<Socket> {
    let socket = Socket::new(family, Type::DGRAM, Some(Protocol::UDP))?;
    if family == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn discovery_sends_with_the_configured_ttl_from_its_own_port() {
        let addr = Ipv4Addr::new(127, 0, 0, 29);
        let link = LanLink {
            interface: "lo".to_owned(),
            ifindex: 1,
            addr: addr.into(),
            prefix_len: 8,
        };
        let socket = ssdp_unicast(&link, 2).unwrap();
        assert_eq!(SockRef::from(&socket).multicast_ttl_v4().unwrap(), 2);
        assert_eq!(
            socket.local_addr().unwrap(),
            SocketAddrV4::new(addr, 1900).into()
        );
        let link = LanLink {
            addr: Ipv6Addr::LOCALHOST.into(),
            prefix_len: 128,
            ..link
        };
        let socket = ssdp_unicast(&link, 2).unwrap();
        assert_eq!(SockRef::from(&socket).multicast_hops_v6().unwrap(), 2);
    }

    /// UPnP Device Architecture 1.1 clause 1.3.2: a device that cannot have the usual port has another one.
    #[tokio::test]
    async fn discovery_takes_another_port_where_the_usual_one_is_not_shared() {
        let addr = Ipv4Addr::new(127, 0, 0, 33);
        let link = LanLink {
            interface: "lo".to_owned(),
            ifindex: 1,
            addr: addr.into(),
            prefix_len: 8,
        };
        let alone = udp_of(Domain::IPV4).unwrap();
        alone
            .bind(&SocketAddrV4::new(addr, ssdp::PORT).into())
            .unwrap();
        let first = ssdp_unicast(&link, 2).unwrap().local_addr().unwrap();
        assert!(ssdp::SEARCH_PORTS.contains(&first.port()), "{first}");
    }

    /// PCPC-003: whoever cannot see our requests has to guess where answers go.
    #[tokio::test]
    async fn clients_of_servers_have_ports_that_do_not_follow_each_other() {
        let own = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let server = SocketAddr::new(own, 5351);
        let clients: Vec<_> = (0..20)
            .map(|_| pcp_client("lo", own, server).unwrap())
            .collect();
        let ports: Vec<_> = clients
            .iter()
            .map(|(_, socket)| socket.local_addr().unwrap().port())
            .collect();
        let different: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(different.len(), 20);
        let next = ports.windows(2).filter(|w| w[0].abs_diff(w[1]) <= 2);
        assert!(next.count() < 5, "{ports:?}");
    }

    #[tokio::test]
    async fn pcp_clients_of_one_machine_share_the_announcements() {
        for addr in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let _ours = pcp_announcements("lo", 1, addr).unwrap();
            pcp_announcements("lo", 1, addr).unwrap();
        }
    }
}
