//! Configuration: a TOML file becomes a [`Config`] in which every value has been checked.
//!
//! Two types on purpose: `raw` mirrors the file and knows the line of each value, [`Config`] holds only what
//! passed. A value that is refused is reported with file, line and what to write instead.

mod hooks;
mod mappings;
mod raw;
mod rules;
mod servers;
mod validate;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iwf_common::limits::POOL;

use super::control::events::EventKind;
use crate::iwf::{AccessType, MAX_ASKED};
use crate::mapping::StaticMapping;
use crate::mapping::rules::Rules;
pub use crate::proto::softwire::Source as Aftr;

/// Everything the daemon was told, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether a provider's NAT is asked for mappings as well.
    pub mode: Mode,
    /// LAN side: bridges, or the ports themselves. 1 to [`MAX_LAN_INTERFACES`], no duplicates.
    pub lan_interfaces: Vec<InterfaceName>,
    /// WAN side; never one of the LAN interfaces.
    pub wan_interface: InterfaceName,
    /// Services of this machine that hosts on the WAN may reach.
    pub open_ports: OpenPorts,
    /// What control points are told of the line to the provider.
    pub line: Line,
    /// What to do with a private or shared WAN address and no PCP server (AMB-13).
    pub behind_private_address: BehindPrivateAddress,
    /// PCP servers to ask, in order of preference. At most [`MAX_PCP_SERVERS`], their addresses counted; empty means
    /// that they are looked for.
    pub pcp_servers: Vec<PcpServer>,
    /// Whether PCP servers are told the descriptions of mappings (RFC 7220).
    pub send_descriptions: bool,
    /// Whether requests to them may name LAN hosts (RFC 6887 section 13.1).
    pub trusts_upstream: bool,
    /// Whether servers that speak NAT-PMP only are asked in that.
    pub nat_pmp: bool,
    /// Whether the default router is asked in UPnP if it speaks nothing better.
    pub igd: bool,
    /// Where they are looked for.
    pub discovery: Discovery,
    /// Where run-time files live.
    pub paths: Paths,
    /// Description and control server on the LAN.
    pub http: HttpConfig,
    /// Discovery on the LAN.
    pub ssdp: SsdpConfig,
    /// Where IPv4 goes through IPv6 where the WAN has none; `None`: nowhere.
    pub ds_lite: Option<Aftr>,
    /// How the packet programs are attached.
    pub attach: AttachMode,
    /// Whether LAN hosts may get external ports of this machine's own ephemeral range.
    pub ephemeral_ports: EphemeralPorts,
    /// Largest TCP segment that is let pass in a SYN, IPv4.
    pub mss_clamp: MssClamp,
    /// What holds for flows that somebody begins.
    pub rules: FlowRules,
    /// External addresses besides the WAN interface's own. At most [`POOL`], none twice.
    pub external_addresses: Vec<Ipv4Addr>,
    /// What LAN hosts may ask for.
    pub policy: PolicyConfig,
    /// Whether some control points may do more than all, and where they call; `None`: none may.
    pub device_protection: Option<ProtectionConfig>,
    /// The IPv6 filter.
    pub ipv6: Ipv6,
    /// What is let in over IPv6 unasked; at most [`MAX_PINHOLES`].
    pub pinholes: Vec<StaticPinhole>,
    /// Sizes of the tables.
    pub limits: Limits,
    /// When idle kernel state is freed.
    pub timeouts: Timeouts,
    /// Time between two runs of the reconciler when nothing nudges it.
    pub reconcile_interval: Duration,
    /// Where the metrics are served, an address of this machine; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Log filter in the syntax of `tracing_subscriber::EnvFilter`; `RUST_LOG` overrides it.
    pub log_filter: String,
    /// Whether the packet programs log each packet they drop.
    pub log_drops: bool,
    /// Programs run when something happens. At most [`MAX_HOOKS`], none twice.
    pub hooks: Vec<Hook>,
    /// Mappings that are always there. At most [`MAX_STATIC_MAPPINGS`], none twice for one protocol and port.
    pub mappings: Vec<StaticMapping>,
}

/// Most LAN interfaces one daemon serves; each costs a listener and a multicast membership.
pub const MAX_LAN_INTERFACES: usize = 16;
/// Most addresses of PCP servers that can be named.
pub const MAX_PCP_SERVERS: usize = MAX_ASKED;

/// Most lease files that are read.
pub const MAX_LEASE_FILES: usize = 8;
/// Most pinholes a configuration may have.
pub const MAX_PINHOLES: usize = 1024;
/// Most mappings that can be stated, TCP and UDP counted apart; all are asked for at once at start.
pub const MAX_STATIC_MAPPINGS: usize = 256;

