//! Ageing of the IPv6 tables.
//!
//! Read before editing: RFC 6092 REC-12, 14 to 16, 35, 40, 44.
//!
//! A session lives while either direction is used; an endpoint is open while it sends.

use iwf_common::config::Config;
use iwf_common::flow6::{
    EndpointKey6, PinholeKey, SessionFlags6, SessionKey6, SessionValue6, Shape,
};
use iwf_common::sweep::is_at_rest;
use iwf_common::{sweep, tick};

use super::session;
use crate::host;
use crate::maps::{CONFIG, ENDPOINTS6, PINHOLE_HOSTS, PINHOLES, SESSIONS6};
use crate::outcome::Outcome;
use crate::sweep::in_grace;

/// Marks both entries of a session as ended, if it is over; removes an entry that an earlier pass has marked, which no
/// packet on another CPU holds any more.
#[inline(never)]
pub fn judge_session(now: u32, key: &SessionKey6) -> u32 {
    let Some(session) = entry(key) else {
        return 0;
    };
    if session.flags & SessionFlags6::ENDED != 0 {
        if is_at_rest(now, session.last_seen) {
            remove(key, session);
        }
    } else if !keeps(now, key, session) {
        mark(now, session);
        if let Some(other) = entry(&key.reverse()) {
            mark(now, other);
        }
    }
    0
}

#[inline(always)]
fn entry<'a>(key: &SessionKey6) -> Option<&'a mut SessionValue6> {
    let session = SESSIONS6.get_ptr_mut(key)?;
    // SAFETY: entries live as long as the program runs; packets on other CPUs write the same fields, each whole.
    Some(unsafe { &mut *session })
}

/// The tick of the mark takes the place of the last packet's.
#[inline(always)]
fn mark(now: u32, session: &mut SessionValue6) {
    if session.flags & SessionFlags6::ENDED == 0 {
        session.last_seen = now;
        session.flags |= SessionFlags6::ENDED;
    }
}

/// What the entry counted goes to its pinhole first; nobody adds to an entry at rest any more.
#[inline(always)]
fn remove(key: &SessionKey6, session: &SessionValue6) {
    if session.pinhole != 0 {
        settle_account(key, session);
    }
    let (flags, station) = (session.flags, session.station);
    if SESSIONS6.remove(key).is_ok() && flags & SessionFlags6::INBOUND == 0 {
        host::session6_ended(&station);
    }
}

/// Removes one entry of ENDPOINTS6, if it is over as of the tick at which the daemon began to read the tables:
/// sessions used since have not all been seen.
#[inline(never)]
pub fn judge_endpoint(as_of: u32, key: &EndpointKey6) -> u32 {
    let Some(value) = ENDPOINTS6.get_ptr(key) else {
        return 0;
    };
    // SAFETY: entries live as long as the program runs.
    let last_used = unsafe { (*value).last_used };
    let idle = CONFIG
        .get(0)
        .map_or(u32::MAX, |config| session::open_time(config, key.proto));
    if tick::age(as_of, last_used) > idle {
        ENDPOINTS6.remove(key).ok();
    }
    0
}

/// Whether a session lives on.
#[inline(always)]
fn keeps(now: u32, key: &SessionKey6, session: &mut SessionValue6) -> bool {
    // Not only when its time has come: the pinhole may have been taken away.
    if session.pinhole != 0 && session::prolong(key, session, now) != Outcome::NONE {
        return false;
    }
    let Some(other) = entry(&key.reverse()) else {
        return in_grace(now, session.last_seen);
    };
    let Some(config) = CONFIG.get(0) else {
        return true;
    };
    let silence = tick::age(now, session.last_seen).min(tick::age(now, other.last_seen));
    if silence > sweep::idle_time6(config, key.proto, session, other) {
        return false;
    }
    refresh(config, key, session);
    true
}

/// An endpoint stays open by what it sends (RFC 6092 REC-16).
#[inline(always)]
fn refresh(config: &Config, key: &SessionKey6, session: &SessionValue6) {
    if session.flags & (SessionFlags6::INBOUND | SessionFlags6::HOST) != 0 {
        return;
    }
    let internal = (&key.src, key.src_port);
    let Some(endpoint) = session::endpoint(config, key.proto, internal, &key.dst) else {
        return;
    };
    if let Some(value) = ENDPOINTS6.get_ptr_mut(endpoint) {
        // SAFETY: entries live as long as the program runs.
        let value = unsafe { &mut *value };
        if tick::age(session.last_seen, value.last_used) > 0 {
            value.last_used = session.last_seen;
        }
    }
}

/// Adds what a session has let in to its pinhole's account.
#[inline(always)]
fn settle_account(key: &SessionKey6, session: &SessionValue6) {
    if session.flags & SessionFlags6::INBOUND == 0 {
        return;
    }
    let Some(shapes) = PINHOLE_HOSTS.get_ptr(key.dst) else {
        return;
    };
    // SAFETY: entries live as long as the program runs.
    let shapes = unsafe { *shapes };
    for shape in 0..Shape::COUNT {
        if shapes & 1 << shape == 0 {
            continue;
        }
        let Some(pinhole) = PINHOLES.get_ptr_mut(PinholeKey::of_inbound(key, shape)) else {
            continue;
        };
        // SAFETY: see above; only the sweep writes the account.
        let pinhole = unsafe { &mut *pinhole };
        if pinhole.id == session.pinhole {
            pinhole.packets += u64::from(session.packets);
            pinhole.octets += session.octets();
            return;
        }
    }
}
