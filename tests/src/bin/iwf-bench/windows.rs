//! Packet rates in windows of ten milliseconds, told apart by what goes on beside the traffic.
//!
//! A rate of one stretch of a run says little about another on a machine that changes its mind: so what is compared
//! takes turns, a quarter of a second each, all through one run.
#![expect(
    clippy::disallowed_methods,
    reason = "measures on the machine's own clock, and goes at the daemon's pace"
)]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use iwf_tests::bench::median;
use iwf_tests::wait;

use crate::bed::{Gauge, Reading};

/// The packet rate is that of windows as long as this: of real time for what the router's CPU does, of the generator's
/// CPU time for what it sends.
const WINDOW: Duration = Duration::from_millis(10);

/// A turn.
const TURN: Duration = Duration::from_millis(250);

/// What goes on beside the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    Nothing,
    /// What is measured.
    Work,
    /// The CPU is taken as work takes it, and no table is touched.
    Pauses,
}

/// Who has which turn.
pub(crate) struct Turns {
    begun: Instant,
    order: &'static [Beside],
}

impl Turns {
    /// From now on.
    pub(crate) fn new(order: &'static [Beside]) -> Self {
        Self {
            begun: Instant::now(),
            order,
        }
    }

    /// Who takes turns.
    pub(crate) const fn order(&self) -> &'static [Beside] {
        self.order
    }

    /// Whose turn it is, and since when and until when.
    pub(crate) fn at(&self, now: Instant) -> (Beside, Instant, Instant) {
        let turn = (now - self.begun).as_millis() / TURN.as_millis();
        let turn = u32::try_from(turn).unwrap_or(u32::MAX);
        let since = self.begun + TURN * turn;
        (
            self.order[turn as usize % self.order.len()],
            since,
            since + TURN,
        )
    }
}

/// What there is to do next, and when; `None` is the end.
pub(crate) type Next = Option<(Beside, Instant)>;

/// Packet rates of windows.
#[derive(Default)]
pub(crate) struct Rates {
    /// By the time that the generator had the CPU: it waits for the router there, and only there.
    pub(crate) sending: Vec<f64>,
    /// By the router's CPU time.
    pub(crate) core: Vec<f64>,
}

impl Rates {
    pub(crate) fn median(&self) -> f64 {
        median(&self.core).unwrap_or(0.0)
    }

    pub(crate) fn worst(&self) -> f64 {
        self.sending.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// Those of everything that went on.
#[derive(Default)]
pub(crate) struct AllRates {
    pub(crate) nothing: Rates,
    pub(crate) work: Rates,
    pub(crate) pauses: Rates,
}

impl AllRates {
    fn of(&mut self, beside: Beside) -> &mut Rates {
        match beside {
            Beside::Nothing => &mut self.nothing,
            Beside::Work => &mut self.work,
            Beside::Pauses => &mut self.pauses,
        }
    }
}

/// Lets `work` go on until it says `None`, whenever the instant it says has come, and looks at both ends in between.
///
/// # Errors
/// `work` fails, or was over before there was a rate of each of `wanted`.
pub(crate) fn watch(
    gauge: &Gauge,
    wanted: &[Beside],
    mut work: impl FnMut(Instant) -> Result<Next>,
) -> Result<AllRates> {
    let mut rates = AllRates::default();
    let mut windows = Windows::default();
    let mut looked = Instant::now();
    let mut last = None;
    while let Some((beside, due)) = work(Instant::now())? {
        let now = Instant::now();
        if last.replace(beside) != Some(beside) {
            windows = Windows::default();
        }
        let age = now - looked;
        if age >= WINDOW {
            looked = now;
            windows.add(rates.of(beside), gauge.read()?);
            continue;
        }
        // The pause that the daemon makes between two slices.
        wait::until_time(due.min(looked + WINDOW));
    }
    for beside in wanted {
        let rates = rates.of(*beside);
        ensure!(
            !rates.core.is_empty() && !rates.sending.is_empty(),
            "it was over too soon to see a packet rate with {beside:?} beside the traffic"
        );
    }
    Ok(rates)
}

/// Makes windows of readings.
#[derive(Default)]
struct Windows {
    last: Option<Reading>,
    /// Where the window of sending began: within a call of the generator, after its first frames.
    from: Option<Reading>,
}

impl Windows {
    fn add(&mut self, rates: &mut Rates, now: Reading) {
        let Some(last) = self.last.replace(now) else {
            return;
        };
        let frames = (now.arrived - last.arrived) as f64;
        let cpu = now.router.saturating_sub(last.router);
        if !cpu.is_zero() {
            rates.core.push(frames / cpu.as_secs_f64());
        }
        // Making a call ready takes milliseconds, in which nothing is sent.
        if now.call.is_none() || now.call != last.call {
            self.from = None;
            return;
        }
        let Some(from) = self.from else {
            self.from = (now.sent > last.sent).then_some(now);
            return;
        };
        let sending = now.generator.saturating_sub(from.generator);
        if sending >= WINDOW {
            let frames = (now.arrived - from.arrived) as f64;
            rates.sending.push(frames / sending.as_secs_f64());
            self.from = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_round() {
        let turns = Turns::new(&[Beside::Work, Beside::Pauses, Beside::Nothing]);
        let seen: Vec<_> = (0..4).map(|n| turns.at(turns.begun + TURN * n).0).collect();
        assert_eq!(
            seen,
            [Beside::Work, Beside::Pauses, Beside::Nothing, Beside::Work]
        );
        let late = turns.begun + TURN * 2 - Duration::from_millis(1);
        assert_eq!(
            turns.at(late),
            (Beside::Pauses, turns.begun + TURN, turns.begun + TURN * 2)
        );
    }

    fn reading(arrived: u64, router: u64, generator: u64, call: Option<u64>) -> Reading {
        Reading {
            sent: arrived,
            arrived,
            router: Duration::from_millis(router),
            generator: Duration::from_millis(generator),
            call,
        }
    }

    /// A window of sending is of one call, begins after its first frames, and is as long as the generator had the CPU.
    #[test]
    fn windows_leave_the_generators_pauses_out() {
        let mut windows = Windows::default();
        let mut rates = Rates::default();
        for seen in [
            reading(0, 0, 0, Some(1)),
            reading(0, 0, 10, Some(1)),
            reading(100, 10, 20, Some(1)),
            // Nobody sent for most of this one.
            reading(150, 15, 22, Some(1)),
            reading(300, 25, 32, Some(1)),
            reading(300, 25, 42, None),
            reading(300, 25, 52, Some(3)),
            reading(400, 35, 62, Some(3)),
            // The router stood still.
            reading(400, 35, 72, Some(3)),
        ] {
            windows.add(&mut rates, seen);
        }
        let per_second: Vec<_> = rates.sending.iter().map(|rate| rate.round()).collect();
        assert_eq!(per_second, [16_667.0, 0.0]);
        assert_eq!(rates.core.len(), 4);
        assert_eq!((rates.median(), rates.worst()), (10_000.0, 0.0));
    }
}
