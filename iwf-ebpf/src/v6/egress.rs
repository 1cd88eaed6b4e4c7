//! IPv6 that the stack sends out of the WAN: what it forwards, because XDP gave it up, and what the CPE sends
//! itself.

use core::mem::MaybeUninit;

use iwf_common::config::Config;
use iwf_common::flow6::{SessionFlags6, SessionValue6};
use iwf_common::fragment::HeldFlags;
use iwf_common::host::UNKNOWN_STATION;
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::tcp;

use super::next_hop::{self, Home};
use super::outbound::{begin, fragment_went};
use super::parse::{Packet6, parse, special};
use super::session::{self, Terms};
use super::{Addresses, addresses, fragment, icmp, in_lan, is_on, proto};
use crate::clock::tick;
use crate::hook::Hook;
use crate::maps::CONFIG;
use crate::outcome::{Outcome, Step};
use crate::session::Direction;
use crate::softwire;

/// First octet of an address of a group.
const MULTICAST: u8 = 0xff;

/// One packet of the stack that is not IPv4 with an Ethernet header.
#[inline(always)]
pub fn run<H: Hook>(hook: &H) -> Outcome {
    match try_run(hook) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_run<H: Hook>(hook: &H) -> Step<Outcome> {
    let mut packet = MaybeUninit::uninit();
    let parsed = parse(hook, &hook.cursor(), &mut packet);
    if let Err(outcome) = parsed
        && outcome == PassReason::NotIpv4.into()
    {
        return Err(outcome);
    }
    let config = CONFIG.get(0).ok_or(Done::EgressUntouched)?;
    if !is_on(config) {
        return Err(Done::EgressUntouched.into());
    }
    let packet = match parsed {
        Ok(packet) => packet,
        Err(_) if hook.ingress() == 0 => return Err(Done::HostOut.into()),
        Err(outcome) if outcome == PassReason::Malformed.into() => {
            return Err(DropReason::Malformed.into());
        }
        Err(outcome) => return Err(outcome),
    };
    // The daemon's part of the softwire: no flow, and nothing to count.
    if packet.key.proto == proto::IPV4 && config.softwire != 0 && softwire::is_sent(&packet.key) {
        return Err(Done::HostOut.into());
    }
    if packet.special != 0 {
        settle(hook, config, packet).step()?;
    }
    if let Some(session) = session::find(&packet.key, Direction::Out) {
        return send(packet, session);
    }
    admit(hook, config, packet).step()?;
    let session = session::find(&packet.key, Direction::Out).ok_or(DropReason::Sessions6Full)?;
    send(packet, session)
}

#[inline(always)]
fn send(packet: &Packet6, session: &mut SessionValue6) -> Step<Outcome> {
    let now = tick();
    if session::is_due(session, now) {
        session::prolong(&packet.key, session, now).step()?;
    }
    session::touch(session, packet, now);
    if packet.special != 0 {
        fragment_went(now, packet);
    }
    Ok(if session.flags & SessionFlags6::HOST != 0 {
        Done::HostOut.into()
    } else {
        Done::Egress6.into()
    })
}

/// What is no plain flow: ICMPv6 errors and messages end here, a later fragment learns its flow.
#[inline(never)]
fn settle<H: Hook>(hook: &H, config: &Config, packet: &mut Packet6) -> Outcome {
    let outcome = if packet.special & special::ERROR != 0 {
        match icmp::judge(&hook.cursor(), packet, Direction::Out) {
            Outcome::NONE => Done::Egress6.into(),
            refused => refused,
        }
    } else if packet.special & special::MESSAGE != 0 {
        Done::EgressUntouched.into()
    } else if packet.special & special::LATER != 0 {
        fragment::follow(config, tick(), packet)
    } else {
        return Outcome::NONE;
    };
    if hook.ingress() == 0 {
        // The fragments of a flow of the CPE are counted for it, and never held back.
        return if outcome == Outcome::NONE {
            outcome
        } else {
            Done::HostOut.into()
        };
    }
    if !in_lan(config, &packet.key.src) {
        return Done::EgressUntouched.into();
    }
    if outcome == DropReason::FragmentUnknown.into() {
        return fragment::wait(hook, config, packet, HeldFlags::FORWARDED);
    }
    outcome
}

#[inline(never)]
fn admit<H: Hook>(hook: &H, config: &Config, packet: &Packet6) -> Outcome {
    Outcome::of(try_admit(hook, config, packet))
}

#[inline(always)]
fn try_admit<H: Hook>(hook: &H, config: &Config, packet: &Packet6) -> Step<()> {
    let key = &packet.key;
    let kind = addresses(key);
    if hook.ingress() == 0 {
        // What the stack says in ICMPv6 needs no state: what comes back is for it to judge as well.
        // A reset answers what was not let in, whoever the source it names may be: it begins nothing either.
        if key.dst[0] == MULTICAST || key.proto == proto::ICMPV6 || packet.tcp_flags & tcp::RST != 0
        {
            return Err(Done::HostOut.into());
        }
        return begin(config, packet, &Terms::HOST, None);
    }
    if kind == Addresses::FROM_GROUP || kind == Addresses::FORBIDDEN {
        return Err(DropReason::Forbidden6.into());
    }
    // A network behind an interface that is not ours to guard.
    if kind == Addresses::LOCAL || !in_lan(config, &key.src) {
        return Err(Done::EgressUntouched.into());
    }
    // An answer to nothing that is known begins nothing.
    if !packet.asks() {
        return Err(Done::Egress6.into());
    }
    let home = next_hop::home_of_source(hook.context(), key);
    let terms = if home == Home::NONE {
        // Somebody else's packet that was given an address of ours; it opens nothing.
        Terms {
            station: UNKNOWN_STATION,
            ..Terms::HOST
        }
    } else {
        Terms::lan(home.station())
    };
    begin(config, packet, &terms, None)
}
