//! The mapping table: the truth that the kernel and the upstream leases follow.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Bound;

use super::policy::Limits;
use super::{Mapping, Owner, State};
use crate::types::{ExternalPort, Generation, Instant, InternalEndpoint, Protocol};

/// Every mapping, with an index for each thing that must not be held twice.
///
/// A mapping that is only being asked for holds its ports already, so of two callers who race for one port
/// exactly one goes on.
#[derive(Clone, Debug)]
pub struct Table {
    limits: Limits,
    entries: BTreeMap<Generation, Mapping>,
    by_external: BTreeMap<(Protocol, ExternalPort), Generation>,
    /// Several external endpoints may lead to one internal one; outbound packets use the oldest.
    by_internal: BTreeSet<(Protocol, InternalEndpoint, Generation)>,
    by_nat1: BTreeMap<Nat1Key, Generation>,
    per_host: BTreeMap<Ipv4Addr, usize>,
    by_host: BTreeSet<(Ipv4Addr, Generation)>,
    by_end: BTreeSet<(Instant, Generation)>,
    configured: BTreeSet<Generation>,
    /// Steps with every change of a mapping that the configuration states.
    revision: u64,
    /// Mappings looked at so far, by which a test tells what an input costs.
    #[cfg(test)]
    looks: std::cell::Cell<u64>,
}

/// Why a mapping cannot enter the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Another mapping holds the outermost external port.
    #[error("external port is held by mapping {0}")]
    External(Generation),
    /// Another mapping holds the external port of our NAT.
    #[error("port of our NAT is held by mapping {0}")]
    Nat1(Generation),
    /// The host has as many mappings as it may have.
    #[error("host has used up its share")]
    HostQuota,
    /// The table is full.
    #[error("table is full")]
    Full,
}

