//! Newtypes shared by every layer: time, endpoints, ports, lifetimes.
//!
//! Names follow the PCP vocabulary (RFC 6887 section 2); see the table in ARCHITECTURE.md.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod access;
pub mod caller;
pub mod device;
pub mod pin;
pub mod pinhole;
pub mod prefix;
pub(crate) mod timed;

/// A point on the monotonic clock of the caller, in milliseconds since an arbitrary origin.
///
/// The core never reads a clock: the shell derives this from the boot clock (it runs on during suspend,
/// as upstream lifetimes do), the simulator counts it up by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The point `millis` after the origin.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the origin.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; zero if `earlier` is later.
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

/// Wall-clock time since 1970-01-01 UTC. Only in stored expiries: converted to [`Instant`] on load.
///
/// In milliseconds, so that a restarted daemon knows a lease's end as exactly as the kernel entry does.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct UnixTime(u64);

impl UnixTime {
    /// `seconds` after 1970.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// `millis` milliseconds after 1970.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Whole seconds since 1970.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

/// Transport protocol of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// IANA protocol 6.
    Tcp,
    /// IANA protocol 17.
    Udp,
}

impl Protocol {
    /// The IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The protocol with this IANA number, if a mapping can have it.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A transport port of a LAN host, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InternalPort(u16);

/// A transport port on the external side of a NAT, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExternalPort(u16);

macro_rules! port {
    ($name:ident) => {
        impl $name {
            /// `None` for 0, which means "all" or "any" on the wire and is never a port here.
            pub const fn new(port: u16) -> Option<Self> {
                if port == 0 { None } else { Some(Self(port)) }
            }

            /// The port number, 1 to 65535.
            pub const fn get(self) -> u16 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
port!(InternalPort);
port!(ExternalPort);

impl From<InternalPort> for ExternalPort {
    /// The port of an endpoint that is not translated.
    fn from(port: InternalPort) -> Self {
        Self(port.0)
    }
}

/// Address and port of a LAN host (before our NAT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InternalEndpoint {
    /// Address of the host.
    pub addr: Ipv4Addr,
    /// Port on the host.
    pub port: InternalPort,
}

/// Address and port on the external side of a NAT: ours (NAT1) or the carrier's, as the field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExternalEndpoint {
    /// External address.
    pub addr: Ipv4Addr,
    /// External port.
    pub port: ExternalPort,
}

impl fmt::Display for InternalEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.addr, self.port)
    }
}

impl fmt::Display for ExternalEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.addr, self.port)
    }
}

/// Our own addresses towards the servers upstream, one of each family at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalAddrs {
    /// Of the WAN interface.
    pub v4: Option<Ipv4Addr>,
    /// A global one of the WAN interface (RFC 6887 section 8.4).
    pub v6: Option<Ipv6Addr>,
}

impl LocalAddrs {
    /// The one that packets to `server` come from; `None` while nothing can be sent there.
    pub fn towards(&self, server: SocketAddr) -> Option<IpAddr> {
        match server {
            SocketAddr::V4(_) => self.v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

/// Who may use a mapping from outside: RemoteHost of UPnP, FILTER of PCP. One meaning has one form, which
/// [`RemotePeer::of`] finds; forms compare as what they mean.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum RemotePeer {
    /// Every remote host.
    #[default]
    Any,
    /// One remote address, every port.
    Host(Ipv4Addr),
    /// Anything else: several prefixes, or ports of theirs.
    List(RemoteList),
    /// The hosts that the LAN host has sent to from the mapping, every port (address-dependent filtering, RFC 4787
    /// section 5). Of the configuration only, as the next: no protocol can ask for it.
    SentToHost,
    /// The endpoints that it has sent to (address and port-dependent filtering).
    SentToEndpoint,
}

/// A remote prefix, on one port or on all (RFC 6887 section 13.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RemotePrefix {
    addr: Ipv4Addr,
    len: u8,
    port: u16,
}

/// At most [`RemoteList::MAX`] remote prefixes, sorted, none twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RemoteList {
    len: u8,
    entries: [RemotePrefix; Self::MAX],
}

/// More remote prefixes than a mapping can have; PCP calls it EXCESSIVE_REMOTE_PEERS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {max} remote prefixes", max = RemoteList::MAX)]
pub struct TooManyRemotes;

impl RemotePrefix {
    /// Everybody.
    const ANY: Self = Self {
        addr: Ipv4Addr::UNSPECIFIED,
        len: 0,
        port: 0,
    };

    /// The prefix of `len` bits that `addr` is in; a `port` of 0 is every one. `None` if `len` is over 32.
    pub fn new(addr: Ipv4Addr, len: u8, port: u16) -> Option<Self> {
        if len > 32 {
            return None;
        }
        Some(Self {
            addr: Ipv4Addr::from(u32::from(addr) & prefix::mask4(len)),
            len,
            port,
        })
    }

    /// Its first address.
    pub const fn addr(self) -> Ipv4Addr {
        self.addr
    }

    /// Its length, 0 to 32.
    pub const fn prefix_len(self) -> u8 {
        self.len
    }

