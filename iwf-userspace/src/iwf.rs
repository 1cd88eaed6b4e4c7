//! Composes the machines: [`Input`] in, [`Effect`] out.
//!
//! Order of the effects of a new mapping: upstream lease, persist, data plane, reply. Success is never
//! answered before the kernel holds the entry; failure undoes in reverse order.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)
)]

mod add;
mod address;
pub mod departed;
mod events;
mod job;
mod leases;
mod marks;
mod pace;
pub mod pinholes;
pub mod policy;
mod probe;
mod protection;
mod ranges;
mod restore;
mod servers;
pub mod settings;
mod soap_calls;
mod statics;
mod status;
mod translation;
mod unsaved;
mod upstream;
mod variables;
mod view;
mod wan;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::mapping::pinholes::PinholeRecord;
use crate::mapping::policy::LanPrefix;
use crate::mapping::record::{LeaseKey, MappingRecord, Mark, WallClock};
use crate::mapping::table::Table;
use crate::mapping::{StaticMapping, Via};
use crate::proto::firewall;
use crate::proto::gena::{self, Gena};
use crate::proto::igd_client;
use crate::proto::pcp_client::{self, PcpClient};
use crate::proto::pcp_servers::{self, Selection};
use crate::proto::protection::{self as access, Protection};
use crate::types::access::Identity;
use crate::types::caller::Caller;
use crate::types::device::LanDevices;
use crate::types::pinhole::Pinhole;
use crate::types::timed::Timed;
use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Generation, Instant, LocalAddrs, NatEntry, Protocol,
    UnixTime,
};
use crate::wire;
use crate::wire::pcp::ResultCode;
use crate::wire::scpd::Service;
use crate::wire::soap;
use address::AddressQuery;
use departed::Departures;
use events::Told;
use job::Job;
use leases::Leases;
use marks::Marks;
use pace::Pace;
use pinholes::{Ending, Firewall, Lan6};
use probe::Probe;
use ranges::Removal;
use soap_calls::Call;
use statics::Statics;
use unsaved::Unsaved;
use view::View;

pub use crate::proto::igd::{AccessType, LinkCounters};
pub use crate::proto::igd_client::{Errand, Fetched, Input as Returned};
pub use crate::proto::pcp_client::Speaks;
pub use crate::proto::pcp_servers::Origin;
pub use marks::MAX as MAX_MARKS;
pub use servers::{Discovered, MAX_ASKED};
pub use settings::{
    Asking, Discovery, Mode, ModeSetting, PrivateWan, ServerSource, Settings, Translation,
};
pub use statics::{StaticProblem, WaitingStatic};
pub use status::{ServerState, ServerStatus};

