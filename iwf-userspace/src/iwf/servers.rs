//! Which PCP servers there are, who named them, and which of them is asked.
//!
//! Read before editing: RFC 6887 section 8.1, RFC 7291 section 6, RFC 7723 section 2.1.
//!
//! What the configuration names is all there is. Without it what DHCP names is, and without that the default router and
//! the anycast address. There is one WAN, so every mapping is at one server; the others are kept in contact with, and
//! are asked for mappings when those before them do not answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::settings::{ModeSetting, ServerSource, Translation};
use super::{Iwf, Mode};
use crate::mapping::State;
use crate::mapping::policy::is_public;
use crate::proto::pcp_client::{self, Liveness};
use crate::proto::pcp_servers::{self, Health, Origin, Server, order};
use crate::types::{Generation, Instant};
use crate::wire::pcp::SERVER_PORT;

/// RFC 7723 section 4.1.
const ANYCAST: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 9);
/// RFC 7723 section 4.2. Asked where requests say for whom they are: others get a mapping of their own address, and
/// that has nothing to do with IPv4.
const ANYCAST6: Ipv6Addr = Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 1);

/// Most addresses that are kept in contact with; those that come first.
pub const MAX_ASKED: usize = 8;

/// Stands for the decision who is asked, among what calls can wait for. No mapping has this name.
pub(super) const UNDECIDED: Generation = Generation(0);

/// What the network says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// Whether it had its chance to say something. Until then nobody is asked whom it does not name.
    pub settled: bool,
    /// PCP servers that DHCPv4 names, each with its addresses.
    pub dhcp4: Vec<Vec<IpAddr>>,
    /// PCP servers that DHCPv6 names.
    pub dhcp6: Vec<Vec<IpAddr>>,
    /// Where the network's DS-Lite tunnel ends, once that is resolved.
    pub aftr: Option<Ipv6Addr>,
}

impl Iwf {
    /// DHCP has said something, or has not in time.
    pub(super) fn discover(&mut self, discovered: Discovered, now: Instant) {
        if self.discovered == discovered {
            return;
        }
        self.discovered = discovered;
        self.follow_servers(now);
    }

    /// Makes known who is to be asked, and lets mappings follow.
    pub(super) fn follow_servers(&mut self, now: Instant) {
        let list = self.server_list();
        self.client.set_router(self.igd_router(), now);
        self.select(pcp_servers::Input::Servers(list), now);
        self.choose_mode(now);
        self.leave_servers(now);
        if !self.is_undecided() {
            self.resume(UNDECIDED, now);
        }
    }

    /// Tells the selection something, and the client what follows from it.
    pub(super) fn select(&mut self, input: pcp_servers::Input, now: Instant) {
        self.selection.handle_input(input, now);
        self.heed_selection(now);
    }

    pub(super) fn heed_selection(&mut self, now: Instant) {
        while let Some(effect) = self.selection.poll_effect() {
            match effect {
                pcp_servers::Effect::Watch { all, several } => {
                    self.tell(pcp_client::Input::Several(several), now);
                    self.tell(pcp_client::Input::Servers(all), now);
                }
                pcp_servers::Effect::Probe(at) => self.tell(pcp_client::Input::Probe(at), now),
                pcp_servers::Effect::Rest(at) => self.tell(pcp_client::Input::Rest(at), now),
                pcp_servers::Effect::Move { from, to } => {
                    // What is under way goes on there, so no mode has changed.
                    match &mut self.mode {
                        Mode::Cascaded(at) | Mode::NoNat(at) if *at == from => *at = to,
                        Mode::Cascaded(_)
                        | Mode::NoNat(_)
                        | Mode::Local
                        | Mode::NoServer
                        | Mode::Down => {}
                    }
                    self.tell(pcp_client::Input::Move { from, to }, now);
                }
            }
        }
    }

    /// The client reports on an address.
    pub(super) fn liveness_changed(&mut self, at: SocketAddr, now: Instant) {
        let input = match self.client.liveness(at) {
            Some(Liveness::Answering) => pcp_servers::Input::Answering(at),
            Some(Liveness::Silent) => pcp_servers::Input::Silent(at),
            Some(Liveness::Unknown) | None => return self.choose_mode(now),
        };
        self.select(input, now);
        self.choose_mode(now);
    }

