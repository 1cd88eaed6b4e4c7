//! From samples to rows.

use std::collections::BTreeMap;

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use iwf_tests::bench::{LEAST_SHARE, Row, median};

use crate::bed::{Mode, Sample};
use crate::traffic::Load;

/// Everything else is compared with it.
const BASELINE: Mode = Mode::Nftables;

/// The samples of one scenario by load and mode.
#[derive(Debug)]
pub(crate) struct Samples {
    scenario: &'static str,
    by_load: BTreeMap<(Load, Mode), Vec<Sample>>,
}

impl Samples {
    /// None yet.
    pub(crate) fn of(scenario: &'static str) -> Self {
        Self {
            scenario,
            by_load: BTreeMap::new(),
        }
    }

    /// Adds one.
    pub(crate) fn push(&mut self, mode: Mode, load: Load, sample: Sample) {
        eprintln!("{}", progress(self.scenario, mode, load, &sample));
        self.by_load.entry((load, mode)).or_default().push(sample);
    }

    /// One row per load and mode.
    pub(crate) fn rows(&self) -> Vec<Row> {
        self.by_load
            .iter()
            .map(|((load, mode), samples)| {
                let base = self.by_load.get(&(*load, BASELINE));
                Row {
                    scenario: self.scenario.into(),
                    mode: mode.to_string(),
                    sessions: load.flows,
                    packet_bytes: u32::try_from(load.frame).unwrap_or(u32::MAX),
                    value: rate(samples).round(),
                    unit: "packets/s/core".into(),
                    against: base.map(|_| BASELINE.to_string()),
                    ratio: base.and_then(|base| ratio(samples, base)),
                    delivered: least(samples, delivered),
                    translated: if mode.translates() {
                        least(samples, good)
                    } else {
                        0.0
                    },
                    valid: samples
                        .iter()
                        .all(|sample| valid(*mode, load.flows, sample)),
                }
            })
            .collect()
    }
}

/// The rows side by side.
pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "scenario",
        "flows",
        "octets",
        "mode",
        "value",
        "unit",
        "ratio",
        "delivered",
        "translated",
        "",
    ]);
    for row in rows {
        let ratio = match (&row.against, row.ratio) {
            (Some(against), Some(ratio)) => format!("{ratio:.2} x {against}"),
            _ => "-".into(),
        };
        table.add_row([
            row.scenario.clone(),
            row.sessions.to_string(),
            row.packet_bytes.to_string(),
            row.mode.clone(),
            number(row.value),
            row.unit.clone(),
            ratio,
            percent(row.delivered),
            percent(row.translated),
            if row.valid { "valid" } else { "VOID" }.into(),
        ]);
    }
    table
}

/// One line about one sample.
fn progress(scenario: &str, mode: Mode, load: Load, sample: &Sample) -> String {
    let received = &sample.counts.received;
    let mut line = format!(
        "{scenario:<12} {mode:<12} {:>7} flows {:>4} octets  {:>5.0} ns/packet  {:>5.2} Mpps/core  {} sent, {} arrived, {} right",
        load.flows,
        load.frame,
        1e9 / per_core(sample),
        per_core(sample) / 1e6,
        sample.counts.sent.frames,
        received.frames,
        received.good,
    );
    if !valid(mode, load.flows, sample) {
        line += &format!(
            "  VOID: {received:?} {:?} fast {:?}",
            sample.seen, sample.fast
        );
    }
    line
}

