//! What is counted and compared.

use serde::{Deserialize, Serialize};

use super::Reconciler;
use crate::daemon::dataplane::inspect::TableRow;

/// Whether the three tables agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// No difference found.
    pub clean: bool,
    /// Explicit entries in the kernel.
    pub kernel_entries: u64,
    /// Upstream leases held.
    pub leases: u64,
    /// Mappings in the table.
    pub mappings: u64,
    /// What differs, one sentence each.
    pub differences: Vec<String>,
    /// What the reconciler did so far.
    #[serde(default)]
    pub reconciler: Reconciler,
}

/// Repairs since the start, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    /// Kernel entries that no mapping vouched for.
    pub removed: u64,
    /// Kernel entries that were missing.
    pub created: u64,
    /// Kernel entries that differed from their mapping.
    pub updated: u64,
    /// Repairs that the kernel refused.
    pub failed: u64,
    /// Runs that could not look at the kernel.
    pub blind: u64,
}

/// Counters of the data plane, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Sessions at the last sweep.
    pub sessions: u64,
    /// Sum over all CPUs since the programs were loaded.
    pub counters: Vec<Counter>,
    /// What reconciler and store did since the daemon started.
    #[serde(default)]
    pub daemon: Vec<Counter>,
    /// How full the tables are; the large ones are missing before the first sweep has ended.
    #[serde(default)]
    pub tables: Vec<TableRow>,
    /// What the daemon holds, and what waits in it.
    #[serde(default)]
    pub held: Vec<Held>,
}

/// How much of something the daemon holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Of what.
    pub name: String,
    /// How much, now.
    pub held: u64,
    /// The bound; absent if another one bounds it.
    pub limit: Option<u64>,
}

impl Held {
    /// So much of something.
    pub fn new(name: &str, held: usize, limit: Option<usize>) -> Self {
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Self {
            name: name.to_owned(),
            held: wide(held),
            limit: limit.map(wide),
        }
    }
}

/// One named counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Name, as in the documentation of the data plane.
    pub name: String,
    /// Value.
    pub value: u64,
}
