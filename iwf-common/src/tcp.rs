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

/// Whether a segment begins a new connection on a session whose old one has ended (RFC 6191).
#[inline(always)]
pub const fn reopens(seen: u8, flags: u8) -> bool {
    opens(flags) && seen & (FIN | RST) != 0
}

/// The set of one direction after a segment with `flags`.
#[inline(always)]
pub const fn observe(seen: u8, flags: u8) -> u8 {
    seen | (flags & TRACKED)
}

/// The phase of a connection whose directions have shown `a` and `b`.
#[inline(always)]
pub const fn phase(a: u8, b: u8) -> Phase {
    let reset = (a | b) & RST != 0;
    let closed = a & b & FIN != 0;
    let opened = a & b & SYN != 0 && a & b & ACK != 0;
    if opened && !reset && !closed {
        Phase::Established
    } else {
        Phase::Transitory
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    fn after(segments: &[(bool, u8)]) -> Phase {
        let (mut out, mut back) = (0, 0);
        for (outbound, flags) in segments {
            if *outbound {
                out = observe(out, *flags);
            } else {
                back = observe(back, *flags);
            }
        }
        phase(out, back)
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

    #[test]
    fn reset_is_transitory() {
        let mut segments = OPEN.to_vec();
        segments.push((false, RST));
        assert_eq!(after(&segments), Phase::Transitory);
    }

    #[test]
    fn only_a_bare_syn_opens() {
        assert!(opens(SYN));
        assert!(opens(SYN | 0x08 | 0xc0)); // PSH and the ECN bits say nothing about the connection
        for flags in [ACK, RST, FIN, SYN | ACK, SYN | RST, SYN | FIN, 0] {
            assert!(!opens(flags), "{flags:#x}");
        }
        assert!(reopens(SYN | ACK | FIN, SYN));
        assert!(!reopens(SYN | ACK, SYN));
    }
}
