//! A gateway that speaks NAT-PMP only, by the letter of RFC 6886, and what comes of it.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::server::address;
use super::soap::{add, add_any, delete, get_address, mapping};
use super::world::{World, host};
use crate::iwf::{Input, Notice, ServerSource, ServerState, Settings, Speaks};
use crate::mapping::{StaticMapping, Via};
use crate::types::{
    Epoch, ExternalPort, Instant, InternalEndpoint, InternalPort, Lifetime, Protocol, RemotePeer,
};
use crate::wire::natpmp::{self, Request, Response, ResultCode};
use crate::wire::pcp::Body;

#[derive(Debug)]
pub(super) struct Gateway {
    external: Ipv4Addr,
    started: Instant,
    /// External port and end by protocol and internal port.
    mappings: BTreeMap<(Protocol, u16), (u16, Instant)>,
    /// External ports of others.
    taken: Vec<u16>,
    longest: u32,
    silent: bool,
    /// Results of the next map requests.
    script: VecDeque<ResultCode>,
    /// The server in its place answers PCP.
    pub(super) pcp_too: bool,
}

impl Gateway {
    fn new(now: Instant) -> Self {
        Self {
            external: Ipv4Addr::new(11, 22, 33, 9),
            started: now - Duration::from_secs(400),
            mappings: BTreeMap::new(),
            taken: Vec::new(),
            longest: 7200,
            silent: false,
            script: VecDeque::new(),
            pcp_too: false,
        }
    }

    fn restart(&mut self, now: Instant) {
        (self.started, self.mappings) = (now, BTreeMap::new());
    }

    fn epoch(&self, now: Instant) -> Epoch {
        let up = now.saturating_duration_since(self.started).as_secs();
        Epoch(u32::try_from(up).expect("short simulations"))
    }

    fn announcement(&self, now: Instant) -> Vec<u8> {
        let response = Response::ExternalAddress {
            result: ResultCode::Success,
            epoch: self.epoch(now),
            addr: self.external,
        };
        response.encode()
    }

    pub(super) fn receive(&mut self, now: Instant, payload: &[u8]) -> Option<Vec<u8>> {
        if self.silent {
            return None;
        }
        let epoch = self.epoch(now);
        match Request::decode(payload) {
            Ok(Request::ExternalAddress) => Some(self.announcement(now)),
            Ok(Request::Map {
                protocol,
                internal_port,
                external_port,
                lifetime,
            }) => {
                let port = internal_port.expect("never all ports").get();
                let key = (protocol, port);
                self.mappings.retain(|_, (_, end)| *end > now);
                let result = self.script.pop_front().unwrap_or(ResultCode::Success);
                let mut assigned = (None, Lifetime(0));
                if result != ResultCode::Success {
                    // Says no more.
                } else if lifetime == Lifetime(0) {
                    assert_eq!(external_port, None, "RFC 6886 section 3.4");
                    self.mappings.remove(&key);
                } else {
                    let external = self.choose(key, external_port.map(ExternalPort::get));
                    let granted = lifetime.min(Lifetime(self.longest));
                    self.mappings
                        .insert(key, (external, now + granted.duration()));
                    assigned = (ExternalPort::new(external), granted);
                }
                let response = Response::Map {
                    protocol,
                    result,
                    epoch,
                    internal_port,
                    external_port: assigned.0,
                    lifetime: assigned.1,
                };
                Some(response.encode())
            }
            Err(natpmp::RequestError::Version { .. }) => {
                Some(Response::UnsupportedVersion { epoch }.encode())
            }
            Err(error) => panic!("the core sends only what is well formed: {error}"),
        }
    }

    /// What it has, what is suggested, or the first free port.
    fn choose(&self, key: (Protocol, u16), suggested: Option<u16>) -> u16 {
        if let Some((external, _)) = self.mappings.get(&key) {
            return *external;
        }
        let free = |port: &u16| {
            let mut others = self.mappings.iter();
            !self.taken.contains(port)
                && !others.any(|((protocol, _), (held, _))| *protocol == key.0 && held == port)
        };
        let mut others = 30_000..;
        let suggested = suggested.filter(free);
        suggested.unwrap_or_else(|| others.find(free).expect("one of many"))
    }
}

