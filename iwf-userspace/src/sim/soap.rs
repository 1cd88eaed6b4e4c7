//! Calls as control points write them, and what they get on a good link.

use super::policy::reasons;
use super::server::maps;
use super::world::{World, host};
use crate::mapping::policy::ThirdParty;
use crate::types::Protocol;
use crate::types::caller::Caller;
use crate::wire::pcp::PcpOption;
use crate::wire::soap::Call;

/// A call of WANIPConnection:2.
pub(super) fn call(action: &str, args: &[(&str, &str)]) -> Call {
    Call {
        service: "WANIPConnection".to_owned(),
        version: 2,
        action: action.to_owned(),
        args: args
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

/// AddPortMapping of TCP `external` to the same port of 192.168.1.`host`.
pub(super) fn add(host: u8, external: u16, lease: u32) -> Call {
    mapping("AddPortMapping", host, external, external, lease, "")
}

/// AddAnyPortMapping of TCP.
pub(super) fn add_any(host: u8, external: u16, internal: u16, lease: u32) -> Call {
    mapping("AddAnyPortMapping", host, external, internal, lease, "")
}

pub(super) fn mapping(
    action: &str,
    host: u8,
    external: u16,
    internal: u16,
    lease: u32,
    remote: &str,
) -> Call {
    call(
        action,
        &[
            ("NewRemoteHost", remote),
            ("NewExternalPort", &external.to_string()),
            ("NewProtocol", "TCP"),
            ("NewInternalPort", &internal.to_string()),
            ("NewInternalClient", &format!("192.168.1.{host}")),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "test"),
            ("NewLeaseDuration", &lease.to_string()),
        ],
    )
}

pub(super) fn delete(external: u16) -> Call {
    call("DeletePortMapping", &key(external))
}

pub(super) fn get_specific(external: u16) -> Call {
    call("GetSpecificPortMappingEntry", &key(external))
}

pub(super) fn get_generic(index: u16) -> Call {
    call(
        "GetGenericPortMappingEntry",
        &[("NewPortMappingIndex", &index.to_string())],
    )
}

pub(super) fn get_address() -> Call {
    call("GetExternalIPAddress", &[])
}

fn key(external: u16) -> [(&'static str, &'static str); 3] {
    [
        ("NewRemoteHost", ""),
        ("NewExternalPort", external.to_string().leak()),
        ("NewProtocol", "TCP"),
    ]
}

pub(super) fn with_protocol(mut call: Call, protocol: &str) -> Call {
    let argument = call.args.iter_mut().find(|(name, _)| name == "NewProtocol");
    protocol.clone_into(&mut argument.expect("a protocol").1);
    call
}

/// IGD-016: a deletion without a protocol is of what is the caller's own there, and of nothing else.
#[test]
fn a_deletion_without_a_protocol_is_of_the_callers_own() {
    let mut world = World::new(11);
    let nameless = with_protocol(delete(8080), "");
    assert_eq!(
        world.ask(20, nameless.clone()),
        Err(601),
        "nothing is there"
    );
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let udp = with_protocol(add(20, 8080, 3600), "UDP");
    assert_eq!(world.ask(20, udp), Ok(vec![]));
    assert_eq!(world.ask(20, add(20, 8081, 3600)), Ok(vec![]));
    assert_eq!(world.ask(21, nameless.clone()), Err(601), "another's");
    let protocols = |world: &World| {
        let at = world.active().into_iter();
        let at = at.filter(|mapping| mapping.nat1.port.get() == 8080);
        at.map(|mapping| mapping.protocol).collect::<Vec<_>>()
    };
    assert_eq!(world.ask(20, nameless.clone()), Ok(vec![]));
    assert_eq!(protocols(&world), [Protocol::Udp]);
    assert_eq!(world.ask(20, nameless.clone()), Ok(vec![]));
    assert_eq!(protocols(&world), []);
    assert_eq!(world.ask(20, nameless), Err(601));
    assert_eq!(world.active().len(), 1, "the other port");
}

#[test]
fn a_mapping_is_made_listed_and_deleted() {
    let mut world = World::new(1);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let made = world.only();
    assert_eq!(made.nat1.port.get(), 8080);
    assert_eq!(
        made.claim.endpoint().map(|e| e.to_string()).as_deref(),
        Some("11.22.33.1:8080")
    );
    assert_eq!(world.kernel.alive(world.now).len(), 1);
    assert_eq!(world.server.alive(world.now).count(), 1);
    assert_eq!(
        world.ask(20, get_generic(0)).expect("own entry"),
        [
            "",
            "8080",
            "TCP",
            "8080",
            "192.168.1.20",
            "1",
            "test",
            "3600"
        ]
    );
    assert_eq!(world.ask(20, get_generic(1)), Err(713));
    assert_eq!(world.ask(21, get_generic(0)), Err(713), "AMB-21");
    assert_eq!(
        world.ask(20, get_specific(8080)).expect("own entry"),
        ["8080", "192.168.1.20", "1", "test", "3600"]
    );
    assert_eq!(world.ask(21, get_specific(8080)), Err(606), "IGD-017");
    assert_eq!(world.ask(21, delete(8080)), Err(606), "IWF-060");
    assert_eq!(world.ask(20, delete(8081)), Err(714), "IWF-061");
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.kernel.observe(), []);
    assert_eq!(world.server.alive(world.now).count(), 0);
    assert!(world.store.records.is_empty());
}

