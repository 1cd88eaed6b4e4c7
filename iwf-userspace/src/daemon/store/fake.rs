//! A store in memory that fails when told, for tests of what is above.

use std::collections::BTreeMap;

use super::{Counts, Store, StoreError};
use crate::iwf::StoreChange;
use crate::mapping::pinholes::PinholeRecord;
use crate::mapping::record::MappingRecord;
use crate::types::Generation;

/// Keeps records in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    /// What is stored.
    pub records: BTreeMap<Generation, MappingRecord>,
    /// Pinholes that are stored.
    pub pinholes: BTreeMap<u16, PinholeRecord>,
    /// The BOOTID that is stored.
    pub boot_id: u32,
    calls: u32,
    counts: Counts,
    fail_at: Option<u32>,
}

impl MemoryStore {
    /// A store whose call number `n` (from 1) finds no space; calls after it succeed again.
    pub fn failing_at(n: u32) -> Self {
        Self {
            fail_at: Some(n),
            ..Self::default()
        }
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, changes: &[StoreChange]) -> Result<(), StoreError> {
        self.calls += 1;
        if self.fail_at == Some(self.calls) {
            self.counts.failures += 1;
            return Err(StoreError::Full);
        }
        self.counts.commits += 1;
        for change in changes {
            self.counts.changes += 1;
            match change {
                StoreChange::Put(record) => {
                    self.records.insert(record.generation, record.clone());
                }
                StoreChange::Delete(generation) => {
                    self.records.remove(generation);
                }
                StoreChange::PutPinhole(record) => {
                    self.pinholes.insert(record.id, *record);
                }
                StoreChange::DeletePinhole(id) => {
                    self.pinholes.remove(id);
                }
                StoreChange::Mark(_)
                | StoreChange::Unmark(_)
                | StoreChange::UpdateId(_)
                | StoreChange::Access(_)
                | StoreChange::Epoch { .. } => {}
            }
        }
        Ok(())
    }

    fn keep_boot_id(&mut self, boot_id: u32) -> Result<(), StoreError> {
        self.commit(&[])?;
        self.boot_id = boot_id;
        Ok(())
    }

    fn counts(&self) -> Counts {
        self.counts
    }
}
