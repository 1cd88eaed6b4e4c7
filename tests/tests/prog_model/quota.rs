//! How much a LAN host may hold. What is said of it stands in docs/operating.md.

use super::nat::{Address, Name, Nat, Way};

impl Nat {
    pub(crate) fn may_open(&self, host: Address) -> Result<(), Name> {
        let mut own = self.halves.iter();
        let count = own
            .by_ref()
            .filter(|(key, half)| half.way != Way::In && key.src.addr == host);
        if count.count() >= self.rules.sessions_per_host {
            return Err("drop_host_sessions");
        }
        Ok(())
    }

    pub(crate) fn mappings_of(&self, host: Address) -> usize {
        let own = self.by_external.values();
        own.filter(|mapping| mapping.explicit.is_none() && mapping.internal.addr == host)
            .count()
    }
}