    /// The remote port; 0: every one.
    pub const fn port(self) -> u16 {
        self.port
    }
}

impl fmt::Display for RemotePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.addr)?;
        if self.len != 32 {
            write!(f, "/{}", self.len)?;
        }
        if self.port != 0 {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

impl RemoteList {
    /// The largest number of prefixes one mapping may have.
    pub const MAX: usize = 8;

    /// The prefixes.
    pub fn iter(&self) -> impl Iterator<Item = RemotePrefix> + '_ {
        self.entries.iter().take(self.len.into()).copied()
    }
}

impl RemotePeer {
    /// Whoever is in one of `prefixes`; everybody if there is none.
    ///
    /// # Errors
    /// More different ones than a list can have.
    pub fn of(prefixes: &[RemotePrefix]) -> Result<Self, TooManyRemotes> {
        let sorted: std::collections::BTreeSet<_> = prefixes.iter().copied().collect();
        if sorted.is_empty() || sorted.contains(&RemotePrefix::ANY) {
            return Ok(Self::Any);
        }
        if sorted.len() > RemoteList::MAX {
            return Err(TooManyRemotes);
        }
        if let (1, Some(one)) = (sorted.len(), sorted.first())
            && (one.len, one.port) == (32, 0)
        {
            return Ok(Self::Host(one.addr));
        }
        let mut entries = [RemotePrefix::ANY; RemoteList::MAX];
        let mut len = 0;
        for (slot, prefix) in entries.iter_mut().zip(sorted) {
            *slot = prefix;
            len += 1;
        }
        Ok(Self::List(RemoteList { len, entries }))
    }

    /// Whether a PCP server is told, by FILTER options (RFC 6887 section 13.3): they name remote hosts and cannot speak of
    /// what the LAN host has sent.
    pub const fn is_for_upstream(&self) -> bool {
        match self {
            Self::Host(_) | Self::List(_) => true,
            Self::Any | Self::SentToHost | Self::SentToEndpoint => false,
        }
    }

    /// The prefixes it consists of; none for everybody, and for what is no prefix.
    pub fn prefixes(&self) -> Vec<RemotePrefix> {
        match self {
            Self::Any | Self::SentToHost | Self::SentToEndpoint => Vec::new(),
            Self::Host(addr) => RemotePrefix::new(*addr, 32, 0).into_iter().collect(),
            Self::List(list) => list.iter().collect(),
        }
    }
}

/// The nonce that proves ownership of a mapping to a PCP server (RFC 6887 section 11.1).
///
/// Its debug form is redacted: nonces must not reach logs or listings (SEC-02).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MappingNonce(pub [u8; 12]);

impl fmt::Debug for MappingNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MappingNonce(..)")
    }
}

/// Seconds since a server's state began (RFC 6887 section 8.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u32);

/// A promised duration in seconds, at most 2^32-1 (RFC 6887 section 7.1).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Lifetime(pub u32);

impl Lifetime {
    /// As a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

/// Identity of one mapping over its whole life: grows by one with each mapping made, is never used
/// again, and is written into both kernel entries so that a stale one is recognizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the data plane holds for one explicit mapping: the desired and the observed form are the same type,
/// so that the reconciler can compare them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NatEntry {
    /// Transport protocol.
    pub protocol: Protocol,
    /// External endpoint of *our* NAT (NAT1): WAN address and NAT1 port.
    pub external: ExternalEndpoint,
    /// The LAN host's endpoint.
    pub internal: InternalEndpoint,
    /// Who may come in.
    pub remote: RemotePeer,
    /// The mapping this entry belongs to.
    pub generation: Generation,
    /// When the kernel stops using it; `None` for a static mapping.
    pub expires: Option<Instant>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(addr: [u8; 4], len: u8, port: u16) -> RemotePrefix {
        RemotePrefix::new(addr.into(), len, port).expect("a length")
    }

    #[test]
    fn one_meaning_has_one_form() {
        let host = prefix([11, 22, 33, 4], 32, 0);
        assert_eq!(RemotePeer::of(&[]), Ok(RemotePeer::Any));
        assert_eq!(
            RemotePeer::of(&[host, prefix([8, 8, 8, 8], 0, 0)]),
            Ok(RemotePeer::Any)
        );
        assert_eq!(
            RemotePeer::of(&[host, host]),
            Ok(RemotePeer::Host([11, 22, 33, 4].into()))
        );
        let net = prefix([11, 22, 33, 99], 24, 443);
        let listed = RemotePeer::of(&[net, host]).expect("room");
        assert_eq!(RemotePeer::of(&[host, net]), Ok(listed));
        let names: Vec<String> = listed.prefixes().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["11.22.33.0/24:443", "11.22.33.4"]);
        let nine: Vec<_> = (1..10).map(|n| prefix([11, 22, 33, n], 32, 0)).collect();
        assert!(matches!(
            RemotePeer::of(&nine[..8]),
            Ok(RemotePeer::List(list)) if list.iter().count() == 8
        ));
        assert_eq!(RemotePeer::of(&nine), Err(TooManyRemotes));
        assert_eq!(RemotePrefix::new([1, 2, 3, 4].into(), 33, 0), None);
    }
}