/// Names one request of a control point or administrator until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names one effect that can fail until its outcome comes back as [`Input::Done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What the world tells the core.
#[derive(Clone, Debug)]
pub enum Input {
    /// A control point on the LAN called an action. Answered exactly once by [`Effect::Reply`].
    Soap {
        /// Names the call in the reply.
        request: RequestId,
        /// Who calls.
        caller: Caller,
        /// The decoded call.
        call: soap::Call,
        /// For how long it has been on its way here, which is time of its deadline.
        waited: Duration,
    },
    /// A control point asked at the event URL of a service. Answered at once by [`Effect::SubscriptionReply`].
    Subscription {
        /// Names the request in the answer.
        request: RequestId,
        /// The service.
        service: &'static Service,
        /// Who is at the other end of the connection.
        host: gena::Host,
        /// Where it came to.
        at: gena::At,
        /// What is asked.
        wanted: wire::gena::Request,
    },
    /// What came of an [`Effect::SendEvent`].
    EventSent {
        /// The number of the message.
        number: u64,
        /// Whether the subscriber has confirmed it.
        result: Result<(), gena::SendError>,
    },
    /// A connection over TLS is closed.
    SecureClosed {
        /// Which.
        connection: u64,
    },
    /// The owner of the router asks through the control socket. Answered by [`Effect::AdminReply`].
    Admin {
        /// Names the request in the answer.
        request: RequestId,
        /// What to do.
        command: AdminCommand,
    },
    /// A datagram arrived from a server's socket, or on the announcement group from that address.
    Upstream {
        /// Its source; for an announcement the server's address and the port requests go to.
        from: SocketAddr,
        /// The UDP payload.
        payload: Vec<u8>,
    },
    /// The kernel reported that a datagram to this server could not be delivered (hard ICMP error).
    UpstreamUnreachable {
        /// Where the datagram was sent to.
        server: SocketAddr,
    },
    /// The outcome of an effect that carried a ticket.
    Done {
        /// The effect's ticket.
        ticket: Ticket,
        /// Its outcome.
        result: Result<(), EffectError>,
    },
    /// The WAN side changed, or is told for the first time.
    Wan(WanState),
    /// What the network says of its PCP servers changed, or is told for the first time. Complete, never a change.
    Discovered(Discovered),
    /// The DHCP client of the system has renewed the WAN's lease, whether or not that changed anything.
    Renewed,
    /// What came of [`Effect::Errand`].
    Returned(igd_client::Input),
    /// The LAN prefixes changed, or are told for the first time. Complete, never a change.
    Lan(Vec<LanPrefix>),
    /// The links of the LAN that events may go by, and every IPv6 address of this machine. Complete, never a change.
    Links {
        /// Our addresses there.
        links: Vec<gena::Link>,
        /// This machine's.
        own: BTreeSet<Ipv6Addr>,
    },
    /// The LAN's IPv6 changed, or is told for the first time.
    Lan6(Lan6),
    /// The outcome of [`Effect::CountPinhole`]; `None`: the kernel does not tell.
    PinholeCounted {
        /// The effect's request.
        request: RequestId,
        /// Packets that came in by it.
        packets: Option<u64>,
    },
    /// Ports of our NAT that this machine uses itself. Complete, never a change.
    OwnPorts(BTreeSet<(Protocol, u16)>),
    /// The external ports of this machine's own services changed. Complete, never a change. Mappings that are there
    /// stay until they end.
    Reserved(Vec<(Protocol, u16)>),
    /// The mappings that the configuration states. Complete, never a change; at most one per protocol and port.
    /// Those of an earlier life stay until this is told for the first time.
    Statics(Vec<StaticMapping>),
    /// The owner has changed the policy.
    Policy(policy::Wanted),
    /// Who is on the LAN, told from time to time.
    Devices(LanDevices),
    /// What decides about who is asked has changed in the configuration. No mapping is lost by it.
    Asking(Asking),
    /// Numbers of the WAN link, told from time to time for WANCommonInterfaceConfig.
    Link(LinkCounters),
    /// The wall clock was set, or is told again.
    WallClock(UnixTime),
}

/// Why an effect failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EffectError {
    /// The kernel map or the store has no room.
    #[error("no room")]
    Full,
    /// Another owner holds that external endpoint in the kernel (the CPE's own socket or a static entry).
    #[error("external endpoint in use")]
    InUse,
    /// Anything else; the shell has logged it.
    #[error("failed")]
    Failed,
}

/// What is known of the WAN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WanState {
    /// Address of the WAN interface, which is NAT1's first external address and the one that PCP requests come from.
    /// `None` while it is down.
    pub address: Option<Ipv4Addr>,
    /// Next hop of the IPv4 default route on the WAN.
    pub gateway: Option<Ipv4Addr>,
    /// External addresses besides that one; none counts without it.
    pub pool: Vec<Ipv4Addr>,
    /// Global IPv6 address of the WAN interface: what requests to servers with IPv6 addresses come from.
    pub address6: Option<Ipv6Addr>,
    /// Next hop of the IPv6 default route on the WAN; one of the link is meant to be on the WAN's.
    pub gateway6: Option<Ipv6Addr>,
}

impl WanState {
    /// Whom servers see.
    pub const fn local(&self) -> LocalAddrs {
        LocalAddrs {
            v4: self.address,
            v6: self.address6,
        }
    }
}

