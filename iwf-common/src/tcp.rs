//! What the NAT remembers about a TCP connection: which flags each direction has shown.
//!
//! Read before editing: RFC 5382 section 5, RFC 7857 section 2. Each direction keeps its own set, so that the
//! fast path touches only its own entry and writes only when a flag is new; the state of the connection is a
//! function of both sets.
#![forbid(unsafe_code)]

/// FIN bit of the TCP header's flags octet.
pub const FIN: u8 = 0x01;
/// SYN bit.
pub const SYN: u8 = 0x02;
/// RST bit.
pub const RST: u8 = 0x04;
/// ACK bit.
pub const ACK: u8 = 0x10;

/// The flags that are remembered.
pub const TRACKED: u8 = FIN | SYN | RST | ACK;

/// How long a connection may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Opening, closing, reset or half seen (RFC 5382 REQ-5 "transitory", RFC 7857 section 2.1).
    Transitory,
    /// Open.
    Established,
}

/// Whether a segment may begin a session: a SYN and nothing that answers or ends another connection.
///
/// A RST or a stray ACK must not (architecture decision 6): after a restart of the daemon sessions are still
/// there, because they are pinned, so a segment without one belongs to nothing this NAT promised.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether a segment may begin a new connection on a session of an old one: [`reopens`] decides. Not so a SYN that
/// is sent again while the connection opens.
#[inline(always)]
pub const fn may_reopen(seen: u8, flags: u8) -> bool {
    opens(flags) && seen & (ACK | FIN | RST) != 0
}

/// The set of one direction after a segment with `flags`. RST is in it only while it is the last that was seen: data
/// after it takes it back (RFC 7857 section 2.2).
#[inline(always)]
pub const fn observe(seen: u8, flags: u8) -> u8 {
    (seen & !RST) | (flags & TRACKED)
}

/// What a connection has shown in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The set as [`observe`] keeps it.
    pub flags: u8,
    /// Tick of the last segment.
    pub last: u32,
}

impl Shown {
    /// Whether the connection is reset from this side: a RST was the last it showed, and nothing but a RST has come
    /// from the other side since. What comes in the same tick may have crossed it.
    #[inline(always)]
    const fn resets(&self, other: &Self) -> bool {
        let since = other.flags & RST == 0 && crate::tick::age(other.last, self.last) > 0;
        self.flags & RST != 0 && !since
    }
}

/// Whether the old connection has ended, so that a SYN of the side that has shown `own` takes its session for a new one
/// (RFC 6191). A reset that was taken back ends nothing.
#[inline(always)]
pub const fn reopens(own: Shown, other: Shown) -> bool {
    let reset = own.resets(&other);
    let again = own.flags & (ACK | FIN) == 0 && !reset;
    let ended = (own.flags | other.flags) & FIN != 0 || reset || other.resets(&own);
    ended && !again
}

/// The phase of a connection (RFC 7857 figure 1): after a RST it has the time of a closing one, and is open again if
/// something comes in that time.
#[inline(always)]
pub const fn phase(one: Shown, other: Shown) -> Phase {
    let (a, b) = (one.flags, other.flags);
    let reset = one.resets(&other) || other.resets(&one);
    let closed = a & b & FIN != 0;
    let opened = a & b & SYN != 0 && a & b & ACK != 0;
    if opened && !reset && !closed {
        Phase::Established
    } else {
        Phase::Transitory
    }
}

