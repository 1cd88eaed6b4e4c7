//! What control points were told, and what has to be so because of that.
//!
//! A promise is an answer of success: a mapping with that external port, for that internal endpoint, until its lease
//! ends or it is deleted. What nobody knows the outcome of, because the daemon died before its answer, may be or not.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::world::{self, World};
use crate::mapping::{Mapping, Owner, State};
use crate::types::{Generation, Instant, MappingNonce, Protocol};
use crate::wire::soap::{ActionResult, Call};

/// Time by which two ends of one lease may differ: the clocks of two lives are compared in whole seconds, and records
/// that another wall clock was believed for are exact to two.
const SLACK: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
pub(super) struct Oracle {
    /// Promises by external port (all is TCP).
    promises: BTreeMap<u16, Promise>,
    /// Calls that have no answer yet.
    open: BTreeMap<u64, Asked>,
    /// What may be in the table: internal endpoint and external port, 0 for any, with the number of calls that asked
    /// for it and were not refused.
    allowed: BTreeMap<(u16, (Ipv4Addr, u16)), u32>,
    /// Whether anything is compared: not where mappings come from elsewhere than from calls.
    pub(super) is_on: bool,
    /// No promise may be broken: nothing happens that would excuse it, as a server that forgets or a network that keeps
    /// us from it.
    pub(super) is_strict: bool,
    /// Promises that were made and kept to their end.
    pub(super) kept: u64,
    /// Mappings seen, with the nonce of each.
    nonces: BTreeMap<Generation, MappingNonce>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Promise {
    internal: (Ipv4Addr, u16),
    ends: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Add {
        /// 0 for any.
        external: u16,
        wanted: u16,
        promise: Promise,
    },
    Delete {
        external: u16,
    },
}

impl Oracle {
    /// A host asks for something.
    pub(super) fn asked(&mut self, id: u64, host: u8, call: &Call, now: Instant) {
        let text = |name: &str| {
            let mut args = call.args.iter();
            args.find(|(n, _)| n == name)
                .map_or("", |(_, value)| value.as_str())
        };
        let number = |name: &str| text(name).parse().unwrap_or(0);
        let external = number("NewExternalPort");
        let asked = match call.action.as_str() {
            "AddPortMapping" | "AddAnyPortMapping" => {
                let lease = text("NewLeaseDuration").parse().unwrap_or(0);
                let internal = (world::host(host), number("NewInternalPort"));
                let ends = now + Duration::from_secs(lease);
                Asked::Add {
                    external: if call.action == "AddPortMapping" {
                        external
                    } else {
                        0
                    },
                    wanted: external,
                    promise: Promise { internal, ends },
                }
            }
            "DeletePortMapping" => {
                // Nobody knows until the answer.
                Asked::Delete { external }
            }
            _other => return,
        };
        if let Asked::Add {
            external, promise, ..
        } = asked
        {
            *self
                .allowed
                .entry((external, promise.internal))
                .or_default() += 1;
        }
        self.open.insert(id, asked);
    }

    /// The owner of the router takes something away, whatever comes of it.
    pub(super) fn admin(&mut self, protocol: Protocol, external: u16) {
        if protocol == Protocol::Tcp {
            self.promises.remove(&external);
        }
    }

    /// Nobody hears any more what came of the open calls.
    pub(super) fn crashed(&mut self, open: &BTreeMap<u64, Instant>) {
        for id in open.keys() {
            match self.open.remove(id) {
                None => {}
                // If it was done it may have replaced what was promised before.
                Some(Asked::Add {
                    wanted, promise, ..
                }) => {
                    self.promises.retain(|port, before| {
                        let same_port = *port == wanted && before.internal.0 == promise.internal.0;
                        !same_port && before.internal != promise.internal
                    });
                }
                Some(Asked::Delete { external }) => {
                    self.promises.remove(&external);
                }
            }
        }
    }

