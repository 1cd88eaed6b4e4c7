//! The lab and the harness of the integration suites.

pub mod aftr;
pub mod bench;
pub mod bpf;
pub mod capture;
pub mod carrier;
pub mod cascade;
pub mod daemon;
pub mod dhcp;
pub mod empty;
pub mod fault;
pub mod igd;
pub mod natpmp;
pub mod netns;
pub mod packages;
pub mod packet;
pub mod packet6;
pub mod pcp;
pub mod peers;
pub mod process;
pub mod prog;
pub mod script;
pub mod topology;
pub mod upnpc;
pub mod wait;
pub mod wire;
pub mod wire_tap;
