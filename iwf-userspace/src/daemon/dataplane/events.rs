//! What the programs tell as it happens.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use iwf_common::event::{Event, EventKind};
use iwf_common::nat::EndpointKey;
use iwf_common::tick;

use super::PlaneEvent;

/// Reads every event that waits. The ring is small and the programs write at a bounded rate, so this ends.
pub(super) fn take_all(ring: &mut RingBuf<MapData>) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(item) = ring.next() {
        events.extend(parse(&item));
    }
    events
}

/// The event for those who know no ticks.
pub(super) fn told(event: &Event, now: u32, hz: u32) -> PlaneEvent {
    let age = u64::from(tick::age(now, event.tick)) * 1000 / u64::from(hz.max(1));
    PlaneEvent {
        kind: EventKind::from_number(event.kind),
        age: Duration::from_millis(age),
        protocol: event.internal.proto,
        internal: internal(event),
        station: is_ipv6(event).then_some(event.station),
        external: named(event.external),
    }
}

fn is_ipv6(event: &Event) -> bool {
    event.addr6 != [0; 16]
}

fn internal(event: &Event) -> Option<SocketAddr> {
    if is_ipv6(event) {
        let port = u16::from_be_bytes(event.internal.port);
        Some((Ipv6Addr::from(event.addr6), port).into())
    } else {
        named(event.internal).map(SocketAddr::V4)
    }
}

/// The struct as its fields lie in the record; `None` if the record is shorter.
fn parse(record: &[u8]) -> Option<Event> {
    let word = |at: usize| Some(u32::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    let endpoint = |at: usize| {
        let octets: [u8; 8] = *record.get(at..)?.first_chunk()?;
        let [a, b, c, d, high, low, proto, _] = octets;
        Some(EndpointKey::new([a, b, c, d], [high, low], proto))
    };
    Some(Event {
        kind: word(0)?,
        tick: word(4)?,
        internal: endpoint(8)?,
        external: endpoint(16)?,
        addr6: *record.get(24..)?.first_chunk()?,
        station: *record.get(40..)?.first_chunk()?,
        pad: 0,
    })
}

/// All zero is none.
fn named(endpoint: EndpointKey) -> Option<SocketAddrV4> {
    let port = u16::from_be_bytes(endpoint.port);
    let addr = Ipv4Addr::from(endpoint.addr);
    (!addr.is_unspecified()).then_some(SocketAddrV4::new(addr, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_by_its_fields() {
        let mut record = Vec::new();
        record.extend((EventKind::PortsExhausted as u32).to_ne_bytes());
        record.extend(77u32.to_ne_bytes());
        record.extend([192, 168, 1, 10, 0x1f, 0x90, 17, 0]);
        record.extend([100, 64, 0, 2, 0x23, 0x82, 17, 0]);
        record.extend([0; 24]);
        assert_eq!(record.len(), size_of::<Event>());
        let event = parse(&record).expect("whole");
        assert_eq!(event.kind, EventKind::PortsExhausted as u32);
        assert_eq!(event.tick, 77);
        assert_eq!(parse(&record[..45]), None);
        let told = told(&event, 77 + 375, 250);
        assert_eq!(told.kind, Some(EventKind::PortsExhausted));
        assert_eq!(told.age, Duration::from_millis(1500));
        assert_eq!(told.internal, "192.168.1.10:8080".parse().ok());
        assert_eq!(told.external, "100.64.0.2:9090".parse().ok());
        assert_eq!((told.station, named(EndpointKey::default())), (None, None));
    }

    #[test]
    fn of_ipv6_the_address_is_elsewhere_and_a_station_is_named() {
        let host: Ipv6Addr = "2a0b:1:2:3::10".parse().expect("an address");
        let station = [2, 0, 0x5e, 0x10, 0, 0xff];
        let mut record = Vec::new();
        record.extend((EventKind::HostSessions as u32).to_ne_bytes());
        record.extend(77u32.to_ne_bytes());
        record.extend([0, 0, 0, 0, 0x1f, 0x90, 6, 0]);
        record.extend([0; 8]);
        record.extend(host.octets());
        record.extend(station);
        record.extend([0; 2]);
        let told = told(&parse(&record).expect("whole"), 77, 250);
        assert_eq!(told.internal, Some((host, 8080).into()));
        assert_eq!((told.protocol, told.station), (6, Some(station)));
        assert_eq!(told.external, None);
    }
}
