//! What each LAN host holds: its quotas, its external address.
//!
//! Read before editing: RFC 4787 REQ-2, RFC 7857 section 4, RFC 6888 REQ-4 and REQ-5.
//!
//! Whoever has put an entry into its table counts it ([`began`]), whoever has taken one out gives it back
//! ([`session_ended`], [`mapping_ended`]); the map's own answer says who that was. So the counts are exact but for what
//! the daemon overwrites. The sweep counts again all the same: it calls
//! [`begin_recount`] on every host, the daemon counts what it reads, and the sweep calls [`end_recount`] on every
//! host with the result. A host that nothing was added to in between is then exact whatever had happened. At last it
//! adds up what the hosts have, and [`add_up`] corrects the sums.

use aya_ebpf::bindings::BPF_NOEXIST;
use iwf_common::config::Config;
use iwf_common::event::EventKind;
use iwf_common::flow::{SessionFlags, SessionKey};
use iwf_common::host::{HostKey, HostValue, Totals, may_have_one_more, paired};
use iwf_common::nat::{EndpointKey, MappingKind};
use iwf_common::reason::{DropReason, PassReason};
use iwf_common::{limits, tick};

use crate::maps::{CONFIG, HOSTS, PAIRED, TOTALS, is_external};
use crate::outcome::Outcome;
use crate::stats;

/// What a flow is to get, or what has come of it.
pub struct Wants;

impl Wants {
    /// A session.
    pub const SESSION: u32 = 1;
    /// A dynamic mapping.
    pub const MAPPING: u32 = 2;
}

/// Whether the host at `internal` may have one more of each that it `wants`; if that is a mapping, `external` gets the
/// host's external address. Two CPUs that ask at once may let it have one too many.
#[inline(always)]
pub fn admit(now: u32, internal: &EndpointKey, wants: u32, external: &mut EndpointKey) -> Outcome {
    Outcome::from_slot(host_admit(now, internal, wants, external))
}

/// [`admit`], judged once ([`crate::far`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn host_admit(
    now: u32,
    internal: *const EndpointKey,
    wants: u32,
    external: *mut EndpointKey,
) -> u32 {
    // SAFETY: null or whole, by its type.
    let internal = unsafe { internal.as_ref() };
    // SAFETY: as above.
    let external = unsafe { external.as_mut() };
    let (Some(config), Some(totals), Some(internal), Some(external)) =
        (CONFIG.get(0), TOTALS.get(0), internal, external)
    else {
        return Outcome::from(PassReason::NotConfigured).slot();
    };
    let Some(host) = find_or_make(now, &HostKey::v4(internal.addr)) else {
        return refuse(config, now, internal, EventKind::HostsFull).slot();
    };
    if wants & Wants::MAPPING != 0 {
        let (share, room) = (config.host_mappings, config.room_mappings);
        if !may_have_one_more(host.mappings, share, totals.mappings, room) {
            return refuse(config, now, internal, EventKind::HostMappings).slot();
        }
        let addr = host_external(u32::from_ne_bytes(internal.addr)).to_ne_bytes();
        if host.external != addr {
            host.external = addr;
        }
        external.addr = addr;
    }
    let (share, room) = (config.host_sessions, config.room_sessions);
    if wants & Wants::SESSION != 0
        && !may_have_one_more(host.sessions, share, totals.sessions, room)
    {
        return refuse(config, now, internal, EventKind::HostSessions).slot();
    }
    Outcome::NONE.slot()
}

/// The host at `addr` has one more of each of these.
#[inline(never)]
pub fn began(addr: &[u8; 4], what: u32) -> u32 {
    let (Some(host), Some(totals)) = (find(&HostKey::v4(*addr)), totals()) else {
        return 0;
    };
    step(host, totals);
    if what & Wants::SESSION != 0 {
        add(&mut host.sessions, 1);
        add(&mut totals.sessions, 1);
    }
    if what & Wants::MAPPING != 0 {
        add(&mut host.mappings, 1);
        add(&mut totals.mappings, 1);
    }
    0
}

/// The host at `addr` has one less of this.
#[inline(never)]
fn ended(addr: &[u8; 4], what: u32) -> u32 {
    let (Some(host), Some(totals)) = (find(&HostKey::v4(*addr)), totals()) else {
        return 0;
    };
    step(host, totals);
    if what == Wants::SESSION {
        take(&mut host.sessions, &mut totals.sessions);
    } else {
        take(&mut host.mappings, &mut totals.mappings);
    }
    0
}

