//! What is let in from the WAN over IPv6.

use std::net::Ipv6Addr;

use super::Instant;

/// What is let in from the WAN over IPv6 (WANIPv6FirewallControl:1, AddPinhole). What is `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pinhole {
    /// Names it (UniqueID); never 0.
    pub id: u16,
    /// The LAN host's address.
    pub internal: Ipv6Addr,
    /// Its port.
    pub internal_port: Option<u16>,
    /// The remote host.
    pub remote: Option<Ipv6Addr>,
    /// Its port.
    pub remote_port: Option<u16>,
    /// IANA protocol number.
    pub protocol: Option<u8>,
    /// When it ends; `None`: never.
    pub expires: Option<Instant>,
}

impl Pinhole {
    /// Whether the other one lets in the same.
    pub fn lets_in_as(&self, other: &Self) -> bool {
        let what = |p: &Self| {
            (
                p.internal,
                p.internal_port,
                p.remote,
                p.remote_port,
                p.protocol,
            )
        };
        what(self) == what(other)
    }
}
