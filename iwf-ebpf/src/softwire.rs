//! The DS-Lite softwire: IPv4 of the LAN in IPv6 to the AFTR, and what comes back, without translation or sessions.
//!
//! Read before editing: RFC 6333 sections 5 and 7, RFC 2473 sections 3 and 6, RFC 6040 section 4.
//!
//! Here is the short way, of XDP: a whole packet without options that fits the path. All else, and all of tc, goes to
//! the stack as it came. Outbound the stack's routes lead it to a device of the daemon, inbound to a socket of the
//! daemon; both fragment and reassemble outside, as RFC 6333 section 5.3 wants it.

use core::mem::MaybeUninit;

use iwf_common::config::Config;
use iwf_common::csum;
use iwf_common::flow6::SessionKey6;
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::softwire::{B4_ADDR, HOP_LIMIT, OVERHEAD, Softwire, SoftwireHop};
use iwf_common::tick::age;

use crate::clock::tick;
use crate::cursor::{copy8, load16, load32, store16, store32};
use crate::headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ethernet, ipv4, set_macs};
use crate::hook::Hook;
use crate::maps::{CONFIG, SOFTWIRE, SOFTWIRE_HOP, in_lan};
use crate::next_hop::{self, NextHop, Query};
use crate::options;
use crate::outcome::{Outcome, Step, Verdict};
use crate::parse::{Marks, Packet, is_unicast, parse};
use crate::session::Direction;
use crate::stats;
use crate::v6::next_hop::to_aftr;
use crate::v6::parse::{L3, Packet6, ipv6, special};

/// Where the packet inside begins, if nothing is between the two headers.
const INNER: usize = L3 + ipv6::LEN;
/// Version 4 and a header without options.
const USUAL: u8 = 0x45;
/// The congestion bits of an octet of differentiated services (RFC 3168 section 5): experienced; 0 is of those who do
/// not know of them.
const CONGESTED: u8 = 3;

/// Whether there is one.
#[inline(always)]
pub fn is_on() -> bool {
    CONFIG.get(0).is_some_and(|config| config.softwire != 0)
}

/// Whether a packet is one that goes from our end to the AFTR.
#[inline(always)]
pub fn is_sent(key: &SessionKey6) -> bool {
    SOFTWIRE
        .get(0)
        .is_some_and(|tunnel| key.src == tunnel.local && key.dst == tunnel.remote)
}

/// The fields of an IPv4 header that the softwire asks for.
struct Inner {
    src: [u8; 4],
    dst: [u8; 4],
    total_len: u16,
    services: u8,
    ttl: u8,
}

impl Inner {
    /// # Safety
    /// A header without options is in bounds.
    #[inline(always)]
    unsafe fn read(ip: *const u8) -> Self {
        Self {
            // SAFETY: the caller's promise, here and below.
            src: unsafe { load32::<{ ipv4::SRC }>(ip) },
            // SAFETY: see above.
            dst: unsafe { load32::<{ ipv4::DST }>(ip) },
            // SAFETY: see above.
            total_len: u16::from_be_bytes(unsafe { load16::<{ ipv4::TOTAL_LEN }>(ip) }),
            // SAFETY: see above.
            services: unsafe { *ip.add(SERVICES) },
            // SAFETY: see above.
            ttl: unsafe { *ip.add(ipv4::TTL) },
        }
    }
}

/// Octet of an IPv4 header (RFC 2474).
const SERVICES: usize = 1;

