//! What the NAT does, said once more: the rules of the RFCs and of ARCHITECTURE.md in plain Rust, without a thought of
//! speed, of several CPUs or of a verifier. To be read as the specification of the packet programs.
//!
//! Read before editing: RFC 4787 (REQ-1 to REQ-12), RFC 5382, RFC 5508, RFC 7857, RFC 6887 sections 11 and 15.
//!
//! Nothing of it is taken from the programs but the names of the fates. What they may choose freely, a random port, the
//! model asks for ([`Chosen`]) and judges whether it was among what they may choose.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::tcp::{self, Shown};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Ticks since the beginning.
pub(crate) type Time = u64;
pub(crate) type Address = [u8; 4];
/// Name of a fate: its counter's. What begins with `drop_` was dropped, with `pass_` given to the stack.
pub(crate) type Name = &'static str;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub(crate) addr: Address,
    /// Or the identifier of an ICMP query, on the side that asks; the other side's is 0.
    pub(crate) port: u16,
}

/// An endpoint of a protocol. Mappings and filters of different protocols have nothing in common (RFC 7857 section 5).
pub(crate) type Bound = (u8, Endpoint);

/// The flow of a packet, as it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) proto: u8,
    pub(crate) src: Endpoint,
    pub(crate) dst: Endpoint,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) key: Key,
    pub(crate) tcp_flags: u8,
    pub(crate) ttl: u8,
    /// Octets, from the IPv4 header on.
    pub(crate) len: u16,
    /// An ICMP query, not its answer. True for all other protocols.
    pub(crate) asks: bool,
}

/// Whom dynamic mappings let in (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filtering {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) external: Address,
    /// The first three octets of the LAN's addresses.
    pub(crate) lan: [u8; 3],
    /// What replaces a port from 1024 on that cannot be kept.
    pub(crate) ports: RangeInclusive<u16>,
    pub(crate) filtering: Filtering,
    pub(crate) sessions_per_host: usize,
    pub(crate) mappings_per_host: usize,
    /// For how long something may be silent.
    pub(crate) idle_udp: Time,
    pub(crate) idle_tcp_open: Time,
    pub(crate) idle_tcp_transitory: Time,
    pub(crate) idle_icmp: Time,
    /// For how long a packet that was not let in is remembered for its peer's sake.
    pub(crate) knock: Time,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) internal: Endpoint,
    /// Asked for, with whom it lets in and when it ends; `None`: made by a packet, ends when it is idle.
    pub(crate) explicit: Option<Terms>,
    pub(crate) last_used: Time,
    /// Packets and octets of ended sessions, out and in.
    pub(crate) counted: [(u64, u64); 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The only remote host that may come in; `None`: everybody (RFC 6887 section 13.3, RemoteHost of IGD).
    pub(crate) remote: Option<Address>,
    pub(crate) expires: Option<Time>,
}

/// Where packets of one direction of a session go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Out,
    In,
    /// From one LAN host to another by external endpoints of both.
    Turned,
}

/// One direction of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    pub(crate) way: Way,
    /// Source and destination after translation.
    pub(crate) becomes: (Endpoint, Endpoint),
    /// The remote host began it.
    pub(crate) invited: bool,
    /// By a mapping that was asked for.
    pub(crate) explicit: bool,
    /// Of no use any more but for what it counted; of a turned one, also as a memory of who has sent to whom.
    pub(crate) ended: bool,
    /// Last packet, or the end.
    pub(crate) last: Time,
    pub(crate) shown: Shown,
    pub(crate) packets: u32,
    pub(crate) octets: u64,
    /// A packet has asked for the next hop.
    pub(crate) resolved: bool,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) name: Name,
    pub(crate) went: Went,
    /// Counted besides.
    pub(crate) also: Vec<Name>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Went {
    /// On, with these addresses and ports and a TTL that is one less.
    Forwarded(Endpoint, Endpoint),
    /// To the stack with these, and nothing else changed.
    StackAs(Endpoint, Endpoint),
    /// To the stack as it came.
    Stack,
    Dropped,
}

/// The external port that the programs chose for an internal endpoint.
pub(crate) type Chosen<'a> = &'a dyn Fn(Bound) -> Option<u16>;

