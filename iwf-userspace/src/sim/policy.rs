//! The owner's rules: what is asked for, what is there, and what is said about it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use super::pinholes;
use super::server::{Scripted, maps};
use super::soap::{add, add_any, get_specific, mapping};
use super::world::{World, host};
use crate::iwf::pinholes::Ending;
use crate::iwf::policy::{Question, Wanted, Why};
use crate::iwf::{Input, Mode, ModeSetting, Notice};
use crate::mapping::policy::ThirdParty;
use crate::mapping::rules::tests::{prefix, range, rule};
use crate::mapping::rules::{Decider, Devices, Kind, Rule, Rules, Verdict};
use crate::types::caller::{Caller, Mac};
use crate::types::device::{DhcpLease, LanDevices, Leases, Neighbour};
use crate::types::{ExternalPort, InternalPort};

const CONSOLE: Mac = [2, 0, 0, 0, 0, 0x20];
const OTHER: Mac = [2, 0, 0, 0, 0, 0x99];

fn rules(default: Verdict, list: Vec<Rule>) -> Rules {
    Rules { list, default }
}

fn world_with(rules: Rules) -> World {
    let mut settings = World::new(1).settings;
    settings.policy.rules = rules;
    World::with(1, settings)
}

fn wanted(world: &World, rules: Rules) -> Wanted {
    let policy = &world.settings.policy;
    Wanted {
        min_port: policy.min_port,
        third_party: policy.third_party,
        per_host: world.settings.limits.per_host,
        rules,
        departed_after: world.settings.departed_after,
    }
}

/// The owner has written these rules, and reloads.
fn reload(world: &mut World, rules: Rules) {
    let wanted = wanted(world, rules);
    world.input(Input::Policy(wanted));
}

fn at(addr: &str) -> Devices {
    Devices {
        addresses: vec![prefix(addr)],
        ..Devices::default()
    }
}

fn of(mac: Mac) -> Devices {
    Devices {
        macs: vec![mac],
        ..Devices::default()
    }
}

fn lan(known: &[(IpAddr, Mac)]) -> LanDevices {
    let neighbour = |(addr, mac): &(IpAddr, Mac)| {
        let known = Neighbour {
            mac: Some(*mac),
            answers: true,
        };
        (*addr, known)
    };
    LanDevices {
        neighbours: Some(known.iter().map(neighbour).collect::<BTreeMap<_, _>>()),
        leases: Leases::Nowhere,
    }
}

pub(super) fn reasons(world: &World) -> Vec<Why> {
    let why = |notice: &Notice| {
        let Notice::Refused { why, .. } = notice else {
            return None;
        };
        Some(why.clone())
    };
    world.notices.iter().filter_map(why).collect()
}

fn withdrawn(world: &World) -> Vec<String> {
    let why = |notice: &Notice| {
        let Notice::Withdrawn { why, .. } = notice else {
            return None;
        };
        Some(why.clone())
    };
    world.notices.iter().filter_map(why).collect()
}

fn question(last: u8, external: Option<u16>) -> Question {
    Question {
        kind: Kind::Mapping,
        client: host(last).into(),
        mac: None,
        name: None,
        protocol: Some(6),
        external: external.and_then(ExternalPort::new),
        internal: InternalPort::new(external.unwrap_or(9000)).expect("a port"),
    }
}

#[test]
fn a_denied_port_is_refused_before_any_datagram_and_with_the_rule() {
    let closed = Rule {
        name: Some("no web".to_owned()),
        external: range(8080, 8090),
        ..rule(Verdict::Deny)
    };
    let mut world = world_with(rules(Verdict::Allow, vec![closed]));
    world.run(1);
    let before = world.sent.len();
    assert_eq!(world.ask(20, add(20, 8085, 600)), Err(606));
    let mut version_1 = add(20, 8085, 600);
    version_1.version = 1;
    assert_eq!(world.ask(20, version_1), Err(718));
    assert_eq!(world.ask(20, get_specific(8085)), Err(606));
    assert_eq!(world.sent.len(), before);
    let why = Why {
        decided_by: Some("rule 1".to_owned()),
        text: "policy rule 1 (no web)".to_owned(),
    };
    assert_eq!(reasons(&world), [why.clone(), why.clone(), why]);
    assert_eq!(world.ask(20, add(20, 8091, 600)), Ok(vec![]));
}

