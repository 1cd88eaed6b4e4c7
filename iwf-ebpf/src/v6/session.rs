//! Making, finding and keeping IPv6 sessions, and which endpoints are open to strangers.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use iwf_common::config::{Config, ConfigFlags};
use iwf_common::flow6::{EndpointKey6, EndpointValue6, SessionFlags6, SessionKey6, SessionValue6};
use iwf_common::nat::Filter;
use iwf_common::reason::{Done, DropReason};
use iwf_common::{tcp, tick};

use super::next_hop::NextHop6;
use super::parse::Packet6;
use super::{pinhole, proto};
use crate::headers::{TCP, UDP};
use crate::maps::{ENDPOINTS6, SESSIONS6};
use crate::outcome::{Outcome, Step};
use crate::session::Direction;
use crate::stats;

const EEXIST: i32 = -17;

/// What a session is begun with.
pub struct Terms {
    /// [`SessionFlags6`] of both directions, without INBOUND.
    pub flags: u8,
    /// The pinhole, 0 for none.
    pub pinhole: u16,
    /// When the pinhole ends.
    pub deadline: u32,
}

impl Terms {
    /// Of a flow of a LAN host.
    pub const LAN: Self = Self {
        flags: 0,
        pinhole: 0,
        deadline: 0,
    };
    /// Of a flow of the CPE itself.
    pub const HOST: Self = Self {
        flags: SessionFlags6::HOST,
        pinhole: 0,
        deadline: 0,
    };
}

/// The entry for `key`, if it is of `direction`.
#[inline(always)]
pub fn find<'a>(key: &SessionKey6, direction: Direction) -> Option<&'a mut SessionValue6> {
    let session = SESSIONS6.get_ptr_mut(key)?;
    // SAFETY: entries live as long as the program runs. Another CPU may write the same fields: each is written
    // whole, and none is used for memory access.
    let session = unsafe { &mut *session };
    let wanted = match direction {
        Direction::Out => 0,
        Direction::In => SessionFlags6::INBOUND,
    };
    (session.flags & (SessionFlags6::INBOUND | SessionFlags6::ENDED) == wanted).then_some(session)
}

/// Notes that a packet of the session went by.
#[inline(always)]
pub fn touch(session: &mut SessionValue6, packet: &Packet6, now: u32) {
    if session.last_seen != now {
        session.last_seen = now;
    }
    session.packets = session.packets.wrapping_add(1);
    let (low, carry) = session.octets_low.overflowing_add(packet.total_len);
    session.octets_low = low;
    if carry {
        session.octets_high = session.octets_high.wrapping_add(1);
    }
    if packet.key.proto == TCP {
        if tcp::may_reopen(session.tcp, packet.tcp_flags) {
            reopen(session, &packet.key);
        }
        let seen = tcp::observe(session.tcp, packet.tcp_flags);
        if seen != session.tcp {
            session.tcp = seen;
        }
    }
}

/// Perhaps a new connection on the ports of an ended one: then both directions forget what they have seen.
#[inline(never)]
fn reopen(session: &mut SessionValue6, key: &SessionKey6) {
    let Some(other) = SESSIONS6.get_ptr_mut(key.reverse()) else {
        return;
    };
    // SAFETY: as in `find`.
    let other = unsafe { &mut *other };
    if tcp::reopens(session.tcp, other.tcp) {
        session.tcp = 0;
        other.tcp = 0;
    }
}

/// Whether a session's deadline has come.
#[inline(always)]
pub fn is_due(session: &SessionValue6, now: u32) -> bool {
    tick::deadline_passed(now, session.deadline)
}

/// A session whose deadline has come goes on only if its pinhole has been prolonged since.
#[inline(never)]
pub fn prolong(key: &SessionKey6, session: &mut SessionValue6, now: u32) -> Outcome {
    let inbound = if session.flags & SessionFlags6::INBOUND != 0 {
        *key
    } else {
        key.reverse()
    };
    match pinhole::find(&inbound, now) {
        Some(found) if found.id == session.pinhole => {
            session.deadline = found.expires;
            Outcome::NONE
        }
        _ => DropReason::MappingExpired.into(),
    }
}

/// Writes both entries: the return direction first, so that no answer can come back to nothing, and the
/// direction of `packet` last.
#[inline(never)]
pub fn open(
    now: u32,
    packet: &Packet6,
    terms: &Terms,
    trigger: Direction,
    next_hop: &NextHop6,
) -> Outcome {
    Outcome::of(try_open(now, packet, terms, trigger, next_hop))
}