    /// A call is answered. With a store that `is_doubtful` a refusal may have been stored all the same; it is taken
    /// back when the store works, unless the daemon dies first.
    pub(super) fn told(&mut self, id: u64, result: &ActionResult, is_doubtful: bool) {
        let Some(asked) = self.open.remove(&id) else {
            return;
        };
        match (asked, result) {
            (
                Asked::Add {
                    external, promise, ..
                },
                Ok(out),
            ) => {
                let reserved = out.iter().find(|(name, _)| *name == "NewReservedPort");
                let assigned = reserved.and_then(|(_, port)| port.parse().ok());
                self.promises.insert(assigned.unwrap_or(external), promise);
            }
            (
                Asked::Add {
                    external, promise, ..
                },
                Err(_),
            ) if !is_doubtful => {
                let key = (external, promise.internal);
                if let Some(count) = self.allowed.get_mut(&key) {
                    *count -= 1;
                    if *count == 0 {
                        self.allowed.remove(&key);
                    }
                }
            }
            (Asked::Delete { external }, Ok(_)) => {
                self.promises.remove(&external);
            }
            // What could not be taken out of the kernel at once is on its way out all the same.
            (Asked::Delete { external }, Err(error)) if ![606, 714].contains(&error.code) => {
                self.promises.remove(&external);
            }
            (Asked::Add { .. } | Asked::Delete { .. }, Err(_)) => {}
        }
    }

    /// Whether the world is as was told.
    pub(super) fn check(&self, world: &World) {
        if !self.is_on {
            return;
        }
        for (external, promise) in &self.promises {
            if !self.is_strict || promise.ends <= world.now + SLACK {
                continue;
            }
            let held = world.iwf.mappings().find(|m| {
                m.claim.port.is_some_and(|port| port.get() == *external)
                    && m.protocol == Protocol::Tcp
                    && m.is_installed()
            });
            let held = held.unwrap_or_else(|| {
                panic!(
                    "port {external} was promised and is not there: {promise:?} at {:?}",
                    world.now
                )
            });
            assert_eq!(
                (held.internal.addr, held.internal.port.get()),
                promise.internal,
                "port {external} was promised to somebody else"
            );
            assert!(
                held.lease_ends + SLACK >= promise.ends,
                "port {external} was promised until {:?} and ends at {:?}",
                promise.ends,
                held.lease_ends
            );
        }
        for mapping in world.iwf.mappings() {
            self.check_mapping(mapping);
        }
    }

    /// Nothing is there that nobody has asked for, or that was refused.
    fn check_mapping(&self, mapping: &Mapping) {
        if mapping.owner != Owner::ControlPoint || mapping.state != State::Active {
            return;
        }
        let internal = (mapping.internal.addr, mapping.internal.port.get());
        let port = mapping.claim.port.map_or(0, |port| port.get());
        let asked = self.allowed.contains_key(&(port, internal))
            || self.allowed.contains_key(&(0, internal));
        assert!(asked, "nobody was given this: {mapping:?}");
        if let (Some(lease), Some(nonce)) = (mapping.upstream, self.nonces.get(&mapping.generation))
        {
            assert_eq!(lease.nonce, *nonce, "another nonce: {mapping:?}");
        }
    }

    /// What is asked for anew has another nonce.
    pub(super) fn forget_nonces(&mut self) {
        self.nonces.clear();
    }

    /// Takes notes for the next check.
    pub(super) fn note<'a>(
        &mut self,
        mappings: impl Iterator<Item = &'a Mapping>,
        now: Instant,
        moved: bool,
    ) {
        let before = self.promises.len();
        self.promises.retain(|_, promise| promise.ends > now);
        self.kept += (before - self.promises.len()) as u64;
        // Another address of ours is another mapping at the server.
        self.nonces.clear();
        if !moved {
            let leased = |m: &Mapping| m.upstream.map(|lease| (m.generation, lease.nonce));
            self.nonces.extend(mappings.filter_map(leased));
        }
    }
}
