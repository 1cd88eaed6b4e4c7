//! A router that speaks UPnP only, and what comes of it: by the letter of WANIPConnection, or with the faults of routers
//! in the field.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::server::address;
use super::soap::{add, add_any, delete, get_address};
use super::store::Store;
use super::world::{WAN, World, host};
use crate::iwf::{Discovered, Discovery, Fetched, Input, Notice, ServerSource, Settings, Speaks};
use crate::mapping::{StaticMapping, Via};
use crate::proto::igd_client::Request;
use crate::types::{ExternalPort, Instant, InternalEndpoint, InternalPort, Protocol, RemotePeer};
use crate::wire::clients::InnerDocument;
use crate::wire::pcp::Body;
use crate::wire::soap::{ActionResult, Call, UpnpError, encode_reply};
use crate::wire::ssdp::Search;

const ROUTER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 9);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    client: SocketAddrV4,
    ends: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct UpnpRouter {
    external: Ipv4Addr,
    port: u16,
    version: u8,
    entries: BTreeMap<(Protocol, u16), Entry>,
    /// Port mappings of all there is room for.
    room: usize,
    /// Leases without an end only, said by this code.
    permanent_only: Option<u16>,
    /// Codes in the place of answers, by action.
    fails: BTreeMap<&'static str, u16>,
    /// Maps to the port after the one that is wanted.
    maps_beside: bool,
    /// Gives another client's port away.
    overwrites: bool,
    /// Answers to actions are no XML.
    garbage: bool,
    /// Time until each answer.
    slow: Duration,
    /// Nobody is there.
    gone: bool,
    /// URL that it gives in the place of its own, or that others give.
    location: Option<String>,
    from: Ipv4Addr,
    control: String,
    calls: Vec<(Instant, String)>,
    fetched: Vec<SocketAddrV4>,
    searches: u32,
}

impl UpnpRouter {
    pub(super) fn new() -> Self {
        Self {
            external: EXTERNAL,
            port: 5000,
            version: 1,
            entries: BTreeMap::new(),
            room: usize::MAX,
            permanent_only: None,
            fails: BTreeMap::new(),
            maps_beside: false,
            overwrites: false,
            garbage: false,
            slow: Duration::ZERO,
            gone: false,
            location: None,
            from: ROUTER,
            control: "/ctl".to_owned(),
            calls: Vec::new(),
            fetched: Vec::new(),
            searches: 0,
        }
    }

    /// It loses everything, and is somewhere else afterwards.
    pub(super) fn restart(&mut self) {
        self.entries.clear();
        self.port += 1;
    }

    pub(super) fn search(&mut self, payload: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        let search = Search::decode(payload).expect("well formed");
        assert_eq!(search.mx, Some(1));
        self.searches += 1;
        if self.gone {
            return Vec::new();
        }
        let own = format!("http://{ROUTER}:{}/root.xml", self.port);
        let location = self.location.as_ref().unwrap_or(&own);
        let answer = format!(
            "HTTP/1.1 200 OK\r\nST: {}\r\nLOCATION: {location}\r\n\r\n",
            search.st
        );
        vec![((self.from, 1900).into(), answer.into_bytes())]
    }

    /// What comes back, and after how long.
    pub(super) fn fetch(
        &mut self,
        source: Ipv4Addr,
        request: &Request,
        now: Instant,
    ) -> Option<(Duration, Option<Fetched>)> {
        self.fetched.push(request.at);
        if self.gone {
            return None;
        }
        if request.at.port() != self.port {
            return Some((Duration::ZERO, None));
        }
        let answer = match &request.call {
            None => Fetched {
                status: 200,
                body: self.description().into_bytes(),
            },
            Some(call) => {
                let header = call.soap_action.as_bytes();
                let call = Call::decode(Some(header), call.body.as_bytes(), 4096);
                let call = call.expect("well formed");
                assert_eq!(call.version, self.version);
                self.entries
                    .retain(|_, entry| entry.ends.is_none_or(|ends| ends > now));
                self.calls.push((now, call.action.clone()));
                let result = self.act(source, &call, now);
                let reply = encode_reply(&call, &result, InnerDocument::Escaped);
                let body = match self.garbage {
                    true => b"<html><body>Welcome to your router".to_vec(),
                    false => reply.body.into_bytes(),
                };
                let status = reply.status;
                Fetched { status, body }
            }
        };
        assert!(answer.body.len() <= request.limit);
        Some((self.slow, Some(answer)))
    }

