//! AddPortMapping and AddAnyPortMapping.

use std::net::SocketAddr;
use std::time::Duration;

use super::job::{Job, Kind, Origin};
use super::policy::Asker;
use super::settings::SOAP_DEADLINE;
use super::soap_calls::Call;
use super::{Iwf, Mode};
use crate::mapping::policy::Quota;
use crate::mapping::ports;
use crate::mapping::rules::{PortRange, in_ranges};
use crate::mapping::table::TableError;
use crate::mapping::{Claim, MAX_LEASE, Mapping, Owner, PortChoice, State, untranslated};
use crate::proto::igd::{NewMapping, Operation, Refusal};
use crate::proto::pcp_client::{self, Liveness, Want};
use crate::types::{ExternalEndpoint, ExternalPort, Generation, Instant, Lifetime};

/// How long a server that is known to be silent is waited for: two transmissions and their answers.
const SILENT_PATIENCE: Duration = Duration::from_secs(10);

/// Where a mapping goes.
enum Place {
    /// A new one, at this external port or any.
    New(Option<ExternalPort>),
    /// The same control point's mapping, which is overwritten.
    Same(Generation),
    /// Something is under way there.
    Busy(Generation),
}

impl Iwf {
    /// Makes a mapping, or overwrites one (igd-service sections 3.2 and 3.3).
    pub(super) fn add(&mut self, call: Call, mut new: NewMapping, now: Instant) {
        let place = self
            .admit(&(&call).into(), &mut new)
            .and_then(|()| self.place(&new));
        match place {
            Ok(Place::Busy(generation)) => self.defer(generation, call),
            Ok(Place::Same(generation)) if self.moves(generation, &new) => {
                self.succeed(generation, call, &new, now);
            }
            Ok(Place::Same(generation)) => self.replace(generation, call, new, now),
            Ok(Place::New(external)) => self.create(call, new, external, now),
            Err(refusal) => self.refuse(&call, Operation::Add, refusal),
        }
    }

    /// The rules for a port or an internal endpoint that is held already.
    fn place(&self, new: &NewMapping) -> Result<Place, Refusal> {
        let busy_or_same = |generation: Generation| {
            if self.jobs.contains_key(&generation) {
                Place::Busy(generation)
            } else {
                Place::Same(generation)
            }
        };
        let holder = new
            .external
            .and_then(|port| self.table.by_external(new.protocol, port));
        // Owned by the configuration, whether it has it already or not (igd-service section 3.3, step 7).
        let stated = |port: ExternalPort| self.statics.states(new.protocol, port);
        let is_static = new.external.is_some_and(stated)
            || holder.is_some_and(|held| held.owner == Owner::Configuration);
        if is_static && new.choice == PortChoice::Exact {
            return Err(Refusal::Reserved);
        }
        if let Some(held) = holder.filter(|_| !is_static) {
            let same = held.internal.addr == new.internal.addr && held.remote == new.remote;
            // Without a NAT of ours it would have to go for the new one, and any other port will do.
            let moves = !self.is_translating() && held.internal != new.internal;
            if same && !(moves && new.choice == PortChoice::Any) {
                return Ok(busy_or_same(held.generation));
            }
            if new.choice == PortChoice::Exact {
                return Err(Refusal::PortTaken);
            }
        }
        // Whoever does not care for the port gets the one it has.
        let of_internal = self.table.by_internal(new.protocol, new.internal);
        let mut same = of_internal
            .filter(|held| held.remote == new.remote && held.owner == Owner::ControlPoint);
        if new.choice == PortChoice::Any
            && let Some(held) = same.next()
        {
            return Ok(busy_or_same(held.generation));
        }
        let policy = &self.settings.policy;
        let reserved = |port: ExternalPort| policy.is_reserved(new.protocol, port.get());
        if new.choice == PortChoice::Exact && new.external.is_some_and(reserved) {
            return Err(Refusal::Reserved);
        }
        let free = |port: &ExternalPort| holder.is_none() && !is_static && !reserved(*port);
        Ok(Place::New(new.external.filter(free)))
    }

