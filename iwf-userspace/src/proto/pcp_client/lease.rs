//! One lease: its terms, its phase, its requests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use sha2::{Digest as _, Sha256};

use super::renewal::{MIN_GAP, Schedule};
use super::retransmit::Backoff;
use super::server::Server;
use super::{MAX_LIFETIME, Trace, Want};
use crate::mapping::record::LeaseKey;
use crate::mapping::{MAX_LEASE, PortChoice, Via};
use crate::types::{
    ExternalEndpoint, ExternalPort, Instant, InternalPort, Lifetime, MappingNonce, Protocol,
};
use crate::wire::pcp::{Body, Filter, MapBody, PcpOption, Request};

/// What a server tells mappings apart by (RFC 6887 section 11.3): the internal address is whoever a lease is asked for
/// on behalf of, or else ours.
pub(super) type Tuple = (SocketAddr, Protocol, ExternalPort, Option<Ipv4Addr>);

/// Renewal is pointless when the lease reaches this close to the end of what is wanted: requests carry whole
/// seconds.
const ROUNDING: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) want: Want,
    pub(super) nonce: MappingNonce,
    /// What was assigned last, even if it has lapsed.
    pub(super) known: Option<ExternalEndpoint>,
    /// When what was granted ends.
    pub(super) grant: Option<Instant>,
    pub(super) phase: Phase,
    /// The server has no room for its filter; our NAT enforces it.
    pub(super) unfiltered: bool,
    /// The server has lost its state since it granted this.
    pub(super) lost: bool,
    /// Waits for its turn: what is due is sent then.
    pub(super) in_line: bool,
    pub(super) last_sent: Option<Instant>,
    /// The server may have it from what was sent before this, in an earlier life too.
    pub(super) doubtful: bool,
    /// It is an earlier life's, and that may have asked for more than it told: nothing was granted in this one.
    pub(super) inherited: bool,
    /// Until then a refusal may be one of what was insisted on before.
    pub(super) late_refusals: Option<Instant>,
    /// The lease that this one takes the place of. As long as the server may hold that, it may refuse this.
    pub(super) predecessor: Option<Tuple>,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Asked for until it is answered.
    Requesting {
        insist: Insist,
        purpose: Purpose,
        backoff: Backoff,
        /// When it is sent next.
        at: Instant,
        /// A grant for another port has come; if none for the right one comes until then, it was the answer.
        mismatch: Option<Instant>,
    },
    /// Held.
    Bound {
        schedule: Schedule,
        /// The next renewal.
        at: Option<Instant>,
        /// Whether a renewal awaits its answer.
        asked: bool,
    },
    /// Being deleted, and somebody waits for it.
    Releasing {
        backoff: Backoff,
        at: Instant,
        /// A grant has come since, so the server may have carried out a repetition after the deletion.
        again: bool,
    },
}

/// How much of the external endpoint is insisted on with PREFER_FAILURE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Insist {
    /// Address and port as they were.
    Endpoint,
    /// The port, on any address.
    Port,
    /// Only a suggestion.
    Nothing,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Somebody waits for the answer.
    Answer,
    /// Nobody does: the lease was there and has to come back.
    Restore,
}

impl Want {
    pub(super) fn tuple(&self) -> Tuple {
        (self.server, self.protocol, self.port, self.behalf)
    }
}

impl Lease {
    /// A lease to be asked for at `now`.
    pub(super) fn new(
        want: Want,
        nonce: MappingNonce,
        insist: Insist,
        purpose: Purpose,
        now: Instant,
    ) -> Self {
        Self {
            want,
            nonce,
            known: None,
            grant: None,
            phase: Phase::Requesting {
                insist,
                purpose,
                backoff: Backoff::default(),
                at: now,
                mismatch: None,
            },
            unfiltered: false,
            lost: false,
            in_line: false,
            last_sent: None,
            doubtful: false,
            inherited: false,
            late_refusals: None,
            predecessor: None,
        }
    }

    pub(super) fn tuple(&self) -> Tuple {
        self.want.tuple()
    }

    /// Until when the server may hold it: a request without an answer may have been granted all the same.
    pub(super) fn may_last_until(&self, now: Instant) -> Instant {
        let granted = self.grant.unwrap_or(now);
        if self.inherited {
            return granted.max(now + MAX_LIFETIME.duration());
        }
        if self.is_unanswered() || (self.doubtful && self.grant.is_none()) {
            let asked = self.want.until.min(now + MAX_LIFETIME.duration());
            granted.max(asked)
        } else {
            granted
        }
    }

    /// Whether the server may have it.
    pub(super) fn may_be_there(&self) -> bool {
        self.last_sent.is_some() || self.grant.is_some() || self.doubtful
    }

    /// What the server may know of it until then.
    pub(super) fn trace(&self, until: Instant) -> Trace {
        trace(self.tuple(), self.nonce, until)
    }

    /// Whether a port is insisted on that may be refused.
    pub(super) fn insists(&self) -> bool {
        match &self.phase {
            Phase::Requesting { insist, .. } => *insist != Insist::Nothing,
            Phase::Bound { asked, .. } => *asked && self.want.choice == PortChoice::Exact,
            Phase::Releasing { .. } => false,
        }
    }

