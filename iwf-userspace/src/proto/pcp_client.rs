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
mod lease;
mod negative;
mod renewal;
mod respond;
mod retransmit;
mod server;
mod timeout;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;

use crate::mapping::{Lease as Granted, PortChoice};
use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Generation, Instant, Lifetime, LocalAddrs, MappingNonce,
    Protocol, RemotePeer,
};
use crate::wire::pcp::ResultCode;
use lease::{Ended, Insist, Lease, Phase, Purpose, Tuple};
use server::Server;

/// RFC 6887 section 8.3 and AMB-01: longer lifetimes are taken for this one.
pub const MAX_LIFETIME: Lifetime = Lifetime(86_400);

/// Released leases remembered at once; beyond it the one that would be forgotten first is.
const MAX_ENDED: usize = 1024;
/// For how long a late grant for a lease that was given up is recognized and deleted.
const LATE_GRANT: Duration = Duration::from_secs(120);

/// A lease somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Names the lease.
    pub id: Generation,
    /// Who is asked.
    pub server: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// External port of our NAT, the internal one for the server.
    pub port: ExternalPort,
    /// The external port asked for; `None` for no preference.
    pub external: Option<ExternalPort>,
    /// Whether another external port will do.
    pub choice: PortChoice,
    /// Who may come in.
    pub remote: RemotePeer,
    /// For how long it is wanted from now on.
    pub lifetime: Lifetime,
    /// When it is no longer wanted; renewals never ask for more.
    pub until: Instant,
}

/// What the client is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Get this lease; if there is one of that name, on these terms from now on. Answered by
    /// [`Effect::Granted`] or [`Effect::Refused`], unless it is released before.
    Request(Want),
    /// Keep a lease that was granted in an earlier life; if it has lapsed, get it back.
    Adopt {
        /// The terms.
        want: Want,
        /// Server, nonce and end.
        lease: Granted,
        /// What was assigned.
        external: ExternalEndpoint,
    },
    /// Get a lease back that was granted elsewhere (another address of ours, another server) or not at all yet,
    /// at the same external endpoint if it can be. Answered by [`Effect::Granted`] or [`Effect::Lost`].
    Reacquire {
        /// The terms.
        want: Want,
        /// What was assigned before.
        external: ExternalEndpoint,
    },
    /// Nobody waits for it: delete it upstream in the background.
    Abandon(Generation),
    /// Delete it upstream; answered by [`Effect::Released`].
    Release(Generation),
    /// Stop deleting it and make sure that it is still there.
    Keep(Generation),
    /// It is wanted on these terms from the next request on, which is sent when it is due. Nobody waits for an
    /// answer any more: an end of it is reported by [`Effect::Lost`].
    Terms(Want),
    /// Our addresses on the WAN. While there is none of a family, nothing is sent to servers of it. What was granted
    /// to another address is not touched: see [`Input::Reacquire`].
    Local(LocalAddrs),
    /// The servers to keep in contact with.
    Servers(Vec<SocketAddr>),
    /// What was known of a server's clock in an earlier life, so many seconds ago.
    History {
        /// Its address.
        server: IpAddr,
        /// Its clock then.
        epoch: Epoch,
        /// Seconds since then.
        ago: u64,
    },
    /// A datagram from a server.
    Datagram {
        /// Its source.
        from: SocketAddr,
        /// The UDP payload.
        payload: Vec<u8>,
    },
    /// A hard error for what was sent to that server.
    Unreachable(SocketAddr),
}

/// What the client wants done, or has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a datagram.
    Send {
        /// Where to.
        server: SocketAddr,
        /// The UDP payload.
        payload: Vec<u8>,
    },
    /// The lease is good until its new end, at this endpoint.
    Granted {
        /// Names the lease.
        id: Generation,
        /// Server, nonce and end.
        lease: Granted,
        /// What was assigned.
        external: ExternalEndpoint,
    },
    /// What was asked for by [`Input::Request`] was refused. A lease that was there before goes on as it was,
    /// unless [`Effect::Lost`] follows.
    Refused {
        /// Names the lease.
        id: Generation,
        /// Why.
        result: ResultCode,
        /// For how long the refusal stands.
        lifetime: Lifetime,
    },
    /// The lease has ended without having been released.
    Lost {
        /// Names the lease.
        id: Generation,
    },
    /// The outcome of [`Input::Release`]; after an error the lease goes on as it was.
    Released {
        /// Names the lease.
        id: Generation,
        /// The outcome.
        result: Result<(), ResultCode>,
    },
    /// A server has lost its state; its leases are being asked for again.
    EpochReset(SocketAddr),
    /// Worth storing: a server's clock was seen for the first time, or anew after a restart of it.
    EpochSeen {
        /// The server.
        server: SocketAddr,
        /// Its clock.
        epoch: Epoch,
    },
    /// A server has begun or ceased to answer.
    Liveness(SocketAddr),
}

