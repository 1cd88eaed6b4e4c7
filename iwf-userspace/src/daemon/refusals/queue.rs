//! Who is told about a refused packet, when, and how often.
//!
//! Read before editing: RFC 5382 REQ-4, RFC 5508 REQ-8, RFC 6092 REC-34, RFC 1812 section 4.3.2.8.
//!
//! A LAN host is told at once. A remote host that has sent a SYN is told after six seconds, if the LAN host has not
//! opened the same connection from its side meanwhile. Everything is bounded: what exceeds a bound is not answered.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use iwf_common::refusal::Side;
use tokio::time::Instant;

use crate::wire::refused::{Connection, Refused};

/// RFC 5382 REQ-4, RFC 6092 REC-34: not before.
const WAIT: Duration = Duration::from_secs(6);
/// SYNs that wait. More: the newest is forgotten.
const MOST: usize = 1024;
/// The same of one remote host.
const MOST_OF_SENDER: usize = 32;
/// How long an answer is remembered, and with it that the same SYN needs no other one: for as long as hosts send it
/// again.
const REMEMBERED: Duration = Duration::from_secs(130);
/// Answers that are remembered; then the oldest is forgotten.
const MOST_REMEMBERED: usize = 1024;

/// Answers that one host may be sent at once, and the time in which another one becomes due.
const HOST: Rate = Rate {
    burst: 10,
    every: Duration::from_millis(200),
};
/// The same for all hosts of one side.
const ALL: Rate = Rate {
    burst: 100,
    every: Duration::from_millis(10),
};
/// Hosts of one side that have been answered lately. More: the new one is not answered.
const MOST_HOSTS: usize = 1024;

/// The machine.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// In the order in which they come due.
    waiting: VecDeque<Waiting>,
    of_sender: BTreeMap<IpAddr, usize>,
    told: VecDeque<(Instant, Connection)>,
    /// The sequence numbers of the SYNs that were answered.
    remembered: BTreeMap<Connection, u32>,
    lan: Limiter,
    wan: Limiter,
    effects: VecDeque<Effect>,
}

#[derive(Debug)]
struct Waiting {
    due: Instant,
    connection: Connection,
    sequence: u32,
    refused: Refused,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Tell the sender.
    Tell(Refused),
    /// Count a packet whose sender is not told, because too many are.
    Count,
}

impl Answers {
    /// A packet was refused.
    pub(super) fn handle_input(&mut self, refused: Refused, now: Instant) {
        match refused.side {
            Side::Lan | Side::Forwarded => {
                let effect = if self.lan.allows(refused.from, now) {
                    Effect::Tell(refused)
                } else {
                    Effect::Count
                };
                self.effects.push_back(effect);
            }
            Side::Wan => self.wait(refused, now),
        }
    }

    /// Does what is due. `is_open`: whether the LAN host has opened the connection from its side.
    pub(super) fn handle_timeout(&mut self, now: Instant, is_open: impl Fn(&Connection) -> bool) {
        while let Some(waiting) = self.waiting.pop_front_if(|first| first.due <= now) {
            self.leave(waiting.connection.from.0);
            if is_open(&waiting.connection) {
                continue;
            }
            if !self.wan.allows(waiting.refused.from, now) {
                self.effects.push_back(Effect::Count);
                continue;
            }
            self.remember(waiting.connection, waiting.sequence, now);
            self.effects.push_back(Effect::Tell(waiting.refused));
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.front().map(|first| first.due)
    }

    /// What is to be done next.
    pub(super) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn wait(&mut self, refused: Refused, now: Instant) {
        let Some((connection, sequence)) = refused.syn else {
            return;
        };
        self.forget(now);
        if self.remembered.get(&connection) == Some(&sequence) {
            return;
        }
        let known = self.waiting.iter().position(|w| w.connection == connection);
        if let Some(at) = known {
            if self.waiting.get(at).is_some_and(|w| w.sequence == sequence) {
                return;
            }
            // The sender has begun anew: nobody waits for an answer to the old one.
            self.waiting.remove(at);
            self.leave(connection.from.0);
        }
        let of_sender = self.of_sender.entry(connection.from.0).or_default();
        if self.waiting.len() >= MOST || *of_sender >= MOST_OF_SENDER {
            if *of_sender == 0 {
                self.of_sender.remove(&connection.from.0);
            }
            self.effects.push_back(Effect::Count);
            return;
        }
        *of_sender += 1;
        self.waiting.push_back(Waiting {
            due: now + WAIT,
            connection,
            sequence,
            refused,
        });
    }

    fn leave(&mut self, sender: IpAddr) {
        if let Some(left) = self.of_sender.get_mut(&sender) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.of_sender.remove(&sender);
            }
        }
    }

    fn remember(&mut self, connection: Connection, sequence: u32, now: Instant) {
        self.forget(now);
        if self.told.len() >= MOST_REMEMBERED
            && let Some((_, oldest)) = self.told.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        if self.remembered.insert(connection, sequence).is_some() {
            self.told.retain(|(_, told)| *told != connection);
        }
        self.told.push_back((now, connection));
    }

    fn forget(&mut self, now: Instant) {
        let old = |told: &mut (Instant, Connection)| now >= told.0 + REMEMBERED;
        while let Some((_, connection)) = self.told.pop_front_if(old) {
            self.remembered.remove(&connection);
        }
    }
}

