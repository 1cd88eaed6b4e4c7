//! The control protocol between `iwfctl` and the daemon.
//!
//! A stream socket in the file system, mode 0600. The client writes one [`Request`] as one line of JSON and
//! reads one [`Response`] as one line of JSON; the connection may then carry the next request. To a request that
//! [`Request::is_stream`] come several answers, the last of which is [`Response::End`] or [`Response::Error`]. Fields
//! are only ever added, so that scripts which read `--json` keep working.

pub mod client;
pub mod events;
pub mod lists;
pub mod policy;
pub mod server;
pub mod stats_text;
pub mod table;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use self::events::{EventFilter, EventPage};
use self::policy::PolicyTest;
use super::dataplane::inspect::{
    DynamicFilter, DynamicRow, HostRow, SessionFilter, SessionRow, TableRow, Transport, Usage,
};
use crate::proto::protection::OwnerCommand;
use crate::types::Protocol;

/// Longest request line, in octets. A longer one ends the connection.
pub const MAX_REQUEST: usize = 4096;

/// Longest answer a client reads, in octets: every mapping of a full table with the longest description.
pub const MAX_RESPONSE: u64 = 64 << 20;

/// What the owner of the router asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the daemon is doing.
    Status {},
    /// The three tables side by side.
    Mappings {},
    /// What was granted upstream.
    Leases {},
    /// Who is told of changes.
    Subscriptions {},
    /// What is let in over IPv6 unasked. Walks the IPv6 sessions.
    Pinholes {},
    /// The differences among kernel, leases and mapping table, looked for now.
    Audit {},
    /// Every counter of the data plane, and how full its tables are.
    Stats {},
    /// The three tables side by side, with what went through each mapping. Walks all sessions.
    MappingUsage {},
    /// The sessions, in pages.
    Sessions {
        /// Which.
        #[serde(default)]
        filter: SessionFilter,
        /// How many at most; the others are counted.
        #[serde(default)]
        limit: Option<u64>,
    },
    /// The mappings that nobody asked for, in pages.
    Dynamic {
        /// Which.
        #[serde(default)]
        filter: DynamicFilter,
        /// How many at most; the others are counted.
        #[serde(default)]
        limit: Option<u64>,
    },
    /// The LAN hosts that hold sessions or mappings, in pages, those with the most sessions first.
    Hosts {
        /// How many at most; the others are counted.
        #[serde(default)]
        limit: Option<u64>,
    },
    /// What happened lately, in pages.
    Events {
        /// Which.
        #[serde(default)]
        filter: EventFilter,
        /// Also what comes, without an end.
        #[serde(default)]
        follow: bool,
        /// Only what comes, not what is kept.
        #[serde(default)]
        new: bool,
    },
    /// Ask the DHCP servers of the WAN again.
    Discover {},
    /// What the DHCP client of the system was told of PCP servers.
    DhcpOption {
        /// Of DHCPv4 or of DHCPv6.
        family: Family,
        /// The value of option 158, or those of each instance of option 86, in hexadecimal digits. None: it was not
        /// told.
        #[serde(default)]
        values: Vec<String>,
        /// It does not know any more: what the daemon finds out by itself counts.
        #[serde(default)]
        forget: bool,
    },
    /// What the policy says, and what it would say to a wish.
    Policy {
        /// The wish.
        #[serde(default)]
        test: Option<PolicyTest>,
    },
    /// Who may do more than everybody.
    Protection {},
    /// Change that.
    Access {
        /// What to change.
        change: OwnerCommand,
    },
    /// Remove a mapping.
    Delete {
        /// Transport protocol.
        protocol: Protocol,
        /// External port as `mappings` lists it (the carrier's, in cascaded mode).
        external_port: u16,
    },
}

impl Request {
    /// Whether several answers come.
    pub fn is_stream(&self) -> bool {
        match self {
            Self::Sessions { .. }
            | Self::Dynamic { .. }
            | Self::Hosts { .. }
            | Self::Events { .. } => true,
            Self::Status {}
            | Self::Mappings {}
            | Self::Leases {}
            | Self::Subscriptions {}
            | Self::Pinholes {}
            | Self::Audit {}
            | Self::Stats {}
            | Self::MappingUsage {}
            | Self::Discover {}
            | Self::DhcpOption { .. }
            | Self::Policy { .. }
            | Self::Protection {}
            | Self::Access { .. }
            | Self::Delete { .. } => false,
        }
    }
}

