//! Who gets leases at a server: the client of the protocol that it speaks.
//!
//! Read before editing: RFC 6887 section 9 and appendix A, RFC 6886 section 3.1.
//!
//! The core above asks for leases and hears of them; which protocol they are kept in shows only in [`Via`]. A server is
//! asked in PCP until it says that it speaks NAT-PMP only, or, if it is the default router and that is wanted, until it has
//! been silent for a while and a UPnP gateway is found there. PCP asks on from time to time, and when that is answered
//! everything goes back.

mod left;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use crate::mapping::policy::is_public;
use crate::mapping::{Lease, Via};
use crate::proto::igd_client::{self, Errand, IgdClient};
use crate::proto::natpmp_client::{self, NatPmpClient};
use crate::proto::pcp_client::{
    Effect, Handover, Ignored, Input, Liveness, PcpClient, Speaks, Trace, Want,
};
use crate::types::{Epoch, ExternalEndpoint, Generation, Instant, LocalAddrs};
use crate::wire::natpmp;
use crate::wire::pcp::Prefix64;
use left::LeftBehind;

/// Both clients.
#[derive(Debug)]
pub(super) struct Leases {
    pcp: PcpClient,
    natpmp: NatPmpClient,
    igd: IgdClient,
    /// Whether NAT-PMP may be spoken at all.
    enabled: bool,
    /// The default router, if UPnP may be spoken with it.
    router: Option<SocketAddr>,
    /// Whether UPnP may be spoken at all.
    igd_enabled: bool,
    translating: bool,
    local: LocalAddrs,
    servers: Vec<SocketAddr>,
    /// Whose other addresses another machine tries.
    several: BTreeSet<SocketAddr>,
    /// Servers that are asked in something else than PCP.
    fallen_back: BTreeMap<SocketAddr, Via>,
    left: LeftBehind,
    effects: VecDeque<Effect>,
}

impl Leases {
    pub(super) fn new(pcp: PcpClient, enabled: bool, igd_enabled: bool, now: Instant) -> Self {
        let mut leases = Self {
            pcp,
            natpmp: NatPmpClient::default(),
            igd: IgdClient::default(),
            enabled,
            router: None,
            igd_enabled,
            translating: true,
            local: LocalAddrs::default(),
            servers: Vec::new(),
            several: BTreeSet::new(),
            fallen_back: BTreeMap::new(),
            left: LeftBehind::default(),
            effects: VecDeque::new(),
        };
        let fallback = leases.may_fall_back();
        leases.pcp.handle_input(Input::Fallback(fallback), now);
        leases
    }

