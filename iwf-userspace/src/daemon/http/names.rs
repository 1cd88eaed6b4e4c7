//! Names of hosts in calls, which become addresses before the core sees them (IWF-015, IGD-032).
//!
//! The system's resolver is asked, which knows the names of LAN hosts where its DNS server does. It is asked on
//! threads of its own, a few at a time and fewer for each host, so that names that nobody knows cost no other call, and one
//! host's names no other host anything. What has no address is left as it is; the core refuses it in the order of its
//! checks.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::debug;

use super::super::shares::Shares;
use crate::proto::igd::is_any_host;
use crate::types::caller::{Caller, Station};
use crate::wire::soap::Call;

/// Names asked for at once. One more waits as long as an answer may take, and is left as it is then.
const AT_ONCE: usize = 8;
/// Names of one host asked for at once. One more waits for those of its own host, not among what other hosts wait for.
const PER_HOST: usize = 2;
/// How long an answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// RFC 1035 section 2.3.4, in its text form.
const MAX_NAME: usize = 253;
/// The arguments that may name a host (WANIPConnection:2 sections 2.3.17 and 2.3.21).
const ARGUMENTS: [&str; 2] = ["NewRemoteHost", "NewInternalClient"];

type Lookup = dyn Fn(String) -> io::Result<Vec<IpAddr>> + Send + Sync;

pub(super) struct Names {
    shares: Shares,
    lookup: Arc<Lookup>,
    answer_time: Duration,
}

impl Default for Names {
    fn default() -> Self {
        Self::by(|name| {
            let found = (name, 0).to_socket_addrs()?;
            Ok(found.map(|at| at.ip()).collect())
        })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names")
            .field("shares", &self.shares)
            .field("answer_time", &self.answer_time)
            .finish_non_exhaustive()
    }
}

impl Names {
    fn by(lookup: impl Fn(String) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self {
            shares: Shares::new(AT_ONCE, PER_HOST),
            lookup: Arc::new(lookup),
            answer_time: ANSWER_TIME,
        }
    }

    /// Whether a call has names in the place of addresses.
    pub(super) fn are_in(call: &Call) -> bool {
        call.args.iter().any(is_named)
    }

    /// Puts addresses in the place of names. Of a name with several, the caller's own comes first.
    pub(super) async fn resolve(&self, call: &mut Call, caller: &Caller) {
        let own = caller.v4(None);
        for (argument, value) in call.args.iter_mut().filter(|argument| is_named(argument)) {
            let asked = self.ask(value.trim().to_owned(), caller.into());
            let found = timeout(self.answer_time, asked).await.unwrap_or_default();
            let address = found.iter().find(|a| **a == own).or(found.first());
            match address {
                Some(address) => *value = address.to_string(),
                None => debug!(argument, name = value, "no address for a name in a call"),
            }
        }
    }

    async fn ask(&self, name: String, station: Station) -> Vec<Ipv4Addr> {
        let Some(share) = self.shares.take(station).await else {
            return Vec::new();
        };
        let lookup = Arc::clone(&self.lookup);
        // The share is given back when the resolver has ended, however long it takes: threads are bounded, too.
        let asking = spawn_blocking(move || {
            let found = lookup(name);
            drop(share);
            found
        });
        let found = asking.await.ok().and_then(Result::ok).unwrap_or_default();
        let v4 = |address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        found.into_iter().filter_map(v4).collect()
    }
}

