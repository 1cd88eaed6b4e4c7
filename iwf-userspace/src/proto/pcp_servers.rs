//! Which address of which PCP server is asked.
//!
//! Read before editing: RFC 7488 sections 3 and 4, RFC 7723 sections 2.1 and 5, requirement AMB-33.
//!
//! Every address is sent ANNOUNCE at start, so that a call of a control point begins at one that is known to live. The
//! first one in the order that answers is used, with a head start for those before it, and stays in use until it fails:
//! after four questions without an answer, at once after a hard ICMP error, and after three if another address of the
//! same server has answered since the failure began. When all have failed they are asked again every 15 minutes.
//!
//! The anycast addresses come last, and are asked only when nobody before them answers: everybody on the way learns of
//! the question (RFC 7723 section 5.1).
#![forbid(unsafe_code)]

pub mod order;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::types::Instant;

/// RFC 7488 section 3, item 5.
const AGAIN: Duration = Duration::from_secs(15 * 60);
/// The wait after the fourth question, at its longest: 24 s and a tenth. Three were not answered when it was asked.
const LAST_WAIT: Duration = Duration::from_millis(26_400);
/// For how long an answer waits for one of an address before it. About one retransmission.
const HEAD_START: Duration = Duration::from_secs(3);

/// Who named a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The configuration.
    Config,
    /// Option 158 of DHCPv4.
    Dhcp4,
    /// Option 86 of DHCPv6.
    Dhcp6,
    /// The default route.
    Router,
    /// The end of the DS-Lite tunnel (RFC 8585 section 3.2.2).
    Aftr,
    /// RFC 7723.
    Anycast,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Who named it.
    pub origin: Origin,
    /// Where it can be asked, best first.
    pub addresses: Vec<SocketAddr>,
    /// Where it was asked in an earlier life.
    pub last: Option<SocketAddr>,
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// The servers in order of preference. Complete, never a change.
    Servers(Vec<Server>),
    /// Somebody answers there.
    Answering(SocketAddr),
    /// Three questions were not answered.
    Silent(SocketAddr),
    /// Four were not, and the last wait is over. Only of servers with several addresses.
    Spent(SocketAddr),
    /// A hard ICMP error came back.
    Unreachable(SocketAddr),
}

/// What it wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Keep in contact with these addresses. Complete, never a change.
    Watch {
        /// Every address.
        all: Vec<SocketAddr>,
        /// Those of servers that have others: four questions at most, then [`Input::Spent`].
        several: BTreeSet<SocketAddr>,
    },
    /// Ask there for a sign of life.
    Probe(SocketAddr),
    /// Ask there no more; an answer that is late does not count.
    Rest(SocketAddr),
    /// What is asked at the one address of a server is asked at the other from now on.
    Move {
        /// The address that has failed, or is no longer one of the server's.
        from: SocketAddr,
        /// The address in use.
        to: SocketAddr,
    },
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Asked, no verdict yet.
    Unknown,
    /// It answers.
    Answering,
    /// It has not answered lately.
    Silent,
    /// It has failed, and rests.
    Spent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    at: SocketAddr,
    health: Health,
    /// When it has failed, unless it answers before.
    fails: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    origin: Origin,
    /// In order of preference; never empty.
    addresses: Vec<Address>,
    /// Index of the one in use.
    current: usize,
    /// Whether that one has answered since it is in use.
    confirmed: bool,
    /// When this round of questions began.
    began: Instant,
    /// When the next one does, after all have failed.
    again: Option<Instant>,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Selection {
    groups: Vec<Group>,
    /// Whether the anycast addresses may be asked.
    open: bool,
    /// What was said last of whom to keep in contact with.
    watched: Option<Effect>,
    effects: VecDeque<Effect>,
}

