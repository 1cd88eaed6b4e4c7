//! The IGD-PCP interworking function (RFC 6970).
//!
//! The core modules are sans-IO: bytes and `now` go in, effects come out. Everything that touches the
//! world (sockets, files, clocks, kernel) is under [`daemon`], behind the feature of that name.
//! Dependency order, lowest first: `types` <- `wire`, `mapping` <- `proto`, `reconcile` <- `iwf` <- `daemon`.

pub mod iwf;
pub mod mapping;
pub mod proto;
pub mod reconcile;
#[cfg(test)]
mod sim;
pub mod types;
pub mod wire;

#[cfg(feature = "daemon")]
pub mod daemon;
