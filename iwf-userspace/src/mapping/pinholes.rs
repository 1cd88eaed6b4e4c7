//! Pinholes that control points have asked for: the table with its bounds, and the stored record.
//!
//! Read before editing: WANIPv6FirewallControl:1 sections 2.3 and 2.5.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::record::WallClock;
use crate::types::caller::Mac;
use crate::types::pinhole::Pinhole;
use crate::types::{Instant, Lifetime, UnixTime};

/// WANIPv6FirewallControl:1 section 2.3.7: the longest lease, in seconds.
pub const MAX_LEASE: Lifetime = Lifetime(86_400);
/// The highest id that is given; those above name pinholes of the configuration.
pub const LAST_ID: u16 = 0x7fff;
/// Most pinholes of all hosts together. Beyond it no room is left.
pub const MAX_PINHOLES: usize = 1024;

/// A pinhole with what the kernel need not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// What is let in, and until when: its `expires` is never `None`.
    pub pinhole: Pinhole,
    /// The same end.
    pub ends: Instant,
    /// The host that asked for it, if its MAC address was known.
    pub host: Option<Mac>,
    /// Whether the store has it, so that the kernel may.
    pub stored: bool,
    /// Since when its prefix is not the LAN's any more: nothing is let in meanwhile.
    pub astray_since: Option<Instant>,
}

/// A pinhole as stored. Its end is wall-clock time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinholeRecord {
    /// UniqueID.
    pub id: u16,
    /// The LAN host's address.
    pub internal: Ipv6Addr,
    /// Its port; `None`: any, as below.
    pub internal_port: Option<u16>,
    /// The remote host.
    pub remote: Option<Ipv6Addr>,
    /// Its port.
    pub remote_port: Option<u16>,
    /// IANA protocol number.
    pub protocol: Option<u8>,
    /// When it ends.
    pub ends: UnixTime,
    /// The host that asked for it.
    pub host: Option<Mac>,
}

impl PinholeRecord {
    /// The durable form.
    pub fn new(opening: &Opening, clock: &WallClock) -> Self {
        let Pinhole {
            id,
            internal,
            internal_port,
            remote,
            remote_port,
            protocol,
            expires: _,
        } = opening.pinhole;
        Self {
            id,
            internal,
            internal_port,
            remote,
            remote_port,
            protocol,
            ends: clock.unix(opening.ends),
            host: opening.host,
        }
    }

    /// The pinhole again. A wall clock that has not been set must not make a lease longer than any is.
    pub fn opening(&self, clock: &WallClock, now: Instant) -> Opening {
        let ends = clock.instant(self.ends).min(now + MAX_LEASE.duration());
        Opening {
            pinhole: Pinhole {
                id: self.id,
                internal: self.internal,
                internal_port: self.internal_port,
                remote: self.remote,
                remote_port: self.remote_port,
                protocol: self.protocol,
                expires: Some(ends),
            },
            ends,
            host: self.host,
            stored: true,
            astray_since: None,
        }
    }
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// The pinholes, at most [`MAX_PINHOLES`]: few enough to look through them.
#[derive(Debug, Default)]
pub struct Pinholes {
    by_id: BTreeMap<u16, Opening>,
    ends: BTreeSet<(Instant, u16)>,
    last_id: u16,
}

impl Pinholes {
    /// Ids continue behind this one.
    pub fn continue_after(&mut self, id: u16) {
        self.last_id = id;
    }

    /// The pinhole of this id.
    pub fn get(&self, id: u16) -> Option<&Opening> {
        self.by_id.get(&id)
    }

    /// Those there are, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Opening> {
        self.by_id.values()
    }

    /// The one that lets in the same.
    pub fn same(&self, as_this: &Pinhole) -> Option<&Opening> {
        self.iter().find(|held| held.pinhole.lets_in_as(as_this))
    }