impl Table {
    /// An empty table.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            by_external: BTreeMap::new(),
            by_internal: BTreeSet::new(),
            by_nat1: BTreeMap::new(),
            per_host: BTreeMap::new(),
            by_host: BTreeSet::new(),
            by_end: BTreeSet::new(),
            configured: BTreeSet::new(),
            revision: 0,
            #[cfg(test)]
            looks: std::cell::Cell::new(0),
        }
    }

    /// Adds a mapping or replaces the one of its generation. On error the table is as before.
    pub fn put(&mut self, mapping: Mapping) -> Result<(), TableError> {
        self.check_room(&mapping)?;
        self.check_keys(&mapping)?;
        self.remove(mapping.generation);
        let (protocol, generation) = (mapping.protocol, mapping.generation);
        if let Some(port) = mapping.claim.port {
            self.by_external.insert((protocol, port), generation);
        }
        self.by_internal
            .insert((protocol, mapping.internal, generation));
        self.by_nat1.insert(nat1_key(&mapping), generation);
        self.by_host.insert((mapping.internal.addr, generation));
        self.by_end.insert((mapping.lease_ends, generation));
        match mapping.owner {
            Owner::ControlPoint => {
                *self.per_host.entry(mapping.internal.addr).or_default() += 1;
            }
            Owner::Configuration => {
                self.configured.insert(generation);
                self.revision += 1;
            }
        }
        self.entries.insert(generation, mapping);
        Ok(())
    }

    /// Takes a mapping out.
    pub fn remove(&mut self, generation: Generation) -> Option<Mapping> {
        let mapping = self.entries.remove(&generation)?;
        let protocol = mapping.protocol;
        if let Some(port) = mapping.claim.port {
            self.by_external.remove(&(protocol, port));
        }
        self.by_internal
            .remove(&(protocol, mapping.internal, generation));
        self.by_nat1.remove(&nat1_key(&mapping));
        self.by_host.remove(&(mapping.internal.addr, generation));
        self.by_end.remove(&(mapping.lease_ends, generation));
        if self.configured.remove(&generation) {
            self.revision += 1;
        }
        if mapping.owner == Owner::ControlPoint
            && let Some(count) = self.per_host.get_mut(&mapping.internal.addr)
        {
            *count -= 1;
            if *count == 0 {
                self.per_host.remove(&mapping.internal.addr);
            }
        }
        Some(mapping)
    }

    /// The mapping of this generation.
    pub fn get(&self, generation: Generation) -> Option<&Mapping> {
        self.look();
        self.entries.get(&generation)
    }

    /// Moves a mapping to another state, which no index depends on.
    pub fn set_state(&mut self, generation: Generation, state: State) {
        if let Some(mapping) = self.entries.get_mut(&generation) {
            mapping.state = state;
            if mapping.owner == Owner::Configuration {
                self.revision += 1;
            }
        }
    }

    /// The mappings whose internal address this is, by rising generation.
    pub fn at_host(&self, addr: Ipv4Addr) -> impl Iterator<Item = &Mapping> {
        let from = |generation| (addr, Generation(generation));
        let range = self.by_host.range(from(0)..=from(u32::MAX));
        range.filter_map(|(_, generation)| self.get(*generation))
    }

    /// The mappings in the order in which the leases of their control points end.
    pub fn by_end(&self) -> impl Iterator<Item = (Instant, Generation)> {
        self.by_end.iter().copied()
    }

    /// The mappings that the configuration states.
    pub fn configured(&self) -> impl Iterator<Item = &Mapping> {
        let all = self.configured.iter();
        all.filter_map(|generation| self.get(*generation))
    }

    /// Steps with every change of a mapping that the configuration states.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Mappings looked at so far.
    #[cfg(test)]
    pub(crate) fn looks(&self) -> u64 {
        self.looks.get()
    }

    fn look(&self) {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
    }

    /// Who holds this outermost external port.
    pub fn by_external(&self, protocol: Protocol, port: ExternalPort) -> Option<&Mapping> {
        let generation = self.by_external.get(&(protocol, port))?;
        self.entries.get(generation)
    }

    /// The mappings of this internal endpoint, the oldest first.
    pub fn by_internal(
        &self,
        protocol: Protocol,
        internal: InternalEndpoint,
    ) -> impl Iterator<Item = &Mapping> {
        let from = |generation| (protocol, internal, Generation(generation));
        let range = self.by_internal.range(from(0)..=from(u32::MAX));
        range.filter_map(|(_, _, generation)| self.entries.get(generation))
    }

    /// Who holds this port of our NAT.
    pub fn by_nat1(&self, protocol: Protocol, port: ExternalPort) -> Option<&Mapping> {
        let generation = self.by_nat1.get(&(protocol, port, None))?;
        self.entries.get(generation)
    }

    /// Who holds this endpoint of a host as it is, without translation.
    pub fn by_untranslated(
        &self,
        protocol: Protocol,
        internal: InternalEndpoint,
    ) -> Option<&Mapping> {
        let key = (protocol, internal.port.into(), Some(internal.addr));
        self.entries.get(self.by_nat1.get(&key)?)
    }

    /// Every mapping by rising generation, which is the order of their making.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.entries.values().inspect(|_| self.look())
    }

    /// Those behind this generation, by rising generation.
    pub fn after(&self, generation: Generation) -> impl Iterator<Item = &Mapping> {
        let behind = (Bound::Excluded(generation), Bound::Unbounded);
        let range = self.entries.range(behind);
        range.map(|(_, mapping)| mapping).inspect(|_| self.look())
    }

    /// How many control points would see if they could see all.
    pub fn visible(&self) -> usize {
        self.iter().filter(|m| m.is_visible()).count()
    }

    /// Mappings, pending ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Mappings of control points for one internal address, pending ones included.
    pub fn of_host(&self, addr: Ipv4Addr) -> usize {
        self.per_host.get(&addr).copied().unwrap_or(0)
    }

    /// The bounds.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Another bound of one internal address. What is there stays.
    pub const fn set_per_host(&mut self, per_host: usize) {
        self.limits.per_host = per_host;
    }

    fn check_room(&self, mapping: &Mapping) -> Result<(), TableError> {
        let old = self.entries.get(&mapping.generation);
        if old.is_none() && self.entries.len() >= self.limits.mappings {
            return Err(TableError::Full);
        }
        if mapping.owner == Owner::Configuration {
            return Ok(());
        }
        let same_host = old.is_some_and(|old| old.internal.addr == mapping.internal.addr);
        if !same_host && self.of_host(mapping.internal.addr) >= self.limits.per_host {
            return Err(TableError::HostQuota);
        }
        Ok(())
    }

    fn check_keys(&self, mapping: &Mapping) -> Result<(), TableError> {
        let other = |held: Option<&Generation>| held.copied().filter(|g| *g != mapping.generation);
        let protocol = mapping.protocol;
        let external = mapping
            .claim
            .port
            .and_then(|port| self.by_external.get(&(protocol, port)));
        if let Some(holder) = other(external) {
            return Err(TableError::External(holder));
        }
        if let Some(holder) = other(self.by_nat1.get(&nat1_key(mapping))) {
            return Err(TableError::Nat1(holder));
        }
        Ok(())
    }
}

