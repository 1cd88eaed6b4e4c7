//! Single rules of the standards, each as seen from the LAN or from the server.

use std::net::{IpAddr, Ipv4Addr};

use super::server::{Scripted, address, maps};
use super::soap::{add, add_any, call, delete, get_generic, get_specific, mapping};
use super::world::World;
use crate::iwf::{Input, ServerSource};
use crate::types::{ExternalPort, InternalPort, Lifetime, MappingNonce, Protocol};
use crate::wire::pcp::{Body, MapBody, Response, ResultCode};
use crate::wire::soap::Call;

fn with(mut call: Call, name: &str, value: &str) -> Call {
    let argument = call.args.iter_mut().find(|(n, _)| n == name);
    value.clone_into(&mut argument.expect("an argument of that name").1);
    call
}

/// IWF-013, AMB-10.
#[test]
fn a_mapping_cannot_be_disabled() {
    let mut world = World::new(1);
    world.run(1);
    let before = world.sent.len();
    for version in [1, 2] {
        let mut off = with(add(20, 8080, 3600), "NewEnabled", "0");
        off.version = version;
        assert_eq!(world.ask(20, off), Err(501));
    }
    let off = with(add_any(20, 8080, 8080, 3600), "NewEnabled", "0");
    assert_eq!(world.ask(20, off), Err(501));
    assert_eq!(world.sent.len(), before);

    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let made = world.only();
    let off = with(add(20, 8080, 7200), "NewEnabled", "0");
    assert_eq!(world.ask(20, off), Err(501));
    assert_eq!(world.only(), made);
}

/// IWF-050, IWF-051, IWF-060, IWF-061, IGD-019.
#[test]
fn what_is_known_here_is_answered_without_the_server() {
    let mut world = World::new(2);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let before = world.sent.len();
    assert!(world.ask(20, get_generic(0)).is_ok());
    assert_eq!(world.ask(20, get_generic(1)), Err(713));
    assert!(world.ask(20, get_specific(8080)).is_ok());
    assert_eq!(world.ask(21, get_specific(8080)), Err(606));
    assert_eq!(world.ask(21, delete(8080)), Err(606));
    assert_eq!(world.ask(20, delete(8081)), Err(714));
    assert_eq!(world.sent.len(), before);
    assert_eq!(world.active().len(), 1);
}

/// IGD-017: an empty RemoteHost names the entry for everybody only.
#[test]
fn a_remote_host_is_part_of_an_entrys_name() {
    let mut world = World::new(3);
    let remote = "198.51.100.5";
    let filtered = mapping("AddPortMapping", 20, 8080, 8080, 3600, remote);
    assert_eq!(world.ask(20, filtered), Ok(vec![]));
    let before = world.sent.len();
    assert_eq!(world.ask(20, get_specific(8080)), Err(714));
    assert_eq!(world.ask(20, delete(8080)), Err(714));
    assert_eq!(world.sent.len(), before);
    let by_name = |call| with(call, "NewRemoteHost", remote);
    assert!(world.ask(20, by_name(get_specific(8080))).is_ok());
    assert_eq!(world.ask(20, by_name(delete(8080))), Ok(vec![]));
    assert_eq!(world.active().len(), 0);
}

/// IWF-044, AMB-08: the server is asked once, and again when two minutes have passed.
#[test]
fn a_conflict_is_asked_about_once() {
    let mut world = World::new(4);
    let refusal = Scripted::Error(ResultCode::CannotProvideExternal, 1800);
    world.server.script.push_back(refusal);
    for _ in 0..4 {
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(718));
    }
    assert_eq!(maps(&world.sent).len(), 1);
    world.run(121);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
}

/// SEC-07, PCPS-028.
#[test]
fn the_ports_of_pcp_itself_are_not_for_mappings() {
    let mut world = World::new(5);
    world.run(1);
    let before = world.sent.len();
    for port in [5350, 5351] {
        let udp = with(add(20, port, 3600), "NewProtocol", "UDP");
        assert_eq!(world.ask(20, udp), Err(729));
    }
    assert_eq!(world.sent.len(), before);
}

/// SEC-07: what the configuration reserves when it is read again counts from then on.
#[test]
fn ports_that_are_reserved_later_are_not_for_mappings_either() {
    let mut world = World::new(5);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let own = vec![(Protocol::Tcp, 8080), (Protocol::Tcp, 9090)];
    world.input(Input::Reserved(own));
    assert_eq!(world.ask(20, add(20, 9090, 3600)), Err(729));
    assert_eq!(world.active().len(), 1, "what is there stays");
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(729));
    world.input(Input::Reserved(Vec::new()));
    assert_eq!(world.ask(20, add(20, 9090, 3600)), Ok(vec![]));
    let udp = with(add(20, 5351, 3600), "NewProtocol", "UDP");
    assert_eq!(world.ask(20, udp), Err(729), "PCP's own always are");
}

