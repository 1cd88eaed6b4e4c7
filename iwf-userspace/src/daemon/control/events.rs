//! What happened, as `iwfctl events` tells it.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::daemon::dataplane::inspect::{Station, Transport};
use crate::types::UnixTime;
use crate::types::prefix::Prefix;

macro_rules! kinds {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal, )+) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum EventKind {
            $( $(#[$doc])* #[serde(rename = $name)] $variant, )+
        }

        impl EventKind {
            /// Every kind with its name.
            pub const ALL: &'static [(Self, &'static str)] = &[ $( (Self::$variant, $name), )+ ];
        }
    };
}

kinds! {
    /// Outbound traffic made a mapping.
    DynamicCreated = "dynamic-created",
    /// A dynamic mapping had to give way to a better right, and its sessions ended.
    MappingDisplaced = "mapping-displaced",
    /// A flow was refused for lack of room for its mapping.
    MappingsFull = "mappings-full",
    /// A flow was refused for lack of room for its session.
    SessionsFull = "sessions-full",
    /// A flow was refused because no external port is free.
    PortsExhausted = "ports-exhausted",
    /// The next hop of a flow is not known yet; the kernel's stack asks for it.
    NextHopUnresolved = "next-hop-unresolved",
    /// A flow was refused because its host has as many sessions as one may have.
    HostSessions = "host-sessions",
    /// A flow was refused because its host has as many mappings as one may have.
    HostMappings = "host-mappings",
    /// A flow was refused because no further host can be counted.
    HostsFull = "hosts-full",
    /// Packets were dropped for lack of room; the counter says of what.
    Drops = "drops",
    /// A mapping that was asked for came into force.
    MappingCreated = "mapping-created",
    /// Its upstream lease was confirmed again.
    MappingRenewed = "mapping-renewed",
    /// Remote hosts reach it at another external endpoint than before.
    MappingMoved = "mapping-moved",
    /// It is gone.
    MappingRemoved = "mapping-removed",
    /// It is taken away though its control point still wants it; that it is gone is told as well.
    MappingWithdrawn = "mapping-withdrawn",
    /// A control point's wish was refused.
    MappingRefused = "mapping-refused",
    /// An IPv6 pinhole that was asked for is open.
    PinholeOpened = "pinhole-opened",
    /// It is closed.
    PinholeClosed = "pinhole-closed",
    /// A control point's wish for a pinhole was refused.
    PinholeRefused = "pinhole-refused",
    /// A control point was introduced by PIN and has the role Basic.
    ControlPointIntroduced = "control-point-introduced",
    /// It was not: it tried a wrong PIN, or did not finish in time.
    IntroductionFailed = "introduction-failed",
    /// It tried a wrong PIN once too often: nobody can be introduced until another one is shown.
    IntroductionLocked = "introduction-locked",
    /// A mapping of the configuration cannot be had now.
    StaticWaits = "static-waits",
    /// The address that remote hosts use has changed.
    ExternalAddress = "external-address",
    /// Address or gateway of the WAN has changed.
    WanChanged = "wan-changed",
    /// A PCP server refused a mapping, or its renewal.
    UpstreamRefused = "upstream-refused",
    /// A PCP server granted another port than the one that was insisted on; it was given back.
    GrantReturned = "grant-returned",
    /// It became known what a PCP server speaks.
    ServerSpeaks = "server-speaks",
    /// A PCP server answers.
    ServerAnswering = "server-answering",
    /// A PCP server does not answer any more.
    ServerSilent = "server-silent",
    /// A PCP server has forgotten its mappings.
    ServerLostState = "server-lost-state",
    /// The reconciler found the kernel other than it should be, and set it right.
    Repaired = "repaired",
    /// It could not.
    RepairFailed = "repair-failed",
    /// The store cannot be written: new mappings are refused.
    StoreFails = "store-fails",
    /// The store can be written again.
    StoreWorks = "store-works",
    /// Something that this version of the daemon has no name for.
    Other = "other",
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(kind, _)| kind == self);
        f.pad(name.map_or("", |(_, name)| name))
    }
}

/// Who tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The packet programs.
    DataPlane,
    /// The daemon.
    ControlPlane,
}

/// Time since 1970; in JSON a number of seconds with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub UnixTime);

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "milliseconds since 1970 have 41 bits"
        )]
        let millis = self.0.as_millis() as f64;
        serializer.serialize_f64(millis / 1000.0)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the conversion saturates, and no event is older than 1970"
        )]
        let millis = (seconds * 1000.0).round() as u64;
        Ok(Self(UnixTime::from_millis(millis)))
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// When.
    pub time: Stamp,
    /// Who tells.
    pub source: Source,
    /// What.
    pub kind: EventKind,
    /// Transport protocol concerned.
    pub protocol: Option<Transport>,
    /// The LAN host's endpoint concerned.
    pub internal: Option<SocketAddr>,
    /// Of IPv6, the station that the flow counts for.
    #[serde(default)]
    pub station: Option<Station>,
    /// The external endpoint of our NAT concerned.
    pub external: Option<SocketAddr>,
    /// The remote endpoint, or the server, concerned.
    pub remote: Option<SocketAddr>,
    /// The counter of `iwfctl stats` that counts packets of this fate.
    pub counter: Option<String>,
    /// Of a refusal, the rule, or the key of the configuration, that decided.
    #[serde(default)]
    pub decided_by: Option<String>,
    /// What there is to say besides, for people.
    pub detail: String,
}

