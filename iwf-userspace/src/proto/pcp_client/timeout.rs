//! What is due: transmissions, ends of leases, verdicts on silence.

use std::net::SocketAddr;

use super::lease::{Ended, Phase, Purpose, Tuple, delete_request};
use super::pace::Turn;
use super::retransmit::Backoff;
use super::selection::{AGAIN, MRC};
use super::server::PATIENCE;
use super::{Effect, LATE_GRANT, Liveness, PcpClient, asks_prefixes, may_send};
use crate::types::{Generation, Instant, Lifetime};
use crate::wire::pcp::{Body, PcpOption, Prefix64, Request};

impl PcpClient {
    /// Does everything due at `now`; calling twice changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        let servers: Vec<_> = self.servers.keys().copied().collect();
        for server in servers {
            self.server_timeout(server, now);
        }
        self.settle();
        for id in self.leases.due(now) {
            self.lease_timeout(id, now);
        }
        for tuple in self.ended.due(now) {
            self.ended_timeout(tuple, now);
        }
        self.settle();
    }

    fn server_timeout(&mut self, address: SocketAddr, now: Instant) {
        if !self.is_up(address) || self.quiet_until(address, now).is_some() {
            return;
        }
        self.probe_timeout(address, now);
        while let Some(server) = self.servers.get_mut(&address)
            && let Some(turn) = server.pace.pop(now)
        {
            match turn {
                Turn::Lease(id) => {
                    if let Some(lease) = self.leases.get_mut(&id) {
                        lease.in_line = false;
                    }
                    self.transmit(id, now);
                }
                Turn::Ended(protocol, port, behalf) => {
                    self.send_deletion((address, protocol, port, behalf), now);
                }
            }
        }
    }

    fn probe_timeout(&mut self, address: SocketAddr, now: Instant) {
        let local = self.local.towards(address);
        let (Some(local), Some(server)) = (local, self.servers.get_mut(&address)) else {
            return;
        };
        let asked_for = asks_prefixes(self.local, address).then_some(Prefix64::ASK);
        let mut fell_silent = false;
        if let Some((backoff, at)) = &mut server.probe
            && *at <= now
        {
            if backoff.sent() >= PATIENCE && server.liveness != Liveness::Silent {
                server.liveness = Liveness::Silent;
                server.prefixes.clear();
                fell_silent = true;
            }
            if server.several && backoff.sent() >= MRC {
                server.probe = None;
                self.effects.push_back(Effect::Spent(address));
                return;
            }
            *at = now + backoff.next(&mut self.rng);
            let announce = Request {
                lifetime: Lifetime(0),
                client: local,
                body: Body::Announce,
                options: asked_for.map(PcpOption::Prefix64).into_iter().collect(),
            };
            self.send(address, &announce);
        }
        if fell_silent {
            self.effects.push_back(Effect::Liveness(address));
        }
    }

    fn lease_timeout(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get(&id) else {
            return;
        };
        let next = lease.next_event(self.may_send(lease.tuple()));
        if next.is_none_or(|at| at > now) {
            return;
        }
        if lease.grant.is_some_and(|end| end <= now) {
            let released = matches!(lease.phase, Phase::Releasing { .. });
            // An answer that was lost may have made the lease longer.
            if lease.is_unanswered() || lease.inherited {
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
        if lease.is_awaited() {
            self.transmit(id, now);
            return;
        }
        let quiet = self.quiet_until(lease.want.server, now);
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if let Some(quiet) = quiet {
            lease.put_off(quiet);
        } else if let Some(server) = self.servers.get_mut(&lease.want.server) {
            if server.pace.take(Turn::Lease(id), now) {
                self.transmit(id, now);
            } else {
                lease.in_line = true;
            }
        }
    }

    /// Until when a server is not to be asked anything.
    fn quiet_until(&self, server: SocketAddr, now: Instant) -> Option<Instant> {
        let server = self.servers.get(&server)?;
        (now < server.quiet_until).then_some(server.quiet_until)
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
        let server = lease.want.server;
        self.abandon(id, now);
        let effects = Effect::conflict(id, server, answer, held);
        self.effects.extend(effects);
    }

    /// Sends what a lease has to send at `now` and sets the next time.
    fn transmit(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if !may_send(self.local, self.trusted, lease.tuple()) {
            return;
        }
        let address = lease.want.server;
        let Some(local) = self.local.towards(address) else {
            return;
        };
        let Some(server) = self.servers.get(&address) else {
            return;
        };
        if now < server.quiet_until {
            lease.put_off(server.quiet_until);
            return;
        }
        let (mut unanswered, mut probes) = (0, false);
        let (several, idle) = (server.several, server.probe.is_none() && !server.resting);
        match &mut lease.phase {
            Phase::Requesting { backoff, at, .. } | Phase::Releasing { backoff, at, .. } => {
                if several && backoff.sent() >= MRC {
                    (*backoff, *at) = (Backoff::default(), now + AGAIN);
                    self.effects.push_back(Effect::Spent(address));
                    return;
                }
                unanswered = backoff.sent();
                *at = now + backoff.next(&mut self.rng);
            }
            Phase::Bound { at: None, .. } => return,
            Phase::Bound { asked, .. } => {
                // Renewals are far apart: whether it is still there is found out between them.
                probes = *asked && several && idle;
                *asked = true;
            }
        }
        lease.last_sent = Some(now);
        let request = if matches!(lease.phase, Phase::Releasing { .. }) {
            delete_request(local, lease.nonce, lease.tuple())
        } else {
            lease.request(local, server, now)
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
        if probes {
            if let Some(server) = self.servers.get_mut(&address) {
                server.probe(now);
            }
            self.probe_timeout(address, now);
        }
    }

    fn ended_timeout(&mut self, tuple: Tuple, now: Instant) {
        let (address, protocol, port, behalf) = tuple;
        let quiet = self.quiet_until(address, now);
        let Some(ended) = self.ended.get_mut(&tuple) else {
            return;
        };
        if ended.until <= now {
            self.forget_ended(tuple);
            return;
        }
        let Some((_, at)) = &mut ended.delete else {
            return;
        };
        if let Some(quiet) = quiet {
            *at = quiet;
        } else if let Some(server) = self.servers.get_mut(&address) {
            if server.pace.take(Turn::Ended(protocol, port, behalf), now) {
                self.send_deletion(tuple, now);
            } else {
                ended.in_line = true;
            }
        }
    }

    fn send_deletion(&mut self, tuple: Tuple, now: Instant) {
        let (address, ..) = tuple;
        let local = self.local.towards(address).filter(|_| self.may_send(tuple));
        let Some(ended) = self.ended.get_mut(&tuple) else {
            return;
        };
        ended.in_line = false;
        let (Some(local), Some((backoff, at))) = (local, &mut ended.delete) else {
            return;
        };
        let several = self.servers.get(&address).is_some_and(|s| s.several);
        if several && backoff.sent() >= MRC {
            (*backoff, *at) = (Backoff::default(), now + AGAIN);
            self.effects.push_back(Effect::Spent(address));
            return;
        }
        *at = now + backoff.next(&mut self.rng);
        let request = delete_request(local, ended.nonce, tuple);
        self.send(address, &request);
    }

    fn fell_silent(&mut self, address: SocketAddr, now: Instant) {
        if let Some(server) = self.servers.get_mut(&address)
            && server.liveness != Liveness::Silent
        {
            server.silence();
            server.probe_later(now, &mut self.rng);
            self.effects.push_back(Effect::Liveness(address));
        }
    }

    /// Drops a lease that has ended. A request may be on its way still, so its tuple is remembered a while.
    pub(super) fn forget(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.take_out(id) else {
            return;
        };
        let ended = Ended {
            nonce: lease.nonce,
            until: now + LATE_GRANT,
            delete: None,
            again: false,
            in_line: false,
            brief: lease.want.brief,
        };
        self.end(lease.tuple(), ended);
    }

    fn send(&mut self, server: SocketAddr, request: &Request) {
        // Over 1100 octets is impossible: see `requests_leave_room_for_the_answer`.
        if let Ok(payload) = request.encode() {
            self.effects.push_back(Effect::Send { server, payload });
        }
    }
}
