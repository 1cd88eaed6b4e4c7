//! The first packet of a flow: whether it may be, and what it leaves behind.

use super::nat::{Chosen, Half, ICMP, Key, Name, Nat, Packet, TCP, Way};
use super::tcp;

impl Nat {
    /// The first packet of a flow to the WAN.
    pub(crate) fn begin_out(
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
        self.open_out(packet, chosen, also)?;
        // The way has been asked for already.
        self.half_mut(&key).resolved = true;
        Ok(())
    }

    /// Mapping and session of a packet that leaves.
    pub(crate) fn open_out(
        &mut self,
        packet: &Packet,
        chosen: Chosen,
        also: &mut Vec<Name>,
    ) -> Result<(), Name> {
        let key = packet.key;
        // Only a SYN begins a connection. The router knows its own.
        let own = self.is_ours(key.src.addr);
        if key.proto == TCP && !own && !tcp::opens(packet.tcp_flags) {
            return Err("drop_tcp_stray");
        }
        let internal = (key.proto, key.src);
        let external = self.mapping_of(internal, chosen, also)?;
        let explicit = self.by_external[&(key.proto, external)].explicit.is_some();
        let half = Half {
            own,
            ..Half::new(self.now, explicit, false)
        };
        let back = Key {
            src: key.dst,
            dst: external,
            ..key
        };
        self.put(back, half.going(Way::In, (key.dst, key.src)))?;
        let out = half.going(Way::Out, (external, key.dst)).begun_by(packet);
        self.put(key, out)?;
        self.note_peer(&key, self.now);
        also.push("sessions_created");
        Ok(())
    }

    /// The first packet of a flow from the WAN.
    pub(crate) fn begin_in(&mut self, packet: &Packet, also: &mut Vec<Name>) -> Result<(), Name> {
        let key = packet.key;
        if self.in_lan(key.src.addr) || self.is_ours(key.src.addr) {
            return Err("drop_spoofed");
        }
        if self.in_lan(key.dst.addr) {
            return Err("drop_unsolicited");
        }
        if !self.is_ours(key.dst.addr) {
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
    pub(crate) fn begin_turned(
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
        let mapped = self.by_external.get(&target);
        let Some(inner) = mapped
            .filter(|mapping| !mapping.own)
            .map(|mapping| mapping.internal)
        else {
            // Perhaps the router's own.
            return Err("pass_hairpin");
        };
        if key.proto == TCP && !tcp::opens(packet.tcp_flags) {
            return Err("drop_tcp_stray");
        }
        let source = self.mapping_of((key.proto, key.src), chosen, also)?;
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
}
