//! Without a NAT of ours: leases on behalf of LAN hosts, over either family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::server::{Scripted, Server, address};
use super::soap::{add, add_any, delete, get_address, get_specific, mapping};
use super::world::{WAN, World};
use crate::iwf::{
    Discovered, Discovery, Input, Mode, ModeSetting, Origin, ServerSource, Settings, Translation,
};
use crate::types::Lifetime;
use crate::wire::pcp::{Body, PcpOption, Prefix64, Request, ResultCode, SERVER_PORT};

/// The server's IPv6 address.
pub(super) fn address6() -> SocketAddr {
    let addr = Ipv6Addr::new(0x2a0c, 9, 0, 0, 0, 0, 0, 1);
    (addr, SERVER_PORT).into()
}

/// Ours.
pub(super) const OWN6: Ipv6Addr = Ipv6Addr::new(0x2a0c, 9, 0, 0, 0, 0, 0, 2);
const B4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 0, 2));

/// A CPE with those settings and both families on its WAN.
pub(super) fn world(seed: u64, settings: Settings) -> World {
    let mut world = World::with(
        seed,
        Settings {
            servers: Vec::new(),
            discovery: Discovery::default(),
            ..settings.clone()
        },
    );
    world.settings = settings;
    world.aliases.push(address6());
    world.wan.address6 = Some(OWN6);
    world.crash();
    (world.sent, world.sent_to) = (Vec::new(), Vec::new());
    world.crashes = 0;
    world
}

pub(super) fn settings(mode: ModeSetting, server: SocketAddr) -> Settings {
    Settings {
        mode,
        third_party: true,
        servers: vec![ServerSource::Address(server)],
        ..Settings::default()
    }
}

pub(super) fn routed(seed: u64) -> World {
    world(seed, settings(ModeSetting::NoNat, address()))
}

/// The MAP requests sent so far, with where each went.
pub(super) fn sent(world: &World) -> Vec<(SocketAddr, Request)> {
    let sent = world.sent.iter().zip(&world.sent_to);
    let maps = sent.filter(|((_, request), _)| matches!(request.body, Body::Map(_)));
    maps.map(|((_, request), at)| (*at, request.clone()))
        .collect()
}

/// Whom a request names.
fn named(request: &Request) -> Option<IpAddr> {
    let mut options = request.options.iter();
    options.find_map(|option| {
        let PcpOption::ThirdParty(addr) = option else {
            return None;
        };
        Some(*addr)
    })
}

pub(super) fn host(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 168, 1, last))
}

#[test]
fn contents_pass_unchanged_and_the_host_is_named() {
    let mut world = routed(1);
    let call = mapping("AddPortMapping", 20, 8080, 8000, 3600, "198.51.100.5");
    assert_eq!(world.ask(20, call), Ok(vec![]));
    assert_eq!(world.iwf.mode(), Mode::NoNat(address()));
    let (at, request) = sent(&world).remove(0);
    assert_eq!((at, request.client), (address(), IpAddr::V4(WAN)));
    assert_eq!(named(&request), Some(host(20)), "IWF-017");
    let Body::Map(map) = request.body else {
        panic!("a MAP")
    };
    assert_eq!(map.internal_port.map(|p| p.get()), Some(8000), "IWF-031");
    assert_eq!(map.external_port.map(|p| p.get()), Some(8080));
    assert!(
        request
            .options
            .iter()
            .any(|option| matches!(option, PcpOption::Filter(_)))
    );
    let entry = world.kernel.observe()[0];
    assert_eq!(
        (entry.external.addr, entry.external.port.get()),
        (entry.internal.addr, 8000)
    );

    let mut call = delete(8080);
    for (name, value) in &mut call.args {
        if name == "NewRemoteHost" {
            *value = "198.51.100.5".to_owned();
        }
    }
    assert_eq!(world.ask(20, call), Ok(vec![]));
    let (_, last) = sent(&world).pop().expect("a deletion");
    assert_eq!(last.lifetime, Lifetime(0));
    assert_eq!(
        last.options,
        [PcpOption::ThirdParty(host(20))],
        "IWF-063: it stays if it was in the create"
    );
    assert_eq!(world.kernel.observe(), []);
    assert_eq!(world.server.alive(world.now).count(), 0);
}

#[test]
fn hosts_may_have_the_same_port() {
    let mut world = routed(2);
    for (host, external) in [(20, 8080), (21, 8081), (22, 8082)] {
        let call = mapping("AddPortMapping", host, external, 8000, 3600, "");
        assert_eq!(world.ask(host, call), Ok(vec![]));
    }
    assert_eq!(world.server.alive(world.now).count(), 3);
    // Renewed and found again as each is.
    world.run(3000);
    world.crash();
    world.run(10);
    assert_eq!(world.active().len(), 3);
    assert_eq!(world.server.foreign_nonces, 0);
}

