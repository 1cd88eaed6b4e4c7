//! When there is a DS-Lite softwire, and between whom.
//!
//! Read before editing: RFC 6333 sections 5.4 to 5.6, RFC 6334 sections 3 to 5, RFC 7084 section 4.4.2 (DLW-2, DLW-3).
//!
//! There is one while the WAN has an IPv6 address, has no IPv4 address of its own, and the AFTR is known. What is not
//! decided yet changes nothing: a daemon that has just started leaves alone what it finds, and a name that cannot be
//! resolved again keeps the address it had.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::time::Duration;

use crate::types::Instant;

/// When a name that was resolved is asked for again: what resolves it does not tell for how long it is good.
const REFRESH: Duration = Duration::from_secs(3600);
/// The pause after the first failure; it doubles.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest.
const LAST_RETRY: Duration = Duration::from_secs(300);

/// Who says where the AFTR is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The network, by DHCPv6 option 64.
    Dhcp,
    /// The configuration.
    Address(Ipv6Addr),
    /// The configuration, by a name.
    Name(String),
}

/// Both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Ours: the address of the WAN.
    pub local: Ipv6Addr,
    /// The AFTR's.
    pub remote: Ipv6Addr,
}

/// What the machine is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The WAN, as it is now.
    Network {
        /// Whether it has an IPv4 address.
        native: bool,
        /// Its IPv6 address.
        local: Option<Ipv6Addr>,
    },
    /// What DHCPv6 has said so far.
    Told {
        /// The AFTR's name.
        name: Option<String>,
        /// Whether silence is an answer by now.
        settled: bool,
    },
    /// What came of [`Effect::Resolve`]: nothing is a failure.
    Resolved(Vec<Ipv6Addr>),
}

/// What it wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Look for the IPv6 addresses of this name. There is one question at a time.
    Resolve(String),
    /// From now on there is this one, or none.
    Use(Option<Ends>),
}

/// The WAN as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    native: bool,
    local: Option<Ipv6Addr>,
}

/// Decides. One tunnel, to one address of the first name (RFC 6334 section 5).
#[derive(Debug)]
pub struct Softwire {
    source: Source,
    network: Option<Network>,
    told: Option<String>,
    settled: bool,
    name: Option<String>,
    found: Option<Ipv6Addr>,
    failures: u32,
    /// The name of the question that is not answered yet.
    asking: Option<String>,
    ask_at: Option<Instant>,
    used: Option<Option<Ends>>,
    effects: VecDeque<Effect>,
}

impl Softwire {
    /// Knows nothing of the network yet.
    pub const fn new(source: Source) -> Self {
        Self {
            source,
            network: None,
            told: None,
            settled: false,
            name: None,
            found: None,
            failures: 0,
            asking: None,
            ask_at: None,
            used: None,
            effects: VecDeque::new(),
        }
    }

