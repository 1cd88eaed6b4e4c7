//! Links of the LAN, as far as events have to stay on them.

use std::net::IpAddr;

use crate::mapping::policy::LanPrefix;
use crate::types::prefix::mask6;

/// An address of ours on a link of the LAN. By the address alone one of link scope could be on any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// Our address.
    pub own: IpAddr,
    /// Index of the interface.
    pub interface: u32,
}

/// A prefix of a link, with our address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Our address.
    pub at: At,
    /// Prefix length.
    pub len: u8,
}

impl Link {
    /// Whether `host` is a host of this prefix, and not this machine.
    pub(super) fn has_host(&self, host: IpAddr) -> bool {
        match (self.at.own, host) {
            (IpAddr::V4(own), IpAddr::V4(host)) => {
                let prefix = LanPrefix {
                    own,
                    len: self.len,
                    interface: self.at.interface,
                };
                prefix.has_host(host)
            }
            (IpAddr::V6(own), IpAddr::V6(host)) => {
                let mask = mask6(self.len);
                let (bits, ours) = (u128::from(host), u128::from(own));
                // RFC 4291 section 2.6.1: all zeros are every router of the link.
                let is_routers = self.len < 127 && bits & !mask == 0;
                bits & mask == ours & mask && bits != ours && !is_routers
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}
