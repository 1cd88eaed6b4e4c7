//! Header edits.

use aya_ebpf::programs::TcContext;
use iwf_common::csum;
use iwf_common::flow::SessionValue;
use iwf_common::fragment::FragmentValue;
use iwf_common::reason::DropReason;

use crate::cursor::{Cursor, load16, store16, store32};
use crate::fragment::Later;
use crate::headers::{ICMP, TCP, UDP, ethernet, icmp, ipv4, ports, set_macs, tcp, udp};
use crate::hook::Hook as _;
use crate::outcome::Step;
use crate::parse::Packet;

/// Whether the packet is forwarded here, or only translated for the stack, which forwards it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// Take one from the TTL and set the MAC addresses.
    Forward,
    /// Leave both to the stack.
    Stack,
}

/// Translates a packet that is all in memory (XDP), with the session's precomputed checksum changes.
#[inline(always)]
pub fn direct(cursor: &Cursor, packet: &Packet, session: &SessionValue, hop: Hop) -> Step<()> {
    let ip = cursor
        .at::<{ ipv4::LEN }>(ethernet::LEN)
        .ok_or(DropReason::RewriteFailed)?;
    let delta = match hop {
        Hop::Forward => csum::add(session.l3_delta, csum::TTL_DELTA),
        Hop::Stack => session.l3_delta,
    };
    // SAFETY: `at` proved the bounds of the header; nothing else holds a pointer into the packet. So everywhere
    // below.
    let field = u16::from_ne_bytes(unsafe { load16::<{ ipv4::CHECKSUM }>(ip) });
    // SAFETY: see above.
    unsafe { store16::<{ ipv4::CHECKSUM }>(ip, csum::apply(field, delta).to_ne_bytes()) };
    // SAFETY: see above.
    unsafe { store32::<{ ipv4::SRC }>(ip, session.src) };
    // SAFETY: see above.
    unsafe { store32::<{ ipv4::DST }>(ip, session.dst) };
    if hop == Hop::Forward {
        // SAFETY: see above.
        unsafe { *ip.add(ipv4::TTL) = packet.ttl.wrapping_sub(1) };
    }
    match packet.key.proto {
        UDP => {
            let udp = cursor
                .at::<{ udp::LEN }>(packet.l4)
                .ok_or(DropReason::RewriteFailed)?;
            // SAFETY: see above.
            let field = u16::from_ne_bytes(unsafe { load16::<{ udp::CHECKSUM }>(udp) });
            let field = csum::apply_udp(field, session.l4_delta).to_ne_bytes();
            // SAFETY: see above.
            unsafe { store16::<{ udp::CHECKSUM }>(udp, field) };
            // SAFETY: see above.
            unsafe { set_ports(udp, session) };
        }
        TCP => {
            let tcp = cursor
                .at::<{ tcp::LEN }>(packet.l4)
                .ok_or(DropReason::RewriteFailed)?;
            // SAFETY: see above.
            let field = u16::from_ne_bytes(unsafe { load16::<{ tcp::CHECKSUM }>(tcp) });
            let field = csum::apply(field, session.l4_delta).to_ne_bytes();
            // SAFETY: see above.
            unsafe { store16::<{ tcp::CHECKSUM }>(tcp, field) };
            // SAFETY: see above.
            unsafe { set_ports(tcp, session) };
        }
        _ => {
            let icmp = cursor
                .at::<{ icmp::LEN }>(packet.l4)
                .ok_or(DropReason::RewriteFailed)?;
            // SAFETY: see above.
            let field = u16::from_ne_bytes(unsafe { load16::<{ icmp::CHECKSUM }>(icmp) });
            let field = csum::apply(field, session.l4_delta).to_ne_bytes();
            // SAFETY: see above.
            unsafe { store16::<{ icmp::CHECKSUM }>(icmp, field) };
            // SAFETY: see above.
            unsafe { store16::<{ icmp::ID }>(icmp, icmp_id(packet, session)) };
        }
    }
    if hop == Hop::Forward {
        let frame = cursor
            .at::<{ ethernet::LEN }>(0)
            .ok_or(DropReason::RewriteFailed)?;
        // SAFETY: see above.
        unsafe { set_macs(frame, &session.next_hop_mac, &session.egress_mac) };
    }
    Ok(())
}

