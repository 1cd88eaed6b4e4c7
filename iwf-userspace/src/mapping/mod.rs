//! The mapping table, policy, port choice and lifetimes.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)
)]

pub mod pinholes;
pub mod policy;
pub mod ports;
pub mod record;
pub mod rules;
pub mod table;

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::types::{
    ExternalEndpoint, ExternalPort, Generation, Instant, InternalEndpoint, Lifetime, MappingNonce,
    NatEntry, Protocol, RemotePeer,
};

/// RFC 6970 section 4.1, WANIPConnection:2 section 2.3.16: what a lease of 0 means, and the longest lease.
pub const MAX_LEASE: Lifetime = Lifetime(604_800);

/// Longest description kept, in octets (IGD-031).
pub const MAX_DESCRIPTION: usize = 255;

/// When the lease of a mapping ends that has no end: after every clock.
pub const NEVER: Instant = Instant::from_millis(u64::MAX / 4);

/// A mapping stated in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Outermost external port; no other one will do.
    pub external: ExternalPort,
    /// The LAN host's endpoint.
    pub internal: InternalEndpoint,
    /// Who may come in.
    pub remote: RemotePeer,
    /// Free text, at most [`MAX_DESCRIPTION`] octets.
    pub description: String,
}

/// Who made a mapping and may take it away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// A control point on the LAN; for a time.
    #[default]
    ControlPoint,
    /// The configuration; as long as it is stated there.
    Configuration,
}

/// One mapping in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Identity.
    pub generation: Generation,
    /// Where it is in its life.
    pub state: State,
    /// Who made it.
    pub owner: Owner,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The LAN host's endpoint.
    pub internal: InternalEndpoint,
    /// External endpoint of our NAT.
    pub nat1: ExternalEndpoint,
    /// What remote hosts use, as far as it is known.
    pub claim: Claim,
    /// Who may come in.
    pub remote: RemotePeer,
    /// Free text of the control point, at most [`MAX_DESCRIPTION`] octets.
    pub description: String,
    /// Lease the control point asked for, 1 to [`MAX_LEASE`].
    pub requested: Lifetime,
    /// When the control point's lease ends; [`NEVER`] for one of the configuration.
    pub lease_ends: Instant,
    /// Whether another external port would have been accepted.
    pub port_choice: PortChoice,
    /// The lease behind it; `None` in local mode and before the first grant.
    pub upstream: Option<Lease>,
}

/// The outermost external endpoint as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Reserved from the moment it is asked for; `None` while any port would do.
    pub port: Option<ExternalPort>,
    /// Known once granted.
    pub addr: Option<Ipv4Addr>,
}

impl Claim {
    /// Both parts, once granted.
    pub fn endpoint(self) -> Option<ExternalEndpoint> {
        Some(ExternalEndpoint {
            addr: self.addr?,
            port: self.port?,
        })
    }
}

impl From<ExternalEndpoint> for Claim {
    fn from(endpoint: ExternalEndpoint) -> Self {
        Self {
            port: Some(endpoint.port),
            addr: Some(endpoint.addr),
        }
    }
}

/// An upstream lease. It ends at the same instant in the kernel (AMB-30).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The server that granted it.
    pub server: SocketAddr,
    /// In which protocol.
    pub via: Via,
    /// Proves ownership; reused by every renewal. NAT-PMP knows none.
    pub nonce: MappingNonce,
    /// Arrival of the last grant plus its lifetime.
    pub expires: Instant,
}

/// The protocol a lease is kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    /// RFC 6887.
    #[default]
    Pcp,
    /// RFC 6886: a port only, no filter, no proof of ownership.
    NatPmp,
    /// UPnP IGD: like NAT-PMP, and a renewal is the same mapping added again.
    Igd,
}

/// Whether the control point insists on its external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// AddPortMapping: this port or none.
    Exact,
    /// AddAnyPortMapping: another one will do.
    Any,
}

/// Where a mapping is in its life (igd-service section 12; renewal and recovery are the PCP client's matter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Passed every check, waits for the server or the store. Holds its ports.
    Pending,
    /// The kernel is being told.
    Installing,
    /// In force.
    Active,
    /// On its way out; still in the kernel.
    Removing,
}

impl Mapping {
    /// Whether control points get to see it.
    pub fn is_visible(&self) -> bool {
        matches!(self.state, State::Active)
    }

