//! From the WAN to the LAN: XDP on the WAN port, or tc ingress where the device cannot run XDP.
//!
//! What is translated but cannot leave from here goes to the stack translated, with its TTL untouched.

use core::mem::MaybeUninit;

use iwf_common::config::Config;
use iwf_common::flow::{SessionFlags, SessionValue};
use iwf_common::fragment::FragmentFlags;
use iwf_common::nat::MappingKind;
use iwf_common::reason::{Done, DropReason, PassReason};

use iwf_common::tcp;

use crate::clock::tick as now_tick;
use crate::cursor::load32;
use crate::filter;
use crate::fragment::{self, Place};
use crate::headers::{ICMP, Mac, TCP, ipv4};
use crate::hook::Hook;
use crate::host::{self, Wants};
use crate::icmp;
use crate::mapping::Grant;
use crate::maps::{CONFIG, MAPPINGS_EXT, in_lan, is_external, is_place, is_routed};
use crate::next_hop;
use crate::outcome::{Outcome, Step};
use crate::parse::{self, Marks, Packet, is_unicast};
use crate::rewrite::Hop;
use crate::session::{self, Direction, Flow};

/// One frame from the WAN.
#[inline(always)]
pub fn run<H: Hook>(hook: &H) -> Step<Outcome> {
    let mut packet = MaybeUninit::uninit();
    let packet = match parse::parse(hook, &hook.cursor(), &mut packet) {
        Ok(packet) => packet,
        Err(outcome) if outcome == PassReason::IcmpError.into() => {
            return Err(icmp::translate(hook, icmp::At::Wan));
        }
        Err(outcome) if outcome == PassReason::NotIpv4.into() => {
            return Err(hook.v6_inbound());
        }
        Err(outcome) => return Err(guard(hook, outcome)),
    };
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    // One way on for both, so that the verifier goes it once.
    let session = match session::find(&packet.key, Direction::In) {
        Some(session) => session,
        None => {
            admit(hook, config, packet).step()?;
            session::find(&packet.key, Direction::In).ok_or(DropReason::SessionsFull)?
        }
    };
    deliver(hook, config, packet, session)
}

/// The fast path.
#[inline(always)]
fn deliver<H: Hook>(
    hook: &H,
    config: &Config,
    packet: &Packet,
    session: &mut SessionValue,
) -> Step<Outcome> {
    let now = now_tick();
    if session::is_due(session, now) {
        session::prolong(&packet.key, session, now).step()?;
    }
    if H::REDIRECTS && packet.frame_dst != Mac::new(&session.router_mac) {
        next_hop::check_mac(hook.ingress(), packet).step()?;
        session.router_mac = packet.frame_dst.octets();
    }
    session::touch(session, packet, now);
    match way(hook, config, packet, session) {
        Ok(()) => {
            hook.rewrite(packet, session, Hop::Forward)?;
            if packet.marks != 0 {
                fragment::marked(hook, packet, session, 0).step()?;
            }
            Ok(Done::ForwardedIn.into())
        }
        Err(outcome) => {
            if outcome == DropReason::AddressGone.into() {
                return Err(outcome);
            }
            hook.rewrite(packet, session, Hop::Stack)?;
            if packet.marks != 0 {
                fragment::marked(hook, packet, session, FragmentFlags::STACK).step()?;
            }
            Err(outcome)
        }
    }
}

/// Whether the packet leaves from here, and else why not.
#[inline(always)]
fn way<H: Hook>(
    hook: &H,
    config: &Config,
    packet: &Packet,
    session: &mut SessionValue,
) -> Step<()> {
    if session.flags & SessionFlags::HOST != 0 || !H::REDIRECTS || packet.ttl <= 1 {
        session::check_address(config, &packet.key, session)?;
        return Err(if session.flags & SessionFlags::HOST != 0 {
            PassReason::Host.into()
        } else if !H::REDIRECTS {
            PassReason::NoRedirect.into()
        } else {
            // The stack's answer quotes the packet as translated; on WAN egress it is translated back.
            PassReason::TtlExceeded.into()
        });
    }
    if session.next_hop_generation != config.next_hop_generation {
        next_hop::refresh(
            hook.context(),
            packet,
            session,
            hook.ingress(),
            hook.longest(packet),
        )
        .step()?;
    }
    if hook.longest(packet) > session.mtu {
        return Err(PassReason::TooBig.into());
    }
    next_hop::redirect(hook, session)
}

