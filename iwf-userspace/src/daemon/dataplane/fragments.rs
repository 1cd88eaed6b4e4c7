//! The maps that the packet programs share with whoever holds fragments.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{HashMap, MapData, RingBuf};
use iwf_common::fragment::{FragmentFlags, FragmentKey, FragmentValue, HeldFragment};
use iwf_common::{limits, tick};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A fragment that came before the first one of its datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Its datagram.
    pub(crate) key: FragmentKey,
    /// [`iwf_common::fragment::HeldFlags`].
    pub(crate) flags: u16,
    /// The IPv4 packet.
    pub(crate) packet: Vec<u8>,
}

/// The ring of held fragments, and what is known of first ones.
pub(crate) struct FragmentTables {
    pub(super) ring: RingBuf<MapData>,
    pub(super) first: HashMap<MapData, FragmentKey, FragmentValue>,
    pub(super) hz: u32,
    /// Tick of the newest fragment taken: now, as far as this is concerned.
    pub(super) now: u32,
}

impl AsRawFd for FragmentTables {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl FragmentTables {
    /// Registers the ring with the runtime.
    ///
    /// # Errors
    /// If the runtime refuses.
    pub(crate) fn watch(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the ring owns its descriptor, always gives the same one, and closes it only when it is dropped.
        unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }
            .map_err(io::Error::from)
    }

    /// The next fragment of the ring.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        loop {
            let item = self.ring.next()?;
            if let Some((taken, tick)) = parse(&item) {
                self.now = tick;
                return Some(taken);
            }
        }
    }

    /// What the first fragment of a datagram was translated to, if it came within the reassembly time.
    pub(crate) fn first_of(&self, key: &FragmentKey) -> Option<FragmentValue> {
        let value = self.first.get(key, 0).ok()?;
        let fresh = tick::age(self.now, value.tick) <= limits::REASSEMBLY.saturating_mul(self.hz);
        (fresh && value.flags & FragmentFlags::CLAIM == 0).then_some(value)
    }
}

/// What sends IPv4 packets as they are, fragments among them: the kernel adds nothing, and does not wait for the rest
/// of a datagram where a ruleset has it put datagrams together (ip(7), IP_NODEFRAG).
pub(crate) fn sender() -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::IPV4,
        Type::RAW,
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )?;
    socket.set_nonblocking(true)?;
    // Nobody reads from it: a socket of this protocol receives nothing.
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is the socket's, and the value is an int of the length given.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            IP_NODEFRAG,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// linux/in.h.
const IP_NODEFRAG: libc::c_int = 22;

/// The struct as its fields lie in the record, and its tick; `None` if the record is shorter than it says.
fn parse(record: &[u8]) -> Option<(Taken, u32)> {
    let octets = |at: usize| record.get(at..)?.first_chunk::<4>().copied();
    let half = |at: usize| Some(u16::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    let [high, low, proto, _] = octets(8)?;
    let len = usize::from(half(16)?);
    let packet = record.get(std::mem::offset_of!(HeldFragment, packet)..)?;
    let taken = Taken {
        key: FragmentKey {
            src: octets(0)?,
            dst: octets(4)?,
            id: [high, low],
            proto,
            pad: 0,
        },
        flags: half(18)?,
        packet: packet.get(..len)?.to_vec(),
    };
    Some((taken, u32::from_ne_bytes(octets(12)?)))
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
        record.extend([0; 4]);
        record.extend(*b"packet and more");
        let (taken, tick) = parse(&record).expect("whole");
        assert_eq!(tick, 77);
        assert_eq!((taken.flags, taken.packet.as_slice()), (1, &b"packe"[..]));
        assert_eq!(taken.key.dst, [11, 22, 33, 4]);
        assert_eq!(taken.key.id, [0x12, 0x34]);
        assert!(parse(&record[..26]).is_none());
    }
}
