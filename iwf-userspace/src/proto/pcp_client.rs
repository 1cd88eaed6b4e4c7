//! The PCP client: keeps leases at upstream servers.
//!
//! Read before editing: RFC 6887 sections 8, 11 to 15; RFC 6970 sections 5.6 to 5.10; requirements PCPC, IWF-04x,
//! IWF-07x and IWF-08x.
//!
//! Each lease is named by the generation of the mapping it is for. A lease is asked for until it is answered or
//! released, renewed in the windows of section 11.2.1, asked for again when the server has lost its state, and
//! deleted upstream when it is released. What a server grants for a lease nobody wants any more is deleted too.
#![forbid(unsafe_code)]

mod epoch;
mod handover;
mod lease;
mod matching;
mod messages;
pub(in crate::proto) mod negative;
mod pace;
mod refusal;
mod renewal;
mod respond;
mod retransmit;
mod selection;
mod server;
mod timeout;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_random;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;

use crate::mapping::record::LeaseKey;
use crate::mapping::{Lease as Granted, PortChoice, Via};
use crate::types::timed::Timed;
use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Generation, Instant, Lifetime, LocalAddrs, MappingNonce,
    Protocol,
};
use crate::wire::pcp::Prefix64;
pub use handover::{Handover, Stage};
pub use messages::{Effect, Ignored, Input, Liveness, Speaks, Trace, Want};
pub use pace::{BURST as PACE_BURST, INTERVAL as PACE_INTERVAL};

use lease::{Ended, Insist, Lease, Phase, Purpose, Tuple};
use pace::Turn;
use server::Server;

/// RFC 6887 section 8.3 and AMB-01: longer lifetimes are taken for this one.
pub const MAX_LIFETIME: Lifetime = Lifetime(86_400);

/// Released leases remembered at once: more than a table of mappings holds. Beyond it the one that is due first, which
/// has been told to the server most often, is forgotten.
const MAX_ENDED: usize = 16_384;
/// AMB-18: a server keeps at least so many octets of a description, and no more is told.
pub const MAX_DESCRIPTION: usize = 128;
/// Prefixes of one NAT64 that are kept. It has one for every IPv4 destination, or a few for different ones.
const MAX_PREFIXES: usize = 16;
/// For how long a late grant for a lease that was given up is recognized and deleted.
const LATE_GRANT: Duration = Duration::from_secs(120);

/// For how long the refusal of a request may come after another one that weakened it: as long as a datagram takes.
const LATE_REFUSAL: Duration = Duration::from_secs(10);

/// The machine.
#[derive(Debug)]
pub struct PcpClient {
    rng: StdRng,
    local: LocalAddrs,
    /// The last addresses there were.
    last_local: LocalAddrs,
    servers: BTreeMap<SocketAddr, Server>,
    leases: Timed<Generation, Lease>,
    by_tuple: BTreeMap<Tuple, Generation>,
    ended: Timed<Tuple, Ended>,
    history: BTreeMap<IpAddr, epoch::EpochClock>,
    /// Whether leases of servers that speak NAT-PMP only are taken over by somebody.
    fallback: bool,
    /// Whether the path to the servers is one that others may be named on (RFC 6887 section 13.1).
    trusted: bool,
    effects: VecDeque<Effect>,
    ignored: Ignored,
}

impl PcpClient {
    /// A client without leases. `rng` is seeded from the operating system's entropy: nonces come from it.
    pub const fn new(rng: StdRng) -> Self {
        Self {
            rng,
            local: LocalAddrs { v4: None, v6: None },
            last_local: LocalAddrs { v4: None, v6: None },
            servers: BTreeMap::new(),
            leases: Timed::new(),
            by_tuple: BTreeMap::new(),
            ended: Timed::new(),
            history: BTreeMap::new(),
            fallback: false,
            trusted: false,
            effects: VecDeque::new(),
            ignored: Ignored {
                stranger: 0,
                malformed: 0,
                unmatched: 0,
            },
        }
    }

