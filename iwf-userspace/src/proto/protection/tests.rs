mod introduction;

use std::net::Ipv4Addr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::SeedableRng as _;
use sha2::Sha256;

use super::*;
use crate::wire::description::Tree;
use crate::wire::protection as document;
use crate::wire::scpd;

const NOW: Instant = Instant::from_millis(1_000_000);
const UUID: DeviceUuid = DeviceUuid::from_octets([0xd0; 16]);

fn id(octet: u8) -> ControlPointId {
    ControlPointId::from_hash(&[octet; 32])
}

fn identity(who: Who, roles: Roles) -> Identity {
    Identity {
        who,
        name: String::new(),
        alias: None,
        introduced: false,
        roles,
        verifier: None,
    }
}

fn user(name: &str, password: &str, roles: Roles) -> Identity {
    Identity {
        verifier: Some(verifier(name, password, [9; 16])),
        ..identity(Who::User(name.to_owned()), roles)
    }
}

/// A machine whose store works unless told otherwise.
struct Bench {
    machine: Protection,
    store_works: bool,
    stored: Vec<Change>,
    hung_up: Vec<u64>,
    told: Vec<Told>,
    requests: u64,
    now: Instant,
}

/// The connection 1 of the control point 1, 2 of 2, and so on; 0: without a certificate.
fn over_tls(connection: u64) -> Caller {
    let octet = u8::try_from(connection).unwrap();
    Caller {
        channel: Channel::Secure {
            connection,
            control_point: (connection > 0).then(|| id(octet)),
        },
        ..Ipv4Addr::new(192, 168, 1, octet).into()
    }
}

fn plain() -> Caller {
    Ipv4Addr::new(192, 168, 1, 1).into()
}

type Out = Result<Vec<String>, u16>;

impl Bench {
    fn new(kept: Vec<Identity>) -> Self {
        let settings = Settings {
            uuid: UUID,
            certificate: id(0xdd),
        };
        Self {
            machine: Protection::new(settings, kept, StdRng::from_seed([1; 32])),
            store_works: true,
            stored: Vec::new(),
            hung_up: Vec::new(),
            told: Vec::new(),
            requests: 0,
            now: NOW,
        }
    }

    fn call(&mut self, caller: &Caller, action: &str, args: &[(&str, &str)]) -> Out {
        self.requests += 1;
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let input = Input::Call {
            request: self.requests,
            caller: caller.clone(),
            call: Call {
                service: SERVICE.to_owned(),
                version: 1,
                action: action.to_owned(),
                args: args.iter().map(owned).collect(),
            },
        };
        self.input(input);
        let mut answer = None;
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Reply { request, result } => {
                    assert_eq!(request, self.requests);
                    assert!(answer.replace(result).is_none(), "answered once");
                }
                Effect::Store(changes) => {
                    assert!(answer.is_none(), "stored before the answer");
                    if self.store_works {
                        self.stored.extend(changes);
                    }
                    self.input(Input::Stored(self.store_works));
                }
                Effect::HangUp { connection } => self.hung_up.push(connection),
                Effect::Tell(told) => self.told.push(told),
                Effect::OwnerReply { .. } | Effect::ShowPin { .. } => panic!("not the owner"),
            }
        }
        let answer = answer.expect("an answer");
        let values = answer.map(|out| out.into_iter().map(|(_, value)| value).collect());
        values.map_err(|error| error.code)
    }

    fn input(&mut self, input: Input) {
        self.machine.handle_input(input, self.now);
    }

    fn command(&mut self, command: OwnerCommand) -> Result<(), String> {
        self.input(Input::Owner {
            request: 7,
            command,
        });
        loop {
            match self.machine.poll_effect().expect("an answer") {
                Effect::OwnerReply { request: 7, result } => return result,
                Effect::Store(changes) => {
                    self.stored.extend(changes);
                    self.input(Input::Stored(self.store_works));
                }
                other @ (Effect::OwnerReply { .. }
                | Effect::ShowPin { .. }
                | Effect::Tell(_)
                | Effect::Reply { .. }
                | Effect::HangUp { .. }) => panic!("{other:?}"),
            }
        }
    }

    fn roles(&mut self, caller: &Caller) -> String {
        self.call(caller, "GetAssignedRoles", &[])
            .unwrap()
            .remove(0)
    }

    fn challenge(&mut self, caller: &Caller, name: &str) -> Out {
        let args = [("ProtocolType", "PKCS5"), ("Name", name)];
        self.call(caller, "GetUserLoginChallenge", &args)
    }

    fn answer(&mut self, caller: &Caller, challenge: &str, authenticator: &[u8]) -> Out {
        let args = [
            ("ProtocolType", "PKCS5"),
            ("Challenge", challenge),
            ("Authenticator", &scpd::base64(authenticator)),
        ];
        self.call(caller, "UserLogin", &args)
    }

    fn login(&mut self, connection: u64, name: &str, password: &str) -> Out {
        self.login_by(UUID.octets(), connection, name, password)
    }

    fn login_by(&mut self, device: [u8; 16], connection: u64, name: &str, password: &str) -> Out {
        let caller = over_tls(connection);
        let asked = self.challenge(&caller, name)?;
        let salt = scpd::octets(&asked[0]).unwrap().try_into().unwrap();
        let key = verifier(name, password, salt).stored;
        let mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        let mac = mac.chain_update(scpd::octets(&asked[1]).unwrap());
        let mac = mac.chain_update(device);
        let of = id(u8::try_from(connection).unwrap());
        let mac = mac.chain_update(of.octets()).finalize().into_bytes();
        self.answer(&caller, &asked[1], &mac[..16])
    }
}

