//! The compiled programs, embedded: the daemon needs no file beside itself.

use std::borrow::Cow;

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use iwf_common::names;

/// The eBPF object that the build script made (`iwf-ebpf`), aligned as its ELF header asks.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("IWF_BPF_OBJECT"));

/// The oldest kernel whose verifier was seen to take every program (docs/kernels.md).
pub const MINIMUM_KERNEL: &str = "6.1";

/// An object as the running kernel takes it.
pub struct Fitted<'a> {
    /// The octets to load.
    pub object: Cow<'a, [u8]>,
    /// Constants to set in it.
    pub constants: Vec<(&'static str, u8)>,
}

/// Fits an object to the running kernel: before Linux 5.18 there are no frames of more than one buffer, and a program
/// that says it can handle them is refused.
pub fn fit(object: &[u8]) -> Fitted<'_> {
    let helper = BpfHelper::BPF_FUNC_xdp_get_buff_len;
    // A probe that fails says nothing; then the load itself will tell.
    if is_helper_supported(ProgramType::Xdp, helper).unwrap_or(true) {
        return Fitted {
            object: Cow::Borrowed(object),
            constants: Vec::new(),
        };
    }
    Fitted {
        object: Cow::Owned(without_frags(object)),
        constants: vec![(names::MULTI_BUFFER, 0)],
    }
}

/// Renames the section `xdp.frags` to `xdp`, in the table of names: the loader tells the kernel what the name says.
/// The name may be the tail of its relocations' name, which then is renamed as well.
fn without_frags(object: &[u8]) -> Vec<u8> {
    const WITH: &[u8] = b"xdp.frags\0";
    const DOT: usize = 3;
    let mut renamed = object.to_vec();
    for (at, window) in object.windows(WITH.len()).enumerate() {
        if window == WITH
            && let Some(dot) = renamed.get_mut(at + DOT)
        {
            *dot = 0;
        }
    }
    renamed
}

#[cfg(test)]
mod tests {
    use aya_obj::{Object, ProgramSection};

    use super::*;

    #[test]
    fn no_program_asks_for_frags_any_more_and_all_are_still_there() {
        let before = Object::parse(OBJECT).expect("our own object");
        let renamed = without_frags(OBJECT);
        let after = Object::parse(&renamed).expect("our own object, renamed");
        assert_eq!(before.programs.len(), after.programs.len());
        let frags = |object: &Object, name| {
            let program = object.programs.get(name).expect("a program of ours");
            matches!(program.section, ProgramSection::Xdp { frags: true, .. })
        };
        for name in [names::XDP_LAN, names::XDP_WAN, names::XDP_PASS] {
            assert!(frags(&before, name), "{name}");
            assert!(!frags(&after, name), "{name}");
        }
    }
}