#[test]
fn one_of_two_racing_for_a_port_wins() {
    let mut world = World::new(2);
    world.link.delay = (100, 100);
    let first = world.call(20, add(20, 8080, 3600));
    let second = world.call(21, add(21, 8080, 3600));
    let third = world.call(21, add_any(21, 8080, 8080, 3600));
    assert_eq!(world.wait_for(second), Err(718));
    assert_eq!(world.wait_for(first), Ok(vec![]));
    let other = world.wait_for(third).expect("another port");
    assert_ne!(other, ["8080"]);
    assert_eq!(world.active().len(), 2);
}

#[test]
fn the_same_control_point_overwrites() {
    let mut world = World::new(3);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let before = world.only();
    world.run(100);
    let changed = mapping("AddPortMapping", 20, 8080, 9090, 7200, "");
    assert_eq!(world.ask(20, changed), Ok(vec![]));
    let after = world.only();
    assert_eq!(after.generation, before.generation);
    assert_eq!(after.internal.port.get(), 9090);
    assert_eq!(after.lease_left(world.now), 7200);
    assert_eq!(after.nat1, before.nat1);
    assert_eq!(world.server.alive(world.now).count(), 1);
    assert_eq!(world.server.foreign_nonces, 0);
}

#[test]
fn rules_for_a_port_that_is_held() {
    let mut world = World::new(4);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let remote = "198.51.100.5";
    let other_remote = mapping("AddPortMapping", 20, 8080, 8080, 3600, remote);
    assert_eq!(world.ask(20, other_remote), Err(718));
    assert_eq!(world.ask(21, add(21, 8080, 3600)), Err(718));
    let any = mapping("AddAnyPortMapping", 20, 8080, 8080, 600, "");
    assert_eq!(world.ask(20, any).expect("overwritten"), ["8080"]);
    assert_eq!(world.only().lease_left(world.now), 600);
    // IGD-011: whoever will take any port has the one of its endpoint, another host or another remote host a new one.
    let elsewhere = mapping("AddAnyPortMapping", 20, 9999, 8080, 900, "");
    assert_eq!(world.ask(20, elsewhere).expect("the same"), ["8080"]);
    assert_eq!(world.only().lease_left(world.now), 900);
    let of_another = mapping("AddAnyPortMapping", 21, 8080, 8080, 600, "");
    assert_ne!(world.ask(21, of_another).expect("another"), ["8080"]);
    let for_another = mapping("AddAnyPortMapping", 20, 8080, 8080, 600, remote);
    assert_ne!(world.ask(20, for_another).expect("another"), ["8080"]);
    assert_eq!(world.ask(20, get_generic(1)).expect("own")[0], remote);
    assert_eq!(world.active().len(), 3);
}