fn naming(name: &str) -> String {
    format!("<Identity><User><Name>{name}</Name></User></Identity>")
}

/// Arguments of every action that would be good ones.
fn good(action: &str) -> Vec<(&'static str, String)> {
    let octets = scpd::base64(&[1; 16]);
    let pkcs5 = || ("ProtocolType", "PKCS5".to_owned());
    let list = "<Identities><User><Name>new</Name></User></Identities>".to_owned();
    match action {
        "SendSetupMessage" => vec![
            ("ProtocolType", "WPS".to_owned()),
            ("InMessage", String::new()),
        ],
        "GetRolesForAction" => vec![
            ("DeviceUDN", format!("uuid:{UUID}")),
            (
                "ServiceId",
                "urn:upnp-org:serviceId:DeviceProtection1".to_owned(),
            ),
            ("ActionName", "UserLogin".to_owned()),
        ],
        "GetUserLoginChallenge" => vec![pkcs5(), ("Name", "mika".to_owned())],
        "UserLogin" => vec![
            pkcs5(),
            ("Challenge", octets.clone()),
            ("Authenticator", octets),
        ],
        "AddIdentityList" => vec![("IdentityList", list)],
        "RemoveIdentity" => vec![("Identity", naming("mika"))],
        "SetUserLoginPassword" => {
            vec![
                pkcs5(),
                ("Name", "mika".to_owned()),
                ("Stored", octets.clone()),
                ("Salt", octets),
            ]
        }
        "AddRolesForIdentity" | "RemoveRolesForIdentity" => {
            vec![
                ("Identity", naming("mika")),
                ("RoleList", "Basic".to_owned()),
            ]
        }
        _ => Vec::new(),
    }
}

/// DP-001, DP-002, DP-007, DP-008: who may call what.
#[test]
fn actions_are_for_their_roles() {
    const REFUSED: Out = Err(606);
    let everybody = ["GetSupportedProtocols", "GetAssignedRoles", "UserLogout"];
    let with_certificate = ["GetRolesForAction", "GetUserLoginChallenge", "GetACLData"];
    let basic = ["AddIdentityList"];
    let admin = [
        "SetUserLoginPassword",
        "AddRolesForIdentity",
        "RemoveRolesForIdentity",
        "RemoveIdentity",
    ];
    let kept = vec![
        identity(Who::ControlPoint(id(2)), Roles::BASIC),
        identity(Who::ControlPoint(id(3)), Roles::ADMIN),
        user("mika", "secret", Roles::BASIC),
    ];
    // Plain, without a certificate, without a role, Basic, Admin.
    let callers = [plain(), over_tls(0), over_tls(1), over_tls(2), over_tls(3)];
    for (actions, from) in [
        (everybody.as_slice(), 0),
        (&with_certificate, 2),
        (&basic, 3),
        (&admin, 4),
    ] {
        for action in actions {
            for (at, caller) in callers.iter().enumerate() {
                let mut bench = Bench::new(kept.clone());
                let args = good(action);
                let args: Vec<_> = args.iter().map(|(n, v)| (*n, v.as_str())).collect();
                let answer = bench.call(caller, action, &args);
                if at < from {
                    assert_eq!(answer, REFUSED, "{action} by {at}");
                    assert_eq!(bench.stored, [], "{action} by {at}");
                } else {
                    assert!(answer.is_ok(), "{action} by {at}: {answer:?}");
                }
            }
        }
    }
}

