//! Fragments: the first one shows the ports, and the others follow it.
//!
//! Read before editing: RFC 8200 section 4.5, RFC 7112, RFC 5722. Nothing is changed in a fragment, so a later one
//! only needs to be known to belong to a packet whose first one was let through. One that comes before its first is
//! copied to the daemon, which sends it on when the first has come.

use aya_ebpf::bindings::BPF_ANY;
use iwf_common::config::Config;
use iwf_common::flow6::{FragmentKey6, FragmentValue6};
use iwf_common::reason::{Done, DropReason};
use iwf_common::{limits, tick};

use super::parse::{Packet6, special};
use crate::fragment::{Held, hold};
use crate::hook::Hook;
use crate::maps::FRAGMENTS6;
use crate::outcome::Outcome;
use crate::stats;

/// Remembers a first fragment that is let through.
#[inline(never)]
pub fn remember(now: u32, packet: &Packet6) {
    let value = FragmentValue6 {
        since: now,
        src_port: packet.key.src_port,
        dst_port: packet.key.dst_port,
        headers: packet.fragment_at,
        proto: packet.key.proto,
        pad: 0,
    };
    // A failure costs the packet its later fragments, which are then dropped by name.
    FRAGMENTS6.insert(&key(packet), &value, BPF_ANY.into()).ok();
}

/// Gives a later fragment the flow of its first one.
#[inline(never)]
pub fn follow(config: &Config, now: u32, packet: &mut Packet6) -> Outcome {
    let Some(first) = FRAGMENTS6.get_ptr(key(packet)) else {
        return DropReason::FragmentUnknown.into();
    };
    // SAFETY: entries live as long as the program runs.
    let first = unsafe { &*first };
    if tick::age(now, first.since) > limits::FRAGMENT_TIME6.saturating_mul(config.hz) {
        return DropReason::FragmentUnknown.into();
    }
    if packet.fragment_at < first.headers {
        return DropReason::TinyFragment.into();
    }
    packet.key.src_port = first.src_port;
    packet.key.dst_port = first.dst_port;
    packet.key.proto = first.proto;
    Outcome::NONE
}

/// The fate of a later fragment whose first one has not been seen: dropped here, while a copy waits. `flags`:
/// [`iwf_common::fragment::HeldFlags::FORWARDED`] or 0.
#[inline(always)]
pub fn wait<H: Hook>(hook: &H, config: &Config, packet: &Packet6, flags: u16) -> Outcome {
    let len = u16::try_from(packet.total_len).unwrap_or(u16::MAX);
    let fragment = Held::v6(len, packet.fragment_id, packet.fragment_at, flags);
    if hold(hook, config, &fragment) {
        DropReason::FragmentEarly.into()
    } else {
        DropReason::FragmentsFull.into()
    }
}

/// Counts a later fragment that goes on.
#[inline(always)]
pub fn count(packet: &Packet6) {
    if packet.special & special::LATER != 0 {
        stats::count(Done::FragmentForwarded);
    }
}

#[inline(always)]
fn key(packet: &Packet6) -> FragmentKey6 {
    FragmentKey6 {
        src: packet.key.src,
        dst: packet.key.dst,
        id: packet.fragment_id,
        pad: 0,
    }
}
