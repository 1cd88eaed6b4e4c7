//! How much a LAN host may hold. What is said of it stands in docs/forwarding.md.

use super::nat::{Address, Name, Nat, Way};

/// What the hosts may hold of one table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    /// One of them.
    pub(crate) each: usize,
    /// All of them together: nobody may hold as much as is left of it.
    pub(crate) all: usize,
}

impl Shares {
    pub(crate) const UNBOUNDED: Self = Self {
        each: usize::MAX,
        all: usize::MAX,
    };

    /// For a host that holds `own`, when `all` are held.
    const fn allow(self, own: usize, all: usize) -> bool {
        own < self.each && own < self.all.saturating_sub(all)
    }
}

impl Nat {
    pub(crate) fn may_open(&self, host: Address) -> Result<(), Name> {
        let counting = |key: Option<Address>| {
            let halves = self.halves.iter();
            halves
                .filter(|(held, half)| {
                    half.way != Way::In && !half.own && key.is_none_or(|addr| held.src.addr == addr)
                })
                .count()
        };
        if self
            .rules
            .sessions
            .allow(counting(Some(host)), counting(None))
        {
            Ok(())
        } else {
            Err("drop_host_sessions")
        }
    }

    pub(crate) fn may_map(&self, host: Address) -> Result<(), Name> {
        let counting = |host: Option<Address>| {
            let mappings = self.by_external.values();
            mappings
                .filter(|mapping| {
                    mapping.explicit.is_none()
                        && !mapping.own
                        && host.is_none_or(|addr| mapping.internal.addr == addr)
                })
                .count()
        };
        if self
            .rules
            .mappings
            .allow(counting(Some(host)), counting(None))
        {
            Ok(())
        } else {
            Err("drop_host_mappings")
        }
    }
}
