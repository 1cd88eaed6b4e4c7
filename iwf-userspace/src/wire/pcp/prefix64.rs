//! The PREFIX64 option (RFC 7225 section 4.1).
//!
//! ```text
//!  0 octets of the prefix, n (2)   2 prefix (n)   2+n suffix (12-n)
//! 14 number of IPv4 prefixes (2)   16 length (2), address (4)   22 length, address ...
//! ```
//! What follows octet 14 may be missing.

use std::net::Ipv4Addr;

/// Octets that prefix and suffix have together.
const WHOLE: usize = 12;

/// A prefix of a NAT64, and for which IPv4 destinations it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix64 {
    octets: [u8; WHOLE],
    len: u8,
    destinations: Vec<(Ipv4Addr, u8)>,
}

impl Prefix64 {
    /// What a client asks with: `::/96`, no list.
    pub const ASK: Self = Self {
        octets: [0; WHOLE],
        len: 12,
        destinations: Vec::new(),
    };

    /// A prefix of `len` octets and the suffix behind it. `None` if RFC 6052 knows no such length. Destinations that are
    /// no IPv4 prefixes are left out.
    pub fn new(octets: [u8; WHOLE], len: u8, destinations: &[(Ipv4Addr, u8)]) -> Option<Self> {
        matches!(len, 4..=8 | 12).then(|| Self {
            octets,
            len,
            destinations: destinations
                .iter()
                .copied()
                .filter(|(addr, len)| is_prefix(*addr, *len))
                .collect(),
        })
    }

    /// The prefix.
    pub fn prefix(&self) -> &[u8] {
        self.octets
            .get(..usize::from(self.len))
            .unwrap_or(&self.octets)
    }

    /// What stands behind the IPv4 address.
    pub fn suffix(&self) -> &[u8] {
        self.octets.get(usize::from(self.len)..).unwrap_or_default()
    }

    /// IPv4 prefixes of the destinations it is good for; none: of all.
    pub fn destinations(&self) -> &[(Ipv4Addr, u8)] {
        &self.destinations
    }

    pub(super) fn decode(data: &[u8]) -> Option<Self> {
        let (len, rest) = data.split_first_chunk::<2>()?;
        let (octets, rest) = rest.split_first_chunk::<WHOLE>()?;
        let len = u8::try_from(u16::from_be_bytes(*len)).ok()?;
        let mut destinations = Vec::new();
        if let Some((count, list)) = rest.split_first_chunk::<2>() {
            let (entries, left) = list.as_chunks::<6>();
            if entries.len() != usize::from(u16::from_be_bytes(*count)) || !left.is_empty() {
                return None;
            }
            for [l0, l1, a, b, c, d] in entries {
                // RFC 7225 section 4.3: one that cannot be is ignored, alone.
                let bits = u8::try_from(u16::from_be_bytes([*l0, *l1])).unwrap_or(u8::MAX);
                destinations.push((Ipv4Addr::new(*a, *b, *c, *d), bits));
            }
        } else if !rest.is_empty() {
            return None;
        }
        Self::new(*octets, len, &destinations)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0, self.len];
        out.extend_from_slice(&self.octets);
        if !self.destinations.is_empty() {
            let count = u16::try_from(self.destinations.len()).unwrap_or(u16::MAX);
            out.extend_from_slice(&count.to_be_bytes());
            for (addr, len) in &self.destinations {
                out.extend_from_slice(&[0, *len]);
                out.extend_from_slice(&addr.octets());
            }
        }
        out
    }
}

fn is_prefix(addr: Ipv4Addr, len: u8) -> bool {
    let host_bits = u32::MAX.checked_shr(len.into()).unwrap_or(0);
    len <= 32 && u32::from(addr) & host_bits == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_and_suffix_are_told_apart() {
        let octets = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        for len in 0..=20 {
            let made = Prefix64::new(octets, len, &[]);
            assert_eq!(made.is_some(), [4, 5, 6, 7, 8, 12].contains(&len));
            let Some(made) = made else { continue };
            assert_eq!(made.prefix().len(), usize::from(len));
            assert_eq!([made.prefix(), made.suffix()].concat(), octets);
            assert_eq!(Prefix64::decode(&made.encode()), Some(made));
        }
    }

    #[test]
    fn destinations_that_cannot_be_are_ignored_alone() {
        let mut data = Prefix64::ASK.encode();
        data.extend([0, 3]);
        data.extend([0, 24, 192, 0, 2, 0]);
        data.extend([0, 33, 192, 0, 2, 0]);
        data.extend([0, 8, 192, 0, 2, 0]);
        let read = Prefix64::decode(&data).expect("well formed");
        assert_eq!(read.destinations(), [(Ipv4Addr::new(192, 0, 2, 0), 24)]);
        data.pop();
        assert_eq!(Prefix64::decode(&data), None);
        assert_eq!(Prefix64::decode(&data[..13]), None);
        assert_eq!(Prefix64::decode(&data[..15]), None);
    }
}
