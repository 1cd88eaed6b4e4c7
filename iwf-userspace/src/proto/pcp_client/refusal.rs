//! What becomes of a lease that a server refuses (RFC 6887 sections 7.4, 9, 13.2 and 15).

use std::net::{IpAddr, SocketAddr};

use super::lease::{Insist, Lease, Phase, Purpose, Tuple};
use super::matching::Leaving;
use super::negative::{Question, hold};
use super::renewal::MIN_GAP;
use super::retransmit::Backoff;
use super::server::Server;
use super::{Effect, LATE_REFUSAL, PcpClient, Speaks};
use crate::mapping::PortChoice;
use crate::types::{Epoch, ExternalPort, Generation, Instant, Lifetime, Protocol};
use crate::wire::pcp::{MapBody, ResultClass, ResultCode};

impl PcpClient {
    /// Whether a refusal is one of what was insisted on before. It is said to whoever insists, and has the endpoint that was
    /// asked for (RFC 6887 sections 7.4 and 11.3).
    pub(super) fn is_late_refusal(
        &self,
        id: Generation,
        error: ResultCode,
        map: &MapBody,
        now: Instant,
    ) -> bool {
        let Some(lease) = self.leases.get(&id) else {
            return false;
        };
        let Phase::Requesting { insist, .. } = &lease.phase else {
            return false;
        };
        let of_before = match insist {
            Insist::Endpoint => false,
            Insist::Port => lease
                .known
                .is_some_and(|known| map.external_addr == IpAddr::V4(known.addr)),
            Insist::Nothing => true,
        };
        error == ResultCode::CannotProvideExternal
            && of_before
            && lease.late_refusals.is_some_and(|until| now < until)
    }

