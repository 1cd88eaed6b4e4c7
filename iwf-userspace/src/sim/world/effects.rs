//! Effects of the core, carried out as the shell does; between any two the daemon may die.

use std::net::IpAddr;
use std::time::Duration;

use super::World;
use super::wires::Datagram;
use crate::iwf::{Effect, EffectError, Input, Ticket};
use crate::proto::gena;
use crate::sim::server::address;
use crate::wire::natpmp;
use crate::wire::pcp::{PcpOption, Request};

impl World {
    /// Carries out effects as the shell does until there is none, then checks everything.
    pub(super) fn settle(&mut self) {
        loop {
            while let Some(effect) = self.iwf.poll_effect() {
                if self.dies() {
                    return;
                }
                self.carry_out(effect);
            }
            if self.unstored.is_empty() {
                break;
            }
            if self.dies() {
                return;
            }
            let (tickets, changes): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.unstored).into_iter().unzip();
            let result = self.store.commit(changes);
            if result.is_err() {
                self.store_failed = self.now;
            }
            if self.dies() {
                return;
            }
            for answer in std::mem::take(&mut self.answers) {
                if self.dies() {
                    return;
                }
                self.carry_out(answer);
            }
            for ticket in tickets {
                self.done(ticket, result);
            }
        }
        if std::mem::take(&mut self.nudged) {
            self.reconcile();
        }
        self.turn();
        if !self.unchecked {
            self.check();
        }
    }

    /// Whether the daemon dies here.
    pub(super) fn dies(&mut self) -> bool {
        let Some(left) = &mut self.crash_after else {
            return false;
        };
        if *left > 0 {
            *left -= 1;
            return false;
        }
        self.crash_after = None;
        self.crash();
        true
    }

    pub(super) fn done(&mut self, ticket: Ticket, result: Result<(), EffectError>) {
        let input = Input::Done { ticket, result };
        self.iwf.handle_input(input, self.now);
    }

    pub(super) fn carry_out(&mut self, effect: Effect) {
        self.trace(|| {
            if let Effect::SendUpstream { payload, .. } = &effect {
                format!("sends {:?}", Request::decode(payload))
            } else {
                format!("wants {effect:?}")
            }
        });
        match effect {
            Effect::Reply { .. }
            | Effect::HangUp { .. }
            | Effect::AdminReply { .. }
            | Effect::ShowPin { .. }
            | Effect::SendUpstream { .. }
            | Effect::Errand(_)
                if !self.unstored.is_empty() =>
            {
                self.answers.push(effect);
            }
            Effect::Persist { ticket, change } => self.unstored.push((ticket, change)),
            Effect::WriteNat { ticket, entry } => {
                let result = self.kernel.write(entry);
                self.nudged |= result.is_err();
                self.done(ticket, result);
            }
            Effect::RemoveNat { ticket, entry } => {
                let result = self.kernel.remove(entry);
                self.nudged |= result.is_err();
                self.done(ticket, result);
            }
            Effect::Errand(errand) => self.run_errand(errand),
            Effect::WritePinholes { ticket, pinholes } => {
                let result = self.kernel.set_pinholes(pinholes);
                self.nudged |= result.is_err();
                self.done(ticket, result);
            }
            Effect::CountPinhole { request, id } => {
                let packets = self.pinhole_packets.get(&id).copied().unwrap_or(0);
                let packets = Some(packets);
                let counted = Input::PinholeCounted { request, packets };
                self.iwf.handle_input(counted, self.now);
            }
            Effect::SendUpstream { server, payload } => {
                if self.keeps_sent {
                    self.sent_to.push(server);
                }
                let other = self.other.as_ref().map(|(at, _)| *at);
                let known = server == address() || self.aliases.contains(&server);
                let lost = self.dead.contains(&server) || self.closed.contains(&server);
                assert!(known || lost || other == Some(server), "{server} is asked");
                let source = if payload.first() == Some(&natpmp::VERSION) {
                    let request = natpmp::Request::decode(&payload).expect("well formed");
                    self.sent_natpmp.push((self.now, request));
                    IpAddr::V4(self.wan.address.expect("an address to send from"))
                } else {
                    let request = Request::decode(&payload).expect("well formed");
                    let source = request.client;
                    let names = |option: &PcpOption| matches!(option, PcpOption::ThirdParty(_));
                    let trusts = self.settings.third_party;
                    assert!(trusts || !request.options.iter().any(names), "IWF-102");
                    if self.keeps_sent {
                        self.sent.push((self.now, request));
                    }
                    source
                };
                if self.closed.contains(&server) {
                    self.last_datagram += 1;
                    let key = (self.now + Duration::from_millis(1), self.last_datagram);
                    self.wires.insert(key, Datagram::Unreachable(server));
                }
                if lost {
                    return;
                }
                for delay in self.link.copies(&mut self.rng) {
                    self.last_datagram += 1;
                    let key = (self.now + delay, self.last_datagram);
                    let datagram = Datagram::ToServer(server, source, payload.clone());
                    self.wires.insert(key, datagram);
                }
            }
            Effect::Solicit(addr) => self.solicited.push((self.now, addr)),
            Effect::SubscriptionReply { .. }
            | Effect::SendEvent(_)
            | Effect::CancelEvent { .. }
                if !self.unstored.is_empty() =>
            {
                self.answers.push(effect);
            }
            Effect::Reply { .. }
            | Effect::HangUp { .. }
            | Effect::AdminReply { .. }
            | Effect::ShowPin { .. }
            | Effect::SubscriptionReply { .. }
            | Effect::SendEvent(_)
            | Effect::CancelEvent { .. } => self.tell(effect),
            Effect::Notify(notice) => {
                if self.keeps_sent {
                    self.notices.push(notice);
                }
            }
        }
    }

    /// Tells people what came of it.
    pub(super) fn tell(&mut self, answer: Effect) {
        match answer.clone() {
            Effect::Reply { request, result } => {
                let asked = self.open.remove(&request.0);
                let asked = asked.expect("every call is answered once");
                let took = self.now.saturating_duration_since(asked);
                assert!(took <= self.patience(), "answered after {took:?}");
                self.oracle
                    .told(request.0, &result, self.store.stores_what_fails);
                self.replies.insert(request.0, (self.now, result));
            }
            Effect::AdminReply { request, result } => {
                let before = self.admin_replies.insert(request.0, result);
                assert_eq!(before, None, "answered twice");
            }
            Effect::ShowPin { request, pin, .. } => {
                let before = self.admin_replies.insert(request.0, Ok(()));
                assert_eq!(before, None, "answered twice");
                self.pin = Some(pin);
            }
            Effect::SubscriptionReply { result, .. } => {
                if let Some(subscriber) = &mut self.subscriber {
                    subscriber.answered(result);
                }
            }
            Effect::SendEvent(send) => {
                let subscriber = self.subscriber.as_mut();
                let subscriber = subscriber.expect("somebody has subscribed");
                if let Some((delay, result)) = subscriber.receives(self.now, &send) {
                    self.last_datagram += 1;
                    let key = (self.now + delay, self.last_datagram);
                    let sent = Datagram::EventSent(send.number, result);
                    self.wires.insert(key, sent);
                }
            }
            Effect::CancelEvent { number } => {
                if let Some(subscriber) = &mut self.subscriber {
                    subscriber.sent(number, Err(gena::SendError::Silent));
                }
            }
            Effect::HangUp { connection } => self.hung_up.push(connection),
            Effect::SendUpstream { .. }
            | Effect::Errand(_)
            | Effect::WriteNat { .. }
            | Effect::RemoveNat { .. }
            | Effect::Persist { .. }
            | Effect::WritePinholes { .. }
            | Effect::CountPinhole { .. }
            | Effect::Solicit(_)
            | Effect::Notify(_) => panic!("no answer: {answer:?}"),
        }
    }
}
