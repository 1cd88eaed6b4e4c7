//! What the owner gets to see.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use super::super::control::{
    Audit, Counter, ExternalAddress, Held, LeaseRow, Listener, MappingRow, Prefix64Row, Reconciler,
    Repairs, Request, Response, Server, SoftwireEnds, Stats, Status, StoreState, SubscriptionRow,
};
use super::super::dataplane::inspect::TableRow;
use super::super::dataplane::softwire::Softwire;
use super::super::dataplane::{DataPlane, DataPlaneError};
use super::super::store::Store;
use super::Shell;
use crate::iwf::{MAX_MARKS, Mode, Origin, ServerState, Translation};
use crate::mapping::pinholes::MAX_PINHOLES;
use crate::mapping::{Mapping, Owner, Via};
use crate::proto::gena::{self, MAX_SUBSCRIPTIONS};
use crate::types::{ExternalEndpoint, Generation, Instant, NatEntry, RemotePeer};
use crate::wire::pcp::Prefix64;

/// What the shell cannot know by itself.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// When the daemon started.
    pub started: Instant,
    /// `auto`, `cascaded` or `local`, as configured.
    pub configured_mode: &'static str,
    /// The WAN interface.
    pub wan_interface: String,
    /// Where LAN hosts are served.
    pub listeners: Vec<Listener>,
    /// What waits for the core.
    pub waiting: Vec<Held>,
}

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// Answers a request that changes nothing and needs no walk through a large table.
    pub(super) fn look(&self, request: &Request, facts: &Facts, now: Instant) -> Response {
        let answer = match request {
            Request::Status {} => self
                .status(facts, now)
                .map(|status| Response::Status(Box::new(status))),
            Request::Mappings {} => self.mapping_rows(now).map(Response::Mappings),
            Request::Leases {} => Ok(Response::Leases(self.lease_rows(now))),
            Request::Subscriptions {} => Ok(Response::Subscriptions(self.subscription_rows(now))),
            Request::Audit {} => self.audit(now).map(Response::Audit),
            Request::Delete { .. }
            | Request::Pinholes {}
            | Request::Policy { .. }
            | Request::Stats {}
            | Request::MappingUsage {}
            | Request::Sessions { .. }
            | Request::Dynamic { .. }
            | Request::Hosts { .. }
            | Request::Events { .. }
            | Request::Discover {}
            | Request::Protection {}
            | Request::Access { .. }
            | Request::DhcpOption { .. } => {
                return Response::Error("not answered from here".to_owned());
            }
        };
        answer.unwrap_or_else(|error| Response::Error(format!("{:#}", anyhow::Error::new(error))))
    }

    fn status(&self, facts: &Facts, now: Instant) -> Result<Status, DataPlaneError> {
        Ok(Status {
            external_addresses: self.external_addresses()?,
            address_conflict: self
                .network
                .conflict()
                .map(|(network, len)| format!("{network}/{len}")),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: now.saturating_duration_since(facts.started).as_secs(),
            configured_mode: facts.configured_mode.to_owned(),
            mode: mode(self.core.mode(), self.core.translation()).to_owned(),
            translates: self.core.translation() == Translation::Here,
            third_party: self.core.trusts_upstream(),
            ready: true,
            wan_interface: facts.wan_interface.clone(),
            wan_address: self.network.wan.address,
            wan_address6: self.network.wan.address6,
            gateway: self.network.wan.gateway,
            external_address: match self.core.mode() {
                Mode::Local => self.network.wan.address,
                Mode::Cascaded(_) | Mode::NoNat(_) | Mode::NoServer | Mode::Down => {
                    self.core.external_address()
                }
            },
            listeners: facts.listeners.clone(),
            servers: self.servers(),
            discovery: self.servers_found.rows(),
            aftr: self.servers_found.aftr(),
            softwire: match self.softwire {
                Softwire::On(path) => Some(SoftwireEnds {
                    local: path.local,
                    aftr: path.remote,
                }),
                Softwire::Off | Softwire::Undecided => None,
            },
            mappings: self.core.mappings().filter(|m| m.is_installed()).count() as u64,
            sessions: self.sessions(),
            reconciler: self.reconciler(now),
            store: self.store_state(now),
            subscriptions: self.core.gena().subscriptions().count() as u64,
        })
    }

    fn reconciler(&self, now: Instant) -> Reconciler {
        let runs = &self.runs;
        Reconciler {
            runs: runs.count,
            seconds_ago: runs
                .last
                .map(|at| now.saturating_duration_since(at).as_secs()),
            repaired: runs.outcome.repaired(),
            failed: runs.outcome.failed,
            running: runs.running.is_some(),
            turns: runs.cost.turns,
            longest_turn_micros: u64::try_from(runs.cost.longest.as_micros()).unwrap_or(u64::MAX),
            total: Repairs {
                removed: runs.total.removed,
                created: runs.total.created,
                updated: runs.total.updated,
                failed: runs.total.failed,
                blind: runs.blind,
            },
        }
    }

    fn store_state(&self, now: Instant) -> StoreState {
        let counts = self.store.counts();
        let failing = self.unstored.failing_since;
        StoreState {
            commits: counts.commits,
            changes: counts.changes,
            failures: counts.failures,
            failing_seconds: failing.map(|at| now.saturating_duration_since(at).as_secs()),
        }
    }

    /// The same as counters.
    fn own_counters(&self, now: Instant) -> Vec<Counter> {
        let (reconciler, store) = (self.reconciler(now), self.store_state(now));
        let total = reconciler.total;
        let gena = self.core.gena().counts();
        let ignored = self.core.ignored_upstream();
        let counters = [
            ("reconciler_runs", reconciler.runs),
            ("reconciler_removed", total.removed),
            ("reconciler_created", total.created),
            ("reconciler_updated", total.updated),
            ("reconciler_failed", total.failed),
            ("reconciler_blind", total.blind),
            ("store_commits", store.commits),
            ("store_changes", store.changes),
            ("store_failures", store.failures),
            ("gena_subscribed", gena.made),
            ("gena_renewed", gena.renewed),
            ("gena_ended", gena.ended),
            ("gena_expired", gena.expired),
            ("gena_dropped", gena.dropped),
            ("gena_refused_callback", gena.refused_callback),
            ("gena_refused_full", gena.refused_full),
            ("gena_refused_unknown", gena.refused_unknown),
            ("gena_delivered", gena.delivered),
            ("gena_failed", gena.failed),
            ("pcp_ignored_stranger", ignored.stranger),
            ("pcp_ignored_malformed", ignored.malformed),
            ("pcp_ignored_unmatched", ignored.unmatched),
        ];
        let counter = |(name, value): (&str, u64)| Counter {
            name: name.to_owned(),
            value,
        };
        let http = self.http.rows();
        counters.into_iter().chain(http).map(counter).collect()
    }

    /// What core and shell hold. Walks through the mappings: only for who asks.
    fn held(&self) -> Vec<Held> {
        let (mappings, most) = self.core.table_size();
        let installed = self.core.mappings().filter(|m| m.is_installed());
        let leases = installed.filter(|m| m.upstream.is_some()).count();
        let asked = self.core.pinholes().count();
        let subscribed = self.core.gena().subscriptions().count();
        vec![
            Held::new("mappings", mappings, Some(most)),
            Held::new("leases", leases, Some(most)),
            Held::new("marks", self.core.marks(), Some(MAX_MARKS)),
            Held::new("pinholes", asked, Some(MAX_PINHOLES)),
            Held::new("subscriptions", subscribed, Some(MAX_SUBSCRIPTIONS)),
            Held::new("calls_unanswered", self.soap.len(), None),
            Held::new("removals_settling", self.settling.len(), None),
        ]
    }

    fn external_addresses(&self) -> Result<Vec<ExternalAddress>, DataPlaneError> {
        let pool = &self.network.wan.pool;
        if pool.is_empty() {
            return Ok(Vec::new());
        }
        let hosts = self.plane.hosts()?;
        let all = self.network.external_addr.iter().chain(pool);
        Ok(all
            .map(|address| ExternalAddress {
                address: *address,
                hosts: hosts.get(address).copied().unwrap_or(0),
            })
            .collect())
    }

    fn servers(&self) -> Vec<Server> {
        let servers = self.core.servers();
        let known = servers.iter().map(|server| Server {
            server: server.server,
            origin: match server.origin {
                Origin::Config => "config",
                Origin::Dhcp4 => "dhcp4",
                Origin::Dhcp6 => "dhcp6",
                Origin::Router => "router",
                Origin::Aftr => "aftr",
                Origin::Anycast => "anycast",
            }
            .to_owned(),
            address: server.address,
            in_use: server.in_use,
            state: match server.state {
                Some(ServerState::Unknown) => "unknown",
                Some(ServerState::Answering) => "answering",
                Some(ServerState::Silent) => "silent",
                None => "not-asked",
            }
            .to_owned(),
            via: via(server.via).to_owned(),
            epoch: server.epoch.map(|epoch| epoch.0),
            prefixes64: self
                .core
                .prefixes64(server.address)
                .iter()
                .map(prefix64)
                .collect(),
        });
        known.collect()
    }

    pub(super) fn mapping_rows(&self, now: Instant) -> Result<Vec<MappingRow>, DataPlaneError> {
        let observed = self.plane.observe()?;
        let held: BTreeMap<Generation, NatEntry> = observed
            .into_iter()
            .map(|entry| (entry.generation, entry))
            .collect();
        let row = |mapping: &Mapping| {
            let wanted = mapping.nat_entry();
            let (remote_host, remote_list) = remotes(mapping.remote);
            let same = |entry: &NatEntry| {
                (entry.protocol, entry.external, entry.internal, entry.remote)
                    == (
                        wanted.protocol,
                        wanted.external,
                        wanted.internal,
                        wanted.remote,
                    )
            };
            MappingRow {
                generation: mapping.generation.0,
                protocol: mapping.protocol,
                internal: SocketAddrV4::new(mapping.internal.addr, mapping.internal.port.get()),
                nat1: socket(mapping.nat1),
                kernel: held.get(&mapping.generation).is_some_and(same),
                carrier: mapping.upstream.and(mapping.claim.endpoint()).map(socket),
                remote_host,
                remote_list,
                lease_left_seconds: u64::from(mapping.lease_left(now)),
                granted_left_seconds: mapping
                    .upstream
                    .map(|lease| lease.expires.saturating_duration_since(now).as_secs()),
                description: mapping.description.clone(),
                is_static: mapping.owner == Owner::Configuration,
                waits: None,
                usage: None,
            }
        };
        let waiting = self.core.waiting_statics().map(|waiting| {
            let stated = waiting.mapping;
            let addr = self.network.wan.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let (remote_host, remote_list) = remotes(stated.remote);
            MappingRow {
                generation: 0,
                protocol: stated.protocol,
                internal: SocketAddrV4::new(stated.internal.addr, stated.internal.port.get()),
                nat1: SocketAddrV4::new(addr, stated.external.get()),
                kernel: false,
                carrier: None,
                remote_host,
                remote_list,
                lease_left_seconds: 0,
                granted_left_seconds: None,
                description: stated.description.clone(),
                is_static: true,
                waits: Some(waiting.problem.map_or_else(
                    || "it is being asked for".to_owned(),
                    |problem| problem.to_string(),
                )),
                usage: None,
            }
        });
        Ok(self
            .core
            .mappings()
            .filter(|m| m.is_installed())
            .map(row)
            .chain(waiting)
            .collect())
    }

    fn lease_rows(&self, now: Instant) -> Vec<LeaseRow> {
        let row = |mapping: &Mapping| {
            let lease = mapping.upstream?;
            Some(LeaseRow {
                generation: mapping.generation.0,
                protocol: mapping.protocol,
                server: lease.server,
                via: via(lease.via).to_owned(),
                nat1: socket(mapping.nat1),
                assigned: socket(mapping.claim.endpoint()?),
                granted_left_seconds: lease.expires.saturating_duration_since(now).as_secs(),
            })
        };
        self.core.mappings().filter_map(row).collect()
    }

    fn subscription_rows(&self, now: Instant) -> Vec<SubscriptionRow> {
        let gena = self.core.gena();
        let row = |seen: gena::View<'_>| SubscriptionRow {
            sid: seen.sid.to_string(),
            service: format!("{}:{}", seen.service.kind, seen.service.version),
            host: seen.host,
            callbacks: seen.callbacks.iter().map(ToString::to_string).collect(),
            left_seconds: seen.expires.saturating_duration_since(now).as_secs(),
            next_seq: seen.next_seq,
            sending: seen.sending,
            failures: seen.failures,
        };
        gena.subscriptions().map(row).collect()
    }

    /// Looks at the kernel now; the last run of the reconciler has no say.
    fn audit(&self, now: Instant) -> Result<Audit, DataPlaneError> {
        let observed = self.plane.observe()?;
        let mut differences: Vec<String> = self
            .core
            .audit(&observed, now)
            .iter()
            .map(ToString::to_string)
            .collect();
        let pinholes = self.pinhole_differences()?;
        differences.extend(pinholes.iter().map(ToString::to_string));
        let installed = || self.core.mappings().filter(|m| m.is_installed());
        Ok(Audit {
            clean: differences.is_empty(),
            kernel_entries: observed.len() as u64,
            leases: installed().filter(|m| m.upstream.is_some()).count() as u64,
            mappings: installed().count() as u64,
            differences,
            reconciler: self.reconciler(now),
        })
    }

    /// At the last sweep.
    fn sessions(&self) -> u64 {
        self.found.as_ref().map_or(0, |(found, _)| found.sessions)
    }

    /// Without the tables that the sweep does not count.
    pub(super) fn stats(&self, facts: &Facts, now: Instant) -> Result<Stats, DataPlaneError> {
        let counters = self.plane.counters()?;
        let counter = |(name, value): (&'static str, u64)| Counter {
            name: name.to_owned(),
            value,
        };
        let tables = self.found.iter().flat_map(|(found, at)| {
            let seconds_ago = now.saturating_duration_since(*at).as_secs();
            found.tables.iter().map(move |table| TableRow {
                seconds_ago,
                ..table.clone()
            })
        });
        Ok(Stats {
            sessions: self.sessions(),
            counters: counters.into_iter().map(counter).collect(),
            daemon: self.own_counters(now),
            tables: tables.collect(),
            held: self
                .held()
                .into_iter()
                .chain(facts.waiting.clone())
                .collect(),
        })
    }
}

