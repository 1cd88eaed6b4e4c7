//! Event messages on their way to subscribers, each in a task of its own.
//!
//! The core says what is sent where, when it is given up, and what follows from its outcome. A subscriber that is slow
//! keeps one task and one connection, and nobody else waits for it.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::debug;

use super::sockets;
use crate::proto::gena::{At, Granted, Host, MAX_SUBSCRIPTIONS, Refusal, Send, SendError};
use crate::wire::gena::{Answer, MAX_STATUS_LINE, Request, answer};
use crate::wire::scpd::Service;

/// A request at an event URL with the place for its answer.
#[derive(Debug)]
pub struct SubscriptionCall {
    /// The service.
    pub service: &'static Service,
    /// Who is at the other end of the connection.
    pub host: Host,
    /// Where it came to.
    pub at: At,
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Option<Granted>, Refusal>>,
}

/// What came of a message.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Its number.
    pub number: u64,
    /// Whether the subscriber has confirmed it.
    pub result: Result<(), SendError>,
}

/// Sends messages and forgets those that are not wanted any more.
#[derive(Debug)]
pub struct Courier {
    outcomes: mpsc::Sender<Outcome>,
    /// The core has one message for each subscription at most, so there are no more.
    on_the_way: BTreeMap<u64, AbortHandle>,
}

impl Courier {
    /// A courier, and what comes of its messages.
    pub fn new() -> (Self, mpsc::Receiver<Outcome>) {
        let (outcomes, receiver) = mpsc::channel(MAX_SUBSCRIPTIONS);
        let courier = Self {
            outcomes,
            on_the_way: BTreeMap::new(),
        };
        (courier, receiver)
    }

    /// Sends by the interface; `None`: there is none with the address to send from any more.
    pub(super) fn send(&mut self, message: Send, interface: Option<String>) {
        let (outcomes, number) = (self.outcomes.clone(), message.number);
        let task = tokio::spawn(async move {
            let to = message.callback.to;
            let result = match interface.zip(message.from) {
                Some((interface, from)) => deliver(message, &interface, from).await,
                None => Err(SendError::Unreachable),
            };
            if let Err(error) = result {
                debug!(%to, %error, "event not delivered");
            }
            // Nobody listens when the daemon ends.
            if outcomes.send(Outcome { number, result }).await.is_err() {
                debug!(%to, "nobody waits for the outcome of an event");
            }
        });
        self.on_the_way.insert(number, task.abort_handle());
    }

    /// The outcome has been heard.
    pub(super) fn arrived(&mut self, number: u64) {
        self.on_the_way.remove(&number);
    }

    /// Nobody wants to know what comes of it.
    pub(super) fn cancel(&mut self, number: u64) {
        if let Some(task) = self.on_the_way.remove(&number) {
            task.abort();
        }
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        for task in self.on_the_way.values() {
            task.abort();
        }
    }
}

async fn deliver(message: Send, interface: &str, from: At) -> Result<(), SendError> {
    let all = message.answer_within;
    let done = timeout(all, exchange(message, interface, from)).await;
    done.unwrap_or(Err(SendError::Silent))
}

async fn exchange(message: Send, interface: &str, from: At) -> Result<(), SendError> {
    let connect = async {
        let socket = sockets::subscriber(interface, from)?;
        let to = message.callback.to;
        let to = sockets::on_link(to.ip(), to.port(), from.interface);
        socket.connect(to).await
    };
    let Ok(Ok(mut stream)) = timeout(message.connect_within, connect).await else {
        return Err(SendError::Unreachable);
    };
    let silent = |_| SendError::Silent;
    stream.write_all(&message.message).await.map_err(silent)?;
    let mut received = Vec::with_capacity(MAX_STATUS_LINE);
    loop {
        match answer(&received) {
            Answer::Status(200..=299) => return Ok(()),
            Answer::Status(status) => return Err(SendError::Refused(status)),
            Answer::Nonsense => return Err(SendError::Silent),
            Answer::Incomplete => {}
        }
        // More than a status line is not read, whatever comes.
        if stream.read_buf(&mut received).await.map_err(silent)? == 0 {
            return Err(SendError::Silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::wire::gena::Callback;

    const SOON: Duration = Duration::from_secs(5);

    fn message(to: std::net::SocketAddr, number: u64) -> Send {
        Send {
            number,
            from: Some(At {
                own: to.ip(),
                interface: 1,
            }),
            callback: Callback {
                to,
                path: "/".to_owned(),
            },
            message: b"NOTIFY / HTTP/1.1\r\n\r\n".to_vec(),
            connect_within: Duration::from_secs(1),
            answer_within: Duration::from_millis(500),
        }
    }

    /// What comes of a message to a server that answers with this and then stays.
    async fn outcome(reply: &'static [u8]) -> Result<(), SendError> {
        outcome_at("127.0.0.1:0", reply).await
    }

    async fn outcome_at(own: &str, reply: &'static [u8]) -> Result<(), SendError> {
        let listener = TcpListener::bind(own).await.unwrap();
        let to = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 21];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"NOTIFY / HTTP/1.1\r\n\r\n");
            // The other side goes as soon as it has read enough.
            let _written = stream.write_all(reply).await;
            stream.read(&mut [0]).await
        });
        let (mut courier, mut outcomes) = Courier::new();
        courier.send(message(to, 7), Some("lo".to_owned()));
        let outcome = timeout(SOON, outcomes.recv()).await.unwrap().unwrap();
        assert_eq!(outcome.number, 7);
        courier.arrived(7);
        assert!(courier.on_the_way.is_empty());
        // The connection is closed, although the server stays.
        let _closed = timeout(SOON, server).await.unwrap().unwrap();
        outcome.result
    }

    #[tokio::test]
    async fn every_answer_has_its_outcome() {
        static ENDLESS: [u8; 1 << 16] = [b'x'; 1 << 16];
        assert_eq!(outcome(b"HTTP/1.1 200 OK\r\n\r\n").await, Ok(()));
        let over_ipv6 = outcome_at("[::1]:0", b"HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(over_ipv6, Ok(()));
        let refused = outcome(b"HTTP/1.1 412 Precondition Failed\r\n").await;
        assert_eq!(refused, Err(SendError::Refused(412)));
        for silent in [&b""[..], b"HTTP/1.1 20", &ENDLESS, b"\r\n"] {
            assert_eq!(outcome(silent).await, Err(SendError::Silent));
        }
    }

    #[tokio::test]
    async fn where_nobody_listens_or_no_link_is_left_nothing_arrives() {
        // Bound, so that nobody else gets the port meanwhile, and not listening.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let to = socket.local_addr().unwrap();
        let (mut courier, mut outcomes) = Courier::new();
        for interface in [Some("lo".to_owned()), None] {
            courier.send(message(to, 1), interface);
            let outcome = timeout(SOON, outcomes.recv()).await.unwrap().unwrap();
            assert_eq!(outcome.result, Err(SendError::Unreachable));
        }
    }

    #[tokio::test]
    async fn what_is_cancelled_ends_its_connection_and_has_no_outcome() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let (mut courier, mut outcomes) = Courier::new();
        courier.send(message(to, 1), Some("lo".to_owned()));
        let (mut stream, _) = listener.accept().await.unwrap();
        courier.cancel(1);
        let mut all = Vec::new();
        let _closed = timeout(SOON, stream.read_to_end(&mut all)).await.unwrap();
        drop(courier);
        assert!(timeout(SOON, outcomes.recv()).await.unwrap().is_none());
    }
}
