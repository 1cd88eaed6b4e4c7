//! Composes the machines: [`Input`] in, [`Effect`] out.
//!
//! Order of the effects of a new mapping: upstream lease, persist, data plane, reply. Success is never
//! answered before the kernel holds the entry; failure undoes in reverse order.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr};

use crate::mapping::record::MappingRecord;
use crate::types::{Generation, NatEntry, Protocol};
use crate::wire::soap;

/// Names one request of a control point or administrator until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names one effect that can fail until its outcome comes back as [`Input::Done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What the world tells the core.
#[derive(Clone, Debug)]
pub enum Input {
    /// A control point on the LAN called an action. Answered exactly once by [`Effect::Reply`].
    Soap {
        request: RequestId,
        caller: Ipv4Addr,
        call: soap::Call,
    },
    /// The owner of the router asks through the control socket. Answered by [`Effect::AdminReply`].
    Admin {
        request: RequestId,
        command: AdminCommand,
    },
    /// A datagram arrived from a server's socket, or on the announcement group from that address.
    Upstream { from: SocketAddr, payload: Vec<u8> },
    /// The kernel reported that a datagram to this server could not be delivered (hard ICMP error).
    UpstreamUnreachable { server: SocketAddr },
    /// The outcome of an effect that carried a ticket.
    Done {
        ticket: Ticket,
        result: Result<(), EffectError>,
    },
    /// The WAN side changed, or is told for the first time.
    Wan(WanState),
}

/// Why an effect failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EffectError {
    /// The kernel map or the store has no room.
    #[error("no room")]
    Full,
    /// Another owner holds that external endpoint in the kernel (the CPE's own socket or a static entry).
    #[error("external endpoint in use")]
    InUse,
    /// Anything else; the shell has logged it.
    #[error("failed")]
    Failed,
}

/// What is known of the WAN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WanState {
    /// Address of the WAN interface, which is NAT1's external address. `None` while it is down.
    pub address: Option<Ipv4Addr>,
    /// Next hop of the IPv4 default route on the WAN.
    pub gateway: Option<Ipv4Addr>,
}

/// A request of the router's owner, not bound by the policy for LAN hosts.
#[derive(Clone, Debug)]
pub enum AdminCommand {
    /// Remove a mapping by protocol and external port (as the listing shows it).
    Delete {
        protocol: Protocol,
        external_port: u16,
    },
}

/// What the core wants done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Answer a control point: out arguments in SCPD order, or a UPnP error.
    Reply {
        request: RequestId,
        result: soap::ActionResult,
    },
    /// Answer the administrator.
    AdminReply {
        request: RequestId,
        result: Result<(), String>,
    },
    /// Send a datagram to a PCP server from the socket kept for that server. May be lost; no ticket.
    SendUpstream {
        server: SocketAddr,
        payload: Vec<u8>,
    },
    /// Write both kernel entries of a mapping, or overwrite those of the same generation or endpoint.
    WriteNat { ticket: Ticket, entry: NatEntry },
    /// Remove both kernel entries and end the inbound sessions that used them.
    RemoveNat { ticket: Ticket, entry: NatEntry },
    /// Store a change durably before anything that follows depends on it.
    Persist { ticket: Ticket, change: StoreChange },
    /// Something worth an INFO line and, later, an event to subscribers.
    Notify(Notice),
}

/// One atomic change of the store.
#[derive(Clone, Debug)]
pub enum StoreChange {
    /// Insert or replace the record of this generation.
    Put(MappingRecord),
    /// Remove the record of this generation; absent is fine.
    Delete(Generation),
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
    /// The outermost external address changed; `None` means unknown.
    ExternalAddress(Option<Ipv4Addr>),
    /// A server lost its state or restarted (RFC 6887 section 8.5); its mappings are being re-requested.
    EpochReset(SocketAddr),
}
