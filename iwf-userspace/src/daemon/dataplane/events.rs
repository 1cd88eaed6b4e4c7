//! What the programs tell as it happens.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddrV4};
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
        internal: named(event.internal),
        external: named(event.external),
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
        assert_eq!(record.len(), size_of::<Event>());
        let event = parse(&record).expect("whole");
        assert_eq!(event.kind, EventKind::PortsExhausted as u32);
        assert_eq!(event.tick, 77);
        assert_eq!(parse(&record[..23]), None);
        let told = told(&event, 77 + 375, 250);
        assert_eq!(told.kind, Some(EventKind::PortsExhausted));
        assert_eq!(told.age, Duration::from_millis(1500));
        assert_eq!(told.internal, "192.168.1.10:8080".parse().ok());
        assert_eq!(told.external, "100.64.0.2:9090".parse().ok());
        assert_eq!(named(EndpointKey::default()), None);
    }
}
