//! Asks the DHCP servers of the WAN for PCP servers. No address is asked for: another program of this machine does that.
//!
//! Read before editing: RFC 2131 sections 4.1 and 4.4.3, RFC 8415 sections 15, 18.2.6 and 18.2.12, RFC 7291.
//!
//! One machine for each of the two protocols. It asks when the interface has got an address, again until it is answered,
//! and anew from time to time, since neither answer carries a lease that would end.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use crate::types::Instant;
use crate::wire::dhcp4::{Ack, Inform};
use crate::wire::dhcp6::{Duid, InformationRequest, Reply};
use crate::wire::pcp_servers::{OptionError, Servers};

/// RFC 2131 section 4.1: the first wait.
const V4_FIRST: Duration = Duration::from_secs(4);
/// RFC 8415 section 7.6: INF_TIMEOUT.
const V6_FIRST: Duration = Duration::from_secs(1);
/// RFC 8415 section 7.6: INF_MAX_RT. RFC 2131 has 64 s for clients without an address; this one only wants to know.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// RFC 8415 section 18.2.6: INF_MAX_DELAY. All CPEs of a street get their power back at once.
const V6_MAX_DELAY: Duration = Duration::from_secs(1);
/// When an answer is asked for anew, unless it says otherwise.
const REFRESH: Duration = Duration::from_secs(3600);
/// RFC 8415 section 21.23: IRT_MINIMUM, and what we take for the longest.
const REFRESH_LIMITS: (Duration, Duration) =
    (Duration::from_secs(600), Duration::from_secs(86_400));
/// When nobody has answered for so long, there counts as nobody. Answers that come later count all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who asks. Which protocol follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// DHCPv4.
    V4 {
        /// The address of the WAN.
        address: Ipv4Addr,
        /// Its Ethernet address.
        mac: [u8; 6],
    },
    /// DHCPv6.
    V6 {
        /// The identity of the device.
        duid: Duid,
    },
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// The interface, as it is now; `None` while it cannot be used.
    Client(Option<Client>),
    /// A datagram arrived at the client's port on the WAN.
    Datagram(Vec<u8>),
    /// Somebody wants to know now.
    Again,
}

/// What it wants done, or has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send to all servers of the link.
    Send(Vec<u8>),
    /// What is known has changed.
    Known(Known),
    /// Something of an answer was left out. Told once for each answer that differs.
    Discarded(Discarded),
}

/// What an answer had that is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Discarded {
    /// The option.
    #[error("the option of PCP servers is discarded: {0}")]
    Option(#[source] OptionError),
    /// Some addresses.
    #[error("{0} addresses of PCP servers are discarded")]
    Addresses(u32),
}

/// What is known of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Whether it was asked long enough for silence to be an answer.
    pub settled: bool,
    /// PCP servers.
    pub servers: Servers,
    /// Where a DS-Lite tunnel ends.
    pub aftr: Option<String>,
}

/// Datagrams by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Answers to what was asked.
    pub answers: u64,
    /// Of other clients, other exchanges, or no such message at all.
    pub ignored: u64,
    /// Answers with something that was left out.
    pub discarded: u64,
}

/// One exchange.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    xid: u32,
    began: Instant,
    /// The wait before this question; `None` before the first.
    wait: Option<Duration>,
    /// When there counts as nobody.
    verdict: Option<Instant>,
    /// Whether it was answered. More answers may follow: of several servers one may know more.
    answered: bool,
}

/// The machine.
#[derive(Debug)]
pub struct DhcpClient {
    rng: StdRng,
    client: Option<Client>,
    exchange: Option<Exchange>,
    /// When to ask next.
    at: Option<Instant>,
    max_wait: Duration,
    known: Known,
    told: Vec<Discarded>,
    heard: Heard,
    effects: VecDeque<Effect>,
}

