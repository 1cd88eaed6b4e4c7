//! The NAT-PMP client: keeps leases at gateways that speak nothing better.
//!
//! Read before editing: RFC 6886 section 3, RFC 6887 section 9 and appendix A; requirements PMP-020 to PMP-031.
//!
//! It takes and reports what the PCP client does, so that whoever wants leases need not know who gets them. What
//! NAT-PMP cannot say is made up for here: a port that is insisted on and not granted is given back, the external
//! address is asked for by itself. Filters are our NAT's matter, and descriptions are not told.
//!
//! Routers that speak UPnP IGD have the same model in other words. For them another machine says the words: see
//! [`other`].
//!
//! A gateway is asked one thing at a time. What waits for its turn is at most one question for each lease and each
//! lease that has ended.
#![forbid(unsafe_code)]

mod clock;
mod gateway;
mod lease;
pub mod other;
mod respond;
mod timeout;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::mapping::Via;
use crate::mapping::record::LeaseKey;
use crate::proto::pcp_client::negative;
use crate::proto::pcp_client::{
    Effect, Handover, Ignored, Liveness, MAX_LIFETIME, Stage, Trace, Want,
};
use crate::types::timed::Timed;
use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Generation, Instant, Lifetime, MappingNonce, Protocol,
};
use crate::wire::pcp::ResultCode;

use gateway::{Gateway, Question};
use lease::{Ended, Lease, Phase, Tuple};
use other::{Asked, Said};

/// Released leases remembered at once. Beyond it the one that would be forgotten first is.
const MAX_ENDED: usize = 16_384;
/// For how long a late grant for a lease that was given up is recognized and deleted.
const LATE_GRANT: Duration = Duration::from_secs(120);

/// What the client is told. As the PCP client's input of the same name, if there is one.
#[derive(Clone, Debug)]
pub enum Input {
    /// Get this lease.
    Request(Want),
    /// Keep a lease that was granted in an earlier life. No clock of the gateway is kept, so it is asked for at once.
    Adopt {
        /// The terms.
        want: Want,
        /// When what was granted ends.
        expires: Instant,
        /// What was assigned.
        external: ExternalEndpoint,
    },
    /// Get a lease back at the same external endpoint if it can be.
    Reacquire {
        /// The terms.
        want: Want,
        /// What was assigned before.
        external: ExternalEndpoint,
    },
    /// Get what another client held, or was asked for.
    TakeOver(Handover),
    /// Nobody waits for it: delete it upstream in the background.
    Abandon(Generation),
    /// Delete it upstream.
    Release(Generation),
    /// Stop deleting it and make sure that it is still there.
    Keep(Generation),
    /// What another client has taken over since is still mapped here until then: delete it.
    End {
        /// The gateway.
        server: SocketAddr,
        /// Transport protocol.
        protocol: Protocol,
        /// Port of our NAT.
        port: ExternalPort,
        /// Port of the gateway.
        external: ExternalPort,
        /// When what was granted ends.
        until: Instant,
    },
    /// It is wanted on these terms from the next request on.
    Terms(Want),
    /// Our address on the WAN.
    Local(Option<Ipv4Addr>),
    /// Servers that are used; gateways that are not among them are forgotten with their last lease.
    Servers(Vec<SocketAddr>),
    /// It is there, whoever says so.
    Alive(SocketAddr),
    /// It is not there, whoever says so.
    Silent(SocketAddr),
    /// Whether it is there is being found out.
    Unknown(SocketAddr),
    /// A datagram from a gateway.
    Datagram {
        /// Its source.
        from: SocketAddr,
        /// The UDP payload.
        payload: Vec<u8>,
    },
    /// A hard error for what was sent to that gateway.
    Unreachable(SocketAddr),
    /// What a gateway of another protocol says.
    Other {
        /// The gateway.
        from: SocketAddr,
        /// What it says.
        said: Said,
    },
}

