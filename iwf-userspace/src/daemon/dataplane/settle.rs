//! Which sessions still have to end because their mapping or their external address has changed or gone, and how far the
//! search for them is.
//!
//! There is no index from mappings to sessions: packets would have to keep it. So SESSIONS is read in slices, all the
//! way round, for as long as anybody waits; whoever comes while a walk is under way joins it where it is, and has seen
//! the whole table when it comes by that place again. Any number wait for one walk.
//!
//! A packet that found the mapping just before it went may still be writing its session. The slice after which a
//! search begins to count takes longer than a packet: what is read from then on has all of those.
#![forbid(unsafe_code)]

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use iwf_common::flow::{SessionKey, SessionValue};
use iwf_common::nat::EndpointKey;

use super::Turn;
use super::batch::Cursor;
use super::sweep::Judge;
use super::sweep::pass::bits;

/// Everything that is searched for.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// Oldest first; that is also the order in which they come to their end.
    searches: VecDeque<Search>,
    /// Where the next slice begins.
    cursor: Cursor,
    /// How often the walk has come to the end of the table.
    laps: u64,
    /// The newest there ever was.
    newest: Turn,
    /// How many searches there are for each external endpoint, and for [`What::Strangers`].
    externals: HashMap<u64, u32>,
    strangers: u32,
}

/// One search.
#[derive(Debug)]
struct Search {
    turn: Turn,
    what: What,
    /// Where it has seen everything.
    due: Option<Place>,
}

/// Whose sessions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Those of an external endpoint, and who was behind it, if the mapping went.
    Mapping(EndpointKey, Option<EndpointKey>),
    /// Those of every external address that is not ours.
    Strangers,
}

/// Laps, and in the last of them the bucket.
type Place = (u64, u32);

impl Settling {
    /// Begins one: for the sessions of `external`, whose mapping to `internal` went, or has changed.
    pub(super) fn begin(&mut self, external: EndpointKey, internal: Option<EndpointKey>) {
        *self.externals.entry(bits(&external)).or_default() += 1;
        self.push(What::Mapping(external, internal));
    }

    /// Begins one for the sessions of external addresses that are not ours.
    pub(super) fn begin_ours(&mut self) {
        self.strangers += 1;
        self.push(What::Strangers);
    }

    fn push(&mut self, what: What) {
        self.newest = Turn(self.newest.0 + 1);
        self.searches.push_back(Search {
            turn: self.newest,
            what,
            due: None,
        });
    }

    /// Whether nothing is searched for.
    pub(super) fn is_idle(&self) -> bool {
        self.searches.is_empty()
    }

    /// The newest search.
    pub(super) fn newest(&self) -> Turn {
        self.newest
    }

    /// The search up to which all have come to their end.
    pub(super) fn settled(&self) -> Turn {
        let oldest = self.searches.front();
        oldest.map_or(self.newest, |search| Turn(search.turn.0.saturating_sub(1)))
    }

    /// Whether a session may be one of those that are searched for.
    pub(super) fn concerns(
        &self,
        key: &SessionKey,
        value: &SessionValue,
        judge: &Judge<'_>,
    ) -> bool {
        self.externals.contains_key(&bits(&value.endpoints(key).1))
            || (self.strangers > 0 && !judge.owns(key, value))
    }

    /// Whether sessions of this very mapping are still to be ended. Made again before that, it would keep them.
    pub(super) fn ends(&self, external: &EndpointKey, internal: &EndpointKey) -> bool {
        let what = What::Mapping(*external, Some(*internal));
        self.searches.iter().any(|search| search.what == what)
    }

    /// Where the next slice begins.
    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// A slice was read and judged, up to `cursor`.
    pub(super) fn advance(&mut self, cursor: Cursor) {
        let bucket = match cursor {
            Cursor::At(bucket) => bucket,
            Cursor::Start => 0,
            Cursor::End => {
                self.laps += 1;
                0
            }
        };
        self.cursor = if bucket == 0 { Cursor::Start } else { cursor };
        let here = (self.laps, bucket);
        let is_over = |search: &mut Search| search.due.is_some_and(|due| due <= here);
        while let Some(search) = self.searches.pop_front_if(is_over) {
            self.forget(search.what);
        }
        for search in self.searches.iter_mut().rev() {
            if search.due.is_some() {
                break;
            }
            search.due = Some((self.laps + 1, bucket));
        }
    }

