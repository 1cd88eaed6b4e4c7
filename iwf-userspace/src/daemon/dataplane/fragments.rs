//! The maps that the packet programs share with whoever holds fragments.

use std::io;

use aya::maps::{Array, HashMap, MapData, RingBuf};
use iwf_common::config::Config;
use iwf_common::flow6::{FragmentKey6, FragmentValue6};
use iwf_common::fragment::{FragmentFlags, FragmentKey, FragmentValue, HeldFlags, HeldFragment};
use iwf_common::{limits, tick};
use socket2::{Domain, Protocol, Socket};

use super::raw_socket;
use super::ring::{Record, Ring};

/// What all fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// Of IPv4.
    V4(FragmentKey),
    /// Of IPv6.
    V6(FragmentKey6),
}

/// What is known of the first fragment of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) enum First {
    /// What it was translated to.
    V4(FragmentValue),
    /// What it had of headers.
    V6(FragmentValue6),
}

/// A fragment that came before the first one of its datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Its datagram.
    pub(crate) key: Key,
    /// [`HeldFlags`].
    pub(crate) flags: u16,
    /// Its offset in octets, if it is IPv6's.
    pub(crate) offset6: u16,
    /// When it came.
    pub(crate) tick: u32,
    /// The IP packet.
    pub(crate) packet: Vec<u8>,
}

/// The ring of held fragments, and what is known of first ones.
pub(crate) struct FragmentTables {
    pub(super) ring: RingBuf<MapData>,
    pub(super) firsts: Firsts,
}

/// What is known of first fragments.
pub(crate) struct Firsts {
    pub(super) first: HashMap<MapData, FragmentKey, FragmentValue>,
    pub(super) first6: HashMap<MapData, FragmentKey6, FragmentValue6>,
    pub(super) config: Array<MapData, Config>,
    pub(super) hz: u32,
    /// Tick of the newest fragment taken: now, as far as this is concerned.
    pub(super) now: u32,
}

impl FragmentTables {
    /// Registers the ring with the runtime; the tables are for themselves.
    ///
    /// # Errors
    /// If the runtime refuses.
    pub(crate) fn watch(self) -> io::Result<(Ring<Taken>, Firsts)> {
        Ok((Ring::watch(self.ring)?, self.firsts))
    }
}

impl Firsts {
    /// A fragment was taken: it is that late.
    pub(crate) fn note(&mut self, taken: &Taken) {
        self.now = taken.tick;
    }

    /// The first fragment of a datagram, if it was let through within the reassembly time and its external address is
    /// still ours.
    pub(crate) fn first_of(&self, key: &Key) -> Option<First> {
        let fresh =
            |since, seconds: u32| tick::age(self.now, since) <= seconds.saturating_mul(self.hz);
        match key {
            Key::V4(key) => {
                let value = self.first.get(key, 0).ok()?;
                let is_one = value.flags & FragmentFlags::CLAIM == 0;
                let as_is = value.flags & FragmentFlags::AS_IS != 0;
                let ours = as_is || self.config.get(&0, 0).ok()?.owns_fragment(key, &value);
                (is_one && ours && fresh(value.tick, limits::REASSEMBLY))
                    .then_some(First::V4(value))
            }
            Key::V6(key) => {
                let value = self.first6.get(key, 0).ok()?;
                fresh(value.since, limits::FRAGMENT_TIME6).then_some(First::V6(value))
            }
        }
    }
}

/// What sends IPv4 packets as they are, fragments among them: the kernel adds nothing, and does not wait for the rest
/// of a datagram where a ruleset has it put datagrams together (ip(7), IP_NODEFRAG).
pub(crate) fn sender() -> io::Result<Socket> {
    // Nobody reads from it: a socket of this protocol receives nothing.
    let socket = raw_socket::open(Domain::IPV4, Protocol::from(libc::IPPROTO_RAW))?;
    let on: libc::c_int = 1;
    raw_socket::set(&socket, libc::IPPROTO_IP, IP_NODEFRAG, &on)?;
    Ok(socket)
}

/// The same for IPv6. A ruleset that tracks connections has the kernel put these together as well; it then looks for the
/// first one among what this machine sends, and not among what it has forwarded.
pub(crate) fn sender6() -> io::Result<Socket> {
    raw_socket::open(Domain::IPV6, Protocol::from(libc::IPPROTO_RAW))
}

/// linux/in.h.
const IP_NODEFRAG: libc::c_int = 22;

impl Record for Taken {
    fn read(record: &[u8]) -> Option<Self> {
        let octets = |at: usize| record.get(at..)?.first_chunk::<4>().copied();
        let half = |at: usize| Some(u16::from_ne_bytes(*record.get(at..)?.first_chunk()?));
        let (len, flags) = (usize::from(half(16)?), half(18)?);
        let packet = record.get(std::mem::offset_of!(HeldFragment, packet)..)?;
        let packet = packet.get(..len)?.to_vec();
        let key = if flags & HeldFlags::IPV6 == 0 {
            let [high, low, proto, _] = octets(8)?;
            Key::V4(FragmentKey {
                src: octets(0)?,
                dst: octets(4)?,
                id: [high, low],
                proto,
                pad: 0,
            })
        } else {
            // RFC 8200 section 3: the addresses are the second and third row of 16 octets, from the eighth octet on.
            Key::V6(FragmentKey6 {
                src: *packet.get(8..)?.first_chunk()?,
                dst: *packet.get(24..)?.first_chunk()?,
                id: octets(20)?,
                pad: 0,
            })
        };
        Some(Self {
            tick: u32::from_ne_bytes(octets(12)?),
            key,
            flags,
            offset6: half(24)?,
            packet,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_by_its_fields() {
        let mut record = Vec::new();
        record.extend([192, 168, 1, 10, 11, 22, 33, 4, 0x12, 0x34, 17, 0]);
        record.extend(77u32.to_ne_bytes());
        record.extend(5u16.to_ne_bytes());
        record.extend(1u16.to_ne_bytes());
        record.extend([0; 12]);
        record.extend(*b"packet and more");
        let taken = Taken::read(&record).expect("whole");
        assert_eq!(taken.tick, 77);
        assert_eq!((taken.flags, taken.packet.as_slice()), (1, &b"packe"[..]));
        let key = FragmentKey {
            src: [192, 168, 1, 10],
            dst: [11, 22, 33, 4],
            id: [0x12, 0x34],
            proto: 17,
            pad: 0,
        };
        assert_eq!(taken.key, Key::V4(key));
        assert!(Taken::read(&record[..34]).is_none());
    }

    #[test]
    fn a_record_of_ipv6_has_its_addresses_in_the_packet() {
        let mut record = vec![0; 12];
        record.extend(77u32.to_ne_bytes());
        record.extend(48u16.to_ne_bytes());
        record.extend(HeldFlags::IPV6.to_ne_bytes());
        record.extend([1, 2, 3, 4]);
        record.extend(1448u16.to_ne_bytes());
        record.extend([0; 6]);
        record.extend([0x60, 0, 0, 0, 0, 8, 44, 64]);
        record.extend([1; 16]);
        record.extend([2; 16]);
        record.extend([17, 0, 5, 0xa9, 1, 2, 3, 4]);
        let taken = Taken::read(&record).expect("whole");
        assert_eq!(
            (taken.tick, taken.offset6, taken.packet.len()),
            (77, 1448, 48)
        );
        let key = FragmentKey6 {
            src: [1; 16],
            dst: [2; 16],
            id: [1, 2, 3, 4],
            pad: 0,
        };
        assert_eq!(taken.key, Key::V6(key));
    }
}
