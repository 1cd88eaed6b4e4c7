//! Instants of the core and ticks of the kernel.
//!
//! The packet programs know only the low 32 bits of jiffies, which stand still while the machine is suspended;
//! the core counts milliseconds of `CLOCK_BOOTTIME`, as upstream lifetimes do. A pair of readings taken by the
//! kernel at one moment ties both together and is renewed before every use.
#![forbid(unsafe_code)]

use iwf_common::tick::{self, ClockSample};

use crate::types::Instant;

const NANOS: i128 = 1_000_000_000;
const NANOS_PER_MILLI: i128 = 1_000_000;

/// The tick rates Linux can be built with.
const RATES: [u32; 4] = [100, 250, 300, 1000];

/// How ticks and instants relate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    hz: u32,
    jiffies: u64,
    /// Nanoseconds of boot time at jiffies 0. An estimate that is late by less than a tick and gets better
    /// with every reading, because a reading is taken somewhere within a tick.
    origin: i128,
}

impl Clock {
    /// A clock of `hz` ticks per second (not 0), tied by one reading.
    pub(super) fn new(hz: u32, sample: ClockSample) -> Self {
        let mut clock = Self {
            hz: hz.max(1),
            jiffies: sample.jiffies,
            origin: 0,
        };
        clock.origin = clock.origin_of(sample);
        clock
    }

    /// Ticks per second.
    pub(super) fn hz(&self) -> u32 {
        self.hz
    }

    /// Takes a newer reading into account.
    pub(super) fn update(&mut self, sample: ClockSample) {
        self.jiffies = sample.jiffies;
        let origin = self.origin_of(sample);
        // Later by more than a reading can be wrong: the machine was suspended.
        if origin < self.origin || origin > self.origin + 2 * NANOS / i128::from(self.hz) {
            self.origin = origin;
        }
    }

    /// The tick of the last reading.
    pub(super) fn now(&self) -> u32 {
        low(self.jiffies)
    }

    /// The last tick that begins at or before `instant`; 0 for none, as the kernel has it. Instants that are
    /// over become the present, those further away than [`tick::MAX_AHEAD`] that.
    pub(super) fn deadline(&self, instant: Option<Instant>) -> u32 {
        let Some(instant) = instant else { return 0 };
        let nanos = i128::from(instant.as_millis()) * NANOS_PER_MILLI;
        let at = ((nanos - self.origin) * i128::from(self.hz)).div_euclid(NANOS);
        let ahead = u32::try_from((at - i128::from(self.jiffies)).max(0)).unwrap_or(u32::MAX);
        tick::deadline_after(self.now(), ahead)
    }

    /// The instant a deadline of the kernel's stands for; `None` for 0.
    pub(super) fn instant(&self, deadline: u32) -> Option<Instant> {
        if deadline == 0 {
            return None;
        }
        let ahead = deadline.wrapping_sub(self.now()).cast_signed();
        let at = i128::from(self.jiffies) + i128::from(ahead);
        let nanos = self.origin + at * NANOS / i128::from(self.hz);
        let millis = nanos.div_euclid(NANOS_PER_MILLI).max(0);
        Some(Instant::from_millis(
            u64::try_from(millis).unwrap_or(u64::MAX),
        ))
    }

    fn origin_of(&self, sample: ClockSample) -> i128 {
        i128::from(sample.boot_ns) - i128::from(sample.jiffies) * NANOS / i128::from(self.hz)
    }
}

