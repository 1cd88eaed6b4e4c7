//! Sans-IO protocol machines.
//!
//! Machines never call each other; `iwf` carries what one says to the next.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)
)]

pub mod dhcp;
pub mod firewall;
pub mod gena;
pub mod igd;
pub mod igd_client;
pub mod natpmp_client;
pub mod pcp_client;
pub mod pcp_servers;
pub mod protection;
pub mod softwire;