/// One IPv4 packet of a LAN host, on the far side.
#[inline(always)]
pub fn outbound<H: Hook>(hook: &H) -> Outcome {
    match try_outbound(hook) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_outbound<H: Hook>(hook: &H) -> Step<Outcome> {
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    let tunnel = SOFTWIRE.get(0).ok_or(PassReason::NotConfigured)?;
    let cursor = hook.cursor();
    let ip = cursor
        .at::<{ ipv4::LEN }>(H::L3)
        .ok_or(PassReason::Malformed)?;
    // SAFETY: `at` proved the bounds, here and below.
    let usual = unsafe { *ip } == USUAL;
    // SAFETY: see above.
    let inner = unsafe { Inner::read(ip) };
    let l3 = next_hop::check_frame(hook.ingress(), hook.frame_dst(&cursor))?;
    if !is_unicast(inner.dst) {
        return Err(PassReason::NotUnicast.into());
    }
    if !next_hop::is_from_lan(l3, &inner.src) {
        return Err(hook.lan_stranger(PassReason::NotLanSource.into()));
    }
    if in_lan(&inner.dst) {
        return Err(PassReason::NotToWan.into());
    }
    let mut space = MaybeUninit::uninit();
    let begins = judge_transport(hook, &mut space)?;
    let way = next_hop::leaves_by(hook.context(), l3, inner.src, inner.dst);
    if way != config.softwire {
        return Err(PassReason::NotToWan.into());
    }
    if !H::REDIRECTS6 {
        return Err(PassReason::NoRedirect.into());
    }
    let len = usize::from(inner.total_len);
    if !usual || len < ipv4::LEN || H::L3 + len > hook.frame_len() {
        return Err(PassReason::Softwire.into());
    }
    if inner.ttl <= 1 {
        return Err(PassReason::TtlExceeded.into());
    }
    let hop = way_out(hook, config, tunnel)?;
    if u32::from(inner.total_len) + u32::from(OVERHEAD) > u32::from(hop.mtu) {
        return Err(PassReason::TooBig.into());
    }
    hook.leave_by(hop.egress)?;
    if let Some(packet) = begins {
        options::clamp_mss(hook, packet).step()?;
    }
    take_from_ttl::<H>(hook, H::L3, inner.ttl)?;
    if !hook.move_start(-i32::from(OVERHEAD)) {
        // Nobody has been told of the lower TTL, which the stack lowers again.
        return Err(PassReason::NoRedirect.into());
    }
    wrap(hook, &inner, tunnel, hop)?;
    Ok(Done::SoftwireOut.into())
}

/// What the rest of the program would refuse is refused here too. The packet, if it begins a connection.
#[inline(always)]
fn judge_transport<'a, H: Hook>(
    hook: &H,
    space: &'a mut MaybeUninit<Packet>,
) -> Step<Option<&'a Packet>> {
    match parse(hook, &hook.cursor(), space) {
        Ok(packet) if packet.marks & Marks::SYN != 0 => Ok(Some(packet)),
        Ok(_) => Ok(None),
        Err(outcome) if matches!(outcome.verdict(), Verdict::Drop) => Err(outcome),
        Err(_) => Ok(None),
    }
}

/// The way to the AFTR. Asked again each second: of another MTU of the path or another neighbour nobody tells.
#[inline(always)]
fn way_out<H: Hook>(
    hook: &H,
    config: &Config,
    tunnel: &Softwire,
) -> Step<&'static mut SoftwireHop> {
    let hop = SOFTWIRE_HOP
        .get_ptr_mut(0)
        .ok_or(PassReason::NotConfigured)?;
    // SAFETY: this CPU's own entry, which lives as long as the program runs.
    let hop = unsafe { &mut *hop };
    if hop.generation != config.next_hop_generation || age(tick(), hop.asked) >= config.hz {
        look_up(hook, config, tunnel, hop).step()?;
    }
    Ok(hop)
}

#[inline(never)]
fn look_up<H: Hook>(
    hook: &H,
    config: &Config,
    tunnel: &Softwire,
    hop: &mut SoftwireHop,
) -> Outcome {
    let outcome = Outcome::of(to_aftr(hook.context(), config, tunnel, hop));
    if outcome == Outcome::NONE {
        stats::count(Done::NextHopRefreshed);
    }
    outcome
}

/// Takes one from the TTL of the header at `at`.
#[inline(always)]
fn take_from_ttl<H: Hook>(hook: &H, at: usize, ttl: u8) -> Step<()> {
    let ip = hook
        .cursor()
        .at::<{ ipv4::LEN }>(at)
        .ok_or(DropReason::RewriteFailed)?;
    // SAFETY: `at` proved the bounds; nothing else holds a pointer into the packet. So everywhere below.
    let field = u16::from_ne_bytes(unsafe { load16::<{ ipv4::CHECKSUM }>(ip) });
    let field = csum::apply(field, csum::TTL_DELTA).to_ne_bytes();
    // SAFETY: see above.
    unsafe { store16::<{ ipv4::CHECKSUM }>(ip, field) };
    // SAFETY: see above.
    unsafe { *ip.add(ipv4::TTL) = ttl.wrapping_sub(1) };
    Ok(())
}

