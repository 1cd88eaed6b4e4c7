//! Sessions: one entry for each direction, and the mappings they stand on.

use super::nat::{Bound, Endpoint, Half, Key, Name, Nat, Packet, TCP, Time, Way};
use super::tcp::{self, Shown};

impl Nat {
    pub(crate) fn live(&self, key: &Key, ways: &[Way]) -> Option<&Half> {
        let half = self.halves.get(key)?;
        (!half.ended && ways.contains(&half.way)).then_some(half)
    }

    pub(crate) fn half(&self, key: &Key) -> &Half {
        &self.halves[key]
    }

    pub(crate) fn half_mut(&mut self, key: &Key) -> &mut Half {
        self.halves.get_mut(key).expect("there is one")
    }

    /// The internal and the external endpoint of the mapping that one direction goes by.
    pub(crate) fn bound(&self, key: &Key, half: &Half) -> (Bound, Bound) {
        let (internal, external) = match half.way {
            Way::In => (half.becomes.1, key.dst),
            Way::Out | Way::Turned => (key.src, half.becomes.0),
        };
        ((key.proto, internal), (key.proto, external))
    }

    /// No session outlives a mapping it goes by.
    pub(crate) fn stands(&self, key: &Key) -> Result<(), Name> {
        // It may be gone because its address is.
        if self.mappings_stand(key, self.half(key)) || self.is_at_home(key).is_err() {
            Ok(())
        } else {
            Err("drop_mapping_expired")
        }
    }

    pub(crate) fn mappings_stand(&self, key: &Key, half: &Half) -> bool {
        let (internal, external) = self.bound(key, half);
        let mapping = |external: Bound, internal: Endpoint| {
            let mapping = self.by_external.get(&external);
            mapping.filter(|mapping| mapping.internal == internal && !mapping.expired(self.now))
        };
        // What began by a mapping that was asked for does not go on by one that a packet has made.
        let own = mapping(external, internal.1);
        let stands = own.is_some_and(|own| !half.explicit || own.explicit.is_some());
        let turned = half.way == Way::Turned;
        stands && (!turned || mapping((key.proto, key.dst), half.becomes.1).is_some())
    }

    /// Adds one direction. One of the same translation that has ended lives again and goes on counting.
    pub(crate) fn put(&mut self, key: Key, mut half: Half) -> Result<(), Name> {
        if let Some(old) = self.halves.get(&key) {
            let same = old.becomes == half.becomes;
            if !old.ended && !same && self.mappings_stand(&key, old) {
                return Err("drop_session_collision");
            }
            if same {
                (half.packets, half.octets) = (old.packets, old.octets);
            }
        }
        self.halves.insert(key, half);
        Ok(())
    }

    /// A packet of a session goes by: its addresses and ports from now on.
    pub(crate) fn touch(&mut self, packet: &Packet) -> (Endpoint, Endpoint) {
        let (key, now) = (packet.key, self.now);
        let reverse = self.half(&key).reverse(&key);
        if key.proto == TCP {
            let mut own = self.half(&key).shown;
            // A session with one end only: a host that talks to itself.
            let mut other = match self.halves.get(&reverse) {
                Some(other) if reverse != key => other.shown,
                _ => Shown::default(),
            };
            tcp::observe(&mut own, &mut other, packet.tcp_flags);
            if let Some(half) = self.halves.get_mut(&reverse) {
                half.shown = other;
            }
            self.half_mut(&key).shown = own;
        }
        let half = self.half_mut(&key);
        half.last = now;
        half.packets += 1;
        half.octets += u64::from(packet.len);
        half.becomes
    }
}

impl Half {
    pub(crate) fn new(now: Time, explicit: bool, invited: bool) -> Self {
        let nowhere = Endpoint {
            addr: [0; 4],
            port: 0,
        };
        Self {
            way: Way::Out,
            becomes: (nowhere, nowhere),
            own: false,
            invited,
            explicit,
            ended: false,
            last: now,
            shown: Shown::default(),
            packets: 0,
            octets: 0,
            resolved: false,
        }
    }

    pub(crate) fn going(&self, way: Way, becomes: (Endpoint, Endpoint)) -> Self {
        Self {
            way,
            becomes,
            ..self.clone()
        }
    }

    pub(crate) fn begun_by(mut self, packet: &Packet) -> Self {
        if packet.key.proto == TCP {
            tcp::observe(&mut self.shown, &mut Shown::default(), packet.tcp_flags);
        }
        self
    }

    /// What a packet of the other direction looks like.
    pub(crate) fn reverse(&self, key: &Key) -> Key {
        Key {
            proto: key.proto,
            src: self.becomes.1,
            dst: self.becomes.0,
        }
    }
}
