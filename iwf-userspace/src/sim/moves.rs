//! Changes between the modes with and without a NAT of ours: every mapping comes along, whatever fails meanwhile.

use super::nonat::{OWN6, address6, host, routed, sent, settings, world};
use super::server::{address, maps};
use super::soap::{add, add_any, mapping};
use super::world::{WAN, World};
use crate::iwf::{Input, Mode, ModeSetting, ServerSource, Settings};
use crate::types::{ExternalPort, Lifetime};
use crate::wire::pcp::{PcpOption, ResultCode};

/// The mapping is as it was promised, and the server holds it once and under no nonce but ours.
fn assert_whole(world: &World) {
    assert_eq!(world.only().claim.port, ExternalPort::new(8080));
    assert_eq!(world.server.foreign_nonces, 0);
    assert_eq!(world.server.alive(world.now).count(), 1);
}

#[test]
fn a_change_of_mode_takes_every_mapping_along() {
    let mut world = world(13, settings(ModeSetting::Cascaded, address()));
    for (host, port) in [(20, 8080), (21, 8081), (22, 8082)] {
        let call = mapping("AddPortMapping", host, port, 8000, 7200, "");
        assert_eq!(world.ask(host, call), Ok(vec![]));
    }
    let steps = [
        (ModeSetting::NoNat, true, true),
        (ModeSetting::Local, false, false),
        (ModeSetting::NoNat, true, true),
        (ModeSetting::Cascaded, false, true),
    ];
    for (mode, routed, leased) in steps {
        world.set_mode(mode);
        world.run(20);
        let active = world.active();
        assert_eq!(active.len(), 3, "{mode:?}");
        for mapping in active {
            assert_eq!(mapping.is_untranslated(), routed, "{mode:?}");
            assert_eq!(mapping.upstream.is_some(), leased, "{mode:?}");
            let port = mapping.claim.port.map(|port| port.get());
            assert!(matches!(port, Some(8080..=8082)), "{mode:?}");
        }
        let held = world.server.alive(world.now).count();
        assert_eq!(held, if leased { 3 } else { 0 }, "{mode:?}");
        let asked = maps(&world.server.log).len();
        assert!(asked > 0);
    }
    // And across a restart into another mode.
    world.settings.mode = ModeSetting::NoNat;
    world.crash();
    world.run(20);
    assert_eq!(world.active().len(), 3);
    assert!(world.active().iter().all(|m| m.is_untranslated()));
    assert_eq!(world.server.alive(world.now).count(), 3);
}

/// The deletion of the old lease is lost, and the server refuses the new one as long as it holds the old.
#[test]
fn a_mapping_outlives_a_change_of_mode_on_a_bad_link() {
    let mut world = world(14, settings(ModeSetting::Cascaded, address()));
    assert_eq!(world.ask(20, add(20, 8080, 7200)), Ok(vec![]));
    world.link.loss = 60;
    world.set_mode(ModeSetting::NoNat);
    world.run(300);
    world.link.loss = 0;
    world.run(60);
    assert!(world.only().is_untranslated());
    assert_eq!(world.server.alive(world.now).count(), 1);
}

/// Seed 285 of the months: nothing of the move was stored, and the next life knows the server's answer to it all the same.
#[test]
fn a_mapping_outlives_a_change_of_mode_that_could_not_be_stored() {
    for there_and_back in [false, true] {
        let mut world = routed(17);
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
        world.store.full = true;
        world.set_mode(ModeSetting::Cascaded);
        world.run(20);
        if there_and_back {
            world.set_mode(ModeSetting::NoNat);
            world.run(20);
        }
        assert_eq!(world.only().claim.port, ExternalPort::new(8080));
        world.crash();
        world.store.full = false;
        world.run(60);
        assert_whole(&world);
    }
}

