//! DP-006: who is introduced, when, and how often one may guess.

use std::net::IpAddr;

use super::*;
use crate::proto::protection::introduction::{GOOD_FOR, LIMIT, MAX_WRONG, PAUSE};
use crate::wire::wps::{Attributes, Kind, MAX_MESSAGE};

impl Bench {
    fn pin(&mut self) -> String {
        self.input(Input::Owner {
            request: 8,
            command: OwnerCommand::ShowPin,
        });
        match self.machine.poll_effect() {
            Some(Effect::ShowPin {
                request: 8,
                pin,
                good_for: GOOD_FOR,
            }) => pin.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, connection: u64, message: &[u8]) -> Result<Vec<u8>, u16> {
        let text = scpd::base64(message);
        let args = [("ProtocolType", "WPS"), ("InMessage", text.as_str())];
        let out = self.call(&over_tls(connection), "SendSetupMessage", &args)?;
        Ok(scpd::octets(&out[0]).unwrap())
    }

    /// What comes of a whole run, and what was said last.
    fn introduce(&mut self, connection: u64, pin: &str) -> Result<Vec<u8>, u16> {
        let octet = u8::try_from(connection).unwrap();
        let mut registrar = Registrar::new(id(octet), pin);
        let mut last = self.say(connection, &[])?;
        while kind(&last) != Kind::Done {
            last = self.say(connection, &registrar.answer(&last))?;
        }
        Ok(last)
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        let due = self.machine.poll_timeout();
        self.machine.handle_timeout(self.now);
        assert!(due.is_none_or(|due| due > self.now) || self.machine.poll_timeout() != due);
        while let Some(effect) = self.machine.poll_effect() {
            let Effect::Tell(told) = effect else {
                panic!("{effect:?}");
            };
            self.told.push(told);
        }
    }

    fn is_ready(&self) -> bool {
        self.machine.setup_ready()
    }
}

fn kind(octets: &[u8]) -> Kind {
    Attributes::decode(octets).unwrap().kind().unwrap()
}

fn host(connection: u8) -> IpAddr {
    Ipv4Addr::new(192, 168, 1, connection).into()
}

/// Every digit of a half is another one.
fn wrong(pin: &str, half: usize) -> String {
    let other = |(at, digit): (usize, char)| match digit {
        _ if at / 4 != half => digit,
        '9' => '0',
        _ => char::from(digit as u8 + 1),
    };
    pin.chars().enumerate().map(other).collect()
}

#[test]
fn who_knows_the_pin_has_the_role_basic_from_then_on() {
    let mut bench = Bench::new(Vec::new());
    let list = bench.call(&plain(), "GetSupportedProtocols", &[]).unwrap();
    let names = ["Introduction><Name>WPS<", "Login><Name>PKCS5<"];
    assert!(names.iter().all(|name| list[0].contains(name)), "{list:?}");
    assert!(!bench.is_ready());
    let pin = bench.pin();
    assert!(bench.is_ready());
    assert_eq!(bench.roles(&over_tls(1)), "Public");
    bench.introduce(1, &pin).unwrap();
    assert_eq!(bench.roles(&over_tls(1)), "Public Basic");
    assert_eq!(bench.machine.rights(&over_tls(1)), Rights::Authorized);
    assert_eq!(bench.roles(&over_tls(2)), "Public");
    let known: Vec<_> = bench.machine.identities().cloned().collect();
    assert_eq!(known.len(), 1);
    assert!(known[0].introduced && known[0].name == "phone");
    assert_eq!(bench.stored, [Change::Put(known[0].clone())]);
    let introduced = Told::Introduced {
        control_point: id(1),
        host: host(1),
    };
    assert_eq!(bench.told, [introduced]);
    // For nobody else.
    assert!(!bench.is_ready());
    assert_eq!(bench.say(2, &[]), Err(708));
    assert_eq!(bench.introduce(2, &pin), Err(708));
}

/// Some control points say that they have heard Done.
#[test]
fn the_last_word_is_taken_from_who_has_it() {
    let mut bench = Bench::new(Vec::new());
    let pin = bench.pin();
    let mut registrar = Registrar::new(id(1), &pin);
    let mut last = bench.say(1, &[]).unwrap();
    let early = registrar.answer(&last);
    while kind(&last) != Kind::Done {
        last = bench.say(1, &registrar.answer(&last)).unwrap();
    }
    let ack = registrar.empty(Kind::Ack);
    assert_eq!(bench.say(2, &ack), Err(704));
    assert_eq!(bench.say(1, &early), Err(704), "said before");
    assert_eq!(bench.say(1, &ack), Ok(Vec::new()));
    assert_eq!(bench.say(1, &ack), Err(704), "once");
}

#[test]
fn who_was_known_keeps_what_it_had() {
    let known = Identity {
        alias: Some("Mika's".to_owned()),
        name: "old".to_owned(),
        ..identity(Who::ControlPoint(id(1)), Roles::ADMIN)
    };
    let mut bench = Bench::new(vec![known]);
    let pin = bench.pin();
    bench.introduce(1, &pin).unwrap();
    assert_eq!(bench.roles(&over_tls(1)), "Public Basic Admin");
    let found = bench.machine.identities().next().cloned().unwrap();
    assert_eq!(
        (found.name.as_str(), found.alias.as_deref()),
        ("old", Some("Mika's"))
    );
    assert!(found.introduced);
}

/// A third wrong one is the last, whichever half is wrong and whoever guesses.
#[test]
fn a_pin_is_good_for_three_guesses() {
    let mut bench = Bench::new(Vec::new());
    let pin = bench.pin();
    for (at, half) in [(1, 0), (2, 1)] {
        assert_eq!(bench.introduce(at, &wrong(&pin, half)), Err(701), "{half}");
        assert!(bench.is_ready());
        let standing = bench.machine.introduction().unwrap();
        assert_eq!(u64::from(standing.wrong), at);
    }
    assert_eq!(bench.introduce(1, &wrong(&pin, 0)), Err(701));
    assert!(!bench.is_ready());
    assert_eq!(bench.machine.introduction(), None);
    assert_eq!(
        bench.introduce(1, &pin),
        Err(708),
        "the right one comes too late"
    );
    let left = bench.told.iter().map(|told| match told {
        Told::WrongPin { left, .. } => *left,
        Told::Introduced { .. } | Told::RanOut { .. } => panic!("{told:?}"),
    });
    assert_eq!(left.collect::<Vec<_>>(), [2, 1, 0]);
    assert_eq!(MAX_WRONG, 3);
    assert_eq!(bench.stored, []);
    // With another one it begins anew.
    let pin = bench.pin();
    assert!(bench.is_ready());
    bench.introduce(1, &pin).unwrap();
}

#[test]
fn one_is_introduced_at_a_time_and_the_other_waits() {
    let mut bench = Bench::new(Vec::new());
    let pin = bench.pin();
    let mut registrar = Registrar::new(id(1), &pin);
    let m1 = bench.say(1, &[]).unwrap();
    assert!(!bench.is_ready());
    let peer = bench.machine.introduction().unwrap().peer;
    assert_eq!(peer, Some(id(1)));
    assert_eq!(bench.say(2, &[]), Err(708));
    // What another one says does not matter to it.
    let m2 = registrar.answer(&m1);
    assert_eq!(bench.say(2, &m2), Err(708));
    let m3 = bench.say(1, &m2).unwrap();
    assert_eq!(bench.say(2, &[]), Err(708));
    // Out of order, which ends it.
    assert_eq!(bench.say(1, &m2), Err(704));
    assert!(bench.is_ready());
    assert_eq!(bench.say(1, &registrar.answer(&m3)), Err(704));
    bench.introduce(2, &pin).unwrap();
}

#[test]
fn a_host_has_no_second_turn_by_another_address() {
    let mut bench = Bench::new(Vec::new());
    let pin = bench.pin();
    let begin = |bench: &mut Bench, connection| {
        let args = [("ProtocolType", "WPS"), ("InMessage", "")];
        bench.call(&of_one_host(connection), "SendSetupMessage", &args)
    };
    begin(&mut bench, 1).unwrap();
    bench.wait(LIMIT);
    assert_eq!(begin(&mut bench, 2), Err(708));
    bench.introduce(3, &pin).unwrap();
}

#[test]
fn who_does_not_finish_leaves_room_for_others() {
    let mut bench = Bench::new(Vec::new());
    let pin = bench.pin();
    bench.say(1, &[]).unwrap();
    bench.wait(LIMIT - Duration::from_millis(1));
    assert!(!bench.is_ready());
    // To begin again, or to say nonsense and then to begin again, does not give more time.
    bench.say(1, &[]).unwrap();
    assert_eq!(bench.say(1, &[0]), Err(704));
    bench.say(1, &[]).unwrap();
    bench.wait(Duration::from_millis(1));
    assert!(bench.is_ready());
    let ran_out = Told::RanOut {
        control_point: id(1),
        host: host(1),
    };
    assert_eq!(bench.told, [ran_out]);
    assert_eq!(bench.say(1, &[]), Err(708));
    bench.say(2, &[]).unwrap();
    bench.wait(LIMIT);
    bench.say(1, &[]).unwrap();
    bench.wait(LIMIT);
    assert_eq!(bench.say(1, &[]), Err(708));
    bench.wait(PAUSE);
    bench.introduce(1, &pin).unwrap();
}

#[test]
fn a_pin_ends_with_its_time_with_the_next_one_and_when_the_owner_says_so() {
    let mut bench = Bench::new(Vec::new());
    assert_eq!(bench.machine.poll_timeout(), None);
    let pin = bench.pin();
    bench.wait(GOOD_FOR - Duration::from_millis(1));
    assert!(bench.is_ready());
    assert_eq!(
        bench.machine.poll_timeout(),
        Some(bench.now + Duration::from_millis(1))
    );
    bench.say(1, &[]).unwrap();
    bench.wait(Duration::from_millis(1));
    assert!(!bench.is_ready() && bench.machine.introduction().is_none());
    assert_eq!(bench.introduce(2, &pin), Err(708));

    let first = bench.pin();
    bench.say(1, &[]).unwrap();
    let second = bench.pin();
    assert_ne!(first, second);
    assert_eq!(bench.introduce(1, &first), Err(701));
    assert_eq!(bench.command(OwnerCommand::WithdrawPin), Ok(()));
    assert!(!bench.is_ready());
    assert_eq!(bench.introduce(1, &second), Err(708));
    assert_eq!(
        bench.command(OwnerCommand::WithdrawPin),
        Ok(()),
        "none is there"
    );
}

#[test]
fn without_the_store_nobody_is_introduced() {
    let mut bench = Bench::new(Vec::new());
    let pin = bench.pin();
    bench.store_works = false;
    assert_eq!(bench.introduce(1, &pin), Err(501));
    assert_eq!(bench.roles(&over_tls(1)), "Public");
    assert_eq!(bench.told, []);
}

#[test]
fn there_is_room_on_the_list_or_nobody_begins() {
    let kept = (0..MAX_IDENTITIES).map(|n| identity(Who::User(n.to_string()), Roles::BASIC));
    let mut bench = Bench::new(kept.collect());
    let pin = bench.pin();
    assert_eq!(bench.say(1, &[]), Err(603));
    let one = OwnerCommand::Remove(Who::User("1".to_owned()));
    assert_eq!(bench.command(one), Ok(()));
    bench.introduce(1, &pin).unwrap();
}

#[test]
fn it_takes_a_certificate_a_protocol_and_a_message() {
    let mut bench = Bench::new(Vec::new());
    bench.pin();
    let first = [("ProtocolType", "WPS"), ("InMessage", "")];
    for caller in [plain(), over_tls(0)] {
        assert_eq!(bench.call(&caller, "SendSetupMessage", &first), Err(606));
    }
    let long = scpd::base64(&[0; MAX_MESSAGE + 1]);
    let longer = "A".repeat(MAX_MESSAGE * 2);
    for (protocol, message, code) in [
        ("PBC", "", 600),
        ("WPS", "***", 402),
        ("WPS", "AAAA", 704),
        ("WPS", &long, 704),
        ("WPS", &longer, 704),
    ] {
        bench
            .call(&over_tls(1), "SendSetupMessage", &first)
            .unwrap();
        let args = [("ProtocolType", protocol), ("InMessage", message)];
        let answer = bench.call(&over_tls(1), "SendSetupMessage", &args);
        assert_eq!(answer, Err(code), "{protocol} {message:.8}");
    }
}
