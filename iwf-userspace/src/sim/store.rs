//! The store: what survives a crash.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::iwf::{EffectError, Saved, StoreChange};
use crate::mapping::record::MappingRecord;
use crate::types::{Epoch, Generation, UnixTime};

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) records: BTreeMap<Generation, MappingRecord>,
    epochs: BTreeMap<IpAddr, (Epoch, UnixTime)>,
    last_generation: u32,
    /// Calls that fail, counted from 1, with their error.
    pub(super) faults: BTreeMap<u64, EffectError>,
    calls: u64,
}

impl Store {
    /// The number of the next call.
    pub(super) fn next_call(&self) -> u64 {
        self.calls + 1
    }

    pub(super) fn commit(&mut self, change: StoreChange) -> Result<(), EffectError> {
        self.calls += 1;
        if let Some(error) = self.faults.remove(&self.calls) {
            return Err(error);
        }
        match change {
            StoreChange::Put(record) => {
                self.last_generation = self.last_generation.max(record.generation.0);
                // What is stored is what a real store would give back.
                let json = serde_json::to_vec(&record).expect("encodes");
                let record = serde_json::from_slice(&json).expect("decodes");
                assert!(!String::from_utf8_lossy(&json).is_empty());
                let record: MappingRecord = record;
                self.records.insert(record.generation, record);
            }
            StoreChange::Delete(generation) => {
                self.records.remove(&generation);
            }
            StoreChange::Epoch {
                server,
                epoch,
                seen,
            } => {
                self.epochs.insert(server, (epoch, seen));
            }
        }
        Ok(())
    }

    pub(super) fn saved(&self) -> Saved {
        Saved {
            mappings: self.records.values().cloned().collect(),
            last_generation: self.last_generation,
            epochs: self
                .epochs
                .iter()
                .map(|(server, (epoch, seen))| (*server, *epoch, *seen))
                .collect(),
        }
    }
}
