//! Which external ports an outbound packet may get.
//!
//! Read before editing: RFC 4787 REQ-3, REQ-3a and REQ-4, RFC 6056, RFC 7857 section 9.
#![forbid(unsafe_code)]

/// First port that is not a system port (RFC 6335 section 6).
pub const FIRST_USER_PORT: u16 = 1024;

/// Random probes for a free port before the data plane reports exhaustion: with nine of ten ports taken, one
/// in 800 allocations fails.
pub const PROBES: u32 = 64;

/// Ports the NAT may give to outbound flows, all in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PortRange {
    /// Lowest port.
    pub min: u16,
    /// Highest port, inclusive.
    pub max: u16,
    /// Lowest port of the hole left for others; above [`Self::hole_max`]: no hole.
    pub hole_min: u16,
    /// Highest port of the hole, inclusive.
    pub hole_max: u16,
}

impl Default for PortRange {
    fn default() -> Self {
        Self {
            min: FIRST_USER_PORT,
            max: u16::MAX,
            hole_min: 1,
            hole_max: 0,
        }
    }
}

impl PortRange {
    /// Whether an internal port may be kept as the external one. System ports are kept whatever the range,
    /// because only another system port could replace them (REQ-3a).
    #[inline(always)]
    pub const fn keeps(&self, port: u16) -> bool {
        if self.in_hole(port) || port == 0 {
            return false;
        }
        port < FIRST_USER_PORT || (port >= self.min && port <= self.max)
    }

    /// A port of the same class as `internal` (REQ-3a), chosen by `random`; `None` if it fell into the hole.
    #[inline(always)]
    pub const fn pick(&self, internal: u16, random: u32) -> Option<u16> {
        let (min, max) = self.class(internal);
        let span = (max as u32).saturating_sub(min as u32) + 1;
        // Multiply and shift instead of modulo: no division in the packet path and no bias worth naming.
        let offset = ((random as u64 * span as u64) >> 32) as u16;
        let port = min.saturating_add(offset);
        if self.in_hole(port) { None } else { Some(port) }
    }

    /// The same with the lowest bit given as well (RFC 4787 REQ-4); `None` also if that port is beyond the edge.
    #[inline(always)]
    pub const fn pick_like(&self, internal: u16, random: u32, odd: bool) -> Option<u16> {
        let Some(port) = self.pick(internal, random) else {
            return None;
        };
        let port = (port & !1) | odd as u16;
        let (min, max) = self.class(internal);
        if port < min || port > max || self.in_hole(port) {
            None
        } else {
            Some(port)
        }
    }

    /// The ports that may replace `internal` (REQ-3a).
    #[inline(always)]
    const fn class(&self, internal: u16) -> (u16, u16) {
        if internal < FIRST_USER_PORT {
            (1, FIRST_USER_PORT - 1)
        } else {
            (self.min, self.max)
        }
    }

    const fn in_hole(&self, port: u16) -> bool {
        port >= self.hole_min && port <= self.hole_max
    }
}

const _: () = assert!(size_of::<PortRange>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOM: [u32; 6] = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];

    #[test]
    fn class_is_kept() {
        let range = PortRange::default();
        for random in RANDOM {
            assert!(matches!(range.pick(500, random), Some(1..=1023)));
            assert!(matches!(range.pick(5000, random), Some(1024..)));
        }
        assert_eq!(range.pick(5000, 0), Some(1024));
        assert_eq!(range.pick(5000, u32::MAX), Some(65535));
    }

    #[test]
    fn parity_is_kept_and_nothing_leaves_the_class() {
        let narrow = PortRange {
            min: 20001,
            max: 20003,
            hole_min: 20002,
            hole_max: 20002,
        };
        for random in (0..=u32::MAX).step_by(0x0030_0001) {
            for internal in [5000, 5001, 500, 501] {
                let odd = internal % 2 == 1;
                if let Some(port) = PortRange::default().pick_like(internal, random, odd) {
                    assert_eq!(port % 2 == 1, odd);
                    assert_eq!(port < FIRST_USER_PORT, internal < FIRST_USER_PORT);
                    assert_ne!(port, 0);
                }
            }
            assert_eq!(narrow.pick_like(5000, random, false), None);
            let odd = narrow.pick_like(5000, random, true);
            assert!(matches!(odd, None | Some(20001 | 20003)));
        }
    }

    #[test]
    fn hole_is_left_alone() {
        let range = PortRange {
            hole_min: 32768,
            hole_max: 60999,
            ..Default::default()
        };
        assert!(!range.keeps(40000));
        assert!(range.keeps(61000));
        assert_eq!(range.pick(5000, 0x8000_0000), None);
    }

    #[test]
    fn narrow_range_still_keeps_system_ports() {
        let range = PortRange {
            min: 20000,
            max: 20003,
            ..Default::default()
        };
        assert!(range.keeps(500));
        assert!(!range.keeps(5000));
        assert!(!range.keeps(0));
        for random in RANDOM {
            assert!(matches!(range.pick(5000, random), Some(20000..=20003)));
        }
    }
}