#[test]
fn an_endpoint_has_one_external_port() {
    let mut world = routed(3);
    let call = mapping("AddPortMapping", 20, 8080, 8000, 3600, "");
    assert_eq!(world.ask(20, call), Ok(vec![]));
    let second = mapping("AddPortMapping", 20, 8081, 8000, 3600, "");
    assert_eq!(world.ask(20, second), Err(718));
    let same = world.ask(20, add_any(20, 9999, 8000, 3600));
    assert_eq!(same, Ok(vec!["8080".to_owned()]));
}

#[test]
fn another_internal_port_is_another_mapping_of_the_same_external_port() {
    let mut world = routed(4);
    for internal in [8000, 8001] {
        let call = mapping("AddPortMapping", 20, 8080, internal, 3600, "");
        assert_eq!(world.ask(20, call), Ok(vec![]));
    }
    let only = world.only();
    assert_eq!(only.internal.port.get(), 8001);
    assert!(only.is_untranslated());
    let held: Vec<_> = world
        .server
        .alive(world.now)
        .map(|(key, _)| key.2)
        .collect();
    assert_eq!(
        held,
        [8001],
        "the old one is gone before the new one is asked for"
    );
}

#[test]
fn without_trust_nobody_is_named_and_the_host_hears_of_it() {
    let distrusting = Settings {
        third_party: false,
        ..settings(ModeSetting::NoNat, address())
    };
    let mut world = world(5, distrusting);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(606), "AMB-04");
    let mut version_1 = add(20, 8080, 3600);
    version_1.version = 1;
    assert_eq!(world.ask(20, version_1), Err(718));
    assert_eq!(sent(&world), []);
    // The router may still ask for itself.
    let external = world.server.external.to_string();
    assert_eq!(world.ask(20, get_address()), Ok(vec![external]));
    assert_eq!(named(&sent(&world)[0].1), None, "DSL-008");

    world.settings.third_party = true;
    world.set_asking();
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    // Trust that is gone keeps even renewals and deletions back.
    world.settings.third_party = false;
    world.set_asking();
    let before = sent(&world).len();
    world.run(4000);
    assert_eq!(sent(&world).len(), before);
    assert_eq!(world.active().len(), 0, "it has ended with its lease");
}

#[test]
fn what_the_server_thinks_of_it_is_said_in_upnp() {
    for (result, code) in [
        (ResultCode::UnsuppOption, 501),
        (ResultCode::NotAuthorized, 606),
        (ResultCode::MalformedRequest, 501),
        (ResultCode::UserExQuota, 728),
        (ResultCode::CannotProvideExternal, 718),
    ] {
        for forgets in [false, true] {
            let mut world = routed(6);
            world.server.forgets_options = forgets;
            world.server.script.push_back(Scripted::Error(result, 30));
            let asked = world.now;
            let id = world.call(20, add(20, 8080, 3600));
            assert_eq!(world.wait_for(id), Err(code), "{result:?}");
            assert_eq!(world.took(id, asked), 0, "{result:?} is recognized");
            assert_eq!(world.kernel.observe(), []);
        }
    }
    let mut world = routed(6);
    world.server.third_party = false;
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501));
}

#[test]
fn a_grant_that_names_nobody_is_for_ourselves_and_not_believed() {
    let mut world = routed(7);
    world.dead.insert(address());
    let id = world.call(20, add(20, 8080, 3600));
    let (_, request) = sent(&world).remove(0);
    let Body::Map(map) = request.body else {
        panic!("a MAP")
    };
    let granted = crate::wire::pcp::Response {
        result: ResultCode::Success,
        lifetime: Lifetime(600),
        epoch: world.server.epoch(world.now),
        body: Body::Map(crate::wire::pcp::MapBody {
            external_addr: IpAddr::V4(world.server.external),
            ..map
        }),
        options: Vec::new(),
    };
    world.answer(granted.encode().expect("short"));
    world.run(1);
    assert!(!world.replies.contains_key(&id));
    assert_eq!(world.wait_for(id), Err(501));
}