#[test]
fn an_allow_list_knows_a_device_by_its_mac_address() {
    let console = Rule {
        devices: of(CONSOLE),
        ..rule(Verdict::Allow)
    };
    let mut world = world_with(rules(Verdict::Deny, vec![console]));
    let caller = |mac| Caller {
        mac,
        ..host(20).into()
    };
    let mut ask = |mac, call| {
        let id = world.call_from(caller(mac), call);
        world.wait_for(id)
    };
    assert_eq!(ask(Some(OTHER), add(20, 8080, 600)), Err(606));
    assert_eq!(ask(None, add(20, 8080, 600)), Err(606));
    assert_eq!(ask(Some(CONSOLE), add(20, 8080, 600)), Ok(vec![]));
    let why = reasons(&world).pop().expect("a reason");
    assert_eq!(why.decided_by.as_deref(), Some("policy.default"));
}

#[test]
fn any_port_is_one_that_may_be_had() {
    let only = Rule {
        external: range(5000, 5003),
        ..rule(Verdict::Allow)
    };
    let mut world = world_with(rules(Verdict::Deny, vec![only]));
    for _ in 0..2 {
        let got = world.ask(20, add_any(20, 8080, 9000, 600));
        let port: u16 = got.expect("a port")[0].parse().expect("a number");
        assert!((5000..=5003).contains(&port), "{port}");
        assert_eq!(
            world.active().len(),
            1,
            "the same client and port: the same mapping"
        );
    }
    assert_eq!(
        world.ask(20, add_any(20, 5002, 9001, 600)),
        Ok(vec!["5002".to_owned()])
    );

    // Nobody is asked in local mode, and the same holds.
    let mut settings = world.settings.clone();
    settings.mode = ModeSetting::Local;
    let mut world = World::with(1, settings);
    assert_eq!(world.iwf.mode(), Mode::Local);
    let mut got: Vec<u16> = Vec::new();
    for internal in 9000..9004 {
        let port = world.ask(20, add_any(20, 0, internal, 600));
        got.push(port.expect("a port")[0].parse().expect("a number"));
    }
    got.sort_unstable();
    assert_eq!(got, [5000, 5001, 5002, 5003]);
    assert_eq!(world.ask(20, add_any(20, 0, 9004, 600)), Err(728));
}

#[test]
fn a_server_that_gives_out_a_closed_port_gets_it_back() {
    let only = Rule {
        external: range(5000, 5003),
        ..rule(Verdict::Allow)
    };
    let mut world = world_with(rules(Verdict::Deny, vec![only]));
    world.run(1);
    world.server.script.push_back(Scripted::Port(6000));
    assert_eq!(world.ask(20, add_any(20, 5000, 9000, 600)), Err(606));
    let why = reasons(&world).pop().expect("a reason");
    assert_eq!(why.decided_by.as_deref(), Some("policy.default"));
    world.run(10);
    let mut lifetimes = maps(&world.sent)
        .into_iter()
        .map(|(_, lifetime, _)| lifetime.0);
    assert_eq!(lifetimes.next_back(), Some(0), "it is deleted");
    assert!(world.active().is_empty());
}

#[test]
fn a_rule_bounds_what_each_device_has_at_all_its_addresses() {
    let few = Rule {
        devices: at("192.168.1.0/24"),
        max_mappings: Some(2),
        ..rule(Verdict::Allow)
    };
    let mut world = world_with(rules(Verdict::Allow, vec![few]));
    world.input(Input::Devices(lan(&[
        (host(20).into(), CONSOLE),
        (host(21).into(), CONSOLE),
        (host(22).into(), OTHER),
    ])));
    assert_eq!(world.ask(20, add(20, 2001, 600)), Ok(vec![]));
    assert_eq!(world.ask(21, add(21, 2002, 600)), Ok(vec![]));
    assert_eq!(world.ask(20, add(20, 2003, 600)), Err(728));
    assert_eq!(world.ask(21, add(21, 2003, 600)), Err(728));
    let why = reasons(&world).pop().expect("a reason");
    assert_eq!(why.text, "the quota of policy rule 1");
    assert_eq!(world.ask(22, add(22, 2003, 600)), Ok(vec![]));
    assert_eq!(
        world.ask(20, add(20, 2001, 700)),
        Ok(vec![]),
        "what it has it may renew"
    );
}

#[test]
fn who_asks_for_another_device_must_be_allowed_itself() {
    let guest = Rule {
        devices: at("192.168.1.21/32"),
        ..rule(Verdict::Deny)
    };
    let mut settings = World::new(1).settings;
    settings.policy.third_party = ThirdParty::Allowed;
    settings.policy.rules = rules(Verdict::Allow, vec![guest]);
    let mut world = World::with(1, settings);
    assert_eq!(world.ask(21, add(20, 8080, 600)), Err(606));
    assert_eq!(world.ask(20, add(21, 8080, 600)), Err(606));
    assert_eq!(world.ask(20, add(22, 8080, 600)), Ok(vec![]));
}

