//! Ageing: the daemon reads the tables and names what may be over, this judges it by the tables as they are.
//!
//! Read before editing: RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5, RFC 7857 section 7.
//!
//! A session lives while either direction is used, and while MAPPINGS_EXT holds its mapping. A dynamic mapping
//! lives by what its host sends (UDP, ICMP) or while it has an open connection (TCP). Each entry is judged by
//! the tables as they are, so nothing keeps itself alive.
//!
//! A session ends in two steps: first both entries are marked, so that packets do not find them any more; a
//! later item removes them, when no packet on another CPU can still hold one that would be reused under it.
//!
//! One repetition of a run looks at one item, and the kernel may do something else between two.

use iwf_common::config::Ends;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::host::HostValue;
use iwf_common::nat::{EndpointKey, Filter, MappingFlags, MappingKind, MappingValue, PeerKey};
use iwf_common::sweep::{self, SweepItem, SweepMode, SweepRequest, SweepTask};
use iwf_common::tcp::Shown;
use iwf_common::{limits, tcp, tick};

use crate::filter;
use crate::headers::TCP;
use crate::host;
use crate::mapping;
use crate::maps::{
    CONFIG, HOSTS, MAPPINGS_EXT, MAPPINGS_INT, PEERS, SESSIONS, SWEEP, SWEEP_ITEMS, admits, owns,
};
use crate::v6;

/// Looks at the next item. 0, or a negative error number.
#[inline(always)]
pub fn step() -> i32 {
    const EINVAL: i32 = -22;
    let Some(request) = SWEEP.get_ptr_mut(0) else {
        return EINVAL;
    };
    // SAFETY: the daemon runs one sweep at a time and reads the entry after it.
    let request: &mut SweepRequest = unsafe { &mut *request };
    let Some(item) = SWEEP_ITEMS.get(request.next) else {
        return EINVAL;
    };
    request.next += 1;
    let now = crate::clock::tick();
    if item.task == SweepTask::JudgeSession as u32 {
        judge_session(request, now, item);
    } else if item.task == SweepTask::RemoveSession as u32 {
        remove_session(request, now, item);
    } else if item.task == SweepTask::JudgeMapping as u32 {
        judge_mapping(request, now, item);
    } else if item.task == SweepTask::JudgeInternal as u32 {
        judge_internal(request, now, item);
    } else if item.task == SweepTask::BeginRecount as u32 {
        if let Some(host) = host_of(item) {
            host::begin_recount(host);
        }
    } else if item.task == SweepTask::EndRecount as u32 {
        end_recount(now, item);
    } else if item.task == SweepTask::JudgeSession6 as u32 {
        v6::sweep::judge_session(now, &item.key6);
    } else if item.task == SweepTask::JudgeEndpoint6 as u32 {
        v6::sweep::judge_endpoint(request.as_of, &item.endpoint6());
    } else if item.task == SweepTask::NotePeer as u32 {
        note_peer(now, item);
    } else if item.task == SweepTask::JudgePeer as u32 {
        judge_peer(request.as_of, item);
    } else if item.task == SweepTask::AddUp as u32 {
        host::add_up(&item.lacking());
    }
    0
}

#[inline(never)]
fn judge_session(request: &mut SweepRequest, now: u32, item: &SweepItem) {
    let Some(session) = entry(&item.key) else {
        request.sessions_over += 1;
        return;
    };
    // Its other half may have been judged before.
    if session.flags & SessionFlags::ENDED != 0 {
        request.sessions_over += 1;
        return;
    }
    if keeps_session(request, now, &item.key, session) {
        return;
    }
    request.sessions_over += 1;
    let reverse = session.reverse_key(item.key.proto);
    mark(session, now);
    request.sessions_ended += 1;
    if let Some(other) = entry(&reverse)
        && other.flags & SessionFlags::ENDED == 0
        && other.reverse_key(item.key.proto) == item.key
    {
        mark(other, now);
        request.sessions_ended += 1;
    }
}

/// The tick of the mark takes the place of the last packet's.
#[inline(always)]
fn mark(session: &mut SessionValue, now: u32) {
    session.last_seen = now;
    session.flags |= SessionFlags::ENDED;
}

#[inline(never)]
fn remove_session(request: &mut SweepRequest, now: u32, item: &SweepItem) {
    let Some(session) = entry(&item.key) else {
        return;
    };
    let reverse = session.reverse_key(item.key.proto);
    if !remove_half(request, now, &item.key, session) {
        return;
    }
    if let Some(other) = entry(&reverse)
        && other.reverse_key(item.key.proto) == item.key
    {
        remove_half(request, now, &reverse, other);
    }
}

