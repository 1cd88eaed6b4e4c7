//! What each LAN host holds: its quotas, its external address.
//!
//! Read before editing: RFC 4787 REQ-2, RFC 7857 section 4, RFC 6888 REQ-4 and REQ-5.
//!
//! Whoever has put an entry into its table counts it ([`session_opened`], [`mapping_made`]), whoever has taken one out
//! gives it back ([`session_ended`], [`mapping_ended`]); the map's own answer says who that was. So the counts are
//! exact but for what the daemon overwrites. The sweep counts again all the same: it calls
//! [`begin_recount`] on every host, the daemon counts what it reads, and the sweep calls [`end_recount`] on every
//! host with the result. A host that nothing was added to in between is then exact whatever had happened.

use aya_ebpf::bindings::BPF_NOEXIST;
use iwf_common::config::Config;
use iwf_common::event::EventKind;
use iwf_common::flow::{SessionFlags, SessionKey};
use iwf_common::host::{HostKey, HostValue, paired};
use iwf_common::nat::{EndpointKey, MappingKind};
use iwf_common::reason::{DropReason, PassReason};
use iwf_common::{limits, tick};

use crate::maps::{CONFIG, HOSTS, PAIRED, is_external};
use crate::outcome::Outcome;
use crate::stats;

/// Whether the host at `internal` may have one more session. Two CPUs that ask at once may let it have one too many.
#[inline(always)]
pub fn may_open(now: u32, internal: &EndpointKey) -> Outcome {
    Outcome::from_slot(host_may_open(now, internal))
}

/// Whether the host at `internal` may have one more dynamic mapping; if so, `external` gets its external address.
#[inline(always)]
pub fn may_map(now: u32, internal: &EndpointKey, external: &mut EndpointKey) -> Outcome {
    Outcome::from_slot(host_may_map(now, internal, external))
}

/// [`may_open`], judged once ([`crate::far`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn host_may_open(now: u32, internal: *const EndpointKey) -> u32 {
    // SAFETY: null or whole, by its type.
    let internal = unsafe { internal.as_ref() };
    let (Some(config), Some(internal)) = (CONFIG.get(0), internal) else {
        return Outcome::from(PassReason::NotConfigured).slot();
    };
    let refused = match find_or_make(now, &HostKey::v4(internal.addr)) {
        None => EventKind::HostsFull,
        Some(host) if host.sessions >= u64::from(config.host_sessions) => EventKind::HostSessions,
        Some(_) => return Outcome::NONE.slot(),
    };
    refuse(config, now, internal, refused).slot()
}

/// [`may_map`], judged once ([`crate::far`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn host_may_map(
    now: u32,
    internal: *const EndpointKey,
    external: *mut EndpointKey,
) -> u32 {
    // SAFETY: null or whole, by its type.
    let internal = unsafe { internal.as_ref() };
    // SAFETY: as above.
    let external = unsafe { external.as_mut() };
    let (Some(config), Some(internal), Some(external)) = (CONFIG.get(0), internal, external) else {
        return Outcome::from(PassReason::NotConfigured).slot();
    };
    let refused = match find_or_make(now, &HostKey::v4(internal.addr)) {
        None => EventKind::HostsFull,
        Some(host) if host.mappings >= u64::from(config.host_mappings) => EventKind::HostMappings,
        Some(host) => {
            let addr = host_external(u32::from_ne_bytes(internal.addr)).to_ne_bytes();
            if host.external != addr {
                host.external = addr;
            }
            external.addr = addr;
            return Outcome::NONE.slot();
        }
    };
    refuse(config, now, internal, refused).slot()
}

/// An entry of SESSIONS is new. Entries that do not count do not matter.
#[inline(always)]
pub fn session_opened(key: &SessionKey, flags: u8) {
    if counts(flags) {
        change(&key.src, Change::SessionOpened);
    }
}

/// Whether a station may have one more IPv6 session. As [`may_open`].
#[inline(never)]
pub fn may_open6(config: &Config, now: u32, station: &[u8; 6]) -> Outcome {
    let Some(host) = find_or_make(now, &HostKey::station(*station)) else {
        return DropReason::HostsFull.into();
    };
    if host.sessions >= u64::from(config.host_sessions6) {
        return DropReason::HostSessions.into();
    }
    Outcome::NONE
}

/// An entry of SESSIONS6 of the direction out is new.
#[inline(never)]
pub fn session6_opened(station: &[u8; 6]) -> u32 {
    change_at(&HostKey::station(*station), Change::SessionOpened)
}

/// An entry of SESSIONS6 of the direction out has gone.
#[inline(never)]
pub fn session6_ended(station: &[u8; 6]) -> u32 {
    change_at(&HostKey::station(*station), Change::SessionEnded)
}

/// An entry of MAPPINGS_INT is new. Entries that do not count do not matter.
#[inline(always)]
pub fn mapping_made(internal: &EndpointKey, kind: u8) {
    if kind == MappingKind::Dynamic as u8 {
        change(&internal.addr, Change::MappingMade);
    }
}

/// An entry of SESSIONS has gone. Entries that do not count do not matter.
#[inline(always)]
pub fn session_ended(key: &SessionKey, flags: u8) {
    if counts(flags) {
        change(&key.src, Change::SessionEnded);
    }
}

