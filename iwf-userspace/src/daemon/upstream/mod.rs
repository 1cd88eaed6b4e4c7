//! Datagrams to and from PCP servers, and what a router without PCP is asked in their place.

mod router;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::Socket;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use router::RouterLink;

use super::config::MAX_PCP_SERVERS;
use super::sockets;
use crate::iwf::{Errand, Fetched};
use crate::types::LocalAddrs;

/// Largest datagram read whole; RFC 6887 section 7 allows 1100 octets. What is longer is cut, and refused above.
const MAX_DATAGRAM: usize = 1500;

/// What a server, or the network on the way to it, told us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamEvent {
    /// A datagram.
    Datagram {
        /// Its source.
        from: SocketAddr,
        /// Its octets.
        payload: Vec<u8>,
    },
    /// A datagram to the group on which servers announce their restarts.
    Announcement {
        /// Its source address.
        from: IpAddr,
        /// Its octets.
        payload: Vec<u8>,
    },
    /// A datagram on the socket that searches for gateways leave from.
    Found {
        /// Its source.
        from: SocketAddr,
        /// Its octets.
        payload: Vec<u8>,
    },
    /// What came of a request of HTTP.
    Fetched {
        /// Names the request.
        id: u64,
        /// The answer, if there was one.
        answer: Option<Fetched>,
    },
    /// A hard ICMP error: nobody listens there.
    Unreachable {
        /// The server.
        server: SocketAddr,
    },
}

/// The sockets towards all servers, one each, kept open: a NAT on the way keeps its mapping, and a late answer
/// finds us.
#[derive(Debug)]
pub struct Upstream {
    interface: String,
    own: LocalAddrs,
    clients: BTreeMap<SocketAddr, Client>,
    /// One listener for each of our addresses, and whether it was tried: a failure is told once.
    announcements: BTreeMap<IpAddr, Option<Task>>,
    router: RouterLink,
    events: mpsc::Sender<UpstreamEvent>,
}

#[derive(Debug)]
struct Client {
    socket: Socket,
    _receiver: Task,
}

/// A task that ends when dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Upstream {
    /// No sockets yet. What arrives goes to `events`; when that is full, receiving waits and the kernel's
    /// buffers are the bound.
    pub fn new(interface: String, events: mpsc::Sender<UpstreamEvent>) -> Self {
        Self {
            router: RouterLink::new(interface.clone(), events.clone()),
            interface,
            own: LocalAddrs::default(),
            clients: BTreeMap::new(),
            announcements: BTreeMap::new(),
            events,
        }
    }

    /// Follows the WAN's addresses: PCP servers see them as the client's, so sockets of old ones are closed.
    pub fn follow(&mut self, own: LocalAddrs, ifindex: Option<u32>) {
        let addrs = [own.v4.map(IpAddr::V4), own.v6.map(IpAddr::V6)];
        self.clients
            .retain(|server, _| self.own.towards(*server) == own.towards(*server));
        self.announcements
            .retain(|addr, _| addrs.contains(&Some(*addr)));
        self.own = own;
        self.router.follow(own.v4);
        for addr in addrs.into_iter().flatten() {
            self.listen(addr, ifindex.unwrap_or(0));
        }
    }

    /// Listens to what servers announce to the group of that address' family.
    fn listen(&mut self, addr: IpAddr, ifindex: u32) {
        if let Some(Some(_)) = self.announcements.get(&addr) {
            return;
        }
        let task = match sockets::pcp_announcements(&self.interface, ifindex, addr) {
            Ok(socket) => {
                let events = self.events.clone();
                Some(Task(tokio::spawn(receive(socket, None, events))))
            }
            Err(error) => {
                if !self.announcements.contains_key(&addr) {
                    warn!(
                        %error, interface = self.interface, %addr,
                        "cannot listen for restarts of the PCP server; renewals will notice them later"
                    );
                }
                None
            }
        };
        self.announcements.insert(addr, task);
    }

    /// Sends a datagram. It may be lost, as any may; the machine above repeats it.
    pub fn send(&mut self, server: SocketAddr, payload: &[u8]) {
        if let Err(error) = self.try_send(server, payload) {
            debug!(%server, %error, "cannot send to the PCP server");
        }
    }

    /// Does something about the default router; what comes of it is an event.
    pub fn run(&mut self, errand: Errand) {
        self.router.run(errand);
    }

    fn try_send(&mut self, server: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let own = self.own.towards(server).ok_or(io::ErrorKind::NetworkDown)?;
        if !self.clients.contains_key(&server) {
            if self.clients.len() >= 2 * MAX_PCP_SERVERS {
                // Too many servers came and went. Whichever is closed is opened again when it is needed.
                self.clients.pop_first();
            }
            let (socket, receiving) = sockets::pcp_client(&self.interface, own, server)?;
            let port = receiving.local_addr()?.port();
            info!(%server, port, "asking a PCP server");
            let task = tokio::spawn(receive(receiving, Some(server), self.events.clone()));
            let client = Client {
                socket,
                _receiver: Task(task),
            };
            self.clients.insert(server, client);
        }
        let Some(client) = self.clients.get(&server) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        match client.socket.send(payload) {
            // The error belongs to an earlier datagram and is told now; this one was not sent yet.
            Err(error) if is_hard(&error) => {
                self.report_unreachable(server);
                client.socket.send(payload).map(drop)
            }
            sent => sent.map(drop),
        }
    }

    fn report_unreachable(&self, server: SocketAddr) {
        if self
            .events
            .try_send(UpstreamEvent::Unreachable { server })
            .is_err()
        {
            debug!(%server, "no room to report an ICMP error");
        }
    }
}

