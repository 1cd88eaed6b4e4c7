//! Whom a rule is about.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::types::caller::Mac;
use crate::types::prefix::Prefix;

/// Which devices a rule is about. Every list that is not empty must have the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// MAC addresses.
    pub macs: Vec<Mac>,
    /// Addresses that mappings and pinholes lead to.
    pub addresses: Vec<Prefix>,
    /// Names by DHCP, in lower case.
    pub names: Vec<String>,
}

/// What is known of the device that something is opened for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The address that it leads to.
    pub addr: IpAddr,
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// Its name by DHCP, in lower case.
    pub name: Option<String>,
}

impl Devices {
    /// Whether the device is among them; `None`: too little is known of it.
    pub(super) fn have(&self, device: &Device) -> Option<bool> {
        let mut addresses = self.addresses.iter();
        if !self.addresses.is_empty() && !addresses.any(|prefix| prefix.contains(device.addr)) {
            return Some(false);
        }
        let mut unknown = false;
        for known in [
            is_one_of(&self.macs, device.mac.as_ref()),
            is_one_of(&self.names, device.name.as_ref()),
        ] {
            match known {
                Some(false) => return Some(false),
                Some(true) => {}
                None => unknown = true,
            }
        }
        (!unknown).then_some(true)
    }

    pub(super) fn cover(&self, other: &Self) -> bool {
        fn lists<T>(mine: &[T], theirs: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
            let covered = |their: &T| mine.iter().any(|own| covers(own, their));
            mine.is_empty() || (!theirs.is_empty() && theirs.iter().all(covered))
        }
        lists(&self.macs, &other.macs, |own, their| own == their)
            && lists(&self.addresses, &other.addresses, Prefix::covers)
            && lists(&self.names, &other.names, |own, their| own == their)
    }
}

/// `None`: that is not known.
fn is_one_of<T: PartialEq>(list: &[T], known: Option<&T>) -> Option<bool> {
    if list.is_empty() {
        return Some(true);
    }
    known.map(|known| list.contains(known))
}
