//! Clock and observers.

mod effects;
mod wires;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::igd::UpnpRouter;
use super::kernel::Kernel;
use super::link::Link;
use super::natpmp::Gateway;
use super::oracle::Oracle;
use super::server::{Server, address};
use super::store::Store;
use super::subscriber::{LINK, Subscriber};
use crate::iwf::pinholes::Lan6;
use crate::iwf::{
    AdminCommand, Asking, Discovered, Effect, Input, Iwf, ModeSetting, Notice, RequestId,
    ServerSource, Settings, StoreChange, Ticket, Translation, WanState,
};
use crate::mapping::policy::LanPrefix;
use crate::mapping::{Mapping, State, StaticMapping};
use crate::reconcile::invariants::Violation;
use crate::reconcile::pinholes::differences;
use crate::reconcile::plan::EXPIRY_TOLERANCE;
use crate::reconcile::run::Run;
use crate::types::caller::Caller;
use crate::types::pin::Pin;
use crate::types::{Instant, Protocol, UnixTime};
use crate::wire::natpmp;
use crate::wire::pcp::Request;
use crate::wire::soap::{ActionResult, Call};

use wires::Datagram;

/// The WAN address at start.
pub(super) const WAN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// Our address on the LAN.
const LAN: LanPrefix = LanPrefix {
    own: host(1),
    len: 24,
    interface: INTERFACE,
};
/// A host of the LAN.
pub(super) const fn host(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 1, last)
}

/// Interface of the LAN that hosts call on, if nothing else is said of them.
pub(super) const INTERFACE: u32 = 2;
/// Where every simulation begins: not at the origin, so that nothing relies on it.
const START: Instant = Instant::from_millis(1_000_000);
const WALL: u64 = 1_800_000_000;

/// The wall clock at `now`, if it was set right.
fn wall(now: Instant) -> UnixTime {
    UnixTime::from_millis(WALL * 1000 + now.as_millis() - START.as_millis())
}

/// A clock that begins in 1970, as without a battery.
const UNSET: i64 = -(WALL as i64) * 1000;

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) iwf: Iwf,
    pub(super) settings: Settings,
    pub(super) server: Server,
    pub(super) link: Link,
    pub(super) kernel: Kernel,
    /// A run of the reconciler that goes on with every step, if there is to be one, and how many have ended.
    pub(super) run: Option<Run>,
    pub(super) runs: u64,
    pub(super) store: Store,
    pub(super) rng: StdRng,
    pub(super) wan: WanState,
    /// What the configuration states.
    pub(super) statics: Vec<StaticMapping>,
    /// When the store failed last.
    store_failed: Instant,
    /// Everything that happens is printed: a single run with IWF_SIM_TRACE set.
    pub(super) traces: bool,
    /// Whether requests sent and notices are kept: not where there would be too many.
    pub(super) keeps_sent: bool,
    /// Every request sent, whether it arrived or not.
    pub(super) sent: Vec<(Instant, Request)>,
    /// The same in NAT-PMP.
    pub(super) sent_natpmp: Vec<(Instant, natpmp::Request)>,
    /// Stands in the server's place, and speaks NAT-PMP only.
    pub(super) gateway: Option<Gateway>,
    /// Stands at the default router's address, and speaks UPnP.
    pub(super) upnp: Option<UpnpRouter>,
    /// Where each went.
    pub(super) sent_to: Vec<SocketAddr>,
    /// Other addresses of the server.
    pub(super) aliases: Vec<SocketAddr>,
    /// Addresses where nobody answers.
    pub(super) dead: BTreeSet<SocketAddr>,
    /// Addresses where the network says that nobody is there.
    pub(super) closed: BTreeSet<SocketAddr>,
    /// Another server with another clock and other mappings.
    pub(super) other: Option<(SocketAddr, Server)>,
    /// What the network says of itself, if it is asked.
    pub(super) discovered: Option<Discovered>,
    pub(super) notices: Vec<Notice>,
    /// Answers by request, with the time they were given.
    pub(super) replies: BTreeMap<u64, (Instant, ActionResult)>,
    pub(super) admin_replies: BTreeMap<u64, Result<(), String>>,
    /// The PIN that was shown last.
    pub(super) pin: Option<Pin>,
    /// Connections that the core wanted closed.
    pub(super) hung_up: Vec<u64>,
    /// Calls without an answer, with the time they were made.
    pub(super) open: BTreeMap<u64, Instant>,
    /// Effects that are carried out before the daemon dies.
    pub(super) crash_after: Option<u64>,
    pub(super) crashes: u32,
    /// The WAN has had another address.
    pub(super) moved: bool,
    /// By how many milliseconds the wall clock is wrong.
    pub(super) clock_error: i64,
    /// What clients were told.
    pub(super) oracle: Oracle,
    /// Packets that have come in by pinholes.
    pub(super) pinhole_packets: BTreeMap<u16, u64>,
    /// The LAN's IPv6, if it has any.
    pub(super) lan6: Option<Lan6>,
    /// Addresses that the kernel was made to ask, and when.
    pub(super) solicited: Vec<(Instant, std::net::IpAddr)>,
    /// The kernel refused something: the shell lets the reconciler run when it has carried out everything.
    nudged: bool,
    /// Does not check everything after each step: with many mappings that takes its time, and it counts as a look.
    pub(super) unchecked: bool,
    /// What waits for the next commit, and who is told something after it.
    unstored: Vec<(Ticket, StoreChange)>,
    answers: Vec<Effect>,
    wires: BTreeMap<(Instant, u64), Datagram>,
    last_request: u64,
    last_datagram: u64,
    /// Follows the events of one service.
    pub(super) subscriber: Option<Subscriber>,
}

