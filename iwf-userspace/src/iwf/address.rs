//! GetExternalIPAddress: from the caller's own mappings, else from any grant, else from a short MAP
//! (RFC 6970 section 4.2, RFC 6887 section 11.6, IWF-052).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::soap_calls::Call;
use super::{Iwf, Mode, Notice, Translation};
use crate::mapping::PortChoice;
use crate::proto::igd::Refusal;
use crate::proto::pcp_client::{self, Liveness, Want};
use crate::types::{
    ExternalEndpoint, ExternalPort, Generation, Instant, InternalPort, Lifetime, Protocol,
    RemotePeer,
};

/// RFC 6887 section 11.6: the discard port, which nobody serves.
const DISCARD: u16 = 9;
/// Where the second try begins: some servers map no port below 1024.
const SECOND_TRY: u16 = 9 + 49_152;
/// Short, but not shorter than what servers grant at least.
const LIFETIME: Lifetime = Lifetime(120);
/// How long a caller waits for the address.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long no new attempt is made after one that failed.
const PAUSE: Duration = Duration::from_secs(60);
/// RFC 6333 section 5.7: this router's own address in a DS-Lite tunnel.
const B4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
/// Callers that wait at once; more get the empty answer.
const MAX_WAITING: usize = 64;

/// The search for the external address.
#[derive(Debug, Default)]
pub(super) struct AddressQuery {
    lease: Option<(Generation, ExternalPort)>,
    second_try: bool,
    /// Whether nobody but subscribers wanted it when it was asked for.
    patient: bool,
    not_before: Instant,
    /// When it is asked for again for the sake of subscribers.
    told_again: Instant,
    waiting: Vec<(Call, Instant)>,
}

impl AddressQuery {
    /// The port of our NAT it uses.
    pub(super) fn port(&self) -> Option<(Protocol, ExternalPort)> {
        self.lease.map(|(_, port)| (Protocol::Udp, port))
    }

    pub(super) fn next_event(&self) -> Option<Instant> {
        self.waiting.iter().map(|(_, until)| *until).min()
    }
}

impl Iwf {
    /// Answers with the address, or with nothing if it cannot be known now.
    pub(super) fn get_external_address(&mut self, call: Call, now: Instant) {
        let server = match self.mode {
            Mode::Local => {
                let addr = self.external_for(call.caller);
                return self.reply_address(&call, addr);
            }
            Mode::Down | Mode::NoServer => return self.reply_address(&call, None),
            Mode::Cascaded(server) | Mode::NoNat(server) => server,
        };
        let own = self
            .table
            .at_host(call.caller)
            .filter(|m| m.is_visible())
            .filter_map(|m| m.claim.addr)
            .last();
        if let Some(addr) = own.or(self.external) {
            return self.reply_address(&call, Some(addr));
        }
        let idle = self.address.lease.is_none();
        let full = self.address.waiting.len() >= MAX_WAITING;
        if full || (idle && now < self.address.not_before) {
            return self.reply_address(&call, None);
        }
        let until = call.deadline.min(now + PATIENCE);
        self.address.waiting.push((call, until));
        if idle {
            self.address.second_try = false;
            self.address.patient = false;
            self.ask_address(server, ExternalPort::new(DISCARD), now);
        }
    }

    /// Subscribers are told the address as soon as it can be known: while there are any, and it is not known, it is asked for
    /// in its turn.
    pub(super) fn ask_for_subscribers(&mut self, now: Instant) {
        let is_open = self.external.is_none() && self.address.lease.is_none();
        let is_wanted = is_open && !self.gena.is_idle() && now >= self.address.told_again;
        let server = self.mode.server().filter(|_| is_wanted);
        let Some(server) = server else {
            return;
        };
        if self.client.liveness(server) != Some(Liveness::Answering) {
            return;
        }
        self.address.told_again = now + PAUSE;
        self.address.second_try = false;
        self.address.patient = true;
        self.ask_address(server, ExternalPort::new(DISCARD), now);
        self.pump(now);
    }

