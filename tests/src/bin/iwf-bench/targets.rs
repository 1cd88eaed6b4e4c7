//! What the project has set out to reach, and what a run says of it.

use std::fmt;

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use iwf_tests::bench::{LEAST_SHARE, Row};

use crate::abi::{LARGE, SMALL};

/// A hit costs at most so many times the floor.
const HIT: f64 = 1.25;
/// Packets per second and core, against nftables.
const FORWARD: f64 = 4.0;
/// New sessions per second, against nftables.
const NEW: f64 = 2.0;
/// TCP with segmentation offload, against nftables.
const TCP: f64 = 1.0;
/// Packets per second while a million sessions are swept, against the same pauses of the generator without a sweep.
const SWEEP: f64 = 0.9;
/// Microseconds for which no packet may stand still.
const STALL: f64 = 10_000.0;

/// Milliseconds within which 99 of 100 additions are answered.
const ADD: f64 = 5.0;
/// Additions in a second that go on for as long as somebody wants them.
const ADDITIONS: f64 = 1000.0;
/// Memory after all requests, against that after the first tenth of them.
const MEMORY: f64 = 1.05;

/// What came of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Holds,
    Missed,
    /// The figure means nothing.
    Void,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holds => "holds",
            Self::Missed => "missed",
            Self::Void => "VOID",
        })
    }
}

/// One line.
struct Line {
    what: String,
    target: String,
    measured: String,
    verdict: Verdict,
}

/// The targets that `rows` say something about.
pub(crate) fn table(rows: &[Row]) -> Option<Table> {
    let lines = lines(rows);
    if lines.is_empty() {
        return None;
    }
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_header(["target", "at", "measured", ""]);
    for line in lines {
        table.add_row([
            line.what,
            line.target,
            line.measured,
            line.verdict.to_string(),
        ]);
    }
    Some(table)
}

fn lines(rows: &[Row]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (scenario, way) in [("session-hit-out", "out"), ("session-hit-in", "in")] {
        for row in ours(rows, scenario) {
            // The ratio says how many times better than the floor.
            let cost = row.ratio.map(f64::recip);
            lines.push(Line {
                what: format!("session hit {way}, {} sessions", row.sessions),
                target: format!("at most {HIT:.2} x floor"),
                measured: times(cost),
                verdict: verdict(row, cost.is_some_and(|cost| cost <= HIT)),
            });
        }
    }
    let mut at_least = |what: String, row: &Row, least: f64| {
        lines.push(Line {
            what,
            target: format!(
                "at least {least:.2} x {}",
                row.against.as_deref().unwrap_or("?")
            ),
            measured: times(row.ratio),
            verdict: verdict(row, row.ratio.is_some_and(|ratio| ratio >= least)),
        });
    };
    for octets in [SMALL, LARGE] {
        let forward = ours(rows, "forward").filter(|row| {
            row.packet_bytes as usize == octets && matches!(row.sessions, 1 | 65_536)
        });
        for row in forward {
            let what = format!("forward, {octets} octets, {} flows", row.sessions);
            at_least(what, row, FORWARD);
        }
    }
    for row in ours(rows, "new-session") {
        at_least("new UDP sessions".into(), row, NEW);
    }
    for row in ours(rows, "tcp-gso") {
        at_least("TCP segments of 64 KB, tc".into(), row, TCP);
    }
    let swept = |row: &&Row| {
        row.against
            .as_ref()
            .is_some_and(|peer| peer.ends_with("alone"))
    };
    for row in ours(rows, "sweep").filter(swept) {
        let what = format!("a million sessions swept ({}), rate", row.mode);
        at_least(what, row, SWEEP);
    }
    for row in ours(rows, "sweep-worst-window") {
        lines.push(Line {
            what: format!("a million sessions swept ({}), stall", row.mode),
            target: "no 10 ms of sending without packets".into(),
            measured: format!("{:.0} packets/s at least", row.value),
            verdict: verdict(row, row.value > 0.0),
        });
    }
    for row in ours(rows, "sweep-burst") {
        lines.push(Line {
            what: format!("a million sessions swept ({}), stall", row.mode),
            target: "no burst under way for 10 ms".into(),
            measured: format!("{:.1} ms at most", row.value / 1e3),
            verdict: verdict(row, row.value < STALL),
        });
    }
    lines.extend(soap(rows));
    lines
}