/// An entry of MAPPINGS_INT has gone. Entries that do not count do not matter.
#[inline(always)]
pub fn mapping_ended(internal: &EndpointKey, kind: u8) {
    if kind == MappingKind::Dynamic as u8 {
        change(&internal.addr, Change::MappingEnded);
    }
}

/// Whether a session entry counts for its source: of the two of a session, the one of the direction out.
#[inline(always)]
pub const fn counts(flags: u8) -> bool {
    flags & (SessionFlags::INBOUND | SessionFlags::HOST) == 0
}

/// For the sweep, on every host before it walks the tables.
#[inline(always)]
pub fn begin_recount(host: &mut HostValue) {
    host.marked = host.changes;
}

/// For the sweep, on every host after it has walked the tables. `false`: the host has nothing and may be removed.
#[inline(always)]
pub fn end_recount(config: &Config, now: u32, host: &mut HostValue) -> bool {
    let (sessions, mappings) = (host.sessions, host.mappings);
    let met = (u64::from(host.met_sessions), u64::from(host.met_mappings));
    // The difference, not the number: what a packet adds from here on is not lost.
    // SAFETY: a reference is valid for reads; volatile keeps the order of the program text.
    if unsafe { core::ptr::read_volatile(&raw const host.changes) } == host.marked {
        if sessions != met.0 {
            add(&mut host.sessions, met.0.wrapping_sub(sessions));
        }
        if mappings != met.1 {
            add(&mut host.mappings, met.1.wrapping_sub(mappings));
        }
    }
    let recent = limits::GRACE.saturating_mul(config.hz);
    host.sessions | host.mappings != 0 || tick::age(now, host.last_used) <= recent
}

#[inline(always)]
fn find<'a>(key: &HostKey) -> Option<&'a mut HostValue> {
    let host = HOSTS.get_ptr_mut(key)?;
    // SAFETY: entries live as long as the program runs; fields are words that other CPUs may write too, and none is
    // used for memory access. An entry is removed only when it has been empty and unused for a while.
    Some(unsafe { &mut *host })
}

/// The host's entry, made if there is none; `None` if there is no room.
#[inline(always)]
fn find_or_make<'a>(now: u32, key: &HostKey) -> Option<&'a mut HostValue> {
    let host = match find(key) {
        Some(host) => host,
        None => {
            let new = HostValue {
                last_used: now,
                ..HostValue::default()
            };
            // Another CPU may have been faster; whether it was, the second look tells.
            HOSTS.insert(key, &new, BPF_NOEXIST.into()).ok();
            find(key)?
        }
    };
    if host.last_used != now {
        host.last_used = now;
    }
    Some(host)
}

/// The external address of a host (RFC 4787 REQ-2): that of its explicit mappings if it has some, else the one that
/// comes of its own address and ours. Judged once ([`crate::far`]), and on a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn host_external(host: u32) -> u32 {
    let host = host.to_ne_bytes();
    let Some(config) = CONFIG.get(0) else {
        return 0;
    };
    if let Some(addr) = PAIRED.get_ptr(host) {
        // SAFETY: entries live as long as the program runs.
        let addr = unsafe { *addr };
        if is_external(&addr) {
            return u32::from_ne_bytes(addr);
        }
    }
    let addr = paired(&HostKey::v4(host), config.external_addr, &config.pool);
    u32::from_ne_bytes(addr)
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Change {
    SessionOpened,
    SessionEnded,
    MappingMade,
    MappingEnded,
}

#[inline(never)]
fn change(addr: &[u8; 4], change: Change) -> u32 {
    change_at(&HostKey::v4(*addr), change)
}

#[inline(always)]
fn change_at(key: &HostKey, change: Change) -> u32 {
    let Some(host) = find(key) else {
        return 0;
    };
    add(&mut host.changes, 1);
    let (number, more) = match change {
        Change::SessionOpened => (&mut host.sessions, true),
        Change::SessionEnded => (&mut host.sessions, false),
        Change::MappingMade => (&mut host.mappings, true),
        Change::MappingEnded => (&mut host.mappings, false),
    };
    if more {
        add(number, 1);
        return 0;
    }
    // Never below 0: a count that is too low lets one host have more for a while, one that has wrapped around would
    // shut it out.
    if *number != 0 {
        add(number, u64::MAX);
    }
    0
}

#[inline(always)]
fn refuse(config: &Config, now: u32, internal: &EndpointKey, kind: EventKind) -> Outcome {
    stats::emit(config, now, kind, internal, &EndpointKey::default());
    match kind {
        EventKind::HostSessions => DropReason::HostSessions.into(),
        EventKind::HostMappings => DropReason::HostMappings.into(),
        _ => DropReason::HostsFull.into(),
    }
}

/// Adds for all CPUs, and does not ask what comes out: kernels before 5.12 cannot tell.
#[inline(always)]
fn add(number: &mut u64, more: u64) {
    let number: *mut u64 = number;
    // The compiler's atomics for this target can only load and store.
    // SAFETY: the address is a reference's, and the instruction reads and writes these eight octets only.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({number} + 0) += {more}",
            number = in(reg) number,
            more = in(reg) more,
            options(nostack),
        );
    }
}
