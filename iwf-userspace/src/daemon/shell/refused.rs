//! Which refusals are logged: control points ask again and again, and none of them may fill the log.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::types::Instant;

/// Between two lines about one caller and one reason.
const QUIET: Duration = Duration::from_secs(600);
/// Callers and reasons that are remembered. What comes beyond them is in the events only.
const MOST: usize = 256;

/// When each caller's refusals were logged last.
#[derive(Debug, Default)]
pub(super) struct RefusalsTold(BTreeMap<(IpAddr, String), Told>);

#[derive(Debug)]
struct Told {
    at: Instant,
    others: u64,
}

impl RefusalsTold {
    /// Whether a refusal is logged now, and with how many that were not since.
    pub(super) fn admit(
        &mut self,
        caller: IpAddr,
        reason: Option<&str>,
        now: Instant,
    ) -> Option<u64> {
        let key = (caller, reason.unwrap_or_default().to_owned());
        if let Some(told) = self.0.get_mut(&key) {
            if now < told.at + QUIET {
                told.others += 1;
                return None;
            }
            told.at = now;
            return Some(std::mem::take(&mut told.others));
        }
        if self.0.len() >= MOST {
            self.0.retain(|_, told| now < told.at + QUIET);
        }
        if self.0.len() >= MOST {
            return None;
        }
        self.0.insert(key, Told { at: now, others: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + number).into())
    }

    #[test]
    fn a_caller_is_logged_once_in_a_while_for_each_reason() {
        let mut told = RefusalsTold::default();
        let at = |seconds: u64| Instant::from_millis(seconds * 1000);
        assert_eq!(told.admit(host(1), Some("rule 1"), at(0)), Some(0));
        assert_eq!(told.admit(host(1), Some("rule 1"), at(1)), None);
        assert_eq!(told.admit(host(1), Some("rule 2"), at(1)), Some(0));
        assert_eq!(told.admit(host(2), Some("rule 1"), at(1)), Some(0));
        assert_eq!(told.admit(host(1), Some("rule 1"), at(599)), None);
        assert_eq!(told.admit(host(1), Some("rule 1"), at(600)), Some(2));
        assert_eq!(told.admit(host(1), Some("rule 1"), at(601)), None);
    }

    #[test]
    fn a_flood_of_callers_is_bounded_and_forgotten() {
        let mut told = RefusalsTold::default();
        let start = Instant::from_millis(1);
        let logged = (0..10_000).filter(|n| told.admit(host(*n), None, start).is_some());
        assert_eq!(logged.count(), MOST);
        assert_eq!(told.0.len(), MOST);
        assert_eq!(told.admit(host(20_000), None, start + QUIET), Some(0));
        assert_eq!(told.0.len(), 1);
    }
}