/// IWF-091: neither action pretends where nobody can know.
#[test]
fn without_a_server_both_ways_to_add_are_729() {
    let mut settings = World::new(6).settings;
    settings.servers = vec![ServerSource::DefaultRouter];
    let mut world = World::with(6, settings);
    world.link.cut = true;
    world.crash();
    world.input(Input::UpstreamUnreachable { server: address() });
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(729));
    assert_eq!(world.ask(20, add_any(20, 8080, 8080, 3600)), Err(729));
}

/// IGD-025, IGD-028, IGD-029, IWF-019 as far as these actions go.
#[test]
fn fixed_answers_about_the_connection() {
    let mut world = World::new(7);
    world.run(1);
    let mut ask = |action, args: &[(&str, &str)]| world.ask(20, call(action, args));
    let texts = |texts: &[&str]| Ok(texts.iter().map(|t| (*t).to_owned()).collect());
    let set = [("NewConnectionType", "IP_Bridged")];
    assert_eq!(ask("SetConnectionType", &set), Err(731));
    assert_eq!(ask("ForceTermination", &[]), Err(606));
    assert_eq!(ask("RequestConnection", &[]), texts(&[]));
    let routed = texts(&["IP_Routed", "IP_Routed"]);
    assert_eq!(ask("GetConnectionTypeInfo", &[]), routed);
    assert_eq!(ask("GetNATRSIPStatus", &[]), texts(&["0", "1"]));
    let status = ask("GetStatusInfo", &[]).expect("always answered");
    assert_eq!(status[..2], ["Connected", "ERROR_NONE"]);
    world.set_wan(None);
    let status = world.ask(20, call("GetStatusInfo", &[]));
    assert_eq!(
        status.expect("always answered"),
        ["Disconnected", "ERROR_NONE", "0"]
    );
    let address = world.ask(20, call("GetExternalIPAddress", &[]));
    assert_eq!(address, Ok(vec![String::new()]));
}

/// PCPC-033, AMB-01.
#[test]
fn a_huge_grant_is_renewed_within_a_day() {
    let mut world = World::new(8);
    world.server.lifetimes = (u32::MAX, u32::MAX);
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    let granted = world.now;
    let due = world.iwf.poll_timeout().expect("a renewal");
    let after = due.saturating_duration_since(granted).as_secs();
    assert!((43_200..=54_000).contains(&after), "{after}");
}

/// PCPC-034, PCPC-035: every field that names the mapping has to match; the external ones may differ.
#[test]
fn only_the_answer_to_what_was_asked_counts() {
    let mut world = World::new(9);
    world.run(1);
    world.link.delay = (5000, 5000);
    let id = world.call(20, add_any(20, 8080, 8080, 3600));
    let (_, request) = world.sent.last().expect("a request").clone();
    let Body::Map(asked) = request.body else {
        panic!("not a MAP: {request:?}");
    };
    world.link.delay = (0, 0);
    let wrong: [MapBody; 3] = [
        MapBody {
            nonce: MappingNonce([0xee; 12]),
            ..asked
        },
        MapBody {
            protocol: 17,
            ..asked
        },
        MapBody {
            internal_port: InternalPort::new(8081),
            ..asked
        },
    ];
    for (ignored, body) in (1..).zip(wrong) {
        answer(&mut world, body);
        assert!(!world.replies.contains_key(&id), "{body:?}");
        assert_eq!(world.iwf.ignored_upstream().unmatched, ignored);
    }
    answer(
        &mut world,
        MapBody {
            external_port: ExternalPort::new(9999),
            external_addr: IpAddr::V4(Ipv4Addr::new(11, 22, 33, 77)),
            ..asked
        },
    );
    assert_eq!(
        world.replies[&id].1,
        Ok(vec![("NewReservedPort", "9999".to_owned())])
    );

    // When all is granted, more of the same changes nothing.
    let before = world.only();
    answer(
        &mut world,
        MapBody {
            nonce: MappingNonce([0xdd; 12]),
            ..asked
        },
    );
    assert_eq!(world.only(), before);
}

/// Lets a success arrive that the server never meant to send.
fn answer(world: &mut World, body: MapBody) {
    let response = Response {
        result: ResultCode::Success,
        lifetime: Lifetime(600),
        epoch: world.server.epoch(world.now),
        body: Body::Map(body),
        options: Vec::new(),
    };
    world.answer(response.encode().expect("short"));
    world.run(0);
}