/// One of the two DHCP protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// DHCPv4, whose option 158 names PCP servers.
    Dhcp4,
    /// DHCPv6, whose option 86 does.
    Dhcp6,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To `status`.
    Status(Box<Status>),
    /// To `mappings`, by generation.
    Mappings(Vec<MappingRow>),
    /// To `leases`, by generation.
    Leases(Vec<LeaseRow>),
    /// To `subscriptions`.
    Subscriptions(Vec<SubscriptionRow>),
    /// To `pinholes`, by id.
    Pinholes(Vec<PinholeRow>),
    /// To `protection`.
    Protection(Protection),
    /// To `audit`.
    Audit(Audit),
    /// To `stats`.
    Stats(Stats),
    /// Some of the answer to `sessions`.
    Sessions(Vec<SessionRow>),
    /// Some of the answer to `dynamic`.
    Dynamic(Vec<DynamicRow>),
    /// Some of the answer to `hosts`.
    Hosts(Vec<HostRow>),
    /// Some of the answer to `events`.
    Events(EventPage),
    /// To `policy`, without a wish.
    Policy(policy::Policy),
    /// To `policy`, with one.
    PolicyTest(Box<policy::Tested>),
    /// That was all.
    End(ListEnd),
    /// Done, nothing more to say.
    Done,
    /// Not done; why.
    Error(String),
}

impl Response {
    /// The answer as JSON for scripts: the value itself without the name of its kind. An error is an object
    /// with the one key `error`, a bare success one with the key `done`.
    pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        match self {
            Self::Status(status) => serde_json::to_value(status),
            Self::Mappings(rows) => serde_json::to_value(rows),
            Self::Leases(rows) => serde_json::to_value(rows),
            Self::Subscriptions(rows) => serde_json::to_value(rows),
            Self::Pinholes(rows) => serde_json::to_value(rows),
            Self::Protection(protection) => serde_json::to_value(protection),
            Self::Audit(audit) => serde_json::to_value(audit),
            Self::Stats(stats) => serde_json::to_value(stats),
            Self::Sessions(rows) => serde_json::to_value(rows),
            Self::Dynamic(rows) => serde_json::to_value(rows),
            Self::Hosts(rows) => serde_json::to_value(rows),
            Self::Events(page) => serde_json::to_value(page),
            Self::Policy(policy) => serde_json::to_value(policy),
            Self::PolicyTest(tested) => serde_json::to_value(tested),
            Self::End(end) => serde_json::to_value(end),
            Self::Done => Ok(serde_json::json!({ "done": true })),
            Self::Error(why) => Ok(serde_json::json!({ "error": why })),
        }
    }
}

/// The end of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEnd {
    /// How many there are of what was asked for.
    pub matched: u64,
    /// How many of them were not shown.
    pub more: u64,
}

