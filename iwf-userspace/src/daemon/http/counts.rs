//! What became of connections and requests that were not served as they were meant.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;

/// One number for each fate. They belong to the daemon's life.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; Fate::ALL.len()]);

/// What can become of a connection or a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// A connection was accepted and had a place.
    Connection,
    /// It was from a host that is not on the link, or for another address of ours, and was closed.
    Elsewhere,
    /// It found no place, and was closed.
    Full,
    /// It waited for its host, and its place was needed for another one.
    MadeRoom,
    /// Its host took too long over the head of a request, or was idle, or did not take its answer.
    TimedOut,
    /// Its host broke it off in the middle.
    BrokenOff,
    /// It had its time, and its last request was not over.
    Cut,
    /// A request was read.
    Request,
    /// It came under a name that is not ours, or from a web page that is not ours.
    Foreign,
    /// It is no request of HTTP, or none that can be served here: any status of 4xx that is not one of the others.
    Bad,
    /// Its head or body is larger than is read.
    TooLarge,
    /// Its body took too long.
    SlowBody,
    /// A call was answered with a UPnP error.
    Fault,
    /// The core had too much to do.
    Busy,
}

impl Fate {
    const ALL: [(Self, &'static str); 14] = [
        (Self::Connection, "http_connections"),
        (Self::Elsewhere, "http_elsewhere"),
        (Self::Full, "http_full"),
        (Self::MadeRoom, "http_made_room"),
        (Self::TimedOut, "http_timed_out"),
        (Self::BrokenOff, "http_broken_off"),
        (Self::Cut, "http_cut"),
        (Self::Request, "http_requests"),
        (Self::Foreign, "http_foreign"),
        (Self::Bad, "http_bad_requests"),
        (Self::TooLarge, "http_too_large"),
        (Self::SlowBody, "http_slow_body"),
        (Self::Fault, "http_faults"),
        (Self::Busy, "http_busy"),
    ];

    /// Of an answer that is not what was asked for.
    pub(super) fn of(status: StatusCode) -> Option<Self> {
        Some(match status {
            StatusCode::FORBIDDEN => Self::Foreign,
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                Self::TooLarge
            }
            StatusCode::REQUEST_TIMEOUT => Self::SlowBody,
            StatusCode::SERVICE_UNAVAILABLE => Self::Busy,
            StatusCode::INTERNAL_SERVER_ERROR => Self::Fault,
            other if other.is_client_error() => Self::Bad,
            _ => return None,
        })
    }
}

impl Counts {
    pub(super) fn add(&self, fate: Fate) {
        if let Some(count) = self.0.get(fate as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counters by their names.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        Fate::ALL.iter().map(|(_, name)| *name).zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fate_has_its_own_counter() {
        for (place, (fate, name)) in Fate::ALL.into_iter().enumerate() {
            let counts = Counts::default();
            counts.add(fate);
            let counted: Vec<_> = counts.rows().filter(|(_, count)| *count > 0).collect();
            assert_eq!(counted, [(name, 1)], "{place}");
        }
    }
}
