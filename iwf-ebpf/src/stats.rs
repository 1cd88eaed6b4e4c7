//! Counters and events.

use iwf_common::config::Config;
use iwf_common::event::{Event, EventKind};
use iwf_common::nat::EndpointKey;
use iwf_common::reason::Done;

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
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the entry is this CPU's.
    let budget = unsafe { &mut *budget };
    let event = Event {
        kind: kind as u32,
        tick: now,
        internal: *internal,
        external: *external,
    };
    if !budget.take(now, config.hz) || EVENTS.output(&event, 0).is_err() {
        count(Done::EventLost);
    }
}
