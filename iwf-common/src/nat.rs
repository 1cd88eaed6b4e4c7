//! Mappings: which external endpoint an internal one has, and who may use it from outside.
#![forbid(unsafe_code)]

use crate::limits;

/// Key of both mapping tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct EndpointKey {
    /// IPv4 address.
    pub addr: [u8; 4],
    /// Port, or the identifier of an ICMP query.
    pub port: [u8; 2],
    /// IANA protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

impl EndpointKey {
    /// An endpoint of `proto`.
    #[inline(always)]
    pub const fn new(addr: [u8; 4], port: [u8; 2], proto: u8) -> Self {
        Self {
            addr,
            port,
            proto,
            pad: 0,
        }
    }
}

/// The other side of a mapping. Both tables carry the same facts about it.
///
/// A session is good while MAPPINGS_EXT holds its external endpoint with its internal one behind it; an
/// entry of MAPPINGS_INT is good while MAPPINGS_EXT points back at it. So MAPPINGS_EXT decides, and replacing
/// one of its entries displaces whoever had it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct MappingValue {
    /// External address (MAPPINGS_INT) or internal address (MAPPINGS_EXT).
    pub addr: [u8; 4],
    /// Port of the same side.
    pub port: [u8; 2],
    /// [`MappingKind`].
    pub kind: u8,
    /// [`Filter`]. A dynamic mapping goes by the configuration's, whatever stands here.
    pub filter: u8,
    /// The mapping table's generation of an explicit mapping; 0 otherwise.
    pub generation: u32,
    /// Tick at which the mapping ends; 0: never.
    pub expires: u32,
    /// Tick of the last known outbound use. Kept in MAPPINGS_EXT; in MAPPINGS_INT it is the tick of creation.
    pub last_used: u32,
    /// The only remote prefix that may come in; 0.0.0.0/0 is everybody.
    pub remote_addr: [u8; 4],
    /// Mask of [`Self::remote_addr`].
    pub remote_mask: [u8; 4],
    /// [`MappingFlags`].
    pub flags: u32,
    /// Packets of ended sessions to the WAN. The four counters are kept in MAPPINGS_EXT.
    pub packets_out: u64,
    /// Octets of ended sessions to the WAN.
    pub octets_out: u64,
    /// Packets of ended sessions from the WAN.
    pub packets_in: u64,
    /// Octets of ended sessions from the WAN.
    pub octets_in: u64,
}

impl MappingValue {
    /// The endpoint this value names, for `proto`.
    #[inline(always)]
    pub const fn endpoint(&self, proto: u8) -> EndpointKey {
        EndpointKey::new(self.addr, self.port, proto)
    }

    /// Whether `remote` is inside the mapping's remote prefix.
    #[inline(always)]
    pub const fn admits(&self, remote: [u8; 4]) -> bool {
        let mask = u32::from_ne_bytes(self.remote_mask);
        u32::from_ne_bytes(remote) & mask == u32::from_ne_bytes(self.remote_addr) & mask
    }

    /// The [`Filter`] in force, with `dynamic` for mappings that outbound packets have made: so that another
    /// configuration holds at once for all of them.
    #[inline(always)]
    pub const fn filter_in_force(&self, dynamic: u8) -> u8 {
        if self.kind == MappingKind::Dynamic as u8 {
            dynamic
        } else {
            self.filter
        }
    }

    /// Whether the mapping's promised lifetime is over at `now`.
    #[inline(always)]
    pub const fn expired(&self, now: u32) -> bool {
        crate::tick::deadline_passed(now, self.expires)
    }
}

/// Mask of a prefix length, in network order. Lengths over 32 count as 32.
pub const fn mask(prefix_len: u8) -> [u8; 4] {
    let host_bits = 32u32.saturating_sub(prefix_len as u32);
    (((u32::MAX as u64) << host_bits) as u32).to_be_bytes()
}

/// Why a mapping exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MappingKind {
    /// Made by an outbound packet; ends when idle.
    Dynamic = 1,
    /// Asked for (UPnP, PCP, NAT-PMP, configuration); ends at its expiry and never by idling.
    Explicit = 2,
    /// The CPE's own: what the stack sends and receives with the WAN address. The internal endpoint has the
    /// WAN address.
    Host = 3,
}

/// Whom a mapping lets in without a session (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Filter {
    /// Only endpoints the internal host has sent to: sessions only.
    AddressAndPortDependent = 1,
    /// Everybody in the remote prefix, on every port.
    EndpointIndependent = 2,
    /// Endpoints of every port at addresses the internal host has sent to.
    AddressDependent = 3,
}

/// Bits of [`MappingValue::flags`].
pub struct MappingFlags;

