//! Gateways of another protocol, which another machine speaks: it is told what to ask and says what came of it.

use std::net::{Ipv4Addr, SocketAddr};

use super::gateway::Question;
use super::lease::{Phase, Tuple};
use super::respond::Answer;
use super::{Effect, NatPmpClient};
use crate::mapping::PortChoice;
use crate::types::{ExternalPort, Generation, Instant, Lifetime, Protocol};
use crate::wire::pcp::ResultCode;

/// What a gateway is to be asked. The next thing is asked when this one is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Its external address.
    Address,
    /// To map a port of our NAT.
    Map {
        /// Transport protocol.
        protocol: Protocol,
        /// Port of our NAT.
        port: ExternalPort,
        /// Port of the gateway that is wanted; `None` for no preference.
        external: Option<ExternalPort>,
        /// Whether no other will do.
        exact: bool,
        /// Whether it is mapped already, as far as is known here.
        held: bool,
        /// For how long.
        lifetime: Lifetime,
    },
    /// To delete what a port of our NAT is mapped to.
    Delete {
        /// Transport protocol.
        protocol: Protocol,
        /// Port of our NAT.
        port: ExternalPort,
        /// Port of the gateway; `None` if it cannot know the mapping.
        external: Option<ExternalPort>,
    },
}

/// What a gateway says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Its external address, asked or not.
    Address(Ipv4Addr),
    /// This port is about to be asked for, so that it may be mapped from here on.
    Trying(ExternalPort),
    /// It maps this port.
    Granted {
        /// The port.
        external: ExternalPort,
        /// For how long.
        lifetime: Lifetime,
        /// Whether it would keep the mapping for ever.
        permanent: bool,
    },
    /// The port is somebody else's.
    Taken,
    /// It does not map it any more.
    Deleted,
    /// It refuses.
    Refused(ResultCode),
    /// It has lost what it knew.
    Restarted,
}

/// A mapping that a gateway should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port of our NAT.
    pub port: ExternalPort,
    /// Port of the gateway.
    pub external: ExternalPort,
}

impl NatPmpClient {
    /// The next thing to ask, until `None`.
    pub fn poll_asked(&mut self) -> Option<(SocketAddr, Asked)> {
        self.asked.pop_front()
    }

    /// A mapping that a gateway should have, the one after `last` in a circle.
    pub fn mapped_after(&self, server: SocketAddr, last: Option<Mapped>) -> Option<Mapped> {
        let start = (server, Protocol::Tcp, ExternalPort::new(1)?);
        let from: Tuple = last.map_or(start, |m| (server, m.protocol, m.port));
        let after = self.by_tuple.range(from..);
        let after = after.filter(|(tuple, _)| last.is_none() || **tuple != from);
        let mut circle = after
            .chain(self.by_tuple.range(start..))
            .filter(|(tuple, _)| tuple.0 == server);
        circle.find_map(|(tuple, id)| {
            let lease = self.leases.get(id)?;
            let external = lease.known?.port;
            (lease.phase == Phase::Held).then_some(Mapped {
                protocol: tuple.1,
                port: tuple.2,
                external,
            })
        })
    }

    /// Whether something is being asked.
    pub fn is_asking(&self, server: SocketAddr) -> bool {
        let gateway = self.gateways.get(&server);
        gateway.is_some_and(|gateway| gateway.pending.is_some())
    }

    pub(super) fn ask(&mut self, server: SocketAddr, question: Question, now: Instant) -> bool {
        let asked = match question {
            Question::Address => Asked::Address,
            Question::Map(id) => {
                let Some(lease) = self.leases.get_mut(&id) else {
                    return false;
                };
                lease.sent = true;
                let known = lease.known.map(|external| external.port);
                Asked::Map {
                    protocol: lease.want.protocol,
                    port: lease.want.port,
                    external: known.or(lease.want.external),
                    exact: lease.want.choice == PortChoice::Exact,
                    held: lease.is_granted(now),
                    lifetime: lease.lifetime(now),
                }
            }
            Question::Delete(protocol, port) => {
                let tuple = (server, protocol, port);
                let ended = self.ended.get(&tuple).and_then(|ended| ended.external);
                let lease = self.by_tuple.get(&tuple).and_then(|id| self.leases.get(id));
                let releasing = lease.filter(|lease| lease.phase == Phase::Releasing);
                Asked::Delete {
                    protocol,
                    port,
                    external: releasing.and_then(|lease| lease.placed()).or(ended),
                }
            }
        };
        self.asked.push_back((server, asked));
        true
    }

    pub(super) fn said(&mut self, from: SocketAddr, said: Said, now: Instant) {
        let pending = self.gateways.get(&from).and_then(|gateway| gateway.pending);
        let asked = pending.map(|pending| pending.question);
        if self.gateways.contains_key(&from) {
            self.alive(from);
        }
        let map = match asked {
            Some(Question::Map(id)) => Some(id),
            Some(Question::Address | Question::Delete(..)) | None => None,
        };
        match said {
            Said::Restarted => self.restarted(from),
            Said::Address(addr) => {
                if asked == Some(Question::Address) {
                    self.answered(from);
                }
                self.learn_address(from, addr, now);
            }
            Said::Trying(port) => {
                if let Some(lease) = map.and_then(|id| self.leases.get_mut(&id)) {
                    lease.tried = Some(port);
                }
            }
            Said::Granted {
                external,
                lifetime,
                permanent,
            } => {
                if let Some(id) = map {
                    self.answered(from);
                    if let Some(lease) = self.leases.get_mut(&id) {
                        lease.permanent = permanent;
                    }
                    let answer = Answer {
                        result: ResultCode::Success,
                        port: Some(external),
                        lifetime,
                    };
                    self.granted(id, external, &answer, now);
                }
            }
            Said::Taken => {
                if let Some(id) = map {
                    self.answered(from);
                    self.taken(id, now);
                }
            }
            Said::Deleted => {
                if let Some(Question::Delete(protocol, port)) = asked {
                    self.answered(from);
                    self.deleted((from, protocol, port), now);
                }
            }
            Said::Refused(result) => {
                if let Some(question) = asked {
                    self.failed(from, question, result, now);
                }
            }
        }
    }

    fn answered(&mut self, from: SocketAddr) {
        if let Some(gateway) = self.gateways.get_mut(&from) {
            gateway.pending = None;
        }
    }

    /// Somebody else has the port now. What was there will not come back.
    fn taken(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        // What the gateway has at this port is not ours to delete.
        (lease.tried, lease.sent, lease.permanent) = (None, false, false);
        let server = lease.want.server;
        let result = ResultCode::CannotProvideExternal;
        match lease.phase {
            Phase::Asked => {
                let held = lease.is_granted(now);
                if held {
                    lease.grant = None;
                }
                self.failed(server, Question::Map(id), result, now);
                if held {
                    self.effects.push_back(Effect::Lost { id });
                }
            }
            Phase::Restored | Phase::Held => {
                self.effects
                    .push_back(Effect::Trouble { id, server, result });
                self.take_out(id);
                self.effects.push_back(Effect::Lost { id });
            }
            Phase::Releasing => {}
        }
    }
}