    fn create(
        &mut self,
        call: Call,
        new: NewMapping,
        external: Option<ExternalPort>,
        now: Instant,
    ) {
        match self.draft(&call, &new, external, now) {
            Err(refusal) => self.refuse(&call, Operation::Add, refusal),
            Ok((mapping, server)) => {
                let generation = mapping.generation;
                let deadline = self.patience(call.deadline, now);
                let suggested = external.or_else(|| self.suggestion(&(&call).into(), &new));
                let want = server.map(|server| self.want(&mapping, server, suggested, now));
                if let Err(error) = self.table.put(mapping) {
                    self.tell(pcp_client::Input::Abandon(generation), now);
                    return self.refuse(&call, Operation::Add, refusal_of(error));
                }
                let job = Job::new(Origin::ControlPoint(call), Kind::Create, deadline);
                self.jobs.insert(generation, job);
                match want {
                    Some(want) => self.tell(pcp_client::Input::Request(want), now),
                    None => self.store(generation),
                }
            }
        }
    }

    /// The mapping as it will be, and the server to ask for it.
    fn draft(
        &mut self,
        call: &Call,
        new: &NewMapping,
        external: Option<ExternalPort>,
        now: Instant,
    ) -> Result<(Mapping, Option<SocketAddr>), Refusal> {
        let asker = Asker::from(call);
        self.has_room(&asker, new)?;
        let open = self.open_ports(&asker, new)?;
        let server = self.server_to_ask()?;
        if !self.is_placeable() {
            return Err(Refusal::Unreachable);
        }
        if server.is_some() && !self.may_ask(call, now) {
            return Err(Refusal::Quota(Quota::Pace));
        }
        let probed = match new.choice {
            PortChoice::Exact => self.take_probe(call, new.protocol, external, now),
            PortChoice::Any => None,
        };
        let (generation, nat1) = match (probed, self.wan.address) {
            (Some((generation, port)), Some(addr)) => (generation, ExternalEndpoint { addr, port }),
            (Some(_), None) | (None, _) => {
                let nat1 = self.place_in_nat1(new, external, server, open.as_deref(), now)?;
                (self.new_generation().ok_or(Refusal::NoRoom)?, nat1)
            }
        };
        let claim = match (server, new.choice) {
            (None, _) => nat1.into(),
            (Some(_), PortChoice::Exact) => Claim {
                port: external,
                addr: None,
            },
            (Some(_), PortChoice::Any) => Claim::default(),
        };
        let mapping = Mapping {
            generation,
            state: State::Pending,
            owner: Owner::ControlPoint,
            protocol: new.protocol,
            internal: new.internal,
            nat1,
            claim,
            remote: new.remote,
            description: new.description.clone(),
            requested: new.lease,
            lease_ends: now + new.lease.duration(),
            port_choice: new.choice,
            upstream: None,
        };
        Ok((mapping, server))
    }

    /// The server that has to agree to a new mapping; `None`: nobody has to.
    pub(super) fn server_to_ask(&self) -> Result<Option<SocketAddr>, Refusal> {
        match self.mode {
            Mode::Cascaded(server) => Ok(Some(server)),
            // AMB-04: without trust nobody may be named, and without a name nothing can be asked for.
            Mode::NoNat(_) if !self.settings.third_party => Err(Refusal::NotAuthorized),
            Mode::NoNat(server) => Ok(Some(server)),
            Mode::Local => Ok(None),
            Mode::NoServer => Err(Refusal::NoServer),
            Mode::Down if self.is_server_configured() => Err(Refusal::Unreachable),
            Mode::Down => Err(Refusal::NoServer),
        }
    }

