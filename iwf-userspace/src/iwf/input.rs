//! What the core is told.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::policy;
use super::{Asking, Discovered, Lan6, LinkCounters};
use crate::mapping::StaticMapping;
use crate::mapping::pinholes::PinholeRecord;
use crate::mapping::policy::LanPrefix;
use crate::mapping::record::{MappingRecord, Mark};
use crate::proto::gena;
use crate::proto::igd_client;
use crate::proto::protection as access;
use crate::types::access::Identity;
use crate::types::caller::Caller;
use crate::types::device::LanDevices;
use crate::types::pinhole::Pinhole;
use crate::types::{Epoch, LocalAddrs, NatEntry, Protocol, UnixTime};
use crate::wire;
use crate::wire::scpd::Service;
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
    /// A control point on the LAN called an action. Answered exactly once by [`Effect::Reply`](super::Effect::Reply).
    Soap {
        /// Names the call in the reply.
        request: RequestId,
        /// Who calls.
        caller: Caller,
        /// The decoded call.
        call: soap::Call,
        /// For how long it has been on its way here, which is time of its deadline.
        waited: Duration,
    },
    /// A control point asked at the event URL of a service. Answered at once by [`Effect::SubscriptionReply`](super::Effect::SubscriptionReply).
    Subscription {
        /// Names the request in the answer.
        request: RequestId,
        /// The service.
        service: &'static Service,
        /// Who is at the other end of the connection.
        host: gena::Host,
        /// Where it came to.
        at: gena::At,
        /// What is asked.
        wanted: wire::gena::Request,
    },
    /// What came of an [`Effect::SendEvent`](super::Effect::SendEvent).
    EventSent {
        /// The number of the message.
        number: u64,
        /// Whether the subscriber has confirmed it.
        result: Result<(), gena::SendError>,
    },
    /// A connection over TLS is closed.
    SecureClosed {
        /// Which.
        connection: u64,
    },
    /// The owner of the router asks through the control socket. Answered by [`Effect::AdminReply`](super::Effect::AdminReply).
    Admin {
        /// Names the request in the answer.
        request: RequestId,
        /// What to do.
        command: AdminCommand,
    },
    /// A datagram arrived from a server's socket, or on the announcement group from that address.
    Upstream {
        /// Its source; for an announcement the server's address and the port requests go to.
        from: SocketAddr,
        /// The UDP payload.
        payload: Vec<u8>,
    },
    /// The kernel reported that a datagram to this server could not be delivered (hard ICMP error).
    UpstreamUnreachable {
        /// Where the datagram was sent to.
        server: SocketAddr,
    },
    /// The outcome of an effect that carried a ticket.
    Done {
        /// The effect's ticket.
        ticket: Ticket,
        /// Its outcome.
        result: Result<(), EffectError>,
    },
    /// The WAN side changed, or is told for the first time.
    Wan(WanState),
    /// What the network says of its PCP servers changed, or is told for the first time. Complete, never a change.
    Discovered(Discovered),
    /// The DHCP client of the system has renewed the WAN's lease, whether or not that changed anything.
    Renewed,
    /// What came of [`Effect::Errand`](super::Effect::Errand).
    Returned(igd_client::Input),
    /// The LAN prefixes changed, or are told for the first time. Complete, never a change.
    Lan(Vec<LanPrefix>),
    /// The links of the LAN that events may go by, and every IPv6 address of this machine. Complete, never a change.
    Links {
        /// Our addresses there.
        links: Vec<gena::Link>,
        /// This machine's.
        own: BTreeSet<Ipv6Addr>,
    },
    /// The LAN's IPv6 changed, or is told for the first time.
    Lan6(Lan6),
    /// The outcome of [`Effect::CountPinhole`](super::Effect::CountPinhole); `None`: the kernel does not tell.
    PinholeCounted {
        /// The effect's request.
        request: RequestId,
        /// Packets that came in by it.
        packets: Option<u64>,
    },
    /// Ports of our NAT that this machine uses itself. Complete, never a change.
    OwnPorts(BTreeSet<(Protocol, u16)>),
    /// The external ports of this machine's own services changed. Complete, never a change. Mappings that are there
    /// stay until they end.
    Reserved(Vec<(Protocol, u16)>),
    /// The mappings that the configuration states. Complete, never a change; at most one per protocol and port.
    /// Those of an earlier life stay until this is told for the first time.
    Statics(Vec<StaticMapping>),
    /// The owner has changed the policy.
    Policy(policy::Wanted),
    /// Who is on the LAN, told from time to time.
    Devices(LanDevices),
    /// What decides about who is asked has changed in the configuration. No mapping is lost by it.
    Asking(Asking),
    /// Numbers of the WAN link, told from time to time for WANCommonInterfaceConfig.
    Link(LinkCounters),
    /// The wall clock was set, or is told again.
    WallClock(UnixTime),
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
    /// Address of the WAN interface, which is NAT1's first external address and the one that PCP requests come from.
    /// `None` while it is down.
    pub address: Option<Ipv4Addr>,
    /// Next hop of the IPv4 default route on the WAN.
    pub gateway: Option<Ipv4Addr>,
    /// External addresses besides that one; none counts without it.
    pub pool: Vec<Ipv4Addr>,
    /// Global IPv6 address of the WAN interface: what requests to servers with IPv6 addresses come from.
    pub address6: Option<Ipv6Addr>,
    /// Next hop of the IPv6 default route on the WAN; one of the link is meant to be on the WAN's.
    pub gateway6: Option<Ipv6Addr>,
}

impl WanState {
    /// Whom servers see.
    pub const fn local(&self) -> LocalAddrs {
        LocalAddrs {
            v4: self.address,
            v6: self.address6,
        }
    }
}

/// A request of the router's owner, not bound by the policy for LAN hosts.
#[derive(Clone, Debug)]
pub enum AdminCommand {
    /// Remove a mapping by protocol and external port (as the listing shows it).
    Delete {
        /// Transport protocol.
        protocol: Protocol,
        /// Outermost external port.
        external_port: u16,
    },
    /// Change who may what.
    Access(access::OwnerCommand),
}

/// What store and kernel kept, for [`super::Iwf::restore`].
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// Every mapping.
    pub mappings: Vec<MappingRecord>,
    /// The largest generation ever used.
    pub last_generation: u32,
    /// Last epoch seen per server, with the wall-clock time it was seen.
    pub epochs: Vec<(IpAddr, Epoch, UnixTime)>,
    /// What servers may hold besides what mappings stand on.
    pub marks: Vec<Mark>,
    /// SystemUpdateID.
    pub update_id: u32,
    /// What the kernel has kept of an earlier life.
    pub held: Vec<NatEntry>,
    /// Every pinhole of control points.
    pub pinholes: Vec<PinholeRecord>,
    /// Who may do more than everybody.
    pub identities: Vec<Identity>,
    /// The id that was given last.
    pub last_pinhole: u16,
    /// The pinholes that the kernel has kept.
    pub held_pinholes: Vec<Pinhole>,
}
