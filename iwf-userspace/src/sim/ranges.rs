//! Actions on ranges, and what control points see of the table as a whole.

use std::time::Duration;

use super::soap::{add, call, delete, get_generic, get_specific, mapping};
use super::world::World;
use crate::iwf::ModeSetting;
use crate::mapping::StaticMapping;
use crate::mapping::policy::ThirdParty;
use crate::proto::protection;
use crate::types::{ExternalPort, InternalEndpoint, InternalPort, Protocol, RemotePeer};
use crate::wire::pcp::{Body, Request};
use crate::wire::scpd::{self, Service};
use crate::wire::services;
use crate::wire::soap::Call;

fn ranged(action: &str, first: u16, last: u16, manage: &str) -> Call {
    let (first, last) = (first.to_string(), last.to_string());
    call(
        action,
        &[
            ("NewStartPort", &first),
            ("NewEndPort", &last),
            ("NewProtocol", "TCP"),
            ("NewManage", manage),
        ],
    )
}

fn delete_range(first: u16, last: u16) -> Call {
    ranged("DeletePortMappingRange", first, last, "0")
}

fn list(first: u16, last: u16, number: u16) -> Call {
    let mut call = ranged("GetListOfPortMappings", first, last, "0");
    call.args
        .push(("NewNumberOfPorts".to_owned(), number.to_string()));
    call
}

fn managing(mut call: Call) -> Call {
    for (name, value) in &mut call.args {
        if name == "NewManage" {
            "1".clone_into(value);
        }
    }
    call
}

fn with(mut call: Call, name: &str, value: &str) -> Call {
    let argument = call.args.iter_mut().find(|(n, _)| n == name);
    value.clone_into(&mut argument.expect("an argument of that name").1);
    call
}

fn query(world: &mut World, variable: &str) -> String {
    let call = call("QueryStateVariable", &[("varName", variable)]);
    world.ask(20, call).expect("a variable").remove(0)
}

/// The ports of a listing, in its order.
fn ports(listing: &str) -> Vec<u16> {
    let after = listing.split("<p:NewExternalPort>").skip(1);
    after
        .map(|rest| {
            let (port, _) = rest.split_once('<').expect("an end tag");
            port.parse().expect("a port")
        })
        .collect()
}

