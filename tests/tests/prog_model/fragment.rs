//! Datagrams in fragments: the first one has the ports and goes the way of every packet, the others follow it (RFC 4787
//! REQ-14, RFC 6864 section 5.3.1). Nothing is ever forgotten here but by its age.

use super::nat::{Address, Fate, Name, Nat, Packet, Time, Via, Way, Went, fate};

/// What the fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Datagram {
    pub(crate) proto: u8,
    pub(crate) src: Address,
    pub(crate) dst: Address,
    pub(crate) id: u16,
}

/// What a first fragment leaves behind for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) since: Time,
    pub(crate) inbound: bool,
    /// `None`: the stack got it as it was.
    pub(crate) becomes: Option<Becomes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Becomes {
    pub(crate) src: Address,
    pub(crate) dst: Address,
    pub(crate) id: u16,
    /// It went by way of the stack.
    pub(crate) stack: bool,
    pub(crate) turned: bool,
    /// No address has come or gone since.
    pub(crate) resolved: bool,
}

impl Nat {
    /// What becomes of a first fragment, as a packet: what is the same for all of its datagram. `chosen` is the
    /// identification that it left with.
    pub(crate) fn first_fragment(&mut self, packet: &Packet, via: Via, fate: &Fate, chosen: u16) {
        let Some(id) = packet.id else { return };
        let key = packet.key;
        let datagram = Datagram {
            proto: key.proto,
            src: key.src.addr,
            dst: key.dst.addr,
            id,
        };
        let inbound = via == Via::Wan;
        let mut note = Note {
            since: self.now,
            inbound,
            becomes: None,
        };
        let half = self.halves.get(&key);
        match fate.went {
            // The router's own have the same addresses before and after.
            Went::StackAs(..) if half.is_some_and(|half| half.own) => {}
            Went::Forwarded(src, dst) | Went::StackAs(src, dst) => {
                let mut becomes = Becomes {
                    src: src.addr,
                    dst: dst.addr,
                    id,
                    stack: matches!(fate.went, Went::StackAs(..)),
                    turned: half.is_some_and(|half| half.way == Way::Turned),
                    resolved: true,
                };
                if !inbound {
                    becomes.id = self.identification(datagram, &becomes, chosen);
                }
                note.becomes = Some(becomes);
            }
            // What leaves as it is, or not at all, is nobody's to follow.
            Went::Stack if matches!(via, Via::Stack { .. }) => return,
            Went::Stack => {}
            Went::Dropped => return,
        }
        self.fragments.insert(datagram, note);
    }

    /// Hosts that share an address do not share identifications, while their datagrams may meet: a host keeps its own
    /// if nobody else has it.
    fn identification(&mut self, datagram: Datagram, becomes: &Becomes, chosen: u16) -> u16 {
        let known = self
            .followed(&datagram, false)
            .and_then(|note| note.becomes);
        if let Some(known) = known
            && (known.src, known.dst) == (becomes.src, becomes.dst)
        {
            return known.id;
        }
        let named = |id| Datagram {
            src: becomes.src,
            dst: becomes.dst,
            id,
            ..datagram
        };
        let taken = |id| {
            let claim = self.claimed.get(&named(id));
            claim.is_some_and(|(of, since)| {
                *of != (datagram.src, datagram.id) && self.now - since <= self.rules.reassembly
            })
        };
        if taken(datagram.id) {
            assert!(!taken(chosen), "{chosen} for {datagram:?} is another's");
        } else {
            assert_eq!(chosen, datagram.id, "{datagram:?} could keep its own");
        }
        let claim = ((datagram.src, datagram.id), self.now);
        self.claimed.insert(named(chosen), claim);
        chosen
    }

    fn followed(&self, datagram: &Datagram, inbound: bool) -> Option<Note> {
        let note = self.fragments.get(datagram).copied()?;
        let fresh = self.now - note.since <= self.rules.reassembly;
        (fresh && note.inbound == inbound).then_some(note)
    }

    /// A fragment that is not the first. Ports mean nothing in its fate. Counted as held, the daemon has a copy, to send
    /// on when the first one has come.
    pub(crate) fn later_fragment(&self, datagram: &Datagram, via: Via, ttl: u8) -> Fate {
        let mut also = Vec::new();
        let went = self.follow(datagram, via, ttl, &mut also);
        fate(went, also)
    }

    fn follow(
        &self,
        datagram: &Datagram,
        via: Via,
        ttl: u8,
        also: &mut Vec<Name>,
    ) -> Result<(Name, Went), Name> {
        let (src, dst) = (datagram.src, datagram.dst);
        let inbound = via == Via::Wan;
        if inbound && (self.is_ours(src) || self.in_lan(src)) {
            return Err("drop_spoofed");
        }
        let Some(note) = self.followed(datagram, inbound) else {
            return Err(self.unknown(datagram, via, also));
        };
        let Some(becomes) = note.becomes else {
            // The first one is still on its way to egress, or was not let through.
            return Err(match via {
                Via::Stack { .. } => self.unknown(datagram, via, also),
                Via::Lan | Via::Wan => "pass_fragment",
            });
        };
        let (external, remote) = if inbound {
            (dst, src)
        } else {
            (becomes.src, dst)
        };
        if !self.is_ours(external) || self.is_ours(remote) != becomes.turned {
            return Err("drop_address_gone");
        }
        let to = |went: fn(_, _) -> Went| {
            let at = |addr| super::nat::Endpoint { addr, port: 0 };
            went(at(becomes.src), at(becomes.dst))
        };
        let name = match via {
            Via::Stack { .. } => return Ok(("fragments_forwarded", to(Went::StackAs))),
            _ if becomes.stack => "pass_fragment",
            _ if !becomes.resolved => "pass_no_redirect",
            // The stack reports first fragments only.
            _ if ttl <= 1 && (inbound || becomes.turned) => "drop_ttl_exceeded",
            _ if ttl <= 1 => "pass_ttl_exceeded",
            Via::Lan | Via::Wan => return Ok(("fragments_forwarded", to(Went::Forwarded))),
        };
        if name.starts_with("pass_") && (inbound || becomes.turned) {
            return Ok((name, to(Went::StackAs)));
        }
        Err(name)
    }

    /// The first one is not known: held if it would be translated.
    fn unknown(&self, datagram: &Datagram, via: Via, also: &mut Vec<Name>) -> Name {
        let (src, dst) = (datagram.src, datagram.dst);
        let early = match via {
            Via::Wan if !self.is_ours(dst) => return "pass_not_external_addr",
            // It may be the router's own.
            Via::Wan => "pass_fragment",
            Via::Lan if self.in_lan(dst) => return "pass_not_to_wan",
            Via::Lan => "drop_fragment_early",
            Via::Stack { .. } if self.is_ours(src) => return "host_out",
            Via::Stack { .. } if self.in_lan(src) => "drop_fragment_early",
            Via::Stack { forwarded } => {
                return match self.untranslated(src, forwarded) {
                    "drop_private_source" => "drop_private_fragment",
                    name => name,
                };
            }
        };
        also.push("fragments_held");
        early
    }
}
