//! What control points with rights may do that others may not (requirements DP, IGD).

use std::time::Duration;

use super::soap::{add, call, delete, get_generic, get_specific, with_protocol};
use super::world::{World, host};
use crate::iwf::{AdminCommand, EffectError, Input, ModeSetting, RequestId, Settings};
use crate::proto::protection::{self, OwnerCommand, Registrar, SERVICE, verifier};
use crate::types::Instant;
use crate::types::access::{Channel, ControlPointId, Identity, Roles, Who};
use crate::types::caller::Caller;
use crate::wire::description::DeviceUuid;
use crate::wire::scpd;
use crate::wire::services::DEVICE_PROTECTION;
use crate::wire::soap::Call;

fn id(octet: u8) -> ControlPointId {
    ControlPointId::from_hash(&[octet; 32])
}

/// A world in which the control point 1 has a role.
fn world(seed: u64, roles: Roles) -> World {
    let settings = Settings {
        mode: ModeSetting::Local,
        private_wan: crate::iwf::PrivateWan::MapLocally,
        protection: Some(protection::Settings {
            uuid: DeviceUuid::from_octets([1; 16]),
            certificate: id(0xdd),
        }),
        ..Settings::default()
    };
    let mut world = World::with(seed, settings);
    let identity = Identity {
        who: Who::ControlPoint(id(1)),
        name: "phone".to_owned(),
        alias: None,
        introduced: true,
        roles,
        verifier: None,
    };
    world
        .store
        .identities
        .insert(identity.who.clone(), identity);
    world.down_for(Duration::from_secs(1));
    world.run(1);
    world
}

/// 192.168.1.20 over TLS with the certificate of a control point.
fn secure(connection: u64, control_point: u8) -> Caller {
    Caller {
        channel: Channel::Secure {
            connection,
            control_point: Some(id(control_point)),
        },
        ..host(20).into()
    }
}

impl World {
    fn ask_as(&mut self, caller: &Caller, call: Call) -> Result<Vec<String>, u16> {
        let id = self.call_from(caller.clone(), call);
        self.wait_for(id)
    }
}

fn range(action: &str, first: &str, manage: &str) -> Call {
    let mut call = call(
        action,
        &[
            ("NewStartPort", first),
            ("NewEndPort", "65535"),
            ("NewProtocol", "TCP"),
            ("NewManage", manage),
        ],
    );
    if action == "GetListOfPortMappings" {
        let number = ("NewNumberOfPorts".to_owned(), "0".to_owned());
        call.args.push(number);
    }
    call
}

fn of(service: &str, action: &str, args: &[(&str, &str)]) -> Call {
    Call {
        service: service.to_owned(),
        version: 1,
        ..call(action, args)
    }
}

/// IGD-014, IGD-017, IGD-018, IGD-020, IGD-021, IGD-022, IGD-036.
#[test]
fn who_has_a_role_acts_for_others_and_with_low_ports() {
    for roles in [Roles::BASIC, Roles::ADMIN] {
        let mut world = world(1, roles);
        let known = secure(1, 1);
        let stranger = secure(2, 2);
        assert_eq!(world.ask(21, add(21, 5000, 600)), Ok(vec![]));
        for caller in [stranger.clone(), host(20).into()] {
            assert_eq!(world.ask_as(&caller, add(22, 6000, 600)), Err(606));
            assert_eq!(world.ask_as(&caller, add(20, 80, 600)), Err(606));
            assert_eq!(world.ask_as(&caller, get_specific(5000)), Err(606));
            assert_eq!(world.ask_as(&caller, get_specific(80)), Err(606));
            assert_eq!(world.ask_as(&caller, get_generic(0)), Err(713));
            assert_eq!(world.ask_as(&caller, delete(5000)), Err(606));
            let low = range("DeletePortMappingRange", "80", "1");
            assert_eq!(world.ask_as(&caller, low), Err(606));
            let all = range("DeletePortMappingRange", "1024", "1");
            assert_eq!(world.ask_as(&caller, all), Err(730));
        }
        assert_eq!(world.ask_as(&known, add(22, 443, 600)), Ok(vec![]));
        assert_eq!(world.ask_as(&known, add(20, 6000, 600)), Ok(vec![]));
        let seen: Vec<_> = (0..3)
            .map(|index| world.ask_as(&known, get_generic(index)).expect("there")[1].clone())
            .collect();
        assert_eq!(world.ask_as(&known, get_generic(3)), Err(713));
        for port in ["5000", "443", "6000"] {
            assert!(seen.iter().any(|one| one == port), "{port} in {seen:?}");
        }
        assert_eq!(
            world.ask_as(&known, get_specific(443)).expect("there")[1],
            "192.168.1.22"
        );
        // The host that it leads to does not see what is below its ports.
        assert_eq!(world.ask(22, get_specific(443)), Err(606));
        let entries = |list: Vec<String>| list[0].matches("<p:PortMappingEntry>").count();
        let own = world.ask_as(&known, range("GetListOfPortMappings", "1", "0"));
        assert_eq!(own.map(entries), Ok(1));
        let all = world.ask_as(&known, range("GetListOfPortMappings", "1", "1"));
        assert_eq!(all.map(entries), Ok(3));
        // This machine is nobody to map for.
        assert_eq!(world.ask_as(&known, add(1, 7000, 600)), Err(606));
        // Without a protocol it is not said which mapping is meant: it has to be the caller's own.
        let of_another = with_protocol(delete(5000), "");
        assert_eq!(world.ask_as(&known, of_another), Err(601));
        assert_eq!(world.ask_as(&known, delete(5000)), Ok(vec![]));
        let rest = range("DeletePortMappingRange", "1", "1");
        assert_eq!(world.ask_as(&known, rest), Ok(vec![]));
        assert_eq!(world.active().len(), 0);
    }
}

