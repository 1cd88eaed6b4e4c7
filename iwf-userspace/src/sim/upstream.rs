//! Servers that refuse, are silent, are late, or do not heed what was asked.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::server::{Scripted, address, maps};
use super::soap::{add, add_any, delete, get_address, get_specific, mapping};
use super::world::World;
use crate::iwf::{EffectError, Input, Mode, PrivateWan, ServerSource};
use crate::types::{ExternalPort, Lifetime, Protocol};
use crate::wire::pcp::{Body, Filter, PcpOption, ResultCode};

/// Nothing of what was asked for is left anywhere.
fn assert_clean(world: &World) {
    assert_eq!(world.iwf.mappings().count(), 0);
    assert_eq!(world.kernel.observe(), []);
    assert!(world.store.records.is_empty());
    assert_eq!(world.server.alive(world.now).count(), 0);
}

#[test]
fn a_silent_known_server_is_501_within_28_seconds() {
    let mut world = World::new(1);
    world.run(1);
    world.link.cut = true;
    let asked = world.now;
    for call in [
        add(20, 8080, 3600),
        add_any(20, 8081, 8081, 3600),
        get_specific(9090),
    ] {
        let id = world.call(20, call);
        assert_eq!(world.wait_for(id), Err(501));
    }
    assert_eq!(
        world.took(1, asked),
        27,
        "it answered before, so it is waited for"
    );
    world.link.cut = false;
    world.run(2000);
    assert_clean(&world);
}

#[test]
fn a_server_known_to_be_silent_is_not_waited_for_so_long() {
    let mut world = World::with(2, World::new(2).settings);
    world.link.cut = true;
    world.crash();
    world.run(30);
    let asked = world.now;
    let id = world.call(20, add(20, 8080, 3600));
    assert_eq!(world.wait_for(id), Err(501));
    assert_eq!(world.took(id, asked), 10);
}

#[test]
fn deleting_at_a_silent_server_is_501_and_the_mapping_stays() {
    let mut world = World::new(3);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.link.cut = true;
    assert_eq!(world.ask(20, delete(8080)), Err(501));
    assert_eq!(world.active().len(), 1);
    world.link.cut = false;
    world.run(60);
    assert_eq!(world.server.alive(world.now).count(), 1, "made sure of");
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_clean(&world);
}

#[test]
fn the_owner_deletes_even_if_the_server_is_silent() {
    let mut world = World::new(4);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.link.cut = true;
    let id = world.admin_delete(Protocol::Tcp, 8080);
    world.run(29);
    assert_eq!(world.admin_replies.get(&id), Some(&Ok(())));
    assert_eq!(world.active().len(), 0);
    world.link.cut = false;
    world.run(1100);
    assert_clean(&world);
    let id = world.admin_delete(Protocol::Tcp, 8080);
    assert!(world.admin_replies[&id].is_err(), "there is none");
}

#[test]
fn every_refusal_is_mapped_and_leaves_nothing() {
    for (result, igd1, igd2) in [
        (ResultCode::NotAuthorized, 718, 606),
        (ResultCode::MalformedRequest, 501, 501),
        (ResultCode::UnsuppOpcode, 501, 501),
        (ResultCode::UnsuppOption, 501, 501),
        (ResultCode::NetworkFailure, 501, 501),
        (ResultCode::NoResources, 501, 728),
        (ResultCode::UserExQuota, 501, 728),
        (ResultCode::CannotProvideExternal, 718, 718),
        (ResultCode::AddressMismatch, 501, 501),
        (ResultCode::ExcessiveRemotePeers, 501, 501),
    ] {
        for (version, code) in [(1, igd1), (2, igd2)] {
            let mut world = World::new(5);
            world.server.script.push_back(Scripted::Error(result, 1800));
            let mut call = add(20, 8080, 3600);
            call.version = version;
            assert_eq!(world.ask(20, call), Err(code), "{result} {version}");
            assert_clean(&world);
        }
    }
}

#[test]
fn a_refusal_is_remembered_for_its_lifetime() {
    let mut world = World::new(6);
    let refusal = Scripted::Error(ResultCode::UnsuppOpcode, 1800);
    world.server.script.push_back(refusal);
    for _ in 0..5 {
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501));
    }
    assert_eq!(maps(&world.server.log).len(), 1, "PCPC-031");
    world.run(1800);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
}