impl World {
    /// A CPE behind a carrier with a configured server that answers.
    pub(super) fn new(seed: u64) -> Self {
        let settings = Settings {
            servers: vec![ServerSource::Address(address())],
            ..Settings::default()
        };
        Self::with(seed, settings)
    }

    /// A CPE whose own NAT is the outermost one.
    pub(super) fn local(seed: u64) -> Self {
        let settings = Settings {
            mode: ModeSetting::Local,
            ..Settings::default()
        };
        Self::with(seed, settings)
    }

    /// A CPE with these settings behind a carrier.
    pub(super) fn with(seed: u64, settings: Settings) -> Self {
        let mut world = Self {
            now: START,
            iwf: Iwf::new(settings.clone(), [seed as u8; 32], wall(START), START),
            settings,
            server: Server::new(START - Duration::from_secs(500)),
            link: Link::default(),
            kernel: Kernel::default(),
            run: None,
            runs: 0,
            store: Store::default(),
            rng: StdRng::seed_from_u64(seed),
            wan: WanState {
                address: Some(WAN),
                gateway: Some(Ipv4Addr::new(100, 64, 0, 1)),
                pool: Vec::new(),
                address6: None,
                gateway6: None,
            },
            statics: Vec::new(),
            store_failed: Instant::from_millis(0),
            traces: false,
            keeps_sent: true,
            sent: Vec::new(),
            sent_natpmp: Vec::new(),
            gateway: None,
            upnp: None,
            sent_to: Vec::new(),
            aliases: Vec::new(),
            dead: BTreeSet::new(),
            closed: BTreeSet::new(),
            other: None,
            discovered: None,
            notices: Vec::new(),
            replies: BTreeMap::new(),
            admin_replies: BTreeMap::new(),
            pin: None,
            hung_up: Vec::new(),
            open: BTreeMap::new(),
            crash_after: None,
            crashes: 0,
            moved: false,
            clock_error: 0,
            oracle: Oracle::default(),
            pinhole_packets: BTreeMap::new(),
            lan6: None,
            solicited: Vec::new(),
            nudged: false,
            unchecked: false,
            unstored: Vec::new(),
            answers: Vec::new(),
            wires: BTreeMap::new(),
            last_request: 0,
            last_datagram: 0,
            subscriber: None,
        };
        world.boot();
        world
    }

