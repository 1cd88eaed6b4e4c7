//! Pinholes that control points ask for (requirements FW6).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::policy::reasons;
use super::world::{INTERFACE, World};
use crate::iwf::pinholes::{Ending, Lan6};
use crate::iwf::policy::Why;
use crate::iwf::{EffectError, Input, Notice, Settings};
use crate::mapping::policy::ThirdParty;
use crate::proto::firewall::{Firewall, SERVICE};
use crate::proto::protection;
use crate::types::access::{Channel, ControlPointId, Identity, Roles, Who};
use crate::types::caller::Caller;
use crate::wire::description::DeviceUuid;
use crate::wire::soap::Call;

const PREFIX: Ipv6Addr = Ipv6Addr::new(0x2a0b, 1, 2, 3, 0, 0, 0, 0);

pub(super) fn host(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2a0b, 1, 2, 3, 0, 0, 0, last)
}

fn lan6() -> Lan6 {
    Lan6 {
        prefixes: vec![(PREFIX, 64)],
        own: BTreeSet::from([host(1)]),
        interfaces: BTreeMap::from([((PREFIX, 64), INTERFACE)]),
    }
}

fn world_with(firewall: Firewall) -> World {
    let mut world = World::with(
        1,
        Settings {
            firewall,
            ..Settings::default()
        },
    );
    world.lan6 = Some(lan6());
    world.input(Input::Lan6(lan6()));
    world
}

pub(super) fn world() -> World {
    world_with(Firewall::default())
}

fn call(action: &str, args: &[(&str, &str)]) -> Call {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Call {
        service: SERVICE.to_owned(),
        version: 1,
        action: action.to_owned(),
        args: args.iter().map(owned).collect(),
    }
}

pub(super) fn add(internal: Ipv6Addr, port: u16, lease: u32) -> Call {
    call(
        "AddPinhole",
        &[
            ("RemoteHost", ""),
            ("RemotePort", "0"),
            ("InternalClient", &internal.to_string()),
            ("InternalPort", &port.to_string()),
            ("Protocol", "6"),
            ("LeaseTime", &lease.to_string()),
        ],
    )
}

fn of_id(action: &str, id: &str) -> Call {
    call(action, &[("UniqueID", id)])
}

fn update(id: &str, lease: u32) -> Call {
    let lease = lease.to_string();
    call(
        "UpdatePinhole",
        &[("UniqueID", id), ("NewLeaseTime", &lease)],
    )
}

fn from(last: u16) -> Caller {
    IpAddr::V6(host(last)).into()
}

impl World {
    fn ask_from(&mut self, caller: impl Into<Caller>, call: Call) -> Result<Vec<String>, u16> {
        let id = self.call_from(caller.into(), call);
        self.wait_for(id)
    }

    fn open(&mut self, last: u16, port: u16, lease: u32) -> String {
        let out = self.ask_from(from(last), add(host(last), port, lease));
        out.expect("a pinhole").pop().expect("its id")
    }
}

#[test]
fn a_pinhole_is_stored_and_in_the_kernel_before_the_answer_and_ends_when_it_should() {
    let mut world = world();
    let id = world.open(0x10, 8080, 600);
    assert_eq!(id, "1");
    assert_eq!(world.store.pinholes.len(), 1);
    let opened = world.kernel.pinholes[0];
    assert_eq!(
        (opened.internal, opened.internal_port),
        (host(0x10), Some(8080))
    );
    assert_eq!(opened.expires, Some(world.now + Duration::from_secs(600)));
    world.run(599);
    assert_eq!(world.kernel.pinholes.len(), 1);
    world.run(1);
    assert_eq!(world.kernel.pinholes, []);
    assert!(world.store.pinholes.is_empty());
    let gone = Notice::PinholeClosed(opened, Ending::Expired);
    assert!(world.notices.contains(&gone));
    assert_eq!(
        world.ask_from(from(0x10), of_id("DeletePinhole", &id)),
        Err(704)
    );
    // Its id is not used again for a long time.
    assert_eq!(world.open(0x10, 8080, 600), "2");
}

