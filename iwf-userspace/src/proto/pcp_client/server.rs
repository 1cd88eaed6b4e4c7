//! What is known of one server: its clock, whether it answers, what it refuses, whom it has to be asked for again.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::{Rng, RngExt};

use super::Liveness;
use super::epoch::EpochClock;
use super::negative::NegativeCache;
use super::retransmit::Backoff;
use crate::types::{Generation, Instant};

/// PCPC-074: 20 requests a second.
const RECOVERY_PACE: Duration = Duration::from_millis(50);
/// RFC 6887 section 14.1.3: an announcement reaches many clients at once, so each waits up to this long.
const ANNOUNCE_SPREAD: Duration = Duration::from_secs(5);
/// Unanswered transmissions after which a server counts as silent, at the moment the next one is due (21 s).
pub(super) const PATIENCE: u32 = 3;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) clock: EpochClock,
    pub(super) liveness: Liveness,
    /// Whether it is one of those to use, not only one that still has leases.
    pub(super) listed: bool,
    /// Whether it takes FILTER (AMB-14).
    pub(super) filters: bool,
    pub(super) negative: NegativeCache,
    /// RFC 6887 section 11.4: no request of any kind before.
    pub(super) quiet_until: Instant,
    /// An ANNOUNCE under way, and when it is sent next.
    pub(super) probe: Option<(Backoff, Instant)>,
    recovering: BTreeSet<Generation>,
    next_recovery: Instant,
}

impl Server {
    pub(super) fn new(clock: EpochClock) -> Self {
        Self {
            clock,
            liveness: Liveness::Unknown,
            listed: false,
            filters: true,
            negative: NegativeCache::default(),
            quiet_until: Instant::default(),
            probe: None,
            recovering: BTreeSet::new(),
            next_recovery: Instant::default(),
        }
    }

    /// Asks for a sign of life.
    pub(super) fn probe(&mut self, now: Instant) {
        if self.listed {
            self.probe = Some((Backoff::default(), now));
        }
    }

    /// Asks for a sign of life after the first wait.
    pub(super) fn probe_later(&mut self, now: Instant, rng: &mut impl Rng) {
        if self.listed {
            let mut backoff = Backoff::default();
            let wait = backoff.next(rng);
            self.probe = Some((backoff, now + wait));
        }
    }

    /// Whether an ANNOUNCE awaits its answer.
    pub(super) fn is_probed(&self) -> bool {
        self.probe
            .as_ref()
            .is_some_and(|(backoff, _)| backoff.sent() > 0)
    }

    /// Puts a lease among those to be asked for again. Once is enough however often it is said.
    pub(super) fn recover(&mut self, id: Generation, now: Instant) {
        if self.recovering.is_empty() {
            self.next_recovery = self.next_recovery.max(now);
        }
        self.recovering.insert(id);
    }

    /// Takes a lease out: it was granted, or is no longer wanted.
    pub(super) fn recovered(&mut self, id: Generation) {
        self.recovering.remove(&id);
    }

    /// Waits a random time before the recovery goes on.
    pub(super) fn spread_recovery(&mut self, now: Instant, rng: &mut impl Rng) {
        let spread = u64::try_from(ANNOUNCE_SPREAD.as_millis()).unwrap_or(0);
        let wait = Duration::from_millis(rng.random_range(0..=spread));
        self.next_recovery = self.next_recovery.max(now + wait);
    }

    /// The next lease whose turn it is.
    pub(super) fn next_to_recover(&mut self, now: Instant) -> Option<Generation> {
        if now < self.next_recovery || now < self.quiet_until {
            return None;
        }
        let id = self.recovering.pop_first()?;
        self.next_recovery = now + RECOVERY_PACE;
        Some(id)
    }

    /// When something is due, given whether anything can be sent.
    pub(super) fn next_event(&self, up: bool) -> Option<Instant> {
        if !up {
            return None;
        }
        let probe = self.probe.as_ref().map(|(_, at)| *at);
        let recovery = (!self.recovering.is_empty()).then_some(self.next_recovery);
        let next = probe.into_iter().chain(recovery).min()?;
        Some(next.max(self.quiet_until))
    }
}
