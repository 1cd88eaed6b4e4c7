//! Ageing, in bulk and in process context: the daemon runs it, packets never wait for it.
//!
//! Read before editing: RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5, RFC 7857 section 7.
//!
//! A session lives while either direction is used, and while MAPPINGS_EXT holds its mapping. A dynamic mapping
//! lives by what its host sends (UDP, ICMP) or while it has an open connection (TCP). Each entry is judged by
//! the tables as they are, so nothing keeps itself alive.

use core::ffi::{c_long, c_void};

use aya_ebpf::helpers::bpf_for_each_map_elem;
use iwf_common::config::Config;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::host::{HostKey, HostValue};
use iwf_common::nat::{EndpointKey, MappingFlags, MappingKind, MappingValue};
use iwf_common::sweep::{SweepMode, SweepRequest};
use iwf_common::tcp::{self, Phase};
use iwf_common::{limits, tick};

use crate::filter;
use crate::headers::{TCP, UDP};
use crate::host;
use crate::mapping;
use crate::maps::{CONFIG, HOSTS, MAPPINGS_EXT, MAPPINGS_INT, SESSIONS, SWEEP};

/// What the callbacks share.
struct Run {
    now: u32,
    mode: u32,
    external: EndpointKey,
    sessions_left: u32,
    sessions_removed: u32,
    mappings_left: u32,
    mappings_removed: u32,
}

/// Does what SWEEP asks for. 0, or a negative error number.
#[inline(always)]
pub fn run() -> i32 {
    const EINVAL: i32 = -22;
    let Some(request) = SWEEP.get_ptr_mut(0) else {
        return EINVAL;
    };
    // SAFETY: the daemon runs one sweep at a time and reads the entry after it.
    let request: &mut SweepRequest = unsafe { &mut *request };
    let mut run = Run {
        now: crate::clock::tick(),
        mode: request.mode,
        external: request.external,
        sessions_left: 0,
        sessions_removed: 0,
        mappings_left: 0,
        mappings_removed: 0,
    };
    let shared: *mut c_void = (&raw mut run).cast();
    if run.mode == SweepMode::Age as u32 {
        for_each(
            (&raw const HOSTS).cast(),
            begin_host as *const c_void,
            shared,
        );
    }
    for_each(
        (&raw const SESSIONS).cast(),
        sweep_session as *const c_void,
        shared,
    );
    if run.mode == SweepMode::Age as u32 || run.mode == SweepMode::KeepOnlyAddress as u32 {
        for_each(
            (&raw const MAPPINGS_EXT).cast(),
            sweep_external as *const c_void,
            shared,
        );
        for_each(
            (&raw const MAPPINGS_INT).cast(),
            sweep_internal as *const c_void,
            shared,
        );
    }
    if run.mode == SweepMode::Age as u32 {
        crate::v6::sweep::run(run.now);
        for_each((&raw const HOSTS).cast(), end_host as *const c_void, shared);
    }
    request.sessions_left = run.sessions_left;
    request.sessions_removed = run.sessions_removed;
    request.mappings_left = run.mappings_left;
    request.mappings_removed = run.mappings_removed;
    0
}

/// Calls `callback` with every entry of `map`, and `shared`.
#[inline(always)]
pub fn for_each(map: *const c_void, callback: *const c_void, shared: *mut c_void) {
    // SAFETY: the map is one of ours, the callback takes its entries, `shared` outlives the call.
    unsafe { bpf_for_each_map_elem(map.cast_mut(), callback.cast_mut(), shared, 0) };
}

extern "C" fn sweep_session(
    _map: *mut c_void,
    key: *const SessionKey,
    session: *mut SessionValue,
    run: *mut Run,
) -> c_long {
    // SAFETY: the kernel passes an entry of SESSIONS. The key is copied, because the entry may be reused once it
    // is removed.
    let key = unsafe { *key };
    // SAFETY: see above.
    let session = unsafe { &mut *session };
    // SAFETY: the kernel passes what was given to `for_each`.
    let run = unsafe { &mut *run };
    if keeps_session(run, &key, session) {
        run.sessions_left += 1;
        host::met_session(&key, session.flags);
        return 0;
    }
    let flags = session.flags;
    if SESSIONS.remove(key).is_ok() {
        host::session_ended(&key, flags);
        run.sessions_removed += 1;
    }
    0
}

extern "C" fn sweep_external(
    _map: *mut c_void,
    external: *const EndpointKey,
    mapping: *mut MappingValue,
    run: *mut Run,
) -> c_long {
    // SAFETY: as above, with an entry of MAPPINGS_EXT.
    let external = unsafe { *external };
    // SAFETY: see above.
    let mapping = unsafe { *mapping };
    // SAFETY: see above.
    let run = unsafe { &mut *run };
    if keeps_mapping(run, &external, &mapping) {
        run.mappings_left += 1;
        return 0;
    }
    // The triggering direction first: no packet finds the external endpoint through it any more.
    let internal = mapping.endpoint(external.proto);
    if points_to(&internal, &external) && mapping::remove_internal(&internal) {
        run.mappings_removed += 1;
    }
    if MAPPINGS_EXT.remove(external).is_ok() {
        run.mappings_removed += 1;
    }
    0
}

