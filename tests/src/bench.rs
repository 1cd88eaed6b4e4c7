//! The rows a bench run yields, as `iwf-bench` writes and `cargo xtask bench` shows them.

use serde::{Deserialize, Serialize};

/// Least share of the offered packets that must arrive, and arrive as they should.
pub const LEAST_SHARE: f64 = 0.99;

/// One figure. The field names are the keys of the JSON file: scenarios are added, names never change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured, for example `forward`.
    pub scenario: String,
    /// Who was measured, for example `nftables`.
    pub mode: String,
    /// Concurrent flows.
    pub sessions: u32,
    /// Octets of a frame without its FCS.
    pub packet_bytes: u32,
    /// The figure: the median over the rounds.
    pub value: f64,
    /// Unit of `value`.
    pub unit: String,
    /// The mode that `ratio` compares with; `None` if there is nothing to compare.
    pub against: Option<String>,
    /// How many times better than `against` this is, whichever direction better has in `unit`.
    pub ratio: Option<f64>,
    /// Share of the offered packets that arrived, 0 to 1, of the worst round.
    pub delivered: f64,
    /// Share of the offered packets that arrived rightly translated, 0 to 1, of the worst round.
    pub translated: f64,
    /// Whether the figure counts. False: too few packets arrived, or they arrived wrong.
    pub valid: bool,
}

/// The middle value; the mean of the two in the middle of an even count. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }

    #[test]
    fn the_keys_of_a_row_are_fixed() {
        let row = Row {
            scenario: "forward".into(),
            mode: "plain".into(),
            sessions: 1,
            packet_bytes: 60,
            value: 1e6,
            unit: "packets/s/core".into(),
            against: None,
            ratio: None,
            delivered: 1.0,
            translated: 0.0,
            valid: true,
        };
        let json = serde_json::to_value(row).expect("plain data");
        let keys: Vec<_> = json
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect();
        let mut expected = [
            "scenario",
            "mode",
            "sessions",
            "packet_bytes",
            "value",
            "unit",
            "against",
            "ratio",
            "delivered",
            "translated",
            "valid",
        ];
        // serde_json keeps objects sorted by key.
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }
}
