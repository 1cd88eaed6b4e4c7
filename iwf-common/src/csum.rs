//! Internet checksums, changed without being recomputed (RFC 1624).
//!
//! Read before editing: RFC 1071 section 2, RFC 1624 section 3. The sum does not depend on byte order, so all
//! words here are as they lie in memory.
#![forbid(unsafe_code)]

/// One's complement sum of two words.
#[inline(always)]
pub const fn add(a: u16, b: u16) -> u16 {
    let sum = a as u32 + b as u32;
    (sum as u16).wrapping_add((sum >> 16) as u16)
}

/// What replacing `old` by `new` does to the sum.
#[inline(always)]
pub const fn delta16(old: [u8; 2], new: [u8; 2]) -> u16 {
    add(!u16::from_ne_bytes(old), u16::from_ne_bytes(new))
}

/// What replacing `old` by `new`, aligned to a word, does to the sum.
#[inline(always)]
pub const fn delta32(old: [u8; 4], new: [u8; 4]) -> u16 {
    add(
        delta16([old[0], old[1]], [new[0], new[1]]),
        delta16([old[2], old[3]], [new[2], new[3]]),
    )
}

/// The checksum field after a change of `delta` (RFC 1624 equation 3).
#[inline(always)]
pub const fn apply(field: u16, delta: u16) -> u16 {
    !add(!field, delta)
}

/// The UDP checksum field after a change of `delta`. RFC 768: 0 means "none" and stays, a computed 0 is sent
/// as all ones.
#[inline(always)]
pub const fn apply_udp(field: u16, delta: u16) -> u16 {
    if field == 0 {
        return 0;
    }
    match apply(field, delta) {
        0 => 0xffff,
        field => field,
    }
}

/// What taking 1 from the TTL does to the sum of the IPv4 header.
pub const TTL_DELTA: u16 = u16::from_be(0xfeff);

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 section 4.1, written without looking at the code above.
    fn full(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair[0], low]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).expect("folded")
    }

    fn header(ttl: u8, src: [u8; 4]) -> [u8; 20] {
        let mut ip = [
            0x45, 0, 0, 60, 0x1c, 0x46, 0x40, 0, ttl, 17, 0, 0, 0, 0, 0, 0, 11, 22, 33, 4,
        ];
        ip[12..16].copy_from_slice(&src);
        let sum = full(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    }

    fn field(ip: &[u8; 20]) -> u16 {
        u16::from_ne_bytes([ip[10], ip[11]])
    }

    #[test]
    fn address_change_equals_recomputation() {
        // A fixed stride walks through addresses with every carry pattern.
        for i in 0..20_000u32 {
            let old = i.wrapping_mul(2_654_435_761).to_be_bytes();
            let new = (!i).wrapping_mul(40_503).to_be_bytes();
            let changed = apply(field(&header(64, old)), delta32(old, new));
            assert_eq!(changed, field(&header(64, new)), "{old:?} to {new:?}");
        }
    }

    #[test]
    fn ttl_change_equals_recomputation() {
        for ttl in 2..=255 {
            let src = [192, 168, ttl, 1];
            let changed = apply(field(&header(ttl, src)), TTL_DELTA);
            assert_eq!(changed, field(&header(ttl - 1, src)), "ttl {ttl}");
        }
    }

    #[test]
    fn deltas_add_up() {
        let (a, b) = ([10, 0, 0, 1], [100, 64, 0, 2]);
        let both = add(delta32(a, b), TTL_DELTA);
        assert_eq!(apply(field(&header(9, a)), both), field(&header(8, b)));
    }

    #[test]
    fn udp_zero_is_no_checksum() {
        assert_eq!(apply_udp(0, 0x1234), 0);
        // A change that makes the sum all ones makes the field 0, which must be sent as 0xffff.
        let field = 0x1234;
        let delta = add(field, 0);
        assert_eq!(apply(field, delta), 0);
        assert_eq!(apply_udp(field, delta), 0xffff);
    }
}