/// What a mapping holds of our NAT: a port, or where that does not translate the host's own endpoint.
type Nat1Key = (Protocol, ExternalPort, Option<Ipv4Addr>);

fn nat1_key(mapping: &Mapping) -> Nat1Key {
    let own = mapping.is_untranslated().then_some(mapping.nat1.addr);
    (mapping.protocol, mapping.nat1.port, own)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::mapping;
    use super::*;

    const LIMITS: Limits = Limits {
        mappings: 4,
        per_host: 2,
        probes_per_host: 1,
        probes: 1,
    };

    #[test]
    fn nothing_is_held_twice() {
        let mut table = Table::new(Limits::default());
        let g1 = Generation(1);
        table.put(mapping(1, 20, 8080, 8080)).expect("empty table");
        assert_eq!(
            table.put(mapping(2, 21, 8080, 8080)),
            Err(TableError::External(g1))
        );
        let mut same_nat1 = mapping(2, 21, 8080, 8080);
        same_nat1.claim.port = ExternalPort::new(9090);
        assert_eq!(table.put(same_nat1), Err(TableError::Nat1(g1)));
        let mut other_protocol = mapping(2, 20, 8080, 8080);
        other_protocol.protocol = Protocol::Udp;
        assert_eq!(table.put(other_protocol), Ok(()));
    }

    #[test]
    fn one_internal_endpoint_may_have_several_external_ones() {
        let mut table = Table::new(Limits::default());
        for (generation, external) in [(2, 9090), (1, 8080), (3, 7070)] {
            let mapping = mapping(generation, 20, 8080, external);
            table.put(mapping).expect("another external port");
        }
        let internal = mapping(1, 20, 8080, 8080).internal;
        let held = |table: &Table| -> Vec<u32> {
            let all = table.by_internal(Protocol::Tcp, internal);
            all.map(|m| m.generation.0).collect()
        };
        assert_eq!(held(&table), [1, 2, 3], "the oldest first");
        table.remove(Generation(1));
        assert_eq!(held(&table), [2, 3]);
    }

    #[test]
    fn bounds_refuse_and_evict_nothing() {
        let mut table = Table::new(LIMITS);
        table.put(mapping(1, 20, 1001, 1001)).expect("room");
        table.put(mapping(2, 20, 1002, 1002)).expect("room");
        assert_eq!(
            table.put(mapping(3, 20, 1003, 1003)),
            Err(TableError::HostQuota)
        );
        table.put(mapping(4, 21, 1004, 1004)).expect("room");
        table.put(mapping(5, 21, 1005, 1005)).expect("room");
        assert_eq!(table.put(mapping(6, 22, 1006, 1006)), Err(TableError::Full));
        assert_eq!(table.put(mapping(2, 20, 1007, 1002)), Ok(()), "replacement");
        assert_eq!(table.len(), 4);
    }

    proptest! {
        /// Any sequence of puts and removes leaves every index naming exactly the mappings that are there.
        #[test]
        fn indices_follow_the_entries(
            ops in prop::collection::vec((any::<bool>(), 1u32..8, 20u8..23, 1u16..5, 1u16..5), 0..60)
        ) {
            let mut table = Table::new(LIMITS);
            for (put, generation, host, internal, external) in ops {
                let before = table.clone();
                if put {
                    if table.put(mapping(generation, host, internal, external)).is_err() {
                        prop_assert_eq!(&before.entries, &table.entries);
                    }
                } else {
                    table.remove(Generation(generation));
                }
                let mut rebuilt = Table::new(LIMITS);
                for held in table.iter() {
                    prop_assert_eq!(rebuilt.put(held.clone()), Ok(()));
                }
                prop_assert_eq!(&table.by_external, &rebuilt.by_external);
                prop_assert_eq!(&table.by_internal, &rebuilt.by_internal);
                prop_assert_eq!(&table.by_nat1, &rebuilt.by_nat1);
                prop_assert_eq!(&table.per_host, &rebuilt.per_host);
            }
        }
    }
}
