//! Packets: what they are, what the programs make of them, and what they were to make.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use iwf_common::host::HostKey;
use iwf_common::names;
use iwf_tests::packet::{Frame, Transport};

use super::compare::key_of;
use super::drive::{Driver, pick, remote_of};
use super::nat::{
    Bound, Chosen, Endpoint, Fate, Half, ICMP, Key, Packet, TCP, UDP, Via, Way, Went,
};
use super::step::{Kind, PLAIN, Shape};
use super::tcp::{ACK, FIN, SYN};
use crate::bed::{
    BRIDGE_MAC, DROP, GATEWAY_MAC, HOST, PASS, REDIRECT, Through, WAN, WAN_MAC, lan_frame, mac_of,
    verdict_of, wan_frame,
};

/// Counters that say nothing of the packet.
const ASIDE: [&str; 4] = [
    "next_hops_refreshed",
    "events_lost",
    "refusals_noted",
    "refusals_lost",
];

/// Octets of a quoted packet's data: the least of RFC 792, TCP's without its checksum and with it, all.
const QUOTED: [usize; 5] = [8, 9, 16, 18, 1500];
const ROUTER: [u8; 4] = [11, 99, 0, 1];

impl Driver<'_> {
    pub(crate) fn packet(
        &mut self,
        via: Via,
        kind: Kind,
        src: Endpoint,
        dst: Endpoint,
        shape: Shape,
    ) -> Result<()> {
        let from_wan = via == Via::Wan;
        let mut answers = kind.proto == ICMP && from_wan != (kind.flags & FIN != 0);
        // Inside, an answer with identifier 0 cannot be told from the query.
        answers &= from_wan || dst.port != 0;
        self.send(via, kind, answers, src, dst, shape)
    }

    /// A packet that has come this way before.
    pub(crate) fn along(&mut self, key: &Key, half: &Half, flags: u8, shape: Shape) -> Result<()> {
        let kind = Kind {
            proto: key.proto,
            flags,
        };
        let via = match half.way {
            Way::In => Via::Wan,
            Way::Out if half.own => Via::Stack { forwarded: false },
            Way::Out if shape.octets.is_multiple_of(4) => Via::Stack { forwarded: true },
            Way::Out | Way::Turned => Via::Lan,
        };
        self.send(
            via,
            kind,
            key.proto == ICMP && via == Via::Wan,
            key.src,
            key.dst,
            shape,
        )
    }

    /// The rest of a TCP handshake, and data.
    pub(crate) fn open(&mut self, session: u8) -> Result<()> {
        let Some((key, half)) = self.session(session) else {
            return Ok(());
        };
        let back = half.reverse(&key);
        for (key, flags) in [(key, SYN), (back, SYN | ACK), (key, ACK), (back, ACK)] {
            self.let_pass(1)?;
            if let Some(half) = self.nat.halves.get(&key).cloned() {
                self.along(&key, &half, flags, PLAIN)?;
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        via: Via,
        kind: Kind,
        answers: bool,
        src: Endpoint,
        dst: Endpoint,
        shape: Shape,
    ) -> Result<()> {
        let mut key = Key {
            proto: kind.proto,
            src,
            dst,
        };
        let mut frame = whole(&mut key, kind, answers, shape.checksum);
        frame.ttl = shape.ttl;
        frame.payload.truncate(usize::from(shape.octets));
        let packet = Packet {
            key,
            tcp_flags: if kind.proto == TCP { kind.flags } else { 0 },
            ttl: shape.ttl,
            len: u16::try_from(frame.bytes().len() - 14)?,
            asks: !answers,
            id: None,
        };
        let frame = arriving(frame, via);
        let (action, bytes) = self.run_program(&frame.bytes(), via)?;
        let fate = self.fate_of(&packet, via)?;
        let expected = expected(&frame, &fate, answers);
        self.judge(&fate, action, &bytes, &expected.bytes())
    }

    /// What the model says of a packet that the programs have had.
    pub(crate) fn fate_of(&mut self, packet: &Packet, via: Via) -> Result<Fate> {
        let internal = &self.state.internal;
        let port = |bound: Bound| {
            let entry = internal.get(&key_of(bound))?;
            Some(u16::from_be_bytes(entry.port))
        };
        let hosts = self.bed.plane.hosts()?;
        let address = |host| Some(hosts.get(&HostKey::v4(host))?.external);
        let chosen = Chosen {
            port: &port,
            address: &address,
        };
        Ok(match via {
            Via::Lan => self.nat.lan_packet(packet, chosen),
            Via::Wan => self.nat.wan_packet(packet),
            Via::Stack { forwarded } => self.nat.leaving_packet(packet, forwarded, chosen),
        })
    }

    /// An ICMP error about a packet that went where those of a session's direction come from.
    pub(crate) fn error(&mut self, session: u8, quoted: u8, shape: Shape) -> Result<()> {
        let nobodys = Endpoint {
            addr: WAN,
            port: 7777,
        };
        let (key, via) = match self.session(session) {
            Some((key, half)) if !quoted.is_multiple_of(8) => {
                let via = match half.way {
                    Way::In => Via::Wan,
                    Way::Out if half.own => Via::Stack { forwarded: false },
                    Way::Out if quoted.is_multiple_of(3) => Via::Stack {
                        forwarded: quoted.is_multiple_of(9),
                    },
                    Way::Out | Way::Turned => Via::Lan,
                };
                (key, via)
            }
            _ if quoted.is_multiple_of(16) => {
                let nobody = Endpoint {
                    addr: HOST,
                    port: 7777,
                };
                let key = Key {
                    proto: UDP,
                    src: nobody,
                    dst: remote_of(0),
                };
                let forwarded = quoted.is_multiple_of(32);
                (key, Via::Stack { forwarded })
            }
            _ => (
                Key {
                    proto: UDP,
                    src: remote_of(0),
                    dst: nobodys,
                },
                Via::Wan,
            ),
        };
        let from_wan = via == Via::Wan;
        let octets = pick(&QUOTED, quoted);
        let about = |from: Endpoint, to: Endpoint| match key.proto {
            UDP => Frame::udp((from.addr, from.port), (to.addr, to.port)),
            TCP => Frame::tcp((from.addr, from.port), (to.addr, to.port), ACK),
            // The packet was a query, if the answers have this direction.
            _ if from_wan => Frame::icmp(from.addr, to.addr, 8, from.port),
            _ => Frame::icmp(from.addr, to.addr, 0, to.port),
        };
        let quote = about(key.dst, key.src).quoted(octets);
        let src = match via {
            Via::Wan if quoted.is_multiple_of(2) => ROUTER,
            // What the stack says itself.
            Via::Stack { forwarded: false } => WAN,
            Via::Lan | Via::Wan | Via::Stack { .. } => key.src.addr,
        };
        let mut frame = Frame::icmp_error(src, key.dst.addr, (3, 3), quote);
        frame.ttl = shape.ttl;
        let frame = arriving(frame, via);
        let (action, bytes) = self.run_program(&frame.bytes(), via)?;
        let fate = match via {
            Via::Lan | Via::Wan => self.nat.error(&key, src, from_wan, shape.ttl),
            Via::Stack { forwarded } => self.nat.leaving_error(&key, src, forwarded),
        };
        let mut expected = expected(&frame, &fate, false);
        if let Went::Forwarded(becomes, to) | Went::StackAs(becomes, to) = fate.went {
            expected.payload = about(to, becomes).quoted(octets);
            if from_wan {
                expected.src = frame.src;
            }
        }
        self.judge(&fate, action, &bytes, &expected.bytes())
    }

    pub(crate) fn run_program(&mut self, frame: &[u8], via: Via) -> Result<(u32, Vec<u8>)> {
        let bed = &mut *self.bed;
        let (through, name, ingress) = match (bed.through, via) {
            (Through::Xdp, Via::Lan) => (Through::Xdp, names::XDP_LAN, bed.lan),
            (Through::Xdp, Via::Wan) => (Through::Xdp, names::XDP_WAN, bed.wan),
            (Through::Tc, Via::Lan) => (Through::Tc, names::TC_LAN, bed.lan),
            (Through::Tc, Via::Wan) => (Through::Tc, names::TC_INGRESS, bed.wan),
            (_, Via::Stack { forwarded }) => {
                let ingress = if forwarded { bed.bridge } else { 0 };
                (Through::Tc, names::TC_EGRESS, ingress)
            }
        };
        bed.plane.ready(name)?;
        let before = std::mem::take(&mut self.state.counters);
        let ran = match through {
            Through::Xdp => bed.plane.xdp(name, frame, ingress, 1)?,
            Through::Tc => bed.plane.tc(name, frame, ingress, 0)?,
        };
        self.state = bed.plane.state()?;
        self.counted = difference(&self.state.counters, &before);
        Ok((verdict_of(through, ran.action), ran.frame))
    }

    pub(crate) fn judge(
        &mut self,
        fate: &Fate,
        action: u32,
        bytes: &[u8],
        expected: &[u8],
    ) -> Result<()> {
        *self.fates.entry(fate.name).or_default() += 1;
        let mut counted: Vec<_> = self.counted.iter().map(|(name, n)| (*name, *n)).collect();
        counted.retain(|(name, _)| !ASIDE.contains(name));
        let mut names: Vec<_> = fate
            .also
            .iter()
            .chain([&fate.name])
            .map(|name| (*name, 1))
            .collect();
        names.sort_unstable();
        ensure!(
            counted == names,
            "counted {counted:?}, and it should be {names:?}"
        );
        let wanted = match fate.went {
            Went::Forwarded(..) => REDIRECT,
            Went::StackAs(..) | Went::Stack => PASS,
            Went::Dropped => DROP,
        };
        ensure!(action == wanted, "verdict {action} of {fate:?}");
        if bytes != expected {
            let (seen, wanted) = (Frame::parse(bytes), Frame::parse(expected));
            bail!("{fate:?}\n   out: {seen:?}\nwanted: {wanted:?}");
        }
        self.compare()
    }
}

/// A packet with these ends; of an ICMP query or answer, one of the ports is an identifier and the other 0.
pub(crate) fn whole(key: &mut Key, kind: Kind, answers: bool, checksum: bool) -> Frame {
    let (src, dst) = (key.src, key.dst);
    match kind.proto {
        UDP => {
            let ports = (src.port, dst.port);
            Frame::new(src.addr, dst.addr, Transport::Udp { ports, checksum })
        }
        TCP => Frame::tcp((src.addr, src.port), (dst.addr, dst.port), kind.flags),
        _ if answers => {
            key.src.port = 0;
            Frame::icmp(src.addr, dst.addr, 0, dst.port)
        }
        _ => {
            key.dst.port = 0;
            Frame::icmp(src.addr, dst.addr, 8, src.port)
        }
    }
}

fn difference(
    after: &BTreeMap<&'static str, u64>,
    before: &BTreeMap<&'static str, u64>,
) -> BTreeMap<&'static str, u64> {
    let more = after
        .iter()
        .map(|(name, n)| (*name, n - before.get(name).unwrap_or(&0)));
    more.filter(|(_, n)| *n > 0).collect()
}