/// Reads until the daemon ends. `server` is the peer of a connected socket; without one it is the group's.
async fn receive(
    socket: UdpSocket,
    server: Option<SocketAddr>,
    events: mpsc::Sender<UpstreamEvent>,
) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let event = match (socket.recv_from(&mut buffer).await, server) {
            (Ok((length, from)), Some(_)) => UpstreamEvent::Datagram {
                from: plain(from),
                payload: buffer.get(..length).unwrap_or_default().to_vec(),
            },
            (Ok((length, from)), None) => UpstreamEvent::Announcement {
                from: from.ip(),
                payload: buffer.get(..length).unwrap_or_default().to_vec(),
            },
            (Err(error), Some(server)) if is_hard(&error) => UpstreamEvent::Unreachable { server },
            (Err(error), _) => {
                debug!(%error, "cannot receive from upstream");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Without the link that an address of the link is on: it is the WAN's, to which every socket is bound.
fn plain(from: SocketAddr) -> SocketAddr {
    SocketAddr::new(from.ip(), from.port())
}

/// Port or protocol unreachable, as Linux reports it on a connected socket.
fn is_hard(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::{Ipv4Addr, Ipv6Addr};

    const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
    /// Both families of this machine.
    const OWN: LocalAddrs = LocalAddrs {
        v4: Some(HERE),
        v6: Some(Ipv6Addr::LOCALHOST),
    };

    async fn next(events: &mut mpsc::Receiver<UpstreamEvent>) -> UpstreamEvent {
        let wait = tokio::time::timeout(Duration::from_secs(5), events.recv());
        wait.await
            .expect("an event within 5 s")
            .expect("the sender lives")
    }

    #[tokio::test]
    async fn one_socket_per_server_carries_both_ways() {
        carries_both_ways(HERE.into()).await;
    }

    #[tokio::test]
    async fn a_server_may_have_an_ipv6_address() {
        carries_both_ways(Ipv6Addr::LOCALHOST.into()).await;
    }

    async fn carries_both_ways(at: IpAddr) {
        let server = UdpSocket::bind((at, 0)).await.unwrap();
        let address = server.local_addr().unwrap();
        let (sender, mut events) = mpsc::channel(4);
        let mut upstream = Upstream::new("lo".to_owned(), sender);
        upstream.send(address, b"too early");
        upstream.follow(OWN, Some(1));
        let mut buffer = [0; 16];
        let mut ports = Vec::new();
        for request in [b"first", b"again"] {
            upstream.send(address, request);
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], request);
            server.send_to(b"answer", from).await.unwrap();
            let payload = b"answer".to_vec();
            assert_eq!(
                next(&mut events).await,
                UpstreamEvent::Datagram {
                    from: address,
                    payload
                }
            );
            ports.push(from.port());
        }
        assert_eq!(ports[0], ports[1]);
    }

    #[tokio::test]
    async fn a_closed_port_is_reported() {
        // Taken, so that nobody else gets the port meanwhile, by a socket that hears somebody else only.
        let taken = UdpSocket::bind((HERE, 0)).await.unwrap();
        let address = taken.local_addr().unwrap();
        taken.connect((HERE, 9)).await.unwrap();
        let (sender, mut events) = mpsc::channel(4);
        let mut upstream = Upstream::new("lo".to_owned(), sender);
        upstream.follow(OWN, Some(1));
        upstream.send(address, b"x");
        assert_eq!(
            next(&mut events).await,
            UpstreamEvent::Unreachable { server: address }
        );
    }
}
