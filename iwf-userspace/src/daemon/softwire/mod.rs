//! The DS-Lite softwire of this machine: its device, its routes, and who carries what the packet programs leave.
//!
//! A task of its own, because it shares nothing with the core but what it publishes. When there is a softwire and where
//! it goes is decided in [`crate::proto::softwire`]; here are the resolver, the device and the routes.
#![forbid(unsafe_code)]

mod device;
mod relay;

use std::future::pending;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::clock;
use super::config::MssClamp;
use super::dataplane::softwire::{Path, Softwire as Told, SoftwireCounters};
use super::dataplane::tun;
use super::netstate::{LanAddress, NetState};
use crate::proto::softwire::{Effect, Ends, Input, Softwire as Machine, Source};
use crate::types::Instant;
use crate::wire::softwire::Inside;
use device::Device;
use relay::Relay;

/// A timer far enough away that it stands for none.
const IDLE: Duration = Duration::from_secs(3600);
/// How long a name may take. Longer is a failure; the question itself ends some time later.
const RESOLVER_PATIENCE: Duration = Duration::from_secs(20);
/// The pause before a device or a socket that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What DHCPv6 has said of the AFTR: its name, and whether silence is an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// The first name of the first option.
    pub name: Option<String>,
    /// Whether it was asked long enough.
    pub settled: bool,
}

/// What the task needs besides the network.
#[derive(Debug)]
pub struct Settings {
    /// Who says where the AFTR is.
    pub source: Source,
    /// The WAN interface.
    pub wan: String,
    /// What SYNs may announce.
    pub mss_clamp: MssClamp,
    /// Where the relay finds its counters.
    pub counters: SoftwireCounters,
}

