//! Counters and events.

use aya_ebpf::maps::ring_buf::RingBufEntry;
use iwf_common::config::Config;
use iwf_common::event::{Event, EventKind};
use iwf_common::flow6::SessionKey6;
use iwf_common::nat::EndpointKey;
use iwf_common::reason::Done;

use crate::clock::tick;
use crate::maps::{COUNTERS, EVENT_BUDGET, EVENTS};
use crate::outcome::Outcome;

/// Adds one to the counter of `outcome` on this CPU.
#[inline(always)]
pub fn count(outcome: impl Into<Outcome>) {
    if let Some(counter) = COUNTERS.get_ptr_mut(outcome.into().slot()) {
        // SAFETY: the slot is this CPU's, and a program is not interrupted by another on the same CPU's slot
        // in a way that could lose more than one count.
        unsafe { *counter += 1 };
    }
}

/// Tells the daemon, if this CPU has not told it too much already.
#[inline(never)]
pub fn emit(
    config: &Config,
    now: u32,
    kind: EventKind,
    internal: &EndpointKey,
    external: &EndpointKey,
) {
    let Some(mut record) = record(config, now) else {
        return;
    };
    let event: *mut Event = record.as_mut_ptr();
    // SAFETY: the record is as large as the struct, and nobody else has it before it is submitted. So below.
    unsafe { (*event).kind = kind as u32 };
    // SAFETY: see above.
    unsafe { (*event).tick = now };
    // SAFETY: see above.
    unsafe { (*event).internal = *internal };
    // SAFETY: see above.
    unsafe { (*event).external = *external };
    // SAFETY: see above.
    unsafe { (*event).addr6 = [0; 16] };
    // SAFETY: see above.
    unsafe { (*event).station = [0; 6] };
    // SAFETY: see above.
    unsafe { (*event).pad = 0 };
    record.submit(0);
}

/// The same of the packets of `key`, whose internal endpoint is their source or else their destination.
#[inline(always)]
pub fn emit6(config: &Config, kind: EventKind, key: &SessionKey6, of_source: bool, mac: &[u8; 6]) {
    let now = tick();
    let Some(mut record) = record(config, now) else {
        return;
    };
    let event: *mut Event = record.as_mut_ptr();
    let (addr, port) = if of_source {
        (&key.src, key.src_port)
    } else {
        (&key.dst, key.dst_port)
    };
    // SAFETY: as in `emit`. So below.
    unsafe { (*event).kind = kind as u32 };
    // SAFETY: see above.
    unsafe { (*event).tick = now };
    // SAFETY: see above.
    unsafe { (*event).internal = EndpointKey::new([0; 4], port, key.proto) };
    // SAFETY: see above.
    unsafe { (*event).external = EndpointKey::default() };
    // SAFETY: see above.
    unsafe { (*event).addr6 = *addr };
    // SAFETY: see above.
    unsafe { (*event).station = *mac };
    // SAFETY: see above.
    unsafe { (*event).pad = 0 };
    record.submit(0);
}

/// Room for one event more, if this CPU may have it.
#[inline(always)]
fn record(config: &Config, now: u32) -> Option<RingBufEntry<Event>> {
    let budget = EVENT_BUDGET.get_ptr_mut(0)?;
    // SAFETY: the entry is this CPU's.
    let within = unsafe { (*budget).take(now, config.hz) };
    let record = if within { EVENTS.reserve(0) } else { None };
    if record.is_none() {
        count(Done::EventLost);
    }
    record
}
