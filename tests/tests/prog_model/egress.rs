//! What the stack sends out of the WAN: what it forwards for LAN hosts, and the router's own.

use super::nat::{Address, Chosen, Fate, Key, Name, Nat, Packet, TCP, Way, Went, fate};
use super::tcp;

impl Nat {
    /// `forwarded`: it came in by another interface.
    pub(crate) fn leaving_packet(
        &mut self,
        packet: &Packet,
        forwarded: bool,
        chosen: Chosen,
    ) -> Fate {
        let mut also = Vec::new();
        let went = self.try_leaving_packet(packet, forwarded, chosen, &mut also);
        fate(went, also)
    }

    fn try_leaving_packet(
        &mut self,
        packet: &Packet,
        forwarded: bool,
        chosen: Chosen,
        also: &mut Vec<Name>,
    ) -> Result<(Name, Went), Name> {
        let key = packet.key;
        // Translated where it came in: answers to it are a LAN host's.
        let answer = Key {
            src: key.dst,
            dst: key.src,
            ..key
        };
        let answered = self.live(&answer, &[Way::In]);
        if forwarded && self.is_ours(key.src.addr) && answered.is_some_and(|half| !half.own) {
            return Err("egress_untouched");
        }
        if self.live(&key, &[Way::Out]).is_none() {
            self.begin_leaving(packet, forwarded, chosen, also)?;
        }
        self.is_at_home(&key)?;
        self.stands(&key)?;
        let (src, dst) = self.touch(packet);
        let name = if self.half(&key).own {
            "host_out"
        } else {
            "translated_egress"
        };
        Ok((name, Went::StackAs(src, dst)))
    }

    fn begin_leaving(
        &mut self,
        packet: &Packet,
        forwarded: bool,
        chosen: Chosen,
        also: &mut Vec<Name>,
    ) -> Result<(), Name> {
        let key = packet.key;
        if !self.is_ours(key.src.addr) {
            return if self.in_lan(key.src.addr) && packet.asks {
                self.open_out(packet, chosen, also)
            } else {
                Err(self.untranslated(key.src.addr, forwarded))
            };
        }
        if !packet.asks {
            return Err("host_out");
        }
        // A RST of the router begins nothing, and must not end what is a LAN host's.
        if key.proto == TCP && packet.tcp_flags & tcp::RST != 0 {
            let mapping = self.by_external.get(&(key.proto, key.src));
            return Err(
                if mapping.is_some_and(|mapping| mapping.internal != key.src) {
                    "drop_tcp_stray"
                } else {
                    "host_out"
                },
            );
        }
        self.open_out(packet, chosen, also)
    }

    /// What is not translated leaves, if it shows nothing private.
    pub(crate) fn untranslated(&self, src: Address, forwarded: bool) -> Name {
        let private = matches!(
            src,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [169, 254, ..]
        );
        if !self.is_ours(src) && (self.in_lan(src) || (forwarded && private)) {
            "drop_private_source"
        } else {
            "egress_untouched"
        }
    }

    /// An ICMP error that leaves, as [`error`](Self::error): of a LAN host, or of the stack about a packet that was
    /// translated for it.
    pub(crate) fn leaving_error(&self, key: &Key, reporter: Address, forwarded: bool) -> Fate {
        let Some(half) = self.live(key, &[Way::Out]) else {
            let name = match self.untranslated(reporter, forwarded) {
                "egress_untouched" if self.in_lan(key.src.addr) || self.in_lan(key.dst.addr) => {
                    "drop_icmp_error_private"
                }
                name => name,
            };
            return fate(Err(name), Vec::new());
        };
        let (src, dst) = half.becomes;
        let went = self
            .is_at_home(key)
            .map(|()| ("icmp_errors_translated", Went::StackAs(src, dst)));
        fate(went, Vec::new())
    }
}
