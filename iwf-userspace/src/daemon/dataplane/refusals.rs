//! The maps that the packet programs share with whoever tells the senders of refused packets.

use std::io;
use std::net::{IpAddr, SocketAddr};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues, RingBuf};
use iwf_common::config::Config;
use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::flow6::{SessionKey6, SessionValue6};
use iwf_common::reason::Done;
use iwf_common::refusal::{RefusedPacket, Side};
use socket2::{Domain, Protocol, Socket};

use super::raw_socket;
use super::ring::{Record, Ring};

/// IANA protocol number.
const TCP: u8 = 6;

/// The head of a packet that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Where it was met.
    pub(crate) side: Side,
    /// From the IP header on.
    pub(crate) head: Vec<u8>,
}

/// The ring of refused packets, and what is asked before they are answered.
pub(crate) struct RefusalTables {
    pub(super) ring: RingBuf<MapData>,
    pub(super) tables: Refusals,
}

/// What is asked before a refused packet is answered.
pub(crate) struct Refusals {
    pub(super) sessions: HashMap<MapData, SessionKey, SessionValue>,
    pub(super) sessions6: HashMap<MapData, SessionKey6, SessionValue6>,
    pub(super) config: Array<MapData, Config>,
    pub(super) counters: PerCpuArray<MapData, u64>,
}

impl RefusalTables {
    /// Registers the ring with the runtime; the tables are for themselves.
    ///
    /// # Errors
    /// If the runtime refuses.
    pub(crate) fn watch(self) -> io::Result<(Ring<Taken>, Refusals)> {
        Ok((Ring::watch(self.ring)?, self.tables))
    }
}

impl Refusals {
    /// Whether there is a session for TCP segments from `from` to `to`, or was a moment ago.
    pub(crate) fn has_session(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let ports = (from.port().to_be_bytes(), to.port().to_be_bytes());
        match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (from, to) = (from.octets(), to.octets());
                let key = SessionKey::new(from, ports.0, to, ports.1, TCP);
                self.sessions.get(&key, 0).is_ok()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let (from, to) = (from.octets(), to.octets());
                let key = SessionKey6::new(from, ports.0, to, ports.1, TCP);
                self.sessions6.get(&key, 0).is_ok()
            }
            _ => false,
        }
    }

    /// Whether the configuration allows an error about a packet of `side` that was for `to`, by now: an external
    /// address may have become somebody else's.
    pub(crate) fn allows(&self, side: Side, to: IpAddr) -> bool {
        let Ok(config) = self.config.get(&0, 0) else {
            return false;
        };
        let ours = match to {
            IpAddr::V4(to) if side == Side::Wan => {
                let routed = config.is_routed() && config.in_lan(to.octets());
                routed || config.is_external(to.octets())
            }
            IpAddr::V4(_) | IpAddr::V6(_) => true,
        };
        ours && config.flags & side.flag() != 0
    }

    /// Whether `addr` is an external address of ours, so that errors come from it.
    pub(crate) fn is_external(&self, addr: IpAddr) -> bool {
        let config = self.config.get(&0, 0);
        match addr {
            IpAddr::V4(addr) => config.is_ok_and(|config| config.is_external(addr.octets())),
            IpAddr::V6(_) => false,
        }
    }

    /// Adds one to a counter that no program writes.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn count(&mut self, what: Done) -> io::Result<()> {
        let slot = what.slot();
        let mut per_cpu: Vec<u64> = self
            .counters
            .get(&slot, 0)
            .map_err(super::maps::to_io)?
            .to_vec();
        if let Some(first) = per_cpu.first_mut() {
            *first += 1;
        }
        let values = PerCpuValues::try_from(per_cpu)?;
        let written = self.counters.set(slot, values, 0);
        written.map_err(super::maps::to_io)
    }
}

/// What sends ICMPv6 messages, and takes none in.
pub(crate) fn sender6() -> io::Result<Socket> {
    // linux/icmpv6.h: one bit per type that is kept out.
    const ICMPV6_FILTER: libc::c_int = 1;
    let all: [u32; 8] = [u32::MAX; 8];
    let socket = raw_socket::open(Domain::IPV6, Protocol::ICMPV6)?;
    raw_socket::set(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &all)?;
    Ok(socket)
}

impl Record for Taken {
    fn read(record: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(*record.get(at..)?.first_chunk()?));
        let len = usize::try_from(word(std::mem::offset_of!(RefusedPacket, len))?).ok()?;
        let packet = record.get(std::mem::offset_of!(RefusedPacket, packet)..)?;
        Some(Self {
            side: Side::from_number(word(std::mem::offset_of!(RefusedPacket, side))?)?,
            head: packet.get(..len)?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_by_its_fields() {
        let mut record = Vec::new();
        for word in [96, Side::Forwarded as u32, 5, 0] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(*b"packet and more");
        let taken = Taken::read(&record).expect("whole");
        assert_eq!(taken.side, Side::Forwarded);
        assert_eq!(taken.head, b"packe");
        assert!(Taken::read(&record[..20]).is_none());
        record[4] = 9;
        assert!(Taken::read(&record).is_none(), "of another version");
    }
}