    /// The wall clock now.
    pub(super) fn wall(&self) -> UnixTime {
        let right = i64::try_from(wall(self.now).as_millis()).expect("this century");
        let shown = right.saturating_add(self.clock_error).max(0);
        UnixTime::from_millis(u64::try_from(shown).expect("not negative"))
    }

    /// The wall clock is wrong by so much from now on.
    pub(super) fn set_clock(&mut self, error: i64) {
        self.clock_error = error;
        self.input(Input::WallClock(self.wall()));
    }

    /// The daemon dies and starts again: only store and kernel are left of it.
    pub(super) fn crash(&mut self) {
        self.down_for(Duration::ZERO);
    }

    /// The daemon dies, and starts again after a while. What comes meanwhile is lost.
    pub(super) fn down_for(&mut self, while_down: Duration) {
        self.crashes += 1;
        self.trace(|| format!("the daemon dies, for {while_down:?}"));
        self.oracle.crashed(&self.open);
        self.open.clear();
        (self.unstored, self.answers) = (Vec::new(), Vec::new());
        self.now = self.now + while_down;
        let now = self.now;
        self.wires.retain(|(at, _), datagram| match datagram {
            Datagram::ToServer(..) => true,
            // The connections went with the daemon; what was sent on them may arrive.
            Datagram::EventSent(..) | Datagram::Returned(_) => false,
            Datagram::ToClient(..) | Datagram::Unreachable(_) | Datagram::Fetch(..) => *at > now,
        });
        self.kernel.sweep(now);
        let wall = self.wall();
        let seed = self.rng.random();
        self.iwf = Iwf::new(self.settings.clone(), seed, wall, self.now);
        if let Some(subscriber) = &mut self.subscriber {
            subscriber.forgotten();
        }
        let pinholes = self.kernel.pinholes.clone();
        let saved = self.store.saved(self.kernel.observe(), pinholes);
        self.iwf.restore(saved, self.now);
        self.nudged = true;
        self.boot();
    }

    /// The power goes, and comes again after a while. The clock may have to be set before it is right.
    pub(super) fn power_cut(&mut self, while_down: Duration, clock_is_kept: bool) {
        self.kernel.clear();
        if !clock_is_kept {
            self.clock_error = UNSET;
        }
        self.down_for(while_down);
    }

    fn boot(&mut self) {
        self.input(Input::Lan(vec![LAN]));
        self.input(Input::Links {
            links: vec![LINK],
            own: BTreeSet::new(),
        });
        if let Some(lan6) = self.lan6.clone() {
            self.input(Input::Lan6(lan6));
        }
        self.input(Input::Wan(self.wan.clone()));
        if let Some(discovered) = self.discovered.clone() {
            self.input(Input::Discovered(discovered));
        }
        self.input(Input::Statics(self.statics.clone()));
        self.subscribe_again();
    }

    /// The wall clock at that time.
    pub(super) fn wall_at(&self, at: Instant) -> UnixTime {
        wall(at)
    }

    /// The configuration is read again.
    pub(super) fn state(&mut self, statics: &[StaticMapping]) {
        self.statics = statics.to_vec();
        self.input(Input::Statics(self.statics.clone()));
    }

    pub(super) fn set_wan(&mut self, address: Option<Ipv4Addr>) {
        self.wan.address = address;
        if let Some(addr) = address {
            self.moved |= addr != WAN;
            self.readdress();
        }
        self.input(Input::Wan(self.wan.clone()));
    }

    /// The configuration has other external addresses besides the WAN's.
    pub(super) fn set_pool(&mut self, pool: &[Ipv4Addr]) {
        self.wan.pool = pool.to_vec();
        self.readdress();
        self.input(Input::Wan(self.wan.clone()));
    }

    fn readdress(&mut self) {
        if let Some(addr) = self.wan.address {
            let ours = [&[addr], self.wan.pool.as_slice()].concat();
            self.kernel.readdress(&ours, self.is_routed());
        }
    }