fn behind_natpmp(seed: u64) -> World {
    let settings = Settings {
        servers: vec![ServerSource::Address(address())],
        ..Settings::default()
    };
    behind_with(seed, settings)
}

fn behind_with(seed: u64, settings: Settings) -> World {
    let mut world = World::with(seed, settings);
    world.gateway = Some(Gateway::new(world.now));
    world
}

fn gateway(world: &mut World) -> &mut Gateway {
    world.gateway.as_mut().expect("a gateway")
}

/// External ports that the gateway maps, in order.
fn mapped(world: &World) -> Vec<u16> {
    let mappings = world.gateway.iter().flat_map(|g| g.mappings.values());
    let mut ports: Vec<_> = mappings
        .filter(|(_, end)| *end > world.now)
        .map(|(port, _)| *port)
        .collect();
    ports.sort_unstable();
    ports
}

/// Map requests with their time and lifetime.
fn map_requests(world: &World) -> Vec<(Instant, Option<u16>, u32)> {
    let map = |(at, request): &(Instant, Request)| match request {
        Request::Map {
            external_port,
            lifetime,
            ..
        } => Some((*at, external_port.map(ExternalPort::get), lifetime.0)),
        Request::ExternalAddress => None,
    };
    world.sent_natpmp.iter().filter_map(map).collect()
}

fn via(world: &World) -> Via {
    world.only().upstream.expect("a lease").via
}

/// Seconds since `from` of what was sent.
fn after(world: &World, from: Instant) -> Vec<f64> {
    let sent = world.sent_natpmp.iter().filter(|(at, _)| *at >= from);
    sent.map(|(at, _)| at.saturating_duration_since(from).as_secs_f64())
        .collect()
}

/// PCPC-081, PCPC-082, PMP-031: the application notices nothing.
#[test]
fn a_server_that_speaks_natpmp_only_maps_all_the_same() {
    let mut world = behind_natpmp(1);
    let asked = world.now;
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert!(world.now.saturating_duration_since(asked) < Duration::from_secs(1));
    assert_eq!(via(&world), Via::NatPmp);
    let external = world.only().claim.endpoint().expect("granted");
    assert_eq!(external.to_string(), "11.22.33.9:8080");
    assert_eq!(mapped(&world), [8080]);
    assert_eq!(
        world.ask(20, get_address()),
        Ok(vec!["11.22.33.9".to_owned()])
    );
    let record = world.store.records.values().next().expect("stored");
    assert_eq!(record.upstream.expect("a lease").via, Via::NatPmp);
    let speaks = Speaks::NatPmp;
    let server = address();
    assert!(
        world
            .notices
            .contains(&Notice::ServerSpeaks { server, speaks })
    );
    let status = world.iwf.servers();
    assert_eq!(status[0].via, Via::NatPmp);
    assert_eq!(status[0].state, Some(ServerState::Answering));

    // The next one is asked in NAT-PMP at once.
    let before = world.sent.len();
    assert_eq!(world.ask(20, add(20, 8081, 0)), Ok(vec![]));
    assert_eq!(world.sent.len(), before);
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_eq!(mapped(&world), [8081]);
}

/// PMP-031: another port than the one insisted on is given back and is a conflict.
#[test]
fn a_taken_port_is_a_conflict_and_nothing_is_left_of_it() {
    let mut world = behind_natpmp(2);
    gateway(&mut world).taken = vec![8080];
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(718));
    world.run(5);
    assert_eq!(mapped(&world), [0; 0]);
    let given_back = |n: &&Notice| matches!(n, Notice::GivenBack { .. });
    assert_eq!(world.notices.iter().filter(given_back).count(), 1);

    let any = world.ask(20, add_any(20, 8080, 8080, 3600));
    assert_eq!(any, Ok(vec!["30000".to_owned()]), "AddAny takes it");
    assert_eq!(mapped(&world), [30_000]);
}

