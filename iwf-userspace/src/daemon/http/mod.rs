//! Descriptions, control and subscriptions for LAN hosts.
//!
//! Read before editing: UPnP Device Architecture 1.1 clauses 2, 3 and 4.
//!
//! One listener per LAN address, on that address and bound to that interface; nothing listens on the WAN.
//! hyper is driven directly because axum's own serve loop knows no limits, and everything here has one:
//! connections (in all and per host), header size and time, body size and time, life of a connection.

mod answer;
mod names;
mod open;
#[cfg(feature = "device-protection")]
mod secure;
#[cfg(not(feature = "device-protection"))]
#[path = "unsecured.rs"]
mod secure;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use names::Names;
pub use open::OpenConnections;
pub use secure::{Protected, Secure};

use super::config::HttpConfig;
use super::gena::SubscriptionCall;
use super::neighbours::Neighbours;
use super::netstate::LanLink;
use crate::types::caller::Caller;
use crate::wire::description::Description;
use crate::wire::soap;

/// Largest control request, in octets; the largest standard call has about 2,000.
const MAX_BODY: usize = 64 << 10;
/// Largest request head, in octets, and most header lines.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// How long a request head may take, and how long a connection may be idle between requests.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a body may take. Also what a Content-Length that promises too much costs its sender.
const BODY_TIME: Duration = Duration::from_secs(10);
/// A control request is answered within 30 s (clause 3.2.2), unless the configuration says otherwise; the core answers
/// this much earlier (AMB-06).
const ANSWER_MARGIN: Duration = Duration::from_millis(1500);
/// After this a connection takes no further request; it is cut when the body and the answer of its last one have had
/// their time.
const CONNECTION_TIME: Duration = Duration::from_secs(120);

/// A call of a control point with the place for its answer.
#[derive(Debug)]
pub struct SoapCall {
    /// Who calls: decides what is the caller's own.
    pub caller: Caller,
    /// What was called.
    pub call: soap::Call,
    /// For how long its names were looked up.
    pub waited: Duration,
    /// Where the answer goes.
    pub reply: oneshot::Sender<soap::ActionResult>,
}

/// What every listener serves.
#[derive(Debug)]
pub struct Site {
    description: Description,
    server: String,
    calls: mpsc::Sender<SoapCall>,
    subscriptions: mpsc::Sender<SubscriptionCall>,
    limits: HttpConfig,
    neighbours: Neighbours,
    connections: Mutex<Connections>,
    names: Names,
}

/// Connections open now.
#[derive(Debug, Default)]
struct Connections {
    total: usize,
    per_host: BTreeMap<IpAddr, usize>,
}

/// The two ends of a connection, known to be both on one LAN link.
#[derive(Clone, Copy, Debug)]
struct Ends {
    local: SocketAddr,
    peer: IpAddr,
    ifindex: u32,
}

impl Site {
    /// A site that serves these documents and sends calls and requests for subscriptions there. `server` is the SERVER
    /// header.
    pub fn new(
        description: Description,
        server: String,
        limits: HttpConfig,
        calls: mpsc::Sender<SoapCall>,
        subscriptions: mpsc::Sender<SubscriptionCall>,
        neighbours: Neighbours,
    ) -> Arc<Self> {
        Arc::new(Self {
            description,
            server,
            calls,
            subscriptions,
            limits,
            neighbours,
            connections: Mutex::default(),
            names: Names::default(),
        })
    }

    /// How long a control request waits for its answer.
    fn answer_time(&self) -> Duration {
        self.limits.answer_within + ANSWER_MARGIN
    }

    /// The documents served.
    pub const fn description(&self) -> &Description {
        &self.description
    }

    /// The value of SERVER, in discovery as well.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Serves the hosts on one link until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, link: LanLink) {
        let router = TowerToHyperService::new(answer::router(Arc::clone(&self)));
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely; connections that end will free some.
                    warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let Some(ends) = ends(&stream, peer, &link) else {
                debug!(%peer, interface = link.interface, "connection from elsewhere closed");
                continue;
            };
            let Some(place) = Place::take(&self, ends.peer) else {
                debug!(%peer, "connection over the limit closed");
                continue;
            };
            let router = router.clone();
            let last = BODY_TIME + self.answer_time();
            tokio::spawn(async move {
                converse(stream, ends, router, last).await;
                drop(place);
            });
        }
    }
}

/// One of the places for connections, given back when dropped.
struct Place {
    site: Arc<Site>,
    host: IpAddr,
}

impl Place {
    fn take(site: &Arc<Site>, host: IpAddr) -> Option<Self> {
        let mut open = site
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let held = open.per_host.get(&host).copied().unwrap_or(0);
        if open.total >= site.limits.max_connections || held >= site.limits.max_connections_per_host
        {
            return None;
        }
        open.total += 1;
        open.per_host.insert(host, held + 1);
        Some(Self {
            site: Arc::clone(site),
            host,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self
            .site
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.total -= 1;
        if let Some(held) = open.per_host.get_mut(&self.host) {
            *held -= 1;
            if *held == 0 {
                open.per_host.remove(&self.host);
            }
        }
    }
}

/// `None` unless the host is on the link and reached us by the link's own address.
fn ends(stream: &TcpStream, peer: SocketAddr, link: &LanLink) -> Option<Ends> {
    let (peer, local) = (peer.ip(), stream.local_addr().ok()?);
    let ifindex = link.ifindex;
    (link.contains(peer) && local.ip() == link.addr).then_some(Ends {
        local,
        peer,
        ifindex,
    })
}

async fn converse(
    stream: TcpStream,
    ends: Ends,
    router: TowerToHyperService<axum::Router>,
    last: Duration,
) {
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ends);
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .half_close(true);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = match timeout(CONNECTION_TIME, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            match timeout(last, connection).await {
                Ok(ended) => ended,
                Err(_) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        debug!(peer = %ends.peer, %error, "connection ended early");
    }
}
