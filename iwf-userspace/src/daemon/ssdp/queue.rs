//! Answers that wait for their moment. Bounded three ways, so that a flood of searches costs neither memory nor
//! bandwidth: searches waiting in all, from one host, and datagrams per second. Hosts take turns, so that one that searches
//! for everything all the time takes no more than its share of those datagrams. Who is at an address that the neighbour
//! table leads nowhere may be made up: all of those are one for turns, and leave half of the room to the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::types::caller::Mac;
use crate::wire::description::Tree;
use crate::wire::ssdp::Advert;

/// Searches waiting for an answer. One more is not answered; control points repeat theirs.
const MAX_WAITING: usize = 64;
/// Searches of one host waiting for an answer. The clients seen send at most five at once.
const MAX_WAITING_PER_HOST: usize = 8;
/// Searches of hosts whose MAC address is not known waiting for an answer: all of them together.
const MAX_WAITING_UNKNOWN: usize = 32;
/// Answers sent in a row, and the time after which one more may be: 50 per second.
const BURST: u32 = 150;
const REFILL: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By due time; the number keeps those of one instant apart and in order.
    waiting: BTreeMap<(Instant, u64), Answer>,
    pushed: u64,
    /// Of each host that waits, the number of the answer that it was sent last.
    served: BTreeMap<Option<Mac>, u64>,
    sent: u64,
    /// The bucket is full at this instant; each answer moves it by [`REFILL`] into the future.
    full_at: Option<Instant>,
}

#[derive(Debug)]
struct Answer {
    /// Whose it is; `None`: of somebody who may not be there.
    mac: Option<Mac>,
    to: SocketAddr,
    tree: Tree,
    /// Those still to be sent, last one first.
    adverts: Vec<Advert>,
}

impl Queue {
    /// Whether there was room.
    pub(super) fn push(
        &mut self,
        due: Instant,
        mac: Option<Mac>,
        to: SocketAddr,
        tree: Tree,
        mut adverts: Vec<Advert>,
    ) -> bool {
        let of_host = self.waiting.values().filter(|other| match mac {
            Some(_) => other.mac == mac,
            None => other.mac.is_none() && other.to.ip() == to.ip(),
        });
        let unknown = self.waiting.values().filter(|other| other.mac.is_none());
        let takes_too_much = mac.is_none() && unknown.count() >= MAX_WAITING_UNKNOWN;
        let is_full = self.waiting.len() >= MAX_WAITING || takes_too_much;
        if is_full || of_host.count() >= MAX_WAITING_PER_HOST {
            return false;
        }
        adverts.reverse();
        self.pushed += 1;
        let answer = Answer {
            mac,
            to,
            tree,
            adverts,
        };
        self.waiting.insert((due, self.pushed), answer);
        true
    }