/// As js-libp2p does.
#[test]
fn a_pinhole_may_be_asked_of_the_connection_service_of_version_2() {
    let mut world = world();
    let of_connection = |call: Call, version| Call {
        service: "WANIPConnection".to_owned(),
        version,
        ..call
    };
    let mut add = add(host(0x10), 4001, 3600);
    for (name, value) in &mut add.args {
        if name == "RemotePort" {
            value.clear();
        }
    }
    let ask = of_connection(add.clone(), 1);
    assert_eq!(world.ask_from(from(0x10), ask), Err(401), "version 1");
    let out = world.ask_from(from(0x10), of_connection(add, 2));
    let id = out.expect("a pinhole").pop().expect("its id");
    assert_eq!(world.kernel.pinholes[0].remote_port, None);
    let foreign = of_connection(of_id("DeletePinhole", &id), 2);
    assert_eq!(world.ask_from(from(0x11), foreign.clone()), Err(606));
    let extended = of_connection(update(&id, 7200), 2);
    assert_eq!(world.ask_from(from(0x10), extended), Ok(vec![]));
    assert_eq!(world.ask_from(from(0x10), foreign), Ok(vec![]));
    assert_eq!(world.kernel.pinholes, []);
}

/// IWF-006: it is a hole in this firewall, and in no other.
#[test]
fn no_server_hears_of_a_pinhole() {
    let mut world = world();
    world.run(60);
    let sent = world.sent.len();
    assert!(sent > 0, "there is a server, which was greeted");
    let id = world.open(0x10, 8080, 600);
    assert_eq!(world.ask_from(from(0x10), update(&id, 1200)), Ok(vec![]));
    world.run(1000);
    let deleted = world.ask_from(from(0x10), of_id("DeletePinhole", &id));
    assert_eq!(deleted, Ok(vec![]));
    world.run(60);
    assert_eq!(world.sent.len(), sent);
}

#[test]
fn the_same_five_values_extend_the_lease_under_the_same_id() {
    let mut world = world();
    let id = world.open(0x10, 8080, 600);
    world.run(500);
    assert_eq!(world.open(0x10, 8080, 3600), id);
    world.run(3500);
    assert_eq!(world.ask_from(from(0x10), update(&id, 200)), Ok(vec![]));
    world.run(150);
    assert_eq!(world.kernel.pinholes.len(), 1);
    // Another lease may be a shorter one.
    assert_eq!(world.open(0x10, 8080, 10), id);
    world.run(10);
    assert_eq!(world.kernel.pinholes, []);
    assert_ne!(world.open(0x10, 8081, 600), id);
}

#[test]
fn calls_that_come_together_are_done_one_after_the_other() {
    let mut world = world();
    let first = world.call_from(from(0x10), add(host(0x10), 8080, 600));
    let second = world.call_from(from(0x10), add(host(0x10), 8080, 700));
    assert_eq!(world.wait_for(first), Ok(vec!["1".to_owned()]));
    assert_eq!(world.wait_for(second), Ok(vec!["1".to_owned()]));
    assert_eq!(world.store.pinholes.len(), 1);
}

/// DeviceProtection: who has a role opens and closes for others.
#[test]
fn a_caller_with_a_role_is_for_every_host_of_the_lan() {
    let mut world = world();
    let id = ControlPointId::from_hash(&[1; 32]);
    let protection = protection::Settings {
        uuid: DeviceUuid::from_octets([1; 16]),
        certificate: id,
    };
    world.settings.protection = Some(protection);
    let who = Who::ControlPoint(id);
    let identity = Identity {
        who: who.clone(),
        name: "phone".to_owned(),
        alias: None,
        introduced: true,
        roles: Roles::BASIC,
        verifier: None,
    };
    world.store.identities.insert(who, identity);
    world.down_for(Duration::from_secs(1));
    world.run(1);
    let caller = |control_point| Caller {
        channel: Channel::Secure {
            connection: 1,
            control_point,
        },
        ..from(0x10)
    };
    assert_eq!(
        world.ask_from(caller(None), add(host(0x11), 22, 600)),
        Err(606)
    );
    let opened = world.ask_from(caller(Some(id)), add(host(0x11), 22, 600));
    let opened = opened.expect("a pinhole").pop().expect("its id");
    // This machine is no host of the LAN.
    let own = world.ask_from(caller(Some(id)), add(host(1), 22, 600));
    assert_eq!(own, Err(606));
    let theirs = world.open(0x11, 8080, 600);
    for id_of in [opened, theirs] {
        let close = of_id("DeletePinhole", &id_of);
        assert_eq!(world.ask_from(caller(None), close.clone()), Err(606));
        assert_eq!(world.ask_from(caller(Some(id)), close), Ok(vec![]));
    }
}

