//! What the NAT does, said once more: the rules of the RFCs and of ARCHITECTURE.md in plain Rust, without a thought of
//! speed, of several CPUs or of a verifier. To be read as the specification of the packet programs.
//!
//! Read before editing: RFC 4787 (REQ-1 to REQ-12), RFC 5382, RFC 5508, RFC 7857, RFC 6887 sections 11 and 15.
//!
//! Nothing of it is taken from the programs but the names of the fates. What they may choose freely, a random port, the
//! model asks for ([`Chosen`]) and judges whether it was among what they may choose.
//!
//! Here are the words and what becomes of a packet. The rules are beside it: `begin.rs` for the first packet of a flow,
//! `egress.rs` for what the stack sends, `fragment.rs` for what has no ports,
//! `mapping.rs`, `address.rs`, `filter.rs`, `quota.rs`, `session.rs`, `tcp.rs`, and `ageing.rs` for the end of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::fragment::{Datagram, Note};
use super::quota::Shares;
use super::tcp::Shown;

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
    /// Of the first fragment of a datagram.
    pub(crate) id: Option<u16>,
}

/// What a packet is met by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Lan,
    Wan,
    /// WAN egress; `forwarded`: it came in by another interface.
    Stack {
        forwarded: bool,
    },
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
    /// Ours.
    pub(crate) addresses: Vec<Address>,
    /// The first three octets of the LAN's addresses.
    pub(crate) lan: [u8; 3],
    /// What replaces a port from 1024 on that cannot be kept.
    pub(crate) ports: RangeInclusive<u16>,
    pub(crate) filtering: Filtering,
    pub(crate) sessions: Shares,
    pub(crate) mappings: Shares,
    /// For how long something may be silent.
    pub(crate) idle_udp: Time,
    pub(crate) idle_tcp_open: Time,
    pub(crate) idle_tcp_transitory: Time,
    pub(crate) idle_icmp: Time,
    /// For how long a packet that was not let in is remembered for its peer's sake.
    pub(crate) knock: Time,
    /// For how long the fragments of a datagram may be under way (RFC 1122 section 3.3.2 has more).
    pub(crate) reassembly: Time,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) internal: Endpoint,
    /// The router's: what its stack sends and receives with an address of ours.
    pub(crate) own: bool,
    /// Asked for, with whom it lets in and when it ends; `None`: made by a packet, ends when it is idle.
    pub(crate) explicit: Option<Terms>,
    pub(crate) last_used: Time,
    /// Packets and octets of ended sessions, out and in.
    pub(crate) counted: [(u64, u64); 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) remotes: Remotes,
    pub(crate) expires: Option<Time>,
}

/// Whom a mapping lets in that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remotes {
    Everybody,
    /// RemoteHost of IGD.
    Host(Address),
    /// Who is in one of these (RFC 6887 section 13.3).
    Listed(&'static [Remote]),
    /// As if a packet had made the mapping.
    SentTo(Filtering),
}

/// A prefix of remote addresses, with one port or with all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) addr: Address,
    pub(crate) len: u8,
    pub(crate) port: Option<u16>,
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
    /// The router's own flow.
    pub(crate) own: bool,
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

/// What the programs chose.
#[derive(Clone, Copy)]
pub(crate) struct Chosen<'a> {
    /// The external port of an internal endpoint.
    pub(crate) port: &'a dyn Fn(Bound) -> Option<u16>,
    /// The external address of a host.
    pub(crate) address: &'a dyn Fn(Address) -> Option<Address>,
}

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
    /// By the datagram as it arrives.
    pub(crate) fragments: BTreeMap<Datagram, Note>,
    /// Identifications in use by what leaves: for whose datagram, and since when.
    pub(crate) claimed: BTreeMap<Datagram, ((Address, u16), Time)>,
    /// Where hosts have mappings that were asked for: they have all others there as well.
    pub(crate) paired: BTreeMap<Address, Address>,
    /// Which of our addresses may be that of a host: one, from its first mapping on.
    pub(crate) homes: BTreeMap<Address, BTreeSet<Address>>,
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
            fragments: BTreeMap::new(),
            claimed: BTreeMap::new(),
            paired: BTreeMap::new(),
            homes: BTreeMap::new(),
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
        let known = self.live(&key, &[Way::Out, Way::Turned]);
        if known.is_none_or(|half| half.own) {
            // Nobody in the LAN has the router's address.
            if self.is_ours(key.src.addr) {
                return Err("drop_spoofed");
            }
            // Who is not of the LAN, and no route leads back to, has made its address up (RFC 2827).
            if !self.in_lan(key.src.addr) {
                let to_router = self.is_ours(key.dst.addr);
                return Err(if to_router {
                    "pass_not_lan_source"
                } else {
                    "drop_spoofed_lan"
                });
            }
            if self.is_ours(key.dst.addr) {
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
        self.is_at_home(&key)?;
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
        // It counts, as it came in, though it goes nowhere then.
        let (src, dst) = self.touch(packet);
        self.is_at_home(&key)?;
        if self.half(&key).own {
            return Ok(("pass_host", Went::StackAs(src, dst)));
        }
        // What the stack reports then is translated back on its way out.
        if packet.ttl <= 1 {
            return Ok(("pass_ttl_exceeded", Went::StackAs(src, dst)));
        }
        self.half_mut(&key).resolved = true;
        Ok(("forwarded_in", Went::Forwarded(src, dst)))
    }

    /// An ICMP error that was sent from where packets with `key` come from, about one that went there. It changes
    /// nothing (RFC 4787 REQ-12, RFC 5508 REQ-6). What it quotes is turned back: its destination like the source of
    /// such a packet, its source like their destination.
    pub(crate) fn error(&self, key: &Key, reporter: Address, from_wan: bool, ttl: u8) -> Fate {
        if from_wan && (self.is_ours(reporter) || self.in_lan(reporter)) {
            return fate(Err("drop_spoofed"), Vec::new());
        }
        if from_wan && !self.is_ours(key.dst.addr) {
            return fate(Err("pass_not_external_addr"), Vec::new());
        }
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
        if let Err(gone) = self.is_at_home(key) {
            return fate(Err(gone), Vec::new());
        }
        let (src, dst) = half.becomes;
        let name = if half.own {
            "pass_host"
        } else if ttl <= 1 {
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

    pub(crate) fn in_lan(&self, addr: Address) -> bool {
        addr.starts_with(&self.rules.lan)
    }
}

pub(crate) fn fate(went: Result<(Name, Went), Name>, also: Vec<Name>) -> Fate {
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
