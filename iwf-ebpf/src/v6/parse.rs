//! IPv6 packet to flow.
//!
//! Read before editing: RFC 8200 section 4, RFC 7112, RFC 5095, RFC 4443, RFC 6092 REC-47 (Shim6).

use core::arch::asm;
use core::mem::MaybeUninit;

use iwf_common::flow6::SessionKey6;
use iwf_common::limits::{HEADER_OCTETS6, HEADERS6};
use iwf_common::reason::{DropReason, PassReason};

use super::proto;
use crate::cursor::{Cursor, load16, load32, load64};
use crate::headers::{Mac, TCP, UDP, ethernet, icmp, ports, tcp};
use crate::hook::Hook;
use crate::outcome::{Outcome, Step};

/// Where the IPv6 header begins behind an Ethernet header.
pub const L3: usize = ethernet::LEN;

/// RFC 8200 section 3.
pub mod ipv6 {
    pub const LEN: usize = 40;
    pub const VERSION: usize = 0;
    pub const PAYLOAD_LEN: usize = 4;
    pub const NEXT_HEADER: usize = 6;
    pub const HOP_LIMIT: usize = 7;
    pub const SRC: usize = 8;
    pub const DST: usize = 24;
}

/// RFC 4443. Error messages have types below 128.
pub const ECHO_REQUEST: u8 = 128;
pub const ECHO_REPLY: u8 = 129;

/// Bits of [`Packet6::special`].
pub mod special {
    /// An ICMPv6 error.
    pub const ERROR: u8 = 1;
    /// An ICMPv6 message that is neither error nor echo.
    pub const MESSAGE: u8 = 2;
    /// With a hop-by-hop options header, which is the stack's to look at.
    pub const HOP_BY_HOP: u8 = 4;
    /// The first fragment of several.
    pub const FIRST: u8 = 8;
    /// A later fragment: the upper layer is not known.
    pub const LATER: u8 = 16;
    /// The packet an ICMPv6 error quotes, which may be cut short.
    pub const QUOTED: u8 = 32;
}

/// What the programs need of an IPv6 packet.
pub struct Packet6 {
    /// The headers as they arrived.
    pub key: SessionKey6,
    /// Octets of the IPv6 packet.
    pub total_len: u32,
    /// Where the upper-layer header begins.
    pub l4: u32,
    /// Identification of a fragment, in network order.
    pub fragment_id: [u8; 4],
    /// Of a first fragment: octets of headers in the fragmentable part. Of a later one: its offset in octets.
    pub fragment_at: u16,
    /// [`special`]; 0 on the short way.
    pub special: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Flags octet of a TCP header, else 0.
    pub tcp_flags: u8,
    /// Destination of the frame.
    pub frame_dst: Mac,
}

impl Packet6 {
    /// Whether the packet asks: everything but an echo reply.
    #[inline(always)]
    pub const fn asks(&self) -> bool {
        self.key.proto != proto::ICMPV6 || self.key.dst_port[0] | self.key.dst_port[1] == 0
    }
}

