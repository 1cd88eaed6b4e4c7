//! Places for connections: how many there are, who has them, and who has to leave.
//!
//! While the core has a call, the next move is ours; at any other time it is the host's, which has to send a request,
//! finish one, or take its answer. Where no place is left, a connection that waits for its host makes room for a new one:
//! the longest-waiting of the newcomer if that one is at its own bound, else of the host that has most. So whoever never
//! finishes stands in nobody's way, and one with few connections loses none to one with many. A host at its bound replaces
//! as many as it may have in a second; closing the others at once is what a flood of connections costs least. A host is one by
//! its MAC address: otherwise one that calls by many addresses had all places, and calls that take their time kept them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::types::caller::Station;

/// In which a host may replace each of its connections once, and begin as many as it may where these are counted.
const REPLACED_IN: Duration = Duration::from_secs(1);

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    total: usize,
    per_host: usize,
    /// How many a host may begin in a second, whatever becomes of them.
    begun: Option<usize>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Numbers connections and moves of hosts.
    last: u64,
    connections: BTreeMap<u64, Connection>,
    hosts: BTreeMap<Station, Host>,
}

/// A host that has connections.
#[derive(Debug)]
struct Host {
    held: usize,
    /// How many of its own have made room for it, and since when they are counted.
    replaced: (usize, Instant),
    /// How many it has begun, and since when they are counted.
    begun: (usize, Instant),
}

#[derive(Debug)]
struct Connection {
    host: Station,
    /// The number of its host's last move, who has the next one as well; `None`: we have.
    waits: Option<u64>,
    leave: Arc<Notify>,
}

/// One of the places, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    turn: Turn,
    leave: Arc<Notify>,
}

/// Says whose move it is on one connection.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    places: Arc<Places>,
    number: u64,
}

/// The move is ours until this is dropped.
#[derive(Debug)]
pub(super) struct OurTurn<'a>(&'a Turn);

/// Whether there was a place.
#[derive(Debug)]
pub(super) enum Taken {
    /// There was.
    Free(Place),
    /// Another connection had to leave for it.
    MadeFree(Place),
    /// Every connection that could have left is being served.
    None,
}

impl Places {
    /// So many for all, and for each host.
    pub(super) fn new(total: usize, per_host: usize) -> Arc<Self> {
        Self::counted(total, per_host, None)
    }

    /// The same where beginning is what costs: each host begins no more than that many connections in a second. The others
    /// are refused at once, so that nobody waits behind them.
    #[cfg(any(test, feature = "device-protection"))]
    pub(super) fn slowly_begun(total: usize, per_host: usize, begun: usize) -> Arc<Self> {
        Self::counted(total, per_host, Some(begun))
    }

