//! The default router as a UPnP gateway: searches, and requests of HTTP. What is asked and believed is decided above.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::{Body, to_bytes};
use hyper::Method;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{Task, UpstreamEvent};
use crate::daemon::sockets;
use crate::iwf::{Errand, Fetched};
use crate::proto::igd_client::Request;
use crate::wire::ssdp;

/// A request is given up after so long, the answer's body included.
const PATIENCE: Duration = Duration::from_secs(8);
/// Most octets of status line and headers, and of what is read ahead.
const MAX_HEAD: usize = 16 * 1024;
/// Largest datagram read whole; what is longer is cut, and its end holds nothing that is looked for.
const MAX_ANSWER: usize = 2048;

/// One socket for searches, and one connection at a time.
#[derive(Debug)]
pub(super) struct RouterLink {
    interface: String,
    own: Option<Ipv4Addr>,
    search: Option<Search>,
    fetch: Option<Task>,
    events: mpsc::Sender<UpstreamEvent>,
}

#[derive(Debug)]
struct Search {
    socket: Arc<UdpSocket>,
    _receiver: Task,
}

impl RouterLink {
    pub(super) fn new(interface: String, events: mpsc::Sender<UpstreamEvent>) -> Self {
        Self {
            interface,
            own: None,
            search: None,
            fetch: None,
            events,
        }
    }

    /// Follows the WAN's address: what was begun from another one is given up.
    pub(super) fn follow(&mut self, own: Option<Ipv4Addr>) {
        if self.own != own {
            (self.own, self.search, self.fetch) = (own, None, None);
        }
    }

    pub(super) fn run(&mut self, errand: Errand) {
        match errand {
            Errand::Search { router, payload } => {
                if let Err(error) = self.search(router, &payload) {
                    debug!(%router, %error, "cannot search for a UPnP gateway");
                }
            }
            Errand::Fetch { id, request } => self.fetch(id, request),
        }
    }

    /// To the group, and to the router itself: some answer the one, some the other.
    fn search(&mut self, router: Ipv4Addr, payload: &[u8]) -> io::Result<()> {
        let own = self.own.ok_or(io::ErrorKind::NetworkDown)?;
        if self.search.is_none() {
            let socket = Arc::new(sockets::ssdp_search(&self.interface, own)?);
            let receiver = receive(Arc::clone(&socket), self.events.clone());
            self.search = Some(Search {
                socket,
                _receiver: Task(tokio::spawn(receiver)),
            });
        }
        let Some(search) = &self.search else {
            return Ok(());
        };
        let group = search
            .socket
            .try_send_to(payload, (ssdp::GROUP, ssdp::PORT).into());
        let router = search
            .socket
            .try_send_to(payload, (router, ssdp::PORT).into());
        group.and(router).map(drop)
    }

    fn fetch(&mut self, id: u64, request: Request) {
        let (interface, own) = (self.interface.clone(), self.own);
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let (at, path) = (request.at, request.path.clone());
            let fetched = async {
                let own = own.context("the WAN has no address")?;
                timeout(PATIENCE, fetch(&interface, own, request))
                    .await
                    .context("no answer in time")?
            };
            let answer = match fetched.await {
                Ok(answer) => Some(answer),
                Err(error) => {
                    debug!(%at, path, "the router's UPnP does not answer: {error:#}");
                    None
                }
            };
            // The loop has ended if nobody listens.
            events
                .send(UpstreamEvent::Fetched { id, answer })
                .await
                .ok();
        });
        // An earlier one was given up.
        self.fetch = Some(Task(task));
    }
}

async fn receive(socket: Arc<UdpSocket>, events: mpsc::Sender<UpstreamEvent>) {
    let mut buffer = [0; MAX_ANSWER];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let payload = buffer.get(..length).unwrap_or_default().to_vec();
                let found = UpstreamEvent::Found { from, payload };
                if events.send(found).await.is_err() {
                    return;
                }
            }
            // An ICMP error of an earlier datagram, mostly: there is no UPnP.
            Err(error) => {
                debug!(%error, "cannot receive answers to searches");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One request on a connection of its own. Redirections are not followed: the address is the only one that is trusted.
async fn fetch(interface: &str, own: Ipv4Addr, request: Request) -> Result<Fetched> {
    let stream = sockets::tcp_client(interface, own, request.at)
        .await
        .context("connect")?;
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .context("begin")?;
    let _driver = Task(tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "connection to the router broke");
        }
    }));
    let limit = request.limit;
    let answer = sender
        .send_request(encode(request)?)
        .await
        .context("get an answer")?;
    let status = answer.status().as_u16();
    let body = to_bytes(Body::new(answer.into_body()), limit)
        .await
        .context("read the answer")?;
    Ok(Fetched {
        status,
        body: body.to_vec(),
    })
}