/// Reads the flow of a packet, which is not IPv4, into `packet`.
#[inline(always)]
pub fn parse<'a, H: Hook>(
    hook: &H,
    cursor: &Cursor,
    packet: &'a mut MaybeUninit<Packet6>,
) -> Step<&'a mut Packet6> {
    if !hook.is_ipv6(cursor) {
        return Err(PassReason::NotIpv4.into());
    }
    let ip = cursor
        .at::<{ ipv6::LEN }>(H::L3)
        .ok_or(PassReason::Malformed)?;
    // SAFETY: `at` proved the bounds of each header, here and below.
    if unsafe { *ip.add(ipv6::VERSION) } >> 4 != 6 {
        return Err(PassReason::Malformed.into());
    }
    // SAFETY: see above.
    let payload = u16::from_be_bytes(unsafe { load16::<{ ipv6::PAYLOAD_LEN }>(ip) });
    let total_len = ipv6::LEN as u32 + u32::from(payload);
    // Only a packet that continues in fragments of the buffer needs the costlier length.
    let end = H::L3 + total_len as usize;
    if end > cursor.len() && end > hook.frame_len() {
        return Err(PassReason::Malformed.into());
    }
    let frame_dst = hook.frame_dst(cursor);
    // SAFETY: see above.
    let hop_limit = unsafe { *ip.add(ipv6::HOP_LIMIT) };
    // SAFETY: see above.
    let next = unsafe { *ip.add(ipv6::NEXT_HEADER) };
    let packet = packet.write(Packet6 {
        // SAFETY: the header is in bounds.
        key: unsafe { addresses(ip, next) },
        total_len,
        l4: (H::L3 + ipv6::LEN) as u32,
        fragment_id: [0; 4],
        fragment_at: 0,
        special: 0,
        hop_limit,
        tcp_flags: 0,
        frame_dst,
    });
    let l4 = H::L3 + ipv6::LEN;
    match next {
        UDP if payload >= 8 => {
            let udp = cursor.at::<8>(l4).ok_or(PassReason::Malformed)?;
            // SAFETY: see above.
            packet.key.src_port = unsafe { load16::<{ ports::SRC }>(udp) };
            // SAFETY: see above.
            packet.key.dst_port = unsafe { load16::<{ ports::DST }>(udp) };
        }
        TCP if payload >= tcp::LEN as u16 => {
            let tcp = cursor.at::<{ tcp::LEN }>(l4).ok_or(PassReason::Malformed)?;
            // SAFETY: see above.
            packet.key.src_port = unsafe { load16::<{ ports::SRC }>(tcp) };
            // SAFETY: see above.
            packet.key.dst_port = unsafe { load16::<{ ports::DST }>(tcp) };
            // SAFETY: see above.
            packet.tcp_flags = unsafe { *tcp.add(tcp::FLAGS) };
        }
        _ => walk(cursor, packet).step()?,
    }
    Ok(packet)
}

/// The addresses of an IPv6 header as a key without ports.
///
/// # Safety
/// The header is in bounds.
#[inline(always)]
unsafe fn addresses(ip: *const u8, proto: u8) -> SessionKey6 {
    // SAFETY: the caller's promise.
    let src = unsafe { pair::<{ ipv6::SRC }, { ipv6::SRC + 8 }>(ip) };
    // SAFETY: the caller's promise.
    let dst = unsafe { pair::<{ ipv6::DST }, { ipv6::DST + 8 }>(ip) };
    SessionKey6::new(src, [0; 2], dst, [0; 2], proto)
}

/// # Safety
/// As for [`addresses`].
#[inline(always)]
unsafe fn pair<const LOW: usize, const HIGH: usize>(ip: *const u8) -> [u8; 16] {
    // SAFETY: the caller's promise.
    let low = unsafe { load64::<LOW>(ip) };
    // SAFETY: the caller's promise.
    let high = unsafe { load64::<HIGH>(ip) };
    (u128::from(low) | u128::from(high) << 64).to_le_bytes()
}

/// The furthest that headers are looked at: behind those of a packet that quotes another.
const MOST: usize = L3 + 2 * (ipv6::LEN + HEADER_OCTETS6) + icmp::LEN;

/// Follows the extension headers to the upper layer. `packet` has the addresses, the first next header as its
/// protocol, and where that begins.
#[inline(never)]
pub fn walk(cursor: &Cursor, packet: &mut Packet6) -> Outcome {
    let outcome = Outcome::of(try_walk(cursor, packet));
    // The verifier knows by which way each value came to be, and would go through the rest of the program once for
    // each of their combinations.
    let noise = u64::from(packet.total_len);
    packet.special = forget(packet.special.into(), noise) as u8;
    packet.key.proto = forget(packet.key.proto.into(), noise) as u8;
    packet.tcp_flags = forget(packet.tcp_flags.into(), noise) as u8;
    packet.fragment_at = forget(packet.fragment_at.into(), noise) as u16;
    packet.l4 = forget(packet.l4.into(), noise) as u32;
    packet.fragment_id = forget32(packet.fragment_id, noise);
    packet.key.src_port = forget16(packet.key.src_port, noise);
    packet.key.dst_port = forget16(packet.key.dst_port, noise);
    outcome
}

