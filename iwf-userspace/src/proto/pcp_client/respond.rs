//! What a server's datagram means (RFC 6887 sections 8.3, 11.4, 14.1.3, 14.2).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::epoch::Verdict;
use super::lease::{Ended, Insist, Phase, Purpose, Tuple, trace};
use super::pace::Turn;
use super::retransmit::Backoff;
use super::{Effect, LATE_GRANT, Liveness, MAX_LIFETIME, PcpClient, Speaks, asks_prefixes};
use crate::mapping::{Lease as Granted, PortChoice, Via};
use crate::types::{Epoch, ExternalEndpoint, Generation, Instant, Lifetime};
use crate::wire::pcp::{Body, MapBody, Response, ResultCode, ServerMessage};

/// For how long a grant of the right port is waited for after one of another port (IWF-046).
const MISMATCH_GRACE: Duration = Duration::from_secs(1);
/// A grant that moves the end by less is a duplicate of the one before.
const DUPLICATE: Duration = Duration::from_secs(1);

impl PcpClient {
    /// Takes in a datagram from a server.
    pub(super) fn receive(&mut self, from: SocketAddr, payload: &[u8], now: Instant) {
        if !self.servers.contains_key(&from) {
            self.ignored.stranger += 1;
            return;
        }
        match ServerMessage::decode(payload) {
            Ok(ServerMessage::Response(response)) => self.response(from, &response, now),
            Ok(ServerMessage::UnsupportedVersion {
                version,
                lifetime,
                epoch,
            }) => {
                let speaks = Speaks::OtherVersion(version);
                self.wrong_version(from, speaks, lifetime, epoch, now);
            }
            // Its clock is another protocol's.
            Ok(ServerMessage::NatPmpOnly { .. }) => {
                self.wrong_version(from, Speaks::NatPmp, None, None, now);
            }
            Err(_) => self.ignored.malformed += 1,
        }
        self.handle_timeout(now);
    }

    fn response(&mut self, from: SocketAddr, response: &Response, now: Instant) {
        match &response.body {
            Body::Announce => self.announce(from, response, now),
            Body::Map(map) => self.map(from, response, map, now),
            Body::Peer(_) | Body::Opaque { .. } => self.ignored.unmatched += 1,
        }
    }

    fn announce(&mut self, from: SocketAddr, response: &Response, now: Instant) {
        let asked = self.servers.get(&from).is_some_and(|s| s.is_probed());
        // An answer to a request may be an error; a server that speaks by itself sends a success.
        if !asked && response.result != ResultCode::Success {
            self.ignored.unmatched += 1;
            return;
        }
        let reset = self.observe_epoch(from, response.epoch, now);
        if let Some(server) = self.servers.get_mut(&from).filter(|s| s.resting) {
            // RFC 7488 section 3, item 4: what comes late does not count. One that has restarted says so.
            if !reset {
                self.ignored.unmatched += 1;
                return;
            }
            server.resting = false;
        }
        self.found(from, Speaks::Pcp);
        self.answered(from, now);
        self.note_prefixes(from, response, asked);
        if reset && !asked {
            let rng = &mut self.rng;
            if let Some(server) = self.servers.get_mut(&from) {
                server.pace.spread(now, rng);
            }
        }
    }

    fn map(&mut self, from: SocketAddr, response: &Response, map: &MapBody, now: Instant) {
        let Some(tuple) = self.tuple_of(from, response, map) else {
            self.ignored.unmatched += 1;
            return;
        };
        let lease = self.by_tuple.get(&tuple).copied();
        let lease = lease.filter(|id| {
            self.leases
                .get(id)
                .is_some_and(|held| held.nonce == map.nonce && held.last_sent.is_some())
                || self.is_adopted(*id, map)
        });
        let ended = self
            .ended
            .get(&tuple)
            .is_some_and(|held| held.nonce == map.nonce);
        if lease.is_none() && !ended {
            self.ignored.unmatched += 1;
            return;
        }
        self.observe_epoch(from, response.epoch, now);
        self.found(from, Speaks::Pcp);
        self.answered(from, now);
        if let Some(server) = self.servers.get_mut(&from) {
            server.pace.answered(match lease {
                Some(id) => Turn::Lease(id),
                None => Turn::Ended(tuple.1, tuple.2, tuple.3),
            });
        }
        let deleted = response.lifetime.0 == 0 || map.external_port.is_none();
        match (lease, response.result) {
            (Some(id), ResultCode::Success) if deleted => self.deleted(id, response.lifetime, now),
            (Some(id), ResultCode::Success) => self.granted(id, response.lifetime, map, now),
            (Some(id), error) if self.is_late_refusal(id, error, map, now) => {
                self.ignored.unmatched += 1;
            }
            (Some(id), error) => self.refused(id, error, response.lifetime, now),
            (None, ResultCode::Success) if deleted => {
                self.ended_deleted(tuple, response.lifetime, now);
            }
            (None, ResultCode::Success) => self.late_grant(tuple, response.lifetime, now),
            (None, error) => self.ended_refused(tuple, error, response.lifetime, now),
        }
    }