fn is_named((name, value): &(String, String)) -> bool {
    ARGUMENTS.contains(&name.as_str()) && is_name(value.trim()) && !is_any_host(value)
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
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Sender, channel};
    use std::sync::{Mutex, PoisonError};

    use tokio::task::JoinHandle;

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

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    }

    fn caller(last: u8) -> Caller {
        Ipv4Addr::new(192, 168, 1, last).into()
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
        let runtime = runtime();
        let names = Names::default();
        let resolved = |argument: &str, value: &str| {
            let mut call = call(argument, value);
            runtime.block_on(names.resolve(&mut call, &caller(20)));
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

    /// Nobody is asked for a word that stands for any host.
    #[test]
    fn a_word_for_any_host_is_no_name() {
        let named = |name: &str, value: &str| Names::are_in(&call(name, value));
        assert!(named("NewRemoteHost", "undefined.example"));
        assert!(!named("NewRemoteHost", "undefined"));
    }

    /// A resolver that has an answer to no name of `slow` until it is told, and counts who waits for one.
    struct Stuck {
        names: Arc<Names>,
        waiting: Arc<AtomicUsize>,
        go_on: Option<Sender<()>>,
    }

    impl Stuck {
        fn new(answer_time: Duration) -> Self {
            let waiting = Arc::<AtomicUsize>::default();
            let (go_on, told) = channel::<()>();
            let told = Mutex::new(told);
            let counted = Arc::clone(&waiting);
            let mut names = Names::by(move |name| {
                if name == "slow" {
                    counted.fetch_add(1, Ordering::SeqCst);
                    // Ends when the sender is dropped.
                    let ended = told.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    assert!(ended.is_err(), "nothing is sent");
                }
                Ok(vec![Ipv4Addr::new(192, 0, 2, 1).into()])
            });
            names.answer_time = answer_time;
            Self {
                names: Arc::new(names),
                waiting,
                go_on: Some(go_on),
            }
        }

        fn ask(&self, name: &'static str, caller: Caller) -> JoinHandle<String> {
            let names = Arc::clone(&self.names);
            tokio::spawn(async move {
                let mut call = call("NewRemoteHost", name);
                names.resolve(&mut call, &caller).await;
                call.args.remove(0).1
            })
        }

        /// Returns when so many wait.
        async fn until_waiting(&self, number: usize) {
            while self.waiting.load(Ordering::SeqCst) < number {
                tokio::task::yield_now().await;
            }
        }
    }

    #[test]
    fn one_host_cannot_take_the_places_of_all() {
        let runtime = runtime();
        runtime.block_on(async {
            let mut stuck = Stuck::new(Duration::from_secs(60));
            let greedy: Vec<_> = (0..4 * AT_ONCE)
                .map(|_| stuck.ask("slow", caller(10)))
                .collect();
            stuck.until_waiting(PER_HOST).await;
            // Others are answered meanwhile, though more of the greedy one's came before.
            for last in 20..20 + 2 * u8::try_from(AT_ONCE).unwrap() {
                assert_eq!(stuck.ask("quick", caller(last)).await.unwrap(), "192.0.2.1");
            }
            assert_eq!(stuck.waiting.load(Ordering::SeqCst), PER_HOST);
            assert_eq!(stuck.names.shares.left().0, AT_ONCE - PER_HOST);
            // A host with several addresses is one host.
            let same = |last| Caller {
                mac: Some([2, 0, 0, 0, 0, 1]),
                ..caller(last)
            };
            let changing: Vec<_> = (40..50).map(|last| stuck.ask("slow", same(last))).collect();
            stuck.until_waiting(2 * PER_HOST).await;
            assert_eq!(stuck.ask("quick", caller(51)).await.unwrap(), "192.0.2.1");
            assert_eq!(stuck.waiting.load(Ordering::SeqCst), 2 * PER_HOST);

            drop(stuck.go_on.take());
            for asked in greedy.into_iter().chain(changing) {
                assert_eq!(asked.await.unwrap(), "192.0.2.1");
            }
            // The places are there again, and nobody is remembered.
            assert_eq!(stuck.ask("quick", caller(10)).await.unwrap(), "192.0.2.1");
            assert_eq!(stuck.names.shares.left().0, AT_ONCE);
            assert!(stuck.names.shares.left().1 <= 1);
        });
    }

    #[test]
    fn a_name_without_an_answer_is_left_and_its_thread_is_counted_until_it_ends() {
        let runtime = runtime();
        runtime.block_on(async {
            let stuck = Stuck::new(Duration::from_millis(50));
            let asked: Vec<_> = (0..3 * AT_ONCE)
                .map(|_| stuck.ask("slow", caller(10)))
                .collect();
            for asked in asked {
                assert_eq!(asked.await.unwrap(), "slow");
            }
            assert_eq!(stuck.waiting.load(Ordering::SeqCst), PER_HOST);
            // Whoever gave up waiting is out of the queue; the threads still have their places.
            assert_eq!(stuck.names.shares.left().0, AT_ONCE - PER_HOST);
        });
    }
}