/// The same value, of which the verifier does not know what it is. `noise` must be unknown to it.
#[inline(always)]
fn forget(mut value: u64, noise: u64) -> u64 {
    // SAFETY: two instructions on registers, which undo each other.
    unsafe {
        asm!(
            "{value} += {noise}",
            "{value} -= {noise}",
            value = inout(reg) value,
            noise = in(reg) noise,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    value
}

#[inline(always)]
fn forget16(value: [u8; 2], noise: u64) -> [u8; 2] {
    (forget(u16::from_ne_bytes(value).into(), noise) as u16).to_ne_bytes()
}

#[inline(always)]
fn forget32(value: [u8; 4], noise: u64) -> [u8; 4] {
    (forget(u32::from_ne_bytes(value).into(), noise) as u32).to_ne_bytes()
}

#[inline(always)]
fn try_walk(cursor: &Cursor, packet: &mut Packet6) -> Step<()> {
    let begin = packet.l4 as usize;
    // A link without Ethernet headers has the packet begin elsewhere; its own header lies before the others.
    let end = begin + packet.total_len as usize - ipv6::LEN;
    let mut next = packet.key.proto;
    let mut at = begin;
    // Where the fragmentable part begins, if it is a fragment's.
    let mut fragment = 0;
    let noise = u64::from(packet.total_len);
    for turn in 0..=HEADERS6 {
        // So that the verifier goes through each turn once, and not once for each way that leads there.
        at = forget(at as u64, noise) as usize;
        fragment = forget(fragment as u64, noise) as usize;
        packet.special = forget(packet.special.into(), noise) as u8;
        // The first comparison is what the verifier knows.
        if at > MOST || at > begin + HEADER_OCTETS6 {
            return Err(DropReason::Headers6.into());
        }
        at = bounded(at);
        // What is behind an authentication header is not looked at: a flow with one and a flow without are not the
        // same, or the first would let the second in.
        let is_header = matches!(
            next,
            proto::HOP_BY_HOP
                | proto::ROUTING
                | proto::FRAGMENT
                | proto::DESTINATION
                | proto::SHIM6
        );
        if !is_header {
            break;
        }
        if turn == HEADERS6 {
            return Err(DropReason::Headers6.into());
        }
        let header = cursor.at_moving::<8>(at).ok_or_else(|| cut_short(packet))?;
        // SAFETY: `at` proved the bounds, here and below.
        let (following, len) = unsafe { (*header, usize::from(*header.add(1))) };
        match next {
            // RFC 8200 section 4.1: first or nowhere.
            proto::HOP_BY_HOP if at != begin => return Err(DropReason::Headers6.into()),
            proto::HOP_BY_HOP => packet.special |= special::HOP_BY_HOP,
            // RFC 5095: type 0 is dropped, whatever it still has to do.
            // SAFETY: see above.
            proto::ROUTING if unsafe { *header.add(2) } == 0 => {
                return Err(DropReason::Headers6.into());
            }
            // A fragment of a fragment has two identifications, and only one would be followed.
            proto::FRAGMENT if packet.special & special::FIRST != 0 => {
                return Err(DropReason::Headers6.into());
            }
            proto::FRAGMENT => {
                // SAFETY: see above.
                let word = u16::from_be_bytes(unsafe { load16::<2>(header) });
                // SAFETY: see above.
                packet.fragment_id = unsafe { load32::<4>(header) };
                if word & 0xfff8 != 0 {
                    let data = end.saturating_sub(at + 8);
                    let is_quoted = packet.special & special::QUOTED != 0;
                    if !is_quoted && !is_piece(word, data) {
                        return Err(PassReason::Malformed.into());
                    }
                    packet.special |= special::LATER;
                    packet.fragment_at = word & 0xfff8;
                    packet.key.proto = proto::FRAGMENT;
                    return Ok(());
                }
                // Without more to follow it is whole (RFC 6946).
                if word & 1 != 0 {
                    packet.special |= special::FIRST;
                    fragment = at + 8;
                }
            }
            _ => {}
        }
        at += if next == proto::FRAGMENT {
            8
        } else {
            (len + 1) * 8
        };
        next = following;
    }
    if at > MOST {
        return Err(DropReason::Headers6.into());
    }
    let at = bounded(at);
    let place = Place { at, end, fragment };
    upper(cursor, packet, next, &place)
}

/// The same offset, at most [`MOST`], with bounds that every verifier knows: older ones lose those of a comparison when
/// the compiler compares with 32 bits and adds with 64.
#[inline(always)]
fn bounded(mut at: usize) -> usize {
    const MASK: usize = 0x3ff;
    const _: () = assert!(MOST <= MASK);
    // SAFETY: changes a register.
    unsafe {
        asm!(
            "{at} &= {mask}",
            at = inout(reg) at,
            mask = const MASK,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    at
}

/// Whether a packet can be made of fragments like this one: `data` octets behind a fragment header with `word` as
/// offset and flags (RFC 8200 section 4.5).
#[inline(always)]
const fn is_piece(word: u16, data: usize) -> bool {
    data != 0 && (word & 1 == 0 || data & 7 == 0) && (word & 0xfff8) as usize + data <= 0xffff
}

/// Where an upper-layer header is.
struct Place {
    /// Where it begins.
    at: usize,
    /// Where the packet ends.
    end: usize,
    /// Where the fragmentable part begins, if it is a first fragment's, else 0.
    fragment: usize,
}

/// Reads the upper-layer header.
#[inline(always)]
fn upper(cursor: &Cursor, packet: &mut Packet6, next: u8, place: &Place) -> Step<()> {
    let &Place { at, end, fragment } = place;
    packet.key.proto = next;
    packet.l4 = at as u32;
    let needs = match next {
        UDP | proto::UDP_LITE | proto::ICMPV6 => 8,
        TCP => tcp::LEN,
        proto::SCTP | proto::DCCP => 12,
        _ => 0,
    };
    if packet.special & special::QUOTED == 0 && at + needs > end {
        return Err(cut_short(packet));
    }
    if fragment != 0 {
        packet.fragment_at = (at + needs - fragment) as u16;
    }
    if needs == 0 {
        return Ok(());
    }
    let header = cursor.at_moving::<8>(at).ok_or_else(|| cut_short(packet))?;
    if next == proto::ICMPV6 {
        // SAFETY: `at` proved the bounds, here and below.
        let kind = unsafe { *header.add(icmp::KIND) };
        // SAFETY: see above.
        let id = unsafe { load16::<{ icmp::ID }>(header) };
        match kind {
            ECHO_REQUEST => packet.key.src_port = id,
            ECHO_REPLY => packet.key.dst_port = id,
            0..ECHO_REQUEST => packet.special |= special::ERROR,
            _ => packet.special |= special::MESSAGE,
        }
        return Ok(());
    }
    // SAFETY: see above.
    packet.key.src_port = unsafe { load16::<{ ports::SRC }>(header) };
    // SAFETY: see above.
    packet.key.dst_port = unsafe { load16::<{ ports::DST }>(header) };
    if next == TCP && packet.special & special::QUOTED == 0 {
        let header = cursor
            .at_moving::<{ tcp::LEN }>(at)
            .ok_or_else(|| cut_short(packet))?;
        // SAFETY: see above.
        packet.tcp_flags = unsafe { *header.add(tcp::FLAGS) };
    }
    Ok(())
}

/// A header that is not all there: in a first fragment never allowed (RFC 7112), else for the stack to judge.
#[inline(always)]
fn cut_short(packet: &Packet6) -> Outcome {
    if packet.special & special::FIRST != 0 {
        DropReason::TinyFragment.into()
    } else {
        PassReason::Malformed.into()
    }
}

/// Reads the packet that an ICMPv6 error quotes.
#[inline(always)]
pub fn quoted<'a>(
    cursor: &Cursor,
    error: &Packet6,
    packet: &'a mut MaybeUninit<Packet6>,
) -> Step<&'a mut Packet6> {
    let at = error.l4 as usize + icmp::LEN;
    if at > L3 + ipv6::LEN + HEADER_OCTETS6 + icmp::LEN {
        return Err(DropReason::IcmpErrorStray.into());
    }
    let at = bounded(at);
    let ip = cursor
        .at_moving::<{ ipv6::LEN }>(at)
        .ok_or(DropReason::IcmpErrorStray)?;
    // SAFETY: `at` proved the bounds, here and below.
    if unsafe { *ip.add(ipv6::VERSION) } >> 4 != 6 {
        return Err(DropReason::IcmpErrorStray.into());
    }
    // SAFETY: see above.
    let next = unsafe { *ip.add(ipv6::NEXT_HEADER) };
    let packet = packet.write(Packet6 {
        // SAFETY: see above.
        key: unsafe { addresses(ip, next) },
        total_len: ipv6::LEN as u32,
        l4: (at + ipv6::LEN) as u32,
        fragment_id: [0; 4],
        fragment_at: 0,
        special: special::QUOTED,
        hop_limit: 0,
        tcp_flags: 0,
        frame_dst: error.frame_dst,
    });
    walk(cursor, packet)
        .step()
        .map_err(|_| DropReason::IcmpErrorStray)?;
    Ok(packet)
}
