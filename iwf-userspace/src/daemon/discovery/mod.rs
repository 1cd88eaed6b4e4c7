//! Asks the DHCP servers of the WAN for PCP servers, and publishes what they say.
//!
//! A task of its own, because it shares nothing with the core but what it publishes. When to ask, and what counts as an
//! answer, is decided in [`crate::proto::dhcp`]; here are the sockets.

mod socket;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::{StdRng, SysRng};
use rand::{SeedableRng, TryRng};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::clock;
use super::dataplane::Role;
use super::netstate::NetState;
use crate::proto::dhcp::{Client, DhcpClient, Effect, Heard, Input, Known};
use crate::wire::dhcp6::Duid;
use crate::wire::{dhcp4, dhcp6};
use socket::RawUdp;

/// A timer far enough away that it stands for none.
const IDLE: Duration = Duration::from_secs(3600);

/// What DHCP has said so far. Published whole on every change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// By DHCPv4.
    pub v4: Side,
    /// By DHCPv6.
    pub v6: Side,
}

/// What one of the two protocols has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// What is known.
    pub known: Known,
    /// What became of the datagrams.
    pub heard: Heard,
}

/// The running task, seen from outside.
#[derive(Debug)]
pub struct Discovery {
    reports: watch::Receiver<Report>,
    again: Arc<Notify>,
    /// Without a task the channel has to stay open.
    _idle: Option<watch::Sender<Report>>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Discovery {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Discovery {
    /// Nobody is asked.
    pub fn off() -> Self {
        let (sender, reports) = watch::channel(Report::default());
        Self {
            reports,
            again: Arc::default(),
            _idle: Some(sender),
            task: None,
        }
    }

    /// Begins to ask on the interface of that name. `uuid` is the identity of the device.
    ///
    /// # Errors
    /// There is no entropy.
    pub fn start(wan: String, uuid: [u8; 16], network: watch::Receiver<NetState>) -> Result<Self> {
        let (sender, reports) = watch::channel(Report::default());
        let again = Arc::new(Notify::new());
        let task = Asker {
            wan,
            duid: Duid::from_uuid(uuid),
            v4: Half::new(Family::V4)?,
            v6: Half::new(Family::V6)?,
            sender,
        };
        Ok(Self {
            reports,
            again: Arc::clone(&again),
            _idle: None,
            task: Some(tokio::spawn(task.run(network, again))),
        })
    }

    /// Whether nobody is asked.
    pub const fn is_off(&self) -> bool {
        self.task.is_none()
    }

    /// Waits until something is said. For ever, if nobody is asked.
    pub async fn changed(&mut self) {
        if self.reports.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What was said last.
    pub fn report(&mut self) -> Report {
        self.reports.borrow_and_update().clone()
    }

    /// Asks now, whenever it would be time.
    pub fn ask_again(&self) {
        self.again.notify_one();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// One protocol.
struct Half {
    family: Family,
    machine: DhcpClient,
    known: Known,
    socket: Option<RawUdp>,
    /// Own address and port.
    own: Option<SocketAddr>,
    /// Whether it was said that there is no socket.
    told: bool,
}

struct Asker {
    wan: String,
    duid: Duid,
    v4: Half,
    v6: Half,
    sender: watch::Sender<Report>,
}

impl Asker {
    async fn run(mut self, mut network: watch::Receiver<NetState>, again: Arc<Notify>) {
        self.follow(&network.borrow_and_update().clone());
        loop {
            self.publish();
            let now = clock::now();
            let due = [
                self.v4.machine.poll_timeout(),
                self.v6.machine.poll_timeout(),
            ];
            let due = due.into_iter().flatten().min();
            let wait = due.map_or(IDLE, |at| at.saturating_duration_since(now).min(IDLE));
            tokio::select! {
                changed = network.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow(&network.borrow_and_update().clone());
                }
                () = again.notified() => {
                    for half in [&mut self.v4, &mut self.v6] {
                        half.machine.handle_input(Input::Again, clock::now());
                    }
                }
                payload = self.v4.receive() => self.v4.heard(payload),
                payload = self.v6.receive() => self.v6.heard(payload),
                () = sleep(wait) => {}
            }
            for half in [&mut self.v4, &mut self.v6] {
                half.machine.handle_timeout(clock::now());
                half.carry_out(&self.wan);
            }
        }
    }

    fn follow(&mut self, network: &NetState) {
        let ports = network.ports.iter();
        let wan = ports.clone().find(|port| port.role == Role::Wan);
        // Without an Ethernet address there is none of DHCPv4 to be known by.
        let mac = wan.filter(|port| !port.is_bare()).map(|port| port.mac);
        let v4 = network.wan.address.zip(mac);
        let own = v4.map(|(address, _)| SocketAddr::from((address, dhcp4::CLIENT_PORT)));
        let client = v4.map(|(address, mac)| Client::V4 { address, mac });
        self.v4.set(own, client, &self.wan);

        let index = network.wan_ifindex.unwrap_or(0);
        let own = network
            .wan_link_local
            .map(|addr| SocketAddrV6::new(addr, dhcp6::CLIENT_PORT, 0, index).into());
        let client = own.map(|_| Client::V6 { duid: self.duid });
        self.v6.set(own, client, &self.wan);
    }

    fn publish(&self) {
        let report = Report {
            v4: self.v4.side(),
            v6: self.v6.side(),
        };
        self.sender.send_if_modified(|last| {
            let changed = *last != report;
            if changed {
                *last = report;
            }
            changed
        });
    }
}

impl Half {
    fn new(family: Family) -> Result<Self> {
        let mut seed = [0; 32];
        SysRng.try_fill_bytes(&mut seed).context("get entropy")?;
        Ok(Self {
            family,
            machine: DhcpClient::new(StdRng::from_seed(seed)),
            known: Known::default(),
            socket: None,
            own: None,
            told: false,
        })
    }

    fn side(&self) -> Side {
        Side {
            known: self.known.clone(),
            heard: self.machine.heard(),
        }
    }

    fn set(&mut self, own: Option<SocketAddr>, client: Option<Client>, wan: &str) {
        if self.own != own {
            (self.own, self.socket) = (own, None);
        }
        self.machine
            .handle_input(Input::Client(client), clock::now());
        self.carry_out(wan);
    }

    /// The next datagram; waits for ever without a socket.
    async fn receive(&self) -> std::io::Result<Vec<u8>> {
        match &self.socket {
            Some(socket) => socket.receive().await,
            None => std::future::pending().await,
        }
    }

    fn heard(&mut self, payload: std::io::Result<Vec<u8>>) {
        match payload {
            Ok(payload) => self
                .machine
                .handle_input(Input::Datagram(payload), clock::now()),
            Err(error) => {
                debug!(%error, "cannot receive from DHCP servers");
                // Opened again for the next question.
                self.socket = None;
            }
        }
    }

    fn carry_out(&mut self, wan: &str) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Send(payload) => {
                    let sent = self.send(&payload, wan);
                    if let Err(error) = &sent {
                        if self.told {
                            debug!(%error, "cannot ask DHCP servers");
                        } else {
                            warn!(%error, interface = wan, "cannot ask DHCP servers for PCP servers; trying again");
                        }
                    }
                    self.told = sent.is_err();
                }
                Effect::Known(known) => {
                    if known.settled && known.servers != self.known.servers {
                        let servers = &known.servers.lists;
                        info!(?servers, by = self.name(), "the network names PCP servers");
                    }
                    if known.aftr != self.known.aftr {
                        info!(aftr = known.aftr, "the network names an AFTR");
                    }
                    self.known = known;
                }
                Effect::Discarded(what) => info!(by = self.name(), "{what}"),
            }
        }
    }

    const fn name(&self) -> &'static str {
        match self.family {
            Family::V4 => "DHCPv4",
            Family::V6 => "DHCPv6",
        }
    }

    fn send(&mut self, payload: &[u8], wan: &str) -> std::io::Result<()> {
        let own = self.own.ok_or(std::io::ErrorKind::NetworkDown)?;
        if self.socket.is_none() {
            self.socket = Some(RawUdp::open(wan, own)?);
        }
        let to = match self.family {
            Family::V4 => (IpAddr::V4(Ipv4Addr::BROADCAST), dhcp4::SERVER_PORT),
            Family::V6 => (IpAddr::V6(dhcp6::ALL_SERVERS), dhcp6::SERVER_PORT),
        };
        let Some(socket) = &self.socket else {
            return Err(std::io::ErrorKind::NotConnected.into());
        };
        debug!(by = self.name(), "asking DHCP servers for PCP servers");
        socket.send(payload, to.into())
    }
}