    /// Leases at servers that are gone are asked for where they are to be now.
    fn leave_servers(&mut self, now: Instant) {
        if self.mode.server().is_none() {
            return;
        }
        let left: Vec<_> = self
            .table
            .iter()
            .filter(|m| m.state == State::Active && !self.jobs.contains_key(&m.generation))
            .filter(|m| {
                m.upstream
                    .is_some_and(|lease| !self.selection.contains(lease.server))
            })
            .map(|m| m.generation)
            .collect();
        for generation in left {
            self.reacquire(generation, now);
        }
    }

    /// The servers in order of preference; none if none would be used.
    fn server_list(&self) -> Vec<Server> {
        if self.is_unused() {
            return Vec::new();
        }
        let (origins, discovery) = (&self.settings.servers, self.settings.discovery);
        let mut named: Vec<(Origin, Vec<SocketAddr>)> = Vec::new();
        if !origins.is_empty() {
            for source in origins {
                match source {
                    ServerSource::DefaultRouter => named.extend(self.routers()),
                    ServerSource::Address(address) => named.push((Origin::Config, vec![*address])),
                    ServerSource::Addresses(addresses) => {
                        named.push((Origin::Config, addresses.clone()));
                    }
                }
            }
        } else {
            let dhcp4 = self
                .discovered
                .dhcp4
                .iter()
                .map(|list| (Origin::Dhcp4, list));
            let dhcp6 = self
                .discovered
                .dhcp6
                .iter()
                .map(|list| (Origin::Dhcp6, list));
            named.extend(
                dhcp4
                    .chain(dhcp6)
                    .filter(|_| discovery.dhcp)
                    .map(|(origin, list)| (origin, self.usable(list))),
            );
            named.retain(|(_, addresses)| !addresses.is_empty());
            let nobody = named.is_empty() && self.is_settled();
            // The last link of the chain is there also where DHCP names somebody who does not answer.
            let last_link = self.settings.igd && self.is_translating() && !named.is_empty();
            if discovery.router && (nobody || last_link) {
                named.extend(self.routers());
            }
            if nobody && discovery.anycast {
                let both: [SocketAddr; 2] = [
                    (ANYCAST, SERVER_PORT).into(),
                    (ANYCAST6, SERVER_PORT).into(),
                ];
                named.extend(both.map(|at| (Origin::Anycast, vec![at])));
            }
        }
        let sources = self.sources();
        let mut room = MAX_ASKED;
        let servers = named.into_iter().filter_map(|(origin, addresses)| {
            let mut addresses = match self.is_up() {
                false => addresses,
                true => order::sorted(&addresses, &sources),
            };
            addresses.truncate(room);
            if addresses.is_empty() {
                return None;
            }
            room -= addresses.len();
            let holds = |at: &&SocketAddr| {
                let mut leases = self.table.iter().filter_map(|m| m.upstream);
                leases.any(|lease| lease.server == **at)
            };
            let last = addresses.iter().find(holds).copied();
            Some(Server {
                origin,
                addresses,
                last,
            })
        });
        servers.collect()
    }

    /// Whether both are addresses of one server, whether they can be reached now or not.
    pub(super) fn is_one_server(&self, one: SocketAddr, other: SocketAddr) -> bool {
        let configured = self.settings.servers.iter().any(|source| match source {
            ServerSource::Addresses(all) => all.contains(&one) && all.contains(&other),
            ServerSource::Address(_) | ServerSource::DefaultRouter => false,
        });
        let named = [&self.discovered.dhcp4, &self.discovered.dhcp6];
        let discovered = named.into_iter().flatten();
        let mut discovered =
            discovered.filter(|all| all.contains(&one.ip()) && all.contains(&other.ip()));
        one == other || configured || (one.port() == other.port() && discovered.next().is_some())
    }

    /// Whom UPnP may be spoken with. Without our NAT mappings are others', which it has no use for.
    pub(super) fn igd_router(&self) -> Option<SocketAddr> {
        let gateway = self.wan.gateway.filter(|_| self.is_translating());
        gateway.map(|addr| (addr, SERVER_PORT).into())
    }

    /// Where requests may come from. Servers map the address that they are asked from, unless the request names somebody
    /// else; so while our NAT translates, what maps IPv4 is asked over IPv4. What uses a DS-Lite tunnel is asked over
    /// plain IPv6 (RFC 8585 section 3.2.2).
    fn sources(&self) -> Vec<IpAddr> {
        let (v4, v6) = (
            self.wan.address.map(IpAddr::V4),
            self.wan.address6.map(IpAddr::V6),
        );
        let sources = match self.translation() {
            Translation::Here => [v4, None],
            Translation::Routed => [v4, v6],
            Translation::DsLite => [None, v6],
        };
        sources.into_iter().flatten().collect()
    }

