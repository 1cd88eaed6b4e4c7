//! What servers say, asked or not, and what becomes of it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::server::{Scripted, address, maps};
use super::soap::{add, add_any, delete, mapping};
use super::world::{WAN, World};
use crate::iwf::{Input, Notice};
use crate::types::{ExternalEndpoint, ExternalPort, Lifetime, MappingNonce, UnixTime};
use crate::wire::pcp::{Body, MapBody, PcpOption, Response, ResultCode};

/// The body of the last MAP that was sent.
fn last_map(world: &World) -> MapBody {
    maps(&world.sent).pop().expect("a MAP").2
}

/// Says something that nobody has asked for.
fn update(world: &mut World, result: ResultCode, lifetime: u32, body: MapBody) {
    let response = Response {
        result,
        lifetime: Lifetime(lifetime),
        epoch: world.server.epoch(world.now),
        body: Body::Map(body),
        options: Vec::new(),
    };
    world.answer(response.encode().expect("short"));
    world.run(0);
}

/// The same with this external endpoint.
fn granted(body: MapBody, port: u16, addr: Ipv4Addr) -> MapBody {
    MapBody {
        external_port: ExternalPort::new(port),
        external_addr: IpAddr::V4(addr),
        ..body
    }
}

/// PCPC-072, IWF-083, IWF-084.
#[test]
fn a_mapping_update_moves_the_mapping_and_is_told() {
    let mut world = World::new(1);
    let port = world.ask(20, add_any(20, 8080, 8080, 3600));
    assert_eq!(port, Ok(vec!["8080".to_owned()]));
    let before = world.only();
    let (removals, body) = (world.kernel.removals, last_map(&world));
    world.run(600);
    let addr = Ipv4Addr::new(11, 22, 33, 99);
    let moved = granted(body, 9090, addr);
    update(&mut world, ResultCode::Success, 600, moved);
    let after = world.only();
    let endpoint = ExternalEndpoint {
        addr,
        port: ExternalPort::new(9090).expect("not 0"),
    };
    assert_eq!(after.claim.endpoint(), Some(endpoint));
    assert_eq!(after.nat1, before.nat1);
    let told = Notice::Moved {
        generation: after.generation,
        before: before.claim.endpoint().expect("granted"),
        after: endpoint,
    };
    assert_eq!(world.notices.iter().filter(|n| **n == told).count(), 1);
    let addr = Notice::ExternalAddress(Some(addr));
    assert!(world.notices.contains(&addr));
    assert_eq!(world.kernel.removals, removals, "its sessions go on");
    assert_eq!(world.store.records[&after.generation].external, endpoint);
    // The same once more is no news.
    let told = world.notices.len();
    update(&mut world, ResultCode::Success, 600, moved);
    assert_eq!(world.notices.len(), told);
}

/// PCPC-030, PCPC-035: whoever does not know the nonce moves nothing.
#[test]
fn an_update_with_another_nonce_is_nobodys() {
    let mut world = World::new(2);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let before = world.only();
    let (sent, body) = (world.sent.len(), last_map(&world));
    let forged = MapBody {
        nonce: MappingNonce([9; 12]),
        ..body
    };
    for result in [ResultCode::Success, ResultCode::CannotProvideExternal] {
        update(&mut world, result, 0, forged);
        update(&mut world, result, 600, forged);
    }
    world.run(10);
    assert_eq!(world.only(), before);
    assert_eq!(world.sent.len(), sent);
    assert_eq!(world.iwf.ignored_upstream().unmatched, 4);
}

/// PCPC-073.
#[test]
fn an_unsolicited_conflict_ends_a_mapping_that_must_have_its_port() {
    let mut world = World::new(3);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let (generation, body) = (world.only().generation, last_map(&world));
    world.run(100);
    // The server has given the port to somebody else, and says so.
    world.server.mappings.clear();
    world.server.taken = vec![(crate::types::Protocol::Tcp, 8080)];
    update(&mut world, ResultCode::CannotProvideExternal, 1800, body);
    world.run(1);
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.kernel.observe(), []);
    assert!(world.notices.contains(&Notice::Removed(generation)));
}

/// What is only said is not believed: the server is asked, and the mapping is there.
#[test]
fn an_unsolicited_conflict_that_is_not_true_changes_nothing() {
    let mut world = World::new(4);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let (before, body) = (world.only(), last_map(&world));
    let removals = world.kernel.removals;
    world.run(100);
    update(&mut world, ResultCode::CannotProvideExternal, 1800, body);
    let gone = MapBody {
        external_port: None,
        external_addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ..body
    };
    update(&mut world, ResultCode::Success, 0, gone);
    world.run(1);
    assert_eq!(world.only().claim, before.claim);
    assert_eq!(world.kernel.removals, removals);
    assert_eq!(world.server.alive(world.now).count(), 1);
}