#[test]
fn a_server_is_asked_over_ipv6_from_the_global_address() {
    let mut world = world(8, settings(ModeSetting::NoNat, address6()));
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert_eq!(world.iwf.mode(), Mode::NoNat(address6()));
    let (at, request) = sent(&world).remove(0);
    assert_eq!((at, request.client), (address6(), IpAddr::V6(OWN6)));
    assert_eq!(named(&request), Some(host(20)));
    // Another address of ours: asked for again with the same nonce (PCPC-006).
    let other = Ipv6Addr::new(0x2a0c, 9, 0, 0, 0, 0, 0, 0x77);
    world.wan.address6 = Some(other);
    world.input(Input::Wan(world.wan.clone()));
    world.run(1);
    let (_, last) = sent(&world).pop().expect("asked again");
    assert_eq!(last.client, IpAddr::V6(other));
    assert_eq!(world.server.foreign_nonces, 0);
    assert_eq!(world.active().len(), 1);
}

#[test]
fn while_our_nat_translates_no_server_is_asked_over_ipv6() {
    let both = Settings {
        servers: vec![ServerSource::Addresses(vec![address6(), address()])],
        ..settings(ModeSetting::Cascaded, address())
    };
    let mut world = world(9, both);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert!(!world.sent_to.contains(&address6()));
    assert!(
        sent(&world).iter().all(|(_, r)| named(r).is_none()),
        "AMB-04"
    );
}

/// DISC-010, in the order of the sources: what is configured, what DHCP names, the AFTR.
#[test]
fn a_ds_lite_line_asks_the_aftr_over_plain_ipv6() {
    let searching = Settings {
        servers: Vec::new(),
        discovery: Discovery {
            dhcp: true,
            router: true,
            anycast: false,
        },
        ..settings(ModeSetting::DsLite, address())
    };
    let mut world = world(10, searching);
    world.set_wan(None);
    assert_eq!(world.iwf.translation(), Translation::DsLite);
    let aftr = match address6().ip() {
        IpAddr::V6(addr) => addr,
        IpAddr::V4(_) => panic!("of IPv6"),
    };
    let only_aftr = Discovered {
        settled: true,
        aftr: Some(aftr),
        ..Discovered::default()
    };
    world.input(Input::Discovered(only_aftr.clone()));
    assert_eq!(world.iwf.mode(), Mode::NoNat(address6()));
    assert_eq!(world.iwf.servers()[0].origin, Origin::Aftr);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let (at, request) = sent(&world).remove(0);
    assert_eq!((at, request.client), (address6(), IpAddr::V6(OWN6)));
    assert_eq!(named(&request), Some(host(20)), "DSL-007");

    // The router itself is the B4.
    world.server.mappings.clear();
    let external = world.server.external.to_string();
    let fresh = world.ask(23, get_address());
    assert_eq!(fresh, Ok(vec![external]));

    // Option 86 names somebody else: he is asked instead.
    let other: SocketAddr = (Ipv6Addr::new(0x2a0c, 9, 0, 0, 0, 0, 0, 7), SERVER_PORT).into();
    world.aliases.push(other);
    let named = Discovered {
        dhcp6: vec![vec![other.ip()]],
        ..only_aftr
    };
    world.input(Input::Discovered(named));
    world.run(2);
    assert_eq!(world.iwf.mode(), Mode::NoNat(other));
    assert_eq!(world.iwf.servers().len(), 1);
}

#[test]
fn the_router_of_a_ds_lite_line_asks_for_itself_as_b4() {
    let mut world = world(11, settings(ModeSetting::DsLite, address6()));
    world.set_wan(None);
    let external = world.server.external.to_string();
    assert_eq!(world.ask(20, get_address()), Ok(vec![external]));
    assert_eq!(named(&sent(&world)[0].1), Some(B4), "DSL-008");
}

/// DSL-006: with an address of its own the tunnel is not needed.
#[test]
fn the_mode_follows_the_line_and_loses_no_mapping() {
    for mode in [ModeSetting::Auto, ModeSetting::DsLite] {
        follows_the_line(mode);
    }
}

fn follows_the_line(mode: ModeSetting) {
    let aftr = match address6().ip() {
        IpAddr::V6(addr) => addr,
        IpAddr::V4(_) => panic!("of IPv6"),
    };
    let automatic = Settings {
        mode,
        third_party: true,
        servers: [address(), address6()].map(ServerSource::Address).to_vec(),
        ..Settings::default()
    };
    let mut world = world(12, automatic);
    // The AFTR is another device than what translates for the other line.
    let started = world.now - Duration::from_secs(900);
    world.other = Some((address6(), Server::new(started)));
    world.input(Input::Discovered(Discovered {
        settled: true,
        aftr: Some(aftr),
        ..Discovered::default()
    }));
    assert_eq!(world.iwf.translation(), Translation::Here);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert_eq!(world.iwf.mode(), Mode::Cascaded(address()));
    world.set_wan(None);
    world.run(10);
    assert_eq!(world.iwf.mode(), Mode::NoNat(address6()));
    assert!(world.only().is_untranslated());
    assert_eq!(world.only().claim.port.map(|p| p.get()), Some(8080));
    world.set_wan(Some(WAN));
    world.run(10);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(address()));
    assert!(!world.only().is_untranslated());
    assert_eq!(world.only().claim.port.map(|p| p.get()), Some(8080));
    assert_eq!(
        world.server.alive(world.now).count(),
        1,
        "nothing is left behind"
    );
}

