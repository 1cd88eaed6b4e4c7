//! What the IPv6 filter is told: prefixes, pinholes, open ports of the CPE.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv6Addr;

use iwf_common::config::{ConfigFlags, NO_PREFIX6, Prefix6};
use iwf_common::flow6::{PinholeKey, PinholeValue, SessionFlags6, Shape};
use iwf_common::limits;
use tracing::warn;

use super::KernelPlane;
use super::configure::filter;
use crate::daemon::config::Ipv6;
use crate::daemon::dataplane::clock::Clock;
use crate::daemon::dataplane::maps::{self, Maps, refused, to_io};
use crate::daemon::dataplane::{DataPlaneError, Pinhole};
use crate::types::Protocol;
use crate::types::prefix::mask6;

/// Pinholes as the kernel shall hold them: key, identity, end.
pub(super) type Wanted = BTreeMap<PinholeKey, (u16, u32)>;

impl KernelPlane {
    /// Makes PINHOLES what is wanted. What goes, goes before its sessions; what comes is announced to the
    /// programs, by its shape, after it is there.
    pub(super) fn follow_pinholes(
        &mut self,
        pinholes: &[Pinhole],
        host_ports: &[(Protocol, u16)],
    ) -> Result<(), DataPlaneError> {
        let wanted = wanted(pinholes, host_ports, &self.clock);
        self.applied.host_ports = host_ports.to_vec();
        if self.applied.pinholes.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let room = usize::try_from(limits::PINHOLES).unwrap_or(usize::MAX);
        if wanted.len() > room {
            return Err(DataPlaneError::Full { map: "PINHOLES" });
        }
        self.applied.pinholes = None;
        let failed = refused("open the pinholes");
        let gone = write(&mut self.tables.maps, &wanted).map_err(&failed)?;
        if gone {
            self.tables.follow_pinholes().map_err(&failed)?;
        }
        self.applied.pinholes = Some(wanted);
        Ok(())
    }
}

/// Whether something was taken away or replaced.
fn write(maps: &mut Maps, wanted: &Wanted) -> io::Result<bool> {
    let held = maps::contents(&maps.pinholes)?;
    let mut gone = false;
    for (key, value) in &held {
        let stays = wanted.get(key).is_some_and(|(id, _)| *id == value.id);
        if !stays {
            maps::delete(&mut maps.pinholes, key)?;
            gone = true;
        }
    }
    for (key, (id, expires)) in wanted {
        let old = held.get(key).filter(|value| value.id == *id);
        if old.is_some_and(|value| value.expires == *expires) {
            continue;
        }
        let value = PinholeValue {
            id: *id,
            expires: *expires,
            ..old.copied().unwrap_or_default()
        };
        maps.pinholes.insert(key, value, 0).map_err(to_io)?;
    }
    let mut shapes: BTreeMap<[u8; 16], u32> = BTreeMap::new();
    for key in wanted.keys() {
        *shapes.entry(key.internal).or_default() |= 1 << key.shape;
    }
    let mut hosts = maps::contents(&maps.pinhole_hosts)?;
    maps::replace(&mut maps.pinhole_hosts, &mut hosts, &shapes)?;
    Ok(gone)
}

fn wanted(pinholes: &[Pinhole], host_ports: &[(Protocol, u16)], clock: &Clock) -> Wanted {
    let pinholes = pinholes.iter().map(|pinhole| {
        let expires = clock.deadline(pinhole.expires);
        (key(pinhole), (pinhole.id, expires))
    });
    let own = host_ports.iter();
    let own = own.map(|(protocol, port)| (open_port(*protocol, *port), (OWN, 0)));
    pinholes.chain(own).collect()
}

/// Identity of the CPE's own open ports, which begin no sessions.
const OWN: u16 = u16::MAX;

fn open_port(protocol: Protocol, port: u16) -> PinholeKey {
    PinholeKey {
        internal_port: port.to_be_bytes(),
        proto: protocol.number(),
        shape: Shape::ANY_REMOTE | Shape::ANY_REMOTE_PORT,
        ..PinholeKey::default()
    }
}

fn key(pinhole: &Pinhole) -> PinholeKey {
    let any = |is_any: bool, bit: u8| if is_any { bit } else { 0 };
    PinholeKey {
        internal: pinhole.internal.octets(),
        remote: pinhole.remote.map_or([0; 16], |addr| addr.octets()),
        internal_port: pinhole.internal_port.unwrap_or(0).to_be_bytes(),
        remote_port: pinhole.remote_port.unwrap_or(0).to_be_bytes(),
        proto: pinhole.protocol.unwrap_or(0),
        shape: any(pinhole.remote.is_none(), Shape::ANY_REMOTE)
            | any(pinhole.remote_port.is_none(), Shape::ANY_REMOTE_PORT)
            | any(pinhole.internal_port.is_none(), Shape::ANY_INTERNAL_PORT)
            | any(pinhole.protocol.is_none(), Shape::ANY_PROTO),
        pad: 0,
    }
}

