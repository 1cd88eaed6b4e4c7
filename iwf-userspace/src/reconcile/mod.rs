//! Desired state, plan and invariants: pure.
//!
//! A [`run::Run`] goes through kernel and table in turns, removes first, creates and updates then, and goes on after a
//! failure; the next run finds what is left. [`plan::Plan`] says the same of two whole lists: for the audit and for tests.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)
)]

pub mod desired;
pub mod invariants;
pub mod pinholes;
pub mod plan;
pub mod run;
