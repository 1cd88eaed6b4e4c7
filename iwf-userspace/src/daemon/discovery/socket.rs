//! A UDP port beside the program that owns it.
//!
//! Answers to DHCP clients come to ports 68 and 546, which the DHCP client of the system is bound to, or may want to bind
//! at any time. A second UDP socket there would be given datagrams that are meant for that client, or none at all,
//! depending on which of the two the kernel likes better. Raw sockets get copies: whatever arrives goes to everybody
//! who listens, and nobody notices that we do. Packet sockets would do as well, and also see what the firewall of this
//! machine drops; they would have to build and check IP headers in turn.
//!
//! Answers reach the stack only if the packet programs of the WAN let them: for DHCPv4 port 68 is among the ports of this
//! machine's own services (`settings::host_ports`), as the question goes to everybody and so begins no session. DHCPv6
//! answers pass by themselves. When no DHCP client is bound to the port, the kernel answers the server by an ICMP error,
//! which servers do not mind.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;

use crate::wire::udp;

/// Longest packet that is read whole.
const MAX_PACKET: usize = 2048;

/// Classic BPF.
const LOAD_HEADER_LENGTH: u16 = 0xb1;
const LOAD_HALF_AFTER_HEADER: u16 = 0x48;
const LOAD_HALF: u16 = 0x28;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Where the destination port is in the UDP header.
const DESTINATION: u32 = 2;

/// The socket.
#[derive(Debug)]
pub(super) struct RawUdp {
    /// A raw socket, which receives and sends as one of UDP does.
    socket: UdpSocket,
    /// The same one, which sends without having been waited for.
    sender: Socket,
    own: SocketAddr,
}

impl RawUdp {
    /// Gets what comes by that interface to that address and port, and sends from there.
    pub(super) fn open(interface: &str, own: SocketAddr) -> io::Result<Self> {
        let domain = match own {
            SocketAddr::V4(_) => Domain::IPV4,
            SocketAddr::V6(_) => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        let port = u32::from(own.port());
        match own {
            // The packet begins with its IP header.
            SocketAddr::V4(_) => socket.attach_filter(&[
                SockFilter::new(LOAD_HEADER_LENGTH, 0, 0, 0),
                SockFilter::new(LOAD_HALF_AFTER_HEADER, 0, 0, DESTINATION),
                SockFilter::new(JUMP_IF_EQUAL, 0, 1, port),
                SockFilter::new(RETURN, 0, 0, u32::MAX),
                SockFilter::new(RETURN, 0, 0, 0),
            ])?,
            // It begins with the UDP header.
            SocketAddr::V6(own) => {
                socket.attach_filter(&[
                    SockFilter::new(LOAD_HALF, 0, 0, DESTINATION),
                    SockFilter::new(JUMP_IF_EQUAL, 0, 1, port),
                    SockFilter::new(RETURN, 0, 0, u32::MAX),
                    SockFilter::new(RETURN, 0, 0, 0),
                ])?;
                socket.set_multicast_if_v6(own.scope_id())?;
                socket.set_multicast_loop_v6(false)?;
            }
        }
        socket.set_broadcast(own.is_ipv4())?;
        let mut local = own;
        // Of a raw socket a port would be the protocol.
        local.set_port(0);
        socket.bind(&local.into())?;
        Ok(Self {
            sender: socket.try_clone()?,
            socket: UdpSocket::from_std(socket.into())?,
            own,
        })
    }

    /// Sends one datagram.
    pub(super) fn send(&self, payload: &[u8], mut to: SocketAddr) -> io::Result<()> {
        let datagram = udp::encode(self.own, to, payload).ok_or(io::ErrorKind::InvalidInput)?;
        to.set_port(0);
        if let (SocketAddr::V6(to), SocketAddr::V6(own)) = (&mut to, self.own) {
            to.set_scope_id(own.scope_id());
        }
        self.sender.send_to(&datagram, &to.into()).map(drop)
    }

    /// The payload of the next datagram.
    pub(super) async fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = [0; MAX_PACKET];
        loop {
            let length = self.socket.recv(&mut buffer).await?;
            let packet = buffer.get(..length).unwrap_or_default();
            let datagram = match self.own {
                SocketAddr::V4(_) => udp::in_ipv4(packet),
                SocketAddr::V6(_) => Some(packet),
            };
            let payload = datagram.and_then(|datagram| udp::payload(datagram, self.own.port()));
            if let Some(payload) = payload {
                return Ok(payload.to_vec());
            }
        }
    }
}