#[inline(always)]
fn try_open(
    now: u32,
    packet: &Packet6,
    terms: &Terms,
    trigger: Direction,
    next_hop: &NextHop6,
) -> Step<()> {
    let (there, back) = match trigger {
        Direction::Out => (0, SessionFlags6::INBOUND),
        Direction::In => (SessionFlags6::INBOUND, 0),
    };
    let mut value = SessionValue6 {
        last_seen: now,
        deadline: terms.deadline,
        pinhole: terms.pinhole,
        flags: terms.flags | back,
        ..SessionValue6::default()
    };
    insert(&packet.key.reverse(), &value)?;
    value.flags = terms.flags | there;
    value.router_mac = packet.frame_dst.octets();
    value.tcp = tcp::observe(0, packet.tcp_flags);
    next_hop.store(&mut value);
    insert(&packet.key, &value)?;
    stats::count(Done::Session6Created);
    Ok(())
}

/// An entry that is in use is kept; one that has ended, or is of another direction, is replaced.
#[inline(always)]
fn insert(key: &SessionKey6, value: &SessionValue6) -> Step<()> {
    let inserted = match SESSIONS6.insert(key, value, BPF_NOEXIST.into()) {
        Err(EEXIST) => {
            let same = SESSIONS6.get_ptr(key).is_some_and(|old| {
                // SAFETY: as in `find`.
                let old = unsafe { &*old };
                old.flags == value.flags && old.pinhole == value.pinhole
            });
            if same {
                Ok(())
            } else {
                SESSIONS6.insert(key, value, BPF_ANY.into())
            }
        }
        other => other,
    };
    inserted.map_err(|_| DropReason::Sessions6Full.into())
}

/// Whom an endpoint of `proto` lets in when it has sent (RFC 6092 REC-11, REC-17, REC-33). Connections know their
/// peers, so theirs let in nobody else unless configured; an echo is an answer's only.
#[inline(always)]
fn filter_of(config: &Config, proto: u8) -> u8 {
    match proto {
        UDP | proto::UDP_LITE => config.filter6,
        TCP | proto::SCTP | proto::DCCP if config.flags & ConfigFlags::IPV6_OPEN_TCP == 0 => {
            Filter::AddressAndPortDependent as u8
        }
        proto::ICMPV6 => Filter::AddressAndPortDependent as u8,
        _ => config.filter6,
    }
}

/// Notes that the endpoint `internal` has sent to `remote`.
#[inline(never)]
pub fn note_endpoint(config: &Config, now: u32, key: &SessionKey6) {
    let Some(endpoint) = endpoint(config, key.proto, (&key.src, key.src_port), &key.dst) else {
        return;
    };
    let value = EndpointValue6 { last_used: now };
    if ENDPOINTS6
        .insert(&endpoint, &value, BPF_ANY.into())
        .is_err()
    {
        stats::count(Done::Endpoint6Lost);
    }
}

/// Whether the endpoint a packet from the WAN is for is open to who has sent it.
#[inline(never)]
pub fn is_open(config: &Config, now: u32, key: &SessionKey6) -> bool {
    let Some(endpoint) = endpoint(config, key.proto, (&key.dst, key.dst_port), &key.src) else {
        return false;
    };
    let Some(value) = ENDPOINTS6.get_ptr(&endpoint) else {
        return false;
    };
    // SAFETY: entries live as long as the program runs.
    tick::age(now, unsafe { (*value).last_used }) <= config.idle.udp
}

/// The key of ENDPOINTS6 under which `internal` is open to `remote`; none if only sessions are.
#[inline(always)]
pub fn endpoint(
    config: &Config,
    proto: u8,
    internal: (&[u8; 16], [u8; 2]),
    remote: &[u8; 16],
) -> Option<EndpointKey6> {
    let filter = filter_of(config, proto);
    let mut key = EndpointKey6 {
        addr: *internal.0,
        peer: [0; 16],
        port: internal.1,
        proto,
        pad: 0,
        pad_word: 0,
    };
    if filter == Filter::AddressDependent as u8 {
        key.peer = *remote;
    } else if filter != Filter::EndpointIndependent as u8 {
        return None;
    }
    Some(key)
}
