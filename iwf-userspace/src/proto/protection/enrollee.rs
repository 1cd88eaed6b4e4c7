//! The device's side of the registration protocol: a control point that knows the PIN proves it, and so does the device.
//!
//! Read before editing: Wi-Fi Simple Configuration 2.0 section 7; DeviceProtection:1 section 2.4.1.
//!
//! The device is the enrollee and says M1, M3, M5, M7 and Done; the control point is the registrar and answers:
//!
//! ```text
//! M1  who I am, public key          ──>
//!                                   <──  M2   the same, or M2D: wait, nobody has typed the PIN yet
//! M3  hashes of both halves         ──>
//!                                   <──  M4   hashes of both halves, proof of the first
//! M5  proof of the first            ──>
//!                                   <──  M6   proof of the second
//! M7  proof of the second           ──>
//!                                   <──  M8   nothing: there is no network to tell of
//! Done                              ──>
//! ```
//!
//! Who does not know a half of the PIN learns that and nothing else. Both sides name themselves by what follows from their
//! certificates, so that who sits between two connections can have nobody introduced.

mod keys;

#[cfg(test)]
pub(crate) mod tests;

use rand::RngExt as _;
use rand::rngs::StdRng;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::types::access::ControlPointId;
use crate::types::pin::Pin;
use crate::wire::wps::{Attributes, Kind, WpsError, Writer, attribute as of};

use keys::{Exponent, KEY_LEN, Keys, Seal};

/// Device Password ID of a PIN that the device shows.
const PIN: [u8; 2] = [0, 0];

/// Why an introduction ends without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The other side does not know the PIN.
    #[error("the PIN is not the right one")]
    WrongPin,
    /// A message is not what it should be, or not now.
    #[error("a message of the introduction is not what it should be")]
    Malformed,
}

impl From<WpsError> for Failure {
    fn from(_: WpsError) -> Self {
        Self::Malformed
    }
}

/// What follows on a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Say that and wait.
    Next(Vec<u8>),
    /// Say that; both have proven themselves.
    Introduced(Vec<u8>, Introduced),
    /// Say that; the other side does not want to go on.
    GivenUp(Vec<u8>),
}

/// Who was introduced.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Introduced {
    /// What it calls itself; empty if it does not say.
    pub(super) name: String,
    /// What its last word will be about.
    pub(super) nonces: Nonces,
}

/// By what the two sides know that a message is of their run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonces {
    enrollee: [u8; 16],
    registrar: [u8; 16],
}

/// What is drawn for one run and for no other.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Draws {
    exponent: [u8; 64],
    nonce: [u8; 16],
    /// What the halves of the PIN are hashed with, one after the other.
    proofs: [[u8; 16]; 2],
    /// In front of what is encrypted.
    ivs: [[u8; 16]; 2],
}

/// One run.
pub(super) struct Enrollee {
    pin: Pin,
    peer: ControlPointId,
    draws: Draws,
    mac: [u8; 6],
    exponent: Exponent,
    public: [u8; KEY_LEN],
    /// What was said last in the chain of messages that vouch for each other.
    last: Vec<u8>,
    stage: Stage,
}

/// What was said last.
enum Stage {
    /// M1.
    Greeted,
    /// M3.
    Hashed(Box<Keyed>),
    /// M5, to the hashes of the other side.
    FirstProven(Box<Keyed>, [u8; 32]),
    /// M7.
    Proven(Box<Keyed>),
    /// The end.
    Over,
}

/// What both sides know since M2.
struct Keyed {
    keys: Keys,
    registrar_nonce: [u8; 16],
    registrar_key: [u8; KEY_LEN],
    name: String,
}

/// A half of the PIN.
#[derive(Clone, Copy)]
enum Half {
    First,
    Second,
}

impl Draws {
    pub(super) fn new(rng: &mut StdRng) -> Self {
        Self {
            exponent: rng.random(),
            nonce: rng.random(),
            proofs: [rng.random(), rng.random()],
            ivs: [rng.random(), rng.random()],
        }
    }
}

