//! Waiting for a condition with a deadline, and for a moment to come. Nothing in the harness waits in another way.
#![expect(
    clippy::disallowed_methods,
    reason = "the harness measures real time against real programs"
)]

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(10);

/// How many times longer than usual everything may take: `IWF_PATIENCE`, for machines that are emulated. 1 if it is
/// not set or no number.
pub fn patience() -> u32 {
    let set = std::env::var("IWF_PATIENCE").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// Polls `probe` until it yields a value.
///
/// # Errors
/// After `within` times [`patience`], naming `what` was waited for. The probe runs at least once, and once more at the end.
pub fn until<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let within = within * patience();
    let deadline = Instant::now() + within;
    loop {
        let last = Instant::now() >= deadline;
        if let Some(value) = probe() {
            return Ok(value);
        }
        if last {
            bail!("waited {} s in vain: {what}", within.as_secs_f32());
        }
        until_time(Instant::now() + POLL);
    }
}

/// Polls `probe` until it succeeds; the error of the last attempt is kept.
///
/// # Errors
/// After `within`: the probe's last error, with `what` was waited for.
pub fn until_ok<T>(
    what: &str,
    within: Duration,
    mut probe: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut last = None;
    let found = until(what, within, || match probe() {
        Ok(value) => Some(value),
        Err(error) => {
            last = Some(error);
            None
        }
    });
    match (found, last) {
        (Err(timeout), Some(error)) => Err(error.context(timeout.to_string())),
        (found, _) => found,
    }
}

/// Waits for a moment to come: until the clock says so, whatever else wakes the thread. At once if it is over.
pub fn until_time(at: Instant) {
    loop {
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// How long `body` took, with its result.
pub fn timed<T>(body: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = body();
    (value, start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_is_named() {
        let error = until("pigs to fly", Duration::ZERO, || None::<()>).unwrap_err();
        assert!(error.to_string().contains("pigs to fly"));
    }

    #[test]
    fn a_moment_is_waited_for_although_the_thread_is_woken() {
        std::thread::current().unpark();
        let at = Instant::now() + Duration::from_millis(20);
        until_time(at);
        assert!(Instant::now() >= at);
        until_time(at);
    }

    #[test]
    fn the_last_error_survives_the_deadline() {
        let mut tries = 0;
        let error = until_ok("port 1", Duration::from_millis(15), || -> Result<()> {
            tries += 1;
            bail!("attempt {tries} refused")
        })
        .unwrap_err();
        assert!(tries >= 2);
        assert!(format!("{error:#}").contains(&format!("attempt {tries} refused")));
    }
}
