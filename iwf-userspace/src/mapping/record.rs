//! The durable form of a mapping: what the store keeps and a restart needs.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Lease, Mapping, NEVER, Owner, PortChoice, State, Via, untranslated};
use crate::types::{
    ExternalEndpoint, ExternalPort, Generation, Instant, InternalEndpoint, Lifetime, MappingNonce,
    Protocol, RemotePeer, UnixTime,
};

/// One mapping as stored. All instants are wall-clock time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingRecord {
    /// Identity.
    pub generation: Generation,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The LAN host's endpoint.
    pub internal: InternalEndpoint,
    /// External endpoint of our NAT (NAT1): what the kernel holds and the PCP server knows as internal.
    pub nat1: ExternalEndpoint,
    /// The outermost external endpoint: what remote hosts use. Equal to `nat1` in local mode.
    pub external: ExternalEndpoint,
    /// Who may come in.
    pub remote: RemotePeer,
    /// Free text of the control point, at most 255 octets.
    pub description: String,
    /// Lease the control point asked for, after the rules for 0 (RFC 6970 section 5.9).
    pub requested: Lifetime,
    /// When the control point's lease ends.
    pub lease_ends: UnixTime,
    /// Whether another external port would have been accepted (AddAnyPortMapping).
    pub any_port: bool,
    /// Who made it.
    pub owner: Owner,
    /// The upstream lease; `None` in local mode.
    pub upstream: Option<UpstreamLease>,
}

/// The lease behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamLease {
    /// The server that granted it.
    pub server: SocketAddr,
    /// In which protocol. Records of older daemons do not say: there was one only.
    #[serde(default)]
    pub via: Via,
    /// Nonce of the mapping, reused by every renewal, also after a restart (AMB-02).
    pub nonce: MappingNonce,
    /// When the assigned lifetime ends.
    pub expires: UnixTime,
    /// It was asked for there and no grant was stored: the mapping has moved, and nothing proves that it is there.
    #[serde(default)]
    pub asked: bool,
}

/// What servers tell leases of one client apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseKey {
    /// Who was asked.
    pub server: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// External port of our NAT, the internal one for the server.
    pub port: ExternalPort,
    /// The host whose port it is, if not our NAT's.
    pub behalf: Option<Ipv4Addr>,
}

/// What a server may hold although no mapping vouches for it: written before it is asked for, and kept until the server
/// was told that it is over. A new life ends what it finds marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Who was asked.
    pub server: SocketAddr,
    /// In which protocol.
    pub via: Via,
    /// Transport protocol.
    pub protocol: Protocol,
    /// External port of our NAT.
    pub port: ExternalPort,
    /// The host whose port it is, if not our NAT's.
    #[serde(default)]
    pub behalf: Option<Ipv4Addr>,
    /// The nonce that the server knows it by.
    pub nonce: MappingNonce,
    /// It is being deleted, also if a mapping stands on it. Else it was asked for, and a mapping that stands on it is the
    /// proof that it was granted.
    pub ending: bool,
    /// When it has ended by itself.
    pub until: UnixTime,
}

impl Mark {
    /// What it is filed under.
    pub const fn key(&self) -> LeaseKey {
        LeaseKey {
            server: self.server,
            protocol: self.protocol,
            port: self.port,
            behalf: self.behalf,
        }
    }
}

impl MappingRecord {
    /// What the server knows its lease by.
    pub fn lease_key(&self) -> Option<LeaseKey> {
        self.upstream.map(|lease| LeaseKey {
            server: lease.server,
            protocol: self.protocol,
            port: self.nat1.port,
            behalf: (self.nat1 == untranslated(self.internal)).then_some(self.internal.addr),
        })
    }
}

/// Converts between the monotonic clock and the wall clock that records use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Wall clock at the monotonic clock's origin, in milliseconds since 1970; negative while the wall clock
    /// has not been set.
    origin: i64,
}

impl WallClock {
    /// The clocks as they stand to each other: it is `wall` at `now`.
    pub fn new(wall: UnixTime, now: Instant) -> Self {
        let millis = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            origin: millis(wall.as_millis()).saturating_sub(millis(now.as_millis())),
        }
    }

    /// The wall-clock time of an instant.
    pub fn unix(&self, at: Instant) -> UnixTime {
        let at = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
        let millis = self.origin.saturating_add(at).max(0);
        UnixTime::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    /// The instant of a wall-clock time; the origin for what was before it.
    pub fn instant(&self, at: UnixTime) -> Instant {
        let at = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
        let millis = at.saturating_sub(self.origin).max(0);
        Instant::from_millis(u64::try_from(millis).unwrap_or(0))
    }
}

impl MappingRecord {
    /// The durable form of a mapping; `None` while it has no external endpoint.
    pub fn new(mapping: &Mapping, clock: &WallClock) -> Option<Self> {
        Some(Self {
            generation: mapping.generation,
            protocol: mapping.protocol,
            internal: mapping.internal,
            nat1: mapping.nat1,
            external: mapping.claim.endpoint()?,
            remote: mapping.remote,
            description: mapping.description.clone(),
            requested: mapping.requested,
            lease_ends: clock.unix(mapping.lease_ends),
            any_port: mapping.port_choice == PortChoice::Any,
            owner: mapping.owner,
            upstream: mapping.upstream.map(|lease| UpstreamLease {
                server: lease.server,
                via: lease.via,
                nonce: lease.nonce,
                expires: clock.unix(lease.expires),
                asked: false,
            }),
        })
    }

