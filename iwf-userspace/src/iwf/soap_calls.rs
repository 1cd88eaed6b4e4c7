//! Calls of control points: what can be answered at once, and what begins a job.

use std::net::Ipv4Addr;

use super::job::Origin;
use super::servers::UNDECIDED;
use super::{AdminCommand, Effect, Iwf, Mode, RequestId, variables};
use crate::mapping::Owner;
use crate::mapping::policy::{Party, PolicyError, Rights};
use crate::proto::igd::{self, Action, EntryKey, Operation, Refusal};
use crate::proto::pcp_client::Liveness;
use crate::types::caller::{Caller, Mac, Station};
use crate::types::{ExternalPort, Generation, Instant, Protocol, RemotePeer};
use crate::wire::soap::{self, ActionResult, UpnpError};

/// Calls that wait for a job on their mapping to end; more are refused.
const MAX_DEFERRED: usize = 64;

/// A call that has not been answered.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) request: RequestId,
    /// The caller's IPv4 address.
    pub(super) caller: Ipv4Addr,
    /// Its MAC address, if it is known.
    pub(super) mac: Option<Mac>,
    /// What it may besides what everybody may.
    pub(super) rights: Rights,
    /// Interface of the link that it calls on, if it is known.
    pub(super) link: Option<u32>,
    pub(super) call: soap::Call,
    /// When it is answered at the latest.
    pub(super) deadline: Instant,
}

impl Call {
    pub(super) fn new(
        request: RequestId,
        host: &Caller,
        rights: Rights,
        call: soap::Call,
        deadline: Instant,
    ) -> Self {
        let named = call.arg("NewInternalClient");
        let named = named.and_then(|addr| addr.trim().parse().ok());
        Self {
            request,
            caller: host.v4(named),
            mac: host.mac,
            rights,
            link: host.link,
            call,
            deadline,
        }
    }

    /// The host that calls, whatever address it has now.
    pub(super) fn station(&self) -> Station {
        Station::new(self.mac, self.caller.into())
    }

    /// Who asks.
    pub(super) const fn party(&self) -> Party {
        Party {
            addr: self.caller,
            rights: self.rights,
            link: self.link,
        }
    }
}

impl Iwf {
    /// Answers a call, or sees to it that it will be answered.
    pub(super) fn dispatch(&mut self, call: Call, now: Instant) {
        let action = match igd::parse(&call.call, call.caller) {
            Ok(action) => action,
            Err(error) => return self.reply(call.request, Err(error)),
        };
        match action {
            // Within seconds it is known who has to agree.
            Action::Add(_) if self.is_undecided() => self.defer(UNDECIDED, call),
            Action::Add(new) => self.add(call, new, now),
            Action::Delete(key) => self.delete(call, key, now),
            Action::DeleteEither { remote, port } => self.delete_either(call, remote, port, now),
            Action::GetSpecific(key) => self.get_specific(call, key, now),
            Action::GetExternalIpAddress => self.get_external_address(call, now),
            Action::GetGeneric { index } => {
                let seen = self.seen_by(call.party());
                let entry = igd::generic_entry(&self.table, seen, index, now);
                let result = entry.ok_or(UpnpError::SPECIFIED_ARRAY_INDEX_INVALID);
                self.reply(call.request, result);
            }
            Action::DeleteRange(range) => self.delete_range(call, &range, now),
            Action::List { range, limit } => self.list(&call, &range, limit, now),
            Action::Query { service, variable } => {
                let value = self.variable(service, variable, now);
                let result = value.ok_or(UpnpError::INVALID_VAR);
                let result = result.map(|value| vec![("return", value)]);
                self.reply(call.request, result);
            }
            Action::SetConnectionType => self.reply(call.request, Err(UpnpError::READ_ONLY)),
            Action::ForceTermination => {
                self.reply(call.request, Err(UpnpError::ACTION_NOT_AUTHORIZED));
            }
            Action::RequestConnection => {
                let result = self.request_connection();
                self.reply(call.request, result);
            }
            Action::GetConnectionTypeInfo => self.reply(
                call.request,
                Ok(vec![
                    ("NewConnectionType", "IP_Routed".to_owned()),
                    ("NewPossibleConnectionTypes", "IP_Routed".to_owned()),
                ]),
            ),
            Action::GetStatusInfo => {
                let result = Ok(self.status_info(now));
                self.reply(call.request, result);
            }
            Action::GetNatRsipStatus => self.reply(
                call.request,
                Ok(vec![
                    ("NewRSIPAvailable", "0".to_owned()),
                    ("NewNATEnabled", "1".to_owned()),
                ]),
            ),
            Action::GetCommonLinkProperties => {
                let result = Ok(igd::common_link_properties(&self.link));
                self.reply(call.request, result);
            }
            Action::GetTotal(which) => {
                let result = Ok(vec![igd::total(&self.link, which)]);
                self.reply(call.request, result);
            }
            Action::GetMaximumActiveConnections => {
                let number = variables::MAX_CONNECTIONS.to_string();
                self.reply(
                    call.request,
                    Ok(vec![("NewMaximumActiveConnections", number)]),
                );
            }
            Action::GetActiveConnection { index } => {
                let result = self.active_connection(index);
                self.reply(call.request, result);
            }
            Action::GetDefaultConnectionService => {
                let service = self.settings.default_connection_service.clone();
                let result = Ok(vec![("NewDefaultConnectionService", service)]);
                self.reply(call.request, result);
            }
            Action::SetDefaultConnectionService { service } => {
                // There is one connection service, so this can only confirm it, in the version of either tree.
                let any = |name: &str| name.replace("Device:2,", "Device:1,");
                let same = any(&service) == any(&self.settings.default_connection_service);
                let result = if same {
                    Ok(Vec::new())
                } else {
                    Err(UpnpError::ACTION_NOT_AUTHORIZED)
                };
                self.reply(call.request, result);
            }
        }
    }

