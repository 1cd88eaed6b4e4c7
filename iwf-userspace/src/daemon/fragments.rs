//! Fragments that came before the first one of their datagram: held for a moment, and sent on when it has come.
//!
//! The packet programs give copies of them (RFC 4787 REQ-14) and note what becomes of a datagram when its first
//! fragment comes. Here is looked for that note, at once and then at growing intervals: most first fragments are
//! microseconds late, and nothing in the kernel has to remember who waits. What is held is sent through the stack,
//! which knows the way to either side over any link.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_common::fragment::{self, FragmentFlags, FragmentKey, FragmentValue, HeldFlags};
use socket2::Socket;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::dataplane::fragments::{self as tables, FragmentTables, Taken};

/// Fragments that wait. More are lost.
const MOST: usize = 512;
/// Octets of them.
const MOST_OCTETS: usize = 512 * 1024;
/// Fragments of one sender that wait, a host of the LAN or of the world: all of one datagram of the largest size.
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
    let socket = tables::sender().context("open a raw socket")?;
    let mut tables = opened.watch().context("wait for the ring")?;
    let mut waiting = Waiting::default();
    loop {
        let due = waiting.poll_timeout();
        tokio::select! {
            ready = tables.readable_mut() => {
                let mut guard = ready.context("wait for the ring")?;
                let now = Instant::now();
                while let Some(taken) = guard.get_inner_mut().take() {
                    waiting.add(taken, now);
                }
                guard.clear_ready();
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        let tables = tables.get_ref();
        for taken in waiting.look(Instant::now(), |key| tables.first_of(key)) {
            send(&socket, &taken);
        }
    }
}

/// A failure loses a fragment, as a full queue would.
fn send(socket: &Socket, packet: &[u8]) {
    let Some(&[a, b, c, d]) = packet.get(16..20).and_then(<[u8]>::first_chunk) else {
        return;
    };
    let to = SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), 0);
    if let Err(error) = socket.send_to(packet, &to.into()) {
        debug!(%to, %error, "a held fragment was not sent");
    }
}

/// What waits, by datagram.
#[derive(Debug, Default)]
struct Waiting {
    datagrams: BTreeMap<FragmentKey, Datagram>,
    fragments: usize,
    octets: usize,
    of_sender: BTreeMap<[u8; 4], usize>,
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
        let of_sender = self.of_sender.get(&taken.key.src).copied().unwrap_or(0);
        if self.fragments >= MOST
            || self.octets + octets > MOST_OCTETS
            || of_sender >= MOST_OF_SENDER
        {
            debug!(
                sender = %Ipv4Addr::from(taken.key.src),
                "no room to hold another fragment"
            );
            return;
        }
        self.fragments += 1;
        self.octets += octets;
        self.of_sender.insert(taken.key.src, of_sender + 1);
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
    fn look(
        &mut self,
        now: Instant,
        first_of: impl Fn(&FragmentKey) -> Option<FragmentValue>,
    ) -> Vec<Vec<u8>> {
        let mut over = Vec::new();
        let mut ready = Vec::new();
        for (key, datagram) in &mut self.datagrams {
            if datagram.next > now {
                continue;
            }
            match first_of(key) {
                Some(first) if first.flags & FragmentFlags::AS_IS == 0 => {
                    ready.extend(
                        datagram
                            .fragments
                            .iter()
                            .filter_map(|taken| translated(taken, &first)),
                    );
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

    fn forget(&mut self, key: &FragmentKey) {
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
        if let Some(left) = self.of_sender.get_mut(&key.src) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.of_sender.remove(&key.src);
            }
        }
    }
}

fn translated(taken: &Taken, first: &FragmentValue) -> Option<Vec<u8>> {
    let forwarded = taken.flags & HeldFlags::FORWARDED != 0;
    let mut packet = taken.packet.clone();
    match fragment::translate(&mut packet, first, forwarded) {
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
    use super::*;

    fn key(sender: u8, id: u16) -> FragmentKey {
        FragmentKey {
            src: [192, 168, 1, sender],
            dst: [11, 22, 33, 4],
            id: id.to_be_bytes(),
            proto: 17,
            pad: 0,
        }
    }

    fn later(key: FragmentKey) -> Taken {
        let mut packet = vec![0x45, 0, 0, 28, key.id[0], key.id[1], 0, 185, 64, 17, 0, 0];
        packet.extend(key.src);
        packet.extend(key.dst);
        packet.extend([0; 8]);
        Taken {
            key,
            flags: 0,
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
        let sent = waiting.look(next, |asked| (*asked == key(10, 1)).then(first));
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
        assert!(waiting.look(start + PATIENCE, |_| Some(as_is)).is_empty());
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
