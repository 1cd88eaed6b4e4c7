//! IPv6 from the LAN to the WAN.
//!
//! What cannot leave from here goes to the stack as it came; the program on WAN egress judges it there.

use core::mem::MaybeUninit;

use iwf_common::config::Config;
use iwf_common::flow6::SessionValue6;
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::tcp;

use super::next_hop::{self, Home, NextHop6};
use super::parse::{Packet6, parse, special};
use super::session::{self, Terms};
use super::{Addresses, addresses, fragment, in_lan, is_on, rewrite, unparsed};
use crate::clock::tick;
use crate::headers::{Mac, TCP};
use crate::hook::Hook;
use crate::maps::CONFIG;
use crate::next_hop::l3_interface;
use crate::outcome::{Outcome, Step};
use crate::session::Direction;

/// One frame of a LAN host that is not IPv4.
#[inline(always)]
pub fn run<H: Hook>(hook: &H) -> Outcome {
    match try_run(hook) {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_run<H: Hook>(hook: &H) -> Step<Outcome> {
    let mut packet = MaybeUninit::uninit();
    let packet = match parse(hook, &hook.cursor(), &mut packet) {
        Ok(packet) => packet,
        Err(outcome) => return Err(unparsed(outcome)),
    };
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    if packet.special != 0 {
        settle(config, packet).step()?;
    }
    if let Some(session) = session::find_of_lan(&packet.key) {
        return send(hook, config, packet, session);
    }
    admit(hook, config, packet).step()?;
    let session = session::find_of_lan(&packet.key).ok_or(DropReason::Sessions6Full)?;
    send(hook, config, packet, session)
}

/// What is no plain flow: a later fragment learns its flow, the rest is the stack's.
#[inline(never)]
fn settle(config: &Config, packet: &mut Packet6) -> Outcome {
    let stack = special::ERROR | special::MESSAGE | special::HOP_BY_HOP;
    if packet.special & stack != 0 {
        return PassReason::Ipv6Stack.into();
    }
    if packet.special & special::LATER == 0 {
        return Outcome::NONE;
    }
    let outcome = fragment::follow(config, tick(), packet);
    if outcome == DropReason::FragmentUnknown.into() {
        // Whether it is for the WAN at all is not known here.
        return PassReason::Fragment.into();
    }
    outcome
}

/// The fast path.
#[inline(always)]
fn send<H: Hook>(
    hook: &H,
    config: &Config,
    packet: &Packet6,
    session: &mut SessionValue6,
) -> Step<Outcome> {
    let now = tick();
    if session::is_due(session, now) {
        session::prolong(&packet.key, session, now).step()?;
    }
    if !H::REDIRECTS6 {
        return Err(PassReason::NoRedirect.into());
    }
    if packet.frame_dst != Mac::new(&session.router_mac) {
        next_hop::check_mac(hook.ingress(), packet).step()?;
        session.router_mac = packet.frame_dst.octets();
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
    session::touch(session, packet, now);
    if packet.special != 0 {
        fragment_went(now, packet);
    }
    rewrite(&hook.cursor(), packet, session)?;
    Ok(Done::Forwarded6Out.into())
}

/// Keeps account of fragments that go on.
#[inline(always)]
pub fn fragment_went(now: u32, packet: &Packet6) {
    if packet.special & special::FIRST != 0 {
        fragment::remember(now, packet);
    }
    fragment::count(packet);
}

/// A packet without a session: begins one if it may, and is for the stack if it is not for the WAN.
#[inline(never)]
fn admit<H: Hook>(hook: &H, config: &Config, packet: &Packet6) -> Outcome {
    Outcome::of(try_admit(hook, config, packet))
}

#[inline(always)]
fn try_admit<H: Hook>(hook: &H, config: &Config, packet: &Packet6) -> Step<()> {
    let key = &packet.key;
    next_hop::check_mac(hook.ingress(), packet).step()?;
    let kind = addresses(key);
    if kind == Addresses::FROM_GROUP {
        return Err(DropReason::Forbidden6.into());
    }
    if kind == Addresses::LOCAL {
        return Err(PassReason::Ipv6Local.into());
    }
    if !is_on(config) {
        return Err(PassReason::Ipv6Unfiltered.into());
    }
    if in_lan(config, &key.dst) {
        return Err(PassReason::NotToWan.into());
    }
    if packet.special & special::LATER != 0 {
        return Err(PassReason::Fragment.into());
    }
    let mut next_hop = NextHop6::NONE;
    next_hop::look_up(
        hook.context(),
        l3_interface(hook.ingress()),
        packet,
        &mut next_hop,
        Direction::Out,
    )
    .step()?;
    if kind == Addresses::FORBIDDEN {
        return Err(DropReason::Forbidden6.into());
    }
    if !in_lan(config, &key.src) {
        return Err(DropReason::SpoofedLan.into());
    }
    let home = next_hop::home_of_source(hook.context(), key);
    if home == Home::NONE {
        return Err(DropReason::SpoofedLan.into());
    }
    begin(config, packet, &Terms::lan(home.station()), Some(&next_hop))
}

/// Makes the session of a packet on its way out. Also for what the stack sends.
#[inline(always)]
pub fn begin(
    config: &Config,
    packet: &Packet6,
    terms: &Terms,
    next_hop: Option<&NextHop6>,
) -> Step<()> {
    let key = &packet.key;
    if terms.flags == 0 {
        // The stack knows its own connections; of a LAN host's only their beginning is believed.
        if key.proto == TCP && !tcp::opens(packet.tcp_flags) {
            return Err(DropReason::TcpStray.into());
        }
    }
    if !packet.asks() {
        return Err(PassReason::OtherProtocol.into());
    }
    session::open(config, packet, terms, Direction::Out, next_hop)?;
    if terms.flags == 0 {
        session::note_endpoint(config, tick(), key);
    }
    Ok(())
}
