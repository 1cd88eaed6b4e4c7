//! Everything that touches the world.

pub mod config;
pub mod control;
pub mod dataplane;
pub mod http;
pub mod lan;
pub mod netlink;
pub mod netstate;
pub mod sockets;
pub mod ssdp;
pub mod store;
pub mod upstream;
