//! Devices that have left the LAN, and what they leave open.
//!
//! Read before editing: RFC 6970 section 5.10; requirements IWF-080, FW6-008.
//!
//! An address has a device while the DHCP server's lease says so, or while somebody answers there. When neither does, and
//! a question has found nobody either, its mappings and pinholes are closed: at once if there was a lease that has ended
//! or was given back, or that is another device's now, else after the time that the owner has set. Nothing is concluded
//! from not being able to look.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::job::Origin;
use super::pinholes::Ending;
use super::{Effect, Iwf, Notice};
use crate::mapping::Owner;
use crate::mapping::policy::is_lan_host;
use crate::types::caller::Mac;
use crate::types::device::LanDevices;
use crate::types::{Generation, Instant};

/// How long the kernel's question to an address takes at most: three transmissions, a second apart, and what the looks
/// at it are late.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// Between two questions to one address.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Longer than between two looks: nobody has looked, as when the machine was suspended.
const UNSEEN: Duration = Duration::from_secs(90);
/// Addresses that are asked at one look.
const MAX_ASKED: usize = 64;

/// Why a device is thought to have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Its lease has ended or was given back, and it does not answer.
    Released,
    /// Another device has the lease of its address.
    Replaced,
    /// It has no lease and has not answered for that long.
    Silent(Duration),
}

impl std::fmt::Display for Departure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Released => {
                f.write_str("the lease of its address is over, and nobody answers there")
            }
            Self::Replaced => f.write_str("its address was given to another device"),
            Self::Silent(time) => write!(
                f,
                "its device has no lease and has not answered for {} seconds",
                time.as_secs()
            ),
        }
    }
}

/// What is known of each address that something leads to.
#[derive(Debug, Default)]
pub(super) struct Departures {
    watched: BTreeMap<IpAddr, Watch>,
    last_look: Option<Instant>,
    /// The newest mapping at that time.
    last_generation: u32,
}

/// One address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Watch {
    /// Whether it has a lease.
    leased: bool,
    /// Whose the last one was.
    owner: Option<Mac>,
    /// Whether a lease is over.
    released: bool,
    /// When somebody was heard there last.
    heard: Option<Instant>,
    /// When it was asked last, without an answer since.
    asked: Option<Instant>,
    /// When it was asked first, without an answer since.
    silent_since: Option<Instant>,
}

/// What a look at an address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Stays,
    Ask,
    Gone(Departure),
}

/// What is there to be seen of an address.
struct Seen {
    answers: bool,
    lease: Option<Option<Mac>>,
}

impl Watch {
    fn look(&mut self, seen: &Seen, after: Duration, now: Instant) -> Finding {
        let owner = seen.lease.flatten();
        if self
            .owner
            .zip(owner)
            .is_some_and(|(before, now)| before != now)
        {
            return Finding::Gone(Departure::Replaced);
        }
        self.owner = owner.or(self.owner);
        self.released |= self.leased && seen.lease.is_none();
        self.leased = seen.lease.is_some();
        if seen.answers {
            self.heard = Some(now);
        }
        // What the kernel has heard of it before the lease was over says nothing: only an answer after the question does.
        let answers = seen.answers && (!self.released || self.asked.is_some());
        if answers || self.leased {
            self.released = false;
            (self.asked, self.silent_since) = (None, None);
            return Finding::Stays;
        }
        let Some(asked) = self.asked else {
            let quiet = self.heard.is_some_and(|heard| now < heard + ASK_AGAIN);
            return if quiet && !self.released {
                Finding::Stays
            } else {
                Finding::Ask
            };
        };
        if now < asked + ANSWERED_WITHIN {
            return Finding::Stays;
        }
        let since = *self.silent_since.get_or_insert(asked);
        if self.released {
            return Finding::Gone(Departure::Released);
        }
        let silent = now.saturating_duration_since(since);
        if silent >= after {
            return Finding::Gone(Departure::Silent(silent));
        }
        if asked + ASK_AGAIN <= now {
            return Finding::Ask;
        }
        Finding::Stays
    }
}