    /// The mapping again, in force. A wall clock that has not been set, or was set back, must not make a lease
    /// longer than it ever was.
    pub fn mapping(self, clock: &WallClock, now: Instant) -> Mapping {
        let longest = |lifetime: Lifetime| now + lifetime.duration();
        Mapping {
            generation: self.generation,
            state: State::Active,
            owner: self.owner,
            protocol: self.protocol,
            internal: self.internal,
            nat1: self.nat1,
            claim: self.external.into(),
            remote: self.remote,
            description: self.description,
            requested: self.requested,
            lease_ends: match self.owner {
                Owner::ControlPoint => clock.instant(self.lease_ends).min(longest(self.requested)),
                Owner::Configuration => NEVER,
            },
            port_choice: if self.any_port {
                PortChoice::Any
            } else {
                PortChoice::Exact
            },
            upstream: self.upstream.map(|lease| Lease {
                server: lease.server,
                via: lease.via,
                nonce: lease.nonce,
                expires: clock.instant(lease.expires).min(longest(MAX_UPSTREAM)),
            }),
        }
    }
}

/// RFC 6887 section 8.3, AMB-01: no upstream lease is taken to be longer.
const MAX_UPSTREAM: Lifetime = Lifetime(86_400);

#[cfg(test)]
mod tests {
    use super::super::tests::mapping;
    use super::*;

    #[test]
    fn a_record_gives_back_the_mapping() {
        let now = Instant::from_millis(5_000);
        let clock = WallClock::new(UnixTime::from_secs(1_800_000_000), now);
        let mut before = mapping(7, 20, 8080, 8080);
        before.lease_ends = now + before.requested.duration();
        before.upstream = Some(Lease {
            server: ([100, 64, 0, 1], 5351).into(),
            via: Via::Pcp,
            nonce: MappingNonce([9; 12]),
            expires: Instant::from_millis(605_000),
        });
        let record = MappingRecord::new(&before, &clock).expect("has an endpoint");
        assert_eq!(record.lease_ends, UnixTime::from_secs(1_800_003_600));
        assert_eq!(record.mapping(&clock, now), before);
    }

    #[test]
    fn a_mapping_of_the_configuration_comes_back_without_an_end() {
        let now = Instant::from_millis(5_000);
        let clock = WallClock::new(UnixTime::from_secs(1_800_000_000), now);
        let mut before = mapping(7, 20, 8080, 8080);
        (before.owner, before.lease_ends) = (Owner::Configuration, NEVER);
        let record = MappingRecord::new(&before, &clock).expect("has an endpoint");
        assert_eq!(record.mapping(&clock, now), before);
    }

    #[test]
    fn a_record_says_in_which_protocol_and_that_of_an_older_daemon_means_pcp() {
        let now = Instant::from_millis(5_000);
        let clock = WallClock::new(UnixTime::from_secs(1_800_000_000), now);
        let mut before = mapping(7, 20, 8080, 8080);
        before.lease_ends = now + before.requested.duration();
        let lease = Lease {
            server: ([100, 64, 0, 1], 5351).into(),
            via: Via::NatPmp,
            nonce: MappingNonce([0; 12]),
            expires: Instant::from_millis(605_000),
        };
        before.upstream = Some(lease);
        let record = MappingRecord::new(&before, &clock).expect("has an endpoint");
        let mut json = serde_json::to_value(&record).expect("JSON");
        let read: MappingRecord = serde_json::from_value(json.clone()).expect("readable");
        assert_eq!(read.mapping(&clock, now), before);
        let upstream = json.get_mut("upstream").and_then(|u| u.as_object_mut());
        upstream.expect("an object").remove("via");
        let read: MappingRecord = serde_json::from_value(json).expect("readable");
        let via = Via::Pcp;
        assert_eq!(
            read.mapping(&clock, now).upstream,
            Some(Lease { via, ..lease })
        );
    }

    #[test]
    fn a_clock_that_was_not_set_makes_no_lease_longer() {
        let now = Instant::from_millis(5_000);
        let set = WallClock::new(UnixTime::from_secs(1_800_000_000), now);
        let mut before = mapping(7, 20, 8080, 8080);
        before.upstream = Some(Lease {
            server: ([100, 64, 0, 1], 5351).into(),
            via: Via::Pcp,
            nonce: MappingNonce([9; 12]),
            expires: Instant::from_millis(605_000),
        });
        let record = MappingRecord::new(&before, &set).expect("has an endpoint");
        let unset = WallClock::new(UnixTime::from_secs(3), now);
        let after = record.mapping(&unset, now);
        assert_eq!(after.lease_ends, now + Lifetime(3600).duration());
        let ends = after.upstream.map(|lease| lease.expires);
        assert_eq!(ends, Some(now + MAX_UPSTREAM.duration()));
    }

    #[test]
    fn what_was_before_the_origin_is_over() {
        let now = Instant::from_millis(5_000);
        let clock = WallClock::new(UnixTime::from_secs(1_000), now);
        assert_eq!(
            clock.instant(UnixTime::from_secs(990)),
            Instant::from_millis(0)
        );
        let later = UnixTime::from_millis(1_001_999);
        assert_eq!(clock.instant(later), Instant::from_millis(6_999));
        assert_eq!(clock.unix(Instant::from_millis(6_999)), later);
    }
}
