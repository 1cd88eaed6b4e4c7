//! What is said on one link, by one address. Nothing of it waits: datagrams that do not fit into the socket's buffer are
//! lost as any of them may be, and announcements are repeated for that reason.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::UdpSocket;
use tracing::{debug, warn};

use super::Identity;
use crate::daemon::netstate::LanLink;
use crate::daemon::sockets;
use crate::types::caller::Mac;
use crate::wire::description::{DeviceUuid, Tree};
use crate::wire::ssdp::{self, Advert, Sender};

/// Where the descriptions are.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Over HTTP.
    pub http: SocketAddr,
    /// Over TLS as well, if it is offered.
    pub https: Option<SocketAddr>,
}

/// The sending half of discovery on one address of one link.
#[derive(Clone, Debug)]
pub struct Voice {
    identity: Identity,
    link: LanLink,
    served: Served,
    unicast: Arc<UdpSocket>,
    search_port: Option<u16>,
}

impl Voice {
    /// Opens the socket.
    pub(super) fn new(identity: Identity, link: LanLink, served: Served) -> io::Result<Self> {
        let unicast = sockets::ssdp_unicast(&link, identity.config.ttl)?;
        let port = unicast.local_addr()?.port();
        let search_port = (port != ssdp::PORT).then_some(port);
        if let Some(port) = search_port {
            warn!(
                interface = link.interface, addr = %link.addr, port,
                "another program has port 1900 of a LAN address for itself; unicast searches are heard elsewhere"
            );
        }
        Ok(Self {
            identity,
            link,
            served: Served {
                http: without_zone(served.http),
                https: served.https.map(without_zone),
            },
            unicast: Arc::new(unicast),
            search_port,
        })
    }

    pub(super) const fn link(&self) -> &LanLink {
        &self.link
    }

    pub(super) fn uuid(&self) -> DeviceUuid {
        self.identity.site.description().uuid()
    }

    /// The tree that is served where this one is meant.
    pub(super) fn served(&self, tree: Tree) -> Tree {
        self.identity.site.description().served(tree)
    }

    /// The MAC address that the neighbour table has for a host of the link.
    pub(super) fn mac_of(&self, host: IpAddr) -> Option<Mac> {
        let neighbours = self.identity.site.neighbours();
        neighbours.caller_alone(self.link.ifindex, host).mac
    }

    pub(super) const fn max_age(&self) -> Duration {
        self.identity.config.max_age
    }

    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.unicast.recv_from(buffer).await
    }

    /// Says that the device is there.
    pub(super) fn alive(&self, boot_id: u32) {
        self.announce(boot_id, ssdp::encode_alive);
    }

    /// Says that the device goes.
    pub(super) fn goodbye(&self, boot_id: u32) {
        self.announce(boot_id, ssdp::encode_byebye);
    }

    /// Says goodbye from an address that is no longer there, to the hosts that are.
    pub fn late_goodbye(&self, boot_id: u32) {
        if let Err(error) = sockets::outlive_address(&self.unicast) {
            debug!(%error, addr = %self.link.addr, "no goodbye from an address that has gone");
            return;
        }
        self.goodbye(boot_id);
    }

    /// Says which number comes after this one, because addresses have come or gone (clause 1.2.4).
    pub fn update(&self, boot_id: u32, next_boot_id: u32) {
        self.announce(boot_id, |sender, advert| {
            ssdp::encode_update(sender, advert, next_boot_id)
        });
    }

    /// Answers a search.
    pub(super) fn answer(&self, boot_id: u32, to: SocketAddr, tree: Tree, advert: &Advert) {
        let message = self.encode(boot_id, tree, advert, |sender, advert| {
            ssdp::encode_answer(sender, advert, None)
        });
        self.send(to, &message);
    }

    /// Sends the whole set once. The tree of version 2 is announced alone: only the highest version of a type
    /// is (DEV-004), and what cannot bear it gets version 1 by its user agent.
    fn announce(&self, boot_id: u32, encode: impl Fn(&Sender<'_>, &Advert) -> Vec<u8> + Copy) {
        let group = ssdp::group(self.link.addr);
        let group = sockets::on_link(group, ssdp::PORT, self.link.ifindex);
        let tree = self.served(Tree::Igd2);
        for advert in ssdp::advertisements(tree, self.uuid()) {
            let message = self.encode(boot_id, tree, &advert, encode);
            self.send(group, &message);
        }
    }

    fn encode(
        &self,
        boot_id: u32,
        tree: Tree,
        advert: &Advert,
        encode: impl Fn(&Sender<'_>, &Advert) -> Vec<u8>,
    ) -> Vec<u8> {
        let site = &self.identity.site;
        let Served { http, https } = self.served;
        let https = https.filter(|_| tree == Tree::Protected);
        let https = https.map(|at| format!("https://{at}{}", tree.path()));
        let sender = Sender {
            location: &format!("http://{http}{}", tree.path()),
            secure_location: https.as_deref(),
            group: ssdp::group(self.link.addr),
            server: site.server(),
            max_age: u32::try_from(self.max_age().as_secs()).unwrap_or(u32::MAX),
            boot_id,
            config_id: site.description().config_id(),
            search_port: self.search_port,
        };
        encode(&sender, advert)
    }

    fn send(&self, to: SocketAddr, message: &[u8]) {
        if let Err(error) = SockRef::from(&*self.unicast).send_to(message, &to.into()) {
            debug!(%to, %error, interface = self.link.interface, "cannot send to the LAN");
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
