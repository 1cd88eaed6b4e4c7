//! What the stack sends out of the WAN: what it forwards, because XDP gave it up, and what the CPE sends itself.
//!
//! Nothing leaves with a private source (architecture decision 5).

use core::mem::MaybeUninit;

use iwf_common::config::Config;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::fragment::FragmentFlags;
use iwf_common::nat::EndpointKey;
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::tcp;

use crate::clock::tick;
use crate::cursor::Cursor;
use crate::fragment::{self, Place};
use crate::headers::TCP;
use crate::hook::Hook;
use crate::icmp;
use crate::mapping;
use crate::maps::{CONFIG, MAPPINGS_EXT, in_lan, is_external, is_routed};
use crate::outbound;
use crate::outcome::{Outcome, Step, Verdict};
use crate::parse::{self, Packet, is_unicast};
use crate::rewrite::Hop;
use crate::session::{self, Direction, Flow};

/// One packet of the stack.
#[inline(always)]
pub fn run<H: Hook>(hook: &H) -> Step<Outcome> {
    let mut packet = MaybeUninit::uninit();
    let packet = match parse::parse(hook, &hook.cursor(), &mut packet) {
        Ok(packet) => packet,
        Err(outcome) if outcome == PassReason::IcmpError.into() => return Err(report(hook)),
        Err(outcome) if outcome == PassReason::NotIpv4.into() => {
            let fate = hook.v6_egress();
            return Err(if fate == PassReason::NotIpv4.into() {
                Done::EgressUntouched.into()
            } else {
                fate
            });
        }
        Err(outcome) => return Err(guard(hook, outcome)),
    };
    let config = CONFIG.get(0).ok_or(DropReason::PrivateSource)?;
    if hook.ingress() != 0 && is_external(&packet.key.src) && is_answered(packet) {
        return Ok(Done::EgressUntouched.into());
    }
    // One way on for both, so that the verifier goes it once.
    let session = match session::find(&packet.key, Direction::Out) {
        Some(session) => session,
        None => {
            admit(hook, config, packet).step()?;
            session::find(&packet.key, Direction::Out).ok_or(DropReason::SessionsFull)?
        }
    };
    send(hook, config, packet, session)
}

/// Whether answers to the packet go to a LAN host: the program at LAN ingress has translated it and sent it here.
/// A source alone would not tell, others may translate what is none of ours.
#[inline(always)]
fn is_answered(packet: &Packet) -> bool {
    let key = &packet.key;
    let answer = SessionKey::new(key.dst, key.dst_port, key.src, key.src_port, key.proto);
    session::find(&answer, Direction::In)
        .is_some_and(|session| session.flags & SessionFlags::HOST == 0)
}

/// An ICMP error: of a LAN host, or of the stack about a packet that was translated for it.
#[inline(always)]
fn report<H: Hook>(hook: &H) -> Outcome {
    let outcome = icmp::translate(hook, icmp::At::Egress);
    if outcome == PassReason::IcmpError.into() {
        return guard(hook, outcome);
    }
    outcome
}

#[inline(always)]
fn send<H: Hook>(
    hook: &H,
    config: &Config,
    packet: &Packet,
    session: &mut SessionValue,
) -> Step<Outcome> {
    session::check_address(config, &packet.key, session)?;
    let now = tick();
    if session::is_due(session, now) {
        session::prolong(&packet.key, session, now).step()?;
    }
    session::touch(session, packet, now);
    hook.rewrite(packet, session, Hop::Stack)?;
    if packet.marks != 0 {
        fragment::marked(hook, packet, session, FragmentFlags::STACK).step()?;
    }
    Ok(if session.flags & SessionFlags::HOST != 0 {
        Done::HostOut.into()
    } else {
        Done::TranslatedEgress.into()
    })
}

#[inline(never)]
fn admit<H: Hook>(hook: &H, config: &Config, packet: &Packet) -> Outcome {
    Outcome::of(try_admit(hook, config, packet))
}

#[inline(always)]
fn try_admit<H: Hook>(hook: &H, config: &Config, packet: &Packet) -> Step<()> {
    let key = &packet.key;
    let now = tick();
    let mut flow = Flow::outbound(packet, is_external(&key.src));
    if flow.host {
        if !is_unicast(key.dst) || !packet.asks() || mapping::is_static_service(&flow.internal) {
            return Err(Done::HostOut.into());
        }
        if key.proto == TCP && packet.tcp_flags & tcp::RST != 0 {
            return Err(reset_of_host(&flow.internal));
        }
        return outbound::begin(now, packet, &mut flow, None);
    }
    if config.serves() && in_lan(&key.src) && is_unicast(key.dst) && packet.asks() {
        return outbound::begin(now, packet, &mut flow, None);
    }
    Err(untranslated(hook, key.src))
}

/// A RST of the CPE begins nothing. It leaves if the port is not a LAN host's, whose connection it would end.
#[inline(always)]
fn reset_of_host(internal: &EndpointKey) -> Outcome {
    if MAPPINGS_EXT.get_ptr(internal).is_none() || mapping::behind(internal, internal).is_some() {
        Done::HostOut.into()
    } else {
        DropReason::TcpStray.into()
    }
}

/// The fate of a packet that stays as it is.
#[inline(always)]
fn untranslated<H: Hook>(hook: &H, src: [u8; 4]) -> Outcome {
    let private = in_lan(&src) || (hook.ingress() != 0 && is_private(src));
    if private && !is_external(&src) {
        DropReason::PrivateSource.into()
    } else {
        Done::EgressUntouched.into()
    }
}

/// What is no flow: fragments, ICMP errors, other protocols, and all that is not IPv4.
#[inline(never)]
fn guard<H: Hook>(hook: &H, outcome: Outcome) -> Outcome {
    if outcome == PassReason::Fragment.into() {
        let fate = fragment::later(hook, Place::Egress);
        // No fragment of ours: other protocols, and sources that are not translated.
        if !matches!(fate.verdict(), Verdict::Pass) {
            return fate;
        }
    }
    let cursor = &hook.cursor();
    let src = match parse::addresses(hook, cursor) {
        Some((src, _)) => src,
        None if hook.is_ipv4(cursor) => return DropReason::Malformed.into(),
        None => return Done::EgressUntouched.into(),
    };
    let fate = untranslated(hook, src);
    if fate == DropReason::PrivateSource.into() {
        return if outcome == PassReason::Fragment.into() {
            DropReason::PrivateFragment.into()
        } else {
            fate
        };
    }
    let hides = outcome == PassReason::IcmpError.into() && !is_routed();
    if hides && quotes_lan::<H>(&hook.cursor()) {
        return DropReason::IcmpErrorPrivate.into();
    }
    fate
}

/// Whether an ICMP error of the stack quotes a packet that had been translated for it.
#[inline(always)]
fn quotes_lan<H: Hook>(cursor: &Cursor) -> bool {
    match parse::quoted_addresses::<H>(cursor) {
        Some((src, dst)) => in_lan(&src) || in_lan(&dst),
        // Cut short: nothing of it is shown either, but what it was cannot be told.
        None => true,
    }
}

/// RFC 1918, RFC 6598 and RFC 3927.
#[inline(always)]
const fn is_private(addr: [u8; 4]) -> bool {
    matches!(
        addr,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [169, 254, ..]
    )
}