    /// Whether the kernel has to hold it, as long as it has not expired.
    pub fn is_installed(&self) -> bool {
        matches!(
            self.state,
            State::Installing | State::Active | State::Removing
        )
    }

    /// When the kernel has to stop using it: with the upstream lease; in local mode with the control point's.
    pub fn expires(&self) -> Instant {
        self.upstream.map_or(self.lease_ends, |lease| lease.expires)
    }

    /// As [`Mapping::expires`]; `None` for one that only the configuration ends.
    fn ends(&self) -> Option<Instant> {
        let endless = self.upstream.is_none() && self.owner == Owner::Configuration;
        (!endless).then(|| self.expires())
    }

    /// Whether our NAT leaves it as it is: the provider's translates, and knows it by the LAN host's own endpoint.
    pub fn is_untranslated(&self) -> bool {
        self.nat1 == untranslated(self.internal)
    }

    /// The kernel's form of it.
    pub fn nat_entry(&self) -> NatEntry {
        NatEntry {
            protocol: self.protocol,
            external: self.nat1,
            internal: self.internal,
            remote: self.remote,
            generation: self.generation,
            expires: self.ends(),
        }
    }

    /// Seconds left of the control point's lease (IGD-007), rounded up so that a fresh lease reads in full. 0 for one
    /// of the configuration: WANIPConnection:2 section 2.3.16 knows leases without end only from out of band.
    pub fn lease_left(&self, now: Instant) -> u32 {
        if self.owner == Owner::Configuration {
            return 0;
        }
        let left = self.lease_ends.saturating_duration_since(now);
        u32::try_from(left.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
    }
}

/// Where a mapping is in our NAT if that does not translate.
pub fn untranslated(internal: InternalEndpoint) -> ExternalEndpoint {
    ExternalEndpoint {
        addr: internal.addr,
        port: internal.port.into(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::types::InternalPort;

    /// An active mapping of 192.168.1.`host` in local mode.
    pub(crate) fn mapping(generation: u32, host: u8, internal: u16, external: u16) -> Mapping {
        let nat1 = ExternalEndpoint {
            addr: Ipv4Addr::new(100, 64, 0, 2),
            port: ExternalPort::new(external).expect("not 0"),
        };
        Mapping {
            generation: Generation(generation),
            state: State::Active,
            owner: Owner::ControlPoint,
            protocol: Protocol::Tcp,
            internal: InternalEndpoint {
                addr: Ipv4Addr::new(192, 168, 1, host),
                port: InternalPort::new(internal).expect("not 0"),
            },
            nat1,
            claim: nat1.into(),
            remote: RemotePeer::Any,
            description: String::new(),
            requested: Lifetime(3600),
            lease_ends: Instant::from_millis(3_600_000),
            port_choice: PortChoice::Exact,
            upstream: None,
        }
    }

    #[test]
    fn the_kernel_entry_ends_with_the_upstream_lease() {
        let mut mapping = mapping(1, 20, 8080, 8080);
        assert_eq!(
            mapping.nat_entry().expires,
            Some(Instant::from_millis(3_600_000))
        );
        mapping.upstream = Some(Lease {
            server: ([100, 64, 0, 1], 5351).into(),
            via: Via::Pcp,
            nonce: MappingNonce([1; 12]),
            expires: Instant::from_millis(600_000),
        });
        assert_eq!(
            mapping.nat_entry().expires,
            Some(Instant::from_millis(600_000))
        );
    }

    #[test]
    fn only_the_server_ends_a_mapping_of_the_configuration() {
        let mut mapping = mapping(1, 20, 8080, 8080);
        (mapping.owner, mapping.lease_ends) = (Owner::Configuration, NEVER);
        assert_eq!(mapping.nat_entry().expires, None);
        assert_eq!(mapping.lease_left(Instant::from_millis(0)), 0);
        let expires = Instant::from_millis(600_000);
        mapping.upstream = Some(Lease {
            server: ([100, 64, 0, 1], 5351).into(),
            via: Via::Pcp,
            nonce: MappingNonce([1; 12]),
            expires,
        });
        assert_eq!(mapping.nat_entry().expires, Some(expires));
    }

    #[test]
    fn lease_left_runs_down_to_zero() {
        let mapping = mapping(1, 20, 8080, 8080);
        for (millis, left) in [(0, 3600), (1, 3600), (1000, 3599), (3_600_000, 0)] {
            assert_eq!(mapping.lease_left(Instant::from_millis(millis)), left);
        }
    }
}
