//! Is a port free at the server? Asked for GetSpecificPortMappingEntry when nothing is known here
//! (RFC 6970 section 5.7, AMB-05, IWF-053, IWF-054).

use std::time::Duration;

use super::Iwf;
use super::soap_calls::Call;
use crate::mapping::PortChoice;
use crate::proto::igd::{EntryKey, Operation, Refusal};
use crate::proto::pcp_client::{self, Want};
use crate::types::caller::Station;
use crate::types::{
    ExternalPort, Generation, Instant, InternalPort, Lifetime, Protocol, RemotePeer,
};

/// RFC 6970 section 5.7: a short lifetime, for example this.
const LIFETIME: Lifetime = Lifetime(60);
/// How long a granted probe waits for the AddPortMapping that usually follows, before it is deleted.
const LINGER: Duration = Duration::from_secs(10);

/// A lease that nobody wants but that tells whether a port is free.
#[derive(Debug)]
pub(super) struct Probe {
    caller: Station,
    protocol: Protocol,
    external: ExternalPort,
    port: ExternalPort,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The call it is for waits until then.
    Asking(Call, Instant),
    /// Granted; deleted then unless it is taken over.
    Lingering(Instant),
}

impl Probe {
    pub(super) fn next_event(&self) -> Instant {
        match &self.state {
            State::Asking(_, until) | State::Lingering(until) => *until,
        }
    }

    pub(super) fn holds(&self, protocol: Protocol, port: ExternalPort) -> bool {
        self.protocol == protocol && self.port == port
    }
}

impl Iwf {
    /// Asks the server. Whatever it says the entry does not exist; what matters is that a port it grants can
    /// be had by the AddPortMapping that follows.
    pub(super) fn probe(&mut self, call: Call, key: &EntryKey, now: Instant) {
        let server = match self.server_to_ask() {
            Ok(Some(server)) => server,
            Ok(None) | Err(Refusal::NoServer) => {
                return self.refuse(&call, Operation::Read, Refusal::Absent);
            }
            Err(refusal) => return self.refuse(&call, Operation::Read, refusal),
        };
        // Whose port it would be is not known, and the server keeps one mapping for each.
        if !self.is_translating() {
            return self.refuse(&call, Operation::Read, Refusal::Absent);
        }
        let limits = *self.table.limits();
        let caller = call.station();
        let own = self.probes.values().filter(|p| p.caller == caller);
        let crowded = own.count() >= limits.probes_per_host || self.probes.len() >= limits.probes;
        let known = self
            .probes
            .values()
            .any(|p| p.protocol == key.protocol && p.external.get() == key.port);
        let internal = InternalPort::new(key.port);
        let (Some(external), Some(internal)) = (ExternalPort::new(key.port), internal) else {
            return self.refuse(&call, Operation::Read, Refusal::Absent);
        };
        if crowded || known || !self.may_ask(&call, now) {
            return self.refuse(&call, Operation::Read, Refusal::Absent);
        }
        let port = self.upstream_port(key.protocol, Some(external), internal, now);
        let (Some(port), Some(id)) = (port, self.new_generation()) else {
            return self.refuse(&call, Operation::Read, Refusal::Absent);
        };
        let until = self.patience(call.deadline, now);
        let probe = Probe {
            caller,
            protocol: key.protocol,
            external,
            port,
            state: State::Asking(call, until),
        };
        self.probes.insert(id, probe);
        let want = Want {
            id,
            server,
            protocol: key.protocol,
            behalf: None,
            port,
            external: Some(external),
            choice: PortChoice::Exact,
            remote: RemotePeer::Any,
            description: None,
            patient: false,
            brief: true,
            lifetime: LIFETIME,
            until: now + LIFETIME.duration(),
        };
        self.tell(pcp_client::Input::Request(want), now);
    }

    /// Hands a probe over to the mapping it has cleared the way for: its name and its port of our NAT.
    pub(super) fn take_probe(
        &mut self,
        call: &Call,
        protocol: Protocol,
        external: Option<ExternalPort>,
        now: Instant,
    ) -> Option<(Generation, ExternalPort)> {
        let found = self
            .probes
            .iter()
            .find(|(_, probe)| probe.protocol == protocol && Some(probe.external) == external);
        let id = *found?.0;
        let probe = self.probes.remove(&id)?;
        if let State::Asking(waiting, _) = &probe.state {
            self.refuse(waiting, Operation::Read, Refusal::Absent);
        }
        if probe.caller == call.station() {
            return Some((id, probe.port));
        }
        // Another host's curiosity is in nobody's way.
        self.tell(pcp_client::Input::Abandon(id), now);
        None
    }

    /// Whether the grant was for a probe.
    pub(super) fn probe_granted(&mut self, id: Generation, now: Instant) -> bool {
        let Some(probe) = self.probes.get_mut(&id) else {
            return false;
        };
        let lingering = State::Lingering(now + LINGER);
        if let State::Asking(call, _) = std::mem::replace(&mut probe.state, lingering) {
            self.refuse(&call, Operation::Read, Refusal::Absent);
        }
        true
    }

    /// Whether the refusal, or the end, was a probe's.
    pub(super) fn probe_refused(&mut self, id: Generation, now: Instant) -> bool {
        let Some(probe) = self.probes.remove(&id) else {
            return false;
        };
        if let State::Asking(call, _) = &probe.state {
            self.refuse(call, Operation::Read, Refusal::Absent);
        }
        self.tell(pcp_client::Input::Abandon(id), now);
        true
    }

    /// Ends probes that wait no longer.
    pub(super) fn end_probes(&mut self, now: Instant) {
        let due: Vec<_> = self
            .probes
            .iter()
            .filter(|(_, probe)| probe.next_event() <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(probe) = self.probes.remove(&id)
                && let State::Asking(call, _) = &probe.state
            {
                self.refuse(call, Operation::Read, Refusal::Unreachable);
            }
            self.tell(pcp_client::Input::Abandon(id), now);
        }
    }

    /// Ends every probe because the server they ask is no longer the one to ask.
    pub(super) fn drop_probes(&mut self, now: Instant) {
        let ids: Vec<_> = self.probes.keys().copied().collect();
        for id in ids {
            self.probe_refused(id, now);
        }
    }
}
