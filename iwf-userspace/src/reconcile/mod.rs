//! Desired state, plan and invariants: pure.