    /// Whether the data plane was told that nothing is translated.
    fn is_routed(&self) -> bool {
        self.iwf.translation() == Translation::Routed
    }

    /// The configuration has another mode.
    pub(super) fn set_mode(&mut self, mode: ModeSetting) {
        self.settings.mode = mode;
        self.set_asking();
    }

    /// What the settings say of servers is told.
    pub(super) fn set_asking(&mut self) {
        let settings = &self.settings;
        let asking = Asking {
            mode: settings.mode,
            servers: settings.servers.clone(),
            discovery: settings.discovery,
            third_party: settings.third_party,
        };
        self.input(Input::Asking(asking));
    }

    /// Lets the reconciler run, as the shell does after a failure and from time to time.
    pub(super) fn reconcile(&mut self) {
        self.kernel.reconcile(&self.iwf.desired(self.now));
        self.kernel.pinholes = self.iwf.desired_pinholes();
    }

    /// One turn of the run under way. What has changed since the one before is no drift.
    fn turn(&mut self) {
        let Some(mut run) = self.run.take() else {
            return;
        };
        let Ok(more) = run.turn(&mut self.kernel, self.iwf.wanted(self.now));
        self.runs += u64::from(!more);
        self.run = Some(if more { run } else { Run::default() });
        let wishes = self.kernel.take_wishes();
        // What has expired goes, and what the kernel had no room for comes.
        let drift: Vec<_> = wishes
            .iter()
            .filter(|(_, entry)| {
                let lasts = |at| at > self.now + EXPIRY_TOLERANCE;
                entry.expires.is_none_or(lasts)
            })
            .collect();
        let explained = self.kernel.capacity.is_some() || drift.is_empty();
        if !explained {
            let found = self.iwf.audit(&self.kernel.observe(), self.now);
            assert_ne!(found, [], "{drift:?} at {:?}", self.now);
        }
        for wish in wishes {
            self.kernel.repair_now(wish);
        }
    }