impl Enrollee {
    /// Begins one with the control point of that certificate; the message is M1.
    pub(super) fn begin(
        device: ControlPointId,
        peer: ControlPointId,
        pin: Pin,
        draws: Draws,
    ) -> (Self, Vec<u8>) {
        let exponent = Exponent::new(&draws.exponent);
        let public = exponent.public();
        let mac = address(device);
        // In the order of the standard: some read them so.
        let message = Writer::message(Kind::M1)
            .put(of::UUID_E, &device.octets())
            .put(of::MAC_ADDRESS, &mac)
            .put(of::ENROLLEE_NONCE, &draws.nonce)
            .put(of::PUBLIC_KEY, &public)
            // Open, no encryption, infrastructure: what is said of networks has no meaning here.
            .put(of::AUTHENTICATION_TYPES, &[0, 1])
            .put(of::ENCRYPTION_TYPES, &[0, 1])
            .put(of::CONNECTION_TYPES, &[1])
            // A display.
            .put(of::CONFIG_METHODS, &[0, 8])
            .put(of::SETUP_STATE, &[1])
            .put(of::MANUFACTURER, b"iwf")
            .put(of::MODEL_NAME, b"iwf")
            .put(of::MODEL_NUMBER, env!("CARGO_PKG_VERSION").as_bytes())
            .put(of::SERIAL_NUMBER, b"-")
            // A router.
            .put(of::PRIMARY_DEVICE_TYPE, &[0, 6, 0, 0x50, 0xf2, 4, 0, 2])
            .put(of::DEVICE_NAME, b"iwf Internet gateway")
            .put(of::RF_BANDS, &[1])
            .put(of::ASSOCIATION_STATE, &[0, 0])
            .put(of::DEVICE_PASSWORD_ID, &PIN)
            .put(of::CONFIGURATION_ERROR, &[0, 0])
            .put(of::OS_VERSION, &[0x80, 0, 0, 0])
            .finish();
        let enrollee = Self {
            pin,
            peer,
            draws,
            mac,
            exponent,
            public,
            last: message.clone(),
            stage: Stage::Greeted,
        };
        (enrollee, message)
    }

    /// Takes in what the control point says. After a failure nothing more is taken.
    pub(super) fn hear(&mut self, octets: &[u8]) -> Result<Step, Failure> {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let message = Attributes::decode(octets)?;
        if message.fixed(of::ENROLLEE_NONCE)? != &self.draws.nonce {
            return Err(Failure::Malformed);
        }
        let kind = message.kind()?;
        // Once it has one, the other side keeps to its nonce.
        if let Stage::Hashed(keyed) | Stage::FirstProven(keyed, _) | Stage::Proven(keyed) = &stage
            && kind != Kind::Nack
            && message
                .get(of::REGISTRAR_NONCE)
                .unwrap_or(&keyed.registrar_nonce)
                != keyed.registrar_nonce
        {
            return Err(Failure::Malformed);
        }
        match (stage, kind) {
            (_, Kind::Nack) => Ok(Step::GivenUp(self.reply(Kind::Nack, message)?)),
            (Stage::Greeted, Kind::M2D) => {
                self.stage = Stage::Greeted;
                Ok(Step::Next(self.reply(Kind::Ack, message)?))
            }
            (Stage::Greeted, Kind::M2) => self.hashes(octets, message),
            (Stage::Hashed(keyed), Kind::M4) => {
                let settings = self.open(&keyed, message)?;
                let told = message.fixed(of::R_HASH_1)?;
                let second = *message.fixed(of::R_HASH_2)?;
                self.check(&keyed, Half::First, &settings, told)?;
                let m5 = self.prove(&keyed, Kind::M5, Half::First, octets);
                self.stage = Stage::FirstProven(keyed, second);
                Ok(Step::Next(m5))
            }
            (Stage::FirstProven(keyed, told), Kind::M6) => {
                let settings = self.open(&keyed, message)?;
                self.check(&keyed, Half::Second, &settings, &told)?;
                let m7 = self.prove(&keyed, Kind::M7, Half::Second, octets);
                self.stage = Stage::Proven(keyed);
                Ok(Step::Next(m7))
            }
            (Stage::Proven(keyed), Kind::M8) => {
                // It has nothing to say, but says it with the keys.
                self.open(&keyed, message)?;
                let nonces = Nonces {
                    enrollee: self.draws.nonce,
                    registrar: keyed.registrar_nonce,
                };
                let name = keyed.name;
                let introduced = Introduced { name, nonces };
                Ok(Step::Introduced(nonces.message(Kind::Done), introduced))
            }
            _ => Err(Failure::Malformed),
        }
    }