/// Translates a fragment that is not the first (XDP).
#[inline(always)]
pub fn fragment_direct(
    cursor: &Cursor,
    fragment: &Later,
    value: &FragmentValue,
    hop: Hop,
) -> Step<()> {
    let ip = cursor
        .at::<{ ipv4::LEN }>(ethernet::LEN)
        .ok_or(DropReason::RewriteFailed)?;
    let delta = match hop {
        Hop::Forward => csum::add(value.l3_delta, csum::TTL_DELTA),
        Hop::Stack => value.l3_delta,
    };
    // SAFETY: as in `direct`, here and below.
    let field = u16::from_ne_bytes(unsafe { load16::<{ ipv4::CHECKSUM }>(ip) });
    // SAFETY: see above.
    unsafe { store16::<{ ipv4::CHECKSUM }>(ip, csum::apply(field, delta).to_ne_bytes()) };
    // SAFETY: see above.
    unsafe { store16::<{ ipv4::ID }>(ip, value.id) };
    // SAFETY: see above.
    unsafe { store32::<{ ipv4::SRC }>(ip, value.src) };
    // SAFETY: see above.
    unsafe { store32::<{ ipv4::DST }>(ip, value.dst) };
    if hop == Hop::Forward {
        // SAFETY: see above.
        unsafe { *ip.add(ipv4::TTL) = fragment.ttl.wrapping_sub(1) };
        let frame = cursor
            .at::<{ ethernet::LEN }>(0)
            .ok_or(DropReason::RewriteFailed)?;
        // SAFETY: see above.
        unsafe { set_macs(frame, &value.next_hop_mac, &value.egress_mac) };
    }
    Ok(())
}

/// Changes the identification (XDP).
#[inline(always)]
pub fn identification_direct(cursor: &Cursor, old: [u8; 2], new: [u8; 2]) -> Step<()> {
    let ip = cursor
        .at::<{ ipv4::LEN }>(ethernet::LEN)
        .ok_or(DropReason::RewriteFailed)?;
    // SAFETY: as in `direct`, here and below.
    let field = u16::from_ne_bytes(unsafe { load16::<{ ipv4::CHECKSUM }>(ip) });
    let field = csum::apply(field, csum::delta16(old, new)).to_ne_bytes();
    // SAFETY: see above.
    unsafe { store16::<{ ipv4::CHECKSUM }>(ip, field) };
    // SAFETY: see above.
    unsafe { store16::<{ ipv4::ID }>(ip, new) };
    Ok(())
}

/// Changes the size, at `at`, of a maximum segment size `option` that is in bounds (XDP).
#[inline(always)]
pub fn mss_direct(
    cursor: &Cursor,
    packet: &Packet,
    at: usize,
    option: *mut u8,
    old: [u8; 2],
    new: [u8; 2],
) -> Step<()> {
    let tcp = cursor
        .at::<{ tcp::LEN }>(packet.l4)
        .ok_or(DropReason::RewriteFailed)?;
    let (from, to) = aligned(packet, at, old, new);
    // SAFETY: as in `direct`, here and below.
    let field = u16::from_ne_bytes(unsafe { load16::<{ tcp::CHECKSUM }>(tcp) });
    let field = csum::apply(field, csum::delta16(from, to)).to_ne_bytes();
    // SAFETY: see above.
    unsafe { store16::<{ tcp::CHECKSUM }>(tcp, field) };
    // SAFETY: see above.
    unsafe { store16::<2>(option, new) };
    Ok(())
}

/// Two values of a field as the checksum sees them: swapped if the field lies across two of its words.
#[inline(always)]
const fn aligned(packet: &Packet, at: usize, old: [u8; 2], new: [u8; 2]) -> ([u8; 2], [u8; 2]) {
    if (at - packet.l4) & 1 == 0 {
        (old, new)
    } else {
        ([old[1], old[0]], [new[1], new[0]])
    }
}