impl Selection {
    /// Takes in what happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Servers(list) => self.set(list, now),
            Input::Answering(at) => {
                self.mark(at, Health::Answering, now);
            }
            Input::Silent(at) => self.mark(at, Health::Silent, now),
            Input::Spent(at) | Input::Unreachable(at) => self.mark(at, Health::Spent, now),
        }
        self.open_anycast();
        self.handle_timeout(now);
    }

    /// Does everything due at `now`; calling twice changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        for group in &mut self.groups {
            while let Some(index) = group.failed(now) {
                group.mark(index, Health::Spent, now, &mut self.effects);
            }
            if group.again.is_some_and(|at| at <= now) {
                group.begin(None, now, &mut self.effects);
            }
            group.prefer(now, &mut self.effects);
        }
    }

    /// When [`Selection::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let times = self.groups.iter();
        times
            .flat_map(|group| [group.again, group.head_start(), group.fails()])
            .flatten()
            .min()
    }

    /// The next effect, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The servers in order of preference: who named it, the address in use, and what is known of that.
    pub fn servers(&self) -> impl Iterator<Item = (Origin, SocketAddr, Health)> + '_ {
        let asked = self.groups.iter().filter(|group| self.is_asked(group));
        asked.filter_map(|group| {
            let current = group.current()?;
            Some((group.origin, current.at, current.health))
        })
    }

    /// The servers in order of preference: who named it, and its addresses in order, the one in use marked.
    pub fn listing(&self) -> impl Iterator<Item = (Origin, Vec<(SocketAddr, bool)>)> + '_ {
        self.groups.iter().map(|group| {
            let addresses = group.addresses.iter().enumerate();
            let shown = addresses.map(|(index, address)| (address.at, index == group.current));
            (group.origin, shown.collect())
        })
    }

    /// Whether that is an address of one of the servers.
    pub fn contains(&self, at: SocketAddr) -> bool {
        let mut groups = self.groups.iter();
        groups.any(|group| group.position(at).is_some())
    }

    fn set(&mut self, list: Vec<Server>, now: Instant) {
        let mut old = std::mem::take(&mut self.groups);
        let mut seen = BTreeSet::new();
        for server in list {
            let fresh = server.addresses.into_iter().filter(|at| seen.insert(*at));
            let addresses: Vec<_> = fresh
                .map(|at| Address {
                    at,
                    health: Health::Unknown,
                    fails: None,
                })
                .collect();
            if addresses.is_empty() {
                continue;
            }
            let mut group = Group {
                origin: server.origin,
                addresses,
                current: 0,
                confirmed: false,
                began: now,
                again: None,
            };
            let last = server.last.and_then(|at| group.position(at));
            group.current = last.unwrap_or(0);
            group.confirmed = last.is_some();
            let same = old.iter().position(|old| group.shares(old));
            if let Some(before) = same.map(|index| old.swap_remove(index)) {
                group.inherit(&before, &mut self.effects);
            }
            self.groups.push(group);
        }
        let ahead = |group: &Group| group.origin != Origin::Anycast;
        self.open = self.open && !self.groups.iter().any(ahead);
        self.watch();
    }

    fn mark(&mut self, at: SocketAddr, health: Health, now: Instant) {
        for group in &mut self.groups {
            if let Some(index) = group.position(at) {
                group.mark(index, health, now, &mut self.effects);
            }
        }
    }

    /// The anycast addresses are asked once nobody else is left to ask.
    fn open_anycast(&mut self) {
        let mut others = self
            .groups
            .iter()
            .filter(|group| group.origin != Origin::Anycast);
        let is_dead = |group: &Group| {
            group
                .current()
                .is_none_or(|current| matches!(current.health, Health::Silent | Health::Spent))
        };
        if !self.open && others.all(is_dead) {
            self.open = true;
            if self
                .groups
                .iter()
                .any(|group| group.origin == Origin::Anycast)
            {
                self.watch();
            }
        }
    }

    fn is_asked(&self, group: &Group) -> bool {
        self.open || group.origin != Origin::Anycast
    }

    fn watch(&mut self) {
        let (mut all, mut several) = (Vec::new(), BTreeSet::new());
        for group in self.groups.iter().filter(|group| self.is_asked(group)) {
            let addresses = group.addresses.iter().map(|address| address.at);
            all.extend(addresses.clone());
            if group.has_several() {
                several.extend(addresses);
            }
        }
        let watch = Some(Effect::Watch { all, several });
        if self.watched != watch {
            self.watched.clone_from(&watch);
            self.effects.extend(watch);
        }
    }
}

impl Group {
    fn position(&self, at: SocketAddr) -> Option<usize> {
        self.addresses.iter().position(|address| address.at == at)
    }

    fn current(&self) -> Option<&Address> {
        self.addresses.get(self.current)
    }

    const fn has_several(&self) -> bool {
        self.addresses.len() > 1
    }

    fn shares(&self, other: &Self) -> bool {
        let mut addresses = self.addresses.iter();
        addresses.any(|address| other.position(address.at).is_some())
    }

    /// Goes on where the server as it was named before has been.
    fn inherit(&mut self, before: &Self, effects: &mut VecDeque<Effect>) {
        for address in &mut self.addresses {
            let known = before.position(address.at);
            if let Some(known) = known.and_then(|index| before.addresses.get(index)) {
                (address.health, address.fails) = (known.health, known.fails);
            }
        }
        (self.began, self.again) = (before.began, before.again);
        let Some(current) = before.current() else {
            return;
        };
        // Where nobody has answered yet there is nothing to stay with.
        match self.position(current.at).filter(|_| before.confirmed) {
            Some(index) => (self.current, self.confirmed) = (index, true),
            None => {
                let answering = |address: &Address| address.health == Health::Answering;
                self.current = self.addresses.iter().position(answering).unwrap_or(0);
                let to = self.current().map(|address| address.at);
                if let (from, Some(to)) = (current.at, to)
                    && from != to
                {
                    effects.push_back(Effect::Move { from, to });
                }
            }
        }
    }