/// PMP-031: who may come in is our NAT's matter.
#[test]
fn a_remote_host_is_enforced_here() {
    let mut world = behind_natpmp(3);
    let call = mapping("AddPortMapping", 20, 8080, 8080, 3600, "198.51.100.5");
    assert_eq!(world.ask(20, call), Ok(vec![]));
    let entry = world.kernel.observe()[0];
    let host = Ipv4Addr::new(198, 51, 100, 5);
    assert_eq!(entry.remote, RemotePeer::Host(host));
}

/// PMP-024: at half, with the port it had; for as long as the application wants it.
#[test]
fn leases_are_renewed_at_half_and_never_beyond_what_is_wanted() {
    let mut world = behind_natpmp(4);
    gateway(&mut world).longest = 1000;
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let made = map_requests(&world)[0].0;
    world.run(3590);
    assert_eq!(mapped(&world), [8080]);
    world.run(20);
    assert_eq!((world.active().len(), mapped(&world)), (0, vec![]));
    let requests = map_requests(&world);
    let first: Vec<_> = requests
        .iter()
        .take(4)
        .map(|(at, ..)| at.saturating_duration_since(made).as_secs())
        .collect();
    assert!(
        matches!(first[..], [0, 500..503, 1000..1005, 1500..1508]),
        "{first:?}"
    );
    for (at, external, lifetime) in &requests {
        let left = 3600 - at.saturating_duration_since(made).as_secs();
        assert!(u64::from(*lifetime) <= left, "{requests:?}");
        assert!(*lifetime == 0 || *external == Some(8080), "PMP-024");
    }
}

#[test]
fn without_an_end_it_is_renewed_for_ever() {
    let mut world = behind_natpmp(5);
    world.state(&[StaticMapping {
        protocol: Protocol::Udp,
        external: ExternalPort::new(5060).expect("not 0"),
        internal: InternalEndpoint {
            addr: host(30),
            port: InternalPort::new(5060).expect("not 0"),
        },
        remote: RemotePeer::Any,
        description: String::new(),
    }]);
    world.run(100_000);
    assert_eq!(mapped(&world), [5060]);
    assert_eq!(via(&world), Via::NatPmp);
    let requests = map_requests(&world);
    assert!((27..=30).contains(&requests.len()), "{}", requests.len());
    // PCPC-083: PCP was tried at least every half hour.
    let gaps = world.sent.windows(2);
    let longest = gaps.map(|w| w[1].0.saturating_duration_since(w[0].0)).max();
    assert!(longest <= Some(Duration::from_secs(1801)), "{longest:?}");
    assert!(world.sent.len() >= 55);
}

/// PMP-023: an announcement after a restart brings everything back, one question at a time (PMP-020).
#[test]
fn a_restart_that_is_announced_brings_everything_back_at_the_same_ports() {
    let mut world = behind_natpmp(6);
    for port in 8000..8050 {
        assert_eq!(world.ask(20, add(20, port, 3600)), Ok(vec![]));
    }
    world.run(100);
    let before = world.now;
    gateway(&mut world).restart(before);
    let announcement = gateway(&mut world).announcement(before);
    world.link.delay = (10, 10);
    world.answer(announcement);
    world.run(20);
    assert_eq!(mapped(&world), (8000..8050).collect::<Vec<_>>());
    let reset = world.notices.contains(&Notice::EpochReset(address()));
    assert!(reset);
    let sent = after(&world, before);
    assert!(
        sent.windows(2).all(|w| w[1] - w[0] > 0.019),
        "one at a time: {sent:?}"
    );
    assert_eq!(world.active().len(), 50);
}