    /// Whether a lease of an earlier life, for which nothing has been sent yet, is what a server updates.
    fn is_adopted(&self, id: Generation, map: &MapBody) -> bool {
        self.leases
            .get(&id)
            .is_some_and(|held| held.nonce == map.nonce && held.known.is_some())
    }

    /// Runs the epoch test; on a reset puts every lease of the server among those to be asked for again.
    pub(super) fn observe_epoch(&mut self, from: SocketAddr, epoch: Epoch, now: Instant) -> bool {
        let Some(server) = self.servers.get_mut(&from) else {
            return false;
        };
        let verdict = server.clock.observe(now, epoch);
        if verdict == Verdict::Valid {
            return false;
        }
        let seen = Effect::EpochSeen {
            server: from,
            epoch,
        };
        self.effects.push_back(seen);
        if verdict == Verdict::First {
            return false;
        }
        (server.filters, server.descriptions) = (true, true);
        server.negative.clear();
        server.pace.forget_open();
        self.ask_all(from, now);
        self.effects.push_back(Effect::EpochReset(from));
        true
    }

    /// Asks for every lease of a server again, each when its turn comes.
    fn ask_all(&mut self, from: SocketAddr, now: Instant) {
        let of_server = self.leases.iter().filter(|(_, l)| l.want.server == from);
        let all: Vec<_> = of_server.map(|(id, _)| *id).collect();
        for id in all {
            let Some(lease) = self.leases.get_mut(&id) else {
                continue;
            };
            lease.lost = true;
            if !lease.is_awaited() {
                self.ask_in_turn(id, now);
            }
        }
    }

    /// Asks for a lease that was there again when its turn comes. What is asked for already keeps its terms.
    pub(super) fn ask_in_turn(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let insist = match lease.phase {
            Phase::Requesting { insist, .. } => insist,
            Phase::Bound { .. } | Phase::Releasing { .. } => Insist::Endpoint,
        };
        lease.ask_again(insist, Purpose::Restore, now);
        self.line_up(id);
    }

    pub(super) fn answered(&mut self, from: SocketAddr, now: Instant) {
        let Some(server) = self.servers.get_mut(&from) else {
            return;
        };
        server.probe = None;
        if server.liveness == Liveness::Answering {
            return;
        }
        let was_silent = server.liveness == Liveness::Silent;
        server.liveness = Liveness::Answering;
        self.effects.push_back(Effect::Liveness(from));
        if was_silent {
            if asks_prefixes(self.local, from)
                && let Some(server) = self.servers.get_mut(&from)
            {
                server.probe(now);
            }
            // Whose next try is minutes away need not wait for it.
            self.settle();
            let waiting = self.servers.get(&from).map(|s| s.unanswered.clone());
            for id in waiting.unwrap_or_default() {
                if self.leases.get(&id).is_some_and(|l| !l.is_awaited()) {
                    self.ask_in_turn(id, now);
                }
            }
        }
    }

    /// What a server speaks is known now.
    pub(super) fn found(&mut self, from: SocketAddr, speaks: Speaks) {
        if let Some(server) = self.servers.get_mut(&from)
            && server.speaks != speaks
        {
            server.speaks = speaks;
            self.effects.push_back(Effect::Speaks(from));
        }
    }

