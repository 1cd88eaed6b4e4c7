//! Everything the programs can change, and what differs between two moments.

use std::collections::BTreeMap;

use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::flow6::{
    EndpointKey6, EndpointValue6, FragmentKey6, FragmentValue6, PinholeKey, PinholeValue,
    SessionKey6, SessionValue6,
};
use iwf_common::fragment::{FragmentKey, FragmentValue};
use iwf_common::nat::{EndpointKey, MappingValue, PeerKey, PeerValue};

/// Everything the programs can change, for comparing before with after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// SESSIONS.
    pub sessions: BTreeMap<SessionKey, SessionValue>,
    /// MAPPINGS_INT.
    pub internal: BTreeMap<EndpointKey, MappingValue>,
    /// MAPPINGS_EXT.
    pub external: BTreeMap<EndpointKey, MappingValue>,
    /// PEERS.
    pub peers: BTreeMap<PeerKey, PeerValue>,
    /// FRAGMENTS.
    pub fragments: BTreeMap<FragmentKey, FragmentValue>,
    /// SESSIONS6.
    pub sessions6: BTreeMap<SessionKey6, SessionValue6>,
    /// ENDPOINTS6.
    pub endpoints6: BTreeMap<EndpointKey6, EndpointValue6>,
    /// FRAGMENTS6.
    pub fragments6: BTreeMap<FragmentKey6, FragmentValue6>,
    /// PINHOLES.
    pub pinholes: BTreeMap<PinholeKey, PinholeValue>,
    /// Counters that are not 0, by name.
    pub counters: BTreeMap<&'static str, u64>,
}

/// How often something was added, removed and changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Keys that are new.
    pub added: usize,
    /// Keys that are gone.
    pub removed: usize,
    /// Values that are not what they were, apart from the tick of the last use and the packets counted.
    pub changed: usize,
}

impl Change {
    fn between<K: Ord, V: PartialEq>(
        before: &BTreeMap<K, V>,
        after: &BTreeMap<K, V>,
        same: impl Fn(&V, &V) -> bool,
    ) -> Self {
        let changed = |(key, value)| after.get(key).is_some_and(|now| !same(value, now));
        Self {
            added: after.keys().filter(|key| !before.contains_key(key)).count(),
            removed: before.keys().filter(|key| !after.contains_key(key)).count(),
            changed: before.iter().filter(|entry| changed(*entry)).count(),
        }
    }
}

/// Everything that differs between two states. Equal to an expected one, it also says what did not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Counters by name, with what was added to them.
    pub counters: BTreeMap<&'static str, u64>,
    /// SESSIONS.
    pub sessions: Change,
    /// MAPPINGS_INT.
    pub internal: Change,
    /// MAPPINGS_EXT.
    pub external: Change,
    /// PEERS.
    pub peers: Change,
    /// SESSIONS6. What counts packets is no change.
    pub sessions6: Change,
    /// ENDPOINTS6.
    pub endpoints6: Change,
    /// FRAGMENTS6.
    pub fragments6: Change,
    /// PINHOLES.
    pub pinholes: Change,
}

impl Delta {
    /// From one state to a later one.
    pub fn between(before: &State, after: &State) -> Self {
        let counters = after
            .counters
            .iter()
            .map(|(name, now)| (*name, now - before.counters.get(name).unwrap_or(&0)))
            .filter(|(_, more)| *more > 0)
            .collect();
        let same_session = |a: &SessionValue, b: &SessionValue| {
            *a == SessionValue {
                last_seen: a.last_seen,
                packets: a.packets,
                octets_high: a.octets_high,
                octets_low: a.octets_low,
                ..*b
            }
        };
        let same_mapping = |a: &MappingValue, b: &MappingValue| {
            *a == MappingValue {
                last_used: a.last_used,
                ..*b
            }
        };
        let same_session6 = |a: &SessionValue6, b: &SessionValue6| {
            *a == SessionValue6 {
                last_seen: a.last_seen,
                packets: a.packets,
                octets_low: a.octets_low,
                octets_high: a.octets_high,
                ..*b
            }
        };
        Self {
            sessions6: Change::between(&before.sessions6, &after.sessions6, same_session6),
            peers: Change::between(&before.peers, &after.peers, |a, b| a.internal == b.internal),
            endpoints6: Change::between(&before.endpoints6, &after.endpoints6, |_, _| true),
            fragments6: Change::between(&before.fragments6, &after.fragments6, |_, _| true),
            pinholes: Change::between(&before.pinholes, &after.pinholes, PartialEq::eq),
            counters,
            sessions: Change::between(&before.sessions, &after.sessions, same_session),
            internal: Change::between(&before.internal, &after.internal, same_mapping),
            external: Change::between(&before.external, &after.external, same_mapping),
        }
    }

    /// Only these counters, by one each; no table touched.
    pub fn counted(counters: &[&'static str]) -> Self {
        Self {
            counters: counters.iter().map(|name| (*name, 1)).collect(),
            ..Self::default()
        }
    }

    /// And so many session entries.
    #[must_use]
    pub fn sessions(mut self, added: usize) -> Self {
        self.sessions.added = added;
        self
    }

    /// And so many remote addresses.
    #[must_use]
    pub fn peers(mut self, added: usize) -> Self {
        self.peers.added = added;
        self
    }

    /// And so many IPv6 session entries.
    #[must_use]
    pub fn sessions6(mut self, added: usize) -> Self {
        self.sessions6.added = added;
        self
    }

    /// And so many IPv6 session entries changed in place.
    #[must_use]
    pub fn sessions6_changed(mut self, changed: usize) -> Self {
        self.sessions6.changed = changed;
        self
    }

    /// And so many open IPv6 endpoints.
    #[must_use]
    pub fn endpoints6(mut self, added: usize) -> Self {
        self.endpoints6.added = added;
        self
    }

    /// And so many first fragments of IPv6.
    #[must_use]
    pub fn fragments6(mut self, added: usize) -> Self {
        self.fragments6.added = added;
        self
    }

    /// And so many session entries changed in place.
    #[must_use]
    pub fn sessions_changed(mut self, changed: usize) -> Self {
        self.sessions.changed = changed;
        self
    }

    /// And so many mappings, each with an entry in both tables.
    #[must_use]
    pub fn mappings(mut self, added: usize) -> Self {
        self.internal.added = added;
        self.external.added = added;
        self
    }
}
