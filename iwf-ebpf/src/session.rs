//! Making, finding and keeping sessions.

use aya_ebpf::bindings::BPF_NOEXIST;
use iwf_common::config::{Config, Ends};
use iwf_common::csum;
use iwf_common::event::EventKind;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::nat::{EndpointKey, MappingKind};
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::{tcp, tick};

use crate::hairpin;
use crate::headers::{ICMP, TCP};
use crate::host::{self, Wants};
use crate::mapping::{self, Grant};
use crate::maps::{CONFIG, SESSIONS, owns};
use crate::next_hop::NextHop;
use crate::outcome::{Outcome, Step};
use crate::parse::Packet;
use crate::stats;

const EEXIST: i32 = -17;

/// Which direction a packet or a session entry has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the WAN.
    Out,
    /// From the WAN.
    In,
}

impl Direction {
    /// The other one.
    #[inline(always)]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Out => Self::In,
            Self::In => Self::Out,
        }
    }
}

/// Both ends of a flow and its mapping.
pub struct Flow {
    /// The LAN host's endpoint, or the CPE's own with the WAN address.
    pub internal: EndpointKey,
    /// The mapping's external endpoint and lifetime.
    pub grant: Grant,
    /// The other end, with port 0 for an ICMP query.
    pub remote: EndpointKey,
    /// The direction of the packet that begins it.
    pub trigger: Direction,
    /// A flow of the CPE itself.
    pub host: bool,
}

/// The entry for `key`, if it is of `direction`.
#[inline(always)]
pub fn find<'a>(key: &SessionKey, direction: Direction) -> Option<&'a mut SessionValue> {
    let session = SESSIONS.get_ptr_mut(key)?;
    // SAFETY: entries live as long as the program runs. Another CPU may write the same fields: each is written
    // whole, and none is used for memory access. An entry is removed only after its flow has been silent or
    // its mapping is gone, so that it is not reused under a packet of a flow that has a right to it.
    let session = unsafe { &mut *session };
    let wanted = match direction {
        Direction::Out => 0,
        Direction::In => SessionFlags::INBOUND,
    };
    (session.flags & (SessionFlags::INBOUND | SessionFlags::ENDED) == wanted).then_some(session)
}

/// Begins a session that its host may have ([`host::admit`]). Both entries: the return direction first, so that no
/// answer can come back to nothing, and the direction of `packet` last.
#[inline(always)]
pub fn open(now: u32, flow: &Flow, packet: &Packet, next_hop: Option<&NextHop>) -> Step<()> {
    let mut outcome = write(now, flow, packet, flow.trigger.reverse(), next_hop);
    let mut counted = counted(flow, flow.trigger.reverse(), outcome);
    // If this fails, the first half is left alone, and the sweep ends it when its grace is over.
    if is_there(outcome) {
        outcome = write(now, flow, packet, flow.trigger, next_hop);
        counted |= self::counted(flow, flow.trigger, outcome);
    }
    if flow.grant.made {
        counted |= Wants::MAPPING;
    }
    if counted != 0 {
        host::began(&flow.internal.addr, counted);
    }
    if !is_there(outcome) {
        return Err(outcome);
    }
    stats::count(Done::SessionCreated);
    Ok(())
}

/// What [`write`] has done to the host's count.
#[inline(always)]
fn counted(flow: &Flow, direction: Direction, written: Outcome) -> u32 {
    if direction == Direction::Out && !flow.host && written == NEW {
        Wants::SESSION
    } else {
        0
    }
}

/// For [`write`]: the entry is new, and does not count yet.
const NEW: Outcome = Outcome::from_slot(u32::MAX - 1);

/// Whether [`write`] has left an entry that is good.
#[inline(always)]
fn is_there(written: Outcome) -> bool {
    written == NEW || written == Outcome::NONE
}

/// Writes the entry of one direction. Once for each, because both at a time would need too much stack.
#[inline(never)]
fn write(
    now: u32,
    flow: &Flow,
    packet: &Packet,
    direction: Direction,
    next_hop: Option<&NextHop>,
) -> Outcome {
    match try_write(now, flow, packet, direction, next_hop) {
        Ok(true) => NEW,
        Ok(false) => Outcome::NONE,
        Err(outcome) => outcome,
    }
}

#[inline(always)]
fn try_write(
    now: u32,
    flow: &Flow,
    packet: &Packet,
    direction: Direction,
    next_hop: Option<&NextHop>,
) -> Step<bool> {
    let config = CONFIG.get(0).ok_or(PassReason::NotConfigured)?;
    let mut value = SessionValue {
        last_seen: now,
        deadline: flow.grant.deadline,
        ..SessionValue::default()
    };
    aim(&mut value, flow, direction);
    if direction == flow.trigger {
        value.router_mac = packet.frame_dst.octets();
        value.tcp = tcp::observe(0, packet.tcp_flags);
        if let Some(next_hop) = next_hop {
            next_hop.store(&mut value);
        }
    }
    insert(config, now, flow, &flow.key(direction), &value)
}