/// A request of the router's owner, not bound by the policy for LAN hosts.
#[derive(Clone, Debug)]
pub enum AdminCommand {
    /// Remove a mapping by protocol and external port (as the listing shows it).
    Delete {
        /// Transport protocol.
        protocol: Protocol,
        /// Outermost external port.
        external_port: u16,
    },
    /// Change who may what.
    Access(access::OwnerCommand),
}

/// What the core wants done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Answer a control point: out arguments in SCPD order, or a UPnP error.
    Reply {
        /// The call that is answered.
        request: RequestId,
        /// The answer.
        result: soap::ActionResult,
    },
    /// Answer a request at an event URL.
    SubscriptionReply {
        /// The request that is answered.
        request: RequestId,
        /// What was granted; `None` for the end of a subscription.
        result: Result<Option<gena::Granted>, gena::Refusal>,
    },
    /// Send an event message to a subscriber. Answered by [`Input::EventSent`]; what is never answered has failed.
    SendEvent(gena::Send),
    /// Stop to send it: nobody wants to hear of it any more.
    CancelEvent {
        /// The number of the message.
        number: u64,
    },
    /// Close a connection over TLS when the calls that came by it are answered.
    HangUp {
        /// Which.
        connection: u64,
    },
    /// Answer the administrator.
    AdminReply {
        /// The request that is answered.
        request: RequestId,
        /// The answer; an error is a sentence for people.
        result: Result<(), String>,
    },
    /// Send a datagram to a PCP server from the socket kept for that server. May be lost; no ticket.
    SendUpstream {
        /// Where to.
        server: SocketAddr,
        /// The UDP payload.
        payload: Vec<u8>,
    },
    /// Do something on the WAN link; what comes of it is [`Input::Returned`].
    Errand(Errand),
    /// Write both kernel entries of a mapping, or overwrite those of the same generation or endpoint.
    WriteNat {
        /// Names it in [`Input::Done`].
        ticket: Ticket,
        /// The entry.
        entry: NatEntry,
    },
    /// Remove both kernel entries and end the inbound sessions that used them.
    RemoveNat {
        /// Names it in [`Input::Done`].
        ticket: Ticket,
        /// The entry.
        entry: NatEntry,
    },
    /// Make the pinholes of control points in the kernel these. Complete, never a change. The sessions of those that are
    /// gone have ended when it is done.
    WritePinholes {
        /// Names it in [`Input::Done`].
        ticket: Ticket,
        /// All of them.
        pinholes: Vec<Pinhole>,
    },
    /// Count the packets that have come in by a pinhole; [`Input::PinholeCounted`] is the answer.
    CountPinhole {
        /// The call that asks.
        request: RequestId,
        /// The pinhole.
        id: u16,
    },
    /// Have the kernel ask whether somebody is at this address of the LAN. What comes of it is among the neighbours that are
    /// told next.
    Solicit(IpAddr),
    /// Store a change durably before anything that follows depends on it.
    Persist {
        /// Names it in [`Input::Done`].
        ticket: Ticket,
        /// The change.
        change: StoreChange,
    },
    /// Something worth an INFO line.
    Notify(Notice),
}

/// One atomic change of the store.
#[derive(Clone, Debug)]
pub enum StoreChange {
    /// Insert or replace the record of this generation.
    Put(MappingRecord),
    /// Remove the record of this generation; absent is fine.
    Delete(Generation),
    /// Insert or replace the mark of this lease.
    Mark(Mark),
    /// Remove the mark of this lease; absent is fine.
    Unmark(LeaseKey),
    /// SystemUpdateID to begin a new life with: not less than what anybody was told.
    UpdateId(u32),
    /// Insert or replace the record of the pinhole of this id.
    PutPinhole(PinholeRecord),
    /// Remove the record of this pinhole; absent is fine.
    DeletePinhole(u16),
    /// Changes of the access list.
    Access(Vec<access::Change>),
    /// A server's clock as seen at that time. Written when a server is met and when it restarted, not with
    /// every response: the tolerance of the epoch test grows with the time that passed.
    Epoch {
        /// Address of the server.
        server: IpAddr,
        /// Its clock.
        epoch: Epoch,
        /// Our wall clock at the same time.
        seen: UnixTime,
    },
}