#[test]
fn a_caller_is_for_itself_and_known_by_every_address_of_its_own() {
    let mut world = world();
    for (caller, internal, port, expected) in [
        (0x10, host(0x11), 8080, 606),
        (0x10, host(0x10), 1023, 606),
        (
            0x10,
            Ipv6Addr::new(0x2a0b, 1, 2, 4, 0, 0, 0, 0x10),
            8080,
            606,
        ),
        (1, host(1), 8080, 606),
        (0x10, host(0x10), 0, 706),
    ] {
        let refused = world.ask_from(from(caller), add(internal, port, 600));
        assert_eq!(refused, Err(expected), "{caller:x} for {internal}:{port}");
    }
    // By its link-local address, and over IPv4: only if the neighbour tables say so.
    let link_local: IpAddr = "fe80::10".parse().expect("an address");
    let unknown = Caller::from(link_local);
    assert_eq!(
        world.ask_from(unknown.clone(), add(host(0x10), 8080, 600)),
        Err(606)
    );
    let mac = Some([2, 0, 0, 0, 0, 0x10]);
    let tied = Caller {
        mac,
        others: vec![host(0x10).into(), [192, 168, 1, 16].into()],
        ..unknown.clone()
    };
    let id = world.ask_from(tied.clone(), add(host(0x10), 8080, 600));
    let id = id.expect("its own").pop().expect("an id");
    let by_v4 = Caller {
        mac,
        ..Ipv4Addr::new(192, 168, 1, 16).into()
    };
    assert_eq!(
        world.ask_from(by_v4, update(&id, 700)),
        Ok(vec![]),
        "by its MAC address"
    );
    for action in ["GetPinholePackets", "CheckPinholeWorking", "DeletePinhole"] {
        for stranger in [from(0x11), unknown.clone()] {
            assert_eq!(
                world.ask_from(stranger, of_id(action, &id)),
                Err(606),
                "{action}"
            );
        }
    }
    assert_eq!(world.ask_from(from(0x11), update(&id, 700)), Err(606));
    assert_eq!(
        world.ask_from(from(0x10), of_id("DeletePinhole", &id)),
        Ok(vec![])
    );
    assert_eq!(world.kernel.pinholes, []);
}

#[test]
fn the_owner_may_let_hosts_ask_for_others_but_not_for_the_gateway() {
    let mut settings = Settings::default();
    settings.policy.third_party = ThirdParty::Allowed;
    let mut world = World::with(1, settings);
    world.input(Input::Lan6(lan6()));
    assert!(
        world
            .ask_from(from(0x10), add(host(0x11), 8080, 600))
            .is_ok()
    );
    assert_eq!(
        world.ask_from(from(0x10), add(host(1), 8080, 600)),
        Err(606)
    );
}

/// SEC-05: guests have a part of the prefix of their own, on a link of their own.
#[test]
fn nobody_acts_for_hosts_of_another_link() {
    const GUESTS: u32 = 7;
    let guest = |last| Ipv6Addr::new(0x2a0b, 1, 2, 3, 0x8000, 0, 0, last);
    let network = Ipv6Addr::new(0x2a0b, 1, 2, 3, 0x8000, 0, 0, 0);
    let mut lan = lan6();
    lan.interfaces.insert((network, 65), GUESTS);
    let mut settings = Settings::default();
    settings.policy.third_party = ThirdParty::Allowed;
    let mut world = World::with(1, settings);
    world.input(Input::Lan6(lan));
    let by = |addr: Ipv6Addr, link, mac| Caller {
        link,
        mac,
        ..IpAddr::V6(addr).into()
    };
    let mac = Some([2, 0, 0, 0, 0, 1]);
    let at_home = by(host(0x10), Some(INTERFACE), mac);
    let visiting = by(guest(0x10), Some(GUESTS), None);
    let id = world.ask_from(at_home, add(host(0x10), 8080, 600));
    let id = id.expect("a pinhole").pop().expect("its id");
    for (caller, client, expected) in [
        (&visiting, guest(0x11), Ok(())),
        (&visiting, host(0x10), Err(606)),
        (&visiting, host(0x11), Err(606)),
        // Where it is not known on which link somebody calls, it is for itself only.
        (&by(guest(0x12), Some(99), None), guest(0x11), Err(606)),
    ] {
        let asked = world.ask_from(caller.clone(), add(client, 8081, 600));
        assert_eq!(asked.map(drop), expected, "{caller:?} for {client}");
    }
    let why = reasons(&world);
    let is_said = |why: &Why| why.text.contains("another LAN");
    assert!(why.len() == 3 && why.iter().all(is_said), "{why:?}");
    // Nor does the MAC address of a host at home make a guest that host.
    let posing = by(guest(0x13), Some(GUESTS), mac);
    for caller in [visiting, posing] {
        assert_eq!(
            world.ask_from(caller, of_id("DeletePinhole", &id)),
            Err(606)
        );
    }
    let other = by(host(0x12), Some(INTERFACE), None);
    assert_eq!(
        world.ask_from(other, of_id("DeletePinhole", &id)),
        Ok(vec![])
    );
}

