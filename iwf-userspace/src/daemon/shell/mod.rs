//! Carries out what the core wants, and tells it what came of it.
//!
//! One owner for core, data plane and store: their order is the order of the calls here. A change is durable and in
//! the kernel when the reply that promised it leaves; a commit costs one sync of a small file, which on flash takes
//! some milliseconds. What is to be stored is gathered while the core wants anything else, and goes into one commit: the
//! replies wait for that, so that nobody hears of what is not stored. All of it is synchronous but one thing: the sessions
//! that a change ends are looked for slice by slice, the loop does other work in between, and the core hears that the
//! change is done when the last has ended.

mod effects;
mod found;
mod listing;
mod network;
mod notices;
mod persist;
mod pinholes;
mod pressure;
mod protection;
mod refused;
mod runs;
mod telling;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, warn};

use super::config::FlowRules;
use super::control::server::{Call as ControlCall, Replies};
use super::control::{Request, Response, policy};
use super::dataplane::softwire::Softwire;
use super::dataplane::{DataPlane, DataPlaneError, Found};
use super::gena::{Courier, Outcome, SubscriptionCall};
use super::http::{Counts, OpenConnections, SoapCall};
use super::journal::{Journal, Start};
use super::netstate::NetState;
use super::reconciler;
use super::store::Store;
use super::upstream::{Upstream, UpstreamEvent};
use crate::iwf::{
    AdminCommand, Errand, Input, Iwf, LinkCounters, RequestId, Returned, ServerState,
};
use crate::proto::gena::{Granted, Refusal};
use crate::types::{Instant, NatEntry, Protocol, UnixTime};
use crate::wire::soap;

use effects::Settling;
use found::FoundServers;
use listing::Question;
use persist::Unstored;
use pinholes::Pinholes;
use pressure::Pressure;
use refused::RefusalsTold;
use telling::Wish;
pub use view::Facts;

/// How long after a failure the reconciler looks again.
const RETRY: Duration = Duration::from_secs(1);
/// How long after a failure the tables are swept again.
const SWEEP_RETRY: Duration = Duration::from_secs(5);

/// Where datagrams for PCP servers go.
pub trait Datagrams {
    /// Sends one, or loses it.
    fn send(&mut self, server: SocketAddr, payload: &[u8]);

    /// Does something about the default router.
    fn run(&mut self, errand: Errand);
}

impl Datagrams for Upstream {
    fn send(&mut self, server: SocketAddr, payload: &[u8]) {
        Self::send(self, server, payload);
    }

    fn run(&mut self, errand: Errand) {
        Self::run(self, errand);
    }
}

/// Core, data plane and store under one hand.
#[derive(Debug)]
pub struct Shell<P, S> {
    core: Iwf,
    plane: P,
    store: S,
    host_ports: Vec<(Protocol, u16)>,
    own_ports: BTreeSet<(Protocol, u16)>,
    pinholes: Pinholes,
    rules: FlowRules,
    /// What the programs were told of who translates.
    routed: bool,
    network: NetState,
    softwire: Softwire,
    next_request: u64,
    soap: BTreeMap<RequestId, (oneshot::Sender<soap::ActionResult>, Option<Wish>)>,
    admin: BTreeMap<RequestId, Replies>,
    subscriptions: BTreeMap<RequestId, oneshot::Sender<Result<Option<Granted>, Refusal>>>,
    courier: Courier,
    /// Connections over TLS.
    open: OpenConnections,
    /// What became of connections of LAN hosts.
    http: Arc<Counts>,
    /// What the last whole pass of the sweep found, and when.
    found: Option<(Found, Instant)>,
    journal: Journal,
    /// What is known of PCP servers that nobody has configured.
    servers_found: FoundServers,
    /// What was told of each server last.
    servers_told: BTreeMap<SocketAddr, ServerState>,
    /// Changes whose sessions have not all ended, oldest first.
    settling: VecDeque<Settling>,
    /// The last entry that left the kernel: the notice that its mapping is gone comes next and has no more
    /// than the name.
    removed: Option<NatEntry>,
    pressure: Pressure,
    refusals_told: RefusalsTold,
    solicit: Option<mpsc::Sender<IpAddr>>,
    runs: Runs,
    unstored: Unstored,
}

