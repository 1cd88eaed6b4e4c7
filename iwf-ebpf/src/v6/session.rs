//! Making, finding and keeping IPv6 sessions, and which endpoints are open to strangers.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use iwf_common::config::{Config, ConfigFlags};
use iwf_common::event::EventKind;
use iwf_common::flow6::{EndpointKey6, EndpointValue6, SessionFlags6, SessionKey6, SessionValue6};
use iwf_common::host::OWN_STATION;
use iwf_common::nat::Filter;
use iwf_common::reason::{Done, DropReason};
use iwf_common::{limits, tcp, tick as ticks};

use super::next_hop::NextHop6;
use super::parse::Packet6;
use super::{pinhole, proto};
use crate::clock::tick;
use crate::headers::{TCP, UDP};
use crate::host;
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
    /// Who the session counts for.
    pub station: [u8; 6],
}

impl Terms {
    /// Of a flow of the CPE itself.
    pub const HOST: Self = Self {
        flags: SessionFlags6::HOST,
        pinhole: 0,
        deadline: 0,
        station: OWN_STATION,
    };

    /// Of a flow of a LAN host.
    #[inline(always)]
    pub const fn lan(station: [u8; 6]) -> Self {
        Self {
            flags: 0,
            pinhole: 0,
            deadline: 0,
            station,
        }
    }
}

/// The entry for `key`, if it is of `direction`.
#[inline(always)]
pub fn find<'a>(key: &SessionKey6, direction: Direction) -> Option<&'a mut SessionValue6> {
    let wanted = match direction {
        Direction::Out => 0,
        Direction::In => SessionFlags6::INBOUND,
    };
    find_as(key, SessionFlags6::INBOUND, wanted)
}

/// The entry for `key`, if a LAN host may send by it: a flow of the CPE itself is nobody's to send in.
#[inline(always)]
pub fn find_of_lan<'a>(key: &SessionKey6) -> Option<&'a mut SessionValue6> {
    find_as(key, SessionFlags6::INBOUND | SessionFlags6::HOST, 0)
}

#[inline(always)]
fn find_as<'a>(key: &SessionKey6, mask: u8, wanted: u8) -> Option<&'a mut SessionValue6> {
    let session = SESSIONS6.get_ptr_mut(key)?;
    // SAFETY: entries live as long as the program runs. Another CPU may write the same fields: each is written
    // whole, and none is used for memory access.
    let session = unsafe { &mut *session };
    (session.flags & (mask | SessionFlags6::ENDED) == wanted).then_some(session)
}

/// Notes that a packet of the session went by.
#[inline(always)]
pub fn touch(session: &mut SessionValue6, packet: &Packet6, now: u32) {
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
    // After `reopen`, which asks when the last one was.
    if session.last_seen != now {
        session.last_seen = now;
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
    let shown = |session: &SessionValue6| tcp::Shown {
        flags: session.tcp,
        last: session.last_seen,
    };
    if tcp::reopens(shown(session), shown(other)) {
        session.tcp = 0;
        other.tcp = 0;
    }
}

/// Whether a session's deadline has come.
#[inline(always)]
pub fn is_due(session: &SessionValue6, now: u32) -> bool {
    ticks::deadline_passed(now, session.deadline)
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

/// Makes a session and counts it for its station, if that may have one more.
#[inline(always)]
pub fn open(
    config: &Config,
    packet: &Packet6,
    terms: &Terms,
    trigger: Direction,
    next_hop: Option<&NextHop6>,
) -> Step<()> {
    let mut outcome = host::admit6(config, tick(), &terms.station);
    if outcome == Outcome::NONE {
        outcome = write(packet, terms, trigger, next_hop);
    }
    if outcome == KEPT {
        return Ok(());
    }
    if outcome != Outcome::NONE {
        return Err(refuse(config, packet, terms, trigger, outcome));
    }
    host::session6_opened(&terms.station);
    stats::count(Done::Session6Created);
    Ok(())
}

/// Tells who may not have a session, or why there is no room for it.
#[inline(never)]
fn refuse(
    config: &Config,
    packet: &Packet6,
    terms: &Terms,
    trigger: Direction,
    outcome: Outcome,
) -> Outcome {
    let kind = if outcome == DropReason::HostSessions.into() {
        EventKind::HostSessions
    } else if outcome == DropReason::HostsFull.into() {
        EventKind::HostsFull
    } else {
        EventKind::SessionsFull
    };
    let of_source = trigger == Direction::Out;
    stats::emit6(config, kind, &packet.key, of_source, &terms.station);
    outcome
}

/// For [`write`]: the entry of the direction out was there, and counts already.
const KEPT: Outcome = Outcome::from_slot(u32::MAX - 1);

/// Writes both entries: the return direction first, so that no answer can come back to nothing, and the
/// direction of `packet` last.
#[inline(never)]
fn write(
    packet: &Packet6,
    terms: &Terms,
    trigger: Direction,
    next_hop: Option<&NextHop6>,
) -> Outcome {
    match try_write(packet, terms, trigger, next_hop) {
        Ok(true) => Outcome::NONE,
        Ok(false) => KEPT,
        Err(outcome) => outcome,
    }
}

/// Whether the entry of the direction out is new.
#[inline(always)]
fn try_write(
    packet: &Packet6,
    terms: &Terms,
    trigger: Direction,
    next_hop: Option<&NextHop6>,
) -> Step<bool> {
    let back = match trigger {
        Direction::Out => SessionFlags6::INBOUND,
        Direction::In => 0,
    };
    let mut value = SessionValue6 {
        last_seen: tick(),
        deadline: terms.deadline,
        pinhole: terms.pinhole,
        flags: terms.flags | back,
        station: terms.station,
        ..SessionValue6::default()
    };
    let other_is_new = insert(&packet.key.reverse(), &value)?;
    value.flags ^= SessionFlags6::INBOUND;
    value.router_mac = packet.frame_dst.octets();
    value.tcp = tcp::observe(0, packet.tcp_flags);
    if let Some(next_hop) = next_hop {
        next_hop.store(&mut value);
    }
    let this_is_new = insert(&packet.key, &value)?;
    Ok(if value.flags & SessionFlags6::INBOUND == 0 {
        this_is_new
    } else {
        other_is_new
    })
}

/// An entry that is in use is kept; one that has ended, or is of another direction, is replaced. Whether there was
/// none.
#[inline(always)]
fn insert(key: &SessionKey6, value: &SessionValue6) -> Step<bool> {
    let inserted = match SESSIONS6.insert(key, value, BPF_NOEXIST.into()) {
        Ok(()) => return Ok(true),
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
    match inserted {
        Ok(()) => Ok(false),
        Err(_) => Err(DropReason::Sessions6Full.into()),
    }
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
    ticks::age(now, unsafe { (*value).last_used }) <= open_time(config, key.proto)
}

/// How long an endpoint stays open that does not send (RFC 6092 REC-12, REC-14, REC-35): no longer than its session,
/// so that who may not have more sessions has not more endpoints either.
#[inline(always)]
pub const fn open_time(config: &Config, proto: u8) -> u32 {
    match proto {
        UDP | proto::UDP_LITE => config.idle.udp,
        TCP | proto::SCTP | proto::DCCP => config.idle.tcp_transitory,
        _ => limits::OTHER_IDLE.saturating_mul(config.hz),
    }
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