/// IGD-010: another external port is another mapping, also for the same internal endpoint.
#[test]
fn one_internal_endpoint_may_have_two_external_ports() {
    let mut world = World::new(4);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    let second = mapping("AddPortMapping", 20, 9090, 8080, 600, "");
    assert_eq!(world.ask(20, second.clone()), Ok(vec![]));
    assert_eq!(world.active().len(), 2);
    assert_eq!(world.kernel.observe().len(), 2);
    assert_eq!(world.server.alive(world.now).count(), 2);
    assert!(world.ask(20, get_specific(8080)).is_ok());
    assert!(world.ask(20, get_specific(9090)).is_ok());
    // Each has its own life.
    assert_eq!(world.ask(20, second), Ok(vec![]), "renewed");
    assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
    assert_eq!(world.only().claim.port.map(|p| p.get()), Some(9090));
    world.run(601);
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.server.alive(world.now).count(), 0);
}

#[test]
fn policy_comes_before_any_datagram() {
    let mut world = World::new(5);
    world.run(1);
    let before = world.sent.len();
    for (call, code) in [
        (add(21, 8080, 3600), 606),
        (mapping("AddPortMapping", 20, 80, 8080, 60, ""), 606),
        (mapping("AddPortMapping", 20, 8080, 80, 60, ""), 606),
        (add(20, 8080, 604_801), 601),
        (mapping("AddPortMapping", 20, 0, 8080, 60, ""), 716),
        (mapping("AddPortMapping", 20, 8080, 0, 60, ""), 732),
        (get_specific(80), 606),
        (delete(80), 606),
    ] {
        assert_eq!(world.ask(20, call.clone()), Err(code), "{call:?}");
    }
    assert_eq!(world.sent.len(), before);
}

/// SEC-06, IGD-030: what can be no host's is refused by policy (606, and 718 where version 1 has no such code), after what
/// is wrong with the call itself and before anything else that stands in the way, whoever may speak for others.
#[test]
fn an_internal_client_that_is_no_host_is_refused_in_its_place() {
    for third_party in [ThirdParty::Refused, ThirdParty::Allowed] {
        let mut settings = World::new(5).settings;
        settings.policy.third_party = third_party;
        settings.limits.per_host = 1;
        let mut world = World::with(5, settings);
        world.run(1);
        // So that its port is taken, and the caller has no room for more.
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
        let before = world.sent.len();
        for client in [
            "255.255.255.255",
            "192.168.1.255",
            "192.168.1.0",
            "0.0.0.0",
            "127.0.0.1",
            "169.254.7.7",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            // The router, on the LAN and on the WAN, and a host of the Internet.
            "192.168.1.1",
            "100.64.0.2",
            "11.22.33.9",
        ] {
            let wish = |changes: &[(&str, &str)]| {
                let mut call = add(20, 9090, 3600);
                for (name, value) in changes.iter().chain(&[("NewInternalClient", client)]) {
                    let mut args = call.args.iter_mut();
                    let arg = args.find(|(own, _)| own == name).expect("an argument");
                    (*value).clone_into(&mut arg.1);
                }
                call
            };
            for (changes, code) in [
                (&[][..], 606),
                // Before: what is wrong with the call.
                (&[("NewProtocol", "ICMP")], 601),
                (&[("NewLeaseDuration", "604801")], 601),
                (&[("NewInternalPort", "0")], 732),
                (&[("NewExternalPort", "0")], 716),
                (&[("NewRemoteHost", "224.0.0.1")], 600),
                // After: 501, 718, 729 and 728 would be said of a host.
                (&[("NewEnabled", "0")], 606),
                (&[("NewExternalPort", "8080")], 606),
                (&[("NewExternalPort", "5351"), ("NewProtocol", "UDP")], 606),
            ] {
                let asked = world.ask(20, wish(changes));
                assert_eq!(asked, Err(code), "{client} {changes:?} {third_party:?}");
            }
            let mut any = wish(&[]);
            "AddAnyPortMapping".clone_into(&mut any.action);
            assert_eq!(world.ask(20, any), Err(606), "{client}");
            let mut version_1 = wish(&[]);
            version_1.version = 1;
            assert_eq!(world.ask(20, version_1), Err(718), "{client}");
        }
        assert_eq!(world.ask(20, add(20, 9090, 3600)), Err(728), "of a host");
        assert_eq!(world.sent.len(), before);
        let why = reasons(&world);
        let no_host = why.iter().filter(|why| why.text.contains("no LAN host's"));
        assert_eq!(no_host.count(), 12 * 6, "it is said why");
    }
}