#[test]
fn a_port_taken_at_the_carrier_is_718_and_another_one_for_any() {
    let mut world = World::new(7);
    world.server.taken.push((Protocol::Tcp, 8080));
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(718));
    assert_clean(&world);
    let port = world
        .ask(20, add_any(20, 8080, 8080, 3600))
        .expect("another");
    assert_eq!(port, ["20000"]);
    let made = world.only();
    assert_eq!(made.nat1.port.get(), 8080);
    assert_eq!(world.ask(20, delete(20_000)), Ok(vec![]));
    assert_clean(&world);
}

#[test]
fn a_server_that_ignores_prefer_failure_is_a_conflict() {
    let mut world = World::new(8);
    world.server.ignores_prefer_failure = true;
    world.server.taken.push((Protocol::Tcp, 8080));
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(718), "IWF-047");
    world.run(1);
    assert_clean(&world);
    let last = maps(&world.server.log).pop().expect("deleted");
    assert_eq!(last.1, Lifetime(0));
}

#[test]
fn a_stray_grant_of_another_port_is_not_the_answer() {
    let mut world = World::new(9);
    world.link.delay = (50, 50);
    world.run(1);
    world.server.script.push_back(Scripted::Port(9999));
    let id = world.call(20, add(20, 8080, 3600));
    world.run_until(world.now + Duration::from_millis(100));
    assert!(!world.replies.contains_key(&id), "waits for the right one");
    // The right one follows at once, as if the first had been an update meant for something else.
    let (_, request) = world.sent.last().expect("a MAP").clone();
    let payload = request.encode().expect("short");
    let source = IpAddr::V4(super::world::WAN);
    let answer = world.server.receive(world.now, source, &payload);
    world.answer(answer.expect("granted"));
    assert_eq!(world.wait_for(id), Ok(vec![]), "IWF-046");
    assert_eq!(world.only().claim.port.map(|p| p.get()), Some(8080));
}

#[test]
fn a_late_grant_is_deleted() {
    let mut world = World::new(10);
    world.run(1);
    world.link.delay = (20_000, 20_000);
    let id = world.call(20, add(20, 8080, 3600));
    assert_eq!(world.wait_for(id), Err(501), "IWF-049");
    assert_eq!(
        world.server.alive(world.now).count(),
        1,
        "granted, but on its way"
    );
    world.link.delay = (10, 10);
    world.run(60);
    assert_clean(&world);
}

#[test]
fn remote_hosts_become_filters() {
    let mut world = World::new(11);
    let remote: IpAddr = [198, 51, 100, 5].into();
    let call = mapping("AddPortMapping", 20, 8443, 8443, 200_000, "198.51.100.5");
    assert_eq!(world.ask(20, call), Ok(vec![]));
    let filters = |world: &World| -> Vec<Filter> {
        let options = world
            .server
            .log
            .last()
            .expect("a request")
            .1
            .options
            .clone();
        options
            .into_iter()
            .filter_map(|option| {
                let PcpOption::Filter(filter) = option else {
                    return None;
                };
                Some(filter)
            })
            .collect()
    };
    assert_eq!(filters(&world), [Filter::host(remote)]);
    world.run(55_000);
    let renewed = filters(&world);
    assert!(renewed[0].clears(), "IWF-076");
    assert_eq!(renewed[1..], [Filter::host(remote)]);
    let held: Vec<_> = world
        .server
        .alive(world.now)
        .map(|(_, m)| &m.filters)
        .collect();
    assert_eq!(held, [&vec![remote]]);
}

#[test]
fn a_server_without_filters_is_asked_without() {
    let mut world = World::new(12);
    world.server.filters = false;
    let call = mapping("AddPortMapping", 20, 8443, 8443, 3600, "198.51.100.5");
    assert_eq!(world.ask(20, call), Ok(vec![]), "AMB-14");
    let entry = world.kernel.alive(world.now)[0];
    let remote = crate::types::RemotePeer::Host(Ipv4Addr::new(198, 51, 100, 5));
    assert_eq!(entry.remote, remote, "our NAT enforces it");
}

