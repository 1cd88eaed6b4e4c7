//! The DHCP options that name PCP servers.
//!
//! Read before editing: RFC 7291 sections 3 and 4.
//!
//! ```text
//! 158 (DHCPv4)   length of the list (1)   addresses (4 each)   ... once per server
//!  86 (DHCPv6)   addresses (16 each)                           one instance per server
//! ```
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Servers taken from one answer; the others are left out, and counted.
pub const MAX_SERVERS: usize = 4;
/// Addresses taken of one server.
pub const MAX_ADDRESSES: usize = 4;

/// Addresses by server, as the option has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    /// At most [`MAX_SERVERS`] of at most [`MAX_ADDRESSES`]; none is empty.
    pub lists: Vec<Vec<IpAddr>>,
    /// Addresses that were left out: nobody can be asked there, or there were too many.
    pub discarded: u32,
}

/// Why the whole option is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// RFC 7291 section 4.1: at least 5 octets, or section 3.1: one address.
    #[error("option of {have} octets is too short")]
    Short {
        /// Its length.
        have: usize,
    },
    /// Lists are of whole addresses and at least one.
    #[error("list of {have} octets is not of whole addresses")]
    BadList {
        /// The length it states.
        have: usize,
    },
    /// It reaches beyond the option.
    #[error("list of {stated} octets where {have} are left")]
    LongList {
        /// The length it states.
        stated: usize,
        /// What is left of the option.
        have: usize,
    },
}

impl Servers {
    /// Reads the value of option 158 of DHCPv4.
    ///
    /// # Errors
    /// A length is wrong: nothing that follows it can be trusted, so all of it is discarded.
    pub fn from_option158(value: &[u8]) -> Result<Self, OptionError> {
        if value.len() < 5 {
            return Err(OptionError::Short { have: value.len() });
        }
        let mut servers = Self::default();
        let mut rest = value;
        while let Some((&length, tail)) = rest.split_first() {
            let stated = usize::from(length);
            let long = OptionError::LongList {
                stated,
                have: tail.len(),
            };
            let (list, tail) = tail.split_at_checked(stated).ok_or(long)?;
            let (addresses, []) = list.as_chunks::<4>() else {
                return Err(OptionError::BadList { have: stated });
            };
            if addresses.is_empty() {
                return Err(OptionError::BadList { have: stated });
            }
            servers.add(
                addresses
                    .iter()
                    .map(|octets| Ipv4Addr::from(*octets).into()),
            );
            rest = tail;
        }
        Ok(servers)
    }

    /// Reads the values of all instances of option 86 of DHCPv6. One with a wrong length is left out alone, as the
    /// others do not depend on it: its error comes with them.
    pub fn from_option86(instances: &[Vec<u8>]) -> (Self, Option<OptionError>) {
        let mut servers = Self::default();
        let mut error = None;
        for value in instances {
            match value.as_chunks::<16>() {
                ([], _) => error = Some(OptionError::Short { have: value.len() }),
                (addresses, []) => servers.add(
                    addresses
                        .iter()
                        .map(|octets| Ipv6Addr::from(*octets).to_canonical()),
                ),
                (_, _) => error = Some(OptionError::BadList { have: value.len() }),
            }
        }
        (servers, error)
    }

    /// Adds one server.
    pub fn add(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        let mut list: Vec<IpAddr> = Vec::new();
        let room = self.lists.len() < MAX_SERVERS;
        for addr in addresses {
            if room && list.len() < MAX_ADDRESSES && is_host(addr) {
                if !list.contains(&addr) {
                    list.push(addr);
                }
            } else {
                self.discarded = self.discarded.saturating_add(1);
            }
        }
        if !list.is_empty() {
            self.lists.push(list);
        }
    }
}

/// Octets from hexadecimal digits, as DHCP clients write them: without anything between (`08c0000201`), or with a colon
/// or a space, where a leading zero may be missing (`8:c0:0:2:1`).
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let octet = |digits: &str| {
        let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    };
    let text = text.trim();
    if text.contains([':', ' ']) {
        return text.split([':', ' ']).map(octet).collect();
    }
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let pairs = pairs.iter().map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|digits| octet(digits?)).collect()
}