/// The running task, seen from outside.
#[derive(Debug)]
pub struct Softwires {
    told: watch::Receiver<Told>,
    hints: watch::Sender<Hint>,
    /// Without a task the channel has to stay open.
    _idle: Option<watch::Sender<Told>>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Softwires {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Softwires {
    /// There is none.
    pub fn off() -> Self {
        let (sender, told) = watch::channel(Told::Off);
        Self {
            told,
            hints: watch::Sender::new(Hint::default()),
            _idle: Some(sender),
            task: None,
        }
    }

    /// Begins to look after it.
    pub fn start(settings: Settings, network: watch::Receiver<NetState>) -> Self {
        let (sender, told) = watch::channel(Told::Undecided);
        let hints = watch::Sender::new(Hint::default());
        let keeper = Keeper {
            machine: Machine::new(settings.source.clone()),
            settings,
            sender,
            up: None,
            again: None,
        };
        let task = tokio::spawn(keeper.run(network, hints.subscribe()));
        Self {
            told,
            hints,
            _idle: None,
            task: Some(task),
        }
    }

    /// Passes on what DHCPv6 says.
    pub fn hint(&self, hint: Hint) {
        self.hints.send_if_modified(|held| {
            let changed = *held != hint;
            *held = hint;
            changed
        });
    }

    /// Waits until the programs have to be told something else. For ever, if there is no task.
    pub async fn changed(&mut self) {
        if self.told.changed().await.is_err() {
            pending::<()>().await;
        }
    }

    /// What they have to be told.
    pub fn told(&mut self) -> Told {
        *self.told.borrow_and_update()
    }
}

/// The task.
struct Keeper {
    settings: Settings,
    machine: Machine,
    sender: watch::Sender<Told>,
    up: Option<Up>,
    /// What failed and is tried again.
    again: Option<(Instant, Ends)>,
}

/// A softwire that is there.
struct Up {
    device: Device,
    ends: Ends,
    inside: Inside,
    /// None if it could not be started.
    relay: Option<Relay>,
}

type Answer = JoinHandle<Vec<Ipv6Addr>>;

impl Keeper {
    async fn run(
        mut self,
        mut network: watch::Receiver<NetState>,
        mut hints: watch::Receiver<Hint>,
    ) {
        let mut answer: Option<Answer> = None;
        let now = network.borrow_and_update().clone();
        self.see(&now);
        loop {
            self.carry_out(&network, &mut answer).await;
            let due = [self.machine.poll_timeout(), self.again.map(|(at, _)| at)];
            let due = due.into_iter().flatten().min().map_or(IDLE, |due| {
                due.saturating_duration_since(clock::now()).min(IDLE)
            });
            tokio::select! {
                changed = network.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = network.borrow_and_update().clone();
                    self.see(&now);
                    self.follow_inside(&now);
                    self.look_at_relay();
                }
                Ok(()) = hints.changed() => {
                    let Hint { name, settled } = hints.borrow_and_update().clone();
                    self.machine.handle_input(Input::Told { name, settled }, clock::now());
                }
                addresses = resolved(&mut answer) => {
                    answer = None;
                    self.machine.handle_input(Input::Resolved(addresses), clock::now());
                }
                () = sleep(due) => self.machine.handle_timeout(clock::now()),
            }
        }
    }

    fn see(&mut self, network: &NetState) {
        let input = Input::Network {
            native: network.external_addr.is_some(),
            local: network.wan.address6,
        };
        self.machine.handle_input(input, clock::now());
    }

    async fn carry_out(
        &mut self,
        network: &watch::Receiver<NetState>,
        answer: &mut Option<Answer>,
    ) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Resolve(name) => *answer = Some(tokio::spawn(resolve(name))),
                Effect::Use(Some(ends)) => self.again = Some((clock::now(), ends)),
                Effect::Use(None) => {
                    self.again = None;
                    self.end();
                }
            }
        }
        if let Some((at, ends)) = self.again
            && at <= clock::now()
        {
            let network = network.borrow().clone();
            match self.begin(ends, &network).await {
                Ok(()) => self.again = None,
                Err(error) => {
                    warn!(
                        error = format!("{error:#}"),
                        "the softwire is not complete; trying again"
                    );
                    self.again = Some((clock::now() + RETRY, ends));
                }
            }
        }
    }

    /// Makes what is missing. What is there already stays as it is.
    async fn begin(&mut self, ends: Ends, network: &NetState) -> Result<()> {
        let inside = self.inside(network);
        if self.up.is_none() {
            let device = Device::open().context("open the softwire's device")?;
            self.up = Some(Up {
                device,
                ends,
                inside: inside.clone(),
                relay: None,
            });
        }
        let Some(up) = &mut self.up else {
            return Ok(());
        };
        let moved = up.ends != ends;
        up.ends = ends;
        up.inside = inside;
        up.device
            .configure()
            .await
            .context("configure the softwire's device")?;
        if moved {
            up.relay = None;
        }
        // The programs carry what they can, even if the daemon cannot do its part yet.
        let path = Path {
            ifindex: up.device.ifindex(),
            local: ends.local,
            remote: ends.remote,
        };
        self.publish(Told::On(path));
        self.start_relay().context("carry what XDP does not")
    }

    fn start_relay(&mut self) -> Result<()> {
        let Some(up) = &mut self.up else {
            return Ok(());
        };
        if up.relay.is_none() {
            let counts = self.settings.counters.open()?;
            let wan = self.settings.wan.as_str();
            let relay = Relay::start(up.device.handle(), wan, up.ends, up.inside.clone(), counts)
                .context("open the socket towards the AFTR")?;
            up.relay = Some(relay);
        }
        Ok(())
    }

    /// Other hosts may use it.
    fn follow_inside(&mut self, network: &NetState) {
        let inside = self.inside(network);
        if let Some(up) = &mut self.up
            && up.inside != inside
        {
            up.inside = inside;
            up.relay = None;
            self.again = self.again.or(Some((clock::now(), up.ends)));
        }
    }

    /// Somebody may have removed the device, which changes the network: all of it is made anew then.
    fn look_at_relay(&mut self) {
        let ended = |up: &Up| up.relay.as_ref().is_some_and(Relay::has_ended);
        if let Some(up) = self.up.take_if(|up| ended(up)) {
            self.again = self.again.or(Some((clock::now(), up.ends)));
        }
    }

    fn inside(&self, network: &NetState) -> Inside {
        let lan = &network.lan;
        Inside {
            lan: lan.iter().map(LanAddress::prefix).collect(),
            own: lan.iter().map(|link| link.addr).collect(),
            mss: self.settings.mss_clamp.size(inner_mtu(network.wan_mtu)),
        }
    }

    fn end(&mut self) {
        self.publish(Told::Off);
        match self.up.take() {
            Some(up) => {
                drop(up.relay);
                if let Err(error) = up.device.release() {
                    warn!(%error, "the softwire's device stays");
                }
            }
            None => remove_device(),
        }
    }

    fn publish(&self, told: Told) {
        let changed = self.sender.send_if_modified(|held| {
            let changed = *held != told;
            *held = told;
            changed
        });
        if !changed {
            return;
        }
        match told {
            Told::On(Path { local, remote, .. }) => info!(%local, aftr = %remote, "softwire is up"),
            Told::Off | Told::Undecided => info!("no softwire"),
        }
    }
}

/// Removes what an earlier daemon has left, if there is anything.
pub fn remove_device() {
    if let Err(error) = tun::remove(tun::SOFTWIRE) {
        warn!(%error, "the softwire's device of an earlier daemon stays");
    }
}

/// Octets of the largest packet that goes through a softwire over a WAN of this MTU in one piece.
pub fn inner_mtu(wan: Option<u32>) -> Option<u32> {
    wan.map(|mtu| mtu.saturating_sub(u32::from(iwf_common::softwire::OVERHEAD)))
}

/// The IPv6 addresses of a name; none if there are none or it takes too long.
async fn resolve(name: String) -> Vec<Ipv6Addr> {
    let found = timeout(RESOLVER_PATIENCE, lookup_host((name.as_str(), 0))).await;
    match found {
        Ok(Ok(addresses)) => {
            let addresses: Vec<_> = addresses
                .filter_map(|address| match address.ip() {
                    IpAddr::V6(addr) => Some(addr),
                    IpAddr::V4(_) => None,
                })
                .collect();
            debug!(name, ?addresses, "AFTR resolved");
            addresses
        }
        Ok(Err(error)) => {
            warn!(name, %error, "the AFTR's name is not resolved; trying again");
            Vec::new()
        }
        Err(_) => {
            warn!(name, "nobody resolves the AFTR's name; trying again");
            Vec::new()
        }
    }
}

/// Waits for the answer; for ever if nobody was asked.
async fn resolved(answer: &mut Option<Answer>) -> Vec<Ipv6Addr> {
    match answer {
        Some(task) => task.await.unwrap_or_default(),
        None => pending().await,
    }
}
