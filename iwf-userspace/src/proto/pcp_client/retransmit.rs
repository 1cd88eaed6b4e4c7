//! When an unanswered request is sent again (RFC 6887 section 8.1.1).

use std::time::Duration;

use rand::{Rng, RngExt};

/// Initial retransmission time.
const IRT: Duration = Duration::from_secs(3);
/// Maximum retransmission time. There is no maximum count and no maximum duration.
const MRT: Duration = Duration::from_secs(1024);

/// The waits between the transmissions of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    previous: Option<Duration>,
    sent: u32,
}

impl Backoff {
    /// Counts a transmission and draws the wait until the next one.
    pub(super) fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let base = self.previous.map_or(IRT, |rt| (rt * 2).min(MRT));
        let wait = jitter(base, rng);
        self.previous = Some(wait);
        self.sent = self.sent.saturating_add(1);
        wait
    }

    /// Transmissions so far.
    pub(super) const fn sent(&self) -> u32 {
        self.sent
    }
}

/// (1 + RAND) times the base, RAND drawn from -0.1 to +0.1.
fn jitter(base: Duration, rng: &mut impl Rng) -> Duration {
    base * rng.random_range(900..=1100) / 1000
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn doubles_from_three_seconds_to_1024() {
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::default();
            let mut base = IRT.as_secs_f64();
            for _ in 0..14 {
                let wait = backoff.next(&mut rng).as_secs_f64();
                assert!(
                    (base * 0.899..=base * 1.101).contains(&wait),
                    "{wait} {base}"
                );
                base = (wait * 2.0).min(1024.0);
            }
            assert_eq!(backoff.sent(), 14);
        }
    }
}
