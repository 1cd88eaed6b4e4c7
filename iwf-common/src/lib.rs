//! What the eBPF programs and the daemon agree on, byte for byte.
//!
//! Every struct here is a map key, a map value or an event. Keys are byte arrays in network order with
//! explicit zeroed padding, because the kernel hashes the padding too. Addresses and ports in values are
//! byte arrays in network order as well; everything else is in host order. Constant assertions beside each
//! struct fix its size: a change of layout is a change of [`names::LAYOUT_VERSION`].
//!
//! The pure arithmetic both sides need (checksums, clock, TCP flags, port choice) lives here too, so that it
//! is tested on the host.
#![no_std]
#![deny(clippy::unwrap_used, clippy::panic)]

pub mod config;
pub mod csum;
pub mod event;
pub mod flow;
pub mod flow6;
pub mod fragment;
pub mod host;
pub mod limits;
pub mod names;
pub mod nat;
#[cfg(feature = "user")]
mod pod;
pub mod port;
pub mod reason;
pub mod refusal;
pub mod softwire;
pub mod sweep;
pub mod tcp;
pub mod tick;