/// Without a fraction unless there is little before it.
fn number(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn rate(samples: &[Sample]) -> f64 {
    let rates: Vec<_> = samples.iter().map(per_core).collect();
    median(&rates).unwrap_or(0.0)
}

/// The median of what each round says: the modes of one round ran on the same machine within a second or two,
/// those of two rounds perhaps not.
fn ratio(samples: &[Sample], base: &[Sample]) -> Option<f64> {
    let ratios: Vec<_> = samples
        .iter()
        .zip(base)
        .map(|(sample, base)| per_core(sample) / per_core(base))
        .filter(|ratio| ratio.is_finite())
        .collect();
    median(&ratios)
}

/// Packets delivered per second of the router's CPU time.
fn per_core(sample: &Sample) -> f64 {
    sample.counts.received.frames as f64 / sample.cpu.as_secs_f64().max(f64::MIN_POSITIVE)
}

fn delivered(sample: &Sample) -> f64 {
    share(sample.counts.received.frames, sample)
}

fn good(sample: &Sample) -> f64 {
    share(sample.counts.received.good, sample)
}

fn share(count: u64, sample: &Sample) -> f64 {
    count as f64 / (sample.counts.sent.frames as f64).max(1.0)
}

fn least(samples: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    samples.iter().map(of).fold(1.0, f64::min)
}

/// Enough arrived, all flows did, and each was told apart: by its remote address and, if translated, by an external
/// port of its own.
fn valid(mode: Mode, flows: u32, sample: &Sample) -> bool {
    let flows = flows as usize;
    let told_apart =
        sample.seen.flows == flows && (sample.seen.outside == flows || !mode.translates());
    // The stack forwards what the programs leave to it, and translates it by the same tables.
    let by_program = sample
        .fast
        .is_none_or(|fast| share(fast, sample) > LEAST_SHARE);
    told_apart && by_program && delivered(sample) > LEAST_SHARE && good(sample) > LEAST_SHARE
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::abi::{Received, Sent};
    use crate::traffic::{Counts, Load, Seen};

    fn sample(sent: u64, received: u64, good: u64) -> Sample {
        Sample {
            counts: Counts {
                sent: Sent {
                    frames: sent,
                    ..Sent::default()
                },
                received: Received {
                    frames: received,
                    good,
                    ..Received::default()
                },
            },
            seen: Seen {
                flows: 4,
                outside: 4,
            },
            cpu: Duration::from_micros(100),
            fast: None,
        }
    }

    #[test]
    fn too_few_or_wrong_packets_void_a_row() {
        for mode in Mode::ALL {
            assert!(valid(mode, 4, &sample(1000, 1000, 1000)));
            assert!(!valid(mode, 4, &sample(1000, 990, 990)), "lost");
            assert!(!valid(mode, 4, &sample(1000, 1000, 990)), "wrong");
            assert!(!valid(mode, 4, &sample(0, 0, 0)), "nothing sent");
            assert!(!valid(mode, 8, &sample(1000, 1000, 1000)), "flows missing");
        }
    }

    #[test]
    fn flows_that_share_a_port_void_only_what_translates() {
        let mut shared = sample(1000, 1000, 1000);
        shared.seen.outside = 3;
        assert!(!valid(Mode::Nftables, 4, &shared));
        assert!(!valid(Mode::Iwf, 4, &shared));
        assert!(valid(Mode::Plain, 4, &shared));
    }

    #[test]
    fn what_the_stack_forwarded_does_not_count_for_the_programs() {
        let mut slow = sample(1000, 1000, 1000);
        slow.fast = Some(10);
        assert!(!valid(Mode::Iwf, 4, &slow));
        slow.fast = Some(1000);
        assert!(valid(Mode::Iwf, 4, &slow));
    }

    #[test]
    fn one_bad_round_voids_the_row_and_ratios_are_of_a_round() {
        let load = Load {
            flows: 4,
            frame: 60,
        };
        let mut samples = Samples::of("forward");
        for (nft, iwf) in [(100, 400), (1000, 3000), (10, 50)] {
            samples.push(Mode::Nftables, load, sample(nft, nft, nft));
            samples.push(Mode::Iwf, load, sample(iwf, iwf, iwf));
        }
        let rows = samples.rows();
        let iwf = rows.iter().find(|row| row.mode == "iwf").expect("a row");
        assert_eq!(iwf.ratio, Some(4.0));
        assert!(iwf.valid);
        assert_eq!((iwf.delivered, iwf.translated), (1.0, 1.0));

        samples.push(Mode::Iwf, load, sample(100, 50, 50));
        let rows = samples.rows();
        let iwf = rows.iter().find(|row| row.mode == "iwf").expect("a row");
        assert!(!iwf.valid);
        assert_eq!(iwf.delivered, 0.5);
    }
}
