//! The mapping table, policy, port choice and lifetimes.

pub mod record;