/// The internal ports of the deletions that the server was sent so far.
fn deletions(world: &World) -> Vec<u16> {
    let of = |request: &Request| {
        let Body::Map(body) = &request.body else {
            return None;
        };
        let port = body.internal_port.map(InternalPort::get);
        port.filter(|_| request.lifetime.0 == 0)
    };
    let sent = world.sent.iter().filter_map(|(_, request)| of(request));
    let mut ports: Vec<u16> = sent.collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn world(seed: u64) -> World {
    let mut world = World::new(seed);
    for port in [2001, 2002, 2003, 2004, 2005] {
        assert_eq!(world.ask(20, add(20, port, 3600)), Ok(vec![]));
    }
    assert_eq!(world.ask(21, add(21, 2010, 3600)), Ok(vec![]));
    world.run(1);
    world
}

/// IWF-065, IGD-020, IGD-023: 2 of 5 in the range are exactly 2 deletions, and one step.
#[test]
fn a_range_is_removed_in_one_step_and_each_mapping_at_the_server() {
    let mut world = world(1);
    let id: u32 = query(&mut world, "SystemUpdateID").parse().expect("number");
    assert_eq!(query(&mut world, "PortMappingNumberOfEntries"), "6");
    assert_eq!(world.ask(20, delete_range(2002, 2003)), Ok(vec![]));
    world.run(1);
    assert_eq!(deletions(&world), [2002, 2003]);
    let after: u32 = query(&mut world, "SystemUpdateID").parse().expect("number");
    assert_eq!(after, id + 1);
    assert_eq!(query(&mut world, "PortMappingNumberOfEntries"), "4");
    let left: Vec<u16> = world.active().iter().map(|m| m.nat1.port.get()).collect();
    assert_eq!(left, [2001, 2004, 2005, 2010]);
    assert_eq!(world.kernel.observe().len(), 4);
    assert_eq!(world.store.records.len(), 4);
}

/// AMB-12, IWF-066: the answer does not wait for the server, and the server hears all the same.
#[test]
fn a_range_is_gone_here_at_once_and_at_the_server_when_it_can_be_reached() {
    let mut world = world(2);
    world.link.cut = true;
    let asked = world.now;
    let id = world.call(20, delete_range(2000, 2100));
    assert_eq!(world.wait_for(id), Ok(vec![]));
    assert_eq!(world.took(id, asked), 0);
    assert_eq!(world.active().len(), 1, "only the neighbour's is left");
    assert_eq!(world.kernel.observe().len(), 1);
    assert_eq!(world.server.alive(world.now).count(), 6);
    world.run(30);
    world.link.cut = false;
    world.run(300);
    assert_eq!(world.server.alive(world.now).count(), 1);
}

/// AMB-12: a port that the server may still hold is its owner's to have again, with the nonce that the server knows,
/// and nobody else gets it meanwhile.
#[test]
fn a_port_of_a_removed_range_waits_for_the_server() {
    let mut world = world(3);
    world.link.delay = (2000, 2000);
    assert_eq!(world.ask(20, delete_range(2000, 2100)), Ok(vec![]));
    let taken = world.ask(21, add(21, 2001, 3600));
    assert!(matches!(taken, Ok(_) | Err(718)), "{taken:?}");
    assert_eq!(world.ask(20, add(20, 2002, 3600)), Ok(vec![]));
    world.run(20);
    let server = world.server.alive(world.now).count();
    assert_eq!(
        server,
        world.active().len(),
        "nothing more and nothing less"
    );
}

/// IGD-020, IGD-021, IGD-022, IWF-061: 733 before 606 before 730, and none of it reaches the server.
#[test]
fn ranges_are_checked_in_the_order_of_the_standard() {
    let mut world = world(4);
    let before = world.sent.len();
    for of in [delete_range, |first, last| list(first, last, 0)] {
        for (first, last, code) in [
            (2003, 2002, 733),
            (80, 79, 733),
            (80, 2002, 606),
            (1023, 65_535, 606),
            (3000, 4000, 730),
            (2010, 2010, 730),
        ] {
            let call = of(first, last);
            let told = format!("{} {first} to {last}", call.action);
            assert_eq!(world.ask(20, call), Err(code), "{told}");
        }
        let icmp = with(of(2003, 2002), "NewProtocol", "ICMP");
        assert_eq!(world.ask(20, icmp), Err(601));
        let udp = with(of(2000, 2100), "NewProtocol", "UDP");
        assert_eq!(world.ask(20, udp), Err(730));
        let mut version_1 = of(2000, 2100);
        version_1.version = 1;
        assert_eq!(world.ask(20, version_1), Err(401));
    }
    assert_eq!(world.sent.len(), before);
    assert_eq!(world.active().len(), 6);
}

/// IGD-035: NewManage asks for more; who may not have it gets its own all the same.
#[test]
fn managing_takes_authorisation() {
    let mut world = world(5);
    let listed = world.ask(21, managing(list(1024, 65_535, 0))).expect("own");
    assert_eq!(ports(&listed[0]), [2010]);
    let all = managing(delete_range(1024, 65_535));
    assert_eq!(world.ask(21, all), Ok(vec![]));
    assert_eq!(world.active().len(), 5);

    let mut settings = World::new(5).settings;
    settings.policy.third_party = ThirdParty::Allowed;
    let mut world = World::with(5, settings);
    for (host, port) in [(20, 2005), (21, 2001), (22, 2003)] {
        assert_eq!(world.ask(20, add(host, port, 3600)), Ok(vec![]));
    }
    let own = world.ask(20, list(1024, 65_535, 0)).expect("own");
    assert_eq!(ports(&own[0]), [2005], "without NewManage only its own");
    let all = world.ask(20, managing(list(1024, 65_535, 0)));
    assert_eq!(ports(&all.expect("all")[0]), [2001, 2003, 2005]);
    assert_eq!(world.ask(20, delete_range(2000, 2004)), Err(730));
    let others = managing(delete_range(2000, 2004));
    assert_eq!(world.ask(20, others), Ok(vec![]));
    assert_eq!(world.only().claim.port.map(ExternalPort::get), Some(2005));
}

/// IGD-022, AMB-23: at most as many as asked for, from the first port on, own ones only; 0 means all.
#[test]
fn a_list_has_its_limit_and_own_entries_only() {
    let mut world = world(6);
    let before = world.sent.len();
    for (number, listed) in [
        (0, vec![2001, 2002, 2003, 2004, 2005]),
        (2, vec![2001, 2002]),
        (9, vec![2001, 2002, 2003, 2004, 2005]),
    ] {
        let answer = world.ask(20, list(1024, 65_535, number)).expect("a list");
        assert_eq!(ports(&answer[0]), listed);
        assert!(answer[0].starts_with("<p:PortMappingList xmlns:p="));
    }
    let some = world.ask(20, list(2002, 2004, 0)).expect("a list");
    for from_the_beginning in [0, 1] {
        let all = world.ask(20, list(from_the_beginning, 65_535, 0));
        assert_eq!(ports(&all.expect("a list")[0]).len(), 5);
        assert_eq!(world.ask(20, list(from_the_beginning, 1023, 0)), Err(606));
    }
    assert_eq!(ports(&some[0]), [2002, 2003, 2004]);
    assert_eq!(world.ask(22, list(1024, 65_535, 0)), Err(730));
    let remote = mapping("AddPortMapping", 20, 2020, 80 + 2000, 600, "198.51.100.5");
    assert_eq!(world.ask(20, remote), Ok(vec![]));
    let before = before + 1;
    let one = world.ask(20, list(2020, 2020, 0)).expect("a list");
    let entry = "<p:NewRemoteHost>198.51.100.5</p:NewRemoteHost>\
        <p:NewExternalPort>2020</p:NewExternalPort><p:NewProtocol>TCP</p:NewProtocol>\
        <p:NewInternalPort>2080</p:NewInternalPort>\
        <p:NewInternalClient>192.168.1.20</p:NewInternalClient><p:NewEnabled>1</p:NewEnabled>\
        <p:NewDescription>test</p:NewDescription><p:NewLeaseTime>600</p:NewLeaseTime>";
    assert!(one[0].contains(entry), "{}", one[0]);
    assert_eq!(world.sent.len(), before, "IWF-050");
    // In the order of their ports, so that whoever lists some at a time goes on behind the last.
    assert_eq!(world.ask(20, add(20, 2000, 3600)), Ok(vec![]));
    let some = world.ask(20, list(1024, 65_535, 2)).expect("a list");
    assert_eq!(ports(&some[0]), [2000, 2001]);
}

/// IGD-020: what may not be deleted is left out.
#[test]
fn a_range_leaves_what_the_configuration_states() {
    let mut world = World::new(7);
    world.state(&[StaticMapping {
        protocol: Protocol::Tcp,
        external: ExternalPort::new(2002).expect("not 0"),
        internal: InternalEndpoint {
            addr: "192.168.1.20".parse().expect("address"),
            port: InternalPort::new(2002).expect("not 0"),
        },
        remote: RemotePeer::Any,
        description: "stated".to_owned(),
    }]);
    world.run(5);
    assert_eq!(world.ask(20, add(20, 2001, 3600)), Ok(vec![]));
    let listed = world.ask(20, list(2000, 2100, 0)).expect("both");
    assert_eq!(ports(&listed[0]), [2001, 2002]);
    assert_eq!(world.ask(20, delete_range(2000, 2100)), Ok(vec![]));
    assert_eq!(world.only().claim.port.map(ExternalPort::get), Some(2002));
    assert_eq!(world.ask(20, delete_range(2000, 2100)), Err(730));
}

/// All or none: what is being overwritten goes with the others.
#[test]
fn a_range_waits_for_a_change_that_is_under_way() {
    let mut world = world(8);
    world.link.delay = (100, 100);
    let changed = mapping("AddPortMapping", 20, 2003, 9090, 7200, "");
    let overwritten = world.call(20, changed);
    let removed = world.call(20, delete_range(2000, 2100));
    assert!(!world.replies.contains_key(&removed));
    assert_eq!(world.active().len(), 6, "none is gone before the other");
    assert_eq!(world.wait_for(overwritten), Ok(vec![]));
    assert_eq!(world.wait_for(removed), Ok(vec![]));
    assert_eq!(world.active().len(), 1);
    world.run(60);
    assert_eq!(world.server.alive(world.now).count(), 1);
}

/// A crash in the middle of it leaves the whole range or parts of it, in all three tables alike.
#[test]
fn a_range_may_be_interrupted_anywhere() {
    for effects in 0..24 {
        let mut world = world(9);
        world.crash_after = Some(effects);
        world.call(20, delete_range(2000, 2100));
        world.crash_after = None;
        world.run(120);
        assert!((1..=6).contains(&world.active().len()), "{effects}");
        let alive = world.server.alive(world.now).count();
        assert!(alive >= world.active().len(), "{effects}");
    }
}

/// IGD-023: one step for each change, none for what is refused; the count moves with what comes and goes only.
#[test]
fn the_update_id_steps_with_every_change() {
    let mut world = World::new(10);
    world.run(1);
    let mut state = (0, 0);
    let mut step = |world: &mut World, by: u32, entries: i32, what: &str| {
        let now = (
            world.iwf.system_update_id(),
            i32::from(world.iwf.port_mapping_entries()),
        );
        assert_eq!(now, (state.0 + by, state.1 + entries), "{what}");
        state = now;
    };
    assert_eq!(world.ask(20, add(20, 2001, 3600)), Ok(vec![]));
    step(&mut world, 1, 1, "made");
    assert_eq!(world.ask(20, add(20, 2001, 7200)), Ok(vec![]));
    step(&mut world, 1, 0, "overwritten");
    assert_eq!(world.ask(21, add(21, 2001, 3600)), Err(718));
    assert_eq!(world.ask(20, delete(2002)), Err(714));
    assert!(world.ask(20, get_generic(0)).is_ok());
    assert_eq!(world.ask(20, get_specific(2009)), Err(714), "a probe");
    step(&mut world, 0, 0, "read or refused");
    assert_eq!(world.ask(20, add(20, 2002, 3600)), Ok(vec![]));
    step(&mut world, 1, 1, "another");
    assert_eq!(world.ask(20, delete(2002)), Ok(vec![]));
    step(&mut world, 1, -1, "deleted");
    assert_eq!(world.ask(20, add(20, 2003, 600)), Ok(vec![]));
    step(&mut world, 1, 1, "a short one");
    world.run(590);
    step(&mut world, 0, 0, "renewed upstream, which nobody sees");
    let entry = world.ask(20, get_specific(2003)).expect("there");
    assert_eq!(entry[4], "10", "IGD-007");
    world.run(11);
    step(&mut world, 1, -1, "its lease is over");
    let id = world.admin_delete(Protocol::Tcp, 2001);
    world.run(1);
    assert_eq!(world.admin_replies.get(&id), Some(&Ok(())));
    step(&mut world, 1, -1, "deleted by the owner");
}

#[test]
fn the_number_of_entries_outlives_a_restart() {
    let mut world = world(11);
    world.crash();
    assert_eq!(query(&mut world, "PortMappingNumberOfEntries"), "6");
    assert_eq!(query(&mut world, "SystemUpdateID"), "6");
}

/// IWF-012, and the answers that Windows asks for.
#[test]
fn variables_are_told_without_the_server() {
    let mut world = world(12);
    let before = world.sent.len();
    for (variable, value) in [
        ("ConnectionType", "IP_Routed"),
        ("PossibleConnectionTypes", "IP_Routed"),
        ("ConnectionStatus", "Connected"),
        ("LastConnectionError", "ERROR_NONE"),
        ("RSIPAvailable", "0"),
        ("NATEnabled", "1"),
        ("ExternalIPAddress", "11.22.33.1"),
        ("PortMappingNumberOfEntries", "6"),
        ("SystemUpdateID", "6"),
    ] {
        assert_eq!(query(&mut world, variable), value, "{variable}");
    }
    assert!(query(&mut world, "Uptime").parse::<u32>().is_ok());
    let ask = |world: &mut World, service: &str, version, variable: &str| {
        let mut call = call("QueryStateVariable", &[("varName", variable)]);
        (call.service, call.version) = (service.to_owned(), version);
        world.ask(20, call)
    };
    // Of version 2 only; no value of its own; no such name; of another service.
    for (version, name) in [
        (1, "SystemUpdateID"),
        (2, "InternalClient"),
        (2, "A_ARG_TYPE_Manage"),
        (2, "Nonsense"),
        (2, "PhysicalLinkStatus"),
    ] {
        assert_eq!(ask(&mut world, "WANIPConnection", version, name), Err(404));
    }
    assert_eq!(
        ask(
            &mut world,
            "WANCommonInterfaceConfig",
            1,
            "PhysicalLinkStatus"
        ),
        Ok(vec!["Down".to_owned()])
    );
    let unnamed = call("QueryStateVariable", &[]);
    assert_eq!(world.ask(20, unnamed), Err(402));
    // What is evented always has a value.
    for service in services::ALL {
        let evented = |variable: &&scpd::Variable| variable.evented;
        for variable in service.variables.iter().filter(evented) {
            let value = world.iwf.variable(service, variable.name, world.now);
            assert!(value.is_some(), "{} {}", service.kind, variable.name);
        }
    }
    assert_eq!(world.sent.len(), before);
}

/// IGD-026, IGD-027: what the connection lets be done to it.
#[test]
fn the_connection_is_as_it_is() {
    let mut world = World::new(13);
    world.run(1);
    let set = |name| call("SetConnectionType", &[("NewConnectionType", name)]);
    assert_eq!(world.ask(20, set("IP_Routed")), Err(731));
    assert_eq!(world.ask(20, set("IP_Bridged")), Err(731));
    assert_eq!(world.ask(20, set("ip_routed")), Err(601));
    assert_eq!(world.ask(20, set("PPPoE")), Err(601));
    let request = call("RequestConnection", &[]);
    let asked = world.now;
    assert_eq!(world.ask(20, request.clone()), Ok(vec![]));
    world.set_wan(None);
    assert_eq!(
        world.ask(20, set("IP_Routed")),
        Err(731),
        "also while it is down"
    );
    assert_eq!(world.ask(20, request.clone()), Err(704));

    let mut cut = World::with(14, world.settings.clone());
    cut.link.cut = true;
    cut.crash();
    let status = cut.ask(20, call("GetStatusInfo", &[])).expect("answered");
    assert_eq!(status[0], "Connecting");
    assert_eq!(cut.ask(20, request), Err(705));
    assert_eq!(world.now, asked, "IGD-033: all of it at once");
}

/// WCIC-003, L3F-001.
#[test]
fn the_one_connection_is_the_default_one() {
    let mut settings = World::new(15).settings;
    settings.default_connection_service =
        "uuid:x:WANConnectionDevice:1,urn:upnp-org:serviceId:WANIPConn1".to_owned();
    let mut world = World::with(15, settings);
    world.run(1);
    let of = |service: &str, action: &str, args: &[(&str, &str)]| {
        let mut call = call(action, args);
        (call.service, call.version) = (service.to_owned(), 1);
        call
    };
    let active = |index| {
        let args = [("NewActiveConnectionIndex", index)];
        of("WANCommonInterfaceConfig", "GetActiveConnection", &args)
    };
    let device = "uuid:x:WANConnectionDevice:1".to_owned();
    let service = "urn:upnp-org:serviceId:WANIPConn1".to_owned();
    assert_eq!(world.ask(20, active("0")), Ok(vec![device, service]));
    for beyond in ["1", "99"] {
        assert_eq!(world.ask(20, active(beyond)), Err(713));
    }
    world.set_wan(None);
    assert_eq!(world.ask(20, active("0")), Err(713));

    let get = of("Layer3Forwarding", "GetDefaultConnectionService", &[]);
    let told = world.ask(20, get.clone()).expect("always").remove(0);
    let set = |value: &str| {
        let args = [("NewDefaultConnectionService", value)];
        of("Layer3Forwarding", "SetDefaultConnectionService", &args)
    };
    assert_eq!(world.ask(20, set(&told)), Ok(vec![]));
    let as_of_tree_2 = told.replace("Device:1", "Device:2");
    assert_eq!(world.ask(20, set(&as_of_tree_2)), Ok(vec![]));
    assert_eq!(world.ask(20, set("uuid:y,z")), Err(606));
    assert_eq!(world.ask(20, get), Ok(vec![told]));
}

/// IGD1-004: the rules of IGD-010 hold for version 1 as well.
#[test]
fn version_1_overwrites_its_own_and_meets_718_at_others() {
    let mut world = World::new(16);
    let v1 = |mut call: Call| {
        call.version = 1;
        call
    };
    assert_eq!(world.ask(20, v1(add(20, 8080, 3600))), Ok(vec![]));
    let changed = mapping("AddPortMapping", 20, 8080, 9090, 7200, "");
    assert_eq!(world.ask(20, v1(changed)), Ok(vec![]));
    let made = world.only();
    assert_eq!(made.internal.port.get(), 9090);
    assert_eq!(made.lease_left(world.now), 7200);
    assert_eq!(world.ask(21, v1(add(21, 8080, 3600))), Err(718));
    let other = mapping("AddPortMapping", 20, 8080, 9090, 60, "198.51.100.5");
    assert_eq!(world.ask(20, v1(other)), Err(718));
    assert_eq!(world.only(), made);
}

/// IWF-034: which actions reach the server, of all that there are.
#[test]
fn only_what_needs_the_server_reaches_it() {
    let mut world = World::new(17);
    assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
    world.run(10);
    // GetSpecificPortMappingEntry asks about what is not known here; this entry is.
    let causes_a_request = [
        "AddPortMapping",
        "AddAnyPortMapping",
        "DeletePortMapping",
        "DeletePortMappingRange",
    ];
    // It is off, and asks nobody anything when it is on.
    let others = |service: &&Service| service.kind != protection::SERVICE;
    for service in services::ALL.into_iter().filter(others) {
        for action in service.actions {
            let args: Vec<(&str, &str)> = action
                .inputs()
                .map(|input| (input.name, value(input.name)))
                .collect();
            let mut call = call(action.name, &args);
            service.kind.clone_into(&mut call.service);
            call.version = service.version;
            let before = world.sent.len();
            let answer = world.ask(20, call);
            assert_ne!(answer, Err(401), "{}", action.name);
            assert_ne!(answer, Err(402), "{}", action.name);
            world.run(2);
            let asked = world.sent.len() > before;
            let expected = causes_a_request.contains(&action.name);
            assert_eq!(asked, expected, "{}: {answer:?}", action.name);
            // What an action made or probed does not stay for the next one.
            world.run(60);
            let left = delete_range(1024, 65_535);
            world.ask(20, left).ok();
            assert_eq!(world.ask(20, add(20, 8080, 3600)), Ok(vec![]));
            world.run(10);
        }
    }
}

fn value(argument: &str) -> &'static str {
    match argument {
        "NewProtocol" => "TCP",
        "NewRemoteHost" => "",
        "NewInternalClient" => "192.168.1.20",
        "NewExternalPort" | "NewInternalPort" => "8080",
        "NewStartPort" => "8000",
        "NewEndPort" => "9000",
        "NewConnectionType" => "IP_Routed",
        "NewPortMappingIndex" | "NewActiveConnectionIndex" | "NewNumberOfPorts" => "0",
        _other => "1",
    }
}

/// AMB-06: what is set to wait longer does, and no longer than that.
#[test]
fn patience_is_a_matter_of_the_settings() {
    for seconds in [10, 28, 90] {
        let mut settings = World::new(18).settings;
        settings.deadline = Duration::from_secs(seconds) - Duration::from_millis(500);
        settings.mode = ModeSetting::Cascaded;
        let mut world = World::with(18, settings);
        world.run(1);
        world.link.cut = true;
        let asked = world.now;
        let id = world.call(20, add(20, 8080, 3600));
        world.run(seconds);
        assert_eq!(world.wait_for(id), Err(501));
        assert_eq!(world.took(id, asked), seconds - 1);
        world.link.cut = false;
        world.run(120);
        assert_eq!(world.server.alive(world.now).count(), 0, "nothing is left");
    }
}
