//! Subscriptions and event messages: who is told what, in which order, and what becomes of a subscriber that does not
//! answer.
//!
//! Read before editing: UPnP Device Architecture 1.1 clause 4; requirements GENA, AMB-07.
//!
//! A queue of whole messages would grow with what happens and would tell old news. Here a subscriber has the names of
//! the variables that it has not been told of, and one message on its way. When that has come to its end the next one
//! has the values of that moment. So the newest state always goes out, nothing in between is owed to anybody, and a
//! subscriber costs the same however slow it is. Subscribers know nothing of each other.
#![forbid(unsafe_code)]

mod delivery;
mod link;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::types::Instant;
use crate::types::caller::Mac;
use crate::types::timed::Timed;
use crate::wire::gena::{Callback, Request, Sid, Timeout};
use crate::wire::scpd::Service;

use delivery::Delivery;
pub use delivery::{Send, SendError};
pub use link::{At, Link};

/// Subscriptions of all hosts together. Each may have a connection open.
pub const MAX_SUBSCRIPTIONS: usize = 256;
/// Subscriptions of one host.
pub const MAX_PER_HOST: usize = 16;
/// Clause 4.1.1: no subscription should be shorter. Also what one gets that does not say, or says for ever.
pub const MIN_TIMEOUT: Duration = Duration::from_secs(1800);
/// No subscription is longer, or a subscriber that has gone would be kept for as long.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);
/// The answer to SUBSCRIBE goes before the first message, which would have an unknown SID otherwise.
const FIRST_AFTER: Duration = Duration::from_millis(100);
/// Callbacks to lower ports are refused, but for that of HTTP: they are services of hosts, not of control points.
const MIN_PORT: u16 = 1024;
const HTTP_PORT: u16 = 80;
/// Rest after a message that did not get through; doubled with each further one.
const FIRST_REST: Duration = Duration::from_secs(1);
/// Longest rest.
const MAX_REST: Duration = Duration::from_secs(60);

/// What the machine is told.
#[derive(Debug)]
pub enum Input {
    /// A request at the event URL of a service. Answered at once by [`Effect::Answer`].
    Request {
        /// Names it in the answer.
        id: u64,
        /// The service.
        service: &'static Service,
        /// Who asks.
        host: Host,
        /// Where we were asked.
        at: At,
        /// What is asked.
        request: Request,
    },
    /// Values of evented variables as they are now.
    Values(Vec<(&'static str, String)>),
    /// Something happened that subscribers are told of although this variable has the value it had.
    Again(&'static str),
    /// The links of the LAN, and every IPv6 address of this machine. Complete, never a change.
    Lan {
        /// Our addresses there.
        links: Vec<Link>,
        /// No events go to these.
        own: BTreeSet<Ipv6Addr>,
    },
    /// What came of a message.
    Sent {
        /// Its number.
        number: u64,
        /// Whether the subscriber has confirmed it.
        result: Result<(), SendError>,
    },
}

/// A host that subscribes. With a MAC address it is the same host by whichever of its addresses it comes: over IPv6 it has
/// as many as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Source address of the connection.
    pub addr: IpAddr,
    /// Its MAC address, if it was asked for and is known.
    pub mac: Option<Mac>,
}

impl Host {
    fn is(&self, other: &Self) -> bool {
        match (self.mac, other.mac) {
            (Some(one), Some(other)) => one == other,
            _ => self.addr == other.addr,
        }
    }
}

impl From<IpAddr> for Host {
    fn from(addr: IpAddr) -> Self {
        Self { addr, mac: None }
    }
}

/// What it wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer a request.
    Answer {
        /// The request.
        id: u64,
        /// What was granted; `None` for the end of a subscription.
        result: Result<Option<Granted>, Refusal>,
    },
    /// Send a message.
    Send(Send),
    /// What comes of this message is of no interest any more.
    Cancel(u64),
}

/// What a subscriber is told of its subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its name.
    pub sid: Sid,
    /// How long it lasts.
    pub timeout: Duration,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// The caller has no such subscription of this service.
    #[error("no such subscription")]
    Unknown,
    /// No callback is on the link that the request came by, or its port is none that events go to.
    #[error("callback to somewhere else than the subscriber's own link, or to a low port")]
    Elsewhere,
    /// The host, or all together, have as many as there may be.
    #[error("too many subscriptions")]
    Full,
}