    fn ask_address(&mut self, server: SocketAddr, port: Option<ExternalPort>, now: Instant) {
        let Ok(behalf) = self.own_behalf(server) else {
            return self.answer_waiting(None);
        };
        let (Some(port), Some(id)) = (port, self.new_generation()) else {
            return self.answer_waiting(None);
        };
        self.address.lease = Some((id, port));
        let want = Want {
            id,
            server,
            protocol: Protocol::Udp,
            behalf,
            port,
            external: None,
            choice: PortChoice::Any,
            remote: RemotePeer::Any,
            description: None,
            patient: self.address.patient,
            brief: true,
            lifetime: LIFETIME,
            until: now + LIFETIME.duration(),
        };
        self.tell(pcp_client::Input::Request(want), now);
    }

    /// How a server is told that something is for this router itself: it sees our IPv4 address, or has to be told it
    /// (DSL-008).
    fn own_behalf(&self, server: SocketAddr) -> Result<Option<Ipv4Addr>, Refusal> {
        if server.is_ipv4() {
            return Ok(None);
        }
        if !self.settings.third_party {
            return Err(Refusal::NotAuthorized);
        }
        match self.translation() {
            Translation::DsLite => Ok(Some(B4)),
            Translation::Here | Translation::Routed => {
                self.wan.address.map(Some).ok_or(Refusal::Unreachable)
            }
        }
    }

    /// Whether the grant was for the address. It is left to run out.
    pub(super) fn address_granted(
        &mut self,
        id: Generation,
        external: ExternalEndpoint,
        _now: Instant,
    ) -> bool {
        if self.address.lease.is_none_or(|(lease, _)| lease != id) {
            return false;
        }
        self.learn_address(external.addr);
        true
    }

    /// Whether the refusal was of the address. Tries once more from a port any server maps.
    pub(super) fn address_refused(&mut self, id: Generation, now: Instant) -> bool {
        if self.address.lease.is_none_or(|(lease, _)| lease != id) {
            return false;
        }
        self.address.lease = None;
        if !self.address.second_try
            && let Some(server) = self.mode.server()
        {
            self.address.second_try = true;
            let internal = InternalPort::new(SECOND_TRY);
            let port = internal
                .and_then(|internal| self.upstream_port(Protocol::Udp, None, internal, now));
            self.ask_address(server, port, now);
        } else {
            self.address.not_before = now + PAUSE;
            self.answer_waiting(None);
        }
        true
    }

    /// Whether it was the address' lease that has run out.
    pub(super) fn address_lost(&mut self, id: Generation) -> bool {
        if self.address.lease.is_none_or(|(lease, _)| lease != id) {
            return false;
        }
        self.address.lease = None;
        self.answer_waiting(None);
        true
    }

    /// Answers callers that have waited long enough; when nobody is left the search ends.
    pub(super) fn end_address_query(&mut self, now: Instant) {
        if self.address.next_event().is_none_or(|at| at > now) {
            return;
        }
        let (late, waiting) = std::mem::take(&mut self.address.waiting)
            .into_iter()
            .partition(|(_, until)| *until <= now);
        self.address.waiting = waiting;
        let late: Vec<(Call, Instant)> = late;
        for (call, _) in late {
            self.reply_address(&call, None);
        }
        if self.address.waiting.is_empty() {
            self.drop_address_query(now);
            self.address.not_before = now + PAUSE;
        }
    }

    /// Ends the search because the server is no longer the one to ask, or does not answer.
    pub(super) fn drop_address_query(&mut self, now: Instant) {
        if let Some((id, _)) = self.address.lease.take() {
            self.tell(pcp_client::Input::Abandon(id), now);
        }
        self.address.not_before = now;
        self.address.told_again = now;
        self.answer_waiting(None);
    }

    /// Keeps the device-wide external address. Whoever waits for it is answered before the mapping is whose grant told it:
    /// control points that ask for both at once expect the answers in that order.
    pub(super) fn learn_address(&mut self, addr: Ipv4Addr) {
        self.answer_waiting(Some(addr));
        if self.external != Some(addr) {
            let before = self.external.replace(addr);
            self.address_replaced(before);
            self.notify(Notice::ExternalAddress(Some(addr)));
        }
    }

    fn answer_waiting(&mut self, addr: Option<Ipv4Addr>) {
        for (call, _) in std::mem::take(&mut self.address.waiting) {
            self.reply_address(&call, addr);
        }
    }

    fn reply_address(&mut self, call: &Call, addr: Option<Ipv4Addr>) {
        let text = addr.map(|addr| addr.to_string()).unwrap_or_default();
        self.reply(call.request, Ok(vec![("NewExternalIPAddress", text)]));
    }
}
