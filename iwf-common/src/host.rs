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

    /// The MAC address of a station.
    pub const fn mac(&self) -> Option<[u8; 6]> {
        let [.., a, b, c, d, e, f] = self.addr;
        if self.is_station() {
            Some([a, b, c, d, e, f])
        } else {
            None
        }
    }

    /// Whether this is a station, and not an address.
    #[inline(always)]
    pub const fn is_station(&self) -> bool {
        self.addr[0] != 0
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
    /// The external address that its newest dynamic mapping was to get; 0.0.0.0: it has asked for none.
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

/// What all LAN hosts have together: the only entry of TOTALS. Every change of a [`HostValue`] is one of this as well.
/// Should it have come apart from HOSTS all the same, a pass of the sweep adds up again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Totals {
    /// Steps before a packet changes a host's numbers and the sums they are in, each by one at most. The first field,
    /// because whoever reads the entry reads it first.
    pub changes: u64,
    /// Sum of [`HostValue::sessions`] of IPv4 addresses.
    pub sessions: u64,
    /// Sum of [`HostValue::mappings`].
    pub mappings: u64,
    /// Sum of [`HostValue::sessions`] of stations.
    pub sessions6: u64,
}

/// Whether a host that has `held` entries of a table may have one more: while it has less than its `share`, and less
/// than what the `total` of all hosts leaves of the table's `room`. A host alone has its share. Hosts that all want as
/// much as they can get end up with equally much, and as much again is left for whoever comes later: n such hosts
/// leave one part in n + 1 (Choudhury and Hahne's dynamic threshold, 1998).
#[inline(always)]
pub const fn may_have_one_more(held: u64, share: u32, total: u64, room: u32) -> bool {
    // Should the sum have become less than nothing, it bounds nobody.
    let free = room as i64 - if total as i64 > 0 { total as i64 } else { 0 };
    held < share as u64 && (held as i64) < free
}

/// The external address of a host: the same one again while it is there, however long the host was away and whatever
/// becomes of the others. An address more takes its share of the hosts of each other one, an address less gives its
/// hosts to all of them.
///
/// `first` and what is not 0.0.0.0 in `pool` are the addresses to choose from.
#[inline(always)]
pub const fn paired<const N: usize>(
    host: &HostKey,
    first: [u8; 4],
    pool: &[[u8; 4]; N],
) -> [u8; 4] {
    let [.., a, b, c, d] = host.addr;
    let host = u32::from_be_bytes([a, b, c, d]);
    let mut chosen = u32::from_be_bytes(first);
    let mut most = weight(host, chosen);
    let mut slot = 0;
    while slot < N {
        let addr = u32::from_be_bytes(pool[slot]);
        let weight = weight(host, addr);
        if addr != 0 && weight > most {
            chosen = addr;
            most = weight;
        }
        slot += 1;
    }
    chosen.to_be_bytes()
}

/// How much an address is a host's: highest random weight (Thaler and Ravishankar, 1998). The numbers spread the bits
/// of hosts and addresses that differ in the last ones only; of them is asked no more than that.
#[inline(always)]
const fn weight(host: u32, addr: u32) -> u32 {
    let mut bits = host.wrapping_mul(0x9e37_79b9) ^ addr.wrapping_mul(0x85eb_ca6b);
    bits = (bits ^ (bits >> 16)).wrapping_mul(0x7feb_352d);
    bits = (bits ^ (bits >> 15)).wrapping_mul(0x846c_a68b);
    bits ^ (bits >> 16)
}

const _: () = assert!(size_of::<HostKey>() == 16 && align_of::<HostKey>() == 8);
const _: () = assert!(size_of::<Totals>() == 32 && align_of::<Totals>() == 8);
const _: () = assert!(size_of::<HostValue>() == 48 && align_of::<HostValue>() == 8);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeMap;

    use super::*;

    const POOL: [[u8; 4]; 7] = [
        [100, 64, 0, 3],
        [0; 4],
        [100, 64, 0, 4],
        [0; 4],
        [0; 4],
        [100, 64, 0, 5],
        [0; 4],
    ];
    const FIRST: [u8; 4] = [100, 64, 0, 2];

    fn hosts() -> impl Iterator<Item = HostKey> {
        (0..=255).map(|last| HostKey::v4([192, 168, 1, last]))
    }

    #[test]
    fn a_host_alone_with_one_address_has_it() {
        assert_eq!(
            paired(&HostKey::v4([192, 168, 1, 10]), [1; 4], &[[0; 4]; 7]),
            [1; 4]
        );
    }

    /// `greedy` hosts that take all they can get of 1000 entries, a quarter each at most.
    fn fill(greedy: usize) -> (std::vec::Vec<u64>, u64) {
        let mut held = std::vec![0; greedy];
        loop {
            let before = held.clone();
            for host in 0..greedy {
                let total = held.iter().sum();
                if may_have_one_more(held[host], 250, total, 1000) {
                    held[host] += 1;
                }
            }
            if held == before {
                let total = held.iter().sum();
                return (held, total);
            }
        }
    }

    #[test]
    fn no_number_of_greedy_hosts_takes_all() {
        assert_eq!(fill(1).1, 250);
        assert_eq!(fill(3).1, 750);
        for greedy in [4, 5, 8, 50] {
            let (held, total) = fill(greedy);
            let part = 1000 / (greedy as u64 + 1);
            assert!(held.iter().all(|n| n.abs_diff(part) <= 1), "{held:?}");
            assert!(may_have_one_more(part / 2, 250, total, 1000), "{greedy}");
        }
        assert!(!may_have_one_more(0, 250, 1001, 1000));
    }

    #[test]
    fn hosts_spread_evenly() {
        let mut shares: BTreeMap<[u8; 4], u32> = BTreeMap::new();
        for host in hosts() {
            *shares.entry(paired(&host, FIRST, &POOL)).or_default() += 1;
        }
        assert_eq!(shares.len(), 4);
        assert!(shares.values().all(|n| (48..=80).contains(n)), "{shares:?}");
    }

    #[test]
    fn who_keeps_his_address_is_not_moved() {
        let mut fewer = POOL;
        fewer[2] = [0; 4];
        let mut turned = POOL;
        turned.reverse();
        for host in hosts() {
            let addr = paired(&host, FIRST, &POOL);
            let after = paired(&host, FIRST, &fewer);
            assert!(after == addr || addr == POOL[2]);
            assert_eq!(paired(&host, FIRST, &turned), addr, "order means nothing");
            // The first one as well is one among others.
            let mut rest = POOL;
            rest[5] = FIRST;
            assert_eq!(paired(&host, POOL[5], &rest), addr);
        }
    }
}