impl Refusal {
    /// The HTTP status that says so (clause 4.1.1).
    pub const fn status(self) -> u16 {
        match self {
            Self::Unknown | Self::Elsewhere => 412,
            Self::Full => 503,
        }
    }
}

/// What was done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Subscriptions made.
    pub made: u64,
    /// Renewals.
    pub renewed: u64,
    /// Subscriptions ended by their subscribers.
    pub ended: u64,
    /// Subscriptions that ran out.
    pub expired: u64,
    /// Subscriptions that had to make room, or whose link has gone.
    pub dropped: u64,
    /// Requests refused because of their callback.
    pub refused_callback: u64,
    /// Requests refused for lack of room.
    pub refused_full: u64,
    /// Renewals and ends of what is not there.
    pub refused_unknown: u64,
    /// Messages that were confirmed.
    pub delivered: u64,
    /// Messages that were given up.
    pub failed: u64,
}

/// What can be looked at of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// Its name.
    pub sid: Sid,
    /// The service.
    pub service: &'static Service,
    /// Who subscribed.
    pub host: IpAddr,
    /// Where its events go.
    pub callbacks: &'a [Callback],
    /// When it ends.
    pub expires: Instant,
    /// The number of its next message.
    pub next_seq: u32,
    /// Whether a message is on its way.
    pub sending: bool,
    /// Messages in a row that did not get through.
    pub failures: u32,
}

#[derive(Debug)]
struct Subscription {
    service: &'static Service,
    host: Host,
    at: At,
    callbacks: Vec<Callback>,
    expires: Instant,
    /// SEQ of the next message.
    seq: u32,
    /// Variables whose value it has not been told.
    untold: BTreeSet<&'static str>,
    /// Whether something has changed among them since the last message; what a failed one has left waits for that.
    news: bool,
    /// No message before.
    not_before: Instant,
    delivery: Option<Delivery>,
    failures: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Gena {
    rng: StdRng,
    lan: Vec<Link>,
    /// IPv6 addresses of this machine.
    own: BTreeSet<Ipv6Addr>,
    values: BTreeMap<&'static str, String>,
    subscriptions: Timed<Sid, Subscription>,
    /// Whose message has that number.
    numbers: BTreeMap<u64, Sid>,
    last_number: u64,
    counts: Counts,
    effects: VecDeque<Effect>,
}

impl Gena {
    /// Without subscriptions. `rng` is seeded from the operating system's entropy: who guesses a SID ends the
    /// subscription of somebody else.
    pub fn new(rng: StdRng) -> Self {
        Self {
            rng,
            lan: Vec::new(),
            own: BTreeSet::new(),
            values: BTreeMap::new(),
            subscriptions: Timed::new(),
            numbers: BTreeMap::new(),
            last_number: 0,
            counts: Counts::default(),
            effects: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Request {
                id,
                service,
                host,
                at,
                request,
            } => {
                let result = self.request(service, (host, at), request, now);
                if let Err(refusal) = &result {
                    self.count(*refusal);
                }
                self.effects.push_back(Effect::Answer { id, result });
            }
            Input::Values(values) => self.learn(values),
            Input::Again(name) => self.owe(&[name]),
            Input::Lan { links, own } => {
                (self.lan, self.own) = (links, own);
                let lan = &self.lan;
                let gone = |at: At| !lan.iter().any(|link| link.at == at);
                let lost: Vec<_> = self
                    .subscriptions
                    .iter()
                    .filter(|(_, subscription)| gone(subscription.at))
                    .map(|(sid, _)| *sid)
                    .collect();
                for sid in lost {
                    self.forget(sid);
                    self.counts.dropped += 1;
                }
            }
            Input::Sent { number, result } => self.sent(number, result, now),
        }
        self.settle();
        self.send_due(now);
    }