    /// Takes one in.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Network { native, local } => self.network = Some(Network { native, local }),
            Input::Told { name, settled } => {
                self.told = name;
                self.settled = settled;
            }
            Input::Resolved(addresses) => self.resolved(&addresses, now),
        }
        self.follow_name(now);
        self.handle_timeout(now);
        self.decide();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let useful = self
            .network
            .is_some_and(|network| !network.native && network.local.is_some());
        if !useful || self.asking.is_some() || self.ask_at.is_none_or(|due| due > now) {
            return;
        }
        self.ask_at = None;
        if let Some(name) = &self.name {
            self.asking = Some(name.clone());
            self.effects.push_back(Effect::Resolve(name.clone()));
        }
    }

    /// When [`Self::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let useful = self
            .network
            .is_some_and(|network| !network.native && network.local.is_some());
        self.ask_at.filter(|_| useful && self.asking.is_none())
    }

    /// What is to be done next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn follow_name(&mut self, now: Instant) {
        let name = match &self.source {
            Source::Dhcp => self.told.as_ref(),
            Source::Name(name) => Some(name),
            Source::Address(_) => None,
        };
        if self.name.as_ref() == name {
            return;
        }
        self.name = name.cloned();
        self.failures = 0;
        self.ask_at = self.name.as_ref().map(|_| now);
        if self.name.is_none() {
            self.found = None;
        }
    }

    fn resolved(&mut self, addresses: &[Ipv6Addr], now: Instant) {
        let Some(asked) = self.asking.take() else {
            return;
        };
        if self.name.as_ref() != Some(&asked) {
            // Another name is wanted meanwhile.
            self.ask_at = self.name.as_ref().map(|_| now);
            return;
        }
        let mut usable = addresses.iter().filter(|addr| is_usable(addr));
        let Some(first) = usable.next() else {
            let wait = FIRST_RETRY * 2u32.saturating_pow(self.failures.min(16));
            self.failures += 1;
            self.ask_at = Some(now + wait.min(LAST_RETRY));
            return;
        };
        self.failures = 0;
        self.ask_at = Some(now + REFRESH);
        // The one in use stays, whatever the order of the others is today.
        let stays = self.found.filter(|held| addresses.contains(held));
        self.found = Some(stays.unwrap_or(*first));
    }

    fn decide(&mut self) {
        let Some(wanted) = self.wanted() else {
            return;
        };
        if self.used != Some(wanted) {
            self.used = Some(wanted);
            self.effects.push_back(Effect::Use(wanted));
        }
    }

    /// What there should be; nothing while it is not decided.
    fn wanted(&self) -> Option<Option<Ends>> {
        let network = self.network?;
        let Some(local) = network.local.filter(|_| !network.native) else {
            return Some(None);
        };
        let remote = match self.source {
            Source::Address(addr) => Some(addr),
            Source::Dhcp | Source::Name(_) => self.found,
        };
        if let Some(remote) = remote {
            return Some(Some(Ends { local, remote }));
        }
        let waits = match self.name {
            Some(_) => self.failures == 0,
            None => !self.settled,
        };
        (!waits).then_some(None)
    }
}

