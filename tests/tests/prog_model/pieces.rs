//! Datagrams in fragments, in order and out of order.

use anyhow::{Context as _, Result, ensure};
use iwf_tests::packet::{ETHERNET, split};

use super::drive::{Driver, HZ, pick, remote_of};
use super::fragment::Datagram;
use super::nat::{Endpoint, ICMP, Key, Packet, TCP, UDP, Via, Way, Went};
use super::send::{arriving, expected, whole};
use super::step::{Kind, Shape};
use super::tcp::SYN;
use crate::bed::{HOST, HOST2, WAN};

/// Octets of a datagram's data in one fragment: more than any transport header has.
const PART: usize = 24;
/// Octets of a datagram: three or four fragments.
const DATA: usize = 60;
/// In which order they come. What came too early comes again, as the daemon sends it.
const ORDERS: [&[usize]; 9] = [
    &[0, 1, 2],
    &[0, 1, LATE, 2],
    &[0, 1, MOVED, 2],
    &[0, MOVED, 1, 2, 0, 1],
    &[1, 0, 1, 2],
    &[2, 1, 0, 1, 2],
    &[1, 2],
    &[0, 2, 1],
    &[0, 1, 0, 1],
];
/// Time passes, more than a datagram has.
const LATE: usize = 100;
/// Other addresses are ours.
const MOVED: usize = 101;
/// Few, so that hosts have the same.
const IDS: [u16; 2] = [7, 0x4242];

impl Driver<'_> {
    pub(crate) fn fragments(&mut self, session: u8, order: u8, id: u8, shape: Shape) -> Result<()> {
        if let Some((key, via)) = self.ends_of(session) {
            self.datagram(key, via, order, id, shape)?;
        }
        if session < 16 {
            // Another host does the same, and identifications may meet.
            let (key, via) = self
                .ends_of(session ^ 1)
                .context("these are always there")?;
            self.datagram(key, via, order / 16, id, shape)?;
        }
        Ok(())
    }

    fn datagram(&mut self, mut key: Key, via: Via, order: u8, id: u8, shape: Shape) -> Result<()> {
        let answers = key.proto == ICMP && via == Via::Wan && key.src.port == 0;
        let kind = Kind {
            proto: key.proto,
            flags: SYN,
        };
        let mut frame = whole(&mut key, kind, answers, shape.checksum);
        frame.ttl = shape.ttl;
        frame.payload = vec![shape.octets; DATA];
        frame.fragment = 0;
        let frame = arriving(frame, via);
        let id = pick(&IDS, id);
        let pieces = split(&frame, PART, id);
        for place in pick(&ORDERS, order) {
            self.let_pass(1)?;
            match *place {
                LATE => {
                    self.sweep()?;
                    self.let_pass(60 * HZ)?;
                    continue;
                }
                MOVED => {
                    self.change_addresses(shape.octets)?;
                    continue;
                }
                _ => {}
            }
            let bytes = &pieces[*place];
            let (action, out) = self.run_program(bytes, via)?;
            let fate;
            if *place == 0 {
                let packet = Packet {
                    key,
                    tcp_flags: if key.proto == TCP { SYN } else { 0 },
                    ttl: shape.ttl,
                    len: u16::try_from(bytes.len() - ETHERNET)?,
                    asks: !answers,
                    id: Some(id),
                };
                fate = self.fate_of(&packet, via)?;
                self.nat
                    .first_fragment(&packet, via, &fate, identification(&out));
            } else {
                let datagram = Datagram {
                    proto: key.proto,
                    src: key.src.addr,
                    dst: key.dst.addr,
                    id,
                };
                fate = self.nat.later_fragment(&datagram, via, shape.ttl);
            }
            let wanted = expected(&frame, &fate, answers);
            let left = match fate.went {
                Went::Forwarded(..) | Went::StackAs(..) => self.left_with(&key, id),
                Went::Stack | Went::Dropped => id,
            };
            self.judge(&fate, action, &out, &split(&wanted, PART, left)[*place])?;
            let held = self.bed.plane.held()?;
            let wanted = fate.also.contains(&"fragments_held");
            let wanted = wanted.then(|| bytes[ETHERNET..].to_vec());
            ensure!(held == wanted, "held {held:?} of {fate:?}");
        }
        Ok(())
    }

    /// Ends of a live session, or of others: a new one of each way, and a query to the router.
    fn ends_of(&self, which: u8) -> Option<(Key, Via)> {
        let at = |addr, port| Endpoint { addr, port };
        let key = |proto, src, dst| Key { proto, src, dst };
        Some(match which {
            0..16 => {
                let host = if which.is_multiple_of(2) { HOST } else { HOST2 };
                let proto = pick(&[UDP, TCP], which / 2);
                let via = if which < 12 {
                    Via::Lan
                } else {
                    Via::Stack { forwarded: true }
                };
                (key(proto, at(host, 5000), remote_of(which / 4 % 3)), via)
            }
            16..24 => (key(ICMP, at(remote_of(0).addr, 9), at(WAN, 0)), Via::Wan),
            24..32 => (key(UDP, remote_of(which % 3), at(WAN, 5000)), Via::Wan),
            _ => {
                let (key, half) = self.session(which)?;
                // Those of the router are the stack's business.
                if half.own {
                    return None;
                }
                let via = match half.way {
                    Way::In => Via::Wan,
                    Way::Out if which.is_multiple_of(4) => Via::Stack { forwarded: true },
                    Way::Out | Way::Turned => Via::Lan,
                };
                (key, via)
            }
        })
    }

    /// The identification that the datagram's fragments have now.
    fn left_with(&self, key: &Key, id: u16) -> u16 {
        let datagram = Datagram {
            proto: key.proto,
            src: key.src.addr,
            dst: key.dst.addr,
            id,
        };
        let note = self.nat.fragments.get(&datagram);
        note.and_then(|note| note.becomes)
            .map_or(id, |becomes| becomes.id)
    }
}

fn identification(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[ETHERNET + 4], bytes[ETHERNET + 5]])
}
