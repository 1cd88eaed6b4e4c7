//! Sets of ports.
#![forbid(unsafe_code)]

use std::fmt;

/// Ports from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `None` if it would be empty or begin with 0, which is no port.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last {
            return None;
        }
        Some(Self { first, last })
    }

    /// The first of them.
    pub const fn first(&self) -> u16 {
        self.first
    }

    /// The last of them.
    pub const fn last(&self) -> u16 {
        self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A set of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Option<Vec<PortRange>>);

impl Ports {
    /// Every port.
    pub const EVERY: Self = Self(None);

    /// Those of the ranges; without any, every port.
    pub fn of(mut ranges: Vec<PortRange>) -> Self {
        if ranges.is_empty() {
            return Self::EVERY;
        }
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.first <= last.last.saturating_add(1) => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        let all = merged
            .first()
            .is_some_and(|only| (only.first, only.last) == (1, u16::MAX));
        Self((!all).then_some(merged))
    }

    /// The ranges, without gaps or overlaps; none: every port.
    pub fn ranges(&self) -> &[PortRange] {
        self.0.as_deref().unwrap_or_default()
    }

    /// The same, every port as well.
    pub(super) fn into_ranges(self) -> Vec<PortRange> {
        let every = PortRange {
            first: 1,
            last: u16::MAX,
        };
        self.0.unwrap_or_else(|| vec![every])
    }

    /// Whether all of `asked` is in it; `None` is every port.
    pub(super) fn cover(&self, asked: Option<u16>) -> bool {
        match (&self.0, asked) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ranges), Some(port)) => in_ranges(ranges, port),
        }
    }

    /// Whether any of it is.
    pub(super) fn touch(&self, asked: Option<u16>) -> bool {
        asked.is_none() || self.cover(asked)
    }

    pub(super) fn covers_all_of(&self, other: &Self) -> bool {
        let (Some(mine), Some(theirs)) = (&self.0, &other.0) else {
            return self.0.is_none();
        };
        theirs.iter().all(|range| {
            let mut mine = mine.iter();
            mine.any(|own| own.first <= range.first && range.last <= own.last)
        })
    }

    /// Whether a port is in both.
    pub(super) fn meet(&self, other: &Self) -> bool {
        let (Some(mine), Some(theirs)) = (&self.0, &other.0) else {
            return true;
        };
        let meets = |own: &PortRange| {
            let mut theirs = theirs.iter();
            theirs.any(|range| own.first <= range.last && range.first <= own.last)
        };
        mine.iter().any(meets)
    }

    pub(super) fn edges(&self) -> impl Iterator<Item = u16> {
        let ranges = self.0.iter().flatten();
        ranges.flat_map(|range| {
            [Some(range.first), range.last.checked_add(1)]
                .into_iter()
                .flatten()
        })
    }
}

/// Whether a port is in one of the ranges.
pub fn in_ranges(ranges: &[PortRange], port: u16) -> bool {
    let mut ranges = ranges.iter();
    ranges.any(|range| range.first <= port && port <= range.last)
}
