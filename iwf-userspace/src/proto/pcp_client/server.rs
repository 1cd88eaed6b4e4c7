//! What is known of one server: its clock, whether it answers, what it speaks, what it refuses.

use std::collections::BTreeSet;

use rand::Rng;

use super::epoch::EpochClock;
use super::negative::NegativeCache;
use super::pace::Pace;
use super::retransmit::Backoff;
use super::{Liveness, Speaks};
use crate::types::{Generation, Instant};
use crate::wire::pcp::Prefix64;

/// Unanswered transmissions after which a server counts as silent, at the moment the next one is due (21 s).
pub(super) const PATIENCE: u32 = 3;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) clock: EpochClock,
    pub(super) liveness: Liveness,
    pub(super) speaks: Speaks,
    /// Whether it is one of those to use, not only one that still has leases.
    pub(super) listed: bool,
    /// Whether this is one of several addresses of a server.
    pub(super) several: bool,
    /// Given up for another address.
    pub(super) resting: bool,
    /// Whether it takes FILTER (AMB-14).
    pub(super) filters: bool,
    /// Whether it takes DESCRIPTION.
    pub(super) descriptions: bool,
    /// Prefixes of its NAT64, as it said last (RFC 7225); gone when it falls silent.
    pub(super) prefixes: Vec<Prefix64>,
    pub(super) negative: NegativeCache,
    /// RFC 6887 section 11.4: no request of any kind before.
    pub(super) quiet_until: Instant,
    /// An ANNOUNCE under way, and when it is sent next.
    pub(super) probe: Option<(Backoff, Instant)>,
    /// Who waits for a turn.
    pub(super) pace: Pace,
    /// Leases with requests that have no answer yet.
    pub(super) unanswered: BTreeSet<Generation>,
}

impl Server {
    pub(super) fn new(clock: EpochClock) -> Self {
        Self {
            clock,
            liveness: Liveness::Unknown,
            speaks: Speaks::Unknown,
            listed: false,
            several: false,
            resting: false,
            filters: true,
            descriptions: true,
            prefixes: Vec::new(),
            negative: NegativeCache::default(),
            quiet_until: Instant::default(),
            probe: None,
            pace: Pace::default(),
            unanswered: BTreeSet::new(),
        }
    }

    /// Asks for a sign of life.
    pub(super) fn probe(&mut self, now: Instant) {
        if self.listed {
            self.probe = Some((Backoff::default(), now));
        }
    }

    /// Asks for a sign of life after the first wait, unless there is another address to ask.
    pub(super) fn probe_later(&mut self, now: Instant, rng: &mut impl Rng) {
        if self.listed && !self.several {
            let mut backoff = Backoff::default();
            let wait = backoff.next(rng);
            self.probe = Some((backoff, now + wait));
        }
    }

    /// It does not answer. What it said of its NAT64 goes with it (RFC 7225 section 4.1).
    pub(super) fn silence(&mut self) {
        self.liveness = Liveness::Silent;
        self.prefixes.clear();
    }

    /// Whether an ANNOUNCE awaits its answer.
    pub(super) fn is_probed(&self) -> bool {
        self.probe
            .as_ref()
            .is_some_and(|(backoff, _)| backoff.sent() > 0)
    }

    /// When something is due, given whether anything can be sent.
    pub(super) fn next_event(&self, up: bool) -> Option<Instant> {
        if !up {
            return None;
        }
        let probe = self.probe.as_ref().map(|(_, at)| *at);
        let line = self.pace.next_event();
        let next = probe.into_iter().chain(line).min()?;
        Some(next.max(self.quiet_until))
    }
}
