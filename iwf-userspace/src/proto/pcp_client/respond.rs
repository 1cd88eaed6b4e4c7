//! What a server's datagram means (RFC 6887 sections 8.3, 11.4, 14.1.3, 14.2).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::epoch::Verdict;
use super::lease::{Ended, Insist, Lease, Phase, Purpose, Tuple, trace};
use super::matching::Leaving;
use super::negative::{Question, hold};
use super::pace::Turn;
use super::renewal::MIN_GAP;
use super::retransmit::Backoff;
use super::server::Server;
use super::{Effect, LATE_GRANT, Liveness, MAX_LIFETIME, PcpClient, Speaks, asks_prefixes};
use crate::mapping::{Lease as Granted, PortChoice, Via};
use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Generation, Instant, Lifetime, Protocol,
};
use crate::wire::pcp::{Body, MapBody, Response, ResultClass, ResultCode, ServerMessage};

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
    fn observe_epoch(&mut self, from: SocketAddr, epoch: Epoch, now: Instant) -> bool {
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

    fn answered(&mut self, from: SocketAddr, now: Instant) {
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
    fn found(&mut self, from: SocketAddr, speaks: Speaks) {
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

    fn refused(&mut self, id: Generation, error: ResultCode, lifetime: Lifetime, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let Some(server) = self.servers.get_mut(&lease.want.server) else {
            return;
        };
        if let Some(drop) = to_drop(lease, server, error) {
            match drop {
                Dropped::Description => server.descriptions = false,
                Dropped::Filter => {
                    // An unknown option will be unknown again; too many peers concerns this mapping only.
                    if error == ResultCode::UnsuppOption {
                        server.filters = false;
                    }
                    lease.unfiltered = true;
                }
            }
            match &mut lease.phase {
                Phase::Requesting { backoff, at, .. } => {
                    (*backoff, *at) = (Backoff::default(), now);
                }
                Phase::Bound { at, .. } => *at = Some(now + MIN_GAP),
                Phase::Releasing { .. } => {}
            }
            return;
        }
        match &lease.phase {
            // There is nothing to delete any more, which some servers call an error.
            Phase::Releasing { .. } if lease.lost && is_absence(error) => {
                self.deleted(id, Lifetime(0), now);
            }
            // Nothing was granted that could go on. It is deleted in the background, in case it was all the same.
            Phase::Releasing { .. } if lease.grant.is_none() => {
                self.abandon(id, now);
                let result = Ok(());
                self.effects.push_back(Effect::Released { id, result });
            }
            Phase::Releasing { .. } => {
                if error == ResultCode::NoResources {
                    server.quiet_until = now + hold(error, lifetime);
                }
                self.rebind(id, now);
                let result = Err(error);
                self.effects.push_back(Effect::Released { id, result });
            }
            Phase::Requesting {
                insist, purpose, ..
            } => {
                let (insist, purpose) = (*insist, *purpose);
                self.request_refused(id, insist, purpose, error, lifetime, now);
            }
            Phase::Bound { asked, .. } => {
                let asked = *asked;
                self.renewal_refused(id, asked, error, lifetime, now);
            }
        }
    }

    fn request_refused(
        &mut self,
        id: Generation,
        insist: Insist,
        purpose: Purpose,
        error: ResultCode,
        lifetime: Lifetime,
        now: Instant,
    ) {
        let leaving = self.is_leaving(id, now);
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let conflict = error == ResultCode::CannotProvideExternal;
        // RFC 6887 section 7.4: it is said to whoever insists. This is about what was asked for before.
        let late = |insisted: Instant| now <= insisted + LATE_GRANT;
        if conflict && insist == Insist::Nothing && lease.insisted.is_some_and(late) {
            self.ignored.unmatched += 1;
            return;
        }
        let address = lease.want.server;
        // AMB-16, AMB-29: the endpoint as it was, then the port on any address, or for AddAny entries whatever
        // there is.
        let weaker = match (insist, lease.want.choice) {
            (Insist::Endpoint, PortChoice::Exact) => Some(Insist::Port),
            (Insist::Endpoint | Insist::Port, PortChoice::Any) => Some(Insist::Nothing),
            (Insist::Port, PortChoice::Exact) | (Insist::Nothing, _) => None,
        };
        // What is in the way may be, or may have been, our own.
        let wait = match (leaving, purpose) {
            (Some(Leaving::Soon), _) => Some(MIN_GAP),
            (Some(Leaving::Later), Purpose::Restore) => Some(hold(error, lifetime).max(MIN_GAP)),
            (Some(Leaving::Later), Purpose::Answer) | (None, _) => None,
        };
        if conflict && let Some(wait) = wait {
            lease.ask_again(Insist::Endpoint, purpose, now + wait);
            return;
        }
        if conflict && let Some(weaker) = weaker {
            lease.phase = Phase::Requesting {
                insist: weaker,
                purpose,
                backoff: Backoff::default(),
                at: now,
                mismatch: None,
            };
            return;
        }
        if purpose == Purpose::Restore {
            self.trouble(id, error);
        }
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        match purpose {
            Purpose::Answer => {
                let held = lease.grant.is_some_and(|end| end > now);
                if let Some(server) = self.servers.get_mut(&lease.want.server)
                    && !held
                {
                    let question = Question::of(&lease.want);
                    server.negative.put(question, error, lifetime, now);
                }
                self.effects.push_back(Effect::Refused {
                    id,
                    server: address,
                    result: error,
                    lifetime,
                    asked: true,
                });
                if held && !conflict {
                    self.rebind(id, now);
                } else {
                    self.forget(id, now);
                    if held {
                        self.effects.push_back(Effect::Lost { id });
                    }
                }
            }
            // What has lapsed and is refused for good will not come back.
            Purpose::Restore
                if conflict || (lease.grant.is_none() && error.class() == ResultClass::Long) =>
            {
                self.forget(id, now);
                self.effects.push_back(Effect::Lost { id });
            }
            Purpose::Restore => {
                let wait = hold(error, lifetime).max(MIN_GAP);
                if let Phase::Requesting { backoff, at, .. } = &mut lease.phase {
                    (*backoff, *at) = (Backoff::default(), now + wait);
                }
            }
        }
    }

    fn renewal_refused(
        &mut self,
        id: Generation,
        asked: bool,
        error: ResultCode,
        lifetime: Lifetime,
        now: Instant,
    ) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if error == ResultCode::CannotProvideExternal {
            let weaker = match lease.want.choice {
                PortChoice::Exact => Insist::Port,
                PortChoice::Any => Insist::Nothing,
            };
            lease.ask_again(weaker, Purpose::Restore, now);
            return;
        }
        if !asked {
            self.ignored.unmatched += 1;
            return;
        }
        self.trouble(id, error);
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let earliest = now + hold(error, lifetime).max(MIN_GAP);
        if let Phase::Bound { schedule, .. } = &lease.phase {
            let mut schedule = *schedule;
            let at = lease.next_renewal(&mut schedule, earliest, &mut self.rng);
            lease.phase = Phase::Bound {
                schedule,
                at,
                asked: false,
            };
        }
        if error == ResultCode::NoResources
            && let Some(server) = self.servers.get_mut(&lease.want.server)
        {
            let question = Question::of(&lease.want);
            server.negative.put(question, error, lifetime, now);
        }
    }

    /// Says that what was there is in danger.
    fn trouble(&mut self, id: Generation, result: ResultCode) {
        if let Some(lease) = self.leases.get(&id) {
            let server = lease.want.server;
            self.effects
                .push_back(Effect::Trouble { id, server, result });
        }
    }

    /// Goes on with what is granted.
    fn rebind(&mut self, id: Generation, now: Instant) {
        if let Some(lease) = self.leases.get_mut(&id)
            && let Some(end) = lease.grant
        {
            lease.bind(now, end.saturating_duration_since(now), &mut self.rng);
        }
    }

    /// The server confirms a deletion. A lifetime says for how long it keeps the tuple for us (IWF-067).
    fn deleted(&mut self, id: Generation, lifetime: Lifetime, now: Instant) {
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

    fn ended_refused(&mut self, tuple: Tuple, error: ResultCode, lifetime: Lifetime, now: Instant) {
        // Also after NO_RESOURCES only this deletion waits. What is deleted here may never have been granted, and
        // some servers answer so when there is nothing to delete: silence (RFC 6887 section 11.4) would keep every
        // host waiting, again and again.
        let wait = now + hold(error, lifetime);
        if let Some(ended) = self.ended.get_mut(&tuple)
            && let Some((backoff, at)) = &mut ended.delete
        {
            (*backoff, *at) = (Backoff::default(), wait.max(now + MIN_GAP));
        }
    }

    /// The server does not speak PCP in our version (RFC 6887 section 9). It is asked again after at most half
    /// an hour.
    fn wrong_version(
        &mut self,
        from: SocketAddr,
        speaks: Speaks,
        lifetime: Option<Lifetime>,
        epoch: Option<Epoch>,
        now: Instant,
    ) {
        let error = ResultCode::UnsuppVersion;
        let lifetime = lifetime.unwrap_or(error.error_lifetime());
        self.settle();
        let Some(server) = self.servers.get(&from) else {
            return;
        };
        let waiting = server.unanswered.clone();
        if !server.is_probed() && waiting.is_empty() {
            self.ignored.unmatched += 1;
            return;
        }
        self.found(from, speaks);
        if let Some(epoch) = epoch {
            self.observe_epoch(from, epoch, now);
        }
        self.answered(from, now);
        let elsewhere = self.fallback && speaks == Speaks::NatPmp && from.is_ipv4();
        for id in waiting.into_iter().filter(|_| !elsewhere) {
            self.refused(id, error, lifetime, now);
        }
        if let Some(server) = self.servers.get_mut(&from) {
            let any = Question {
                protocol: Protocol::Tcp,
                port: ANY_PORT,
                behalf: None,
                exact: None,
            };
            if !elsewhere {
                server.negative.put(any, error, lifetime, now);
            }
            // PCPC-083: it may have been replaced by then.
            if server.listed {
                server.probe = Some((Backoff::default(), now + hold(error, lifetime)));
            }
        }
    }
}

/// Stands for any port where a refusal concerns them all.
const ANY_PORT: ExternalPort = ExternalPort::new(1).expect("not 0");

/// How servers answer the deletion of what they do not know, instead of with success (RFC 6887 section 15).
fn is_absence(error: ResultCode) -> bool {
    matches!(error, ResultCode::NotAuthorized | ResultCode::NoResources)
}

/// An option that a request can do without.
enum Dropped {
    Description,
    Filter,
}

/// What the request carried that the error may be due to (AMB-14). An optional option is no reason to refuse a request
/// (RFC 6887 section 7.3), but dropping it costs least.
fn to_drop(lease: &Lease, server: &Server, error: ResultCode) -> Option<Dropped> {
    let described = lease.want.description.is_some() && server.descriptions;
    let filtered = lease.want.remote.is_for_upstream() && server.filters && !lease.unfiltered;
    let asked = !matches!(
        lease.phase,
        Phase::Releasing { .. } | Phase::Bound { asked: false, .. }
    );
    let option = matches!(
        error,
        ResultCode::UnsuppOption | ResultCode::MalformedOption
    );
    let filter = matches!(
        error,
        ResultCode::UnsuppOption | ResultCode::ExcessiveRemotePeers
    );
    match asked {
        true if described && option => Some(Dropped::Description),
        true if filtered && filter => Some(Dropped::Filter),
        _ => None,
    }
}
