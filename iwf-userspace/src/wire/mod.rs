//! Bytes to meaningful representations and back; no state, no clock.
//!
//! Every decoder is total: any input gives a representation or a named error, never a panic, and what it
//! allocates is bounded by the input. Encoders write what the standard says and nothing a peer did not ask for.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)
)]

pub mod clients;
pub mod control_point;
pub mod description;
pub mod dhcp4;
pub mod dhcp6;
pub mod gena;
pub mod lease_file;
pub mod natpmp;
pub mod pcp;
pub mod pcp_servers;
pub mod port_listing;
pub mod protection;
pub mod refused;
pub mod scpd;
pub mod services;
pub mod soap;
pub mod softwire;
pub mod ssdp;
pub mod udp;
pub mod wps;
mod xml;
