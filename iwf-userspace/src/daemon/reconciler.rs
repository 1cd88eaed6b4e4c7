//! Makes the kernel hold what the mapping table says: the one way to repair drift, at start and ever after.

use tracing::{info, warn};

use super::dataplane::{Change, DataPlane, DataPlaneError};
use crate::reconcile::plan::Plan;
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

/// What a repair does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Removed,
    Created,
    Updated,
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

/// Observes, plans, and applies: removals first, so that their places are free. A failure does not stop the rest.
/// `repairs` gets what was done.
///
/// # Errors
/// The kernel could not be observed; nothing was changed.
pub(super) fn run(
    plane: &mut impl DataPlane,
    desired: &[NatEntry],
    repairs: &mut Vec<Repair>,
) -> Result<Outcome, DataPlaneError> {
    let plan = Plan::new(&plane.observe()?, desired);
    let mut outcome = Outcome::default();
    for entry in &plan.remove {
        repairs.push(outcome.count(Kind::Removed, entry, plane.remove(entry)));
    }
    for entry in &plan.create {
        repairs.push(outcome.count(Kind::Created, entry, plane.write(entry)));
    }
    for entry in &plan.update {
        repairs.push(outcome.count(Kind::Updated, entry, plane.write(entry)));
    }
    Ok(outcome)
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

    /// Nobody waits for a repair, so that it may settle later.
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
mod tests {
    use super::super::dataplane::fake::{FakePlane, Fault};
    use super::*;
    use crate::types::{
        ExternalEndpoint, ExternalPort, Generation, InternalEndpoint, InternalPort, Protocol,
        RemotePeer,
    };

    fn entry(generation: u32, port: u16) -> NatEntry {
        NatEntry {
            protocol: Protocol::Udp,
            external: ExternalEndpoint {
                addr: [100, 64, 0, 2].into(),
                port: ExternalPort::new(port).unwrap(),
            },
            internal: InternalEndpoint {
                addr: [192, 168, 1, 10].into(),
                port: InternalPort::new(port).unwrap(),
            },
            remote: RemotePeer::Any,
            generation: Generation(generation),
            expires: None,
        }
    }

    #[test]
    fn repairs_all_three_kinds_of_drift_and_then_rests() {
        let mut plane = FakePlane::new();
        plane.write(&entry(1, 1000)).unwrap();
        plane.write(&entry(2, 2000)).unwrap();
        let desired = [entry(3, 2000), entry(4, 3000)];
        let outcome = run(&mut plane, &desired, &mut Vec::new()).unwrap();
        assert_eq!((outcome.repaired(), outcome.failed), (3, 0));
        assert_eq!(plane.observe().unwrap(), desired);
        assert_eq!(
            run(&mut plane, &desired, &mut Vec::new()).unwrap(),
            Outcome::default()
        );
    }

    #[test]
    fn one_failure_does_not_stop_the_rest() {
        let mut plane = FakePlane::new();
        plane.fail_change(1, Fault::Full);
        let desired = [entry(1, 1000), entry(2, 2000)];
        let mut repairs = Vec::new();
        let outcome = run(&mut plane, &desired, &mut repairs).unwrap();
        assert_eq!((outcome.repaired(), outcome.failed), (1, 1));
        let told = repairs.iter().map(|r| (r.what, r.failure.is_some()));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [(Kind::Created, true), (Kind::Created, false)]
        );
        let outcome = run(&mut plane, &desired, &mut Vec::new()).unwrap();
        assert_eq!((outcome.repaired(), outcome.failed), (1, 0));
        assert_eq!(plane.observe().unwrap(), desired);
    }
}
