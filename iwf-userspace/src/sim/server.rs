//! A PCP server by the letter of RFC 6887 with the simple threat model, and with faults on demand.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use crate::types::{
    Epoch, ExternalEndpoint, ExternalPort, Instant, Lifetime, MappingNonce, Protocol,
};
use crate::wire::pcp::{self, Body, MapBody, PcpOption, Prefix64, Request, Response, ResultCode};

/// What the server tells mappings apart by.
type Key = (IpAddr, Protocol, u16);

#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) nonce: MappingNonce,
    pub(super) external: ExternalEndpoint,
    pub(super) expires: Instant,
    pub(super) filters: Vec<IpAddr>,
    /// Deleted, but kept for its owner for a while (RFC 6887 section 15).
    pub(super) released: bool,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) external: Ipv4Addr,
    pub(super) lifetimes: (u32, u32),
    pub(super) mappings: BTreeMap<Key, Held>,
    /// External ports of other subscribers.
    pub(super) taken: Vec<(Protocol, u16)>,
    /// Answers given instead of the right ones, in order.
    pub(super) script: VecDeque<Scripted>,
    /// Whether FILTER is known.
    pub(super) filters: bool,
    /// Whether THIRD_PARTY is admitted.
    pub(super) third_party: bool,
    /// Whether errors come back without the options of the request.
    pub(super) forgets_options: bool,
    /// Prefixes of its NAT64.
    pub(super) prefixes: Vec<Prefix64>,
    /// Grants another port although PREFER_FAILURE is set.
    pub(super) ignores_prefer_failure: bool,
    /// For how many seconds a deleted mapping is kept for its owner.
    pub(super) quarantine: u32,
    /// Answers the deletion of nothing with NO_RESOURCES, as miniupnpd does.
    pub(super) refuses_to_delete_nothing: bool,
    /// Answers the deletion of nothing with NOT_AUTHORIZED, as other builds of it do.
    pub(super) authorizes_no_deletion_of_nothing: bool,
    /// Internal ports below this one are refused, as Debian's miniupnpd is usually set up.
    pub(super) min_internal: u16,
    started: Instant,
    /// Whether requests are kept: not where there would be too many.
    pub(super) keeps_log: bool,
    /// When it lost everything last.
    pub(super) restarted: Option<Instant>,
    /// Requests carried out, with the time of their arrival.
    pub(super) log: Vec<(Instant, Request)>,
    /// Requests that carried another nonce than the mapping.
    pub(super) foreign_nonces: u32,
}

/// One answer to a MAP request.
#[derive(Clone, Debug)]
pub(super) enum Scripted {
    /// This error with this lifetime.
    Error(ResultCode, u32),
    /// A grant of this port, whatever was asked for; nothing is kept.
    Port(u16),
}

