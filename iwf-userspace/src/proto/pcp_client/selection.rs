//! What another machine decides about the addresses of servers (RFC 7488 section 3).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::lease::{Lease, Phase};
use super::retransmit::Backoff;
use super::{Liveness, PcpClient};
use crate::types::{Generation, Instant};

/// Maximum retransmission count of a server with several addresses.
pub(super) const MRC: u32 = 4;
/// After so many questions without an answer the next ones are sent later (item 5).
pub(super) const AGAIN: Duration = Duration::from_secs(15 * 60);

impl PcpClient {
    pub(super) fn set_several(&mut self, several: &BTreeSet<SocketAddr>) {
        for (address, server) in &mut self.servers {
            server.several = several.contains(address);
        }
        for address in several {
            self.server(*address).several = true;
        }
    }

    /// Asks for a sign of life, whatever was known.
    pub(super) fn probe(&mut self, address: SocketAddr, now: Instant) {
        if let Some(server) = self.servers.get_mut(&address) {
            (server.liveness, server.resting) = (Liveness::Unknown, false);
            server.probe(now);
        }
        self.handle_timeout(now);
    }

    /// Asks no more; what comes late does not count.
    pub(super) fn rest(&mut self, address: SocketAddr) {
        if let Some(server) = self.servers.get_mut(&address) {
            server.silence();
            server.resting = true;
            server.probe = None;
        }
    }

    /// The other address leads to the same server, so nonces stay; that it still has what it granted is made sure of.
    pub(super) fn move_to(&mut self, from: SocketAddr, to: SocketAddr, now: Instant) {
        let of_server = self.leases.iter().filter(|(_, l)| l.want.server == from);
        let moving: Vec<_> = of_server.map(|(id, _)| *id).collect();
        self.server(to);
        for id in moving {
            self.leave_line(id);
            let Some(lease) = self.leases.get_mut(&id) else {
                continue;
            };
            self.by_tuple.remove(&lease.tuple());
            lease.want.server = to;
            self.by_tuple.insert(lease.tuple(), id);
            let awaited = lease.is_awaited();
            match &mut lease.phase {
                Phase::Requesting {
                    backoff,
                    at,
                    mismatch,
                    ..
                } => (*backoff, *at, *mismatch) = (Backoff::default(), now, None),
                Phase::Releasing { backoff, at, .. } => (*backoff, *at) = (Backoff::default(), now),
                Phase::Bound { .. } => {}
            }
            if !awaited {
                self.move_in_turn(id, now);
            }
        }
        let ended = self.ended.iter().map(|(tuple, _)| *tuple);
        let ended: Vec<_> = ended.filter(|tuple| tuple.0 == from).collect();
        for old in ended {
            let (_, protocol, port, behalf) = old;
            let tuple = (to, protocol, port, behalf);
            let known = self.by_tuple.contains_key(&tuple) || self.ended.contains_key(&tuple);
            if let Some(mut ended) = self.forget_ended(old).filter(|_| !known) {
                ended.in_line = false;
                if let Some((backoff, at)) = &mut ended.delete {
                    (*backoff, *at) = (Backoff::default(), now);
                }
                self.end(tuple, ended);
            }
        }
        self.handle_timeout(now);
    }

    /// Asks for what is wanted as before when its turn comes: a wish that has a purpose keeps it.
    fn move_in_turn(&mut self, id: Generation, now: Instant) {
        let is_bound = |lease: &Lease| matches!(lease.phase, Phase::Bound { .. });
        if self.leases.get(&id).is_some_and(is_bound) {
            self.ask_in_turn(id, now);
        } else {
            self.line_up(id);
        }
    }
}
