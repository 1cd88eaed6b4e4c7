//! When a lease is renewed (RFC 6887 section 11.2.1).

use std::time::Duration;

use rand::{Rng, RngExt};

use crate::types::Instant;

/// RFC 6887 section 11.2.1: never less than this between two renewal requests.
pub(super) const MIN_GAP: Duration = Duration::from_secs(4);

/// The windows of one grant: the first from 1/2 to 5/8 of the lifetime, each next one half way to the end and
/// half as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    granted: Instant,
    lifetime: Duration,
    next: u32,
}

impl Schedule {
    /// The windows of a lease that was granted, or taken over, at `granted` for `lifetime`.
    pub(super) const fn new(granted: Instant, lifetime: Duration) -> Self {
        Self {
            granted,
            lifetime,
            next: 0,
        }
    }

    /// Draws a moment in the next window that is not before `earliest`. `None`: the windows left are closer
    /// together than renewals may be, and the lease ends unless an answer comes.
    pub(super) fn next(&mut self, earliest: Instant, rng: &mut impl Rng) -> Option<Instant> {
        loop {
            let (start, end) = self.window(self.next)?;
            self.next += 1;
            if end >= earliest {
                let start = start.max(earliest).as_millis();
                return Some(Instant::from_millis(
                    rng.random_range(start..=end.as_millis()),
                ));
            }
        }
    }

    fn window(&self, k: u32) -> Option<(Instant, Instant)> {
        // The gap before window k is as long as the window k - 1 itself.
        let length = |k: u32| self.lifetime / 2u32.saturating_pow(k.saturating_add(3));
        if k > 0 && length(k - 1) < MIN_GAP {
            return None;
        }
        let start = self.granted + (self.lifetime - self.lifetime / 2u32.saturating_pow(k + 1));
        Some((start, start + length(k)))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn windows(lifetime: u64) -> Vec<(f64, f64)> {
        let schedule = Schedule::new(Instant::from_millis(0), Duration::from_secs(lifetime));
        (0..)
            .map_while(|k| schedule.window(k))
            .map(|(a, b)| (a.as_millis() as f64 / 1000.0, b.as_millis() as f64 / 1000.0))
            .collect()
    }

    #[test]
    fn windows_of_the_table() {
        assert_eq!(windows(120), [(60.0, 75.0), (90.0, 97.5), (105.0, 108.75)]);
        assert_eq!(windows(60), [(30.0, 37.5), (45.0, 48.75)]);
        let hour = windows(3600);
        assert_eq!(hour.len(), 8);
        assert_eq!(
            hour[..3],
            [(1800.0, 2250.0), (2700.0, 2925.0), (3150.0, 3262.5)]
        );
    }

    #[test]
    fn draws_stay_inside_and_spread() {
        let mut seen = [0u32; 4];
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut schedule = Schedule::new(Instant::from_millis(0), Duration::from_secs(3600));
            let at = schedule
                .next(Instant::from_millis(0), &mut rng)
                .expect("first");
            let offset = at.as_millis() - 1_800_000;
            assert!(offset <= 450_000);
            seen[(offset * 4 / 450_001) as usize] += 1;
            let second = schedule.next(at + MIN_GAP, &mut rng).expect("second");
            assert!((2_700_000..=2_925_000).contains(&second.as_millis()));
        }
        assert!(seen.iter().all(|n| (30..=70).contains(n)), "{seen:?}");
    }

    #[test]
    fn windows_before_the_earliest_moment_are_skipped() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut schedule = Schedule::new(Instant::from_millis(0), Duration::from_secs(3600));
        let at = schedule.next(Instant::from_millis(2_930_000), &mut rng);
        assert!(at.is_some_and(|at| (3_150_000..=3_262_500).contains(&at.as_millis())));
        let mut schedule = Schedule::new(Instant::from_millis(0), Duration::from_secs(60));
        assert_eq!(schedule.next(Instant::from_millis(59_000), &mut rng), None);
    }
}