fn encode(request: Request) -> Result<hyper::Request<Body>> {
    let builder = hyper::Request::builder()
        .uri(&request.path)
        .header(HOST, request.at.to_string())
        .header(CONNECTION, "close")
        .header(
            USER_AGENT,
            concat!("UPnP/1.1 iwf/", env!("CARGO_PKG_VERSION")),
        );
    let request = match request.call {
        None => builder.method(Method::GET).body(Body::empty()),
        Some(call) => builder
            .method(Method::POST)
            .header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
            .header("SOAPAction", call.soap_action)
            .body(Body::from(call.body)),
    };
    request.context("write the request")
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, SocketAddrV4};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::proto::igd_client::Call;

    const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

    /// A server that reads one request and answers with these octets; what it read comes back.
    async fn answering(octets: Vec<u8>) -> (SocketAddrV4, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let SocketAddr::V4(at) = listener.local_addr().unwrap() else {
            panic!("an IPv4 address");
        };
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            let mut buffer = [0; 4096];
            while !String::from_utf8_lossy(&read).contains("\r\n\r\n") {
                let length = stream.read(&mut buffer).await.unwrap();
                assert!(length > 0, "a whole request");
                read.extend_from_slice(&buffer[..length]);
            }
            // The client may have had enough of it before the end.
            stream.write_all(&octets).await.ok();
            String::from_utf8(read).unwrap()
        });
        (at, task)
    }

    async fn run(request: Request) -> Option<Fetched> {
        let (sender, mut events) = mpsc::channel(4);
        let mut link = RouterLink::new("lo".to_owned(), sender);
        link.follow(Some(HERE));
        link.run(Errand::Fetch { id: 7, request });
        match timeout(Duration::from_secs(20), events.recv()).await {
            Ok(Some(UpstreamEvent::Fetched { id: 7, answer })) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn request(at: SocketAddrV4, call: Option<Call>) -> Request {
        Request {
            at,
            path: "/ctl?x=1".to_owned(),
            call,
            limit: 100,
        }
    }

    #[tokio::test]
    async fn a_call_is_posted_and_its_answer_comes_back() {
        let answer = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\nfault";
        let (at, server) = answering(answer.to_vec()).await;
        let call = Call {
            soap_action: "\"urn:x#Y\"".to_owned(),
            body: "<x/>".to_owned(),
        };
        let fetched = run(request(at, Some(call))).await.expect("an answer");
        assert_eq!((fetched.status, fetched.body), (500, b"fault".to_vec()));
        let read = server.await.unwrap();
        assert!(read.starts_with("POST /ctl?x=1 HTTP/1.1\r\n"), "{read}");
        for header in [
            format!("host: {at}\r\n"),
            "soapaction: \"urn:x#y\"\r\n".to_owned(),
            "content-type: text/xml; charset=\"utf-8\"\r\n".to_owned(),
            "content-length: 4\r\n".to_owned(),
        ] {
            assert!(read.to_lowercase().contains(&header), "{header} in {read}");
        }
    }

    #[tokio::test]
    async fn bodies_without_a_length_and_in_chunks_are_read() {
        for (head, body) in [
            ("HTTP/1.0 200 OK\r\n", "until the end"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n",
                "d\r\nuntil the end\r\n0\r\n\r\n",
            ),
        ] {
            let (at, _server) = answering(format!("{head}\r\n{body}").into_bytes()).await;
            let fetched = run(request(at, None)).await.expect("an answer");
            assert_eq!(
                (fetched.status, fetched.body),
                (200, b"until the end".to_vec())
            );
        }
    }

    #[tokio::test]
    async fn what_is_too_long_or_no_http_is_no_answer() {
        for octets in [
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n{}",
                "x".repeat(101)
            ),
            format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(100_000)),
            format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000)),
            "220 mail ready\r\n".to_owned(),
            String::new(),
        ] {
            let (at, _server) = answering(octets.into_bytes()).await;
            assert_eq!(run(request(at, None)).await, None);
        }
        // Bound, so that nobody else gets the port meanwhile, and not listening.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind((HERE, 0).into()).unwrap();
        let SocketAddr::V4(at) = closed.local_addr().unwrap() else {
            panic!("an IPv4 address");
        };
        assert_eq!(run(request(at, None)).await, None);
    }

    #[tokio::test]
    async fn a_search_reaches_the_router_and_its_answer_comes_back() {
        let router = Ipv4Addr::new(127, 0, 0, 77);
        let gateway = UdpSocket::bind((router, ssdp::PORT)).await.unwrap();
        let (sender, mut events) = mpsc::channel(4);
        let mut link = RouterLink::new("lo".to_owned(), sender);
        link.follow(Some(HERE));
        let payload = b"who is there".to_vec();
        // The socket is ready for writing after a turn of the runtime.
        let mut buffer = [0; 64];
        let from = loop {
            let payload = payload.clone();
            link.run(Errand::Search { router, payload });
            let wait = timeout(Duration::from_millis(200), gateway.recv_from(&mut buffer));
            if let Ok(received) = wait.await {
                let (length, from) = received.unwrap();
                assert_eq!(&buffer[..length], b"who is there");
                break from;
            }
        };
        gateway.send_to(b"me", from).await.unwrap();
        let event = timeout(Duration::from_secs(5), events.recv())
            .await
            .unwrap();
        assert_eq!(
            event,
            Some(UpstreamEvent::Found {
                from: (router, ssdp::PORT).into(),
                payload: b"me".to_vec()
            })
        );
    }
}