    pub(super) fn refused(
        &mut self,
        id: Generation,
        error: ResultCode,
        lifetime: Lifetime,
        now: Instant,
    ) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let Some(server) = self.servers.get_mut(&lease.want.server) else {
            return;
        };
        if let Some(drop) = to_drop(lease, server, error) {
            match drop {
                Dropped::Description => server.descriptions = false,
                Dropped::Filter => {
                    // An unknown option will be unknown again; too many peers concerns this mapping only.
                    if error == ResultCode::UnsuppOption {
                        server.filters = false;
                    }
                    lease.unfiltered = true;
                }
            }
            match &mut lease.phase {
                Phase::Requesting { backoff, at, .. } => {
                    (*backoff, *at) = (Backoff::default(), now);
                }
                Phase::Bound { at, .. } => *at = Some(now + MIN_GAP),
                Phase::Releasing { .. } => {}
            }
            return;
        }
        match &lease.phase {
            // There is nothing to delete any more, which some servers call an error.
            Phase::Releasing { .. } if lease.lost && is_absence(error) => {
                self.deleted(id, Lifetime(0), now);
            }
            // Nothing was granted that could go on. It is deleted in the background, in case it was all the same.
            Phase::Releasing { .. } if lease.grant.is_none() => {
                self.abandon(id, now);
                let result = Ok(());
                self.effects.push_back(Effect::Released { id, result });
            }
            Phase::Releasing { .. } => {
                if error == ResultCode::NoResources {
                    server.quiet_until = now + hold(error, lifetime);
                }
                self.rebind(id, now);
                let result = Err(error);
                self.effects.push_back(Effect::Released { id, result });
            }
            Phase::Requesting {
                insist, purpose, ..
            } => {
                let (insist, purpose) = (*insist, *purpose);
                self.request_refused(id, insist, purpose, error, lifetime, now);
            }
            Phase::Bound { asked, .. } => {
                let asked = *asked;
                self.renewal_refused(id, asked, error, lifetime, now);
            }
        }
    }

    fn request_refused(
        &mut self,
        id: Generation,
        insist: Insist,
        purpose: Purpose,
        error: ResultCode,
        lifetime: Lifetime,
        now: Instant,
    ) {
        let leaving = self.is_leaving(id, now);
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let conflict = error == ResultCode::CannotProvideExternal;
        let address = lease.want.server;
        // AMB-16, AMB-29: the endpoint as it was, then the port on any address, or for AddAny entries whatever
        // there is.
        let weaker = match (insist, lease.want.choice) {
            (Insist::Endpoint, PortChoice::Exact) => Some(Insist::Port),
            (Insist::Endpoint | Insist::Port, PortChoice::Any) => Some(Insist::Nothing),
            (Insist::Port, PortChoice::Exact) | (Insist::Nothing, _) => None,
        };
        // What is in the way may be, or may have been, our own.
        let wait = match (leaving, purpose) {
            (Some(Leaving::Soon), _) => Some(MIN_GAP),
            (Some(Leaving::Later), Purpose::Restore) => Some(hold(error, lifetime).max(MIN_GAP)),
            (Some(Leaving::Later), Purpose::Answer) | (None, _) => None,
        };
        if conflict && let Some(wait) = wait {
            lease.ask_again(Insist::Endpoint, purpose, now + wait);
            return;
        }
        if conflict && let Some(weaker) = weaker {
            lease.late_refusals = Some(now + LATE_REFUSAL);
            lease.phase = Phase::Requesting {
                insist: weaker,
                purpose,
                backoff: Backoff::default(),
                at: now,
                mismatch: None,
            };
            return;
        }
        if purpose == Purpose::Restore {
            self.trouble(id, error);
        }
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        match purpose {
            Purpose::Answer => {
                let held = lease.grant.is_some_and(|end| end > now);
                if let Some(server) = self.servers.get_mut(&lease.want.server)
                    && !held
                {
                    let question = Question::of(&lease.want);
                    server.negative.put(question, error, lifetime, now);
                }
                self.effects.push_back(Effect::Refused {
                    id,
                    server: address,
                    result: error,
                    lifetime,
                    asked: true,
                });
                if held && !conflict {
                    self.rebind(id, now);
                } else {
                    self.forget(id, now);
                    if held {
                        self.effects.push_back(Effect::Lost { id });
                    }
                }
            }
            // What has lapsed and is refused for good will not come back.
            Purpose::Restore
                if conflict || (lease.grant.is_none() && error.class() == ResultClass::Long) =>
            {
                self.forget(id, now);
                self.effects.push_back(Effect::Lost { id });
            }
            Purpose::Restore => {
                let wait = hold(error, lifetime).max(MIN_GAP);
                if let Phase::Requesting { backoff, at, .. } = &mut lease.phase {
                    (*backoff, *at) = (Backoff::default(), now + wait);
                }
            }
        }
    }

    fn renewal_refused(
        &mut self,
        id: Generation,
        asked: bool,
        error: ResultCode,
        lifetime: Lifetime,
        now: Instant,
    ) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        if error == ResultCode::CannotProvideExternal {
            let weaker = match lease.want.choice {
                PortChoice::Exact => Insist::Port,
                PortChoice::Any => Insist::Nothing,
            };
            lease.late_refusals = Some(now + LATE_REFUSAL);
            lease.ask_again(weaker, Purpose::Restore, now);
            return;
        }
        if !asked {
            self.ignored.unmatched += 1;
            return;
        }
        self.trouble(id, error);
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let earliest = now + hold(error, lifetime).max(MIN_GAP);
        if let Phase::Bound { schedule, .. } = &lease.phase {
            let mut schedule = *schedule;
            let at = lease.next_renewal(&mut schedule, earliest, &mut self.rng);
            lease.phase = Phase::Bound {
                schedule,
                at,
                asked: false,
            };
        }
        if error == ResultCode::NoResources
            && let Some(server) = self.servers.get_mut(&lease.want.server)
        {
            let question = Question::of(&lease.want);
            server.negative.put(question, error, lifetime, now);
        }
    }

    /// Says that what was there is in danger.
    fn trouble(&mut self, id: Generation, result: ResultCode) {
        if let Some(lease) = self.leases.get(&id) {
            let server = lease.want.server;
            self.effects
                .push_back(Effect::Trouble { id, server, result });
        }
    }

    pub(super) fn ended_refused(
        &mut self,
        tuple: Tuple,
        error: ResultCode,
        lifetime: Lifetime,
        now: Instant,
    ) {
        // Also after NO_RESOURCES only this deletion waits. What is deleted here may never have been granted, and
        // some servers answer so when there is nothing to delete: silence (RFC 6887 section 11.4) would keep every
        // host waiting, again and again.
        let wait = now + hold(error, lifetime);
        if let Some(ended) = self.ended.get_mut(&tuple)
            && let Some((backoff, at)) = &mut ended.delete
        {
            (*backoff, *at) = (Backoff::default(), wait.max(now + MIN_GAP));
        }
    }

    /// The server does not speak PCP in our version (RFC 6887 section 9). It is asked again after at most half
    /// an hour.
    pub(super) fn wrong_version(
        &mut self,
        from: SocketAddr,
        speaks: Speaks,
        lifetime: Option<Lifetime>,
        epoch: Option<Epoch>,
        now: Instant,
    ) {
        let error = ResultCode::UnsuppVersion;
        let lifetime = lifetime.unwrap_or(error.error_lifetime());
        self.settle();
        let Some(server) = self.servers.get(&from) else {
            return;
        };
        let waiting = server.unanswered.clone();
        if !server.is_probed() && waiting.is_empty() {
            self.ignored.unmatched += 1;
            return;
        }
        self.found(from, speaks);
        if let Some(epoch) = epoch {
            self.observe_epoch(from, epoch, now);
        }
        self.answered(from, now);
        let elsewhere = self.fallback && speaks == Speaks::NatPmp && from.is_ipv4();
        for id in waiting.into_iter().filter(|_| !elsewhere) {
            self.refused(id, error, lifetime, now);
        }
        if let Some(server) = self.servers.get_mut(&from) {
            let any = Question {
                protocol: Protocol::Tcp,
                port: ANY_PORT,
                behalf: None,
                exact: None,
            };
            if !elsewhere {
                server.negative.put(any, error, lifetime, now);
            }
            // PCPC-083: it may have been replaced by then.
            if server.listed {
                server.probe = Some((Backoff::default(), now + hold(error, lifetime)));
            }
        }
    }
}

