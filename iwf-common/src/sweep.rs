//! What one run of the sweep program shall do, and what it found.
#![forbid(unsafe_code)]

use crate::nat::EndpointKey;

/// The only entry of SWEEP: the daemon writes the first part, the program the second. One run at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct SweepRequest {
    /// [`SweepMode`].
    pub mode: u32,
    /// For [`SweepMode::EndSessionsOf`]: the external endpoint. For [`SweepMode::KeepOnlyAddress`]: only the
    /// address counts.
    pub external: EndpointKey,
    /// Result: session entries (two per session) that are left.
    pub sessions_left: u32,
    /// Result: session entries removed.
    pub sessions_removed: u32,
    /// Result: mappings left in MAPPINGS_EXT.
    pub mappings_left: u32,
    /// Result: entries removed from both mapping tables.
    pub mappings_removed: u32,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SweepMode {
    /// Remove what is idle, expired or orphaned; refresh mappings that sessions use.
    Age = 1,
    /// Remove every session of one external endpoint, whatever its state. Mappings stay.
    EndSessionsOf = 2,
    /// Remove sessions and mappings of every external address but the given one; static entries stay.
    KeepOnlyAddress = 3,
    /// The mapping of one external endpoint has changed: its sessions get its expiry, and those that somebody
    /// began whom it no longer admits end.
    Recheck = 4,
}

const _: () = assert!(size_of::<SweepRequest>() == 28);
