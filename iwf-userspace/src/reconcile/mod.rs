//! Desired state, plan and invariants: pure.
//!
//! The shell observes, calls [`plan::Plan::new`], applies removals, then creations and updates, and goes on
//! after a failure; the next run finds what is left.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)
)]

pub mod desired;
pub mod invariants;
pub mod pinholes;
pub mod plan;