impl Server {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            external: Ipv4Addr::new(11, 22, 33, 1),
            lifetimes: (120, 86_400),
            mappings: BTreeMap::new(),
            taken: Vec::new(),
            script: VecDeque::new(),
            filters: true,
            third_party: true,
            forgets_options: false,
            prefixes: Vec::new(),
            ignores_prefer_failure: false,
            quarantine: 0,
            refuses_to_delete_nothing: false,
            authorizes_no_deletion_of_nothing: false,
            min_internal: 0,
            // Its clock does not begin with ours.
            started: now,
            keeps_log: true,
            restarted: None,
            log: Vec::new(),
            foreign_nonces: 0,
        }
    }

    /// Loses everything but its configuration.
    pub(super) fn restart(&mut self, now: Instant) {
        self.mappings.clear();
        self.started = now;
        self.restarted = Some(now);
    }

    pub(super) fn epoch(&self, now: Instant) -> Epoch {
        let up = now.saturating_duration_since(self.started).as_secs();
        Epoch(u32::try_from(up).expect("short simulations"))
    }

    /// Mappings in force.
    pub(super) fn alive(&self, now: Instant) -> impl Iterator<Item = (&Key, &Held)> {
        self.mappings
            .iter()
            .filter(move |(_, m)| m.expires > now && !m.released)
    }

    /// An announcement of its own accord.
    pub(super) fn announce(&self, now: Instant) -> Vec<u8> {
        self.encode(Body::Announce, ResultCode::Success, 0, now)
    }

    /// Takes a request in and answers it.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        source: IpAddr,
        payload: &[u8],
    ) -> Option<Vec<u8>> {
        let request = Request::decode(payload).expect("the core sends only what is well formed");
        assert_eq!(request.client, source, "PCPC-005");
        self.mappings.retain(|_, held| held.expires > now);
        if self.keeps_log {
            self.log.push((now, request.clone()));
        }
        match request.body.clone() {
            Body::Announce => {
                let asks = request
                    .options
                    .contains(&PcpOption::Prefix64(Prefix64::ASK));
                let prefixes = self.prefixes.iter().filter(|_| asks);
                let options = prefixes
                    .map(|prefix| PcpOption::Prefix64(prefix.clone()))
                    .collect();
                Some(self.encode_with(Body::Announce, ResultCode::Success, 0, now, options))
            }
            Body::Map(map) => self.map(now, &request, map),
            Body::Peer(_) | Body::Opaque { .. } => panic!("the core sends no such request"),
        }
    }

    fn map(&mut self, now: Instant, request: &Request, map: MapBody) -> Option<Vec<u8>> {
        let named = request
            .options
            .iter()
            .find(|option| matches!(option, PcpOption::ThirdParty(_)));
        let named: Vec<_> = named.cloned().into_iter().collect();
        let error = |server: &Self, code, lifetime| {
            let options = match server.forgets_options {
                true => Vec::new(),
                false => named.clone(),
            };
            Some(server.encode_with(Body::Map(map), code, lifetime, now, options))
        };
        let internal = match named.first() {
            Some(PcpOption::ThirdParty(addr)) => {
                assert_ne!(*addr, request.client, "PCPC-068");
                *addr
            }
            _none => request.client,
        };
        if !named.is_empty() && !self.third_party {
            return error(self, ResultCode::UnsuppOption, 1800);
        }
        match self.script.pop_front() {
            None => {}
            Some(Scripted::Error(code, lifetime)) => return error(self, code, lifetime),
            Some(Scripted::Port(port)) => {
                let granted = MapBody {
                    external_port: ExternalPort::new(port),
                    external_addr: IpAddr::V4(self.external),
                    ..map
                };
                return Some(self.encode_with(
                    Body::Map(granted),
                    ResultCode::Success,
                    600,
                    now,
                    named,
                ));
            }
        }
        let protocol = Protocol::from_number(map.protocol).expect("TCP or UDP");
        let port = map.internal_port.expect("never all ports").get();
        let key = (internal, protocol, port);
        if let Some(held) = self.mappings.get(&key)
            && held.nonce != map.nonce
        {
            self.foreign_nonces += 1;
            let left = held.expires.saturating_duration_since(now).as_secs();
            return error(self, ResultCode::NotAuthorized, left as u32);
        }
        if request.lifetime == Lifetime(0) {
            assert_eq!(map.external_port, None, "IWF-063");
            assert_eq!(
                map.external_addr,
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                "IWF-063"
            );
            assert_eq!(request.options, named, "IWF-063");
            if self.refuses_to_delete_nothing && !self.mappings.contains_key(&key) {
                return error(self, ResultCode::NoResources, 30);
            }
            if self.authorizes_no_deletion_of_nothing && !self.mappings.contains_key(&key) {
                return error(self, ResultCode::NotAuthorized, 1800);
            }
            let quarantine = self.quarantine;
            if let Some(held) = self.mappings.get_mut(&key)
                && quarantine > 0
            {
                held.released = true;
                held.expires = now + Lifetime(quarantine).duration();
            } else {
                self.mappings.remove(&key);
            }
            return Some(self.encode_with(
                Body::Map(map),
                ResultCode::Success,
                quarantine,
                now,
                named,
            ));
        }
        if port < self.min_internal {
            return error(self, ResultCode::NotAuthorized, 1800);
        }
        let has_filter = |o: &PcpOption| matches!(o, PcpOption::Filter(_));
        if !self.filters && request.options.iter().any(has_filter) {
            return error(self, ResultCode::UnsuppOption, 1800);
        }
        let Some(external) = self.choose(&key, request, &map) else {
            return error(self, ResultCode::CannotProvideExternal, 1800);
        };
        let lifetime = request.lifetime.0.clamp(self.lifetimes.0, self.lifetimes.1);
        let held = self.mappings.entry(key).or_insert_with(|| Held {
            nonce: map.nonce,
            external,
            expires: now,
            filters: Vec::new(),
            released: false,
        });
        held.released = false;
        held.expires = now + Lifetime(lifetime).duration();
        for option in &request.options {
            let PcpOption::Filter(filter) = option else {
                continue;
            };
            if filter.clears() {
                held.filters.clear();
            } else {
                held.filters.push(filter.remote_addr);
            }
        }
        let granted = MapBody {
            external_port: Some(held.external.port),
            external_addr: IpAddr::V4(held.external.addr),
            ..map
        };
        Some(self.encode_with(
            Body::Map(granted),
            ResultCode::Success,
            lifetime,
            now,
            named,
        ))
    }

    /// The endpoint for a request; `None` if PREFER_FAILURE forbids what there is.
    fn choose(&self, key: &Key, request: &Request, map: &MapBody) -> Option<ExternalEndpoint> {
        let strict =
            request.options.contains(&PcpOption::PreferFailure) && !self.ignores_prefer_failure;
        let wanted_addr = map.external_addr;
        let addr_fits = wanted_addr == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            || wanted_addr == IpAddr::V4(self.external);
        let endpoint = |port| ExternalEndpoint {
            addr: self.external,
            port,
        };
        if let Some(held) = self.mappings.get(key) {
            let same = map.external_port == Some(held.external.port)
                && (addr_fits || wanted_addr == IpAddr::V4(held.external.addr));
            return (same || !strict).then_some(held.external);
        }
        let free = |port: &ExternalPort| {
            let others = self
                .mappings
                .iter()
                .any(|((_, protocol, _), held)| *protocol == key.1 && held.external.port == *port);
            !others && !self.taken.contains(&(key.1, port.get()))
        };
        if let Some(port) = map.external_port.filter(free)
            && (addr_fits || !strict)
        {
            return Some(endpoint(port));
        }
        if strict {
            return None;
        }
        (20_000..)
            .filter_map(ExternalPort::new)
            .find(free)
            .map(endpoint)
    }

    fn encode(&self, body: Body, result: ResultCode, lifetime: u32, now: Instant) -> Vec<u8> {
        self.encode_with(body, result, lifetime, now, Vec::new())
    }

    fn encode_with(
        &self,
        body: Body,
        result: ResultCode,
        lifetime: u32,
        now: Instant,
        options: Vec<PcpOption>,
    ) -> Vec<u8> {
        let response = Response {
            result,
            lifetime: Lifetime(lifetime),
            epoch: self.epoch(now),
            body,
            options,
        };
        response.encode().expect("short")
    }
}

/// The MAP requests of a log.
pub(super) fn maps(log: &[(Instant, Request)]) -> Vec<(Instant, Lifetime, MapBody)> {
    log.iter()
        .filter_map(|(at, request)| {
            let Body::Map(map) = &request.body else {
                return None;
            };
            Some((*at, request.lifetime, *map))
        })
        .collect()
}

/// The address and port of the server under test.
pub(super) fn address() -> std::net::SocketAddr {
    (Ipv4Addr::new(100, 64, 0, 1), pcp::SERVER_PORT).into()
}
