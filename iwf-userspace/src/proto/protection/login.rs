//! PKCS5: how a user proves that the password is known without saying it.
//!
//! Read before editing: DeviceProtection:1 section 2.4.5; RFC 8018 section 5.2; requirements DP-004, DP-005.

use std::collections::BTreeMap;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::types::Instant;
use crate::types::access::{ControlPointId, Verifier};
use crate::types::caller::Station;

/// Rounds of the derivation.
const ROUNDS: u32 = 5000;
/// Octets of everything that is exchanged.
pub(super) const LEN: usize = 16;
/// Failed logins after which a connection is closed (DP-005), and after which a host has to wait.
pub(super) const MAX_FAILURES: u8 = 5;
/// How long a host waits then.
const PAUSE: Duration = Duration::from_secs(30);
/// Hosts whose failures are remembered. Those of one more are counted with everybody's alone.
const MAX_HOSTS: usize = 64;
/// Failures of all hosts together that may come at once, and the time after which one more may.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(6);

/// STORED: what is kept of a password (vector DP-01).
pub fn verifier(name: &str, password: &str, salt: [u8; LEN]) -> Verifier {
    let salted = [name.as_bytes(), &salt].concat();
    let stored = pbkdf2::pbkdf2_hmac_array::<Sha256, LEN>(password.as_bytes(), &salted, ROUNDS);
    Verifier { stored, salt }
}

/// What is asked of a control point.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) name: String,
    pub(super) octets: [u8; LEN],
}

impl Challenge {
    /// Whether that is the answer of somebody who knows the password. `device` is the identity that the control point takes
    /// the device by.
    pub(super) fn is_met(
        &self,
        verifier: &Verifier,
        device: [u8; LEN],
        control_point: ControlPointId,
        authenticator: &[u8],
    ) -> bool {
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(&verifier.stored) else {
            return false;
        };
        authenticator.len() == LEN
            && mac
                .chain_update(self.octets)
                .chain_update(device)
                .chain_update(control_point.octets())
                // In constant time.
                .verify_truncated_left(authenticator)
                .is_ok()
    }
}

/// A salt for a name that nobody has, the same each time, so that names cannot be tried out.
pub(super) fn decoy_salt(secret: &[u8; 32], name: &str) -> [u8; LEN] {
    let mut salt = [0; LEN];
    if let Ok(mac) = Hmac::<Sha256>::new_from_slice(secret) {
        let octets = mac.chain_update(name).finalize().into_bytes();
        for (to, from) in salt.iter_mut().zip(octets) {
            *to = from;
        }
    }
    salt
}

/// Failed logins, so that passwords cannot be tried out: of a host five before it has to wait, of all together ten a
/// minute.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    hosts: BTreeMap<Station, (u8, Instant)>,
    /// The bucket is full at this instant; each failure moves it into the future.
    full_at: Instant,
}

impl Attempts {
    /// Whether a login of that host is not even looked at.
    pub(super) fn must_wait(&self, host: Station, now: Instant) -> bool {
        let of_host = self.hosts.get(&host);
        let paused = of_host
            .is_some_and(|(failures, last)| *failures >= MAX_FAILURES && now < *last + PAUSE);
        paused || self.full_at.saturating_duration_since(now) > REFILL * (BURST - 1)
    }

    pub(super) fn failed(&mut self, host: Station, now: Instant) {
        self.full_at = self.full_at.max(now) + REFILL;
        self.hosts.retain(|_, (_, last)| now < *last + PAUSE);
        if self.hosts.len() < MAX_HOSTS || self.hosts.contains_key(&host) {
            let (failures, last) = self.hosts.entry(host).or_insert((0, now));
            *failures = failures.saturating_add(1);
            *last = now;
        }
    }

    pub(super) fn succeeded(&mut self, host: Station) {
        self.hosts.remove(&host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octets(hex: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    /// Vector DP-01.
    #[test]
    fn what_is_kept_of_a_password() {
        let salt = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let kept = verifier("Administrator", "secret", salt);
        assert_eq!(
            kept.stored.to_vec(),
            octets("064a73e7b60d0ea38b21fc999424eb2d")
        );
    }

    #[test]
    fn an_answer_is_bound_to_challenge_password_and_both_ends() {
        let id = |octet| ControlPointId::from_hash(&[octet; 32]);
        let verifier = Verifier {
            stored: [7; LEN],
            salt: [0; LEN],
        };
        let challenge = Challenge {
            name: "x".to_owned(),
            octets: [1; LEN],
        };
        let mac = Hmac::<Sha256>::new_from_slice(&[7; LEN]).unwrap();
        let mac = mac.chain_update([1; LEN]).chain_update([2; LEN]);
        let mac = mac.chain_update(id(3).octets()).finalize().into_bytes();
        let right = &mac[..LEN];
        assert!(challenge.is_met(&verifier, [2; LEN], id(3), right));
        assert!(!challenge.is_met(&verifier, [3; LEN], id(3), right));
        assert!(!challenge.is_met(&verifier, [2; LEN], id(4), right));
        for wrong in [&mac[..0], &mac[..LEN - 1], &mac[..], &[0; LEN]] {
            assert!(!challenge.is_met(&verifier, [2; LEN], id(3), wrong));
        }
    }

    #[test]
    fn who_fails_often_waits_and_others_do_not() {
        let host = |n: u8| Station::Addr([192, 168, 1, n].into());
        let at = |secs: u64| Instant::from_millis(1000 * secs);
        let mut attempts = Attempts::default();
        for _ in 0..MAX_FAILURES {
            assert!(!attempts.must_wait(host(1), at(100)));
            attempts.failed(host(1), at(100));
        }
        assert!(attempts.must_wait(host(1), at(129)));
        assert!(!attempts.must_wait(host(2), at(100)));
        assert!(!attempts.must_wait(host(1), at(130)));
        // Many hosts together have a bucket.
        let mut attempts = Attempts::default();
        for n in 0..20 {
            assert!(!attempts.must_wait(host(n), at(200)), "{n}");
            attempts.failed(host(n), at(200));
        }
        assert!(attempts.must_wait(host(99), at(200)));
        assert!(!attempts.must_wait(host(99), at(206)));
    }
}
