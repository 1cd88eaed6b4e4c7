//! Stores what the core wants stored, together what comes together.

use std::collections::VecDeque;

use tracing::{error, info};

use super::super::control::events::EventKind;
use super::super::dataplane::DataPlane;
use super::super::store::{Store, StoreError};
use super::{Datagrams, Shell};
use crate::iwf::{Effect, EffectError, StoreChange, Ticket};
use crate::types::Instant;

/// Changes that wait for the next commit, and who is told something after it.
#[derive(Debug, Default)]
pub(super) struct Unstored {
    tickets: Vec<Ticket>,
    changes: Vec<StoreChange>,
    answers: VecDeque<Effect>,
    /// Since when commits fail.
    pub(super) failing_since: Option<Instant>,
}

impl Unstored {
    pub(super) fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    pub(super) fn push(&mut self, ticket: Ticket, change: StoreChange) {
        self.tickets.push(ticket);
        self.changes.push(change);
    }

    /// Keeps an answer, or a datagram for a server, until what came before it is stored. Gives it back if nothing has to
    /// be.
    pub(super) fn hold(&mut self, answer: Effect) -> Option<Effect> {
        if self.is_empty() {
            return Some(answer);
        }
        self.answers.push_back(answer);
        None
    }
}

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// Commits what waits and tells the core what came of it.
    pub(super) fn store(&mut self, out: &mut impl Datagrams, now: Instant) {
        let tickets = std::mem::take(&mut self.unstored.tickets);
        let changes = std::mem::take(&mut self.unstored.changes);
        let result = self.commit(&changes, now);
        for answer in std::mem::take(&mut self.unstored.answers) {
            self.tell_outcome(answer, out, now);
        }
        for ticket in tickets {
            self.done(ticket, result, now);
        }
    }

    fn commit(&mut self, changes: &[StoreChange], now: Instant) -> Result<(), EffectError> {
        let result = self.store.commit(changes);
        self.stored(result, now)
    }

    /// Stores the BOOTID that is about to be announced. Whether it is stored: else it is to be tried again.
    pub fn keep_boot_id(&mut self, boot_id: u32, now: Instant) -> bool {
        let result = self.store.keep_boot_id(boot_id);
        self.stored(result, now).is_ok()
    }

    /// The owner is told when it begins to fail and when it works again, not each time.
    fn stored(&mut self, result: Result<(), StoreError>, now: Instant) -> Result<(), EffectError> {
        match (&result, self.unstored.failing_since) {
            (Ok(()), None) | (Err(_), Some(_)) => {}
            (Ok(()), Some(_)) => {
                self.unstored.failing_since = None;
                info!("the store works again");
                self.tell_text(EventKind::StoreWorks, None, "it works again".to_owned());
            }
            (Err(error), None) => {
                self.unstored.failing_since = Some(now);
                let error = match error {
                    StoreError::Full => error.to_string(),
                    StoreError::Database { source, .. } => format!("{error}: {source}"),
                };
                error!(
                    error,
                    "the store failed; what is there goes on, new mappings are refused, and it is tried again"
                );
                self.tell_text(EventKind::StoreFails, None, error);
            }
        }
        result.map_err(|error| match error {
            StoreError::Full => EffectError::Full,
            StoreError::Database { .. } => EffectError::Failed,
        })
    }
}
