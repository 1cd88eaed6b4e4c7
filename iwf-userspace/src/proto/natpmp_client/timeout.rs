//! What is due: transmissions, ends of leases, verdicts on silence.

use std::net::SocketAddr;
use std::time::Duration;

use super::gateway::{Pending, Question};
use super::lease::{Ended, Phase, Tuple, delete_request};
use super::{Effect, LATE_GRANT, Liveness, NatPmpClient};
use crate::mapping::Via;
use crate::types::{Generation, Instant, Lifetime};
use crate::wire::natpmp::Request;
use crate::wire::pcp::ResultCode;

/// For how long a gateway that did not answer is left alone, unless somebody waits or it shows a sign of life.
const PAUSE: Duration = Duration::from_secs(15 * 60);

impl NatPmpClient {
    /// Does everything due at `now`; calling twice changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        let up = self.local.is_some();
        let servers: Vec<_> = self.gateways.keys().copied().collect();
        for server in servers.iter().filter(|_| up) {
            self.send_again(*server, now);
        }
        self.settle();
        for id in self.leases.due(now) {
            self.lease_timeout(id, now);
        }
        for tuple in self.ended.due(now) {
            self.forget_ended(tuple);
        }
        for server in servers.into_iter().filter(|_| up) {
            self.advance(server, now);
        }
        self.settle();
    }

    fn lease_timeout(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get(&id) else {
            return;
        };
        if lease.grant.is_some_and(|end| end <= now) {
            let released = lease.phase == Phase::Releasing;
            match lease.permanent {
                // The gateway would keep it for ever.
                true => self.abandon(id, now),
                false => self.forget(id, now),
            }
            self.effects.push_back(if released {
                let result = Ok(());
                Effect::Released { id, result }
            } else {
                Effect::Lost { id }
            });
        } else if lease.due.is_some_and(|at| at <= now) && self.local.is_some() {
            self.line_up(id);
        }
    }

    /// Drops a lease that has ended. If it is being asked for just now, what comes of that is deleted.
    pub(super) fn forget(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get(&id) else {
            return;
        };
        let tuple = lease.tuple();
        let pending = self.gateways.get(&tuple.0).and_then(|g| g.pending);
        let delete = pending.is_some_and(|p| p.question == Question::Map(id));
        let brief = lease.want.brief;
        let external = lease.placed();
        self.take_out(id);
        let ended = Ended {
            until: now + LATE_GRANT,
            delete,
            brief,
            external,
        };
        self.end(tuple, ended);
    }

    /// Repeats what has not been answered in time, or gives it up.
    fn send_again(&mut self, server: SocketAddr, now: Instant) {
        let Some(gateway) = self.gateways.get_mut(&server) else {
            return;
        };
        let Some(pending) = gateway.pending.as_mut().filter(|p| p.at <= now) else {
            return;
        };
        if !pending.again(now) {
            return self.give_up(server, now);
        }
        let (question, long) = (pending.question, pending.is_long());
        self.send(server, question, now);
        if long {
            self.set_liveness(server, Liveness::Silent);
        }
    }

    /// Nobody answers: whoever waits hears of it, and the others are asked for later.
    pub(super) fn give_up(&mut self, server: SocketAddr, now: Instant) {
        let Some(gateway) = self.gateways.get_mut(&server) else {
            return;
        };
        let Some(pending) = gateway.pending.take() else {
            return;
        };
        gateway.quiet_until = now + PAUSE;
        if let Question::Delete(protocol, port) = pending.question {
            self.not_deleted((server, protocol, port), ResultCode::NetworkFailure, now);
        }
        if let Question::Map(id) = pending.question {
            self.line_up(id);
        }
        self.set_liveness(server, Liveness::Silent);
        let Some(gateway) = self.gateways.get_mut(&server) else {
            return;
        };
        let waiting = gateway.line.leases();
        for question in gateway.line.give_up() {
            if let Question::Delete(protocol, port) = question {
                self.cancel(server, question);
                self.not_deleted((server, protocol, port), ResultCode::NetworkFailure, now);
            }
        }
        for id in waiting {
            let asked = |id| self.leases.get(id).map(|lease| lease.phase);
            if asked(&id) == Some(Phase::Asked) {
                self.refuse(id, ResultCode::NetworkFailure, false, now);
            }
        }
    }

    /// Asks the next thing if nothing is under way.
    fn advance(&mut self, server: SocketAddr, now: Instant) {
        while let Some(gateway) = self.gateways.get(&server)
            && let Some((question, awaited)) = gateway.next_question(now)
        {
            let first = self.before(server, question, now);
            if let Some(gateway) = self.gateways.get_mut(&server) {
                gateway.line.leave(first.unwrap_or(question));
                let asked = first.unwrap_or(question);
                gateway.pending = Some(match self.via {
                    Via::NatPmp => Pending::new(asked, awaited, now),
                    Via::Pcp | Via::Igd => Pending::once(asked, now),
                });
                if !self.send(server, asked, now) {
                    self.cancel(server, asked);
                }
            }
        }
    }

    /// What has to be asked first: what an earlier lease of the same port left there goes, and the address has to be
    /// known.
    fn before(&self, server: SocketAddr, question: Question, now: Instant) -> Option<Question> {
        let Question::Map(id) = question else {
            return None;
        };
        let tuple = self.leases.get(&id)?.tuple();
        if self.ended.get(&tuple).is_some_and(|ended| ended.delete) {
            return Some(Question::Delete(tuple.1, tuple.2));
        }
        let gateway = self.gateways.get(&server)?;
        match gateway.fresh_address(now) {
            Some(_) => None,
            None => Some(Question::Address),
        }
    }

    /// Sends a question; false if there is no such thing to ask.
    fn send(&mut self, server: SocketAddr, question: Question, now: Instant) -> bool {
        if self.via != Via::NatPmp {
            return self.ask(server, question, now);
        }
        let request = match question {
            Question::Address => Request::ExternalAddress,
            Question::Map(id) => {
                let Some(lease) = self.leases.get_mut(&id) else {
                    return false;
                };
                lease.sent = true;
                lease.request(now)
            }
            Question::Delete(protocol, port) => delete_request(protocol, port),
        };
        let payload = request.encode();
        self.effects.push_back(Effect::Send { server, payload });
        true
    }

    /// A deletion came to nothing.
    pub(super) fn not_deleted(&mut self, tuple: Tuple, result: ResultCode, now: Instant) {
        let id = self.by_tuple.get(&tuple).copied();
        if let Some(id) = id
            && let Some(lease) = self.leases.get_mut(&id)
            && lease.phase == Phase::Releasing
        {
            lease.hold(now);
            let result = Err(result);
            self.effects.push_back(Effect::Released { id, result });
        } else if let Some(ended) = self.ended.get_mut(&tuple) {
            // It ends by itself.
            ended.delete = false;
        }
    }

    /// What was asked for is not to be had.
    pub(super) fn refuse(&mut self, id: Generation, result: ResultCode, asked: bool, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let server = lease.want.server;
        let held = lease.is_granted(now);
        if held {
            lease.hold(now);
        }
        self.effects.push_back(Effect::Refused {
            id,
            server,
            result,
            lifetime: Lifetime(0),
            asked,
        });
        match held {
            true => self.cancel(server, Question::Map(id)),
            // It may have been granted all the same.
            false if !asked => self.abandon(id, now),
            false => self.forget(id, now),
        }
    }

    pub(super) fn set_liveness(&mut self, server: SocketAddr, liveness: Liveness) {
        if let Some(gateway) = self.gateways.get_mut(&server)
            && gateway.liveness != liveness
        {
            gateway.liveness = liveness;
            self.effects.push_back(Effect::Liveness(server));
        }
    }
}