/// Most hooks a configuration may have; each is a task, and a process while it runs.
pub const MAX_HOOKS: usize = 16;

/// The well-known port of PCP servers (RFC 6887 section 7).
pub const PCP_PORT: u16 = 5351;

/// Role towards the provider's NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Cascaded if a PCP server is known and the WAN address is not public, local otherwise.
    Auto,
    /// Every mapping is also requested upstream.
    Cascaded,
    /// Nothing is translated here: the provider's device translates what is routed to it.
    NoNat,
    /// The same at the end of a DS-Lite tunnel (RFC 6333).
    DsLite,
    /// Nothing is asked upstream; the control points drive this NAT alone.
    Local,
}

/// RFC 6970 section 5.1 leaves open what a plain IGD answers behind a NAT it cannot control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BehindPrivateAddress {
    /// Answer 729: no port opened here can be reached from the Internet.
    Refuse,
    /// Map here all the same, for instance behind a router with a static forward to this one.
    MapLocally,
}

/// Where to send PCP requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PcpServer {
    /// Whatever the default route of the WAN points to, at [`PCP_PORT`] (RFC 6887 section 8.1).
    DefaultRouter,
    /// These addresses and ports, which all lead to the same server. Never empty. An address of the link is on the WAN's.
    Addresses(Vec<SocketAddr>),
}

/// Where PCP servers are looked for that nobody has named here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// DHCPv4 option 158 and DHCPv6 option 86 (RFC 7291).
    pub dhcp: bool,
    /// Else the next hop of the default route (RFC 6887 section 8.1).
    pub router: bool,
    /// If that does not answer, the anycast address (RFC 7723).
    pub anycast: bool,
}

impl Discovery {
    /// Nobody is looked for.
    pub const NONE: Self = Self {
        dhcp: false,
        router: false,
        anycast: false,
    };
}

/// How the packet programs are attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// XDP in the driver where it can, else XDP in the network core, else tc; each step down with a warning.
    Auto,
    /// XDP in the driver, else tc.
    Native,
    /// XDP in the network core, else tc.
    Generic,
    /// tc, which keeps segmentation offload.
    Tc,
}

/// What becomes of the ports this machine draws its own from (net.ipv4.ip_local_port_range).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EphemeralPorts {
    /// LAN hosts get them too: their own ephemeral ports are the same, and may so be kept. A flow of this machine that
    /// finds its port taken is translated.
    Share,
    /// LAN hosts never get them.
    Exclude,
}

/// To what the maximum segment size of a TCP connection is lowered when it begins (RFC 9293 section 3.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MssClamp {
    /// To what the WAN carries.
    Auto,
    /// As announced.
    Off,
    /// To so many octets.
    To(u16),
}

impl MssClamp {
    /// Octets of the largest segment where a link takes packets of `mtu`, as the programs want it: 0 is "as
    /// announced".
    pub fn size(self, mtu: Option<u32>) -> u16 {
        /// Octets of the IPv4 and the TCP header without options.
        const HEADERS: u32 = 40;
        match self {
            Self::Off => 0,
            Self::To(size) => size,
            Self::Auto => mtu.map_or(0, |mtu| {
                u16::try_from(mtu.saturating_sub(HEADERS)).unwrap_or(0)
            }),
        }
    }
}

/// Ports on which this machine itself is reachable from the WAN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenPorts {
    /// TCP ports, ascending, no duplicates.
    pub tcp: Vec<u16>,
    /// UDP ports, ascending, no duplicates.
    pub udp: Vec<u16>,
}

/// Directories and sockets, all absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Holds the store and its lock.
    pub state_dir: PathBuf,
    /// Holds pinned programs, links and maps; on a bpf file system.
    pub bpffs_dir: PathBuf,
    /// Unix socket of `iwfctl`.
    pub control_socket: PathBuf,
}

/// Bounds of the HTTP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    /// TCP port on each LAN address; 0 takes any free one, which control points learn from LOCATION.
    pub port: u16,
    /// Connections open at once, 1 to 4096.
    pub max_connections: usize,
    /// Connections open at once from one address, 1 to `max_connections`.
    pub max_connections_per_host: usize,
    /// When an action is answered at the latest (AMB-06): 5 s to 90 s.
    pub answer_within: Duration,
}

/// The line to the provider, which is not always what the WAN's device is: behind a modem it is slower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// What kind it is.
    pub access: AccessType,
    /// Bits per second upstream; `None`: what the device says of itself.
    pub up: Option<u64>,
    /// Bits per second downstream; `None`: what the device says of itself.
    pub down: Option<u64>,
}

