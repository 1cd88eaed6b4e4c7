//! IPv6 from the WAN: sessions, open endpoints and pinholes come in, the rest does not.

use core::mem::MaybeUninit;

use iwf_common::config::Config;
use iwf_common::flow6::{SessionFlags6, SessionKey6, SessionValue6};
use iwf_common::host::UNKNOWN_STATION;
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::tcp;

use super::next_hop::{self, Home};
use super::outbound::fragment_went;
use super::parse::{self, Packet6, special};
use super::session::{self, Terms};
use super::{
    Addresses, addresses, fragment, icmp, in_lan, is_on, pinhole, proto, rewrite, unparsed,
};
use crate::clock::tick;
use crate::headers::{Mac, TCP, UDP};
use crate::hook::Hook;
use crate::maps::CONFIG;
use crate::outcome::{Outcome, Step};
use crate::session::Direction;
use crate::softwire;

/// IKE (RFC 7296 section 2) and the client's port of DHCPv6 (RFC 8415 section 7.2), in network order.
const IKE: [u8; 2] = 500u16.to_be_bytes();
const DHCPV6_CLIENT: [u8; 2] = 546u16.to_be_bytes();

/// One frame from the WAN that is not IPv4.
#[inline(always)]
pub fn run<H: Hook>(hook: &H) -> Outcome {
    match try_run(hook) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_run<H: Hook>(hook: &H) -> Step<Outcome> {
    let mut packet = MaybeUninit::uninit();
    let packet = match parse::parse(hook, &hook.cursor(), &mut packet) {
        Ok(packet) => packet,
        // The stack does not look at the upper layer of what it forwards, so that it must be judged here.
        Err(outcome) if outcome == PassReason::Malformed.into() => {
            return Err(unparsed(DropReason::Malformed.into()));
        }
        Err(outcome) => return Err(unparsed(outcome)),
    };
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    // Of a later fragment it is not known what is inside.
    let may_be = packet.key.proto == proto::IPV4 || packet.special & special::LATER != 0;
    if may_be && config.softwire != 0 {
        softwire::judge(hook, packet).step()?;
    }
    if packet.special != 0 {
        settle(hook, config, packet).step()?;
    }
    if let Some(session) = session::find(&packet.key, Direction::In) {
        return deliver(hook, config, packet, session);
    }
    admit(hook, config, packet).step()?;
    let session = session::find(&packet.key, Direction::In).ok_or(DropReason::Sessions6Full)?;
    deliver(hook, config, packet, session)
}

/// The fast path.
#[inline(always)]
fn deliver<H: Hook>(
    hook: &H,
    config: &Config,
    packet: &Packet6,
    session: &mut SessionValue6,
) -> Step<Outcome> {
    let now = tick();
    if session::is_due(session, now) {
        session::prolong(&packet.key, session, now).step()?;
    }
    if H::REDIRECTS6 && packet.frame_dst != Mac::new(&session.router_mac) {
        next_hop::check_mac(hook.ingress(), packet).step()?;
        session.router_mac = packet.frame_dst.octets();
    }
    session::touch(session, packet, now);
    if packet.special != 0 {
        fragment_went(now, packet);
        if packet.special & special::HOP_BY_HOP != 0 {
            return Err(PassReason::Ipv6Stack.into());
        }
    }
    if session.flags & SessionFlags6::HOST != 0 {
        return Err(PassReason::Host.into());
    }
    if !H::REDIRECTS6 {
        return Err(PassReason::NoRedirect.into());
    }
    if packet.hop_limit <= 1 {
        return Err(PassReason::TtlExceeded.into());
    }
    if session.next_hop_generation != config.next_hop_generation {
        next_hop::refresh(hook.context(), packet, session, hook.ingress()).step()?;
    }
    if packet.total_len > u32::from(session.mtu) {
        return Err(PassReason::TooBig.into());
    }
    next_hop::redirect(session)?;
    rewrite(&hook.cursor(), packet, session)?;
    Ok(Done::Forwarded6In.into())
}

/// What is no plain flow: ICMPv6 errors and messages end here, a later fragment learns its flow.
#[inline(never)]
fn settle<H: Hook>(hook: &H, config: &Config, packet: &mut Packet6) -> Outcome {
    Outcome::of(try_settle(hook, config, packet))
}

#[inline(always)]
fn try_settle<H: Hook>(hook: &H, config: &Config, packet: &mut Packet6) -> Step<()> {
    let refused: Outcome = if packet.special & special::ERROR != 0 {
        let outcome = icmp::judge(&hook.cursor(), packet, Direction::In);
        if outcome == Outcome::NONE {
            PassReason::Ipv6Stack.into()
        } else {
            outcome
        }
    } else if packet.special & special::MESSAGE != 0 {
        DropReason::Unsolicited6.into()
    } else if packet.special & special::LATER != 0 {
        let outcome = fragment::follow(config, tick(), packet);
        if outcome == Outcome::NONE {
            return Ok(());
        }
        outcome
    } else {
        return Ok(());
    };
    check(hook, config, packet).step()?;
    if refused == PassReason::Ipv6Stack.into() {
        return Err(refused);
    }
    // What is for the CPE itself is for its stack to judge, but not fragments: who has let the first one in has
    // remembered it.
    let local = next_hop::is_local(hook.context(), hook.ingress(), &packet.key);
    if local && packet.special & special::LATER == 0 {
        return Err(PassReason::Host.into());
    }
    if local || in_lan(config, &packet.key.dst) {
        return Err(if refused == DropReason::FragmentUnknown.into() {
            fragment::wait(hook, config, packet, 0)
        } else {
            refused
        });
    }
    Err(PassReason::NotExternalAddr.into())
}

/// A packet without a session: begins one if something lets it in, is the CPE's own, or is dropped.
#[inline(never)]
fn admit<H: Hook>(hook: &H, config: &Config, packet: &Packet6) -> Outcome {
    Outcome::of(try_admit(hook, config, packet))
}

#[inline(always)]
fn try_admit<H: Hook>(hook: &H, config: &Config, packet: &Packet6) -> Step<()> {
    let key = &packet.key;
    let now = tick();
    let checked = check(hook, config, packet);
    if checked == PassReason::Ipv6Local.into() && has_ports(key.proto) && !is_service(packet, now) {
        // A neighbour on the WAN is a stranger like any other (RFC 6092 REC-8, REC-50).
        return Err(DropReason::Unsolicited6.into());
    }
    checked.step()?;
    let lan = in_lan(config, &key.dst);
    let mut service = is_service(packet, now);
    if lan && let Some(mut terms) = admission(config, now, packet) {
        let home = next_hop::home_of_destination(hook.context(), key);
        if home != Home::NONE {
            if key.proto == TCP && !tcp::opens(packet.tcp_flags) {
                return Err(DropReason::TcpStray.into());
            }
            terms.station = home.station();
            return session::open(config, packet, &terms, Direction::In, None);
        }
        // The CPE's own address: a pinhole opens it, but no packet that somebody else has sent from it.
        service |= terms.flags & SessionFlags6::PINHOLE != 0;
    }
    if lan && !service {
        return Err(DropReason::Unsolicited6.into());
    }
    if !next_hop::is_local(hook.context(), hook.ingress(), key) {
        // A network behind an interface that is not ours to guard.
        return Err(if lan {
            DropReason::Unsolicited6.into()
        } else {
            PassReason::NotExternalAddr.into()
        });
    }
    if !service {
        return Err(DropReason::Unsolicited6.into());
    }
    if packet.special & special::FIRST != 0 {
        fragment::remember(now, packet);
    }
    Err(PassReason::Host.into())
}

/// What lets a packet in to a LAN host.
#[inline(always)]
fn admission(config: &Config, now: u32, packet: &Packet6) -> Option<Terms> {
    if is_always_admitted(packet) || session::is_open(config, now, &packet.key) {
        return Some(Terms::lan(UNKNOWN_STATION));
    }
    if !packet.asks() {
        return None;
    }
    let pinhole = pinhole::find(&packet.key, now)?;
    Some(Terms {
        flags: SessionFlags6::PINHOLE,
        pinhole: pinhole.id,
        deadline: pinhole.expires,
        station: UNKNOWN_STATION,
    })
}

/// What nobody has to ask for: IPsec, its key exchange, HIP (RFC 6092 REC-21, 22, 24, 26).
#[inline(always)]
fn is_always_admitted(packet: &Packet6) -> bool {
    let key = &packet.key;
    matches!(key.proto, proto::AH | proto::ESP | proto::HIP)
        || (key.proto == UDP && key.dst_port == IKE)
}

/// What the CPE's own stack may have from strangers: ICMPv6, DHCPv6 answers, IPsec, open ports.
#[inline(always)]
fn is_service(packet: &Packet6, now: u32) -> bool {
    let key = &packet.key;
    key.proto == proto::ICMPV6
        || (key.proto == UDP && key.dst_port == DHCPV6_CLIENT)
        || is_always_admitted(packet)
        || pinhole::is_open_port(key, now)
}

/// Whether programs of the CPE wait for this protocol at ports: routing protocols and the like are the link's.
#[inline(always)]
const fn has_ports(number: u8) -> bool {
    matches!(
        number,
        UDP | TCP | proto::UDP_LITE | proto::SCTP | proto::DCCP
    )
}

/// What holds for every packet without a session: the frame is ours, the filter is on, and the addresses may
/// come from outside.
#[inline(always)]
fn check<H: Hook>(hook: &H, config: &Config, packet: &Packet6) -> Outcome {
    if H::REDIRECTS6 {
        let outcome = next_hop::check_mac(hook.ingress(), packet);
        if outcome != Outcome::NONE {
            return outcome;
        }
    }
    if !is_on(config) {
        return PassReason::Ipv6Unfiltered.into();
    }
    check_addresses(config, &packet.key)
}

/// RFC 6092 REC-1 to REC-3, REC-6, REC-7.
#[inline(always)]
fn check_addresses(config: &Config, key: &SessionKey6) -> Outcome {
    if in_lan(config, &key.src) {
        return DropReason::Spoofed.into();
    }
    if key.src == key.dst {
        return DropReason::Land.into();
    }
    match addresses(key) {
        Addresses::GLOBAL => Outcome::NONE,
        Addresses::LOCAL => PassReason::Ipv6Local.into(),
        _ => DropReason::Forbidden6.into(),
    }
}