#[test]
fn every_action_is_handled() {
    let admin = identity(Who::ControlPoint(id(1)), Roles::ADMIN);
    for action in crate::wire::services::DEVICE_PROTECTION.actions {
        let mut bench = Bench::new(vec![admin.clone(), user("mika", "secret", Roles::BASIC)]);
        let args = good(action.name);
        let args: Vec<_> = args.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let answer = bench.call(&over_tls(1), action.name, &args);
        assert_ne!(answer, Err(401), "{}", action.name);
        assert_ne!(answer, Err(402), "{}", action.name);
        if let Ok(out) = answer {
            assert_eq!(out.len(), action.outputs().count(), "{}", action.name);
        }
    }
}

/// DP-004.
#[test]
fn a_user_logs_in_and_out() {
    let mut bench = Bench::new(vec![user("mika", "secret", Roles::ADMIN)]);
    assert_eq!(bench.roles(&over_tls(1)), "Public");
    assert_eq!(bench.login(1, "mika", "wrong"), Err(701));
    assert_eq!(bench.login(1, "nobody", "secret"), Err(701));
    assert_eq!(bench.roles(&over_tls(1)), "Public");
    assert_eq!(bench.login(1, "mika", "secret"), Ok(vec![]));
    assert_eq!(bench.roles(&over_tls(1)), "Public Admin");
    assert_eq!(bench.machine.rights(&over_tls(1)), Rights::Authorized);
    // On that connection alone.
    assert_eq!(bench.roles(&over_tls(2)), "Public");
    assert_eq!(bench.machine.rights(&over_tls(2)), Rights::Public);
    assert_eq!(bench.machine.rights(&plain()), Rights::Public);
    bench.call(&over_tls(1), "UserLogout", &[]).unwrap();
    assert_eq!(bench.roles(&over_tls(1)), "Public");
    // A control point that knows the device by its certificate.
    let device = id(0xdd).octets();
    assert_eq!(bench.login_by(device, 1, "mika", "secret"), Ok(vec![]));
    bench.input(Input::Closed { connection: 1 });
    assert_eq!(bench.roles(&over_tls(1)), "Public");
    assert_eq!(bench.login_by([1; 16], 1, "mika", "secret"), Err(701));
}

#[test]
fn a_challenge_is_answered_once_and_where_it_was_asked_for() {
    let mut bench = Bench::new(vec![user("mika", "secret", Roles::ADMIN)]);
    let asked = bench.challenge(&over_tls(1), "mika").unwrap();
    let again = bench.challenge(&over_tls(1), "mika").unwrap();
    assert_eq!(asked[0], again[0], "the salt is the password's");
    assert_ne!(asked[1], again[1]);
    let key = verifier("mika", "secret", [9; 16]).stored;
    let mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    let mac = mac.chain_update(scpd::octets(&again[1]).unwrap());
    let mac = mac.chain_update(UUID.octets()).chain_update(id(1).octets());
    let mac = mac.finalize().into_bytes();
    let right = &mac[..16];
    // On another connection; for an older challenge; then twice.
    assert_eq!(bench.answer(&over_tls(2), &again[1], right), Err(701));
    assert_eq!(bench.answer(&over_tls(1), &again[1], right), Ok(vec![]));
    assert_eq!(bench.answer(&over_tls(1), &again[1], right), Err(701));
    let newer = bench.challenge(&over_tls(1), "mika").unwrap();
    assert_eq!(bench.answer(&over_tls(1), &again[1], right), Err(701));
    // The right answer, said to be to another challenge.
    let newest = bench.challenge(&over_tls(1), "mika").unwrap();
    let mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    let mac = mac.chain_update(scpd::octets(&newest[1]).unwrap());
    let mac = mac.chain_update(UUID.octets()).chain_update(id(1).octets());
    let mac = mac.finalize().into_bytes();
    let answer = bench.answer(&over_tls(1), &newer[1], &mac[..16]);
    assert_eq!(answer, Err(701));
    for (argument, value, code) in [
        ("ProtocolType", "MD5", 600),
        ("Challenge", "***", 402),
        ("Authenticator", "AAA", 402),
    ] {
        let args = good("UserLogin");
        let args: Vec<_> = args
            .iter()
            .map(|(n, v)| (*n, if *n == argument { value } else { v.as_str() }))
            .collect();
        assert_eq!(bench.call(&over_tls(1), "UserLogin", &args), Err(code));
    }
}