/// PCPC-024: the first answer to a renewal is an error, the second is not.
#[test]
fn a_later_different_answer_to_the_same_request_counts() {
    let mut world = World::new(5);
    world.server.lifetimes = (120, 600);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let first_end = world.only().expires();
    let refusal = Scripted::Error(ResultCode::NoResources, 30);
    world.server.script.push_back(refusal);
    let due = world.iwf.poll_timeout().expect("a renewal");
    world.run_until(due + Duration::from_secs(2));
    assert_eq!(world.only().expires(), first_end, "refused");
    let told = |n: &Notice| {
        matches!(
            n,
            Notice::UpstreamRefused {
                result: ResultCode::NoResources,
                renewal: true,
                ..
            }
        )
    };
    assert_eq!(world.notices.iter().filter(|n| told(n)).count(), 1);
    let body = granted(last_map(&world), 8080, world.server.external);
    update(&mut world, ResultCode::Success, 600, body);
    assert_eq!(world.only().expires(), world.now + Duration::from_secs(600));
}

/// PCPC-042.
#[test]
fn a_step_of_the_wall_clock_is_no_restart_of_the_server() {
    let mut world = World::new(6);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    world.run(100);
    let (sent, before) = (world.sent.len(), world.only());
    for days in [1u64, 400] {
        let wall = world.wall_at(world.now).as_secs() + days * 86_400;
        world.input(Input::WallClock(UnixTime::from_secs(wall)));
        world.answer(world.server.announce(world.now));
        world.run(20);
    }
    assert_eq!(world.sent.len(), sent);
    assert_eq!(world.only(), before);
}

/// PCPC-038, AMB-02: another owner's mapping lasts as long as the server says, and its tuple with it.
#[test]
fn a_tuple_of_somebody_else_is_left_alone_until_it_ends() {
    let mut world = World::new(7);
    let refusal = Scripted::Error(ResultCode::NotAuthorized, 600);
    world.server.script.push_back(refusal);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(606));
    let nat1 = |world: &World| world.only().nat1.port.get();
    assert!(world.ask(20, add_any(20, 8080, 8080, 3600)).is_ok());
    assert_ne!(nat1(&world), 8080, "held for its owner");
    let made = world.only().claim.port.expect("granted").get();
    assert_eq!(world.ask(20, delete(made)), Ok(vec![]));
    world.run(600);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert_eq!(nat1(&world), 8080);
}

/// PCPC-R14, PCPC-R24, AUTH-011: codes of other documents fail the request, and are not provoked again.
#[test]
fn codes_of_other_documents_are_501_and_said() {
    for code in (14..=27).chain([255]) {
        let result = ResultCode::from_number(code);
        let mut world = World::new(8);
        world.server.script.push_back(Scripted::Error(result, 600));
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501), "{result}");
        let told =
            |n: &Notice| matches!(n, Notice::UpstreamRefused { result: r, .. } if *r == result);
        assert!(world.notices.iter().any(told));
        let asked = maps(&world.sent).len();
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501));
        assert_eq!(maps(&world.sent).len(), asked, "{result} holds");
        let other = world.ask(20, add(20, 9090, 3600));
        assert_eq!(other.is_err(), (14..=23).contains(&code), "{result}");
    }
}

/// PCPC-R03: what the server cannot read is our defect, and is told apart.
#[test]
fn a_malformed_request_is_told() {
    let mut world = World::new(9);
    let refusal = Scripted::Error(ResultCode::MalformedRequest, 1800);
    world.server.script.push_back(refusal);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501));
    let told = Notice::UpstreamRefused {
        generation: crate::types::Generation(1),
        server: address(),
        result: ResultCode::MalformedRequest,
        renewal: false,
    };
    assert!(world.notices.contains(&told), "{:?}", world.notices);
}

/// EXT-001, AMB-18, IWF-018.
#[test]
fn descriptions_go_upstream_only_by_choice() {
    let texts = |world: &World| -> Vec<String> {
        let options = world.sent.iter().flat_map(|(_, r)| &r.options);
        let mut found = Vec::new();
        for option in options {
            if let PcpOption::Description(text) = option {
                found.push(text.clone());
            }
        }
        found
    };
    let long = "\u{e4}".repeat(100);
    let described = |text: &str| {
        let mut call = mapping("AddPortMapping", 20, 8080, 8080, 3600, "");
        let argument = call
            .args
            .iter_mut()
            .find(|(n, _)| n == "NewPortMappingDescription");
        text.clone_into(&mut argument.expect("there").1);
        call
    };
    let mut silent = World::new(10);
    assert_eq!(silent.ask(20, described(&long)), Ok(vec![]));
    assert!(texts(&silent).is_empty());

    let mut settings = World::new(10).settings;
    settings.send_descriptions = true;
    let mut world = World::with(10, settings);
    world.server.lifetimes = (120, 600);
    assert_eq!(world.ask(20, described(&format!("x{long}"))), Ok(vec![]));
    let sent = texts(&world);
    assert_eq!(
        sent,
        [format!("x{}", "\u{e4}".repeat(63))],
        "127 octets, whole letters"
    );
    world.run(400);
    assert_eq!(texts(&world).len(), 2, "renewals say it too");
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_eq!(texts(&world).len(), 2, "deletions carry no options");
}

