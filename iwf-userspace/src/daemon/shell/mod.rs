//! Carries out what the core wants, and tells it what came of it.
//!
//! One owner for core, data plane and store: their order is the order of the calls here. A change is durable and in
//! the kernel when the reply that promised it leaves; a commit costs one sync of a small file, which on flash takes
//! some milliseconds. What is to be stored is gathered while the core wants anything else, and goes into one commit: the
//! replies wait for that, so that nobody hears of what is not stored. All of it is synchronous but one thing: the sessions that a change ends are looked for slice by
//! slice, the loop does other work in between, and the core hears that the change is done when the last has ended.

mod found;
mod listing;
mod persist;
mod pinholes;
mod pressure;
mod telling;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use super::config::FlowRules;
use super::control::events::EventKind;
use super::control::server::{Call as ControlCall, Replies};
use super::control::{Request, Response};
use super::dataplane::softwire::Softwire;
use super::dataplane::{Change, DataPlane, DataPlaneError, Found, Pinhole, Turn};
use super::gena::{Courier, Outcome, SubscriptionCall};
use super::http::SoapCall;
use super::journal::Journal;
use super::netstate::NetState;
use super::reconciler;
use super::softwire::Hint;
use super::store::Store;
use super::upstream::{Upstream, UpstreamEvent};
use crate::iwf::pinholes::Lan6;
use crate::iwf::{
    AdminCommand, Effect, EffectError, Errand, Input, Iwf, LinkCounters, Notice, RequestId,
    Returned, ServerState, Ticket,
};
use crate::mapping::StaticMapping;
use crate::mapping::policy::LanPrefix;
use crate::proto::gena::{Granted, Refusal};
use crate::types::{Generation, Instant, NatEntry, Protocol, UnixTime};
use crate::wire::soap;

use found::FoundServers;
use listing::Question;
use persist::Unstored;
use pinholes::Pinholes;
use pressure::Pressure;
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
    network: NetState,
    softwire: Softwire,
    next_request: u64,
    soap: BTreeMap<RequestId, (oneshot::Sender<soap::ActionResult>, Option<Wish>)>,
    admin: BTreeMap<RequestId, Replies>,
    subscriptions: BTreeMap<RequestId, oneshot::Sender<Result<Option<Granted>, Refusal>>>,
    courier: Courier,
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
    runs: Runs,
    unstored: Unstored,
}

/// A change that the core has not heard of yet.
#[derive(Debug)]
struct Settling {
    turn: Turn,
    ticket: Ticket,
    /// The entry, if it was removed.
    removed: Option<NatEntry>,
}

/// What the reconciler did so far.
#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    count: u64,
    last: Option<Instant>,
    /// Of the last run.
    outcome: reconciler::Outcome,
    /// Of all runs.
    total: reconciler::Outcome,
    /// Runs that could not look at the kernel.
    blind: u64,
    due: Option<Instant>,
}

impl<P: DataPlane, S: Store> Shell<P, S> {
    /// A shell around a core that was restored already. `host_ports` are this machine's own services on the WAN.
    pub fn new(
        core: Iwf,
        plane: P,
        store: S,
        host_ports: Vec<(Protocol, u16)>,
        courier: Courier,
    ) -> Self {
        Self {
            core,
            plane,
            store,
            host_ports,
            own_ports: BTreeSet::new(),
            pinholes: Pinholes::default(),
            rules: FlowRules::default(),
            network: NetState::default(),
            softwire: Softwire::Off,
            next_request: 0,
            soap: BTreeMap::new(),
            admin: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            courier,
            found: None,
            journal: Journal::default(),
            servers_found: FoundServers::default(),
            servers_told: BTreeMap::new(),
            settling: VecDeque::new(),
            removed: None,
            pressure: Pressure::default(),
            runs: Runs::default(),
            unstored: Unstored::default(),
        }
    }

