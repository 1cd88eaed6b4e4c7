//! How often one host may cause requests to a server (IWF-103): whoever floods us does not flood the provider. A host is one
//! by its MAC address, however many addresses it has.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::Instant;
use crate::types::caller::Station;

/// Requests at once, at least. A host that may have more mappings may cause as many: it sets everything up again after a
/// restart of its own.
const BURST: u32 = 128;
/// Time in which as many are earned again.
const REFILL: Duration = Duration::from_millis(12_800);
/// Hosts remembered at once; the LAN policy lets only real neighbours come so far.
const MAX_HOSTS: usize = 1024;

/// A bucket per host: when it will be full again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    full_at: BTreeMap<Station, Instant>,
}

impl Pace {
    /// Whether a host that may have so many mappings may cause a request now; counts it if so.
    pub(super) fn admit(&mut self, host: Station, mappings: usize, now: Instant) -> bool {
        if self.full_at.len() >= MAX_HOSTS {
            self.full_at.retain(|_, at| *at > now);
        }
        if self.full_at.len() >= MAX_HOSTS && !self.full_at.contains_key(&host) {
            return false;
        }
        let burst = u32::try_from(mappings).unwrap_or(u32::MAX).max(BURST);
        let full_at = self.full_at.get(&host).copied().unwrap_or(now).max(now) + REFILL / burst;
        if full_at > now + REFILL {
            return false;
        }
        self.full_at.insert(host, full_at);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn host(number: u32) -> Station {
        Station::Addr(Ipv4Addr::from(number).into())
    }

    #[test]
    fn a_burst_then_ten_a_second_for_each_host() {
        let mut pace = Pace::default();
        let (a, b) = (host(20), host(21));
        let now = Instant::from_millis(5000);
        let burst = (0..1000).filter(|_| pace.admit(a, 2, now)).count();
        assert_eq!(burst, BURST as usize);
        assert!(pace.admit(b, 2, now), "others are served");
        let later = now + Duration::from_secs(1);
        let earned = (0..1000).filter(|_| pace.admit(a, 2, later)).count();
        assert_eq!(earned, 10);
    }

    #[test]
    fn whoever_may_have_more_may_cause_more() {
        let mut pace = Pace::default();
        let now = Instant::from_millis(5000);
        let burst = (0..9000).filter(|_| pace.admit(host(20), 6400, now));
        assert_eq!(burst.count(), 6400);
        let later = now + Duration::from_secs(1);
        let earned = (0..9000).filter(|_| pace.admit(host(20), 6400, later));
        assert_eq!(earned.count(), 500);
        let huge = pace.admit(host(21), usize::MAX, now);
        assert!(huge, "nothing overflows");
    }

    #[test]
    fn stays_bounded() {
        let mut pace = Pace::default();
        let now = Instant::from_millis(0);
        for number in 0..5000 {
            pace.admit(host(number), 2, now);
        }
        assert_eq!(pace.full_at.len(), MAX_HOSTS);
        let later = now + Duration::from_secs(1);
        assert!(pace.admit(host(9999), 2, later), "room again");
    }
}
