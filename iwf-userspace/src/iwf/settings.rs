//! What the core is told once, at start.

use std::net::SocketAddr;
use std::time::Duration;

use crate::mapping::policy::{Limits, Policy};
use crate::proto::firewall::Firewall;
use crate::proto::protection;

/// UPnP Device Architecture 1.1 clause 3 gives an action 30 s, AMB-06 answers it within 28 s.
/// Half a second of them is for the shell and the network.
pub const SOAP_DEADLINE: Duration = Duration::from_millis(27_500);

/// Everything configurable that a protocol decision depends on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether an upstream server is asked.
    pub mode: ModeSetting,
    /// Servers in order of preference; the first that answers is used. Without any they are looked for.
    pub servers: Vec<ServerSource>,
    /// Where they are looked for.
    pub discovery: Discovery,
    /// What a private WAN address without a server means (AMB-13).
    pub private_wan: PrivateWan,
    /// Who may map what.
    pub policy: Policy,
    /// How long a device may be away before what it has opened is closed; `None`: for ever.
    pub departed_after: Option<Duration>,
    /// Bounds of the table.
    pub limits: Limits,
    /// Whether the path to the servers is trusted, so that requests may name LAN hosts on it (RFC 6887 section 13.1).
    pub third_party: bool,
    /// Whether servers that speak NAT-PMP only are asked in that.
    pub nat_pmp: bool,
    /// Whether the default router is asked in UPnP if it speaks nothing better.
    pub igd: bool,
    /// Whether servers are told the descriptions of mappings (AMB-18: they may be private).
    pub send_descriptions: bool,
    /// Longest time until an action is answered. More than 30 s is for control points that are known to wait.
    pub deadline: Duration,
    /// What WANIPv6FirewallControl may do.
    pub firewall: Firewall,
    /// Who the device is to control points that may do more than everybody; `None`: none may.
    pub protection: Option<protection::Settings>,
    /// Value of DefaultConnectionService (Layer3Forwarding:1).
    pub default_connection_service: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: ModeSetting::Auto,
            servers: vec![ServerSource::DefaultRouter],
            discovery: Discovery::default(),
            private_wan: PrivateWan::Refuse,
            policy: Policy::default(),
            departed_after: Some(Duration::from_secs(3600)),
            limits: Limits::default(),
            third_party: false,
            nat_pmp: true,
            igd: false,
            send_descriptions: false,
            deadline: SOAP_DEADLINE,
            firewall: Firewall::default(),
            protection: None,
            default_connection_service: String::new(),
        }
    }
}

/// The mode as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeSetting {
    /// Cascaded if the WAN address is not public and a server is known, local otherwise.
    Auto,
    /// Always cascaded; the default router counts as known without having answered.
    Cascaded,
    /// Nothing is translated here: the provider's device maps the LAN hosts' own addresses.
    NoNat,
    /// The same with a DS-Lite tunnel as the way of IPv4 (RFC 6333): servers are asked over IPv6. While the WAN has an IPv4
    /// address as [`Self::Auto`] (RFC 7084 DLW-3).
    DsLite,
    /// Never ask a server.
    Local,
}

/// What decides about who is asked; it may change at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// As [`Settings::mode`].
    pub mode: ModeSetting,
    /// As [`Settings::servers`].
    pub servers: Vec<ServerSource>,
    /// As [`Settings::discovery`].
    pub discovery: Discovery,
    /// As [`Settings::third_party`].
    pub third_party: bool,
}

/// Who translates IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// Our NAT.
    Here,
    /// The provider's device, to which packets are routed as they are.
    Routed,
    /// The same at the end of a DS-Lite tunnel.
    DsLite,
}

/// Where to find a PCP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerSource {
    /// The next hop of the default route (RFC 6887 section 8.1). Known only after it has answered once.
    DefaultRouter,
    /// This one, known because someone configured it.
    Address(SocketAddr),
    /// This one, with several addresses.
    Addresses(Vec<SocketAddr>),
}

/// Where PCP servers are looked for, in this order. The default is nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// DHCPv4 option 158 and DHCPv6 option 86 (RFC 7291).
    pub dhcp: bool,
    /// The next hop of the default route, if DHCP names nobody (RFC 6887 section 8.1).
    pub router: bool,
    /// The anycast address, if that does not answer (RFC 7723).
    pub anycast: bool,
}

/// AMB-13: what to answer behind a NAT nobody can control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateWan {
    /// 729: a port opened here cannot be reached from the Internet.
    Refuse,
    /// Map here all the same.
    MapLocally,
}

/// The mode in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every mapping is backed by a lease of this server.
    Cascaded(SocketAddr),
    /// The same without a NAT of ours: every mapping is a lease on behalf of its LAN host.
    NoNat(SocketAddr),
    /// This NAT is the outermost one, or is treated as such.
    Local,
    /// A private WAN address and nobody to ask: mappings are refused.
    NoServer,
    /// The WAN has no address.
    Down,
}

impl Mode {
    /// The server that every mapping has a lease of.
    pub const fn server(self) -> Option<SocketAddr> {
        match self {
            Self::Cascaded(server) | Self::NoNat(server) => Some(server),
            Self::Local | Self::NoServer | Self::Down => None,
        }
    }
}