    fn description(&self) -> String {
        format!(
            "<root><device><serviceList><service>\
             <serviceType>urn:schemas-upnp-org:service:WANIPConnection:{}</serviceType>\
             <controlURL>{}</controlURL></service></serviceList></device></root>",
            self.version, self.control
        )
    }

    fn act(&mut self, source: Ipv4Addr, call: &Call, now: Instant) -> ActionResult {
        let failure = |code| UpnpError {
            code,
            description: "scripted",
        };
        if let Some(code) = self.fails.get(call.action.as_str()) {
            return Err(failure(*code));
        }
        let number = |name| call.arg(name).and_then(|n| n.parse::<u32>().ok());
        let port = |name| u16::try_from(number(name).expect("a number")).expect("a port");
        let key = || {
            let protocol = match call.arg("NewProtocol") {
                Some("TCP") => Protocol::Tcp,
                Some("UDP") => Protocol::Udp,
                other => panic!("{other:?}"),
            };
            assert_eq!(call.arg("NewRemoteHost"), Some(""));
            (protocol, port("NewExternalPort"))
        };
        match call.action.as_str() {
            "GetExternalIPAddress" => Ok(vec![("NewExternalIPAddress", self.external.to_string())]),
            "GetSpecificPortMappingEntry" => {
                let entry = self.entries.get(&key()).ok_or(failure(714))?;
                let left = entry.ends.map_or(0, |ends| {
                    ends.saturating_duration_since(now).as_secs().max(1)
                });
                Ok(vec![
                    ("NewInternalPort", entry.client.port().to_string()),
                    ("NewInternalClient", entry.client.ip().to_string()),
                    ("NewEnabled", "1".to_owned()),
                    ("NewPortMappingDescription", String::new()),
                    ("NewLeaseDuration", left.to_string()),
                ])
            }
            action @ ("AddPortMapping" | "AddAnyPortMapping") => {
                let client = call.arg("NewInternalClient").expect("a client");
                assert_eq!(client, source.to_string(), "for nobody else");
                let lease = number("NewLeaseDuration").expect("a number");
                if let Some(code) = self.permanent_only.filter(|_| lease > 0) {
                    return Err(failure(code));
                }
                let beside = u16::from(self.maps_beside);
                let client = SocketAddrV4::new(source, port("NewInternalPort") + beside);
                let mut key = key();
                let others = |held: &Entry| held.client.ip() != client.ip();
                while self.entries.get(&key).is_some_and(others) && !self.overwrites {
                    if action == "AddPortMapping" {
                        return Err(failure(718));
                    }
                    key.1 += 1;
                }
                if self.entries.len() >= self.room && !self.entries.contains_key(&key) {
                    return Err(failure(728));
                }
                let ends = (lease > 0).then(|| now + Duration::from_secs(lease.into()));
                self.entries.insert(key, Entry { client, ends });
                Ok(match action {
                    "AddPortMapping" => vec![],
                    _ => vec![("NewReservedPort", key.1.to_string())],
                })
            }
            "DeletePortMapping" => match self.entries.remove(&key()) {
                Some(_) => Ok(vec![]),
                None => Err(failure(714)),
            },
            other => panic!("nobody calls {other}"),
        }
    }

    /// What another client of it has.
    fn give(&mut self, port: u16) {
        let client = SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, 77), port);
        let entry = Entry { client, ends: None };
        self.entries.insert((Protocol::Tcp, port), entry);
    }

    fn calls(&self, action: &str) -> usize {
        let mut calls = 0;
        for (_, called) in &self.calls {
            calls += usize::from(called == action);
        }
        calls
    }
}