    /// Answers a call.
    pub(super) fn reply(&mut self, request: RequestId, result: ActionResult) {
        self.effects.push_back(Effect::Reply { request, result });
    }

    /// Answers a call with an error.
    pub(super) fn refuse(&mut self, call: &Call, operation: Operation, refusal: Refusal) {
        self.explain(call.request, refusal);
        let version_1 = igd::is_version_1(&call.call);
        let error = igd::upnp_error(refusal, operation, version_1);
        self.reply(call.request, Err(error));
    }

    /// Lets a call wait until the job on that mapping has ended.
    pub(super) fn defer(&mut self, generation: Generation, call: Call) {
        if self.deferred.len() >= MAX_DEFERRED {
            self.reply(call.request, Err(UpnpError::ACTION_FAILED));
        } else {
            self.deferred.push((generation, call));
        }
    }

    /// Dispatches the calls that waited for that mapping.
    pub(super) fn resume(&mut self, generation: Generation, now: Instant) {
        let (ready, waiting) = std::mem::take(&mut self.deferred)
            .into_iter()
            .partition(|(of, _)| *of == generation);
        self.deferred = waiting;
        let ready: Vec<(Generation, Call)> = ready;
        for (_, call) in ready {
            if call.deadline <= now {
                self.reply(call.request, Err(UpnpError::ACTION_FAILED));
            } else {
                self.dispatch(call, now);
            }
        }
    }

    /// Answers the calls that have waited too long.
    pub(super) fn end_deferred(&mut self, now: Instant) {
        let (late, waiting) = std::mem::take(&mut self.deferred)
            .into_iter()
            .partition(|(_, call)| call.deadline <= now);
        self.deferred = waiting;
        let late: Vec<(Generation, Call)> = late;
        for (_, call) in late {
            self.reply(call.request, Err(UpnpError::ACTION_FAILED));
        }
    }