/// Where control points call over TLS, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtectionConfig {
    /// TCP port on each LAN address; 0 takes any free one, which control points learn from SECURELOCATION.
    pub port: u16,
    /// Connections open at once, 1 to 256.
    pub max_connections: usize,
    /// Connections open at once from one address, 1 to `max_connections`.
    pub max_connections_per_host: usize,
}

/// Discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SsdpConfig {
    /// CACHE-CONTROL max-age; announcements repeat at a random time before half of it. At least 1800 s.
    pub max_age: Duration,
    /// IP TTL of multicast, 1 to 4.
    pub ttl: u8,
}

/// What LAN hosts may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Lowest internal and external port a host may map.
    pub min_port: u16,
    /// Mappings one host may hold.
    pub max_mappings_per_host: u32,
    /// Whether a host may map for another one (SEC-04: off).
    pub third_party: ThirdParty,
    /// How long a device may be away before what it has opened is closed; `None`: for ever.
    pub departed_after: Option<Duration>,
    /// What the LAN's DHCP servers have given out; at most [`MAX_LEASE_FILES`].
    pub lease_files: Vec<PathBuf>,
    /// Which device may have which ports; at most [`MAX_RULES`](crate::mapping::rules::MAX_RULES).
    pub rules: Rules,
}

/// Whether a host may ask for mappings of another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdParty {
    /// Only for itself.
    Refused,
    /// For every host of its LAN.
    Allowed,
}

/// The IPv6 filter (RFC 6092).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// `false`: everything passes (REC-49).
    pub filter: bool,
    /// Whom an endpoint of a LAN host lets in after it has sent (REC-11, REC-17).
    pub filtering: Filtering,
    /// Whether that holds for TCP, SCTP and DCCP as well (REC-33).
    pub open_tcp: bool,
    /// Whether LAN hosts may ask for pinholes (WANIPv6FirewallControl:1, InboundPinholeAllowed).
    pub pinholes: bool,
    /// Whether those may be for every port, or every protocol.
    pub pinhole_wildcards: bool,
    /// How many one host may have.
    pub max_pinholes_per_host: u32,
}

impl Default for Ipv6 {
    fn default() -> Self {
        Self {
            filter: true,
            filtering: Filtering::EndpointIndependent,
            open_tcp: false,
            pinholes: true,
            pinhole_wildcards: false,
            max_pinholes_per_host: 32,
        }
    }
}

/// Who may begin a flow, and what others are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowRules {
    /// Whom the mapping of an IPv4 endpoint lets in after it has sent.
    pub filtering: Filtering,
    /// What is answered to a packet that is refused.
    pub refusals: Refusals,
}

/// Who is told that a packet was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refusals {
    /// Both sides (RFC 5382 REQ-4, RFC 5508 REQ-8, RFC 6092 REC-34).
    #[default]
    Answer,
    /// LAN hosts only.
    AnswerLan,
    /// Nobody.
    Silent,
}

/// Whom an endpoint lets in that has sent (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody.
    EndpointIndependent,
    /// The hosts it has sent to, from every port.
    AddressDependent,
    /// The endpoints it has sent to.
    #[default]
    AddressAndPortDependent,
}

/// A pinhole of the configuration. What is `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StaticPinhole {
    /// The LAN host's address.
    pub internal: Ipv6Addr,
    /// Its port.
    pub internal_port: Option<u16>,
    /// The remote host.
    pub remote: Option<Ipv6Addr>,
    /// Its port.
    pub remote_port: Option<u16>,
    /// IANA protocol number.
    pub protocol: Option<u8>,
}

/// A program that is run when something happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What it is run for; never empty.
    pub events: Vec<EventKind>,
    /// Absolute path of the program, then its arguments; never empty.
    pub run: Vec<String>,
}

/// Table sizes. The kernel maps are allocated for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions in the kernel, both directions of a flow counting once.
    pub sessions: u32,
    /// IPv6 sessions in the kernel, counted in the same way.
    pub sessions6: u32,
    /// Explicit and dynamic mappings together.
    pub mappings: u32,
    /// Explicit mappings, of all hosts together; at most `mappings`.
    pub explicit_mappings: u32,
}

/// Idle times after which the kernel frees a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP (RFC 4787 REQ-5: never under 120 s, 300 s recommended).
    pub udp_idle: Duration,
    /// Established TCP (RFC 5382 REQ-5: at least 2 h 4 min).
    pub tcp_established: Duration,
    /// TCP being opened or closed (RFC 5382 REQ-5: at least 4 min).
    pub tcp_transitory: Duration,
    /// ICMP queries (RFC 5508 REQ-2: at least 60 s).
    pub icmp_query: Duration,
}

