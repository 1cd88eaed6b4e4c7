//! Packet to flow.

use core::mem::MaybeUninit;

use iwf_common::flow::SessionKey;
use iwf_common::reason::{DropReason, PassReason};
use iwf_common::tcp as tcp_flag;

use crate::cursor::{Cursor, load16, load32};
use crate::headers::{
    ICMP, ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, Mac, TCP, UDP, icmp, ipv4, ports, tcp, udp,
};
use crate::hook::Hook;
use crate::options;
use crate::outcome::Step;

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
    /// [`Marks`].
    pub marks: u8,
    /// Destination of the frame.
    pub frame_dst: Mac,
}

/// What is rare enough to be asked together: bits of [`Packet::marks`].
pub struct Marks;

impl Marks {
    /// The beginning of a TCP connection, whose maximum segment size may have to be lowered.
    pub const SYN: u8 = tcp_flag::SYN;
    /// The first fragment of a datagram.
    pub const FIRST: u8 = 0x20;
}

impl Packet {
    /// Whether the packet asks: everything but an ICMP reply, which answers a query of the other side.
    ///
    /// An ICMP identifier is the port of the side that asked, and the other side's port is 0: so a reply never
    /// hits a session of the same direction as the query, nor a query one of the reply's.
    #[inline(always)]
    pub const fn asks(&self) -> bool {
        self.key.proto != ICMP || self.key.dst_port[0] | self.key.dst_port[1] == 0
    }
}

/// Reads the flow of a packet into `packet`, or says why it has none. Written in place and at once: a copy would
/// cost stack that the calls of a miss need.
#[inline(always)]
pub fn parse<'a, H: Hook>(
    hook: &H,
    cursor: &Cursor,
    packet: &'a mut MaybeUninit<Packet>,
) -> Step<&'a mut Packet> {
    if !hook.is_ipv4(cursor) {
        return Err(PassReason::NotIpv4.into());
    }
    let ip = cursor
        .at::<{ ipv4::LEN }>(H::L3)
        .ok_or(DropReason::Malformed)?;
    // SAFETY: `at` proved the bounds of each header, here and below.
    let version_ihl = unsafe { *ip.add(ipv4::VERSION_IHL) };
    if version_ihl != USUAL {
        options::check_ipv4::<H>(*cursor, version_ihl).step()?;
    }
    // Read again, so that the verifier goes on with one kind of header and not with each of the two.
    // SAFETY: see above.
    let version_ihl = unsafe { ip.add(ipv4::VERSION_IHL).read_volatile() };
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    // SAFETY: see above.
    let fragment = u16::from_ne_bytes(unsafe { load16::<{ ipv4::FRAGMENT }>(ip) });
    // Only a first fragment has ports.
    if fragment & OFFSET != 0 {
        return Err(PassReason::Fragment.into());
    }
    // More fragments: the bit has the same place in its octet as the mark.
    let mut marks = fragment.to_ne_bytes()[0] & Marks::FIRST;
    // SAFETY: see above.
    let proto = unsafe { *ip.add(ipv4::PROTO) };
    let l4 = H::L3 + header_len;
    let mut src_port = [0; 2];
    let mut dst_port = [0; 2];
    let mut tcp_flags = 0;
    let transport_len = match proto {
        UDP => {
            let udp = cursor.at::<{ udp::LEN }>(l4).ok_or(short(marks))?;
            // SAFETY: see above.
            src_port = unsafe { load16::<{ ports::SRC }>(udp) };
            // SAFETY: see above.
            dst_port = unsafe { load16::<{ ports::DST }>(udp) };
            // SAFETY: see above.
            let len = u16::from_be_bytes(unsafe { load16::<{ udp::LENGTH }>(udp) });
            if usize::from(len) < udp::LEN {
                return Err(DropReason::Malformed.into());
            }
            // Of a first fragment it counts the others as well.
            if marks == 0 {
                usize::from(len)
            } else {
                udp::LEN
            }
        }
        TCP => {
            let tcp = cursor.at::<{ tcp::LEN }>(l4).ok_or(short(marks))?;
            // SAFETY: see above.
            src_port = unsafe { load16::<{ ports::SRC }>(tcp) };
            // SAFETY: see above.
            dst_port = unsafe { load16::<{ ports::DST }>(tcp) };
            // SAFETY: see above.
            tcp_flags = unsafe { *tcp.add(tcp::FLAGS) };
            marks |= tcp_flags & Marks::SYN;
            // SAFETY: see above.
            let len = usize::from(unsafe { *tcp.add(tcp::DATA_OFFSET) } >> 4) * 4;
            if len < tcp::LEN {
                return Err(DropReason::Malformed.into());
            }
            len
        }
        ICMP => {
            let icmp = cursor.at::<{ icmp::LEN }>(l4).ok_or(short(marks))?;
            // SAFETY: see above.
            let id = unsafe { load16::<{ icmp::ID }>(icmp) };
            // SAFETY: see above.
            match unsafe { *icmp.add(icmp::KIND) } {
                ICMP_ECHO_REQUEST => src_port = id,
                ICMP_ECHO_REPLY => dst_port = id,
                // RFC 792: unreachable, quench, redirect, time exceeded, parameter problem.
                3..=5 | 11 | 12 => return Err(PassReason::IcmpError.into()),
                _ => return Err(PassReason::OtherProtocol.into()),
            }
            icmp::LEN
        }
        _ => return Err(PassReason::OtherProtocol.into()),
    };
    // SAFETY: see above.
    let total_len = u16::from_be_bytes(unsafe { load16::<{ ipv4::TOTAL_LEN }>(ip) });
    if usize::from(total_len) < header_len + transport_len {
        return Err(short(marks).into());
    }
    // Only a packet that continues in fragments of the buffer needs the costlier length.
    let end = H::L3 + usize::from(total_len);
    if end > cursor.len() && end > hook.frame_len() {
        return Err(DropReason::Malformed.into());
    }
    // SAFETY: see above.
    let src = unsafe { load32::<{ ipv4::SRC }>(ip) };
    // SAFETY: see above.
    let dst = unsafe { load32::<{ ipv4::DST }>(ip) };
    // SAFETY: see above.
    let ttl = unsafe { *ip.add(ipv4::TTL) };
    let frame_dst = hook.frame_dst(cursor);
    Ok(packet.write(Packet {
        key: SessionKey::new(src, src_port, dst, dst_port, proto),
        l4,
        total_len,
        ttl,
        tcp_flags,
        marks,
        frame_dst,
    }))
}

