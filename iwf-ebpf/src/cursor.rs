//! The only place where an offset becomes a pointer into a packet, and where packets are read and written.

use core::arch::asm;

/// The linear part of a packet.
#[derive(Clone, Copy)]
pub struct Cursor {
    start: usize,
    end: usize,
}

impl Cursor {
    /// Between `start` and `end` as the context gives them.
    #[inline(always)]
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Octets in the linear part.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.end.wrapping_sub(self.start)
    }

    /// The `LEN` octets at `offset`, if all of them are there.
    ///
    /// The pointer is good until a helper moves packet data; callers keep it for a few statements only, and
    /// every access goes through it, never through a reference.
    #[inline(always)]
    pub fn at<const LEN: usize>(&self, offset: usize) -> Option<*mut u8> {
        let header = self.start + offset;
        // The verifier proves the same comparison: in bounds on this branch, unreachable on the other.
        if header + LEN > self.end {
            return None;
        }
        Some(header as *mut u8)
    }

    /// As [`at`](Self::at), with the comparison as it is written: in loops and for single octets the compiler
    /// turns it into one that is equal, and that the verifier does not understand.
    #[inline(always)]
    pub fn plainly_at<const LEN: usize>(&self, offset: usize) -> Option<*mut u8> {
        let header = self.start + offset;
        let mut edge = header;
        // SAFETY: adds to a register.
        unsafe {
            asm!(
                "{edge} += {len}",
                edge = inout(reg) edge,
                len = const LEN,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        if edge > self.end {
            return None;
        }
        Some(header as *mut u8)
    }

    /// Copies the `len` octets at `offset`, at least 8 and at most `MOST`, to `into`; `false` if they are
    /// not all there.
    ///
    /// By words, because no helper of older kernels copies from an XDP packet. The last word overlaps the one before
    /// it, so that no octet is left over.
    #[inline(always)]
    pub fn copy<const MOST: usize>(&self, offset: usize, into: *mut u8, len: usize) -> bool {
        const WORD: usize = 8;
        let Some(len) = within::<WORD, MOST>(len) else {
            return false;
        };
        // Older verifiers follow a comparison whose outcome is known: the first word is always there.
        if !self.copy_word(offset, into, 0) {
            return false;
        }
        for word in 1..MOST / WORD {
            if (word + 1) * WORD > len {
                break;
            }
            if !self.copy_word(offset + word * WORD, into, word * WORD) {
                return false;
            }
        }
        let last = len - WORD;
        self.copy_word(offset + last, into, last)
    }

    #[inline(always)]
    fn copy_word(&self, offset: usize, into: *mut u8, at: usize) -> bool {
        let Some(from) = self.at_moving::<8>(offset) else {
            return false;
        };
        // SAFETY: in bounds by the caller's promise.
        let into = unsafe { into.add(at) };
        // SAFETY: `at` proved the bounds of what is read, the caller those of what is written.
        unsafe { copy8(from, into) };
        true
    }
}

impl Cursor {
    /// As [`Self::at`] for an offset that changes in a loop: there the compiler would compare with an end that it
    /// has moved back before the loop, and the verifier forbids to move the end. And it would compute the pointer
    /// again where it is used; older verifiers take the second one for another than was compared.
    #[inline(always)]
    pub fn at_moving<const LEN: usize>(&self, offset: usize) -> Option<*mut u8> {
        let header: usize;
        let limit: usize;
        // SAFETY: instructions on registers.
        unsafe {
            asm!(
                "{header} += {offset}",
                "{limit} = {header}",
                "{limit} += {len}",
                header = inout(reg) self.start => header,
                limit = out(reg) limit,
                offset = in(reg) offset,
                len = const LEN,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        if limit > self.end {
            return None;
        }
        Some(header as *mut u8)
    }
}

/// `value` if it is from `LEAST` to `MOST`. Compared with all its 64 bits, and one bound after the other: of another
/// comparison, which the compiler may think equal, older verifiers do not learn both bounds.
#[inline(always)]
pub fn within<const LEAST: usize, const MOST: usize>(value: usize) -> Option<usize> {
    let value = unknown(value);
    if value > MOST {
        return None;
    }
    let value = unknown(value);
    if value < LEAST {
        return None;
    }
    Some(unknown(value))
}

/// The same value, of which the compiler, but not the verifier, forgets what it is.
#[inline(always)]
fn unknown(mut value: usize) -> usize {
    // SAFETY: sets a register to itself; without any instruction the kernel refuses the debug information.
    unsafe {
        asm!(
            "{value} = {value}",
            value = inout(reg) value,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    value
}

// Fields of 16 and 32 bits, read and written by one instruction. Headers have no alignment, so that the compiler
// would put such a field together from single octets; a packet needs none, and the verifier knows it.

/// Reads the 16-bit field that is `AT` octets into a header.
///
/// # Safety
/// The header is in bounds and the field inside of it.
#[inline(always)]
pub unsafe fn load16<const AT: usize>(header: *const u8) -> [u8; 2] {
    let value: u64;
    // SAFETY: one load, in bounds by the caller's promise.
    unsafe {
        asm!(
            "{value} = *(u16 *)({header} + {at})",
            value = lateout(reg) value,
            header = in(reg) header,
            at = const AT,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    (value as u16).to_ne_bytes()
}

/// Reads the 32-bit field that is `AT` octets into a header.
///
/// # Safety
/// As for [`load16`].
#[inline(always)]
pub unsafe fn load32<const AT: usize>(header: *const u8) -> [u8; 4] {
    let value: u64;
    // SAFETY: one load, in bounds by the caller's promise.
    unsafe {
        asm!(
            "{value} = *(u32 *)({header} + {at})",
            value = lateout(reg) value,
            header = in(reg) header,
            at = const AT,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    (value as u32).to_ne_bytes()
}

/// Reads the 64-bit field that is `AT` octets into a header.
///
/// # Safety
/// As for [`load16`].
#[inline(always)]
pub unsafe fn load64<const AT: usize>(header: *const u8) -> u64 {
    let value: u64;
    // SAFETY: one load, in bounds by the caller's promise.
    unsafe {
        asm!(
            "{value} = *(u64 *)({header} + {at})",
            value = lateout(reg) value,
            header = in(reg) header,
            at = const AT,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    value
}

/// Writes the 16-bit field that is `AT` octets into a header.
///
/// # Safety
/// As for [`load16`], and nothing else points there.
#[inline(always)]
pub unsafe fn store16<const AT: usize>(header: *mut u8, octets: [u8; 2]) {
    // SAFETY: one store, in bounds by the caller's promise.
    unsafe {
        asm!(
            "*(u16 *)({header} + {at}) = {value}",
            header = in(reg) header,
            at = const AT,
            value = in(reg) u64::from(u16::from_ne_bytes(octets)),
            options(nostack, preserves_flags),
        );
    }
}

/// Writes the 32-bit field that is `AT` octets into a header.
///
/// # Safety
/// As for [`store16`].
#[inline(always)]
pub unsafe fn store32<const AT: usize>(header: *mut u8, octets: [u8; 4]) {
    // SAFETY: one store, in bounds by the caller's promise.
    unsafe {
        asm!(
            "*(u32 *)({header} + {at}) = {value}",
            header = in(reg) header,
            at = const AT,
            value = in(reg) u64::from(u32::from_ne_bytes(octets)),
            options(nostack, preserves_flags),
        );
    }
}

/// Copies eight octets by one load and one store.
///
/// # Safety
/// Both are in bounds, and nothing else points to `into`.
#[inline(always)]
pub unsafe fn copy8(from: *const u8, into: *mut u8) {
    // SAFETY: one load and one store, in bounds by the caller's promise.
    unsafe {
        asm!(
            "{word} = *(u64 *)({from} + 0)",
            "*(u64 *)({into} + 0) = {word}",
            word = out(reg) _,
            from = in(reg) from,
            into = in(reg) into,
            options(nostack, preserves_flags),
        );
    }
}
