//! From the LAN to the WAN, in XDP on the LAN ports.
//!
//! What cannot leave from here goes to the stack as it came: it forwards the packet, and the program on WAN
//! egress translates it.

use core::mem::MaybeUninit;

use aya_ebpf::programs::XdpContext;
use iwf_common::config::Config;
use iwf_common::event::EventKind;
use iwf_common::flow::{SessionFlags, SessionValue};
use iwf_common::nat::EndpointKey;
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::tcp;

use crate::clock::tick;
use crate::fragment::{self, Place};
use crate::headers::{Mac, TCP};
use crate::hook::Hook;
use crate::mapping::Grant;
use crate::maps::{CONFIG, in_lan, is_external};
use crate::next_hop::{self, NextHop, Query};
use crate::outcome::{Outcome, Step};
use crate::parse::{Marks, Packet, is_unicast, parse};
use crate::rewrite::Hop;
use crate::session::{self, Direction, Flow};
use crate::{hairpin, icmp, mapping, stats, v6};

/// One frame of a LAN host.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Step<Outcome> {
    let mut packet = MaybeUninit::uninit();
    let packet = match parse(&ctx.cursor(), &mut packet, || ctx.frame_len()) {
        Ok(packet) => packet,
        Err(outcome) if outcome == PassReason::IcmpError.into() => {
            return Err(icmp::translate(ctx, icmp::At::Lan));
        }
        Err(outcome) if outcome == PassReason::NotIpv4.into() => {
            return Err(v6::outbound::run(ctx));
        }
        Err(outcome) => return Err(guard(ctx, outcome)),
    };
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    if let Some(session) = session::find(&packet.key, Direction::Out) {
        return send(ctx, config, packet, session);
    }
    // The kernel takes packets with our own addresses from the LAN, for the sake of those that we have hairpinned.
    if is_external(config, &packet.key.src) {
        return Err(DropReason::Spoofed.into());
    }
    // Not one inside of the other: each needs most of the stack.
    let admitted = if is_external(config, &packet.key.dst) {
        hairpin::admit(ctx, config, packet)
    } else {
        admit(ctx, config, packet)
    };
    if admitted != Outcome::NONE {
        return Err(passed(ctx, packet, admitted));
    }
    let session = session::find(&packet.key, Direction::Out).ok_or(DropReason::SessionsFull)?;
    send(ctx, config, packet, session)
}

/// What is no flow: fragments without ports, and what the stack must judge.
#[inline(never)]
fn guard(ctx: &XdpContext, outcome: Outcome) -> Outcome {
    if outcome == PassReason::Fragment.into() {
        return fragment::later(ctx, Place::Lan);
    }
    fragment::refuse(ctx, outcome)
}

/// The stack must have all fragments of a datagram, if it has the first.
#[inline(always)]
fn passed(ctx: &XdpContext, packet: &Packet, outcome: Outcome) -> Outcome {
    if packet.marks & Marks::FIRST != 0 {
        return fragment::first_passed(ctx, packet, outcome);
    }
    outcome
}

/// The fast path.
#[inline(always)]
fn send(
    ctx: &XdpContext,
    config: &Config,
    packet: &Packet,
    session: &mut SessionValue,
) -> Step<Outcome> {
    let now = tick();
    if session::is_due(session, now) {
        session::prolong(&packet.key, session, now).step()?;
    }
    if packet.frame_dst != Mac::new(&session.router_mac) {
        next_hop::check_mac(ctx.ingress(), packet).step()?;
        session.router_mac = packet.frame_dst.octets();
    }
    if let Err(outcome) = way(ctx, config, packet, session) {
        if session.flags & SessionFlags::HAIRPIN != 0 {
            return Err(hairpin::hand_up(ctx, packet, session, now, outcome));
        }
        return Err(passed(ctx, packet, outcome));
    }
    session::touch(session, packet, now);
    ctx.rewrite(packet, session, Hop::Forward)?;
    if packet.marks != 0 {
        fragment::marked(ctx, packet, session, 0).step()?;
    }
    if session.flags & SessionFlags::HAIRPIN != 0 {
        return Ok(Done::Hairpinned.into());
    }
    Ok(Done::ForwardedOut.into())
}

/// Whether the packet leaves from here, and else why not.
#[inline(always)]
fn way(ctx: &XdpContext, config: &Config, packet: &Packet, session: &mut SessionValue) -> Step<()> {
    if packet.ttl <= 1 {
        return Err(PassReason::TtlExceeded.into());
    }
    if session.next_hop_generation != config.next_hop_generation {
        next_hop::refresh(
            ctx.context(),
            packet,
            session,
            ctx.ingress(),
            Direction::Out,
        )
        .step()?;
    }
    if packet.total_len > session.mtu {
        return Err(PassReason::TooBig.into());
    }
    next_hop::redirect(session)
}

/// A packet without a session: begins one if it may, and is for the stack if it is not to be translated.
#[inline(never)]
fn admit(ctx: &XdpContext, config: &Config, packet: &Packet) -> Outcome {
    Outcome::of(try_admit(ctx, config, packet))
}

#[inline(always)]
fn try_admit(ctx: &XdpContext, config: &Config, packet: &Packet) -> Step<()> {
    let key = &packet.key;
    if config.external_addr == [0; 4] {
        return Err(PassReason::NotConfigured.into());
    }
    next_hop::check_mac(ctx.ingress(), packet).step()?;
    if !is_unicast(key.dst) {
        return Err(PassReason::NotUnicast.into());
    }
    if !in_lan(config, &key.src) {
        return Err(PassReason::NotLanSource.into());
    }
    if in_lan(config, &key.dst) {
        return Err(PassReason::NotToWan.into());
    }
    if !packet.asks() {
        return Err(PassReason::OtherProtocol.into());
    }
    let now = tick();
    let internal = key.source();
    let query = Query {
        direction: Direction::Out,
        iif: next_hop::l3_interface(ctx.ingress()),
        src: key.src,
        dst: key.dst,
        total_len: packet.total_len,
    };
    let mut next_hop = NextHop::NONE;
    let found = next_hop::look_up(ctx.context(), config, &query, &mut next_hop);
    if found == PassReason::Unresolved.into() {
        let remote = key.destination();
        stats::emit(
            config,
            now,
            EventKind::NextHopUnresolved,
            &internal,
            &remote,
        );
    }
    found.step()?;
    begin(config, now, packet, internal, false, &next_hop)
}

/// Makes mapping and sessions for a packet on its way out. Also for what the stack sends or forwards.
#[inline(always)]
pub fn begin(
    config: &Config,
    now: u32,
    packet: &Packet,
    internal: EndpointKey,
    host: bool,
    next_hop: &NextHop,
) -> Step<()> {
    // The stack knows its own connections; of a LAN host's only their beginning is believed.
    if packet.key.proto == TCP && !host && !tcp::opens(packet.tcp_flags) {
        return Err(DropReason::TcpStray.into());
    }
    let mut flow = Flow {
        internal,
        grant: Grant::NONE,
        remote: packet.key.destination(),
        host,
    };
    let kind = session::kind_of(host);
    mapping::find_or_make(config, now, &internal, kind, &mut flow.grant)?;
    session::open(config, now, &flow, packet, Direction::Out, next_hop)
}
