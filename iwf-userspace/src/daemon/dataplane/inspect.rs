//! What of the kernel's tables can be looked at, and which of it is asked for.
//!
//! An [`Inspector`] has handles of its own and belongs on a thread of its own: it walks tables of any size in slices,
//! keeps nothing of what it has shown, and rests as long as it works, so that forwarding and the event loop go on. What
//! it shows is no instant: an entry that comes or goes during the walk is in it or not.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::ControlFlow;
use std::str::FromStr;

use iwf_common::tcp::{self, Phase, Shown};
use serde::{Deserialize, Serialize};

use super::DataPlaneError;
use crate::types::Generation;
use crate::types::prefix::Prefix;
pub use station::{NotAStation, Station};

mod station;

/// An IANA protocol number, by its name where it is a transport that people know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Transport(pub u8);

const TRANSPORTS: [(u8, &str); 9] = [
    (1, "icmp"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (47, "gre"),
    (50, "esp"),
    (58, "icmpv6"),
    (132, "sctp"),
    (136, "udplite"),
];

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TRANSPORTS.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.pad(name),
            None => f.pad(&self.0.to_string()),
        }
    }
}

impl FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        let known = TRANSPORTS
            .iter()
            .find(|(_, name)| text.eq_ignore_ascii_case(name));
        match known {
            Some((number, _)) => Ok(Self(*number)),
            None => text.parse().map(Self).map_err(|_| UnknownTransport),
        }
    }
}

impl From<Transport> for String {
    fn from(transport: Transport) -> Self {
        transport.to_string()
    }
}

impl TryFrom<String> for Transport {
    type Error = UnknownTransport;

    fn try_from(text: String) -> Result<Self, UnknownTransport> {
        text.parse()
    }
}

/// Neither a name nor a number of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a protocol: write tcp, udp, icmp, icmpv6, sctp, dccp, udplite, esp, gre or a number up to 255"
)]
pub struct UnknownTransport;

/// Which way a flow's first packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// To the WAN, or to another LAN host by its external endpoint.
    Out,
    /// From the WAN.
    In,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// TCP, before both sides have answered.
    Opening,
    /// TCP, open.
    Established,
    /// TCP, one side has sent a FIN.
    Closing,
    /// TCP, both have.
    Closed,
    /// TCP, after a RST that nothing followed.
    Reset,
    /// Not TCP, and only one side has sent.
    Unanswered,
    /// Not TCP, and both have.
    Answered,
}

impl State {
    /// Every state with its name.
    pub const ALL: [(Self, &str); 7] = [
        (Self::Opening, "opening"),
        (Self::Established, "established"),
        (Self::Closing, "closing"),
        (Self::Closed, "closed"),
        (Self::Reset, "reset"),
        (Self::Unanswered, "unanswered"),
        (Self::Answered, "answered"),
    ];

    /// Of a session whose directions have shown this and carried so many packets.
    pub fn of(transport: Transport, shown: [Shown; 2], packets: [u32; 2]) -> Self {
        const TCP: Transport = Transport(6);
        if transport != TCP {
            return if packets.contains(&0) {
                Self::Unanswered
            } else {
                Self::Answered
            };
        }
        let [one, other] = shown;
        let fins = [one, other].map(|shown| shown.flags & tcp::FIN != 0);
        match tcp::phase(one, other) {
            Phase::Established if fins.contains(&true) => Self::Closing,
            Phase::Established => Self::Established,
            Phase::Transitory if fins == [true; 2] => Self::Closed,
            Phase::Transitory if (one.flags | other.flags) & tcp::RST != 0 => Self::Reset,
            Phase::Transitory => Self::Opening,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(state, _)| state == self);
        f.pad(name.map_or("", |(_, name)| name))
    }
}

/// Why a mapping exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Outbound traffic made it.
    Dynamic,
    /// It was asked for, or stands in the configuration.
    Explicit,
    /// It is the router's own.
    Router,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dynamic => "dynamic",
            Self::Explicit => "explicit",
            Self::Router => "router",
        })
    }
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Transport protocol.
    pub protocol: Transport,
    /// The LAN host's endpoint; for ICMP the identifier stands for the port.
    pub internal: SocketAddr,
    /// Its external endpoint; absent for IPv6, which is not translated.
    pub external: Option<SocketAddr>,
    /// The remote endpoint, as the LAN host addresses it.
    pub remote: SocketAddr,
    /// Which way it began; absent where nothing tells.
    pub began: Option<Way>,
    /// How far it is.
    pub state: State,
    /// Packets from the LAN host.
    pub packets_out: u64,
    /// Octets of the IP packets from the LAN host.
    pub octets_out: u64,
    /// Packets to the LAN host.
    pub packets_in: u64,
    /// Octets of the IP packets to the LAN host.
    pub octets_in: u64,
    /// Seconds since the last packet of either direction.
    pub idle_seconds: u64,
    /// Seconds until it ends if nothing more comes, or until its mapping or pinhole ends if that is sooner.
    pub left_seconds: u64,
    /// Which kind of mapping it uses; absent for IPv6.
    pub mapping: Option<Kind>,
    /// Between two LAN hosts by an external endpoint.
    #[serde(default)]
    pub hairpin: bool,
    /// The pinhole it began through. IPv6 only.
    #[serde(default)]
    pub pinhole: Option<u16>,
}

/// Which sessions are asked for. What is `None` is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionFilter {
    /// The LAN host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Prefix>,
    /// The remote host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Prefix>,
    /// The transport protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Transport>,
    /// The internal or the remote port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The external port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_port: Option<u16>,
    /// The state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
}