/// How the daemon is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// `auto`, `cascaded`, `no-nat`, `ds-lite` or `local`, as configured.
    pub configured_mode: String,
    /// The mode in force.
    pub mode: String,
    /// Whether our NAT translates IPv4, rather than the provider's device.
    #[serde(default = "translates")]
    pub translates: bool,
    /// Whether requests upstream may name LAN hosts.
    #[serde(default)]
    pub third_party: bool,
    /// Whether LAN clients are served.
    pub ready: bool,
    /// The WAN interface.
    pub wan_interface: String,
    /// Its address, which is NAT1's external address.
    pub wan_address: Option<Ipv4Addr>,
    /// Its global IPv6 address, from which servers with IPv6 addresses are asked.
    #[serde(default)]
    pub wan_address6: Option<Ipv6Addr>,
    /// The next hop of the default route.
    pub gateway: Option<Ipv4Addr>,
    /// The address remote hosts use, as far as known.
    pub external_address: Option<Ipv4Addr>,
    /// Every external address of our NAT, if there are several: the WAN's own first.
    #[serde(default)]
    pub external_addresses: Vec<ExternalAddress>,
    /// The LAN prefix that the WAN's overlaps with: neither side reaches the other's hosts in it.
    #[serde(default)]
    pub address_conflict: Option<String>,
    /// Where LAN clients are served.
    pub listeners: Vec<Listener>,
    /// PCP servers.
    pub servers: Vec<Server>,
    /// What DHCP has said of them, if it is asked.
    #[serde(default)]
    pub discovery: Vec<Discovered>,
    /// Where the network says a DS-Lite tunnel ends.
    #[serde(default)]
    pub aftr: Option<String>,
    /// The DS-Lite softwire, while there is one.
    #[serde(default)]
    pub softwire: Option<SoftwireEnds>,
    /// Mappings in the table.
    pub mappings: u64,
    /// Sessions in the kernel at the last sweep.
    pub sessions: u64,
    /// What the reconciler did.
    pub reconciler: Reconciler,
    /// What the store did.
    #[serde(default)]
    pub store: StoreState,
    /// Subscriptions to events.
    #[serde(default)]
    pub subscriptions: u64,
}

/// Between whom IPv4 goes through IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoftwireEnds {
    /// Our end.
    pub local: Ipv6Addr,
    /// The AFTR.
    pub aftr: Ipv6Addr,
}

/// Daemons of before knew nothing else.
const fn translates() -> bool {
    true
}

/// One of several external addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// LAN hosts whose dynamic mappings are there.
    pub hosts: u64,
}

/// One LAN address with the HTTP server on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// LAN interface.
    pub interface: String,
    /// Address and port of description and control.
    pub address: SocketAddr,
    /// The same over TLS, if it is offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<SocketAddr>,
}

/// Who may do more than everybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// What the device's certificate names it.
    pub device: String,
    /// Where control points call over TLS.
    pub listeners: Vec<SocketAddr>,
    /// Connections over TLS that are open.
    pub connections: usize,
    /// The access list.
    pub identities: Vec<IdentityRow>,
}

/// One entry of the access list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRow {
    /// `user` or `control-point`.
    pub kind: String,
    /// Name of the user, or what the certificate names the control point.
    pub id: String,
    /// Name of the product, of a control point.
    pub name: Option<String>,
    /// Name that a person has given it, of a control point.
    pub alias: Option<String>,
    /// Roles besides that of everybody.
    pub roles: Vec<String>,
    /// Whether the control point has proven that its user knows the PIN.
    pub introduced: bool,
    /// Whether the user has a password.
    pub password: bool,
    /// Connections on which the user is logged in.
    pub logins: usize,
}

/// One pinhole. What is absent of it is any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinholeRow {
    /// Its number, as sessions and control points have it.
    pub id: u16,
    /// Whether the configuration states it; else a control point has asked for it.
    pub is_static: bool,
    /// The LAN host's address.
    pub internal: Ipv6Addr,
    /// Its port.
    pub internal_port: Option<u16>,
    /// The remote host.
    pub remote: Option<Ipv6Addr>,
    /// Its port.
    pub remote_port: Option<u16>,
    /// IANA protocol number, by its name where it is a transport that people know.
    pub protocol: Option<Transport>,
    /// MAC address of the host that asked, if it is known.
    pub host: Option<String>,
    /// Seconds until it ends; absent: it stays.
    pub lease_left_seconds: Option<u64>,
    /// Packets that have come in by it.
    pub packets: u64,
    /// Whether the kernel has it.
    pub kernel: bool,
}

/// One address of a PCP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Number of the server in order of preference, from 1; its addresses have the same one.
    #[serde(default)]
    pub server: usize,
    /// Who named it: `config`, `dhcp4`, `dhcp6`, `router`, `aftr` or `anycast`.
    #[serde(default)]
    pub origin: String,
    /// Where requests go.
    pub address: SocketAddr,
    /// Whether it is the one of the server's addresses that is in use.
    #[serde(default)]
    pub in_use: bool,
    /// `unknown`, `answering`, `silent`, or `not-asked`.
    pub state: String,
    /// The protocol in which it is asked: `pcp` or `nat-pmp`.
    #[serde(default)]
    pub via: String,
    /// Last epoch seen, in seconds.
    pub epoch: Option<u32>,
    /// How the NAT64 behind it makes IPv6 addresses, where that was asked.
    #[serde(default)]
    pub prefixes64: Vec<Prefix64Row>,
}

