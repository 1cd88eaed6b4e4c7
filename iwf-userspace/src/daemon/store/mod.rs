//! The embedded transactional store: everything a restart needs.

use std::net::IpAddr;

use crate::iwf::StoreChange;
use crate::mapping::record::MappingRecord;
use crate::types::Epoch;

/// What the store held at start.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Every mapping.
    pub mappings: Vec<MappingRecord>,
    /// UPnP BOOTID to use from now on (already stored, larger than any before).
    pub boot_id: u32,
    /// Identity of the device: base of every UDN, stable for ever.
    pub device_uuid: String,
    /// The largest generation ever used.
    pub last_generation: u32,
    /// Last epoch seen per server, with the wall-clock second it was seen.
    pub epochs: Vec<(IpAddr, Epoch, u64)>,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space left, or a quota.
    #[error("no space left for the store")]
    Full,
    /// The database reported an error.
    #[error("store failed to {action}")]
    Database {
        action: &'static str,
        #[source]
        source: Box<redb::Error>,
    },
}

/// Durable changes, each atomic: when `commit` returns, a power cut loses nothing of it.
pub trait Store {
    /// Applies one change durably.
    fn commit(&mut self, change: &StoreChange) -> Result<(), StoreError>;
}