impl EventRow {
    /// Something that happened, without particulars.
    pub fn new(time: UnixTime, source: Source, kind: EventKind) -> Self {
        Self {
            time: Stamp(time),
            source,
            kind,
            protocol: None,
            internal: None,
            station: None,
            external: None,
            remote: None,
            counter: None,
            decided_by: None,
            detail: String::new(),
        }
    }
}

/// Which events are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventFilter {
    /// Those of these kinds; empty: of any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<EventKind>,
    /// Those about this LAN host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Prefix>,
    /// Those about this station.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub station: Option<Station>,
}

impl EventFilter {
    /// Whether an event is asked for.
    pub fn admits(&self, event: &EventRow) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.contains(&event.kind);
        let host = self.host.is_none_or(|host| {
            event
                .internal
                .is_some_and(|internal| host.contains(internal.ip()))
        });
        let station = self.station.is_none() || self.station == event.station;
        kind && host && station
    }
}

/// Events in the order they happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// How many were lost before these, because the reader was too slow. Whether they were asked for, nobody knows.
    pub lost: u64,
    /// The events.
    pub events: Vec<EventRow>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> EventRow {
        EventRow {
            protocol: Some(Transport(17)),
            internal: "192.168.1.10:5000".parse().ok(),
            counter: Some("drop_sessions_full".to_owned()),
            ..EventRow::new(
                UnixTime::from_millis(1_700_000_000_123),
                Source::DataPlane,
                EventKind::SessionsFull,
            )
        }
    }

    /// A stable interface: names and kinds of values.
    #[test]
    fn an_event_in_json() {
        let json = serde_json::to_string(&event()).unwrap();
        assert_eq!(
            json,
            "{\"time\":1700000000.123,\"source\":\"data-plane\",\"kind\":\"sessions-full\",\
             \"protocol\":\"udp\",\"internal\":\"192.168.1.10:5000\",\"station\":null,\"external\":null,\"remote\":null,\
             \"counter\":\"drop_sessions_full\",\"decided_by\":null,\"detail\":\"\"}"
        );
        assert_eq!(serde_json::from_str::<EventRow>(&json).unwrap(), event());
    }

    #[test]
    fn a_filter_selects_kinds_and_hosts() {
        let admits = |filter: EventFilter| filter.admits(&event());
        assert!(admits(EventFilter::default()));
        let of = |kinds: &[EventKind]| EventFilter {
            kinds: kinds.to_vec(),
            ..EventFilter::default()
        };
        assert!(admits(of(&[EventKind::Drops, EventKind::SessionsFull])));
        assert!(!admits(of(&[EventKind::Drops])));
        let about = |host: &str| EventFilter {
            host: host.parse().ok(),
            ..EventFilter::default()
        };
        assert!(admits(about("192.168.1.0/24")));
        assert!(!admits(about("192.168.2.0/24")));
        let nobody = EventRow::new(
            UnixTime::from_secs(1),
            Source::ControlPlane,
            EventKind::WanChanged,
        );
        assert!(!about("0.0.0.0/0").admits(&nobody));
    }

    #[test]
    fn a_filter_selects_stations_and_their_addresses() {
        let of_ipv4 = event();
        let event = EventRow {
            internal: "[2a0b:1:2:3::10]:5000".parse().ok(),
            station: "02:00:5e:10:00:ff".parse().ok(),
            ..event()
        };
        let about = |host: &str, station: &str| EventFilter {
            host: host.parse().ok(),
            station: station.parse().ok(),
            ..EventFilter::default()
        };
        assert!(about("2a0b:1:2:3::/64", "").admits(&event));
        assert!(about("", "02:00:5e:10:00:ff").admits(&event));
        assert!(about("2a0b:1:2:3::10", "02:00:5e:10:00:ff").admits(&event));
        assert!(!about("2a0b:1:2:3::11", "02:00:5e:10:00:ff").admits(&event));
        assert!(!about("2a0b:1:2:3::10", "02:00:5e:10:00:fe").admits(&event));
        assert!(!about("", "unknown").admits(&event));
        assert!(!about("", "router").admits(&of_ipv4));
    }

    #[test]
    fn a_request_for_every_kind_fits() {
        let filter = EventFilter {
            kinds: EventKind::ALL.iter().map(|(kind, _)| *kind).collect(),
            host: "2a0b:1:2:3:4:5:6:7/127".parse().ok(),
            station: "02:00:5e:10:00:ff".parse().ok(),
        };
        let line = serde_json::to_string(&filter).unwrap();
        assert!(line.len() < super::super::MAX_REQUEST / 2, "{}", line.len());
    }
}
