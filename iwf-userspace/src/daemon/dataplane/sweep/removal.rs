//! Removing what was marked: from the mark to the removal a packet on another CPU may still hold a session's entry.
#![forbid(unsafe_code)]

use iwf_common::flow::SessionKey;
use iwf_common::sweep::{SweepItem, SweepTask};

use super::SLICE;

/// Sessions that are remembered from their mark to their removal. The others are found by the next pass.
const REMEMBERED: usize = 16 * SLICE;

/// Sessions that were marked and are to be removed.
#[derive(Debug, Default)]
pub(super) struct Marked {
    pub(super) keys: Vec<SessionKey>,
    /// Tick of the last mark.
    pub(super) at: u32,
}

impl Marked {
    /// Remembers the sessions among the items, as far as there is room.
    pub(super) fn remember(&mut self, items: &[SweepItem], now: u32) {
        self.at = now;
        let room = REMEMBERED.saturating_sub(self.keys.len());
        let keys = items
            .iter()
            .filter(|item| item.task == SweepTask::JudgeSession as u32)
            .map(|item| item.key);
        self.keys.extend(keys.take(room));
    }
}