impl DhcpClient {
    /// Asks nobody yet. `rng` is seeded from the operating system's entropy: exchanges are named by it.
    pub fn new(rng: StdRng) -> Self {
        Self {
            rng,
            client: None,
            exchange: None,
            at: None,
            max_wait: MAX_WAIT,
            known: Known::default(),
            told: Vec::new(),
            heard: Heard::default(),
            effects: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Client(client) => self.set_client(client, now),
            Input::Datagram(payload) => self.receive(&payload, now),
            Input::Again if self.client.is_some() => self.begin(now),
            Input::Again => {}
        }
        self.handle_timeout(now);
    }

    /// Does everything due at `now`; calling twice changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(exchange) = &mut self.exchange
            && exchange.verdict.is_some_and(|at| at <= now)
        {
            exchange.verdict = None;
            self.settle();
        }
        let (Some(client), Some(at)) = (self.client, self.at) else {
            return;
        };
        if at > now {
            return;
        }
        if self.exchange.is_none_or(|exchange| exchange.answered) {
            self.begin_at(now, now);
        }
        if let Some(exchange) = &mut self.exchange {
            let wait = wait(client, exchange.wait, self.max_wait, &mut self.rng);
            exchange.wait = Some(wait);
            self.at = Some(now + wait);
            let payload = question(client, exchange, now);
            self.effects.push_back(Effect::Send(payload));
        }
    }

    /// When [`DhcpClient::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let verdict = self.exchange.and_then(|exchange| exchange.verdict);
        let at = self.at.filter(|_| self.client.is_some());
        [verdict, at].into_iter().flatten().min()
    }

    /// The next effect, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// What became of the datagrams so far.
    pub const fn heard(&self) -> Heard {
        self.heard
    }

    fn set_client(&mut self, client: Option<Client>, now: Instant) {
        if self.client == client {
            if client.is_none() {
                self.settle();
            }
            return;
        }
        let before = std::mem::replace(&mut self.client, client);
        match (before, client) {
            (_, None) => {
                // What was learned holds until something else is, or another network shows.
                (self.exchange, self.at) = (None, None);
                self.settle();
            }
            (Some(_), Some(_)) => {
                self.know(Known::default());
                self.begin(now);
            }
            (None, Some(_)) => {
                // Nothing is asked of anybody before the network has had its chance to say whom.
                self.know(Known {
                    settled: false,
                    ..self.known.clone()
                });
                self.begin(now);
            }
        }
    }

    fn begin(&mut self, now: Instant) {
        let delay = match self.client {
            Some(Client::V6 { .. }) => up_to(V6_MAX_DELAY, &mut self.rng),
            Some(Client::V4 { .. }) | None => Duration::ZERO,
        };
        self.begin_at(now + delay, now);
    }

    fn begin_at(&mut self, first: Instant, now: Instant) {
        self.at = Some(first);
        self.exchange = Some(Exchange {
            xid: self.rng.random::<u32>() >> 8,
            began: now,
            wait: None,
            verdict: (!self.known.settled).then_some(now + PATIENCE),
            answered: false,
        });
    }

    fn settle(&mut self) {
        self.know(Known {
            settled: true,
            ..self.known.clone()
        });
    }

    fn know(&mut self, known: Known) {
        if self.known != known {
            self.known = known.clone();
            self.effects.push_back(Effect::Known(known));
        }
    }

    fn receive(&mut self, payload: &[u8], now: Instant) {
        let answer = match (self.client, self.exchange) {
            (Some(client), Some(exchange)) => read(client, &exchange, payload),
            _ => None,
        };
        let Some(answer) = answer else {
            self.heard.ignored = self.heard.ignored.saturating_add(1);
            return;
        };
        self.heard.answers = self.heard.answers.saturating_add(1);
        let first = self
            .exchange
            .as_mut()
            .is_some_and(|exchange| !std::mem::replace(&mut exchange.answered, true));
        if let Some(exchange) = &mut self.exchange {
            exchange.verdict = None;
        }
        self.max_wait = answer.max_wait.unwrap_or(self.max_wait);
        if first {
            let (least, most) = REFRESH_LIMITS;
            let refresh = answer.refresh.unwrap_or(REFRESH).clamp(least, most);
            // Not all at once with those that began when we did.
            self.at = Some(now + refresh - up_to(refresh / 10, &mut self.rng));
        }
        if !answer.discarded.is_empty() {
            self.heard.discarded = self.heard.discarded.saturating_add(1);
            if self.told != answer.discarded {
                self.told.clone_from(&answer.discarded);
                let told = answer.discarded.into_iter().map(Effect::Discarded);
                self.effects.extend(told);
            }
        }
        let more = answer.known.servers.lists.len() > self.known.servers.lists.len()
            || (self.known.aftr.is_none() && answer.known.aftr.is_some());
        if first || more {
            self.know(answer.known);
        }
    }
}

