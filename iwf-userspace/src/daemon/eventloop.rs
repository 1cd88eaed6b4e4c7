//! The one task that owns core, data plane and store, and what feeds it.
//!
//! Everything that happens arrives over bounded channels and is taken one at a time; a sender that finds its
//! channel full waits, or tells its client to come again. Nothing else changes state.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, info, warn};

use super::clock;
use super::config::{Config, Mode};
use super::control::server::Call as ControlCall;
use super::control::{Held, Request, Response};
use super::dataplane::DataPlane;
use super::devices::Devices;
use super::discovery::{Discovery, Report};
use super::gena::{Outcome, SubscriptionCall};
use super::hooks::Hooks;
use super::http::SoapCall;
use super::lan::LanServices;
use super::link;
use super::logging::LogFilter;
use super::metrics::Metrics;
use super::netstate::NetState;
use super::own_ports;
use super::settings;
use super::shell::{Facts, Shell};
use super::signals::{Wish, notify};
use super::softwire::Softwires;
use super::store::Store;
use super::upstream::{Upstream, UpstreamEvent};
use crate::iwf::LinkCounters;
use crate::types::Instant as BootInstant;

/// Calls of control points waiting for the core. Beyond it HTTP answers 503.
pub const MAX_WAITING_CALLS: usize = 64;
/// Datagrams of PCP servers waiting. Beyond it the kernel's socket buffers hold them.
pub const MAX_WAITING_DATAGRAMS: usize = 64;
/// Requests of the owner waiting.
pub const MAX_WAITING_REQUESTS: usize = 8;

/// Time between two looks at the link, the clock and the counters.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks at what the packet programs tell, while somebody follows the events. Else each slice of the sweep
/// looks.
const HEAR: Duration = Duration::from_millis(250);
/// Why DHCP servers are not asked.
const NOT_LOOKING: &str = "DHCP servers are not asked: mode is local, upstream.pcp_servers names whom to ask, or \"dhcp\" \
     is not in upstream.discovery";
/// A timer far enough away that it stands for none.
const IDLE: Duration = Duration::from_secs(3600);

/// Adds what has come already, up to so many.
fn and_what_waits<T>(from: &mut mpsc::Receiver<T>, to: &mut Vec<T>, most: usize) {
    while to.len() < most
        && let Ok(next) = from.try_recv()
    {
        to.push(next);
    }
}

/// Where events come from.
#[derive(Debug)]
pub struct Inputs {
    /// Control points.
    pub calls: mpsc::Receiver<SoapCall>,
    /// Control points at event URLs.
    pub subscriptions: mpsc::Receiver<SubscriptionCall>,
    /// Connections over TLS that are closed.
    pub closed: mpsc::Receiver<u64>,
    /// What comes of event messages.
    pub outcomes: mpsc::Receiver<Outcome>,
    /// The owner.
    pub requests: mpsc::Receiver<ControlCall>,
    /// PCP servers.
    pub datagrams: mpsc::Receiver<UpstreamEvent>,
    /// Interfaces and addresses.
    pub network: watch::Receiver<NetState>,
    /// The operator.
    pub wishes: mpsc::Receiver<Wish>,
}

/// Everything the loop owns.
#[derive(Debug)]
pub struct Daemon<P, S> {
    /// Core, data plane and store.
    pub shell: Shell<P, S>,
    /// Sockets towards PCP servers.
    pub upstream: Upstream,
    /// Asks DHCP servers for PCP servers.
    pub discovery: Discovery,
    /// Looks at who is on the LAN.
    pub devices: Devices,
    /// Looks after the DS-Lite softwire.
    pub softwires: Softwires,
    /// Servers for LAN hosts.
    pub lan: LanServices,
    /// Programs of the owner.
    pub hooks: Hooks,
    /// Server for who collects metrics.
    pub metrics: Metrics,
    /// Identity of the device.
    pub uuid: [u8; 16],
    /// What it was told.
    pub config: Config,
    /// Where to read it again.
    pub config_path: PathBuf,
    /// Which lines are logged.
    pub log_filter: LogFilter,
}