/// What the reconciler did so far.
#[derive(Debug, Default)]
struct Runs {
    count: u64,
    last: Option<Instant>,
    /// Of the last run.
    outcome: reconciler::Outcome,
    /// Of all runs.
    total: reconciler::Outcome,
    /// Runs that could not look at the kernel.
    blind: u64,
    /// Of the last run.
    cost: reconciler::Cost,
    due: Option<Instant>,
    /// The run under way.
    running: Option<reconciler::Running>,
}

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// A shell around a core that was restored already. `host_ports` are this machine's own services on the WAN.
    pub fn new(
        core: Iwf,
        plane: P,
        store: S,
        host_ports: Vec<(Protocol, u16)>,
        courier: Courier,
        open: OpenConnections,
    ) -> Self {
        Self {
            core,
            plane,
            store,
            host_ports,
            own_ports: BTreeSet::new(),
            pinholes: Pinholes::default(),
            rules: FlowRules::default(),
            routed: false,
            network: NetState::default(),
            softwire: Softwire::Off,
            next_request: 0,
            soap: BTreeMap::new(),
            admin: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            courier,
            open,
            http: Arc::default(),
            found: None,
            journal: Journal::default(),
            servers_found: FoundServers::default(),
            servers_told: BTreeMap::new(),
            settling: VecDeque::new(),
            removed: None,
            pressure: Pressure::default(),
            refusals_told: RefusalsTold::default(),
            solicit: None,
            runs: Runs::default(),
            unstored: Unstored::default(),
        }
    }

    /// Where addresses go that somebody may be at.
    pub fn set_solicit(&mut self, solicit: mpsc::Sender<IpAddr>) {
        self.solicit = Some(solicit);
    }

    /// The server for LAN hosts counts there.
    pub fn set_http_counts(&mut self, counts: Arc<Counts>) {
        self.http = counts;
    }

    /// Servers, or the network on the way to them, told something, and control points called. What follows from all of it
    /// goes into one commit.
    pub fn take(
        &mut self,
        events: impl IntoIterator<Item = UpstreamEvent>,
        questions: impl IntoIterator<Item = SoapCall>,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        for event in events {
            if let Some(input) = self.of_upstream(event) {
                self.core.handle_input(input, now);
            }
        }
        for question in questions {
            self.call(question, now);
        }
        self.drain(out, now);
    }

    fn call(&mut self, question: SoapCall, now: Instant) {
        let SoapCall {
            caller,
            call,
            waited,
            reply,
        } = question;
        debug!(caller = %caller.addr, action = call.action, "control point calls");
        let request = self.new_request();
        let wish = Wish::of(caller.addr, &call);
        self.soap.insert(request, (reply, wish));
        let input = Input::Soap {
            request,
            caller,
            call,
            waited,
        };
        self.core.handle_input(input, now);
    }

    /// A control point asked at an event URL.
    pub fn subscription(&mut self, wish: SubscriptionCall, out: &mut impl Datagrams, now: Instant) {
        let SubscriptionCall {
            service,
            host,
            at,
            request: wanted,
            reply,
        } = wish;
        let request = self.new_request();
        self.subscriptions.insert(request, reply);
        let input = Input::Subscription {
            request,
            service,
            host,
            at,
            wanted,
        };
        self.input(input, out, now);
    }

    /// A connection over TLS is closed.
    pub fn secure_closed(&mut self, connection: u64, out: &mut impl Datagrams, now: Instant) {
        self.input(Input::SecureClosed { connection }, out, now);
    }

    /// It is known what came of an event message.
    pub fn event_sent(&mut self, outcome: Outcome, out: &mut impl Datagrams, now: Instant) {
        let Outcome { number, result } = outcome;
        self.courier.arrived(number);
        self.input(Input::EventSent { number, result }, out, now);
    }

    /// The owner asked.
    pub fn control(
        &mut self,
        (request, reply): ControlCall,
        facts: &Facts,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        match request {
            Request::Delete {
                protocol,
                external_port,
            } => {
                let request = self.new_request();
                self.admin.insert(request, reply);
                let command = AdminCommand::Delete {
                    protocol,
                    external_port,
                };
                self.input(Input::Admin { request, command }, out, now);
            }
            Request::Access { change } => {
                let request = self.new_request();
                self.admin.insert(request, reply);
                let command = AdminCommand::Access(change);
                self.input(Input::Admin { request, command }, out, now);
            }
            Request::Protection {} => reply.answer(self.protection(facts, now)),
            Request::DhcpOption {
                family,
                values,
                forget,
            } => {
                let told = self.dhcp_option(family, &values, forget, out, now);
                reply.answer(told.map_or_else(Response::Error, |()| Response::Done));
            }
            // The event loop has seen to it.
            Request::Discover {} => reply.answer(Response::Done),
            Request::Status {}
            | Request::Mappings {}
            | Request::Leases {}
            | Request::Subscriptions {}
            | Request::Audit {} => {
                reply.answer(self.look(&request, facts, now));
            }
            Request::Policy { test } => reply.answer(match test {
                None => Response::Policy(policy::Policy::of(self.core.rules())),
                Some(test) => test.ask(&self.core),
            }),
            Request::Pinholes {} => reply.answer(self.pinhole_rows(now)),
            Request::Stats {} => match self.stats(facts, now) {
                Ok(stats) => self.look_up(Question::Stats(stats), reply),
                Err(error) => reply.answer(listing::failed(error)),
            },
            Request::MappingUsage {} => match self.mapping_rows(now) {
                Ok(rows) => self.look_up(Question::Usage(rows), reply),
                Err(error) => reply.answer(listing::failed(error)),
            },
            Request::Sessions { filter, limit } => {
                self.look_up(Question::Sessions(filter, limit), reply);
            }
            Request::Dynamic { filter, limit } => {
                self.look_up(Question::Dynamic(filter, limit), reply);
            }
            Request::Hosts { limit } => self.look_up(Question::Hosts(limit), reply),
            Request::Events {
                filter,
                follow,
                new,
            } => {
                self.hear();
                let start = if new { Start::Newest } else { Start::Oldest };
                // It ends when its reader does, or with the daemon.
                tokio::spawn(self.journal.reader(filter, start).tell(follow, reply));
            }
        }
    }

    /// Has the tables looked at on another thread.
    fn look_up(&mut self, question: Question, reply: Replies) {
        match self.plane.inspector() {
            Ok(inspector) => listing::answer_later(inspector, question, reply),
            Err(error) => reply.answer(listing::failed(error)),
        }
    }

    /// What happened lately.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Whether somebody follows the events as they come.
    pub fn is_followed(&self) -> bool {
        self.journal.is_followed()
    }

    fn of_upstream(&self, event: UpstreamEvent) -> Option<Input> {
        match event {
            UpstreamEvent::Datagram { from, payload } => Some(Input::Upstream { from, payload }),
            UpstreamEvent::Announcement { from, payload } => {
                // Only the word of a server we use counts, and the core knows it by where requests go.
                let servers = self.core.servers();
                let Some(server) = servers.iter().find(|s| s.address.ip() == from) else {
                    debug!(%from, "announcement of a stranger ignored");
                    return None;
                };
                Some(Input::Upstream {
                    from: server.address,
                    payload,
                })
            }
            UpstreamEvent::Found { from, payload } => {
                Some(Input::Returned(Returned::Found { from, payload }))
            }
            UpstreamEvent::Fetched { id, answer } => {
                Some(Input::Returned(Returned::Fetched { id, answer }))
            }
            UpstreamEvent::Unreachable { server } => Some(Input::UpstreamUnreachable { server }),
        }
    }

    /// What the WAN link has carried, and what time it is.
    pub fn tick(
        &mut self,
        link: LinkCounters,
        wall: UnixTime,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        match self.plane.counters() {
            Ok(counters) => {
                for (counter, packets, remedy) in self.pressure.report(&counters, now) {
                    self.tell_drops(counter, packets, remedy);
                }
            }
            Err(error) => log_plane("count", error),
        }
        self.input(Input::WallClock(wall), out, now);
        self.link(link, out, now);
    }

    /// What the WAN link is and has carried.
    pub fn link(&mut self, link: LinkCounters, out: &mut impl Datagrams, now: Instant) {
        self.input(Input::Link(link), out, now);
    }

    /// One slice of ageing; returns when the next one is due.
    pub fn sweep(&mut self, now: Instant) -> Duration {
        let step = self.plane.sweep_slice();
        self.hear();
        match step {
            Ok(step) => {
                self.found = step.found.map(|found| (found, now)).or(self.found.take());
                step.again
            }
            Err(error) => {
                log_plane("sweep", error);
                SWEEP_RETRY
            }
        }
    }

    /// Does what is due.
    pub fn timeout(&mut self, out: &mut impl Datagrams, now: Instant) {
        self.core.handle_timeout(now);
        self.follow_translation(now);
        self.drain(out, now);
        self.tell_servers();
        // What has nudged while a run was under way may be behind it: there comes another one.
        if self.runs.running.is_none() && self.runs.due.is_some_and(|due| due <= now) {
            self.begin_run();
        }
    }

    /// When [`Shell::timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.runs.due.filter(|_| self.runs.running.is_none());
        [self.core.poll_timeout(), due].into_iter().flatten().min()
    }

    /// Asks for a run of the reconciler. It carries no hint of what changed: there is one way to look, and it
    /// looks at everything.
    pub fn nudge(&mut self, now: Instant) {
        self.runs.due = Some(self.runs.due.map_or(now, |due| due.min(now)));
    }

    fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }
}

fn log_plane(action: &str, error: DataPlaneError) {
    match error {
        // A client may cause these.
        DataPlaneError::InUse => debug!(action, "external endpoint is in use by this machine"),
        DataPlaneError::Full { map } => warn!(action, map, "kernel map is full"),
        DataPlaneError::Kernel { .. } => {
            let error = anyhow::Error::new(error);
            error!(action, error = format!("{error:#}"), "data plane failed");
        }
    }
}