/// Notes that a packet of the session went by.
#[inline(always)]
pub fn touch(session: &mut SessionValue, packet: &Packet, now: u32) {
    session.count(packet.total_len);
    if packet.key.proto == TCP {
        if tcp::may_reopen(session.tcp, packet.tcp_flags) {
            reopen(session, packet.key.proto);
        }
        let seen = tcp::observe(session.tcp, packet.tcp_flags);
        if seen != session.tcp {
            session.tcp = seen;
        }
    }
    // After `reopen`, which asks when the last one was.
    session.last_seen = now;
}

/// A session whose deadline has come goes on only if its mapping has been prolonged since.
#[inline(never)]
pub fn prolong(key: &SessionKey, session: &mut SessionValue, now: u32) -> Outcome {
    let (internal, external) = session.endpoints(key);
    match mapping::behind(&external, &internal) {
        Some(mapping) if !mapping.expired(now) && session.is_of(mapping) => {
            let over = session.deadline;
            session.deadline = mapping.expires;
            if session.flags & SessionFlags::HAIRPIN != 0 && !hairpin::recheck(now, key, session) {
                // For the next packet as well.
                session.deadline = over;
                return DropReason::MappingExpired.into();
            }
            Outcome::NONE
        }
        _ => DropReason::MappingExpired.into(),
    }
}

/// Whether a session that the stack is to have may go on: for the ways that ask for no next hop. A generation that is
/// good says so as well.
#[inline(always)]
pub fn check_address(config: &Config, key: &SessionKey, session: &SessionValue) -> Step<()> {
    if session.next_hop_generation != config.next_hop_generation && !owns(&Ends::of(key, session)) {
        return Err(DropReason::AddressGone.into());
    }
    Ok(())
}

/// Whether a session's deadline has come.
#[inline(always)]
pub fn is_due(session: &SessionValue, now: u32) -> bool {
    tick::deadline_passed(now, session.deadline)
}

impl Flow {
    /// Of a packet on its way out; its mapping is yet to be found.
    #[inline(always)]
    pub fn outbound(packet: &Packet, host: bool) -> Self {
        Self {
            internal: packet.key.source(),
            grant: Grant::NONE,
            remote: packet.key.destination(),
            trigger: Direction::Out,
            host,
        }
    }

    /// [`SessionFlags`] of both entries, without INBOUND.
    #[inline(always)]
    fn flags(&self) -> u8 {
        let host = if self.host { SessionFlags::HOST } else { 0 };
        let explicit = if self.grant.explicit {
            SessionFlags::EXPLICIT
        } else {
            0
        };
        let invited = match self.trigger {
            Direction::Out => 0,
            Direction::In => SessionFlags::INVITED,
        };
        host | explicit | invited
    }

    #[inline(always)]
    fn key(&self, direction: Direction) -> SessionKey {
        let (from, to) = match direction {
            Direction::Out => (&self.internal, &self.remote),
            Direction::In => (&self.remote, &self.grant.external),
        };
        SessionKey::new(from.addr, from.port, to.addr, to.port, self.internal.proto)
    }
}

/// The mapping's kind of a flow that the CPE or a LAN host begins.
#[inline(always)]
pub const fn kind_of(host: bool) -> MappingKind {
    if host {
        MappingKind::Host
    } else {
        MappingKind::Dynamic
    }
}

/// Fills in the translation of one direction.
#[inline(always)]
fn aim(value: &mut SessionValue, flow: &Flow, direction: Direction) {
    let flags = flow.flags();
    let external = &flow.grant.external;
    let (old, new) = match direction {
        Direction::Out => {
            value.src = external.addr;
            value.src_port = external.port;
            value.dst = flow.remote.addr;
            value.dst_port = flow.remote.port;
            value.flags = flags;
            (&flow.internal, external)
        }
        Direction::In => {
            value.src = flow.remote.addr;
            value.src_port = flow.remote.port;
            value.dst = flow.internal.addr;
            value.dst_port = flow.internal.port;
            value.flags = flags | SessionFlags::INBOUND;
            (external, &flow.internal)
        }
    };
    value.l3_delta = csum::delta32(old.addr, new.addr);
    let port = csum::delta16(old.port, new.port);
    // The pseudo header of UDP and TCP has the addresses; ICMP has none.
    value.l4_delta = if flow.internal.proto == ICMP {
        port
    } else {
        csum::add(value.l3_delta, port)
    };
}