/// An answer tells as well as an announcement does.
#[test]
fn a_restart_shows_in_the_next_answer() {
    let mut world = behind_natpmp(7);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.run(100);
    let now = world.now;
    gateway(&mut world).restart(now);
    assert_eq!(world.ask(20, add(20, 8081, 3600)), Ok(vec![]));
    world.run(5);
    assert_eq!(mapped(&world), [8080, 8081]);
}

/// Another external address is told and becomes that of every mapping.
#[test]
fn an_announced_address_moves_every_mapping() {
    let mut world = behind_natpmp(8);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.run(10);
    let now = world.now;
    let addr = Ipv4Addr::new(11, 22, 33, 77);
    gateway(&mut world).external = addr;
    let announcement = gateway(&mut world).announcement(now);
    // PMP-022: from elsewhere it says nothing.
    let from = ([100, 64, 0, 77], 5351).into();
    let payload = announcement.clone();
    world.input(Input::Upstream { from, payload });
    assert_ne!(world.only().claim.addr, Some(addr));
    world.answer(announcement);
    world.run(1);
    assert_eq!(world.only().claim.addr, Some(addr));
    let moved = |n: &Notice| matches!(n, Notice::Moved { after, .. } if after.addr == addr);
    assert!(world.notices.iter().any(moved));
    assert_eq!(world.iwf.external_address(), Some(addr));
}

/// PMP-021: nine tries, 250 ms doubling.
#[test]
fn silence_is_met_with_nine_tries() {
    let mut world = behind_natpmp(9);
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    gateway(&mut world).silent = true;
    world.run(1);
    let from = world.now;
    world.run(4500);
    let sent = after(&world, from);
    let first = sent[0];
    let tries: Vec<_> = sent.iter().take(9).map(|at| at - first).collect();
    let expected = [0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75];
    for (at, expected) in tries.iter().zip(expected) {
        assert!((at - expected).abs() < 0.01, "{tries:?}");
    }
    assert_eq!(sent.len(), 9, "then it is left alone: {sent:?}");
    assert_eq!(world.iwf.servers()[0].state, Some(ServerState::Silent));
    // PCP finds out that it is back, and what was put off is done.
    gateway(&mut world).silent = false;
    world.run(1100);
    assert_eq!(world.iwf.servers()[0].state, Some(ServerState::Answering));
    assert_eq!(mapped(&world), [8080]);
    assert_eq!(world.active().len(), 1);
}

#[test]
fn a_gateway_that_never_comes_back_ends_its_leases() {
    let mut world = behind_natpmp(10);
    gateway(&mut world).longest = 600;
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    gateway(&mut world).silent = true;
    assert_eq!(world.ask(20, add(20, 8081, 3600)), Err(501));
    let end = world.only().upstream.expect("a lease").expires;
    world.run_until(end - Duration::from_secs(1));
    assert_eq!(world.active().len(), 1);
    world.run(2);
    assert_eq!(world.active().len(), 0);
}

/// PMP-025, and the others of RFC 6886 section 3.5.
#[test]
fn every_error_is_fatal_for_the_request() {
    let mut world = behind_natpmp(11);
    assert_eq!(world.ask(20, add(20, 7999, 604_800)), Ok(vec![]));
    for (code, expected) in [
        (3, 501),
        (4, 728),
        (5, 501),
        (77, 501),
        (8, 501),
        (1000, 501),
    ] {
        let renewals = map_requests(&world).len();
        world.run(5);
        let before = map_requests(&world).len();
        assert_eq!(renewals, before, "no renewal comes in between");
        gateway(&mut world)
            .script
            .push_back(ResultCode::from_number(code));
        let answer = world.ask(20, add(20, 8000 + code, 3600));
        assert_eq!(answer, Err(expected), "{code}");
        assert_eq!(
            map_requests(&world).len(),
            before + 1,
            "{code} is not repeated"
        );
        world.run(1801);
    }
    assert_eq!(mapped(&world), [7999]);
}

