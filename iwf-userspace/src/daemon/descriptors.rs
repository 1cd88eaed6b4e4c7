//! How many files this process may have open, which LAN hosts must not use up.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

use super::config::HttpConfig;

/// What everything but connections of plain HTTP may have open at once: kernel objects (about a hundred), messages to
/// subscribers (256), connections over TLS (at most 256), requests of the owner, sockets.
const OTHERS: u64 = 896;

/// Raises the limit to what the configuration may need. Where it cannot, the server takes fewer connections instead.
pub(super) fn provide(http: HttpConfig) -> HttpConfig {
    let wanted = OTHERS + http.max_connections as u64;
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            warn!(%error, "cannot read the limit of open files");
            return http;
        }
    };
    if soft >= wanted {
        return http;
    }
    // Raising the hard limit takes a privilege that the daemon usually has.
    let raised = [(wanted, hard.max(wanted)), (hard, hard)];
    let raised = raised
        .into_iter()
        .find(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, *soft, *hard).is_ok());
    let limit = raised.map_or(soft, |(soft, _)| soft);
    let fitting = fitting(http, limit);
    if fitting.max_connections < http.max_connections {
        warn!(
            limit,
            max_connections = fitting.max_connections,
            "http.max_connections is more than the limit of open files allows"
        );
    }
    fitting
}

fn fitting(http: HttpConfig, limit: u64) -> HttpConfig {
    let left = usize::try_from(limit.saturating_sub(OTHERS)).unwrap_or(usize::MAX);
    let max_connections = http.max_connections.min(left.max(1));
    HttpConfig {
        max_connections,
        max_connections_per_host: http.max_connections_per_host.min(max_connections),
        ..http
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn connections_fit_into_what_is_left() {
        let http = HttpConfig {
            port: 0,
            max_connections: 128,
            max_connections_per_host: 16,
            answer_within: Duration::from_secs(28),
        };
        for (limit, all, per_host) in [
            (2048, 128, 16),
            (1024, 128, 16),
            (1023, 127, 16),
            (906, 10, 10),
            (896, 1, 1),
            (0, 1, 1),
        ] {
            let fitting = fitting(http, limit);
            let bounds = (fitting.max_connections, fitting.max_connections_per_host);
            assert_eq!(bounds, (all, per_host), "{limit}");
            assert_eq!(fitting.port, http.port);
        }
    }

    #[test]
    fn what_the_limit_allows_is_not_touched_and_more_is_asked_for() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let http = HttpConfig {
            port: 0,
            max_connections: 64,
            max_connections_per_host: 16,
            answer_within: Duration::from_secs(28),
        };
        let provided = provide(http);
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(soft >= (OTHERS + 64).min(hard), "{soft} of {hard}");
        assert!(provided.max_connections as u64 <= soft);
    }
}