/// Writes both ports of a UDP or TCP header.
///
/// # Safety
/// The header is in bounds, and nothing else points there.
#[inline(always)]
unsafe fn set_ports(header: *mut u8, session: &SessionValue) {
    // SAFETY: the caller's promise.
    unsafe { store16::<{ ports::SRC }>(header, session.src_port) };
    // SAFETY: the caller's promise.
    unsafe { store16::<{ ports::DST }>(header, session.dst_port) };
}

/// Translates a packet of the stack (tc). The helpers know about checksums that hardware will finish and about
/// segmentation, so that both stay right. `L3` is where the IPv4 header begins. TTL and MAC addresses stay: see
/// [`forward`].
#[inline(always)]
pub fn through_helpers<const L3: usize>(
    ctx: &TcContext,
    packet: &Packet,
    session: &SessionValue,
) -> Step<()> {
    let key = &packet.key;
    let edits = Edits::<L3> { ctx };
    let (l4_checksum, ports) = match key.proto {
        UDP => (packet.l4 + udp::CHECKSUM, true),
        TCP => (packet.l4 + tcp::CHECKSUM, true),
        _ => (packet.l4 + icmp::CHECKSUM, false),
    };
    let flags = if key.proto == UDP {
        BPF_F_MARK_MANGLED_0
    } else {
        0
    };
    if key.src != session.src {
        edits.address(
            L3 + ipv4::SRC,
            key.src,
            session.src,
            ports.then_some(l4_checksum),
            flags,
        )?;
    }
    if key.dst != session.dst {
        edits.address(
            L3 + ipv4::DST,
            key.dst,
            session.dst,
            ports.then_some(l4_checksum),
            flags,
        )?;
    }
    if !ports {
        let old = if key.proto == ICMP && packet.asks() {
            key.src_port
        } else {
            key.dst_port
        };
        return edits.word(
            packet.l4 + icmp::ID,
            old,
            icmp_id(packet, session),
            l4_checksum,
            0,
        );
    }
    if key.src_port != session.src_port {
        edits.word(
            packet.l4 + ports::SRC,
            key.src_port,
            session.src_port,
            l4_checksum,
            flags,
        )?;
    }
    if key.dst_port != session.dst_port {
        edits.word(
            packet.l4 + ports::DST,
            key.dst_port,
            session.dst_port,
            l4_checksum,
            flags,
        )?;
    }
    Ok(())
}

/// What a router does besides: takes one from the TTL and sets the MAC addresses. For packets that leave from
/// here; what the stack forwards gets both from it.
#[inline(always)]
pub fn forward(ctx: &TcContext, ttl: u8, proto: u8, dst: &[u8; 6], src: &[u8; 6]) -> Step<()> {
    const L3: usize = ethernet::LEN;
    let new = [ttl.wrapping_sub(1), proto];
    let from = u64::from(u16::from_ne_bytes([ttl, proto]));
    let to = u64::from(u16::from_ne_bytes(new));
    ctx.l3_csum_replace(L3 + ipv4::CHECKSUM, from, to, 2)
        .map_err(|_| DropReason::RewriteFailed)?;
    // The protocol number is the octet behind the TTL.
    ctx.put16(L3 + ipv4::TTL, new)?;
    let macs: [u8; 12] = [
        dst[0], dst[1], dst[2], dst[3], dst[4], dst[5], src[0], src[1], src[2], src[3], src[4],
        src[5],
    ];
    ctx.store(0, &macs, 0)
        .map_err(|_| DropReason::RewriteFailed)?;
    Ok(())
}

/// The identifier after translation: the port of the side that asked.
#[inline(always)]
fn icmp_id(packet: &Packet, session: &SessionValue) -> [u8; 2] {
    if packet.asks() {
        session.src_port
    } else {
        session.dst_port
    }
}