/// The name of a network interface: 1 to 15 octets, no slash, no blank.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// `None` if the kernel could not have an interface of this name.
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=15).contains(&name.len()) && !matches!(name, "." | "..");
        let clean = !name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        (fits && clean).then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a configuration was refused.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Line in the file, from 1, where it can be told.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub advice: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}; {}", self.problem, self.advice)
    }
}

impl Config {
    /// Largest configuration file read, in octets.
    const MAX_FILE: u64 = 1 << 20;

    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key, or a value that is out of range.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |problem: String| ConfigError {
            path: path.to_owned(),
            line: None,
            problem,
            advice:
                "name a readable file with --config (packaging/iwf.toml is a commented example)"
                    .to_owned(),
        };
        let length = std::fs::metadata(path)
            .map_err(|e| unreadable(format!("cannot be read ({e})")))?
            .len();
        if length > Self::MAX_FILE {
            return Err(unreadable(format!("{length} octets is no configuration")));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|e| unreadable(format!("cannot be read ({e})")))?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` only appears in errors.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: raw::File = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| line_of(text, span.start));
            ConfigError {
                path: path.to_owned(),
                line,
                problem: e.message().trim().replace('\n', " "),
                advice: raw::advice(e.message()),
            }
        })?;
        Self::try_from(raw).map_err(|invalid| ConfigError {
            path: path.to_owned(),
            line: invalid.at.map(|offset| line_of(text, offset)),
            problem: invalid.problem,
            advice: invalid.advice,
        })
    }

    /// The keys that differ from `new` and take effect only after a restart, because sockets, files or
    /// kernel maps were made from them.
    pub fn restart_keys(&self, new: &Self) -> Vec<&'static str> {
        [
            ("lan.interfaces", self.lan_interfaces != new.lan_interfaces),
            ("wan.interface", self.wan_interface != new.wan_interface),
            (
                "wan.behind_private_address",
                self.behind_private_address != new.behind_private_address,
            ),
            (
                "upstream.send_descriptions",
                self.send_descriptions != new.send_descriptions,
            ),
            ("upstream.nat_pmp", self.nat_pmp != new.nat_pmp),
            ("upstream.igd", self.igd != new.igd),
            ("paths", self.paths != new.paths),
            ("http", self.http != new.http),
            ("ssdp", self.ssdp != new.ssdp),
            ("ds_lite", self.ds_lite != new.ds_lite),
            ("xdp.attach", self.attach != new.attach),
            (
                "nat.ephemeral_ports",
                self.ephemeral_ports != new.ephemeral_ports,
            ),
            ("nat.mss_clamp", self.mss_clamp != new.mss_clamp),
            (
                "device_protection",
                self.device_protection != new.device_protection,
            ),
            ("ipv6", self.ipv6 != new.ipv6),
            ("limits", self.limits != new.limits),
            ("timeouts", self.timeouts != new.timeouts),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

impl Config {
    /// What is no error, but hardly meant.
    pub fn warnings(&self) -> Vec<String> {
        let rules = &self.policy.rules;
        let shadowed = rules.shadowed().into_iter().map(|(rule, before)| {
            format!(
                "policy rule {rule} never decides: rule {before} comes first for everything that it is about; remove it, \
                 or write it before that one"
            )
        });
        let about_nothing = rules.about_nothing().into_iter().map(|rule| {
            format!(
                "policy rule {rule} never decides: a mapping leads to an IPv4 address, and a pinhole to one port of an \
                 IPv6 address; correct its addresses or ports, or what it is for"
            )
        });
        let nameless = rules.list.iter().zip(1_u16..).filter(|(rule, _)| {
            self.policy.lease_files.is_empty() && !rule.devices.names.is_empty()
        });
        let nameless = nameless.map(|(_, rule)| {
            format!(
                "policy rule {rule} never decides: without policy.lease_files no device has a name; name the files, or \
                 the devices in another way"
            )
        });
        shadowed.chain(about_nothing).chain(nameless).collect()
    }

    /// Whether the DHCP servers of the WAN are asked.
    pub fn asks_dhcp(&self) -> bool {
        let servers =
            self.mode != Mode::Local && self.pcp_servers.is_empty() && self.discovery.dhcp;
        servers || self.ds_lite == Some(Aftr::Dhcp)
    }
}

/// A refused value: where in the text it starts, what is wrong, what would be right.
#[derive(Debug)]
struct Invalid {
    at: Option<usize>,
    problem: String,
    advice: String,
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|&&octet| octet == b'\n').count() + 1
}

#[cfg(test)]
mod tests;
