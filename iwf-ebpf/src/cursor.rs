//! The only place where an offset becomes a pointer into a packet.

/// Header types: any bytes are a value, and no alignment is asked for.
///
/// # Safety
/// Implementors are `repr(C)` and made of `u8` and arrays of it.
pub unsafe trait Wire: Copy {}

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

    /// The header at `offset`, if all of it is there.
    ///
    /// The pointer is good until a helper moves packet data; callers keep it for a few statements only, and
    /// every access goes through it, never through a reference.
    #[inline(always)]
    pub fn at<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let header = self.start + offset;
        // The verifier proves the same comparison: in bounds on this branch, unreachable on the other.
        if header + size_of::<T>() > self.end {
            return None;
        }
        Some(header as *mut T)
    }

    /// A copy of the header at `offset`.
    #[inline(always)]
    pub fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        let header = self.at::<T>(offset)?;
        // SAFETY: `at` proved the bounds; `Wire` allows any bytes and needs no alignment.
        Some(unsafe { header.read() })
    }
}
