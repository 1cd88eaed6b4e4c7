//! The IPv6 filter: nothing is translated, outbound opens, and only what belongs to something comes in.
//!
//! Read before editing: RFC 6092, RFC 7084 section 4.5, RFC 4890, RFC 8200 section 4.
//!
//! A packet whose next header is UDP, TCP or an ICMPv6 echo takes the short way: parse, one lookup, redirect.
//! Everything else (extension headers, fragments, ICMPv6 errors) is [`parse::Packet6::special`] and is judged
//! apart from it.

use iwf_common::config::{Config, ConfigFlags};
use iwf_common::flow6::{Scope, SessionKey6, SessionValue6, scope};
use iwf_common::reason::{DropReason, PassReason};

use crate::cursor::Cursor;
use crate::headers::set_macs;
use crate::maps::{CONFIG, in_lan6 as in_lan};
use crate::outcome::{Outcome, Step, Verdict};
use parse::{L3, Packet6, ipv6};

pub mod egress;
mod fragment;
mod icmp;
pub mod inbound;
pub mod next_hop;
pub mod outbound;
pub mod parse;
mod pinhole;
mod session;
pub mod sweep;

/// IANA protocol numbers beside those of [`crate::headers`].
mod proto {
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv4 in IPv6 (RFC 2473).
    pub const IPV4: u8 = 4;
    pub const DCCP: u8 = 33;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ESP: u8 = 50;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const UDP_LITE: u8 = 136;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
    pub const SCTP: u8 = 132;
}

/// Whether the filter is on (RFC 6092 REC-49).
#[inline(always)]
const fn is_on(config: &Config) -> bool {
    config.flags & ConfigFlags::IPV6_FILTER != 0
}

/// Which addresses a packet has. One number, so that the verifier has four ways to follow and not sixteen.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
struct Addresses(u32);

impl Addresses {
    /// Both may cross the WAN.
    const GLOBAL: Self = Self(0);
    /// One is of the link, or it is to a group: never forwarded.
    const LOCAL: Self = Self(1);
    /// One must not be seen outside.
    const FORBIDDEN: Self = Self(2);
    /// From a group.
    const FROM_GROUP: Self = Self(3);
}

/// Judges both addresses of a packet. A function of its own for the same reason as [`in_lan`].
#[inline(never)]
fn addresses(key: &SessionKey6) -> Addresses {
    let (from, to) = (scope(&key.src), scope(&key.dst));
    if matches!(from, Scope::Multicast) {
        Addresses::FROM_GROUP
    } else if matches!(to, Scope::Multicast | Scope::Link) || matches!(from, Scope::Link) {
        Addresses::LOCAL
    } else if matches!(from, Scope::Forbidden) || matches!(to, Scope::Forbidden) {
        Addresses::FORBIDDEN
    } else {
        Addresses::GLOBAL
    }
}

/// The fate of a packet without a flow: one that would be dropped passes while the filter is off.
#[inline(always)]
fn unparsed(outcome: Outcome) -> Outcome {
    let on = CONFIG.get(0).is_some_and(is_on);
    if !on && matches!(outcome.verdict(), Verdict::Drop) {
        return PassReason::Ipv6Unfiltered.into();
    }
    outcome
}

/// Takes one from the hop limit and sets the MAC addresses. No checksum covers either.
#[inline(always)]
fn rewrite(cursor: &Cursor, packet: &Packet6, session: &SessionValue6) -> Step<()> {
    let frame = cursor
        .at::<{ L3 + ipv6::LEN }>(0)
        .ok_or(DropReason::RewriteFailed)?;
    // SAFETY: `at` proved the bounds of both headers; nothing else holds a pointer into the packet.
    unsafe { *frame.add(L3 + ipv6::HOP_LIMIT) = packet.hop_limit.wrapping_sub(1) };
    // SAFETY: see above.
    unsafe { set_macs(frame, &session.next_hop_mac, &session.egress_mac) };
    Ok(())
}
