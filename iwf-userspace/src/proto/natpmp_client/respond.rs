//! What a gateway's datagram means (RFC 6886 sections 3.2 to 3.7).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::gateway::Question;
use super::lease::{MIN_GAP, Phase, Tuple};
use super::{Effect, LATE_GRANT, Liveness, NatPmpClient};
use crate::mapping::{Lease as Granted, PortChoice};
use crate::proto::pcp_client::MAX_LIFETIME;
use crate::proto::pcp_client::negative;
use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Generation, Instant, Lifetime, MappingNonce, Protocol,
};
use crate::wire::natpmp::{Response, ResultCode as Outcome};
use crate::wire::pcp::{ResultClass, ResultCode};

/// What was there and is refused is asked for again after so long.
const HOLD: Duration = Duration::from_secs(60);

/// For how long refusals are believed, as RFC 6887 section 7.4 has them, within the bounds of the cache.
const LONG_REFUSAL: Lifetime = Lifetime(1800);
/// The same of those that may be over soon.
const SHORT_REFUSAL: Lifetime = Lifetime(30);

/// The part of a response about a mapping.
pub(super) struct Answer {
    pub(super) result: ResultCode,
    pub(super) port: Option<ExternalPort>,
    pub(super) lifetime: Lifetime,
}

impl NatPmpClient {
    /// Takes in a datagram from a gateway.
    pub(super) fn receive(&mut self, from: SocketAddr, payload: &[u8], now: Instant) {
        let Some(gateway) = self.gateways.get(&from) else {
            self.ignored.stranger += 1;
            return;
        };
        let asked = gateway.pending.map(|pending| pending.question);
        match Response::decode(payload) {
            Ok(Response::ExternalAddress {
                result,
                epoch,
                addr,
            }) => self.address(from, asked, result, (epoch, addr), now),
            Ok(Response::Map {
                protocol,
                result,
                epoch,
                internal_port,
                external_port,
                lifetime,
            }) => {
                let answer = Answer {
                    result: result_of(result),
                    port: external_port,
                    lifetime,
                };
                let port = internal_port.and_then(|port| ExternalPort::new(port.get()));
                match port {
                    Some(port) => self.map((from, protocol, port), asked, epoch, &answer, now),
                    None => self.ignored.unmatched += 1,
                }
            }
            Ok(Response::UnsupportedOpcode { opcode }) => {
                let same = asked.is_some_and(|asked| self.opcode(asked) == Some(opcode));
                match asked.filter(|_| same) {
                    Some(question) => {
                        self.alive(from);
                        self.failed(from, question, ResultCode::UnsuppOpcode, now);
                    }
                    None => self.ignored.unmatched += 1,
                }
            }
            // What we send is of the version there is: this answers the other client.
            Ok(Response::UnsupportedVersion { .. }) => self.ignored.unmatched += 1,
            Err(_) => self.ignored.malformed += 1,
        }
    }

    /// An answer, or an announcement, which has the same form.
    fn address(
        &mut self,
        from: SocketAddr,
        asked: Option<Question>,
        result: Outcome,
        (epoch, addr): (Epoch, Ipv4Addr),
        now: Instant,
    ) {
        let asked = asked == Some(Question::Address);
        let known = result == Outcome::Success && !addr.is_unspecified();
        if !asked && result != Outcome::Success {
            self.ignored.unmatched += 1;
            return;
        }
        self.observe(from, epoch, now);
        self.alive(from);
        if !known {
            if asked {
                let result = if result == Outcome::Success {
                    ResultCode::NetworkFailure
                } else {
                    result_of(result)
                };
                self.failed(from, Question::Address, result, now);
            }
            return;
        }
        let Some(gateway) = self.gateways.get_mut(&from) else {
            return;
        };
        if asked {
            gateway.pending = None;
        }
        self.learn_address(from, addr, now);
    }

    /// The gateway's external address is this one.
    pub(super) fn learn_address(&mut self, from: SocketAddr, addr: Ipv4Addr, now: Instant) {
        let Some(gateway) = self.gateways.get_mut(&from) else {
            return;
        };
        let before = gateway.address;
        gateway.set_address(addr, now);
        gateway.line.leave(Question::Address);
        if before.is_some_and(|before| before != addr) {
            self.readdress(from, addr, now);
        }
    }

