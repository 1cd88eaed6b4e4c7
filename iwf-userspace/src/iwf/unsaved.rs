//! What the store could not take outside of any job is written again until it can: a record that stays would
//! bring a mapping back that is gone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{EffectError, Iwf, StoreChange, Ticket};
use crate::mapping::State;
use crate::mapping::record::MappingRecord;
use crate::types::{Generation, Instant};

/// First wait, doubled with each failure.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// Mappings whose record is not what it should be. There are no more of them than records in the store.
#[derive(Debug, Default)]
pub(super) struct Unsaved {
    waiting: BTreeMap<Generation, Retry>,
    under_way: BTreeMap<Ticket, Generation>,
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    wait: Duration,
    /// `None` while it is being written.
    at: Option<Instant>,
}

impl Unsaved {
    /// Remembers whose record a change is, to hear how it went.
    pub(super) fn watch(&mut self, ticket: Ticket, change: &StoreChange) {
        match change {
            StoreChange::Put(record) => self.under_way.insert(ticket, record.generation),
            StoreChange::Delete(generation) => self.under_way.insert(ticket, *generation),
            // The next restart of the server, or of ours, writes it again.
            StoreChange::Epoch { .. } => None,
        };
    }

    pub(super) fn next_event(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|retry| retry.at).min()
    }
}

impl Iwf {
    /// The outcome of a change that no job waits for.
    pub(super) fn store_done(
        &mut self,
        ticket: Ticket,
        result: Result<(), EffectError>,
        now: Instant,
    ) {
        let Some(generation) = self.unsaved.under_way.remove(&ticket) else {
            return;
        };
        match result {
            Ok(()) => {
                self.unsaved.waiting.remove(&generation);
            }
            Err(_) => self.store_later(generation, now),
        }
    }

    /// Writes the record of a mapping, or its absence, after a while.
    pub(super) fn store_later(&mut self, generation: Generation, now: Instant) {
        let wait = self
            .unsaved
            .waiting
            .get(&generation)
            .map_or(FIRST, |retry| (retry.wait * 2).min(LONGEST));
        let at = Some(now + wait);
        self.unsaved.waiting.insert(generation, Retry { wait, at });
    }

    /// Writes what is due as it is now. A mapping with a job is written by that.
    pub(super) fn store_again(&mut self, now: Instant) {
        let due: Vec<_> = self
            .unsaved
            .waiting
            .iter()
            .filter(|(_, retry)| retry.at.is_some_and(|at| at <= now))
            .map(|(generation, _)| *generation)
            .collect();
        for generation in due {
            if self.jobs.contains_key(&generation) {
                self.store_later(generation, now);
                continue;
            }
            if let Some(retry) = self.unsaved.waiting.get_mut(&generation) {
                retry.at = None;
            }
            let mapping = self.table.get(generation);
            let active = mapping.filter(|mapping| mapping.state == State::Active);
            let record = active.and_then(|mapping| MappingRecord::new(mapping, &self.clock));
            let change = record.map_or(StoreChange::Delete(generation), StoreChange::Put);
            self.persist(change, None);
        }
    }
}