    /// Gives all searches up: the next pass of the sweep finds what they would have.
    pub(super) fn give_up(&mut self) {
        self.searches.clear();
        self.externals.clear();
        self.strangers = 0;
    }

    fn forget(&mut self, what: What) {
        match what {
            What::Mapping(external, _) => {
                if let Entry::Occupied(mut held) = self.externals.entry(bits(&external)) {
                    *held.get_mut() -= 1;
                    if *held.get() == 0 {
                        held.remove();
                    }
                }
            }
            What::Strangers => self.strangers -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> EndpointKey {
        EndpointKey::new([100, 64, 0, 2], port.to_be_bytes(), 17)
    }

    #[test]
    fn a_search_ends_when_the_walk_has_come_round() {
        let mut settling = Settling::default();
        assert!(settling.is_idle());
        settling.begin(key(1), None);
        assert_eq!((settling.newest(), settling.settled()), (Turn(1), Turn(0)));
        // The first slice does not count.
        for (cursor, idle) in [
            (Cursor::At(10), false),
            (Cursor::At(20), false),
            (Cursor::End, false),
            (Cursor::At(9), false),
            (Cursor::At(12), true),
        ] {
            settling.advance(cursor);
            assert_eq!(settling.is_idle(), idle, "{cursor:?}");
        }
        assert_eq!(settling.settled(), Turn(1));
        assert_eq!(settling.cursor(), Cursor::At(12));
    }

    #[test]
    fn a_table_of_one_slice_is_read_twice() {
        let mut settling = Settling::default();
        settling.begin(key(1), None);
        settling.advance(Cursor::End);
        assert!(!settling.is_idle());
        assert_eq!(settling.cursor(), Cursor::Start);
        settling.advance(Cursor::End);
        assert!(settling.is_idle());
    }

    #[test]
    fn who_comes_later_joins_and_sees_all() {
        let mut settling = Settling::default();
        settling.begin(key(1), None);
        settling.advance(Cursor::At(10));
        settling.begin(key(2), Some(key(7)));
        assert!(settling.ends(&key(2), &key(7)));
        assert!(!settling.ends(&key(1), &key(7)), "only changed");
        settling.advance(Cursor::At(50));
        settling.advance(Cursor::End);
        settling.advance(Cursor::At(10));
        assert_eq!(settling.settled(), Turn(1));
        assert!(!settling.externals.contains_key(&bits(&key(1))));
        assert!(settling.externals.contains_key(&bits(&key(2))));
        settling.advance(Cursor::At(49));
        assert_eq!(settling.settled(), Turn(1));
        settling.advance(Cursor::At(50));
        assert_eq!(settling.settled(), Turn(2));
        assert!(!settling.ends(&key(2), &key(7)));
    }

    #[test]
    fn given_up_is_settled() {
        let mut settling = Settling::default();
        settling.begin(key(1), None);
        settling.begin_ours();
        settling.give_up();
        assert!(settling.is_idle());
        assert_eq!(settling.settled(), Turn(2));
        assert!(settling.externals.is_empty() && settling.strangers == 0);
    }

    #[test]
    fn one_endpoint_may_be_searched_for_twice() {
        let mut settling = Settling::default();
        settling.begin(key(1), None);
        settling.advance(Cursor::At(10));
        settling.begin(key(1), None);
        settling.begin_ours();
        settling.advance(Cursor::End);
        settling.advance(Cursor::At(10));
        assert_eq!(settling.settled(), Turn(1));
        assert!(settling.externals.contains_key(&bits(&key(1))));
        settling.advance(Cursor::End);
        assert!(settling.is_idle());
        assert!(settling.externals.is_empty() && settling.strangers == 0);
    }
}