/// What store and kernel kept, for [`Iwf::restore`].
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// Every mapping.
    pub mappings: Vec<MappingRecord>,
    /// The largest generation ever used.
    pub last_generation: u32,
    /// Last epoch seen per server, with the wall-clock time it was seen.
    pub epochs: Vec<(IpAddr, Epoch, UnixTime)>,
    /// What servers may hold besides what mappings stand on.
    pub marks: Vec<Mark>,
    /// SystemUpdateID.
    pub update_id: u32,
    /// What the kernel has kept of an earlier life.
    pub held: Vec<NatEntry>,
    /// Every pinhole of control points.
    pub pinholes: Vec<PinholeRecord>,
    /// Who may do more than everybody.
    pub identities: Vec<Identity>,
    /// The id that was given last.
    pub last_pinhole: u16,
    /// The pinholes that the kernel has kept.
    pub held_pinholes: Vec<Pinhole>,
}

/// What happened, for logs and listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A mapping became active.
    Created(Generation),
    /// The upstream lease of a mapping was confirmed again.
    Renewed(Generation),
    /// A mapping is gone.
    Removed(Generation),
    /// A mapping has another outermost external endpoint than before, which its owner may want to publish.
    Moved {
        /// The mapping.
        generation: Generation,
        /// Where remote hosts reached it.
        before: ExternalEndpoint,
        /// Where they do now.
        after: ExternalEndpoint,
    },
    /// A server refused something about a mapping.
    UpstreamRefused {
        /// The mapping, or the name of a question about a port or an address.
        generation: Generation,
        /// Who refused.
        server: SocketAddr,
        /// Why.
        result: ResultCode,
        /// Whether it was there before and is in danger now.
        renewal: bool,
    },
    /// A server granted another port than the only one that will do; it is being given back.
    GivenBack {
        /// The mapping.
        generation: Generation,
        /// Who granted it.
        server: SocketAddr,
    },
    /// It became known what a server speaks.
    ServerSpeaks {
        /// The server.
        server: SocketAddr,
        /// What it speaks.
        speaks: Speaks,
    },
    /// The outermost external address changed; `None` means unknown.
    ExternalAddress(Option<Ipv4Addr>),
    /// A mapping of the configuration cannot be had now; it is tried again.
    StaticWaits {
        /// Transport protocol.
        protocol: Protocol,
        /// The external port stated.
        external: ExternalPort,
        /// What is in its way.
        problem: StaticProblem,
    },
    /// A call is about to be refused, for this reason.
    Refused {
        /// The call.
        request: RequestId,
        /// The reason.
        why: policy::Why,
    },
    /// A mapping is taken away that its control point still wants.
    Withdrawn {
        /// The mapping.
        generation: Generation,
        /// The reason, for people.
        why: String,
    },
    /// A pinhole is open that a control point asked for.
    PinholeOpened(Pinhole),
    /// It is closed.
    PinholeClosed(Pinhole, Ending),
    /// A server lost its state or restarted (RFC 6887 section 8.5); its mappings are being re-requested.
    EpochReset(SocketAddr),
}

