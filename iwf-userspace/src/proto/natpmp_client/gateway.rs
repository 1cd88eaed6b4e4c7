//! What is known of one gateway, what it is asked, and what waits for its turn.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::clock::SinceStart;
use crate::proto::pcp_client::Liveness;
use crate::proto::pcp_client::negative::NegativeCache;
use crate::types::{ExternalPort, Generation, Instant, Protocol};

/// RFC 6886 section 3.1: the first wait for an answer; each next one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Transmissions of a request before it is given up.
const TRIES: u32 = 9;
/// The same of a deletion nobody waits for: without it the mapping ends by itself.
const TRIES_TO_DELETE: u32 = 5;
/// The wait for an answer that another machine gets.
const OTHERS_WAIT: Duration = Duration::from_secs(120);
/// Transmissions without an answer after which a gateway counts as silent, when the next one is due (15.75 s).
const PATIENCE: u32 = 6;
/// For how long the external address is taken to be what the gateway said last.
const ADDRESS_AGE: Duration = Duration::from_secs(60);

/// One thing to ask a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Question {
    /// The external address.
    Address,
    /// What this lease is about.
    Map(Generation),
    /// Delete what this port of our NAT is mapped to.
    Delete(Protocol, ExternalPort),
}

/// The one request that awaits its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) question: Question,
    sent: u32,
    most: u32,
    /// When it is sent again, or given up.
    pub(super) at: Instant,
}

impl Pending {
    /// Sent at `now` for the first time.
    pub(super) fn new(question: Question, awaited: bool, now: Instant) -> Self {
        Self {
            question,
            sent: 1,
            most: match question {
                Question::Delete(..) if !awaited => TRIES_TO_DELETE,
                Question::Address | Question::Map(_) | Question::Delete(..) => TRIES,
            },
            at: now + FIRST_WAIT,
        }
    }

    /// Said by another machine, which repeats what has to be repeated and has an answer before the time is over.
    pub(super) fn once(question: Question, now: Instant) -> Self {
        Self {
            question,
            sent: 1,
            most: 1,
            at: now + OTHERS_WAIT,
        }
    }

    /// Counts one more transmission at `now`; false if there were enough.
    pub(super) fn again(&mut self, now: Instant) -> bool {
        if self.sent >= self.most {
            return false;
        }
        self.at = now + FIRST_WAIT * 2u32.saturating_pow(self.sent);
        self.sent += 1;
        true
    }

    /// Whether so many were not answered that nobody seems to be there.
    pub(super) fn is_long(&self) -> bool {
        self.sent > PATIENCE
    }
}

/// Questions in order: those somebody waits for first.
#[derive(Debug, Default)]
pub(super) struct Line {
    order: BTreeMap<(bool, u64), Question>,
    places: BTreeMap<Question, (bool, u64)>,
    last: u64,
}

impl Line {
    /// Takes a place, or a better one if it is awaited now.
    pub(super) fn join(&mut self, question: Question, awaited: bool) {
        if let Some((late, _)) = self.places.get(&question)
            && (!awaited || !late)
        {
            return;
        }
        self.leave(question);
        self.last += 1;
        let place = (!awaited, self.last);
        self.order.insert(place, question);
        self.places.insert(question, place);
    }

    pub(super) fn leave(&mut self, question: Question) {
        if let Some(place) = self.places.remove(&question) {
            self.order.remove(&place);
        }
    }

    /// The first one, and whether it is awaited.
    pub(super) fn first(&self) -> Option<(Question, bool)> {
        let ((late, _), question) = self.order.first_key_value()?;
        Some((*question, !late))
    }

    /// Lets nobody go before others any more, and says what was waited for.
    pub(super) fn give_up(&mut self) -> Vec<Question> {
        let mut awaited = Vec::new();
        while let Some((question, true)) = self.first() {
            awaited.push(question);
            let place = self.places.get_mut(&question);
            if let Some((late, number)) = place {
                self.order.remove(&(*late, *number));
                *late = true;
                self.order.insert((true, *number), question);
            }
        }
        awaited
    }

    /// Leases in it.
    pub(super) fn leases(&self) -> Vec<Generation> {
        let lease = |question: &Question| match question {
            Question::Map(id) => Some(*id),
            Question::Address | Question::Delete(..) => None,
        };
        self.order.values().filter_map(lease).collect()
    }
}

#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) clock: SinceStart,
    pub(super) liveness: Liveness,
    /// The external address it said last.
    pub(super) address: Option<Ipv4Addr>,
    address_seen: Option<Instant>,
    pub(super) pending: Option<Pending>,
    pub(super) line: Line,
    /// What it has refused.
    pub(super) negative: NegativeCache,
    /// Nothing is asked before that nobody waits for.
    pub(super) quiet_until: Instant,
}

impl Gateway {
    pub(super) fn new() -> Self {
        Self {
            clock: SinceStart::default(),
            liveness: Liveness::Unknown,
            address: None,
            address_seen: None,
            pending: None,
            line: Line::default(),
            negative: NegativeCache::default(),
            quiet_until: Instant::default(),
        }
    }

    /// The external address, unless it has to be asked for first.
    pub(super) fn fresh_address(&self, now: Instant) -> Option<Ipv4Addr> {
        let seen = self.address_seen?;
        (now < seen + ADDRESS_AGE).then_some(self.address?)
    }

    /// The gateway said its address.
    pub(super) fn set_address(&mut self, addr: Ipv4Addr, now: Instant) {
        (self.address, self.address_seen) = (Some(addr), Some(now));
    }

    /// It may have another address by now.
    pub(super) fn doubt_address(&mut self) {
        self.address_seen = None;
    }

    /// The next question to send at `now`.
    pub(super) fn next_question(&self, now: Instant) -> Option<(Question, bool)> {
        let (question, awaited) = self.line.first()?;
        let open = self.pending.is_none() && (awaited || now >= self.quiet_until);
        open.then_some((question, awaited))
    }

    /// When something is due, given that something can be sent.
    pub(super) fn next_event(&self) -> Option<Instant> {
        match (&self.pending, self.line.first()) {
            (Some(pending), _) => Some(pending.at),
            (None, Some(_)) => Some(self.quiet_until),
            (None, None) => None,
        }
    }
}