#[test]
fn a_refused_deletion_leaves_the_mapping() {
    let mut world = World::new(13);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let refusal = Scripted::Error(ResultCode::NotAuthorized, 1800);
    world.server.script.push_back(refusal);
    assert_eq!(world.ask(20, delete(8080)), Err(606), "IWF-064");
    assert_eq!(world.active().len(), 1);
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_clean(&world);
}

#[test]
fn no_resources_on_delete_silences_everything() {
    let mut world = World::new(14);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let refusal = Scripted::Error(ResultCode::NoResources, 20);
    world.server.script.push_back(refusal);
    assert_eq!(world.ask(20, delete(8080)), Err(728));
    let before = world.sent.len();
    let id = world.call(20, add(20, 9090, 3600));
    world.run(19);
    assert_eq!(world.sent.len(), before, "PCPC-036");
    assert_eq!(world.wait_for(id), Ok(vec![]));
}

#[test]
fn deleting_what_was_never_granted_keeps_nobody_waiting() {
    let mut world = World::new(14);
    world.server.refuses_to_delete_nothing = true;
    world.run(1);
    world.link.cut = true;
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(501));
    world.link.cut = false;
    // What is deleted here in case it was granted after all was not.
    world.run(40);
    let deletions = |world: &World| {
        let log = world.server.log.iter();
        log.filter(|(_, request)| request.lifetime == Lifetime(0) && request.body != Body::Announce)
            .count()
    };
    assert!(deletions(&world) > 0);
    for port in 9000..9020 {
        let id = world.call(20, add(20, port, 3600));
        let asked = world.now;
        assert_eq!(world.wait_for(id), Ok(vec![]));
        assert_eq!(world.took(id, asked), 0, "port {port}");
        world.run(5);
    }
}

#[test]
fn no_resources_on_create_stops_new_ones_only() {
    let mut world = World::new(15);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let refusal = Scripted::Error(ResultCode::NoResources, 30);
    world.server.script.push_back(refusal);
    assert_eq!(world.ask(20, add(20, 9090, 3600)), Err(728));
    let before = maps(&world.sent).len();
    assert_eq!(world.ask(20, add(20, 9091, 3600)), Err(728));
    assert_eq!(maps(&world.sent).len(), before);
    assert_eq!(
        world.ask(20, add(20, 8080, 3600)),
        Ok(vec![]),
        "what exists goes on"
    );
}

#[test]
fn junk_from_the_server_changes_nothing() {
    let mut world = World::new(16);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let before = world.only();
    let good = world.server.announce(world.now);
    for cut in 0..good.len() {
        world.answer(good[..cut].to_vec());
    }
    world.answer(vec![0xff; 2000]);
    let stranger = (Ipv4Addr::new(100, 64, 0, 77), 5351).into();
    world.input(Input::Upstream {
        from: stranger,
        payload: good,
    });
    world.run(1);
    assert_eq!(world.only(), before);
    let ignored = world.iwf.ignored_upstream();
    assert_eq!(ignored.stranger, 1);
    assert!(ignored.malformed > 20);
}

#[test]
fn failures_here_undo_in_reverse() {
    for (error, code) in [(EffectError::Full, 728), (EffectError::Failed, 501)] {
        let mut world = World::new(17);
        let next = world.kernel.next_call();
        world.kernel.faults.insert(next, error);
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(code));
        world.run(1);
        assert_clean(&world);
    }
    for (error, code) in [(EffectError::Full, 728), (EffectError::Failed, 501)] {
        let mut world = World::new(18);
        world.run(1);
        // After that of the mark.
        let next = world.store.next_call() + 1;
        world.store.faults.insert(next, error);
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(code));
        world.run(1);
        assert_clean(&world);
    }
}

