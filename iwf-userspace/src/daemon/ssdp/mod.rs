//! Discovery on one LAN address: announcements, and answers to searches from its link.
//!
//! Read before editing: UPnP Device Architecture 1.1 clause 1.

mod queue;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::{StdRng, SysRng};
use rand::{RngExt, SeedableRng};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::config::SsdpConfig;
use super::http::Site;
use super::netstate::LanLink;
use super::sockets;
use crate::wire::description::Tree;
use crate::wire::ssdp::{self, Advert, Arrival, Search, SearchError, Sender};
use queue::Queue;

/// Largest datagram looked at. A search has some 200 octets; what is longer is cut and then no search.
const MAX_DATAGRAM: usize = 2048;
/// The first announcement waits a random part of this, so that devices switched on together do not shout
/// together (clause 1.2.2).
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Datagrams get lost: the first set is sent once more after this.
const REPEAT_AFTER: Duration = Duration::from_millis(300);

/// What discovery says of this device, the same on every link.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The documents, and the name of the server.
    pub site: Arc<Site>,
    /// BOOTID.UPNP.ORG.
    pub boot_id: u32,
    /// Validity and TTL.
    pub config: SsdpConfig,
}

/// Discovery on one address of one link.
#[derive(Debug)]
pub struct Discovery {
    identity: Identity,
    link: LanLink,
    http: SocketAddr,
    group: UdpSocket,
    unicast: UdpSocket,
    queue: Queue,
    rng: StdRng,
}

impl Discovery {
    /// Opens the sockets. `http` is where the descriptions are.
    ///
    /// # Errors
    /// The address is not there, or the port is taken by a program that does not share it.
    pub fn new(identity: Identity, link: LanLink, http: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            group: sockets::ssdp_group(&link)?,
            unicast: sockets::ssdp_unicast(&link, identity.config.ttl)?,
            rng: StdRng::try_from_rng(&mut SysRng).map_err(io::Error::other)?,
            queue: Queue::default(),
            identity,
            link,
            http: without_zone(http),
        })
    }

    /// Announces and answers until told to stop or `stop` is dropped, then says goodbye.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut from_group = [0; MAX_DATAGRAM];
        let mut from_host = [0; MAX_DATAGRAM];
        let mut announce_at = self.in_random(FIRST_WAIT);
        let mut sets_sent = 0_u32;
        loop {
            let next_answer = self.queue.next_due().unwrap_or(announce_at);
            tokio::select! {
                _ = &mut stop => break,
                received = self.group.recv_from(&mut from_group) => {
                    self.search(&from_group, received, Arrival::Multicast);
                }
                received = self.unicast.recv_from(&mut from_host) => {
                    self.search(&from_host, received, Arrival::Unicast);
                }
                () = sleep_until(announce_at) => {
                    if sets_sent == 0 {
                        // Clears what control points remember of an earlier life.
                        self.announce(ssdp::encode_byebye).await;
                    }
                    self.announce(ssdp::encode_alive).await;
                    sets_sent = sets_sent.saturating_add(1);
                    announce_at = if sets_sent == 1 {
                        Instant::now() + REPEAT_AFTER
                    } else {
                        Instant::now() + until_renewal(self.identity.config.max_age, &mut self.rng)
                    };
                }
                () = sleep_until(next_answer) => self.answer_due().await,
            }
        }
        self.announce(ssdp::encode_byebye).await;
    }

    fn in_random(&mut self, span: Duration) -> Instant {
        Instant::now() + span.mul_f64(self.rng.random_range(0.0..=1.0))
    }

    fn search(
        &mut self,
        buffer: &[u8],
        received: io::Result<(usize, SocketAddr)>,
        arrival: Arrival,
    ) {
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, interface = self.link.interface, "cannot receive a search");
                return;
            }
        };
        // Our own announcements come back to us.
        if from.ip() == self.link.addr {
            return;
        }
        // Answers go to hosts of the link only, or anybody could be flooded through us (SSDP-008).
        if !self.link.contains(from.ip()) {
            debug!(%from, interface = self.link.interface, "search from elsewhere ignored");
            return;
        }
        let Some(datagram) = buffer.get(..length) else {
            return;
        };
        let search = match Search::decode(datagram) {
            Ok(search) => search,
            Err(SearchError::NotASearch) => return,
            Err(error) => {
                debug!(%from, %error, "search ignored");
                return;
            }
        };
        let Some(spread) = search.spread(arrival) else {
            debug!(%from, "search without MX ignored");
            return;
        };
        let tree = search.tree_at(self.link.addr);
        let adverts = search.answers_in(tree, self.identity.site.description().uuid());
        if adverts.is_empty() {
            return;
        }
        let due = self.in_random(spread);
        if !self.queue.push(due, from, tree, adverts) {
            debug!(%from, "too many searches: one is not answered");
        }
    }

    async fn answer_due(&mut self) {
        while let Some((to, tree, advert)) = self.queue.pop_due(Instant::now()) {
            let message = self.encode(tree, &advert, |sender, advert| {
                ssdp::encode_answer(sender, advert, None)
            });
            self.send(to, &message).await;
        }
    }

    /// Sends the whole set once. The tree of version 2 is announced alone: only the highest version of a type
    /// is (DEV-004), and what cannot bear it gets version 1 by its user agent.
    async fn announce(&self, encode: impl Fn(&Sender<'_>, &Advert) -> Vec<u8> + Copy) {
        let group = ssdp::group(self.link.addr);
        let group = sockets::on_link(group, ssdp::PORT, self.link.ifindex);
        for advert in ssdp::advertisements(Tree::Igd2, self.identity.site.description().uuid()) {
            let message = self.encode(Tree::Igd2, &advert, encode);
            self.send(group, &message).await;
        }
    }

    fn encode(
        &self,
        tree: Tree,
        advert: &Advert,
        encode: impl Fn(&Sender<'_>, &Advert) -> Vec<u8>,
    ) -> Vec<u8> {
        let site = &self.identity.site;
        let sender = Sender {
            location: &format!("http://{}{}", self.http, tree.path()),
            group: ssdp::group(self.link.addr),
            server: site.server(),
            max_age: u32::try_from(self.identity.config.max_age.as_secs()).unwrap_or(u32::MAX),
            boot_id: self.identity.boot_id,
            config_id: site.description().config_id(),
        };
        encode(&sender, advert)
    }

    async fn send(&self, to: SocketAddr, message: &[u8]) {
        if let Err(error) = self.unicast.send_to(message, to).await {
            warn!(%to, %error, interface = self.link.interface, "cannot send to the LAN");
        }
    }
}

/// A zone is this machine's name of the link and means nothing in a URL that others read.
fn without_zone(mut addr: SocketAddr) -> SocketAddr {
    if let SocketAddr::V6(addr) = &mut addr {
        addr.set_scope_id(0);
    }
    addr
}

/// How long an announcement stands alone: a random time in the second quarter of its validity (clause 1.2.2
/// wants it renewed at random and before half of it).
fn until_renewal(max_age: Duration, rng: &mut StdRng) -> Duration {
    (max_age / 4).mul_f64(rng.random_range(1.0..2.0))
}

#[cfg(test)]
mod tests;
