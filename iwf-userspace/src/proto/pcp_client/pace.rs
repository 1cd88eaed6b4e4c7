//! The pace of what nobody waits for: recovery, renewals, deletions in the background.
//!
//! A server that has restarted, or a subscriber who has lost everything, must not become a burst of thousands of
//! datagrams (RFC 6887 sections 8.5 and 14.1.3, AMB-16). Requests that somebody waits for do not come here: they go
//! at once, so the line never keeps an application waiting. How many of those there are is bounded per host.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use rand::{Rng, RngExt};

use crate::types::{ExternalPort, Generation, Instant, Protocol};

/// One request in this time to one server.
pub const INTERVAL: Duration = Duration::from_millis(3);
/// So many at once after a time without any.
pub const BURST: u32 = 4;
/// Requests without an answer, sent within [`GIVEN_UP`]: a server or a path that cannot keep up sets the pace.
const WINDOW: usize = 128;
/// After this time without an answer a request is lost, or the server is (the initial retransmission time).
const GIVEN_UP: Duration = Duration::from_secs(3);
/// RFC 6887 section 14.1.3: an announcement reaches many clients at once, so each waits up to this long.
const SPREAD: Duration = Duration::from_secs(5);
/// The wait is drawn from at least so much, however long the recovery itself takes.
const LEAST_SPREAD: Duration = Duration::from_millis(200);
/// Left of [`SPREAD`] for the way to the server and back.
const ROUND_TRIP: Duration = Duration::from_millis(500);

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    /// A lease that is wanted.
    Lease(Generation),
    /// One that is to be deleted.
    Ended(Protocol, ExternalPort, Option<Ipv4Addr>),
}

/// The line in front of one server. It holds at most one place for each lease there is.
#[derive(Debug, Default)]
pub(super) struct Pace {
    line: BTreeMap<u64, Turn>,
    places: BTreeMap<Turn, u64>,
    last: u64,
    /// When the next one would go if none had been saved up.
    next: Instant,
    /// Nothing goes before.
    hold: Instant,
    /// Sent and not answered, at most [`WINDOW`].
    open: BTreeMap<Turn, Instant>,
}

impl Pace {
    /// Whether it may be sent now; otherwise it gets a place in the line.
    pub(super) fn take(&mut self, turn: Turn, now: Instant) -> bool {
        if self.line.is_empty() && self.opens_at() <= now {
            self.count(turn, now);
            return true;
        }
        self.join(turn);
        false
    }

    /// Gets a place in the line. One is enough, however often it is said.
    pub(super) fn join(&mut self, turn: Turn) {
        if !self.places.contains_key(&turn) {
            self.last += 1;
            self.line.insert(self.last, turn);
            self.places.insert(turn, self.last);
        }
    }

    /// It has been answered.
    pub(super) fn answered(&mut self, turn: Turn) {
        self.open.remove(&turn);
    }

    /// It is no longer wanted.
    pub(super) fn leave(&mut self, turn: Turn) {
        self.answered(turn);
        if let Some(place) = self.places.remove(&turn) {
            self.line.remove(&place);
        }
    }