/// DP-008.
#[test]
fn while_it_is_off_nobody_has_rights_and_there_is_no_such_service() {
    let mut world = World::new(2);
    world.run(1);
    assert_eq!(world.ask_as(&secure(1, 1), add(22, 6000, 600)), Err(606));
    let roles = of(SERVICE, "GetAssignedRoles", &[]);
    assert_eq!(world.ask_as(&secure(1, 1), roles), Err(401));
}

#[test]
fn what_the_owner_says_of_users_outlives_a_restart_and_a_store_that_fails() {
    let mut world = world(3, Roles::default());
    let command = |request, roles| Input::Admin {
        request: RequestId(request),
        command: AdminCommand::Access(OwnerCommand::PutUser {
            name: "mika".to_owned(),
            roles,
            verifier: verifier("mika", "secret", [7; 16]),
        }),
    };
    let call = world.store.next_call();
    world.store.faults.insert(call, EffectError::Full);
    world.input(command(1, Roles::BASIC));
    assert!(world.admin_replies[&1].is_err());
    assert_eq!(world.store.identities.len(), 1);
    world.input(command(2, Roles::ADMIN));
    assert_eq!(world.admin_replies[&2], Ok(()));
    world.down_for(Duration::from_secs(5));
    let protection = world.iwf.protection().expect("on");
    let users: Vec<_> = protection
        .identities()
        .map(|one| (&one.who, one.roles))
        .collect();
    assert!(users.contains(&(&Who::User("mika".to_owned()), Roles::ADMIN)));
}

/// DP-006, with the store, the clock and a subscriber around it.
#[test]
fn subscribers_hear_when_a_control_point_can_be_introduced_and_one_is() {
    let mut world = world(5, Roles::default());
    world.subscribe(&DEVICE_PROTECTION);
    world.run(1);
    assert_eq!(world.told_since(Instant::from_millis(0)), ["SetupReady=0"]);
    let since = world.now;
    let show = |world: &mut World, request| {
        let command = AdminCommand::Access(OwnerCommand::ShowPin);
        let request = RequestId(request);
        world.input(Input::Admin { request, command });
        world.pin.clone().expect("it is shown").to_string()
    };
    let say = |world: &mut World, message: &[u8]| {
        let text = scpd::base64(message);
        let args = [("ProtocolType", "WPS"), ("InMessage", text.as_str())];
        let call = of(SERVICE, "SendSetupMessage", &args);
        let out = world.ask_as(&secure(9, 5), call)?.remove(0);
        world.run(1);
        Ok::<_, u16>(scpd::octets(&out).expect("octets"))
    };
    // One does not finish, and the PIN runs out.
    show(&mut world, 1);
    say(&mut world, &[]).expect("M1");
    world.run(121);
    assert_eq!(
        world.told_since(since),
        ["SetupReady=1", "SetupReady=0", "SetupReady=1"]
    );
    world.run(600);
    let mut told = ["1", "0", "1", "0"]
        .map(|ready| format!("SetupReady={ready}"))
        .to_vec();
    assert_eq!(world.told_since(since), told);
    // One does, and nobody takes it away from it.
    let pin = show(&mut world, 2);
    world.run(1);
    let mut registrar = Registrar::new(id(5), &pin);
    let mut last = say(&mut world, &[]).expect("M1");
    for _ in 0..4 {
        let message = registrar.answer(&last);
        last = say(&mut world, &message).expect("an answer");
    }
    told.extend(["1", "0"].map(|ready| format!("SetupReady={ready}")));
    assert_eq!(world.told_since(since), told);
    assert_eq!(world.ask_as(&secure(9, 5), add(22, 443, 600)), Ok(vec![]));
    world.down_for(Duration::from_secs(5));
    world.run(1);
    assert_eq!(world.ask_as(&secure(10, 5), add(22, 6000, 600)), Ok(vec![]));
    let protection = world.iwf.protection().expect("on");
    let who = Who::ControlPoint(id(5));
    assert!(
        protection
            .identities()
            .any(|one| one.who == who && one.introduced)
    );
    // A PIN is of one life.
    show(&mut world, 3);
    world.down_for(Duration::from_secs(5));
    world.run(1);
    assert_eq!(say(&mut world, &[]), Err(708));
}

/// DP-005, in the order in which it is heard: the answer before the connection is closed.
#[test]
fn a_connection_with_five_failed_logins_is_closed() {
    let mut world = world(4, Roles::default());
    for n in 1..=5 {
        let args = [("ProtocolType", "PKCS5"), ("Name", "mika")];
        let asked = world.ask_as(&secure(9, 5), of(SERVICE, "GetUserLoginChallenge", &args));
        let challenge = asked.expect("a challenge").remove(1);
        assert!(world.hung_up.is_empty(), "{n}");
        let args = [
            ("ProtocolType", "PKCS5"),
            ("Challenge", challenge.as_str()),
            ("Authenticator", challenge.as_str()),
        ];
        let answer = world.ask_as(&secure(9, 5), of(SERVICE, "UserLogin", &args));
        assert_eq!(answer, Err(701));
    }
    assert_eq!(world.hung_up, [9]);
    world.input(Input::SecureClosed { connection: 9 });
}