    /// Does everything due at `now`; calling twice changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        for sid in self.subscriptions.due(now) {
            let Some(subscription) = self.subscriptions.get(&sid) else {
                continue;
            };
            if subscription.expires <= now {
                self.forget(sid);
                self.counts.expired += 1;
                continue;
            }
            let late = subscription.delivery.as_ref();
            if let Some(number) = late.filter(|d| d.ends <= now).map(|d| d.number) {
                self.effects.push_back(Effect::Cancel(number));
                self.sent(number, Err(SendError::Silent), now);
            }
        }
        self.settle();
        self.send_due(now);
    }

    /// When [`Gena::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.subscriptions.next()
    }

    /// The next effect, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether nobody has to be told anything, so that nobody needs to know the values.
    pub fn is_idle(&self) -> bool {
        self.subscriptions.len() == 0
    }

    /// What was done since the start.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Every subscription.
    pub fn subscriptions(&self) -> impl Iterator<Item = View<'_>> {
        self.subscriptions.iter().map(|(sid, subscription)| View {
            sid: *sid,
            service: subscription.service,
            host: subscription.host.addr,
            callbacks: &subscription.callbacks,
            expires: subscription.expires,
            next_seq: subscription.seq,
            sending: subscription.delivery.is_some(),
            failures: subscription.failures,
        })
    }

    fn request(
        &mut self,
        service: &'static Service,
        (host, at): (Host, At),
        request: Request,
        now: Instant,
    ) -> Result<Option<Granted>, Refusal> {
        match request {
            Request::Subscribe { callbacks, timeout } => {
                let callbacks = self.admitted(callbacks, at);
                if callbacks.is_empty() {
                    return Err(Refusal::Elsewhere);
                }
                self.make_room(host)?;
                let timeout = granted(timeout);
                let sid = Sid::new(self.rng.random());
                let subscription = Subscription {
                    service,
                    host,
                    at,
                    callbacks,
                    expires: now + timeout,
                    seq: 0,
                    untold: evented(service).collect(),
                    news: true,
                    not_before: now + FIRST_AFTER,
                    delivery: None,
                    failures: 0,
                };
                self.subscriptions.insert(sid, subscription);
                self.counts.made += 1;
                Ok(Some(Granted { sid, timeout }))
            }
            Request::Renew { sid, timeout } => {
                self.find(sid, service, host)?;
                let timeout = granted(timeout);
                if let Some(subscription) = self.subscriptions.get_mut(&sid) {
                    subscription.expires = now + timeout;
                    // It is there, so what it has missed may be told now.
                    subscription.news = !subscription.untold.is_empty();
                    subscription.not_before = subscription.not_before.min(now + FIRST_AFTER);
                }
                self.counts.renewed += 1;
                Ok(Some(Granted { sid, timeout }))
            }
            Request::Unsubscribe { sid } => {
                self.find(sid, service, host)?;
                self.forget(sid);
                self.counts.ended += 1;
                Ok(None)
            }
        }
    }

    /// The callbacks on the link that we were asked on. None is this machine, whatever its addresses.
    fn admitted(&self, mut callbacks: Vec<Callback>, at: At) -> Vec<Callback> {
        callbacks.retain(|callback| {
            let (addr, port) = (callback.to.ip(), callback.to.port());
            let is_ours = match addr {
                IpAddr::V4(_) => self.lan.iter().any(|link| link.at.own == addr),
                IpAddr::V6(addr) => self.own.contains(&addr),
            };
            self.way(addr, at).is_some() && !is_ours && (port >= MIN_PORT || port == HTTP_PORT)
        });
        callbacks
    }

    /// By which of our addresses events go to a host, for who has asked us there. Over IPv4 it is that address, and the
    /// host is of its prefix; over IPv6, where a host has addresses of several prefixes of one link, any on that link.
    fn way(&self, to: IpAddr, at: At) -> Option<At> {
        let links = self.lan.iter().filter(|link| link.has_host(to));
        let mut ways = links.map(|link| link.at).filter(|way| match to {
            IpAddr::V4(_) => *way == at,
            IpAddr::V6(_) => way.interface == at.interface && at.own.is_ipv6(),
        });
        ways.next()
    }

    /// Sees to it that one more fits. Only a subscription whose messages do not get through makes room, of the same host
    /// before others: a program that was started again leaves such ones behind.
    fn make_room(&mut self, host: Host) -> Result<(), Refusal> {
        let own = |(_, s): &(&Sid, &Subscription)| s.host.is(&host);
        let held = self.subscriptions.iter().filter(own).count();
        let narrow = held >= MAX_PER_HOST;
        if !narrow && self.subscriptions.len() < MAX_SUBSCRIPTIONS {
            return Ok(());
        }
        let worst = self
            .subscriptions
            .iter()
            .filter(|(_, s)| s.failures > 0 && (!narrow || s.host.is(&host)))
            .max_by_key(|(_, s)| (s.host.is(&host), s.failures))
            .map(|(sid, _)| *sid);
        let sid = worst.ok_or(Refusal::Full)?;
        self.forget(sid);
        self.counts.dropped += 1;
        Ok(())
    }

    /// Whether the host has that subscription of that service: nobody else gets to change it.
    fn find(&self, sid: Sid, service: &'static Service, host: Host) -> Result<(), Refusal> {
        let found = self.subscriptions.get(&sid);
        let own = found.filter(|s| s.host.is(&host) && s.service == service);
        own.map(drop).ok_or(Refusal::Unknown)
    }

    fn count(&mut self, refusal: Refusal) {
        let counts = &mut self.counts;
        *match refusal {
            Refusal::Unknown => &mut counts.refused_unknown,
            Refusal::Elsewhere => &mut counts.refused_callback,
            Refusal::Full => &mut counts.refused_full,
        } += 1;
    }

    fn learn(&mut self, values: Vec<(&'static str, String)>) {
        let mut changed = Vec::new();
        for (name, value) in values {
            if self.values.get(name) != Some(&value) {
                self.values.insert(name, value);
                changed.push(name);
            }
        }
        if !changed.is_empty() {
            self.owe(&changed);
        }
    }

    /// Everybody whose service has one of these variables is to be told of it.
    fn owe(&mut self, names: &[&'static str]) {
        let concerned: Vec<_> = self
            .subscriptions
            .iter()
            .filter(|(_, s)| evented(s.service).any(|name| names.contains(&name)))
            .map(|(sid, _)| *sid)
            .collect();
        for sid in concerned {
            if let Some(subscription) = self.subscriptions.get_mut(&sid) {
                let service = subscription.service;
                let own = evented(service).filter(|name| names.contains(name));
                subscription.untold.extend(own);
                subscription.news = true;
            }
        }
    }

    fn forget(&mut self, sid: Sid) {
        let gone = self.subscriptions.remove(&sid);
        if let Some(delivery) = gone.and_then(|gone| gone.delivery) {
            self.numbers.remove(&delivery.number);
            self.effects.push_back(Effect::Cancel(delivery.number));
        }
    }

    fn settle(&mut self) {
        self.subscriptions
            .settle(|_, subscription| Some(subscription.next_event()), |_, _| {});
    }

    /// Whether every deadline is in its place.
    #[cfg(test)]
    pub(crate) fn is_consistent(&self) -> bool {
        let on_the_way = self.subscriptions.iter();
        let on_the_way = on_the_way.filter(|(_, s)| s.delivery.is_some()).count();
        self.subscriptions
            .is_settled(|_, subscription| Some(subscription.next_event()))
            && on_the_way == self.numbers.len()
            && self.subscriptions.len() <= MAX_SUBSCRIPTIONS
    }
}

impl Subscription {
    fn next_event(&self) -> Instant {
        let next = match &self.delivery {
            Some(delivery) => Some(delivery.ends),
            None => self.news.then_some(self.not_before),
        };
        next.map_or(self.expires, |next| next.min(self.expires))
    }
}

/// The variables of a service that subscribers are told of, in the order of its description.
fn evented(service: &'static Service) -> impl Iterator<Item = &'static str> {
    let all = service.variables.iter();
    all.filter(|variable| variable.evented)
        .map(|variable| variable.name)
}

fn granted(wanted: Timeout) -> Duration {
    match wanted {
        Timeout::Unsaid | Timeout::Infinite => MIN_TIMEOUT,
        Timeout::Seconds(seconds) => {
            Duration::from_secs(seconds.into()).clamp(MIN_TIMEOUT, MAX_TIMEOUT)
        }
    }
}

#[cfg(test)]
mod tests;