/// Writes the headers before the packet inside. The services, congestion bits included, are the packet's
/// (RFC 2983 section 3, RFC 6040 section 4.1).
#[inline(always)]
fn wrap<H: Hook>(hook: &H, inner: &Inner, tunnel: &Softwire, hop: &SoftwireHop) -> Step<()> {
    let frame = hook
        .cursor()
        .at::<INNER>(0)
        .ok_or(DropReason::RewriteFailed)?;
    // SAFETY: see `take_from_ttl`.
    unsafe { set_macs(frame, &hop.mac, &hop.egress_mac) };
    // SAFETY: see above.
    unsafe { store16::<{ ethernet::ETHERTYPE }>(frame, ETHERTYPE_IPV6) };
    let first = 6 << 28 | u32::from(inner.services) << 20;
    // SAFETY: see above.
    unsafe { store32::<{ L3 + ipv6::VERSION }>(frame, first.to_be_bytes()) };
    // SAFETY: see above.
    unsafe { store16::<{ L3 + ipv6::PAYLOAD_LEN }>(frame, inner.total_len.to_be_bytes()) };
    // SAFETY: see above.
    unsafe { store16::<{ L3 + ipv6::NEXT_HEADER }>(frame, [PROTO, HOP_LIMIT]) };
    let ends = [
        (&tunnel.local, L3 + ipv6::SRC),
        (&tunnel.remote, L3 + ipv6::DST),
    ];
    for (end, at) in ends {
        // SAFETY: see above; the address is whole.
        unsafe { copy8(end.as_ptr(), frame.add(at)) };
        // SAFETY: see above.
        unsafe { copy8(end.as_ptr().add(8), frame.add(at + 8)) };
    }
    Ok(())
}

/// IPv4 in IPv6 (RFC 2473 section 3).
const PROTO: u8 = 4;

/// The fate of a packet from the WAN that has IPv4 inside, or of a later fragment; none yet if it is not for our end. The
/// AFTR's later fragments go with first ones that are let in, or with none.
#[inline(never)]
pub fn judge<H: Hook>(hook: &H, packet: &Packet6) -> Outcome {
    let Some(tunnel) = SOFTWIRE.get(0) else {
        return Outcome::NONE;
    };
    if packet.key.dst != tunnel.local {
        return Outcome::NONE;
    }
    let checked = next_hop::check_frame(hook.ingress(), packet.frame_dst);
    if let Err(outcome) = checked
        && H::REDIRECTS6
    {
        return outcome;
    }
    if packet.key.src != tunnel.remote {
        return if packet.special & special::LATER != 0 {
            Outcome::NONE
        } else {
            DropReason::SoftwireStranger.into()
        };
    }
    if packet.special != 0 || packet.l4 as usize != INNER {
        return PassReason::Softwire.into();
    }
    if !H::REDIRECTS6 {
        return PassReason::NoRedirect.into();
    }
    hook.softwire_in()
}

