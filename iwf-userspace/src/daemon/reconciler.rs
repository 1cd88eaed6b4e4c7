//! Makes the kernel hold what the mapping table says: the one way to repair drift, at start and ever after.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tracing::{info, warn};

use super::dataplane::{Change, DataPlane, DataPlaneError};
use crate::reconcile::desired::Wanted;
pub(super) use crate::reconcile::plan::Kind;
use crate::reconcile::run::{Kernel, Run, Seen};
use crate::types::NatEntry;

/// What one run did, or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Entries that no mapping vouched for.
    pub(super) removed: u64,
    /// Entries that were missing.
    pub(super) created: u64,
    /// Entries that differed from their mapping.
    pub(super) updated: u64,
    /// Repairs the kernel refused; the next run tries again.
    pub(super) failed: u64,
}

/// What one run costs, or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Turns of the event loop.
    pub(super) turns: u64,
    /// The most processor time that one of them took.
    pub(super) longest: Duration,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Created => "created",
            Self::Updated => "updated",
        }
    }
}

/// One difference that was to be set right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repair {
    /// How.
    pub(super) what: Kind,
    /// The entry.
    pub(super) entry: NatEntry,
    /// What the kernel had against it.
    pub(super) failure: Option<String>,
}

/// A run under way.
#[derive(Debug, Default)]
pub(super) struct Running {
    run: Run,
    /// Whether the mappings are done, and only the pinholes are left.
    pub(super) at_pinholes: bool,
    pub(super) outcome: Outcome,
    pub(super) cost: Cost,
}

impl Running {
    /// Begins.
    pub(super) fn begin(plane: &mut impl DataPlane) -> Self {
        plane.observe_anew();
        Self::default()
    }

    /// One turn at the mappings. Returns the repairs it has made or tried; a failure does not stop the rest.
    ///
    /// # Errors
    /// The kernel could not be observed; the run is over.
    pub(super) fn turn(
        &mut self,
        plane: &mut impl DataPlane,
        wanted: Wanted<'_>,
    ) -> Result<Vec<Repair>, DataPlaneError> {
        let mut kernel = Watched {
            plane,
            outcome: &mut self.outcome,
            repairs: Vec::new(),
        };
        let more = self.run.turn(&mut kernel, wanted)?;
        self.at_pinholes = !more;
        Ok(kernel.repairs)
    }

    /// A turn has begun when the clock of [`busy`] was there.
    pub(super) fn count_turn(&mut self, began: Duration) {
        self.cost.turns += 1;
        self.cost.longest = self.cost.longest.max(busy().saturating_sub(began));
    }
}

/// Processor time of this thread, which no other program's work is in.
pub(super) fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The kernel, with what comes of the repairs.
struct Watched<'a, P> {
    plane: &'a mut P,
    outcome: &'a mut Outcome,
    repairs: Vec<Repair>,
}

impl<P: DataPlane> Kernel for Watched<'_, P> {
    type Error = DataPlaneError;

    fn some(&mut self) -> Result<Seen, DataPlaneError> {
        self.plane.observe_slice()
    }

    fn find(&self, like: &NatEntry) -> Result<Option<NatEntry>, DataPlaneError> {
        self.plane.find(like)
    }

    /// Nobody waits for a repair, so that it may settle later.
    fn repair(&mut self, what: Kind, entry: &NatEntry) {
        let result = match what {
            Kind::Removed => self.plane.remove(entry),
            Kind::Created | Kind::Updated => self.plane.write(entry),
        };
        self.repairs.push(self.outcome.count(what, entry, result));
    }
}

impl Outcome {
    /// Repairs that were made.
    pub(super) const fn repaired(&self) -> u64 {
        self.removed + self.created + self.updated
    }

    /// Counts another run in.
    pub(super) const fn add(&mut self, other: Self) {
        self.removed += other.removed;
        self.created += other.created;
        self.updated += other.updated;
        self.failed += other.failed;
    }

    fn count(
        &mut self,
        what: Kind,
        entry: &NatEntry,
        result: Result<Change, DataPlaneError>,
    ) -> Repair {
        let (protocol, external, internal) = (entry.protocol, entry.external, entry.internal);
        let failure = match result {
            Ok(Change::Settled | Change::Settling(_)) => {
                match what {
                    Kind::Removed => self.removed += 1,
                    Kind::Created => self.created += 1,
                    Kind::Updated => self.updated += 1,
                }
                info!(%protocol, %external, %internal, what = what.name(), "kernel entry repaired");
                None
            }
            Err(error) => {
                self.failed += 1;
                let error = format!("{:#}", anyhow::Error::new(error));
                warn!(%protocol, %external, %internal, error, "kernel entry not {}", what.name());
                Some(error)
            }
        };
        Repair {
            what,
            entry: *entry,
            failure,
        }
    }
}

#[cfg(test)]
mod tests;
