//! The IPv6 filter (RFC 6092): what passes, what does not, and that nothing in a packet changes but the hop.

mod adversary;
mod bare;
mod bed;
mod errors;
mod filter;
mod headers;
mod own;
mod pinholes;
mod quota;
mod refusals;
mod sessions;
