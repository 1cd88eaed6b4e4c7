//! Counters and tables, and what became of them between two looks.

use serde::{Deserialize, Serialize};

use super::events::Stamp;
use super::table::{new, or_dash, span};
use super::{Counter, Held, Stats};
use crate::daemon::dataplane::inspect::TableRow;

/// What of the counters is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Also those that are zero.
    pub all: bool,
    /// Only those that have this in their name.
    pub matching: Option<String>,
}

impl View {
    /// Leaves what does not match out.
    pub fn narrow(&self, stats: &mut Stats) {
        if let Some(part) = &self.matching {
            for counters in [&mut stats.counters, &mut stats.daemon] {
                counters.retain(|counter| counter.name.contains(part.as_str()));
            }
            stats
                .tables
                .retain(|table| table.table.contains(part.as_str()));
            stats.held.retain(|held| held.name.contains(part.as_str()));
        }
    }
}

/// The answer as text that ends with a line end.
pub fn render(stats: &Stats, view: &View) -> String {
    let mut stats = stats.clone();
    view.narrow(&mut stats);
    let mut text = String::new();
    if view.matching.is_none() {
        text.push_str(&format!(
            " sessions at the last sweep  {}\n",
            stats.sessions
        ));
    }
    if !stats.tables.is_empty() {
        text.push_str(&tables(&stats.tables));
    }
    if !stats.held.is_empty() {
        text.push_str(&held(&stats.held));
    }
    let all = || stats.counters.iter().chain(&stats.daemon);
    let zero = all().filter(|c| c.value == 0).count();
    let shown: Vec<&Counter> = all()
        .filter(|counter| view.all || counter.value != 0)
        .collect();
    if !shown.is_empty() {
        let mut table = new(&["counter", "value"]);
        for counter in shown {
            table.add_row([counter.name.clone(), counter.value.to_string()]);
        }
        text.push_str(&format!("{}\n", table.trim_fmt()));
    }
    if zero > 0 && !view.all {
        text.push_str(&format!("{zero} counters are zero (--all shows them)\n"));
    }
    if text.is_empty() {
        text.push_str("no counter has that in its name\n");
    }
    text
}

fn tables(rows: &[TableRow]) -> String {
    let mut table = new(&["table", "entries", "capacity", "full", "counted"]);
    for row in rows {
        let full = row
            .capacity
            .filter(|capacity| *capacity > 0)
            .map(|capacity| format!("{}%", row.entries.saturating_mul(100) / capacity));
        table.add_row([
            row.table.clone(),
            row.entries.to_string(),
            or_dash(row.capacity),
            or_dash(full),
            match row.seconds_ago {
                0 => "now".to_owned(),
                seconds => format!("{} ago", span(seconds)),
            },
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

fn held(rows: &[Held]) -> String {
    let mut table = new(&["in the daemon", "now", "at most"]);
    for row in rows {
        table.add_row([row.name.clone(), row.held.to_string(), or_dash(row.limit)]);
    }
    format!("{}\n", table.trim_fmt())
}

/// What was counted between two looks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// When the second look was.
    pub time: Stamp,
    /// Time between them, in seconds.
    pub seconds: f64,
    /// The counters.
    pub counters: Vec<Growth>,
    /// The tables at the second look.
    pub tables: Vec<TableRow>,
}

/// One counter in the meantime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// Its name.
    pub name: String,
    /// Its value at the second look.
    pub value: u64,
    /// How much more that is. New programs begin at zero.
    pub more: u64,
    /// How much more in a second.
    pub per_second: f64,
}

impl Interval {
    /// Between two looks that are so far apart.
    pub fn between(before: &Stats, after: &Stats, millis: u64, time: Stamp) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "for people; 52 bits are enough")]
        let float = |number: u64| number as f64;
        let seconds = float(millis.max(1)) / 1000.0;
        let growth = |counter: &Counter| {
            let before = before.counters.iter().find(|c| c.name == counter.name);
            let more = counter.value.saturating_sub(before.map_or(0, |c| c.value));
            Growth {
                name: counter.name.clone(),
                value: counter.value,
                more,
                per_second: (float(more) / seconds * 10.0).round() / 10.0,
            }
        };
        Self {
            time,
            seconds,
            counters: after.counters.iter().map(growth).collect(),
            tables: after.tables.clone(),
        }
    }

    /// As text that ends with a line end: what has grown, or with `all` everything.
    pub fn render(&self, all: bool) -> String {
        let mut text = format!(" in {:.1} s\n", self.seconds);
        let shown = self.counters.iter().filter(|c| all || c.more > 0);
        let mut table = new(&["counter", "value", "more", "per second"]);
        for counter in shown {
            table.add_row([
                counter.name.clone(),
                counter.value.to_string(),
                counter.more.to_string(),
                format!("{:.1}", counter.per_second),
            ]);
        }
        if table.is_empty() {
            text.push_str(" nothing was counted\n");
        } else {
            text.push_str(&format!("{}\n", table.trim_fmt()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UnixTime;

    fn stats(out: u64, full: u64) -> Stats {
        let counter = |name: &str, value| Counter {
            name: name.to_owned(),
            value,
        };
        Stats {
            daemon: Vec::new(),
            sessions: 12,
            counters: vec![
                counter("forwarded_out", out),
                counter("drop_unsolicited", 0),
                counter("drop_sessions_full", full),
            ],
            tables: vec![
                TableRow {
                    seconds_ago: 3,
                    ..TableRow::new("sessions", 192, Some(256))
                },
                TableRow::new("mappings_dynamic", 7, None),
            ],
            held: vec![Held::new("mappings", 3, Some(4096))],
        }
    }

    #[test]
    fn what_is_zero_is_shown_only_with_all() {
        let text = render(&stats(9, 2), &View::default());
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                " sessions at the last sweep  12",
                " table             entries  capacity  full  counted",
                " sessions          192      256       75%   3s ago",
                " mappings_dynamic  7        -         -     now",
                " in the daemon  now  at most",
                " mappings       3    4096",
                " counter             value",
                " forwarded_out       9",
                " drop_sessions_full  2",
                "1 counters are zero (--all shows them)",
            ]
        );
        let all = View {
            all: true,
            matching: Some("drop_".to_owned()),
        };
        let text = render(&stats(9, 2), &all);
        assert!(text.contains("drop_unsolicited"), "{text}");
        assert!(!text.contains("forwarded_out"), "{text}");
        assert!(!text.contains("mappings_dynamic"), "{text}");
        let none = View {
            all: false,
            matching: Some("nothing of the kind".to_owned()),
        };
        assert_eq!(
            render(&stats(9, 2), &none),
            "no counter has that in its name\n"
        );
    }

    #[test]
    fn between_two_looks_there_is_a_rate() {
        let time = Stamp(UnixTime::from_secs(7));
        let interval = Interval::between(&stats(100, 5), &stats(350, 2), 2500, time);
        assert_eq!(
            serde_json::to_value(&interval.counters[0]).unwrap(),
            serde_json::json!({
                "name": "forwarded_out", "value": 350, "more": 250, "per_second": 100.0
            })
        );
        assert_eq!(interval.counters[2].more, 0, "it began anew");
        let text = interval.render(false);
        assert!(text.starts_with(" in 2.5 s\n"), "{text}");
        assert!(text.contains("100.0"), "{text}");
        assert!(!text.contains("drop_"), "{text}");
        assert!(interval.render(true).contains("drop_unsolicited"));
        let same = Interval::between(&stats(1, 1), &stats(1, 1), 0, time);
        assert!(same.render(false).contains("nothing was counted"));
    }
}
