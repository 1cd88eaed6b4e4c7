//! From the LAN to the WAN: XDP on the LAN ports, or tc ingress where a device cannot run XDP.
//!
//! What cannot leave from here goes to the stack as it came: it forwards the packet, and the program on WAN
//! egress translates it.

use core::mem::MaybeUninit;

use iwf_common::config::Config;
use iwf_common::event::EventKind;
use iwf_common::flow::{SessionFlags, SessionValue};
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::tcp;

use crate::clock::tick;
use crate::cursor::load32;
use crate::fragment::{self, Place};
use crate::headers::{Mac, TCP, ipv4};
use crate::hook::Hook;
use crate::maps::{CONFIG, in_lan, is_external};
use crate::next_hop::{self, NextHop, Query};
use crate::outcome::{Outcome, Step, Verdict};
use crate::parse::{Marks, Packet, is_unicast, parse};
use crate::rewrite::Hop;
use crate::session::{self, Direction, Flow};
use crate::{filter, hairpin, icmp, mapping, softwire, stats};

/// One frame of a LAN host.
#[inline(always)]
pub fn run<H: Hook>(hook: &H) -> Step<Outcome> {
    let mut packet = MaybeUninit::uninit();
    let packet = match parse(hook, &hook.cursor(), &mut packet) {
        Ok(packet) => packet,
        Err(outcome) if outcome != PassReason::NotIpv4.into() && softwire::is_on() => {
            return Err(hook.softwire_out());
        }
        Err(outcome) if outcome == PassReason::IcmpError.into() => {
            return Err(admitted(hook, icmp::translate(hook, icmp::At::Lan)));
        }
        Err(outcome) if outcome == PassReason::NotIpv4.into() => {
            // What cannot leave from here is judged at WAN egress, all of it.
            return Err(if H::REDIRECTS6 {
                hook.v6_outbound()
            } else {
                PassReason::NoRedirect.into()
            });
        }
        Err(outcome) => return Err(guard(hook, outcome)),
    };
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    // A flow of the CPE itself is nobody's to send in from the LAN.
    let known = session::find(&packet.key, Direction::Out)
        .filter(|session| session.flags & SessionFlags::HOST == 0);
    // One way on for both, so that the verifier goes it once.
    let session = match known {
        Some(session) => session,
        None => begun(hook, config, packet)?,
    };
    send(hook, config, packet, session)
}

/// The session of a packet that has none yet.
#[inline(always)]
fn begun<H: Hook>(hook: &H, config: &Config, packet: &Packet) -> Step<&'static mut SessionValue> {
    if config.softwire != 0 {
        return Err(hook.softwire_out());
    }
    // The kernel takes packets with our own addresses from the LAN, for the sake of those that we have hairpinned.
    if is_external(&packet.key.src) {
        return Err(DropReason::Spoofed.into());
    }
    // Not one inside of the other: each needs most of the stack.
    let admitted = if is_external(&packet.key.dst) {
        hairpin::admit(hook, config, packet)
    } else {
        admit(hook, config, packet)
    };
    if admitted != Outcome::NONE {
        return Err(passed(hook, packet, admitted));
    }
    session::find(&packet.key, Direction::Out).ok_or_else(|| DropReason::SessionsFull.into())
}

/// What is no flow: fragments without ports, and what the stack must judge.
#[inline(never)]
fn guard<H: Hook>(hook: &H, outcome: Outcome) -> Outcome {
    let outcome = if outcome == PassReason::Fragment.into() {
        fragment::later(hook, Place::Lan)
    } else {
        fragment::refuse(hook, outcome)
    };
    admitted(hook, outcome)
}

/// The fate of what has no flow and is the stack's: dropped if its source does not belong where it comes from.
#[inline(always)]
fn admitted<H: Hook>(hook: &H, outcome: Outcome) -> Outcome {
    hook.lan_stranger(outcome)
}

/// [`admitted`], on the far side.
#[inline(always)]
pub fn judge_stranger<H: Hook>(hook: &H, outcome: Outcome) -> Outcome {
    if !matches!(outcome.verdict(), Verdict::Pass) || !hook.is_for_us() {
        return outcome;
    }
    let cursor = hook.cursor();
    let Some(ip) = cursor.at::<{ ipv4::LEN }>(H::L3) else {
        return outcome;
    };
    // SAFETY: `at` proved the bounds.
    let src = unsafe { load32::<{ ipv4::SRC }>(ip) };
    // SAFETY: see above.
    let dst = unsafe { load32::<{ ipv4::DST }>(ip) };
    let ingress = next_hop::l3_interface(hook.ingress());
    if next_hop::is_from_lan(ingress, &src) {
        return outcome;
    }
    if next_hop::is_spoofed(hook.context(), ingress, src, dst) {
        return DropReason::SpoofedLan.into();
    }
    outcome
}

