//! Has the gateway lost its state? (RFC 6886 section 3.6)

use crate::types::{Epoch, Instant};

/// What the last response said about the gateway's clock, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SinceStart {
    last: Option<(Instant, Epoch)>,
}

/// Seconds by which the gateway's clock may be behind what is expected of it.
const TOLERANCE: u128 = 2;

impl SinceStart {
    /// The last seconds since the start of epoch.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.last.map(|(_, epoch)| epoch)
    }

    /// Whether a clock that reads `epoch` at `now` has been reset. It is kept for the next one in either case.
    pub(super) fn observe(&mut self, now: Instant, epoch: Epoch) -> bool {
        let Some((then, last)) = self.last.replace((now, epoch)) else {
            return false;
        };
        // It may run slower than ours by one part in eight. In eighths of milliseconds.
        let elapsed = now.saturating_duration_since(then).as_millis();
        let expected = u128::from(last.0) * 8000 + elapsed * 7;
        (u128::from(epoch.0) + TOLERANCE) * 8000 < expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors() {
        for (last, elapsed, new, reset) in [
            (1000, 800, 1698, false),
            (1000, 800, 1697, true),
            (1000, 800, 1800, false),
            (1000, 800, 90_000, false),
            (1000, 0, 998, false),
            (1000, 0, 997, true),
            (0, 0, 0, false),
            (0, 100, 85, true),
            (u32::MAX, 8, 0, true),
        ] {
            let mut clock = SinceStart::default();
            let at = |seconds: u64| Instant::from_millis(5000 + seconds * 1000);
            assert!(!clock.observe(at(0), Epoch(last)), "the first one");
            assert_eq!(
                clock.observe(at(elapsed), Epoch(new)),
                reset,
                "{last} {elapsed} {new}"
            );
            assert_eq!(clock.epoch(), Some(Epoch(new)));
        }
    }
}