/// Translates a fragment that is not the first (tc).
#[inline(always)]
pub fn fragment_through_helpers<const L3: usize>(
    ctx: &TcContext,
    fragment: &Later,
    value: &FragmentValue,
) -> Step<()> {
    let edits = Edits::<L3> { ctx };
    let key = &fragment.key;
    if key.src != value.src {
        edits.address(L3 + ipv4::SRC, key.src, value.src, None, 0)?;
    }
    if key.dst != value.dst {
        edits.address(L3 + ipv4::DST, key.dst, value.dst, None, 0)?;
    }
    identification_through_helpers::<L3>(ctx, key.id, value.id)
}

/// Changes the identification (tc).
#[inline(always)]
pub fn identification_through_helpers<const L3: usize>(
    ctx: &TcContext,
    old: [u8; 2],
    new: [u8; 2],
) -> Step<()> {
    if old == new {
        return Ok(());
    }
    let from = u64::from(u16::from_ne_bytes(old));
    let to = u64::from(u16::from_ne_bytes(new));
    ctx.l3_csum_replace(L3 + ipv4::CHECKSUM, from, to, 2)
        .map_err(|_| DropReason::RewriteFailed)?;
    ctx.store(L3 + ipv4::ID, &new, 0)
        .map_err(|_| DropReason::RewriteFailed)?;
    Ok(())
}

/// Changes the size, at `at`, of a maximum segment size option (tc).
#[inline(always)]
pub fn mss_through_helpers(
    ctx: &TcContext,
    packet: &Packet,
    at: usize,
    old: [u8; 2],
    new: [u8; 2],
) -> Step<()> {
    let (from, to) = aligned(packet, at, old, new);
    let from = u64::from(u16::from_ne_bytes(from));
    let to = u64::from(u16::from_ne_bytes(to));
    ctx.l4_csum_replace(packet.l4 + tcp::CHECKSUM, from, to, 2)
        .map_err(|_| DropReason::RewriteFailed)?;
    ctx.store(at, &new, 0)
        .map_err(|_| DropReason::RewriteFailed)?;
    Ok(())
}

/// `BPF_F_PSEUDO_HDR`: the change is of the pseudo header, which a checksum to be finished includes.
const BPF_F_PSEUDO_HDR: u64 = 1 << 4;
/// `BPF_F_MARK_MANGLED_0`: a checksum field of 0 means "none" and stays.
const BPF_F_MARK_MANGLED_0: u64 = 1 << 5;

struct Edits<'a, const L3: usize> {
    ctx: &'a TcContext,
}

impl<const L3: usize> Edits<'_, L3> {
    #[inline(always)]
    fn address(
        &self,
        offset: usize,
        old: [u8; 4],
        new: [u8; 4],
        l4_checksum: Option<usize>,
        flags: u64,
    ) -> Step<()> {
        let from = u64::from(u32::from_ne_bytes(old));
        let to = u64::from(u32::from_ne_bytes(new));
        if let Some(field) = l4_checksum {
            self.ctx
                .l4_csum_replace(field, from, to, 4 | BPF_F_PSEUDO_HDR | flags)
                .map_err(|_| DropReason::RewriteFailed)?;
        }
        self.ctx
            .l3_csum_replace(L3 + ipv4::CHECKSUM, from, to, 4)
            .map_err(|_| DropReason::RewriteFailed)?;
        self.ctx
            .store(offset, &new, 0)
            .map_err(|_| DropReason::RewriteFailed)?;
        Ok(())
    }

    #[inline(always)]
    fn word(
        &self,
        offset: usize,
        old: [u8; 2],
        new: [u8; 2],
        l4_checksum: usize,
        flags: u64,
    ) -> Step<()> {
        let from = u64::from(u16::from_ne_bytes(old));
        let to = u64::from(u16::from_ne_bytes(new));
        self.ctx
            .l4_csum_replace(l4_checksum, from, to, 2 | flags)
            .map_err(|_| DropReason::RewriteFailed)?;
        self.ctx
            .store(offset, &new, 0)
            .map_err(|_| DropReason::RewriteFailed)?;
        Ok(())
    }
}