    /// Control points called. What the calls change goes into one commit.
    pub fn soap(
        &mut self,
        questions: impl IntoIterator<Item = SoapCall>,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        for question in questions {
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
        self.drain(out, now);
    }

    /// A control point asked at an event URL.
    pub fn subscription(&mut self, wish: SubscriptionCall, out: &mut impl Datagrams, now: Instant) {
        let SubscriptionCall {
            service,
            host,
            own,
            request: wanted,
            reply,
        } = wish;
        let request = self.new_request();
        self.subscriptions.insert(request, reply);
        let input = Input::Subscription {
            request,
            service,
            host,
            own,
            wanted,
        };
        self.input(input, out, now);
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
            Request::Pinholes {} => reply.answer(self.pinhole_rows(now)),
            Request::Stats {} => match self.stats(now) {
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
                // It ends when its reader does, or with the daemon.
                tokio::spawn(self.journal.clone().tell(filter, follow, new, reply));
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

    /// Whether somebody follows the events as they come.
    pub fn is_followed(&self) -> bool {
        self.journal.is_followed()
    }

    /// Servers, or the network on the way to them, told something. What follows from it goes into one commit.
    pub fn upstream(
        &mut self,
        events: impl IntoIterator<Item = UpstreamEvent>,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        for event in events {
            if let Some(input) = self.of_upstream(event) {
                self.core.handle_input(input, now);
            }
        }
        self.drain(out, now);
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

    /// Interfaces or addresses changed. The data plane goes first, so that nothing is translated to an address
    /// that is no longer ours.
    pub fn network(&mut self, network: NetState, out: &mut impl Datagrams, now: Instant) {
        if self.network.wan != network.wan {
            info!(address = ?network.wan.address, gateway = ?network.wan.gateway, "WAN changed");
            let shown = |addr: Option<Ipv4Addr>| {
                addr.map_or_else(|| "none".to_owned(), |addr| addr.to_string())
            };
            let (address, gateway) = (shown(network.wan.address), shown(network.wan.gateway));
            let detail = format!("address {address}, gateway {gateway}");
            self.tell_text(EventKind::WanChanged, None, detail);
        }
        if let Some((prefix, len)) = network.conflict().filter(|_| {
            let told = self.network.conflict();
            told != network.conflict()
        }) {
            warn!(
                external = ?network.external_addr,
                "the provider's network overlaps with {prefix}/{len} of the LAN: hosts there are not reached from here; \
                 give the LAN another prefix"
            );
        }
        self.network = network;
        self.configure(now);
        let lan = self.network.lan.iter().map(|link| LanPrefix {
            own: link.addr,
            len: link.prefix_len,
        });
        let (lan, wan) = (lan.collect(), self.network.wan.clone());
        let lan6 = Lan6 {
            prefixes: self.network.lan6.clone(),
            own: self.network.own6.clone(),
        };
        self.input(Input::Lan(lan), out, now);
        self.input(Input::Lan6(lan6), out, now);
        self.input(Input::Wan(wan), out, now);
        self.nudge(now);
    }

    /// Other services of this machine are open to the WAN.
    pub fn set_host_ports(
        &mut self,
        host_ports: Vec<(Protocol, u16)>,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        self.host_ports = host_ports.clone();
        self.input(Input::Reserved(host_ports), out, now);
        self.configure(now);
    }

    /// The mappings that the configuration states.
    pub fn set_statics(
        &mut self,
        statics: Vec<StaticMapping>,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        self.input(Input::Statics(statics), out, now);
    }

    /// The ports this machine uses itself, as they are now. The data plane hears of them when it is configured next.
    pub fn set_own_ports(
        &mut self,
        own_ports: BTreeSet<(Protocol, u16)>,
        out: &mut impl Datagrams,
        now: Instant,
    ) {
        if self.own_ports != own_ports {
            self.own_ports = own_ports;
            self.input(Input::OwnPorts(self.own_ports.clone()), out, now);
        }
    }

    /// Makes the data plane follow again. Never before the network was told: without interfaces it would let go of all.
    pub fn follow_again(&mut self, now: Instant) {
        self.configure(now);
    }

    /// Other pinholes are open. Takes effect with the next change of the network or of the services.
    pub fn set_pinholes(&mut self, pinholes: Vec<Pinhole>) {
        self.pinholes.stated = pinholes;
    }

    /// Other rules hold for new flows. Takes effect as [`Shell::set_pinholes`] does.
    pub fn set_rules(&mut self, rules: FlowRules) {
        self.rules = rules;
    }

    /// IPv4 goes another way through IPv6, or none. Takes effect at once, unless the network was not told yet.
    pub fn set_softwire(&mut self, softwire: Softwire, now: Instant) {
        self.softwire = softwire;
        if self.network != NetState::default() {
            self.configure(now);
        }
    }

    /// What DHCP has said of the AFTR.
    pub fn aftr_hint(&self) -> Hint {
        self.servers_found.aftr_hint()
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

    /// Whether sessions are still to be ended that changes have ended.
    pub fn is_settling(&self) -> bool {
        self.plane.is_settling()
    }

    /// One slice of looking for those sessions. The core hears of the changes that are settled by it.
    pub fn settle(&mut self, out: &mut impl Datagrams, now: Instant) {
        let outcome = self.plane.settle_slice();
        let settled = outcome.as_ref().copied();
        let settled = settled.unwrap_or(Turn(u64::MAX));
        let result = outcome
            .map(drop)
            .map_err(|error| plane_failed("settle", error));
        while let Some(change) = self.settling.pop_front_if(|change| change.turn <= settled) {
            self.removed = change.removed.or(self.removed);
            self.done(change.ticket, result, now);
            // What is wanted next belongs to this change: the notice has no more than its name.
            self.drain(out, now);
        }
    }

    /// Does what is due.
    pub fn timeout(&mut self, out: &mut impl Datagrams, now: Instant) {
        self.core.handle_timeout(now);
        self.drain(out, now);
        self.tell_servers();
        if self.runs.due.is_some_and(|due| due <= now) {
            self.reconcile(now);
        }
    }

    /// When [`Shell::timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.core.poll_timeout(), self.runs.due]
            .into_iter()
            .flatten()
            .min()
    }

    /// Asks for a run of the reconciler. It carries no hint of what changed: there is one way to look, and it
    /// looks at everything.
    pub fn nudge(&mut self, now: Instant) {
        self.runs.due = Some(self.runs.due.map_or(now, |due| due.min(now)));
    }

    /// Compares kernel and table, and repairs the kernel.
    pub fn reconcile(&mut self, now: Instant) {
        self.runs.due = None;
        let mut repairs = Vec::new();
        let outcome = reconciler::run(&mut self.plane, &self.core.desired(now), &mut repairs);
        let outcome = outcome.and_then(|mut outcome| {
            outcome.add(self.reconcile_pinholes()?);
            Ok(outcome)
        });
        self.hear();
        self.tell_repairs(&repairs);
        match outcome {
            Ok(outcome) => {
                self.runs.count += 1;
                self.runs.last = Some(now);
                self.runs.outcome = outcome;
                self.runs.total.add(outcome);
                if outcome.failed > 0 {
                    self.runs.due = Some(now + RETRY);
                }
            }
            Err(error) => {
                log_plane("observe", error);
                self.runs.blind += 1;
                self.runs.due = Some(now + RETRY);
            }
        }
    }

    fn configure(&mut self, now: Instant) {
        let mut config = self.network.plane_config(self.host_ports.clone());
        config.own_ports = self.own_ports.clone();
        config.pinholes = self.wanted_pinholes();
        config.rules = self.rules;
        config.softwire = self.softwire;
        if let Err(error) = self.plane.configure(&config) {
            log_plane("configure", error);
            self.runs.due = Some(now + RETRY);
        }
    }

    fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    fn input(&mut self, input: Input, out: &mut impl Datagrams, now: Instant) {
        self.core.handle_input(input, now);
        self.drain(out, now);
    }

    /// Carries out effects in their order until there are none; outcomes go back at once. What is to be stored waits
    /// until nothing else is wanted and is stored together, and what people are told waits for that.
    fn drain(&mut self, out: &mut impl Datagrams, now: Instant) {
        loop {
            while let Some(effect) = self.core.poll_effect() {
                self.carry_out(effect, out, now);
            }
            if self.unstored.is_empty() {
                return;
            }
            self.store(out, now);
        }
    }

    fn carry_out(&mut self, effect: Effect, out: &mut impl Datagrams, now: Instant) {
        let (ticket, removed, result) = match effect {
            Effect::Reply { .. }
            | Effect::AdminReply { .. }
            | Effect::SendUpstream { .. }
            | Effect::Errand(_)
            | Effect::SubscriptionReply { .. }
            | Effect::SendEvent(_)
            | Effect::CancelEvent { .. } => {
                if let Some(answer) = self.unstored.hold(effect) {
                    self.tell_outcome(answer, out);
                }
                return;
            }
            Effect::Notify(notice) => return self.notify(&notice),
            Effect::WritePinholes { ticket, pinholes } => {
                let written = self.write_pinholes(pinholes);
                let written = written.map(|()| Change::Settled);
                (ticket, None, written.map_err(|e| plane_failed("write", e)))
            }
            Effect::CountPinhole { request, id } => {
                let packets = self.pinhole_packets(id, now);
                let counted = Input::PinholeCounted { request, packets };
                return self.core.handle_input(counted, now);
            }
            Effect::Persist { ticket, change } => return self.unstored.push(ticket, change),
            Effect::WriteNat { ticket, entry } => {
                let written = self.plane.write(&entry);
                // What it displaced is told before it.
                self.hear();
                (ticket, None, written.map_err(|e| plane_failed("write", e)))
            }
            Effect::RemoveNat { ticket, entry } => {
                let removed = self.plane.remove(&entry);
                let removed = removed.map_err(|e| plane_failed("remove", e));
                (ticket, Some(entry), removed)
            }
        };
        let result = match result {
            Ok(Change::Settling(turn)) => {
                self.settling.push_back(Settling {
                    turn,
                    ticket,
                    removed,
                });
                return;
            }
            Ok(Change::Settled) => Ok(()),
            Err(error) => Err(error),
        };
        self.removed = removed.or(self.removed);
        self.done(ticket, result, now);
    }

    /// Answers whoever asked, and asks servers.
    fn tell_outcome(&mut self, answered: Effect, out: &mut impl Datagrams) {
        match answered {
            Effect::Reply { request, result } => {
                if let Some((reply, wish)) = self.soap.remove(&request) {
                    if let (Some(wish), Err(error)) = (wish, &result) {
                        self.tell_refused(&wish, *error);
                    }
                    answer(reply, result);
                }
            }
            Effect::AdminReply { request, result } => {
                if let Some(reply) = self.admin.remove(&request) {
                    reply.answer(result.map_or_else(Response::Error, |()| Response::Done));
                }
            }
            Effect::SendUpstream { server, payload } => out.send(server, &payload),
            Effect::Errand(errand) => out.run(errand),
            Effect::SubscriptionReply { request, result } => {
                if let Some(reply) = self.subscriptions.remove(&request) {
                    answer(reply, result);
                }
            }
            Effect::SendEvent(send) => {
                let mut links = self.network.lan.iter();
                let link = links.find(|link| link.addr == send.own);
                let interface = link.map(|link| link.interface.clone());
                self.courier.send(send, interface);
            }
            Effect::CancelEvent { number } => self.courier.cancel(number),
            Effect::WriteNat { .. }
            | Effect::RemoveNat { .. }
            | Effect::WritePinholes { .. }
            | Effect::CountPinhole { .. }
            | Effect::Persist { .. }
            | Effect::Notify(_) => {}
        }
    }

    fn done(&mut self, ticket: Ticket, result: Result<(), EffectError>, now: Instant) {
        if result.is_err() {
            self.runs.due = Some(self.runs.due.unwrap_or(now + RETRY));
        }
        self.core.handle_input(Input::Done { ticket, result }, now);
    }

    fn notify(&self, notice: &Notice) {
        match notice {
            Notice::Created(generation) => {
                self.tell(*generation, EventKind::MappingCreated, "mapping created");
            }
            Notice::Renewed(generation) => {
                self.tell(*generation, EventKind::MappingRenewed, "mapping renewed");
            }
            Notice::Removed(generation) => match self.removed {
                Some(entry) if entry.generation == *generation => {
                    info!(
                        %generation,
                        protocol = %entry.protocol,
                        internal = %entry.internal,
                        nat1 = %entry.external,
                        "mapping removed"
                    );
                    self.tell_entry(EventKind::MappingRemoved, &entry);
                }
                Some(_) | None => {
                    info!(%generation, "mapping removed");
                    let detail = format!("generation {generation}");
                    self.tell_text(EventKind::MappingRemoved, None, detail);
                }
            },
            Notice::ExternalAddress(Some(address)) => {
                info!(%address, "external address");
                self.tell_text(EventKind::ExternalAddress, None, address.to_string());
            }
            Notice::ExternalAddress(None) => {
                info!("external address is not known");
                self.tell_text(EventKind::ExternalAddress, None, "not known".to_owned());
            }
            Notice::StaticWaits {
                protocol,
                external,
                problem,
            } => {
                info!(
                    %protocol,
                    %external,
                    %problem,
                    "mapping of the configuration cannot be had now; trying again"
                );
                let detail = format!("{protocol} {external}: {problem}; trying again");
                self.tell_text(EventKind::StaticWaits, None, detail);
            }
            Notice::Moved { .. }
            | Notice::UpstreamRefused { .. }
            | Notice::GivenBack { .. }
            | Notice::ServerSpeaks { .. } => self.tell_upstream(notice),
            Notice::PinholeOpened(pinhole) => self.tell_opened(pinhole),
            Notice::PinholeClosed(pinhole, why) => self.tell_closed(pinhole, *why),
            Notice::EpochReset(server) => {
                info!(%server, "PCP server lost its state; asking for the mappings again");
                let detail = "asking for the mappings again".to_owned();
                self.tell_text(EventKind::ServerLostState, Some(*server), detail);
            }
        }
    }

    fn tell(&self, generation: Generation, kind: EventKind, what: &str) {
        match self.core.mapping(generation) {
            Some(mapping) => {
                info!(
                    %generation,
                    protocol = %mapping.protocol,
                    internal = %mapping.internal,
                    nat1 = %mapping.nat1,
                    external = mapping.claim.endpoint().map(tracing::field::display),
                    "{what}"
                );
                self.tell_mapping(kind, mapping);
            }
            None => info!(%generation, "{what}"),
        }
    }
}

/// The other side may have gone; then nobody misses the answer.
fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        debug!("the asker has gone before the answer");
    }
}

fn plane_failed(action: &str, error: DataPlaneError) -> EffectError {
    let kind = match &error {
        DataPlaneError::Full { .. } => EffectError::Full,
        DataPlaneError::InUse => EffectError::InUse,
        DataPlaneError::Kernel { .. } => EffectError::Failed,
    };
    log_plane(action, error);
    kind
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
