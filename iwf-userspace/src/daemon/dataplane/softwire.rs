//! Where the softwire ends, for the packet programs, and counters of what the daemon carries itself.
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use anyhow::Result;
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use iwf_common::names;
use tracing::debug;

use super::pins::PinSet;

/// The softwire as the packet programs are told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Softwire {
    /// There is none.
    #[default]
    Off,
    /// It is not known yet whether there is one: what the programs know stays.
    Undecided,
    /// There is this one.
    On(Path),
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The device that IPv4 for the Internet is routed to.
    pub ifindex: u32,
    /// Our end.
    pub local: Ipv6Addr,
    /// The AFTR.
    pub remote: Ipv6Addr,
}

/// Opens [`Counts`], as often as wanted.
#[derive(Debug)]
pub struct SoftwireCounters {
    set: PinSet,
}

impl SoftwireCounters {
    pub(super) const fn of(set: PinSet) -> Self {
        Self { set }
    }

    pub(crate) fn open(&self) -> Result<Counts> {
        Ok(Counts(super::maps::typed(&self.set, names::COUNTERS)?))
    }
}

/// Counters of packets that no program counts.
pub(crate) struct Counts(PerCpuArray<MapData, u64>);

impl Counts {
    /// Counts packets in a slot that nobody else counts in.
    pub(crate) fn add(&mut self, slot: u32, packets: u64) {
        if packets == 0 {
            return;
        }
        if let Err(error) = self.try_add(slot, packets) {
            debug!(%error, "cannot count");
        }
    }

    fn try_add(&mut self, slot: u32, packets: u64) -> std::io::Result<()> {
        let held = self.0.get(&slot, 0).map_err(super::maps::to_io)?;
        let mut per_cpu: Vec<u64> = held.to_vec();
        if let Some(first) = per_cpu.first_mut() {
            *first = first.wrapping_add(packets);
        }
        let values = PerCpuValues::try_from(per_cpu)?;
        self.0.set(slot, values, 0).map_err(super::maps::to_io)
    }
}
