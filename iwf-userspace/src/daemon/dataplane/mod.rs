//! The data plane as the daemon sees it: explicit mappings in, counters and observations out.

use std::net::Ipv4Addr;

use crate::types::{NatEntry, Protocol};

/// Why the data plane refused.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    /// A kernel map has no room left.
    #[error("kernel map {map} is full")]
    Full { map: &'static str },
    /// The CPE's own socket or a static entry holds that external endpoint.
    #[error("external endpoint in use by another owner")]
    InUse,
    /// The kernel refused for another reason.
    #[error("kernel refused to {action}")]
    Kernel {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// What the packet programs need to know besides mappings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaneConfig {
    /// NAT1's external address. `None`: nothing is translated, LAN traffic does not leave the WAN.
    pub external_addr: Option<Ipv4Addr>,
    /// LAN prefixes as (network, prefix length); sources outside them are not translated.
    pub lan_prefixes: Vec<(Ipv4Addr, u8)>,
    /// Services of this machine that the WAN may reach unasked: configured ports and the PCP announcement
    /// listener (RFC 6887 section 14.1). Mappings cannot take these ports.
    pub host_ports: Vec<(Protocol, u16)>,
}

/// Explicit mappings in the kernel. One implementation drives the real maps, one keeps them in memory
/// for tests of what is above.
pub trait DataPlane {
    /// Tells the programs the external address and the LAN prefixes; flushes what belonged to an old address.
    fn configure(&mut self, config: &PlaneConfig) -> Result<(), DataPlaneError>;
    /// Writes both entries of a mapping: return direction first. A dynamic mapping in its way is displaced
    /// (explicit mappings win, NAT-50); an entry of the same external and internal endpoint is updated in place.
    fn write(&mut self, entry: &NatEntry) -> Result<(), DataPlaneError>;
    /// Removes both entries, triggering direction first, and ends the inbound sessions that used them.
    /// Absent is success.
    fn remove(&mut self, entry: &NatEntry) -> Result<(), DataPlaneError>;
    /// Every explicit mapping the kernel holds that this daemon owns.
    fn observe(&self) -> Result<Vec<NatEntry>, DataPlaneError>;
    /// Sum over CPUs of every named counter, in a fixed order.
    fn counters(&self) -> Result<Vec<(&'static str, u64)>, DataPlaneError>;
    /// Frees idle sessions and dynamic mappings; returns how many sessions are left.
    fn sweep(&mut self) -> Result<u64, DataPlaneError>;
}
