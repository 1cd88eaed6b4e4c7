//! What LAN hosts are served, on every LAN address there is at the moment.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use super::control::Listener;
use super::netstate::LanLink;
use super::sockets;
use super::ssdp::{Discovery, Identity};

/// How long goodbyes may take at the end.
const GOODBYE: Duration = Duration::from_secs(1);

/// The servers on all LAN addresses.
#[derive(Debug)]
pub struct LanServices {
    identity: Identity,
    port: u16,
    running: BTreeMap<LanLink, Running>,
    /// Addresses whose failure was told, so that it is told once.
    failed: BTreeMap<LanLink, io::ErrorKind>,
}

#[derive(Debug)]
struct Running {
    address: SocketAddr,
    http: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    discovery: JoinHandle<()>,
}

impl Running {
    fn start(identity: &Identity, link: &LanLink, port: u16) -> io::Result<Self> {
        let wanted = sockets::on_link(link.addr, port, link.ifindex);
        let listener = sockets::tcp_listener(&link.interface, wanted)?;
        let address = listener.local_addr()?;
        let discovery = Discovery::new(identity.clone(), link.clone(), address)?;
        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            address,
            http: tokio::spawn(Arc::clone(&identity.site).serve(listener, link.clone())),
            stop,
            discovery: tokio::spawn(discovery.run(stopped)),
        })
    }

    /// Ends the servers; connections that are open finish what they do. The task returned says goodbye.
    fn stop(self) -> JoinHandle<()> {
        self.http.abort();
        drop(self.stop);
        self.discovery
    }
}

impl LanServices {
    /// Servers for this identity on no address yet. `port` 0 takes any free one on each address.
    pub fn new(identity: Identity, port: u16) -> Self {
        Self {
            identity,
            port,
            running: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Starts and stops servers until they are on these addresses. What fails is tried again by the next call.
    pub fn follow(&mut self, wanted: &[LanLink]) {
        let gone = |link: &LanLink| !wanted.contains(link);
        self.failed.retain(|link, _| !gone(link));
        for (link, running) in self.running.extract_if(.., |link, _| gone(link)) {
            info!(interface = link.interface, addr = %link.addr, "no longer serving a LAN address");
            // It ends by itself; there is nobody left to say goodbye to.
            drop(running.stop());
        }
        for link in wanted {
            if self.running.contains_key(link) {
                continue;
            }
            match Running::start(&self.identity, link, self.port) {
                Ok(running) => {
                    info!(interface = link.interface, http = %running.address, "serving a LAN address");
                    self.failed.remove(link);
                    self.running.insert(link.clone(), running);
                }
                Err(error) => {
                    if self.failed.insert(link.clone(), error.kind()) != Some(error.kind()) {
                        warn!(
                            interface = link.interface, addr = %link.addr, port = self.port, %error,
                            "cannot serve a LAN address; trying again"
                        );
                    }
                }
            }
        }
    }

    /// Where LAN hosts are served.
    pub fn listeners(&self) -> Vec<Listener> {
        let listener = |(link, running): (&LanLink, &Running)| Listener {
            interface: link.interface.clone(),
            address: running.address,
        };
        self.running.iter().map(listener).collect()
    }

    /// Says goodbye on every link and ends.
    pub async fn stop(self) {
        let goodbyes: Vec<_> = self.running.into_values().map(Running::stop).collect();
        let all = async {
            for goodbye in goodbyes {
                if let Err(error) = goodbye.await {
                    warn!(%error, "discovery ended badly");
                }
            }
        };
        if timeout(GOODBYE, all).await.is_err() {
            warn!("could not say goodbye on every LAN link");
        }
    }
}
