//! What happened lately, kept for whoever asks.
//!
//! Two rings, so that a burst of new flows does not push out what the control plane has to tell. Writing never waits;
//! a reader has its own place, and when the oldest events go before it has come to them, it is told how many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::control::events::{EventFilter, EventPage, EventRow, Source};
use super::control::server::Replies;
use super::control::{ListEnd, Response};

/// Events kept of each source.
pub const KEPT: usize = 1024;
/// Events handed to a reader at once.
const PAGE: usize = 128;

/// The rings, shared with those who read.
#[derive(Clone, Debug)]
pub struct Journal {
    rings: Arc<Mutex<Rings>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Rings {
    /// How many events there have been.
    written: u64,
    data_plane: Ring,
    control_plane: Ring,
}

/// The newest events of one source.
#[derive(Debug, Default)]
struct Ring {
    /// With the number of each among all.
    events: VecDeque<(u64, EventRow)>,
    /// How many have gone.
    gone: u64,
}

/// How many events of each ring a reader has behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    data_plane: u64,
    control_plane: u64,
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest that is kept.
    Oldest,
    /// After the newest.
    Newest,
}

/// A reader's place in the journal. It does not keep the journal going: when the daemon ends, so do the events.
#[derive(Debug)]
pub struct Reader {
    rings: Arc<Mutex<Rings>>,
    changed: watch::Receiver<u64>,
    place: Place,
    filter: EventFilter,
}

impl Reader {
    /// The next events, which are waited for; `None` when no more can come.
    pub async fn next(&mut self) -> Option<EventPage> {
        loop {
            self.changed.borrow_and_update();
            if let Some(page) = self.kept() {
                return Some(page);
            }
            self.changed.changed().await.ok()?;
        }
    }

    /// The next events that are there already.
    fn kept(&mut self) -> Option<EventPage> {
        loop {
            let (page, more) = locked(&self.rings).read(&mut self.place, &self.filter);
            if page.lost > 0 || !page.events.is_empty() {
                return Some(page);
            }
            if !more {
                return None;
            }
        }
    }

