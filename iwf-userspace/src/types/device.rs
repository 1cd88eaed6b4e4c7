//! What can be known of a LAN's devices.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::UnixTime;
use super::caller::Mac;

/// Most neighbours that are looked at.
pub const MAX_NEIGHBOURS: usize = 4096;

/// The LAN as it is seen now. Complete, never a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LanDevices {
    /// What the kernel knows of its neighbours on the LAN; `None`: it cannot be asked.
    pub neighbours: Option<BTreeMap<IpAddr, Neighbour>>,
    /// What the DHCP server of the LAN has given out.
    pub leases: Leases,
}

/// Leases by their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leases {
    /// There is no lease file.
    #[default]
    Nowhere,
    /// There is one, but it cannot be read, or not be understood. What was in it when it could: good for names, which its
    /// server's writing it just now does not change, and for nothing else.
    Unreadable(BTreeMap<IpAddr, DhcpLease>),
    /// All that there are.
    Known(BTreeMap<IpAddr, DhcpLease>),
}

/// An address that the kernel has an entry for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The MAC address behind it, if it is known.
    pub mac: Option<Mac>,
    /// Whether the kernel has heard of it within seconds.
    pub answers: bool,
}

/// An address that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpLease {
    /// The address.
    pub addr: IpAddr,
    /// The device's MAC address, where the server keeps it.
    pub mac: Option<Mac>,
    /// What the device calls itself, or its administrator it, in lower case.
    pub name: Option<String>,
    /// When it ends; `None`: never.
    pub ends: Option<UnixTime>,
}

impl DhcpLease {
    /// Whether it has not ended.
    pub fn is_live(&self, now: UnixTime) -> bool {
        self.ends.is_none_or(|ends| now < ends)
    }
}

impl Leases {
    /// Whether nothing can be concluded from them.
    pub const fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable(_))
    }

    fn known(&self) -> Option<&BTreeMap<IpAddr, DhcpLease>> {
        match self {
            Self::Known(known) => Some(known),
            Self::Nowhere | Self::Unreadable(_) => None,
        }
    }

    fn with_names(&self) -> Option<&BTreeMap<IpAddr, DhcpLease>> {
        match self {
            Self::Known(leases) | Self::Unreadable(leases) => Some(leases),
            Self::Nowhere => None,
        }
    }
}

impl LanDevices {
    /// The MAC address behind an address: by the neighbours, else by a lease.
    pub fn mac(&self, addr: IpAddr) -> Option<Mac> {
        let neighbour = self.neighbours.as_ref().and_then(|all| all.get(&addr));
        let of_lease = || self.lease(addr).and_then(|lease| lease.mac);
        neighbour.and_then(|known| known.mac).or_else(of_lease)
    }

    /// A host has told by its own call which MAC address is behind its address.
    pub fn learn(&mut self, addr: IpAddr, mac: Mac) {
        let Some(neighbours) = &mut self.neighbours else {
            return;
        };
        if neighbours.len() < MAX_NEIGHBOURS || neighbours.contains_key(&addr) {
            let answers = true;
            let mac = Some(mac);
            neighbours.insert(addr, Neighbour { mac, answers });
        }
    }

    /// The lease of an address.
    pub fn lease(&self, addr: IpAddr) -> Option<&DhcpLease> {
        self.leases.known().and_then(|known| known.get(&addr))
    }

    /// The name of a device by the lease of its address, else by any lease of its MAC address.
    pub fn name(&self, addr: IpAddr, mac: Option<Mac>) -> Option<String> {
        let of_mac = |lease: &&DhcpLease| mac.is_some() && lease.mac == mac && lease.name.is_some();
        let leases = self.leases.with_names()?;
        let own = leases.get(&addr).filter(|lease| lease.name.is_some());
        let found = own.or_else(|| leases.values().find(of_mac));
        found.and_then(|lease| lease.name.clone())
    }

    /// The same LAN was seen before: leases that cannot be read now were what they were then.
    pub fn remember(&mut self, before: &Self) {
        if let Leases::Unreadable(last) = &mut self.leases
            && let Some(leases) = before.leases.with_names()
        {
            last.clone_from(leases);
        }
    }

    /// The IPv4 addresses that lead to a MAC address.
    pub fn addresses(&self, mac: Mac) -> impl Iterator<Item = Ipv4Addr> {
        let all = self.neighbours.iter().flatten();
        all.filter_map(move |(addr, neighbour)| match addr {
            IpAddr::V4(addr) if neighbour.mac == Some(mac) => Some(*addr),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        })
    }
}
