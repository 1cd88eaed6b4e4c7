//! What servers may hold although no record in the store vouches for it.
//!
//! A server is asked, and told that something is over, only after the store says so: the record of a mapping that stands
//! on the lease, or else a mark. A new life ends what it finds marked, with its nonce, and whoever asks for the same
//! again goes on with that nonce.
//!
//! A mark goes with the commit that makes it needless, or, as it does no harm, with whichever comes next.

use std::collections::{BTreeMap, BTreeSet};

use super::{Effect, EffectError, Iwf, StoreChange, Ticket};
use crate::mapping::record::{LeaseKey, MappingRecord, Mark, UpstreamLease, WallClock};
use crate::mapping::{Mapping, State, Via};
use crate::proto::pcp_client::{self, MAX_LIFETIME, Trace};
use crate::types::{Generation, Instant, MappingNonce};

/// Marks at once: as many as leases that have ended are remembered. What exceeds it is not marked, and is left to run
/// out upstream if the daemon dies.
pub const MAX: usize = 16_384;
/// So many marks that have lapsed go with one commit.
const SLICE: usize = 256;

/// Marks in the store, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Marks {
    stored: BTreeMap<LeaseKey, Stored>,
    /// Those that can go.
    lapsed: BTreeSet<LeaseKey>,
    /// Removals under way.
    going: BTreeMap<Ticket, (LeaseKey, Stored)>,
    /// Mappings whose lease was asked for elsewhere than where the table has it, until it is granted. There are no more
    /// of them than mappings.
    moving: BTreeMap<Generation, UpstreamLease>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    via: Via,
    nonce: MappingNonce,
    ending: bool,
}

impl Marks {
    /// It can go.
    pub(super) fn lapse(&mut self, key: LeaseKey) {
        if self.stored.contains_key(&key) {
            self.lapsed.insert(key);
        }
    }

    /// Nothing is left there of what was asked in that protocol.
    pub(super) fn forgotten(&mut self, key: LeaseKey, via: Via) {
        if self.stored.get(&key).is_some_and(|mark| mark.via == via) {
            self.lapsed.insert(key);
        }
    }

    /// A lease is where it was asked for.
    pub(super) fn arrived(&mut self, id: Generation) {
        self.moving.remove(&id);
    }

    /// Whether the store has to be told; if not, the mark that is there stays.
    fn needs(&mut self, key: LeaseKey, mark: Stored) -> bool {
        let held = self.stored.get(&key).copied();
        let same = held.is_some_and(|held| (held.via, held.nonce) == (mark.via, mark.nonce));
        if same {
            self.lapsed.remove(&key);
            return false;
        }
        held.is_some() || self.stored.len() < MAX
    }

    /// The record of a mapping, with its lease where it was asked for last.
    pub(super) fn record(&self, mapping: &Mapping, clock: &WallClock) -> Option<MappingRecord> {
        let mut record = MappingRecord::new(mapping, clock)?;
        if let Some(asked) = self.moving.get(&mapping.generation) {
            record.upstream = Some(*asked);
        }
        Some(record)
    }

    /// Marks in the store.
    pub(super) fn len(&self) -> usize {
        self.stored.len()
    }
}

impl Iwf {
    /// A server is asked for a lease under another nonce than before: the store knows it first.
    pub(super) fn asking(&mut self, id: Generation, trace: Trace, now: Instant) {
        let mapping = self.table.get(id).filter(|m| m.state != State::Pending);
        let Some(mapping) = mapping else {
            return self.mark(&trace, false);
        };
        let known = mapping.upstream.map(|l| (l.server, l.via, l.nonce));
        let same = known == Some((trace.key.server, trace.via, trace.nonce));
        // Unless the record says that it was asked for elsewhere meanwhile.
        if same && !self.marks.moving.contains_key(&id) {
            return;
        }
        let asked = UpstreamLease {
            server: trace.key.server,
            via: trace.via,
            nonce: trace.nonce,
            expires: self.clock.unix(now),
            asked: true,
        };
        self.marks.moving.insert(id, asked);
        if let Some(mapping) = self.table.get(id)
            && let Some(record) = self.record(mapping)
        {
            self.persist(StoreChange::Put(record), None);
        }
    }

    /// A server is told that something is over: the store knows it first.
    pub(super) fn ending(&mut self, trace: &Trace) {
        self.mark(trace, true);
    }

