//! Fragments that came before the first one of their datagram: held for a moment, and sent on when it has come.
//!
//! The packet programs give copies of them (RFC 4787 REQ-14) and note what becomes of a datagram when its first
//! fragment comes. Here is looked for that note, at once and then at growing intervals: most first fragments are
//! microseconds late, and nothing in the kernel has to remember who waits. What is held is sent through the stack,
//! which knows the way to either side over any link.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_common::fragment::{self, FragmentFlags, HeldFlags};
use socket2::Socket;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::dataplane::fragments::{self as tables, First, FragmentTables, Key, Taken};

/// Fragments that wait. More are lost.
const MOST: usize = 512;
/// Octets of them.
const MOST_OCTETS: usize = 512 * 1024;
/// Fragments of one sender that wait, a host of the LAN or of the world, of IPv6 a network of 64 bits, whose hosts make
/// up addresses: all of one datagram of the largest size.
const MOST_OF_SENDER: usize = 64;
/// How long one waits. Reordering takes milliseconds; a first fragment that is later than this is lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// The interval after the first look; it doubles.
const FIRST_INTERVAL: Duration = Duration::from_millis(1);

/// Takes what the programs hold and sends it on, until the daemon ends.
///
/// # Errors
/// The ring cannot be waited for, or there is no raw socket.
pub(super) async fn serve(opened: FragmentTables) -> Result<()> {
    let sockets = Sockets {
        v4: tables::sender().context("open a raw socket")?,
        v6: tables::sender6()
            .inspect_err(
                |error| warn!(%error, "IPv6 fragments that come before their first one are lost"),
            )
            .ok(),
    };
    let (mut ring, mut firsts) = opened.watch().context("wait for the ring")?;
    let mut waiting = Waiting::default();
    loop {
        let due = waiting.poll_timeout();
        tokio::select! {
            taken = ring.take() => {
                let now = Instant::now();
                for taken in taken.context("wait for the ring")? {
                    firsts.note(&taken);
                    waiting.add(taken, now);
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        for packet in waiting.look(Instant::now(), |key| firsts.first_of(key)) {
            sockets.send(&packet);
        }
    }
}

/// What fragments are sent by.
struct Sockets {
    v4: Socket,
    /// None on a machine without IPv6.
    v6: Option<Socket>,
}

impl Sockets {
    /// A failure loses a fragment, as a full queue would.
    fn send(&self, packet: &[u8]) {
        let Some(to) = destination(packet) else {
            return;
        };
        let socket = match to {
            IpAddr::V4(_) => Some(&self.v4),
            IpAddr::V6(_) => self.v6.as_ref(),
        };
        let Some(socket) = socket else {
            return;
        };
        if let Err(error) = socket.send_to(packet, &SocketAddr::new(to, 0).into()) {
            debug!(%to, %error, "a held fragment was not sent");
        }
    }
}

/// Of an IP packet.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    if packet.first()? >> 4 == 4 {
        let octets: [u8; 4] = *packet.get(16..)?.first_chunk()?;
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets: [u8; 16] = *packet.get(24..)?.first_chunk()?;
    Some(Ipv6Addr::from(octets).into())
}

/// Whom a fragment counts for.
fn sender_of(key: &Key) -> IpAddr {
    match key {
        Key::V4(key) => Ipv4Addr::from(key.src).into(),
        Key::V6(key) => {
            let network = u128::from_be_bytes(key.src) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
    }
}

/// What waits, by datagram.
#[derive(Debug, Default)]
struct Waiting {
    datagrams: BTreeMap<Key, Datagram>,
    fragments: usize,
    octets: usize,
    of_sender: BTreeMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Datagram {
    fragments: Vec<Taken>,
    until: Instant,
    next: Instant,
    interval: Duration,
}

impl Waiting {
    /// Holds a fragment, if there is room.
    fn add(&mut self, taken: Taken, now: Instant) {
        let octets = taken.packet.len();
        let sender = sender_of(&taken.key);
        let of_sender = self.of_sender.get(&sender).copied().unwrap_or(0);
        if self.fragments >= MOST
            || self.octets + octets > MOST_OCTETS
            || of_sender >= MOST_OF_SENDER
        {
            debug!(%sender, "no room to hold another fragment");
            return;
        }
        self.fragments += 1;
        self.octets += octets;
        self.of_sender.insert(sender, of_sender + 1);
        let datagram = self.datagrams.entry(taken.key).or_insert(Datagram {
            fragments: Vec::new(),
            until: now + PATIENCE,
            next: now,
            interval: FIRST_INTERVAL,
        });
        // The first one may have come just before this.
        datagram.next = now;
        datagram.fragments.push(taken);
    }

    /// When to look again.
    fn poll_timeout(&self) -> Option<Instant> {
        self.datagrams.values().map(|waits| waits.next).min()
    }

    /// Looks for the first fragments of what is due; returns what can be sent, translated.
    fn look(&mut self, now: Instant, first_of: impl Fn(&Key) -> Option<First>) -> Vec<Vec<u8>> {
        let mut over = Vec::new();
        let mut ready = Vec::new();
        for (key, datagram) in &mut self.datagrams {
            if datagram.next > now {
                continue;
            }
            match first_of(key) {
                Some(first) if !is_as_it_came(&first) => {
                    let fragments = datagram.fragments.iter();
                    ready.extend(fragments.filter_map(|taken| sendable(taken, &first)));
                    over.push(*key);
                }
                _ if now >= datagram.until => over.push(*key),
                _ => {
                    datagram.next = (now + datagram.interval).min(datagram.until);
                    datagram.interval *= 2;
                }
            }
        }
        for key in over {
            self.forget(&key);
        }
        ready
    }

    fn forget(&mut self, key: &Key) {
        let Some(datagram) = self.datagrams.remove(key) else {
            return;
        };
        let count = datagram.fragments.len();
        let octets: usize = datagram
            .fragments
            .iter()
            .map(|taken| taken.packet.len())
            .sum();
        self.fragments = self.fragments.saturating_sub(count);
        self.octets = self.octets.saturating_sub(octets);
        let sender = sender_of(key);
        if let Some(left) = self.of_sender.get_mut(&sender) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.of_sender.remove(&sender);
            }
        }
    }
}

/// Whether the stack has the datagram, and puts it together from what it got.
fn is_as_it_came(first: &First) -> bool {
    match first {
        First::V4(first) => first.flags & FragmentFlags::AS_IS != 0,
        First::V6(_) => false,
    }
}

/// The packet as it goes on.
fn sendable(taken: &Taken, first: &First) -> Option<Vec<u8>> {
    let forwarded = taken.flags & HeldFlags::FORWARDED != 0;
    let mut packet = taken.packet.clone();
    let done = match first {
        First::V4(first) => fragment::translate(&mut packet, first, forwarded),
        First::V6(first) => {
            fragment::forward6(&mut packet, (taken.offset6, first.headers), forwarded)
        }
    };
    match done {
        Ok(()) => Some(packet),
        Err(reason) => {
            debug!(?reason, "a held fragment cannot be sent");
            None
        }
    }
}

/// Runs [`serve`]; without it the NAT works, and reordered fragments are lost.
pub(super) async fn run(tables: Result<FragmentTables>) {
    let outcome = match tables {
        Ok(tables) => serve(tables).await,
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        warn!("fragments that come before their first one are lost: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use iwf_common::flow6::{FragmentKey6, FragmentValue6};
    use iwf_common::fragment::{FragmentKey, FragmentValue};

    use super::*;

    fn key(sender: u8, id: u16) -> Key {
        Key::V4(FragmentKey {
            src: [192, 168, 1, sender],
            dst: [11, 22, 33, 4],
            id: id.to_be_bytes(),
            proto: 17,
            pad: 0,
        })
    }

    fn key6(host: u8, id: u32) -> Key {
        let mut src = [0x2a; 16];
        src[15] = host;
        Key::V6(FragmentKey6 {
            src,
            dst: [0x2b; 16],
            id: id.to_be_bytes(),
            pad: 0,
        })
    }

    /// Offset 1448 in IPv6, 1480 in IPv4.
    fn later(key: Key) -> Taken {
        let key = match key {
            Key::V4(key) => key,
            Key::V6(key) => {
                let mut packet = vec![0x60, 0, 0, 0, 0, 16, 44, 64];
                packet.extend(key.src);
                packet.extend(key.dst);
                packet.extend([17, 0, 5, 0xa8]);
                packet.extend(key.id);
                packet.extend([0; 8]);
                return Taken {
                    key: Key::V6(key),
                    flags: HeldFlags::IPV6,
                    offset6: 1448,
                    tick: 0,
                    packet,
                };
            }
        };
        let mut packet = vec![0x45, 0, 0, 28, key.id[0], key.id[1], 0, 185, 64, 17, 0, 0];
        packet.extend(key.src);
        packet.extend(key.dst);
        packet.extend([0; 8]);
        Taken {
            key: Key::V4(key),
            flags: 0,
            offset6: 0,
            tick: 0,
            packet,
        }
    }

    fn first() -> FragmentValue {
        FragmentValue {
            src: [100, 64, 0, 2],
            dst: [11, 22, 33, 4],
            id: [7, 7],
            ..FragmentValue::default()
        }
    }

    #[test]
    fn ipv6_waits_as_well_and_keeps_its_octets() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        waiting.add(later(key6(10, 1)), start);
        waiting.add(later(key6(10, 2)), start);
        waiting.add(later(key(10, 1)), start);
        let first6 = |headers| {
            First::V6(FragmentValue6 {
                headers,
                ..FragmentValue6::default()
            })
        };
        let sent = waiting.look(start, |asked| (*asked == key6(10, 1)).then(|| first6(8)));
        let mut expected = later(key6(10, 1)).packet;
        expected[7] = 63;
        assert_eq!(sent, [expected]);
        assert_eq!(
            destination(&sent[0]),
            Some(Ipv6Addr::from([0x2b; 16]).into())
        );
        // One that reaches into the headers is not sent.
        let next = waiting.poll_timeout().unwrap();
        let sent = waiting.look(next, |asked| (*asked == key6(10, 2)).then(|| first6(1449)));
        assert!(sent.is_empty());
        assert_eq!(waiting.fragments, 1);
    }

    #[test]
    fn made_up_addresses_are_one_sender() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        for host in 0..=255 {
            waiting.add(later(key6(host, 1)), start);
        }
        assert_eq!(waiting.fragments, MOST_OF_SENDER);
        waiting.add(later(key(10, 1)), start);
        assert_eq!(waiting.fragments, MOST_OF_SENDER + 1);
    }

    #[test]
    fn what_waits_is_sent_when_the_first_one_has_come() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        waiting.add(later(key(10, 1)), start);
        waiting.add(later(key(10, 1)), start);
        waiting.add(later(key(11, 1)), start);
        assert_eq!(waiting.poll_timeout(), Some(start));
        assert!(waiting.look(start, |_| None).is_empty());
        let next = waiting.poll_timeout().unwrap();
        assert_eq!(next, start + FIRST_INTERVAL);
        let sent = waiting.look(next, |asked| {
            (*asked == key(10, 1)).then(|| First::V4(first()))
        });
        assert_eq!(sent.len(), 2);
        assert_eq!(sent[0][12..16], [100, 64, 0, 2]);
        assert_eq!((sent[0][4], sent[0][5], sent[0][8]), (7, 7, 63));
        assert_eq!(waiting.fragments, 1);
        assert_eq!(waiting.of_sender.len(), 1);
    }

    #[test]
    fn nothing_waits_for_ever_and_looks_are_few() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        waiting.add(later(key(10, 1)), start);
        let mut looks = 0;
        while let Some(due) = waiting.poll_timeout() {
            assert!(due <= start + PATIENCE);
            assert!(waiting.look(due, |_| None).is_empty());
            looks += 1;
        }
        assert_eq!(looks, 11);
        assert_eq!((waiting.fragments, waiting.octets), (0, 0));
        assert!(waiting.of_sender.is_empty());
    }

    #[test]
    fn a_datagram_for_the_stack_is_not_sent_again() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        waiting.add(later(key(10, 1)), start);
        let as_is = FragmentValue {
            flags: FragmentFlags::AS_IS,
            ..first()
        };
        assert!(
            waiting
                .look(start + PATIENCE, |_| Some(First::V4(as_is)))
                .is_empty()
        );
        assert_eq!(waiting.fragments, 0);
    }

    #[test]
    fn a_flood_of_one_sender_leaves_room_for_others() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        for id in 0..1000 {
            waiting.add(later(key(66, id)), start);
        }
        assert_eq!(waiting.fragments, MOST_OF_SENDER);
        waiting.add(later(key(10, 1)), start);
        assert_eq!(waiting.fragments, MOST_OF_SENDER + 1);
        for sender in 100..200 {
            for id in 0..MOST_OF_SENDER as u16 {
                waiting.add(later(key(sender, id)), start);
            }
        }
        assert_eq!(waiting.fragments, MOST);
    }
}
