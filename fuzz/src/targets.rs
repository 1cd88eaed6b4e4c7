//! What takes octets from the network and from files, each behind one function that must return.
//!
//! Also compiled into a test, which gives each target its committed corpus.

#[path = "../../iwf-userspace/tests/gateway/mod.rs"]
mod gateway;
#[path = "targets/kept.rs"]
mod kept;
#[path = "targets/lan.rs"]
mod lan;
#[path = "targets/packets.rs"]
mod packets;
#[path = "targets/setup.rs"]
mod setup;
#[path = "targets/upstream.rs"]
mod upstream;

use gateway::{CALLER, Gateway};
use iwf_userspace::iwf::Input;
use iwf_userspace::types::UnixTime;
use iwf_userspace::wire::soap::Call;

/// Returns how much of it was understood: requests that were granted, messages that were read. Only the test asks.
pub(crate) type Target = fn(&[u8]) -> usize;

pub(crate) const TARGETS: [(&str, Target); 12] = [
    ("soap", lan::soap),
    ("ssdp", lan::ssdp),
    ("gena", lan::gena),
    ("pcp", upstream::pcp),
    ("natpmp", upstream::natpmp),
    ("igd", upstream::igd),
    ("router", upstream::router),
    ("dhcp", upstream::dhcp),
    ("packets", packets::packets),
    ("leases", kept::leases),
    ("store", kept::store),
    ("wps", setup::wps),
];

pub(crate) fn named(name: &str) -> Option<Target> {
    let mut targets = TARGETS.iter();
    targets
        .find(|(of, _)| *of == name)
        .map(|(_, target)| *target)
}

/// For results that only have to come back.
fn ignore<T>(_: T) {}

/// How many of these are one.
fn count<const N: usize>(understood: [bool; N]) -> usize {
    understood.into_iter().filter(|is| *is).count()
}

impl Gateway {
    /// Lets time pass until every call has its answer. Then the kernel holds what the table wants, and nothing else.
    /// Returns how many calls were granted.
    fn finish(&mut self) -> usize {
        for _ in 0..200 {
            if self.open.is_empty() || !self.wait() {
                break;
            }
            self.input(Input::WallClock(UnixTime::from_secs(1_700_000_100)));
        }
        assert!(self.open.is_empty(), "each call has one answer");
        let now = self.now;
        let is_alive = |entry: &&iwf_userspace::types::NatEntry| {
            entry.expires.is_none_or(|expires| expires > now)
        };
        let held: Vec<_> = self.kernel.values().filter(is_alive).copied().collect();
        let violations = self.iwf.audit(&held, now);
        assert!(violations.is_empty(), "{violations:?}");
        let answers = self.answers.iter();
        answers.filter(|(status, _)| *status == 200).count()
    }
}

/// A call of WANIPConnection:1.
fn call(action: &str, args: &[(&str, &str)]) -> Call {
    let args = args.iter();
    Call {
        service: "WANIPConnection".to_owned(),
        version: 1,
        action: action.to_owned(),
        args: args
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

fn add(port: u16) -> Call {
    let args = [
        ("NewRemoteHost", ""),
        ("NewExternalPort", &port.to_string()),
        ("NewProtocol", "TCP"),
        ("NewInternalPort", "8000"),
        ("NewInternalClient", &CALLER.to_string()),
        ("NewEnabled", "1"),
        ("NewPortMappingDescription", "one"),
        ("NewLeaseDuration", "3600"),
    ];
    call("AddPortMapping", &args)
}

fn delete(port: u16) -> Call {
    let args = [
        ("NewRemoteHost", ""),
        ("NewExternalPort", &port.to_string()),
        ("NewProtocol", "TCP"),
    ];
    call("DeletePortMapping", &args)
}