fn settings() -> Settings {
    Settings {
        igd: true,
        ..Settings::default()
    }
}

/// A CPE behind a router whose port of PCP is closed.
fn behind(seed: u64, router: UpnpRouter) -> World {
    behind_with(seed, router, settings())
}

fn behind_with(seed: u64, router: UpnpRouter, settings: Settings) -> World {
    let mut world = World::with(seed, settings);
    world.run(1);
    // Nobody has ever spoken PCP there.
    world.closed.insert(address());
    world.store = Store::default();
    world.upnp = Some(router);
    world.crash();
    world.run(30);
    world
}

fn router(world: &mut World) -> &mut UpnpRouter {
    world.upnp.as_mut().expect("a router")
}

/// External ports that the router maps to us, in order.
fn mapped(world: &World) -> Vec<u16> {
    let entries = world.upnp.iter().flat_map(|router| &router.entries);
    entries
        .filter(|(_, entry)| entry.ends.is_none_or(|ends| ends > world.now))
        .filter(|(_, entry)| *entry.client.ip() == WAN)
        .map(|((_, port), _)| *port)
        .collect()
}

fn via(world: &World) -> Via {
    world.only().upstream.expect("a lease").via
}

#[test]
fn a_router_that_speaks_upnp_only_maps_all_the_same() {
    for version in [1, 2] {
        let mut upnp = UpnpRouter::new();
        upnp.version = version;
        let mut world = behind(1, upnp);
        let asked = world.now;
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
        assert!(world.now.saturating_duration_since(asked) < Duration::from_secs(1));
        assert_eq!(via(&world), Via::Igd);
        let external = world.only().claim.endpoint().expect("granted");
        assert_eq!(external.to_string(), "11.22.33.9:8080");
        assert_eq!(mapped(&world), [8080]);
        let address_known = world.ask(20, get_address());
        assert_eq!(address_known, Ok(vec![EXTERNAL.to_string()]));
        let record = world.store.records.values().next().expect("stored");
        assert_eq!(record.upstream.expect("a lease").via, Via::Igd);
        assert_eq!(world.iwf.servers()[0].via, Via::Igd);
        let (server, speaks) = (address(), Speaks::Igd);
        let said = Notice::ServerSpeaks { server, speaks };
        assert!(world.notices.contains(&said));

        assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
        assert_eq!(mapped(&world), [0; 0]);
    }
}

/// The key is off by default, and a search tells everybody on the link that we are there.
#[test]
fn nobody_is_searched_for_unless_wanted() {
    let mut world = behind_with(2, UpnpRouter::new(), Settings::default());
    world.run(3600);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(729));
    assert_eq!(router(&mut world).searches, 0);

    // And not while PCP answers.
    let mut world = World::with(3, settings());
    world.upnp = Some(UpnpRouter::new());
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.run(4000);
    assert_eq!(router(&mut world).searches, 0);
}

#[test]
fn only_descriptions_at_the_routers_own_address_are_fetched() {
    for (from, location) in [
        (ROUTER, "http://100.64.0.9:5000/root.xml"),
        (ROUTER, "http://127.0.0.1:5000/root.xml"),
        (ROUTER, "http://192.168.1.1:5000/root.xml"),
        (ROUTER, "http://router.example:5000/root.xml"),
        (ROUTER, "https://100.64.0.1:5000/root.xml"),
        (
            Ipv4Addr::new(100, 64, 0, 9),
            "http://100.64.0.1:5000/root.xml",
        ),
    ] {
        let mut upnp = UpnpRouter::new();
        (upnp.from, upnp.location) = (from, Some(location.to_owned()));
        let mut world = behind(4, upnp);
        assert!(router(&mut world).searches > 0);
        assert_eq!(router(&mut world).fetched, [], "{location} from {from}");
    }
    // Nor is another machine controlled because the description says so.
    let mut upnp = UpnpRouter::new();
    upnp.control = "http://100.64.0.9:5000/ctl".to_owned();
    let mut world = behind(5, upnp);
    let description = SocketAddrV4::new(ROUTER, 5000);
    let fetched = &router(&mut world).fetched;
    assert!(!fetched.is_empty() && fetched.iter().all(|at| *at == description));
}

