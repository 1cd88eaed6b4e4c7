//! Finding and making mappings.
//!
//! Read before editing: RFC 4787 sections 4 and 5 (REQ-1, REQ-3), RFC 5382 REQ-1, RFC 7857 section 9.
//!
//! MAPPINGS_EXT decides: whoever inserts an external endpoint there first, with NOEXIST, has it. MAPPINGS_INT
//! is written after, also with NOEXIST; a CPU that comes second gives its claim back and uses the first one's.
//! So two CPUs never hand out one external endpoint twice, and one internal endpoint never gets two.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_get_prandom_u32;
use iwf_common::config::Config;
use iwf_common::event::EventKind;
use iwf_common::nat::{EndpointKey, Filter, MappingFlags, MappingKind, MappingValue};
use iwf_common::port::{PROBES, PortRange};
use iwf_common::reason::{Done, DropReason, PassReason};

use crate::headers::{ICMP, UDP};
use crate::host::{self, Wants};
use crate::maps::{CONFIG, MAPPINGS_EXT, MAPPINGS_INT, admits};
use crate::outcome::{Outcome, Step};
use crate::stats;

const EEXIST: i32 = -17;

/// What a session needs to know of its mapping.
#[derive(Clone, Copy)]
pub struct Grant {
    /// The external endpoint.
    pub external: EndpointKey,
    /// When an explicit mapping ends; 0: not by itself.
    pub deadline: u32,
    /// Asked for, not made by a packet.
    pub explicit: bool,
    /// [`Filter`] in force.
    pub filter: u8,
    /// Just made, and not counted for its host yet: whoever counts the session counts it too.
    pub made: bool,
}

impl Grant {
    /// Before one is found.
    pub const NONE: Self = Self {
        external: EndpointKey::new([0; 4], [0; 2], 0),
        deadline: 0,
        explicit: false,
        filter: 0,
        made: false,
    };
}

/// The mapping of an internal endpoint that begins a session, made if there is none, if its host may have both.
///
/// Each step is a function of its own, so that its stack is free again for the next: 512 octets have to do for a
/// whole chain of calls.
#[inline(always)]
pub fn find_or_make(
    now: u32,
    internal: &EndpointKey,
    kind: MappingKind,
    grant: &mut Grant,
) -> Step<()> {
    Outcome::from_slot(mapping_find(now, internal, grant)).step()?;
    let mut wants = Wants::SESSION;
    let found = grant.external.proto != 0;
    if !found {
        grant.external = *internal;
        wants |= Wants::MAPPING;
    }
    if kind != MappingKind::Host {
        host::admit(now, internal, wants, &mut grant.external).step()?;
    }
    if found {
        return Ok(());
    }
    Outcome::from_slot(mapping_make(now, internal, kind as u32, grant)).step()
}

/// [`find`], judged once ([`crate::far`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mapping_find(now: u32, internal: *const EndpointKey, grant: *mut Grant) -> u32 {
    // SAFETY: null or whole, by its type.
    let internal = unsafe { internal.as_ref() };
    // SAFETY: as above.
    let grant = unsafe { grant.as_mut() };
    match (CONFIG.get(0), internal, grant) {
        (Some(config), Some(internal), Some(grant)) => {
            // Kernels before 6.2 take no key that is in a caller's frame.
            let internal = *internal;
            find(config, now, &internal, grant).slot()
        }
        _ => Outcome::from(PassReason::NotConfigured).slot(),
    }
}

/// [`make`], judged once ([`crate::far`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mapping_make(
    now: u32,
    internal: *const EndpointKey,
    kind: u32,
    grant: *mut Grant,
) -> u32 {
    let kind = if kind == MappingKind::Host as u32 {
        MappingKind::Host
    } else {
        MappingKind::Dynamic
    };
    // SAFETY: null or whole, by its type.
    let internal = unsafe { internal.as_ref() };
    // SAFETY: as above.
    let grant = unsafe { grant.as_mut() };
    match (CONFIG.get(0), internal, grant) {
        (Some(config), Some(internal), Some(grant)) => {
            // As in `mapping_find`.
            let internal = *internal;
            make(config, now, &internal, kind, grant).slot()
        }
        _ => Outcome::from(PassReason::NotConfigured).slot(),
    }
}