/// Whether the entry is new, and is to be counted if it is one that counts ([`host::counts`]).
///
/// An entry of the same translation is kept as it is, it may be in use; if it had ended, it lives again and goes on
/// counting. One of another translation is a leftover, unless MAPPINGS_EXT confirms it too: a remote endpoint that
/// uses two external endpoints of one internal endpoint would need two sessions that look the same to the LAN host.
/// The first one stays. A leftover is overwritten where it is, because a packet may hold it, and a place that is given
/// back could become another flow's under that packet.
#[inline(always)]
pub fn insert(
    config: &Config,
    now: u32,
    flow: &Flow,
    key: &SessionKey,
    value: &SessionValue,
) -> Step<bool> {
    match SESSIONS.insert(key, value, BPF_NOEXIST.into()) {
        Ok(()) => Ok(true),
        Err(EEXIST) => replace(now, key, value).step().map(|()| false),
        Err(_) => {
            stats::emit(
                config,
                now,
                EventKind::SessionsFull,
                &flow.internal,
                &flow.grant.external,
            );
            Err(DropReason::SessionsFull.into())
        }
    }
}

/// Makes the entry that is in the way into the new one, if it is of no use any more. A function of its own for its
/// stack.
#[inline(never)]
fn replace(now: u32, key: &SessionKey, value: &SessionValue) -> Outcome {
    let Some(old) = SESSIONS.get_ptr_mut(key) else {
        // Removed meanwhile: the next packet has better luck.
        return DropReason::SessionsFull.into();
    };
    // SAFETY: as in `find`.
    let old = unsafe { &mut *old };
    match Held::of(now, key, old, value) {
        Held::Same => {}
        // Both of them count for the same host, or neither does: the flags that decide are the direction's.
        Held::Leftover => take_over(old, key.proto, value),
        Held::Other => return DropReason::SessionCollision.into(),
    }
    Outcome::NONE
}

/// What is in the way of a new entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Nothing is wrong with it.
    Same,
    /// It may be overwritten.
    Leftover,
    /// A session in use.
    Other,
}

impl Held {
    #[inline(always)]
    fn of(now: u32, key: &SessionKey, old: &SessionValue, value: &SessionValue) -> Self {
        if old.flags & SessionFlags::ENDED != 0 {
            return Self::Leftover;
        }
        if old.reverse_key(key.proto) == value.reverse_key(key.proto) {
            // Two CPUs may open one session from both of its ends.
            let same = (old.flags ^ value.flags) & !SessionFlags::INVITED == 0
                && old.deadline == value.deadline;
            return if same { Self::Same } else { Self::Leftover };
        }
        let (internal, external) = old.endpoints(key);
        match mapping::behind(&external, &internal) {
            Some(mapping) if !mapping.expired(now) => Self::Other,
            _ => Self::Leftover,
        }
    }
}

/// Makes an entry that is there into the one that is wanted. Until all of it is written, packets take the way of a
/// miss.
#[inline(always)]
fn take_over(old: &mut SessionValue, proto: u8, value: &SessionValue) {
    if old.reverse_key(proto) != value.reverse_key(proto) {
        old.packets = 0;
        old.octets_low = 0;
        old.octets_high = 0;
    }
    set_flags(old, SessionFlags::ENDED);
    old.src = value.src;
    old.dst = value.dst;
    old.src_port = value.src_port;
    old.dst_port = value.dst_port;
    old.l3_delta = value.l3_delta;
    old.l4_delta = value.l4_delta;
    old.egress = value.egress;
    old.next_hop_generation = value.next_hop_generation;
    old.next_hop_mac = value.next_hop_mac;
    old.egress_mac = value.egress_mac;
    old.last_seen = value.last_seen;
    old.deadline = value.deadline;
    old.router_mac = value.router_mac;
    old.mtu = value.mtu;
    old.tcp = value.tcp;
    set_flags(old, value.flags);
}

#[inline(always)]
fn set_flags(session: &mut SessionValue, flags: u8) {
    // SAFETY: a reference is valid for writes; volatile keeps the order of the program text.
    unsafe { core::ptr::write_volatile(&raw mut session.flags, flags) };
}

/// Perhaps a new connection on the ports of an ended one: then both directions forget what they have seen.
#[inline(never)]
fn reopen(session: &mut SessionValue, proto: u8) {
    let Some(other) = SESSIONS.get_ptr_mut(session.reverse_key(proto)) else {
        return;
    };
    // SAFETY: as in `find`.
    let other = unsafe { &mut *other };
    if tcp::reopens(session.shown(), other.shown()) {
        session.tcp = 0;
        other.tcp = 0;
    }
}
