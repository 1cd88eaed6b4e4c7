//! When control points may be introduced, which one is, and how often a PIN may be guessed.
//!
//! Read before editing: DeviceProtection:1 sections 2.3.1 and 2.4.1; requirement DP-006.
//!
//! Nobody is introduced unless the owner shows a PIN, a fresh one each time. A PIN is good for one control point, for ten
//! minutes and for three wrong guesses; its halves are proven one after the other, so that a stranger on the LAN guesses it
//! with a chance below one in a million.

use std::net::IpAddr;
use std::time::Duration;

use rand::rngs::StdRng;

use crate::types::Instant;
use crate::types::access::ControlPointId;
use crate::types::caller::{Caller, Station};
use crate::types::pin::Pin;
use crate::wire::soap::{UpnpError, protection as errors};

use super::enrollee::{Draws, Enrollee, Failure, Nonces, Step};

/// How long a PIN is good.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(600);
/// Wrong guesses after which it is not any more.
pub(super) const MAX_WRONG: u8 = 3;
/// Wi-Fi Simple Configuration 2.0 section 7: how long a run may take.
pub(super) const LIMIT: Duration = Duration::from_secs(120);
/// How long a host leaves room for others then, whatever it has done in the meantime but guess.
pub(super) const PAUSE: Duration = Duration::from_secs(30);

/// What happened, for the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A control point was introduced and has the role Basic.
    Introduced {
        /// Which.
        control_point: ControlPointId,
        /// Where it is.
        host: IpAddr,
    },
    /// It was not: it did not know the PIN.
    WrongPin {
        /// Which.
        control_point: ControlPointId,
        /// Where it is.
        host: IpAddr,
        /// How many more wrong ones the PIN is good for; 0: it is not any more.
        left: u8,
    },
    /// It was not: it did not finish in time.
    RanOut {
        /// Which.
        control_point: ControlPointId,
        /// Where it is.
        host: IpAddr,
    },
}

/// How it stands, for the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// When the PIN ends that is shown.
    pub until: Instant,
    /// Wrong ones so far.
    pub wrong: u8,
    /// Who is being introduced.
    pub peer: Option<ControlPointId>,
}

/// What a control point hears.
#[derive(Debug)]
pub(super) enum Heard {
    /// This.
    Answer(Vec<u8>),
    /// This when it is on the access list; and what it calls itself.
    Introduced(Vec<u8>, String),
}

/// The introductions.
#[derive(Default)]
pub(super) struct Introductions {
    window: Option<Window>,
    running: Option<Run>,
    /// Who was introduced last and may say that it has heard so.
    last: Option<(ControlPointId, Nonces)>,
    /// Whose turn it is or was, and until when: a host that begins again has no more time.
    turn: Option<(Station, Instant)>,
    told: Vec<Told>,
}

/// A PIN is shown.
struct Window {
    pin: Pin,
    until: Instant,
    wrong: u8,
}

struct Run {
    peer: ControlPointId,
    host: IpAddr,
    enrollee: Enrollee,
    until: Instant,
}

impl Introductions {
    /// Shows another PIN; who is being introduced with an earlier one is not.
    pub(super) fn open(&mut self, rng: &mut StdRng, now: Instant) -> Pin {
        let pin = Pin::random(rng);
        self.close();
        self.window = Some(Window {
            pin: pin.clone(),
            until: now + GOOD_FOR,
            wrong: 0,
        });
        pin
    }

    /// The PIN is not good any more.
    pub(super) fn close(&mut self) {
        self.running = None;
        self.window = None;
        self.turn = None;
    }

    /// SetupReady.
    pub(super) const fn is_ready(&self) -> bool {
        self.window.is_some() && self.running.is_none()
    }

    pub(super) fn standing(&self) -> Option<Standing> {
        let window = self.window.as_ref()?;
        Some(Standing {
            until: window.until,
            wrong: window.wrong,
            peer: self.running.as_ref().map(|run| run.peer),
        })
    }

    /// Ends what has taken too long.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(run) = self.running.take_if(|run| run.until <= now) {
            self.told.push(Told::RanOut {
                control_point: run.peer,
                host: run.host,
            });
        }
        self.window.take_if(|window| window.until <= now);
        self.turn.take_if(|(_, until)| *until + PAUSE <= now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let window = self.window.as_ref().map(|window| window.until);
        let run = self.running.as_ref().map(|run| run.until);
        window.into_iter().chain(run).min()
    }

    /// What there is to tell since the last time.
    pub(super) fn poll_told(&mut self) -> Option<Told> {
        (!self.told.is_empty()).then(|| self.told.remove(0))
    }

    /// A control point wants to be introduced; M1. One that is being introduced begins again, without more time.
    pub(super) fn begin(
        &mut self,
        device: ControlPointId,
        peer: ControlPointId,
        caller: &Caller,
        rng: &mut StdRng,
        now: Instant,
    ) -> Result<Vec<u8>, UpnpError> {
        let window = self.window.as_ref().ok_or(errors::BUSY)?;
        if self.running.as_ref().is_some_and(|run| run.peer != peer) {
            return Err(errors::BUSY);
        }
        let host = Station::from(caller);
        let until = match self.turn.filter(|(whose, _)| *whose == host) {
            Some((_, until)) if until <= now => return Err(errors::BUSY),
            Some((_, until)) => until,
            None => now + LIMIT,
        };
        self.turn = Some((host, until));
        let draws = Draws::new(rng);
        let (enrollee, m1) = Enrollee::begin(device, peer, window.pin.clone(), draws);
        self.running = Some(Run {
            peer,
            host: caller.addr,
            enrollee,
            until: until.min(window.until),
        });
        self.last = None;
        Ok(m1)
    }

    /// A control point says something in its introduction.
    pub(super) fn hear(&mut self, peer: ControlPointId, octets: &[u8]) -> Result<Heard, UpnpError> {
        let Some(mut run) = self.running.take_if(|run| run.peer == peer) else {
            let is_last_word = |(who, nonces): &mut (ControlPointId, Nonces)| {
                *who == peer && nonces.acknowledged_by(octets)
            };
            return match (self.last.take_if(is_last_word), &self.running) {
                (Some(_), _) => Ok(Heard::Answer(Vec::new())),
                (None, Some(_)) => Err(errors::BUSY),
                (None, None) => Err(errors::PROCESSING_ERROR),
            };
        };
        match run.enrollee.hear(octets) {
            Ok(Step::Next(message)) => {
                self.running = Some(run);
                Ok(Heard::Answer(message))
            }
            Ok(Step::GivenUp(message)) => Ok(Heard::Answer(message)),
            Ok(Step::Introduced(message, who)) => {
                self.window = None;
                self.turn = None;
                self.last = Some((peer, who.nonces));
                Ok(Heard::Introduced(message, who.name))
            }
            Err(Failure::Malformed) => Err(errors::PROCESSING_ERROR),
            Err(Failure::WrongPin) => {
                // A guess is dear enough.
                self.turn = None;
                let wrong = self.window.as_mut().map_or(MAX_WRONG, |window| {
                    window.wrong += 1;
                    window.wrong
                });
                let left = MAX_WRONG.saturating_sub(wrong);
                if left == 0 {
                    self.window = None;
                }
                self.told.push(Told::WrongPin {
                    control_point: peer,
                    host: run.host,
                    left,
                });
                Err(errors::AUTHENTICATION_FAILURE)
            }
        }
    }
}
