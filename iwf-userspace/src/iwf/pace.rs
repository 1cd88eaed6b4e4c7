//! How often one host may cause requests to a server (IWF-103): whoever floods us does not flood the provider. A host is one
//! by its MAC address, however many addresses it has.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::Instant;
use crate::types::caller::Station;

/// Requests at once: a host that sets everything up again after a restart of its own.
const BURST: u32 = 128;
/// Time in which one more is earned.
const EARN: Duration = Duration::from_millis(100);
/// Hosts remembered at once; the LAN policy lets only real neighbours come so far.
const MAX_HOSTS: usize = 1024;

/// A bucket per host: when it will be full again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    full_at: BTreeMap<Station, Instant>,
}

impl Pace {
    /// Whether a host may cause a request now; counts it if so.
    pub(super) fn admit(&mut self, host: Station, now: Instant) -> bool {
        if self.full_at.len() >= MAX_HOSTS {
            self.full_at.retain(|_, at| *at > now);
        }
        if self.full_at.len() >= MAX_HOSTS && !self.full_at.contains_key(&host) {
            return false;
        }
        let full_at = self.full_at.get(&host).copied().unwrap_or(now).max(now) + EARN;
        if full_at > now + EARN * BURST {
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
        let burst = (0..1000).filter(|_| pace.admit(a, now)).count();
        assert_eq!(burst, BURST as usize);
        assert!(pace.admit(b, now), "others are served");
        let later = now + Duration::from_secs(1);
        let earned = (0..1000).filter(|_| pace.admit(a, later)).count();
        assert_eq!(earned, 10);
    }

    #[test]
    fn stays_bounded() {
        let mut pace = Pace::default();
        let now = Instant::from_millis(0);
        for number in 0..5000 {
            pace.admit(host(number), now);
        }
        assert_eq!(pace.full_at.len(), MAX_HOSTS);
        let later = now + Duration::from_secs(1);
        assert!(pace.admit(host(9999), later), "room again");
    }
}
