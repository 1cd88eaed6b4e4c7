//! Discovery on one LAN address: announcements, and answers to searches from its link.
//!
//! Read before editing: UPnP Device Architecture 1.1 clause 1.

mod queue;
mod voice;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::{StdRng, SysRng};
use rand::{RngExt, SeedableRng};
use tokio::net::UdpSocket;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::config::SsdpConfig;
use super::http::Site;
use super::netstate::LanLink;
use super::sockets;
use crate::wire::ssdp::{Arrival, Search, SearchError};
use queue::Queue;
pub use voice::{Served, Voice};

/// As much of a datagram as is looked at. A search has some 200 octets; what is longer is judged by what is left of it.
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
    /// BOOTID.UPNP.ORG to begin with.
    pub boot_id: u32,
    /// Validity and TTL.
    pub config: SsdpConfig,
}

/// How discovery begins on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Nothing was announced there: goodbye first, which clears what control points remember of an earlier life.
    Goodbye,
    /// The same device is there already by another address, and a goodbye would be its.
    Alive,
}

/// Discovery on one address of one link.
#[derive(Debug)]
pub struct Discovery {
    voice: Voice,
    /// BOOTID.UPNP.ORG; all is announced again when it changes.
    boot_ids: watch::Receiver<u32>,
    group: UdpSocket,
    queue: Queue,
    rng: StdRng,
}

impl Discovery {
    /// Opens the sockets. `http` is where the descriptions are, `https` where they are over TLS as well.
    ///
    /// # Errors
    /// The address is not there, or the port is taken by a program that does not share it.
    pub fn new(
        identity: Identity,
        link: LanLink,
        served: Served,
        boot_ids: watch::Receiver<u32>,
    ) -> io::Result<Self> {
        Ok(Self {
            group: sockets::ssdp_group(&link)?,
            voice: Voice::new(identity, link, served)?,
            rng: StdRng::try_from_rng(&mut SysRng).map_err(io::Error::other)?,
            queue: Queue::default(),
            boot_ids,
        })
    }

    /// What says on this link whatever has to be said in the order of all links.
    pub fn voice(&self) -> Voice {
        self.voice.clone()
    }

    /// Announces and answers until told to stop or `stop` is dropped, then says goodbye.
    pub async fn run(mut self, opening: Opening, mut stop: oneshot::Receiver<()>) {
        let mut from_group = [0; MAX_DATAGRAM];
        let mut from_host = [0; MAX_DATAGRAM];
        let mut boot_id = *self.boot_ids.borrow_and_update();
        let mut announce_at = self.in_random(FIRST_WAIT);
        let mut says_goodbye = opening == Opening::Goodbye;
        let mut repeats = true;
        loop {
            // A goodbye behind an answer would take back what the answer says, so that none is given before it.
            let next_answer = match self.queue.next_due() {
                Some(due) if says_goodbye => due.max(announce_at),
                Some(due) => due,
                None => announce_at,
            };
            tokio::select! {
                // First, so that nothing is said with a number that is over.
                biased;
                _ = &mut stop => break,
                Ok(()) = self.boot_ids.changed() => {
                    boot_id = *self.boot_ids.borrow_and_update();
                    announce_at = self.in_random(FIRST_WAIT);
                    repeats = true;
                }
                () = sleep_until(announce_at) => {
                    if std::mem::take(&mut says_goodbye) {
                        self.voice.goodbye(boot_id);
                    }
                    self.voice.alive(boot_id);
                    announce_at = if std::mem::take(&mut repeats) {
                        Instant::now() + REPEAT_AFTER
                    } else {
                        Instant::now() + until_renewal(self.voice.max_age(), &mut self.rng)
                    };
                }
                () = sleep_until(next_answer) => self.answer_due(boot_id),
                received = self.group.recv_from(&mut from_group) => {
                    self.search(&from_group, received, Arrival::Multicast);
                }
                received = self.voice.receive(&mut from_host) => {
                    self.search(&from_host, received, Arrival::Unicast);
                }
            }
        }
        self.voice.goodbye(boot_id);
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
                debug!(%error, interface = self.voice.link().interface, "cannot receive a search");
                return;
            }
        };
        // Our own announcements come back to us.
        if from.ip() == self.voice.link().addr {
            return;
        }
        // Answers go to hosts of the link only, or anybody could be flooded through us (SSDP-008).
        if !self.voice.link().contains(from.ip()) {
            debug!(%from, interface = self.voice.link().interface, "search from elsewhere ignored");
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
        let tree = self.voice.served(search.tree_at(self.voice.link().addr));
        let adverts = search.answers_in(tree, self.voice.uuid());
        if adverts.is_empty() {
            return;
        }
        let mac = self.voice.mac_of(from.ip());
        let due = self.in_random(spread);
        if !self.queue.push(due, mac, from, tree, adverts) {
            debug!(%from, "too many searches: one is not answered");
        }
    }

    fn answer_due(&mut self, boot_id: u32) {
        while let Some((to, tree, advert)) = self.queue.pop_due(Instant::now()) {
            self.voice.answer(boot_id, to, tree, &advert);
        }
    }
}

/// How long an announcement stands alone: a random time in the second quarter of its validity (clause 1.2.2
/// wants it renewed at random and before half of it).
fn until_renewal(max_age: Duration, rng: &mut StdRng) -> Duration {
    (max_age / 4).mul_f64(rng.random_range(1.0..2.0))
}

#[cfg(test)]
mod tests;
