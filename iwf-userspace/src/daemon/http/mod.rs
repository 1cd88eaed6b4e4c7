//! Descriptions, control and subscriptions for LAN hosts.
//!
//! Read before editing: UPnP Device Architecture 1.1 clauses 2, 3 and 4.
//!
//! One listener per LAN address, on that address and bound to that interface; nothing listens on the WAN.
//! hyper is driven directly because axum's own serve loop knows no limits, and everything here has one:
//! connections (in all and per host), header size and time, body size and time, the time over an answer, life of a
//! connection. Whoever keeps a connection without using it gives it up to whoever comes (`places.rs`).

mod answer;
mod counts;
mod names;
mod open;
mod places;
#[cfg(feature = "device-protection")]
mod secure;
#[cfg(not(feature = "device-protection"))]
#[path = "unsecured.rs"]
mod secure;
mod stream;

#[cfg(test)]
mod tests;

use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use counts::Fate;
use names::Names;
pub use open::OpenConnections;
use places::{Place, Places, Taken, Turn};
pub use secure::{Protected, Secure};
use stream::Stream;

use super::config::HttpConfig;
use super::gena::SubscriptionCall;
use super::neighbours::Neighbours;
use super::netstate::LanLink;
use crate::types::access::Channel;
use crate::types::caller::{Caller, Station};
use crate::wire::description::Description;
use crate::wire::soap;

pub use counts::Counts;

/// Largest control request, in octets; the largest standard call has about 2,000.
const MAX_BODY: usize = 64 << 10;
/// Largest request head, in octets, and most header lines.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// A control request is answered within 30 s (clause 3.2.2), unless the configuration says otherwise; the core answers
/// this much earlier (AMB-06).
const ANSWER_MARGIN: Duration = Duration::from_millis(1500);
/// Pause after a connection could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

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

/// What a host may take.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// Over the head of a request, and being idle between two.
    head: Duration,
    /// Over a body. Also what a Content-Length that promises too much costs its sender.
    body: Duration,
    /// Over taking an answer.
    take: Duration,
    /// After this a connection takes no further request; it is cut when body and answer of its last one have had their
    /// times.
    connection: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            take: Duration::from_secs(10),
            connection: Duration::from_secs(120),
        }
    }
}

/// What every listener serves.
#[derive(Debug)]
pub struct Site {
    description: Description,
    server: String,
    calls: mpsc::Sender<SoapCall>,
    subscriptions: mpsc::Sender<SubscriptionCall>,
    limits: HttpConfig,
    times: Times,
    neighbours: Neighbours,
    places: Arc<Places>,
    counts: Arc<Counts>,
    names: Names,
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
            times: Times::default(),
            neighbours,
            places: Places::new(limits.max_connections, limits.max_connections_per_host),
            counts: Arc::default(),
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

    /// Who the hosts of the links are.
    pub const fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// What became of connections and requests.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Serves the hosts on one link until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, link: LanLink) {
        let router = TowerToHyperService::new(answer::router(Arc::clone(&self)));
        loop {
            let (stream, ends, place) = self.admit(&listener, &link, &self.places).await;
            let (site, router) = (Arc::clone(&self), router.clone());
            tokio::spawn(async move {
                let talk = Talk {
                    ends,
                    channel: Channel::default(),
                    place: &place,
                    times: site.times,
                };
                let stream = Stream::new(stream, site.times.take);
                site.converse(stream, talk, pending(), router).await;
            });
        }
    }

    /// The next connection of a host on that link for which there is a place.
    async fn admit(
        &self,
        listener: &TcpListener,
        link: &LanLink,
        places: &Arc<Places>,
    ) -> (TcpStream, Ends, Place) {
        let mut failing = None;
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors or memory; connections that end will free some.
                    if failing.replace(error.kind()) != Some(error.kind()) {
                        warn!(%error, "cannot accept a connection; trying again");
                    }
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            failing = None;
            let Some(ends) = ends(&stream, peer, link) else {
                debug!(%peer, interface = link.interface, "connection from elsewhere closed");
                self.counts.add(Fate::Elsewhere);
                stream::reset(&stream);
                continue;
            };
            let peer = self.neighbours.caller_alone(ends.ifindex, ends.peer);
            let place = match places.take(Station::from(&peer), Instant::now()) {
                Taken::Free(place) => place,
                Taken::MadeFree(place) => {
                    self.counts.add(Fate::MadeRoom);
                    // Whoever has to leave goes before the next one comes: places bound descriptors.
                    yield_now().await;
                    place
                }
                Taken::None => {
                    debug!(peer = %ends.peer, "connection over the limit closed");
                    self.counts.add(Fate::Full);
                    stream::reset(&stream);
                    continue;
                }
            };
            self.counts.add(Fate::Connection);
            return (stream, ends, place);
        }
    }

    /// Serves one connection until it ends, its time is over, or its place is needed; after `hang_up` it takes no further
    /// request.
    async fn converse(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        talk: Talk<'_>,
        hang_up: impl Future<Output = ()>,
        router: TowerToHyperService<axum::Router>,
    ) {
        let Talk {
            ends,
            channel,
            place,
            times,
        } = talk;
        let turn = place.turn();
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            turn.heard();
            request.extensions_mut().insert(ends);
            request.extensions_mut().insert(channel);
            request.extensions_mut().insert(turn.clone());
            router.call(request)
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(times.head)
            // Names have no case, but some control points look for those of the standard.
            .title_case_headers(true)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .half_close(true);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let served = async {
            tokio::select! {
                ended = connection.as_mut() => return Some(ended),
                () = sleep(times.connection) => {}
                () = hang_up => {}
            }
            connection.as_mut().graceful_shutdown();
            let last = times.body + self.answer_time() + times.take;
            timeout(last, connection).await.ok()
        };
        let fate = tokio::select! {
            ended = served => match ended {
                Some(Ok(())) => return,
                Some(Err(error)) => {
                    debug!(peer = %ends.peer, %error, "connection ended early");
                    fate_of(&error)
                }
                None => Fate::Cut,
            },
            () = place.taken_away() => {
                debug!(peer = %ends.peer, "connection closed to make room");
                return;
            }
        };
        self.counts.add(fate);
    }
}

/// One connection.
#[derive(Debug)]
struct Talk<'a> {
    ends: Ends,
    channel: Channel,
    place: &'a Place,
    times: Times,
}

/// What hyper says of a connection that it could not serve to its end.
fn fate_of(error: &hyper::Error) -> Fate {
    if error.is_timeout() || is_timeout(error) {
        Fate::TimedOut
    } else if error.is_parse_too_large() {
        Fate::TooLarge
    } else if error.is_parse() {
        Fate::Bad
    } else {
        Fate::BrokenOff
    }
}

fn is_timeout(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
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
