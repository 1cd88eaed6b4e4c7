//! One run of the reconciler, in turns of bounded work.
//!
//! A run keeps nothing of what it has read: every entry is compared with the table in the turn in which it is read, and
//! set right in that turn. Whatever changes between two turns is therefore no drift, as long as kernel and table are
//! changed together, and no list of changes is needed.
//!
//! First comes what the kernel holds, so that places are free, then what it should hold, the older first: the first
//! external endpoint of an internal one is what outbound packets use.

use super::desired::Wanted;
use super::plan::{Kind, is_kept, repair};
use crate::types::{Generation, NatEntry};

/// Mappings that one turn looks at.
const TURN: usize = 128;

/// What the kernel holds, as a run looks at it.
pub trait Kernel {
    /// Why it cannot be looked at.
    type Error;

    /// A bounded number of the entries, as they are now, and whether there are more. Begins with the first; what is there
    /// from then on until there are no more is among them.
    ///
    /// # Errors
    /// It cannot be looked at; the run is over.
    fn some(&mut self) -> Result<Seen, Self::Error>;

    /// The entry between the same endpoints as this one.
    ///
    /// # Errors
    /// As [`Self::some`].
    fn find(&self, like: &NatEntry) -> Result<Option<NatEntry>, Self::Error>;

    /// Sets one thing right. What fails is left for the next run.
    fn repair(&mut self, what: Kind, entry: &NatEntry);
}

/// Some of the kernel's entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// They.
    pub entries: Vec<NatEntry>,
    /// Whether there are more.
    pub more: bool,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run(Stage);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// At what the kernel holds.
    #[default]
    Kernel,
    /// At what it should hold, behind this generation.
    Table(Generation),
}

impl Run {
    /// One turn; returns whether there is another one.
    ///
    /// # Errors
    /// The kernel cannot be looked at; the run is over.
    pub fn turn<K: Kernel>(
        &mut self,
        kernel: &mut K,
        wanted: Wanted<'_>,
    ) -> Result<bool, K::Error> {
        match self.0 {
            Stage::Kernel => {
                let seen = kernel.some()?;
                for entry in &seen.entries {
                    let want = wanted.at(entry.protocol, entry.external);
                    if !is_kept(entry, want.as_ref()) {
                        kernel.repair(Kind::Removed, entry);
                    }
                }
                if !seen.more {
                    // No mapping has generation 0.
                    self.0 = Stage::Table(Generation(0));
                }
                Ok(true)
            }
            Stage::Table(behind) => {
                let mut last = None;
                for (generation, want) in wanted.after(behind).take(TURN) {
                    last = Some(generation);
                    let Some(want) = want else { continue };
                    if let Some(what) = repair(&want, kernel.find(&want)?.as_ref()) {
                        kernel.repair(what, &want);
                    }
                }
                self.0 = Stage::Table(last.unwrap_or(behind));
                Ok(last.is_some())
            }
        }
    }
}

#[cfg(test)]
mod tests;
