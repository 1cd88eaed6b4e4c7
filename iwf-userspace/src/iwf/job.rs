//! Jobs: what is under way on a mapping, one at a time, in the order upstream, store, kernel, reply.

use std::time::Duration;

use super::soap_calls::Call;
use super::{Effect, EffectError, Iwf, Mode, Notice, RequestId, StoreChange, Ticket};
use crate::mapping::{Mapping, PortChoice, State};
use crate::proto::igd::{Operation, Refusal};
use crate::proto::pcp_client;
use crate::types::{ExternalPort, Generation, Instant, NatEntry, Protocol};

/// How long a port of our NAT is left alone that this machine turned out to use. Most of its sockets are for one question.
const IN_USE_FOR: Duration = Duration::from_secs(120);

/// So many ports are barred before a call is no longer begun anew for one more.
const MAX_BARRED: usize = 256;

/// What is under way on a mapping.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) origin: Origin,
    pub(super) kind: Kind,
    pub(super) stage: Stage,
    /// When the wait for the server ends.
    pub(super) deadline: Instant,
    /// The upstream lease has gone meanwhile.
    pub(super) lost: bool,
}

/// Who waits for it.
#[derive(Debug)]
pub(super) enum Origin {
    ControlPoint(Call),
    Admin(RequestId),
    /// The mapping that the configuration states at this external port.
    Configuration(Protocol, ExternalPort),
    /// The removal of a range, which counts what is left of it.
    Range(RequestId),
    /// A call that waits to take the mapping's place.
    Successor,
    Nobody,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// The mapping is in the table, pending.
    Create,
    /// The mapping is in the table as it was; this is what it shall be.
    Replace {
        before: Box<Mapping>,
        after: Box<Mapping>,
    },
    /// The mapping is in the table, on its way out, until the kernel is told.
    Remove,
}

/// What it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Upstream,
    Store,
    Kernel,
}

impl Job {
    pub(super) fn new(origin: Origin, kind: Kind, deadline: Instant) -> Self {
        Self {
            origin,
            kind,
            stage: Stage::Upstream,
            deadline,
            lost: false,
        }
    }

    /// When the wait for the server ends.
    pub(super) fn next_event(&self) -> Option<Instant> {
        (self.stage == Stage::Upstream).then_some(self.deadline)
    }
}

impl Iwf {
    /// The lease is there, or none is needed: stores the mapping.
    pub(super) fn store(&mut self, generation: Generation) {
        let Some(job) = self.jobs.get_mut(&generation) else {
            return;
        };
        job.stage = Stage::Store;
        let marks = &self.marks;
        let mapping = match &job.kind {
            Kind::Replace { after, .. } => Some(after.as_ref()),
            Kind::Create | Kind::Remove => self.table.get(generation),
        };
        let Some(record) = mapping.and_then(|m| marks.record(m, &self.clock)) else {
            return;
        };
        self.persist(StoreChange::Put(record), Some(generation));
    }

    /// Begins to take a mapping out. Somebody who waits is told whether the server agreed; without anybody
    /// the server is told in the background.
    pub(super) fn remove(&mut self, generation: Generation, origin: Origin, now: Instant) {
        let Some(mapping) = self.table.get(generation) else {
            return;
        };
        let backed = mapping.upstream.is_some();
        let waits = match &origin {
            Origin::ControlPoint(_) | Origin::Admin(_) | Origin::Successor => backed,
            Origin::Configuration(..) | Origin::Range(_) | Origin::Nobody => false,
        };
        if waits && self.mode == Mode::Down && matches!(origin, Origin::ControlPoint(_)) {
            return self.answer(origin, Operation::Delete, Err(Refusal::Unreachable));
        }
        let deadline = match &origin {
            Origin::ControlPoint(call) => self.patience(call.deadline, now),
            Origin::Admin(_)
            | Origin::Configuration(..)
            | Origin::Range(_)
            | Origin::Successor
            | Origin::Nobody => now + self.settings.deadline,
        };
        self.table.set_state(generation, State::Removing);
        let job = Job::new(origin, Kind::Remove, deadline);
        self.jobs.insert(generation, job);
        if waits {
            self.tell(pcp_client::Input::Release(generation), now);
        } else {
            self.tell(pcp_client::Input::Abandon(generation), now);
            self.unstore(generation);
        }
    }

    /// The server has let go: takes the mapping out of the store. The kernel comes last, so that a crash in
    /// between leaves an entry the reconciler removes, not a record that brings the mapping back.
    pub(super) fn unstore(&mut self, generation: Generation) {
        if let Some(job) = self.jobs.get_mut(&generation) {
            job.stage = Stage::Store;
            self.persist(StoreChange::Delete(generation), Some(generation));
        }
    }