#[test]
fn a_reload_closes_what_is_denied_now_and_nothing_else() {
    let mut world = World::new(1);
    for (who, port) in [(20, 8080), (20, 9090), (21, 9191)] {
        assert_eq!(world.ask(who, add(who, port, 3600)), Ok(vec![]));
    }
    let no_web = Rule {
        external: range(8080, 8090),
        ..rule(Verdict::Deny)
    };
    reload(&mut world, rules(Verdict::Allow, vec![no_web]));
    world.run(10);
    let left = |world: &World| -> Vec<u16> {
        let ports = world.active().into_iter().filter_map(|m| m.claim.port);
        ports.map(ExternalPort::get).collect()
    };
    assert_eq!(left(&world), [9090, 9191]);
    assert_eq!(withdrawn(&world), ["policy rule 1 denies it"]);
    let removed = world
        .notices
        .iter()
        .filter(|n| matches!(n, Notice::Removed(_)));
    assert_eq!(removed.count(), 1);
    assert_eq!(world.server.mappings.len(), 2, "the server was told");

    // A device that is not known may be the one that an allow rule is about, until it is known.
    let console = Rule {
        devices: of(CONSOLE),
        ..rule(Verdict::Allow)
    };
    reload(&mut world, rules(Verdict::Deny, vec![console]));
    world.run(10);
    assert_eq!(left(&world), [9090, 9191]);
    world.input(Input::Devices(lan(&[
        (host(20).into(), CONSOLE),
        (host(21).into(), OTHER),
    ])));
    world.run(10);
    assert_eq!(left(&world), [9090]);
    assert_eq!(world.server.mappings.len(), 1);
}

#[test]
fn what_is_being_changed_at_a_reload_is_judged_when_that_is_done() {
    let mut world = World::new(1);
    world.run(1);
    let id = world.call(20, add(20, 8080, 3600));
    reload(&mut world, rules(Verdict::Deny, Vec::new()));
    let told = world.wait_for(id);
    world.run(10);
    assert!(world.active().is_empty(), "{told:?}");
    assert!(world.server.mappings.is_empty());
}