    /// A new id: one that nobody has, and that nobody had for as long as possible. `per_host` is how many one host may
    /// have, which is known by its MAC address or, without one, by its address.
    pub fn new_id(
        &mut self,
        internal: Ipv6Addr,
        host: Option<Mac>,
        per_host: usize,
    ) -> Result<u16, NoRoom> {
        let held = self.of_host(internal, host);
        if self.by_id.len() >= MAX_PINHOLES || held >= per_host {
            return Err(NoRoom);
        }
        let next = |id: u16| if id >= LAST_ID { 1 } else { id + 1 };
        let mut id = next(self.last_id);
        while self.by_id.contains_key(&id) {
            id = next(id);
        }
        self.last_id = id;
        Ok(id)
    }

    /// How many one host has, which is known by its MAC address or, without one, by its address.
    pub fn of_host(&self, internal: Ipv6Addr, host: Option<Mac>) -> usize {
        let same_host = |held: &&Opening| match (held.host, host) {
            (Some(held), Some(host)) => held == host,
            (None, _) | (_, None) => held.pinhole.internal == internal,
        };
        self.iter().filter(same_host).count()
    }

    /// Adds or replaces.
    pub fn put(&mut self, opening: Opening) {
        let id = opening.pinhole.id;
        self.remove(id);
        self.ends.insert((opening.ends, id));
        self.by_id.insert(id, opening);
    }

    /// Takes one away.
    pub fn remove(&mut self, id: u16) -> Option<Opening> {
        let gone = self.by_id.remove(&id)?;
        self.ends.remove(&(gone.ends, id));
        Some(gone)
    }

    /// When the next one ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(at, _)| *at)
    }

    /// The next one that has ended.
    pub fn ended(&self, now: Instant) -> Option<u16> {
        let (at, id) = *self.ends.first()?;
        (at <= now).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(id: u16, host: u16) -> Opening {
        let ends = Instant::from_millis(1000 + u64::from(id));
        Opening {
            pinhole: Pinhole {
                id,
                internal: Ipv6Addr::new(0x2a0b, 0, 0, 0, 0, 0, 0, host),
                internal_port: Some(1024 + id),
                remote: None,
                remote_port: None,
                protocol: Some(6),
                expires: Some(ends),
            },
            ends,
            host: None,
            stored: true,
            astray_since: None,
        }
    }

    #[test]
    fn ids_are_unique_never_zero_and_not_used_again_soon() {
        let mut table = Pinholes::default();
        let addr = Ipv6Addr::LOCALHOST;
        let mut given = BTreeSet::new();
        for _ in 0..LAST_ID {
            let id = table.new_id(addr, None, 9).expect("room");
            assert!(given.insert(id), "{id} again");
        }
        assert!(!given.contains(&0) && given.last() == Some(&LAST_ID));
        // All were given: the oldest comes again, but none that somebody has.
        table.put(opening(1, 1));
        assert_eq!(table.new_id(addr, None, 9), Ok(2));
    }

    #[test]
    fn a_host_has_its_share_and_all_have_theirs() {
        let mut table = Pinholes::default();
        let mac = [2, 0, 0, 0, 0, 1];
        for host in 1..=3 {
            let mut one = opening(host, host);
            one.host = Some(mac);
            table.put(one);
        }
        let elsewhere = Ipv6Addr::new(0x2a0b, 0, 0, 0, 0, 0, 0, 99);
        assert_eq!(
            table.new_id(elsewhere, Some(mac), 3),
            Err(NoRoom),
            "by its MAC address"
        );
        assert!(table.new_id(elsewhere, Some([2; 6]), 3).is_ok());
        for id in 4..=u16::try_from(MAX_PINHOLES).expect("few") {
            table.put(opening(id, 1000 + id));
        }
        assert_eq!(table.new_id(elsewhere, Some([2; 6]), 3), Err(NoRoom));
    }

    #[test]
    fn a_record_gives_back_what_was_stored_and_no_longer_lease() {
        let now = Instant::from_millis(5_000);
        let clock = WallClock::new(UnixTime::from_secs(1_800_000_000), now);
        let stored = opening(7, 7);
        let record = PinholeRecord::new(&stored, &clock);
        assert_eq!(record.opening(&clock, now), stored);
        let unset = WallClock::new(UnixTime::from_secs(10), now);
        let longest = record.opening(&unset, now).ends;
        assert_eq!(longest, now + MAX_LEASE.duration());
    }
}