#[test]
fn names_cannot_be_tried_out() {
    let without_password = identity(Who::User("new".to_owned()), Roles::ADMIN);
    let mut bench = Bench::new(vec![without_password]);
    for name in ["nobody", "new"] {
        let first = bench.challenge(&over_tls(1), name).unwrap();
        let second = bench.challenge(&over_tls(2), name).unwrap();
        assert_eq!(first[0], second[0], "the same salt each time");
        assert_eq!(bench.login(1, name, ""), Err(701));
    }
}

/// DP-005.
#[test]
fn the_fifth_failure_closes_the_connection_and_the_host_waits() {
    let mut bench = Bench::new(vec![user("mika", "secret", Roles::ADMIN)]);
    for n in 1..=5 {
        assert!(bench.hung_up.is_empty());
        assert_eq!(bench.login(1, "mika", "wrong"), Err(701), "{n}");
    }
    assert_eq!(bench.hung_up, [1]);
    bench.input(Input::Closed { connection: 1 });
    assert_eq!(bench.login(1, "mika", "secret"), Err(708));
    assert_eq!(bench.login(2, "mika", "secret"), Ok(vec![]), "another host");
    bench.now = bench.now + Duration::from_secs(30);
    assert_eq!(bench.login(1, "mika", "secret"), Ok(vec![]));
    assert_eq!(bench.hung_up, [1]);
}

/// By another address of the same host.
fn of_one_host(connection: u64) -> Caller {
    Caller {
        mac: Some([2, 0, 0, 0, 0, 1]),
        ..over_tls(connection)
    }
}

#[test]
fn failures_are_a_hosts_whichever_of_its_addresses_it_has_them_by() {
    let mut bench = Bench::new(vec![user("mika", "secret", Roles::ADMIN)]);
    for connection in 1..=5 {
        let caller = of_one_host(connection);
        let asked = bench.challenge(&caller, "mika").unwrap();
        assert_eq!(bench.answer(&caller, &asked[1], &[0; 16]), Err(701));
    }
    assert_eq!(bench.challenge(&of_one_host(6), "mika"), Err(708));
    assert_eq!(bench.login(7, "mika", "secret"), Ok(vec![]), "another host");
}