/// The stack must have all fragments of a datagram, if it has the first.
#[inline(always)]
fn passed<H: Hook>(hook: &H, packet: &Packet, outcome: Outcome) -> Outcome {
    if packet.marks & Marks::FIRST != 0 {
        return fragment::first_passed(hook, packet, outcome, 0);
    }
    outcome
}

/// The fast path.
#[inline(always)]
fn send<H: Hook>(
    hook: &H,
    config: &Config,
    packet: &Packet,
    session: &mut SessionValue,
) -> Step<Outcome> {
    let now = tick();
    if session::is_due(session, now) {
        session::prolong(&packet.key, session, now).step()?;
    }
    if packet.frame_dst != Mac::new(&session.router_mac) {
        next_hop::check_mac(hook.ingress(), packet).step()?;
        session.router_mac = packet.frame_dst.octets();
    }
    if let Err(outcome) = way(hook, config, packet, session) {
        if session.flags & SessionFlags::HAIRPIN != 0 {
            return Err(hairpin::hand_up(hook, packet, session, now, outcome));
        }
        // The session waits for its address to come back; the packets need not.
        if outcome == DropReason::AddressGone.into() && config.softwire != 0 {
            return Err(hook.softwire_out());
        }
        return Err(passed(hook, packet, outcome));
    }
    // Unchanged addresses have the same session at WAN egress, which counts what comes by there.
    if !(H::MEETS_EGRESS && config.is_routed()) {
        session::touch(session, packet, now);
    }
    hook.rewrite(packet, session, Hop::Forward)?;
    if packet.marks != 0 {
        fragment::marked(hook, packet, session, 0).step()?;
    }
    if session.flags & SessionFlags::HAIRPIN != 0 {
        return Ok(Done::Hairpinned.into());
    }
    Ok(Done::ForwardedOut.into())
}

/// Whether the packet leaves from here, and else why not.
#[inline(always)]
fn way<H: Hook>(
    hook: &H,
    config: &Config,
    packet: &Packet,
    session: &mut SessionValue,
) -> Step<()> {
    if packet.ttl <= 1 {
        return Err(PassReason::TtlExceeded.into());
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

/// A packet without a session: begins one if it may, and is for the stack if it is not to be translated.
#[inline(never)]
fn admit<H: Hook>(hook: &H, config: &Config, packet: &Packet) -> Outcome {
    Outcome::of(try_admit(hook, config, packet))
}

#[inline(always)]
fn try_admit<H: Hook>(hook: &H, config: &Config, packet: &Packet) -> Step<()> {
    let key = &packet.key;
    if !config.serves() {
        return Err(PassReason::NotConfigured.into());
    }
    let l3 = next_hop::check_frame(hook.ingress(), packet.frame_dst)?;
    if !is_unicast(key.dst) {
        return Err(PassReason::NotUnicast.into());
    }
    if !next_hop::is_from_lan(l3, &key.src) {
        return Err(admitted(hook, PassReason::NotLanSource.into()));
    }
    if in_lan(&key.dst) {
        return Err(PassReason::NotToWan.into());
    }
    if !packet.asks() {
        return Err(PassReason::OtherProtocol.into());
    }
    let now = tick();
    let mut next_hop = NextHop::NONE;
    let mut flow = Flow::outbound(packet, false);
    let found = look_up(hook, config, packet, l3, &mut next_hop);
    if found == PassReason::Unresolved.into() {
        stats::emit(
            config,
            now,
            EventKind::NextHopUnresolved,
            &flow.internal,
            &flow.remote,
        );
    }
    found.step()?;
    begin(now, packet, &mut flow, Some(&next_hop))
}

/// The way out by route. A function of its own: the question needs no stack when the sessions are made.
#[inline(never)]
fn look_up<H: Hook>(
    hook: &H,
    config: &Config,
    packet: &Packet,
    l3: u32,
    next_hop: &mut NextHop,
) -> Outcome {
    let key = &packet.key;
    let query = Query {
        direction: Direction::Out,
        iif: l3,
        src: key.src,
        dst: key.dst,
        total_len: hook.longest(packet),
    };
    next_hop::look_up(hook.context(), config, &query, next_hop)
}

/// Makes mapping and sessions for a packet on its way out. Also for what the stack sends or forwards.
#[inline(always)]
pub fn begin(now: u32, packet: &Packet, flow: &mut Flow, next_hop: Option<&NextHop>) -> Step<()> {
    // The stack knows its own connections; of a LAN host's only their beginning is believed.
    if packet.key.proto == TCP && !flow.host && !tcp::opens(packet.tcp_flags) {
        return Err(DropReason::TcpStray.into());
    }
    let kind = session::kind_of(flow.host);
    mapping::find_or_make(now, &flow.internal, kind, &mut flow.grant)?;
    session::open(now, flow, packet, next_hop)?;
    filter::note(now, flow);
    Ok(())
}