/// Whether a connection is a use of its mapping, by what its direction out has shown and whether a remote host began
/// it (RFC 7857 sections 7 and 7.1). A host that answers with a RST, or not at all, does not want what comes in: a
/// stranger could keep the mapping for ever.
#[inline(always)]
pub const fn uses_mapping(out: u8, invited: bool) -> bool {
    out & RST == 0 && (!invited || out & SYN != 0)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    fn after(segments: &[(bool, u8)]) -> Phase {
        let (mut out, mut back) = (Shown::default(), Shown::default());
        for (last, (outbound, flags)) in (u32::MAX - 2..=u32::MAX).chain(0..).zip(segments) {
            let side = if *outbound { &mut out } else { &mut back };
            side.flags = observe(side.flags, *flags);
            side.last = last;
        }
        assert_eq!(phase(out, back), phase(back, out));
        phase(out, back)
    }

    #[test]
    fn a_host_that_refuses_uses_nothing() {
        for (out, invited, uses) in [
            (SYN, false, true),
            (SYN | ACK, true, true),
            (SYN | ACK | FIN, true, true),
            (0, true, false),
            (RST | ACK, true, false),
            (SYN | ACK | RST, true, false),
            (SYN | ACK | RST, false, false),
        ] {
            assert_eq!(uses_mapping(out, invited), uses, "{out:#x} {invited}");
        }
    }

    const OPEN: [(bool, u8); 3] = [(true, SYN), (false, SYN | ACK), (true, ACK)];

    #[test]
    fn handshake_establishes_only_with_its_last_segment() {
        assert_eq!(after(&OPEN[..1]), Phase::Transitory);
        assert_eq!(after(&OPEN[..2]), Phase::Transitory);
        assert_eq!(after(&OPEN), Phase::Established);
    }

    #[test]
    fn simultaneous_open_establishes() {
        let segments = [
            (true, SYN),
            (false, SYN),
            (true, SYN | ACK),
            (false, SYN | ACK),
        ];
        assert_eq!(after(&segments), Phase::Established);
    }

    #[test]
    fn half_close_stays_established_and_full_close_does_not() {
        let mut segments = OPEN.to_vec();
        segments.push((true, FIN | ACK));
        assert_eq!(after(&segments), Phase::Established);
        segments.push((false, FIN | ACK));
        assert_eq!(after(&segments), Phase::Transitory);
    }

    /// RFC 7857 figure 1, from an open connection on.
    #[test]
    fn a_reset_holds_until_something_else_comes() {
        use Phase::{Established, Transitory};
        let cases: [(&[(bool, u8)], Phase); 9] = [
            (&[(false, RST)], Transitory),
            (&[(true, RST | ACK)], Transitory),
            (&[(true, RST), (true, RST)], Transitory),
            (&[(true, RST), (false, RST | ACK)], Transitory),
            // From the side that was reset, and from the one that did it.
            (&[(false, RST), (true, ACK)], Established),
            (&[(false, RST), (false, ACK)], Established),
            (&[(true, RST), (false, RST), (true, ACK)], Established),
            (&[(true, RST), (false, ACK), (true, RST)], Transitory),
            // What is closed stays so.
            (
                &[
                    (true, FIN | ACK),
                    (false, FIN | ACK),
                    (true, RST),
                    (false, ACK),
                ],
                Transitory,
            ),
        ];
        for (more, expected) in cases {
            let segments: std::vec::Vec<_> = OPEN.iter().chain(more).copied().collect();
            assert_eq!(after(&segments), expected, "{more:?}");
        }
    }

    #[test]
    fn what_may_have_crossed_the_reset_does_not_count() {
        let open = SYN | ACK;
        let reset = Shown {
            flags: open | RST,
            last: 7,
        };
        let data = |last| Shown { flags: open, last };
        assert_eq!(phase(reset, data(6)), Phase::Transitory);
        assert_eq!(phase(reset, data(7)), Phase::Transitory);
        assert_eq!(phase(reset, data(8)), Phase::Established);
    }

    #[test]
    fn only_a_bare_syn_opens() {
        assert!(opens(SYN));
        assert!(opens(SYN | 0x08 | 0xc0)); // PSH and the ECN bits say nothing about the connection
        for flags in [ACK, RST, FIN, SYN | ACK, SYN | RST, SYN | FIN, 0] {
            assert!(!opens(flags), "{flags:#x}");
        }
        assert!(may_reopen(SYN | ACK, SYN));
        assert!(!may_reopen(SYN, SYN), "the same SYN once more");
        assert!(!may_reopen(SYN | ACK, SYN | ACK));
        let shown = |flags, last| Shown { flags, last };
        let open = SYN | ACK;
        assert!(reopens(shown(open | FIN, 7), shown(open, 7)));
        assert!(reopens(shown(open, 7), shown(open | RST, 8)));
        assert!(reopens(shown(open | RST, 8), shown(open, 7)));
        assert!(!reopens(shown(open, 7), shown(open, 7)), "it is open");
    }

    /// RFC 7857 section 2.2: a forged RST and a forged SYN must not make a connection young again.
    #[test]
    fn a_reset_that_was_taken_back_opens_nothing() {
        let shown = |flags, last| Shown { flags, last };
        let open = SYN | ACK;
        assert!(!reopens(shown(open | RST, 7), shown(open, 8)));
        assert!(!reopens(shown(open, 8), shown(open | RST, 7)));
        let again = shown(SYN | RST, 7);
        assert!(!reopens(again, shown(open | FIN, 8)), "its first SYN");
    }
}