    /// Takes in a command or what came from a server.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Request(want) => self.request(want, now),
            Input::Adopt {
                want,
                lease,
                external,
            } => self.adopt(want, lease, external, now),
            Input::Reacquire {
                want,
                external,
                same_server,
            } => self.reacquire(want, external, same_server, now),
            Input::Fallback(fallback) => self.fallback = fallback,
            Input::Trusted(trusted) => self.set_trusted(trusted, now),
            Input::TakeOver(handover) => self.take_over(handover, now),
            Input::Abandon(id) => self.abandon(id, now),
            Input::End(trace) => self.end_trace(trace, now),
            Input::Release(id) => self.release(id, now),
            Input::Keep(id) => self.keep(id, now),
            Input::Terms(want) => {
                let lease = self.leases.get_mut(&want.id);
                if let Some(lease) = lease.filter(|lease| lease.tuple() == want.tuple()) {
                    lease.want = want;
                    if let Phase::Requesting { purpose, .. } = &mut lease.phase {
                        *purpose = Purpose::Restore;
                    }
                }
            }
            Input::Local(local) => self.set_local(local, now),
            Input::Servers(list) => self.set_servers(&list, now),
            Input::Several(several) => self.set_several(&several),
            Input::Probe(server) => self.probe(server, now),
            Input::Rest(server) => self.rest(server),
            Input::Move { from, to } => self.move_to(from, to, now),
            Input::History { server, epoch, ago } => {
                let clock = epoch::EpochClock::seen(epoch, ago, now);
                self.history.insert(server, clock);
            }
            Input::Datagram { from, payload } => self.receive(from, &payload, now),
            Input::Unreachable(server) => self.unreachable(server, now),
        }
        self.settle();
    }

    /// When [`PcpClient::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let servers = self.servers.iter();
        let servers = servers.filter_map(|(at, s)| s.next_event(self.is_up(*at)));
        let leases = [self.leases.next(), self.ended.next()];
        leases.into_iter().flatten().chain(servers).min()
    }

    /// Brings the order of deadlines up to date with what was changed.
    fn settle(&mut self) {
        let (local, trusted) = (self.local, self.trusted);
        let up = |of: Tuple| may_send(local, trusted, of);
        let servers = &mut self.servers;
        self.leases.settle(
            |_, lease| lease.next_event(up(lease.tuple())),
            |id, lease| {
                // There are no more servers than the configuration can name, and those of before.
                for server in servers.values_mut() {
                    server.unanswered.remove(id);
                }
                if let Some(lease) = lease.filter(|lease| lease.is_unanswered())
                    && let Some(server) = servers.get_mut(&lease.want.server)
                {
                    server.unanswered.insert(*id);
                }
            },
        );
        self.ended
            .settle(|of, ended| Some(ended.next_event(up(*of))), |_, _| {});
    }

    /// Whether every deadline is where it belongs.
    #[cfg(test)]
    pub(crate) fn is_consistent(&self) -> bool {
        let leases = |_: &Generation, lease: &Lease| lease.next_event(self.may_send(lease.tuple()));
        let ended = |of: &Tuple, ended: &Ended| Some(ended.next_event(self.may_send(*of)));
        let named = |(tuple, id): (&Tuple, &Generation)| {
            let lease = self.leases.get(id);
            lease.is_some_and(|lease| lease.tuple() == *tuple)
        };
        self.leases.is_settled(leases)
            && self.ended.is_settled(ended)
            && self.leases.len() == self.by_tuple.len()
            && self.by_tuple.iter().all(named)
    }

    /// Leases looked at so far.
    #[cfg(test)]
    pub(crate) fn looks(&self) -> u64 {
        self.leases.looks.get() + self.ended.looks.get()
    }

    fn is_up(&self, server: SocketAddr) -> bool {
        self.local.towards(server).is_some()
    }

    /// Whether anything about that lease may go out now: the one place where it is decided that nobody else is named
    /// where the path is not trusted (IWF-102).
    fn may_send(&self, of: Tuple) -> bool {
        may_send(self.local, self.trusted, of)
    }

    /// The next effect, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether there is such a lease that servers know by another internal endpoint.
    pub fn keeps_otherwise(&self, want: &Want) -> bool {
        let internal = |want: &Want| (want.protocol, want.port, want.behalf);
        let lease = self.leases.get(&want.id);
        lease.is_some_and(|lease| internal(&lease.want) != internal(want))
    }

    /// Whether a server answers; `None` if it is not known here.
    pub fn liveness(&self, server: SocketAddr) -> Option<Liveness> {
        self.servers.get(&server).map(|s| s.liveness)
    }

    /// What a server was found to speak.
    pub fn speaks(&self, server: SocketAddr) -> Speaks {
        let server = self.servers.get(&server);
        server.map_or(Speaks::Unknown, |server| server.speaks)
    }

    /// Whether a server has ever answered, in this life or an earlier one.
    pub fn has_answered(&self, server: SocketAddr) -> bool {
        self.servers
            .get(&server)
            .is_some_and(|s| s.clock.epoch().is_some() || s.liveness == Liveness::Answering)
    }

    /// Prefixes of a server's NAT64, as far as it was asked for them.
    pub fn prefixes(&self, server: SocketAddr) -> &[Prefix64] {
        let server = self.servers.get(&server);
        server.map_or(&[], |server| &server.prefixes)
    }

    /// Last epoch of a server.
    pub fn epoch(&self, server: SocketAddr) -> Option<Epoch> {
        self.servers.get(&server)?.clock.epoch()
    }

    /// What had no effect so far.
    pub const fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// The lease that a server keeps for a port of our NAT.
    pub fn lease_of(
        &self,
        server: SocketAddr,
        protocol: Protocol,
        port: ExternalPort,
    ) -> Option<Generation> {
        self.by_tuple.get(&(server, protocol, port, None)).copied()
    }

    /// Ports of our NAT that the server may still know from a released lease. They may be used again: the
    /// nonce is kept for it.
    pub fn is_held(&self, server: SocketAddr, protocol: Protocol, port: ExternalPort) -> bool {
        self.ended.contains_key(&(server, protocol, port, None))
    }

    fn request(&mut self, want: Want, now: Instant) {
        let id = want.id;
        let held = self
            .leases
            .get(&id)
            .filter(|lease| lease.tuple() == want.tuple());
        if let Some(lease) = held {
            let (nonce, known, grant) = (lease.nonce, lease.known, lease.grant);
            let (doubtful, was_brief) = (lease.may_be_there(), lease.want.brief);
            let predecessor = lease.predecessor;
            let late_refusals = match lease.insists() {
                true => Some(now + LATE_REFUSAL),
                false => lease.late_refusals,
            };
            let insist = match (want.choice, known) {
                (PortChoice::Exact, Some(known)) if Some(known.port) == want.external => {
                    Insist::Endpoint
                }
                (PortChoice::Exact, _) => Insist::Port,
                // It would be another port than the one that its predecessor still has.
                (PortChoice::Any, Some(_)) if self.is_leaving(id, now).is_some() => {
                    Insist::Endpoint
                }
                (PortChoice::Any, _) => Insist::Nothing,
            };
            let mut lease = Lease::new(want, nonce, insist, Purpose::Answer, now);
            (lease.known, lease.grant, lease.doubtful) = (known, grant, doubtful);
            (lease.predecessor, lease.late_refusals) = (predecessor, late_refusals);
            if was_brief {
                self.asking(&lease, now);
            }
            self.insert(lease);
            self.handle_timeout(now);
            return;
        }
        self.abandon(id, now);
        let question = negative::Question::of(&want);
        let refused = self
            .servers
            .get(&want.server)
            .and_then(|server| server.negative.get(&question, now));
        if let Some(result) = refused {
            self.effects.push_back(Effect::Refused {
                id,
                server: want.server,
                result,
                lifetime: Lifetime(0),
                asked: false,
            });
            return;
        }
        let insist = match want.choice {
            PortChoice::Exact => Insist::Port,
            PortChoice::Any => Insist::Nothing,
        };
        let nonce = self.nonce_for(want.tuple());
        let lease = Lease::new(want, nonce, insist, Purpose::Answer, now);
        self.asking(&lease, now);
        self.insert(lease);
        self.handle_timeout(now);
    }

    fn adopt(&mut self, want: Want, lease: Granted, external: ExternalEndpoint, now: Instant) {
        // Two records of one tuple contradict each other. The server has room for one, and the first stands.
        if self.by_tuple.contains_key(&want.tuple()) {
            return;
        }
        let mut held = Lease::new(want, lease.nonce, Insist::Endpoint, Purpose::Restore, now);
        (held.known, held.inherited) = (Some(external), true);
        if lease.expires > now {
            held.grant = Some(lease.expires);
            held.bind(
                now,
                lease.expires.saturating_duration_since(now),
                &mut self.rng,
            );
            self.insert(held);
        } else {
            let id = held.want.id;
            held.doubtful = true;
            self.insert(held);
            self.line_up(id);
        }
    }

    fn reacquire(
        &mut self,
        want: Want,
        external: ExternalEndpoint,
        same_server: bool,
        now: Instant,
    ) {
        let id = want.id;
        let old = self.leases.get(&id);
        let grant = old.and_then(|lease| lease.grant);
        let kept = old.filter(|lease| lease.tuple() == want.tuple());
        let predecessor = old.and_then(|old| match old.tuple() == want.tuple() {
            true => old.predecessor,
            // Also at another address, which may be the same server's.
            false => Some(old.tuple()),
        });
        let kept = kept.map(|lease| (lease.nonce, lease.may_be_there()));
        let is_new = kept.is_none();
        // A life that knows of the old lease only comes to the same one.
        let moved = old
            .filter(|_| same_server)
            .map(|old| lease::moved(old.nonce, old.tuple(), want.tuple()));
        let (nonce, doubtful) = kept.unwrap_or_else(|| {
            self.abandon(id, now);
            let ended = self.forget_ended(want.tuple()).map(|ended| ended.nonce);
            let nonce = ended.or(moved).unwrap_or_else(|| self.new_nonce());
            (nonce, false)
        });
        let mut lease = Lease::new(want, nonce, Insist::Endpoint, Purpose::Restore, now);
        (lease.known, lease.grant) = (Some(external), grant);
        lease.doubtful = doubtful;
        lease.predecessor = predecessor;
        if is_new {
            self.asking(&lease, now);
        }
        self.insert(lease);
        self.line_up(id);
        self.handle_timeout(now);
    }

    fn abandon(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.take_out(id) else {
            return;
        };
        let tuple = lease.tuple();
        if lease.may_be_there() {
            let until = lease.may_last_until(now).max(now + LATE_GRANT);
            self.end(tuple, Ended::deleting(&lease, until, now));
        } else {
            self.forgotten(tuple);
        }
        self.handle_timeout(now);
    }

    /// Ends what an earlier life has left, unless it is in use.
    fn end_trace(&mut self, trace: Trace, now: Instant) {
        let LeaseKey {
            server,
            protocol,
            port,
            behalf,
        } = trace.key;
        let tuple = (server, protocol, port, behalf);
        if self.by_tuple.contains_key(&tuple) {
            return;
        }
        self.server(server);
        let ended = Ended {
            nonce: trace.nonce,
            until: trace.until,
            delete: Some((retransmit::Backoff::default(), now)),
            again: false,
            in_line: false,
            brief: false,
        };
        self.end(tuple, ended);
        self.handle_timeout(now);
    }

    /// Says that a server is about to be asked.
    fn asking(&mut self, lease: &Lease, now: Instant) {
        if !lease.want.brief {
            let until = lease.want.until.min(now + MAX_LIFETIME.duration());
            self.effects.push_back(Effect::Asking {
                id: lease.want.id,
                trace: lease.trace(until.max(now + LATE_GRANT)),
            });
        }
    }

    /// Says that nothing is left at a server that could be ended.
    fn forgotten(&mut self, tuple: Tuple) {
        if !self.by_tuple.contains_key(&tuple) {
            self.effects
                .push_back(Effect::Forgotten(lease::key_of(tuple), Via::Pcp));
        }
    }

    fn release(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            let result = Ok(());
            self.effects.push_back(Effect::Released { id, result });
            return;
        };
        let until = lease.may_last_until(now).max(now + LATE_GRANT);
        self.effects.push_back(Effect::Ending(lease.trace(until)));
        lease.phase = Phase::Releasing {
            backoff: retransmit::Backoff::default(),
            at: now,
            again: false,
        };
        self.leave_line(id);
        self.handle_timeout(now);
    }

    fn keep(&mut self, id: Generation, now: Instant) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.ask_again(Insist::Endpoint, Purpose::Restore, now);
        }
        self.handle_timeout(now);
    }

    fn set_trusted(&mut self, trusted: bool, now: Instant) {
        if std::mem::replace(&mut self.trusted, trusted) != trusted {
            self.leases.touch_all();
            self.ended.touch_all();
            self.handle_timeout(now);
        }
    }

    fn set_local(&mut self, local: LocalAddrs, now: Instant) {
        if self.local == local {
            return;
        }
        let before = std::mem::replace(&mut self.local, local);
        let last = self.last_local;
        let moved = LocalAddrs {
            v4: local
                .v4
                .filter(|_| last.v4.is_some() && last.v4 != local.v4),
            v6: local
                .v6
                .filter(|_| last.v6.is_some() && last.v6 != local.v6),
        };
        self.last_local = LocalAddrs {
            v4: local.v4.or(last.v4),
            v6: local.v6.or(last.v6),
        };
        self.readdress(moved, now);
        self.leases.touch_all();
        self.ended.touch_all();
        for (address, server) in &mut self.servers {
            let own = local.towards(*address);
            let asks = asks_prefixes(local, *address);
            if !asks {
                server.prefixes.clear();
            }
            let asks_anew = asks && !asks_prefixes(before, *address);
            if own.is_some() && (asks_anew || own != before.towards(*address)) {
                server.probe(now);
            }
        }
        self.handle_timeout(now);
    }

    /// Addresses of ours have changed: what was said about the old ones is void, and what is under way starts anew.
    fn readdress(&mut self, moved: LocalAddrs, now: Instant) {
        let concerned = |server: SocketAddr| moved.towards(server).is_some();
        let void: Vec<_> = self.ended.iter().map(|(tuple, _)| *tuple).collect();
        for tuple in void.into_iter().filter(|tuple| concerned(tuple.0)) {
            self.forget_ended(tuple);
        }
        for (address, server) in &mut self.servers {
            if concerned(*address) {
                server.negative.clear();
                server.pace.forget_open();
            }
        }
        let all: Vec<_> = self.leases.iter().map(|(id, _)| *id).collect();
        for id in all {
            if let Some(lease) = self.leases.get_mut(&id)
                && let Phase::Requesting { backoff, at, .. } = &mut lease.phase
                && concerned(lease.want.server)
            {
                (*backoff, *at) = (retransmit::Backoff::default(), now);
            }
        }
    }

    fn set_servers(&mut self, list: &[SocketAddr], now: Instant) {
        for server in self.servers.values_mut() {
            server.listed = false;
        }
        for address in list {
            self.server(*address).listed = true;
            self.servers.entry(*address).and_modify(|server| {
                if server.liveness == Liveness::Unknown && server.probe.is_none() {
                    server.probe(now);
                }
            });
        }
        let in_use = |address: &SocketAddr| {
            self.leases.iter().any(|(_, l)| l.want.server == *address)
                || self.ended.iter().any(|((server, ..), _)| server == address)
        };
        self.servers
            .retain(|address, server| server.listed || in_use(address));
        self.handle_timeout(now);
    }

    fn unreachable(&mut self, address: SocketAddr, now: Instant) {
        let Some(server) = self.servers.get_mut(&address) else {
            return;
        };
        if server.speaks != Speaks::Nothing {
            server.speaks = Speaks::Nothing;
            self.effects.push_back(Effect::Speaks(address));
        }
        // A restarting server comes back within seconds, so it is asked again soon.
        if server.liveness != Liveness::Silent {
            server.silence();
            server.probe_later(now, &mut self.rng);
            self.effects.push_back(Effect::Liveness(address));
        }
    }

    /// The record of a server, made if there is none.
    fn server(&mut self, address: SocketAddr) -> &mut Server {
        let clock = self.history.get(&address.ip()).copied();
        self.servers
            .entry(address)
            .or_insert_with(|| Server::new(clock.unwrap_or_default()))
    }

    fn insert(&mut self, lease: Lease) {
        let (id, tuple) = (lease.want.id, lease.tuple());
        self.take_out(id);
        self.server(tuple.0);
        self.by_tuple.insert(tuple, id);
        self.leases.insert(id, lease);
    }

    /// Removes a lease from everywhere.
    fn take_out(&mut self, id: Generation) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        if self.by_tuple.get(&lease.tuple()) == Some(&id) {
            self.by_tuple.remove(&lease.tuple());
        }
        if let Some(server) = self.servers.get_mut(&lease.want.server) {
            server.pace.leave(Turn::Lease(id));
        }
        Some(lease)
    }

    /// Asks for a lease again when its turn comes.
    fn line_up(&mut self, id: Generation) {
        if let Some(lease) = self.leases.get_mut(&id)
            && let Some(server) = self.servers.get_mut(&lease.want.server)
        {
            lease.in_line = true;
            server.pace.join(Turn::Lease(id));
        }
    }

    /// It need not wait for its turn any more, and no answer is missing.
    fn leave_line(&mut self, id: Generation) {
        if let Some(lease) = self.leases.get_mut(&id)
            && let Some(server) = self.servers.get_mut(&lease.want.server)
        {
            lease.in_line = false;
            server.pace.leave(Turn::Lease(id));
        }
    }

    /// The nonce of a tuple the server may still know, or a new one (AMB-02, IWF-067).
    fn nonce_for(&mut self, tuple: Tuple) -> MappingNonce {
        let ended = self.forget_ended(tuple);
        ended.map_or_else(|| self.new_nonce(), |ended| ended.nonce)
    }

    fn new_nonce(&mut self) -> MappingNonce {
        use rand::RngExt;
        MappingNonce(self.rng.random())
    }

    fn end(&mut self, tuple: Tuple, ended: Ended) {
        if self.ended.len() >= MAX_ENDED {
            self.settle();
            if let Some(first) = self.ended.first() {
                self.forget_ended(first);
            }
        }
        self.forget_ended(tuple);
        if ended.delete.is_some() && !ended.brief {
            let ending = lease::trace(tuple, ended.nonce, ended.until);
            self.effects.push_back(Effect::Ending(ending));
        }
        self.ended.insert(tuple, ended);
    }

    fn forget_ended(&mut self, tuple: Tuple) -> Option<Ended> {
        let ended = self.ended.remove(&tuple)?;
        let (address, protocol, port, behalf) = tuple;
        if let Some(server) = self.servers.get_mut(&address) {
            server.pace.leave(Turn::Ended(protocol, port, behalf));
        }
        self.forgotten(tuple);
        Some(ended)
    }
}

/// Where IPv6 is all there is, servers are asked how their NAT64 makes addresses (RFC 7225 section 4.1).
fn asks_prefixes(local: LocalAddrs, server: SocketAddr) -> bool {
    server.is_ipv6() && local.v4.is_none() && local.v6.is_some()
}

fn may_send(local: LocalAddrs, trusted: bool, (server, _, _, behalf): Tuple) -> bool {
    local.towards(server).is_some() && (behalf.is_none() || trusted)
}
