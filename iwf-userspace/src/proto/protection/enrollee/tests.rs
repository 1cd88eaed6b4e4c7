use proptest::prelude::*;
use rand::SeedableRng as _;

use super::*;

const PIN_TEXT: &str = "12345670";

fn id(octet: u8) -> ControlPointId {
    ControlPointId::from_hash(&[octet; 32])
}

fn pin(text: &str) -> Pin {
    text.parse().expect("a PIN")
}

/// The control point's side, of the same primitives. What both could have wrong alike, `a_run_of_another_make` shows.
pub(crate) struct Registrar {
    id: ControlPointId,
    pin: String,
    exponent: Exponent,
    nonce: [u8; 16],
    proofs: [[u8; 16]; 2],
    known: Option<Known>,
    said: Vec<u8>,
}

/// What it knows since M1.
struct Known {
    keys: Keys,
    device_nonce: [u8; 16],
    device_key: [u8; KEY_LEN],
}

impl Registrar {
    /// Any eight characters will do as its PIN.
    pub(crate) fn new(id: ControlPointId, pin: &str) -> Self {
        let [.., seed] = id.octets();
        Self {
            id,
            pin: pin.to_owned(),
            exponent: Exponent::new(&[seed; 64]),
            nonce: [seed; 16],
            proofs: [[1; 16], [2; 16]],
            known: None,
            said: Vec::new(),
        }
    }

    /// What it says to M1, M3, M5 and M7.
    pub(crate) fn answer(&mut self, heard: &[u8]) -> Vec<u8> {
        let message = Attributes::decode(heard).unwrap();
        let kind = message.kind().unwrap();
        if kind == Kind::M1 {
            let device_key = *message.fixed(of::PUBLIC_KEY).unwrap();
            let device_nonce = *message.fixed(of::ENROLLEE_NONCE).unwrap();
            let shared = self.exponent.shared(&device_key).unwrap();
            let mac = message.get(of::MAC_ADDRESS).unwrap();
            let keys = Keys::derive(shared.as_slice(), &[&device_nonce, mac, &self.nonce]);
            self.known = Some(Known {
                keys,
                device_nonce,
                device_key,
            });
        }
        let [first, second] = self.proofs;
        let message = match kind {
            Kind::M1 => self
                .begun(Kind::M2)
                .put(of::REGISTRAR_NONCE, &self.nonce)
                .put(of::UUID_R, &self.id.octets())
                .put(of::PUBLIC_KEY, &self.exponent.public())
                .put(of::DEVICE_NAME, b"phone")
                .put(of::DEVICE_PASSWORD_ID, &PIN),
            Kind::M3 => self
                .begun(Kind::M4)
                .put(of::R_HASH_1, &self.hash(0, &first))
                .put(of::R_HASH_2, &self.hash(1, &second))
                .put(
                    of::ENCRYPTED_SETTINGS,
                    &self.settings(of::R_NONCE_1, &first),
                ),
            Kind::M5 => self.begun(Kind::M6).put(
                of::ENCRYPTED_SETTINGS,
                &self.settings(of::R_NONCE_2, &second),
            ),
            Kind::M7 => self
                .begun(Kind::M8)
                .put(of::ENCRYPTED_SETTINGS, &self.settings(of::DEVICE_NAME, b"")),
            Kind::M2
            | Kind::M2D
            | Kind::M4
            | Kind::M6
            | Kind::M8
            | Kind::Ack
            | Kind::Nack
            | Kind::Done => panic!("{kind:?} is not answered"),
        };
        self.sealed(message, heard)
    }

    /// A message that says nothing but its kind and whose run it is.
    pub(crate) fn empty(&self, kind: Kind) -> Vec<u8> {
        let message = self.begun(kind).put(of::REGISTRAR_NONCE, &self.nonce);
        message.finish()
    }

    fn known(&self) -> &Known {
        self.known.as_ref().expect("M1 was heard")
    }

    fn begun(&self, kind: Kind) -> Writer {
        Writer::message(kind).put(of::ENROLLEE_NONCE, &self.known().device_nonce)
    }

    fn sealed(&mut self, message: Writer, heard: &[u8]) -> Vec<u8> {
        let seal = self.known().keys.seal(&[heard, message.octets()]).short();
        self.said = message.put(of::AUTHENTICATOR, &seal).finish();
        self.said.clone()
    }

    fn hash(&self, half: usize, proof: &[u8; 16]) -> [u8; 32] {
        let Known {
            keys, device_key, ..
        } = self.known();
        let psk = keys
            .seal(&[&self.pin.as_bytes()[half * 4..half * 4 + 4]])
            .half();
        let own = self.exponent.public();
        keys.seal(&[proof, psk.as_slice(), device_key, &own])
            .finish()
    }

    fn settings(&self, name: u16, value: &[u8]) -> Vec<u8> {
        let keys = &self.known().keys;
        let settings = Writer::list().put(name, value);
        let seal = keys.seal(&[settings.octets()]).short();
        let settings = settings.put(of::KEY_WRAP_AUTHENTICATOR, &seal);
        keys.encrypt([9; 16], settings.octets())
    }
}