/// Searches become rare where nothing is found, and what comes later is found.
#[test]
fn a_router_that_comes_later_is_found() {
    let mut upnp = UpnpRouter::new();
    upnp.gone = true;
    let mut world = behind(6, upnp);
    world.run(86_400);
    let searches = router(&mut world).searches;
    assert!((200..=320).contains(&searches), "{searches}");
    router(&mut world).gone = false;
    world.run(920);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
}

#[test]
fn another_clients_port_is_a_conflict_and_stays_its_own() {
    for overwrites in [false, true] {
        let mut upnp = UpnpRouter::new();
        upnp.overwrites = overwrites;
        upnp.give(8080);
        let before = upnp.entries.clone();
        let mut world = behind(7, upnp);
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(718));
        world.run(5);
        assert_eq!(router(&mut world).entries, before);
        // Any other one will do.
        let any = world
            .ask(20, add_any(20, 8080, 8080, 3600))
            .expect("another");
        assert_eq!(mapped(&world), [any[0].parse::<u16>().expect("a port")]);
    }
    // A router that chooses does so itself.
    let mut upnp = UpnpRouter::new();
    upnp.version = 2;
    upnp.give(8080);
    let mut world = behind(8, upnp);
    let any = world.ask(20, add_any(20, 8080, 8080, 3600));
    assert_eq!(any, Ok(vec!["8081".to_owned()]));
    assert_eq!(router(&mut world).calls("AddAnyPortMapping"), 1);
}

/// 725, and the other ways to say it. What the router keeps for ever is deleted when it ends here.
#[test]
fn permanent_leases_are_looked_after_and_deleted() {
    for code in [725, 402, 501] {
        let mut upnp = UpnpRouter::new();
        upnp.permanent_only = Some(code);
        let mut world = behind(9, upnp);
        assert_eq!(world.ask(20, add(20, 8080, 10_000)), Ok(vec![]), "{code}");
        assert_eq!(world.ask(20, add(20, 8081, 3600)), Ok(vec![]));
        // Only the first one is asked for with an end.
        assert_eq!(router(&mut world).calls("AddPortMapping"), 3);
        world.run(9990);
        assert_eq!(mapped(&world), [8080]);
        world.run(20);
        assert_eq!(
            (world.active().len(), mapped(&world)),
            (0, vec![]),
            "{code}"
        );
    }
}

#[test]
fn leases_are_renewed_before_they_end() {
    let mut world = behind(10, UpnpRouter::new());
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
    for _ in 0..100 {
        world.run(1000);
        assert_eq!(mapped(&world), [5060]);
    }
    let adds = router(&mut world).calls("AddPortMapping");
    assert!((27..=30).contains(&adds), "every hour: {adds}");
}

/// Nobody announces that: it is seen within two minutes.
#[test]
fn a_restart_brings_everything_back() {
    let mut world = behind(11, UpnpRouter::new());
    for port in 8000..8020 {
        assert_eq!(world.ask(20, add(20, port, 604_800)), Ok(vec![]));
    }
    router(&mut world).restart();
    world.run(120);
    assert_eq!(mapped(&world), (8000..8020).collect::<Vec<_>>());
    assert!(world.notices.contains(&Notice::EpochReset(address())));
    // Only what it knew is lost; it is where it was.
    router(&mut world).entries.clear();
    world.run(120);
    assert_eq!(mapped(&world), (8000..8020).collect::<Vec<_>>());
    assert_eq!(world.active().len(), 20);
}