    /// The outcome of an effect.
    pub(super) fn done(&mut self, ticket: Ticket, result: Result<(), EffectError>, now: Instant) {
        let Some(generation) = self.tickets.remove(&ticket) else {
            return self.store_done(ticket, result, now);
        };
        let Some(job) = self.jobs.remove(&generation) else {
            return;
        };
        match (job.stage, result) {
            (Stage::Upstream, _) => {
                self.jobs.insert(generation, job);
            }
            (Stage::Store, Ok(())) => self.stored(generation, job, now),
            (Stage::Store, Err(error)) => self.store_failed(generation, job, error, now),
            (Stage::Kernel, Ok(())) => self.applied(generation, job, now),
            (Stage::Kernel, Err(error)) => self.kernel_failed(generation, job, error, now),
        }
    }

    fn stored(&mut self, generation: Generation, mut job: Job, now: Instant) {
        job.stage = Stage::Kernel;
        match &job.kind {
            Kind::Create => {
                self.table.set_state(generation, State::Installing);
                let Some(entry) = self.table.get(generation).map(Mapping::nat_entry) else {
                    return;
                };
                self.jobs.insert(generation, job);
                self.write_nat(entry, Some(generation));
            }
            Kind::Replace { before, after } => {
                let mut mapping = after.as_ref().clone();
                mapping.state = State::Installing;
                let (old, new) = (before.nat_entry(), mapping.nat_entry());
                if self.table.put(mapping).is_err() {
                    return self.undo_replace(generation, job, Refusal::PortTaken, now);
                }
                self.jobs.insert(generation, job);
                if (old.internal, old.external) != (new.internal, new.external) {
                    self.remove_nat(old, None);
                }
                self.write_nat(new, Some(generation));
            }
            Kind::Remove => {
                let Some(mapping) = self.table.remove(generation) else {
                    return;
                };
                self.view.gone(&[generation]);
                self.jobs.insert(generation, job);
                self.remove_nat(mapping.nat_entry(), Some(generation));
            }
        }
    }

    fn store_failed(&mut self, generation: Generation, job: Job, error: EffectError, now: Instant) {
        let refusal = refusal_of(error);
        match (&job.kind, &job.origin) {
            (Kind::Create, _) => {
                // A store that fails may have stored all the same.
                self.store_later(generation, now);
                self.undo_create(generation, job, refusal, now);
            }
            (Kind::Replace { .. }, _) => self.undo_replace(generation, job, refusal, now),
            (Kind::Remove, Origin::ControlPoint(_)) => {
                // The record stands, so the mapping does: its lease comes back.
                self.store_later(generation, now);
                self.table.set_state(generation, State::Active);
                self.still_there(generation);
                self.reacquire(generation, now);
                self.finish(generation, job, Err(refusal), now);
            }
            // Nobody can be told, so the mapping goes, and its record when the store can do it.
            (
                Kind::Remove,
                Origin::Admin(_)
                | Origin::Configuration(..)
                | Origin::Range(_)
                | Origin::Successor
                | Origin::Nobody,
            ) => {
                self.store_later(generation, now);
                self.stored(generation, job, now);
            }
        }
    }

    fn applied(&mut self, generation: Generation, job: Job, now: Instant) {
        match &job.kind {
            Kind::Create | Kind::Replace { .. } if job.lost => {
                self.kernel_failed(generation, job, EffectError::Failed, now);
            }
            Kind::Create | Kind::Replace { .. } => {
                self.table.set_state(generation, State::Active);
                self.view.changed(generation);
                if matches!(job.kind, Kind::Create) {
                    self.notify(Notice::Created(generation));
                }
                self.finish(generation, job, Ok(()), now);
                // The policy may have changed meanwhile.
                self.review_mapping(generation, now);
            }
            Kind::Remove => {
                self.notify(Notice::Removed(generation));
                self.finish(generation, job, Ok(()), now);
            }
        }
    }

    fn kernel_failed(
        &mut self,
        generation: Generation,
        mut job: Job,
        error: EffectError,
        now: Instant,
    ) {
        let refusal = refusal_of(error);
        match &job.kind {
            Kind::Create => {
                self.persist(StoreChange::Delete(generation), None);
                if job.lost
                    && let Some(mapping) = self.table.get(generation)
                {
                    let entry = mapping.nat_entry();
                    self.remove_nat(entry, None);
                }
                if error == EffectError::InUse && self.bar_place(generation, now) {
                    self.repeat(generation, &mut job);
                }
                self.undo_create(generation, job, refusal, now);
            }
            Kind::Replace { .. } => self.undo_replace(generation, job, refusal, now),
            // The entry is nobody's now; the reconciler takes it away.
            Kind::Remove => self.finish(generation, job, Err(refusal), now),
        }
    }