impl<P: DataPlane, S: Store> Daemon<P, S> {
    /// Runs until told to stop, then says goodbye to the LAN. Programs, links and maps stay: forwarding goes on.
    pub async fn run(mut self, mut inputs: Inputs) {
        let started = clock::now();
        self.follow_softwire();
        self.follow(&mut inputs.network);
        self.metrics.follow(self.config.metrics);
        // Before anybody else can ask for their ports.
        self.follow_mappings();
        self.shell.timeout(&mut self.upstream, clock::now());
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep_at = Instant::now();
        let mut hear = interval(HEAR);
        hear.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reconcile = interval(self.config.reconcile_interval);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of an interval is at once; the start has reconciled already.
        reconcile.reset();
        // What has come meanwhile is done together, because its changes cost one commit then.
        let (mut events, mut calls) = (Vec::new(), Vec::new());
        info!(mode = settings::mode_name(self.config.mode), "ready");
        notify("READY=1");

        loop {
            let due = self.shell.poll_timeout().map_or(IDLE, |due| {
                due.saturating_duration_since(clock::now()).min(IDLE)
            });
            tokio::select! {
                wish = inputs.wishes.recv() => match wish {
                    Some(Wish::Stop) | None => break,
                    Some(Wish::Reload) => {
                        let interval_before = self.config.reconcile_interval;
                        self.reload();
                        self.follow_discovery(&inputs.network);
                        // Its external addresses may be others.
                        self.follow(&mut inputs.network);
                        if self.config.reconcile_interval != interval_before {
                            reconcile = interval(self.config.reconcile_interval);
                            reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
                            // As at the start: reading anew leads to a run by itself.
                            reconcile.reset();
                        }
                    }
                },
                changed = inputs.network.changed() => match changed {
                    Ok(()) => self.follow(&mut inputs.network),
                    Err(_) => {
                        error!("the network watcher ended; stopping");
                        break;
                    }
                },
                devices = self.devices.look() => {
                    self.shell
                        .set_devices(devices, &mut self.upstream, clock::now());
                }
                1.. = inputs.datagrams.recv_many(&mut events, MAX_WAITING_DATAGRAMS) => {
                    and_what_waits(&mut inputs.calls, &mut calls, MAX_WAITING_CALLS);
                    self.shell.take(events.drain(..), calls.drain(..), &mut self.upstream, clock::now());
                }
                () = self.discovery.changed() => {
                    let report = self.discovery.report();
                    self.shell.discovered(report, &mut self.upstream, clock::now());
                    self.softwires.hint(self.shell.aftr_hint());
                }
                () = self.softwires.changed() => self.follow_softwire(),
                1.. = inputs.calls.recv_many(&mut calls, MAX_WAITING_CALLS) => {
                    and_what_waits(&mut inputs.datagrams, &mut events, MAX_WAITING_DATAGRAMS);
                    self.shell.take(events.drain(..), calls.drain(..), &mut self.upstream, clock::now());
                }
                Some(wish) = inputs.subscriptions.recv() => {
                    self.shell.subscription(wish, &mut self.upstream, clock::now());
                }
                Some(connection) = inputs.closed.recv() => {
                    self.shell.secure_closed(connection, &mut self.upstream, clock::now());
                }
                Some(outcome) = inputs.outcomes.recv() => {
                    self.shell.event_sent(outcome, &mut self.upstream, clock::now());
                }
                Some(request) = inputs.requests.recv() => {
                    if request.0 == (Request::Discover {}) {
                        if self.discovery.is_off() {
                            request.1.answer(Response::Error(NOT_LOOKING.to_owned()));
                            continue;
                        }
                        self.discovery.ask_again();
                    }
                    let facts = self.facts(started, waiting(&inputs));
                    self.shell.control(request, &facts, &mut self.upstream, clock::now());
                }
                // After everybody else has had a turn: other tasks, and what is due here.
                () = yield_now(), if self.shell.is_settling() || self.shell.is_reconciling() => {
                    if self.shell.is_settling() {
                        self.shell.settle(&mut self.upstream, clock::now());
                    }
                    self.shell.reconcile_turn(clock::now());
                }
                () = sleep_until(sweep_at) => sweep_at = Instant::now() + self.shell.sweep(clock::now()),
                _ = hear.tick(), if self.shell.is_followed() => self.shell.hear(),
                _ = look.tick() => {
                    let network = self.as_configured(&inputs.network.borrow());
                    let link = self.link(&network);
                    self.shell.tick(link, clock::wall(), &mut self.upstream, clock::now());
                    self.look_at_own_ports(&network);
                    // Also when nothing has changed: a port that a LAN host still had may be free by now.
                    self.shell.follow_again(clock::now());
                    // What could not be bound is tried again.
                    self.follow_lan(&network);
                    self.metrics.follow(self.config.metrics);
                    self.follow_upstream(&network);
                }
                _ = reconcile.tick() => self.shell.nudge(clock::now()),
                () = sleep_until(Instant::now() + due) => {}
            }
            self.shell.timeout(&mut self.upstream, clock::now());
        }
        notify("STOPPING=1");
        // Nobody ends them when the daemon is gone.
        while self.shell.is_settling() {
            self.shell.settle(&mut self.upstream, clock::now());
        }
        self.lan.stop().await;
        info!("stopped; forwarding goes on without the daemon (iwfctl detach ends it)");
    }

