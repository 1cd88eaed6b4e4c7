//! Pinholes: what is let in from the WAN because it was asked for.
//!
//! A pinhole may leave open the remote address, each port and the protocol. PINHOLES is a hash all the same:
//! [`Shape`] is part of its key, and PINHOLE_HOSTS says which shapes an internal address has, so that a packet
//! costs one lookup for a host without pinholes and one per shape in use, at most 16, for others.

use iwf_common::flow6::{PinholeKey, PinholeValue, SessionKey6, Shape};

use crate::maps::{PINHOLE_HOSTS, PINHOLES};

/// The pinhole that lets the packet of `key` in at tick `now`. A function of its own for its stack.
#[inline(never)]
pub fn find<'a>(key: &SessionKey6, now: u32) -> Option<&'a PinholeValue> {
    let shapes = PINHOLE_HOSTS.get_ptr(key.dst)?;
    // SAFETY: entries live as long as the program runs.
    search(key, now, unsafe { *shapes })
}

/// The open port of the CPE itself that lets the packet of `key` in. A function of its own for its stack.
#[inline(never)]
pub fn is_open_port(key: &SessionKey6, now: u32) -> bool {
    let mut own = *key;
    own.dst = [0; 16];
    find(&own, now).is_some()
}

#[inline(always)]
fn search<'a>(key: &SessionKey6, now: u32, shapes: u32) -> Option<&'a PinholeValue> {
    for shape in 0..Shape::COUNT {
        if shapes & 1 << shape == 0 {
            continue;
        }
        if let Some(pinhole) = PINHOLES.get_ptr(PinholeKey::of_inbound(key, shape)) {
            // SAFETY: see above.
            let pinhole = unsafe { &*pinhole };
            if !pinhole.expired(now) {
                return Some(pinhole);
            }
        }
    }
    None
}
