//! Who gets leases at a server: the client of the protocol that it speaks.
//!
//! Read before editing: RFC 6887 section 9 and appendix A, RFC 6886 section 3.1.
//!
//! The core above asks for leases and hears of them; which protocol they are kept in shows only in [`Via`]. A server is
//! asked in PCP until it says that it speaks NAT-PMP only. PCP asks on from time to time, and when that is answered
//! everything goes back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use crate::mapping::Via;
use crate::mapping::policy::is_public;
use crate::proto::natpmp_client::{self, NatPmpClient};
use crate::proto::pcp_client::{
    Effect, Handover, Ignored, Input, Liveness, PcpClient, Speaks, Want,
};
use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Generation, Instant, LocalAddrs, Protocol,
};
use crate::wire::natpmp;

/// Both clients.
#[derive(Debug)]
pub(super) struct Leases {
    pcp: PcpClient,
    natpmp: NatPmpClient,
    /// Whether NAT-PMP may be spoken at all.
    enabled: bool,
    local: LocalAddrs,
    servers: Vec<SocketAddr>,
    /// Whose other addresses another machine tries.
    several: BTreeSet<SocketAddr>,
    /// Servers that are asked in NAT-PMP.
    fallen_back: BTreeSet<SocketAddr>,
    /// What was mapped in NAT-PMP when its server turned out to speak PCP, until PCP has granted the same lease. No more
    /// than there are leases.
    left: BTreeMap<Generation, Left>,
    effects: VecDeque<Effect>,
}

/// A mapping in NAT-PMP that is not needed once the same is mapped in PCP.
#[derive(Clone, Copy, Debug)]
struct Left {
    server: SocketAddr,
    protocol: Protocol,
    port: ExternalPort,
    external: ExternalEndpoint,
    until: Instant,
}

impl Leases {
    pub(super) fn new(pcp: PcpClient, enabled: bool, now: Instant) -> Self {
        let mut leases = Self {
            pcp,
            natpmp: NatPmpClient::default(),
            enabled,
            local: LocalAddrs::default(),
            servers: Vec::new(),
            several: BTreeSet::new(),
            fallen_back: BTreeSet::new(),
            left: BTreeMap::new(),
            effects: VecDeque::new(),
        };
        let fallback = leases.may_fall_back();
        leases.pcp.handle_input(Input::Fallback(fallback), now);
        leases
    }

