//! Connections over TLS that are open, so that they can be closed from elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Each has a name that no other ever has.
#[derive(Clone, Debug, Default)]
pub struct OpenConnections(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    #[cfg(feature = "device-protection")]
    last: u64,
    all: BTreeMap<u64, Arc<Notify>>,
}

impl OpenConnections {
    /// Closes a connection when the requests that it has brought are answered. One that is closed already is fine.
    pub fn hang_up(&self, connection: u64) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hang_up) = open.all.get(&connection) {
            hang_up.notify_one();
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.all.len()
    }

    /// Names a new one, and says how it hears that it is to be closed.
    #[cfg(feature = "device-protection")]
    pub(super) fn enter(&self) -> (u64, Arc<Notify>) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.last += 1;
        let (connection, hang_up) = (open.last, Arc::new(Notify::new()));
        open.all.insert(connection, Arc::clone(&hang_up));
        (connection, hang_up)
    }

    /// It is closed.
    #[cfg(feature = "device-protection")]
    pub(super) fn leave(&self, connection: u64) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.all.remove(&connection);
    }
}