    fn mark(&mut self, trace: &Trace, ending: bool) {
        let (key, via, nonce) = (trace.key, trace.via, trace.nonce);
        let stored = Stored { via, nonce, ending };
        if !self.marks.needs(key, stored) {
            return;
        }
        self.marks.lapsed.remove(&key);
        self.marks.stored.insert(key, stored);
        let mark = Mark {
            server: key.server,
            via,
            protocol: key.protocol,
            port: key.port,
            behalf: key.behalf,
            nonce,
            ending,
            until: self.clock.unix(trace.until),
        };
        self.persist(StoreChange::Mark(mark), None);
    }

    /// A mapping that was on its way out is not any more: its lease is vouched for before anybody hears of that.
    pub(super) fn still_there(&mut self, id: Generation) {
        let key = self.table.get(id).and_then(lease_key);
        if let Some(key) = key {
            self.marks.lapse(key);
            self.unmark();
        }
    }

    /// What the store is to have of a mapping.
    pub(super) fn record(&self, mapping: &Mapping) -> Option<MappingRecord> {
        self.marks.record(mapping, &self.clock)
    }

    /// Lets marks go with a change that is stored anyway. A record that vouches for a lease takes the place of its mark.
    pub(super) fn unmark_with(&mut self, change: &StoreChange) {
        match change {
            StoreChange::Put(record) => {
                let being_removed = |m: &Mapping| m.state == State::Removing;
                let mapping = self.table.get(record.generation);
                if let Some(key) = record.lease_key()
                    && !mapping.is_some_and(being_removed)
                {
                    self.marks.lapse(key);
                }
            }
            StoreChange::Delete(generation) => self.marks.arrived(*generation),
            StoreChange::Unmark(_) | StoreChange::UpdateId(_) => return,
            StoreChange::Mark(_)
            | StoreChange::Access(_)
            | StoreChange::Epoch { .. }
            | StoreChange::PutPinhole(_)
            | StoreChange::DeletePinhole(_) => {}
        }
        self.unmark();
    }

    fn unmark(&mut self) {
        for _ in 0..SLICE {
            let Some(key) = self.marks.lapsed.pop_first() else {
                return;
            };
            if let Some(stored) = self.marks.stored.remove(&key) {
                let ticket = self.new_ticket();
                self.marks.going.insert(ticket, (key, stored));
                let change = StoreChange::Unmark(key);
                self.effects.push_back(Effect::Persist { ticket, change });
            }
        }
    }

    /// The outcome of a change that concerns no record. A mark whose writing failed may be there; one whose removal
    /// failed too.
    pub(super) fn mark_done(&mut self, ticket: Ticket, result: Result<(), EffectError>) {
        if let Some((key, stored)) = self.marks.going.remove(&ticket)
            && result.is_err()
            && !self.marks.stored.contains_key(&key)
        {
            self.marks.stored.insert(key, stored);
            self.marks.lapsed.insert(key);
        }
    }

    /// Takes over the marks of an earlier life.
    pub(super) fn restore_marks(
        &mut self,
        marks: Vec<Mark>,
        now: Instant,
    ) -> BTreeMap<LeaseKey, Mark> {
        let mut valid = BTreeMap::new();
        for mark in marks {
            let Mark {
                via, nonce, ending, ..
            } = mark;
            let stored = Stored { via, nonce, ending };
            self.marks.stored.insert(mark.key(), stored);
            if self.clock.instant(mark.until) > now {
                valid.insert(mark.key(), mark);
            } else {
                self.marks.lapse(mark.key());
            }
        }
        valid
    }

    /// Ends what was marked in an earlier life.
    pub(super) fn end_mark(&mut self, mark: &Mark, now: Instant) {
        let trace = Trace {
            key: mark.key(),
            via: mark.via,
            nonce: mark.nonce,
            // A wall clock that was set meanwhile must not make it longer than it ever was.
            until: self
                .clock
                .instant(mark.until)
                .min(now + MAX_LIFETIME.duration()),
        };
        self.tell(pcp_client::Input::End(trace), now);
    }

    /// Leases that a server may hold without a mapping, as the store knows them.
    pub fn marks(&self) -> usize {
        self.marks.len()
    }
}

fn lease_key(mapping: &Mapping) -> Option<LeaseKey> {
    mapping.upstream.map(|lease| LeaseKey {
        server: lease.server,
        protocol: mapping.protocol,
        port: mapping.nat1.port,
        behalf: mapping.is_untranslated().then_some(mapping.internal.addr),
    })
}