/// Stands for any port where a refusal concerns them all.
const ANY_PORT: ExternalPort = ExternalPort::new(1).expect("not 0");

/// How servers answer the deletion of what they do not know, instead of with success (RFC 6887 section 15).
fn is_absence(error: ResultCode) -> bool {
    matches!(error, ResultCode::NotAuthorized | ResultCode::NoResources)
}

/// An option that a request can do without.
enum Dropped {
    Description,
    Filter,
}

/// What the request carried that the error may be due to (AMB-14). An optional option is no reason to refuse a request
/// (RFC 6887 section 7.3), but dropping it costs least.
fn to_drop(lease: &Lease, server: &Server, error: ResultCode) -> Option<Dropped> {
    let described = lease.want.description.is_some() && server.descriptions;
    let filtered = lease.want.remote.is_for_upstream() && server.filters && !lease.unfiltered;
    let asked = !matches!(
        lease.phase,
        Phase::Releasing { .. } | Phase::Bound { asked: false, .. }
    );
    let option = matches!(
        error,
        ResultCode::UnsuppOption | ResultCode::MalformedOption
    );
    let filter = matches!(
        error,
        ResultCode::UnsuppOption | ResultCode::ExcessiveRemotePeers
    );
    match asked {
        true if described && option => Some(Dropped::Description),
        true if filtered && filter => Some(Dropped::Filter),
        _ => None,
    }
}
