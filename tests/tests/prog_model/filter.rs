//! Whom a mapping lets in that has no session (RFC 4787 REQ-8, RFC 6887 section 13.3).

use super::nat::{Address, Bound, Endpoint, Filtering, Key, Name, Nat, Terms, Time, UDP, Way};

impl Nat {
    /// Whether `from` comes in by the mapping of `external` without a session.
    pub(crate) fn lets_in(&self, external: Bound, from: Endpoint) -> Result<(), Name> {
        let Some(mapping) = self.by_external.get(&external) else {
            return Err("drop_unsolicited");
        };
        if mapping.expired(self.now) {
            return Err("drop_mapping_expired");
        }
        match mapping.explicit {
            Some(terms) if terms.admits(from.addr) => Ok(()),
            Some(_) => Err("drop_filtered"),
            None if !self.is_known(external, mapping.internal, from.addr) => {
                Err("drop_unsolicited")
            }
            // It is over when it is idle, whether it was swept or not. A connection's own sessions know better.
            None if external.0 == UDP && self.now - mapping.last_used > self.rules.idle_udp => {
                Err("drop_unsolicited")
            }
            None => Ok(()),
        }
    }

    /// Whether the filter of a dynamic mapping lets `from` in, whatever its port.
    fn is_known(&self, external: Bound, internal: Endpoint, from: Address) -> bool {
        match self.rules.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressAndPortDependent => false,
            Filtering::AddressDependent => {
                let peer = self.peers.get(&(external, from));
                peer.is_some_and(|(host, last)| {
                    *host == internal && self.now - last <= self.rules.idle_udp
                })
            }
        }
    }

    /// A LAN host has sent by a session.
    pub(crate) fn note_peer(&mut self, key: &Key, when: Time) {
        let (internal, external) = self.bound(key, self.half(key));
        let Some(mapping) = self.by_external.get(&external) else {
            return;
        };
        let by_address = self.rules.filtering == Filtering::AddressDependent;
        if by_address && mapping.explicit.is_none() && mapping.internal == internal.1 {
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

impl Terms {
    pub(crate) fn admits(&self, remote: Address) -> bool {
        self.remote.is_none_or(|only| only == remote)
    }
}
