//! One lease: its terms, its phase, its request.

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::pcp_client::Want;
use crate::types::{ExternalEndpoint, ExternalPort, Instant, InternalPort, Lifetime, Protocol};
use crate::wire::natpmp::Request;

/// What a gateway tells mappings of one client apart by.
pub(super) type Tuple = (SocketAddr, Protocol, ExternalPort);

/// RFC 6886 section 3.3: the recommended lifetime. What is wanted for longer is renewed.
const LIFETIME: Lifetime = Lifetime(7200);
/// Renewal is pointless when the lease reaches this close to the end of what is wanted.
const ROUNDING: Duration = Duration::from_secs(2);
/// Renewals are never closer together.
pub(super) const MIN_GAP: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) want: Want,
    /// What was assigned last, even if it has lapsed.
    pub(super) known: Option<ExternalEndpoint>,
    /// When what was granted ends.
    pub(super) grant: Option<Instant>,
    pub(super) phase: Phase,
    /// When it takes its place in the line; `None` while it is in there, is being asked for, or has nothing to ask.
    pub(super) due: Option<Instant>,
    /// Whether the gateway may know it.
    pub(super) sent: bool,
    /// The port that it may be known by at a gateway of another protocol, before that is granted.
    pub(super) tried: Option<ExternalPort>,
    /// Whether the gateway keeps it without an end.
    pub(super) permanent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Asked for, and somebody waits for the answer.
    Asked,
    /// Asked for again: it was there and has to come back.
    Restored,
    /// Held, and renewed from time to time.
    Held,
    /// Being deleted, and somebody waits for it.
    Releasing,
}

impl Lease {
    pub(super) fn new(want: Want, phase: Phase) -> Self {
        Self {
            want,
            known: None,
            grant: None,
            phase,
            due: None,
            sent: false,
            tried: None,
            permanent: false,
        }
    }

    pub(super) fn tuple(&self) -> Tuple {
        (self.want.server, self.want.protocol, self.want.port)
    }

    /// The external port that the gateway may know it by.
    pub(super) fn placed(&self) -> Option<ExternalPort> {
        self.tried.or(self.known.map(|external| external.port))
    }

    /// Whether it goes before others.
    pub(super) fn is_awaited(&self) -> bool {
        self.phase == Phase::Asked && !self.want.patient
    }

    /// Whether what was granted is in force.
    pub(super) fn is_granted(&self, now: Instant) -> bool {
        self.known.is_some() && self.grant.is_some_and(|end| end > now)
    }

    /// Goes on with what is granted: renewed half way to its end (RFC 6886 section 3.3).
    pub(super) fn hold(&mut self, now: Instant) {
        self.phase = Phase::Held;
        let left = self
            .grant
            .map(|end| end.saturating_duration_since(now) / 2)
            .unwrap_or_default();
        let reaches = self
            .grant
            .is_some_and(|end| end + ROUNDING >= self.want.until);
        self.due = (left >= MIN_GAP && !reaches).then(|| now + left);
    }

    /// When something is due, given whether anything can be sent.
    pub(super) fn next_event(&self, up: bool) -> Option<Instant> {
        let due = self.due.filter(|_| up);
        due.into_iter().chain(self.grant).min()
    }

    /// The request as it has to be at `now`: for what is left of the wish, at the port it had.
    pub(super) fn request(&self, now: Instant) -> Request {
        let known = self.known.map(|external| external.port);
        Request::Map {
            protocol: self.want.protocol,
            internal_port: InternalPort::new(self.want.port.get()),
            external_port: known.or(self.want.external),
            lifetime: self.lifetime(now),
        }
    }

    /// What is left of the wish, as far as it is asked for at once.
    pub(super) fn lifetime(&self, now: Instant) -> Lifetime {
        let left = self.want.until.saturating_duration_since(now).as_secs();
        Lifetime(u32::try_from(left).unwrap_or(u32::MAX).clamp(1, LIFETIME.0))
    }
}

/// The request that deletes what a port of our NAT is mapped to.
pub(super) fn delete_request(protocol: Protocol, port: ExternalPort) -> Request {
    Request::Map {
        protocol,
        internal_port: InternalPort::new(port.get()),
        external_port: None,
        lifetime: Lifetime(0),
    }
}

/// A lease that is no longer wanted, as long as the gateway may yet grant it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// When it is forgotten.
    pub(super) until: Instant,
    /// Whether it has to be deleted.
    pub(super) delete: bool,
    /// As [`Want::brief`].
    pub(super) brief: bool,
    /// The external port that the gateway may know it by; NAT-PMP deletes without.
    pub(super) external: Option<ExternalPort>,
}
