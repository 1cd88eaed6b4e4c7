//! Whom a mapping lets in without a session.
//!
//! Read before editing: RFC 4787 section 5 (REQ-8), RFC 6887 sections 11.3 and 13.3.

use aya_ebpf::bindings::BPF_ANY;
use iwf_common::config::Config;
use iwf_common::flow::{SessionFlags, SessionKey, SessionValue};
use iwf_common::nat::{
    EndpointKey, Filter, MappingFlags, MappingKind, MappingValue, PeerKey, PeerValue,
};
use iwf_common::reason::{Done, DropReason, PassReason};
use iwf_common::tick;

use crate::hairpin;
use crate::headers::UDP;
use crate::maps::{FILTERS, PEERS};
use crate::outcome::Step;
use crate::session::Flow;
use crate::stats;

/// Whether `remote` may begin a session by `mapping`, whose external endpoint is `external`.
#[inline(always)]
pub fn admit(
    config: &Config,
    now: u32,
    mapping: &MappingValue,
    external: &EndpointKey,
    remote: &EndpointKey,
) -> Step<()> {
    if mapping.expired(now) {
        return Err(DropReason::MappingExpired.into());
    }
    let filter = mapping.filter_in_force(config.filter);
    if filter == Filter::AddressDependent as u8 {
        if !has_sent_to(config, now, mapping, external, remote.addr) {
            return Err(DropReason::Unsolicited.into());
        }
    } else if filter != Filter::EndpointIndependent as u8 {
        return Err(DropReason::Unsolicited.into());
    }
    if !names(mapping, external, remote) {
        return Err(DropReason::Filtered.into());
    }
    if mapping.kind == MappingKind::Host as u8 {
        return Err(PassReason::Host.into());
    }
    // An idle dynamic mapping is over even if no sweep has come by yet. Only UDP's goes by the mapping's own
    // clock; inbound packets never begin a session of another protocol on a dynamic mapping's last hours.
    if mapping.kind == MappingKind::Dynamic as u8
        && external.proto == UDP
        && tick::age(now, mapping.last_used) > config.idle.udp
    {
        return Err(DropReason::Unsolicited.into());
    }
    Ok(())
}

/// Notes whom the host of a new flow has sent to, if its mapping's filter is about that (RFC 4787 section 5).
#[inline(always)]
pub fn note(now: u32, flow: &Flow) {
    if flow.grant.filter == Filter::AddressDependent as u8 && !flow.host {
        note_peer(now, &flow.internal, &flow.grant.external, &flow.remote);
    }
}

/// Enters a remote address, or that it is in use.
#[inline(never)]
pub fn note_peer(now: u32, internal: &EndpointKey, external: &EndpointKey, remote: &EndpointKey) {
    let key = PeerKey {
        external: *external,
        remote: remote.addr,
    };
    let value = PeerValue {
        internal: *internal,
        last_used: now,
    };
    if PEERS.insert(key, value, BPF_ANY.into()).is_err() {
        stats::count(Done::PeerLost);
    }
}

/// Whether the host of the mapping has sent to that address lately.
#[inline(always)]
fn has_sent_to(
    config: &Config,
    now: u32,
    mapping: &MappingValue,
    external: &EndpointKey,
    remote: [u8; 4],
) -> bool {
    peer(mapping, external, remote)
        .is_some_and(|last_used| tick::age(now, last_used) <= config.idle.udp)
}

/// When the host of the mapping has last sent to that address, if it is known to have.
#[inline(always)]
fn peer(mapping: &MappingValue, external: &EndpointKey, remote: [u8; 4]) -> Option<u32> {
    let key = PeerKey {
        external: *external,
        remote,
    };
    let peer = PEERS.get_ptr(key)?;
    // SAFETY: the kernel frees an entry only after the program; another may be written over it, whose owner is
    // compared.
    let peer = unsafe { *peer };
    (peer.internal == mapping.endpoint(external.proto)).then_some(peer.last_used)
}

/// Whether a session may stay now that its mapping may have changed: it gets the mapping's expiry, and is over if
/// a remote host began it that the mapping no longer admits. What the LAN host began is its own affair: a filter
/// is for what comes in unasked.
#[inline(always)]
pub fn recheck(
    now: u32,
    key: &SessionKey,
    session: &mut SessionValue,
    mapping: &MappingValue,
    external: &EndpointKey,
) -> bool {
    if mapping.expired(now) {
        return false;
    }
    if session.deadline != mapping.expires {
        session.deadline = mapping.expires;
    }
    if session.flags & SessionFlags::HAIRPIN != 0 && !hairpin::recheck(now, key, session) {
        return false;
    }
    if session.flags & SessionFlags::INVITED == 0 {
        return true;
    }
    let remote = if session.flags & SessionFlags::INBOUND != 0 {
        key.source()
    } else {
        key.destination()
    };
    // A dynamic mapping's filter is for what comes in anew; an explicit one's may have become narrower.
    if mapping.kind == MappingKind::Explicit as u8
        && mapping.filter != Filter::EndpointIndependent as u8
    {
        return mapping.filter == Filter::AddressDependent as u8
            && peer(mapping, external, remote.addr).is_some();
    }
    names(mapping, external, &remote)
}

/// Whether the mapping's remote prefixes have `remote` among them.
#[inline(always)]
fn names(mapping: &MappingValue, external: &EndpointKey, remote: &EndpointKey) -> bool {
    if mapping.flags & MappingFlags::FILTER_LIST != 0 {
        lists(external, remote) != 0
    } else {
        mapping.admits(remote.addr)
    }
}

/// The daemon writes the list before the mapping that needs it; without one nobody comes in.
#[inline(never)]
fn lists(external: &EndpointKey, remote: &EndpointKey) -> u32 {
    match FILTERS.get_ptr(external) {
        // SAFETY: entries live as long as the program runs.
        Some(list) => unsafe { (*list).admits(remote.addr, remote.port) }.into(),
        None => 0,
    }
}
