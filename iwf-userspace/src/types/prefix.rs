//! An address, or all that begin like it.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The first `len` bits of an IPv4 address; all for lengths over 32.
pub fn mask4(len: u8) -> u32 {
    let rest = 32_u32.saturating_sub(len.into());
    u32::MAX.checked_shl(rest).unwrap_or(0)
}

/// The first `len` bits of an IPv6 address; all for lengths over 128.
pub fn mask6(len: u8) -> u128 {
    let rest = 128_u32.saturating_sub(len.into());
    u128::MAX.checked_shl(rest).unwrap_or(0)
}

/// Whether two IPv6 addresses have their first `len` bits in common.
pub fn in_prefix6(addr: Ipv6Addr, of: Ipv6Addr, len: u8) -> bool {
    (u128::from(addr) ^ u128::from(of)) & mask6(len) == 0
}

/// An address, or all that begin like it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// Whether `addr` is one of them.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let len = u32::from(self.len);
        match (self.addr, addr) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differs = ours.to_bits() ^ theirs.to_bits();
                differs.leading_zeros() >= len
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differs = ours.to_bits() ^ theirs.to_bits();
                differs.leading_zeros() >= len
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Whether every address of `other` is one of them.
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.addr)
    }

    /// Whether they are IPv4 addresses.
    pub const fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// Whether the address has no bits behind the length, as who writes a prefix means it.
    pub fn is_exact(&self) -> bool {
        match self.addr {
            IpAddr::V4(addr) => addr.to_bits().trailing_zeros() >= u32::from(32 - self.len),
            IpAddr::V6(addr) => addr.to_bits().trailing_zeros() >= u32::from(128 - self.len),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.addr.is_ipv4() { 32 } else { 128 };
        if self.len == whole {
            self.addr.fmt(f)
        } else {
            write!(f, "{}/{}", self.addr, self.len)
        }
    }
}

impl FromStr for Prefix {
    type Err = NotAPrefix;

    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| NotAPrefix)?;
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        let len = match len {
            Some(len) => len.parse().map_err(|_| NotAPrefix)?,
            None => whole,
        };
        if len > whole {
            return Err(NotAPrefix);
        }
        Ok(Self { addr, len })
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl TryFrom<String> for Prefix {
    type Error = NotAPrefix;

    fn try_from(text: String) -> Result<Self, NotAPrefix> {
        text.parse()
    }
}

/// Neither an address nor a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an address, nor a prefix as in 192.168.1.0/24")]
pub struct NotAPrefix;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_a_length_that_fits() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/32", "10.1.2.3"),
            ("2a0b::1", "2a0b::1"),
            ("2a0b::/32", "2a0b::/32"),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.to_string(), shown);
            let json = serde_json::to_string(&prefix).unwrap();
            assert_eq!(serde_json::from_str::<Prefix>(&json).unwrap(), prefix);
        }
        for text in ["10.0.0.0/33", "2a0b::/129", "10.0.0/8", "", "/", "a/8"] {
            assert_eq!(text.parse::<Prefix>(), Err(NotAPrefix), "{text}");
        }
        let all: Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()));
        let half: Prefix = "2a0b::/17".parse().unwrap();
        assert!(half.contains("2a0b:7fff::".parse().unwrap()));
        assert!(!half.contains("2a0b:8000::".parse().unwrap()));
    }

    #[test]
    fn an_exact_one_has_no_bits_behind_its_length() {
        let exact = |text: &str| text.parse::<Prefix>().unwrap().is_exact();
        for text in [
            "192.168.1.0/24",
            "192.168.1.1",
            "2a00::/16",
            "0.0.0.0/0",
            "::/0",
        ] {
            assert!(exact(text), "{text}");
        }
        for text in ["192.168.1.1/24", "2a00::1/127", "128.0.0.0/0", "8000::/0"] {
            assert!(!exact(text), "{text}");
        }
    }

    #[test]
    fn a_wider_one_covers() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        assert!(prefix("192.168.0.0/16").covers(&prefix("192.168.1.0/24")));
        assert!(!prefix("192.168.1.0/24").covers(&prefix("192.168.0.0/16")));
        assert!(!prefix("::/0").covers(&prefix("192.168.1.1")));
    }
}