#[test]
fn the_access_list_is_changed_when_it_is_stored() {
    let admin = identity(Who::ControlPoint(id(1)), Roles::ADMIN);
    let mut bench = Bench::new(vec![admin]);
    let list = format!(
        "<Identities><User><Name>mika</Name></User><CP><Name>phone</Name><ID>{}</ID></CP></Identities>",
        id(2)
    );
    let add = [("IdentityList", list.as_str())];
    bench.store_works = false;
    assert_eq!(bench.call(&over_tls(1), "AddIdentityList", &add), Err(501));
    assert_eq!(bench.machine.identities().count(), 1);
    bench.store_works = true;
    let out = bench.call(&over_tls(1), "AddIdentityList", &add).unwrap();
    let named = document::read_identity_list(&out[0]).unwrap();
    assert_eq!(named.len(), 2);
    assert_eq!(bench.stored.len(), 2);
    // Who is there already stays as it is.
    bench.call(&over_tls(1), "AddIdentityList", &add).unwrap();
    assert_eq!(bench.stored.len(), 2);
    assert_eq!(bench.roles(&over_tls(2)), "Public");

    let cp = format!("<Identity><CP><ID>{}</ID></CP></Identity>", id(2));
    let both = [("Identity", cp.as_str()), ("RoleList", "Basic Admin")];
    bench
        .call(&over_tls(1), "AddRolesForIdentity", &both)
        .unwrap();
    assert_eq!(bench.roles(&over_tls(2)), "Public Basic Admin");
    let one = [("Identity", cp.as_str()), ("RoleList", "Admin")];
    bench
        .call(&over_tls(1), "RemoveRolesForIdentity", &one)
        .unwrap();
    assert_eq!(bench.roles(&over_tls(2)), "Public Basic");
    let acl = bench.call(&over_tls(2), "GetACLData", &[]).unwrap();
    assert!(acl[0].contains("<Name>phone</Name>") && acl[0].contains("<Name>mika</Name>"));
    // Without a role one sees oneself.
    let acl = bench.call(&over_tls(3), "GetACLData", &[]).unwrap();
    assert!(acl[0].contains("<Identities></Identities>"), "{}", acl[0]);

    bench
        .call(&over_tls(1), "RemoveIdentity", &[("Identity", &cp)])
        .unwrap();
    assert_eq!(bench.roles(&over_tls(2)), "Public");
    for (identity, roles) in [
        (cp.as_str(), "Basic"),
        (&naming("mika"), "King"),
        ("<x/>", "Basic"),
    ] {
        let args = [("Identity", identity), ("RoleList", roles)];
        let answer = bench.call(&over_tls(1), "AddRolesForIdentity", &args);
        assert_eq!(answer, Err(600), "{identity} {roles}");
    }
}

/// DP-007: an Admin sets every password, a user its own.
#[test]
fn passwords_are_set_by_admins_and_by_their_users() {
    let kept = vec![
        identity(Who::ControlPoint(id(3)), Roles::ADMIN),
        user("mika", "secret", Roles::BASIC),
        user("vic", "other", Roles::BASIC),
    ];
    let mut bench = Bench::new(kept);
    let set = |bench: &mut Bench, connection, name: &str, password: &str| {
        let new = verifier(name, password, [4; 16]);
        let args = [
            ("ProtocolType", "PKCS5"),
            ("Name", name),
            ("Stored", &scpd::base64(&new.stored)),
            ("Salt", &scpd::base64(&new.salt)),
        ];
        bench.call(&over_tls(connection), "SetUserLoginPassword", &args)
    };
    bench.login(1, "mika", "secret").unwrap();
    bench.login(2, "mika", "secret").unwrap();
    assert_eq!(set(&mut bench, 1, "vic", "x"), Err(606));
    assert_eq!(set(&mut bench, 1, "mika", "better"), Ok(vec![]));
    // Whoever logged in with the old one has to do so again.
    assert_eq!(bench.roles(&over_tls(2)), "Public");
    assert_eq!(bench.login(2, "mika", "secret"), Err(701));
    assert_eq!(bench.login(2, "mika", "better"), Ok(vec![]));
    assert_eq!(set(&mut bench, 3, "vic", "new"), Ok(vec![]));
    assert_eq!(bench.login(4, "vic", "new"), Ok(vec![]));
    assert_eq!(set(&mut bench, 3, "nobody", "x"), Err(600));
    let short = [
        ("ProtocolType", "PKCS5"),
        ("Name", "vic"),
        ("Stored", "AAAA"),
        ("Salt", "AAAA"),
    ];
    let answer = bench.call(&over_tls(3), "SetUserLoginPassword", &short);
    assert_eq!(answer, Err(600));
}