/// A server that takes no DESCRIPTION although it may ignore it.
#[test]
fn a_server_that_chokes_on_a_description_is_asked_without() {
    for error in [ResultCode::UnsuppOption, ResultCode::MalformedOption] {
        let mut settings = World::new(11).settings;
        settings.send_descriptions = true;
        let mut world = World::with(11, settings);
        world.server.script.push_back(Scripted::Error(error, 1800));
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
        let last = world.sent.last().expect("sent").1.options.clone();
        assert_eq!(last, [PcpOption::PreferFailure]);
    }
}

/// A success that lasts no time is no mapping.
#[test]
fn a_grant_of_no_time_is_none() {
    let mut world = World::new(12);
    world.server.lifetimes = (0, 0);
    let asked = world.now;
    let id = world.call(20, add(20, 8080, 3600));
    assert_eq!(world.wait_for(id), Err(501));
    assert!(world.took(id, asked) <= 28);
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.kernel.observe(), []);
    world.run(200);
    assert_eq!(world.iwf.mappings().count(), 0);
}

/// Seed 1548 of the months: where the port that is wanted is another mapping's, some port is suggested all the same. A
/// repetition of the request that comes after a deletion then leads to the port that the host was told.
#[test]
fn a_late_repetition_of_a_request_leads_to_the_same_port() {
    let mut world = World::new(20);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let port = world.ask(21, add_any(21, 8080, 8000, 3600));
    let request = world.sent.last().expect("a MAP").1.clone();
    let told = last_map(&world);
    assert_eq!(told.external_port, ExternalPort::new(8000));
    assert_eq!(port, Ok(vec!["8000".to_owned()]));
    // A deletion from before has come late, and then that request once more.
    world
        .server
        .mappings
        .retain(|(_, _, port), _| *port != 8000);
    let payload = request.encode().expect("short");
    let _late = world
        .server
        .receive(world.now, IpAddr::V4(WAN), &payload)
        .expect("an answer");
    let gone = MapBody {
        external_port: None,
        external_addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ..told
    };
    update(&mut world, ResultCode::Success, 0, gone);
    world.run(10);
    let ports = world.active().into_iter().map(|m| m.claim.port);
    let ports: std::collections::BTreeSet<_> = ports.collect();
    let both = [8000, 8080].map(ExternalPort::new);
    assert_eq!(ports, both.into());
}

/// The refusal of what was insisted on may come twice, and is none of what is asked for after the first (seed 1607 of the
/// months).
#[test]
fn a_refusal_that_comes_twice_is_one() {
    let any = add_any(20, 8080, 8080, 3600);
    for (call, taken, port) in [(any, Some(8080), 20_000), (add(20, 8080, 3600), None, 8080)] {
        let mut world = World::new(21);
        assert!(world.ask(20, call).is_ok());
        world.server.restart(world.now);
        world.server.external = Ipv4Addr::new(11, 22, 33, 99);
        let taken = taken.map(|port| (crate::types::Protocol::Tcp, port));
        world.server.taken = taken.into_iter().collect();
        let announcement = world.server.announce(world.now);
        world.answer(announcement);
        world.link.cut = true;
        world.run(10);
        let body = last_map(&world);
        assert_eq!(body.external_addr, IpAddr::V4(Ipv4Addr::new(11, 22, 33, 1)));
        for _ in 0..2 {
            world.link.cut = false;
            let refusal = Response {
                result: ResultCode::CannotProvideExternal,
                lifetime: Lifetime(1800),
                epoch: world.server.epoch(world.now),
                body: Body::Map(body),
                options: Vec::new(),
            };
            world.answer(refusal.encode().expect("short"));
            world.link.cut = true;
            world.run(1);
            assert_eq!(world.active().len(), 1);
        }
        world.link.cut = false;
        world.run(10);
        let endpoint = world.only().claim.endpoint().expect("a grant");
        assert_eq!(endpoint.addr, world.server.external);
        assert_eq!(endpoint.port.get(), port);
        assert_eq!(world.server.alive(world.now).count(), 1);
    }
}
