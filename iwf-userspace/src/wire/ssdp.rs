//! Discovery: searches in, answers and announcements out.
//!
//! Read before editing: UPnP Device Architecture 1.1 clause 1.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::description::{Device, DeviceUuid, Tree};
use super::scpd::Service;

/// The multicast group of discovery over IPv4.
pub const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// Annex A: the group of discovery over IPv6 on one link.
pub const GROUP_LINK: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc);
/// Annex A: the group of discovery over IPv6 in one site.
pub const GROUP_SITE: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0xc);
/// The port of discovery.
pub const PORT: u16 = 1900;
/// Clause 1.3.2: where a device may hear unicast searches instead.
pub const SEARCH_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;
/// Clause 1.3.2: a larger MX is taken for this.
pub const MAX_MX: u8 = 5;
/// Longest ST that is looked at, in octets.
pub const MAX_TARGET: usize = 256;
/// Header lines that are looked at.
const MAX_HEADERS: usize = 64;
/// An answer to a single target is not spread over more than this: some clients wait one second for it, and
/// one device is no implosion.
const SINGLE_TARGET_SPREAD: Duration = Duration::from_millis(300);

/// A search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// ST as sent, without blanks around it; the answer repeats it.
    pub st: String,
    /// What it asks for; `None`: something no gateway has.
    pub target: Option<Target>,
    /// Seconds over which the answers may be spread, at most [`MAX_MX`]; `None`: missing or not a number.
    pub mx: Option<u8>,
    /// USER-AGENT, if sent.
    pub user_agent: Option<String>,
}

/// What a search asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `ssdp:all`.
    All,
    /// `upnp:rootdevice`.
    RootDevice,
    /// One device by its identity.
    Uuid(DeviceUuid),
    /// A device type of this version or newer.
    Device {
        /// Type without version.
        kind: String,
        /// Oldest version.
        version: u8,
    },
    /// A service type of this version or newer.
    Service {
        /// Type without version.
        kind: String,
        /// Oldest version.
        version: u8,
    },
}

/// Why a datagram is not a search that could be answered. All are dropped in silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// Another method: an announcement or an answer of another device.
    #[error("not a search")]
    NotASearch,
    /// MAN is missing or not `ssdp:discover`.
    #[error("search without ssdp:discover")]
    NoDiscover,
    /// ST is missing, empty or over [`MAX_TARGET`] octets.
    #[error("search without a target")]
    NoTarget,
}

/// How a search arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Sent to the group.
    Multicast,
    /// Sent to the device's own address.
    Unicast,
}

/// One thing that is announced, or found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Advert {
    /// Notification type in announcements, search target in answers.
    pub nt: String,
    /// Unique service name.
    pub usn: String,
}

/// What every message of the device carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender<'a> {
    /// URL of the description, with the address that the receiver can reach.
    pub location: &'a str,
    /// The same over TLS, where it is offered (DeviceProtection:1 section 2.1): SECURELOCATION.UPNP.ORG.
    pub secure_location: Option<&'a str>,
    /// The group that announcements go to ([`group`]).
    pub group: IpAddr,
    /// `OS/version UPnP/1.1 product/version`.
    pub server: &'a str,
    /// How long the message holds, in seconds; at least 1800 (clause 1.2.2).
    pub max_age: u32,
    /// BOOTID.UPNP.ORG.
    pub boot_id: u32,
    /// CONFIGID.UPNP.ORG.
    pub config_id: u32,
    /// SEARCHPORT.UPNP.ORG: where unicast searches are heard, if not at [`PORT`] (clause 1.3.2).
    pub search_port: Option<u16>,
}

