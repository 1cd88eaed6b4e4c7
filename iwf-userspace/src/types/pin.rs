//! The PIN by which a control point is introduced.
//!
//! Read before editing: Wi-Fi Simple Configuration 2.0 section 7.4 (device password).

use std::fmt;
use std::str::FromStr;

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Digits of a PIN; the last one checks the others.
const DIGITS: usize = 8;

/// A PIN. Whoever knows it may have itself introduced, so only [`fmt::Display`] and serialization show it.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Pin([u8; DIGITS]);

/// A text is no PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not eight digits of which the last one checks the others")]
pub struct NotAPin;

impl Pin {
    /// One that nobody can know: any of ten million.
    pub fn random(rng: &mut StdRng) -> Self {
        let mut digits = [0; DIGITS];
        for digit in &mut digits {
            *digit = b'0' + rng.random_range(0..10_u8);
        }
        let [others @ .., last] = &mut digits;
        *last = check_digit(others);
        Self(digits)
    }

    /// Its halves, which are proven one after the other.
    pub fn halves(&self) -> [&[u8]; 2] {
        let (first, second) = self.0.split_at(DIGITS / 2);
        [first, second]
    }
}

/// Makes the sum of all digits, of which every other one counts three times, a multiple of ten.
fn check_digit(digits: &[u8]) -> u8 {
    let value = |digit: &u8| u32::from(digit.wrapping_sub(b'0'));
    let weights = [3, 1].into_iter().cycle();
    let sum: u32 = digits
        .iter()
        .map(value)
        .zip(weights)
        .map(|(d, w)| d * w)
        .sum();
    let check = (10 - sum % 10) % 10;
    b'0' + u8::try_from(check).unwrap_or(0)
}

impl FromStr for Pin {
    type Err = NotAPin;

    fn from_str(text: &str) -> Result<Self, NotAPin> {
        let digits: [u8; DIGITS] = text.as_bytes().try_into().map_err(|_| NotAPin)?;
        let [others @ .., last] = &digits;
        if !digits.iter().all(u8::is_ascii_digit) || check_digit(others) != *last {
            return Err(NotAPin);
        }
        Ok(Self(digits))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = self.0.iter();
        digits.try_for_each(|digit| write!(f, "{}", char::from(*digit)))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(..)")
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

impl TryFrom<String> for Pin {
    type Error = NotAPin;

    fn try_from(text: String) -> Result<Self, NotAPin> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn the_last_digit_checks_the_others() {
        // The one that the standard's implementations have as their example.
        let pin: Pin = "12345670".parse().unwrap();
        assert_eq!(pin.halves(), [b"1234".as_slice(), b"5670"]);
        assert_eq!(pin.to_string(), "12345670");
        for wrong in ["", "1234567", "12345671", "1234567O", "123456700", "１２"] {
            assert_eq!(wrong.parse::<Pin>(), Err(NotAPin), "{wrong}");
        }
    }

    #[test]
    fn random_ones_are_good_ones_and_differ() {
        let mut rng = StdRng::from_seed([5; 32]);
        let pins: BTreeSet<_> = (0..200)
            .map(|_| Pin::random(&mut rng).to_string())
            .collect();
        assert!(pins.len() >= 199, "{}", pins.len());
        assert!(pins.iter().all(|pin| pin.parse::<Pin>().is_ok()));
    }

    #[test]
    fn nobody_reads_one_by_chance() {
        let pin: Pin = "12345670".parse().unwrap();
        assert_eq!(format!("{pin:?}"), "Pin(..)");
        assert_eq!(serde_json::to_string(&pin).unwrap(), "\"12345670\"");
        assert!(serde_json::from_str::<Pin>("\"12345678\"").is_err());
    }
}