/// What a frame looks like when it comes to the router.
pub(crate) fn arriving(frame: Frame, via: Via) -> Frame {
    match via {
        Via::Wan => wan_frame(frame),
        Via::Lan => Frame {
            src_mac: mac_of(frame.src),
            ..lan_frame(frame)
        },
        Via::Stack { .. } => frame,
    }
}

/// And when it leaves.
pub(crate) fn expected(frame: &Frame, fate: &Fate, answers: bool) -> Frame {
    let mut out = frame.clone();
    let (Went::Forwarded(src, dst) | Went::StackAs(src, dst)) = fate.went else {
        return out;
    };
    (out.src, out.dst) = (src.addr, dst.addr);
    match out.transport {
        Transport::Icmp { .. } if answers => out.set_dst_port(dst.port),
        Transport::Icmp { .. } => out.set_src_port(src.port),
        Transport::Udp { .. }
        | Transport::Tcp { .. }
        | Transport::IcmpError { .. }
        | Transport::Other(_) => {
            out.set_src_port(src.port);
            out.set_dst_port(dst.port);
        }
    }
    if matches!(fate.went, Went::Forwarded(..)) {
        out.ttl -= 1;
        let to_lan = dst.addr.starts_with(&[192, 168, 1]);
        (out.dst_mac, out.src_mac) = match to_lan {
            true => (mac_of(dst.addr), BRIDGE_MAC),
            false => (GATEWAY_MAC, WAN_MAC),
        };
    }
    out
}