    /// Bars the place of a mapping in our NAT, which this machine uses itself: for its own PCP client, for what its
    /// resolver asks. False: only this place would do, and whoever asked for it is told.
    fn bar_place(&mut self, generation: Generation, now: Instant) -> bool {
        let Some(mapping) = self.table.get(generation) else {
            return false;
        };
        let is_free = mapping.upstream.is_some() || mapping.port_choice == PortChoice::Any;
        if mapping.is_untranslated() || !is_free || self.barred.len() >= MAX_BARRED {
            return false;
        }
        let place = (mapping.protocol, mapping.nat1.port);
        self.barred.insert(place, now + IN_USE_FOR);
        true
    }

    /// The call that waits for this job is begun anew when the job has ended.
    fn repeat(&mut self, generation: Generation, job: &mut Job) {
        if matches!(job.origin, Origin::ControlPoint(_))
            && let Origin::ControlPoint(call) =
                std::mem::replace(&mut job.origin, Origin::Successor)
        {
            self.defer(generation, call);
        }
    }

    /// Takes a mapping back that never came into force.
    pub(super) fn undo_create(
        &mut self,
        generation: Generation,
        job: Job,
        refusal: Refusal,
        now: Instant,
    ) {
        self.table.remove(generation);
        self.tell(pcp_client::Input::Abandon(generation), now);
        self.finish(generation, job, Err(refusal), now);
    }

    /// Puts a mapping back as it was. Its lease may have been extended, which only makes it live longer; one that was
    /// shortened is asked for again on the old terms.
    pub(super) fn undo_replace(
        &mut self,
        generation: Generation,
        job: Job,
        refusal: Refusal,
        now: Instant,
    ) {
        let lost = job.lost;
        let mut shortened = false;
        if let Kind::Replace { before, after } = &job.kind {
            let mut mapping = before.as_ref().clone();
            mapping.state = State::Active;
            if let (Some(old), Some(new)) = (&mut mapping.upstream, after.upstream) {
                *old = new;
                // The server was asked for no more than the new terms needed.
                shortened = job.stage != Stage::Upstream && after.lease_ends < mapping.lease_ends;
            }
            if let Some(lease) = mapping.upstream {
                let want = self.want(&mapping, lease.server, mapping.claim.port, now);
                self.tell(pcp_client::Input::Terms(want), now);
            }
            let record = self.record(&mapping);
            let entry = mapping.nat_entry();
            if job.stage == Stage::Kernel {
                self.remove_nat(after.nat_entry(), None);
            }
            // What is put back was there before, so nothing can be in its way.
            if self.table.put(mapping).is_ok() && job.stage != Stage::Upstream {
                if let Some(record) = record {
                    self.persist(StoreChange::Put(record), None);
                }
                self.write_nat(entry, None);
            }
        }
        if shortened && !lost {
            self.reacquire(generation, now);
        }
        self.finish(generation, job, Err(refusal), now);
        if lost && !self.jobs.contains_key(&generation) {
            self.remove(generation, Origin::Nobody, now);
        }
    }

    /// Answers whoever waits and lets the next call on that mapping go on.
    pub(super) fn finish(
        &mut self,
        generation: Generation,
        job: Job,
        outcome: Result<(), Refusal>,
        now: Instant,
    ) {
        let operation = match job.kind {
            Kind::Create | Kind::Replace { .. } => Operation::Add,
            Kind::Remove => Operation::Delete,
        };
        if let Origin::Configuration(protocol, port) = job.origin {
            self.static_outcome(protocol, port, outcome, now);
        }
        let reserved = self.table.get(generation).and_then(|m| m.claim.port);
        let outcome = outcome.map(|()| match &job.origin {
            Origin::ControlPoint(call) if call.call.action == "AddAnyPortMapping" => {
                let port = reserved.map_or(0, |port| port.get());
                vec![("NewReservedPort", port.to_string())]
            }
            Origin::ControlPoint(_)
            | Origin::Admin(_)
            | Origin::Configuration(..)
            | Origin::Range(_)
            | Origin::Successor
            | Origin::Nobody => Vec::new(),
        });
        self.answer(job.origin, operation, outcome);
        // Somebody else may translate since it began.
        let stays = self.table.get(generation);
        if stays.is_some_and(|mapping| mapping.state == State::Active) {
            self.follow_terms_of_now(generation, now);
        }
        self.resume(generation, now);
    }

