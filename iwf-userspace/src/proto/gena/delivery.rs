//! One message on its way: from URL to URL until one has taken it, or its time is over.

use std::time::Duration;

use super::{At, Effect, FIRST_REST, Gena, MAX_REST, Subscription, evented};
use crate::types::Instant;
use crate::wire::gena::{Callback, Sid, encode_notify, property_set};

/// UPnP Device Architecture 1.1 clause 4.3: a message that is not answered within 30 s is abandoned.
const PATIENCE: Duration = Duration::from_secs(30);
/// A host of the LAN that takes connections does so at once.
const CONNECT: Duration = Duration::from_secs(5);
/// What the sender may be late with its verdict.
const SLACK: Duration = Duration::from_secs(1);

/// A message to one URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// Names it in the outcome.
    pub number: u64,
    /// Our address to send from: on the link of the subscriber. `None`: it has gone.
    pub from: Option<At>,
    /// Where to.
    pub callback: Callback,
    /// The whole request.
    pub message: Vec<u8>,
    /// How long the connection may take.
    pub connect_within: Duration,
    /// How long all of it may take.
    pub answer_within: Duration,
}

/// Why a message was not confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No connection.
    #[error("no connection")]
    Unreachable,
    /// No answer in time, or the connection broke.
    #[error("no answer")]
    Silent,
    /// Another answer than one of success.
    #[error("refused with status {0}")]
    Refused(u16),
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Delivery {
    /// Of the attempt.
    pub(super) number: u64,
    /// When this attempt has failed at the latest.
    pub(super) ends: Instant,
    /// When the message is given up.
    deadline: Instant,
    /// Which of the callbacks is tried.
    url: usize,
    seq: u32,
    body: String,
    /// The variables in it.
    told: Vec<&'static str>,
}

impl Gena {
    /// Sends to everybody to whom something is due.
    pub(super) fn send_due(&mut self, now: Instant) {
        for sid in self.subscriptions.due(now) {
            let Some(subscription) = self.subscriptions.get_mut(&sid) else {
                continue;
            };
            if subscription.delivery.is_some() || !subscription.news {
                continue;
            }
            let untold = std::mem::take(&mut subscription.untold);
            subscription.news = false;
            // In the order of the description, which some control points expect of the first message.
            let told: Vec<_> = evented(subscription.service)
                .filter(|name| untold.contains(name))
                .collect();
            let values = &self.values;
            let known = told
                .iter()
                .filter_map(|name| Some((*name, values.get(name)?.as_str())));
            let body = property_set(known);
            let seq = subscription.seq;
            // Clause 4.3: 0 is the first message's alone.
            subscription.seq = seq.checked_add(1).unwrap_or(1);
            let delivery = Delivery {
                number: 0,
                ends: now,
                deadline: now + PATIENCE,
                url: 0,
                seq,
                body,
                told,
            };
            subscription.delivery = Some(delivery);
            self.attempt(sid, now);
        }
        self.settle();
    }

    /// Tries the callback that is next.
    fn attempt(&mut self, sid: Sid, now: Instant) {
        let next = self.subscriptions.get(&sid).and_then(|subscription| {
            let delivery = subscription.delivery.as_ref()?;
            let callback = subscription.callbacks.get(delivery.url)?;
            Some((callback.clone(), subscription.at))
        });
        let Some((callback, at)) = next else {
            return;
        };
        let from = self.way(callback.to.ip(), at);
        let Some(subscription) = self.subscriptions.get_mut(&sid) else {
            return;
        };
        let urls = subscription.callbacks.len();
        let Some(delivery) = &mut subscription.delivery else {
            return;
        };
        // Those that come after it get their share of the time.
        let left = delivery.deadline.saturating_duration_since(now);
        let shares = u32::try_from(urls - delivery.url).unwrap_or(1).max(1);
        let answer_within = left / shares;
        self.last_number += 1;
        delivery.number = self.last_number;
        delivery.ends = now + answer_within + SLACK;
        self.numbers.insert(delivery.number, sid);
        self.effects.push_back(Effect::Send(Send {
            number: delivery.number,
            from,
            message: encode_notify(&callback, sid, delivery.seq, &delivery.body),
            callback,
            connect_within: CONNECT.min(answer_within),
            answer_within,
        }));
    }

    /// What came of an attempt.
    pub(super) fn sent(&mut self, number: u64, result: Result<(), SendError>, now: Instant) {
        // Of an attempt that was given up, or of a subscription that has ended, nobody wants to know.
        let Some(sid) = self.numbers.remove(&number) else {
            return;
        };
        let Some(subscription) = self.subscriptions.get_mut(&sid) else {
            return;
        };
        let Some(mut delivery) = subscription.delivery.take() else {
            return;
        };
        if result.is_ok() {
            subscription.delivered(now);
            self.counts.delivered += 1;
            return;
        }
        delivery.url += 1;
        let more = delivery.url < subscription.callbacks.len() && now < delivery.deadline;
        if more {
            subscription.delivery = Some(delivery);
            return self.attempt(sid, now);
        }
        subscription.missed(delivery.told, now);
        self.counts.failed += 1;
    }
}

impl Subscription {
    fn delivered(&mut self, now: Instant) {
        self.failures = 0;
        self.not_before = now;
    }

    /// A message is not sent twice, and its number is used up, by which the subscriber sees that it has missed one. What
    /// it had goes along with the next.
    fn missed(&mut self, told: Vec<&'static str>, now: Instant) {
        self.untold.extend(told);
        self.failures = self.failures.saturating_add(1);
        let doublings = (self.failures - 1).min(8);
        self.not_before = now + (FIRST_REST * (1 << doublings)).min(MAX_REST);
    }
}
