//! Effects of the core in their order, and what came of them.

use tokio::sync::oneshot;
use tracing::debug;

use super::{Datagrams, RETRY, Shell, log_plane};
use crate::daemon::control::{Response, ShownPin};
use crate::daemon::dataplane::{Change, DataPlane, DataPlaneError, Turn};
use crate::daemon::netstate::LanLink;
use crate::daemon::store::Store;
use crate::iwf::{Effect, EffectError, Input, Notice, Ticket};
use crate::types::{Instant, NatEntry};

/// A change that the core has not heard of yet.
#[derive(Debug)]
pub(super) struct Settling {
    turn: Turn,
    ticket: Ticket,
    /// The entry, if it was removed.
    removed: Option<NatEntry>,
}

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// Whether sessions are still to be ended that changes have ended.
    pub fn is_settling(&self) -> bool {
        self.plane.is_settling()
    }

    /// One slice of looking for those sessions. The core hears of the changes that are settled by it.
    pub fn settle(&mut self, out: &mut impl Datagrams, now: Instant) {
        let outcome = self.plane.settle_slice();
        let settled = outcome.as_ref().copied();
        let settled = settled.unwrap_or(Turn(u64::MAX));
        let result = outcome
            .map(drop)
            .map_err(|error| plane_failed("settle", error));
        while let Some(change) = self.settling.pop_front_if(|change| change.turn <= settled) {
            self.removed = change.removed.or(self.removed);
            self.done(change.ticket, result, now);
            // What is wanted next belongs to this change: the notice has no more than its name.
            self.drain(out, now);
        }
    }

    pub(super) fn input(&mut self, input: Input, out: &mut impl Datagrams, now: Instant) {
        self.core.handle_input(input, now);
        self.follow_translation(now);
        self.drain(out, now);
    }

    /// Carries out effects in their order until there are none; outcomes go back at once. What is to be stored waits
    /// until nothing else is wanted and is stored together, and what people are told waits for that.
    pub(super) fn drain(&mut self, out: &mut impl Datagrams, now: Instant) {
        loop {
            while let Some(effect) = self.core.poll_effect() {
                self.carry_out(effect, out, now);
            }
            if self.unstored.is_empty() {
                return;
            }
            self.store(out, now);
        }
    }

    pub(super) fn carry_out(&mut self, effect: Effect, out: &mut impl Datagrams, now: Instant) {
        let (ticket, removed, result) = match effect {
            Effect::Reply { .. }
            | Effect::AdminReply { .. }
            | Effect::ShowPin { .. }
            | Effect::HangUp { .. }
            | Effect::SendUpstream { .. }
            | Effect::Errand(_)
            | Effect::SubscriptionReply { .. }
            | Effect::SendEvent(_)
            | Effect::CancelEvent { .. } => {
                if let Some(answer) = self.unstored.hold(effect) {
                    self.tell_outcome(answer, out, now);
                }
                return;
            }
            Effect::Notify(Notice::Refused { request, why }) => {
                if let Some((_, Some(wish))) = self.soap.get_mut(&request) {
                    wish.why = Some(why);
                }
                return;
            }
            Effect::Notify(notice) => return self.notify(&notice),
            Effect::WritePinholes { ticket, pinholes } => {
                let written = self.write_pinholes(pinholes);
                let written = written.map(|()| Change::Settled);
                (ticket, None, written.map_err(|e| plane_failed("write", e)))
            }
            Effect::Solicit(addr) => {
                if let Some(solicit) = &self.solicit
                    && solicit.try_send(addr).is_err()
                {
                    // The core asks again.
                    debug!(%addr, "not asked: too many questions at once");
                }
                return;
            }
            Effect::CountPinhole { request, id } => {
                let packets = self.pinhole_packets(id, now);
                let counted = Input::PinholeCounted { request, packets };
                return self.core.handle_input(counted, now);
            }
            Effect::Persist { ticket, change } => return self.unstored.push(ticket, change),
            Effect::WriteNat { ticket, entry } => {
                let written = self.plane.write(&entry);
                // What it displaced is told before it.
                self.hear();
                (ticket, None, written.map_err(|e| plane_failed("write", e)))
            }
            Effect::RemoveNat { ticket, entry } => {
                let removed = self.plane.remove(&entry);
                let removed = removed.map_err(|e| plane_failed("remove", e));
                (ticket, Some(entry), removed)
            }
        };
        let result = match result {
            Ok(Change::Settling(turn)) => {
                self.settling.push_back(Settling {
                    turn,
                    ticket,
                    removed,
                });
                return;
            }
            Ok(Change::Settled) => Ok(()),
            Err(error) => Err(error),
        };
        self.removed = removed.or(self.removed);
        self.done(ticket, result, now);
    }

    /// Answers whoever asked, and asks servers.
    pub(super) fn tell_outcome(
        &mut self,
        answered: Effect,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        match answered {
            Effect::Reply { request, result } => {
                if let Some((reply, wish)) = self.soap.remove(&request) {
                    if let (Some(wish), Err(error)) = (wish, &result) {
                        self.tell_refused(&wish, *error, now);
                    }
                    answer(reply, result);
                }
            }
            Effect::AdminReply { request, result } => {
                if let Some(reply) = self.admin.remove(&request) {
                    reply.answer(result.map_or_else(Response::Error, |()| Response::Done));
                }
            }
            Effect::ShowPin {
                request,
                pin,
                good_for,
            } => {
                if let Some(reply) = self.admin.remove(&request) {
                    let good_for_seconds = good_for.as_secs();
                    reply.answer(Response::Pin(ShownPin {
                        pin,
                        good_for_seconds,
                    }));
                }
            }
            Effect::HangUp { connection } => self.open.hang_up(connection),
            Effect::SendUpstream { server, payload } => out.send(server, &payload),
            Effect::Errand(errand) => out.run(errand),
            Effect::SubscriptionReply { request, result } => {
                if let Some(reply) = self.subscriptions.remove(&request) {
                    answer(reply, result);
                }
            }
            Effect::SendEvent(send) => {
                let is_way = |link: &LanLink| {
                    send.from
                        .is_some_and(|from| link.addr == from.own && link.ifindex == from.interface)
                };
                let link = self.network.served().into_iter().find(is_way);
                let interface = link.map(|link| link.interface);
                self.courier.send(send, interface);
            }
            Effect::CancelEvent { number } => self.courier.cancel(number),
            Effect::WriteNat { .. }
            | Effect::RemoveNat { .. }
            | Effect::WritePinholes { .. }
            | Effect::CountPinhole { .. }
            | Effect::Solicit(_)
            | Effect::Persist { .. }
            | Effect::Notify(_) => {}
        }
    }

    pub(super) fn done(&mut self, ticket: Ticket, result: Result<(), EffectError>, now: Instant) {
        if result.is_err() {
            self.runs.due = Some(self.runs.due.unwrap_or(now + RETRY));
        }
        self.core.handle_input(Input::Done { ticket, result }, now);
    }
}

/// The other side may have gone; then nobody misses the answer.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        debug!("the asker has gone before the answer");
    }
}

fn plane_failed(action: &str, error: DataPlaneError) -> EffectError {
    let kind = match &error {
        DataPlaneError::Full { .. } => EffectError::Full,
        DataPlaneError::InUse => EffectError::InUse,
        DataPlaneError::Kernel { .. } => EffectError::Failed,
    };
    log_plane(action, error);
    kind
}