/// A burst, and what comes after it.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    every: Duration,
}

impl Rate {
    /// Whether one more is within the rate. `full_at` is when the whole burst is there again.
    fn allows(self, full_at: &mut Option<Instant>, now: Instant) -> bool {
        let since = full_at.map_or(now, |at| at.max(now));
        let then = since + self.every;
        if then > now + self.every * self.burst {
            return false;
        }
        *full_at = Some(then);
        true
    }
}

/// How much one side may be told.
#[derive(Debug, Default)]
struct Limiter {
    all: Option<Instant>,
    hosts: BTreeMap<IpAddr, Option<Instant>>,
}

impl Limiter {
    fn allows(&mut self, host: IpAddr, now: Instant) -> bool {
        if self.hosts.len() >= MOST_HOSTS && !self.hosts.contains_key(&host) {
            self.hosts
                .retain(|_, full_at| full_at.is_some_and(|at| at > now));
            if self.hosts.len() >= MOST_HOSTS {
                return false;
            }
        }
        let full_at = self.hosts.entry(host).or_default();
        HOST.allows(full_at, now) && ALL.allows(&mut self.all, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::refused::tests::{REMOTE, segment};

    const SYN: u8 = 2;
    const SECOND: Duration = Duration::from_secs(1);

    fn from(src: [u8; 4], port: u16, sequence: u32) -> Refused {
        Refused::read(Side::Wan, segment(src, port, sequence, SYN)).unwrap()
    }

    fn syn(port: u16, sequence: u32) -> Refused {
        from(REMOTE, port, sequence)
    }

    fn of_lan(host: u8) -> Refused {
        Refused::read(Side::Lan, segment([192, 168, 1, host], 80, 1, SYN)).unwrap()
    }

    /// How many are told and how many counted.
    fn done(answers: &mut Answers) -> (usize, usize) {
        let effects: Vec<_> = std::iter::from_fn(|| answers.poll_effect()).collect();
        let counted = effects.iter().filter(|e| **e == Effect::Count).count();
        (effects.len() - counted, counted)
    }

    fn nobody(_: &Connection) -> bool {
        false
    }

    #[test]
    fn a_syn_is_answered_after_six_seconds_and_once() {
        let (mut answers, start) = (Answers::default(), Instant::now());
        answers.handle_input(syn(80, 7), start);
        assert_eq!(answers.poll_timeout(), Some(start + WAIT));
        // Sent again, as hosts do: the first one counts.
        for later in [1, 3] {
            answers.handle_input(syn(80, 7), start + SECOND * later);
        }
        answers.handle_timeout(start + WAIT - Duration::from_millis(1), nobody);
        assert_eq!(answers.poll_effect(), None);
        answers.handle_timeout(start + WAIT, nobody);
        assert_eq!(answers.poll_effect(), Some(Effect::Tell(syn(80, 7))));
        answers.handle_timeout(start + WAIT, nobody);
        assert_eq!(answers.poll_effect(), None);
        assert_eq!(answers.poll_timeout(), None);
        for later in [7, 15, 31, 63, 127] {
            answers.handle_input(syn(80, 7), start + SECOND * later);
            assert_eq!(answers.poll_timeout(), None);
        }
        // Another attempt from the same port, and the same one when it is long forgotten.
        answers.handle_input(syn(80, 8), start + SECOND * 130);
        answers.handle_input(syn(81, 8), start + SECOND * 130);
        answers.handle_timeout(start + SECOND * 136, nobody);
        assert_eq!(done(&mut answers), (2, 0));
        let late = start + SECOND * 136 + REMEMBERED;
        answers.handle_input(syn(80, 8), late);
        assert_eq!(answers.poll_timeout(), Some(late + WAIT));
        assert!(answers.told.is_empty() && answers.remembered.is_empty());
    }

    #[test]
    fn a_connection_that_the_host_has_opened_is_not_spoken_of() {
        let (mut answers, start) = (Answers::default(), Instant::now());
        answers.handle_input(syn(80, 7), start);
        answers.handle_input(syn(81, 7), start);
        answers.handle_timeout(start + WAIT, |connection| connection.from.1 == 80);
        assert_eq!(answers.poll_effect(), Some(Effect::Tell(syn(81, 7))));
        assert_eq!(answers.poll_effect(), None);
        assert!(answers.of_sender.is_empty());
    }

    #[test]
    fn a_new_attempt_waits_anew() {
        let (mut answers, start) = (Answers::default(), Instant::now());
        answers.handle_input(syn(80, 7), start);
        answers.handle_input(syn(80, 8), start + SECOND);
        assert_eq!(answers.poll_timeout(), Some(start + SECOND + WAIT));
        answers.handle_timeout(start + SECOND + WAIT, nobody);
        assert_eq!(answers.poll_effect(), Some(Effect::Tell(syn(80, 8))));
        assert_eq!(answers.poll_effect(), None);
        assert!(answers.of_sender.is_empty());
    }

    #[test]
    fn only_a_syn_waits() {
        let (mut answers, start) = (Answers::default(), Instant::now());
        let other = Refused::read(Side::Wan, segment(REMOTE, 80, 7, 16)).unwrap();
        answers.handle_input(other, start);
        assert_eq!(answers.poll_timeout(), None);
        assert_eq!(answers.poll_effect(), None);
    }

    #[test]
    fn what_is_too_much_is_counted_and_forgotten() {
        let (mut answers, start) = (Answers::default(), Instant::now());
        for port in 0..40 {
            answers.handle_input(syn(port, 7), start);
        }
        assert_eq!(done(&mut answers), (0, 40 - MOST_OF_SENDER));
        for host in 0..40 {
            for port in 0..30 {
                answers.handle_input(from([11, 1, 0, host], port, 7), start);
            }
        }
        assert_eq!(answers.waiting.len(), MOST);
        let too_many = MOST_OF_SENDER + 40 * 30 - MOST;
        assert_eq!(done(&mut answers), (0, too_many));
        // What was first is there.
        assert_eq!(answers.waiting[0].refused, syn(0, 7));
        // All at once is more than may be said.
        answers.handle_timeout(start + WAIT, nobody);
        let (told, counted) = done(&mut answers);
        assert_eq!((told, told + counted), (100, MOST));
        assert!(answers.of_sender.is_empty() && answers.waiting.is_empty());
    }

    #[test]
    fn answers_are_remembered_within_bounds() {
        let (mut answers, mut now) = (Answers::default(), Instant::now());
        for round in 0..2000u32 {
            let host = [11, 1, (round >> 8) as u8, round as u8];
            answers.handle_input(from(host, 80, 7), now);
            now += Duration::from_millis(50);
            answers.handle_timeout(now, nobody);
        }
        assert_eq!(answers.told.len(), MOST_REMEMBERED);
        assert_eq!(answers.remembered.len(), MOST_REMEMBERED);
        assert_eq!(done(&mut answers).1, 0);
    }

    #[test]
    fn a_lan_host_is_told_at_once_and_not_too_often() {
        let (mut answers, start) = (Answers::default(), Instant::now());
        for _ in 0..50 {
            answers.handle_input(of_lan(10), start);
        }
        assert_eq!(answers.poll_timeout(), None);
        assert_eq!(done(&mut answers), (10, 40));
        // Another host is told all the same.
        answers.handle_input(of_lan(11), start);
        assert_eq!(done(&mut answers), (1, 0));
        for _ in 0..5 {
            answers.handle_input(of_lan(10), start + SECOND);
        }
        assert_eq!(done(&mut answers), (5, 0));
        answers.handle_input(of_lan(10), start + SECOND);
        assert_eq!(done(&mut answers), (0, 1));
    }

    #[test]
    fn no_more_hosts_are_kept_in_mind_than_may_be() {
        let (mut limiter, mut now) = (Limiter::default(), Instant::now());
        let host = |n: u32| IpAddr::from((0x0b00_0000 + n).to_be_bytes());
        for n in 0..5000 {
            limiter.allows(host(n), now);
            assert!(limiter.hosts.len() <= MOST_HOSTS);
        }
        now += SECOND;
        assert!(limiter.allows(host(9999), now));
        assert_eq!(limiter.hosts.len(), 1);
    }
}
