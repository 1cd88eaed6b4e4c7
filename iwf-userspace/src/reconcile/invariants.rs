//! What must hold among kernel, leases and table after every step.

use std::collections::BTreeMap;
use std::fmt;

use super::desired::desired;
use super::plan::{EXPIRY_TOLERANCE, Plan};
use crate::mapping::table::Table;
use crate::types::{ExternalEndpoint, Generation, Instant, NatEntry, Protocol};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The kernel holds an entry that belongs to no mapping of that generation.
    Orphan(NatEntry),
    /// The kernel lacks the entry of a mapping.
    Missing(NatEntry),
    /// The kernel's entry differs from the mapping in peer, generation or expiry.
    Stale(NatEntry),
    /// Two mappings have one external endpoint.
    Shared {
        /// Transport protocol.
        protocol: Protocol,
        /// The endpoint.
        external: ExternalEndpoint,
        /// One of them.
        first: Generation,
        /// The other.
        second: Generation,
    },
    /// The kernel would go on translating after the upstream lease has ended.
    OutlivesLease(NatEntry),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = |f: &mut fmt::Formatter<'_>, e: &NatEntry, what: &str| {
            write!(
                f,
                "{} {} -> {} (mapping {}): {what}",
                e.protocol, e.external, e.internal, e.generation
            )
        };
        match self {
            Self::Orphan(e) => entry(f, e, "kernel entry without a mapping"),
            Self::Missing(e) => entry(f, e, "mapping without a kernel entry"),
            Self::Stale(e) => entry(f, e, "kernel entry differs from its mapping"),
            Self::OutlivesLease(e) => entry(f, e, "kernel entry outlives the upstream lease"),
            Self::Shared {
                protocol,
                external,
                first,
                second,
            } => write!(
                f,
                "{protocol} {external}: held by mappings {first} and {second}"
            ),
        }
    }
}

/// Every violation at `now`; empty is good.
pub fn check(table: &Table, observed: &[NatEntry], now: Instant) -> Vec<Violation> {
    // What has expired the kernel no longer uses; its sweep takes it away later.
    let alive = |entry: &&NatEntry| entry.expires.is_none_or(|at| at > now);
    let observed: Vec<_> = observed.iter().filter(alive).copied().collect();
    let plan = Plan::new(&observed, &desired(table, now));
    // What ends within the tolerance may have ended already by the reckoning of one side.
    let lasting = |entry: &NatEntry| entry.expires.is_none_or(|at| at > now + EXPIRY_TOLERANCE);
    let orphans = plan.remove.into_iter().filter(lasting);
    let missing = plan.create.into_iter().filter(lasting);
    let mut found: Vec<_> = orphans.map(Violation::Orphan).collect();
    found.extend(missing.map(Violation::Missing));
    found.extend(plan.update.into_iter().map(Violation::Stale));
    found.extend(shared(table));
    found.extend(outliving(table, &observed));
    found
}

fn shared(table: &Table) -> Vec<Violation> {
    let mut holders = BTreeMap::new();
    let mut found = Vec::new();
    for mapping in table.iter().filter(|m| m.is_installed()) {
        let Some(external) = mapping.claim.endpoint() else {
            continue;
        };
        let key = (mapping.protocol, external);
        if let Some(first) = holders.insert(key, mapping.generation) {
            found.push(Violation::Shared {
                protocol: mapping.protocol,
                external,
                first,
                second: mapping.generation,
            });
        }
    }
    found
}

fn outliving(table: &Table, observed: &[NatEntry]) -> Vec<Violation> {
    let outlives = |entry: &&NatEntry| {
        table.get(entry.generation).is_some_and(|mapping| {
            let ends = mapping.nat_entry().expires;
            ends.is_some_and(|ends| entry.expires.is_none_or(|at| at > ends + EXPIRY_TOLERANCE))
        })
    };
    observed
        .iter()
        .filter(outlives)
        .copied()
        .map(Violation::OutlivesLease)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::policy::Limits;
    use crate::mapping::tests::mapping;

    #[test]
    fn each_kind_of_drift_is_named() {
        let now = Instant::from_millis(1000);
        let mut table = Table::new(Limits::default());
        let held = mapping(1, 20, 8080, 8080);
        table.put(held.clone()).expect("room");
        let good = held.nat_entry();
        assert_eq!(check(&table, &[good], now), []);
        assert_eq!(check(&table, &[], now), [Violation::Missing(good)]);

        let orphan = mapping(7, 21, 9090, 9090).nat_entry();
        assert_eq!(
            check(&table, &[good, orphan], now),
            [Violation::Orphan(orphan)]
        );
        let old = NatEntry {
            generation: Generation(0),
            ..good
        };
        assert_eq!(check(&table, &[old], now), [Violation::Stale(good)]);
        let forever = NatEntry {
            expires: None,
            ..good
        };
        assert!(check(&table, &[forever], now).contains(&Violation::OutlivesLease(forever)));
    }

    #[test]
    fn what_has_expired_is_no_drift() {
        let table = Table::new(Limits::default());
        let over = mapping(7, 21, 9090, 9090).nat_entry();
        assert_eq!(check(&table, &[over], Instant::from_millis(3_600_000)), []);
    }
}
