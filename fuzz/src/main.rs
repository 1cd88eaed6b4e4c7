//! One program for all targets; the environment names one.
#![no_main]

mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("IWF_FUZZ_TARGET").expect("IWF_FUZZ_TARGET names a target");
    targets::named(&name).unwrap_or_else(|| panic!("there is no target {name}"))
});

libfuzzer_sys::fuzz_target!(|octets: &[u8]| {
    (*TARGET)(octets);
});