    fn mark(&mut self, index: usize, health: Health, now: Instant, effects: &mut VecDeque<Effect>) {
        let several = self.has_several();
        let Some(address) = self.addresses.get_mut(index) else {
            return;
        };
        if health == Health::Silent && address.health == Health::Spent {
            return;
        }
        address.health = match health {
            Health::Spent if !several => Health::Silent,
            Health::Spent | Health::Unknown | Health::Answering | Health::Silent => health,
        };
        address.fails = (health == Health::Silent && several).then_some(now + LAST_WAIT);
        if health == Health::Spent && several {
            effects.push_back(Effect::Rest(address.at));
        }
        if health == Health::Answering {
            self.again = None;
        }
        if index != self.current {
            self.exhaust(now);
            return;
        }
        match health {
            Health::Answering => self.confirmed = true,
            Health::Silent | Health::Spent if several && self.confirmed => {
                // It was good until now: what was known of the others is of that time as well.
                self.begin(Some(index), now, effects);
            }
            Health::Silent | Health::Spent | Health::Unknown => {}
        }
        if health == Health::Spent && several {
            self.go_on(effects);
        }
        self.exhaust(now);
    }

    /// Begins a round: asks everywhere, or everywhere else.
    fn begin(&mut self, but: Option<usize>, now: Instant, effects: &mut VecDeque<Effect>) {
        (self.began, self.again, self.confirmed) = (now, None, false);
        for (index, address) in self.addresses.iter_mut().enumerate() {
            if but != Some(index) {
                (address.health, address.fails) = (Health::Unknown, None);
                effects.push_back(Effect::Probe(address.at));
            }
        }
    }

    /// The address in use has failed: the next one that may be better.
    fn go_on(&mut self, effects: &mut VecDeque<Effect>) {
        let ranks = [Health::Answering, Health::Unknown, Health::Silent];
        let next = ranks.iter().find_map(|health| {
            let mut addresses = self.addresses.iter();
            addresses.position(|address| address.health == *health)
        });
        if let Some(next) = next {
            self.switch(next, effects);
        }
    }

    /// Notes that nobody is left to ask.
    fn exhaust(&mut self, now: Instant) {
        let mut all = self.addresses.iter();
        if self.has_several()
            && self.again.is_none()
            && all.all(|address| address.health == Health::Spent)
        {
            self.again = Some(now + AGAIN);
        }
    }

    fn switch(&mut self, to: usize, effects: &mut VecDeque<Effect>) {
        let from = self.current().map(|address| address.at);
        // What it says from now on comes too late.
        if let Some(left) = self.addresses.get_mut(self.current)
            && left.health == Health::Silent
        {
            (left.health, left.fails) = (Health::Spent, None);
            effects.push_back(Effect::Rest(left.at));
        }
        let next = self.addresses.get(to);
        if let (Some(from), Some(next)) = (from, next) {
            self.confirmed = next.health == Health::Answering;
            effects.push_back(Effect::Move { from, to: next.at });
            self.current = to;
        }
    }

    /// When the next address has failed.
    fn fails(&self) -> Option<Instant> {
        let addresses = self.addresses.iter();
        addresses.filter_map(|address| address.fails).min()
    }

    /// An address that has failed by now.
    fn failed(&self, now: Instant) -> Option<usize> {
        let due = |address: &Address| address.fails.is_some_and(|at| at <= now);
        self.addresses.iter().position(due)
    }

    /// When an answer of another address than the one in use counts; `None` if there is nothing to wait for.
    fn head_start(&self) -> Option<Instant> {
        let waits = self.better().is_some() && self.current()?.health == Health::Unknown;
        waits.then_some(self.began + HEAD_START)
    }

    /// The first address that answers, while the one in use does not.
    fn better(&self) -> Option<usize> {
        if self.current()?.health == Health::Answering {
            return None;
        }
        let answering = |address: &Address| address.health == Health::Answering;
        self.addresses.iter().position(answering)
    }

    /// Leaves an address that does not answer for one that does.
    fn prefer(&mut self, now: Instant, effects: &mut VecDeque<Effect>) {
        let waits = self.head_start().is_some_and(|at| at > now);
        if let Some(better) = self.better().filter(|_| !waits) {
            self.switch(better, effects);
        }
    }
}
