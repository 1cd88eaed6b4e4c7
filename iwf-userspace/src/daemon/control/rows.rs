//! What is listed of mappings, leases, and whoever has to do with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::daemon::dataplane::inspect::{Transport, Usage};
use crate::types::Protocol;
use crate::types::pin::Pin;

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

/// Who may do more than everybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// What the device's certificate names it.
    pub device: String,
    /// Where control points call over TLS.
    pub listeners: Vec<SocketAddr>,
    /// Connections over TLS that are open.
    pub connections: usize,
    /// The PIN that is shown; absent: nobody can be introduced.
    #[serde(default)]
    pub introduction: Option<IntroductionRow>,
    /// The access list.
    pub identities: Vec<IdentityRow>,
}

/// A PIN is shown; which one is told only to who has asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntroductionRow {
    /// How long it is still good.
    pub left_seconds: u64,
    /// Wrong ones that control points have tried.
    pub wrong_pins: u8,
    /// The control point that is being introduced.
    pub control_point: Option<String>,
}

/// A PIN by which a control point can be introduced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownPin {
    /// The PIN.
    pub pin: Pin,
    /// How long it is good.
    pub good_for_seconds: u64,
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
