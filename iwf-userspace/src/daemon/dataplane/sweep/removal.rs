//! Removing what was marked: from the mark to the removal a packet on another CPU may still hold a session's entry.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use iwf_common::flow::SessionKey;
use iwf_common::sweep::{self, SweepItem, SweepTask};

/// Sessions that are remembered from their mark to their removal. The walk meets the others later in this pass or in
/// the next.
const REMEMBERED: usize = 16 * 1024;

/// Sessions that were marked and are to be removed, with the tick of their mark, in its order.
#[derive(Debug, Default)]
pub(super) struct Marked(VecDeque<(u32, SessionKey)>);

impl Marked {
    /// Whether nothing is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Remembers the sessions among the items, as far as there is room.
    pub(super) fn remember(&mut self, items: &[SweepItem], now: u32) {
        let room = REMEMBERED.saturating_sub(self.0.len());
        let keys = items
            .iter()
            .filter(|item| item.task == SweepTask::JudgeSession as u32)
            .map(|item| (now, item.key));
        self.0.extend(keys.take(room));
    }

    /// Takes those out that are at rest, `most` of them, to be removed.
    pub(super) fn take(&mut self, most: usize, now: u32, items: &mut Vec<SweepItem>) {
        for _ in 0..most {
            let Some((_, key)) = self.0.pop_front_if(|(at, _)| sweep::is_at_rest(now, *at)) else {
                break;
            };
            items.push(SweepItem::session(SweepTask::RemoveSession, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(count: u32) -> Vec<SweepItem> {
        let key = |number: u32| SessionKey {
            src: number.to_be_bytes(),
            ..SessionKey::default()
        };
        let item = |number| SweepItem::session(SweepTask::JudgeSession, key(number));
        (0..count).map(item).collect()
    }

    /// New marks hold nobody up whose time has come, and one slice does not take all.
    #[test]
    fn each_mark_has_a_rest_of_its_own() {
        let mut marked = Marked::default();
        let mut items = Vec::new();
        marked.remember(&judged(5), 100);
        marked.remember(&judged(2), 102);
        marked.take(9, 100 + sweep::REST, &mut items);
        assert!(items.is_empty());
        let now = 100 + sweep::REST + 1;
        marked.take(3, now, &mut items);
        assert_eq!(items.len(), 3);
        assert!(
            items
                .iter()
                .all(|i| i.task == SweepTask::RemoveSession as u32)
        );
        marked.take(9, now, &mut items);
        assert_eq!(items.len(), 5);
        marked.take(9, now + 2, &mut items);
        assert!(items.len() == 7 && marked.is_empty());
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let mut marked = Marked::default();
        for _ in 0..3 {
            marked.remember(&judged(REMEMBERED as u32 / 2), 0);
        }
        assert_eq!(marked.0.len(), REMEMBERED);
    }
}