/// What control points get.
fn soap(rows: &[Row]) -> impl Iterator<Item = Line> {
    rows.iter().filter_map(|row| {
        let (name, count) = (&row.mode, row.sessions);
        let (what, target, measured, holds) = match row.scenario.as_str() {
            "soap-add-p99" => (
                format!("AddPortMapping, {name}, {count} mappings"),
                format!("99 % within {ADD:.0} ms"),
                format!("{:.2} ms", row.value),
                row.value < ADD,
            ),
            "soap-rate" => (
                format!("additions, {name}, {count} mappings"),
                format!("{ADDITIONS:.0} a second"),
                format!("{:.0} a second", row.value),
                row.value > LEAST_SHARE * ADDITIONS,
            ),
            "soap-memory" if row.against.is_some() => {
                let growth = row.ratio.map(f64::recip);
                (
                    format!("memory after {count} requests"),
                    format!("at most {MEMORY:.2} x that after the first tenth"),
                    times(growth),
                    growth.is_some_and(|growth| growth <= MEMORY),
                )
            }
            _ => return None,
        };
        Some(Line {
            what,
            target,
            measured,
            verdict: verdict(row, holds),
        })
    })
}

/// The rows of our data plane that are compared with something.
fn ours<'a>(rows: &'a [Row], scenario: &'static str) -> impl Iterator<Item = &'a Row> {
    rows.iter().filter(move |row| {
        row.scenario == scenario
            && row.mode.starts_with("iwf")
            && row.against.is_some()
            && row.against.as_ref() != Some(&row.mode)
    })
}

fn verdict(row: &Row, holds: bool) -> Verdict {
    match (row.valid, holds) {
        (false, _) => Verdict::Void,
        (true, true) => Verdict::Holds,
        (true, false) => Verdict::Missed,
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2} x"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(scenario: &str, mode: &str, against: &str, ratio: f64) -> Row {
        Row {
            scenario: scenario.into(),
            mode: mode.into(),
            sessions: 1,
            packet_bytes: 60,
            value: 1e6,
            unit: "packets/s/core".into(),
            against: Some(against.into()),
            ratio: Some(ratio),
            delivered: 1.0,
            translated: 1.0,
            valid: true,
        }
    }

    #[test]
    fn each_target_is_judged_by_its_own_row() {
        let rows = [
            row("forward", "nftables", "nftables", 1.0),
            row("forward", "iwf", "nftables", 4.1),
            row("new-session", "iwf", "nftables", 1.9),
            row("session-hit-out", "harness", "floor", 9.0),
            // 1.25 times the floor is a ratio of 0.8.
            row("session-hit-out", "iwf", "floor", 0.8),
            row("session-hit-in", "iwf", "floor", 0.79),
            row("tcp-gso", "iwf-tc", "nftables", 1.0),
        ];
        let lines = lines(&rows);
        let verdicts: Vec<_> = lines.iter().map(|line| line.verdict).collect();
        use Verdict::{Holds, Missed};
        assert_eq!(verdicts, [Holds, Missed, Holds, Missed, Holds]);
    }

    #[test]
    fn control_points_wait_no_longer_than_is_said() {
        let soap = |scenario: &str, value: f64, ratio: Option<f64>| Row {
            value,
            ratio,
            against: ratio.map(|_| "less".into()),
            ..row(scenario, "iwf-pcp-memory", "less", 1.0)
        };
        let rows = [
            soap("soap-add-p50", 9.0, None),
            soap("soap-add-p99", 4.9, None),
            soap("soap-add-p99", 5.0, Some(0.9)),
            soap("soap-rate", 997.0, None),
            soap("soap-rate", 990.0, None),
            soap("soap-memory", 4000.0, None),
            soap("soap-memory", 4100.0, Some(0.96)),
            soap("soap-memory", 4400.0, Some(0.9)),
        ];
        let lines = lines(&rows);
        let verdicts: Vec<_> = lines.iter().map(|line| line.verdict).collect();
        use Verdict::{Holds, Missed};
        assert_eq!(verdicts, [Holds, Missed, Holds, Missed, Holds, Missed]);
    }

    #[test]
    fn a_void_row_holds_nothing() {
        let mut void = row("forward", "iwf", "nftables", 40.0);
        void.valid = false;
        let lines = lines(&[void]);
        assert_eq!(lines.first().map(|line| line.verdict), Some(Verdict::Void));
    }

    #[test]
    fn nothing_measured_is_nothing_claimed() {
        assert!(table(&[]).is_none());
    }
}
