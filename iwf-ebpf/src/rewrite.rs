//! Header edits.

use aya_ebpf::programs::TcContext;
use iwf_common::csum;
use iwf_common::flow::SessionValue;
use iwf_common::reason::DropReason;

use crate::cursor::Cursor;
use crate::headers::{Ethernet, ICMP, Icmp, Ipv4, TCP, Tcp, UDP, Udp};
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
    let ip: *mut Ipv4 = cursor.at(L3).ok_or(DropReason::RewriteFailed)?;
    let delta = match hop {
        Hop::Forward => csum::add(session.l3_delta, csum::TTL_DELTA),
        Hop::Stack => session.l3_delta,
    };
    // SAFETY: `at` proved the bounds of the header; nothing else holds a pointer into the packet.
    unsafe {
        (*ip).checksum = csum::apply(u16::from_ne_bytes((*ip).checksum), delta).to_ne_bytes();
        (*ip).src = session.src;
        (*ip).dst = session.dst;
        if hop == Hop::Forward {
            (*ip).ttl = packet.ttl.wrapping_sub(1);
        }
    }
    match packet.key.proto {
        UDP => {
            let udp: *mut Udp = cursor.at(packet.l4).ok_or(DropReason::RewriteFailed)?;
            // SAFETY: as above.
            unsafe {
                let field = u16::from_ne_bytes((*udp).checksum);
                (*udp).checksum = csum::apply_udp(field, session.l4_delta).to_ne_bytes();
                (*udp).src_port = session.src_port;
                (*udp).dst_port = session.dst_port;
            }
        }
        TCP => {
            let tcp: *mut Tcp = cursor.at(packet.l4).ok_or(DropReason::RewriteFailed)?;
            // SAFETY: as above.
            unsafe {
                let field = u16::from_ne_bytes((*tcp).checksum);
                (*tcp).checksum = csum::apply(field, session.l4_delta).to_ne_bytes();
                (*tcp).src_port = session.src_port;
                (*tcp).dst_port = session.dst_port;
            }
        }
        _ => {
            let icmp: *mut Icmp = cursor.at(packet.l4).ok_or(DropReason::RewriteFailed)?;
            // SAFETY: as above.
            unsafe {
                let field = u16::from_ne_bytes((*icmp).checksum);
                (*icmp).checksum = csum::apply(field, session.l4_delta).to_ne_bytes();
                (*icmp).id = icmp_id(packet, session);
            }
        }
    }
    if hop == Hop::Forward {
        let ethernet: *mut Ethernet = cursor.at(0).ok_or(DropReason::RewriteFailed)?;
        // SAFETY: as above.
        unsafe {
            (*ethernet).dst = session.next_hop_mac;
            (*ethernet).src = session.egress_mac;
        }
    }
    Ok(())
}

/// Translates a packet of the stack (tc). The helpers know about checksums that hardware will finish and about
/// segmentation, so that both stay right. The stack has forwarded or will forward it: no TTL, no MAC addresses.
#[inline(always)]
pub fn through_helpers(ctx: &TcContext, packet: &Packet, session: &SessionValue) -> Step<()> {
    let key = &packet.key;
    let edits = Edits { ctx };
    let (l4_checksum, ports) = match key.proto {
        UDP => (packet.l4 + 6, true),
        TCP => (packet.l4 + 16, true),
        _ => (packet.l4 + 2, false),
    };
    let flags = if key.proto == UDP {
        BPF_F_MARK_MANGLED_0
    } else {
        0
    };
    if key.src != session.src {
        edits.address(
            L3 + 12,
            key.src,
            session.src,
            ports.then_some(l4_checksum),
            flags,
        )?;
    }
    if key.dst != session.dst {
        edits.address(
            L3 + 16,
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
        return edits.word(packet.l4 + 4, old, icmp_id(packet, session), l4_checksum, 0);
    }
    if key.src_port != session.src_port {
        edits.word(
            packet.l4,
            key.src_port,
            session.src_port,
            l4_checksum,
            flags,
        )?;
    }
    if key.dst_port != session.dst_port {
        edits.word(
            packet.l4 + 2,
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
            .l3_csum_replace(L3 + 10, from, to, 4)
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
