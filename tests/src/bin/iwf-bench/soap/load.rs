//! Loads: one request after another, so many in a second, as many as there can be.
#![expect(
    clippy::disallowed_methods,
    reason = "measures real programs on the machine's own clock"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use iwf_tests::wait;

use super::client::{Ask, ControlPoint, Manner, Wish};
use super::router::{Router, addresses};

/// Ports of mappings that come and go.
pub(super) const FIRST: u16 = 25_000;
/// How many of them there are.
pub(super) const PORTS: u16 = 30_000;

/// Control points that ask at the same time when the rate is given.
const WORKERS: u32 = 48;
/// How many of its own additions later a worker deletes a mapping again.
const BEHIND: u32 = 10;

/// So many that the core always has work, and fewer than it lets wait (64).
const CROWD: u32 = 48;

/// How long each request took.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub(super) fn extend(&mut self, others: &Self) {
        self.0.extend_from_slice(&others.0);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that this share of the requests did not exceed, in milliseconds.
    pub(super) fn within(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        let at = sorted.get(rank.saturating_sub(1)).or(sorted.last());
        at.map_or(f64::NAN, |at| at.as_secs_f64() * 1e3)
    }
}

/// What came of one request after another.
#[derive(Debug, Default)]
pub(super) struct OneByOne {
    /// AddPortMapping.
    pub(super) add: Times,
    /// GetExternalIPAddress, to which the core has the answer: what everything around it takes.
    pub(super) address: Times,
}

/// Adds a mapping and deletes it again, so many times. Each time the host is another one.
///
/// # Errors
/// If an answer is not what it should be.
pub(super) fn one_by_one(router: &Router, manner: Manner, count: u16) -> Result<OneByOne> {
    router.host(0).within(|| {
        let mut points: Vec<_> = addresses(0)
            .map(|addr| ControlPoint::new(addr, &router.target, manner))
            .collect();
        let mut times = OneByOne::default();
        let turns = points.len();
        for n in 0..count {
            let Some(point) = points.get_mut(usize::from(n) % turns) else {
                continue;
            };
            let wish = Wish {
                host: point.host(),
                port: FIRST + n % PORTS,
            };
            times.address.push(timed(point, Ask::ExternalAddress)?);
            times.add.push(timed(point, Ask::Add(wish))?);
            point.ask(Ask::GetSpecific(wish))?;
            point.ask(Ask::Delete(wish))?;
        }
        Ok(times)
    })?
}

fn timed(point: &mut ControlPoint, ask: Ask) -> Result<Duration> {
    let begun = Instant::now();
    point.ask(ask)?;
    Ok(begun.elapsed())
}

/// A rate that was kept, or not.
#[derive(Debug)]
pub(super) struct Rate {
    /// Additions in a second, from the first that was due to the last answer.
    pub(super) achieved: f64,
    /// From the moment that each was due, whenever it was sent.
    pub(super) times: Times,
}

/// Adds so many mappings each second, and deletes each again soon, from many hosts. All are gone at the end.
///
/// # Errors
/// If an answer is not what it should be.
pub(super) fn sustained(router: &Router, rate: u32, span: Duration) -> Result<Rate> {
    let each = u32::try_from(span.as_millis() * u128::from(rate) / 1000)? / WORKERS;
    // Everybody is there by then.
    let start = Instant::now() + Duration::from_millis(500);
    // Whoever goes on after the first wrong answer covers what the daemon tells of it.
    let failed = AtomicBool::new(false);
    let done = in_parallel(router, WORKERS, |worker, points| {
        let ask = |point: &mut ControlPoint, ask: Ask| {
            let asked = point.ask(ask);
            failed.fetch_or(asked.is_err(), Ordering::Relaxed);
            asked
        };
        let mut times = Times::default();
        let mut last = start;
        let turns = points.len();
        let wish = |n: u32, host| -> Result<Wish> {
            let port = (n * WORKERS + worker) % u32::from(PORTS);
            Ok(Wish {
                host,
                port: FIRST + u16::try_from(port)?,
            })
        };
        for n in 0..each + BEHIND {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            // Halfway between two additions, so that what is deleted does not come with what is added.
            if n >= BEHIND {
                let n = n - BEHIND;
                if let Some(point) = points.get_mut(n as usize % turns) {
                    let wish = wish(n, point.host())?;
                    ask(point, Ask::Delete(wish))?;
                }
            }
            if n < each {
                let number = n * WORKERS + worker;
                let due = start + Duration::from_secs(1) * number / rate;
                if let Some(point) = points.get_mut(n as usize % turns) {
                    let wish = wish(n, point.host())?;
                    wait::until_time(due);
                    ask(point, Ask::Add(wish))?;
                    last = Instant::now();
                    times.push(last.saturating_duration_since(due));
                }
            }
        }
        Ok((times, last))
    })?;
    let mut times = Times::default();
    done.iter().for_each(|(of, _)| times.extend(of));
    let end = done.iter().map(|(_, end)| *end).max().context("workers")?;
    let took = end.saturating_duration_since(start).as_secs_f64();
    Ok(Rate {
        achieved: times.len() as f64 / took,
        times,
    })
}

/// Adds mappings as fast as it goes. They stay.
///
/// # Errors
/// If an answer is not what it should be.
pub(super) fn flood(router: &Router, wishes: &[Wish]) -> Result<Rate> {
    let start = Instant::now();
    let done = in_parallel(router, CROWD, |worker, points| {
        let mut times = Times::default();
        for point in points {
            let host = point.host();
            for wish in wishes.iter().filter(|wish| wish.host == host) {
                times.push(
                    timed(point, Ask::Add(*wish)).with_context(|| format!("worker {worker}"))?,
                );
            }
        }
        Ok(times)
    })?;
    let took = start.elapsed().as_secs_f64();
    let mut times = Times::default();
    done.iter().for_each(|of| times.extend(of));
    Ok(Rate {
        achieved: times.len() as f64 / took,
        times,
    })
}

/// Deletes mappings as fast as it goes.
///
/// # Errors
/// If an answer is not what it should be.
pub(super) fn delete(router: &Router, wishes: &[Wish]) -> Result<()> {
    in_parallel(router, CROWD, |_, points| {
        for point in points {
            let host = point.host();
            for wish in wishes.iter().filter(|wish| wish.host == host) {
                point.ask(Ask::Delete(*wish))?;
            }
        }
        Ok(())
    })
    .map(drop)
}

/// Runs `body` on so many threads, which share the addresses of both LAN hosts among them.
///
/// # Errors
/// The first error of any.
pub(super) fn in_parallel<T: Send>(
    router: &Router,
    workers: u32,
    body: impl Fn(u32, &mut [ControlPoint]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let body = &body;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let (at, number) = ((worker % 2) as usize, (worker / 2) as usize);
                    let own = addresses(at).skip(number).step_by((workers / 2) as usize);
                    router.host(at).within(|| {
                        let mut points: Vec<_> = own
                            .map(|addr| ControlPoint::new(addr, &router.target, Manner::KeepAlive))
                            .collect();
                        body(worker, &mut points)
                    })?
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<T>>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_times() {
        let mut times = Times::default();
        (1..=1000)
            .rev()
            .for_each(|n| times.push(Duration::from_millis(n)));
        assert_eq!(times.within(0.5), 500.0);
        assert_eq!(times.within(0.99), 990.0);
        assert_eq!(times.within(1.0), 1000.0);
        assert!(Times::default().within(0.5).is_nan());
    }
}