/// Seed 1341 of the months: the same where the server is another of its addresses in the other mode, whichever of them the
/// life that is lost has used in which order.
#[test]
fn a_move_to_another_address_of_the_server_that_could_not_be_stored_is_known_to_the_next_life() {
    for by_way_of_the_other_address in [false, true] {
        let both = vec![address(), address6()];
        let settings = Settings {
            servers: vec![ServerSource::Addresses(both)],
            ..settings(ModeSetting::NoNat, address6())
        };
        let mut world = world(18, settings);
        world.wan.address = None;
        world.crash();
        world.run(2);
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
        assert_eq!(world.iwf.mode(), Mode::NoNat(address6()));
        world.store.full = true;
        world.set_wan(Some(WAN));
        if by_way_of_the_other_address {
            world.wan.address6 = None;
            world.input(Input::Wan(world.wan.clone()));
            world.run(20);
            assert_eq!(world.iwf.mode(), Mode::NoNat(address()));
            world.wan.address6 = Some(OWN6);
        }
        world.set_mode(ModeSetting::Cascaded);
        world.run(20);
        assert_eq!(world.iwf.mode(), Mode::Cascaded(address()));
        world.crash();
        world.store.full = false;
        world.run(60);
        assert_whole(&world);
    }
}

/// Seed 2373 of the months: the port is insisted on after a change of mode, and refused as long as the old lease has it. That
/// comes late, when its host has said meanwhile that any port will do.
#[test]
fn a_late_refusal_of_what_was_insisted_on_is_none_of_what_is_not() {
    let mut world = world(19, settings(ModeSetting::Cascaded, address()));
    let wish = || add_any(20, 8080, 8000, 3600);
    assert_eq!(world.ask(20, wish()), Ok(vec!["8080".to_owned()]));
    world.link.cut = true;
    world.set_mode(ModeSetting::NoNat);
    world.run(1);
    let insisted = sent(&world).pop().expect("a MAP").1;
    assert!(insisted.options.contains(&PcpOption::PreferFailure));
    let refresh = world.call(20, wish());
    world.run(1);
    let refusal = crate::wire::pcp::Response {
        result: ResultCode::CannotProvideExternal,
        lifetime: Lifetime(1800),
        epoch: world.server.epoch(world.now),
        body: insisted.body,
        options: vec![PcpOption::ThirdParty(host(20))],
    };
    world.link.cut = false;
    world.answer(refusal.encode().expect("short"));
    world.link.cut = true;
    world.run(1);
    world.link.cut = false;
    assert_eq!(world.wait_for(refresh), Ok(vec!["8080".to_owned()]));
    assert_eq!(world.only().claim.port, ExternalPort::new(8080));
}

/// Seed 8441 of the months: back before the server has answered, and the record says under which nonce it was asked last.
#[test]
fn a_mapping_outlives_a_change_of_mode_that_was_taken_back() {
    let mut world = routed(22);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.link.cut = true;
    world.set_mode(ModeSetting::Cascaded);
    world.run(1);
    world.set_mode(ModeSetting::NoNat);
    world.link.cut = false;
    world.run(20);
    world.crash();
    world.run(60);
    assert_eq!(world.only().claim.port, ExternalPort::new(8080));
    assert_eq!(world.server.foreign_nonces, 0);
    assert_eq!(world.server.alive(world.now).count(), 1);
}

/// Whatever of a change of mode came to be done before a kill, the next life finishes it.
#[test]
fn a_mapping_outlives_a_kill_in_the_midst_of_a_change_of_mode() {
    let both = [ModeSetting::NoNat, ModeSetting::Cascaded];
    for (from, to) in [(both[0], both[1]), (both[1], both[0])] {
        for effects in 0..40 {
            for cut in [false, true] {
                let mut world = world(23, settings(from, address()));
                assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
                if cut {
                    // It was on the way to the other mode and back already.
                    world.link.cut = true;
                    world.set_mode(to);
                    world.run(1);
                    world.set_mode(from);
                    world.run(1);
                    world.link.cut = false;
                }
                world.crash_after = Some(effects);
                world.set_mode(to);
                world.run(60);
                let said = format!("{from:?} to {to:?}, cut {cut}, killed after {effects} effects");
                assert_eq!(world.active().len(), 1, "{said}");
                assert_eq!(world.only().claim.port, ExternalPort::new(8080), "{said}");
                assert_eq!(world.server.alive(world.now).count(), 1, "{said}");
            }
        }
    }
}