    /// Everything the gateway maps is at another address now, and what was refused there may be free here.
    fn readdress(&mut self, from: SocketAddr, addr: Ipv4Addr, now: Instant) {
        if let Some(gateway) = self.gateways.get_mut(&from) {
            gateway.negative.clear();
        }
        let held = |lease: &super::Lease| {
            lease.want.server == from && lease.phase == Phase::Held && lease.is_granted(now)
        };
        let leases = self.leases.iter().filter(|(_, lease)| held(lease));
        let ids: Vec<_> = leases.map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(lease) = self.leases.get_mut(&id)
                && let Some(known) = &mut lease.known
            {
                known.addr = addr;
                self.confirm(id);
            }
        }
    }

    fn map(
        &mut self,
        tuple: Tuple,
        asked: Option<Question>,
        epoch: Epoch,
        answer: &Answer,
        now: Instant,
    ) {
        let success = answer.result == ResultCode::Success;
        let holder = self.by_tuple.get(&tuple).copied();
        let matches = match asked {
            Some(Question::Map(id)) if holder == Some(id) => {
                !success || (answer.lifetime.0 > 0 && answer.port.is_some())
            }
            Some(Question::Delete(protocol, port)) if (protocol, port) == (tuple.1, tuple.2) => {
                !success || answer.lifetime.0 == 0
            }
            Some(_) | None => false,
        };
        let late = success && answer.lifetime.0 > 0 && self.ended.contains_key(&tuple);
        if !matches && !late {
            self.ignored.unmatched += 1;
            return;
        }
        self.observe(tuple.0, epoch, now);
        self.alive(tuple.0);
        match asked.filter(|_| matches) {
            None => self.late_grant(tuple, answer.lifetime, now),
            Some(question) if !success => self.failed(tuple.0, question, answer.result, now),
            Some(question) => {
                if let Some(gateway) = self.gateways.get_mut(&tuple.0) {
                    gateway.pending = None;
                }
                match (question, answer.port) {
                    (Question::Map(id), Some(port)) => self.granted(id, port, answer, now),
                    (Question::Delete(..), _) => self.deleted(tuple, now),
                    (Question::Map(_) | Question::Address, _) => {}
                }
            }
        }
    }

    pub(super) fn granted(
        &mut self,
        id: Generation,
        port: ExternalPort,
        answer: &Answer,
        now: Instant,
    ) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if lease.want.choice == PortChoice::Exact && lease.want.external != Some(port) {
            return self.conflict(id, now);
        }
        let gateway = self.gateways.get(&lease.want.server);
        let Some(addr) = gateway.and_then(|gateway| gateway.address) else {
            return;
        };
        lease.known = Some(ExternalEndpoint { addr, port });
        lease.tried = None;
        lease.grant = Some(now + answer.lifetime.min(MAX_LIFETIME).duration());
        lease.hold(now);
        self.confirm(id);
    }

    /// Says what is held.
    fn confirm(&mut self, id: Generation) {
        if let Some(lease) = self.leases.get(&id)
            && let (Some(external), Some(expires)) = (lease.known, lease.grant)
        {
            let lease = Granted {
                server: lease.want.server,
                via: self.via,
                nonce: MappingNonce([0; 12]),
                expires,
            };
            self.effects.push_back(Effect::Granted {
                id,
                lease,
                external,
            });
        }
    }

    /// PMP-031: the gateway grants another port than the one insisted on. It is given back, and the port counts as
    /// taken.
    fn conflict(&mut self, id: Generation, now: Instant) {
        let Some(lease) = self.leases.get(&id) else {
            return;
        };
        let server = lease.want.server;
        let answer = lease.phase == Phase::Asked;
        let held = lease.grant.is_some() || lease.known.is_some();
        if answer {
            self.remember(id, ResultCode::CannotProvideExternal, now);
        }
        self.abandon(id, now);
        let effects = Effect::conflict(id, server, answer, held);
        self.effects.extend(effects);
    }

    /// Keeps a refusal, so that the same is not asked again for a while. NAT-PMP does not say for how long it holds.
    fn remember(&mut self, id: Generation, result: ResultCode, now: Instant) {
        let Some(lease) = self.leases.get(&id) else {
            return;
        };
        let lifetime = match result.class() {
            // Another client's port: the cache has a bound of its own for it.
            ResultClass::Long | ResultClass::ByLifetime => LONG_REFUSAL,
            ResultClass::Short | ResultClass::Unspecified | ResultClass::Success => SHORT_REFUSAL,
        };
        let question = negative::Question::of(&lease.want);
        if let Some(gateway) = self.gateways.get_mut(&lease.want.server) {
            gateway.negative.put(question, result, lifetime, now);
        }
    }

    pub(super) fn deleted(&mut self, tuple: Tuple, now: Instant) {
        let id = self.by_tuple.get(&tuple).copied();
        let releasing = |id: &Generation| {
            let lease = self.leases.get(id);
            lease.is_some_and(|lease| lease.phase == Phase::Releasing)
        };
        if let Some(id) = id.filter(releasing) {
            self.forget(id, now);
            let result = Ok(());
            self.effects.push_back(Effect::Released { id, result });
        } else if let Some(ended) = self.ended.get_mut(&tuple) {
            (ended.delete, ended.until) = (false, now + LATE_GRANT);
            self.gone.push_back(tuple);
        }
    }

    /// A grant nobody waits for any more: a repetition of the request came after the deletion.
    fn late_grant(&mut self, tuple: Tuple, lifetime: Lifetime, now: Instant) {
        // Whoever has the port now asks for it, or has it.
        if self.by_tuple.contains_key(&tuple) {
            return;
        }
        if let Some(mut ended) = self.ended.get(&tuple).copied() {
            let ends = now + lifetime.min(MAX_LIFETIME).duration();
            (ended.delete, ended.until) = (true, ended.until.max(ends));
            self.end(tuple, ended);
        }
    }

    /// The gateway refuses what it was asked.
    pub(super) fn failed(
        &mut self,
        server: SocketAddr,
        question: Question,
        result: ResultCode,
        now: Instant,
    ) {
        if let Some(gateway) = self.gateways.get_mut(&server) {
            gateway.pending = None;
        }
        match question {
            Question::Map(id) => self.not_granted(id, result, now),
            Question::Delete(protocol, port) => {
                self.not_deleted((server, protocol, port), result, now);
            }
            // Without an address there is nothing to map.
            Question::Address => {
                let waiting = self.gateways.get(&server).map(|g| g.line.leases());
                for id in waiting.unwrap_or_default() {
                    self.not_granted(id, result, now);
                }
            }
        }
    }

    fn not_granted(&mut self, id: Generation, result: ResultCode, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let server = lease.want.server;
        let trouble = Effect::Trouble { id, server, result };
        match lease.phase {
            Phase::Asked => {
                if !lease.is_granted(now) {
                    self.remember(id, result, now);
                }
                self.refuse(id, result, true, now);
            }
            Phase::Releasing => {}
            // What has lapsed and is refused for good will not come back.
            Phase::Restored if !lease.is_granted(now) && result.class() == ResultClass::Long => {
                self.effects.push_back(trouble);
                self.forget(id, now);
                self.effects.push_back(Effect::Lost { id });
            }
            Phase::Restored => {
                lease.due = Some(now + HOLD);
                self.effects.push_back(trouble);
                self.cancel(server, Question::Map(id));
            }
            Phase::Held => {
                lease.hold(now + MIN_GAP);
                self.effects.push_back(trouble);
                self.cancel(server, Question::Map(id));
            }
        }
    }

    /// Runs the test of section 3.6; after a reset every lease of the gateway is asked for again.
    fn observe(&mut self, from: SocketAddr, epoch: Epoch, now: Instant) {
        let Some(gateway) = self.gateways.get_mut(&from) else {
            return;
        };
        if gateway.clock.observe(now, epoch) {
            self.restarted(from);
        }
    }

    /// The gateway has lost what it knew.
    pub(super) fn restarted(&mut self, from: SocketAddr) {
        let Some(gateway) = self.gateways.get_mut(&from) else {
            return;
        };
        gateway.doubt_address();
        gateway.negative.clear();
        let of_server = self.leases.iter().filter(|(_, l)| l.want.server == from);
        let all: Vec<_> = of_server.map(|(id, _)| *id).collect();
        for id in all {
            if let Some(lease) = self.leases.get_mut(&id)
                && lease.phase == Phase::Held
            {
                lease.phase = Phase::Restored;
            }
            if self
                .leases
                .get(&id)
                .is_some_and(|l| l.phase == Phase::Restored)
            {
                self.line_up(id);
            }
        }
        self.effects.push_back(Effect::EpochReset(from));
    }

    /// It is there: what was put off need not wait.
    pub(super) fn alive(&mut self, from: SocketAddr) {
        if let Some(gateway) = self.gateways.get_mut(&from) {
            gateway.quiet_until = Instant::default();
        }
        self.set_liveness(from, Liveness::Answering);
    }

    fn opcode(&self, question: Question) -> Option<u8> {
        let of = |protocol| match protocol {
            Protocol::Udp => 1,
            Protocol::Tcp => 2,
        };
        match question {
            Question::Address => Some(0),
            Question::Map(id) => self.leases.get(&id).map(|lease| of(lease.want.protocol)),
            Question::Delete(protocol, _) => Some(of(protocol)),
        }
    }
}

/// The PCP result of the same meaning. RFC 6886 section 3.5: unknown ones are fatal for the request.
fn result_of(outcome: Outcome) -> ResultCode {
    match outcome {
        Outcome::Success => ResultCode::Success,
        Outcome::UnsupportedVersion => ResultCode::UnsuppVersion,
        Outcome::NotAuthorized => ResultCode::NotAuthorized,
        Outcome::NetworkFailure => ResultCode::NetworkFailure,
        Outcome::OutOfResources => ResultCode::NoResources,
        Outcome::UnsupportedOpcode => ResultCode::UnsuppOpcode,
        Outcome::Other(number) => {
            // Numbers that PCP has given a meaning mean nothing here.
            let number = u8::try_from(number).unwrap_or(u8::MAX);
            let code = ResultCode::from_number(number);
            if matches!(code, ResultCode::Other(_)) {
                code
            } else {
                ResultCode::Other(u8::MAX)
            }
        }
    }
}