/// A whole packet of the AFTR for our end with nothing between the headers, on the far side.
#[inline(always)]
pub fn inbound<H: Hook>(hook: &H) -> Outcome {
    match try_inbound(hook) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_inbound<H: Hook>(hook: &H) -> Step<Outcome> {
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    let frame = hook
        .cursor()
        .at::<{ INNER + ipv4::LEN }>(0)
        .ok_or(DropReason::SoftwireInner)?;
    // SAFETY: `at` proved the bounds, here and below.
    let ip = unsafe { frame.add(INNER) };
    // SAFETY: see above.
    let room = u16::from_be_bytes(unsafe { load16::<{ L3 + ipv6::PAYLOAD_LEN }>(frame) });
    // SAFETY: see above.
    let outer_services = unsafe { *frame.add(L3 + SERVICES) } >> 4;
    // SAFETY: see above.
    let version_ihl = unsafe { *ip };
    // SAFETY: see above.
    let sum = unsafe { header_sum(ip) };
    // SAFETY: see above.
    let inner = unsafe { Inner::read(ip) };
    if version_ihl != USUAL {
        // With options: the daemon looks at it whole.
        return Err(PassReason::Softwire.into());
    }
    if usize::from(inner.total_len) < ipv4::LEN || inner.total_len > room || sum != u16::MAX {
        return Err(DropReason::SoftwireInner.into());
    }
    if !is_unicast(inner.src) || inner.src == B4_ADDR || in_lan(&inner.src) {
        return Err(DropReason::SoftwireInner.into());
    }
    if inner.dst == B4_ADDR {
        return Err(PassReason::Host.into());
    }
    if !in_lan(&inner.dst) {
        return Err(DropReason::SoftwireInner.into());
    }
    let congested = outer_services & CONGESTED == CONGESTED;
    if congested && inner.services & CONGESTED == 0 {
        // RFC 6040 section 4.2: who marked it wanted it dropped.
        return Err(DropReason::SoftwireInner.into());
    }
    if inner.ttl <= 1 {
        return Err(PassReason::TtlExceeded.into());
    }
    let mut next_hop = NextHop::NONE;
    let query = Query {
        direction: Direction::In,
        iif: hook.ingress(),
        src: inner.src,
        dst: inner.dst,
        total_len: inner.total_len,
    };
    next_hop::look_up(hook.context(), config, &query, &mut next_hop).step()?;
    hook.leave_by(next_hop.egress)?;
    if !hook.move_start(i32::from(OVERHEAD)) {
        return Err(PassReason::NoRedirect.into());
    }
    let frame = hook
        .cursor()
        .at::<{ ethernet::LEN }>(0)
        .ok_or(DropReason::RewriteFailed)?;
    // SAFETY: see `take_from_ttl`.
    unsafe { set_macs(frame, &next_hop.mac, &next_hop.egress_mac) };
    // SAFETY: see above.
    unsafe { store16::<{ ethernet::ETHERTYPE }>(frame, ETHERTYPE_IPV4) };
    let mut space = MaybeUninit::uninit();
    if let Some(packet) = judge_transport(hook, &mut space)? {
        options::clamp_mss(hook, packet).step()?;
    }
    take_from_ttl::<H>(hook, H::L3, inner.ttl)?;
    if congested {
        mark_congested(hook, inner.services)?;
    }
    Ok(Done::SoftwireIn.into())
}

/// Says inside what was marked outside (RFC 6040 section 4.2).
#[inline(always)]
fn mark_congested<H: Hook>(hook: &H, services: u8) -> Step<()> {
    let ip = hook
        .cursor()
        .at::<{ ipv4::LEN }>(H::L3)
        .ok_or(DropReason::RewriteFailed)?;
    let marked = services | CONGESTED;
    // SAFETY: see `take_from_ttl`, here and below.
    let field = u16::from_ne_bytes(unsafe { load16::<{ ipv4::CHECKSUM }>(ip) });
    let delta = csum::delta16([USUAL, services], [USUAL, marked]);
    // SAFETY: see above.
    unsafe { store16::<{ ipv4::CHECKSUM }>(ip, csum::apply(field, delta).to_ne_bytes()) };
    // SAFETY: see above.
    unsafe { *ip.add(SERVICES) = marked };
    Ok(())
}

/// The sum over an IPv4 header without options: all ones if the checksum is right (RFC 1071).
///
/// # Safety
/// The header is in bounds.
#[inline(always)]
unsafe fn header_sum(ip: *const u8) -> u16 {
    // SAFETY: the caller's promise, here and below.
    let a = unsafe { load32::<0>(ip) };
    // SAFETY: see above.
    let b = unsafe { load32::<4>(ip) };
    // SAFETY: see above.
    let c = unsafe { load32::<8>(ip) };
    // SAFETY: see above.
    let d = unsafe { load32::<12>(ip) };
    // SAFETY: see above.
    let e = unsafe { load32::<16>(ip) };
    let mut sum = 0u64;
    for word in [a, b, c, d, e] {
        sum += u64::from(u32::from_ne_bytes(word));
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
