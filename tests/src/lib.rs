//! The lab and the harness of the integration suites.

pub mod netns;
pub mod process;
pub mod wait;