/// Whether an address can be an AFTR's.
pub const fn is_usable(addr: &Ipv6Addr) -> bool {
    !addr.is_unspecified()
        && !addr.is_loopback()
        && !addr.is_multicast()
        && !addr.is_unicast_link_local()
        && addr.to_ipv4_mapped().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
    const AFTR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
    const OTHER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 9);

    fn at(seconds: u64) -> Instant {
        Instant::default() + Duration::from_secs(seconds)
    }

    fn up(local: Ipv6Addr) -> Input {
        Input::Network {
            native: false,
            local: Some(local),
        }
    }

    fn told(name: &str) -> Input {
        Input::Told {
            name: Some(name.to_owned()),
            settled: true,
        }
    }

    fn uses(local: Ipv6Addr, remote: Ipv6Addr) -> Effect {
        Effect::Use(Some(Ends { local, remote }))
    }

    fn resolve(name: &str) -> Effect {
        Effect::Resolve(name.to_owned())
    }

    fn all(machine: &mut Softwire) -> Vec<Effect> {
        std::iter::from_fn(|| machine.poll_effect()).collect()
    }

    fn step(machine: &mut Softwire, input: Input, seconds: u64) -> Vec<Effect> {
        machine.handle_input(input, at(seconds));
        all(machine)
    }

    #[test]
    fn an_address_needs_nobody_and_moves_with_the_wan() {
        let mut machine = Softwire::new(Source::Address(AFTR));
        assert_eq!(step(&mut machine, up(LOCAL), 0), [uses(LOCAL, AFTR)]);
        assert_eq!(step(&mut machine, up(LOCAL), 1), []);
        assert_eq!(step(&mut machine, up(OTHER), 2), [uses(OTHER, AFTR)]);
        let down = Input::Network {
            native: false,
            local: None,
        };
        assert_eq!(step(&mut machine, down, 3), [Effect::Use(None)]);
        assert_eq!(machine.poll_timeout(), None);
    }

    /// RFC 7084 DLW-3.
    #[test]
    fn native_ipv4_switches_it_off() {
        let native = |native| Input::Network {
            native,
            local: Some(LOCAL),
        };
        let mut machine = Softwire::new(Source::Address(AFTR));
        assert_eq!(step(&mut machine, native(true), 0), [Effect::Use(None)]);
        assert_eq!(step(&mut machine, native(false), 1), [uses(LOCAL, AFTR)]);
        assert_eq!(step(&mut machine, native(true), 2), [Effect::Use(None)]);
    }

    #[test]
    fn nothing_is_changed_before_it_is_decided() {
        let mut machine = Softwire::new(Source::Dhcp);
        assert_eq!(step(&mut machine, up(LOCAL), 0), []);
        let silent = |settled| Input::Told {
            name: None,
            settled,
        };
        assert_eq!(step(&mut machine, silent(false), 1), []);
        assert_eq!(step(&mut machine, silent(true), 5), [Effect::Use(None)]);
        assert_eq!(
            step(&mut machine, told("aftr.example"), 6),
            [resolve("aftr.example")]
        );
        assert_eq!(
            step(&mut machine, Input::Resolved(vec![AFTR]), 7),
            [uses(LOCAL, AFTR)]
        );
        // The lease has ended, and the next one names none.
        assert_eq!(step(&mut machine, silent(true), 8), [Effect::Use(None)]);
    }

    #[test]
    fn a_name_is_asked_for_again_ever_more_rarely() {
        let mut machine = Softwire::new(Source::Name("aftr.example".to_owned()));
        assert_eq!(step(&mut machine, up(LOCAL), 0), [resolve("aftr.example")]);
        let mut now = 0;
        let mut waits = Vec::new();
        for turn in 0..11 {
            let seen = step(&mut machine, Input::Resolved(Vec::new()), now);
            assert_eq!(
                seen,
                Vec::from_iter((turn == 0).then_some(Effect::Use(None)))
            );
            let due = machine.poll_timeout().unwrap();
            let wait = due.saturating_duration_since(at(now)).as_secs();
            waits.push(wait);
            machine.handle_timeout(at(now + wait - 1));
            assert_eq!(all(&mut machine), []);
            now += wait;
            machine.handle_timeout(at(now));
            assert_eq!(all(&mut machine), [resolve("aftr.example")]);
            assert_eq!(machine.poll_timeout(), None, "one question at a time");
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn the_address_in_use_stays_as_long_as_the_name_has_it() {
        let mut machine = Softwire::new(Source::Name("aftr.example".to_owned()));
        assert_eq!(step(&mut machine, up(LOCAL), 0), [resolve("aftr.example")]);
        let answer = |list: &[Ipv6Addr]| Input::Resolved(list.to_vec());
        assert_eq!(
            step(&mut machine, answer(&[Ipv6Addr::LOCALHOST, AFTR, OTHER]), 0),
            [uses(LOCAL, AFTR)]
        );
        for (seconds, list, seen) in [
            (3600, [OTHER, AFTR].as_slice(), vec![]),
            // Cannot be resolved today.
            (7200, [].as_slice(), vec![]),
            (7201, [OTHER].as_slice(), vec![uses(LOCAL, OTHER)]),
        ] {
            assert_eq!(machine.poll_timeout(), Some(at(seconds)));
            machine.handle_timeout(at(seconds));
            assert_eq!(all(&mut machine), [resolve("aftr.example")]);
            assert_eq!(step(&mut machine, answer(list), seconds), seen, "{list:?}");
        }
    }

    #[test]
    fn another_name_is_resolved_before_the_old_one_is_given_up() {
        let mut machine = Softwire::new(Source::Dhcp);
        assert_eq!(step(&mut machine, up(LOCAL), 0), []);
        assert_eq!(
            step(&mut machine, told("a.example"), 0),
            [resolve("a.example")]
        );
        let answer = |addr| Input::Resolved(vec![addr]);
        assert_eq!(step(&mut machine, answer(AFTR), 0), [uses(LOCAL, AFTR)]);
        assert_eq!(
            step(&mut machine, told("b.example"), 1),
            [resolve("b.example")]
        );
        assert_eq!(step(&mut machine, told("c.example"), 2), []);
        // The answer is of a name that nobody wants any more.
        assert_eq!(step(&mut machine, answer(AFTR), 3), [resolve("c.example")]);
        assert_eq!(step(&mut machine, answer(OTHER), 4), [uses(LOCAL, OTHER)]);
    }
}
