//! The rings that the programs write, and the way back to empty tables.

use anyhow::{Context as _, Result};
use aya::maps::{Map, PerCpuArray, PerCpuValues, RingBuf};
use iwf_common::event::{Event, EventBudget};
use iwf_common::fragment::HeldFragment;
use iwf_common::host::Totals;
use iwf_common::names;
use iwf_common::nat::EndpointKey;
use iwf_common::refusal::{RefusedPacket, Side};

use super::Plane;
use crate::empty;

impl Plane {
    /// Empties every hash and every ring, and lets the programs write as much into the rings as at first. They stay
    /// loaded: for another test, without another verification.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn empty(&mut self) -> Result<()> {
        for (name, map) in self.ebpf.maps_mut() {
            empty::hash(map).with_context(|| format!("empty {name}"))?;
            if matches!(map, Map::RingBuf(_)) {
                let mut ring = RingBuf::try_from(map)?;
                while ring.next().is_some() {}
            }
        }
        self.set_totals(Totals::default())?;
        let full = vec![EventBudget::default(); aya::util::nr_cpus().map_err(|(_, error)| error)?];
        for name in [
            names::EVENT_BUDGET,
            names::HELD_BUDGET,
            names::REFUSED_BUDGET,
        ] {
            let map = self.ebpf.map_mut(name).context(name)?;
            let mut budget = PerCpuArray::<_, EventBudget>::try_from(map)?;
            for slot in 0..budget.len() {
                budget.set(slot, PerCpuValues::try_from(full.clone())?, 0)?;
            }
        }
        Ok(())
    }

    /// Every event of EVENTS.
    ///
    /// # Errors
    /// If the ring cannot be read.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        let map = self.ebpf.map_mut(names::EVENTS).context("ring")?;
        let mut ring = RingBuf::try_from(map)?;
        let mut events = Vec::new();
        while let Some(record) = ring.next() {
            events.push(event(&record).context("a whole record")?);
        }
        Ok(events)
    }

    /// The next fragment of FRAGMENTS_HELD: the IPv4 packet.
    ///
    /// # Errors
    /// If the ring cannot be read.
    pub fn held(&mut self) -> Result<Option<Vec<u8>>> {
        let map = self.ebpf.map_mut(names::FRAGMENTS_HELD).context("ring")?;
        let mut ring = RingBuf::try_from(map)?;
        let Some(record) = ring.next() else {
            return Ok(None);
        };
        let at = std::mem::offset_of!(HeldFragment, len);
        let len = u16::from_ne_bytes([record[at], record[at + 1]]);
        let packet = &record[std::mem::offset_of!(HeldFragment, packet)..];
        Ok(Some(packet[..usize::from(len)].to_vec()))
    }

    /// The next packet of REFUSED: where it was met, and its head.
    ///
    /// # Errors
    /// If the ring cannot be read.
    pub fn refused(&mut self) -> Result<Option<(Side, Vec<u8>)>> {
        let map = self.ebpf.map_mut(names::REFUSED).context("ring")?;
        let mut ring = RingBuf::try_from(map)?;
        let Some(record) = ring.next() else {
            return Ok(None);
        };
        let word = |at: usize| {
            let octets = record[at..].first_chunk().context("a whole record")?;
            Ok::<_, anyhow::Error>(u32::from_ne_bytes(*octets))
        };
        let side = word(std::mem::offset_of!(RefusedPacket, side))?;
        let len = usize::try_from(word(std::mem::offset_of!(RefusedPacket, len))?)?;
        let head = &record[std::mem::offset_of!(RefusedPacket, packet)..][..len];
        Ok(Some((
            Side::from_number(side).context("a side")?,
            head.to_vec(),
        )))
    }
}

fn event(record: &[u8]) -> Option<Event> {
    fn part<const N: usize>(record: &[u8], at: usize) -> Option<[u8; N]> {
        record.get(at..)?.first_chunk().copied()
    }
    let word = |at| part(record, at).map(u32::from_ne_bytes);
    let endpoint = |at| {
        let [a, b, c, d, high, low, proto, pad]: [u8; 8] = part(record, at)?;
        (pad == 0).then(|| EndpointKey::new([a, b, c, d], [high, low], proto))
    };
    Some(Event {
        kind: word(std::mem::offset_of!(Event, kind))?,
        tick: word(std::mem::offset_of!(Event, tick))?,
        internal: endpoint(std::mem::offset_of!(Event, internal))?,
        external: endpoint(std::mem::offset_of!(Event, external))?,
        addr6: part(record, std::mem::offset_of!(Event, addr6))?,
        station: part(record, std::mem::offset_of!(Event, station))?,
        pad: part(record, std::mem::offset_of!(Event, pad)).map(u16::from_ne_bytes)?,
    })
}
