//! Our external addresses: which of them a LAN host has, and what is over when one goes.

use std::collections::BTreeSet;

use super::nat::{Address, Chosen, Key, Name, Nat, Way};

impl Nat {
    pub(crate) fn is_ours(&self, addr: Address) -> bool {
        self.rules.addresses.contains(&addr)
    }

    /// The address of all of a host's mappings (RFC 4787 REQ-2). Which one is free, but it stays.
    pub(crate) fn address_of(&mut self, host: Address, chosen: Chosen) -> Address {
        if let Some(paired) = self.paired.get(&host)
            && self.is_ours(*paired)
        {
            return *paired;
        }
        let addr = (chosen.address)(host).expect("a host that maps is known");
        let all = || self.rules.addresses.iter().copied().collect();
        let homes = self.homes.entry(host).or_insert_with(all);
        assert!(homes.contains(&addr), "{host:?} is at {addr:?}: {homes:?}");
        *homes = BTreeSet::from([addr]);
        addr
    }

    /// Others are ours now. Hosts do not move without need: one whose address stays may only go to one that is new.
    pub(crate) fn move_to(&mut self, addresses: Vec<Address>) {
        let now: BTreeSet<Address> = addresses.iter().copied().collect();
        let before: BTreeSet<Address> = self.rules.addresses.drain(..).collect();
        for homes in self.homes.values_mut() {
            if homes.is_subset(&now) {
                homes.extend(now.difference(&before));
            } else {
                homes.clone_from(&now);
            }
        }
        self.rules.addresses = addresses;
        for half in self.halves.values_mut() {
            half.resolved = false;
        }
        for becomes in self
            .fragments
            .values_mut()
            .filter_map(|note| note.becomes.as_mut())
        {
            becomes.resolved = false;
        }
    }

    /// No packet of a session uses an address that is not ours any more, nor meets in it a host that is one of ours now.
    pub(crate) fn is_at_home(&self, key: &Key) -> Result<(), Name> {
        let half = self.half(key);
        let (_, (_, external)) = self.bound(key, half);
        let remote = if half.way == Way::In {
            key.src
        } else {
            key.dst
        };
        let turns = half.way == Way::Turned;
        if self.is_ours(external.addr) && self.is_ours(remote.addr) == turns {
            Ok(())
        } else {
            Err("drop_address_gone")
        }
    }
}