    /// When the next answer may be sent.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let (due, _) = *self.waiting.first_key_value()?.0;
        // With BURST answers on credit the bucket is empty.
        let room_at = self
            .full_at
            .and_then(|at| at.checked_sub(REFILL * (BURST - 1)));
        Some(room_at.map_or(due, |at| at.max(due)))
    }

    /// An answer to be sent now, if there is one.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(SocketAddr, Tree, Advert)> {
        if self.next_due()? > now {
            return None;
        }
        let key = self.whose_turn(now)?;
        let answer = self.waiting.get_mut(&key)?;
        let advert = answer.adverts.pop();
        let (to, tree, host) = (answer.to, answer.tree, answer.mac);
        if answer.adverts.is_empty() {
            self.waiting.remove(&key);
        }
        self.sent += 1;
        if self.waiting.values().any(|answer| answer.mac == host) {
            self.served.insert(host, self.sent);
        } else {
            self.served.remove(&host);
        }
        self.full_at = Some(self.full_at.map_or(now, |at| at.max(now)) + REFILL);
        Some((to, tree, advert?))
    }

    /// The answer of the host that was sent something the longest time ago, of those that are due.
    fn whose_turn(&self, now: Instant) -> Option<(Instant, u64)> {
        let due = self.waiting.range(..=(now, u64::MAX));
        let turn = |(key, answer): &(&(Instant, u64), &Answer)| {
            let served = self.served.get(&answer.mac).copied();
            (served.unwrap_or_default(), **key)
        };
        due.min_by_key(turn).map(|(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adverts(n: usize) -> Vec<Advert> {
        let advert = |i: usize| Advert {
            nt: i.to_string(),
            usn: String::new(),
        };
        (0..n).map(advert).collect()
    }

    /// A host of the link has its own.
    fn mac(n: u8) -> Mac {
        [2, 0, 0, 0, 0, n]
    }

    fn host(n: u8) -> SocketAddr {
        ([192, 168, 1, n], 1900).into()
    }

    fn drain(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop_due(now))
            .map(|(_, _, advert)| advert.nt)
            .collect()
    }

    #[tokio::test]
    async fn hosts_take_turns_whatever_each_has_asked_for() {
        let start = Instant::now();
        let mut queue = Queue::default();
        // The bucket is empty, so that each answer has to wait for its time.
        assert!(queue.push(
            start,
            Some(mac(9)),
            host(9),
            Tree::Igd1,
            adverts(BURST as usize)
        ));
        assert_eq!(drain(&mut queue, start).len(), BURST as usize);
        for _ in 0..MAX_WAITING_PER_HOST {
            assert!(queue.push(start, Some(mac(1)), host(1), Tree::Igd1, adverts(11)));
        }
        let later = start + REFILL;
        assert!(queue.push(later, Some(mac(2)), host(2), Tree::Igd1, adverts(1)));
        assert!(queue.push(later, Some(mac(3)), host(3), Tree::Igd1, adverts(2)));
        let order: Vec<_> = (1..=7)
            .map(|slot| {
                let mut sent = std::iter::from_fn(|| queue.pop_due(start + REFILL * slot));
                let (to, ..) = sent.next().expect("one is due");
                assert!(sent.next().is_none(), "one at a time");
                to
            })
            .collect();
        let expected = [1, 2, 3, 1, 3, 1, 1].map(host);
        assert_eq!(order, expected);
        assert_eq!(
            queue.served.len(),
            1,
            "who has nothing to wait for is forgotten"
        );
    }

    #[tokio::test]
    async fn answers_wait_for_their_moment_and_keep_their_order() {
        let start = Instant::now();
        let later = start + Duration::from_millis(300);
        let mut queue = Queue::default();
        assert_eq!(queue.next_due(), None);
        assert!(queue.push(later, Some(mac(1)), host(1), Tree::Igd1, adverts(3)));
        assert!(queue.push(start, Some(mac(2)), host(2), Tree::Igd2, adverts(1)));
        assert_eq!(queue.next_due(), Some(start));
        assert_eq!(drain(&mut queue, start), ["0"]);
        assert_eq!(queue.next_due(), Some(later));
        assert_eq!(drain(&mut queue, later - Duration::from_millis(1)), [""; 0]);
        assert_eq!(drain(&mut queue, later), ["0", "1", "2"]);
    }

    #[tokio::test]
    async fn a_flood_is_bounded_per_host_and_in_all() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let taken =
            (0..100).filter(|_| queue.push(now, Some(mac(1)), host(1), Tree::Igd1, adverts(1)));
        assert_eq!(taken.count(), MAX_WAITING_PER_HOST);
        let taken =
            (2..=200).filter(|n| queue.push(now, Some(mac(*n)), host(*n), Tree::Igd1, adverts(1)));
        assert_eq!(taken.count(), MAX_WAITING - MAX_WAITING_PER_HOST);
    }

    #[tokio::test]
    async fn made_up_hosts_leave_room_and_turns_to_the_others() {
        let start = Instant::now();
        let mut queue = Queue::default();
        assert!(queue.push(
            start,
            Some(mac(1)),
            host(1),
            Tree::Igd1,
            adverts(BURST as usize)
        ));
        assert_eq!(drain(&mut queue, start).len(), BURST as usize);
        let taken = (2..=200).filter(|n| queue.push(start, None, host(*n), Tree::Igd1, adverts(9)));
        assert_eq!(taken.count(), MAX_WAITING_UNKNOWN);
        // One host is one by its MAC address, whichever of its addresses it searches from.
        let taken = (201..=250)
            .filter(|n| queue.push(start, Some(mac(3)), host(*n), Tree::Igd1, adverts(9)));
        assert_eq!(taken.count(), MAX_WAITING_PER_HOST);
        assert!(queue.push(start, Some(mac(1)), host(1), Tree::Igd1, adverts(1)));
        let slots = (1..=3).filter_map(|slot| queue.pop_due(start + REFILL * slot));
        let turns: Vec<_> = slots.map(|(to, ..)| to).collect();
        assert_eq!(turns, [host(2), host(201), host(1)]);
    }

    #[tokio::test]
    async fn answers_are_limited_in_rate() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let mut sent = 0;
        for _ in 0..50 {
            assert!(queue.push(now, Some(mac(1)), host(1), Tree::Igd1, adverts(12)));
            sent += drain(&mut queue, now).len();
            if queue.next_due().is_some() {
                break;
            }
        }
        assert_eq!(sent, usize::try_from(BURST).unwrap());
        assert_eq!(queue.next_due(), Some(now + REFILL));
        assert_eq!(drain(&mut queue, now + REFILL).len(), 1);
        let second = now + REFILL + Duration::from_secs(1);
        assert!(queue.push(now, Some(mac(1)), host(1), Tree::Igd1, adverts(100)));
        assert_eq!(drain(&mut queue, second).len(), 50);
    }
}
