//! Mappings by a range of their external ports.

use std::net::Ipv4Addr;

use super::entries::{Seen, is_shown};
use crate::mapping::Mapping;
use crate::mapping::table::Table;
use crate::types::{Instant, Protocol, RemotePeer};
use crate::wire::port_listing::{self, PortMappingEntry};

/// Mappings in one list at most, so that its size has a bound; whoever wants more asks on from the last port.
pub const MAX_LISTED: usize = 4096;

/// A range of external ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first one.
    pub first: u16,
    /// The last one, not before the first.
    pub last: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// NewManage: the caller wants those of others as well. It gets them if the policy lets it (IGD-035).
    pub of_others: bool,
}

/// The mappings in a range that a caller may have, by external port.
pub fn in_range<'a>(
    table: &'a Table,
    seen: Seen<'_>,
    range: &PortRange,
    now: Instant,
) -> Vec<&'a Mapping> {
    let port = |mapping: &Mapping| mapping.claim.port.map_or(0, |port| port.get());
    let wanted = |mapping: &&Mapping| {
        mapping.protocol == range.protocol
            && (range.first..=range.last).contains(&port(mapping))
            && is_shown(mapping, seen, now)
    };
    let mut found: Vec<_> = if range.of_others && seen.policy.sees_others(seen.caller.rights) {
        table.iter().filter(wanted).collect()
    } else {
        // Own mappings are all it may have, and they are few.
        table.at_host(seen.caller.addr).filter(wanted).collect()
    };
    found.sort_unstable_by_key(|mapping| port(mapping));
    found
}

/// The out argument of GetListOfPortMappings.
pub fn listing(mappings: &[&Mapping], now: Instant) -> (&'static str, String) {
    let entries = mappings.iter().map(|mapping| PortMappingEntry {
        remote_host: remote_host(mapping.remote),
        external_port: mapping.claim.port.map_or(0, |port| port.get()),
        protocol: mapping.protocol.to_string(),
        internal_port: mapping.internal.port.get(),
        internal_client: mapping.internal.addr,
        description: &mapping.description,
        lease_time: mapping.lease_left(now),
    });
    ("NewPortListing", port_listing::encode(entries))
}

/// What the configuration says beyond one host is shown as everybody: RemoteHost cannot say it.
fn remote_host(remote: RemotePeer) -> Option<Ipv4Addr> {
    match remote {
        RemotePeer::Host(addr) => Some(addr),
        RemotePeer::Any
        | RemotePeer::List(_)
        | RemotePeer::SentToHost
        | RemotePeer::SentToEndpoint => None,
    }
}