#[test]
fn nobody_to_ask_is_said_at_once() {
    let alone = Settings {
        servers: Vec::new(),
        ..settings(ModeSetting::NoNat, address())
    };
    let mut world = world(15, alone);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(729), "IWF-091");
    assert_eq!(world.ask(20, add_any(20, 8080, 8000, 3600)), Err(729));
    assert_eq!(world.ask(20, get_specific(8080)), Err(714));
}

/// EXT-020: asked for where IPv6 is all there is, replaced by announcements, gone with the server.
#[test]
fn the_prefixes_of_a_nat64_are_learned_and_forgotten() {
    let octets = [0x20, 1, 0xd, 0xb8, 1, 0x22, 3, 0, 0, 0, 0, 0];
    let one = Prefix64::new(octets, 7, &[(Ipv4Addr::new(192, 0, 2, 0), 24)]).expect("a length");
    let two = Prefix64::new([0x64; 12], 12, &[]).expect("a length");
    let mut world = World::with(
        16,
        Settings {
            servers: Vec::new(),
            ..Settings::default()
        },
    );
    world.settings = settings(ModeSetting::NoNat, address6());
    world.aliases.push(address6());
    world.wan.address6 = Some(OWN6);
    world.wan.address = None;
    world.server.prefixes = vec![one.clone(), two.clone()];
    world.crash();
    world.run(2);
    assert_eq!(world.iwf.prefixes64(address6()), [one.clone(), two.clone()]);
    let asked = &world.sent.last().expect("a greeting").1;
    assert_eq!(asked.options, [PcpOption::Prefix64(Prefix64::ASK)]);

    let announcement = crate::wire::pcp::Response {
        result: ResultCode::Success,
        lifetime: Lifetime(0),
        epoch: world.server.epoch(world.now),
        body: Body::Announce,
        options: vec![PcpOption::Prefix64(two.clone())],
    };
    world.answer_from(address6(), announcement.encode().expect("short"));
    world.run(1);
    assert_eq!(world.iwf.prefixes64(address6()), [two]);

    // With an IPv4 address it is of no use, and not asked for.
    world.set_wan(Some(WAN));
    assert_eq!(world.iwf.prefixes64(address6()), []);
    world.server.prefixes.truncate(1);
    world.set_wan(None);
    world.run(2);
    assert_eq!(world.iwf.prefixes64(address6()), [one]);
    world.closed.insert(address6());
    let _unanswered = world.call(20, add(20, 8080, 3600));
    world.run(5);
    assert_eq!(world.iwf.prefixes64(address6()), [], "it has failed");
}

/// DISC-030: behind the default routers of both families.
#[test]
fn the_ipv6_anycast_address_is_asked_where_nothing_is_translated() {
    let anycast: SocketAddr = (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 1), SERVER_PORT).into();
    let router6: SocketAddr = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), SERVER_PORT).into();
    let searching = Settings {
        servers: Vec::new(),
        discovery: Discovery {
            dhcp: false,
            router: true,
            anycast: true,
        },
        ..settings(ModeSetting::NoNat, address())
    };
    let mut world = World::with(
        17,
        Settings {
            servers: Vec::new(),
            ..Settings::default()
        },
    );
    world.settings = searching;
    world.wan.address6 = Some(OWN6);
    world.wan.gateway6 = match router6.ip() {
        IpAddr::V6(addr) => Some(addr),
        IpAddr::V4(_) => None,
    };
    world.aliases.push(anycast);
    // Neither router speaks PCP, nor is anybody at the anycast address of IPv4.
    let anycast4 = SocketAddr::from(([192, 0, 0, 9], SERVER_PORT));
    world.closed = [address(), router6, anycast4].into_iter().collect();
    world.crash();
    world.run(60);
    let listed: Vec<_> = world.iwf.servers().iter().map(|row| row.address).collect();
    assert_eq!(listed, [address(), router6, anycast4, anycast]);
    assert_eq!(world.iwf.mode(), Mode::NoNat(anycast));
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let (at, request) = sent(&world).pop().expect("a MAP");
    assert_eq!((at, named(&request)), (anycast, Some(host(20))));
}
