//! What LAN hosts are served, on every LAN address there is at the moment.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use super::control::Listener;
use super::http::Secure;
use super::netstate::LanLink;
use super::sockets;
use super::ssdp::{Discovery, Identity, Opening, Served, Voice};
use super::store;
use crate::types::UnixTime;
use crate::wire::ssdp;

/// How long goodbyes may take at the end.
const GOODBYE: Duration = Duration::from_secs(1);

/// The servers on all LAN addresses.
#[derive(Debug)]
pub struct LanServices {
    identity: Identity,
    port: u16,
    /// BOOTID.UPNP.ORG, for every link the same.
    boot_id: watch::Sender<u32>,
    /// Whether the next life will know of it.
    is_boot_id_kept: bool,
    /// Whether anybody may have been told of it.
    has_spoken: bool,
    /// How they are served over TLS, if they are.
    secure: Option<Arc<Secure>>,
    running: BTreeMap<LanLink, Running>,
    /// Addresses whose failure was told, so that it is told once.
    failed: BTreeMap<LanLink, io::ErrorKind>,
}

/// Servers that have their sockets and do not serve yet.
struct Ready {
    link: LanLink,
    address: SocketAddr,
    listener: TcpListener,
    /// Those of TLS, if it is served.
    over_tls: Option<(Arc<Secure>, SocketAddr, TcpListener)>,
    discovery: Discovery,
}

impl Ready {
    fn start(self, identity: &Identity, opening: Opening) -> Running {
        let (stop, stopped) = oneshot::channel();
        let over_tls = self.over_tls.map(|(secure, address, listener)| {
            let site = Arc::clone(&identity.site);
            let serving = secure.serve(site, listener, self.link.clone());
            (address, tokio::spawn(serving))
        });
        Running {
            address: self.address,
            voice: self.discovery.voice(),
            secure: over_tls,
            http: tokio::spawn(Arc::clone(&identity.site).serve(self.listener, self.link)),
            stop,
            discovery: tokio::spawn(self.discovery.run(opening, stopped)),
        }
    }
}

#[derive(Debug)]
struct Running {
    address: SocketAddr,
    voice: Voice,
    http: JoinHandle<()>,
    secure: Option<(SocketAddr, JoinHandle<()>)>,
    stop: oneshot::Sender<()>,
    discovery: JoinHandle<()>,
}

impl Running {
    /// Ends the servers of an address that has gone.
    fn end(self, boot_id: u32) {
        self.stop_serving();
        self.discovery.abort();
        self.voice.late_goodbye(boot_id);
    }

    /// Ends the servers; connections that are open finish what they do. The task returned says goodbye.
    fn stop(self) -> JoinHandle<()> {
        self.stop_serving();
        drop(self.stop);
        self.discovery
    }

    fn stop_serving(&self) {
        self.http.abort();
        if let Some((_, serving)) = &self.secure {
            serving.abort();
        }
    }
}

impl LanServices {
    /// Servers for this identity on no address yet. `port` 0 takes any free one on each address.
    pub fn new(identity: Identity, port: u16, secure: Option<Arc<Secure>>) -> Self {
        Self {
            port,
            boot_id: watch::Sender::new(identity.boot_id),
            is_boot_id_kept: true,
            has_spoken: false,
            identity,
            secure,
            running: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Starts and stops servers until they are on these addresses. What fails is tried again by the next call.
    ///
    /// Control points have to learn from discovery that addresses have come or gone (UPnP Device Architecture 1.1 clause
    /// 1.2.4): what has gone says goodbye, what stays names the next BOOTID, and only then all announce themselves with
    /// it. `keep` stores that number and says whether it could.
    pub fn follow(&mut self, wanted: &[LanLink], now: UnixTime, mut keep: impl FnMut(u32) -> bool) {
        let boot_id = *self.boot_id.borrow();
        let gone = |link: &LanLink| !wanted.contains(link);
        self.failed.retain(|link, _| !gone(link));
        let left: Vec<_> = self.running.extract_if(.., |link, _| gone(link)).collect();
        let has_changed = !left.is_empty();
        for (link, running) in left {
            info!(interface = link.interface, addr = %link.addr, "no longer serving a LAN address");
            running.end(boot_id);
        }
        let ready = self.open(wanted);
        if (has_changed || !ready.is_empty()) && self.has_spoken {
            let next = store::next_boot_id(boot_id, now);
            self.is_boot_id_kept = keep(next);
            for running in self.running.values() {
                running.voice.update(boot_id, next);
            }
            self.boot_id.send_replace(next);
        } else if !self.is_boot_id_kept {
            self.is_boot_id_kept = keep(boot_id);
        }
        for ready in ready {
            let link = ready.link.clone();
            let opening = self.opening(&link);
            let running = ready.start(&self.identity, opening);
            info!(interface = link.interface, http = %running.address, "serving a LAN address");
            self.running.insert(link, running);
            self.has_spoken = true;
        }
    }

    /// Opens what is not served yet.
    fn open(&mut self, wanted: &[LanLink]) -> Vec<Ready> {
        let mut opened = Vec::new();
        for link in wanted {
            if self.running.contains_key(link) {
                continue;
            }
            match self.open_one(link) {
                Ok(ready) => {
                    self.failed.remove(link);
                    opened.push(ready);
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
        opened
    }

    fn open_one(&self, link: &LanLink) -> io::Result<Ready> {
        let wanted = sockets::on_link(link.addr, self.port, link.ifindex);
        let listener = sockets::tcp_listener(&link.interface, wanted)?;
        let address = listener.local_addr()?;
        let over_tls = match &self.secure {
            None => None,
            Some(secure) => {
                let wanted = sockets::on_link(link.addr, secure.port(), link.ifindex);
                let listener = sockets::tcp_listener(&link.interface, wanted)?;
                Some((Arc::clone(secure), listener.local_addr()?, listener))
            }
        };
        let served = Served {
            http: address,
            https: over_tls.as_ref().map(|(_, address, _)| *address),
        };
        let (identity, boot_ids) = (self.identity.clone(), self.boot_id.subscribe());
        Ok(Ready {
            link: link.clone(),
            address,
            listener,
            over_tls,
            discovery: Discovery::new(identity, link.clone(), served, boot_ids)?,
        })
    }

    /// One goodbye for all addresses that the same hosts hear.
    fn opening(&self, link: &LanLink) -> Opening {
        let is_heard = |other: &LanLink| {
            other.ifindex == link.ifindex && ssdp::group(other.addr) == ssdp::group(link.addr)
        };
        if self.running.keys().any(is_heard) {
            Opening::Alive
        } else {
            Opening::Goodbye
        }
    }

    /// Where LAN hosts are served.
    pub fn listeners(&self) -> Vec<Listener> {
        let listener = |(link, running): (&LanLink, &Running)| Listener {
            interface: link.interface.clone(),
            address: running.address,
            secure: running.secure.as_ref().map(|(address, _)| *address),
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