#[test]
fn another_external_address_moves_every_mapping() {
    let mut world = behind(12, UpnpRouter::new());
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let addr = Ipv4Addr::new(11, 22, 33, 77);
    router(&mut world).external = addr;
    world.run(61);
    assert_eq!(world.only().claim.addr, Some(addr));
    let moved = |n: &Notice| matches!(n, Notice::Moved { after, .. } if after.addr == addr);
    assert!(world.notices.iter().any(moved));
    assert_eq!(world.iwf.external_address(), Some(addr));
}

/// What the answer says is not believed; the entry is looked at.
#[test]
fn a_router_that_maps_the_wrong_port_gets_it_back() {
    let mut upnp = UpnpRouter::new();
    upnp.maps_beside = true;
    let mut world = behind(13, upnp);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501));
    world.run(5);
    assert_eq!(mapped(&world), [0; 0]);
}

#[test]
fn errors_are_the_control_points_errors() {
    for (code, expected) in [
        (501, 501),
        (606, 606),
        (718, 718),
        (728, 728),
        (729, 718),
        (999, 501),
    ] {
        let mut upnp = UpnpRouter::new();
        upnp.fails.insert("AddPortMapping", code);
        let mut world = behind(14, upnp);
        let refused = world.ask(20, add(20, 8080, 3600));
        assert_eq!(refused, Err(expected), "{code}");
        world.run(5);
        assert_eq!((world.active().len(), mapped(&world)), (0, vec![]));
    }
    let mut upnp = UpnpRouter::new();
    upnp.room = 1;
    let mut world = behind(15, upnp);
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    assert_eq!(world.ask(20, add(20, 8081, 3600)), Err(728));
}

/// Routers that do not say what they map are believed.
#[test]
fn a_router_that_does_not_show_its_entries_is_believed() {
    let mut upnp = UpnpRouter::new();
    upnp.fails.insert("GetSpecificPortMappingEntry", 401);
    let mut world = behind(16, upnp);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert_eq!(mapped(&world), [8080]);
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_eq!(mapped(&world), [0; 0]);
}

#[test]
fn slow_answers_are_waited_for_and_garbage_ends_in_an_error() {
    let mut upnp = UpnpRouter::new();
    upnp.slow = Duration::from_secs(4);
    let mut world = behind(17, upnp);
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    router(&mut world).slow = Duration::from_secs(60);
    let id = world.call(20, add(20, 8081, 3600));
    assert_eq!(world.wait_for(id), Err(501));
    router(&mut world).slow = Duration::ZERO;
    world.run(120);
    assert_eq!(mapped(&world), [8080]);

    router(&mut world).garbage = true;
    assert_eq!(world.ask(20, add(20, 8082, 3600)), Err(501));
    world.run(120);
    router(&mut world).garbage = false;
    world.run(120);
    assert_eq!(mapped(&world), [8080], "nothing else is left");
    assert_eq!(world.active().len(), 1);
}

/// It comes back within the lease, or the lease ends.
#[test]
fn a_router_that_falls_silent_is_found_again() {
    let mut world = behind(18, UpnpRouter::new());
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    router(&mut world).gone = true;
    world.run(1800);
    assert_eq!(world.active().len(), 1);
    assert_eq!(world.ask(20, add(20, 8081, 3600)), Err(501));
    router(&mut world).restart();
    router(&mut world).gone = false;
    world.run(920);
    assert_eq!(mapped(&world), [8080]);
    router(&mut world).gone = true;
    world.run(7300);
    assert_eq!(world.active().len(), 0);
}

