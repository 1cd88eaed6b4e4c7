//! Everything that touches the world.

pub mod clock;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod discovery;
pub mod eventloop;
mod fragments;
pub mod gena;
pub mod http;
pub mod journal;
pub mod lan;
mod link;
pub mod logging;
pub mod netlink;
pub mod netstate;
mod own_ports;
mod reconciler;
mod refusals;
pub mod settings;
pub mod shell;
pub mod signals;
mod sockets;
pub mod softwire;
pub mod ssdp;
pub mod start;
pub mod store;
pub mod upstream;