/// What PINHOLES holds, without the open ports.
pub(super) fn observe(maps: &Maps, clock: &Clock) -> io::Result<Vec<Pinhole>> {
    let held = maps::contents(&maps.pinholes)?;
    let asked_for = held.iter().filter(|(_, value)| value.id != OWN);
    Ok(asked_for
        .map(|(key, value)| {
            let given = |bit: u8| key.shape & bit == 0;
            let port = |bit: u8, port: [u8; 2]| given(bit).then_some(u16::from_be_bytes(port));
            Pinhole {
                id: value.id,
                internal: key.internal.into(),
                internal_port: port(Shape::ANY_INTERNAL_PORT, key.internal_port),
                remote: given(Shape::ANY_REMOTE).then_some(key.remote.into()),
                remote_port: port(Shape::ANY_REMOTE_PORT, key.remote_port),
                protocol: given(Shape::ANY_PROTO).then_some(key.proto),
                expires: clock.instant(value.expires),
            }
        })
        .collect())
}

/// Packets per pinhole: of sessions that have ended, and of those that live.
pub(super) fn packets(maps: &Maps) -> io::Result<Vec<(u16, u64)>> {
    let mut sums: BTreeMap<u16, u64> = maps::contents(&maps.pinholes)?
        .values()
        .filter(|value| value.id != OWN)
        .map(|value| (value.id, value.packets))
        .collect();
    for entry in maps.sessions6.iter() {
        let (_, value) = entry.map_err(to_io)?;
        if value.flags & SessionFlags6::INBOUND != 0
            && let Some(sum) = sums.get_mut(&value.pinhole)
        {
            *sum += u64::from(value.packets);
        }
    }
    Ok(sums.into_iter().collect())
}

/// CONFIG's `filter6` and `flags`.
pub(super) fn flags(settings: &Ipv6, flags: u32) -> (u8, u32) {
    let set = |flags: u32, bit: u32, on: bool| if on { flags | bit } else { flags & !bit };
    let flags = set(flags, ConfigFlags::IPV6_FILTER, settings.filter);
    let flags = set(flags, ConfigFlags::IPV6_OPEN_TCP, settings.open_tcp);
    (filter(settings.filtering) as u8, flags)
}

/// CONFIG's `lan6` and `lan6_len`.
pub(super) fn lan_prefixes(prefixes: &[(Ipv6Addr, u8)]) -> ([Prefix6; limits::LAN_PREFIXES], u32) {
    if prefixes.len() > limits::LAN_PREFIXES {
        warn!(
            "the LAN has {} IPv6 prefixes, hosts in all but the first {} cannot use the WAN",
            prefixes.len(),
            limits::LAN_PREFIXES
        );
    }
    let mut slots = [NO_PREFIX6; limits::LAN_PREFIXES];
    let mut used = 0;
    for (slot, (addr, len)) in slots.iter_mut().zip(prefixes) {
        let mask = mask6(*len);
        *slot = Prefix6 {
            addr: (u128::from(*addr) & mask).to_be_bytes(),
            mask: mask.to_be_bytes(),
        };
        used += 1;
    }
    (slots, used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinhole_without_limits_has_every_wildcard() {
        let pinhole = Pinhole {
            id: 1,
            internal: Ipv6Addr::LOCALHOST,
            internal_port: None,
            remote: None,
            remote_port: None,
            protocol: None,
            expires: None,
        };
        assert_eq!(key(&pinhole).shape, 15);
        let narrow = Pinhole {
            internal_port: Some(80),
            remote: Some(Ipv6Addr::LOCALHOST),
            remote_port: Some(9),
            protocol: Some(6),
            ..pinhole
        };
        assert_eq!(key(&narrow).shape, 0);
        assert_eq!(key(&narrow).internal_port, [0, 80]);
    }

    #[test]
    fn host_bits_of_a_prefix_do_not_count_and_the_surplus_is_left_out() {
        let many: Vec<_> = (0..10)
            .map(|n| (Ipv6Addr::new(0x2a00, n, 0, 0, 0, 0, 0, 9), 64))
            .collect();
        let (slots, used) = lan_prefixes(&many);
        assert_eq!(usize::try_from(used), Ok(limits::LAN_PREFIXES));
        let inside = Ipv6Addr::new(0x2a00, 7, 0, 0, 1, 2, 3, 4);
        assert!(slots[7].contains(inside.octets()));
        assert_eq!(slots[7].addr[8..], [0; 8]);
        assert_eq!(lan_prefixes(&[]).1, 0);
    }
}
