//! What the programs tell as it happens, for whoever follows the log.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use aya::maps::{MapData, RingBuf};
use iwf_common::event::{Event, EventKind};
use iwf_common::nat::EndpointKey;
use tracing::debug;

/// Logs every event that waits. The ring is small and the programs write at a bounded rate, so this ends.
pub(super) fn log_all(ring: &mut RingBuf<MapData>) {
    while let Some(item) = ring.next() {
        let Some(event) = parse(&item) else { continue };
        let told = EventKind::from_number(event.kind);
        let (internal, external) = (name(event.internal), name(event.external));
        match told {
            Some(kind) => debug!(
                protocol = event.internal.proto,
                internal, external, "{kind:?}"
            ),
            None => debug!(kind = event.kind, "event of another version"),
        }
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

fn name(endpoint: EndpointKey) -> String {
    let port = u16::from_be_bytes(endpoint.port);
    format!("{}:{port}", Ipv4Addr::from(endpoint.addr))
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
        assert_eq!(name(event.internal), "192.168.1.10:8080");
        assert_eq!(name(event.external), "100.64.0.2:9090");
        assert_eq!(parse(&record[..23]), None);
    }
}
