//! Which external endpoint an internal one has: made by a packet, or asked for.

use super::nat::{Address, Bound, Chosen, Endpoint, ICMP, Mapping, Name, Nat, Terms, Time, UDP};

impl Nat {
    /// The external endpoint that an internal one sends from: the same for all destinations (RFC 4787 REQ-1). It begins a
    /// session, which its host must be allowed as well.
    pub(crate) fn mapping_of(
        &mut self,
        internal: Bound,
        chosen: Chosen,
        also: &mut Vec<Name>,
    ) -> Result<Endpoint, Name> {
        let (proto, endpoint) = internal;
        // What the router holds is no host's.
        let own = self.is_ours(endpoint.addr);
        if let Some(external) = self.by_internal.get(&internal).copied() {
            let now = self.now;
            let is_ours = self.is_ours(external.addr);
            let mapping = self
                .by_external
                .get_mut(&(proto, external))
                .expect("both or none");
            if !mapping.expired(now) && is_ours {
                mapping.last_used = now;
                if !own {
                    self.may_open(endpoint.addr)?;
                }
                return Ok(external);
            }
            // Over, whether it was swept or not.
            self.by_internal.remove(&internal);
            self.by_external.remove(&(proto, external));
        }
        if !own {
            self.may_map(endpoint.addr)?;
            self.may_open(endpoint.addr)?;
        }
        let addr = if own {
            endpoint.addr
        } else {
            self.address_of(endpoint.addr, chosen)
        };
        let port = self.port_for(internal, addr, chosen)?;
        let external = Endpoint { addr, port };
        let mapping = Mapping {
            internal: endpoint,
            own,
            explicit: None,
            last_used: self.now,
            counted: [(0, 0); 2],
        };
        self.by_external.insert((proto, external), mapping);
        self.by_internal.insert(internal, external);
        also.push("mappings_created");
        Ok(external)
    }

    /// The internal port itself if it may be kept and is free. Else any free one of its class (RFC 4787 REQ-3a), for
    /// UDP of its parity while there is one (REQ-4); one that is in use is never shared (REQ-3).
    fn port_for(&self, internal: Bound, addr: Address, chosen: Chosen) -> Result<u16, Name> {
        let (proto, Endpoint { port: wanted, .. }) = internal;
        let free = |port: &u16| {
            let external = Endpoint { addr, port: *port };
            !self.by_external.contains_key(&(proto, external))
        };
        let system = 1..=1023;
        let may_keep = self.is_ours(internal.1.addr)
            || (proto == ICMP && wanted != 0)
            || system.contains(&wanted)
            || self.rules.ports.contains(&wanted);
        if may_keep && free(&wanted) {
            return Ok(wanted);
        }
        let class = match proto {
            ICMP => 1..=u16::MAX,
            _ if wanted < 1024 => system,
            _ => self.rules.ports.clone(),
        };
        let alike = |port: &u16| proto != UDP || port % 2 == wanted % 2;
        let Some(port) = (chosen.port)(internal) else {
            let left: Vec<u16> = class.filter(|port| free(port)).collect();
            assert!(
                left.is_empty(),
                "{internal:?} refused, and {} ports are free",
                left.len()
            );
            return Err("drop_ports_exhausted");
        };
        assert!(free(&port), "{port} for {internal:?} is another's");
        assert!(
            class.contains(&port),
            "{port} for {internal:?}: another class"
        );
        if !alike(&port) {
            let left: Vec<u16> = class.filter(|port| free(port) && alike(port)).collect();
            assert!(
                left.is_empty(),
                "{port} for {internal:?}: another parity, and {} are free",
                left.len()
            );
        }
        Ok(port)
    }

    /// Writes a mapping that was asked for. False: the endpoint has another, which was asked for as well.
    pub(crate) fn map(&mut self, external: Bound, internal: Endpoint, terms: Terms) -> bool {
        let inner = (external.0, internal);
        let held = self.by_external.get(&external).cloned();
        let other = self.by_internal.get(&inner).copied();
        let other = other.filter(|other| *other != external.1);
        let yields = |mapping: &Mapping| {
            !mapping.own && (mapping.explicit.is_none() || mapping.expired(self.now))
        };
        if held
            .as_ref()
            .is_some_and(|held| held.internal != internal && !yields(held))
        {
            return false;
        }
        if other.is_some_and(|other| !yields(&self.by_external[&(external.0, other)])) {
            return false;
        }
        let mut mapping = Mapping {
            internal,
            own: false,
            explicit: Some(terms),
            last_used: 0,
            counted: [(0, 0); 2],
        };
        match &held {
            Some(held) if held.internal == internal => {
                mapping.last_used = held.last_used;
                mapping.counted = held.counted;
            }
            // An explicit mapping wins (RFC 6887 section 11): what was in its way ends.
            Some(held) => {
                self.by_internal.remove(&(external.0, held.internal));
                self.end_sessions_of(external);
            }
            None => {}
        }
        if let Some(other) = other {
            self.by_external.remove(&(external.0, other));
            self.end_sessions_of((external.0, other));
        }
        self.by_external.insert(external, mapping);
        self.by_internal.insert(inner, external.1);
        if held.is_some_and(|held| held.internal == internal && held.explicit.is_some()) {
            self.end_sessions(|nat, key, half| {
                nat.bound(key, half).1 == external && !nat.keeps(key, half)
            });
        }
        true
    }

    /// Ends a mapping that was asked for, and what came by it.
    pub(crate) fn unmap(&mut self, external: Bound) {
        let gone = self.by_external.remove(&external).expect("there is one");
        self.by_internal.remove(&(external.0, gone.internal));
        self.end_sessions_of(external);
    }
}

impl Mapping {
    pub(crate) fn expired(&self, now: Time) -> bool {
        let expires = self.explicit.and_then(|terms| terms.expires);
        expires.is_some_and(|expires| now >= expires)
    }
}
