//! The clock of the packet path.

use aya_ebpf::helpers::bpf_jiffies64;

/// The current tick ([`iwf_common::tick`]).
#[inline(always)]
pub fn tick() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() as u32 }
}