    pub(super) fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Request(want) => {
                let via = self.claim(&want, now);
                match via {
                    Via::Pcp => self.pcp.handle_input(Input::Request(want), now),
                    Via::NatPmp | Via::Igd => {
                        self.fallback(via, natpmp_client::Input::Request(want), now);
                    }
                }
            }
            Input::Reacquire {
                want,
                external,
                same_server,
            } => {
                let via = self.claim(&want, now);
                match via {
                    Via::Pcp => {
                        let input = Input::Reacquire {
                            want,
                            external,
                            same_server,
                        };
                        self.pcp.handle_input(input, now);
                    }
                    Via::NatPmp | Via::Igd => {
                        let input = natpmp_client::Input::Reacquire { want, external };
                        self.fallback(via, input, now);
                    }
                }
            }
            Input::Adopt {
                want,
                lease,
                external,
            } => self.adopt(want, lease, external, now),
            Input::Abandon(id) => {
                self.drop_left(id, now);
                let to = natpmp_client::Input::Abandon(id);
                self.of_lease(id, input, to, now);
            }
            Input::End(trace) => self.end_trace(trace, now),
            Input::Release(id) => {
                self.drop_left(id, now);
                let to = natpmp_client::Input::Release(id);
                self.of_lease(id, input, to, now);
            }
            Input::Keep(id) => self.of_lease(id, input, natpmp_client::Input::Keep(id), now),
            Input::Terms(want) => {
                let (id, to) = (want.id, natpmp_client::Input::Terms(want.clone()));
                self.of_lease(id, Input::Terms(want), to, now);
            }
            Input::Local(local) => self.set_local(local, now),
            Input::Servers(list) => {
                self.servers.clone_from(&list);
                self.pcp.handle_input(Input::Servers(list.clone()), now);
                for via in [Via::NatPmp, Via::Igd] {
                    self.fallback(via, natpmp_client::Input::Servers(list.clone()), now);
                }
                let (natpmp, igd, servers) = (&self.natpmp, &self.igd, &self.servers);
                self.fallen_back
                    .retain(|at, _| servers.contains(at) || natpmp.uses(*at) || igd.uses(*at));
            }
            Input::Several(several) => {
                self.several.clone_from(&several);
                self.pcp.handle_input(Input::Several(several), now);
            }
            Input::Probe(server) => {
                if self.via(server) == Via::NatPmp {
                    let input = natpmp_client::Input::Unknown(server);
                    self.natpmp.handle_input(input, now);
                }
                self.pcp.handle_input(input, now);
            }
            Input::Rest(server) => {
                self.natpmp
                    .handle_input(natpmp_client::Input::Silent(server), now);
                self.pcp.handle_input(input, now);
            }
            Input::Move { from, to } => {
                self.pcp.handle_input(input, now);
                let handovers = [self.natpmp.hand_over(from), self.igd.hand_over(from)];
                for mut handover in handovers.into_iter().flatten() {
                    handover.want.server = to;
                    self.take_over(handover, now);
                }
                self.fallen_back.remove(&from);
            }
            Input::Datagram { from, payload } => self.receive(from, payload, now),
            Input::Unreachable(server) => {
                self.natpmp
                    .handle_input(natpmp_client::Input::Unreachable(server), now);
                self.pcp.handle_input(input, now);
            }
            Input::History { .. } | Input::TakeOver(_) | Input::Fallback(_) | Input::Trusted(_) => {
                self.pcp.handle_input(input, now);
            }
        }
        self.pump(now);
    }

    /// The default router as it is called among servers. UPnP is spoken with nobody else.
    pub(super) fn set_router(&mut self, router: Option<SocketAddr>, now: Instant) {
        let router = router.filter(|_| self.igd_enabled);
        if self.router != router {
            self.router = router;
            self.igd
                .handle_input(igd_client::Input::Router(router), now);
            self.pump(now);
        }
    }

    /// What came of an errand.
    pub(super) fn returned(&mut self, input: igd_client::Input, now: Instant) {
        self.igd.handle_input(input, now);
        self.pump(now);
    }

    /// The next errand, until `None`.
    pub(super) fn poll_errand(&mut self) -> Option<Errand> {
        self.igd.poll_errand()
    }

    /// PCPC-083: whoever hands out leases may have got another box behind it, so what it was found to speak is found out
    /// again at once.
    pub(super) fn renewed(&mut self, now: Instant) {
        for server in self.fallen_back.clone().into_keys() {
            if self.pcp.liveness(server) != Some(Liveness::Unknown) {
                self.pcp.handle_input(Input::Probe(server), now);
            }
        }
        self.pump(now);
    }

    /// Does everything due at `now`; calling twice changes nothing.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.pcp.handle_timeout(now);
        self.natpmp.handle_timeout(now);
        self.igd.handle_timeout(now);
        self.give_up_left(now);
        self.pump(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let all = [
            self.pcp.poll_timeout(),
            self.natpmp.poll_timeout(),
            self.igd.poll_timeout(),
            self.left.next_event(),
        ];
        all.into_iter().flatten().min()
    }

    pub(super) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The protocol in which a server is asked.
    pub(super) fn via(&self, server: SocketAddr) -> Via {
        self.fallen_back.get(&server).copied().unwrap_or(Via::Pcp)
    }

    /// Whether a server answers; `None` if it is not known here.
    pub(super) fn liveness(&self, server: SocketAddr) -> Option<Liveness> {
        match self.via(server) {
            Via::NatPmp => self.natpmp.liveness(server),
            Via::Igd => self.igd.liveness(server),
            Via::Pcp => self.pcp.liveness(server),
        }
    }

    pub(super) fn speaks(&self, server: SocketAddr) -> Speaks {
        match self.via(server) {
            Via::Igd => Speaks::Igd,
            Via::Pcp | Via::NatPmp => self.pcp.speaks(server),
        }
    }

    pub(super) fn has_answered(&self, server: SocketAddr) -> bool {
        self.pcp.has_answered(server)
            || self.natpmp.epoch(server).is_some()
            || self.igd.has_answered(server)
    }

    pub(super) fn prefixes(&self, server: SocketAddr) -> &[Prefix64] {
        self.pcp.prefixes(server)
    }

    pub(super) fn epoch(&self, server: SocketAddr) -> Option<Epoch> {
        match self.via(server) {
            Via::NatPmp => self.natpmp.epoch(server),
            Via::Igd => None,
            Via::Pcp => self.pcp.epoch(server),
        }
    }

    pub(super) fn ignored(&self) -> Ignored {
        let all = [
            self.pcp.ignored(),
            self.natpmp.ignored(),
            self.igd.ignored(),
        ];
        Ignored {
            stranger: all.iter().map(|ignored| ignored.stranger).sum(),
            malformed: all.iter().map(|ignored| ignored.malformed).sum(),
            unmatched: all.iter().map(|ignored| ignored.unmatched).sum(),
        }
    }

    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        self.pcp.is_consistent() && self.natpmp.is_consistent() && self.igd.is_consistent()
    }

    #[cfg(test)]
    pub(super) fn looks(&self) -> u64 {
        self.pcp.looks() + self.natpmp.looks() + self.igd.looks()
    }

    /// In which protocol something is asked for. Only PCP has a word for somebody else.
    fn via_for(&self, want: &Want) -> Via {
        match want.behalf {
            Some(_) => Via::Pcp,
            None => self.via(want.server),
        }
    }

    /// Whether our NAT translates. Without it mappings are others', and only PCP is of use.
    pub(super) fn set_translating(&mut self, translating: bool, now: Instant) {
        if std::mem::replace(&mut self.translating, translating) != translating {
            self.set_local(self.local, now);
            self.pump(now);
        }
    }

    /// Whether a lease is kept that the server knows by another internal endpoint, at whichever server.
    pub(super) fn keeps_otherwise(&self, want: &Want) -> bool {
        match self.holder(want.id) {
            Via::NatPmp | Via::Igd => want.behalf.is_some(),
            Via::Pcp => self.pcp.keeps_otherwise(want),
        }
    }

    /// PMP-020: only behind another NAT. While our address is not known, what was there is not given up.
    fn may_fall_back(&self) -> bool {
        self.enabled && self.translating && !self.local.v4.is_some_and(is_public)
    }

    /// Tells whoever has the lease.
    fn of_lease(&mut self, id: Generation, pcp: Input, other: natpmp_client::Input, now: Instant) {
        match self.holder(id) {
            Via::Pcp => self.pcp.handle_input(pcp, now),
            via @ (Via::NatPmp | Via::Igd) => self.fallback(via, other, now),
        }
    }

    /// Whose a lease is; PCP's also if it is nobody's.
    fn holder(&self, id: Generation) -> Via {
        if self.natpmp.holds(id) {
            Via::NatPmp
        } else if self.igd.holds(id) {
            Via::Igd
        } else {
            Via::Pcp
        }
    }

    /// Tells one of the others.
    fn fallback(&mut self, via: Via, input: natpmp_client::Input, now: Instant) {
        match via {
            Via::NatPmp => self.natpmp.handle_input(input, now),
            Via::Igd => self.igd.handle_input(igd_client::Input::Lease(input), now),
            Via::Pcp => {}
        }
    }

    /// In which protocol a lease is to be asked for; whoever has it in another one gives it up.
    fn claim(&mut self, want: &Want, now: Instant) -> Via {
        let (id, via) = (want.id, self.via_for(want));
        for other in [Via::NatPmp, Via::Igd] {
            if other != via && self.holder(id) == other {
                self.fallback(other, natpmp_client::Input::Abandon(id), now);
            }
        }
        if via != Via::Pcp && self.holder(id) == Via::Pcp {
            self.pcp.handle_input(Input::Abandon(id), now);
        }
        via
    }

    fn adopt(&mut self, want: Want, lease: Lease, external: ExternalEndpoint, now: Instant) {
        let spoken = match lease.via {
            Via::Pcp => true,
            Via::NatPmp => self.may_fall_back(),
            Via::Igd => self.igd_enabled,
        };
        let expires = lease.expires;
        match lease.via {
            _ if !spoken => self.pcp.handle_input(
                Input::TakeOver(Handover::held(want, external, expires)),
                now,
            ),
            Via::Pcp => self.pcp.handle_input(
                Input::Adopt {
                    want,
                    lease,
                    external,
                },
                now,
            ),
            via @ (Via::NatPmp | Via::Igd) => {
                self.fallen_back.insert(lease.server, via);
                let input = natpmp_client::Input::Adopt {
                    want,
                    expires,
                    external,
                };
                self.fallback(via, input, now);
            }
        }
    }

    /// Ends what an earlier life has left. UPnP deletes by the external port, which is not known any more: mostly it is
    /// the port of our NAT, and nothing is deleted that is not ours. What is at another one ends by itself.
    fn end_trace(&mut self, trace: Trace, now: Instant) {
        let spoken = match trace.via {
            Via::Pcp => return self.pcp.handle_input(Input::End(trace), now),
            Via::NatPmp => self.may_fall_back(),
            Via::Igd => self.igd_enabled,
        };
        if !spoken {
            let forgotten = Effect::Forgotten(trace.key, trace.via);
            self.effects.push_back(forgotten);
            return;
        }
        self.fallen_back.insert(trace.key.server, trace.via);
        let input = natpmp_client::Input::End {
            server: trace.key.server,
            protocol: trace.key.protocol,
            port: trace.key.port,
            external: trace.key.port,
            until: trace.until,
        };
        self.fallback(trace.via, input, now);
    }

    fn set_local(&mut self, local: LocalAddrs, now: Instant) {
        self.local = local;
        let fallback = self.may_fall_back();
        self.pcp.handle_input(Input::Fallback(fallback), now);
        self.pcp.handle_input(Input::Local(local), now);
        for via in [Via::NatPmp, Via::Igd] {
            self.fallback(via, natpmp_client::Input::Local(local.v4), now);
        }
        let known = self.servers.iter().chain(self.fallen_back.keys()).copied();
        for server in known.collect::<BTreeSet<_>>() {
            self.follow(server, now);
        }
    }

    /// Octet 0 tells the protocols apart, but for the error that says so: it answers PCP.
    fn receive(&mut self, from: SocketAddr, payload: Vec<u8>, now: Instant) {
        let natpmp = (self.via(from) == Via::NatPmp || self.natpmp.uses(from))
            && payload.first() == Some(&natpmp::VERSION)
            && !matches!(
                natpmp::Response::decode(&payload),
                Ok(natpmp::Response::UnsupportedVersion { .. })
            );
        if natpmp {
            let input = natpmp_client::Input::Datagram { from, payload };
            self.natpmp.handle_input(input, now);
        } else {
            self.pcp
                .handle_input(Input::Datagram { from, payload }, now);
        }
    }

    fn take_over(&mut self, handover: Handover, now: Instant) {
        match self.via_for(&handover.want) {
            Via::Pcp => self.pcp.handle_input(Input::TakeOver(handover), now),
            via @ (Via::NatPmp | Via::Igd) => {
                self.fallback(via, natpmp_client::Input::TakeOver(handover), now);
            }
        }
    }

    /// The best protocol that a server speaks, as far as that is known: PCP, then NAT-PMP, then UPnP.
    fn best(&self, server: SocketAddr) -> Via {
        let current = self.via(server);
        let silent = self.pcp.liveness(server) == Some(Liveness::Silent);
        let answers = |liveness| liveness == Some(Liveness::Answering);
        let upnp = self.router == Some(server)
            && (current == Via::Igd || answers(self.igd.liveness(server)));
        let natpmp = self.may_fall_back() && server.is_ipv4();
        match self.pcp.speaks(server) {
            Speaks::NatPmp if natpmp && !silent => Via::NatPmp,
            // What UPnP gave is not given up for a question that has no answer yet.
            Speaks::Unknown | Speaks::Nothing if current == Via::Igd && self.igd_enabled => {
                Via::Igd
            }
            _ if upnp
                && silent
                && !(current == Via::NatPmp && answers(self.natpmp.liveness(server))) =>
            {
                Via::Igd
            }
            Speaks::OtherVersion(_) if upnp => Via::Igd,
            Speaks::NatPmp if natpmp => Via::NatPmp,
            Speaks::NatPmp if upnp => Via::Igd,
            Speaks::Unknown | Speaks::Nothing if current == Via::NatPmp && natpmp => Via::NatPmp,
            Speaks::Unknown
            | Speaks::Nothing
            | Speaks::Pcp
            | Speaks::NatPmp
            | Speaks::Igd
            | Speaks::OtherVersion(_) => Via::Pcp,
        }
    }

    /// Asks a server in the protocol that it speaks, as far as that is known.
    fn follow(&mut self, server: SocketAddr, now: Instant) {
        let (current, best) = (self.via(server), self.best(server));
        if best == Via::NatPmp && self.pcp.speaks(server) == Speaks::NatPmp {
            self.natpmp
                .handle_input(natpmp_client::Input::Alive(server), now);
        }
        if current == best {
            // What PCP was asked for before it became known.
            if best == Via::NatPmp && self.pcp.speaks(server) == Speaks::NatPmp {
                for handover in self.pcp.hand_over(server) {
                    self.take_over(handover, now);
                }
            }
            return;
        }
        let handovers = match current {
            Via::Pcp => self.pcp.hand_over(server),
            Via::NatPmp => self.natpmp.hand_over(server),
            Via::Igd => self.igd.hand_over(server),
        };
        match best {
            Via::Pcp => self.fallen_back.remove(&server),
            Via::NatPmp | Via::Igd => self.fallen_back.insert(server, best),
        };
        for handover in handovers {
            if current != Via::Pcp {
                self.left.note(&handover, current, now);
            }
            self.take_over(handover, now);
        }
        if best == Via::Igd {
            self.igd.handle_input(
                igd_client::Input::Lease(natpmp_client::Input::Alive(server)),
                now,
            );
            self.effects.push_back(Effect::Speaks(server));
        }
        if best != Via::NatPmp || current != Via::Pcp {
            self.effects.push_back(Effect::Liveness(server));
        }
    }

    /// UPnP is looked for where nothing better answers, and as long as there is something to delete.
    fn want_igd(&mut self, now: Instant) {
        let Some(router) = self.router else {
            return;
        };
        let nothing_better = self.servers.contains(&router)
            && match (self.via(router), self.pcp.speaks(router)) {
                (Via::Igd, _) | (Via::Pcp, Speaks::OtherVersion(_)) => true,
                (Via::NatPmp, _) => self.natpmp.liveness(router) == Some(Liveness::Silent),
                (Via::Pcp, Speaks::NatPmp) => true,
                (Via::Pcp, Speaks::Unknown | Speaks::Nothing | Speaks::Pcp | Speaks::Igd) => {
                    self.pcp.liveness(router) == Some(Liveness::Silent)
                }
            };
        let wanted = nothing_better || self.igd.uses(router) || self.left.has(Via::Igd);
        self.igd
            .handle_input(igd_client::Input::Wanted(wanted), now);
    }

    /// Passes on what the clients say, and does what follows for the others.
    fn pump(&mut self, now: Instant) {
        loop {
            if let Some(effect) = self.pcp.poll_effect() {
                self.heed_pcp(effect, now);
            } else if let Some(effect) = self.natpmp.poll_effect() {
                self.heed_fallback(Via::NatPmp, effect, now);
            } else if let Some(effect) = self.igd.poll_effect() {
                self.heed_fallback(Via::Igd, effect, now);
            } else if let Some(gone) = self.natpmp.poll_gone() {
                self.gone(gone, now);
            } else if let Some(gone) = self.igd.poll_gone() {
                self.gone(gone, now);
            } else {
                break;
            }
        }
        self.want_igd(now);
    }

    fn heed_pcp(&mut self, effect: Effect, now: Instant) {
        match effect {
            Effect::Granted { id, external, .. } => {
                self.effects.push_back(effect);
                self.succeeded(id, external, now);
            }
            Effect::Speaks(server) => {
                self.effects.push_back(effect);
                self.follow(server, now);
            }
            Effect::Lost { id } if self.takes_its_place(id, now) => {}
            // PCP only looks whether somebody is there.
            Effect::Liveness(server) if self.via(server) == Via::NatPmp => {
                let input = match self.pcp.liveness(server) {
                    Some(Liveness::Answering) => natpmp_client::Input::Alive(server),
                    Some(Liveness::Silent) => natpmp_client::Input::Silent(server),
                    Some(Liveness::Unknown) | None => return,
                };
                self.natpmp.handle_input(input, now);
                self.follow(server, now);
            }
            Effect::Liveness(server) => {
                if self.via(server) == Via::Pcp {
                    self.effects.push_back(effect);
                }
                self.follow(server, now);
            }
            Effect::Send { .. }
            | Effect::Refused { .. }
            | Effect::Trouble { .. }
            | Effect::GivenBack { .. }
            | Effect::Lost { .. }
            | Effect::Released { .. }
            | Effect::EpochSeen { .. }
            | Effect::Asking { .. }
            | Effect::Ending(_)
            | Effect::Forgotten(..)
            | Effect::Spent(_)
            | Effect::EpochReset(_) => self.effects.push_back(effect),
        }
    }

    fn heed_fallback(&mut self, via: Via, effect: Effect, now: Instant) {
        match effect {
            Effect::Granted { id, external, .. } => {
                self.effects.push_back(effect);
                self.succeeded(id, external, now);
            }
            // A router that was found; or only what is left there is being ended.
            Effect::Liveness(server) if self.via(server) != via => self.follow(server, now),
            Effect::EpochReset(server) if self.via(server) != via => {}
            Effect::Liveness(server) => {
                let silent = self.liveness(server) == Some(Liveness::Silent);
                self.effects.push_back(effect);
                match silent {
                    true if self.several.contains(&server) => {
                        self.effects.push_back(Effect::Spent(server));
                    }
                    // RFC 6886 section 3.1 gives up where PCP asks on; and it may speak PCP now.
                    true => self.look_again(server, now),
                    false => {}
                }
            }
            // PCPC-083: whoever has restarted may be another one.
            Effect::EpochReset(server) => {
                self.effects.push_back(effect);
                self.look_again(server, now);
            }
            Effect::Send { .. }
            | Effect::Refused { .. }
            | Effect::Trouble { .. }
            | Effect::GivenBack { .. }
            | Effect::Lost { .. }
            | Effect::Released { .. }
            | Effect::EpochSeen { .. }
            | Effect::Asking { .. }
            | Effect::Ending(_)
            | Effect::Forgotten(..)
            | Effect::Spent(_)
            | Effect::Speaks(_) => self.effects.push_back(effect),
        }
    }

    /// Asks a server in PCP at once, unless that is under way.
    fn look_again(&mut self, server: SocketAddr, now: Instant) {
        if self.pcp.liveness(server) == Some(Liveness::Answering) {
            self.pcp.handle_input(Input::Probe(server), now);
        }
    }
}