/// As refusals of PCP: the same is not asked again while it would be refused again, and a sign of change ends that.
#[test]
fn refusals_are_believed_for_a_while() {
    let mut world = behind_natpmp(16);
    assert_eq!(world.ask(20, add(20, 7999, 604_800)), Ok(vec![]));
    let refuse = |world: &mut World, code| {
        let code = ResultCode::from_number(code);
        gateway(world).script.push_back(code);
    };
    for (code, port, expected, holds) in [
        (2, 8002, 606, 1800),
        (3, 8003, 501, 30),
        (4, 8004, 728, 30),
        (5, 8005, 501, 1800),
    ] {
        refuse(&mut world, code);
        assert_eq!(world.ask(20, add(20, port, 3600)), Err(expected), "{code}");
        world.run(holds - 5);
        let before = map_requests(&world).len();
        assert_eq!(world.ask(20, add(20, port, 3600)), Err(expected), "{code}");
        assert_eq!(map_requests(&world).len(), before, "{code} is believed");
        world.run(5);
        assert_eq!(world.ask(20, add(20, port, 3600)), Ok(vec![]), "{code}");
        assert_eq!(world.ask(20, delete(port)), Ok(vec![]));
    }

    // Another client's port: at most two minutes.
    gateway(&mut world).taken = vec![8080];
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(718));
    world.run(100);
    let before = map_requests(&world).len();
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(718));
    assert_eq!(map_requests(&world).len(), before);
    gateway(&mut world).taken.clear();
    world.run(20);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));

    // After a restart nothing is taken for granted.
    refuse(&mut world, 5);
    assert_eq!(world.ask(20, add(20, 8090, 3600)), Err(501));
    let now = world.now;
    gateway(&mut world).restart(now);
    let announcement = gateway(&mut world).announcement(now);
    world.answer(announcement);
    world.run(5);
    assert_eq!(world.ask(20, add(20, 8090, 3600)), Ok(vec![]));
}

/// PCPC-083: a renewal of the WAN's lease ends the verdict, also if nothing has changed by it.
#[test]
fn a_dhcp_renewal_ends_the_verdict() {
    let mut world = behind_natpmp(17);
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    let requests = world.sent.len();
    world.input(Input::Renewed);
    world.run(5);
    assert_eq!(world.sent.len(), requests + 1, "asked once in PCP");
    assert_eq!(via(&world), Via::NatPmp, "which it still does not speak");
    world.gateway = None;
    world.server.external = Ipv4Addr::new(11, 22, 33, 9);
    world.run(5);
    assert_eq!(via(&world), Via::NatPmp, "nobody has noticed");
    world.input(Input::Renewed);
    world.run(5);
    assert_eq!(via(&world), Via::Pcp);
}

/// The mapping in NAT-PMP goes only when PCP has its own, and only if that is another one.
#[test]
fn what_was_mapped_in_natpmp_is_ended_when_pcp_maps_elsewhere() {
    for (external, deleted) in [([11, 22, 33, 9], false), ([11, 22, 33, 44], true)] {
        let mut world = behind_natpmp(18);
        assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
        world.server.external = external.into();
        // One box that speaks both.
        gateway(&mut world).pcp_too = true;
        world.link.delay = (10, 10);
        world.input(Input::Renewed);
        let from = world.now;
        world.run(20);
        assert_eq!(via(&world), Via::Pcp);
        let deletions: Vec<_> = map_requests(&world)
            .into_iter()
            .filter(|(at, _, lifetime)| *at >= from && *lifetime == 0)
            .collect();
        assert_eq!(deletions.len(), usize::from(deleted));
        assert_eq!(mapped(&world).is_empty(), deleted);
        let maps: Vec<_> = world
            .sent
            .iter()
            .filter(|(at, request)| *at >= from && matches!(request.body, Body::Map(_)))
            .map(|(at, _)| *at)
            .collect();
        if let Some((at, ..)) = deletions.first() {
            assert!(maps[0] < *at, "PCP first");
            assert!(maps.last() > Some(at), "and made sure of afterwards");
        }
        let removed = |n: &Notice| matches!(n, Notice::Removed(_));
        assert!(!world.notices.iter().any(removed));
        assert_eq!(world.active().len(), 1);
    }
}