    fn granted(&mut self, id: Generation, lifetime: Lifetime, map: &MapBody, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let (IpAddr::V4(addr), Some(port)) = (map.external_addr, map.external_port) else {
            self.ignored.unmatched += 1;
            return;
        };
        let external = ExternalEndpoint { addr, port };
        let wrong_port =
            lease.want.choice == PortChoice::Exact && lease.want.external != Some(port);
        match &mut lease.phase {
            Phase::Releasing { again, .. } => {
                *again = true;
                return;
            }
            Phase::Requesting { mismatch, .. } if wrong_port => {
                mismatch.get_or_insert(now + MISMATCH_GRACE);
                return;
            }
            Phase::Bound { .. } if wrong_port => {
                self.conflict(id, now);
                return;
            }
            Phase::Requesting { .. } | Phase::Bound { .. } => {}
        }
        lease.inherited = false;
        let lifetime = lifetime.min(MAX_LIFETIME).duration();
        let expires = now + lifetime;
        let duplicate = matches!(lease.phase, Phase::Bound { asked: false, .. })
            && lease.known == Some(external)
            && lease.grant.is_some_and(|end| {
                end <= expires && expires.saturating_duration_since(end) < DUPLICATE
            });
        let server = lease.want.server;
        if !duplicate {
            (lease.known, lease.grant, lease.lost) = (Some(external), Some(expires), false);
            lease.bind(now, lifetime, &mut self.rng);
            let lease = Granted {
                server,
                via: Via::Pcp,
                nonce: lease.nonce,
                expires,
            };
            self.effects.push_back(Effect::Granted {
                id,
                lease,
                external,
            });
        }
        self.leave_line(id);
    }

    /// Goes on with what is granted.
    pub(super) fn rebind(&mut self, id: Generation, now: Instant) {
        if let Some(lease) = self.leases.get_mut(&id)
            && let Some(end) = lease.grant
        {
            lease.bind(now, end.saturating_duration_since(now), &mut self.rng);
        }
    }

    /// The server confirms a deletion. A lifetime says for how long it keeps the tuple for us (IWF-067).
    pub(super) fn deleted(&mut self, id: Generation, lifetime: Lifetime, now: Instant) {
        let Some(lease) = self.leases.get(&id) else {
            return;
        };
        let again = match lease.phase {
            Phase::Releasing { again, .. } => again,
            // Nobody has asked for it: the server says that it has gone, or means nothing by it. Asking again tells.
            Phase::Bound { asked: false, .. } => {
                self.ask_in_turn(id, now);
                return;
            }
            Phase::Bound { .. } | Phase::Requesting { .. } => return,
        };
        let tuple = lease.tuple();
        self.forget(id, now);
        if let Some(ended) = self.ended.get_mut(&tuple) {
            ended.again = again;
        }
        self.ended_deleted(tuple, lifetime, now);
        let result = Ok(());
        self.effects.push_back(Effect::Released { id, result });
    }

    fn ended_deleted(&mut self, tuple: Tuple, lifetime: Lifetime, now: Instant) {
        let Some(ended) = self.ended.get(&tuple) else {
            return;
        };
        let (nonce, again, brief) = (ended.nonce, ended.again, ended.brief);
        // A repetition of the request that overtook the deletion may still be granted.
        let held = lifetime.min(MAX_LIFETIME).duration().max(LATE_GRANT);
        let ended = Ended {
            nonce,
            until: now + held,
            delete: again.then_some((Backoff::default(), now)),
            again: false,
            in_line: false,
            brief,
        };
        self.end(tuple, ended);
        // Until then the server gives it to nobody who does not know the nonce.
        if held > LATE_GRANT && !again && !brief {
            let kept = trace(tuple, nonce, now + held);
            self.effects.push_back(Effect::Ending(kept));
        }
    }

    /// A grant nobody waits for any more: deleted (IWF-049).
    fn late_grant(&mut self, tuple: Tuple, lifetime: Lifetime, now: Instant) {
        if let Some(ended) = self.ended.get_mut(&tuple) {
            let ends = now + lifetime.min(MAX_LIFETIME).duration();
            ended.until = ended.until.max(ends).max(now + LATE_GRANT);
            match ended.delete {
                // The deletion may have been carried out before what was granted here.
                Some(_) => ended.again = true,
                None => ended.delete = Some((Backoff::default(), now)),
            }
            let (nonce, until, brief) = (ended.nonce, ended.until, ended.brief);
            if !brief {
                let ending = trace(tuple, nonce, until);
                self.effects.push_back(Effect::Ending(ending));
            }
        }
    }
}
