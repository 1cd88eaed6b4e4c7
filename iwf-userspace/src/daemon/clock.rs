//! The two clocks of the core.
#![expect(
    clippy::disallowed_methods,
    reason = "the wall clock is read here and nowhere else"
)]

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::types::{Instant, UnixTime};

/// Milliseconds since boot. Runs on during suspend, as lifetimes upstream do; the data plane ties its ticks to
/// the same clock.
pub fn now() -> Instant {
    let time =
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    let millis = time.tv_sec().saturating_mul(1000) + time.tv_nsec() / 1_000_000;
    Instant::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Time since 1970; 0 if the clock is before that, as that of a router without a battery may be.
pub fn wall() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.map_or(0, |since| since.as_millis());
    UnixTime::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}