/// Makes a mapping at the address of `grant`'s external endpoint.
#[inline(always)]
fn make(
    config: &Config,
    now: u32,
    internal: &EndpointKey,
    kind: MappingKind,
    grant: &mut Grant,
) -> Outcome {
    let made = claim(config, now, internal, grant.external, kind)
        .and_then(|claim| publish(config, now, internal, claim, kind));
    match made {
        Ok((external, new)) => {
            grant.external = external;
            grant.made = new && kind == MappingKind::Dynamic;
            grant.filter = filter_of(config, kind);
            Outcome::NONE
        }
        Err(outcome) => outcome,
    }
}

/// The entry of MAPPINGS_EXT for `external`, if `internal` is behind it.
#[inline(always)]
pub fn behind<'a>(external: &EndpointKey, internal: &EndpointKey) -> Option<&'a mut MappingValue> {
    let mapping = MAPPINGS_EXT.get_ptr_mut(external)?;
    // SAFETY: entries live as long as the program runs; fields are words that other CPUs may write too, and
    // none is used for memory access.
    let mapping = unsafe { &mut *mapping };
    (mapping.endpoint(external.proto) == *internal).then_some(mapping)
}

/// An explicit mapping governs what its host sends until it expires (RFC 6887 section 11); a dynamic one is
/// good while MAPPINGS_EXT agrees. What lost its external endpoint, or is over, is removed. `grant` stays as it is if
/// there is none.
#[inline(always)]
fn find(config: &Config, now: u32, internal: &EndpointKey, grant: &mut Grant) -> Outcome {
    let Some(inner) = MAPPINGS_INT.get_ptr(internal) else {
        return Outcome::NONE;
    };
    // SAFETY: entries live as long as the program runs.
    let external = unsafe { (*inner).endpoint(internal.proto) };
    let held = behind(&external, internal);
    if let Some(mapping) = held {
        if admits(&internal.addr, &external.addr) && !mapping.expired(now) {
            mapping.last_used = now;
            *grant = Grant {
                external,
                deadline: mapping.expires,
                explicit: mapping.kind == MappingKind::Explicit as u8,
                filter: mapping.filter_in_force(config.filter),
                made: false,
            };
            return Outcome::NONE;
        }
        // Over, whether the sweep has come by or not: its host is not kept waiting. The triggering direction first,
        // as everywhere.
        remove_internal(internal);
        release(&external, internal);
        return Outcome::NONE;
    }
    // Nothing to do about a failure: somebody else has removed it.
    if remove_internal(internal) {
        stats::emit(
            config,
            now,
            EventKind::MappingDisplaced,
            internal,
            &external,
        );
    }
    Outcome::NONE
}

/// Takes the entry of MAPPINGS_INT out and its host's count with it; whether it was there.
#[inline(always)]
pub fn remove_internal(internal: &EndpointKey) -> bool {
    let kind = match MAPPINGS_INT.get_ptr(internal) {
        // SAFETY: entries live as long as the program runs.
        Some(inner) => unsafe { (*inner).kind },
        None => return false,
    };
    let removed = MAPPINGS_INT.remove(internal).is_ok();
    if removed {
        host::mapping_ended(internal, kind);
    }
    removed
}

/// An external endpoint that is taken.
struct Claim {
    external: EndpointKey,
    /// By this CPU, which may give it back. Else by another that makes the same mapping.
    own: bool,
}

/// Takes a free external endpoint at the address of `external`: the internal port if it may be kept, else a random one
/// of its class (RFC 4787 REQ-3a), for UDP of its parity as long as such are found (REQ-4). Identifier 0 is no LAN host's
/// outside: a query with it would look like the answer.
#[inline(always)]
fn claim(
    config: &Config,
    now: u32,
    internal: &EndpointKey,
    external: EndpointKey,
    kind: MappingKind,
) -> Step<Claim> {
    let wanted = u16::from_be_bytes(internal.port);
    let mut search = Search {
        ports: config.ports,
        wanted,
        proto: internal.proto,
        external,
        value: MappingValue {
            addr: internal.addr,
            port: internal.port,
            kind: kind as u8,
            filter: filter_of(config, kind),
            last_used: now,
            ..MappingValue::default()
        },
    };
    let any = (internal.proto == ICMP && wanted != 0) || config.is_routed();
    if any || kind == MappingKind::Host || config.ports.keeps(wanted) {
        match MAPPINGS_EXT.insert(&search.external, &search.value, BPF_NOEXIST.into()) {
            Ok(()) => {
                return Ok(Claim {
                    external,
                    own: true,
                });
            }
            // The host's already: another CPU is between its two insertions, or half of a mapping is left.
            Err(EEXIST) if behind(&search.external, internal).is_some() => {
                return Ok(Claim {
                    external,
                    own: false,
                });
            }
            Err(EEXIST) if !config.is_routed() => {}
            Err(_) => return Err(full(config, now, internal)),
        }
    }
    for turn in 0..PROBES {
        match search.probe(turn) {
            Ok(()) => {
                return Ok(Claim {
                    external: search.external,
                    own: true,
                });
            }
            Err(EEXIST) => {}
            Err(_) => return Err(full(config, now, internal)),
        }
    }
    let none = EndpointKey::default();
    stats::emit(config, now, EventKind::PortsExhausted, internal, &none);
    Err(DropReason::PortsExhausted.into())
}

