//! The compiled programs, embedded: the daemon needs no file beside itself.

/// The eBPF object that the build script made (`iwf-ebpf`), aligned as its ELF header asks.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("IWF_BPF_OBJECT"));