/// Whether a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Asked, no verdict yet.
    Unknown,
    /// It answered last time.
    Answering,
    /// It did not answer in time, or nobody listens there.
    Silent,
}

/// Datagrams from servers that had no effect, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Not from a server that is asked.
    pub stranger: u64,
    /// Not a PCP response.
    pub malformed: u64,
    /// Answers nothing that was asked.
    pub unmatched: u64,
}

/// The machine.
#[derive(Debug)]
pub struct PcpClient {
    rng: StdRng,
    local: LocalAddrs,
    /// The last addresses there were.
    last_local: LocalAddrs,
    servers: BTreeMap<SocketAddr, Server>,
    leases: BTreeMap<Generation, Lease>,
    by_tuple: BTreeMap<Tuple, Generation>,
    ended: BTreeMap<Tuple, Ended>,
    history: BTreeMap<IpAddr, epoch::EpochClock>,
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
            leases: BTreeMap::new(),
            by_tuple: BTreeMap::new(),
            ended: BTreeMap::new(),
            history: BTreeMap::new(),
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
            Input::Reacquire { want, external } => self.reacquire(want, external, now),
            Input::Abandon(id) => self.abandon(id, now),
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
            Input::History { server, epoch, ago } => {
                let clock = epoch::EpochClock::seen(epoch, ago, now);
                self.history.insert(server, clock);
            }
            Input::Datagram { from, payload } => self.receive(from, &payload, now),
            Input::Unreachable(server) => self.unreachable(server, now),
        }
    }

    /// When [`PcpClient::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let up = |server| self.local.towards(server).is_some();
        let leases = self.leases.values();
        let leases = leases.filter_map(|l| l.next_event(up(l.want.server)));
        let ended = self.ended.iter().map(|(of, e)| e.next_event(up(of.0)));
        let servers = self.servers.iter();
        let servers = servers.filter_map(|(at, s)| s.next_event(up(*at)));
        leases.chain(ended).chain(servers).min()
    }

    /// The next effect, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether a server answers; `None` if it is not known here.
    pub fn liveness(&self, server: SocketAddr) -> Option<Liveness> {
        self.servers.get(&server).map(|s| s.liveness)
    }

    /// Whether a server has ever answered, in this life or an earlier one.
    pub fn has_answered(&self, server: SocketAddr) -> bool {
        self.servers
            .get(&server)
            .is_some_and(|s| s.clock.epoch().is_some() || s.liveness == Liveness::Answering)
    }

    /// Last epoch of a server.
    pub fn epoch(&self, server: SocketAddr) -> Option<Epoch> {
        self.servers.get(&server)?.clock.epoch()
    }

    /// What had no effect so far.
    pub const fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// Ports of our NAT that the server may still know from a released lease. They may be used again: the
    /// nonce is kept for it.
    pub fn is_held(&self, server: SocketAddr, protocol: Protocol, port: ExternalPort) -> bool {
        self.ended.contains_key(&(server, protocol, port))
    }

    fn request(&mut self, want: Want, now: Instant) {
        let id = want.id;
        let held = self
            .leases
            .get(&id)
            .filter(|lease| lease.tuple() == want.tuple());
        if let Some(lease) = held {
            let (nonce, known, grant) = (lease.nonce, lease.known, lease.grant);
            let insist = match (want.choice, known) {
                (PortChoice::Exact, Some(known)) if Some(known.port) == want.external => {
                    Insist::Endpoint
                }
                (PortChoice::Exact, _) => Insist::Port,
                (PortChoice::Any, _) => Insist::Nothing,
            };
            let mut lease = Lease::new(want, nonce, insist, Purpose::Answer, now);
            (lease.known, lease.grant) = (known, grant);
            self.leases.insert(id, lease);
            self.handle_timeout(now);
            return;
        }
        self.abandon(id, now);
        let question = lease::question(&want);
        let refused = self
            .servers
            .get(&want.server)
            .and_then(|server| server.negative.get(&question, now));
        if let Some(result) = refused {
            self.effects.push_back(Effect::Refused {
                id,
                result,
                lifetime: Lifetime(0),
            });
            return;
        }
        let insist = match want.choice {
            PortChoice::Exact => Insist::Port,
            PortChoice::Any => Insist::Nothing,
        };
        let nonce = self.nonce_for(want.tuple());
        self.insert(Lease::new(want, nonce, insist, Purpose::Answer, now));
        self.handle_timeout(now);
    }

    fn adopt(&mut self, want: Want, lease: Granted, external: ExternalEndpoint, now: Instant) {
        let mut held = Lease::new(want, lease.nonce, Insist::Endpoint, Purpose::Restore, now);
        held.known = Some(external);
        if lease.expires > now {
            held.grant = Some(lease.expires);
            held.bind(
                now,
                lease.expires.saturating_duration_since(now),
                &mut self.rng,
            );
            self.insert(held);
        } else {
            held.suspend();
            self.insert(held);
            self.server(want.server).recover(want.id, now);
        }
    }

    fn reacquire(&mut self, want: Want, external: ExternalEndpoint, now: Instant) {
        let old = self.leases.get(&want.id);
        let grant = old.and_then(|lease| lease.grant);
        let kept = old.filter(|lease| lease.tuple() == want.tuple());
        let nonce = match kept.map(|lease| lease.nonce) {
            Some(nonce) => nonce,
            None => {
                self.abandon(want.id, now);
                self.nonce_for(want.tuple())
            }
        };
        let mut lease = Lease::new(want, nonce, Insist::Endpoint, Purpose::Restore, now);
        (lease.known, lease.grant) = (Some(external), grant);
        lease.suspend();
        self.insert(lease);
        self.server(want.server).recover(want.id, now);
        self.handle_timeout(now);
    }

    fn abandon(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.remove(&id) else {
            return;
        };
        let tuple = lease.tuple();
        self.by_tuple.remove(&tuple);
        if lease.last_sent.is_some() || lease.grant.is_some() {
            let until = lease.may_last_until(now).max(now + LATE_GRANT);
            self.end(tuple, Ended::deleting(&lease, until, now), now);
        }
        self.handle_timeout(now);
    }

    fn release(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            let result = Ok(());
            self.effects.push_back(Effect::Released { id, result });
            return;
        };
        lease.phase = Phase::Releasing {
            backoff: retransmit::Backoff::default(),
            at: now,
            again: false,
        };
        self.handle_timeout(now);
    }

    fn keep(&mut self, id: Generation, now: Instant) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.ask_again(Insist::Endpoint, now);
        }
        self.handle_timeout(now);
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
        for (address, server) in &mut self.servers {
            let own = local.towards(*address);
            if own.is_some() && own != before.towards(*address) {
                server.probe(now);
            }
        }
        self.handle_timeout(now);
    }

    /// Addresses of ours have changed: what was said about the old ones is void, and what is under way starts anew.
    fn readdress(&mut self, moved: LocalAddrs, now: Instant) {
        let concerned = |server: SocketAddr| moved.towards(server).is_some();
        self.ended.retain(|(server, ..), _| !concerned(*server));
        for (address, server) in &mut self.servers {
            if concerned(*address) {
                server.negative.clear();
            }
        }
        for lease in self.leases.values_mut() {
            if let Phase::Requesting { backoff, at, .. } = &mut lease.phase
                && at.is_some()
                && concerned(lease.want.server)
            {
                (*backoff, *at) = (retransmit::Backoff::default(), Some(now));
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
                if server.liveness == Liveness::Unknown {
                    server.probe(now);
                }
            });
        }
        let in_use = |address: &SocketAddr| {
            self.leases.values().any(|l| l.want.server == *address)
                || self.ended.keys().any(|(server, _, _)| server == address)
        };
        self.servers
            .retain(|address, server| server.listed || in_use(address));
        self.handle_timeout(now);
    }

    fn unreachable(&mut self, address: SocketAddr, now: Instant) {
        let Some(server) = self.servers.get_mut(&address) else {
            return;
        };
        // A restarting server comes back within seconds, so it is asked again soon.
        if server.liveness != Liveness::Silent {
            server.liveness = Liveness::Silent;
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
        self.server(lease.want.server);
        self.by_tuple.insert(lease.tuple(), lease.want.id);
        self.leases.insert(lease.want.id, lease);
    }

    /// The nonce of a tuple the server may still know, or a new one (AMB-02, IWF-067).
    fn nonce_for(&mut self, tuple: Tuple) -> MappingNonce {
        use rand::RngExt;
        match self.ended.remove(&tuple) {
            Some(ended) => ended.nonce,
            None => MappingNonce(self.rng.random()),
        }
    }

    fn end(&mut self, tuple: Tuple, ended: Ended, now: Instant) {
        self.ended.retain(|_, held| held.until > now);
        if self.ended.len() >= MAX_ENDED {
            let first = self.ended.iter().min_by_key(|(_, held)| held.until);
            if let Some(tuple) = first.map(|(tuple, _)| *tuple) {
                self.ended.remove(&tuple);
            }
        }
        self.ended.insert(tuple, ended);
    }
}