    /// The next one that may be sent now.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Turn> {
        if self.opens_at() > now {
            return None;
        }
        let (_, turn) = self.line.pop_first()?;
        self.places.remove(&turn);
        self.count(turn, now);
        Some(turn)
    }

    /// When the next one of the line may go.
    pub(super) fn next_event(&self) -> Option<Instant> {
        (!self.line.is_empty()).then(|| self.opens_at())
    }

    /// Waits a random time before the line goes on: less the longer the line is, so that all of it is done within
    /// [`SPREAD`] if it can be.
    pub(super) fn spread(&mut self, now: Instant, rng: &mut impl Rng) {
        let waiting = u32::try_from(self.line.len()).unwrap_or(u32::MAX);
        let work = INTERVAL.saturating_mul(waiting).saturating_add(ROUND_TRIP);
        let spread = SPREAD.saturating_sub(work).max(LEAST_SPREAD);
        let millis = u64::try_from(spread.as_millis()).unwrap_or(0);
        let wait = Duration::from_millis(rng.random_range(0..=millis));
        self.hold = self.hold.max(now + wait);
    }

    /// The server has lost its state, and with it what it was asked.
    pub(super) fn forget_open(&mut self) {
        self.open.clear();
    }

    fn count(&mut self, turn: Turn, now: Instant) {
        self.next = self.next.max(now) + INTERVAL;
        if self.open.len() >= WINDOW {
            self.open.retain(|_, sent| *sent + GIVEN_UP > now);
        }
        self.open.insert(turn, now);
    }

    fn opens_at(&self) -> Instant {
        let paced = self.next - INTERVAL * (BURST - 1);
        let mut at = self.hold.max(paced);
        if self.open.len() >= WINDOW {
            // As many steps as there are places, whatever the number of leases.
            let first = self.open.values().min().copied().unwrap_or_default();
            at = at.max(first + GIVEN_UP);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn turn(id: u32) -> Turn {
        Turn::Lease(Generation(id))
    }

    /// Times at which everything in the line is sent, answered after `rtt`.
    fn run(pace: &mut Pace, mut now: Instant, rtt: Option<u64>) -> Vec<u64> {
        let mut sent: Vec<(Instant, Turn)> = Vec::new();
        while let Some(next) = pace.next_event() {
            now = now.max(next);
            if let Some(rtt) = rtt {
                let rtt = Duration::from_millis(rtt);
                for (_, turn) in sent.iter().filter(|(at, _)| *at + rtt <= now) {
                    pace.answered(*turn);
                }
                // The answer that opens the window comes before the time runs out.
                let opens = pace.next_event().expect("not empty");
                now = now.max(opens).min(now + rtt.max(Duration::from_millis(1)));
            }
            while let Some(turn) = pace.pop(now) {
                sent.push((now, turn));
            }
        }
        sent.iter().map(|(at, _)| at.as_millis()).collect()
    }

    #[test]
    fn a_few_go_at_once_and_then_one_in_three_milliseconds() {
        let mut pace = Pace::default();
        for id in 0..1000 {
            pace.join(turn(id));
            pace.join(turn(id));
        }
        let times = run(&mut pace, at(5000), Some(20));
        assert_eq!(times.len(), 1000, "once each");
        let busiest = times.iter().map(|from| {
            let window = *from..*from + 100;
            times.iter().filter(|at| window.contains(*at)).count()
        });
        assert!(busiest.max().expect("some") <= 38);
        assert!(times[999] - times[0] <= 3100);
    }

    #[test]
    fn a_server_that_does_not_answer_is_not_flooded() {
        let mut pace = Pace::default();
        for id in 0..1000 {
            pace.join(turn(id));
        }
        let times = run(&mut pace, at(0), None);
        let within = |end: u64| times.iter().filter(|at| **at < end).count();
        assert!(within(3000) <= WINDOW + 1, "{}", within(3000));
        assert!(within(9000) <= 3 * (WINDOW + 1));
    }

    #[test]
    fn the_wait_after_an_announcement_leaves_time_for_the_work() {
        for (waiting, most) in [(0, 4500), (20, 4440), (1000, 1500), (10_000, 200)] {
            let mut waits: Vec<u64> = (0..100)
                .map(|seed| {
                    let mut pace = Pace::default();
                    (0..waiting.max(1)).for_each(|id| pace.join(turn(id)));
                    pace.spread(at(0), &mut StdRng::seed_from_u64(seed));
                    pace.next_event().expect("somebody waits").as_millis()
                })
                .collect();
            waits.sort_unstable();
            assert!(waits[99] <= most && waits[99] > most * 8 / 10, "{waits:?}");
            assert!(waits[50] > most / 4 && waits[0] < most / 5, "{waits:?}");
        }
    }

    #[test]
    fn who_leaves_has_no_turn() {
        let mut pace = Pace::default();
        (0..3).for_each(|id| pace.join(turn(id)));
        pace.leave(turn(0));
        assert_eq!(pace.pop(at(9)), Some(turn(1)));
        assert!(!pace.take(turn(3), at(9)), "behind the others");
        assert_eq!(pace.pop(at(9)), Some(turn(2)));
        assert_eq!(pace.pop(at(9)), Some(turn(3)));
        assert_eq!(pace.next_event(), None);
    }
}