/// PCP first: as soon as it answers, everything goes there, and what was mapped in UPnP does not stay.
#[test]
fn a_router_that_learns_pcp_gets_everything_in_pcp() {
    for (external, same) in [(EXTERNAL, true), (Ipv4Addr::new(11, 22, 33, 44), false)] {
        let mut world = behind(19, UpnpRouter::new());
        for port in [8080, 8081] {
            assert_eq!(world.ask(20, add(20, port, 604_800)), Ok(vec![]));
        }
        world.closed.clear();
        world.server.external = external;
        world.run(1805);
        let leases: Vec<_> = world.active().iter().map(|m| m.upstream).collect();
        assert_eq!(leases.len(), 2);
        assert!(leases.iter().all(|l| l.is_some_and(|l| l.via == Via::Pcp)));
        let removed = |n: &Notice| matches!(n, Notice::Removed(_));
        assert!(!world.notices.iter().any(removed));
        // Of one endpoint there is one mapping, which is not deleted.
        assert_eq!(
            router(&mut world).calls("DeletePortMapping"),
            if same { 0 } else { 2 }
        );
        world.run(7200);
        assert_eq!(mapped(&world), [0; 0]);
        let searches = router(&mut world).searches;
        world.run(7200);
        assert_eq!(
            router(&mut world).searches,
            searches,
            "nobody is searched for any more"
        );
    }
}

/// A box that counts its own UPnP mapping as somebody else's in PCP has to lose that first.
#[test]
fn a_box_that_holds_the_port_against_pcp_gets_the_old_mapping_ended_first() {
    let mut world = behind(20, UpnpRouter::new());
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    world.closed.clear();
    world.server.external = EXTERNAL;
    world.server.taken.push((Protocol::Tcp, 8080));
    // The port is free in PCP once it is in UPnP; looked at more often than anything arrives.
    world.link.delay = (2000, 2000);
    for _ in 0..1805 {
        world.run(1);
        if mapped(&world).is_empty() {
            world.server.taken.clear();
        }
    }
    assert_eq!(via(&world), Via::Pcp);
    assert_eq!(world.only().claim.port.map(ExternalPort::get), Some(8080));
}

#[test]
fn a_crash_brings_leases_back_in_their_protocol() {
    let mut world = behind(21, UpnpRouter::new());
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    world.run(10);
    router(&mut world).entries.clear();
    world.crash();
    world.run(15);
    assert_eq!(mapped(&world), [8080]);
    assert_eq!(via(&world), Via::Igd);
    // Without the key it is asked for in PCP, which nobody answers; the promise of before ends.
    world.settings.igd = false;
    world.crash();
    let searches = router(&mut world).searches;
    world.run(7300);
    assert_eq!(world.active().len(), 0);
    assert_eq!(router(&mut world).searches, searches);
}

/// The last link of the chain is there also where DHCP names a server that does not answer, but not where the
/// configuration names one.
#[test]
fn the_router_is_the_last_of_the_servers() {
    let nobody = SocketAddr::from(([100, 64, 0, 50], 5351));
    let discovery = Discovery {
        dhcp: true,
        router: true,
        anycast: false,
    };
    let settings = |servers| Settings {
        servers,
        discovery,
        ..settings()
    };
    for (servers, expected) in [
        (vec![], Ok(vec![])),
        (vec![ServerSource::Address(nobody)], Err(501)),
    ] {
        let mut world = World::with(22, settings(vec![]));
        world.closed.insert(address());
        world.dead.insert(nobody);
        world.upnp = Some(UpnpRouter::new());
        world.settings = settings(servers);
        world.crash();
        world.input(Input::Discovered(Discovered {
            settled: true,
            dhcp4: vec![vec![nobody.ip()]],
            dhcp6: vec![],
            aftr: None,
        }));
        world.run(60);
        assert_eq!(world.ask(20, add(20, 8080, 3600)), expected);
        let sent = world
            .sent
            .iter()
            .any(|(_, request)| request.body == Body::Announce);
        assert!(sent, "PCP is tried");
    }
}

/// Another address of ours is another client for the router.
#[test]
fn another_wan_address_gets_its_mappings_anew() {
    let mut world = behind(23, UpnpRouter::new());
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    let other = Ipv4Addr::new(100, 64, 0, 3);
    // A router that knows its clients lets go of what an absent one had.
    router(&mut world).entries.clear();
    world.set_wan(Some(other));
    world.run(60);
    let clients: Vec<_> = router(&mut world)
        .entries
        .values()
        .map(|e| *e.client.ip())
        .collect();
    assert_eq!(clients, [other]);
}
