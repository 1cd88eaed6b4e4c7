//! The fate of a packet: one number that is both its counter and, by its group, the verdict.

use iwf_common::reason::{Done, DropReason, PassReason};

/// Slot in COUNTERS. A plain integer, because a BPF function can return nothing larger.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Outcome(u32);

/// What a step yields, or the fate of the packet if it ends there.
pub type Step<T> = Result<T, Outcome>;

/// What a hook does with the packet.
pub enum Verdict {
    /// Translated; leaves by the redirect already chosen.
    Forward,
    /// The stack goes on with it.
    Pass,
    /// Gone.
    Drop,
}

impl Outcome {
    /// No fate yet: what a function that is not inlined returns for `Ok(())`.
    pub const NONE: Self = Self(u32::MAX);

    /// Back to a [`Step`] on the caller's side.
    #[inline(always)]
    pub fn step(self) -> Step<()> {
        if self == Self::NONE {
            Ok(())
        } else {
            Err(self)
        }
    }

    /// A [`Step`] as the integer a function can return.
    #[inline(always)]
    pub fn of(step: Step<()>) -> Self {
        match step {
            Ok(()) => Self::NONE,
            Err(outcome) => outcome,
        }
    }

    /// Back from [`Self::slot`].
    #[inline(always)]
    pub const fn from_slot(slot: u32) -> Self {
        Self(slot)
    }

    /// Index in COUNTERS.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0
    }

    /// The group of the reason decides.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        if self.0 < PassReason::BASE {
            Verdict::Forward
        } else if self.0 < DropReason::BASE {
            Verdict::Pass
        } else {
            Verdict::Drop
        }
    }
}

impl From<Done> for Outcome {
    #[inline(always)]
    fn from(done: Done) -> Self {
        Self(done.slot())
    }
}

impl From<PassReason> for Outcome {
    #[inline(always)]
    fn from(reason: PassReason) -> Self {
        Self(reason.slot())
    }
}

impl From<DropReason> for Outcome {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self(reason.slot())
    }
}