fn begin() -> (Enrollee, Vec<u8>) {
    let draws = Draws::new(&mut StdRng::from_seed([3; 32]));
    Enrollee::begin(id(0xdd), id(1), pin(PIN_TEXT), draws)
}

fn next(step: Result<Step, Failure>) -> Vec<u8> {
    match step {
        Ok(Step::Next(message)) => message,
        other => panic!("{other:?}"),
    }
}

fn kind(octets: &[u8]) -> Kind {
    Attributes::decode(octets).unwrap().kind().unwrap()
}

/// A run as far as the enrollee has answered so many messages, and what it has said last.
fn run(answered: usize) -> (Enrollee, Registrar, Vec<u8>) {
    let (mut enrollee, mut last) = begin();
    let mut registrar = Registrar::new(id(1), PIN_TEXT);
    for _ in 0..answered {
        last = next(enrollee.hear(&registrar.answer(&last)));
    }
    (enrollee, registrar, last)
}

#[test]
fn who_knows_the_pin_is_introduced() {
    let (mut enrollee, mut registrar, m7) = run(3);
    assert_eq!(kind(&m7), Kind::M7);
    let step = enrollee.hear(&registrar.answer(&m7));
    let Ok(Step::Introduced(done, who)) = step else {
        panic!("{step:?}");
    };
    assert_eq!(kind(&done), Kind::Done);
    assert_eq!(who.name, "phone");
    assert!(who.nonces.acknowledged_by(&registrar.empty(Kind::Ack)));
    assert!(!who.nonces.acknowledged_by(&registrar.empty(Kind::Nack)));
    assert!(!who.nonces.acknowledged_by(&done));
    // That was all.
    assert_eq!(
        enrollee.hear(&registrar.empty(Kind::Ack)),
        Err(Failure::Malformed)
    );
}

/// Each half by itself; after that nothing more is heard.
#[test]
fn who_does_not_know_a_half_learns_that_alone() {
    for (wrong, answered) in [("99995670", 1), ("12349999", 2)] {
        let (mut enrollee, mut last) = begin();
        let mut registrar = Registrar::new(id(1), wrong);
        for _ in 0..answered {
            last = next(enrollee.hear(&registrar.answer(&last)));
        }
        let message = registrar.answer(&last);
        assert_eq!(enrollee.hear(&message), Err(Failure::WrongPin), "{wrong}");
        assert_eq!(enrollee.hear(&message), Err(Failure::Malformed), "{wrong}");
    }
}

/// Of every message in every place, only the one that follows is taken.
#[test]
fn messages_are_taken_in_their_order_and_once() {
    let (_, mut registrar, m1) = run(0);
    let mut all = vec![registrar.answer(&m1)];
    let (mut enrollee, _) = begin();
    for _ in 0..3 {
        let last = next(enrollee.hear(all.last().unwrap()));
        all.push(registrar.answer(&last));
    }
    for place in 0..4 {
        for (at, message) in all.iter().enumerate().filter(|(at, _)| *at != place) {
            let (mut enrollee, _, _) = run(place);
            assert_eq!(
                enrollee.hear(message),
                Err(Failure::Malformed),
                "{at} at {place}"
            );
            assert_eq!(
                enrollee.hear(&all[place]),
                Err(Failure::Malformed),
                "{at} at {place}"
            );
        }
        let (mut enrollee, _, _) = run(place);
        assert!(enrollee.hear(&all[place]).is_ok(), "{place}");
    }
    // What another run has heard is nothing here.
    let draws = Draws::new(&mut StdRng::from_seed([4; 32]));
    let (mut other, _) = Enrollee::begin(id(0xdd), id(1), pin(PIN_TEXT), draws);
    assert_eq!(other.hear(&all[0]), Err(Failure::Malformed));
}

/// Who sits between two connections hands on what it cannot make.
#[test]
fn a_control_point_of_another_certificate_is_not_introduced() {
    let (mut enrollee, m1) = begin();
    let mut other = Registrar::new(id(2), PIN_TEXT);
    assert_eq!(enrollee.hear(&other.answer(&m1)), Err(Failure::Malformed));
}

#[test]
fn keys_that_everybody_would_know_are_refused() {
    let (_, mut registrar, m1) = run(0);
    registrar.answer(&m1);
    let mut last = [0xff; KEY_LEN];
    // The prime and the number before it.
    last.copy_from_slice(&keys_of_prime());
    let mut before = last;
    before[KEY_LEN - 1] -= 1;
    let mut one = [0; KEY_LEN];
    one[KEY_LEN - 1] = 1;
    for key in [[0; KEY_LEN], one, before, last, [0xff; KEY_LEN]] {
        let (mut enrollee, _) = begin();
        assert_eq!(enrollee.exponent.shared(&key).map(|shared| shared[0]), None);
        let message = registrar
            .begun(Kind::M2)
            .put(of::REGISTRAR_NONCE, &registrar.nonce)
            .put(of::UUID_R, &registrar.id.octets())
            .put(of::PUBLIC_KEY, &key)
            .put(of::DEVICE_PASSWORD_ID, &PIN);
        let message = registrar.sealed(message, &m1);
        assert_eq!(enrollee.hear(&message), Err(Failure::Malformed));
    }
}