/// Whether a station may have one more IPv6 session. As [`admit`].
#[inline(never)]
pub fn admit6(config: &Config, now: u32, station: &[u8; 6]) -> Outcome {
    let Some(host) = find_or_make(now, &HostKey::station(*station)) else {
        return DropReason::HostsFull.into();
    };
    let total = TOTALS.get(0).map_or(0, |totals| totals.sessions6);
    let (share, room) = (config.host_sessions6, config.room_sessions6);
    if !may_have_one_more(host.sessions, share, total, room) {
        return DropReason::HostSessions.into();
    }
    Outcome::NONE
}

/// An entry of SESSIONS6 of the direction out is new.
#[inline(never)]
pub fn session6_opened(station: &[u8; 6]) -> u32 {
    let (Some(host), Some(totals)) = (find(&HostKey::station(*station)), totals()) else {
        return 0;
    };
    step(host, totals);
    add(&mut host.sessions, 1);
    add(&mut totals.sessions6, 1);
    0
}

/// An entry of SESSIONS6 of the direction out has gone.
#[inline(never)]
pub fn session6_ended(station: &[u8; 6]) -> u32 {
    let (Some(host), Some(totals)) = (find(&HostKey::station(*station)), totals()) else {
        return 0;
    };
    step(host, totals);
    take(&mut host.sessions, &mut totals.sessions6);
    0
}

/// An entry of SESSIONS has gone. Entries that do not count do not matter.
#[inline(always)]
pub fn session_ended(key: &SessionKey, flags: u8) {
    if counts(flags) {
        ended(&key.src, Wants::SESSION);
    }
}

/// An entry of MAPPINGS_INT has gone. Entries that do not count do not matter.
#[inline(always)]
pub fn mapping_ended(internal: &EndpointKey, kind: u8) {
    if kind == MappingKind::Dynamic as u8 {
        ended(&internal.addr, Wants::MAPPING);
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
pub fn end_recount(config: &Config, now: u32, key: &HostKey, host: &mut HostValue) -> bool {
    // The difference, not the number: what a packet adds from here on is not lost.
    // SAFETY: a reference is valid for reads; volatile keeps the order of the program text.
    if unsafe { core::ptr::read_volatile(&raw const host.changes) } == host.marked
        && let Some(totals) = totals()
    {
        let total = if key.is_station() {
            &mut totals.sessions6
        } else {
            &mut totals.sessions
        };
        correct(&mut host.sessions, host.met_sessions, total);
        correct(&mut host.mappings, host.met_mappings, &mut totals.mappings);
    }
    let recent = limits::GRACE.saturating_mul(config.hz);
    host.sessions | host.mappings != 0 || tick::age(now, host.last_used) <= recent
}

/// For the sweep: adds what [`Totals`] lacks, modulo 2^64. The difference, not the number, as above.
#[inline(never)]
pub fn add_up(lacking: &Totals) -> u32 {
    if let Some(totals) = totals() {
        add(&mut totals.sessions, lacking.sessions);
        add(&mut totals.mappings, lacking.mappings);
        add(&mut totals.sessions6, lacking.sessions6);
    }
    0
}

/// Before any number changes: who has read the same step before and after reads numbers that belong together.
#[inline(always)]
fn step(host: &mut HostValue, totals: &mut Totals) {
    add(&mut totals.changes, 1);
    add(&mut host.changes, 1);
}

#[inline(always)]
fn correct(number: &mut u64, met: u32, total: &mut u64) {
    let difference = u64::from(met).wrapping_sub(*number);
    if difference != 0 {
        add(number, difference);
        add(total, difference);
    }
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
    if config.is_routed() {
        return u32::from_ne_bytes(host);
    }
    if !config.has_pool() {
        return u32::from_ne_bytes(config.external_addr);
    }
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

/// Subtracts one from both. Never below 0: a count that is too low lets one host have more for a while, one that has
/// wrapped around would shut it out.
#[inline(always)]
fn take(number: &mut u64, total: &mut u64) {
    if *number != 0 {
        add(number, u64::MAX);
        add(total, u64::MAX);
    }
}

#[inline(always)]
fn totals<'a>() -> Option<&'a mut Totals> {
    let totals = TOTALS.get_ptr_mut(0)?;
    // SAFETY: an array's entry stays; other CPUs add to its fields as well.
    Some(unsafe { &mut *totals })
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
