//! Runs of the reconciler, turn by turn between the other work of the loop.

use super::{RETRY, Shell, log_plane};
use crate::daemon::dataplane::{DataPlane, DataPlaneError};
use crate::daemon::reconciler::{Running, busy};
use crate::daemon::store::Store;
use crate::types::Instant;

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// Whether a run is under way.
    pub fn is_reconciling(&self) -> bool {
        self.runs.running.is_some()
    }

    /// Whether kernel and table have ever been compared.
    pub fn has_reconciled(&self) -> bool {
        self.runs.last.is_some()
    }

    /// A whole run at once: for when nobody is served yet.
    pub fn reconcile(&mut self, now: Instant) {
        self.begin_run();
        while self.is_reconciling() {
            self.reconcile_turn(now);
        }
    }

    pub(super) fn begin_run(&mut self) {
        self.runs.due = None;
        self.runs.running = Some(Running::begin(&mut self.plane));
    }

    /// A bounded part of the run under way.
    pub fn reconcile_turn(&mut self, now: Instant) {
        let began = busy();
        let Some(mut running) = self.runs.running.take() else {
            return;
        };
        let last = running.at_pinholes;
        let turn = if last {
            self.reconcile_pinholes().map(|done| {
                running.outcome.add(done);
                Vec::new()
            })
        } else {
            running.turn(&mut self.plane, self.core.wanted(now))
        };
        self.hear();
        running.count_turn(began);
        match turn {
            Ok(repairs) => {
                self.tell_repairs(&repairs);
                if last {
                    self.end_run(&running, now);
                } else {
                    self.runs.running = Some(running);
                }
            }
            Err(error) => self.go_blind(&running, error, now),
        }
    }

    fn end_run(&mut self, running: &Running, now: Instant) {
        self.runs.count += 1;
        self.runs.last = Some(now);
        self.runs.outcome = running.outcome;
        self.runs.cost = running.cost;
        self.runs.total.add(running.outcome);
        if running.outcome.failed > 0 {
            self.runs.due = Some(self.runs.due.unwrap_or(now + RETRY));
        }
    }

    /// What was repaired until then counts, but it was no run.
    fn go_blind(&mut self, running: &Running, error: DataPlaneError, now: Instant) {
        log_plane("observe", error);
        self.runs.blind += 1;
        self.runs.total.add(running.outcome);
        self.runs.due = Some(now + RETRY);
    }
}