/// The machine.
#[derive(Debug)]
pub struct NatPmpClient {
    via: Via,
    asked: VecDeque<(SocketAddr, Asked)>,
    local: Option<Ipv4Addr>,
    gateways: BTreeMap<SocketAddr, Gateway>,
    leases: Timed<Generation, Lease>,
    by_tuple: BTreeMap<Tuple, Generation>,
    ended: Timed<Tuple, Ended>,
    /// Mappings that are gone from their gateways, of those nobody waited for.
    gone: VecDeque<Gone>,
    effects: VecDeque<Effect>,
    ignored: Ignored,
}

/// Gateway, protocol and port of our NAT of what was mapped.
pub type Gone = (SocketAddr, Protocol, ExternalPort);

impl Default for NatPmpClient {
    fn default() -> Self {
        Self::new(Via::NatPmp)
    }
}

impl NatPmpClient {
    /// A client without leases. If they are not kept in NAT-PMP, questions are for [`NatPmpClient::poll_asked`].
    pub fn new(via: Via) -> Self {
        Self {
            via,
            asked: VecDeque::new(),
            local: None,
            gateways: BTreeMap::new(),
            leases: Timed::new(),
            by_tuple: BTreeMap::new(),
            ended: Timed::new(),
            gone: VecDeque::new(),
            effects: VecDeque::new(),
            ignored: Ignored::default(),
        }
    }

