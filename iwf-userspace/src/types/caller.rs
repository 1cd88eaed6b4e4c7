//! Who calls.

use std::net::{IpAddr, Ipv4Addr};

use super::access::Channel;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Reads one: six octets in hexadecimal digits with colons.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut mac {
        let part = parts.next()?;
        let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !digits || part.len() > 2 {
            return None;
        }
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Writes one.
pub fn show_mac(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// A control point: the source of its connection, and which other addresses of its link are the same host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Source address of the connection.
    pub addr: IpAddr,
    /// Its MAC address, if it was asked for and is known.
    pub mac: Option<Mac>,
    /// Its other addresses, as far as they were asked for and are known.
    pub others: Vec<IpAddr>,
    /// How its call came.
    pub channel: Channel,
    /// Interface of the link that it calls on, if it is known.
    pub link: Option<u32>,
}

impl Caller {
    /// Whether that address is the caller's own.
    pub fn is(&self, addr: IpAddr) -> bool {
        self.addr == addr || self.others.contains(&addr)
    }

    /// Its IPv4 address, for mappings: that of the connection, else the one that it names if it is its own, else any
    /// of its own. Unspecified, which is no host's, if none is known to be.
    pub fn v4(&self, named: Option<Ipv4Addr>) -> Ipv4Addr {
        let v4 = |addr: &IpAddr| match addr {
            IpAddr::V4(addr) => Some(*addr),
            IpAddr::V6(_) => None,
        };
        let named = named.filter(|named| self.others.contains(&(*named).into()));
        v4(&self.addr)
            .or(named)
            .or_else(|| self.others.iter().find_map(v4))
            .unwrap_or(Ipv4Addr::UNSPECIFIED)
    }
}

/// A host of a link, known by its MAC address, whichever of its addresses it comes by. One whose MAC address nobody knows is
/// known by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Station {
    /// It has this MAC address.
    Mac(Mac),
    /// It has this address.
    Addr(IpAddr),
}

impl Station {
    /// The host with that MAC address, if it is known, else the one at that address.
    pub fn new(mac: Option<Mac>, addr: IpAddr) -> Self {
        mac.map_or(Self::Addr(addr), Self::Mac)
    }
}

impl From<&Caller> for Station {
    fn from(caller: &Caller) -> Self {
        Self::new(caller.mac, caller.addr)
    }
}

impl From<IpAddr> for Caller {
    fn from(addr: IpAddr) -> Self {
        Self {
            addr,
            mac: None,
            others: Vec::new(),
            channel: Channel::Plain,
            link: None,
        }
    }
}

impl From<Ipv4Addr> for Caller {
    fn from(addr: Ipv4Addr) -> Self {
        IpAddr::V4(addr).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_ipv6_only_an_address_that_is_tied_to_it_is_its_own() {
        let addr = |last| Ipv4Addr::new(192, 168, 1, last);
        let v6: IpAddr = "fe80::10".parse().expect("an address");
        let unknown = Caller::from(v6);
        assert_eq!(unknown.v4(Some(addr(10))), Ipv4Addr::UNSPECIFIED);
        let tied = Caller {
            others: vec![addr(10).into(), addr(12).into()],
            ..unknown
        };
        assert_eq!(tied.v4(Some(addr(12))), addr(12));
        assert_eq!(tied.v4(Some(addr(11))), addr(10));
        assert_eq!(Caller::from(addr(11)).v4(Some(addr(10))), addr(11));
    }
}