#[test]
fn version_1_speaks_its_own_codes() {
    let mut world = World::new(6);
    let mut foreign = add(21, 8080, 3600);
    foreign.version = 1;
    assert_eq!(world.ask(20, foreign), Err(718));
    let mut forever = add(20, 8080, 0);
    forever.version = 1;
    assert_eq!(world.ask(20, forever), Ok(vec![]));
    assert_eq!(world.only().lease_left(world.now), 604_800);
}

#[test]
fn quotas_bound_each_host_and_the_table() {
    let mut settings = World::new(7).settings;
    settings.limits.per_host = 2;
    settings.limits.mappings = 3;
    let mut world = World::with(7, settings);
    assert_eq!(world.ask(20, add(20, 2001, 600)), Ok(vec![]));
    assert_eq!(world.ask(20, add(20, 2002, 600)), Ok(vec![]));
    assert_eq!(world.ask(20, add(20, 2003, 600)), Err(728));
    assert_eq!(
        world.ask(21, add(21, 2004, 600)),
        Ok(vec![]),
        "others are served"
    );
    assert_eq!(world.ask(22, add(22, 2005, 600)), Err(728));
    assert_eq!(world.ask(20, delete(2001)), Ok(vec![]));
    assert_eq!(world.ask(22, add(22, 2005, 600)), Ok(vec![]));
}

#[test]
fn the_external_address_is_found_without_a_mapping() {
    let mut world = World::new(8);
    assert_eq!(world.ask(20, get_address()).expect("asked"), ["11.22.33.1"]);
    let asked = world.sent.len();
    assert_eq!(world.ask(21, get_address()).expect("known"), ["11.22.33.1"]);
    assert_eq!(world.sent.len(), asked, "cached");
    world.run(200);
    assert_eq!(world.server.alive(world.now).count(), 0, "nothing is left");
}

/// GUPnP's client asks for both at once, and never says that its port is open if it hears of the port first.
#[test]
fn who_waits_for_the_address_hears_of_it_before_a_mapping_is_confirmed() {
    let mut world = World::new(9);
    world.link.cut = true;
    let address = world.call(20, get_address());
    world.link.cut = false;
    // The question is repeated after seconds only.
    let mapping = world.call(20, add(20, 2001, 600));
    assert_eq!(world.wait_for(mapping), Ok(vec![]));
    assert!(world.replies.contains_key(&address), "told with the grant");
    assert_eq!(world.wait_for(address).expect("known"), ["11.22.33.1"]);
}

#[test]
fn a_server_that_maps_no_low_port_tells_the_address_too() {
    let mut world = World::new(9);
    world.server.min_internal = 1024;
    assert_eq!(world.ask(20, get_address()).expect("asked"), ["11.22.33.1"]);
}

#[test]
fn the_external_address_is_empty_when_nobody_answers() {
    let mut world = World::new(10);
    world.link.cut = true;
    let asked = world.now;
    let id = world.call(20, get_address());
    assert_eq!(world.wait_for(id).expect("empty"), [""]);
    assert!(world.took(id, asked) <= 6);
}

#[test]
fn a_probe_clears_the_way_for_the_mapping() {
    let mut world = World::new(11);
    assert_eq!(world.ask(20, get_specific(8080)), Err(714));
    assert_eq!(world.server.alive(world.now).count(), 1, "probed");
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    assert_eq!(world.server.alive(world.now).count(), 1, "the same mapping");
    assert_eq!(world.server.foreign_nonces, 0);
    let asked: Vec<_> = maps(&world.server.log)
        .into_iter()
        .map(|(_, lifetime, map)| (map.nonce, map.internal_port, lifetime.0))
        .collect();
    let [(nonce, port, 60), (same_nonce, same_port, 3600)] = asked[..] else {
        panic!("a probe, then the mapping, and no deletion: {asked:?}");
    };
    assert_eq!((same_nonce, same_port), (nonce, port));
    assert_eq!(world.ask(20, get_specific(9090)), Err(714));
    world.run(15);
    assert_eq!(
        world.server.alive(world.now).count(),
        1,
        "deleted when unused"
    );
}