#[derive(Clone, Debug)]
pub(crate) struct Nat {
    pub(crate) rules: Rules,
    pub(crate) now: Time,
    pub(crate) by_external: BTreeMap<Bound, Mapping>,
    /// The external endpoint that an internal one sends from.
    pub(crate) by_internal: BTreeMap<Bound, Endpoint>,
    pub(crate) halves: BTreeMap<Key, Half>,
    /// Whom external endpoints have sent to, if it is that that lets somebody in: for which host, and when.
    pub(crate) peers: BTreeMap<(Bound, Address), (Endpoint, Time)>,
}

impl Nat {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            now: 0,
            by_external: BTreeMap::new(),
            by_internal: BTreeMap::new(),
            halves: BTreeMap::new(),
            peers: BTreeMap::new(),
        }
    }

    // Packets.

    /// A packet of a LAN host, addressed to the router on the link.
    pub(crate) fn lan_packet(&mut self, packet: &Packet, chosen: Chosen) -> Fate {
        let mut also = Vec::new();
        let went = self.try_lan_packet(packet, chosen, &mut also);
        fate(went, also)
    }

    fn try_lan_packet(
        &mut self,
        packet: &Packet,
        chosen: Chosen,
        also: &mut Vec<Name>,
    ) -> Result<(Name, Went), Name> {
        let key = packet.key;
        if self.live(&key, &[Way::Out, Way::Turned]).is_none() {
            // Nobody in the LAN has the router's address.
            if key.src.addr == self.rules.external {
                return Err("drop_spoofed");
            }
            // Who is not of the LAN, and no route leads back to, has made its address up (RFC 2827).
            if !self.in_lan(key.src.addr) {
                let to_router = key.dst.addr == self.rules.external;
                return Err(if to_router {
                    "pass_not_lan_source"
                } else {
                    "drop_spoofed_lan"
                });
            }
            if key.dst.addr == self.rules.external {
                self.begin_turned(packet, chosen, also)?;
            } else {
                self.begin_out(packet, chosen, also)?;
            }
        }
        self.stands(&key)?;
        let turned = self.half(&key).way == Way::Turned;
        if packet.ttl <= 1 {
            // The stack tells the sender; of a turned packet it could not.
            return Err(if turned {
                "drop_ttl_exceeded"
            } else {
                "pass_ttl_exceeded"
            });
        }
        let becomes = self.touch(packet);
        self.half_mut(&key).resolved = true;
        let name = if turned {
            "hairpinned"
        } else {
            "forwarded_out"
        };
        Ok((name, Went::Forwarded(becomes.0, becomes.1)))
    }

    /// A packet from the WAN, addressed to the router on the link.
    pub(crate) fn wan_packet(&mut self, packet: &Packet) -> Fate {
        let mut also = Vec::new();
        let went = self.try_wan_packet(packet, &mut also);
        fate(went, also)
    }

    fn try_wan_packet(
        &mut self,
        packet: &Packet,
        also: &mut Vec<Name>,
    ) -> Result<(Name, Went), Name> {
        let key = packet.key;
        if self.live(&key, &[Way::In]).is_none() {
            self.begin_in(packet, also)?;
        }
        self.stands(&key)?;
        let (src, dst) = self.touch(packet);
        // What the stack reports then is translated back on its way out.
        if packet.ttl <= 1 {
            return Ok(("pass_ttl_exceeded", Went::StackAs(src, dst)));
        }
        self.half_mut(&key).resolved = true;
        Ok(("forwarded_in", Went::Forwarded(src, dst)))
    }

    /// The first packet of a flow to the WAN.
    fn begin_out(
        &mut self,
        packet: &Packet,
        chosen: Chosen,
        also: &mut Vec<Name>,
    ) -> Result<(), Name> {
        let key = packet.key;
        if self.in_lan(key.dst.addr) {
            return Err("pass_not_to_wan");
        }
        // An answer to a query that nobody was let in with.
        if !packet.asks {
            return Err("pass_other_protocol");
        }
        // Only a SYN begins a connection.
        if key.proto == TCP && !tcp::opens(packet.tcp_flags) {
            return Err("drop_tcp_stray");
        }
        let internal = (key.proto, key.src);
        let external = self.mapping_of(internal, chosen, also)?;
        self.may_open(key.src.addr)?;
        let explicit = self.by_external[&(key.proto, external)].explicit.is_some();
        let half = Half::new(self.now, explicit, false);
        let back = Key {
            src: key.dst,
            dst: external,
            ..key
        };
        self.put(back, half.going(Way::In, (key.dst, key.src)))?;
        let out = half.going(Way::Out, (external, key.dst)).begun_by(packet);
        self.put(
            key,
            Half {
                resolved: true,
                ..out
            },
        )?;
        self.note_peer(&key, self.now);
        also.push("sessions_created");
        Ok(())
    }

    /// The first packet of a flow from the WAN.
    fn begin_in(&mut self, packet: &Packet, also: &mut Vec<Name>) -> Result<(), Name> {
        let key = packet.key;
        if self.in_lan(key.src.addr) || key.src.addr == self.rules.external {
            return Err("drop_spoofed");
        }
        if self.in_lan(key.dst.addr) {
            return Err("drop_unsolicited");
        }
        if key.dst.addr != self.rules.external {
            return Err("pass_not_external_addr");
        }
        // The router answers for itself. Identifier 0 is no LAN host's outside.
        if key.proto == ICMP && (packet.asks || key.dst.port == 0) {
            return Err("pass_echo_request");
        }
        let external = (key.proto, key.dst);
        self.lets_in(external, key.src)?;
        if key.proto == TCP && !tcp::opens(packet.tcp_flags) {
            return Err("drop_tcp_stray");
        }
        let mapping = &self.by_external[&external];
        let (internal, explicit) = (mapping.internal, mapping.explicit.is_some());
        self.may_open(internal.addr)?;
        let half = Half::new(self.now, explicit, true);
        let out = Key {
            src: internal,
            dst: key.src,
            ..key
        };
        self.put(out, half.going(Way::Out, (key.dst, key.src)))?;
        self.put(
            key,
            half.going(Way::In, (key.src, internal)).begun_by(packet),
        )?;
        also.push("sessions_created");
        Ok(())
    }

    /// The first packet of a LAN host to an external endpoint. Both meet as if they were outside (RFC 4787 REQ-9): the
    /// sender sends from its external endpoint, and the target's mapping judges that.
    fn begin_turned(
        &mut self,
        packet: &Packet,
        chosen: Chosen,
        also: &mut Vec<Name>,
    ) -> Result<(), Name> {
        let key = packet.key;
        if key.proto == ICMP {
            return Err(if packet.asks {
                "pass_echo_request"
            } else {
                "pass_hairpin"
            });
        }
        let target = (key.proto, key.dst);
        let Some(inner) = self
            .by_external
            .get(&target)
            .map(|mapping| mapping.internal)
        else {
            // Perhaps the router's own.
            return Err("pass_hairpin");
        };
        if key.proto == TCP && !tcp::opens(packet.tcp_flags) {
            return Err("drop_tcp_stray");
        }
        let source = self.mapping_of((key.proto, key.src), chosen, also)?;
        self.may_open(key.src.addr)?;
        let explicit = false;
        let there = (source, inner);
        let back = Key {
            src: inner,
            dst: source,
            ..key
        };
        let invited = match self.lets_in(target, source) {
            Ok(()) => true,
            Err("drop_mapping_expired") => return Err("drop_mapping_expired"),
            // To itself, or to one that has sent to it as well: then this is the answer.
            Err(_) if source == key.dst || self.has_sent(&back, key.dst) => false,
            Err(_) => {
                let mut knock = Half::new(self.now, explicit, false).going(Way::Turned, there);
                knock.ended = true;
                self.put(key, knock.begun_by(packet)).ok();
                return Err("drop_hairpin_refused");
            }
        };
        let half = Half::new(self.now, explicit, false);
        if source != key.dst {
            let mut back_half = half.going(Way::Turned, (key.dst, key.src));
            back_half.invited = invited;
            self.put(back, back_half)?;
        }
        // Its own affair: the sender was not asked.
        self.put(key, half.going(Way::Turned, there).begun_by(packet))?;
        self.note_peer(&key, self.now);
        also.push("sessions_created");
        Ok(())
    }

    /// Whether `from` comes in by the mapping of `external` without a session.
    fn lets_in(&self, external: Bound, from: Endpoint) -> Result<(), Name> {
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
    fn note_peer(&mut self, key: &Key, when: Time) {
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
    fn has_sent(&self, back: &Key, target: Endpoint) -> bool {
        let sent = self.halves.get(back);
        sent.is_some_and(|sent| sent.way == Way::Turned && sent.becomes.0 == target)
    }

    /// An ICMP error that was sent from where packets with `key` come from, about one that went there. It changes
    /// nothing (RFC 4787 REQ-12, RFC 5508 REQ-6). What it quotes is turned back: its destination like the source of
    /// such a packet, its source like their destination.
    pub(crate) fn error(&self, key: &Key, from_wan: bool, ttl: u8) -> Fate {
        let ways: &[Way] = if from_wan {
            &[Way::In]
        } else {
            &[Way::Out, Way::Turned]
        };
        let Some(half) = self.live(key, ways) else {
            let none = if from_wan {
                "drop_icmp_error_stray"
            } else {
                "pass_icmp_error"
            };
            return fate(Err(none), Vec::new());
        };
        let (src, dst) = half.becomes;
        let name = if ttl <= 1 {
            "pass_ttl_exceeded"
        } else if !half.resolved {
            "pass_unresolved"
        } else {
            let went = Ok(("icmp_errors_translated", Went::Forwarded(src, dst)));
            return fate(went, Vec::new());
        };
        if half.way == Way::Out {
            // The stack forwards it, and WAN egress translates it then.
            return fate(Err(name), Vec::new());
        }
        let went = Ok((name, Went::StackAs(src, dst)));
        fate(went, vec!["icmp_errors_translated"])
    }

    // Mappings.

    /// The external endpoint that an internal one sends from: the same for all destinations (RFC 4787 REQ-1).
    fn mapping_of(
        &mut self,
        internal: Bound,
        chosen: Chosen,
        also: &mut Vec<Name>,
    ) -> Result<Endpoint, Name> {
        let (proto, endpoint) = internal;
        if let Some(external) = self.by_internal.get(&internal).copied() {
            let now = self.now;
            let mapping = self
                .by_external
                .get_mut(&(proto, external))
                .expect("both or none");
            if !mapping.expired(now) {
                mapping.last_used = now;
                return Ok(external);
            }
            // Over, whether it was swept or not.
            self.by_internal.remove(&internal);
            self.by_external.remove(&(proto, external));
        }
        if self.mappings_of(endpoint.addr) >= self.rules.mappings_per_host {
            return Err("drop_host_mappings");
        }
        let port = self.port_for(internal, chosen)?;
        let external = Endpoint {
            addr: self.rules.external,
            port,
        };
        let mapping = Mapping {
            internal: endpoint,
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
    fn port_for(&self, internal: Bound, chosen: Chosen) -> Result<u16, Name> {
        let (proto, Endpoint { port: wanted, .. }) = internal;
        let free = |port: &u16| {
            let external = Endpoint {
                addr: self.rules.external,
                port: *port,
            };
            !self.by_external.contains_key(&(proto, external))
        };
        let system = 1..=1023;
        let may_keep = (proto == ICMP && wanted != 0)
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
        let Some(port) = chosen(internal) else {
            let left: Vec<u16> = class.filter(|port| free(port)).collect();
            assert!(
                left.is_empty(),
                "{internal:?} refused, and {left:?} are free"
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
            assert!(left.is_empty(), "{port} for {internal:?}: another parity");
        }
        Ok(port)
    }

    /// Writes a mapping that was asked for. False: the endpoint has another, which was asked for as well.
    pub(crate) fn map(&mut self, external: Bound, internal: Endpoint, terms: Terms) -> bool {
        let inner = (external.0, internal);
        let held = self.by_external.get(&external).cloned();
        let other = self.by_internal.get(&inner).copied();
        let other = other.filter(|other| *other != external.1);
        let yields = |mapping: &Mapping| mapping.explicit.is_none() || mapping.expired(self.now);
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

    // Sessions.

    fn may_open(&self, host: Address) -> Result<(), Name> {
        let mut own = self.halves.iter();
        let count = own
            .by_ref()
            .filter(|(key, half)| half.way != Way::In && key.src.addr == host);
        if count.count() >= self.rules.sessions_per_host {
            return Err("drop_host_sessions");
        }
        Ok(())
    }

    fn mappings_of(&self, host: Address) -> usize {
        let own = self.by_external.values();
        own.filter(|mapping| mapping.explicit.is_none() && mapping.internal.addr == host)
            .count()
    }

    fn live(&self, key: &Key, ways: &[Way]) -> Option<&Half> {
        let half = self.halves.get(key)?;
        (!half.ended && ways.contains(&half.way)).then_some(half)
    }

    fn half(&self, key: &Key) -> &Half {
        &self.halves[key]
    }

    fn half_mut(&mut self, key: &Key) -> &mut Half {
        self.halves.get_mut(key).expect("there is one")
    }

    /// The internal and the external endpoint of the mapping that one direction goes by.
    fn bound(&self, key: &Key, half: &Half) -> (Bound, Bound) {
        let (internal, external) = match half.way {
            Way::In => (half.becomes.1, key.dst),
            Way::Out | Way::Turned => (key.src, half.becomes.0),
        };
        ((key.proto, internal), (key.proto, external))
    }

    /// No session outlives a mapping it goes by.
    fn stands(&self, key: &Key) -> Result<(), Name> {
        if self.mappings_stand(key, self.half(key)) {
            Ok(())
        } else {
            Err("drop_mapping_expired")
        }
    }

    fn mappings_stand(&self, key: &Key, half: &Half) -> bool {
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
    fn put(&mut self, key: Key, mut half: Half) -> Result<(), Name> {
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
    fn touch(&mut self, packet: &Packet) -> (Endpoint, Endpoint) {
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

    // Ageing.

    /// Ends and removes everything that is over.
    pub(crate) fn sweep(&mut self) {
        loop {
            let before = (self.halves.clone(), self.by_external.clone());
            self.note_uses();
            self.end_sessions(|nat, key, half| !nat.keeps(key, half) || nat.is_silent(key, half));
            self.note_peers();
            self.remove_ended();
            self.remove_mappings();
            self.remove_peers();
            if before == (self.halves.clone(), self.by_external.clone()) {
                return;
            }
        }
    }

    /// Whether the mappings of a session are as it needs them.
    fn keeps(&self, key: &Key, half: &Half) -> bool {
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
        let terms = self.by_external[&external].explicit;
        terms.is_none_or(|terms| terms.admits(remote.addr))
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

    fn end_sessions_of(&mut self, external: Bound) {
        self.end_sessions(|nat, key, half| nat.bound(key, half).1 == external);
    }

    /// Ends both directions of each session one of whose directions is `over`.
    fn end_sessions(&mut self, over: impl Fn(&Self, &Key, &Half) -> bool) {
        let live = self.halves.iter().filter(|(_, half)| !half.ended);
        let over: BTreeSet<Key> = live
            .filter(|(key, half)| over(self, key, half))
            .flat_map(|(key, half)| [*key, half.reverse(key)])
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
        let gone = gone.filter(|(key, mapping)| over(key, mapping));
        let gone: Vec<(Bound, Endpoint)> = gone.map(|(key, m)| (*key, m.internal)).collect();
        for (external, internal) in gone {
            self.by_external.remove(&external);
            self.by_internal.remove(&(external.0, internal));
        }
    }

    fn in_lan(&self, addr: Address) -> bool {
        addr.starts_with(&self.rules.lan)
    }
}

impl Mapping {
    fn expired(&self, now: Time) -> bool {
        let expires = self.explicit.and_then(|terms| terms.expires);
        expires.is_some_and(|expires| now >= expires)
    }
}

impl Terms {
    fn admits(&self, remote: Address) -> bool {
        self.remote.is_none_or(|only| only == remote)
    }
}

impl Half {
    fn new(now: Time, explicit: bool, invited: bool) -> Self {
        let nowhere = Endpoint {
            addr: [0; 4],
            port: 0,
        };
        Self {
            way: Way::Out,
            becomes: (nowhere, nowhere),
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

    fn going(&self, way: Way, becomes: (Endpoint, Endpoint)) -> Self {
        Self {
            way,
            becomes,
            ..self.clone()
        }
    }

    fn begun_by(mut self, packet: &Packet) -> Self {
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

fn fate(went: Result<(Name, Went), Name>, also: Vec<Name>) -> Fate {
    let (name, went) = went.unwrap_or_else(|name| {
        (
            name,
            if name.starts_with("drop_") {
                Went::Dropped
            } else {
                Went::Stack
            },
        )
    });
    Fate { name, went, also }
}
