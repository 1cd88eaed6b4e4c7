//! Everything that touches the world.

pub mod config;
pub mod dataplane;
pub mod netstate;
pub mod store;
