//! Everything that touches the world.
#![expect(missing_docs, reason = "replaced while the shell is built")]

pub mod dataplane;
pub mod store;