#[test]
fn probes_are_few_however_many_are_asked_for() {
    let mut world = World::new(12);
    for port in 2000..3000 {
        assert_eq!(world.ask(20, get_specific(port)), Err(714));
    }
    assert!(world.server.alive(world.now).count() <= 4);
    // Nor does it help to have many addresses: the device is one.
    let mut world = World::new(12);
    for last in 20..40 {
        let id = world.call_from(device_at(last), get_specific(2000 + u16::from(last)));
        assert_eq!(world.wait_for(id), Err(714));
    }
    assert!(world.server.alive(world.now).count() <= 4);
}

/// One device, at an address that differs.
fn device_at(last: u8) -> Caller {
    Caller {
        mac: Some([2, 0, 0x5e, 0x10, 0, 1]),
        ..host(last).into()
    }
}

#[test]
fn one_device_has_one_pace_however_many_addresses_it_has() {
    let mut settings = World::new(14).settings;
    settings.limits.per_host = 200;
    let mut world = World::with(14, settings);
    let mut granted = |ports: std::ops::Range<u16>| {
        let calls: Vec<_> = ports
            .zip([20, 21, 22, 23].into_iter().cycle())
            .map(|(port, host)| world.call_from(device_at(host), add(host, port, 600)))
            .collect();
        let answers = calls.into_iter().map(|call| world.wait_for(call));
        let granted = answers.filter(Result::is_ok).count();
        world.run(13);
        granted
    };
    assert_eq!(granted(3000..3500), 200, "as many at once as one may have");
    assert_eq!(granted(3500..4000), 200, "and again when that is earned");
}

#[test]
fn add_port_mapping_over_add_any_insists_on_the_port() {
    let mut world = World::new(13);
    let port = world.ask(20, add_any(20, 8080, 8080, 3600));
    assert_eq!(port, Ok(vec!["8080".to_owned()]));
    // The server has forgotten it, and somebody else has the port now.
    world.server.mappings.clear();
    world.server.taken.push((Protocol::Tcp, 8080));
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Err(718));
    world.run(2);
    assert_eq!(world.active().len(), 0);
    assert_eq!(world.kernel.observe(), []);
    let last = world.server.log.last().expect("asked");
    assert_eq!(last.1.options, [PcpOption::PreferFailure]);
}

#[test]
fn a_call_that_has_waited_until_its_deadline_begins_nothing() {
    let mut world = World::new(14);
    world.run(1);
    world.link.cut = true;
    let first = world.call(20, add(20, 8080, 3600));
    let second = world.call(20, add(20, 8080, 7200));
    world.run(28);
    assert_eq!(world.wait_for(first), Err(501));
    assert_eq!(world.wait_for(second), Err(501));
    assert_eq!(world.iwf.mappings().count(), 0);
}

#[test]
fn a_call_waits_for_the_one_before_it() {
    let mut world = World::new(15);
    world.link.delay = (100, 100);
    let made = world.call(20, add(20, 8080, 3600));
    let read = world.call(20, get_specific(8080));
    let deleted = world.call(20, delete(8080));
    assert_eq!(world.wait_for(made), Ok(vec![]));
    assert!(world.wait_for(read).is_ok());
    assert_eq!(world.wait_for(deleted), Ok(vec![]));
    world.run(1);
    assert_eq!(world.server.alive(world.now).count(), 0);
}

#[test]
fn a_deleted_tuple_that_the_server_keeps_is_taken_again_with_its_nonce() {
    let mut world = World::new(16);
    world.server.quarantine = 90;
    for _ in 0..3 {
        assert_eq!(world.ask(20, get_specific(8080)), Err(714));
        assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]), "IWF-067");
        assert_eq!(world.ask(20, delete(8080)), Ok(vec![]));
        world.run(60);
    }
    assert_eq!(world.server.foreign_nonces, 0);
}
