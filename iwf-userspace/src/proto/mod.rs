//! Sans-IO protocol machines.