#[test]
fn packets_are_counted_and_none_is_an_error_of_the_check_only() {
    let mut world = world();
    let id = world.open(0x10, 8080, 600);
    let packets = |world: &mut World| world.ask_from(from(0x10), of_id("GetPinholePackets", &id));
    assert_eq!(packets(&mut world), Ok(vec!["0".to_owned()]));
    let working = of_id("CheckPinholeWorking", &id);
    assert_eq!(world.ask_from(from(0x10), working.clone()), Err(709));
    world.pinhole_packets.insert(1, (1 << 32) + 7);
    assert_eq!(packets(&mut world), Ok(vec!["7".to_owned()]));
    assert_eq!(
        world.ask_from(from(0x10), working),
        Ok(vec!["1".to_owned()])
    );
}

/// FW6-007.
#[test]
fn the_upstream_has_no_part_in_it() {
    let mut world = world();
    let asked = world.sent.len();
    let id = world.open(0x10, 8080, 600);
    assert_eq!(world.ask_from(from(0x10), update(&id, 700)), Ok(vec![]));
    assert_eq!(
        world.ask_from(from(0x10), of_id("DeletePinhole", &id)),
        Ok(vec![])
    );
    assert_eq!(world.sent.len(), asked);
    // And without a WAN it goes as well.
    world.set_wan(None);
    world.open(0x10, 8080, 600);
}

#[test]
fn the_owners_switches_are_told_and_hold() {
    for (enabled, pinholes, code) in [(false, true, 702), (true, false, 703)] {
        let mut world = world_with(Firewall {
            enabled,
            pinholes,
            ..Firewall::default()
        });
        let flag = |on| if on { "1" } else { "0" }.to_owned();
        assert_eq!(
            world.ask_from(from(0x10), call("GetFirewallStatus", &[])),
            Ok(vec![flag(enabled), flag(pinholes)])
        );
        assert_eq!(
            world.ask_from(from(0x10), add(host(0x10), 8080, 600)),
            Err(code)
        );
        for action in ["DeletePinhole", "GetPinholePackets", "CheckPinholeWorking"] {
            assert_eq!(world.ask_from(from(0x10), of_id(action, "1")), Err(code));
        }
        assert_eq!(world.ask_from(from(0x10), update("1", 600)), Err(code));
        let query = |name| {
            let mut query = call("QueryStateVariable", &[("varName", name)]);
            query.version = 1;
            query
        };
        for (name, value) in [
            ("FirewallEnabled", enabled),
            ("InboundPinholeAllowed", pinholes),
        ] {
            let answer = world.ask_from(from(0x10), query(name));
            assert_eq!(answer, Ok(vec![flag(value)]));
        }
    }
}

#[test]
fn one_host_has_its_share_only() {
    let mut world = world_with(Firewall {
        per_host: 3,
        ..Firewall::default()
    });
    for port in 8080..8083 {
        world.open(0x10, port, 600);
    }
    assert_eq!(
        world.ask_from(from(0x10), add(host(0x10), 9000, 600)),
        Err(701)
    );
    // What is there may be extended, and another host has its own share.
    world.open(0x10, 8080, 700);
    world.open(0x11, 8080, 600);
}

#[test]
fn pinholes_survive_a_restart_with_what_is_left_of_their_lease() {
    let mut world = world();
    let id = world.open(0x10, 8080, 600);
    world.open(0x11, 8080, 30);
    let ends = world.kernel.pinholes[0].expires;
    world.down_for(Duration::from_secs(100));
    assert_eq!(world.kernel.pinholes.len(), 1, "the other is over");
    assert_eq!(world.kernel.pinholes[0].expires, ends);
    assert_eq!(world.store.pinholes.len(), 1);
    // Ids go on, and so does who may.
    assert_eq!(world.open(0x12, 8080, 600), "3");
    assert_eq!(
        world.ask_from(from(0x10), of_id("DeletePinhole", &id)),
        Ok(vec![])
    );
    // Power cut: the kernel has forgotten, the store has not.
    world.power_cut(Duration::from_secs(60), true);
    assert_eq!(world.kernel.pinholes.len(), 1);
    world.run(540);
    assert_eq!(world.kernel.pinholes, []);
}

