//! Packet to flow.

use iwf_common::flow::SessionKey;
use iwf_common::reason::PassReason;

use crate::cursor::Cursor;
use crate::headers::{
    ETHERNET_LEN, ETHERTYPE_IPV4, Ethernet, ICMP, ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, Icmp, Ipv4,
    TCP, Tcp, UDP, Udp,
};
use crate::outcome::Step;

/// Where the IPv4 header begins.
pub const L3: usize = ETHERNET_LEN;

/// What the programs need of a packet that belongs to a flow.
pub struct Packet {
    /// The headers as they arrived.
    pub key: SessionKey,
    /// Where the transport header begins.
    pub l4: usize,
    /// Octets of the IPv4 packet.
    pub total_len: u16,
    /// Time to live.
    pub ttl: u8,
    /// Flags octet of a TCP header, else 0.
    pub tcp_flags: u8,
    /// Destination of the frame.
    pub frame_dst: [u8; 6],
}

impl Packet {
    /// Before [`parse`] has filled it in.
    pub const EMPTY: Self = Self {
        key: SessionKey {
            src: [0; 4],
            dst: [0; 4],
            src_port: [0; 2],
            dst_port: [0; 2],
            proto: 0,
            pad: [0; 3],
        },
        l4: 0,
        total_len: 0,
        ttl: 0,
        tcp_flags: 0,
        frame_dst: [0; 6],
    };

    /// Whether the packet asks: everything but an ICMP reply, which answers a query of the other side.
    ///
    /// An ICMP identifier is the port of the side that asked, and the other side's port is 0: so a reply never
    /// hits a session of the same direction as the query, nor a query one of the reply's.
    #[inline(always)]
    pub const fn asks(&self) -> bool {
        self.key.proto != ICMP || self.key.dst_port[0] | self.key.dst_port[1] == 0
    }
}

/// Reads the flow of a packet into `packet`, or says why it has none. `frame_len` is all of the frame, linear or
/// not. Filled in place: a copy would cost stack that the calls of a miss need.
#[inline(always)]
pub fn parse(cursor: &Cursor, packet: &mut Packet, frame_len: impl FnOnce() -> usize) -> Step<()> {
    let ethernet: Ethernet = cursor.read(0).ok_or(PassReason::Malformed)?;
    if ethernet.ethertype != ETHERTYPE_IPV4 {
        return Err(PassReason::NotIpv4.into());
    }
    let ip: Ipv4 = cursor.read(L3).ok_or(PassReason::Malformed)?;
    let header_len = usize::from(ip.version_ihl & 0x0f) * 4;
    if ip.version_ihl >> 4 != 4 || header_len < size_of::<Ipv4>() {
        return Err(PassReason::Malformed.into());
    }
    // More fragments, or an offset: ports are not there or not all of the packet is.
    if u16::from_be_bytes(ip.fragment) & 0x3fff != 0 {
        return Err(PassReason::Fragment.into());
    }
    let l4 = L3 + header_len;
    packet.key.src = ip.src;
    packet.key.dst = ip.dst;
    packet.key.proto = ip.proto;
    packet.l4 = l4;
    packet.total_len = u16::from_be_bytes(ip.total_len);
    packet.ttl = ip.ttl;
    packet.frame_dst = ethernet.dst;
    let transport_len = match ip.proto {
        UDP => {
            let udp: Udp = cursor.read(l4).ok_or(PassReason::Malformed)?;
            packet.key.src_port = udp.src_port;
            packet.key.dst_port = udp.dst_port;
            size_of::<Udp>()
        }
        TCP => {
            let tcp: Tcp = cursor.read(l4).ok_or(PassReason::Malformed)?;
            packet.key.src_port = tcp.src_port;
            packet.key.dst_port = tcp.dst_port;
            packet.tcp_flags = tcp.flags;
            size_of::<Tcp>()
        }
        ICMP => {
            let icmp: Icmp = cursor.read(l4).ok_or(PassReason::Malformed)?;
            match icmp.kind {
                ICMP_ECHO_REQUEST => packet.key.src_port = icmp.id,
                ICMP_ECHO_REPLY => packet.key.dst_port = icmp.id,
                // RFC 792: unreachable, quench, redirect, time exceeded, parameter problem.
                3..=5 | 11 | 12 => return Err(PassReason::IcmpError.into()),
                _ => return Err(PassReason::OtherProtocol.into()),
            }
            size_of::<Icmp>()
        }
        _ => return Err(PassReason::OtherProtocol.into()),
    };
    let total_len = usize::from(packet.total_len);
    if total_len < header_len + transport_len {
        return Err(PassReason::Malformed.into());
    }
    // Only a packet that continues in fragments of the buffer needs the costlier length.
    if L3 + total_len > cursor.len() && L3 + total_len > frame_len() {
        return Err(PassReason::Malformed.into());
    }
    Ok(())
}

/// The addresses of an IPv4 packet whatever else it is, for packets that [`parse`] finds no flow in.
#[inline(always)]
pub fn addresses(cursor: &Cursor) -> Option<Ipv4> {
    let ethernet: Ethernet = cursor.read(0)?;
    if ethernet.ethertype != ETHERTYPE_IPV4 {
        return None;
    }
    cursor.read(L3)
}

/// Neither multicast, broadcast, loopback nor unspecified.
#[inline(always)]
pub const fn is_unicast(addr: [u8; 4]) -> bool {
    addr[0] != 0 && addr[0] != 127 && addr[0] < 224
}
