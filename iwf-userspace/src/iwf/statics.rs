//! Mappings that the configuration states: made, kept and taken away by difference to the table.
//!
//! There is no list of changes to carry out. Whatever happens, table and statement are compared, and what differs is
//! removed or asked for; what could not be had is asked for again after a while.

use std::collections::BTreeMap;
use std::time::Duration;

use super::job::{Job, Kind, Origin};
use super::{Iwf, Notice, add};
use crate::mapping::policy::is_lan_host;
use crate::mapping::{Claim, MAX_LEASE, Mapping, NEVER, Owner, PortChoice, State, StaticMapping};
use crate::proto::igd::{NewMapping, Refusal};
use crate::proto::pcp_client::{self, Want};
use crate::types::{ExternalPort, Instant, Protocol};

/// First wait after a failure, doubled with each further one.
const FIRST: Duration = Duration::from_secs(2);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(120);

/// What the configuration states.
#[derive(Debug, Default)]
pub(super) struct Statics {
    /// `None` until it was told.
    stated: Option<BTreeMap<(Protocol, ExternalPort), Stated>>,
    /// The table's revision that it was compared with; `None`: something here has changed since.
    compared: Option<u64>,
    /// When the next attempt is due, as of that comparison.
    next: Option<Instant>,
}

#[derive(Debug)]
struct Stated {
    mapping: StaticMapping,
    /// When it is asked for, if the table does not have it.
    at: Instant,
    /// The wait after the next failure.
    wait: Duration,
    problem: Option<StaticProblem>,
}

/// Why a mapping of the configuration is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StaticProblem {
    /// Its internal address belongs to no LAN as the interfaces are now.
    #[error("the internal address is no host of a LAN")]
    NotLan,
    /// It was refused, here or upstream.
    #[error("{0}")]
    Refused(Refusal),
}

/// A mapping of the configuration that is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingStatic<'a> {
    /// The mapping as stated.
    pub mapping: &'a StaticMapping,
    /// Why; `None` before the first attempt has ended.
    pub problem: Option<StaticProblem>,
}

impl Statics {
    /// Replaces the statement. What was stated before keeps its place in the back-off.
    pub(super) fn set(&mut self, list: Vec<StaticMapping>, now: Instant) {
        let mut before = self.stated.take().unwrap_or_default();
        let next = list.into_iter().map(|mapping| {
            let key = (mapping.protocol, mapping.external);
            let known = before.remove(&key).filter(|old| old.mapping == mapping);
            let stated = known.unwrap_or(Stated {
                mapping,
                at: now,
                wait: FIRST,
                problem: None,
            });
            (key, stated)
        });
        self.stated = Some(next.collect());
        self.compared = None;
    }

    /// Whether the configuration states a mapping of that external port, in force or not.
    pub(super) fn states(&self, protocol: Protocol, port: ExternalPort) -> bool {
        let stated = self.stated.as_ref();
        stated.is_some_and(|stated| stated.contains_key(&(protocol, port)))
    }