/// Removes what MAPPINGS_EXT does not confirm: displaced mappings and leftovers.
extern "C" fn sweep_internal(
    _map: *mut c_void,
    internal: *const EndpointKey,
    mapping: *mut MappingValue,
    run: *mut Run,
) -> c_long {
    // SAFETY: as above, with an entry of MAPPINGS_INT.
    let internal = unsafe { *internal };
    // SAFETY: see above.
    let mapping = unsafe { *mapping };
    // SAFETY: see above.
    let run = unsafe { &mut *run };
    let external = mapping.endpoint(internal.proto);
    if mapping::behind(&external, &internal).is_none()
        && !in_grace(run.now, mapping.last_used)
        && mapping.kind != MappingKind::Explicit as u8
        && mapping::remove_internal(&internal)
    {
        run.mappings_removed += 1;
    } else {
        host::met_mapping(&internal, &mapping);
    }
    0
}

extern "C" fn begin_host(
    _map: *mut c_void,
    _key: *const HostKey,
    host: *mut HostValue,
    _run: *mut Run,
) -> c_long {
    // SAFETY: as above, with an entry of HOSTS.
    host::begin_recount(unsafe { &mut *host });
    0
}

extern "C" fn end_host(
    _map: *mut c_void,
    key: *const HostKey,
    host: *mut HostValue,
    run: *mut Run,
) -> c_long {
    // SAFETY: as above.
    let key = unsafe { *key };
    // SAFETY: see above.
    let host = unsafe { &mut *host };
    // SAFETY: see above.
    let now = unsafe { (*run).now };
    if let Some(config) = CONFIG.get(0)
        && !host::end_recount(config, now, host)
    {
        // A failure means it is gone, which is what is wanted.
        HOSTS.remove(key).ok();
    }
    0
}

#[inline(always)]
fn keeps_session(run: &Run, key: &SessionKey, session: &mut SessionValue) -> bool {
    let (internal, external) = session.endpoints(key);
    if run.mode == SweepMode::EndSessionsOf as u32 {
        return external != run.external;
    }
    if run.mode == SweepMode::KeepOnlyAddress as u32 {
        return external.addr == run.external.addr;
    }
    if run.mode == SweepMode::Recheck as u32 && external != run.external {
        return true;
    }
    let Some(mapping) = mapping::behind(&external, &internal) else {
        return false;
    };
    if !filter::recheck(run.now, key, session, mapping, &external) {
        return false;
    }
    if run.mode == SweepMode::Recheck as u32 {
        return true;
    }
    let Some(other) = SESSIONS.get_ptr(session.reverse_key(key.proto)) else {
        // Half of a pair: the other one is being written, or is lost and this one is of no use.
        return in_grace(run.now, session.last_seen);
    };
    // SAFETY: entries live as long as the program runs.
    let other = unsafe { &*other };
    let Some(config) = CONFIG.get(0) else {
        return true;
    };
    let silence = tick::age(run.now, session.last_seen).min(tick::age(run.now, other.last_seen));
    if silence > idle_time(config, key.proto, session.tcp, other.tcp) {
        return false;
    }
    refresh(run, key, session, mapping);
    true
}

/// A live session keeps its mapping (RFC 4787 REQ-6): any packet of a connection, else only what goes out.
#[inline(always)]
fn refresh(run: &Run, key: &SessionKey, session: &SessionValue, mapping: &mut MappingValue) {
    let outbound = session.flags & SessionFlags::INBOUND == 0;
    let used = if key.proto == TCP {
        run.now
    } else if outbound {
        session.last_seen
    } else {
        return;
    };
    if tick::age(used, mapping.last_used) > 0 {
        mapping.last_used = used;
    }
}

#[inline(always)]
fn keeps_mapping(run: &Run, external: &EndpointKey, mapping: &MappingValue) -> bool {
    if mapping.flags & MappingFlags::STATIC != 0 {
        return true;
    }
    if run.mode == SweepMode::KeepOnlyAddress as u32 {
        return external.addr == run.external.addr;
    }
    if mapping.kind == MappingKind::Explicit as u8 {
        return !mapping.expired(run.now);
    }
    let Some(config) = CONFIG.get(0) else {
        return true;
    };
    let idle = idle_time(config, external.proto, 0, 0);
    tick::age(run.now, mapping.last_used) <= idle || in_grace(run.now, mapping.last_used)
}

/// How long a session may be silent. A TCP mapping without a connection has the transitory time.
#[inline(always)]
fn idle_time(config: &Config, proto: u8, tcp_a: u8, tcp_b: u8) -> u32 {
    match proto {
        UDP => config.idle.udp,
        TCP => match tcp::phase(tcp_a, tcp_b) {
            Phase::Established => config.idle.tcp_established,
            Phase::Transitory => config.idle.tcp_transitory,
        },
        _ => config.idle.icmp,
    }
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