impl Iwf {
    /// Somebody has looked at the LAN.
    pub(super) fn look_for_departed(&mut self, now: Instant) {
        let (Some(after), Some(_)) = (self.settings.departed_after, &self.devices.neighbours)
        else {
            return self.departures = Departures::default();
        };
        let unseen = self
            .departures
            .last_look
            .is_some_and(|last| last + UNSEEN <= now);
        if unseen || self.devices.leases.is_unreadable() {
            self.departures = Departures::default();
        }
        let before = std::mem::replace(&mut self.departures.last_generation, self.last_generation);
        self.departures.last_look = Some(now);
        if self.devices.leases.is_unreadable() {
            return;
        }
        let open = self.addresses_in_use();
        let mut watched = std::mem::take(&mut self.departures.watched);
        watched.retain(|addr, _| open.contains(addr));
        let mut asked = 0;
        let mut gone = BTreeMap::new();
        for addr in open {
            // While its link is down, nobody can be heard there.
            if !self.is_on_a_link(addr) {
                watched.remove(&addr);
                continue;
            }
            let seen = self.seen(addr, now);
            let watch = watched.entry(addr).or_default();
            match watch.look(&seen, after, now) {
                Finding::Stays => {}
                Finding::Ask if asked < MAX_ASKED => {
                    asked += 1;
                    watch.asked = Some(now);
                    self.effects.push_back(Effect::Solicit(addr));
                }
                Finding::Ask => {}
                Finding::Gone(why) => {
                    gone.insert(addr, why);
                }
            }
        }
        watched.retain(|addr, _| !gone.contains_key(addr));
        self.departures.watched = watched;
        self.close_of(&gone, before, now);
    }

    fn seen(&self, addr: IpAddr, now: Instant) -> Seen {
        let LanDevices { neighbours, .. } = &self.devices;
        let neighbour = neighbours.as_ref().and_then(|all| all.get(&addr));
        let wall = self.clock.unix(now);
        let lease = self.devices.lease(addr).filter(|lease| lease.is_live(wall));
        Seen {
            answers: neighbour.is_some_and(|neighbour| neighbour.answers),
            lease: lease.map(|lease| lease.mac),
        }
    }

    /// The addresses that mappings and pinholes of control points lead to. What is being changed is looked at when that is
    /// done.
    fn addresses_in_use(&self) -> BTreeSet<IpAddr> {
        let mappings = self.table.iter();
        let mappings = mappings.filter(|mapping| mapping.owner == Owner::ControlPoint);
        let mappings = mappings.map(|mapping| IpAddr::V4(mapping.internal.addr));
        let pinholes = self.pinholes().map(|held| held.pinhole.internal.into());
        mappings.chain(pinholes).collect()
    }

    fn is_on_a_link(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => is_lan_host(&self.lan, addr),
            IpAddr::V6(addr) => self.has_lan6() && self.is_of_lan(addr),
        }
    }

    /// `before`: the newest mapping at the look before this one.
    fn close_of(&mut self, gone: &BTreeMap<IpAddr, Departure>, before: u32, now: Instant) {
        if gone.is_empty() {
            return;
        }
        let mappings: Vec<(Generation, Departure)> = self
            .table
            .iter()
            .filter(|mapping| mapping.owner == Owner::ControlPoint)
            .filter(|mapping| !self.jobs.contains_key(&mapping.generation))
            .filter_map(|mapping| {
                let why = *gone.get(&IpAddr::V4(mapping.internal.addr))?;
                // The other device's own, made since.
                let newer = why == Departure::Replaced && mapping.generation.0 > before;
                (!newer).then_some((mapping.generation, why))
            })
            .collect();
        let pinholes: Vec<(u16, Departure)> = self
            .pinholes()
            .filter(|held| !self.has_pinhole_job(held.pinhole.id))
            .filter_map(|held| {
                let why = gone.get(&held.pinhole.internal.into())?;
                Some((held.pinhole.id, *why))
            })
            .collect();
        for (generation, why) in mappings {
            let why = why.to_string();
            self.notify(Notice::Withdrawn { generation, why });
            self.remove(generation, Origin::Nobody, now);
        }
        for (id, why) in pinholes {
            self.close(id, None, Ending::Departed(why));
        }
    }
}
