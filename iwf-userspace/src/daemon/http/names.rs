//! Names of hosts in calls, which become addresses before the core sees them (IWF-015, IGD-032).
//!
//! The system's resolver is asked, which knows the names of LAN hosts where its DNS server does. It is asked on
//! threads of its own, a few at a time, so that names that nobody knows cost no other call anything. What has no
//! address is left as it is; the core refuses it in the order of its checks.

use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::debug;

use crate::wire::soap::Call;

/// Names asked for at once. One more waits as long as an answer may take, and is left as it is then.
const AT_ONCE: usize = 8;
/// How long an answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// RFC 1035 section 2.3.4, in its text form.
const MAX_NAME: usize = 253;
/// The arguments that may name a host (WANIPConnection:2 sections 2.3.17 and 2.3.21).
const ARGUMENTS: [&str; 2] = ["NewRemoteHost", "NewInternalClient"];

#[derive(Debug)]
pub(super) struct Names {
    places: Arc<Semaphore>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Names {
    /// Puts addresses in the place of names. Of a name with several, the caller's own comes first.
    pub(super) async fn resolve(&self, call: &mut Call, caller: Ipv4Addr) {
        let named = |(name, value): &(String, String)| {
            ARGUMENTS.contains(&name.as_str()) && is_name(value.trim())
        };
        for (argument, value) in call.args.iter_mut().filter(|argument| named(argument)) {
            let found = timeout(ANSWER_TIME, self.ask(value.trim().to_owned())).await;
            let found = found.unwrap_or_default();
            let address = found.iter().find(|a| **a == caller).or(found.first());
            match address {
                Some(address) => *value = address.to_string(),
                None => debug!(argument, name = value, "no address for a name in a call"),
            }
        }
    }

    async fn ask(&self, name: String) -> Vec<Ipv4Addr> {
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return Vec::new();
        };
        // The place is given back when the resolver has ended, however long it takes: threads are bounded, too.
        let asking = spawn_blocking(move || {
            let found = (name, 0).to_socket_addrs();
            drop(place);
            found.map(|all| all.map(|at| at.ip()).collect::<Vec<_>>())
        });
        let found = asking.await.ok().and_then(Result::ok).unwrap_or_default();
        let v4 = |address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        found.into_iter().filter_map(v4).collect()
    }
}

/// Whether a text can only be a name: what resolvers take for an address in one of its odd forms (`1.2`, `0x7f.1`)
/// is none.
fn is_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let octet = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(octet)
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= MAX_NAME
        && last.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_asked_for() {
        for name in [
            "lan1",
            "lan1.lan",
            "a-b.c_d.example",
            "host.example.",
            "x.0a.b",
        ] {
            assert!(is_name(name), "{name}");
        }
        let long = format!("{}.lan", "x".repeat(64));
        for other in [
            "",
            "*",
            ".",
            "192.168.1.20",
            "1.2",
            "0x7f.1",
            "127.1",
            "host.1",
            "::1",
            "a..b",
            "a b",
            "host:80",
            "bücher.example",
            &long,
            "300.1.1.1",
        ] {
            assert!(!is_name(other), "{other:?}");
        }
    }

    fn call(argument: &str, value: &str) -> Call {
        Call {
            service: "WANIPConnection".to_owned(),
            version: 2,
            action: "AddPortMapping".to_owned(),
            args: vec![(argument.to_owned(), value.to_owned())],
        }
    }

    #[test]
    fn a_name_becomes_an_address_and_nothing_else_changes() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let names = Names::default();
        let resolved = |argument: &str, value: &str| {
            let mut call = call(argument, value);
            runtime.block_on(names.resolve(&mut call, Ipv4Addr::new(192, 168, 1, 20)));
            call.args.remove(0).1
        };
        assert_eq!(resolved("NewRemoteHost", " localhost "), "127.0.0.1");
        assert_eq!(resolved("NewInternalClient", "localhost"), "127.0.0.1");
        assert_eq!(
            resolved("NewPortMappingDescription", "localhost"),
            "localhost"
        );
        assert_eq!(resolved("NewRemoteHost", "192.0.2.1"), "192.0.2.1");
        assert_eq!(resolved("NewRemoteHost", ""), "");
    }
}
