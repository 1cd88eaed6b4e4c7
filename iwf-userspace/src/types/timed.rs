//! Items with deadlines, the earliest at hand: what one input costs does not grow with their number.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::Instant;

/// A map whose items each have something due at some time, or nothing.
///
/// Who changes an item says so by [`Timed::get_mut`]; [`Timed::settle`] then asks it again for its time.
#[derive(Debug)]
pub(crate) struct Timed<K, V> {
    items: BTreeMap<K, Slot<V>>,
    order: BTreeSet<(Instant, K)>,
    /// Whose time may be another one now.
    touched: BTreeSet<K>,
    /// Items looked at so far, by which a test tells what an input costs.
    #[cfg(test)]
    pub(crate) looks: std::cell::Cell<u64>,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    at: Option<Instant>,
}

impl<K: Copy + Ord, V> Timed<K, V> {
    /// Without items.
    pub(crate) const fn new() -> Self {
        Self {
            items: BTreeMap::new(),
            order: BTreeSet::new(),
            touched: BTreeSet::new(),
            #[cfg(test)]
            looks: std::cell::Cell::new(0),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.look();
        self.items.get(key).map(|slot| &slot.value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.look();
        let slot = self.items.get_mut(key)?;
        self.touched.insert(*key);
        Some(&mut slot.value)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.look();
        self.items.contains_key(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.remove(&key);
        self.touched.insert(key);
        self.items.insert(key, Slot { value, at: None });
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.look();
        let slot = self.items.remove(key)?;
        if let Some(at) = slot.at {
            self.order.remove(&(at, *key));
        }
        self.touched.insert(*key);
        Some(slot.value)
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The items of some keys.
    pub(crate) fn range(&self, keys: RangeInclusive<K>) -> impl Iterator<Item = (&K, &V)> {
        self.items.range(keys).map(|(key, slot)| {
            self.look();
            (key, &slot.value)
        })
    }

    /// Every item. For what happens rarely: it costs as much as there are.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.items.iter().map(|(key, slot)| {
            self.look();
            (key, &slot.value)
        })
    }

    /// All of their times may be other ones now.
    pub(crate) fn touch_all(&mut self) {
        self.touched.extend(self.items.keys().copied());
    }

    /// Asks what was changed for its time; `none` hears of what is gone or changed.
    pub(crate) fn settle(
        &mut self,
        next: impl Fn(&K, &V) -> Option<Instant>,
        mut changed: impl FnMut(&K, Option<&V>),
    ) {
        while let Some(key) = self.touched.pop_first() {
            self.look();
            let Some(slot) = self.items.get_mut(&key) else {
                changed(&key, None);
                continue;
            };
            let at = next(&key, &slot.value);
            if at != slot.at {
                if let Some(old) = slot.at {
                    self.order.remove(&(old, key));
                }
                slot.at = at;
                self.order.extend(at.map(|at| (at, key)));
            }
            changed(&key, Some(&slot.value));
        }
    }

    /// The earliest time of all.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// The item that has something due first.
    pub(crate) fn first(&self) -> Option<K> {
        self.order.first().map(|(_, key)| *key)
    }

    /// What is due at `now`, the earliest first.
    pub(crate) fn due(&self, now: Instant) -> Vec<K> {
        let due = self.order.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, key)| *key).collect()
    }

    /// Whether nothing was changed without being asked, as it has to be between inputs.
    #[cfg(test)]
    pub(crate) fn is_settled(&self, next: impl Fn(&K, &V) -> Option<Instant>) -> bool {
        let right = |(key, slot): (&K, &Slot<V>)| {
            next(key, &slot.value) == slot.at
                && slot.at.is_none_or(|at| self.order.contains(&(at, *key)))
        };
        let timed = self.items.values().filter(|slot| slot.at.is_some()).count();
        self.touched.is_empty() && timed == self.order.len() && self.items.iter().all(right)
    }

    fn look(&self) {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    proptest! {
        /// The order is what the times of the items say, whatever was done.
        #[test]
        fn the_earliest_is_the_earliest(
            steps in proptest::collection::vec((0u8..8, 0u8..4, proptest::option::of(0u64..20)), 0..60)
        ) {
            let mut timed: Timed<u8, Option<u64>> = Timed::new();
            let next = |_: &u8, value: &Option<u64>| value.map(at);
            for (key, action, value) in steps {
                match action {
                    0 => timed.insert(key, value),
                    1 => { timed.remove(&key); }
                    2 => if let Some(held) = timed.get_mut(&key) { *held = value },
                    _ => timed.touch_all(),
                }
                timed.settle(next, |_, _| {});
                prop_assert!(timed.is_settled(next));
                let earliest = timed.iter().filter_map(|(_, value)| *value).min();
                prop_assert_eq!(timed.next(), earliest.map(at));
                let due = timed.due(at(10)).len();
                let expected = timed.iter().filter(|(_, v)| v.is_some_and(|v| v <= 10)).count();
                prop_assert_eq!(due, expected);
            }
        }
    }
}
