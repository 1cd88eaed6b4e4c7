//! What the client is told, and what it has to say.

use std::collections::BTreeSet;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Handover;
use crate::mapping::record::LeaseKey;
use crate::mapping::{Lease as Granted, PortChoice, Via};
use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Generation, Instant, Lifetime, LocalAddrs, MappingNonce,
    Protocol, RemotePeer,
};
use crate::wire::pcp::ResultCode;

/// A lease somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Names the lease.
    pub id: Generation,
    /// Who is asked.
    pub server: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Whose port it is, as THIRD_PARTY names him; `None`: that of whoever asks, our NAT's (AMB-04).
    pub behalf: Option<Ipv4Addr>,
    /// External port of our NAT, the internal one for the server. Without a NAT of ours, the host's own.
    pub port: ExternalPort,
    /// The external port asked for; `None` for no preference.
    pub external: Option<ExternalPort>,
    /// Whether another external port will do.
    pub choice: PortChoice,
    /// Who may come in.
    pub remote: RemotePeer,
    /// Told to the server as DESCRIPTION (RFC 7220), if at all; at most [`MAX_DESCRIPTION`](super::MAX_DESCRIPTION)
    /// octets.
    pub description: Option<String>,
    /// For how long it is wanted from now on.
    pub lifetime: Lifetime,
    /// Whether whoever waits for the answer can wait for its turn as well: no application does.
    pub patient: bool,
    /// When it is no longer wanted; renewals never ask for more.
    pub until: Instant,
    /// It is a question rather than a wish, and ends so soon that nothing is remembered of it over a restart.
    pub brief: bool,
}

/// What a server may know of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Where.
    pub key: LeaseKey,
    /// In which protocol.
    pub via: Via,
    /// By what it knows it.
    pub nonce: MappingNonce,
    /// When it has ended by itself.
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
        /// Whether it was granted by the same server, at whichever of its addresses.
        same_server: bool,
    },
    /// Get what another client held, or was asked for.
    TakeOver(Handover),
    /// Whether what is asked of a server that speaks NAT-PMP only is not refused but left for
    /// [`PcpClient::hand_over`](super::PcpClient::hand_over).
    Fallback(bool),
    /// Whether the path to the servers is trusted so far that requests may name others (RFC 6887 section 13.1): leases
    /// on behalf of somebody are neither asked for nor renewed nor deleted without it. It is not in the beginning.
    Trusted(bool),
    /// Nobody waits for it: delete it upstream in the background.
    Abandon(Generation),
    /// Delete what an earlier life has left there, in the background.
    End(Trace),
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
    /// Addresses of servers that have others: four questions without an answer are enough, see [`Effect::Spent`]. Told
    /// before [`Input::Servers`], complete.
    Several(BTreeSet<SocketAddr>),
    /// Ask there for a sign of life.
    Probe(SocketAddr),
    /// Ask there no more, and take no late answer for a sign of life.
    Rest(SocketAddr),
    /// What is asked at the one address of a server is asked at the other from now on, with the same nonces.
    Move {
        /// The address it was.
        from: SocketAddr,
        /// The address it is.
        to: SocketAddr,
    },
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
        /// Who refused it.
        server: SocketAddr,
        /// Why.
        result: ResultCode,
        /// For how long the refusal stands.
        lifetime: Lifetime,
        /// Whether it said so now; otherwise it was not asked, as it would say the same.
        asked: bool,
    },
    /// A renewal, or what was asked for again, was refused. The lease goes on as long as it was granted, and is tried
    /// again, unless [`Effect::Lost`] follows.
    Trouble {
        /// Names the lease.
        id: Generation,
        /// Who refused it.
        server: SocketAddr,
        /// Why.
        result: ResultCode,
    },
    /// A server granted another port than the only one that will do; it is being given back. [`Effect::Refused`] or
    /// [`Effect::Lost`] follows.
    GivenBack {
        /// Names the lease.
        id: Generation,
        /// Who granted it.
        server: SocketAddr,
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
    /// A server is about to be asked for a lease under a nonce of its own. Comes before the first [`Effect::Send`] for it.
    Asking {
        /// Names the lease.
        id: Generation,
        /// What the server may know from then on.
        trace: Trace,
    },
    /// A server is about to be told that a lease is over. Comes before the first [`Effect::Send`] about it.
    Ending(Trace),
    /// Nothing is left there of what was told by the two before, or nothing that could be ended.
    Forgotten(LeaseKey, Via),
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
    /// Four questions to an address of [`Input::Several`] were not answered.
    Spent(SocketAddr),
    /// It became known what a server speaks; see [`PcpClient::speaks`](super::PcpClient::speaks).
    Speaks(SocketAddr),
}

impl Effect {
    /// What is to be said of a lease whose server granted another port than the only one that will do. `asked`: somebody
    /// waits for the answer. `held`: it had a grant before.
    pub(in crate::proto) fn conflict(
        id: Generation,
        server: SocketAddr,
        asked: bool,
        held: bool,
    ) -> impl Iterator<Item = Self> {
        let given_back = Self::GivenBack { id, server };
        let refused = Self::Refused {
            id,
            server,
            result: ResultCode::CannotProvideExternal,
            lifetime: Lifetime(0),
            asked: true,
        };
        let lost = Self::Lost { id };
        let then = [asked.then_some(refused), (held || !asked).then_some(lost)];
        iter::once(given_back).chain(then.into_iter().flatten())
    }
}

/// What a server was found to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// Nothing was heard of it since it was asked last.
    Unknown,
    /// PCP in our version.
    Pcp,
    /// NAT-PMP (RFC 6887 section 9, RFC 6886 section 3.5): a request may be repeated in that protocol.
    NatPmp,
    /// Nothing of these, but UPnP IGD.
    Igd,
    /// PCP in this version only.
    OtherVersion(u8),
    /// Nobody listens on its port.
    Nothing,
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
