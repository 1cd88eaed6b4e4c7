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
mod effect;
mod events;
mod input;
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

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::mapping::Via;
use crate::mapping::policy::LanPrefix;
use crate::mapping::record::WallClock;
use crate::mapping::table::Table;
use crate::proto::firewall;
use crate::proto::gena::{self, Gena};
use crate::proto::pcp_client::{self, PcpClient};
use crate::proto::pcp_servers::{self, Selection};
use crate::proto::protection::{self as access, Protection};
use crate::types::device::LanDevices;
use crate::types::timed::Timed;
use crate::types::{ExternalPort, Generation, Instant, LocalAddrs, Protocol, UnixTime};
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
pub use effect::{Effect, Notice, StoreChange};
pub use input::{AdminCommand, EffectError, Input, RequestId, Saved, Ticket, WanState};
pub use marks::MAX as MAX_MARKS;
pub use servers::{Discovered, MAX_ASKED};
pub use settings::{
    Asking, Discovery, Mode, ModeSetting, PrivateWan, ServerSource, Settings, Translation,
};
pub use statics::{StaticProblem, WaitingStatic};
pub use status::{ServerState, ServerStatus};

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
    /// Ports of our NAT that a server refuses with every nonce of ours (AMB-02) or that this machine turned out to use,
    /// and until when.
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
                if firewall::is_meant_by(&call) {
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
        self.ask_for_subscribers(now);
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
        self.protection_timeout(now);
        self.pump(now);
        self.ask_for_subscribers(now);
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
            .chain(self.protection.as_ref().and_then(Protection::poll_timeout))
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