/// The prime of the group: what the vectors' numbers are below, and what has no power but itself.
fn keys_of_prime() -> [u8; KEY_LEN] {
    let mut octets = [0; KEY_LEN];
    octets.copy_from_slice(keys::PRIME.to_be_bytes().as_ref());
    octets
}

#[test]
fn a_control_point_may_let_wait_and_give_up() {
    let (mut enrollee, mut registrar, m1) = run(0);
    let m2 = registrar.answer(&m1);
    for _ in 0..2 {
        let ack = next(enrollee.hear(&registrar.empty(Kind::M2D)));
        assert_eq!(ack, registrar.empty(Kind::Ack));
    }
    let m3 = next(enrollee.hear(&m2));
    assert_eq!(kind(&m3), Kind::M3);
    let nack = registrar.empty(Kind::Nack);
    assert_eq!(enrollee.hear(&nack), Ok(Step::GivenUp(nack.clone())));
    assert_eq!(
        enrollee.hear(&registrar.answer(&m3)),
        Err(Failure::Malformed)
    );
    // One that waits does not begin to do so later.
    let (mut enrollee, registrar, _) = run(1);
    let wait = registrar.empty(Kind::M2D);
    assert_eq!(enrollee.hear(&wait), Err(Failure::Malformed));
}

/// What both sides say in a run that another program has made, of other primitives (tests/tests/netns_protection/wps.py).
#[test]
fn a_run_of_another_make() {
    let file = include_str!("../../../../../tests/vectors/wps.json");
    let file: serde_json::Value = serde_json::from_str(file).unwrap();
    let octets = |value: &serde_json::Value| -> Vec<u8> {
        let hex = value.as_str().unwrap();
        let octet = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(octet).collect()
    };
    let drawn = |what: &str| octets(&file["draws"][what]);
    let fixed = |what: &str| -> [u8; 16] { drawn(what).try_into().unwrap() };
    let draws = Draws {
        exponent: drawn("exponent").try_into().unwrap(),
        nonce: fixed("nonce"),
        proofs: [fixed("proof 1"), fixed("proof 2")],
        ivs: [fixed("iv 1"), fixed("iv 2")],
    };
    let peer: [u8; 16] = octets(&file["registrar"]).try_into().unwrap();
    let pin = pin(file["pin"].as_str().unwrap());
    let (mut enrollee, own) = Enrollee::begin(id(0xdd), id(1), pin, draws);
    let said = |name: &str| octets(&file["messages"][name]);
    // Its M1 describes another device.
    let m1 = said("M1");
    let (own, described) = (
        Attributes::decode(&own).unwrap(),
        Attributes::decode(&m1).unwrap(),
    );
    for name in [
        of::VERSION,
        of::MESSAGE_TYPE,
        of::ENROLLEE_NONCE,
        of::PUBLIC_KEY,
    ] {
        assert_eq!(own.get(name), described.get(name), "{name:#06x}");
    }
    enrollee.mac = *described.fixed(of::MAC_ADDRESS).unwrap();
    enrollee.last.clone_from(&m1);
    enrollee.peer = uuid(peer);
    for (heard, answer) in [("M2", "M3"), ("M4", "M5"), ("M6", "M7")] {
        assert_eq!(next(enrollee.hear(&said(heard))), said(answer), "{answer}");
    }
    let step = enrollee.hear(&said("M8"));
    assert!(
        matches!(&step, Ok(Step::Introduced(done, who)) if *done == said("Done") && who.name == "phone"),
        "{step:?}"
    );
}

fn uuid(octets: [u8; 16]) -> ControlPointId {
    let hex: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    let (a, b, c) = (&hex[..8], &hex[8..12], &hex[12..16]);
    let (d, e) = (&hex[16..20], &hex[20..]);
    format!("{a}-{b}-{c}-{d}-{e}").parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// No octet of any message can be another one, whatever the run has come to.
    #[test]
    fn a_message_with_a_changed_octet_is_refused(place in 0_usize..4, at: usize, with in 1_u8..) {
        let (mut enrollee, mut registrar, last) = run(place);
        let mut message = registrar.answer(&last);
        let at = at % message.len();
        // As another kind it may be one that says nothing that has to be proven.
        prop_assume!(at != 9);
        message[at] ^= with;
        prop_assert_eq!(enrollee.hear(&message), Err(Failure::Malformed), "octet {}", at);
    }

    #[test]
    fn any_octets_end_it(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (mut enrollee, _) = begin();
        prop_assert_eq!(enrollee.hear(&octets), Err(Failure::Malformed));
    }
}