/// The tick rate two readings show; `None` if they are too close together to tell, or the machine was
/// suspended between them.
pub(super) fn rate(earlier: ClockSample, later: ClockSample) -> Option<u32> {
    let ticks = u128::from(later.jiffies.checked_sub(earlier.jiffies)?);
    let nanos = u128::from(later.boot_ns.checked_sub(earlier.boot_ns)?);
    // Either count may be off by one tick; 20 of them keep 250 and 300 apart.
    if ticks < 8 || nanos == 0 {
        return None;
    }
    let milli_hz = ticks * 1_000_000_000_000 / nanos;
    let off = |hz: u32| milli_hz.abs_diff(u128::from(hz) * 1000) * 100 / (u128::from(hz) * 1000);
    RATES
        .into_iter()
        .min_by_key(|&hz| off(hz))
        .filter(|&hz| off(hz) < 8)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the tick is the low half by definition"
)]
pub(super) fn low(jiffies: u64) -> u32 {
    jiffies as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A reading at `nanos` on a machine whose jiffies began at `start` with boot.
    fn sample(hz: u32, start: u64, nanos: u64) -> ClockSample {
        let ticks = u128::from(nanos) * u128::from(hz) / 1_000_000_000;
        ClockSample {
            jiffies: start + u64::try_from(ticks).expect("small"),
            boot_ns: nanos,
        }
    }

    proptest! {
        #[test]
        fn a_deadline_never_outlives_the_instant(
            rate in 0..RATES.len(),
            // Kernels begin five minutes before the low half wraps.
            start in (1u64 << 32) - 300_000..(1u64 << 32) + 300_000,
            nanos in 1_000_000_000u64..1_000_000_000_000,
            ahead in 0u64..86_400_000,
        ) {
            let hz = RATES[rate];
            let clock = Clock::new(hz, sample(hz, start, nanos));
            let wanted = Instant::from_millis(nanos / 1_000_000 + ahead);
            let deadline = clock.deadline(Some(wanted));
            let kept = clock.instant(deadline).expect("set");
            let tick_ms = u64::from(1000 / hz) + 1;
            // 0 means "never", so that one tick is stepped over.
            let slack = if deadline == 1 { tick_ms } else { 0 };
            prop_assert!(kept.as_millis() <= wanted.as_millis().max(nanos / 1_000_000) + slack);
            prop_assert!(kept.as_millis() + 2 * tick_ms >= wanted.as_millis());

            // What the kernel does at the true beginning of that tick, against the true time.
            let begins = (i128::from(deadline.wrapping_sub(clock.now()).cast_signed())
                + i128::from(clock.jiffies) - i128::from(start)) * NANOS / i128::from(hz);
            prop_assert!(begins <= i128::from(wanted.as_millis()) * NANOS_PER_MILLI
                + i128::from(slack) * NANOS_PER_MILLI);
        }
    }

    #[test]
    fn over_far_and_never() {
        let clock = Clock::new(250, sample(250, 1000, 60_000_000_000));
        assert_eq!(clock.deadline(None), 0);
        assert_eq!(clock.instant(0), None);
        let over = clock.deadline(Some(Instant::from_millis(1)));
        assert!(tick::deadline_passed(clock.now(), over));
        let far = clock.deadline(Some(Instant::from_millis(u64::MAX)));
        assert_eq!(far, clock.now() + tick::MAX_AHEAD);
    }

    #[test]
    fn readings_within_a_tick_converge_and_suspend_moves_the_origin() {
        let mut clock = Clock::new(250, sample(250, 0, 60_003_999_999));
        let soon = Instant::from_millis(61_000);
        let first = clock.deadline(Some(soon));
        clock.update(sample(250, 0, 60_008_000_000));
        assert_eq!(clock.deadline(Some(soon)), 61 * 250);
        assert!(first >= 61 * 250 - 1);

        // An hour of sleep: boot time went on, jiffies did not.
        let mut woken = sample(250, 0, 60_100_000_000);
        woken.boot_ns += 3_600_000_000_000;
        clock.update(woken);
        let later = soon + Duration::from_secs(3600);
        assert_eq!(clock.deadline(Some(later)), 61 * 250);
        assert!(tick::deadline_passed(
            clock.now(),
            clock.deadline(Some(soon))
        ));
    }

    #[test]
    fn the_rate_is_told_apart_from_its_neighbours() {
        for hz in RATES {
            let earlier = sample(hz, 7, 5_000_000_000);
            assert_eq!(rate(earlier, sample(hz, 7, 5_100_000_001)), Some(hz));
            assert_eq!(rate(earlier, sample(hz, 7, 5_003_000_000)), None);
            assert_eq!(rate(sample(hz, 7, 5_100_000_000), earlier), None);
        }
        let mut slept = sample(250, 7, 5_100_000_000);
        slept.boot_ns += 1_000_000_000;
        assert_eq!(rate(sample(250, 7, 5_000_000_000), slept), None);
    }
}
