//! The order in which the addresses of a server are tried.
//!
//! Read before editing: RFC 6724 sections 2.1, 3.1, 3.2 and 6. Rules 3, 4 and 7 concern addresses of ours that are
//! deprecated, of mobile nodes or of tunnels, which the WAN has none of.
#![forbid(unsafe_code)]

use std::cmp::{Ordering, Reverse};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// RFC 6724 section 2.1: prefix, its length, precedence, label.
const POLICY: [(Ipv6Addr, u8, u8, u8); 9] = [
    (Ipv6Addr::LOCALHOST, 128, 50, 0),
    (Ipv6Addr::UNSPECIFIED, 0, 40, 1),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, 35, 4),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, 30, 2),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, 5, 5),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, 3, 13),
    (Ipv6Addr::UNSPECIFIED, 96, 1, 3),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, 1, 11),
    (Ipv6Addr::new(0x3ffe, 0, 0, 0, 0, 0, 0, 0), 16, 1, 12),
];

/// The addresses that can be reached from one of `sources`, best first (RFC 7488 section 3, item 2).
pub fn sorted(addresses: &[SocketAddr], sources: &[IpAddr]) -> Vec<SocketAddr> {
    let reachable = addresses.iter().filter_map(|address| {
        let source = source_for(address.ip(), sources)?;
        Some((*address, source))
    });
    let mut reachable: Vec<_> = reachable.collect();
    // Stable: rule 10.
    reachable.sort_by(|a, b| compare((a.0.ip(), a.1), (b.0.ip(), b.1)));
    reachable.into_iter().map(|(address, _)| address).collect()
}

/// The source for a destination: of its family, of the same scope, of the same label, with the longest prefix in
/// common (section 5, rules 2, 6 and 8).
fn source_for(to: IpAddr, sources: &[IpAddr]) -> Option<IpAddr> {
    let usable = sources.iter().filter(|from| from.is_ipv4() == to.is_ipv4());
    let best = usable.max_by_key(|from| {
        let (_, label) = policy(**from);
        let same_label = label == policy(to).1;
        (scope(**from) == scope(to), same_label, common(**from, to))
    });
    best.copied()
}

fn compare(a: (IpAddr, IpAddr), b: (IpAddr, IpAddr)) -> Ordering {
    let key = |(to, from): (IpAddr, IpAddr)| {
        let (precedence, label) = policy(to);
        (
            // Rule 2, rule 5, rule 6, rule 8.
            Reverse(scope(to) == scope(from)),
            Reverse(label == policy(from).1),
            Reverse(precedence),
            scope(to),
        )
    };
    // Rule 9 compares within a family only.
    let nearer = || match a.0.is_ipv4() == b.0.is_ipv4() {
        true => common(b.0, b.1).cmp(&common(a.0, a.1)),
        false => Ordering::Equal,
    };
    key(a).cmp(&key(b)).then_with(nearer)
}

fn mapped(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
        IpAddr::V6(addr) => addr,
    }
}

/// Precedence and label of the longest prefix that fits.
fn policy(addr: IpAddr) -> (u8, u8) {
    let addr = mapped(addr);
    let fits = POLICY
        .iter()
        .filter(|(prefix, len, ..)| shared(addr, *prefix) >= u32::from(*len));
    let longest = fits.max_by_key(|(_, len, ..)| *len);
    longest.map_or((40, 1), |(_, _, precedence, label)| (*precedence, *label))
}

/// Section 3.1 and 3.2: link-local is 2, all else global, 14.
fn scope(addr: IpAddr) -> u8 {
    let link = match addr {
        IpAddr::V4(addr) => addr.is_link_local() || addr.is_loopback(),
        IpAddr::V6(addr) => addr.is_unicast_link_local() || addr.is_loopback(),
    };
    if link { 2 } else { 14 }
}

/// Bits in common; of IPv6 addresses the first 64 count, as the rest names the interface.
fn common(a: IpAddr, b: IpAddr) -> u32 {
    let bits = shared(mapped(a), mapped(b));
    if a.is_ipv4() { bits } else { bits.min(64) }
}

fn shared(a: Ipv6Addr, b: Ipv6Addr) -> u32 {
    (u128::from(a) ^ u128::from(b)).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(addresses: &[&str], sources: &[&str]) -> Vec<String> {
        let addr = |text: &&str| text.parse::<IpAddr>().unwrap();
        let addresses: Vec<_> = addresses
            .iter()
            .map(|text| SocketAddr::new(addr(text), 5351))
            .collect();
        let sources: Vec<_> = sources.iter().map(addr).collect();
        let sorted = sorted(&addresses, &sources);
        sorted.iter().map(|at| at.ip().to_string()).collect()
    }

    #[test]
    fn what_cannot_be_reached_is_left_out() {
        let both = ["2001:db8::1", "192.0.2.1"];
        assert_eq!(order(&both, &["100.64.0.2"]), ["192.0.2.1"]);
        assert_eq!(order(&both, &["2001:db8::2"]), ["2001:db8::1"]);
        assert!(order(&both, &[]).is_empty());
    }

    #[test]
    fn examples_of_section_10_2() {
        for (addresses, sources, first) in [
            (
                ["2001:db8:1::1", "198.51.100.121"],
                vec!["2001:db8:1::2", "fe80::1", "169.254.13.78"],
                "2001:db8:1::1",
            ),
            (
                ["2001:db8:1::1", "198.51.100.121"],
                vec!["fe80::1", "198.51.100.117"],
                "198.51.100.121",
            ),
            (
                ["2001:db8:1::1", "10.1.2.3"],
                vec!["2001:db8:1::2", "fe80::1", "10.1.2.4"],
                "2001:db8:1::1",
            ),
            (
                ["2001:db8:1::1", "2001:db8:3ffe::1"],
                vec!["2001:db8:1::2", "2001:db8:3f44::2", "fe80::2"],
                "2001:db8:1::1",
            ),
            (
                ["2002:c633:6401::1", "2001:db8:1::1"],
                vec!["2002:c633:6401::2", "fe80::2"],
                "2002:c633:6401::1",
            ),
            (
                ["2002:c633:6401::1", "2001:db8:1::1"],
                vec!["2002:c633:6401::2", "2001:db8:1::2", "fe80::2"],
                "2001:db8:1::1",
            ),
        ] {
            for addresses in [addresses, [addresses[1], addresses[0]]] {
                assert_eq!(order(&addresses, &sources)[0], first, "{addresses:?}");
            }
        }
    }

    #[test]
    fn of_one_family_the_nearer_one_is_first_and_equals_keep_their_order() {
        let sources = ["100.64.0.2"];
        assert_eq!(
            order(&["192.0.2.1", "100.64.7.7", "198.51.100.1"], &sources),
            ["100.64.7.7", "192.0.2.1", "198.51.100.1"]
        );
        let equal = ["192.0.2.9", "192.0.2.1"];
        assert_eq!(order(&equal, &sources), equal);
    }
}