/// What the entry counted goes to its mapping first; nobody adds to an entry at rest any more.
#[inline(always)]
fn remove_half(
    request: &mut SweepRequest,
    now: u32,
    key: &SessionKey,
    session: &mut SessionValue,
) -> bool {
    if session.flags & SessionFlags::ENDED == 0 || !sweep::is_at_rest(now, session.last_seen) {
        return false;
    }
    // The note of a packet that was not let in, which its peer's packet may look for.
    if session.flags & SessionFlags::HAIRPIN != 0 && in_grace(now, session.last_seen) {
        return false;
    }
    let (internal, external) = session.endpoints(key);
    if let Some(mapping) = mapping::behind(&external, &internal) {
        let packets = u64::from(session.packets);
        let octets = session.octets();
        if session.flags & SessionFlags::INBOUND != 0 {
            mapping.packets_in += packets;
            mapping.octets_in += octets;
        } else {
            mapping.packets_out += packets;
            mapping.octets_out += octets;
        }
    }
    let flags = session.flags;
    if SESSIONS.remove(key).is_ok() {
        host::session_ended(key, flags);
        request.sessions_removed += 1;
    }
    true
}

#[inline(never)]
fn judge_mapping(request: &mut SweepRequest, now: u32, item: &SweepItem) {
    let external = item.key.source();
    let Some(mapping) = MAPPINGS_EXT.get_ptr_mut(external) else {
        return;
    };
    // SAFETY: entries live as long as the program runs; only this program removes and reuses them at will.
    let mapping = unsafe { &mut *mapping };
    note_use(mapping, item.used);
    if keeps_mapping(request, now, &external, mapping) {
        return;
    }
    // The triggering direction first: no packet finds the external endpoint through it any more.
    let internal = mapping.endpoint(external.proto);
    if points_to(&internal, &external) && mapping::remove_internal(&internal) {
        request.mappings_removed += 1;
    }
    if MAPPINGS_EXT.remove(external).is_ok() {
        request.mappings_removed += 1;
    }
}

/// Removes what MAPPINGS_EXT does not confirm: displaced mappings and leftovers.
#[inline(never)]
fn judge_internal(request: &mut SweepRequest, now: u32, item: &SweepItem) {
    let internal = item.key.source();
    let Some(mapping) = MAPPINGS_INT.get_ptr(internal) else {
        return;
    };
    // SAFETY: entries live as long as the program runs.
    let mapping = unsafe { *mapping };
    let external = mapping.endpoint(internal.proto);
    if mapping::behind(&external, &internal).is_none()
        && !in_grace(now, mapping.last_used)
        && mapping.kind != MappingKind::Explicit as u8
        && mapping::remove_internal(&internal)
    {
        request.mappings_removed += 1;
    }
}

/// A live session keeps its remote address in PEERS as it keeps its mapping, and enters it if the filter is new.
#[inline(never)]
fn note_peer(now: u32, item: &SweepItem) {
    let (Some(session), Some(config)) = (entry(&item.key), CONFIG.get(0)) else {
        return;
    };
    let key = &item.key;
    let others = SessionFlags::INBOUND | SessionFlags::HOST | SessionFlags::ENDED;
    // A remote host may have begun it, and have had no answer.
    if session.flags & others != 0 || session.packets == 0 {
        return;
    }
    let (internal, external) = session.endpoints(key);
    let Some(mapping) = mapping::behind(&external, &internal) else {
        return;
    };
    if mapping.filter_in_force(config.filter) != Filter::AddressDependent as u8 {
        return;
    }
    let used = if key.proto == TCP {
        now
    } else {
        session.last_seen
    };
    let peer = PeerKey {
        external,
        remote: key.dst,
    };
    if let Some(noted) = PEERS.get_ptr(peer) {
        // SAFETY: the kernel frees an entry only after the program.
        let noted = unsafe { *noted };
        // By another flow to the same address.
        if noted.internal == internal && tick::age(used, noted.last_used) == 0 {
            return;
        }
    }
    filter::note_peer(used, &internal, &external, &key.destination());
}

/// Removes an entry of PEERS as of the tick at which the daemon began to read the tables, as an idle mapping.
#[inline(never)]
fn judge_peer(as_of: u32, item: &SweepItem) {
    let (Some(peer), Some(config)) = (PEERS.get_ptr(item.peer()), CONFIG.get(0)) else {
        return;
    };
    // SAFETY: the kernel frees an entry only after the program.
    let peer = unsafe { *peer };
    let held = mapping::behind(&item.peer().external, &peer.internal).is_some();
    if !held || tick::age(as_of, peer.last_used) > config.idle.udp {
        // A failure means it is gone, which is what is wanted.
        PEERS.remove(item.peer()).ok();
    }
}

