//! What the eBPF programs and the daemon agree on, byte for byte.
#![no_std]