/// Whether somebody can be asked at that address: RFC 7291 excludes groups and this host itself. Addresses of the link
/// alone are left out too, since they do not say of which.
pub fn is_host(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            let [first, ..] = addr.octets();
            first != 0 && !addr.is_loopback() && first < 224 && !addr.is_link_local()
        }
        IpAddr::V6(addr) => {
            !addr.is_unspecified()
                && !addr.is_loopback()
                && !addr.is_multicast()
                && !addr.is_unicast_link_local()
                && addr.to_ipv4_mapped().is_none()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(addresses: &[[u8; 4]]) -> Vec<u8> {
        let length = u8::try_from(addresses.len() * 4).unwrap();
        [&[length], addresses.as_flattened()].concat()
    }

    fn v4(addr: [u8; 4]) -> IpAddr {
        IpAddr::V4(addr.into())
    }

    #[test]
    fn values_are_read_as_clients_write_them() {
        let octets = Some(vec![8, 0xc0, 0, 2, 1]);
        for text in [
            "08c0000201",
            "08C0000201",
            "8:c0:0:2:1",
            "08 c0 00 02 01",
            " 08c0000201\n",
        ] {
            assert_eq!(from_hex(text), octets, "{text:?}");
        }
        assert_eq!(from_hex(""), Some(Vec::new()));
        for bad in [
            "8c0",
            "+8c0",
            "8:",
            "8::1",
            "100:1",
            "192.0.2.1",
            "8c\u{e9}",
        ] {
            assert_eq!(from_hex(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn each_list_is_one_server() {
        let value = [
            list(&[[192, 0, 2, 1], [192, 0, 2, 2]]),
            list(&[[198, 51, 100, 1]]),
        ];
        let servers = Servers::from_option158(&value.concat()).unwrap();
        let lists = [
            vec![v4([192, 0, 2, 1]), v4([192, 0, 2, 2])],
            vec![v4([198, 51, 100, 1])],
        ];
        assert_eq!(servers.lists, lists);
        assert_eq!(servers.discarded, 0);
    }

    #[test]
    fn a_wrong_length_discards_the_whole_option() {
        let good = list(&[[192, 0, 2, 1]]);
        for (value, error) in [
            (vec![], OptionError::Short { have: 0 }),
            (vec![4, 192, 0, 2], OptionError::Short { have: 4 }),
            ([&good[..], &[0]].concat(), OptionError::BadList { have: 0 }),
            (
                [&good[..], &[3, 1, 2, 3]].concat(),
                OptionError::BadList { have: 3 },
            ),
            (
                [&good[..], &[8, 192, 0, 2, 2]].concat(),
                OptionError::LongList { stated: 8, have: 4 },
            ),
        ] {
            assert_eq!(Servers::from_option158(&value), Err(error), "{value:?}");
        }
    }

    #[test]
    fn an_option_longer_than_255_octets_is_read_whole() {
        let lists: Vec<u8> = (0..60).flat_map(|n| list(&[[10, 0, 0, n + 1]])).collect();
        assert_eq!(lists.len(), 300);
        let servers = Servers::from_option158(&lists).unwrap();
        assert_eq!(servers.lists.len(), MAX_SERVERS);
        assert_eq!(servers.discarded, 60 - 4);
    }

    #[test]
    fn addresses_where_nobody_can_be_asked_are_left_out() {
        let value = list(&[
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [255, 255, 255, 255],
            [0, 0, 0, 0],
            [169, 254, 1, 1],
            [192, 0, 2, 1],
            [192, 0, 2, 1],
        ]);
        let servers = Servers::from_option158(&value).unwrap();
        assert_eq!(servers.lists, [vec![v4([192, 0, 2, 1])]]);
        assert_eq!(servers.discarded, 5);
        let nobody = Servers::from_option158(&list(&[[127, 0, 0, 1]])).unwrap();
        assert!(nobody.lists.is_empty());

        let mut value = Vec::new();
        for addr in ["::1", "ff02::1", "::", "fe80::1", "2001:db8::1"] {
            value.extend(addr.parse::<Ipv6Addr>().unwrap().octets());
        }
        let (servers, error) = Servers::from_option86(&[value]);
        assert_eq!(error, None);
        assert_eq!(
            servers.lists,
            [vec!["2001:db8::1".parse::<IpAddr>().unwrap()]]
        );
        assert_eq!(servers.discarded, 4);
    }

    #[test]
    fn mapped_addresses_mean_the_ipv4_address() {
        let octets = |addr: &str| addr.parse::<Ipv6Addr>().unwrap().octets();
        let value = octets("::ffff:192.0.2.1").to_vec();
        let bad = vec![1; 20];
        let group = octets("::ffff:224.0.0.1").to_vec();
        let (servers, error) = Servers::from_option86(&[value, bad, group]);
        assert_eq!(servers.lists, [vec![v4([192, 0, 2, 1])]]);
        assert_eq!(error, Some(OptionError::BadList { have: 20 }));
        assert_eq!(servers.discarded, 1);
    }
}
