//! The store: what survives a crash.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::iwf::{EffectError, Saved, StoreChange};
use crate::mapping::pinholes::PinholeRecord;
use crate::mapping::record::{LeaseKey, MappingRecord, Mark};
use crate::proto::protection::Change;
use crate::types::access::{Identity, Who};
use crate::types::pinhole::Pinhole;
use crate::types::{Epoch, Generation, NatEntry, UnixTime};

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) records: BTreeMap<Generation, MappingRecord>,
    pub(super) marks: BTreeMap<LeaseKey, Mark>,
    epochs: BTreeMap<IpAddr, (Epoch, UnixTime)>,
    last_generation: u32,
    pub(super) update_id: u32,
    pub(super) pinholes: BTreeMap<u16, PinholeRecord>,
    last_pinhole: u16,
    pub(super) identities: BTreeMap<Who, Identity>,
    /// Commits that fail, counted from 1, with their error.
    pub(super) faults: BTreeMap<u64, EffectError>,
    /// Every commit fails.
    pub(super) full: bool,
    /// What fails is stored all the same, as a disk may do that does not confirm.
    pub(super) stores_what_fails: bool,
    calls: u64,
    /// Commits that have failed.
    pub(super) failures: u64,
    /// Changes stored.
    pub(super) changes: u64,
}

impl Store {
    /// The number of the next call.
    pub(super) fn next_call(&self) -> u64 {
        self.calls + 1
    }

    /// All of the changes or none.
    pub(super) fn commit(&mut self, changes: Vec<StoreChange>) -> Result<(), EffectError> {
        self.calls += 1;
        let fault = self.faults.remove(&self.calls);
        let fault = fault.or(self.full.then_some(EffectError::Full));
        if fault.is_none() || self.stores_what_fails {
            for change in changes {
                self.apply(change);
            }
        }
        self.failures += u64::from(fault.is_some());
        fault.map_or(Ok(()), Err)
    }

    fn apply(&mut self, change: StoreChange) {
        self.changes += 1;
        match change {
            StoreChange::Put(record) => {
                self.last_generation = self.last_generation.max(record.generation.0);
                // What is stored is what a real store would give back.
                let json = serde_json::to_vec(&record).expect("encodes");
                let record: MappingRecord = serde_json::from_slice(&json).expect("decodes");
                self.records.insert(record.generation, record);
            }
            StoreChange::Delete(generation) => {
                self.records.remove(&generation);
            }
            StoreChange::Mark(mark) => {
                self.marks.insert(mark.key(), mark);
            }
            StoreChange::Unmark(key) => {
                self.marks.remove(&key);
            }
            StoreChange::UpdateId(id) => self.update_id = id,
            StoreChange::PutPinhole(record) => {
                let json = serde_json::to_vec(&record).expect("encodes");
                let record = serde_json::from_slice(&json).expect("decodes");
                if self.pinholes.insert(record_id(&record), record).is_none() {
                    self.last_pinhole = record_id(&record);
                }
            }
            StoreChange::DeletePinhole(id) => {
                self.pinholes.remove(&id);
            }
            StoreChange::Access(changes) => {
                for change in changes {
                    match change {
                        Change::Put(identity) => {
                            let json = serde_json::to_vec(&identity).expect("encodes");
                            let identity = serde_json::from_slice(&json).expect("decodes");
                            self.identities.insert(who(&identity), identity);
                        }
                        Change::Remove(who) => {
                            self.identities.remove(&who);
                        }
                    }
                }
            }
            StoreChange::Epoch {
                server,
                epoch,
                seen,
            } => {
                self.epochs.insert(server, (epoch, seen));
            }
        }
    }

    /// What a new life begins with; `held` is what the kernel has.
    pub(super) fn saved(&self, held: Vec<NatEntry>, held_pinholes: Vec<Pinhole>) -> Saved {
        Saved {
            mappings: self.records.values().cloned().collect(),
            marks: self.marks.values().copied().collect(),
            last_generation: self.last_generation,
            epochs: self
                .epochs
                .iter()
                .map(|(server, (epoch, seen))| (*server, *epoch, *seen))
                .collect(),
            update_id: self.update_id,
            held,
            pinholes: self.pinholes.values().copied().collect(),
            last_pinhole: self.last_pinhole,
            identities: self.identities.values().cloned().collect(),
            held_pinholes,
        }
    }
}

fn who(identity: &Identity) -> Who {
    identity.who.clone()
}

fn record_id(record: &PinholeRecord) -> u16 {
    record.id
}