#[test]
fn the_list_has_a_bound() {
    let kept = (0..MAX_IDENTITIES - 1).map(|n| identity(Who::User(n.to_string()), Roles::ADMIN));
    let mut kept: Vec<_> = kept.collect();
    kept.push(identity(Who::ControlPoint(id(1)), Roles::ADMIN));
    let mut bench = Bench::new(kept);
    let one = [(
        "IdentityList",
        "<Identities><User><Name>x</Name></User></Identities>",
    )];
    assert_eq!(bench.call(&over_tls(1), "AddIdentityList", &one), Err(603));
    let put = |name: &str| OwnerCommand::PutUser {
        name: name.to_owned(),
        roles: Roles::BASIC,
        verifier: verifier(name, "secret", [0; 16]),
    };
    assert!(bench.command(put("x")).unwrap_err().contains("full"));
    assert_eq!(bench.command(put("0")), Ok(()), "one that is there");
    assert_eq!(
        bench.command(OwnerCommand::Remove(Who::User("1".to_owned()))),
        Ok(())
    );
    assert_eq!(bench.command(put("x")), Ok(()));
    assert_eq!(bench.login(2, "x", "secret"), Ok(vec![]));
    let roles = OwnerCommand::SetRoles {
        who: Who::User("x".to_owned()),
        roles: Roles::default(),
    };
    assert_eq!(bench.command(roles), Ok(()));
    assert_eq!(bench.roles(&over_tls(2)), "Public");
    let unknown = OwnerCommand::Remove(Who::User("1".to_owned()));
    assert!(bench.command(unknown).unwrap_err().contains("no 1"));
}

#[test]
fn one_change_is_under_way_at_a_time() {
    let admin = identity(Who::ControlPoint(id(1)), Roles::ADMIN);
    let mut bench = Bench::new(vec![admin]);
    let call = |request| Input::Call {
        request,
        caller: over_tls(1),
        call: Call {
            service: SERVICE.to_owned(),
            version: 1,
            action: "AddIdentityList".to_owned(),
            args: good("AddIdentityList")
                .into_iter()
                .map(|(n, v)| (n.to_owned(), v))
                .collect(),
        },
    };
    bench.input(call(1));
    bench.input(call(2));
    let codes = std::iter::from_fn(|| bench.machine.poll_effect());
    let codes: Vec<_> = codes
        .filter_map(|effect| match effect {
            Effect::Reply { request, result } => Some((request, result.unwrap_err().code)),
            Effect::Store(_)
            | Effect::HangUp { .. }
            | Effect::Tell(_)
            | Effect::ShowPin { .. }
            | Effect::OwnerReply { .. } => None,
        })
        .collect();
    assert_eq!(codes, [(2, 708)]);
}

#[test]
fn roles_for_actions_of_every_service() {
    let mut bench = Bench::new(Vec::new());
    let connection = Tree::Protected
        .root()
        .walk()
        .find(|device| device.kind == "WANConnectionDevice")
        .map(|device| format!("uuid:{}", UUID.of(device)))
        .unwrap();
    let root = format!("uuid:{UUID}");
    let mut ask = |udn: &str, service: &str, action: &str| {
        let service = format!("urn:upnp-org:serviceId:{service}");
        let args = [
            ("DeviceUDN", udn),
            ("ServiceId", service.as_str()),
            ("ActionName", action),
        ];
        bench.call(&over_tls(1), "GetRolesForAction", &args)
    };
    for (udn, service, action, full, restricted) in [
        (
            &connection,
            "WANIPConn1",
            "AddPortMapping",
            "Basic Admin",
            "Public",
        ),
        (
            &connection,
            "WANIPConn1",
            "GetExternalIPAddress",
            "Public Basic Admin",
            "",
        ),
        (
            &root,
            "DeviceProtection1",
            "SetUserLoginPassword",
            "Admin",
            "Basic",
        ),
        (
            &root,
            "DeviceProtection1",
            "GetAssignedRoles",
            "Public Basic Admin",
            "",
        ),
    ] {
        let roles = Ok(vec![full.to_owned(), restricted.to_owned()]);
        assert_eq!(ask(udn, service, action), roles, "{action}");
    }
    for (udn, service, action) in [
        (root.as_str(), "WANIPConn1", "AddPortMapping"),
        (&root, "DeviceProtection1", "Nonsense"),
        ("uuid:x", "DeviceProtection1", "UserLogin"),
    ] {
        assert_eq!(ask(udn, service, action), Err(600), "{service} {action}");
    }
}