/// The interworking function.
///
/// The caller feeds it inputs and due timeouts and then drains [`Iwf::poll_effect`]; effects are carried out in
/// their order.
#[derive(Debug)]
pub struct Iwf {
    settings: Settings,
    clock: WallClock,
    rng: StdRng,
    table: Table,
    client: Leases,
    selection: Selection,
    discovered: Discovered,
    wan: WanState,
    /// The last address the WAN had.
    last_wan: Option<Ipv4Addr>,
    /// The last ones that requests came from.
    last_local: LocalAddrs,
    lan: Vec<LanPrefix>,
    devices: LanDevices,
    departures: Departures,
    link: LinkCounters,
    mode: Mode,
    /// What mappings are placed for.
    translation: Translation,
    connected_since: Option<Instant>,
    /// Address of the newest grant, kept when its mapping goes (AMB-07).
    external: Option<Ipv4Addr>,
    last_generation: u32,
    last_ticket: u64,
    jobs: Timed<Generation, Job>,
    tickets: BTreeMap<Ticket, Generation>,
    deferred: Vec<(Generation, Call)>,
    removals: BTreeMap<RequestId, Removal>,
    view: View,
    probes: BTreeMap<Generation, Probe>,
    pace: Pace,
    address: AddressQuery,
    /// Ports of our NAT that a server refuses with every nonce of ours, and until when (AMB-02).
    barred: BTreeMap<(Protocol, ExternalPort), Instant>,
    statics: Statics,
    unsaved: Unsaved,
    marks: Marks,
    told: Told,
    gena: Gena,
    firewall: Firewall,
    /// Who may do more than everybody; `None`: nobody.
    protection: Option<Protection>,
    /// The change of the access list that is being stored.
    access_ticket: Option<Ticket>,
    effects: VecDeque<Effect>,
}

