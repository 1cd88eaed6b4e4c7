//! Has the server lost its state? (RFC 6887 section 8.5)

use crate::types::{Epoch, Instant};

/// What the last response said about the server's clock, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EpochClock {
    /// Our clock in seconds, negative for what a stored history says of the time before our clock's origin.
    last: Option<(i64, Epoch)>,
}

/// The outcome of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The first response of this server.
    First,
    /// The clock went on as ours did.
    Valid,
    /// The server has restarted or lost its state.
    Reset,
}

/// Drift and rounding allowed in each direction, in seconds.
const TOLERANCE: i64 = 2;
/// More than any epoch can advance.
const MAX_DELTA: i64 = 1 << 40;

impl EpochClock {
    /// What was known before a restart of ours: the epoch `ago` seconds before `now`.
    pub(super) fn seen(epoch: Epoch, ago: u64, now: Instant) -> Self {
        let ago = i64::try_from(ago).unwrap_or(i64::MAX);
        Self {
            last: Some((seconds(now).saturating_sub(ago), epoch)),
        }
    }

    /// The last epoch.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.last.map(|(_, epoch)| epoch)
    }

    /// Judges an epoch that arrived at `now` and keeps it for the next one, whatever the verdict.
    pub(super) fn observe(&mut self, now: Instant, epoch: Epoch) -> Verdict {
        let Some((then, last)) = self.last.replace((seconds(now), epoch)) else {
            return Verdict::First;
        };
        let client = seconds(now).saturating_sub(then).clamp(0, MAX_DELTA);
        let server = i64::from(epoch.0) - i64::from(last.0);
        // A step back of one second is no restart (PCPC-041).
        let backwards = server < -1;
        let server = server.max(0);
        let server_slow = server + TOLERANCE < client - client / 16;
        let server_fast = client + TOLERANCE < server - server / 16;
        if backwards || server_slow || server_fast {
            Verdict::Reset
        } else {
            Verdict::Valid
        }
    }
}

fn seconds(at: Instant) -> i64 {
    i64::try_from(at.as_millis() / 1000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors() {
        use Verdict::{Reset, Valid};
        for (prev_client, curr_client, prev_server, curr_server, verdict) in [
            (0, 10, 100, 110, Valid),
            (0, 10, 100, 99, Reset),
            (0, 10, 100, 98, Reset),
            (0, 1000, 5000, 5940, Valid),
            (0, 1000, 5000, 5930, Reset),
            (0, 1000, 5000, 6066, Valid),
            (0, 1000, 5000, 6074, Reset),
            (0, 3600, 100_000, 12, Reset),
            (0, 0, 0, 0, Valid),
            (0, 2, 50, 54, Valid),
            (0, 2, 50, 55, Reset),
            (0, 0, 100, 99, Valid),
            (0, 0, 100, 98, Reset),
            (0, 100, 1000, 1102, Valid),
            (0, 100, 1000, 1108, Valid),
            (0, 100, 1000, 1109, Reset),
            (0, 1000, 5000, 5936, Valid),
            (0, 1000, 5000, 5935, Reset),
            (0, 1000, 5000, 6068, Valid),
            (0, 1000, 5000, 6069, Reset),
        ] {
            let mut clock = EpochClock::default();
            let at = |seconds: u64| Instant::from_millis(seconds * 1000);
            assert_eq!(
                clock.observe(at(prev_client), Epoch(prev_server)),
                Verdict::First
            );
            assert_eq!(
                clock.observe(at(curr_client), Epoch(curr_server)),
                verdict,
                "{prev_client} {curr_client} {prev_server} {curr_server}"
            );
            assert_eq!(clock.epoch(), Some(Epoch(curr_server)));
        }
    }

    #[test]
    fn history_reaches_back_before_our_clock_began() {
        let boot = Instant::from_millis(5000);
        let mut clock = EpochClock::seen(Epoch(100), 3600, boot);
        assert_eq!(clock.observe(boot, Epoch(3700)), Verdict::Valid);
        let mut clock = EpochClock::seen(Epoch(100_000), 3600, boot);
        assert_eq!(clock.observe(boot, Epoch(30)), Verdict::Reset);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut clock = EpochClock::seen(Epoch(u32::MAX), u64::MAX, Instant::from_millis(0));
        assert_eq!(
            clock.observe(Instant::from_millis(u64::MAX), Epoch(0)),
            Verdict::Reset
        );
    }
}
