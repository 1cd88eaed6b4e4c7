//! The difference between the pinholes that the kernel holds and those it should hold.

use std::collections::BTreeMap;
use std::fmt;

use super::plan::EXPIRY_TOLERANCE;
use crate::types::Instant;
use crate::types::pinhole::Pinhole;

/// How the kernel differs in one pinhole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It is not there.
    Missing(Pinhole),
    /// Nobody wants it.
    Foreign(Pinhole),
    /// It lets in something else, or until another time.
    Differs(Pinhole),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pinhole, what) = match self {
            Self::Missing(pinhole) => (pinhole, "is not in the kernel"),
            Self::Foreign(pinhole) => (pinhole, "is in the kernel, but nobody wants it"),
            Self::Differs(pinhole) => (pinhole, "is another one in the kernel"),
        };
        write!(f, "pinhole {} to {} {what}", pinhole.id, pinhole.internal)
    }
}

/// Compares; the order of the elements does not matter.
pub fn differences(held: &[Pinhole], wanted: &[Pinhole]) -> Vec<Difference> {
    let mut left: BTreeMap<u16, &Pinhole> = held.iter().map(|p| (p.id, p)).collect();
    let mut differences = Vec::new();
    for want in wanted {
        match left.remove(&want.id) {
            None => differences.push(Difference::Missing(*want)),
            Some(have) if have.lets_in_as(want) && same_end(have.expires, want.expires) => {}
            Some(_) => differences.push(Difference::Differs(*want)),
        }
    }
    differences.extend(left.into_values().map(|p| Difference::Foreign(*p)));
    // Several of one id: the kernel keys by what is let in.
    if held.len() > wanted.len() && differences.is_empty() {
        let twice = held
            .iter()
            .filter(|have| !wanted.iter().any(|want| have.lets_in_as(want)));
        differences.extend(twice.map(|p| Difference::Foreign(*p)));
    }
    differences
}

fn same_end(a: Option<Instant>, b: Option<Instant>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a <= b + EXPIRY_TOLERANCE && b <= a + EXPIRY_TOLERANCE,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn pinhole(id: u16, port: u16, expires: u64) -> Pinhole {
        Pinhole {
            id,
            internal: Ipv6Addr::LOCALHOST,
            internal_port: Some(port),
            remote: None,
            remote_port: None,
            protocol: Some(6),
            expires: Some(Instant::from_millis(expires)),
        }
    }

    #[test]
    fn drift_of_every_kind_is_seen_and_rounding_is_none() {
        let wanted = [
            pinhole(1, 1000, 90_000),
            pinhole(2, 2000, 90_000),
            pinhole(3, 3000, 90_000),
        ];
        assert_eq!(differences(&wanted, &wanted), []);
        let rounded = [
            pinhole(3, 3000, 89_000),
            pinhole(1, 1000, 91_000),
            pinhole(2, 2000, 90_004),
        ];
        assert_eq!(differences(&rounded, &wanted), []);
        let drifted = [
            pinhole(1, 1001, 90_000),
            pinhole(2, 2000, 10_000),
            pinhole(9, 9000, 1),
        ];
        assert_eq!(
            differences(&drifted, &wanted),
            [
                Difference::Differs(wanted[0]),
                Difference::Differs(wanted[1]),
                Difference::Missing(wanted[2]),
                Difference::Foreign(drifted[2]),
            ]
        );
        let twice = [wanted[0], wanted[1], wanted[2], pinhole(1, 1001, 90_000)];
        assert_eq!(differences(&twice, &wanted).len(), 1);
    }
}