impl Iwf {
    /// A core without mappings. `seed` comes from the operating system's entropy: nonces and ports are drawn
    /// from it. `wall` is the wall clock at `now`.
    pub fn new(settings: Settings, seed: [u8; 32], wall: UnixTime, now: Instant) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let trusted = settings.third_party;
        let mut iwf = Self {
            clock: WallClock::new(wall, now),
            table: Table::new(settings.limits),
            client: Leases::new(
                PcpClient::new(StdRng::from_seed(rng.random())),
                settings.nat_pmp,
                settings.igd,
                now,
            ),
            selection: Selection::default(),
            discovered: Discovered::default(),
            settings,
            gena: Gena::new(StdRng::from_seed(rng.random())),
            rng,
            wan: WanState::default(),
            last_wan: None,
            last_local: LocalAddrs::default(),
            lan: Vec::new(),
            devices: LanDevices::default(),
            departures: Departures::default(),
            link: LinkCounters::default(),
            mode: Mode::Down,
            translation: Translation::Here,
            connected_since: None,
            external: None,
            last_generation: 0,
            last_ticket: 0,
            jobs: Timed::new(),
            tickets: BTreeMap::new(),
            deferred: Vec::new(),
            removals: BTreeMap::new(),
            view: View::default(),
            probes: BTreeMap::new(),
            pace: Pace::default(),
            address: AddressQuery::default(),
            barred: BTreeMap::new(),
            statics: Statics::default(),
            unsaved: Unsaved::default(),
            marks: Marks::default(),
            told: Told::default(),
            firewall: Firewall::default(),
            protection: None,
            access_ticket: None,
            effects: VecDeque::new(),
        };
        iwf.tell(pcp_client::Input::Trusted(trusted), now);
        iwf.translation = iwf.translation();
        let translating = iwf.is_translating();
        iwf.client.set_translating(translating, now);
        iwf
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Soap {
                request,
                caller,
                call,
                waited,
            } => {
                if let Some(mac) = caller.mac {
                    self.devices.learn(caller.addr, mac);
                }
                if call.service == firewall::SERVICE && !call.is_query() {
                    self.firewall_call(request, caller, &call, now);
                    return;
                }
                if call.service == access::SERVICE && !call.is_query() {
                    self.protection_call(request, caller, call, now);
                    return;
                }
                let deadline = now + self.settings.deadline.saturating_sub(waited);
                let rights = self.rights(&caller);
                let call = Call::new(request, &caller, rights, call, deadline);
                self.dispatch(call, now);
            }
            Input::Subscription {
                request,
                service,
                host,
                at,
                wanted,
            } => self.subscription(request, service, (host, at), wanted, now),
            Input::EventSent { number, result } => {
                let sent = gena::Input::Sent { number, result };
                self.gena.handle_input(sent, now);
            }
            Input::SecureClosed { connection } => {
                self.protection_input(access::Input::Closed { connection }, now);
            }
            Input::Admin { request, command } => self.admin(request, command, now),
            Input::Upstream { from, payload } => {
                self.tell(pcp_client::Input::Datagram { from, payload }, now);
            }
            Input::UpstreamUnreachable { server } => {
                self.tell(pcp_client::Input::Unreachable(server), now);
                // The port of PCP is closed where UPnP is spoken.
                if self.client.via(server) != Via::Igd {
                    self.select(pcp_servers::Input::Unreachable(server), now);
                }
            }
            Input::Done { ticket, result } => {
                if self.pinhole_done(ticket, result, now) || self.access_done(ticket, result, now) {
                    return;
                }
                self.done(ticket, result, now);
                // A lease that has ended while its mapping was being changed is due since.
                self.end_leases(now);
            }
            Input::Wan(state) => self.wan_changed(state, now),
            Input::Discovered(discovered) => self.discover(discovered, now),
            Input::Returned(input) => self.client.returned(input, now),
            Input::Renewed => self.client.renewed(now),
            Input::Lan(prefixes) => {
                self.lan = prefixes;
                if self.is_up() {
                    self.follow_servers(now);
                }
                self.statics.retry_now(now);
            }
            Input::Links { links, own } => {
                let lan = gena::Input::Lan { links, own };
                self.gena.handle_input(lan, now);
            }
            Input::Lan6(lan) => self.lan6_changed(lan, now),
            Input::PinholeCounted { request, packets } => self.pinhole_counted(request, packets),
            Input::OwnPorts(ports) => self.settings.policy.own = ports,
            Input::Reserved(ports) => {
                self.settings.policy.reserved = ports.into_iter().collect();
            }
            Input::Statics(list) => self.statics.set(list, now),
            Input::Policy(wanted) => self.set_policy(wanted, now),
            Input::Devices(devices) => self.set_devices(devices, now),
            Input::Asking(asking) => self.set_asking(asking, now),
            Input::Link(counters) => self.link = counters,
            Input::WallClock(wall) => self.set_clock(wall, now),
        }
        self.pump(now);
        self.follow_statics(now);
        self.settle();
        self.follow_events(now);
    }

    /// Brings the order of deadlines up to date with what was changed.
    fn settle(&mut self) {
        self.jobs.settle(|_, job| job.next_event(), |_, _| {});
    }

    /// Does everything due at `now`; calling twice changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.client.handle_timeout(now);
        self.selection.handle_timeout(now);
        self.heed_selection(now);
        self.pump(now);
        self.choose_mode(now);
        self.end_jobs(now);
        self.end_deferred(now);
        self.end_leases(now);
        self.end_probes(now);
        self.end_address_query(now);
        self.store_again(now);
        self.end_pinholes(now);
        self.pump(now);
        self.follow_statics(now);
        self.settle();
        self.gena.handle_timeout(now);
        self.follow_events(now);
    }

    /// When [`Iwf::handle_timeout`] has to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deferred = self.deferred.iter().map(|(_, call)| call.deadline);
        self.client
            .poll_timeout()
            .into_iter()
            .chain(self.jobs.next())
            .chain(self.selection.poll_timeout())
            .chain(deferred)
            .chain(self.lease_ends())
            .chain(self.probes.values().map(Probe::next_event))
            .chain(self.address.next_event())
            .chain(self.next_static())
            .chain(self.unsaved.next_event())
            .chain(self.gena.poll_timeout())
            .chain(self.firewall.next_event())
            .min()
    }

    /// The next effect, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn tell(&mut self, input: pcp_client::Input, now: Instant) {
        self.client.handle_input(input, now);
    }

    fn notify(&mut self, notice: Notice) {
        self.effects.push_back(Effect::Notify(notice));
    }

    fn new_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// A name nobody ever had. `None` after four thousand million mappings.
    fn new_generation(&mut self) -> Option<Generation> {
        self.last_generation = self.last_generation.checked_add(1)?;
        Some(Generation(self.last_generation))
    }
}
