//! LAN hosts: how much of the tables each one holds, and which external address it has.
//!
//! Read before editing: RFC 4787 REQ-2 (paired pooling), RFC 6888 REQ-4 (limits per subscriber).
#![forbid(unsafe_code)]

/// Key of HOSTS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct HostKey {
    /// An IPv4 address as RFC 4291 section 2.5.5.2 maps it, or a station.
    pub addr: [u8; 16],
}

impl HostKey {
    /// The host with an IPv4 address.
    #[inline(always)]
    pub const fn v4(addr: [u8; 4]) -> Self {
        let [a, b, c, d] = addr;
        Self {
            addr: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
        }
    }

    /// The station with a MAC address, for IPv6: a host makes up as many addresses of its prefix as it likes. For a
    /// prefix that is routed to another router it is that router.
    #[inline(always)]
    pub const fn station(mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        Self {
            addr: [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f],
        }
    }
}

/// For [`HostKey::station`]: all addresses together that no neighbour answers for.
pub const UNKNOWN_STATION: [u8; 6] = [0; 6];
/// For [`HostKey::station`]: the CPE itself.
pub const OWN_STATION: [u8; 6] = [0xff; 6];

/// Value of HOSTS. What CPUs add to at the same time has 64 bits, because the compiler knows no shorter atomics here.
///
/// A session counts by its entries without [`crate::flow::SessionFlags::INBOUND`] and
/// [`crate::flow::SessionFlags::HOST`], for their source, of IPv6 by those without
/// [`crate::flow6::SessionFlags6::INBOUND`], for [`crate::flow6::SessionValue6::station`]; a mapping by its dynamic entry in MAPPINGS_INT. Whoever
/// puts such an entry into its table adds one, whoever takes it out subtracts one. The daemon, which cannot subtract
/// without losing a packet's addition, leaves that to the recount of the sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct HostValue {
    /// Sessions the host has.
    pub sessions: u64,
    /// Dynamic mappings the host has.
    pub mappings: u64,
    /// The external address of its dynamic mappings; 0.0.0.0: none chosen.
    pub external: [u8; 4],
    /// Tick at which it last began something. What began within [`crate::limits::GRACE`] may not be counted yet.
    pub last_used: u32,
    /// Steps with everything a packet adds or subtracts: what was counted while it moved is not to be believed.
    pub changes: u64,
    /// [`Self::changes`] when the recount began.
    pub marked: u64,
    /// Sessions the recount has met.
    pub met_sessions: u32,
    /// Dynamic mappings the recount has met.
    pub met_mappings: u32,
}

/// The external address of a host: the same one again while the pool is the same, however long the host was away.
///
/// `first` and then what `pool` has before its first 0.0.0.0 are the addresses to choose from.
#[inline(always)]
pub const fn paired<const N: usize>(
    host: &HostKey,
    first: [u8; 4],
    pool: &[[u8; 4]; N],
) -> [u8; 4] {
    let mut len = 1;
    let mut slot = 0;
    while slot < N {
        if u32::from_ne_bytes(pool[slot]) == 0 {
            break;
        }
        len += 1;
        slot += 1;
    }
    let [.., a, b, c, d] = host.addr;
    // Fibonacci hashing: neighbouring hosts fall into different slots.
    let hash = u32::from_be_bytes([a, b, c, d]).wrapping_mul(0x9e37_79b9);
    let chosen = ((hash as u64 * len as u64) >> 32) as usize;
    // Compared slot by slot: an index that the hash decides would have to be proved in bounds.
    let mut slot = 0;
    let mut addr = first;
    while slot < N {
        if slot + 1 == chosen {
            addr = pool[slot];
        }
        slot += 1;
    }
    addr
}

const _: () = assert!(size_of::<HostKey>() == 16 && align_of::<HostKey>() == 8);
const _: () = assert!(size_of::<HostValue>() == 48 && align_of::<HostValue>() == 8);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_host_alone_with_one_address_has_it() {
        let host = HostKey::v4([192, 168, 1, 10]);
        assert_eq!(paired(&host, [1; 4], &[[0; 4]; 7]), [1; 4]);
    }

    #[test]
    fn hosts_spread_evenly_and_keep_their_address() {
        let mut pool = [[0; 4]; 7];
        (pool[0], pool[1], pool[2]) = ([2; 4], [3; 4], [4; 4]);
        let mut hosts: BTreeMap<[u8; 4], u32> = BTreeMap::new();
        for last in 0..=255 {
            let host = HostKey::v4([192, 168, 1, last]);
            let addr = paired(&host, [1; 4], &pool);
            assert_eq!(addr, paired(&host, [1; 4], &pool));
            *hosts.entry(addr).or_default() += 1;
        }
        assert_eq!(hosts.len(), 4);
        assert!(hosts.values().all(|n| (56..=72).contains(n)), "{hosts:?}");
    }
}
