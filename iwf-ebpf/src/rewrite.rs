//! Header edits.

use aya_ebpf::programs::TcContext;
use iwf_common::csum;
use iwf_common::flow::SessionValue;
use iwf_common::reason::DropReason;

use crate::cursor::{Cursor, load16, store16, store32};
use crate::headers::{ICMP, TCP, UDP, ethernet, icmp, ipv4, ports, set_macs, tcp, udp};
use crate::outcome::Step;
use crate::parse::{L3, Packet};

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
        .at::<{ ipv4::LEN }>(L3)
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
/// segmentation, so that both stay right. The stack has forwarded or will forward it: no TTL, no MAC addresses.
#[inline(always)]
pub fn through_helpers(ctx: &TcContext, packet: &Packet, session: &SessionValue) -> Step<()> {
    let key = &packet.key;
    let edits = Edits { ctx };
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

/// The identifier after translation: the port of the side that asked.
#[inline(always)]
fn icmp_id(packet: &Packet, session: &SessionValue) -> [u8; 2] {
    if packet.asks() {
        session.src_port
    } else {
        session.dst_port
    }
}

/// `BPF_F_PSEUDO_HDR`: the change is of the pseudo header, which a checksum to be finished includes.
const BPF_F_PSEUDO_HDR: u64 = 1 << 4;
/// `BPF_F_MARK_MANGLED_0`: a checksum field of 0 means "none" and stays.
const BPF_F_MARK_MANGLED_0: u64 = 1 << 5;

struct Edits<'a> {
    ctx: &'a TcContext,
}

impl Edits<'_> {
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