#[test]
fn a_clock_that_is_not_set_makes_no_lease_longer_than_any_is() {
    let mut world = world();
    world.open(0x10, 8080, 600);
    world.power_cut(Duration::from_secs(60), false);
    assert_eq!(world.kernel.pinholes.len(), 1);
    world.run(86_400);
    assert_eq!(world.kernel.pinholes, []);
    assert!(world.store.pinholes.is_empty());
}

#[test]
fn a_pinhole_ends_with_its_prefix_and_is_closed_at_once() {
    let mut world = world();
    let id = world.open(0x10, 8080, 6000);
    world.input(Input::Lan6(Lan6::default()));
    assert_eq!(world.kernel.pinholes, [], "closed at once");
    // An interface that is taken down and up again is no renumbering.
    world.run(30);
    world.input(Input::Lan6(lan6()));
    assert_eq!(world.kernel.pinholes.len(), 1);
    let other = Lan6 {
        prefixes: vec![(Ipv6Addr::new(0x2a0b, 1, 2, 9, 0, 0, 0, 0), 64)],
        ..lan6()
    };
    world.input(Input::Lan6(other));
    world.run(60);
    assert!(world.store.pinholes.is_empty());
    let gone = |notice: &Notice| matches!(notice, Notice::PinholeClosed(_, Ending::PrefixGone));
    assert_eq!(world.notices.iter().filter(|n| gone(n)).count(), 1);
    world.input(Input::Lan6(lan6()));
    assert_eq!(world.kernel.pinholes, []);
    assert_eq!(
        world.ask_from(from(0x10), of_id("DeletePinhole", &id)),
        Err(704)
    );
}

#[test]
fn what_fails_is_undone_and_answered_with_its_error() {
    for (error, code) in [(EffectError::Full, 701), (EffectError::Failed, 501)] {
        let mut world = world();
        let next = world.kernel.next_call();
        world.kernel.faults.insert(next, error);
        assert_eq!(
            world.ask_from(from(0x10), add(host(0x10), 8080, 600)),
            Err(code)
        );
        world.run(60);
        assert!(world.store.pinholes.is_empty() && world.kernel.pinholes.is_empty());
    }
    // A store that says it failed may have stored.
    let mut world = world();
    world.store.stores_what_fails = true;
    let next = world.store.next_call();
    world.store.faults.insert(next, EffectError::Failed);
    assert_eq!(
        world.ask_from(from(0x10), add(host(0x10), 8080, 600)),
        Err(501)
    );
    world.run(60);
    assert!(world.store.pinholes.is_empty() && world.kernel.pinholes.is_empty());
    // What is there stays as it was.
    let id = world.open(0x10, 8080, 600);
    let before = world.kernel.pinholes.clone();
    for call in [update(&id, 6000), of_id("DeletePinhole", &id)] {
        let next = world.store.next_call();
        world.store.faults.insert(next, EffectError::Failed);
        assert_eq!(world.ask_from(from(0x10), call.clone()), Err(501));
        assert_eq!(world.kernel.pinholes, before, "{call:?}");
        let next = world.kernel.next_call();
        world.kernel.faults.insert(next, EffectError::Failed);
        assert_eq!(world.ask_from(from(0x10), call.clone()), Err(501));
        assert_eq!(world.kernel.pinholes, before, "{call:?}");
        world.run(10);
        assert_eq!(world.store.pinholes.len(), 1, "{call:?}");
    }
    world.run(600);
    assert_eq!(world.kernel.pinholes, [], "the old lease held");
}

#[test]
fn a_crash_between_any_two_effects_leaves_no_pinhole_that_nobody_remembers() {
    for effects in 0..6 {
        let mut world = world();
        world.crash_after = Some(effects);
        world.call_from(from(0x10), add(host(0x10), 8080, 600));
        world.run(1);
        // The simulation compares kernel and table after each step; the store is as long.
        assert_eq!(world.kernel.pinholes.len(), world.store.pinholes.len());
        world.run(600);
        assert!(world.kernel.pinholes.is_empty() && world.store.pinholes.is_empty());
    }
}