struct Answer {
    known: Known,
    refresh: Option<Duration>,
    max_wait: Option<Duration>,
    discarded: Vec<Discarded>,
}

/// An answer to this exchange.
fn read(client: Client, exchange: &Exchange, payload: &[u8]) -> Option<Answer> {
    let (servers, error, aftr, refresh, max_wait) = match client {
        Client::V4 { mac, .. } => {
            let ack = Ack::decode(payload).ok()?;
            if ack.xid != exchange.xid || ack.mac != mac {
                return None;
            }
            let (servers, error) = match ack.pcp_servers.as_deref().map(Servers::from_option158) {
                None => (Servers::default(), None),
                Some(Ok(servers)) => (servers, None),
                Some(Err(error)) => (Servers::default(), Some(error)),
            };
            (servers, error, None, None, None)
        }
        Client::V6 { duid } => {
            let reply = Reply::decode(payload).ok()?;
            if reply.xid != exchange.xid || !reply.is_for(&duid) {
                return None;
            }
            let (servers, error) = Servers::from_option86(&reply.pcp_servers);
            (servers, error, reply.aftr, reply.refresh, reply.max_wait)
        }
    };
    let addresses = (servers.discarded > 0).then_some(Discarded::Addresses(servers.discarded));
    Some(Answer {
        known: Known {
            settled: true,
            servers,
            aftr,
        },
        refresh,
        max_wait,
        discarded: error
            .map(Discarded::Option)
            .into_iter()
            .chain(addresses)
            .collect(),
    })
}

fn question(client: Client, exchange: &Exchange, now: Instant) -> Vec<u8> {
    let elapsed = now.saturating_duration_since(exchange.began);
    match client {
        Client::V4 { address, mac } => Inform {
            xid: exchange.xid,
            secs: u16::try_from(elapsed.as_secs()).unwrap_or(u16::MAX),
            address,
            mac,
        }
        .encode(),
        Client::V6 { duid } => InformationRequest {
            xid: exchange.xid,
            duid,
            elapsed,
        }
        .encode(),
    }
}

/// The wait after a question. DHCPv4: doubled, give or take a second. DHCPv6: doubled, give or take a tenth.
fn wait(
    client: Client,
    previous: Option<Duration>,
    longest: Duration,
    rng: &mut impl Rng,
) -> Duration {
    match client {
        Client::V4 { .. } => {
            let base = previous.map_or(V4_FIRST, |wait| (wait * 2).min(MAX_WAIT));
            base + up_to(Duration::from_secs(2), rng) - Duration::from_secs(1)
        }
        Client::V6 { .. } => {
            let base = previous.map_or(V6_FIRST, |wait| (wait * 2).min(longest));
            base * rng.random_range(900..=1100) / 1000
        }
    }
}

fn up_to(most: Duration, rng: &mut impl Rng) -> Duration {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(rng.random_range(0..=most))
}

#[cfg(test)]
mod tests;