impl MappingFlags {
    /// Written by the daemon for a service of the CPE; the sweep leaves it alone.
    pub const STATIC: u32 = 1;
    /// Whom the mapping admits stands in a list of its own, not in `remote_addr`.
    pub const FILTER_LIST: u32 = 2;
    /// One more external endpoint of an internal one that has another: outbound packets do not use it.
    pub const SECONDARY: u32 = 4;
}

/// Key of PEERS: an external endpoint of ours and a remote address it has sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct PeerKey {
    /// The mapping's external endpoint.
    pub external: EndpointKey,
    /// The remote host.
    pub remote: [u8; 4],
}

/// Value of PEERS. An external endpoint may become another host's: then what the last one has sent counts for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct PeerValue {
    /// Who has sent.
    pub internal: EndpointKey,
    /// Tick of the last known packet.
    pub last_used: u32,
}

/// Value of FILTERS, keyed by the external endpoint: who may come in by a mapping with
/// [`MappingFlags::FILTER_LIST`] (RFC 6887 section 13.3). A remote that one entry admits is admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct FilterList {
    /// How many of [`Self::entries`] count; 0 admits nobody.
    pub len: u32,
    /// The first [`Self::len`] count, the others are zero.
    pub entries: [FilterEntry; limits::FILTER_ENTRIES],
}

/// A remote prefix, on one port or on all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct FilterEntry {
    /// An address of the prefix.
    pub addr: [u8; 4],
    /// Its mask, in network order.
    pub mask: [u8; 4],
    /// The remote port; 0: every one.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

impl FilterEntry {
    /// Whether the remote endpoint is one of this entry's.
    #[inline(always)]
    pub const fn admits(&self, addr: [u8; 4], port: [u8; 2]) -> bool {
        let mask = u32::from_ne_bytes(self.mask);
        let differs = (u32::from_ne_bytes(addr) ^ u32::from_ne_bytes(self.addr)) & mask;
        let wanted = u16::from_ne_bytes(self.port);
        differs == 0 && (wanted == 0 || wanted == u16::from_ne_bytes(port))
    }
}

impl FilterList {
    /// Whether any entry admits the remote endpoint. Every slot is compared: the loop has a fixed length.
    #[inline(always)]
    pub fn admits(&self, addr: [u8; 4], port: [u8; 2]) -> bool {
        let mut found = false;
        for (at, entry) in (0u32..).zip(&self.entries) {
            found |= at < self.len && entry.admits(addr, port);
        }
        found
    }
}

const _: () = assert!(size_of::<PeerKey>() == 12 && size_of::<PeerValue>() == 12);
const _: () = assert!(size_of::<FilterEntry>() == 12);
const _: () = assert!(size_of::<FilterList>() == 100 && align_of::<FilterList>() == 4);
const _: () = assert!(size_of::<EndpointKey>() == 8 && align_of::<EndpointKey>() == 4);
const _: () = assert!(size_of::<MappingValue>() == 64 && align_of::<MappingValue>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        assert_eq!(mask(0), [0; 4]);
        assert_eq!(mask(1), [128, 0, 0, 0]);
        assert_eq!(mask(24), [255, 255, 255, 0]);
        assert_eq!(mask(32), [255; 4]);
        assert_eq!(mask(200), [255; 4]);
    }

    #[test]
    fn a_list_admits_what_one_of_its_entries_admits() {
        let mut list = FilterList::default();
        let entry = |addr, len, port: u16| FilterEntry {
            addr,
            mask: mask(len),
            port: port.to_be_bytes(),
            pad: [0; 2],
        };
        let remote = [11, 22, 33, 4];
        assert!(!list.admits(remote, [0, 80]), "nobody yet");
        list.entries[0] = entry([11, 22, 33, 0], 24, 443);
        assert!(!list.admits(remote, 443u16.to_be_bytes()), "not in use");
        list.len = 2;
        list.entries[1] = entry([198, 51, 100, 7], 32, 0);
        assert!(list.admits(remote, 443u16.to_be_bytes()));
        assert!(!list.admits(remote, 80u16.to_be_bytes()));
        assert!(!list.admits([11, 22, 34, 4], 443u16.to_be_bytes()));
        assert!(list.admits([198, 51, 100, 7], 9u16.to_be_bytes()));
        assert!(!list.admits([198, 51, 100, 8], 9u16.to_be_bytes()));
        // The unspecified address with length 0 is everybody.
        list.entries[1] = entry([0; 4], 0, 0);
        assert!(list.admits([8, 8, 8, 8], 9u16.to_be_bytes()));
    }

    #[test]
    fn remote_prefix() {
        let any = MappingValue::default();
        assert!(any.admits([11, 22, 33, 4]));
        let one = MappingValue {
            remote_addr: [11, 22, 33, 4],
            remote_mask: mask(32),
            ..any
        };
        assert!(one.admits([11, 22, 33, 4]));
        assert!(!one.admits([11, 22, 33, 5]));
    }
}