/// PCPC-083: what was upgraded is found out, and the application notices nothing.
#[test]
fn a_server_that_learns_pcp_gets_everything_in_pcp() {
    let mut world = behind_natpmp(12);
    for port in [8080, 8081] {
        assert_eq!(world.ask(20, add(20, port, 604_800)), Ok(vec![]));
    }
    world.gateway = None;
    world.server.external = Ipv4Addr::new(11, 22, 33, 9);
    let notices = world.notices.len();
    world.run(1805);
    let leases: Vec<_> = world.active().iter().map(|m| m.upstream).collect();
    assert_eq!(leases.len(), 2);
    assert!(leases.iter().all(|l| l.is_some_and(|l| l.via == Via::Pcp)));
    let now = world.now;
    let mut held: Vec<_> = world
        .server
        .alive(now)
        .map(|(_, held)| held.external.port.get())
        .collect();
    held.sort_unstable();
    assert_eq!(held, [8080, 8081]);
    let gone = |n: &Notice| matches!(n, Notice::Removed(_) | Notice::Moved { .. });
    assert!(!world.notices[notices..].iter().any(gone));
    assert_eq!(world.iwf.servers()[0].via, Via::Pcp);

    // And back: it is replaced once more.
    world.gateway = Some(Gateway::new(now));
    assert_eq!(world.ask(20, add(20, 8082, 3600)), Ok(vec![]));
    world.run(5);
    assert_eq!(mapped(&world), [8080, 8081, 8082]);
}

/// After a crash what was stored is asked for again in its protocol.
#[test]
fn a_crash_brings_leases_back_in_their_protocol() {
    let mut world = behind_natpmp(13);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.run(10);
    let now = world.now;
    gateway(&mut world).restart(now);
    world.crash();
    world.run(5);
    assert_eq!(mapped(&world), [8080]);
    assert_eq!(via(&world), Via::NatPmp);
    let endpoint = world.only().claim.endpoint().expect("granted");
    assert_eq!(endpoint.to_string(), "11.22.33.9:8080");
}

/// `upstream.nat_pmp = false`, and PMP-020: not from a public address.
#[test]
fn who_does_not_want_it_does_not_speak_it() {
    let off = Settings {
        servers: vec![ServerSource::Address(address())],
        nat_pmp: false,
        ..Settings::default()
    };
    let mut world = behind_with(14, off);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501));
    assert_eq!(world.sent_natpmp, []);

    let cascaded = Settings {
        servers: vec![ServerSource::Address(address())],
        mode: crate::iwf::ModeSetting::Cascaded,
        ..Settings::default()
    };
    let mut world = behind_with(15, cascaded);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.set_wan(Some(Ipv4Addr::new(8, 8, 4, 4)));
    let before = world.sent_natpmp.len();
    assert_eq!(world.ask(20, add(20, 8081, 3600)), Err(501));
    assert_eq!(world.sent_natpmp.len(), before);
}

/// Loss and delay change nothing but the time it takes.
#[test]
fn a_lossy_link_is_survived() {
    for seed in 20..40 {
        let mut world = behind_natpmp(seed);
        world.run(1);
        (world.link.loss, world.link.delay) = (30, (1, 400));
        for port in 8000..8005 {
            let answer = world.ask(20, add(20, port, 3600));
            assert!(answer == Ok(vec![]) || answer == Err(501), "{answer:?}");
        }
        world.link.loss = 0;
        world.run(300);
        let mut ours: Vec<_> = world
            .active()
            .iter()
            .filter_map(|m| m.claim.port.map(ExternalPort::get))
            .collect();
        ours.sort_unstable();
        assert_eq!(mapped(&world), ours, "seed {seed}");
    }
}
