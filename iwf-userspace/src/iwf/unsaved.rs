//! What the store could not take outside of any job is written again until it can: a record that stays would
//! bring a mapping back that is gone.
//!
//! A store that fails fails for all: they wait together and are tried together, a slice at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{EffectError, Iwf, StoreChange, Ticket};
use crate::mapping::State;
use crate::types::{Generation, Instant};

/// First wait, doubled with each failure.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// So many records are written at a time.
const SLICE: usize = 256;
/// Between two slices while the store works.
const BETWEEN: Duration = Duration::from_millis(20);

/// Mappings whose record is not what it should be. There are no more of them than records in the store.
#[derive(Debug, Default)]
pub(super) struct Unsaved {
    waiting: BTreeSet<Generation>,
    under_way: BTreeMap<Ticket, Generation>,
    /// When the next slice is written; `None` while there is nothing to write or its outcome is not known.
    at: Option<Instant>,
    /// The wait after the next failure; zero: the last commit has not failed.
    wait: Duration,
}

impl Unsaved {
    /// Remembers whose record a change is, to hear how it went.
    pub(super) fn watch(&mut self, ticket: Ticket, change: &StoreChange) {
        match change {
            StoreChange::Put(record) => self.under_way.insert(ticket, record.generation),
            StoreChange::Delete(generation) => self.under_way.insert(ticket, *generation),
            // The next restart of the server, or of ours, writes it again, or the next change of a mapping; the others are
            // watched where they are made.
            StoreChange::Epoch { .. }
            | StoreChange::UpdateId(_)
            | StoreChange::Mark(_)
            | StoreChange::Unmark(_)
            | StoreChange::Access(_)
            | StoreChange::PutPinhole(_)
            | StoreChange::DeletePinhole(_) => None,
        };
    }

    pub(super) fn next_event(&self) -> Option<Instant> {
        self.at
    }

    fn failed(&mut self, generation: Generation, now: Instant) {
        self.waiting.insert(generation);
        // Of the failures of one commit the first one counts.
        if self.at.is_none_or(|at| at <= now) {
            self.wait = (self.wait * 2).clamp(FIRST, LONGEST);
            self.at = Some(now + self.wait);
        }
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
            return self.mark_done(ticket, result);
        };
        let unsaved = &mut self.unsaved;
        if result.is_err() {
            return unsaved.failed(generation, now);
        }
        unsaved.waiting.remove(&generation);
        unsaved.wait = Duration::ZERO;
        unsaved.at = (!unsaved.waiting.is_empty()).then_some(now + BETWEEN);
    }

    /// Writes the record of a mapping, or its absence, after a while.
    pub(super) fn store_later(&mut self, generation: Generation, now: Instant) {
        self.unsaved.failed(generation, now);
    }

    /// Writes what is due as it is now. A mapping with a job is written by that.
    pub(super) fn store_again(&mut self, now: Instant) {
        if self.unsaved.at.is_none_or(|at| at > now) {
            return;
        }
        self.unsaved.at = None;
        let idle = |generation: &&Generation| !self.jobs.contains_key(*generation);
        let due: Vec<_> = self
            .unsaved
            .waiting
            .iter()
            .filter(idle)
            .take(SLICE)
            .copied()
            .collect();
        if due.is_empty() && !self.unsaved.waiting.is_empty() {
            self.unsaved.at = Some(now + FIRST);
        }
        for generation in due {
            let mapping = self.table.get(generation);
            let active = mapping.filter(|mapping| mapping.state == State::Active);
            let record = active.and_then(|mapping| self.record(mapping));
            let change = record.map_or(StoreChange::Delete(generation), StoreChange::Put);
            self.persist(change, None);
        }
    }
}
