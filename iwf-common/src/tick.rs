//! The data plane's clock: the low 32 bits of the kernel's jiffies, which cost two instructions to read.
//!
//! It wraps every 49 days at 1000 Hz, so ticks are only ever compared by their signed difference, and no
//! deadline may be set further ahead than [`MAX_AHEAD`]: the daemon rewrites later ones in time.
#![forbid(unsafe_code)]

/// The furthest a deadline may be ahead, in ticks: 12 days at 1000 Hz.
pub const MAX_AHEAD: u32 = 1 << 30;

/// Ticks from `then` to `now`; 0 if `then` is later.
#[inline(always)]
pub const fn age(now: u32, then: u32) -> u32 {
    let diff = now.wrapping_sub(then) as i32;
    if diff < 0 { 0 } else { diff as u32 }
}

/// Whether `deadline` is set (not 0) and not after `now`.
#[inline(always)]
pub const fn deadline_passed(now: u32, deadline: u32) -> bool {
    deadline != 0 && now.wrapping_sub(deadline) as i32 >= 0
}

/// The deadline `ahead` ticks after `now`: at most [`MAX_AHEAD`], and never 0, which would mean "none".
#[inline(always)]
pub const fn deadline_after(now: u32, ahead: u32) -> u32 {
    let ahead = if ahead > MAX_AHEAD { MAX_AHEAD } else { ahead };
    match now.wrapping_add(ahead) {
        0 => 1,
        tick => tick,
    }
}

/// One reading of two clocks at the same moment. Two of them give the tick rate, one of them the offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct ClockSample {
    /// `jiffies64`; its low half is the tick.
    pub jiffies: u64,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
}

const _: () = assert!(size_of::<ClockSample>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_across_the_wrap() {
        let before = u32::MAX - 5;
        let after = 10;
        assert_eq!(age(after, before), 16);
        assert_eq!(age(before, after), 0);
        assert!(deadline_passed(after, before));
        assert!(!deadline_passed(before, after));
        assert!(deadline_passed(7, 7));
    }

    #[test]
    fn deadline_is_bounded_and_never_none() {
        assert_eq!(deadline_after(u32::MAX, 1), 1);
        assert_eq!(deadline_after(0, 0), 1);
        assert_eq!(deadline_after(100, u32::MAX), 100 + MAX_AHEAD);
        assert!(!deadline_passed(u32::MAX, 0));
    }
}
