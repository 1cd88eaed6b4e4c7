//! The lab and the harness of the integration suites.

pub mod carrier;
pub mod netns;
pub mod packages;
pub mod pcp;
pub mod process;
pub mod topology;
pub mod wait;
