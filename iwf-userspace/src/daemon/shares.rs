//! What LAN hosts may have done at once: a few at a time in all, and fewer for each host, so that none takes what others
//! need.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::types::caller::Station;

/// Shares of something that takes time.
#[derive(Debug)]
pub(super) struct Shares {
    all: Arc<Semaphore>,
    each: usize,
    stations: Mutex<BTreeMap<Station, Arc<Semaphore>>>,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    _own: OwnedSemaphorePermit,
    _one: OwnedSemaphorePermit,
}

impl Shares {
    /// So many at once in all, and of one host.
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            each,
            stations: Mutex::default(),
        }
    }

    /// Waits for one. The host's own comes first: whoever waits for one of those stands in no other host's way.
    pub(super) async fn take(&self, station: Station) -> Option<Share> {
        let own = {
            let mut stations = self.stations();
            // Nobody waits for or has any of those; so there are no more hosts here than connections.
            stations
                .retain(|_, own| Arc::strong_count(own) > 1 || own.available_permits() < self.each);
            let own = stations.entry(station);
            let own = own.or_insert_with(|| Arc::new(Semaphore::new(self.each)));
            Arc::clone(own)
        };
        let own = own.acquire_owned().await.ok()?;
        let one = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Share {
            _own: own,
            _one: one,
        })
    }

    fn stations(&self) -> MutexGuard<'_, BTreeMap<Station, Arc<Semaphore>>> {
        self.stations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are left, and how many hosts are remembered.
    #[cfg(test)]
    pub(super) fn left(&self) -> (usize, usize) {
        (self.all.available_permits(), self.stations().len())
    }
}
