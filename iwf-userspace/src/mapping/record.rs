//! The durable form of a mapping: what the store keeps and a restart needs.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::types::{
    ExternalEndpoint, Generation, InternalEndpoint, Lifetime, MappingNonce, Protocol, RemotePeer,
    UnixTime,
};

/// One mapping as stored. All instants are wall-clock seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingRecord {
    /// Identity.
    pub generation: Generation,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The LAN host's endpoint.
    pub internal: InternalEndpoint,
    /// External endpoint of our NAT (NAT1): what the kernel holds and the PCP server knows as internal.
    pub nat1: ExternalEndpoint,
    /// The outermost external endpoint: what remote hosts use. Equal to `nat1` in local mode.
    pub external: ExternalEndpoint,
    /// Who may come in.
    pub remote: RemotePeer,
    /// Free text of the control point, at most 255 octets.
    pub description: String,
    /// Lease the control point asked for, after the rules for 0 (RFC 6970 section 5.9).
    pub requested: Lifetime,
    /// When the control point's lease ends.
    pub lease_ends: UnixTime,
    /// Whether another external port would have been accepted (AddAnyPortMapping).
    pub any_port: bool,
    /// The upstream lease; `None` in local mode.
    pub upstream: Option<UpstreamLease>,
}

/// A PCP lease behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamLease {
    /// The server that granted it.
    pub server: SocketAddr,
    /// Nonce of the mapping, reused by every renewal, also after a restart (AMB-02).
    pub nonce: MappingNonce,
    /// When the assigned lifetime ends.
    pub expires: UnixTime,
}
