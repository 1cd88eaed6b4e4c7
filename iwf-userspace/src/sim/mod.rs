//! The whole control plane on a virtual clock: the core between scripted control points, a PCP server model
//! behind a lossy link, a kernel and a store that fail on demand.
//!
//! After every step the invariants of the reconciler must hold, every call must be answered once and in time,
//! and what was answered with success must be so in all three tables.
#![forbid(unsafe_code)]

mod answers;
mod arbitrary;
mod defects;
mod departed;
mod events;
mod found;
mod igd;
mod kernel;
mod link;
mod marks;
mod months;
mod moves;
mod natpmp;
mod nonat;
mod oracle;
mod pinholes;
mod policy;
mod pool;
mod protection;
mod random;
mod ranges;
mod recovery;
mod renewal;
mod rules;
mod scale;
mod selection;
mod server;
mod soap;
mod statics;
mod store;
mod subscriber;
mod upstream;
mod world;