/// One prefix of a NAT64 (RFC 7225): an IPv4 address stands between prefix and suffix (RFC 6052).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix64Row {
    /// Address and length.
    pub prefix: String,
    /// The octets behind the IPv4 address in hexadecimal digits.
    pub suffix: String,
    /// IPv4 prefixes of the destinations it is good for; none: of all.
    pub destinations: Vec<String>,
}

/// What one of the DHCP protocols has said of PCP servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    /// Which.
    pub family: Family,
    /// `asking`, `answered`, `unanswered`, or `told` by the DHCP client of the system.
    pub state: String,
    /// The servers, each with its addresses as they were named.
    pub servers: Vec<Vec<IpAddr>>,
    /// Answers so far.
    pub answers: u64,
    /// Datagrams that were none.
    pub ignored: u64,
    /// Answers of which something was left out.
    pub discarded: u64,
}

/// What the reconciler did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciler {
    /// Runs since start.
    pub runs: u64,
    /// Seconds since the last one.
    pub seconds_ago: Option<u64>,
    /// Kernel entries created, updated and removed by the last one.
    pub repaired: u64,
    /// Repairs of the last one that failed.
    pub failed: u64,
    /// Whether one is under way.
    #[serde(default)]
    pub running: bool,
    /// Turns of the event loop that the last one took.
    #[serde(default)]
    pub turns: u64,
    /// The most processor time that one of them took, in microseconds.
    #[serde(default)]
    pub longest_turn_micros: u64,
    /// Of all runs.
    #[serde(default)]
    pub total: Repairs,
}

/// Repairs since the start, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    /// Kernel entries that no mapping vouched for.
    pub removed: u64,
    /// Kernel entries that were missing.
    pub created: u64,
    /// Kernel entries that differed from their mapping.
    pub updated: u64,
    /// Repairs that the kernel refused.
    pub failed: u64,
    /// Runs that could not look at the kernel.
    pub blind: u64,
}

/// What the store did since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreState {
    /// Commits, each with one sync.
    pub commits: u64,
    /// Changes in them.
    pub changes: u64,
    /// Commits that failed.
    pub failures: u64,
    /// For how many seconds it has failed; absent while it works.
    #[serde(default)]
    pub failing_seconds: Option<u64>,
}

/// One mapping in the three tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingRow {
    /// Identity of the mapping.
    pub generation: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The LAN host's endpoint.
    pub internal: SocketAddrV4,
    /// The external endpoint of our NAT.
    pub nat1: SocketAddrV4,
    /// Whether the kernel holds exactly this entry.
    pub kernel: bool,
    /// The carrier's external endpoint; absent in local mode.
    pub carrier: Option<SocketAddrV4>,
    /// The only remote host let in; absent means any, or those of the list.
    pub remote_host: Option<Ipv4Addr>,
    /// The remote prefixes let in, where it is not one host or everybody.
    #[serde(default)]
    pub remote_list: Vec<String>,
    /// Seconds left of the control point's lease.
    pub lease_left_seconds: u64,
    /// Seconds left of the upstream lease; absent in local mode.
    pub granted_left_seconds: Option<u64>,
    /// Text of the control point.
    pub description: String,
    /// Stated in the configuration: it has no lease of its own.
    #[serde(default, rename = "static")]
    pub is_static: bool,
    /// Why it is not in force. Only for one of the configuration; then `generation` is 0, and `nat1` has the external
    /// port asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// What went through it since the kernel has it. Only if it was asked for.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One upstream lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// Identity of the mapping.
    pub generation: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The server that granted it.
    pub server: SocketAddr,
    /// In which protocol: `pcp` or `nat-pmp`.
    #[serde(default)]
    pub via: String,
    /// What the server calls internal: the external endpoint of our NAT.
    pub nat1: SocketAddrV4,
    /// What the server assigned.
    pub assigned: SocketAddrV4,
    /// Seconds left.
    pub granted_left_seconds: u64,
}