    /// Where a new mapping is in our NAT; `open`: at one of these ports, if nobody has to be asked.
    pub(super) fn place_in_nat1(
        &mut self,
        new: &NewMapping,
        external: Option<ExternalPort>,
        server: Option<SocketAddr>,
        open: Option<&[PortRange]>,
        now: Instant,
    ) -> Result<ExternalEndpoint, Refusal> {
        if !self.is_translating() {
            // RFC 6887 section 11.3: a server has one mapping for each internal endpoint.
            let held = self.table.by_untranslated(new.protocol, new.internal);
            return match held {
                None => Ok(untranslated(new.internal)),
                Some(_) => Err(Refusal::PortTaken),
            };
        }
        let addr = self.external_for(new.internal.addr);
        Ok(ExternalEndpoint {
            addr: addr.ok_or(Refusal::Unreachable)?,
            port: self.nat1_port(new, external, server, open, now)?,
        })
    }

    /// The port of our NAT.
    fn nat1_port(
        &mut self,
        new: &NewMapping,
        external: Option<ExternalPort>,
        server: Option<SocketAddr>,
        open: Option<&[PortRange]>,
        now: Instant,
    ) -> Result<ExternalPort, Refusal> {
        if server.is_some() {
            let port = self.upstream_port(new.protocol, external, new.internal.port, now);
            return port.ok_or(Refusal::NoRoom);
        }
        self.barred.retain(|_, until| *until > now);
        let is_barred = |port| self.barred.contains_key(&(new.protocol, port));
        // Our NAT is the outermost one: its port is the one asked for.
        let (table, policy, statics) = (&self.table, &self.settings.policy, &self.statics);
        let free = |port: ExternalPort| {
            table.by_nat1(new.protocol, port).is_none()
                && table.by_external(new.protocol, port).is_none()
                && !policy.is_reserved(new.protocol, port.get())
                && !policy.is_own(new.protocol, port.get())
                && !(new.choice == PortChoice::Any && is_barred(port))
                && (external == Some(port) || !statics.states(new.protocol, port))
                && open.is_none_or(|open| in_ranges(open, port.get()))
        };
        match external.filter(|port| free(*port)) {
            Some(port) => Ok(port),
            None if new.choice == PortChoice::Exact => Err(Refusal::PortTaken),
            None => ports::random_port(free, &mut self.rng).ok_or(Refusal::NoRoom),
        }
    }

    /// A port of our NAT for a lease: none that a mapping or a probe holds, or that is barred.
    pub(super) fn upstream_port(
        &mut self,
        protocol: crate::types::Protocol,
        external: Option<ExternalPort>,
        internal: crate::types::InternalPort,
        now: Instant,
    ) -> Option<ExternalPort> {
        self.barred.retain(|_, until| *until > now);
        let (barred, probes) = (&self.barred, &self.probes);
        let query = self.address.port();
        let taken = |port: ExternalPort| {
            barred.contains_key(&(protocol, port))
                || probes.values().any(|p| p.holds(protocol, port))
                || query == Some((protocol, port))
        };
        ports::choose_nat1(
            &self.table,
            &self.settings.policy,
            protocol,
            external,
            internal,
            taken,
            &mut self.rng,
        )
    }

    /// What the PCP client is to get for a mapping.
    pub(super) fn want(
        &self,
        mapping: &Mapping,
        server: SocketAddr,
        external: Option<ExternalPort>,
        now: Instant,
    ) -> Want {
        let left = mapping.lease_ends.saturating_duration_since(now).as_secs();
        Want {
            id: mapping.generation,
            server,
            protocol: mapping.protocol,
            behalf: mapping.is_untranslated().then_some(mapping.internal.addr),
            port: mapping.nat1.port,
            external,
            choice: mapping.port_choice,
            remote: mapping.remote,
            description: self.described(mapping),
            patient: false,
            brief: false,
            lifetime: Lifetime(
                u32::try_from(left)
                    .unwrap_or(u32::MAX)
                    .clamp(1, MAX_LEASE.0),
            ),
            until: mapping.lease_ends,
        }
    }