/// A packet without a session: begins one if an explicit mapping lets it, is the CPE's own, or is dropped.
#[inline(never)]
fn admit<H: Hook>(hook: &H, config: &Config, packet: &Packet) -> Outcome {
    match try_admit(hook, config, packet) {
        Ok(()) => Outcome::NONE,
        // The stack must have all fragments of a datagram, if it has the first.
        Err(outcome) if packet.marks & Marks::FIRST != 0 => {
            fragment::first_passed(hook, packet, outcome, FragmentFlags::INBOUND)
        }
        Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_admit<H: Hook>(hook: &H, config: &Config, packet: &Packet) -> Step<()> {
    let key = &packet.key;
    if H::REDIRECTS {
        next_hop::check_mac(hook.ingress(), packet).step()?;
    }
    check_flow(key.src, key.dst)?;
    if !config.serves() {
        return Err(PassReason::NotConfigured.into());
    }
    if !is_place(&key.dst) {
        return Err(PassReason::NotExternalAddr.into());
    }
    if key.proto == ICMP && packet.asks() {
        check_addresses(key.src, key.dst)?;
        return Err(PassReason::EchoRequest.into());
    }
    let external = key.destination();
    let mapping = MAPPINGS_EXT
        .get_ptr(external)
        .ok_or(DropReason::Unsolicited)?;
    // SAFETY: entries live as long as the program runs; none of it decides a memory access.
    let mapping = unsafe { &*mapping };
    let now = now_tick();
    filter::admit(config, now, mapping, &external, &key.source())?;
    if key.proto == TCP && !tcp::opens(packet.tcp_flags) {
        return Err(DropReason::TcpStray.into());
    }
    let flow = Flow {
        internal: mapping.endpoint(key.proto),
        grant: Grant {
            external,
            deadline: mapping.expires,
            explicit: mapping.kind == MappingKind::Explicit as u8,
            filter: mapping.filter,
            made: false,
        },
        remote: key.source(),
        trigger: Direction::In,
        host: false,
    };
    let mut unused = external;
    host::admit(now, &flow.internal, Wants::SESSION, &mut unused).step()?;
    session::open(now, &flow, packet, None)
}

/// The same for what has a flow, which with a routed LAN is for a host where the host is. Whatever comes of it must not
/// reach the stack without having been judged.
#[inline(always)]
pub fn check_flow(src: [u8; 4], dst: [u8; 4]) -> Step<()> {
    if is_routed() && in_lan(&dst) {
        if is_external(&src) || in_lan(&src) {
            return Err(DropReason::Spoofed.into());
        }
        return Ok(());
    }
    check_addresses(src, dst)
}

/// Nothing from the WAN has a LAN source or our own, and nothing is for a LAN host but through a mapping.
#[inline(always)]
pub fn check_addresses(src: [u8; 4], dst: [u8; 4]) -> Step<()> {
    if is_external(&src) || in_lan(&src) {
        return Err(DropReason::Spoofed.into());
    }
    if !is_unicast(dst) {
        return Err(PassReason::NotUnicast.into());
    }
    // The provider may give us an address that the LAN has as well (RFC 4787 REQ-7).
    if in_lan(&dst) && !is_external(&dst) {
        return Err(DropReason::Unsolicited.into());
    }
    Ok(())
}

/// What is no flow goes to the stack, unless its addresses forbid.
#[inline(never)]
fn guard<H: Hook>(hook: &H, outcome: Outcome) -> Outcome {
    if outcome == PassReason::Fragment.into() {
        return fragment::later(hook, Place::Wan);
    }
    unjudged(hook, fragment::refuse(hook, outcome))
}

/// What goes to the stack without having been translated, unless its addresses forbid.
#[inline(always)]
pub fn unjudged<H: Hook>(hook: &H, outcome: Outcome) -> Outcome {
    let cursor = hook.cursor();
    if !hook.is_ipv4(&cursor) {
        return outcome;
    }
    let Some(ip) = cursor.at::<{ ipv4::LEN }>(H::L3) else {
        return outcome;
    };
    // SAFETY: `at` proved the bounds.
    let src = unsafe { load32::<{ ipv4::SRC }>(ip) };
    // SAFETY: see above.
    let dst = unsafe { load32::<{ ipv4::DST }>(ip) };
    match check_addresses(src, dst) {
        Err(other) if matches!(other.verdict(), crate::outcome::Verdict::Drop) => other,
        _ => outcome,
    }
}