    /// A message that says nothing but its kind, to one of that run.
    fn reply(&self, kind: Kind, message: Attributes<'_>) -> Result<Vec<u8>, Failure> {
        let nonces = Nonces {
            enrollee: self.draws.nonce,
            registrar: *message.fixed(of::REGISTRAR_NONCE)?,
        };
        Ok(nonces.message(kind))
    }

    /// M2, to M3: with the public key of the other side come the keys of both.
    fn hashes(&mut self, octets: &[u8], message: Attributes<'_>) -> Result<Step, Failure> {
        let uuid = message.fixed::<16>(of::UUID_R)?;
        if *uuid != self.peer.octets() || message.fixed(of::DEVICE_PASSWORD_ID)? != &PIN {
            return Err(Failure::Malformed);
        }
        let registrar_key = *message.fixed::<KEY_LEN>(of::PUBLIC_KEY)?;
        let registrar_nonce = *message.fixed::<16>(of::REGISTRAR_NONCE)?;
        let shared = self.exponent.shared(&registrar_key);
        let keys = Keys::derive(
            shared.ok_or(Failure::Malformed)?.as_slice(),
            &[&self.draws.nonce, &self.mac, &registrar_nonce],
        );
        let name = message.get(of::DEVICE_NAME).unwrap_or_default();
        let keyed = Box::new(Keyed {
            keys,
            registrar_nonce,
            registrar_key,
            name: String::from_utf8_lossy(name)
                .trim_end_matches('\0')
                .to_owned(),
        });
        self.authentic(&keyed, message)?;
        let first = self.hash(&keyed, Half::First, &self.proof(Half::First));
        let second = self.hash(&keyed, Half::Second, &self.proof(Half::Second));
        let m3 = Writer::message(Kind::M3)
            .put(of::REGISTRAR_NONCE, &registrar_nonce)
            .put(of::E_HASH_1, &first.finish())
            .put(of::E_HASH_2, &second.finish());
        let m3 = self.say(&keyed, m3, octets);
        self.stage = Stage::Hashed(keyed);
        Ok(Step::Next(m3))
    }

    /// Says a message, authenticated together with the one that it answers.
    fn say(&mut self, keyed: &Keyed, message: Writer, answered: &[u8]) -> Vec<u8> {
        let seal = keyed.keys.seal(&[answered, message.octets()]).short();
        self.last = message.put(of::AUTHENTICATOR, &seal).finish();
        self.last.clone()
    }

    /// Whether a message comes from who has the keys and answers what was said last.
    fn authentic(&self, keyed: &Keyed, message: Attributes<'_>) -> Result<(), Failure> {
        let (before, seal) = message.sealed(of::AUTHENTICATOR)?;
        let expected = keyed.keys.seal(&[&self.last, before]);
        expected
            .begins(seal)
            .then_some(())
            .ok_or(Failure::Malformed)
    }

