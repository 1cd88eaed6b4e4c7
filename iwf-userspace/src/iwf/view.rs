//! What control points see of the table as a whole: how many entries there are, and when it last changed
//! (WANIPConnection:2 sections 2.3.19 and 2.3.23).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::Iwf;
use crate::types::Generation;

/// PortMappingNumberOfEntries and SystemUpdateID.
#[derive(Debug, Default)]
pub(super) struct View {
    /// No more of them than mappings in the table.
    entries: BTreeSet<Generation>,
    update_id: u32,
}

impl View {
    /// What an earlier life has left.
    pub(super) const fn resume(&mut self, update_id: u32) {
        self.update_id = update_id;
    }

    /// A mapping of an earlier life is not there any more.
    pub(super) const fn lost(&mut self) {
        self.step();
    }

    /// A mapping of an earlier life, which is no change.
    pub(super) fn restored(&mut self, generation: Generation) {
        self.entries.insert(generation);
    }

    /// A mapping is new, or is another than before.
    pub(super) fn changed(&mut self, generation: Generation) {
        self.entries.insert(generation);
        self.step();
    }

    /// Mappings are gone, all at once. Those that were gone already do not count.
    pub(super) fn gone(&mut self, generations: &[Generation]) {
        let before = self.entries.len();
        for generation in generations {
            self.entries.remove(generation);
        }
        if self.entries.len() < before {
            self.step();
        }
    }

    /// IGD-023: after the largest number comes 0.
    const fn step(&mut self) {
        self.update_id = self.update_id.wrapping_add(1);
    }
}

impl Iwf {
    /// PortMappingNumberOfEntries: entries of every host, those of the configuration included.
    pub fn port_mapping_entries(&self) -> u16 {
        u16::try_from(self.view.entries.len()).unwrap_or(u16::MAX)
    }

    /// SystemUpdateID: steps with each change of the entries, once for all that one action takes away.
    pub const fn system_update_id(&self) -> u32 {
        self.view.update_id
    }
}