fn mode(mode: Mode, translation: Translation) -> &'static str {
    match mode {
        Mode::NoNat(_) if translation == Translation::DsLite => "ds-lite",
        Mode::Cascaded(_) => "cascaded",
        Mode::NoNat(_) => "no-nat",
        Mode::Local => "local",
        Mode::NoServer => "no-server",
        Mode::Down => "down",
    }
}

fn via(via: Via) -> &'static str {
    match via {
        Via::Pcp => "pcp",
        Via::NatPmp => "nat-pmp",
        Via::Igd => "igd",
    }
}

fn prefix64(learned: &Prefix64) -> Prefix64Row {
    let mut octets = [0; 16];
    for (octet, known) in octets.iter_mut().zip(learned.prefix()) {
        *octet = *known;
    }
    let suffix = learned.suffix().iter();
    let destinations = learned.destinations().iter();
    Prefix64Row {
        prefix: format!("{}/{}", Ipv6Addr::from(octets), learned.prefix().len() * 8),
        suffix: suffix.map(|octet| format!("{octet:02x}")).collect(),
        destinations: destinations
            .map(|(addr, len)| format!("{addr}/{len}"))
            .collect(),
    }
}

/// The one host or the list; the word of the configuration for whom the LAN host has sent to.
fn remotes(remote: RemotePeer) -> (Option<Ipv4Addr>, Vec<String>) {
    match remote {
        RemotePeer::Any => (None, Vec::new()),
        RemotePeer::Host(host) => (Some(host), Vec::new()),
        RemotePeer::List(list) => (None, list.iter().map(|p| p.to_string()).collect()),
        RemotePeer::SentToHost => (None, vec!["address-dependent".to_owned()]),
        RemotePeer::SentToEndpoint => (None, vec!["address-and-port-dependent".to_owned()]),
    }
}

fn socket(endpoint: ExternalEndpoint) -> SocketAddrV4 {
    SocketAddrV4::new(endpoint.addr, endpoint.port.get())
}