/// Version 4 and a header without options.
const USUAL: u8 = 0x45;
/// The offset of a fragment, in network order (RFC 791 section 3.1).
const OFFSET: u16 = u16::from_be(0x1fff);

/// Why a packet without all of its transport header is refused.
#[inline(always)]
const fn short(marks: u8) -> DropReason {
    if marks & Marks::FIRST == 0 {
        DropReason::Malformed
    } else {
        DropReason::TinyFragment
    }
}

/// Source and destination address.
pub type Addresses = ([u8; 4], [u8; 4]);

/// The addresses of an IPv4 packet that [`parse`] finds no flow in.
#[inline(always)]
pub fn addresses<H: Hook>(hook: &H, cursor: &Cursor) -> Option<Addresses> {
    if !hook.is_ipv4(cursor) {
        return None;
    }
    addresses_at(cursor, H::L3)
}

/// The addresses of the packet that an ICMP error quotes.
#[inline(always)]
pub fn quoted_addresses<H: Hook>(cursor: &Cursor) -> Option<Addresses> {
    let ip = cursor.at::<{ ipv4::LEN }>(H::L3)?;
    // SAFETY: `at` proved the bounds.
    let version_ihl = unsafe { *ip.add(ipv4::VERSION_IHL) };
    addresses_at(
        cursor,
        H::L3 + usize::from(version_ihl & 0x0f) * 4 + icmp::LEN,
    )
}

#[inline(always)]
fn addresses_at(cursor: &Cursor, offset: usize) -> Option<Addresses> {
    let ip = cursor.at::<{ ipv4::LEN }>(offset)?;
    // SAFETY: `at` proved the bounds.
    let src = unsafe { load32::<{ ipv4::SRC }>(ip) };
    // SAFETY: see above.
    let dst = unsafe { load32::<{ ipv4::DST }>(ip) };
    Some((src, dst))
}

/// Neither multicast, broadcast, loopback nor unspecified.
#[inline(always)]
pub const fn is_unicast(addr: [u8; 4]) -> bool {
    addr[0] != 0 && addr[0] != 127 && addr[0] < 224
}