    /// Hands what is kept to `replies`, and with `follow` whatever comes, until nobody listens any more.
    pub async fn tell(mut self, follow: bool, replies: Replies) {
        loop {
            let page = if follow {
                tokio::select! {
                    page = self.next() => page,
                    () = replies.closed() => return,
                }
            } else {
                self.kept()
            };
            let Some(page) = page else {
                if !follow {
                    // It does not matter whether it is heard.
                    replies.send(Response::End(ListEnd::default())).await.ok();
                }
                return;
            };
            if replies.send(Response::Events(page)).await.is_err() {
                return;
            }
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            rings: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Journal {
    /// Keeps an event, instead of the oldest of its source if there is no room.
    pub fn write(&self, event: EventRow) {
        let mut rings = self.rings();
        rings.written += 1;
        let number = rings.written;
        let ring = match event.source {
            Source::DataPlane => &mut rings.data_plane,
            Source::ControlPlane => &mut rings.control_plane,
        };
        if ring.events.len() >= KEPT {
            ring.events.pop_front();
            ring.gone += 1;
        }
        ring.events.push_back((number, event));
        drop(rings);
        self.changed.send_replace(number);
    }

    /// Whether somebody waits for what comes.
    pub fn is_followed(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    /// A reader of events that `filter` admits.
    pub fn reader(&self, filter: EventFilter, start: Start) -> Reader {
        let place = match start {
            Start::Oldest => self.rings().oldest(),
            Start::Newest => self.rings().newest(),
        };
        Reader {
            rings: Arc::clone(&self.rings),
            changed: self.changed.subscribe(),
            place,
            filter,
        }
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        locked(&self.rings)
    }
}

fn locked(rings: &Mutex<Rings>) -> MutexGuard<'_, Rings> {
    rings.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rings {
    fn oldest(&self) -> Place {
        Place {
            data_plane: self.data_plane.gone,
            control_plane: self.control_plane.gone,
        }
    }

    fn newest(&self) -> Place {
        Place {
            data_plane: self.data_plane.end(),
            control_plane: self.control_plane.end(),
        }
    }

    /// The next events at `place`, which moves behind them, and whether there are more.
    fn read(&self, place: &mut Place, filter: &EventFilter) -> (EventPage, bool) {
        let mut page = EventPage {
            lost: self.data_plane.catch_up(&mut place.data_plane)
                + self.control_plane.catch_up(&mut place.control_plane),
            events: Vec::new(),
        };
        while page.events.len() < PAGE {
            let programs = self.data_plane.at(place.data_plane);
            let daemon = self.control_plane.at(place.control_plane);
            let event = match (programs, daemon) {
                (None, None) => return (page, false),
                (Some((first, event)), Some((second, _))) if first < second => {
                    place.data_plane += 1;
                    event
                }
                (Some((_, event)), None) => {
                    place.data_plane += 1;
                    event
                }
                (_, Some((_, event))) => {
                    place.control_plane += 1;
                    event
                }
            };
            if filter.admits(event) {
                page.events.push(event.clone());
            }
        }
        (page, true)
    }
}

impl Ring {
    fn end(&self) -> u64 {
        self.gone + self.events.len() as u64
    }

    fn at(&self, place: u64) -> Option<&(u64, EventRow)> {
        let index = usize::try_from(place.checked_sub(self.gone)?).ok()?;
        self.events.get(index)
    }

    /// Moves a place to the oldest event that is still there; returns how many it has missed.
    fn catch_up(&self, place: &mut u64) -> u64 {
        let missed = self.gone.saturating_sub(*place);
        *place += missed;
        missed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::daemon::control::events::EventKind;
    use crate::types::UnixTime;

    const SOON: Duration = Duration::from_secs(5);

    fn event(number: u64, source: Source) -> EventRow {
        EventRow::new(UnixTime::from_secs(number), source, EventKind::Other)
    }

    fn times(page: &EventPage) -> Vec<u64> {
        page.events.iter().map(|e| e.time.0.as_secs()).collect()
    }

    async fn next(answers: &mut mpsc::Receiver<Response>) -> Response {
        let answer = timeout(SOON, answers.recv()).await;
        answer.expect("an answer soon").expect("an answer")
    }

    #[test]
    fn both_sources_come_in_the_order_they_were_written() {
        let journal = Journal::default();
        for (number, source) in [
            (1, Source::DataPlane),
            (2, Source::ControlPlane),
            (3, Source::ControlPlane),
            (4, Source::DataPlane),
        ] {
            journal.write(event(number, source));
        }
        let mut place = Place::default();
        let (page, more) = journal.rings().read(&mut place, &EventFilter::default());
        assert_eq!(
            (times(&page), page.lost, more),
            (vec![1, 2, 3, 4], 0, false)
        );
        assert_eq!(place, journal.rings().newest());
    }

    #[test]
    fn a_burst_pushes_out_its_own_source_and_a_late_reader_is_told() {
        let journal = Journal::default();
        journal.write(event(0, Source::ControlPlane));
        let mut place = Place::default();
        let all = EventFilter::default();
        let first = journal.rings().read(&mut place, &all);
        assert_eq!(times(&first.0), [0]);
        for number in 1..=KEPT as u64 + 7 {
            journal.write(event(number, Source::DataPlane));
        }
        journal.write(event(9999, Source::ControlPlane));
        let (page, more) = journal.rings().read(&mut place, &all);
        assert_eq!((page.lost, page.events.len(), more), (7, PAGE, true));
        assert_eq!(page.events[0].time.0.as_secs(), 8);
        let mut seen = page.events;
        loop {
            let (page, more) = journal.rings().read(&mut place, &all);
            assert_eq!(page.lost, 0);
            seen.extend(page.events);
            if !more {
                break;
            }
        }
        assert_eq!(seen.len(), KEPT + 1);
        assert_eq!(seen.last().unwrap().time.0.as_secs(), 9999);
        // Who comes now has missed nothing, and sees the first event of the other source.
        let mut place = journal.rings().oldest();
        let (page, _) = journal.rings().read(&mut place, &all);
        assert_eq!((page.lost, page.events[0].time.0.as_secs()), (0, 0));
    }

    #[tokio::test]
    async fn a_follower_gets_what_comes_and_goes_when_nobody_listens() {
        let journal = Journal::default();
        journal.write(event(1, Source::ControlPlane));
        let (replies, mut answers) = Replies::channel();
        let reader = journal.reader(EventFilter::default(), Start::Oldest);
        let telling = tokio::spawn(reader.tell(true, replies));
        let Response::Events(page) = next(&mut answers).await else {
            panic!("no events");
        };
        assert_eq!(times(&page), [1]);
        assert!(journal.is_followed());
        journal.write(event(2, Source::DataPlane));
        let Response::Events(page) = next(&mut answers).await else {
            panic!("no events");
        };
        assert_eq!(times(&page), [2]);
        drop(answers);
        timeout(SOON, telling).await.expect("ends soon").unwrap();
        assert!(!journal.is_followed());
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_loses_the_oldest() {
        let journal = Journal::default();
        let (replies, mut answers) = Replies::channel();
        let reader = journal.reader(EventFilter::default(), Start::Newest);
        let telling = tokio::spawn(reader.tell(true, replies));
        while !journal.is_followed() {
            tokio::task::yield_now().await;
        }
        let total = 3 * KEPT as u64;
        for number in 0..total {
            journal.write(event(number, Source::DataPlane));
            if number % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let (mut lost, mut seen) = (0, 0);
        while seen + lost < total {
            let Response::Events(page) = next(&mut answers).await else {
                panic!("no events");
            };
            lost += page.lost;
            seen += page.events.len() as u64;
        }
        assert!(lost > 0, "all of {total} were kept for it");
        assert_eq!(seen + lost, total);
        telling.abort();
    }

    #[tokio::test]
    async fn who_does_not_follow_gets_an_end() {
        let journal = Journal::default();
        journal.write(event(1, Source::ControlPlane));
        let (replies, mut answers) = Replies::channel();
        let filter = EventFilter {
            kinds: vec![EventKind::Repaired],
            ..EventFilter::default()
        };
        journal
            .reader(filter, Start::Oldest)
            .tell(false, replies)
            .await;
        assert_eq!(next(&mut answers).await, Response::End(ListEnd::default()));
        assert_eq!(answers.recv().await, None);
    }
}