#[inline(always)]
fn host_of<'a>(item: &SweepItem) -> Option<&'a mut HostValue> {
    let host = HOSTS.get_ptr_mut(item.host())?;
    // SAFETY: entries live as long as the program runs, and only this program removes them.
    Some(unsafe { &mut *host })
}

#[inline(never)]
fn end_recount(now: u32, item: &SweepItem) {
    let (Some(host), Some(config)) = (host_of(item), CONFIG.get(0)) else {
        return;
    };
    host.met_sessions = item.used;
    host.met_mappings = item.met_mappings;
    if !host::end_recount(config, now, &item.host(), host) {
        // A failure means it is gone, which is what is wanted.
        HOSTS.remove(item.host()).ok();
    }
}

#[inline(always)]
fn entry<'a>(key: &SessionKey) -> Option<&'a mut SessionValue> {
    let session = SESSIONS.get_ptr_mut(key)?;
    // SAFETY: entries live as long as the program runs; packets on other CPUs write the same fields, each whole.
    Some(unsafe { &mut *session })
}

#[inline(always)]
fn keeps_session(
    request: &SweepRequest,
    now: u32,
    key: &SessionKey,
    session: &mut SessionValue,
) -> bool {
    let (internal, external) = session.endpoints(key);
    if !is_ours(key, session) {
        return false;
    }
    let Some(mapping) = mapping::behind(&external, &internal) else {
        return false;
    };
    if !session.is_of(mapping) || !filter::recheck(now, key, session, mapping, &external) {
        return false;
    }
    if request.mode == SweepMode::Recheck as u32 {
        return true;
    }
    let Some(other) = entry(&session.reverse_key(key.proto)) else {
        // Half of a pair: the other one is being written, or is lost and this one is of no use.
        return in_grace(now, session.last_seen);
    };
    let Some(config) = CONFIG.get(0) else {
        return true;
    };
    let silence = tick::age(now, session.last_seen).min(tick::age(now, other.last_seen));
    if silence > sweep::idle_time(&config.idle, key.proto, session.shown(), other.shown()) {
        return false;
    }
    // A live session keeps its mapping (RFC 4787 REQ-6): any packet of a connection that its host takes part in, else
    // only what goes out.
    if key.proto == TCP {
        let inbound = session.flags & SessionFlags::INBOUND != 0;
        let out = if inbound { other.tcp } else { session.tcp };
        if tcp::uses_mapping(out, session.flags & SessionFlags::INVITED != 0) {
            note_use(mapping, now);
        }
    } else if session.flags & SessionFlags::INBOUND == 0 {
        note_use(mapping, session.last_seen);
    }
    true
}

/// Whether the addresses that a session stands on are still ours. While we have none, nothing is over for good: the
/// same address may come back.
#[inline(always)]
fn is_ours(key: &SessionKey, session: &SessionValue) -> bool {
    match CONFIG.get(0) {
        Some(config) => !config.serves() || owns(&Ends::of(key, session)),
        None => true,
    }
}

#[inline(always)]
fn note_use(mapping: &mut MappingValue, used: u32) {
    if tick::age(used, mapping.last_used) > 0 {
        mapping.last_used = used;
    }
}

#[inline(always)]
fn keeps_mapping(
    request: &SweepRequest,
    now: u32,
    external: &EndpointKey,
    mapping: &MappingValue,
) -> bool {
    if mapping.flags & MappingFlags::STATIC != 0 {
        return true;
    }
    let Some(config) = CONFIG.get(0) else {
        return true;
    };
    if config.serves() && !admits(&mapping.addr, &external.addr) {
        return false;
    }
    if request.mode == SweepMode::KeepOurs as u32 {
        return true;
    }
    if mapping.kind == MappingKind::Explicit as u8 {
        return !mapping.expired(now);
    }
    let none = Shown::default();
    let idle = sweep::idle_time(&config.idle, external.proto, none, none);
    tick::age(request.as_of, mapping.last_used) <= idle || in_grace(now, mapping.last_used)
}

#[inline(always)]
fn points_to(internal: &EndpointKey, external: &EndpointKey) -> bool {
    match MAPPINGS_INT.get_ptr(internal) {
        // SAFETY: entries live as long as the program runs.
        Some(inner) => unsafe { (*inner).endpoint(internal.proto) == *external },
        None => false,
    }
}

/// Whether something was written so recently that its counterpart may still be on its way.
#[inline(always)]
pub fn in_grace(now: u32, since: u32) -> bool {
    let hz = CONFIG.get(0).map_or(1000, |config| config.hz);
    tick::age(now, since) <= limits::GRACE.saturating_mul(hz)
}