/// Who speaks with whom: what one entry tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// As in [`SessionRow`].
    pub protocol: Transport,
    /// As in [`SessionRow`].
    pub internal: SocketAddr,
    /// As in [`SessionRow`].
    pub external: Option<SocketAddr>,
    /// As in [`SessionRow`].
    pub remote: SocketAddr,
}

impl SessionFilter {
    /// Whether a session between these ends may be asked for.
    pub fn admits_ends(&self, ends: &Ends) -> bool {
        is_in(self.host, ends.internal.ip())
            && is_in(self.remote, ends.remote.ip())
            && is(self.protocol, ends.protocol)
            && self
                .port
                .is_none_or(|port| ends.internal.port() == port || ends.remote.port() == port)
            && is_port(self.external_port, ends.external)
    }

    /// Whether a session is asked for.
    pub fn admits(&self, row: &SessionRow) -> bool {
        let ends = Ends {
            protocol: row.protocol,
            internal: row.internal,
            external: row.external,
            remote: row.remote,
        };
        self.admits_ends(&ends) && is(self.state, row.state)
    }
}

fn is<T: PartialEq>(wanted: Option<T>, found: T) -> bool {
    wanted.is_none_or(|wanted| wanted == found)
}

fn is_in(wanted: Option<Prefix>, found: IpAddr) -> bool {
    wanted.is_none_or(|wanted| wanted.contains(found))
}

fn is_port(wanted: Option<u16>, found: Option<SocketAddr>) -> bool {
    wanted.is_none_or(|wanted| found.is_some_and(|found| found.port() == wanted))
}

/// A mapping that nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DynamicRow {
    /// Transport protocol.
    pub protocol: Transport,
    /// `dynamic`, or `router` for what the router itself uses.
    pub kind: Kind,
    /// The LAN host's endpoint; for ICMP the identifier stands for the port.
    pub internal: SocketAddr,
    /// Its external endpoint.
    pub external: SocketAddr,
    /// Seconds since the last use that counts for its life, as far as the last sweep has noted it.
    pub idle_seconds: u64,
    /// Seconds until it ends if nothing uses it; absent for what the daemon holds for the router.
    pub left_seconds: Option<u64>,
}

/// Which of them are asked for. What is `None` is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamicFilter {
    /// The LAN host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Prefix>,
    /// The transport protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Transport>,
    /// The internal port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The external port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_port: Option<u16>,
}

impl DynamicFilter {
    /// Whether a mapping is asked for.
    pub fn admits(&self, row: &DynamicRow) -> bool {
        is_in(self.host, row.internal.ip())
            && is(self.protocol, row.protocol)
            && is_port(self.port, Some(row.internal))
            && is_port(self.external_port, Some(row.external))
    }
}

/// What went through a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Packets to the WAN.
    pub packets_out: u64,
    /// Octets of the IP packets to the WAN.
    pub octets_out: u64,
    /// Packets from the WAN.
    pub packets_in: u64,
    /// Octets of the IP packets from the WAN.
    pub octets_in: u64,
}

/// A LAN host and what it holds of the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// Its IPv4 address, with a row for each, or for IPv6 the station: `fe80::` with its MAC address as the last 48
    /// bits.
    pub host: IpAddr,
    /// For IPv6 the station.
    #[serde(default)]
    pub station: Option<Station>,
    /// Sessions it has.
    pub sessions: u64,
    /// Sessions one host may have.
    pub sessions_limit: u64,
    /// Dynamic mappings it has.
    pub mappings: u64,
    /// Dynamic mappings one host may have.
    pub mappings_limit: u64,
    /// The external address of its dynamic mappings.
    pub external: Option<Ipv4Addr>,
    /// Seconds since it last began something.
    pub idle_seconds: u64,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRow {
    /// Name of the table, or of a part of it.
    pub table: String,
    /// What it holds; a session counts once.
    pub entries: u64,
    /// What it has room for; absent for a part of a table.
    pub capacity: Option<u64>,
    /// How old the figure is, in seconds: the sweep counts the large tables while it passes.
    pub seconds_ago: u64,
}

impl TableRow {
    /// A figure of now.
    pub fn new(table: &str, entries: u64, capacity: Option<u64>) -> Self {
        Self {
            table: table.to_owned(),
            entries,
            capacity,
            seconds_ago: 0,
        }
    }
}

/// Takes rows one by one, until it has enough.
pub type Take<'a, T> = &'a mut dyn FnMut(T) -> ControlFlow<()>;

/// Reads the tables, on whatever thread it is moved to.
pub trait Inspector: Send {
    /// Shows the sessions that `filter` admits, those of IPv4 first.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn sessions(
        &mut self,
        filter: &SessionFilter,
        take: Take<'_, SessionRow>,
    ) -> Result<(), DataPlaneError>;

    /// Shows the mappings that nobody asked for.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn dynamic(
        &mut self,
        filter: &DynamicFilter,
        take: Take<'_, DynamicRow>,
    ) -> Result<(), DataPlaneError>;

    /// What went through each explicit mapping: what its ended sessions left, and what the others have counted so far.
    /// What a session that ends during the walk has counted may be missing once.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn usage(&mut self) -> Result<BTreeMap<Generation, Usage>, DataPlaneError>;

    /// Every LAN host that holds something, in no particular order.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn hosts(&mut self) -> Result<Vec<HostRow>, DataPlaneError>;

    /// How full the tables are that the sweep does not count.
    ///
    /// # Errors
    /// Only what the kernel refuses.
    fn small_tables(&mut self) -> Result<Vec<TableRow>, DataPlaneError>;
}

#[cfg(test)]
mod tests;
