//! How the daemon is doing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Family, Repairs};

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
