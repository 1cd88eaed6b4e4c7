//! What the core shows of itself: read only.

use std::net::{Ipv4Addr, SocketAddr};

use super::{Iwf, Mode};
use crate::mapping::Mapping;
use crate::proto::pcp_client::Ignored;
use crate::reconcile::desired::desired;
use crate::reconcile::invariants::{self, Violation};
use crate::types::{Epoch, Generation, Instant, NatEntry};

pub use crate::proto::pcp_client::Liveness as ServerState;

/// One upstream server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// Where requests go.
    pub address: SocketAddr,
    /// Whether it answers.
    pub state: ServerState,
    /// Its last epoch.
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

    /// Servers in order of preference.
    pub fn servers(&self) -> Vec<ServerStatus> {
        let addresses = self.settings.servers.iter();
        addresses
            .filter_map(|source| self.resolve(*source))
            .map(|address| ServerStatus {
                address,
                state: self
                    .client
                    .liveness(address)
                    .unwrap_or(ServerState::Unknown),
                epoch: self.client.epoch(address),
            })
            .collect()
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

    /// Every difference among the kernel's entries, the leases and the table.
    pub fn audit(&self, observed: &[NatEntry], now: Instant) -> Vec<Violation> {
        invariants::check(&self.table, observed, now)
    }
}
