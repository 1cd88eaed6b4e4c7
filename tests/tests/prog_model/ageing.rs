//! What is over, and what that leaves.

use std::collections::BTreeSet;

use super::nat::{Bound, Endpoint, Half, Key, Mapping, Nat, TCP, Time, UDP, Way};
use super::tcp::{self, Shown};

impl Nat {
    /// Ends and removes everything that is over.
    pub(crate) fn sweep(&mut self) {
        loop {
            let all = |nat: &Self| {
                (
                    nat.halves.clone(),
                    nat.by_external.clone(),
                    nat.peers.clone(),
                )
            };
            let before = all(self);
            self.note_uses();
            self.end_sessions(|nat, key, half| {
                nat.is_at_home(key).is_err() || !nat.keeps(key, half) || nat.is_silent(key, half)
            });
            self.note_peers();
            self.remove_ended();
            self.remove_mappings();
            self.remove_peers();
            if before == all(self) {
                return;
            }
        }
    }

    /// Whether the mappings of a session are as it needs them.
    pub(crate) fn keeps(&self, key: &Key, half: &Half) -> bool {
        if !self.mappings_stand(key, half) {
            return false;
        }
        if !half.invited {
            // What the LAN host began is its own affair: a filter is for what comes in unasked.
            return true;
        }
        let remote = if half.way == Way::In {
            key.src
        } else {
            key.dst
        };
        let (_, external) = self.bound(key, half);
        self.still_lets_in(external, remote)
    }

    /// Whether nothing has come in either direction for longer than it may.
    fn is_silent(&self, key: &Key, half: &Half) -> bool {
        let other = self.halves.get(&half.reverse(key)).unwrap_or(half);
        let rules = &self.rules;
        let idle = match key.proto {
            UDP => rules.idle_udp,
            TCP if tcp::is_open(&half.shown, &other.shown) => rules.idle_tcp_open,
            TCP => rules.idle_tcp_transitory,
            _ => rules.idle_icmp,
        };
        self.now - half.last.max(other.last) > idle
    }

    pub(crate) fn end_sessions_of(&mut self, external: Bound) {
        self.end_sessions(|nat, key, half| nat.bound(key, half).1 == external);
    }

    /// Ends both directions of each session one of whose directions is `over`.
    pub(crate) fn end_sessions(&mut self, over: impl Fn(&Self, &Key, &Half) -> bool) {
        let live = self.halves.iter().filter(|(_, half)| !half.ended);
        let over: BTreeSet<Key> = live
            .filter(|(key, half)| over(self, key, half))
            .flat_map(|(key, half)| [Some(*key), self.other_of(key, half)])
            .flatten()
            .collect();
        for key in over {
            if let Some(half) = self.halves.get_mut(&key)
                && !half.ended
            {
                half.ended = true;
                half.last = self.now;
            }
        }
    }

    /// The other direction of the same session. What has its place may be another's.
    fn other_of(&self, key: &Key, half: &Half) -> Option<Key> {
        let reverse = half.reverse(key);
        let other = self.halves.get(&reverse)?;
        (other.reverse(&reverse) == *key).then_some(reverse)
    }

    /// Live sessions keep those that they lead to, as they keep their mapping.
    fn note_peers(&mut self) {
        let live = self.halves.iter();
        let live = live
            .filter(|(_, half)| !half.ended && half.way != Way::In)
            // A remote host may have begun it, and have had no answer.
            .filter(|(_, half)| half.packets > 0);
        let uses: Vec<(Key, Time)> = live
            .map(|(key, half)| {
                (
                    *key,
                    if key.proto == TCP {
                        self.now
                    } else {
                        half.last
                    },
                )
            })
            .collect();
        for (key, when) in uses {
            self.note_peer(&key, when);
        }
    }

    fn remove_peers(&mut self) {
        let (now, idle) = (self.now, self.rules.idle_udp);
        let mappings = &self.by_external;
        self.peers.retain(|(external, _), (internal, last)| {
            let mapping = mappings.get(external);
            mapping.is_some_and(|mapping| mapping.internal == *internal) && now - *last <= idle
        });
    }

    /// What a LAN host sends keeps its mapping (RFC 4787 REQ-6), and a connection does that it takes part in.
    fn note_uses(&mut self) {
        let live = self.halves.iter();
        let live = live.filter(|(_, half)| !half.ended && half.way != Way::In);
        let mut uses = Vec::new();
        for (key, half) in live {
            let (_, external) = self.bound(key, half);
            if key.proto != TCP {
                uses.push((external, half.last));
            } else if self.uses_mapping(key, half) {
                uses.push((external, self.now));
            }
        }
        for (external, used) in uses {
            if let Some(mapping) = self.by_external.get_mut(&external) {
                mapping.last_used = mapping.last_used.max(used);
            }
        }
    }

    /// Whether a connection uses its mapping, by the direction out (RFC 7857 sections 7 and 7.1).
    ///
    /// The sweep reads the directions one by one. If this one says nothing against it, the mapping of a connection that
    /// only the other direction shows to be over stays for one transitory time longer. Nothing forbids it.
    fn uses_mapping(&self, key: &Key, half: &Half) -> bool {
        let rules = &self.rules;
        let idle = if tcp::is_open(&half.shown, &Shown::CLOSING) {
            rules.idle_tcp_open
        } else {
            rules.idle_tcp_transitory
        };
        let seems_alive = self.mappings_stand(key, half) && self.now - half.last <= idle;
        let alive = self.keeps(key, half) && !self.is_silent(key, half);
        (seems_alive || alive) && half.shown.takes_part(half.invited)
    }

    /// What ended sessions counted goes to their mapping.
    fn remove_ended(&mut self) {
        // A turned packet that was not let in is remembered for a while, and so is a turned session.
        let rests =
            |half: &Half| half.way != Way::Turned || self.now - half.last > self.rules.knock;
        let ended = self.halves.iter();
        let ended = ended.filter(|(_, half)| half.ended && rests(half));
        let gone: Vec<(Key, Half)> = ended.map(|(key, half)| (*key, half.clone())).collect();
        for (key, half) in gone {
            self.halves.remove(&key);
            let (internal, external) = self.bound(&key, &half);
            if let Some(mapping) = self.by_external.get_mut(&external)
                && mapping.internal == internal.1
            {
                let (packets, octets) = &mut mapping.counted[usize::from(half.way == Way::In)];
                *packets += u64::from(half.packets);
                *octets += half.octets;
            }
        }
    }

    fn remove_mappings(&mut self) {
        let rules = &self.rules;
        let now = self.now;
        let over = |(proto, _): &Bound, mapping: &Mapping| match mapping.explicit {
            Some(_) => mapping.expired(now),
            None => {
                let idle = match *proto {
                    UDP => rules.idle_udp,
                    TCP => rules.idle_tcp_transitory,
                    _ => rules.idle_icmp,
                };
                now - mapping.last_used > idle
            }
        };
        let gone = self.by_external.iter();
        let gone = gone.filter(|(key, mapping)| over(key, mapping) || !self.is_ours(key.1.addr));
        let gone: Vec<(Bound, Endpoint)> = gone.map(|(key, m)| (*key, m.internal)).collect();
        for (external, internal) in gone {
            self.by_external.remove(&external);
            self.by_internal.remove(&(external.0, internal));
        }
    }
}
