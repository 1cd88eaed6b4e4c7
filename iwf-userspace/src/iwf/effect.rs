//! What the core wants done.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::policy;
use super::{Ending, Errand, RequestId, Speaks, StaticProblem, Ticket};
use crate::mapping::pinholes::PinholeRecord;
use crate::mapping::record::{LeaseKey, MappingRecord, Mark};
use crate::proto::gena;
use crate::proto::protection as access;
use crate::types::pin::Pin;
use crate::types::pinhole::Pinhole;
use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Generation, NatEntry, Protocol, UnixTime,
};
use crate::wire::pcp::ResultCode;
use crate::wire::soap;

/// What the core wants done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Answer a control point: out arguments in SCPD order, or a UPnP error.
    Reply {
        /// The call that is answered.
        request: RequestId,
        /// The answer.
        result: soap::ActionResult,
    },
    /// Answer a request at an event URL.
    SubscriptionReply {
        /// The request that is answered.
        request: RequestId,
        /// What was granted; `None` for the end of a subscription.
        result: Result<Option<gena::Granted>, gena::Refusal>,
    },
    /// Send an event message to a subscriber. Answered by [`Input::EventSent`](super::Input::EventSent); what is never answered has failed.
    SendEvent(gena::Send),
    /// Stop to send it: nobody wants to hear of it any more.
    CancelEvent {
        /// The number of the message.
        number: u64,
    },
    /// Close a connection over TLS when the calls that came by it are answered.
    HangUp {
        /// Which.
        connection: u64,
    },
    /// Answer the administrator.
    AdminReply {
        /// The request that is answered.
        request: RequestId,
        /// The answer; an error is a sentence for people.
        result: Result<(), String>,
    },
    /// Answer the administrator with the PIN that a control point can be introduced by.
    ShowPin {
        /// The request that is answered.
        request: RequestId,
        /// The PIN.
        pin: Pin,
        /// How long it is good.
        good_for: Duration,
    },
    /// Send a datagram to a PCP server from the socket kept for that server. May be lost; no ticket.
    SendUpstream {
        /// Where to.
        server: SocketAddr,
        /// The UDP payload.
        payload: Vec<u8>,
    },
    /// Do something on the WAN link; what comes of it is [`Input::Returned`](super::Input::Returned).
    Errand(Errand),
    /// Write both kernel entries of a mapping, or overwrite those of the same generation or endpoint.
    WriteNat {
        /// Names it in [`Input::Done`](super::Input::Done).
        ticket: Ticket,
        /// The entry.
        entry: NatEntry,
    },
    /// Remove both kernel entries and end the inbound sessions that used them.
    RemoveNat {
        /// Names it in [`Input::Done`](super::Input::Done).
        ticket: Ticket,
        /// The entry.
        entry: NatEntry,
    },
    /// Make the pinholes of control points in the kernel these. Complete, never a change. The sessions of those that are
    /// gone have ended when it is done.
    WritePinholes {
        /// Names it in [`Input::Done`](super::Input::Done).
        ticket: Ticket,
        /// All of them.
        pinholes: Vec<Pinhole>,
    },
    /// Count the packets that have come in by a pinhole; [`Input::PinholeCounted`](super::Input::PinholeCounted) is the answer.
    CountPinhole {
        /// The call that asks.
        request: RequestId,
        /// The pinhole.
        id: u16,
    },
    /// Have the kernel ask whether somebody is at this address of the LAN. What comes of it is among the neighbours that are
    /// told next.
    Solicit(IpAddr),
    /// Store a change durably before anything that follows depends on it.
    Persist {
        /// Names it in [`Input::Done`](super::Input::Done).
        ticket: Ticket,
        /// The change.
        change: StoreChange,
    },
    /// Something worth an INFO line.
    Notify(Notice),
}

/// One atomic change of the store.
#[derive(Clone, Debug)]
pub enum StoreChange {
    /// Insert or replace the record of this generation.
    Put(MappingRecord),
    /// Remove the record of this generation; absent is fine.
    Delete(Generation),
    /// Insert or replace the mark of this lease.
    Mark(Mark),
    /// Remove the mark of this lease; absent is fine.
    Unmark(LeaseKey),
    /// SystemUpdateID to begin a new life with: not less than what anybody was told.
    UpdateId(u32),
    /// Insert or replace the record of the pinhole of this id.
    PutPinhole(PinholeRecord),
    /// Remove the record of this pinhole; absent is fine.
    DeletePinhole(u16),
    /// Changes of the access list.
    Access(Vec<access::Change>),
    /// A server's clock as seen at that time. Written when a server is met and when it restarted, not with
    /// every response: the tolerance of the epoch test grows with the time that passed.
    Epoch {
        /// Address of the server.
        server: IpAddr,
        /// Its clock.
        epoch: Epoch,
        /// Our wall clock at the same time.
        seen: UnixTime,
    },
}

/// What happened, for logs and listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A mapping became active.
    Created(Generation),
    /// The upstream lease of a mapping was confirmed again.
    Renewed(Generation),
    /// A mapping is gone.
    Removed(Generation),
    /// A mapping has another outermost external endpoint than before, which its owner may want to publish.
    Moved {
        /// The mapping.
        generation: Generation,
        /// Where remote hosts reached it.
        before: ExternalEndpoint,
        /// Where they do now.
        after: ExternalEndpoint,
    },
    /// A server refused something about a mapping.
    UpstreamRefused {
        /// The mapping, or the name of a question about a port or an address.
        generation: Generation,
        /// Who refused.
        server: SocketAddr,
        /// Why.
        result: ResultCode,
        /// Whether it was there before and is in danger now.
        renewal: bool,
    },
    /// A server granted another port than the only one that will do; it is being given back.
    GivenBack {
        /// The mapping.
        generation: Generation,
        /// Who granted it.
        server: SocketAddr,
    },
    /// It became known what a server speaks.
    ServerSpeaks {
        /// The server.
        server: SocketAddr,
        /// What it speaks.
        speaks: Speaks,
    },
    /// The outermost external address changed; `None` means unknown.
    ExternalAddress(Option<Ipv4Addr>),
    /// A mapping of the configuration cannot be had now; it is tried again.
    StaticWaits {
        /// Transport protocol.
        protocol: Protocol,
        /// The external port stated.
        external: ExternalPort,
        /// What is in its way.
        problem: StaticProblem,
    },
    /// A call is about to be refused, for this reason.
    Refused {
        /// The call.
        request: RequestId,
        /// The reason.
        why: policy::Why,
    },
    /// A mapping is taken away that its control point still wants.
    Withdrawn {
        /// The mapping.
        generation: Generation,
        /// The reason, for people.
        why: String,
    },
    /// A pinhole is open that a control point asked for.
    PinholeOpened(Pinhole),
    /// It is closed.
    PinholeClosed(Pinhole, Ending),
    /// A control point was introduced, or not.
    Introduction(access::Told),
    /// A server lost its state or restarted (RFC 6887 section 8.5); its mappings are being re-requested.
    EpochReset(SocketAddr),
}