impl Search {
    /// Reads a datagram of the discovery port.
    ///
    /// Tolerated: names and method in any case, no blank after a colon, bare line feeds, empty lines in front,
    /// a missing empty line at the end, MAN without quotes. The first of several equal headers counts.
    pub fn decode(datagram: &[u8]) -> Result<Self, SearchError> {
        let mut lines = datagram
            .split(|b| *b == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .skip_while(|line| line.trim_ascii().is_empty());
        let request = lines.next().unwrap_or(&[]);
        let mut words = request
            .split(u8::is_ascii_whitespace)
            .filter(|w| !w.is_empty());
        let is_search = words
            .next()
            .is_some_and(|m| m.eq_ignore_ascii_case(b"M-SEARCH"))
            && words.next() == Some(b"*")
            && words
                .next()
                .and_then(|version| version.get(..7))
                .is_some_and(|version| version.eq_ignore_ascii_case(b"HTTP/1."));
        if !is_search {
            return Err(SearchError::NotASearch);
        }
        let mut man = None;
        let mut st = None;
        let mut mx = None;
        let mut user_agent = None;
        for line in lines.take_while(|line| !line.is_empty()).take(MAX_HEADERS) {
            let Some((name, value)) = std::str::from_utf8(line)
                .ok()
                .and_then(|line| line.split_once(':'))
            else {
                continue;
            };
            let slot = match name.trim().to_ascii_uppercase().as_str() {
                "MAN" => &mut man,
                "ST" => &mut st,
                "MX" => &mut mx,
                "USER-AGENT" => &mut user_agent,
                _ => continue,
            };
            slot.get_or_insert(value.trim());
        }
        let quotes = |c: char| c == '"' || c == '\'' || c.is_whitespace();
        if !man.is_some_and(|man| {
            man.trim_matches(quotes)
                .eq_ignore_ascii_case("ssdp:discover")
        }) {
            return Err(SearchError::NoDiscover);
        }
        let st = st
            .filter(|st| !st.is_empty() && st.len() <= MAX_TARGET)
            .ok_or(SearchError::NoTarget)?;
        Ok(Self {
            st: st.to_owned(),
            target: Target::parse(st),
            mx: mx.and_then(seconds),
            user_agent: user_agent.map(str::to_owned),
        })
    }

    /// Over how long its answers have to be spread at random; `None`: it is not answered, because a multicast
    /// search has to say MX (clause 1.3.2).
    pub fn spread(&self, arrival: Arrival) -> Option<Duration> {
        match (arrival, self.mx) {
            (Arrival::Unicast, _) => Some(Duration::ZERO),
            (Arrival::Multicast, None) => None,
            (Arrival::Multicast, Some(mx)) => {
                let spread = Duration::from_secs(mx.into());
                Some(match self.target {
                    Some(Target::All) => spread,
                    _ => spread.min(SINGLE_TARGET_SPREAD),
                })
            }
        }
    }

    /// The tree whose description is the answer's location: version 2 only for a search that names what version 1 does not
    /// have, and a client that can bear it.
    pub fn tree(&self) -> Tree {
        let all = || Tree::Igd1.root().walk();
        let is_in_version_1 = match &self.target {
            Some(Target::Device { kind, version }) => {
                all().any(|device| device.kind == kind && device.version >= *version)
            }
            Some(Target::Service { kind, version }) => all()
                .flat_map(|device| device.services)
                .any(|service| service.kind == kind && service.version >= *version),
            Some(Target::All | Target::RootDevice | Target::Uuid(_)) | None => true,
        };
        let tree = if is_in_version_1 {
            Tree::Igd1
        } else {
            Tree::Igd2
        };
        tree.for_user_agent(self.user_agent.as_deref())
    }

    /// The tree for a search that comes to this address of ours: over IPv6 that of version 2, whatever is searched, because
    /// only that has the firewall, by which IPv6 hosts are reached; again unless the client cannot bear it.
    pub fn tree_at(&self, own: IpAddr) -> Tree {
        match own {
            IpAddr::V4(_) => self.tree(),
            IpAddr::V6(_) => Tree::Igd2.for_user_agent(self.user_agent.as_deref()),
        }
    }

    /// What is found in [`Search::tree`]; empty: not answered.
    pub fn answers(&self, uuid: DeviceUuid) -> Vec<Advert> {
        self.answers_in(self.tree(), uuid)
    }

    /// What is found in a tree; empty: not answered.
    pub fn answers_in(&self, tree: Tree, uuid: DeviceUuid) -> Vec<Advert> {
        let root = tree.root();
        let typed = |device: &Device| Advert {
            nt: self.st.clone(),
            usn: format!("uuid:{}::{}", uuid.of(device), self.st),
        };
        match &self.target {
            None => Vec::new(),
            Some(Target::All) => advertisements(tree, uuid),
            Some(Target::RootDevice) => vec![typed(root)],
            Some(Target::Uuid(asked)) => root
                .walk()
                .filter(|device| uuid.of(device) == *asked)
                .map(|_| Advert {
                    nt: self.st.clone(),
                    usn: format!("uuid:{asked}"),
                })
                .collect(),
            Some(Target::Device { kind, version }) => root
                .walk()
                .filter(|device| device.kind == kind && device.version >= *version)
                .map(typed)
                .collect(),
            Some(Target::Service { kind, version }) => root
                .walk()
                .filter(|device| {
                    let wanted = |s: &&&Service| s.kind == kind && s.version >= *version;
                    device.services.iter().any(|service| wanted(&service))
                })
                .map(typed)
                .collect(),
        }
    }
}

impl Target {
    fn parse(st: &str) -> Option<Self> {
        if st.eq_ignore_ascii_case("ssdp:all") {
            return Some(Self::All);
        }
        if st.eq_ignore_ascii_case("upnp:rootdevice") {
            return Some(Self::RootDevice);
        }
        if st.starts_with("uuid:") {
            return DeviceUuid::parse(st).ok().map(Self::Uuid);
        }
        let typed = st.strip_prefix("urn:schemas-upnp-org:")?;
        let (class, typed) = typed.split_once(':')?;
        let (kind, version) = typed.split_once(':')?;
        let version = version.parse().ok().filter(|version| *version > 0)?;
        let kind = kind.to_owned();
        match class {
            "device" => Some(Self::Device { kind, version }),
            "service" => Some(Self::Service { kind, version }),
            _ => None,
        }
    }
}

/// The group that is searched and announced to by this address of the device: what is found must be reachable from
/// everywhere in the group's scope (annex A).
pub const fn group(own: IpAddr) -> IpAddr {
    match own {
        IpAddr::V4(_) => IpAddr::V4(GROUP),
        IpAddr::V6(addr) if addr.is_unicast_link_local() => IpAddr::V6(GROUP_LINK),
        IpAddr::V6(_) => IpAddr::V6(GROUP_SITE),
    }
}

/// Everything a tree announces: three for the root, two for each device in it, one for each service.
pub fn advertisements(tree: Tree, uuid: DeviceUuid) -> Vec<Advert> {
    let advert = |device: &Device, nt: String| Advert {
        usn: format!("uuid:{}::{nt}", uuid.of(device)),
        nt,
    };
    let root = tree.root();
    let mut all = vec![advert(root, "upnp:rootdevice".to_owned())];
    for device in root.walk() {
        let udn = format!("uuid:{}", uuid.of(device));
        all.push(Advert {
            nt: udn.clone(),
            usn: udn,
        });
        all.push(advert(device, device.urn()));
        for service in device.services {
            all.push(advert(device, service.urn()));
        }
    }
    all
}

/// The answer to a search. `date` is the time in the form of RFC 9110, if a clock is at hand.
pub fn encode_answer(sender: &Sender<'_>, advert: &Advert, date: Option<&str>) -> Vec<u8> {
    let mut message = Message::new("HTTP/1.1 200 OK");
    message.header("CACHE-CONTROL", format_args!("max-age={}", sender.max_age));
    if let Some(date) = date {
        message.header("DATE", format_args!("{date}"));
    }
    message.empty_header("EXT");
    message.header("LOCATION", format_args!("{}", sender.location));
    message.header("SERVER", format_args!("{}", sender.server));
    message.header("ST", format_args!("{}", advert.nt));
    message.header("USN", format_args!("{}", advert.usn));
    // Clients of version 1.0 recognize a restart by these two.
    message.header(
        "OPT",
        format_args!("\"http://schemas.upnp.org/upnp/1/0/\"; ns=01"),
    );
    message.header("01-NLS", format_args!("{}", sender.boot_id));
    message.ids(sender);
    message.search_port(sender);
    message.secure_location(sender);
    message.finish()
}

/// The announcement that the device is there (NTS `ssdp:alive`).
pub fn encode_alive(sender: &Sender<'_>, advert: &Advert) -> Vec<u8> {
    let mut message = Message::notify(sender);
    message.header("CACHE-CONTROL", format_args!("max-age={}", sender.max_age));
    message.header("LOCATION", format_args!("{}", sender.location));
    message.header("NT", format_args!("{}", advert.nt));
    message.header("NTS", format_args!("ssdp:alive"));
    message.header("SERVER", format_args!("{}", sender.server));
    message.header("USN", format_args!("{}", advert.usn));
    message.ids(sender);
    message.search_port(sender);
    message.secure_location(sender);
    message.finish()
}

/// The announcement that the device goes (NTS `ssdp:byebye`).
pub fn encode_byebye(sender: &Sender<'_>, advert: &Advert) -> Vec<u8> {
    let mut message = Message::notify(sender);
    message.header("NT", format_args!("{}", advert.nt));
    message.header("NTS", format_args!("ssdp:byebye"));
    message.header("USN", format_args!("{}", advert.usn));
    message.ids(sender);
    message.finish()
}

/// The announcement that BOOTID is about to become `next_boot_id` because the addresses changed (NTS
/// `ssdp:update`).
pub fn encode_update(sender: &Sender<'_>, advert: &Advert, next_boot_id: u32) -> Vec<u8> {
    let mut message = Message::notify(sender);
    message.header("LOCATION", format_args!("{}", sender.location));
    message.header("NT", format_args!("{}", advert.nt));
    message.header("NTS", format_args!("ssdp:update"));
    message.header("USN", format_args!("{}", advert.usn));
    message.ids(sender);
    message.header("NEXTBOOTID.UPNP.ORG", format_args!("{next_boot_id}"));
    message.search_port(sender);
    message.secure_location(sender);
    message.finish()
}

/// MX: a number too large for its type still is a number.
fn seconds(mx: &str) -> Option<u8> {
    let digits = !mx.is_empty() && mx.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| mx.parse().unwrap_or(u8::MAX).min(MAX_MX))
}

