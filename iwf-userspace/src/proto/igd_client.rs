//! The UPnP IGD client: keeps leases at a router that speaks nothing better.
//!
//! Read before editing: WANIPConnection:1 and :2 sections 2.4 and 2.5, UPnP Device Architecture 1.1 clauses 1.3 and 3.2.
//!
//! The leases are those of [`NatPmpClient`], whose gateways have the same model: ports and an address, no filter, no proof of
//! ownership. Here is what IGD needs besides: the router is searched for and its description read (`router.rs`), each
//! question becomes one or more calls (`task.rs`), and from time to time it is looked after what nobody announces: that it
//! still has what it granted, and its address.
//!
//! Only the default router is asked, and only at its own address, whatever the answers say. One call is under way at a
//! time, and each ends at a deadline.
#![forbid(unsafe_code)]

mod router;
mod task;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::mapping::Via;
use crate::proto::natpmp_client::{self, NatPmpClient};
use crate::proto::pcp_client::{Effect, Handover, Ignored, Liveness};
use crate::types::{Generation, Instant};

use router::Router;

/// What is to be done on the WAN link, and not by datagrams to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Send a search to the group and to the router. Answers, from whomever, within some seconds are
    /// [`Input::Found`].
    Search {
        /// The router.
        router: Ipv4Addr,
        /// The datagram.
        payload: Vec<u8>,
    },
    /// Make a request of HTTP; what comes of it is [`Input::Fetched`].
    Fetch {
        /// Names it there.
        id: u64,
        /// The request.
        request: Request,
    },
}

/// A request of HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where to.
    pub at: SocketAddrV4,
    /// The path; visible ASCII.
    pub path: String,
    /// What is called; a document is fetched without.
    pub call: Option<Call>,
    /// Most octets of the body of an answer.
    pub limit: usize,
}

/// The call of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Value of SOAPAction.
    pub soap_action: String,
    /// The envelope.
    pub body: String,
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Status.
    pub status: u16,
    /// Body, within the limit.
    pub body: Vec<u8>,
}

/// What the client is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// As the NAT-PMP client's.
    Lease(natpmp_client::Input),
    /// The router, as it is named among servers; `None` if there is none or it is not to be asked.
    Router(Option<SocketAddr>),
    /// Whether to look for a gateway there.
    Wanted(bool),
    /// A datagram on the socket of searches.
    Found {
        /// Its source.
        from: SocketAddr,
        /// Its octets.
        payload: Vec<u8>,
    },
    /// What came of a request; `None` if nothing did.
    Fetched {
        /// Names it.
        id: u64,
        /// The answer.
        answer: Option<Fetched>,
    },
}

/// The machine.
#[derive(Debug)]
pub struct IgdClient {
    leases: NatPmpClient,
    local: Option<Ipv4Addr>,
    router: Option<Router>,
    errands: VecDeque<Errand>,
    last_fetch: u64,
    ignored: Ignored,
}

impl Default for IgdClient {
    fn default() -> Self {
        Self {
            leases: NatPmpClient::new(Via::Igd),
            local: None,
            router: None,
            errands: VecDeque::new(),
            last_fetch: 0,
            ignored: Ignored::default(),
        }
    }
}

impl IgdClient {
    /// Takes in what happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Lease(natpmp_client::Input::Local(local)) => {
                let input = natpmp_client::Input::Local(local);
                self.leases.handle_input(input, now);
                // The router knows its clients by their addresses, and what was under way has left from the old one.
                if self.local != local {
                    self.local = local;
                    if let Some(router) = &mut self.router {
                        router.start_over(now);
                    }
                }
            }
            Input::Lease(input) => self.leases.handle_input(input, now),
            Input::Router(at) => {
                if self.router.as_ref().map(|router| router.server) != at {
                    self.router = at.and_then(Router::new);
                }
            }
            Input::Wanted(wanted) => {
                if let Some(router) = &mut self.router {
                    router.want(wanted, now);
                }
            }
            Input::Found { from, payload } => match &mut self.router {
                Some(router) if router.address == from.ip() => {
                    if !router.found(&payload) {
                        self.ignored.unmatched += 1;
                    }
                }
                Some(_) | None => self.ignored.stranger += 1,
            },
            Input::Fetched { id, answer } => match &mut self.router {
                Some(router) if router.awaits(id) => {
                    router.fetched(answer, now);
                }
                // Given up before.
                Some(_) | None => {}
            },
        }
        self.handle_timeout(now);
    }

    /// Does everything due at `now`; calling twice changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.leases.handle_timeout(now);
        loop {
            while let Some((server, asked)) = self.leases.poll_asked() {
                match self.router.as_mut().filter(|r| r.server == server) {
                    Some(router) => router.ask(asked),
                    None => self
                        .leases
                        .handle_input(natpmp_client::Input::Unreachable(server), now),
                }
            }
            let Some(router) = self.router.as_mut().filter(|_| self.local.is_some()) else {
                return;
            };
            router.handle_timeout(self.local, &self.leases, now);
            while let Some(errand) = router.poll_errand(&mut self.last_fetch, now) {
                self.errands.push_back(errand);
            }
            let Some(input) = router.poll_said() else {
                return;
            };
            self.leases.handle_input(input, now);
        }
    }

    /// When [`IgdClient::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let router = self.router.as_ref().filter(|_| self.local.is_some());
        let both = [
            self.leases.poll_timeout(),
            router.and_then(Router::poll_timeout),
        ];
        both.into_iter().flatten().min()
    }

    /// The next effect, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.leases.poll_effect()
    }

    /// The next errand, until `None`.
    pub fn poll_errand(&mut self) -> Option<Errand> {
        self.errands.pop_front()
    }

    /// As the NAT-PMP client's.
    pub fn poll_gone(&mut self) -> Option<natpmp_client::Gone> {
        self.leases.poll_gone()
    }

    /// Whether a lease is this client's.
    pub fn holds(&self, id: Generation) -> bool {
        self.leases.holds(id)
    }

    /// Whether there is anything to remember about a router.
    pub fn uses(&self, server: SocketAddr) -> bool {
        self.leases.uses(server)
    }

    /// Whether a router answers; `None` if it is not known here.
    pub fn liveness(&self, server: SocketAddr) -> Option<Liveness> {
        self.leases.liveness(server)
    }

    /// Whether a gateway was found there since the router is this one.
    pub fn has_answered(&self, server: SocketAddr) -> bool {
        let router = self.router.as_ref().filter(|r| r.server == server);
        router.is_some_and(|router| router.has_answered)
    }

    /// Gives away everything at a server.
    pub fn hand_over(&mut self, server: SocketAddr) -> Vec<Handover> {
        self.leases.hand_over(server)
    }

    /// What had no effect so far.
    pub const fn ignored(&self) -> Ignored {
        self.ignored
    }

    #[cfg(test)]
    pub(crate) fn is_consistent(&self) -> bool {
        self.leases.is_consistent()
    }

    #[cfg(test)]
    pub(crate) fn looks(&self) -> u64 {
        self.leases.looks()
    }
}

#[cfg(test)]
mod tests;
