//! The difference between what the kernel holds and what it should hold.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{ExternalEndpoint, Instant, NatEntry, Protocol};

/// Expiries this close are the same: the store keeps the time of another clock, which is slewed and set.
pub const EXPIRY_TOLERANCE: Duration = Duration::from_secs(2);

/// What to do, in this order. Each list is sorted; of what is written, the older comes first, because the first
/// external endpoint of an internal one is what outbound packets use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Entries nobody wants, or whose place another one needs: first.
    pub remove: Vec<NatEntry>,
    /// Entries that are missing.
    pub create: Vec<NatEntry>,
    /// Entries whose endpoints are right and something else is not; their sessions live on.
    pub update: Vec<NatEntry>,
}

impl Plan {
    /// Compares. The order of the arguments' elements does not matter; `observed` may hold anything, also
    /// several entries for one endpoint.
    pub fn new(observed: &[NatEntry], desired: &[NatEntry]) -> Self {
        let wanted: BTreeMap<_, _> = desired.iter().map(|entry| (key(entry), entry)).collect();
        let mut held = BTreeMap::new();
        let mut plan = Self::default();
        for entry in observed {
            let want = wanted.get(&key(entry)).copied();
            if !is_kept(entry, want) || held.insert(key(entry), entry).is_some() {
                plan.remove.push(*entry);
            }
        }
        for (key, want) in wanted {
            match repair(want, held.get(&key).copied()) {
                Some(Kind::Created) => plan.create.push(*want),
                Some(Kind::Updated) => plan.update.push(*want),
                Some(Kind::Removed) | None => {}
            }
        }
        plan.remove.sort_unstable();
        plan.create.sort_unstable_by_key(|e| (e.generation, *e));
        plan.update.sort_unstable_by_key(|e| (e.generation, *e));
        plan
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.create.is_empty() && self.update.is_empty()
    }
}

/// What a repair does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An entry goes that nobody wants, or whose place another one needs.
    Removed,
    /// One that is missing is made.
    Created,
    /// One whose endpoints are right is written again.
    Updated,
}

/// Whether an entry that the kernel holds may stay, where `want` is wanted.
pub(super) fn is_kept(held: &NatEntry, want: Option<&NatEntry>) -> bool {
    want.is_some_and(|want| want.internal == held.internal)
}

/// What an entry needs of which the kernel holds `held`, between the same endpoints.
pub(super) fn repair(want: &NatEntry, held: Option<&NatEntry>) -> Option<Kind> {
    match held {
        None => Some(Kind::Created),
        Some(have) if same(have, want) => None,
        Some(_) => Some(Kind::Updated),
    }
}

fn key(entry: &NatEntry) -> (Protocol, ExternalEndpoint) {
    (entry.protocol, entry.external)
}

fn same(have: &NatEntry, want: &NatEntry) -> bool {
    let expiry = match (have.expires, want.expires) {
        (None, None) => true,
        (Some(a), Some(b)) => distance(a, b) <= EXPIRY_TOLERANCE,
        (None, Some(_)) | (Some(_), None) => false,
    };
    expiry && have.remote == want.remote && have.generation == want.generation
}

fn distance(a: Instant, b: Instant) -> Duration {
    a.saturating_duration_since(b)
        .max(b.saturating_duration_since(a))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::mapping::tests::mapping;

    fn entry(generation: u32, host: u8, internal: u16, external: u16, expires: u64) -> NatEntry {
        NatEntry {
            expires: Some(Instant::from_millis(expires)),
            ..mapping(generation, host, internal, external).nat_entry()
        }
    }

    /// A kernel with the data plane's rules: one entry per external endpoint.
    fn apply(plan: &Plan, observed: &[NatEntry]) -> Result<Vec<NatEntry>, String> {
        let mut kernel = observed.to_vec();
        for gone in &plan.remove {
            let at = kernel.iter().position(|e| e == gone).ok_or("absent")?;
            kernel.swap_remove(at);
        }
        for new in plan.create.iter().chain(&plan.update) {
            kernel.retain(|e| key(e) != key(new) || e.internal != new.internal);
            let clash = |e: &NatEntry| key(e) == key(new);
            if let Some(other) = kernel.iter().find(|e| clash(e)) {
                return Err(format!("{new:?} clashes with {other:?}"));
            }
            kernel.push(*new);
        }
        kernel.sort_unstable();
        Ok(kernel)
    }

    #[test]
    fn each_difference_goes_into_its_list() {
        let desired = [
            entry(1, 20, 1001, 1001, 100_000),
            entry(2, 20, 1002, 1002, 100_000),
            entry(3, 20, 1003, 1003, 100_000),
        ];
        let observed = [
            entry(1, 20, 1001, 1001, 101_999),
            entry(2, 20, 1002, 1002, 102_001),
            entry(9, 21, 1003, 1003, 100_000),
        ];
        let plan = Plan::new(&observed, &desired);
        assert_eq!(plan.remove, [observed[2]], "another host in its place");
        assert_eq!(plan.create, [desired[2]]);
        assert_eq!(plan.update, [desired[1]], "within tolerance is the same");
    }

    /// Entries as a kernel can hold them: external endpoints are unique.
    fn kernel_state() -> impl Strategy<Value = Vec<NatEntry>> {
        let entry = (1u32..6, 20u8..23, 1u16..5, 1u16..6, 0u64..3)
            .prop_map(|(g, host, int, ext, exp)| entry(g, host, int, ext, exp * 5000));
        prop::collection::vec(entry, 0..8).prop_map(|entries| {
            let mut external = BTreeSet::new();
            let unique = |e: &NatEntry| external.insert(e.external);
            entries.into_iter().filter(unique).collect()
        })
    }

    proptest! {
        #[test]
        fn converges_in_one_step(observed in kernel_state(), desired in kernel_state()) {
            let plan = Plan::new(&observed, &desired);
            let after = apply(&plan, &observed).map_err(TestCaseError::fail)?;
            prop_assert!(Plan::new(&after, &desired).is_empty());
            prop_assert_eq!(after.len(), desired.len());
        }

        #[test]
        fn order_of_arguments_does_not_matter(observed in kernel_state(), desired in kernel_state()) {
            let reversed = |list: &[NatEntry]| -> Vec<NatEntry> { list.iter().rev().copied().collect() };
            prop_assert_eq!(
                Plan::new(&observed, &desired),
                Plan::new(&reversed(&observed), &reversed(&desired))
            );
        }
    }
}