#[test]
fn other_keys_hold_for_what_is_asked_for_from_then_on() {
    let mut world = World::new(1);
    assert_eq!(world.ask(20, add(20, 2001, 3600)), Ok(vec![]));
    assert_eq!(world.ask(20, add(21, 3001, 3600)), Err(606));
    let new = Wanted {
        min_port: 3000,
        third_party: ThirdParty::Allowed,
        per_host: 1,
        rules: Rules::default(),
        departed_after: None,
    };
    world.input(Input::Policy(new));
    assert_eq!(world.active().len(), 1);
    assert_eq!(world.ask(20, add(20, 2002, 3600)), Err(606));
    assert_eq!(world.ask(20, add(20, 3000, 3600)), Err(728));
    assert_eq!(world.ask(20, add(21, 3001, 3600)), Ok(vec![]));
    let keys: Vec<_> = reasons(&world)
        .into_iter()
        .filter_map(|why| why.decided_by)
        .collect();
    let expected = [
        "policy.third_party",
        "policy.min_port",
        "policy.max_mappings_per_host",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn pinholes_have_rules_and_quotas_and_are_closed_by_a_reload() {
    let mut world = pinholes::world();
    let all = pinholes::host(0x10);
    let open = |world: &mut World, addr: Ipv6Addr, port| {
        let caller = Caller {
            mac: Some(CONSOLE),
            ..IpAddr::from(addr).into()
        };
        let id = world.call_from(caller, pinholes::add(addr, port, 600));
        world.wait_for(id)
    };
    assert!(open(&mut world, all, 8080).is_ok());
    assert!(open(&mut world, all, 9090).is_ok());
    let list = vec![
        Rule {
            internal: range(8080, 8080),
            kind: Some(Kind::Pinhole),
            ..rule(Verdict::Deny)
        },
        Rule {
            max_pinholes: Some(1),
            ..rule(Verdict::Allow)
        },
    ];
    reload(&mut world, rules(Verdict::Deny, list));
    world.run(1);
    let closed = |notice: &Notice| {
        let Notice::PinholeClosed(pinhole, why) = notice else {
            return None;
        };
        Some((pinhole.internal_port, *why))
    };
    let closed: Vec<_> = world.notices.iter().filter_map(closed).collect();
    assert_eq!(closed, [(Some(8080), Ending::Denied(Decider::Rule(1)))]);
    assert_eq!(world.iwf.pinholes().count(), 1);
    assert_eq!(open(&mut world, all, 8080), Err(606));
    assert_eq!(open(&mut world, all, 7070), Err(701));
    assert!(
        open(&mut world, all, 9090).is_ok(),
        "what it has it may extend"
    );
    let keys: Vec<_> = reasons(&world)
        .into_iter()
        .map(|why| (why.decided_by, why.text))
        .collect();
    let rule = |number: u8| Some(format!("rule {number}"));
    let expected = [
        (rule(1), "policy rule 1".to_owned()),
        (rule(2), "the quota of policy rule 2".to_owned()),
    ];
    assert_eq!(keys, expected);
}

#[test]
fn every_refusal_has_a_reason() {
    let mut world = World::new(1);
    assert_eq!(world.ask(20, add(20, 8080, 600)), Ok(vec![]));
    assert_eq!(world.ask(21, add(21, 8080, 600)), Err(718));
    assert_eq!(
        world.ask(20, mapping("AddPortMapping", 20, 80, 8081, 60, "")),
        Err(606)
    );
    let texts: Vec<_> = reasons(&world).into_iter().map(|why| why.text).collect();
    let expected = [
        "another mapping holds the port",
        "a port below the lowest that may be mapped (policy.min_port)",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn the_owner_may_ask_what_would_be_decided() {
    let list = vec![
        Rule {
            name: Some("no web".to_owned()),
            external: range(8080, 8090),
            ..rule(Verdict::Deny)
        },
        Rule {
            devices: of(CONSOLE),
            max_mappings: Some(1),
            ..rule(Verdict::Allow)
        },
    ];
    let mut world = world_with(rules(Verdict::Deny, list));
    world.input(Input::Devices(lan(&[(host(20).into(), CONSOLE)])));
    world.run(1);
    let (sent, notices) = (world.sent.len(), world.notices.len());
    let ask = |world: &World, question| {
        let answer = world.iwf.ask_policy(&question);
        let refused = answer
            .refused
            .map(|(why, codes)| (why.decided_by.unwrap_or_default(), codes));
        (answer.decided_by, refused, answer.held, answer.most)
    };
    let by = |text: &str, codes| Some((text.to_owned(), codes));
    let denied = ask(&world, question(20, Some(8080)));
    assert_eq!(
        denied,
        ("rule 1".to_owned(), by("rule 1", (606, 718)), 0, 128)
    );
    let granted = ask(&world, question(20, Some(9000)));
    assert_eq!(granted, ("rule 2".to_owned(), None, 0, 1));
    let any = ask(&world, question(20, None));
    assert_eq!(any, ("rule 2".to_owned(), None, 0, 1));
    let stranger = ask(&world, question(21, Some(9000)));
    assert_eq!(
        stranger,
        (
            "policy.default".to_owned(),
            by("policy.default", (606, 718)),
            0,
            128
        )
    );
    let with_mac = Question {
        mac: Some(CONSOLE),
        ..question(21, Some(9000))
    };
    assert_eq!(ask(&world, with_mac).1, None);
    let low = ask(&world, question(20, Some(80)));
    assert_eq!(low.1, by("policy.min_port", (606, 718)));
    assert_eq!((world.sent.len(), world.notices.len()), (sent, notices));
    assert_eq!(world.ask(20, add(20, 9000, 600)), Ok(vec![]));
    let full = ask(&world, question(20, Some(9001)));
    assert_eq!(full, ("rule 2".to_owned(), by("rule 2", (728, 501)), 1, 1));
}

/// Its server writes a lease file anew while the daemon reads it, or it is gone for a moment: who was called something is
/// still called that, so that nobody is let in or kept out by it.
#[test]
fn names_hold_while_the_lease_file_cannot_be_read() {
    let named = |name: Option<&str>| {
        let lease = DhcpLease {
            addr: host(20).into(),
            mac: None,
            name: name.map(str::to_owned),
            ends: None,
        };
        LanDevices {
            leases: Leases::Known([(lease.addr, lease)].into()),
            ..lan(&[])
        }
    };
    let unreadable = || LanDevices {
        leases: Leases::Unreadable(BTreeMap::new()),
        ..lan(&[])
    };
    let console = || Devices {
        names: vec!["console".to_owned()],
        ..Devices::default()
    };
    for (verdict, default, of_console) in [
        (Verdict::Allow, Verdict::Deny, Ok(vec![])),
        (Verdict::Deny, Verdict::Allow, Err(606)),
    ] {
        let mut world = World::new(1);
        let list = vec![Rule {
            devices: console(),
            ..rule(verdict)
        }];
        reload(&mut world, Rules { list, default });
        world.input(Input::Devices(named(Some("console"))));
        assert_eq!(world.ask(20, add(20, 8080, 3600)), of_console);
        for _ in 0..2 {
            world.input(Input::Devices(unreadable()));
            assert_eq!(world.ask(20, add(20, 8080, 3600)), of_console);
        }
        world.input(Input::Devices(named(None)));
        let of_nobody = world.ask(20, add(20, 8081, 3600));
        assert_eq!(of_nobody.is_ok(), default == Verdict::Allow);
    }
}