/// A program of this machine has the port: the PCP client's own socket, or what a resolver has opened for one question.
#[test]
fn a_port_that_this_machine_uses_is_left_to_it() {
    let place = (Protocol::Tcp, 8080);
    let mut world = World::new(170);
    world.kernel.taken.insert(place);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let mapping = world.only();
    assert_eq!(mapping.claim.port.map(ExternalPort::get), Some(8080));
    assert_ne!(mapping.nat1.port.get(), 8080, "behind another NAT");
    world.run(1);
    assert_eq!(world.server.alive(world.now).count(), 1);

    let mut world = World::local(170);
    world.kernel.taken.insert(place);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(729));
    let any = world.ask(20, add_any(20, 8080, 8080, 3600));
    let reserved = any.expect("another port");
    assert_ne!(reserved, ["8080"]);
    assert_eq!(world.only().nat1.port.get().to_string(), reserved[0]);
    assert_eq!(world.kernel.alive(world.now).len(), 1);
}

#[test]
fn ports_in_use_are_not_tried_for_ever() {
    let mut world = World::local(170);
    for port in 0..=u16::MAX {
        world.kernel.taken.insert((Protocol::Tcp, port));
    }
    let begun = world.now;
    let any = world.ask(20, add_any(20, 8080, 8080, 3600));
    assert_eq!(any, Err(729));
    assert_eq!(world.now, begun);
    assert_clean(&world);
}

#[test]
fn a_failed_overwrite_leaves_the_mapping_as_it_was() {
    for kernel in [false, true] {
        let mut world = World::new(19);
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
        let before = world.only();
        let (store, plane) = (world.store.next_call(), world.kernel.next_call());
        if kernel {
            // The old entry is removed first, because the internal port changes.
            world.kernel.faults.insert(plane + 1, EffectError::Failed);
        } else {
            world.store.faults.insert(store, EffectError::Failed);
        }
        let call = mapping("AddPortMapping", 20, 8080, 9090, 7200, "");
        assert_eq!(world.ask(20, call), Err(501));
        let after = world.only();
        assert_eq!(after.internal, before.internal);
        assert_eq!(after.lease_ends, before.lease_ends);
        assert_eq!(world.kernel.alive(world.now).len(), 1);
    }
}

#[test]
fn a_store_that_fails_a_deletion_keeps_the_mapping() {
    let mut world = World::new(20);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    // After that of the mark.
    let next = world.store.next_call() + 1;
    world.store.faults.insert(next, EffectError::Failed);
    assert_eq!(world.ask(20, delete(8080)), Err(501));
    world.run(1);
    assert_eq!(world.active().len(), 1);
    assert_eq!(
        world.server.alive(world.now).count(),
        1,
        "its lease came back"
    );
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_clean(&world);
}

fn behind_default_router(seed: u64) -> World {
    let mut settings = World::new(seed).settings;
    settings.servers = vec![ServerSource::DefaultRouter];
    World::with(seed, settings)
}

#[test]
fn a_default_router_that_never_answers_is_no_server() {
    let mut world = behind_default_router(21);
    world.link.cut = true;
    world.crash();
    let asked = world.now;
    let id = world.call(20, add(20, 8080, 3600));
    assert_eq!(world.wait_for(id), Err(729), "AMB-13");
    assert!(world.took(id, asked) <= 24);
    assert_eq!(world.iwf.mode(), Mode::NoServer);
    assert_eq!(world.ask(20, get_specific(8080)), Err(714));
    assert_eq!(world.ask(20, get_address()).expect("empty"), [""]);
    assert_clean(&world);
}

#[test]
fn a_default_router_where_nobody_listens_is_no_server_at_once() {
    let mut world = behind_default_router(22);
    world.link.cut = true;
    world.crash();
    world.input(Input::UpstreamUnreachable { server: address() });
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(729));
    world.link.cut = false;
    world.run(5);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(address()), "asked again");
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
}

#[test]
fn a_default_router_that_has_answered_stays_known() {
    let mut world = behind_default_router(23);
    assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
    world.link.cut = true;
    world.crash();
    world.run(60);
    assert_eq!(world.iwf.mode(), Mode::Cascaded(address()));
    assert_eq!(world.ask(20, add(20, 9090, 3600)), Err(501));
    assert_eq!(world.active().len(), 1);
}

