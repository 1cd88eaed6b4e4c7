//! Whom a mapping lets in that has no session (RFC 4787 REQ-8, RFC 6887 section 13.3).

use super::nat::{
    Address, Bound, Endpoint, Filtering, Key, Mapping, Name, Nat, Remote, Remotes, Time, UDP, Way,
};

impl Nat {
    /// Whether `from` comes in by the mapping of `external` without a session.
    pub(crate) fn lets_in(&self, external: Bound, from: Endpoint) -> Result<(), Name> {
        let Some(mapping) = self.by_external.get(&external) else {
            return Err("drop_unsolicited");
        };
        if mapping.expired(self.now) {
            return Err("drop_mapping_expired");
        }
        match self.filtering_of(mapping) {
            Filtering::AddressDependent
                if !self.has_sent_to(external, mapping.internal, from.addr) =>
            {
                return Err("drop_unsolicited");
            }
            Filtering::AddressAndPortDependent => return Err("drop_unsolicited"),
            Filtering::AddressDependent | Filtering::EndpointIndependent => {}
        }
        match mapping.explicit {
            Some(terms) if terms.remotes.admit(from) => Ok(()),
            Some(_) => Err("drop_filtered"),
            // It is over when it is idle, whether it was swept or not. A connection's own sessions know better.
            None if external.0 == UDP && self.now - mapping.last_used > self.rules.idle_udp => {
                Err("drop_unsolicited")
            }
            None => Ok(()),
        }
    }

    /// Whether a session that a remote host began may go on. Of one by a mapping that was asked for, its filter may have
    /// become narrower since.
    pub(crate) fn still_lets_in(&self, external: Bound, from: Endpoint) -> bool {
        let mapping = &self.by_external[&external];
        match mapping.explicit.map(|terms| terms.remotes) {
            None => true,
            Some(Remotes::SentTo(Filtering::AddressDependent)) => {
                // Noted at all: a live session keeps it, and the sweep removes it.
                let peer = self.peers.get(&(external, from.addr));
                peer.is_some_and(|(host, _)| *host == mapping.internal)
            }
            Some(Remotes::SentTo(Filtering::AddressAndPortDependent)) => false,
            Some(remotes) => remotes.admit(from),
        }
    }

    /// What the mapping goes by: its own filter, or the configuration's if a packet has made it.
    fn filtering_of(&self, mapping: &Mapping) -> Filtering {
        match mapping.explicit.map(|terms| terms.remotes) {
            // What the router listens at is none of its flows.
            None if mapping.own => Filtering::AddressAndPortDependent,
            None => self.rules.filtering,
            Some(Remotes::SentTo(filtering)) => filtering,
            Some(_) => Filtering::EndpointIndependent,
        }
    }

    /// Whether the host has lately sent to that address, whatever the port.
    fn has_sent_to(&self, external: Bound, internal: Endpoint, to: Address) -> bool {
        let peer = self.peers.get(&(external, to));
        peer.is_some_and(|(host, last)| *host == internal && self.now - last <= self.rules.idle_udp)
    }

    /// A LAN host has sent by a session.
    pub(crate) fn note_peer(&mut self, key: &Key, when: Time) {
        let (internal, external) = self.bound(key, self.half(key));
        let Some(mapping) = self.by_external.get(&external) else {
            return;
        };
        let by_address = self.filtering_of(mapping) == Filtering::AddressDependent;
        if by_address && mapping.internal == internal.1 {
            let peer = self.peers.entry((external, key.dst.addr));
            let (host, last) = peer.or_insert((internal.1, when));
            *last = if *host == internal.1 {
                when.max(*last)
            } else {
                when
            };
            *host = internal.1;
        }
    }

    /// Whether the target of a turned packet has sent to its sender: `back` is what that looked like, `target` where
    /// it was sent from.
    pub(crate) fn has_sent(&self, back: &Key, target: Endpoint) -> bool {
        let sent = self.halves.get(back);
        sent.is_some_and(|sent| sent.way == Way::Turned && sent.becomes.0 == target)
    }
}

impl Remotes {
    fn admit(self, remote: Endpoint) -> bool {
        match self {
            Self::Everybody | Self::SentTo(_) => true,
            Self::Host(only) => only == remote.addr,
            Self::Listed(list) => list.iter().any(|one| one.admits(remote)),
        }
    }
}

impl Remote {
    fn admits(&self, remote: Endpoint) -> bool {
        let bits = |addr: Address| u32::from_be_bytes(addr);
        let others = 32 - u32::from(self.len);
        let differ = u64::from(bits(self.addr) ^ bits(remote.addr)) >> others;
        differ == 0 && self.port.is_none_or(|port| port == remote.port)
    }
}