    fn follow(&mut self, network: &mut watch::Receiver<NetState>) {
        let network = self.as_configured(&network.borrow_and_update());
        self.look_at_own_ports(&network);
        // The sockets first: what the core sends on hearing of a new address leaves from that address.
        self.follow_upstream(&network);
        self.shell
            .network(network.clone(), &mut self.upstream, clock::now());
        // Subscribers hear of a link that goes when it goes.
        let link = self.link(&network);
        self.shell.link(link, &mut self.upstream, clock::now());
        // Hosts are served only when the kernel is ready for what they ask.
        if !self.shell.has_reconciled() {
            self.shell.reconcile(clock::now());
        }
        self.shell.timeout(&mut self.upstream, clock::now());
        self.follow_lan(&network);
    }

    fn follow_lan(&mut self, network: &NetState) {
        let shell = &mut self.shell;
        let keep = |boot_id| shell.keep_boot_id(boot_id, clock::now());
        self.lan.follow(&network.served(), clock::wall(), keep);
    }

    fn link(&self, network: &NetState) -> LinkCounters {
        let carrier = network.wan.address.is_some();
        link::counters(
            self.config.wan_interface.as_str(),
            network.wan_ifindex,
            self.config.line,
            carrier,
        )
    }

    fn as_configured(&self, network: &NetState) -> NetState {
        network.clone().with_pool(&self.config.external_addresses)
    }

    /// Sockets open and close without a word, so they are looked at from time to time.
    fn look_at_own_ports(&mut self, network: &NetState) {
        let ports = own_ports::now(network);
        self.shell
            .set_own_ports(ports, &mut self.upstream, clock::now());
    }

    fn follow_upstream(&mut self, network: &NetState) {
        // In local mode nobody upstream is asked or listened to.
        if self.config.mode != Mode::Local {
            self.upstream
                .follow(network.wan.local(), network.wan_ifindex);
        }
    }

    fn follow_mappings(&mut self) {
        let mappings = self.config.mappings.clone();
        self.shell
            .set_statics(mappings, &mut self.upstream, clock::now());
    }

    /// Tells of the softwire, and of the PCP server at its other end.
    fn follow_softwire(&mut self) {
        let (told, now) = (self.softwires.told(), clock::now());
        self.shell.set_softwire(told, &mut self.upstream, now);
    }

