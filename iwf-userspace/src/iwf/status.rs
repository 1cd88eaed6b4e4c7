//! What the core shows of itself: read only.

use std::net::{Ipv4Addr, SocketAddr};

use super::{Iwf, Mode, Origin};
use crate::mapping::{Mapping, Via};
use crate::proto::pcp_client::Ignored;
use crate::reconcile::desired::{Wanted, desired};
use crate::reconcile::invariants::{self, Violation};
use crate::types::{Epoch, Generation, Instant, NatEntry};
use crate::wire::pcp::Prefix64;

pub use crate::proto::pcp_client::Liveness as ServerState;

/// One address of an upstream server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// Number of the server in order of preference; its addresses have the same one.
    pub server: usize,
    /// Who named it.
    pub origin: Origin,
    /// Where requests go.
    pub address: SocketAddr,
    /// Whether it is the one of the server's addresses that is in use.
    pub in_use: bool,
    /// Whether it answers; `None` if it is not asked.
    pub state: Option<ServerState>,
    /// The protocol in which it is asked.
    pub via: Via,
    /// Its last epoch, or seconds since its start of epoch.
    pub epoch: Option<Epoch>,
}

impl Iwf {
    /// Every mapping, pending and probing ones included, by generation.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.table.iter()
    }

    /// One mapping.
    pub fn mapping(&self, generation: Generation) -> Option<&Mapping> {
        self.table.get(generation)
    }

    /// The mode in force.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The device-wide outermost external address (AMB-07), if known.
    pub fn external_address(&self) -> Option<Ipv4Addr> {
        self.external
    }

    /// Servers in order of preference, each with its addresses in the order in which they are tried.
    pub fn servers(&self) -> Vec<ServerStatus> {
        let servers = self.selection.listing().zip(1..);
        let rows = servers.flat_map(|((origin, addresses), server)| {
            addresses
                .into_iter()
                .map(move |(address, in_use)| ServerStatus {
                    server,
                    origin,
                    address,
                    in_use,
                    state: self.client.liveness(address),
                    via: self.client.via(address),
                    epoch: self.client.epoch(address),
                })
        });
        rows.collect()
    }

    /// Mappings in the table, pending and probing ones included, and how many there may be.
    pub fn table_size(&self) -> (usize, usize) {
        (self.table.len(), self.table.limits().mappings)
    }

    /// Prefixes of the NAT64 behind a server (RFC 7225); asked for where the WAN has no IPv4 address.
    pub fn prefixes64(&self, server: SocketAddr) -> &[Prefix64] {
        self.client.prefixes(server)
    }

    /// Datagrams from servers that had no effect.
    pub fn ignored_upstream(&self) -> Ignored {
        self.client.ignored()
    }

    /// Whether every deadline is in its place: what nobody finds is never done.
    #[cfg(test)]
    pub(crate) fn is_consistent(&self) -> bool {
        self.client.is_consistent() && self.statics_are_consistent()
    }

    /// Leases and mappings looked at so far: what an input costs, whatever the machine.
    #[cfg(test)]
    pub(crate) fn looks(&self) -> u64 {
        self.client.looks() + self.table.looks()
    }

    /// What the kernel should hold at `now`.
    pub fn desired(&self, now: Instant) -> Vec<NatEntry> {
        desired(&self.table, now)
    }

    /// The same, to be looked up by parts.
    pub fn wanted(&self, now: Instant) -> Wanted<'_> {
        Wanted::new(&self.table, now)
    }

    /// Every difference among the kernel's entries, the leases and the table.
    pub fn audit(&self, observed: &[NatEntry], now: Instant) -> Vec<Violation> {
        invariants::check(&self.table, observed, now)
    }
}