    fn counted(total: usize, per_host: usize, begun: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            total,
            per_host,
            begun,
            held: Mutex::default(),
        })
    }

    /// A place for a connection of this host, on which the host has the first move.
    pub(super) fn take(self: &Arc<Self>, host: Station, now: Instant) -> Taken {
        let mut held = self.held();
        if let Some(most) = self.begun {
            let host = held.counted(host, now);
            if !another(&mut host.begun, most, now) {
                return Taken::None;
            }
        }
        let is_at_its_bound = match held.hosts.get_mut(&host) {
            Some(own) if own.held >= self.per_host => {
                if !another(&mut own.replaced, self.per_host, now) {
                    return Taken::None;
                }
                true
            }
            Some(_) | None => false,
        };
        let leaves = if is_at_its_bound {
            held.longest_waiting(|other| other == host)
        } else if held.connections.len() >= self.total {
            held.longest_waiting(|_| true)
        } else {
            return Taken::Free(self.put(&mut held, host, now));
        };
        let Some(left) = leaves.and_then(|number| held.remove(number)) else {
            return Taken::None;
        };
        left.leave.notify_one();
        Taken::MadeFree(self.put(&mut held, host, now))
    }

    fn put(self: &Arc<Self>, held: &mut Held, host: Station, now: Instant) -> Place {
        let number = held.next();
        let leave = Arc::new(Notify::new());
        let own = held.hosts.entry(host).or_insert_with(|| Host::new(now));
        own.held += 1;
        let connection = Connection {
            host,
            waits: Some(number),
            leave: Arc::clone(&leave),
        };
        held.connections.insert(number, connection);
        Place {
            turn: Turn {
                places: Arc::clone(self),
                number,
            },
            leave,
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// A host whose beginnings are counted. Those that have no connection and have begun none in the last second are
    /// forgotten.
    fn counted(&mut self, host: Station, now: Instant) -> &mut Host {
        self.hosts.retain(|_, host| {
            host.held > 0 || now.saturating_duration_since(host.begun.1) < REPLACED_IN
        });
        self.hosts.entry(host).or_insert_with(|| Host::new(now))
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Of these hosts' connections. Looks at all of them, which are some thousands at most, and only when places are short.
    fn longest_waiting(&self, of: impl Fn(Station) -> bool) -> Option<u64> {
        let waiting = self.connections.iter().filter_map(|(number, connection)| {
            let since = connection.waits.filter(|_| of(connection.host))?;
            let share = self.hosts.get(&connection.host).map_or(0, |host| host.held);
            Some((share, Reverse(since), *number))
        });
        waiting.max().map(|(.., number)| number)
    }

    fn remove(&mut self, number: u64) -> Option<Connection> {
        let connection = self.connections.remove(&number)?;
        if let Some(host) = self.hosts.get_mut(&connection.host) {
            host.held -= 1;
            let is_counted = host.begun.0 > 0;
            if host.held == 0 && !is_counted {
                self.hosts.remove(&connection.host);
            }
        }
        Some(connection)
    }
}

impl Host {
    const fn new(now: Instant) -> Self {
        Self {
            held: 0,
            replaced: (0, now),
            begun: (0, now),
        }
    }
}

/// Whether there may be one more in this second; counts it.
fn another(counted: &mut (usize, Instant), most: usize, now: Instant) -> bool {
    let (count, since) = *counted;
    if now.saturating_duration_since(since) >= REPLACED_IN {
        *counted = (1, now);
        return true;
    }
    *counted = (count + 1, since);
    count < most
}

impl Place {
    /// Returns when the place is needed for somebody else.
    pub(super) async fn taken_away(&self) {
        self.leave.notified().await;
    }

    /// For what serves the connection.
    pub(super) fn turn(&self) -> Turn {
        self.turn.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.turn.places.held().remove(self.turn.number);
    }
}

impl Turn {
    /// The host has moved, and it is its move still.
    pub(super) fn heard(&self) {
        let mut held = self.places.held();
        let now = held.next();
        self.set(&mut held, Some(now));
    }

    /// The host waits for us.
    pub(super) fn ours(&self) -> OurTurn<'_> {
        self.set(&mut self.places.held(), None);
        OurTurn(self)
    }

    fn set(&self, held: &mut Held, waits: Option<u64>) {
        if let Some(connection) = held.connections.get_mut(&self.number) {
            connection.waits = waits;
        }
    }
}

impl Drop for OurTurn<'_> {
    fn drop(&mut self) {
        self.0.heard();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::LazyLock;

    use futures_util::FutureExt as _;

    use super::*;

    fn host(number: u8) -> Station {
        Station::Addr(IpAddr::from(Ipv4Addr::new(192, 168, 1, number)))
    }

    fn now() -> Instant {
        static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
        *NOW
    }

    fn free(places: &Arc<Places>, number: u8) -> Place {
        match places.take(host(number), now()) {
            Taken::Free(place) => place,
            other @ (Taken::MadeFree(_) | Taken::None) => panic!("{other:?}"),
        }
    }

    fn made_free(places: &Arc<Places>, number: u8) -> Place {
        match places.take(host(number), now()) {
            Taken::MadeFree(place) => place,
            other @ (Taken::Free(_) | Taken::None) => panic!("{other:?}"),
        }
    }

    fn has_to_leave(place: &Place) -> bool {
        place.taken_away().now_or_never().is_some()
    }

    #[test]
    fn at_its_bound_a_host_loses_what_waits_longest_of_its_own() {
        let places = Places::new(8, 2);
        let other = free(&places, 2);
        let (first, second) = (free(&places, 1), free(&places, 1));
        let third = made_free(&places, 1);
        assert!(has_to_leave(&first));
        // It goes whenever it goes: its place counts no more.
        second.turn().heard();
        let fourth = made_free(&places, 1);
        assert!(has_to_leave(&third));
        drop((first, third));
        for stays in [&other, &second, &fourth] {
            assert!(!has_to_leave(stays));
        }
        assert_eq!(places.held().connections.len(), 3);
    }

    #[test]
    fn when_all_are_taken_the_host_with_most_makes_room() {
        let places = Places::new(4, 3);
        let few = free(&places, 1);
        let many = [free(&places, 2), free(&places, 2), free(&places, 2)];
        let new = made_free(&places, 3);
        assert!(has_to_leave(&many[0]));
        let newer = made_free(&places, 4);
        assert!(has_to_leave(&many[1]));
        // Now each has one, and the oldest goes.
        let newest = made_free(&places, 5);
        assert!(has_to_leave(&few));
        for stays in [&many[2], &new, &newer, &newest] {
            assert!(!has_to_leave(stays));
        }
    }

    #[test]
    fn who_is_being_served_stays_and_places_come_back() {
        let places = Places::new(2, 2);
        let (first, second) = (free(&places, 1), free(&places, 2));
        let (one, two) = (first.turn(), second.turn());
        let serving = (one.ours(), two.ours());
        assert!(matches!(places.take(host(3), now()), Taken::None));
        drop(serving.0);
        let third = made_free(&places, 3);
        assert!(has_to_leave(&first));
        drop(serving.1);
        drop((first, second, third));
        assert!(places.held().connections.is_empty());
        assert!(places.held().hosts.is_empty());
        // What a request of a connection that is gone says is not heard.
        one.heard();
        assert!(places.held().connections.is_empty());
    }

    #[test]
    fn a_host_at_its_bound_takes_nothing_from_others() {
        let places = Places::new(2, 1);
        let (first, second) = (free(&places, 1), free(&places, 2));
        let turn = first.turn();
        let serving = turn.ours();
        assert!(matches!(places.take(host(1), now()), Taken::None));
        assert!(!has_to_leave(&second));
        drop(serving);
    }

    #[test]
    fn a_flood_replaces_no_more_than_a_host_may_have_in_a_second() {
        let places = Places::new(8, 3);
        let _other = free(&places, 2);
        let _held = [free(&places, 1), free(&places, 1), free(&places, 1)];
        let mut kept = Vec::new();
        for second in 0..3 {
            let now = now() + REPLACED_IN * second;
            for attempt in 0..10 {
                match places.take(host(1), now) {
                    Taken::MadeFree(place) => kept.push(place),
                    Taken::None => assert!(attempt >= 3, "{attempt}"),
                    Taken::Free(_) => panic!("there was none"),
                }
            }
        }
        assert_eq!(kept.len(), 9);
        assert_eq!(places.held().connections.len(), 4);
    }

    #[test]
    fn what_ends_at_once_is_counted_where_beginning_costs() {
        let places = Places::slowly_begun(8, 2, 3);
        for second in 0..3 {
            let now = now() + REPLACED_IN * second;
            for attempt in 0..10 {
                let is_there = !matches!(places.take(host(1), now), Taken::None);
                assert_eq!(is_there, attempt < 3, "{attempt}");
            }
            assert!(matches!(places.take(host(2), now), Taken::Free(_)));
        }
        let later = now() + REPLACED_IN * 4;
        let _held = places.take(host(3), later);
        assert_eq!(places.held().hosts.len(), 1, "the others are forgotten");
    }
}