    pub(super) fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Request(want) if self.via(want.server) == Via::NatPmp => {
                if !self.natpmp.holds(want.id) {
                    self.pcp.handle_input(Input::Abandon(want.id), now);
                }
                self.natpmp
                    .handle_input(natpmp_client::Input::Request(want), now);
            }
            Input::Reacquire { want, external } if self.via(want.server) == Via::NatPmp => {
                if !self.natpmp.holds(want.id) {
                    self.pcp.handle_input(Input::Abandon(want.id), now);
                }
                let input = natpmp_client::Input::Reacquire { want, external };
                self.natpmp.handle_input(input, now);
            }
            Input::Request(ref want) | Input::Reacquire { ref want, .. } => {
                if self.natpmp.holds(want.id) {
                    let id = want.id;
                    self.natpmp
                        .handle_input(natpmp_client::Input::Abandon(id), now);
                }
                self.pcp.handle_input(input, now);
            }
            Input::Adopt {
                want,
                lease,
                external,
            } => match lease.via {
                Via::NatPmp if self.may_fall_back() => {
                    self.fallen_back.insert(lease.server);
                    let expires = lease.expires;
                    let input = natpmp_client::Input::Adopt {
                        want,
                        expires,
                        external,
                    };
                    self.natpmp.handle_input(input, now);
                }
                Via::NatPmp => self.pcp.handle_input(
                    Input::TakeOver(Handover::held(want, external, lease.expires)),
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
            },
            Input::Abandon(id) => {
                let to = natpmp_client::Input::Abandon(id);
                self.of_lease(id, input, to, now);
            }
            Input::End(trace) => match trace.via {
                Via::Pcp => self.pcp.handle_input(input, now),
                Via::NatPmp if self.may_fall_back() => {
                    self.fallen_back.insert(trace.key.server);
                    let input = natpmp_client::Input::End {
                        server: trace.key.server,
                        protocol: trace.key.protocol,
                        port: trace.key.port,
                        until: trace.until,
                    };
                    self.natpmp.handle_input(input, now);
                }
                Via::NatPmp => self
                    .effects
                    .push_back(Effect::Forgotten(trace.key, trace.via)),
            },
            Input::Release(id) => {
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
                self.natpmp
                    .handle_input(natpmp_client::Input::Servers(list), now);
                let (natpmp, servers) = (&self.natpmp, &self.servers);
                self.fallen_back
                    .retain(|at| servers.contains(at) || natpmp.uses(*at));
            }
            Input::Several(several) => {
                self.several.clone_from(&several);
                self.pcp.handle_input(Input::Several(several), now);
            }
            Input::Probe(server) => {
                self.natpmp
                    .handle_input(natpmp_client::Input::Unknown(server), now);
                self.pcp.handle_input(input, now);
            }
            Input::Rest(server) => {
                self.natpmp
                    .handle_input(natpmp_client::Input::Silent(server), now);
                self.pcp.handle_input(input, now);
            }
            Input::Move { from, to } => {
                self.pcp.handle_input(input, now);
                for mut handover in self.natpmp.hand_over(from) {
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
            Input::History { .. } | Input::TakeOver(_) | Input::Fallback(_) => {
                self.pcp.handle_input(input, now);
            }
        }
        self.pump(now);
    }

    /// PCPC-083: whoever hands out leases may have got another box behind it, so what it was found to speak is found out
    /// again at once.
    pub(super) fn renewed(&mut self, now: Instant) {
        for server in self.fallen_back.clone() {
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
        self.pump(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let both = [self.pcp.poll_timeout(), self.natpmp.poll_timeout()];
        both.into_iter().flatten().min()
    }

    pub(super) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The protocol in which a server is asked.
    pub(super) fn via(&self, server: SocketAddr) -> Via {
        match self.fallen_back.contains(&server) {
            true => Via::NatPmp,
            false => Via::Pcp,
        }
    }

    /// Whether a server answers; `None` if it is not known here.
    pub(super) fn liveness(&self, server: SocketAddr) -> Option<Liveness> {
        match self.via(server) {
            Via::NatPmp => self.natpmp.liveness(server),
            Via::Pcp => self.pcp.liveness(server),
        }
    }

    pub(super) fn speaks(&self, server: SocketAddr) -> Speaks {
        self.pcp.speaks(server)
    }

    pub(super) fn has_answered(&self, server: SocketAddr) -> bool {
        self.pcp.has_answered(server) || self.natpmp.epoch(server).is_some()
    }

    pub(super) fn epoch(&self, server: SocketAddr) -> Option<Epoch> {
        match self.via(server) {
            Via::NatPmp => self.natpmp.epoch(server),
            Via::Pcp => self.pcp.epoch(server),
        }
    }

    pub(super) fn ignored(&self) -> Ignored {
        let (pcp, natpmp) = (self.pcp.ignored(), self.natpmp.ignored());
        Ignored {
            stranger: pcp.stranger + natpmp.stranger,
            malformed: pcp.malformed + natpmp.malformed,
            unmatched: pcp.unmatched + natpmp.unmatched,
        }
    }

    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        self.pcp.is_consistent() && self.natpmp.is_consistent()
    }

    #[cfg(test)]
    pub(super) fn looks(&self) -> u64 {
        self.pcp.looks() + self.natpmp.looks()
    }

    /// PMP-020: only behind another NAT. While our address is not known, what was there is not given up.
    fn may_fall_back(&self) -> bool {
        self.enabled && !self.local.v4.is_some_and(is_public)
    }

    /// Tells whoever has the lease.
    fn of_lease(&mut self, id: Generation, pcp: Input, natpmp: natpmp_client::Input, now: Instant) {
        match self.natpmp.holds(id) {
            true => self.natpmp.handle_input(natpmp, now),
            false => self.pcp.handle_input(pcp, now),
        }
    }

    fn set_local(&mut self, local: LocalAddrs, now: Instant) {
        self.local = local;
        let fallback = self.may_fall_back();
        self.pcp.handle_input(Input::Fallback(fallback), now);
        self.pcp.handle_input(Input::Local(local), now);
        self.natpmp
            .handle_input(natpmp_client::Input::Local(local.v4), now);
        let known = self.servers.iter().chain(&self.fallen_back).copied();
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
        match self.via(handover.want.server) {
            Via::NatPmp => self
                .natpmp
                .handle_input(natpmp_client::Input::TakeOver(handover), now),
            Via::Pcp => self.pcp.handle_input(Input::TakeOver(handover), now),
        }
    }

    /// Asks a server in the protocol that it speaks, as far as that is known.
    fn follow(&mut self, server: SocketAddr, now: Instant) {
        let fallen_back = self.via(server) == Via::NatPmp;
        match self.pcp.speaks(server) {
            Speaks::NatPmp if self.may_fall_back() && server.is_ipv4() => {
                self.fallen_back.insert(server);
                self.natpmp
                    .handle_input(natpmp_client::Input::Alive(server), now);
                for handover in self.pcp.hand_over(server) {
                    self.take_over(handover, now);
                }
            }
            Speaks::Unknown | Speaks::Nothing if self.may_fall_back() => {}
            Speaks::Unknown
            | Speaks::Nothing
            | Speaks::Pcp
            | Speaks::NatPmp
            | Speaks::OtherVersion(_)
                if fallen_back =>
            {
                self.fallen_back.remove(&server);
                for handover in self.natpmp.hand_over(server) {
                    self.leave(&handover, now);
                    self.take_over(handover, now);
                }
                self.effects.push_back(Effect::Liveness(server));
            }
            Speaks::Unknown
            | Speaks::Nothing
            | Speaks::Pcp
            | Speaks::NatPmp
            | Speaks::OtherVersion(_) => {}
        }
    }

    /// Remembers what a server that speaks PCP now has mapped in NAT-PMP.
    fn leave(&mut self, handover: &Handover, now: Instant) {
        let Want {
            id,
            server,
            protocol,
            port,
            ..
        } = handover.want;
        self.left.retain(|_, left| left.until > now);
        if let (Some(external), Some(until)) = (handover.known, handover.grant) {
            let left = Left {
                server,
                protocol,
                port,
                external,
                until,
            };
            self.left.insert(id, left);
        }
    }

    /// PCP has granted what was mapped in NAT-PMP before. From here on remote hosts use the new endpoint, so that the old
    /// mapping can go without cutting anything off. At the same endpoint it is the same mapping of the same box, which
    /// PCP has taken over: ending it would end that one, and by itself it ends only if PCP's does.
    fn succeeded(&mut self, id: Generation, external: ExternalEndpoint, now: Instant) {
        if let Some(left) = self.left.remove(&id)
            && left.external != external
        {
            let input = natpmp_client::Input::End {
                server: left.server,
                protocol: left.protocol,
                port: left.port,
                until: left.until,
            };
            self.natpmp.handle_input(input, now);
        }
    }

    /// NAT-PMP deletes by the port of our NAT, so a box that keeps one table for both protocols may have deleted what it
    /// maps in PCP too: that is asked for again at once.
    fn gone(&mut self, (server, protocol, port): natpmp_client::Gone, now: Instant) {
        if let Some(id) = self.pcp.lease_of(server, protocol, port) {
            self.pcp.handle_input(Input::Keep(id), now);
        }
    }

    /// Passes on what the clients say, and does what follows for the other one.
    fn pump(&mut self, now: Instant) {
        loop {
            if let Some(effect) = self.pcp.poll_effect() {
                self.heed_pcp(effect, now);
            } else if let Some(effect) = self.natpmp.poll_effect() {
                self.heed_natpmp(effect, now);
            } else if let Some(gone) = self.natpmp.poll_gone() {
                self.gone(gone, now);
            } else {
                return;
            }
        }
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
            // PCP only looks whether somebody is there.
            Effect::Liveness(server) if self.via(server) == Via::NatPmp => {
                let input = match self.pcp.liveness(server) {
                    Some(Liveness::Answering) => natpmp_client::Input::Alive(server),
                    Some(Liveness::Silent) => natpmp_client::Input::Silent(server),
                    Some(Liveness::Unknown) | None => return,
                };
                self.natpmp.handle_input(input, now);
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
            | Effect::EpochReset(_)
            | Effect::Liveness(_) => self.effects.push_back(effect),
        }
    }

    fn heed_natpmp(&mut self, effect: Effect, now: Instant) {
        match effect {
            // Only what is left there is being ended.
            Effect::Liveness(server) | Effect::EpochReset(server)
                if self.via(server) == Via::Pcp => {}
            Effect::Liveness(server) => {
                let silent = self.natpmp.liveness(server) == Some(Liveness::Silent);
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
            | Effect::Granted { .. }
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