/// A search for a free external port.
struct Search {
    ports: PortRange,
    wanted: u16,
    proto: u8,
    external: EndpointKey,
    value: MappingValue,
}

impl Search {
    /// Tries one random port. [`EEXIST`]: it is taken.
    #[inline(always)]
    fn probe(&mut self, turn: u32) -> Result<(), i32> {
        // SAFETY: the helper has no preconditions.
        let random = unsafe { bpf_get_prandom_u32() };
        let port = match self.proto {
            ICMP => Some((random >> 16) as u16).filter(|id| *id != 0),
            // A port of the other parity is better than none.
            UDP => {
                let odd = (self.wanted & 1 == 1) ^ (turn >= PROBES / 2);
                self.ports.pick_like(self.wanted, random, odd)
            }
            _ => self.ports.pick(self.wanted, random),
        };
        let port = port.ok_or(EEXIST)?;
        self.external.port = port.to_be_bytes();
        MAPPINGS_EXT.insert(&self.external, &self.value, BPF_NOEXIST.into())
    }
}

/// Binds the internal endpoint to the claimed external one, or to the one another CPU has bound it to since; whether it
/// was this one.
#[inline(always)]
fn publish(
    config: &Config,
    now: u32,
    internal: &EndpointKey,
    claim: Claim,
    kind: MappingKind,
) -> Step<(EndpointKey, bool)> {
    let external = claim.external;
    let value = MappingValue {
        addr: external.addr,
        port: external.port,
        kind: kind as u8,
        filter: filter_of(config, kind),
        last_used: now,
        ..MappingValue::default()
    };
    match MAPPINGS_INT.insert(internal, &value, BPF_NOEXIST.into()) {
        Ok(()) => {
            stats::count(Done::MappingCreated);
            stats::emit(config, now, EventKind::MappingCreated, internal, &external);
            Ok((external, true))
        }
        Err(EEXIST) => {
            let Some(winner) = MAPPINGS_INT.get_ptr(internal) else {
                // Gone again at once; the claim stands and the next packet completes it.
                return Ok((external, false));
            };
            // SAFETY: entries live as long as the program runs.
            let winner = unsafe { (*winner).endpoint(internal.proto) };
            if winner != external && claim.own {
                release(&external, internal);
                stats::count(Done::ClaimReturned);
            }
            Ok((winner, false))
        }
        Err(_) => {
            if claim.own {
                release(&external, internal);
            }
            Err(full(config, now, internal))
        }
    }
}

/// The CPE's own flows never let strangers in, however open the LAN's are: what listens says so in a static entry.
#[inline(always)]
const fn filter_of(config: &Config, kind: MappingKind) -> u8 {
    match kind {
        MappingKind::Host => Filter::AddressAndPortDependent as u8,
        MappingKind::Dynamic | MappingKind::Explicit => config.filter,
    }
}

/// Gives the external endpoint of `internal` back. Not if the daemon has given it to another since.
#[inline(always)]
fn release(external: &EndpointKey, internal: &EndpointKey) {
    if behind(external, internal).is_some() {
        // A failure means it is gone, which is what is wanted.
        MAPPINGS_EXT.remove(external).ok();
    }
}

#[inline(always)]
fn full(config: &Config, now: u32, internal: &EndpointKey) -> Outcome {
    stats::emit(
        config,
        now,
        EventKind::MappingsFull,
        internal,
        &EndpointKey::default(),
    );
    DropReason::MappingsFull.into()
}

/// Whether `endpoint` is a service of the CPE that the daemon has entered.
#[inline(always)]
pub fn is_static_service(endpoint: &EndpointKey) -> bool {
    behind(endpoint, endpoint).is_some_and(|mapping| {
        mapping.flags & MappingFlags::STATIC != 0
            && mapping.filter == Filter::EndpointIndependent as u8
    })
}