/// A message being written.
struct Message(String);

impl Message {
    fn new(start: &str) -> Self {
        let mut text = String::with_capacity(512);
        text.push_str(start);
        text.push_str("\r\n");
        Self(text)
    }

    fn notify(sender: &Sender<'_>) -> Self {
        let mut message = Self::new("NOTIFY * HTTP/1.1");
        let group = SocketAddr::new(sender.group, PORT);
        message.header("HOST", format_args!("{group}"));
        message
    }

    fn header(&mut self, name: &str, value: std::fmt::Arguments<'_>) {
        write!(self.0, "{name}: {value}\r\n").expect("writing to memory does not fail");
    }

    fn empty_header(&mut self, name: &str) {
        self.0.push_str(name);
        self.0.push_str(":\r\n");
    }

    fn ids(&mut self, sender: &Sender<'_>) {
        self.header("BOOTID.UPNP.ORG", format_args!("{}", sender.boot_id));
        self.header("CONFIGID.UPNP.ORG", format_args!("{}", sender.config_id));
    }

    fn search_port(&mut self, sender: &Sender<'_>) {
        if let Some(port) = sender.search_port {
            self.header("SEARCHPORT.UPNP.ORG", format_args!("{port}"));
        }
    }

    /// In every message that has LOCATION.
    fn secure_location(&mut self, sender: &Sender<'_>) {
        if let Some(location) = sender.secure_location {
            self.header("SECURELOCATION.UPNP.ORG", format_args!("{location}"));
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.push_str("\r\n");
        self.0.into_bytes()
    }
}
