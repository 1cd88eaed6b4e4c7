//! Tells when the kernel's tables are too small for what goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::warn;

use crate::types::Instant;

/// Counters that grow only while a table is full, and the remedy.
const SIGNS: [(&str, &str); 3] = [
    ("drop_sessions_full", "raise limits.sessions"),
    ("drop_mappings_full", "raise limits.mappings"),
    ("drop_ports_exhausted", "one host may open too many flows"),
];

/// A table that stays full is told of once in this time.
const QUIET: Duration = Duration::from_secs(600);

/// What was counted and told so far.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    seen: BTreeMap<&'static str, u64>,
    told: BTreeMap<&'static str, Instant>,
}

impl Pressure {
    /// Warns of tables that were full since the last call, and returns what it warned of: counter, packets and remedy.
    pub(super) fn report(
        &mut self,
        counters: &[(&'static str, u64)],
        now: Instant,
    ) -> Vec<(&'static str, u64, &'static str)> {
        let news = self.grown(counters, now);
        for (name, packets, remedy) in &news {
            warn!(
                counter = name,
                packets, "packets dropped for lack of room; {remedy}"
            );
        }
        news
    }

    /// What has to be told now. The first call only learns: an adopted data plane has a past.
    fn grown(
        &mut self,
        counters: &[(&'static str, u64)],
        now: Instant,
    ) -> Vec<(&'static str, u64, &'static str)> {
        let mut news = Vec::new();
        for (sign, remedy) in SIGNS {
            let Some((name, value)) = counters.iter().find(|(name, _)| *name == sign) else {
                continue;
            };
            let before = self.seen.insert(name, *value);
            let more = before.map_or(0, |before| value.saturating_sub(before));
            let quiet = self.told.get(name);
            let quiet = quiet.is_some_and(|at| now.saturating_duration_since(*at) < QUIET);
            if more > 0 && !quiet {
                self.told.insert(name, now);
                news.push((*name, more, remedy));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_counters_of_the_data_plane() {
        for (sign, _) in SIGNS {
            let known = iwf_common::reason::all().any(|(_, name)| name == sign);
            assert!(known, "{sign}");
        }
    }

    #[test]
    fn a_full_table_is_told_once_in_a_while_and_the_past_never() {
        let mut pressure = Pressure::default();
        let at = |seconds: u64| Instant::from_millis(seconds * 1000);
        let count = |n| [("forwarded_out", 9), ("drop_sessions_full", n)];
        assert_eq!(pressure.grown(&count(7), at(0)), []);
        assert_eq!(pressure.grown(&count(7), at(5)), []);
        let told = pressure.grown(&count(9), at(10));
        assert_eq!(told, [("drop_sessions_full", 2, "raise limits.sessions")]);
        assert_eq!(pressure.grown(&count(30), at(15)), []);
        assert_eq!(pressure.grown(&count(31), at(611)).len(), 1);
    }
}
