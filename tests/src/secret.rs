//! Whether a secret shows anywhere in what a program gave out, in whichever form one writes such octets.

use std::fmt::Write as _;

/// Octets in a row that are enough to call it shown: what remains could be guessed, and chance does not bring so many
/// together.
const ENOUGH: usize = 6;
/// Digits of a number that are enough to be no other.
const DIGITS: usize = 9;

/// What a program gave out, in the ways in which it is searched.
#[derive(Clone, Debug)]
pub struct Given {
    /// Each octet a character, so that texts are found whatever else is there.
    text: String,
    /// Its digits alone, so that no separator matters, and neither does case.
    hexadecimal: String,
    hexadecimal_list: String,
    decimal_list: String,
}

impl Given {
    /// To be searched several times.
    pub fn new(octets: &[u8]) -> Self {
        let text: String = octets.iter().copied().map(char::from).collect();
        let digits = text.chars().filter(char::is_ascii_hexdigit);
        Self {
            hexadecimal: digits.map(|digit| digit.to_ascii_lowercase()).collect(),
            hexadecimal_list: hexadecimal_list(&text),
            decimal_list: decimal_list(&text),
            text,
        }
    }
}

/// A secret of 12 octets, as the nonces of RFC 6887 section 11.1 are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Secret(pub [u8; 12]);

impl Secret {
    /// In which form the secret, or half of it, is there.
    pub fn shown_in(&self, given: &Given) -> Option<&'static str> {
        let forms = |part: &[u8]| {
            let plain: String = part.iter().copied().map(char::from).collect();
            if given.text.contains(&plain) {
                return Some("as it is");
            }
            if given.text.contains(&part.escape_ascii().to_string()) {
                return Some("with escapes");
            }
            let digits = part.iter().fold(String::new(), |mut all, octet| {
                write!(all, "{octet:02x}").expect("text grows");
                all
            });
            if given.hexadecimal.contains(&digits) {
                return Some("in hexadecimal digits");
            }
            let list = spaced(part.iter().copied());
            if given.hexadecimal_list.contains(&list) {
                return Some("as a list of hexadecimal numbers");
            }
            given
                .decimal_list
                .contains(&list)
                .then_some("as a list of numbers")
        };
        if let Some(form) = self.0.windows(ENOUGH).find_map(forms) {
            return Some(form);
        }
        if self.numbers().any(|number| given.text.contains(&number)) {
            return Some("as a number");
        }
        // Wherever it begins in what is encoded, one of three alignments has whole digits of it.
        let encoded = |at: usize| self.0.get(at..at + 9).map(base64);
        (0..3)
            .filter_map(encoded)
            .flat_map(|digits| [digits.replace('+', "-").replace('/', "_"), digits])
            .any(|digits| given.text.contains(&digits))
            .then_some("in base 64")
    }

    /// It, its halves and its thirds as decimal numbers, of either byte order.
    fn numbers(&self) -> impl Iterator<Item = String> {
        let groups = [4, 8, 12].into_iter().flat_map(|size| self.0.windows(size));
        let both = groups.flat_map(|octets| {
            let big = octets
                .iter()
                .fold(0_u128, |n, octet| n << 8 | u128::from(*octet));
            let little = octets
                .iter()
                .rev()
                .fold(0_u128, |n, octet| n << 8 | u128::from(*octet));
            [big, little]
        });
        both.map(|number| number.to_string())
            .filter(|digits| digits.len() >= DIGITS)
    }
}

/// The decimal numbers of a text with a space on each side of every one.
fn decimal_list(text: &str) -> String {
    let numbers = text.split(|c: char| !c.is_ascii_digit());
    spaced(numbers.filter_map(|number| number.parse::<u8>().ok()))
}

/// The same of those that are written `0x7f`.
fn hexadecimal_list(text: &str) -> String {
    let numbers = text.split("0x").skip(1);
    spaced(numbers.filter_map(|rest| {
        let end = rest
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(rest.len());
        u8::from_str_radix(rest.get(..end)?, 16).ok()
    }))
}

fn spaced(numbers: impl Iterator<Item = u8>) -> String {
    numbers.fold(" ".to_owned(), |mut all, number| {
        write!(all, "{number} ").expect("text grows");
        all
    })
}

/// RFC 4648 section 4; whole groups of three octets only.
fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = octets.chunks_exact(3).flat_map(|group| {
        let bits = group
            .iter()
            .fold(0_u32, |n, octet| n << 8 | u32::from(*octet));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[(bits >> shift & 63) as usize]))
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Secret = Secret([
        0x00, 0x7f, 0xa1, 0x0b, 0xc2, 0x9d, 0x33, 0xfe, 0x05, 0xee, 0x61, 0xb8,
    ]);

    #[test]
    fn every_form_is_found_wherever_it_stands() {
        for (text, form) in [
            ("nonce=007fa10bc29d33fe05ee61b8", "in hexadecimal digits"),
            ("<a>7FA10BC29D33</a>", "in hexadecimal digits"),
            ("00:7f:a1:0b:c2:9d:33:fe", "in hexadecimal digits"),
            ("bc29d33f-e05e-e61b", "in hexadecimal digits"),
            (
                "[0x0, 0x7f, 0xa1, 0xb, 0xc2, 0x9d, 0x33]",
                "as a list of hexadecimal numbers",
            ),
            (
                "Nonce([0, 127, 161, 11, 194, 157, 51])",
                "as a list of numbers",
            ),
            ("127.161.11.194.157.51", "as a list of numbers"),
            (r#"b"\x00\x7f\xa1\x0b\xc2\x9d3\xfe""#, "with escapes"),
            // Two of its thirds, as the two byte orders have them.
            ("id 3265082366", "as a number"),
            ("id 3093425669", "as a number"),
            ("AH+hC8KdM/4F7mG4", "in base 64"),
            ("=f6ELwp0z_gXu", "in base 64"),
        ] {
            assert_eq!(
                NONCE.shown_in(&Given::new(text.as_bytes())),
                Some(form),
                "{text}"
            );
        }
        let mut octets = vec![1; 20];
        octets.splice(7..7, NONCE.0);
        assert_eq!(NONCE.shown_in(&Given::new(&octets)), Some("as it is"));
    }

    #[test]
    fn what_is_not_the_secret_is_not_taken_for_it() {
        for text in [
            "",
            "007fa10bc2",
            "[0, 127, 161, 11, 194]",
            "2001:db8::7f:a1:b",
            "192.168.1.10:8080 and 300 more",
        ] {
            assert_eq!(NONCE.shown_in(&Given::new(text.as_bytes())), None, "{text}");
        }
    }
}