/// One subscription to the events of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionRow {
    /// Its name.
    pub sid: String,
    /// Type and version of the service.
    pub service: String,
    /// Who subscribed.
    pub host: IpAddr,
    /// Where its messages go, in the order in which that is tried.
    pub callbacks: Vec<String>,
    /// Seconds left of it.
    pub left_seconds: u64,
    /// The number of its next message.
    pub next_seq: u32,
    /// Whether a message is on its way.
    pub sending: bool,
    /// Messages in a row that did not get through.
    pub failures: u32,
}

/// Whether the three tables agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// No difference found.
    pub clean: bool,
    /// Explicit entries in the kernel.
    pub kernel_entries: u64,
    /// Upstream leases held.
    pub leases: u64,
    /// Mappings in the table.
    pub mappings: u64,
    /// What differs, one sentence each.
    pub differences: Vec<String>,
    /// What the reconciler did so far.
    #[serde(default)]
    pub reconciler: Reconciler,
}

/// Counters of the data plane, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Sessions at the last sweep.
    pub sessions: u64,
    /// Sum over all CPUs since the programs were loaded.
    pub counters: Vec<Counter>,
    /// What reconciler and store did since the daemon started.
    #[serde(default)]
    pub daemon: Vec<Counter>,
    /// How full the tables are; the large ones are missing before the first sweep has ended.
    #[serde(default)]
    pub tables: Vec<TableRow>,
    /// What the daemon holds, and what waits in it.
    #[serde(default)]
    pub held: Vec<Held>,
}

/// How much of something the daemon holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Of what.
    pub name: String,
    /// How much, now.
    pub held: u64,
    /// The bound; absent if another one bounds it.
    pub limit: Option<u64>,
}

impl Held {
    /// So much of something.
    pub fn new(name: &str, held: usize, limit: Option<usize>) -> Self {
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Self {
            name: name.to_owned(),
            held: wide(held),
            limit: limit.map(wide),
        }
    }
}

/// One named counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Name, as in the documentation of the data plane.
    pub name: String,
    /// Value.
    pub value: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_their_form_on_the_wire() {
        let cases = [
            (Request::Status {}, r#"{"command":"status"}"#),
            (Request::Audit {}, r#"{"command":"audit"}"#),
            (
                Request::Delete {
                    protocol: Protocol::Tcp,
                    external_port: 5000,
                },
                r#"{"command":"delete","protocol":"Tcp","external_port":5000}"#,
            ),
            (
                Request::Sessions {
                    filter: SessionFilter {
                        external_port: Some(5000),
                        ..SessionFilter::default()
                    },
                    limit: None,
                },
                r#"{"command":"sessions","filter":{"external_port":5000},"limit":null}"#,
            ),
            (
                Request::Events {
                    filter: EventFilter::default(),
                    follow: true,
                    new: false,
                },
                r#"{"command":"events","filter":{},"follow":true,"new":false}"#,
            ),
        ];
        for (request, wire) in cases {
            assert_eq!(serde_json::to_string(&request).unwrap(), wire);
            assert_eq!(serde_json::from_str::<Request>(wire).unwrap(), request);
        }
    }

    #[test]
    fn what_is_left_out_is_any() {
        let request: Request = serde_json::from_str(r#"{"command":"sessions"}"#).unwrap();
        let all = Request::Sessions {
            filter: SessionFilter::default(),
            limit: None,
        };
        assert_eq!(request, all);
    }

    #[test]
    fn unknown_requests_and_fields_are_refused() {
        for wire in [
            r#"{"command":"format-disk"}"#,
            r#"{"command":"status","verbose":true}"#,
            r#"{"command":"delete","protocol":"Tcp","external_port":65536}"#,
            r#"{"command":"delete","protocol":"Sctp","external_port":1}"#,
            r#"{"command":"sessions","filter":{"host":"nobody"}}"#,
            r#"{"command":"events","filter":{"kinds":["nothing"]}}"#,
            "[]",
            "",
        ] {
            assert!(serde_json::from_str::<Request>(wire).is_err(), "{wire}");
        }
    }
}