    /// Asks DHCP servers, or does not, as the configuration says now.
    fn follow_discovery(&mut self, network: &watch::Receiver<NetState>) {
        if self.config.asks_dhcp() != self.discovery.is_off() {
            return;
        }
        let wan = self.config.wan_interface.to_string();
        let next = match self.config.asks_dhcp() {
            true => Discovery::start(wan, self.uuid, network.clone()),
            false => Ok(Discovery::off()),
        };
        match next {
            Ok(next) => self.discovery = next,
            Err(error) => return error!("DHCP servers are not asked: {error:#}"),
        }
        // What was said to an earlier question is asked for again.
        self.shell
            .discovered(Report::default(), &mut self.upstream, clock::now());
    }

    /// Reads the configuration again and follows what can change at run time.
    fn reload(&mut self) {
        notify("RELOADING=1");
        match Config::load(&self.config_path) {
            Ok(new) => {
                let restart = self.config.restart_keys(&new);
                if !restart.is_empty() {
                    warn!(
                        keys = restart.join(", "),
                        "changed, but take effect only after a restart"
                    );
                }
                if let Err(error) = self.log_filter.set(&new.log_filter) {
                    warn!("log filter not changed: {error:#}");
                }
                self.config.line = new.line;
                self.config.open_ports = new.open_ports;
                self.config.external_addresses = new.external_addresses;
                self.config.pinholes = new.pinholes;
                self.config.rules = new.rules;
                self.config.reconcile_interval = new.reconcile_interval;
                self.config.log_filter = new.log_filter;
                self.config.mappings = new.mappings;
                self.config.metrics = new.metrics;
                self.metrics.follow(self.config.metrics);
                self.config.policy = new.policy;
                warn_of(&self.config);
                self.devices.read(self.config.policy.lease_files.clone());
                let policy = settings::policy(&self.config);
                self.shell
                    .set_policy(policy, &mut self.upstream, clock::now());
                self.config.mode = new.mode;
                self.config.pcp_servers = new.pcp_servers;
                self.config.discovery = new.discovery;
                self.config.trusts_upstream = new.trusts_upstream;
                let asking = settings::asking(&self.config);
                self.shell
                    .set_asking(asking, &mut self.upstream, clock::now());
                self.shell.set_pinholes(settings::pinholes(&self.config));
                self.shell.set_rules(self.config.rules);
                let ports = settings::host_ports(&self.config);
                self.shell
                    .set_host_ports(ports, &mut self.upstream, clock::now());
                self.follow_mappings();
                self.config.hooks = new.hooks;
                self.hooks.follow(&self.config.hooks);
                self.discovery.ask_again();
                self.shell.nudge(clock::now());
                info!("configuration read again");
            }
            Err(error) => error!("configuration not changed: {error}"),
        }
        notify("READY=1");
    }

    fn facts(&self, started: BootInstant, waiting: Vec<Held>) -> Facts {
        Facts {
            started,
            configured_mode: settings::mode_name(self.config.mode),
            wan_interface: self.config.wan_interface.to_string(),
            listeners: self.lan.listeners(),
            waiting,
        }
    }
}

/// What waits for its turn in the loop.
fn waiting(inputs: &Inputs) -> Vec<Held> {
    let of = |name, waiting, most| Held::new(name, waiting, Some(most));
    vec![
        of("calls_waiting", inputs.calls.len(), MAX_WAITING_CALLS),
        of(
            "subscription_calls_waiting",
            inputs.subscriptions.len(),
            MAX_WAITING_CALLS,
        ),
        of(
            "datagrams_waiting",
            inputs.datagrams.len(),
            MAX_WAITING_DATAGRAMS,
        ),
        of(
            "requests_waiting",
            inputs.requests.len(),
            MAX_WAITING_REQUESTS,
        ),
    ]
}

/// Says what is no error, but hardly meant.
pub fn warn_of(config: &Config) {
    for warning in config.warnings() {
        warn!("{warning}");
    }
}

#[cfg(test)]
mod tests;
