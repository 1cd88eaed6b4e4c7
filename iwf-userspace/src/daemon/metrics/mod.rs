//! What `iwfctl status` and `iwfctl stats` show, for who collects metrics.
//!
//! Read before editing: OpenMetrics 1.0, "Exposition". One listener on the one address that the configuration names, one
//! document, one request per connection. The figures are asked of the event loop as `iwfctl` asks for them, so that there
//! is one list of what there is to know; `families.rs` gives them the names of metrics.

mod families;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::control::server::{Call, Replies};
use super::control::{self, Stats, Status};
use super::sockets;

/// Connections served at once; more wait in the backlog of the socket.
const MAX_CONNECTIONS: usize = 4;
/// Largest request head, in octets (the least that hyper takes), and most header lines.
const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
/// How long a request head may take.
const HEAD_TIME: Duration = Duration::from_secs(2);
/// How long the event loop may take for the figures. Prometheus waits for 10 s unless it is told otherwise.
const ANSWER_TIME: Duration = Duration::from_secs(8);
/// How long a connection may live, whatever it does.
const CONNECTION_TIME: Duration = Duration::from_secs(20);

/// OpenMetrics 1.0.
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The server, if there is to be one.
#[derive(Debug)]
pub struct Metrics {
    calls: mpsc::Sender<Call>,
    running: Option<Running>,
    /// The failure that was told last, so that it is told once.
    failed: Option<(SocketAddr, io::ErrorKind)>,
}

#[derive(Debug)]
struct Running {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Metrics {
    /// Serves nothing yet. Figures are asked for at `calls`.
    pub const fn new(calls: mpsc::Sender<Call>) -> Self {
        Self {
            calls,
            running: None,
            failed: None,
        }
    }

    /// Serves at this address and no other. What fails is tried again by the next call: an address may come later.
    pub fn follow(&mut self, wanted: Option<SocketAddr>) {
        if self.running.as_ref().map(|running| running.address) == wanted {
            return;
        }
        if let Some(before) = self.running.take() {
            info!(address = %before.address, "no longer serving metrics");
        }
        let Some(address) = wanted else {
            self.failed = None;
            return;
        };
        match sockets::tcp_listener_at(address) {
            Ok(listener) => {
                info!(%address, "serving metrics");
                self.failed = None;
                let server = tokio::spawn(serve(listener, self.calls.clone()));
                self.running = Some(Running { address, server });
            }
            Err(error) => {
                let failed = Some((address, error.kind()));
                if self.failed != failed {
                    warn!(%address, %error, "cannot serve metrics; trying again");
                    self.failed = failed;
                }
            }
        }
    }
}

async fn serve(listener: TcpListener, calls: mpsc::Sender<Call>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let calls = calls.clone();
                tokio::spawn(async move {
                    converse(stream, peer, calls).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others must close some first.
                warn!(%error, "cannot accept a connection for metrics");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// One request and its answer.
async fn converse(stream: TcpStream, peer: SocketAddr, calls: mpsc::Sender<Call>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let calls = calls.clone();
        async move { answer(&request, &calls).await }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(false);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "connection for metrics ended early"),
        Err(_) => debug!(%peer, "connection for metrics took too long"),
    }
}

async fn answer(
    request: &Request<Incoming>,
    calls: &mpsc::Sender<Call>,
) -> Result<Response<Body>, hyper::http::Error> {
    let answer = Response::builder();
    if request.uri().path() != "/metrics" {
        return answer.status(StatusCode::NOT_FOUND).body(Body::empty());
    }
    if request.method() != Method::GET {
        let refused = answer.status(StatusCode::METHOD_NOT_ALLOWED);
        return refused.header(ALLOW, "GET").body(Body::empty());
    }
    let figures = timeout(ANSWER_TIME, look(calls)).await;
    let text = figures
        .unwrap_or_else(|_| Err("iwfd is busy".to_owned()))
        .and_then(|(status, stats)| {
            families::render(status, stats).map_err(|error| error.to_string())
        });
    match text {
        Ok(text) => answer
            .header(CONTENT_TYPE, OPEN_METRICS)
            .body(Body::from(text)),
        Err(why) => answer
            .status(StatusCode::SERVICE_UNAVAILABLE)
            .body(Body::from(format!("{why}\n"))),
    }
}

/// What `iwfctl` would be told.
async fn look(calls: &mpsc::Sender<Call>) -> Result<(Status, Stats), String> {
    let status = ask(calls, control::Request::Status {}).await?;
    let control::Response::Status(status) = status else {
        return Err(no_figures(status));
    };
    let stats = ask(calls, control::Request::Stats {}).await?;
    let control::Response::Stats(stats) = stats else {
        return Err(no_figures(stats));
    };
    Ok((*status, stats))
}

async fn ask(
    calls: &mpsc::Sender<Call>,
    request: control::Request,
) -> Result<control::Response, String> {
    let stopping = || "iwfd is stopping".to_owned();
    let (replies, mut answers) = Replies::channel();
    let sent = calls.send((request, replies)).await;
    sent.map_err(|_| stopping())?;
    answers.recv().await.ok_or_else(stopping)
}

fn no_figures(answer: control::Response) -> String {
    if let control::Response::Error(why) = answer {
        return why;
    }
    "iwfd answered something else".to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn an_address_that_cannot_be_had_is_tried_again() {
        // An address of its own: no other test gets the port while it is free.
        let own = Ipv4Addr::new(127, 0, 0, 44);
        let taken = TcpListener::bind((own, 0)).await.unwrap();
        let address = taken.local_addr().unwrap();
        let (calls, _loop) = mpsc::channel(1);
        let mut metrics = Metrics::new(calls);
        metrics.follow(Some(address));
        assert!(metrics.running.is_none());
        let failed = Some((address, io::ErrorKind::AddrInUse));
        assert_eq!(metrics.failed, failed);
        drop(taken);
        metrics.follow(Some(address));
        assert!(metrics.running.is_some());
        assert_eq!(metrics.failed, None);
        metrics.follow(None);
        assert!(metrics.running.is_none());
    }
}