    /// Whether something was sent that has not been answered.
    pub(super) fn is_unanswered(&self) -> bool {
        match &self.phase {
            Phase::Requesting { backoff, .. } | Phase::Releasing { backoff, .. } => {
                backoff.sent() > 0
            }
            Phase::Bound { asked, .. } => *asked,
        }
    }

    /// Whether what it has to send is sent at once, as somebody waits for it.
    pub(super) fn is_awaited(&self) -> bool {
        match &self.phase {
            Phase::Requesting { purpose, .. } => *purpose == Purpose::Answer && !self.want.patient,
            Phase::Releasing { .. } => true,
            Phase::Bound { .. } => false,
        }
    }

    /// Sends what is due at `at` instead.
    pub(super) fn put_off(&mut self, until: Instant) {
        match &mut self.phase {
            Phase::Requesting { at, .. } | Phase::Releasing { at, .. } => *at = until,
            Phase::Bound { at, .. } => *at = at.map(|at| at.max(until)),
        }
    }

    /// Asks again for what was there, at `at`.
    pub(super) fn ask_again(&mut self, insist: Insist, purpose: Purpose, at: Instant) {
        self.phase = Phase::Requesting {
            insist,
            purpose,
            backoff: Backoff::default(),
            at,
            mismatch: None,
        };
    }

    /// Enters the time between renewals.
    pub(super) fn bind(&mut self, now: Instant, lifetime: Duration, rng: &mut impl Rng) {
        let mut schedule = Schedule::new(now, lifetime);
        let at = self.next_renewal(&mut schedule, now, rng);
        self.phase = Phase::Bound {
            schedule,
            at,
            asked: false,
        };
    }

    /// The next moment to renew at, not before `earliest`. `None`: what is granted reaches to the end of what
    /// is wanted, or the lease is too near its end.
    pub(super) fn next_renewal(
        &self,
        schedule: &mut Schedule,
        earliest: Instant,
        rng: &mut impl Rng,
    ) -> Option<Instant> {
        if self.grant? + ROUNDING >= self.want.until {
            return None;
        }
        let gap = self.last_sent.map_or(earliest, |sent| sent + MIN_GAP);
        schedule.next(earliest.max(gap), rng)
    }

    /// When something is due, given whether anything can be sent.
    pub(super) fn next_event(&self, up: bool) -> Option<Instant> {
        let (send, wait) = match &self.phase {
            Phase::Requesting { at, mismatch, .. } => (Some(*at), *mismatch),
            Phase::Bound { at, .. } => (*at, None),
            Phase::Releasing { at, .. } => (Some(*at), None),
        };
        let send = send.filter(|_| up && !self.in_line);
        [send, wait, self.grant].into_iter().flatten().min()
    }

    /// The MAP request as it has to be at `now`.
    pub(super) fn request(&self, client: IpAddr, server: &Server, now: Instant) -> Request {
        let (insist, first) = match &self.phase {
            Phase::Requesting {
                insist, purpose, ..
            } => (*insist, *purpose == Purpose::Answer),
            Phase::Bound { .. } | Phase::Releasing { .. } => match self.want.choice {
                PortChoice::Exact => (Insist::Endpoint, false),
                PortChoice::Any => (Insist::Nothing, false),
            },
        };
        let known = self.known.filter(|_| insist != Insist::Port);
        let port = known.map(|e| e.port).or(self.want.external);
        let addr = known.map_or(Ipv4Addr::UNSPECIFIED, |e| e.addr);
        let mut options: Vec<_> = third_party(self.want.behalf).collect();
        if insist != Insist::Nothing && port.is_some() {
            options.push(PcpOption::PreferFailure);
        }
        if self.want.remote.is_for_upstream() && server.filters && !self.unfiltered {
            // Filters add up, so a mapping that may exist gets them cleared first (AMB-34).
            if self.known.is_some() {
                options.push(PcpOption::Filter(Filter::CLEAR));
            }
            let prefixes = self.want.remote.prefixes();
            options.extend(prefixes.into_iter().map(|prefix| {
                PcpOption::Filter(Filter {
                    // RFC 6887 section 13.3: lengths count from the first bit of the mapped IPv6 address.
                    prefix_len: prefix.prefix_len().saturating_add(96),
                    remote_port: prefix.port(),
                    remote_addr: IpAddr::V4(prefix.addr()),
                })
            }));
        }
        if let Some(text) = self
            .want
            .description
            .clone()
            .filter(|_| server.descriptions)
        {
            options.push(PcpOption::Description(text));
        }
        Request {
            lifetime: if first {
                self.want.lifetime
            } else {
                self.remaining(now)
            },
            client,
            body: map_body(self.nonce, self.want.protocol, self.want.port, port, addr),
            options,
        }
    }

