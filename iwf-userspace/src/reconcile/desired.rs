//! What the kernel should hold.

use crate::mapping::Mapping;
use crate::mapping::table::Table;
use crate::types::{
    ExternalEndpoint, Generation, Instant, InternalEndpoint, InternalPort, NatEntry, Protocol,
};

/// The entry of every mapping in force whose lease has not ended, by rising generation. The upstream lease is
/// part of the mapping.
pub fn desired(table: &Table, now: Instant) -> Vec<NatEntry> {
    let wanted = Wanted::new(table, now);
    table
        .iter()
        .filter_map(|mapping| wanted.entry(mapping))
        .collect()
}

/// The same, looked up by parts as it is at `now`.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    table: &'a Table,
    now: Instant,
}

impl<'a> Wanted<'a> {
    /// What this table wants at `now`.
    pub const fn new(table: &'a Table, now: Instant) -> Self {
        Self { table, now }
    }

    /// The entry at this external endpoint, which is a host's own where nothing is translated.
    pub fn at(&self, protocol: Protocol, external: ExternalEndpoint) -> Option<NatEntry> {
        let own = InternalPort::new(external.port.get()).map(|port| InternalEndpoint {
            addr: external.addr,
            port,
        });
        let translated = self.table.by_nat1(protocol, external.port);
        let untranslated = own.and_then(|own| self.table.by_untranslated(protocol, own));
        [translated, untranslated]
            .into_iter()
            .flatten()
            .filter_map(|mapping| self.entry(mapping))
            .find(|entry| entry.external == external)
    }

    /// Every mapping behind this generation, by rising generation, with its entry if the kernel should hold it.
    pub fn after(
        &self,
        generation: Generation,
    ) -> impl Iterator<Item = (Generation, Option<NatEntry>)> {
        let mappings = self.table.after(generation);
        mappings.map(|mapping| (mapping.generation, self.entry(mapping)))
    }

    fn entry(&self, mapping: &Mapping) -> Option<NatEntry> {
        let wanted = mapping.is_installed() && mapping.expires() > self.now;
        wanted.then(|| mapping.nat_entry())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::State;
    use crate::mapping::policy::Limits;
    use crate::mapping::tests::mapping;
    use crate::types::ExternalPort;

    #[test]
    fn each_host_has_its_own_port_where_nothing_is_translated() {
        let mut table = Table::new(Limits::default());
        for host in [20, 21] {
            let mut entry = mapping(host.into(), host, 8080, 8000 + u16::from(host));
            entry.nat1 = ExternalEndpoint {
                addr: entry.internal.addr,
                port: ExternalPort::from(entry.internal.port),
            };
            entry.state = State::Active;
            table.put(entry).expect("room");
        }
        let wanted = Wanted::new(&table, Instant::from_millis(0));
        let all = desired(&table, Instant::from_millis(0));
        assert_eq!(all.len(), 2);
        for entry in all {
            assert_eq!(wanted.at(entry.protocol, entry.external), Some(entry));
        }
    }

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