    /// Whoever is next on the way out; with DS-Lite the end of the tunnel (RFC 8585 section 3.2.2, DSLITE-3).
    fn routers(&self) -> Vec<(Origin, Vec<SocketAddr>)> {
        let v4 = self.wan.gateway.map(|addr| (addr, SERVER_PORT).into());
        let v6 = self.wan.gateway6.map(|addr| (addr, SERVER_PORT).into());
        let aftr = self.discovered.aftr.map(|addr| (addr, SERVER_PORT).into());
        let named = match self.translation() {
            Translation::Here => [(Origin::Router, v4), (Origin::Router, None)],
            Translation::Routed => [(Origin::Router, v4), (Origin::Router, v6)],
            Translation::DsLite => [(Origin::Aftr, aftr), (Origin::Router, None)],
        };
        let named = named.into_iter();
        named
            .filter_map(|(origin, at)| Some((origin, vec![at?])))
            .collect()
    }

    /// Without our own addresses and those of our LAN: whoever names these knows nothing of them.
    fn usable(&self, list: &[IpAddr]) -> Vec<SocketAddr> {
        let in_lan = |addr: Ipv4Addr| {
            let mut lans = self.lan.iter();
            lans.any(|lan| lan.own == addr || lan.has_host(addr))
        };
        let good = |addr: &&IpAddr| match addr {
            IpAddr::V4(addr) => {
                self.wan.address != Some(*addr) && !self.wan.pool.contains(addr) && !in_lan(*addr)
            }
            IpAddr::V6(addr) => self.wan.address6 != Some(*addr),
        };
        let sources = self.sources();
        let reachable = |addr: &&IpAddr| {
            !self.is_up() || sources.iter().any(|own| own.is_ipv4() == addr.is_ipv4())
        };
        let addresses = list.iter().filter(good).filter(reachable);
        addresses.map(|addr| (*addr, SERVER_PORT).into()).collect()
    }

    /// Whether there is nothing to ask a server for.
    fn is_unused(&self) -> bool {
        match self.settings.mode {
            ModeSetting::Local => true,
            ModeSetting::Auto | ModeSetting::DsLite => self.wan.address.is_some_and(is_public),
            ModeSetting::Cascaded | ModeSetting::NoNat => false,
        }
    }

    /// Whether DHCP has had its chance.
    fn is_settled(&self) -> bool {
        self.discovered.settled || !self.settings.discovery.dhcp
    }

    /// Whether nobody can say yet who is asked.
    pub(super) fn is_undecided(&self) -> bool {
        self.settings.servers.is_empty()
            && !self.is_settled()
            && self.discovered.dhcp4.is_empty()
            && self.discovered.dhcp6.is_empty()
            && self.is_up()
            && !self.is_unused()
    }

    /// The first server that answers, else the first that may yet, else the first that is known.
    pub(super) fn pick_server(&self) -> Option<SocketAddr> {
        let candidates = self.selection.servers().filter_map(|(origin, at, health)| {
            let known = self.is_known(origin) || self.client.has_answered(at);
            let rank = match health {
                Health::Answering => 0,
                // Nothing that tells of a LAN host goes to whoever may be there (RFC 7723 section 5.1).
                Health::Unknown | Health::Silent | Health::Spent if origin == Origin::Anycast => {
                    return None;
                }
                Health::Unknown => 1,
                Health::Silent | Health::Spent if known => 2,
                Health::Silent | Health::Spent => return None,
            };
            Some((rank, at))
        });
        // The first of equals, as they are in order of preference.
        candidates.min_by_key(|(rank, _)| *rank).map(|(_, at)| at)
    }

    /// Whether a server counts as known without having answered.
    fn is_known(&self, origin: Origin) -> bool {
        match origin {
            Origin::Config | Origin::Dhcp4 | Origin::Dhcp6 => true,
            Origin::Aftr => true,
            Origin::Router => match self.settings.mode {
                ModeSetting::Cascaded | ModeSetting::NoNat => true,
                ModeSetting::Auto | ModeSetting::DsLite | ModeSetting::Local => false,
            },
            Origin::Anycast => false,
        }
    }

    /// Whether somebody said that there is a server.
    pub(super) fn is_server_configured(&self) -> bool {
        let mut named = self.selection.servers();
        self.settings.mode != ModeSetting::Local && named.any(|(origin, ..)| self.is_known(origin))
    }
}