    /// IWF-075: what is left of the wish, in whole seconds, at most [`MAX_LEASE`]; never 0, which would delete.
    fn remaining(&self, now: Instant) -> Lifetime {
        let left = self.want.until.saturating_duration_since(now).as_secs();
        Lifetime(
            u32::try_from(left)
                .unwrap_or(u32::MAX)
                .clamp(1, MAX_LEASE.0),
        )
    }
}

/// A lease that is no longer wanted, as long as the server may know it or may yet grant it.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) nonce: MappingNonce,
    /// When it is forgotten.
    pub(super) until: Instant,
    /// The deletion under way and when it is sent next.
    pub(super) delete: Option<(Backoff, Instant)>,
    /// A grant has come since it is being deleted: once confirmed, it is deleted again.
    pub(super) again: bool,
    /// Waits for its turn.
    pub(super) in_line: bool,
    /// As [`Want::brief`].
    pub(super) brief: bool,
}

/// The nonce of a mapping that a server is to know by another internal endpoint: from the one that it has now, without
/// anything else that would have to be stored first, and back to it on the way back. To whoever does not know the one, the
/// other says nothing. All addresses of the server come to the same (RFC 7488 section 3); another server gets a nonce of its
/// own (RFC 6887 section 11.2).
pub(super) fn moved(nonce: MappingNonce, from: Tuple, to: Tuple) -> MappingNonce {
    let mask = |(_, protocol, port, behalf): Tuple| {
        let mut hash = Sha256::new();
        hash.update([protocol.number()]);
        hash.update(port.get().to_be_bytes());
        hash.update(behalf.map_or([0; 4], |addr| addr.octets()));
        hash.finalize()
    };
    let mut moved = nonce;
    let masks = mask(from).into_iter().zip(mask(to));
    for (octet, (off, on)) in moved.0.iter_mut().zip(masks) {
        *octet ^= off ^ on;
    }
    moved
}

/// What a server may know of a lease, in PCP.
pub(super) fn trace(tuple: Tuple, nonce: MappingNonce, until: Instant) -> Trace {
    Trace {
        key: key_of(tuple),
        via: Via::Pcp,
        nonce,
        until,
    }
}

pub(super) fn key_of((server, protocol, port, behalf): Tuple) -> LeaseKey {
    LeaseKey {
        server,
        protocol,
        port,
        behalf,
    }
}

impl Ended {
    pub(super) fn deleting(lease: &Lease, until: Instant, now: Instant) -> Self {
        Self {
            nonce: lease.nonce,
            until,
            delete: Some((Backoff::default(), now)),
            again: false,
            in_line: false,
            brief: lease.want.brief,
        }
    }

    /// When something is due, given whether anything can be sent.
    pub(super) fn next_event(&self, up: bool) -> Instant {
        let send = self.delete.as_ref().map(|(_, at)| *at);
        let send = send.filter(|_| up && !self.in_line);
        send.map_or(self.until, |at| at.min(self.until))
    }
}

/// The request that deletes a lease: nothing suggested, no options but whom it was for (erratum 3621, IWF-063).
pub(super) fn delete_request(
    client: IpAddr,
    nonce: MappingNonce,
    (_, protocol, port, behalf): Tuple,
) -> Request {
    Request {
        lifetime: Lifetime(0),
        client,
        body: map_body(nonce, protocol, port, None, Ipv4Addr::UNSPECIFIED),
        options: third_party(behalf).collect(),
    }
}

fn third_party(behalf: Option<Ipv4Addr>) -> impl Iterator<Item = PcpOption> {
    let named = behalf.map(|addr| PcpOption::ThirdParty(IpAddr::V4(addr)));
    named.into_iter()
}

fn map_body(
    nonce: MappingNonce,
    protocol: Protocol,
    port: ExternalPort,
    external: Option<ExternalPort>,
    addr: Ipv4Addr,
) -> Body {
    Body::Map(MapBody {
        nonce,
        protocol: protocol.number(),
        internal_port: InternalPort::new(port.get()),
        external_port: external,
        external_addr: IpAddr::V4(addr),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_nonce_is_another_one_and_comes_back() {
        let server = |last| SocketAddr::from(([192, 0, 2, last], 5351));
        let tuple = |last, port, behalf: Option<u8>| {
            let behalf = behalf.map(|host| Ipv4Addr::new(192, 168, 1, host));
            let port = ExternalPort::new(port).expect("not 0");
            (server(last), Protocol::Tcp, port, behalf)
        };
        let nonce = MappingNonce([7; 12]);
        let (here, there) = (tuple(1, 2007, None), tuple(1, 2007, Some(23)));
        assert_eq!(moved(nonce, here, here), nonce);
        let other = moved(nonce, here, there);
        assert_eq!(moved(other, there, here), nonce);
        assert_eq!(moved(nonce, tuple(2, 2007, None), there), other);
        let all = [
            other,
            moved(nonce, here, tuple(1, 2008, None)),
            moved(nonce, here, tuple(1, 2007, Some(24))),
        ];
        let different: std::collections::BTreeSet<_> =
            all.iter().chain([&nonce]).map(|n| n.0).collect();
        assert_eq!(different.len(), 4);
    }
}
