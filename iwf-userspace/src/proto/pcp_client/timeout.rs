//! What is due: transmissions, ends of leases, verdicts on silence.

use std::net::SocketAddr;

use super::lease::{Ended, Phase, Purpose, Tuple, delete_request};
use super::server::PATIENCE;
use super::{Effect, LATE_GRANT, Liveness, PcpClient};
use crate::types::{Generation, Instant, Lifetime};
use crate::wire::pcp::{Body, Request, ResultCode};

impl PcpClient {
    /// Does everything due at `now`; calling twice changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        let servers: Vec<_> = self.servers.keys().copied().collect();
        for server in servers {
            self.server_timeout(server, now);
        }
        let local = self.local;
        let up = |server| local.towards(server).is_some();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let leases: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, lease)| due(lease.next_event(up(lease.want.server))))
            .map(|(id, _)| *id)
            .collect();
        for id in leases {
            self.lease_timeout(id, now);
        }
        let ended: Vec<_> = self
            .ended
            .iter()
            .filter(|(of, ended)| ended.next_event(up(of.0)) <= now)
            .map(|(tuple, _)| *tuple)
            .collect();
        for tuple in ended {
            self.ended_timeout(tuple, now);
        }
    }

    fn server_timeout(&mut self, address: SocketAddr, now: Instant) {
        let local = self.local.towards(address);
        let (Some(local), Some(server)) = (local, self.servers.get_mut(&address)) else {
            return;
        };
        if now < server.quiet_until {
            return;
        }
        let mut fell_silent = false;
        if let Some((backoff, at)) = &mut server.probe
            && *at <= now
        {
            if backoff.sent() >= PATIENCE && server.liveness == Liveness::Unknown {
                server.liveness = Liveness::Silent;
                fell_silent = true;
            }
            *at = now + backoff.next(&mut self.rng);
            let announce = Request {
                lifetime: Lifetime(0),
                client: local,
                body: Body::Announce,
                options: Vec::new(),
            };
            self.send(address, &announce);
        }
        if fell_silent {
            self.effects.push_back(Effect::Liveness(address));
        }
        if let Some(server) = self.servers.get_mut(&address)
            && let Some(id) = server.next_to_recover(now)
            && let Some(lease) = self.leases.get_mut(&id)
        {
            match &mut lease.phase {
                Phase::Requesting { at, .. } if at.is_none() => *at = Some(now),
                Phase::Bound { .. } => lease.ask_again(super::Insist::Endpoint, now),
                // It is being asked for already, or is on its way out.
                Phase::Requesting { .. } | Phase::Releasing { .. } => {}
            }
        }
    }

    fn lease_timeout(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get(&id) else {
            return;
        };
        if lease.grant.is_some_and(|end| end <= now) {
            let released = matches!(lease.phase, Phase::Releasing { .. });
            // An answer that was lost may have made the lease longer.
            if lease.is_unanswered() {
                self.abandon(id, now);
            } else {
                self.forget(id, now);
            }
            self.effects.push_back(if released {
                let result = Ok(());
                Effect::Released { id, result }
            } else {
                Effect::Lost { id }
            });
            return;
        }
        if let Phase::Requesting {
            mismatch: Some(at), ..
        } = lease.phase
            && at <= now
        {
            self.conflict(id, now);
            return;
        }
        self.transmit(id, now);
    }

    /// The server grants another port than the one insisted on: it does not heed PREFER_FAILURE. What it
    /// granted is deleted, and the port counts as taken (IWF-047).
    pub(super) fn conflict(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get(&id) else {
            return;
        };
        let answer = matches!(
            lease.phase,
            Phase::Requesting {
                purpose: Purpose::Answer,
                ..
            }
        );
        let held = lease.grant.is_some() || lease.known.is_some();
        self.abandon(id, now);
        if answer {
            self.effects.push_back(Effect::Refused {
                id,
                result: ResultCode::CannotProvideExternal,
                lifetime: Lifetime(0),
            });
        }
        if held || !answer {
            self.effects.push_back(Effect::Lost { id });
        }
    }

    /// Sends what a lease has to send at `now` and sets the next time.
    fn transmit(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let address = lease.want.server;
        let Some(local) = self.local.towards(address) else {
            return;
        };
        let Some(server) = self.servers.get_mut(&address) else {
            return;
        };
        let quiet = (now < server.quiet_until).then_some(server.quiet_until);
        let filters = server.filters;
        let mut unanswered = 0;
        match &mut lease.phase {
            Phase::Requesting { backoff, at, .. } => {
                if at.is_none_or(|at| at > now) {
                    return;
                }
                if quiet.is_some() {
                    *at = quiet;
                    return;
                }
                unanswered = backoff.sent();
                *at = Some(now + backoff.next(&mut self.rng));
            }
            Phase::Bound { at, asked, .. } => {
                if at.is_none_or(|at| at > now) {
                    return;
                }
                if quiet.is_some() {
                    *at = quiet;
                    return;
                }
                *asked = true;
            }
            Phase::Releasing { backoff, at, .. } => {
                if *at > now {
                    return;
                }
                if let Some(quiet) = quiet {
                    *at = quiet;
                    return;
                }
                unanswered = backoff.sent();
                *at = now + backoff.next(&mut self.rng);
            }
        }
        lease.last_sent = Some(now);
        let request = if matches!(lease.phase, Phase::Releasing { .. }) {
            delete_request(local, lease.nonce, lease.want.protocol, lease.want.port)
        } else {
            lease.request(local, filters, now)
        };
        if let Phase::Bound { schedule, .. } = &lease.phase {
            let mut schedule = *schedule;
            let next = lease.next_renewal(&mut schedule, now, &mut self.rng);
            lease.phase = Phase::Bound {
                schedule,
                at: next,
                asked: true,
            };
        }
        if unanswered >= PATIENCE {
            self.fell_silent(address, now);
        }
        self.send(address, &request);
    }

    fn ended_timeout(&mut self, tuple: Tuple, now: Instant) {
        let (address, protocol, port) = tuple;
        let Some(ended) = self.ended.get_mut(&tuple) else {
            return;
        };
        if ended.until <= now {
            self.ended.remove(&tuple);
            return;
        }
        let quiet = self.servers.get(&address).map(|s| s.quiet_until);
        let local = self.local.towards(address);
        let (Some(local), Some((backoff, at))) = (local, &mut ended.delete) else {
            return;
        };
        if let Some(quiet) = quiet.filter(|quiet| *quiet > now) {
            *at = quiet;
            return;
        }
        *at = now + backoff.next(&mut self.rng);
        let request = delete_request(local, ended.nonce, protocol, port);
        self.send(address, &request);
    }

    fn fell_silent(&mut self, address: SocketAddr, now: Instant) {
        if let Some(server) = self.servers.get_mut(&address)
            && server.liveness != Liveness::Silent
        {
            server.liveness = Liveness::Silent;
            server.probe_later(now, &mut self.rng);
            self.effects.push_back(Effect::Liveness(address));
        }
    }

    /// Drops a lease that has ended. A request may be on its way still, so its tuple is remembered a while.
    pub(super) fn forget(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.remove(&id) else {
            return;
        };
        self.by_tuple.remove(&lease.tuple());
        if let Some(server) = self.servers.get_mut(&lease.want.server) {
            server.recovered(id);
        }
        let ended = Ended {
            nonce: lease.nonce,
            until: now + LATE_GRANT,
            delete: None,
            again: false,
        };
        self.end(lease.tuple(), ended, now);
    }

    fn send(&mut self, server: SocketAddr, request: &Request) {
        // Over 1100 octets is impossible: no request has more than two filters.
        if let Ok(payload) = request.encode() {
            self.effects.push_back(Effect::Send { server, payload });
        }
    }
}