    #[expect(clippy::print_stdout, reason = "for who looks for a fault")]
    pub(super) fn trace(&self, what: impl FnOnce() -> String) {
        if self.traces {
            println!("{:>13} {}", self.now.as_millis(), what());
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        let before = self.iwf.translation();
        self.iwf.handle_input(input, self.now);
        if self.iwf.translation() != before {
            // Whatever is asked for anew has another nonce.
            self.moved = true;
            self.oracle.forget_nonces();
            // Without an address what is there waits for one.
            let ours: Vec<_> = self.wan.address.into_iter().collect();
            if self.is_routed() || !ours.is_empty() {
                self.kernel.readdress(&ours, self.is_routed());
            }
        }
        self.settle();
    }

    /// A call of any host.
    pub(super) fn call_from(&mut self, caller: Caller, call: Call) -> u64 {
        self.last_request += 1;
        let id = self.last_request;
        self.open.insert(id, self.now);
        let request = RequestId(id);
        let link = caller.link.or(Some(INTERFACE));
        self.input(Input::Soap {
            request,
            caller: Caller { link, ..caller },
            call,
            waited: Duration::ZERO,
        });
        id
    }

    /// A call of 192.168.1.`host`.
    pub(super) fn call(&mut self, host: u8, call: Call) -> u64 {
        self.last_request += 1;
        let id = self.last_request;
        self.open.insert(id, self.now);
        self.oracle.asked(id, host, &call, self.now);
        self.trace(|| format!("192.168.1.{host} calls {} {:?}", call.action, call.args));
        self.input(Input::Soap {
            request: RequestId(id),
            caller: Caller {
                link: Some(INTERFACE),
                ..self::host(host).into()
            },
            call,
            waited: Duration::ZERO,
        });
        id
    }

    pub(super) fn admin_delete(&mut self, protocol: Protocol, external_port: u16) -> u64 {
        self.last_request += 1;
        let id = self.last_request;
        self.oracle.admin(protocol, external_port);
        self.input(Input::Admin {
            request: RequestId(id),
            command: AdminCommand::Delete {
                protocol,
                external_port,
            },
        });
        id
    }

    /// Makes a call and waits for its answer: the out arguments, or the error code.
    pub(super) fn ask(&mut self, host: u8, call: Call) -> Result<Vec<String>, u16> {
        let id = self.call(host, call);
        self.wait_for(id)
    }

    /// Waits for an answer, at most 30 s.
    pub(super) fn wait_for(&mut self, id: u64) -> Result<Vec<String>, u16> {
        let end = self.now + Duration::from_secs(30);
        while !self.replies.contains_key(&id) && self.step(end) {}
        match self.replies.get(&id) {
            Some((_, Ok(out))) => Ok(out.iter().map(|(_, value)| value.clone()).collect()),
            Some((_, Err(error))) => Err(error.code),
            None => panic!("call {id} was not answered within 30 s"),
        }
    }

    /// AMB-06: how long an answer may take.
    fn patience(&self) -> Duration {
        self.settings.deadline + Duration::from_millis(500)
    }

    /// Seconds a call took.
    pub(super) fn took(&self, id: u64, asked: Instant) -> u64 {
        self.replies[&id]
            .0
            .saturating_duration_since(asked)
            .as_secs()
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, seconds: u64) {
        self.run_until(self.now + Duration::from_secs(seconds));
    }

    pub(super) fn run_until(&mut self, end: Instant) {
        while self.step(end) {}
        self.now = self.now.max(end);
    }

    /// Goes on to the next event before `end`. False: there is none.
    fn step(&mut self, end: Instant) -> bool {
        let arrival = self.wires.keys().next().map(|(at, _)| *at);
        let timeout = self.iwf.poll_timeout();
        let next = match arrival.into_iter().chain(timeout).min() {
            Some(next) if next <= end => next,
            _other => return false,
        };
        self.now = self.now.max(next);
        if arrival == Some(next) {
            let (_, datagram) = self.wires.pop_first().expect("just seen");
            self.deliver(datagram);
        } else {
            self.iwf.handle_timeout(self.now);
            self.settle();
            let again = self.iwf.poll_timeout();
            assert!(
                again.is_none_or(|at| at > self.now),
                "something is due for ever at {:?}",
                self.now
            );
        }
        true
    }

    /// Active mappings.
    pub(super) fn active(&self) -> Vec<&Mapping> {
        let active = |m: &&Mapping| m.state == State::Active;
        self.iwf.mappings().filter(active).collect()
    }

    /// The only active mapping.
    pub(super) fn only(&self) -> Mapping {
        let active = self.active();
        assert_eq!(active.len(), 1, "{active:?}");
        active[0].clone()
    }

    /// What has to hold between any two steps.
    pub(super) fn check(&self) {
        assert!(self.iwf.is_consistent(), "at {:?}", self.now);
        let mut violations = self.iwf.audit(&self.kernel.observe(), self.now);
        if self.kernel.capacity.is_some() {
            // There is no room for what has come back since.
            violations.retain(|v| !matches!(v, Violation::Missing(_)));
        }
        assert_eq!(violations, [], "at {:?}", self.now);
        let drift = differences(&self.kernel.pinholes, &self.iwf.desired_pinholes());
        assert_eq!(drift, [], "at {:?}", self.now);
        for (id, asked) in &self.open {
            let waits = self.now.saturating_duration_since(*asked);
            assert!(waits <= self.patience(), "call {id} waits {waits:?}");
        }
        // What the store has not taken it is given again within a minute.
        let in_doubt = self.now < self.store_failed + Duration::from_secs(62);
        for mapping in self.active() {
            let record = self.store.records.get(&mapping.generation);
            assert!(
                record.is_some() || in_doubt,
                "active but not stored: {mapping:?}"
            );
        }
        self.oracle.check(self);
        if let Some(subscriber) = &self.subscriber {
            subscriber.check(&self.iwf, self.now);
        }
    }
}