    /// The settings in a message that is authentic.
    fn open(&self, keyed: &Keyed, message: Attributes<'_>) -> Result<keys::Plain, Failure> {
        self.authentic(keyed, message)?;
        let settings = keyed.keys.decrypt(message.get(of::ENCRYPTED_SETTINGS)?);
        let settings = settings.ok_or(Failure::Malformed)?;
        let (before, seal) = Attributes::decode(&settings)?.sealed(of::KEY_WRAP_AUTHENTICATOR)?;
        if !keyed.keys.seal(&[before]).begins(seal) {
            return Err(Failure::Malformed);
        }
        Ok(settings)
    }

    /// Whether the other side knows a half of the PIN, now that it shows what it has hashed it with.
    fn check(
        &self,
        keyed: &Keyed,
        half: Half,
        settings: &[u8],
        told: &[u8; 32],
    ) -> Result<(), Failure> {
        let name = match half {
            Half::First => of::R_NONCE_1,
            Half::Second => of::R_NONCE_2,
        };
        let proof = Attributes::decode(settings)?.fixed::<16>(name)?;
        let expected = self.hash(keyed, half, proof);
        expected.begins(told).then_some(()).ok_or(Failure::WrongPin)
    }

    /// Shows what a half of the PIN was hashed with here.
    fn prove(&mut self, keyed: &Keyed, kind: Kind, half: Half, answered: &[u8]) -> Vec<u8> {
        let ([first, second], name) = match half {
            Half::First => (self.draws.ivs, of::E_NONCE_1),
            Half::Second => (self.draws.ivs, of::E_NONCE_2),
        };
        let iv = match half {
            Half::First => first,
            Half::Second => second,
        };
        let settings = Writer::list().put(name, &self.proof(half));
        let seal = keyed.keys.seal(&[settings.octets()]).short();
        let settings = settings.put(of::KEY_WRAP_AUTHENTICATOR, &seal);
        let sealed = keyed.keys.encrypt(iv, settings.octets());
        let message = Writer::message(kind)
            .put(of::REGISTRAR_NONCE, &keyed.registrar_nonce)
            .put(of::ENCRYPTED_SETTINGS, &sealed);
        self.say(keyed, message, answered)
    }

    fn proof(&self, half: Half) -> [u8; 16] {
        let [first, second] = self.draws.proofs;
        match half {
            Half::First => first,
            Half::Second => second,
        }
    }

    /// What a side that knows a half of the PIN says of it before it shows `proof`.
    fn hash(&self, keyed: &Keyed, half: Half, proof: &[u8; 16]) -> Seal {
        let [first, second] = self.pin.halves();
        let digits = match half {
            Half::First => first,
            Half::Second => second,
        };
        let psk = keyed.keys.seal(&[digits]).half();
        keyed
            .keys
            .seal(&[proof, psk.as_slice(), &self.public, &keyed.registrar_key])
    }
}

impl Nonces {
    /// A message that says nothing but its kind.
    fn message(self, kind: Kind) -> Vec<u8> {
        Writer::message(kind)
            .put(of::ENROLLEE_NONCE, &self.enrollee)
            .put(of::REGISTRAR_NONCE, &self.registrar)
            .finish()
    }

    /// Whether that is the last word of the other side: it has heard Done.
    pub(super) fn acknowledged_by(self, octets: &[u8]) -> bool {
        octets == self.message(Kind::Ack).as_slice()
            || Attributes::decode(octets).is_ok_and(|message| {
                message.kind() == Ok(Kind::Ack)
                    && message.fixed(of::ENROLLEE_NONCE) == Ok(&self.enrollee)
                    && message.fixed(of::REGISTRAR_NONCE) == Ok(&self.registrar)
            })
    }
}

/// A hardware address of nobody's: the keys depend on one, and by its name the device has it to itself.
fn address(device: ControlPointId) -> [u8; 6] {
    let [.., first, a, b, c, d, e] = device.octets();
    // Locally administered, of one station.
    [first & 0xfc | 0x02, a, b, c, d, e]
}