#[test]
fn without_a_server_the_knob_maps_locally() {
    let mut settings = World::new(24).settings;
    settings.servers.clear();
    settings.private_wan = PrivateWan::MapLocally;
    let mut world = World::with(24, settings);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert_eq!(world.ask(20, get_address()).expect("WAN"), ["100.64.0.2"]);
    assert_eq!(world.ask(21, add(21, 8080, 3600)), Err(718));
    let other = world
        .ask(21, add_any(21, 8080, 8080, 3600))
        .expect("another");
    assert_ne!(other, ["8080"]);
    assert_eq!(
        world.ask(21, add(21, 5351, 3600)),
        Ok(vec![]),
        "only UDP is PCP's"
    );
    world.run(3600);
    assert_clean(&world);
    assert!(world.sent.is_empty());
}

#[test]
fn a_public_address_needs_no_server() {
    let mut world = World::new(25);
    world.set_wan(Some(Ipv4Addr::new(11, 22, 33, 44)));
    assert_eq!(world.iwf.mode(), Mode::Local);
    let before = maps(&world.sent).len();
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_eq!(maps(&world.sent).len(), before);
    assert_clean(&world);
}

#[test]
fn a_repetition_that_overtakes_the_deletion_is_deleted_again() {
    let mut world = World::new(26);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let (_, request) = world.sent.last().expect("a MAP").clone();
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    let payload = request.encode().expect("short");
    let source = IpAddr::V4(super::world::WAN);
    let late = world.server.receive(world.now, source, &payload);
    assert_eq!(world.server.alive(world.now).count(), 1);
    world.answer(late.expect("granted"));
    world.run(1);
    assert_clean(&world);
}

#[test]
fn a_late_grant_ahead_of_the_deletions_answer_is_deleted_too() {
    let mut world = World::new(30);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let (_, request) = world.sent.last().expect("a MAP").clone();
    world.link.delay = (100, 100);
    let deleted = world.call(20, delete(8080));
    world.run_until(world.now + Duration::from_millis(150));
    assert_eq!(
        world.server.alive(world.now).count(),
        0,
        "its answer is on its way"
    );
    let payload = request.encode().expect("short");
    let source = IpAddr::V4(super::world::WAN);
    let late = world.server.receive(world.now, source, &payload);
    world.link.delay = (0, 0);
    world.answer(late.expect("granted"));
    assert_eq!(world.wait_for(deleted), Ok(vec![]));
    world.run(1);
    assert_clean(&world);
}

#[test]
fn a_lapsed_mapping_that_was_overwritten_in_vain_is_lost_when_refused() {
    for refusal in [ResultCode::CannotProvideExternal, ResultCode::NotAuthorized] {
        let mut world = World::new(29);
        world.server.lifetimes = (120, 600);
        assert_eq!(world.ask(20, add(20, 8080, 86_400)), Ok(vec![]));
        world.link.cut = true;
        world.now = world.now + Duration::from_secs(3000);
        world.crash();
        assert_eq!(world.ask(20, add(20, 8080, 86_400)), Err(501));
        assert_eq!(world.active().len(), 1, "may come back yet");
        for _ in 0..2 {
            let refusal = Scripted::Error(refusal, 1800);
            world.server.script.push_back(refusal);
        }
        world.link.cut = false;
        world.run(1100);
        assert_eq!(world.iwf.mappings().count(), 0, "{refusal}");
        assert!(world.store.records.is_empty());
    }
}

#[test]
fn a_record_the_store_could_not_remove_goes_later() {
    let mut world = World::new(27);
    assert_eq!(world.ask(20, add(20, 8080, 600)), Ok(vec![]));
    for call in 0..3 {
        let call = world.store.next_call() + call;
        world.store.faults.insert(call, EffectError::Failed);
    }
    world.run(600);
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.store.records.len(), 1, "refused");
    world.run(6);
    assert_eq!(world.store.records.len(), 1, "and again after 1 and 2 s");
    world.run(4);
    assert_clean(&world);
}

#[test]
fn a_renewal_the_store_could_not_take_is_stored_later() {
    let mut world = World::new(28);
    world.server.lifetimes = (120, 86_400);
    assert_eq!(world.ask(20, add(20, 8080, 604_800)), Ok(vec![]));
    let next = world.store.next_call();
    world.store.faults.insert(next, EffectError::Full);
    let stored = |world: &World| {
        let record = world.store.records.values().next().expect("stored");
        record.upstream.expect("a lease").expires
    };
    let before = stored(&world);
    world.run(60_000);
    assert!(stored(&world) > before);
}