    /// What a caller may see of the table.
    pub(super) fn seen_by(&self, caller: Party) -> igd::Seen<'_> {
        igd::Seen {
            policy: &self.settings.policy,
            lan: &self.lan,
            caller,
        }
    }

    /// Checks common to the actions that name one mapping. The mapping, if the caller may have it.
    fn find(&self, call: &Call, key: &EntryKey) -> Result<Option<Generation>, Refusal> {
        let policy = &self.settings.policy;
        let port = match ExternalPort::new(key.port) {
            Some(port) if key.port >= policy.lowest_port(call.rights) => port,
            Some(_) | None => return Err(Refusal::Policy(PolicyError::PortTooLow)),
        };
        let Some(mapping) = self.table.by_external(key.protocol, port) else {
            return Ok(None);
        };
        if !policy.may_manage(&self.lan, call.party(), mapping.internal, key.port) {
            return Err(Refusal::NotAuthorized);
        }
        // What the configuration says beyond one host is shown as everybody: RemoteHost cannot say it.
        let shown = match mapping.remote {
            RemotePeer::List(_) | RemotePeer::SentToHost | RemotePeer::SentToEndpoint => {
                RemotePeer::Any
            }
            RemotePeer::Any | RemotePeer::Host(_) => mapping.remote,
        };
        if shown != key.remote {
            return Err(Refusal::Absent);
        }
        Ok(Some(mapping.generation))
    }

    fn get_specific(&mut self, call: Call, key: EntryKey, now: Instant) {
        match self.find(&call, &key) {
            Ok(Some(generation)) if self.jobs.contains_key(&generation) => {
                self.defer(generation, call);
            }
            Ok(Some(generation)) => {
                let entry = self.table.get(generation);
                let entry = entry.map(|mapping| igd::specific_entry(mapping, now));
                let result = entry.ok_or(UpnpError::NO_SUCH_ENTRY_IN_ARRAY);
                self.reply(call.request, result);
            }
            Ok(None) => match self.may_ask_for(&call, &key) {
                Ok(()) => self.probe(call, &key, now),
                Err(refusal) => self.refuse(&call, Operation::Read, refusal),
            },
            Err(refusal) => self.refuse(&call, Operation::Read, refusal),
        }
    }

    fn delete(&mut self, call: Call, key: EntryKey, now: Instant) {
        let port = ExternalPort::new(key.port);
        let held = port.and_then(|port| self.table.by_external(key.protocol, port));
        if held.is_some_and(|mapping| mapping.owner == Owner::Configuration) {
            return self.refuse(&call, Operation::Delete, Refusal::NotAuthorized);
        }
        match self.find(&call, &key) {
            Ok(Some(generation)) if self.jobs.contains_key(&generation) => {
                self.defer(generation, call);
            }
            Ok(Some(generation)) => self.remove(generation, Origin::ControlPoint(call), now),
            Ok(None) => self.refuse(&call, Operation::Delete, Refusal::Absent),
            Err(refusal) => self.refuse(&call, Operation::Delete, refusal),
        }
    }

    /// Deletes what is the caller's own at that port, of TCP first. Who has nothing there hears what is wrong with the
    /// protocol.
    fn delete_either(&mut self, call: Call, remote: RemotePeer, port: u16, now: Instant) {
        let of = |protocol| EntryKey {
            remote,
            port,
            protocol,
        };
        let is_own = |key: &EntryKey| {
            let found = self.find(&call, key).ok().flatten();
            let mapping = found.and_then(|generation| self.table.get(generation));
            mapping.is_some_and(|mapping| {
                mapping.internal.addr == call.caller && mapping.owner != Owner::Configuration
            })
        };
        let own = [Protocol::Tcp, Protocol::Udp]
            .map(of)
            .into_iter()
            .find(is_own);
        match own {
            Some(key) => self.delete(call, key, now),
            None => self.reply(call.request, Err(UpnpError::ARGUMENT_VALUE_OUT_OF_RANGE)),
        }
    }

    /// Carries out a request of the router's owner.
    pub(super) fn admin(&mut self, request: RequestId, command: AdminCommand, now: Instant) {
        let (protocol, external_port) = match command {
            AdminCommand::Delete {
                protocol,
                external_port,
            } => (protocol, external_port),
            AdminCommand::Access(command) => {
                return self.protection_command(request, command, now);
            }
        };
        let port = ExternalPort::new(external_port);
        let mapping = port.and_then(|port| self.table.by_external(protocol, port));
        let owner = mapping.map(|m| m.owner);
        let problem = match mapping.map(|m| m.generation) {
            Some(_) if owner == Some(Owner::Configuration) => {
                "the configuration states that mapping; remove it there and reload".to_owned()
            }
            None => format!("no mapping has {protocol} port {external_port}"),
            Some(generation) if self.jobs.contains_key(&generation) => {
                "the mapping is being changed right now; try again in a moment".to_owned()
            }
            Some(generation) => return self.remove(generation, Origin::Admin(request), now),
        };
        self.effects.push_back(Effect::AdminReply {
            request,
            result: Err(problem),
        });
    }

    /// IGD-027: the connection comes up by itself, so there is only to say how it stands.
    fn request_connection(&self) -> ActionResult {
        match self.connection_status() {
            "Connected" => Ok(Vec::new()),
            "Connecting" => Err(UpnpError::CONNECTION_SETUP_IN_PROGRESS),
            _ => Err(UpnpError::CONNECTION_SETUP_FAILED),
        }
    }

    /// The device and the service of a connection, which DefaultConnectionService names both.
    fn active_connection(&self, index: u16) -> ActionResult {
        let service = self.settings.default_connection_service.split_once(',');
        let (container, id) = service
            .filter(|_| index < self.active_connections())
            .ok_or(UpnpError::SPECIFIED_ARRAY_INDEX_INVALID)?;
        Ok(vec![
            ("NewActiveConnDeviceContainer", container.to_owned()),
            ("NewActiveConnectionServiceID", id.to_owned()),
        ])
    }

    /// Seconds since the WAN came up.
    pub(super) fn uptime(&self, now: Instant) -> String {
        let uptime = self
            .connected_since
            .map_or(0, |since| now.saturating_duration_since(since).as_secs());
        (uptime % (1 << 32)).to_string()
    }

    fn status_info(&self, now: Instant) -> Vec<(&'static str, String)> {
        vec![
            ("NewConnectionStatus", self.connection_status().to_owned()),
            ("NewLastConnectionError", "ERROR_NONE".to_owned()),
            ("NewUptime", self.uptime(now)),
        ]
    }

    /// ConnectionStatus: connected while the WAN is up and a server that is needed answers (IWF-019).
    pub(super) fn connection_status(&self) -> &'static str {
        match self.mode {
            Mode::Down => "Disconnected",
            Mode::Local | Mode::NoServer => "Connected",
            Mode::Cascaded(server) | Mode::NoNat(server) => match self.client.liveness(server) {
                Some(Liveness::Answering) => "Connected",
                Some(Liveness::Unknown) => "Connecting",
                Some(Liveness::Silent) | None => "Disconnected",
            },
        }
    }
}
