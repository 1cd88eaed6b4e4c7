//! What is on its way, and what becomes of it where it arrives.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::World;
use crate::iwf::{Errand, Input, Returned};
use crate::proto::{gena, igd_client};
use crate::sim::server::address;
use crate::wire::natpmp;
use crate::wire::pcp::ServerMessage;

pub(super) enum Datagram {
    ToServer(SocketAddr, IpAddr, Vec<u8>),
    ToClient(SocketAddr, Vec<u8>),
    EventSent(u64, Result<(), gena::SendError>),
    Unreachable(SocketAddr),
    /// A request of HTTP, and what comes back.
    Fetch(u64, igd_client::Request),
    Returned(Returned),
}

impl World {
    pub(super) fn deliver(&mut self, datagram: Datagram) {
        match datagram {
            Datagram::ToServer(to, source, payload) => {
                let natpmp = payload.first() == Some(&natpmp::VERSION);
                let gateway = self.gateway.as_mut().filter(|_| to == address());
                if let Some(gateway) = gateway.filter(|gateway| natpmp || !gateway.pcp_too) {
                    if let Some(answer) = gateway.receive(self.now, &payload) {
                        self.answer_from(to, answer);
                    }
                    return;
                }
                let server = match &mut self.other {
                    Some((at, other)) if *at == to => other,
                    _ => &mut self.server,
                };
                if let Some(answer) = server.receive(self.now, source, &payload) {
                    self.answer_from(to, answer);
                }
            }
            Datagram::ToClient(from, payload) => {
                self.trace(|| format!("hears {:?}", ServerMessage::decode(&payload)));
                self.input(Input::Upstream { from, payload });
            }
            Datagram::Fetch(id, request) => self.fetch(id, &request),
            Datagram::Returned(returned) => self.input(Input::Returned(returned)),
            Datagram::EventSent(number, result) => {
                if let Some(subscriber) = &mut self.subscriber {
                    subscriber.sent(number, result);
                }
                self.input(Input::EventSent { number, result });
            }
            Datagram::Unreachable(server) => self.input(Input::UpstreamUnreachable { server }),
        }
    }

    pub(super) fn run_errand(&mut self, errand: Errand) {
        match errand {
            Errand::Search { router, payload } => {
                assert_eq!(Some(router), self.wan.gateway, "nobody else is asked");
                let answers = self.upnp.as_mut().map(|upnp| upnp.search(&payload));
                for (from, payload) in answers.into_iter().flatten() {
                    self.put(Datagram::Returned(Returned::Found { from, payload }));
                }
            }
            Errand::Fetch { id, request } => {
                assert_eq!(
                    Some(*request.at.ip()),
                    self.wan.gateway,
                    "nobody else is asked"
                );
                self.put(Datagram::Fetch(id, request));
            }
        }
    }

    /// TCP repeats what is lost; at worst nothing comes of it, which the shell says after eight seconds.
    pub(super) fn fetch(&mut self, id: u64, request: &igd_client::Request) {
        let now = self.now;
        let source = self.wan.address;
        let answer = match (&mut self.upnp, source) {
            (Some(upnp), Some(source)) => upnp.fetch(source, request, now),
            _ => Some((Duration::ZERO, None)),
        };
        let limit = Duration::from_secs(8);
        let (wait, answer) = answer
            .filter(|(wait, _)| *wait < limit)
            .unwrap_or((limit, None));
        self.last_datagram += 1;
        let key = (now + wait, self.last_datagram);
        let returned = Returned::Fetched { id, answer };
        self.wires.insert(key, Datagram::Returned(returned));
    }

    pub(super) fn put(&mut self, datagram: Datagram) {
        self.last_datagram += 1;
        let delay = self.link.copies(&mut self.rng).first().copied();
        let key = (self.now + delay.unwrap_or_default(), self.last_datagram);
        self.wires.insert(key, datagram);
    }

    /// Puts a datagram of the server on its way.
    pub(in crate::sim) fn answer(&mut self, payload: Vec<u8>) {
        self.answer_from(address(), payload);
    }

    /// The same from one of its addresses.
    pub(in crate::sim) fn answer_from(&mut self, from: SocketAddr, payload: Vec<u8>) {
        for delay in self.link.copies(&mut self.rng) {
            self.last_datagram += 1;
            let key = (self.now + delay, self.last_datagram);
            let datagram = Datagram::ToClient(from, payload.clone());
            self.wires.insert(key, datagram);
        }
    }
}