    /// What the server is told of a mapping's purpose (IWF-018), cut where a character ends (AMB-18).
    fn described(&self, mapping: &Mapping) -> Option<String> {
        let text = mapping.description.as_str();
        let end = text.floor_char_boundary(pcp_client::MAX_DESCRIPTION);
        let told = text.get(..end).filter(|told| !told.is_empty());
        told.filter(|_| self.settings.send_descriptions)
            .map(str::to_owned)
    }

    /// Overwrites a mapping of the same control point: description, internal port and lease change, the
    /// external port does not.
    fn replace(&mut self, generation: Generation, call: Call, new: NewMapping, now: Instant) {
        let Some(before) = self.table.get(generation).cloned() else {
            return self.refuse(&call, Operation::Add, Refusal::Failed);
        };
        let after = Mapping {
            internal: new.internal,
            description: new.description,
            requested: new.lease,
            lease_ends: now + new.lease.duration(),
            port_choice: new.choice,
            ..before.clone()
        };
        let server = match (self.server_to_ask(), before.upstream) {
            (Ok(server), _) => server,
            // A local mapping lives on without anybody to ask, so its owner may also refresh it.
            (Err(_), None) => None,
            (Err(refusal), Some(_)) => return self.refuse(&call, Operation::Add, refusal),
        };
        if server.is_some() && !self.may_ask(&call, now) {
            return self.refuse(&call, Operation::Add, Refusal::Quota(Quota::Pace));
        }
        let want = server.map(|server| self.want(&after, server, before.claim.port, now));
        let deadline = self.patience(call.deadline, now);
        let kind = Kind::Replace {
            before: Box::new(before),
            after: Box::new(after),
        };
        let job = Job::new(Origin::ControlPoint(call), kind, deadline);
        self.jobs.insert(generation, job);
        match want {
            Some(want) => self.tell(pcp_client::Input::Request(want), now),
            None => self.store(generation),
        }
    }

    /// Whether another mapping has to take the place of that one: without a NAT of ours the server tells mappings apart
    /// by the host's own port.
    fn moves(&self, generation: Generation, new: &NewMapping) -> bool {
        let held = self.table.get(generation);
        !self.is_translating() && held.is_some_and(|held| held.internal != new.internal)
    }

    /// Takes a mapping out and makes another one when it is gone.
    fn succeed(&mut self, generation: Generation, call: Call, new: &NewMapping, now: Instant) {
        let held = self.table.by_untranslated(new.protocol, new.internal);
        if held.is_some() {
            return self.refuse(&call, Operation::Add, Refusal::PortTaken);
        }
        if let Err(refusal) = self.server_to_ask() {
            return self.refuse(&call, Operation::Add, refusal);
        }
        self.remove(generation, Origin::Successor, now);
        self.defer(generation, call);
    }

    /// Until when a server is waited for: less if it is known to be silent.
    pub(super) fn patience(&self, deadline: Instant, now: Instant) -> Instant {
        match self.mode {
            // Whoever is told to be patient is.
            Mode::Cascaded(_) | Mode::NoNat(_) if self.settings.deadline > SOAP_DEADLINE => {
                deadline
            }
            Mode::Cascaded(server) | Mode::NoNat(server)
                if self.client.liveness(server) == Some(Liveness::Silent) =>
            {
                deadline.min(now + SILENT_PATIENCE)
            }
            Mode::Cascaded(_) | Mode::NoNat(_) | Mode::Local | Mode::NoServer | Mode::Down => {
                deadline
            }
        }
    }
}

pub(super) fn refusal_of(error: TableError) -> Refusal {
    match error {
        TableError::External(_) => Refusal::PortTaken,
        TableError::Nat1(_) => Refusal::NoRoom,
        TableError::HostQuota => Refusal::Quota(Quota::Host),
        TableError::Full => Refusal::Quota(Quota::Table),
    }
}