    /// What was in the way may have gone.
    pub(super) fn retry_now(&mut self, now: Instant) {
        self.compared = None;
        for stated in self.stated.iter_mut().flat_map(BTreeMap::values_mut) {
            (stated.at, stated.wait) = (now, FIRST);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Stated> {
        self.stated.iter().flat_map(BTreeMap::values)
    }

    fn get_mut(&mut self, protocol: Protocol, port: ExternalPort) -> Option<&mut Stated> {
        self.compared = None;
        self.stated.as_mut()?.get_mut(&(protocol, port))
    }

    /// The statement that a mapping carries out; its text may differ.
    fn behind(&self, mapping: &Mapping) -> Option<&StaticMapping> {
        let key = (mapping.protocol, mapping.claim.port?);
        let stated = &self.stated.as_ref()?.get(&key)?.mapping;
        let same = (stated.internal, stated.remote) == (mapping.internal, mapping.remote);
        same.then_some(stated)
    }
}

impl Iwf {
    /// The mappings of the configuration that are not in force.
    pub fn waiting_statics(&self) -> impl Iterator<Item = WaitingStatic<'_>> {
        let in_force = |stated: &Stated| {
            self.static_holder(&stated.mapping)
                .is_some_and(Mapping::is_installed)
        };
        let waiting = self.statics.iter().filter(move |stated| !in_force(stated));
        waiting.map(|stated| WaitingStatic {
            mapping: &stated.mapping,
            problem: stated.problem,
        })
    }

    /// Brings the table nearer to what the configuration states.
    pub(super) fn follow_statics(&mut self, now: Instant) {
        // Only what concerns the configuration's mappings is a reason to look at them all.
        let due = self.statics.next.is_some_and(|at| at <= now);
        if self.statics.stated.is_none() || (self.is_compared() && !due) {
            return;
        }
        self.end_strays(now);
        let due: Vec<_> = self
            .statics
            .iter()
            .filter(|stated| stated.at <= now && self.static_holder(&stated.mapping).is_none())
            .map(|stated| stated.mapping.clone())
            .collect();
        for stated in due {
            let (protocol, port) = (stated.protocol, stated.external);
            if let Err(problem) = self.begin_static(stated, now) {
                self.static_waits(protocol, port, problem, now);
            }
        }
        self.statics.compared = Some(self.table.revision());
        self.pump(now);
        self.statics.next = self.due_static();
    }

    /// Whether nothing has happened to the configuration's mappings since they were looked at.
    fn is_compared(&self) -> bool {
        self.statics.compared == Some(self.table.revision())
    }

    /// When the next attempt is due.
    pub(super) fn next_static(&self) -> Option<Instant> {
        self.statics.next
    }

    /// Whether [`Iwf::next_static`] is what a look at every one of them says.
    #[cfg(test)]
    pub(crate) fn statics_are_consistent(&self) -> bool {
        !self.is_compared() || self.statics.next == self.due_static()
    }

    fn due_static(&self) -> Option<Instant> {
        self.statics
            .iter()
            .filter(|stated| self.static_holder(&stated.mapping).is_none())
            .map(|stated| stated.at)
            .min()
    }

    /// How a creation went.
    pub(super) fn static_outcome(
        &mut self,
        protocol: Protocol,
        port: ExternalPort,
        outcome: Result<(), Refusal>,
        now: Instant,
    ) {
        if let Err(refusal) = outcome {
            return self.static_waits(protocol, port, StaticProblem::Refused(refusal), now);
        }
        if let Some(stated) = self.statics.get_mut(protocol, port) {
            (stated.at, stated.wait, stated.problem) = (now, FIRST, None);
        }
    }

    fn static_waits(
        &mut self,
        protocol: Protocol,
        external: ExternalPort,
        problem: StaticProblem,
        now: Instant,
    ) {
        let Some(stated) = self.statics.get_mut(protocol, external) else {
            return;
        };
        stated.at = now + stated.wait;
        stated.wait = (stated.wait * 2).min(LONGEST);
        if stated.problem.replace(problem) != Some(problem) {
            self.notify(Notice::StaticWaits {
                protocol,
                external,
                problem,
            });
        }
    }

    /// The configuration's mapping at that port, in whatever state.
    fn static_holder(&self, stated: &StaticMapping) -> Option<&Mapping> {
        self.table
            .by_external(stated.protocol, stated.external)
            .filter(|mapping| mapping.owner == Owner::Configuration)
    }

    /// Takes out what is no longer stated; a text that changed is changed in place.
    fn end_strays(&mut self, now: Instant) {
        let idle = |mapping: &&Mapping| {
            mapping.state == State::Active && !self.jobs.contains_key(&mapping.generation)
        };
        let (mut strays, mut renamed) = (Vec::new(), Vec::new());
        for mapping in self.table.configured().filter(idle) {
            match self.statics.behind(mapping) {
                None => strays.push(mapping.generation),
                Some(stated) if stated.description != mapping.description => {
                    renamed.push(Mapping {
                        description: stated.description.clone(),
                        ..mapping.clone()
                    });
                }
                Some(_) => {}
            }
        }
        for generation in strays {
            self.remove(generation, Origin::Nobody, now);
        }
        for mapping in renamed {
            let generation = mapping.generation;
            if self.table.put(mapping).is_ok() {
                self.rewrite(generation);
                self.entry_changed(generation);
            }
        }
    }

    fn begin_static(&mut self, stated: StaticMapping, now: Instant) -> Result<(), StaticProblem> {
        if !is_lan_host(&self.lan, stated.internal.addr) {
            return Err(StaticProblem::NotLan);
        }
        self.create_static(stated, now)
            .map_err(StaticProblem::Refused)
    }

    /// Begins to make one. The policy for LAN hosts and their quotas do not bind the owner of the router.
    fn create_static(&mut self, stated: StaticMapping, now: Instant) -> Result<(), Refusal> {
        let (protocol, external) = (stated.protocol, stated.external);
        if self.settings.policy.is_reserved(protocol, external.get()) {
            return Err(Refusal::Reserved);
        }
        if self.table.by_external(protocol, external).is_some() {
            return Err(Refusal::PortTaken);
        }
        let server = self.server_to_ask()?;
        let new = NewMapping {
            remote: stated.remote,
            external: Some(external),
            protocol,
            internal: stated.internal,
            enabled: true,
            description: stated.description,
            lease: MAX_LEASE,
            choice: PortChoice::Exact,
        };
        let nat1 = self.place_in_nat1(&new, Some(external), server, None, now)?;
        let generation = self.new_generation().ok_or(Refusal::NoRoom)?;
        let mapping = Mapping {
            generation,
            state: State::Pending,
            owner: Owner::Configuration,
            protocol,
            internal: new.internal,
            nat1,
            claim: match server {
                None => nat1.into(),
                Some(_) => Claim {
                    port: Some(external),
                    addr: None,
                },
            },
            remote: new.remote,
            description: new.description,
            requested: new.lease,
            lease_ends: NEVER,
            port_choice: PortChoice::Exact,
            upstream: None,
        };
        let want = server.map(|server| Want {
            patient: true,
            ..self.want(&mapping, server, Some(external), now)
        });
        self.table.put(mapping).map_err(add::refusal_of)?;
        let origin = Origin::Configuration(protocol, external);
        let deadline = now + self.settings.deadline;
        self.jobs
            .insert(generation, Job::new(origin, Kind::Create, deadline));
        match want {
            Some(want) => self.tell(pcp_client::Input::Request(want), now),
            None => self.store(generation),
        }
        Ok(())
    }
}
