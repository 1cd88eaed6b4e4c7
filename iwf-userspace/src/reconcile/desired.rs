//! What the kernel should hold.

use crate::mapping::table::Table;
use crate::types::{Instant, NatEntry};

/// The entry of every mapping in force whose lease has not ended, by rising generation. The upstream lease is
/// part of the mapping.
pub fn desired(table: &Table, now: Instant) -> Vec<NatEntry> {
    table
        .iter()
        .filter(|mapping| mapping.is_installed() && mapping.expires() > now)
        .map(|mapping| mapping.nat_entry())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::State;
    use crate::mapping::policy::Limits;
    use crate::mapping::tests::mapping;

    #[test]
    fn only_what_is_in_force_and_not_over() {
        let mut table = Table::new(Limits::default());
        let states = [
            State::Pending,
            State::Installing,
            State::Active,
            State::Removing,
        ];
        for (n, state) in (1u16..).zip(states) {
            let mut entry = mapping(n.into(), 20, 1024 + n, 1024 + n);
            entry.state = state;
            table.put(entry).expect("room");
        }
        let generations = |at| -> Vec<u32> {
            desired(&table, Instant::from_millis(at))
                .iter()
                .map(|entry| entry.generation.0)
                .collect()
        };
        assert_eq!(generations(3_599_999), [2, 3, 4]);
        assert_eq!(
            generations(3_600_000),
            [0u32; 0],
            "ends exactly with the lease"
        );
    }
}