    fn answer(
        &mut self,
        origin: Origin,
        operation: Operation,
        outcome: Result<Vec<(&'static str, String)>, Refusal>,
    ) {
        match (origin, outcome) {
            (Origin::ControlPoint(call), Ok(out)) => self.reply(call.request, Ok(out)),
            (Origin::ControlPoint(call), Err(refusal)) => self.refuse(&call, operation, refusal),
            (Origin::Admin(request), outcome) => {
                let result = outcome.map(|_| ()).map_err(|refusal| refusal.to_string());
                self.effects
                    .push_back(Effect::AdminReply { request, result });
            }
            (Origin::Range(request), outcome) => {
                self.removed_of_range(request, outcome.map(|_| ()));
            }
            (Origin::Configuration(..) | Origin::Successor | Origin::Nobody, _) => {}
        }
    }

    /// Ends the waits for servers that are over.
    pub(super) fn end_jobs(&mut self, now: Instant) {
        self.settle();
        for generation in self.jobs.due(now) {
            let due = |job: &Job| job.next_event().is_some_and(|at| at <= now);
            if !self.jobs.get(&generation).is_some_and(due) {
                continue;
            }
            let Some(job) = self.jobs.remove(&generation) else {
                continue;
            };
            match (&job.kind, &job.origin) {
                (Kind::Create, _) => {
                    self.undo_create(generation, job, Refusal::Unreachable, now);
                }
                (Kind::Replace { .. }, _) => {
                    self.undo_replace(generation, job, Refusal::Unreachable, now);
                }
                (Kind::Remove, Origin::ControlPoint(_)) => {
                    self.table.set_state(generation, State::Active);
                    self.still_there(generation);
                    self.tell(pcp_client::Input::Keep(generation), now);
                    self.finish(generation, job, Err(Refusal::Unreachable), now);
                }
                // The owner's word counts here; the server is told until it hears.
                (
                    Kind::Remove,
                    Origin::Admin(_)
                    | Origin::Configuration(..)
                    | Origin::Range(_)
                    | Origin::Successor
                    | Origin::Nobody,
                ) => {
                    self.jobs.insert(generation, job);
                    self.tell(pcp_client::Input::Abandon(generation), now);
                    self.unstore(generation);
                }
            }
        }
    }

    /// Ends of the control points' leases that are still ahead or due; a mapping with a job waits for it.
    pub(super) fn lease_ends(&self) -> Option<Instant> {
        let mut ends = self.table.by_end();
        let idle = ends.find(|(_, generation)| !self.jobs.contains_key(generation));
        idle.map(|(at, _)| at)
    }

    /// Takes out the mappings whose lease has ended, here and upstream together.
    pub(super) fn end_leases(&mut self, now: Instant) {
        let over: Vec<_> = self
            .table
            .by_end()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, generation)| generation)
            .filter(|generation| !self.jobs.contains_key(generation))
            .collect();
        for generation in over {
            self.remove(generation, Origin::Nobody, now);
        }
    }

    pub(super) fn persist(&mut self, change: StoreChange, job: Option<Generation>) {
        self.unmark_with(&change);
        let ticket = self.ticket_for(job);
        if job.is_none() {
            self.unsaved.watch(ticket, &change);
        }
        self.effects.push_back(Effect::Persist { ticket, change });
        if job.is_some() {
            // What a job stores, control points will see.
            let (ticket, change) = (self.new_ticket(), self.update_id_to_store());
            self.effects.push_back(Effect::Persist { ticket, change });
        }
    }

    pub(super) fn write_nat(&mut self, entry: NatEntry, job: Option<Generation>) {
        let ticket = self.ticket_for(job);
        self.effects.push_back(Effect::WriteNat { ticket, entry });
    }

    pub(super) fn remove_nat(&mut self, entry: NatEntry, job: Option<Generation>) {
        let ticket = self.ticket_for(job);
        self.effects.push_back(Effect::RemoveNat { ticket, entry });
    }

    fn ticket_for(&mut self, job: Option<Generation>) -> Ticket {
        let ticket = self.new_ticket();
        if let Some(generation) = job {
            self.tickets.insert(ticket, generation);
        }
        ticket
    }
}

fn refusal_of(error: EffectError) -> Refusal {
    match error {
        EffectError::Full => Refusal::NoRoom,
        EffectError::InUse => Refusal::Reserved,
        EffectError::Failed => Refusal::Failed,
    }
}