    /// Takes in a command or what came from a gateway.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Request(want) => self.request(want, now),
            Input::Adopt {
                want,
                expires,
                external,
            } => self.take_over(Handover::held(want, external, expires), now),
            Input::Reacquire { want, external } => self.reacquire(want, external, now),
            Input::TakeOver(handover) => self.take_over(handover, now),
            Input::Abandon(id) => self.abandon(id, now),
            Input::Release(id) => self.release(id, now),
            Input::Keep(id) => self.keep(id),
            Input::End {
                server,
                protocol,
                port,
                external,
                until,
            } => self.end_left((server, protocol, port), external, until),
            Input::Terms(want) => self.set_terms(want),
            Input::Local(local) => self.set_local(local),
            Input::Servers(list) => self.forget_others(&list),
            Input::Alive(server) => {
                self.gateway(server);
                self.alive(server);
            }
            Input::Silent(server) => self.set_liveness(server, Liveness::Silent),
            Input::Unknown(server) => {
                if let Some(gateway) = self.gateways.get_mut(&server) {
                    gateway.liveness = Liveness::Unknown;
                }
            }
            Input::Datagram { from, payload } => self.receive(from, &payload, now),
            Input::Unreachable(server) => {
                self.set_liveness(server, Liveness::Silent);
                self.give_up(server, now);
            }
            Input::Other { from, said } => self.said(from, said, now),
        }
        self.handle_timeout(now);
    }

    /// The next effect, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// A mapping whose deletion by [`Input::End`] or [`Input::Abandon`] was confirmed, until `None`.
    pub fn poll_gone(&mut self) -> Option<Gone> {
        self.gone.pop_front()
    }

    /// When [`NatPmpClient::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let up = self.local.is_some();
        let gateways = self.gateways.values().filter(|_| up);
        let gateways = gateways.filter_map(Gateway::next_event);
        let leases = [self.leases.next(), self.ended.next()];
        leases.into_iter().flatten().chain(gateways).min()
    }

    /// Whether a lease is this client's.
    pub fn holds(&self, id: Generation) -> bool {
        self.leases.contains_key(&id)
    }

    /// Whether a gateway answers; `None` if it is not known here.
    pub fn liveness(&self, server: SocketAddr) -> Option<Liveness> {
        self.gateways.get(&server).map(|gateway| gateway.liveness)
    }

    /// Seconds since the gateway's start of epoch, as it said last.
    pub fn epoch(&self, server: SocketAddr) -> Option<Epoch> {
        self.gateways.get(&server)?.clock.epoch()
    }

    /// Whether there is anything to remember about a gateway.
    pub fn uses(&self, server: SocketAddr) -> bool {
        let (leases, ended) = (self.by_tuple.keys(), self.ended.iter());
        let mut tuples = leases.chain(ended.map(|(tuple, _)| tuple));
        tuples.any(|tuple| tuple.0 == server)
    }

    /// What had no effect so far.
    pub const fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// Gives away everything at a server, for another client to take over. Nothing is asked there any more.
    pub fn hand_over(&mut self, server: SocketAddr) -> Vec<Handover> {
        let of_server = self.leases.iter().filter(|(_, l)| l.want.server == server);
        let ids: Vec<_> = of_server.map(|(id, _)| *id).collect();
        let leases: Vec<_> = ids.into_iter().filter_map(|id| self.take_out(id)).collect();
        let ended: Vec<_> = self.ended.iter().map(|(tuple, _)| *tuple).collect();
        for tuple in ended.into_iter().filter(|tuple| tuple.0 == server) {
            self.ended.remove(&tuple);
            self.forgotten(tuple);
        }
        for lease in &leases {
            self.forgotten(lease.tuple());
        }
        self.gateways.remove(&server);
        self.settle();
        leases
            .into_iter()
            .map(|lease| Handover {
                want: lease.want,
                known: lease.known,
                grant: lease.grant,
                stage: match lease.phase {
                    Phase::Asked => Stage::Asked,
                    Phase::Restored | Phase::Held => Stage::Held,
                    Phase::Releasing => Stage::Releasing,
                },
            })
            .collect()
    }

    /// Brings the order of deadlines up to date with what was changed.
    fn settle(&mut self) {
        let up = self.local.is_some();
        self.leases
            .settle(|_, lease| lease.next_event(up), |_, _| {});
        self.ended.settle(|_, ended| Some(ended.until), |_, _| {});
    }

    /// Whether every deadline is where it belongs, and nothing waits that cannot be found.
    #[cfg(test)]
    pub(crate) fn is_consistent(&self) -> bool {
        let up = self.local.is_some();
        let named = |(tuple, id): (&Tuple, &Generation)| {
            let lease = self.leases.get(id);
            lease.is_some_and(|lease| lease.tuple() == *tuple)
        };
        let known = |tuple: &Tuple| self.gateways.contains_key(&tuple.0);
        self.leases.is_settled(|_, lease| lease.next_event(up))
            && self.ended.is_settled(|_, ended| Some(ended.until))
            && self.leases.len() == self.by_tuple.len()
            && self.by_tuple.iter().all(named)
            && self.by_tuple.keys().all(known)
    }

    /// Leases looked at so far.
    #[cfg(test)]
    pub(crate) fn looks(&self) -> u64 {
        self.leases.looks.get() + self.ended.looks.get()
    }

    fn request(&mut self, want: Want, now: Instant) {
        let id = want.id;
        let tuple = (want.server, want.protocol, want.port);
        match self.leases.get_mut(&id).filter(|l| l.tuple() == tuple) {
            Some(lease) => {
                let was_brief = lease.want.brief;
                (lease.want, lease.phase, lease.due) = (want, Phase::Asked, None);
                self.cancel_deletion(tuple);
                if was_brief {
                    self.asking(id, now);
                }
            }
            None => {
                self.abandon(id, now);
                if let Some(result) = self.refused(&want, now) {
                    self.effects.push_back(Effect::Refused {
                        id,
                        server: want.server,
                        result,
                        lifetime: Lifetime(0),
                        asked: false,
                    });
                    return;
                }
                self.insert(Lease::new(want, Phase::Asked));
                self.asking(id, now);
            }
        }
        self.line_up(id);
    }

    /// Why the gateway need not be asked for this now.
    fn refused(&self, want: &Want, now: Instant) -> Option<ResultCode> {
        let gateway = self.gateways.get(&want.server)?;
        gateway.negative.get(&negative::Question::of(want), now)
    }

    fn reacquire(&mut self, want: Want, external: ExternalEndpoint, now: Instant) {
        let old = self.leases.get(&want.id);
        let grant = old.and_then(|lease| lease.grant);
        let tuple = (want.server, want.protocol, want.port);
        if old.is_some_and(|lease| lease.tuple() != tuple) {
            self.abandon(want.id, now);
        }
        let stage = Stage::Held;
        let known = Some(external);
        let again = Handover {
            want,
            known,
            grant,
            stage,
        };
        self.put(again, now);
    }

    fn take_over(&mut self, handover: Handover, now: Instant) {
        let want = &handover.want;
        let holder = self
            .by_tuple
            .get(&(want.server, want.protocol, want.port))
            .copied();
        // Two records of one tuple contradict each other. The gateway has room for one, and the first stands.
        if holder.is_some_and(|id| id != want.id) {
            return;
        }
        match handover.stage {
            Stage::Asked => self.request(handover.want, now),
            Stage::Held => self.put(handover, now),
            // The gateway that knew it is no more.
            Stage::Releasing => {
                let id = handover.want.id;
                let result = Ok(());
                self.effects.push_back(Effect::Released { id, result });
            }
        }
    }

    fn put(&mut self, handover: Handover, now: Instant) {
        let id = handover.want.id;
        let mut lease = Lease::new(handover.want, Phase::Restored);
        lease.known = handover.known;
        lease.grant = handover.grant.filter(|end| *end > now);
        self.insert(lease);
        self.asking(id, now);
        self.line_up(id);
    }

    fn abandon(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.take_out(id) else {
            return;
        };
        if lease.sent || lease.grant.is_some() {
            let granted = lease.grant.unwrap_or(now);
            let until = granted.max(now + LATE_GRANT);
            let external = lease.placed();
            self.end(
                lease.tuple(),
                Ended {
                    until,
                    delete: true,
                    brief: lease.want.brief,
                    external,
                },
            );
        } else {
            self.forgotten(lease.tuple());
        }
    }

    /// Says that a gateway is about to be asked.
    fn asking(&mut self, id: Generation, now: Instant) {
        if let Some(lease) = self.leases.get(&id).filter(|lease| !lease.want.brief) {
            let until = lease.want.until.min(now + MAX_LIFETIME.duration());
            let trace = self.trace(lease.tuple(), until.max(now + LATE_GRANT));
            self.effects.push_back(Effect::Asking { id, trace });
        }
    }

    /// Says that nothing is left at a gateway that could be ended.
    fn forgotten(&mut self, tuple: Tuple) {
        if !self.by_tuple.contains_key(&tuple) {
            let Trace { key, via, .. } = self.trace(tuple, Instant::default());
            self.effects.push_back(Effect::Forgotten(key, via));
        }
    }

    fn release(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            let result = Ok(());
            self.effects.push_back(Effect::Released { id, result });
            return;
        };
        (lease.phase, lease.due) = (Phase::Releasing, None);
        let until = lease.grant.unwrap_or(now).max(now + LATE_GRANT);
        let tuple = lease.tuple();
        let ending = self.trace(tuple, until);
        self.effects.push_back(Effect::Ending(ending));
        let (server, protocol, port) = tuple;
        self.cancel(server, Question::Map(id));
        let gateway = self.gateway(server);
        gateway.line.join(Question::Delete(protocol, port), true);
    }

    fn keep(&mut self, id: Generation) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        (lease.phase, lease.due) = (Phase::Restored, None);
        let tuple = lease.tuple();
        self.cancel_deletion(tuple);
        self.line_up(id);
    }

    fn end_left(&mut self, tuple: Tuple, external: ExternalPort, until: Instant) {
        if !self.by_tuple.contains_key(&tuple) {
            let ended = Ended {
                until,
                delete: true,
                // Who wants it ended remembers that, or nobody has to.
                brief: true,
                external: Some(external),
            };
            self.end(tuple, ended);
        }
    }

    fn set_terms(&mut self, want: Want) {
        let tuple = (want.server, want.protocol, want.port);
        let lease = self.leases.get_mut(&want.id);
        if let Some(lease) = lease.filter(|lease| lease.tuple() == tuple) {
            lease.want = want;
            if lease.phase == Phase::Asked {
                lease.phase = Phase::Restored;
            }
        }
    }

    /// What was under way starts anew, as a gateway tells clients apart by their address.
    fn set_local(&mut self, local: Option<Ipv4Addr>) {
        if self.local == local {
            return;
        }
        self.local = local;
        self.leases.touch_all();
        for gateway in self.gateways.values_mut() {
            gateway.doubt_address();
            gateway.negative.clear();
            gateway.quiet_until = Instant::default();
            if let Some(pending) = gateway.pending.take()
                && pending.question != Question::Address
            {
                gateway.line.join(pending.question, true);
            }
        }
    }

    fn forget_others(&mut self, list: &[SocketAddr]) {
        let others = self.gateways.keys().filter(|at| !list.contains(at));
        let idle: Vec<_> = others.filter(|at| !self.uses(**at)).copied().collect();
        for server in idle {
            self.gateways.remove(&server);
        }
    }

    /// The record of a gateway, made if there is none.
    fn gateway(&mut self, server: SocketAddr) -> &mut Gateway {
        self.gateways.entry(server).or_insert_with(Gateway::new)
    }

    fn insert(&mut self, lease: Lease) {
        let (id, tuple) = (lease.want.id, lease.tuple());
        self.take_out(id);
        self.gateway(tuple.0);
        self.by_tuple.insert(tuple, id);
        self.leases.insert(id, lease);
    }

    /// Removes a lease from everywhere.
    fn take_out(&mut self, id: Generation) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        let tuple = lease.tuple();
        if self.by_tuple.get(&tuple) == Some(&id) {
            self.by_tuple.remove(&tuple);
        }
        self.cancel(tuple.0, Question::Map(id));
        if lease.phase == Phase::Releasing {
            self.cancel_deletion(tuple);
        }
        Some(lease)
    }

    /// Asks for a lease when its turn comes.
    fn line_up(&mut self, id: Generation) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        lease.due = None;
        let (server, awaited) = (lease.want.server, lease.is_awaited());
        let gateway = self.gateway(server);
        let asked = Question::Map(id);
        if gateway.pending.is_none_or(|p| p.question != asked) {
            gateway.line.join(asked, awaited);
        }
    }

    /// Asks no more, and takes no answer.
    fn cancel(&mut self, server: SocketAddr, question: Question) {
        if let Some(gateway) = self.gateways.get_mut(&server) {
            gateway.line.leave(question);
            gateway.pending = gateway.pending.filter(|p| p.question != question);
        }
    }

    fn cancel_deletion(&mut self, (server, protocol, port): Tuple) {
        let wanted = self.ended.get(&(server, protocol, port));
        if wanted.is_none_or(|ended| !ended.delete) {
            self.cancel(server, Question::Delete(protocol, port));
        }
    }

    fn end(&mut self, tuple: Tuple, ended: Ended) {
        if self.ended.len() >= MAX_ENDED && !self.ended.contains_key(&tuple) {
            self.settle();
            if let Some(first) = self.ended.first() {
                self.forget_ended(first);
            }
        }
        self.ended.insert(tuple, ended);
        let (server, protocol, port) = tuple;
        if ended.delete && !ended.brief {
            let ending = self.trace(tuple, ended.until);
            self.effects.push_back(Effect::Ending(ending));
        }
        if ended.delete {
            let gateway = self.gateway(server);
            gateway.line.join(Question::Delete(protocol, port), false);
        }
    }

    fn forget_ended(&mut self, tuple: Tuple) {
        self.ended.remove(&tuple);
        self.forgotten(tuple);
        let releasing = self
            .by_tuple
            .get(&tuple)
            .and_then(|id| self.leases.get(id))
            .is_some_and(|lease| lease.phase == Phase::Releasing);
        if !releasing {
            self.cancel(tuple.0, Question::Delete(tuple.1, tuple.2));
        }
    }

    /// What a gateway may know of a lease. There are no nonces.
    fn trace(&self, (server, protocol, port): Tuple, until: Instant) -> Trace {
        Trace {
            key: LeaseKey {
                server,
                protocol,
                port,
                behalf: None,
            },
            via: self.via,
            nonce: MappingNonce([0; 12]),
            until,
        }
    }
}
