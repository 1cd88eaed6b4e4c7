//! What a server has refused and is not asked again for a while (RFC 6887 sections 8.3 and 11.4; AMB-08).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::Want;
use crate::mapping::PortChoice;
use crate::types::{ExternalPort, Instant, Lifetime, Protocol};
use crate::wire::pcp::ResultCode;

/// A request as far as a refusal depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::proto) struct Question {
    pub(in crate::proto) protocol: Protocol,
    /// Port of our NAT, or of whoever it is asked for.
    pub(in crate::proto) port: ExternalPort,
    pub(in crate::proto) behalf: Option<Ipv4Addr>,
    /// The external port that was insisted on.
    pub(in crate::proto) exact: Option<ExternalPort>,
}

impl Question {
    /// The request for a lease as far as a refusal depends on it.
    pub(in crate::proto) fn of(want: &Want) -> Self {
        Self {
            protocol: want.protocol,
            port: want.port,
            behalf: want.behalf,
            exact: match want.choice {
                PortChoice::Exact => want.external,
                PortChoice::Any => None,
            },
        }
    }
}

/// Refusals in force. At [`MAX`] the one that ends first is forgotten: the server is asked again then.
#[derive(Clone, Debug, Default)]
pub(in crate::proto) struct NegativeCache {
    refused: BTreeMap<Question, (ResultCode, Instant)>,
    everything: Option<(ResultCode, Instant)>,
    new_mappings: Option<Instant>,
}

const MAX: usize = 256;
/// Longest refusal believed (RFC 6887 section 7.4: a long error is about 30 min).
const MAX_HOLD: Duration = Duration::from_secs(1800);
/// AMB-08: another client's port may become free at any time.
const MAX_CONFLICT_HOLD: Duration = Duration::from_secs(120);

impl NegativeCache {
    /// Why this question need not be asked now.
    pub(in crate::proto) fn get(&self, question: &Question, now: Instant) -> Option<ResultCode> {
        let in_force = |held: &(ResultCode, Instant)| (now < held.1).then_some(held.0);
        self.everything
            .as_ref()
            .and_then(in_force)
            .or_else(|| {
                let exhausted = self.new_mappings.is_some_and(|until| now < until);
                exhausted.then_some(ResultCode::NoResources)
            })
            .or_else(|| self.refused.get(question).and_then(in_force))
    }

    /// Keeps a refusal for its lifetime, within bounds.
    pub(in crate::proto) fn put(
        &mut self,
        question: Question,
        result: ResultCode,
        lifetime: Lifetime,
        now: Instant,
    ) {
        let until = now + hold(result, lifetime);
        match scope(result) {
            Scope::Server => self.everything = Some((result, until)),
            Scope::NewMappings => self.new_mappings = Some(until),
            Scope::Question => {
                self.refused.retain(|_, (_, until)| now < *until);
                if self.refused.len() >= MAX {
                    let first = self.refused.iter().min_by_key(|(_, (_, until))| *until);
                    if let Some(question) = first.map(|(question, _)| *question) {
                        self.refused.remove(&question);
                    }
                }
                self.refused.insert(question, (result, until));
            }
        }
    }

    /// Forgets everything: another address, another server behind it, or a restart of it.
    pub(in crate::proto) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// For how long a refusal is believed.
pub(super) fn hold(result: ResultCode, lifetime: Lifetime) -> Duration {
    let max = if result == ResultCode::CannotProvideExternal {
        MAX_CONFLICT_HOLD
    } else {
        MAX_HOLD
    };
    lifetime.duration().min(max)
}

enum Scope {
    /// No MAP will get another answer.
    Server,
    /// Only mappings that exist may be asked for.
    NewMappings,
    /// This very request.
    Question,
}

fn scope(result: ResultCode) -> Scope {
    match result {
        ResultCode::UnsuppVersion
        | ResultCode::UnsuppOpcode
        | ResultCode::AddressMismatch
        // AUTH-011: whoever cannot authenticate gets no other answer.
        | ResultCode::Initiation
        | ResultCode::AuthenticationRequired
        | ResultCode::AuthenticationFailed
        | ResultCode::AuthenticationSucceeded
        | ResultCode::AuthorizationFailed
        | ResultCode::SessionTerminated
        | ResultCode::UnknownSessionId
        | ResultCode::DowngradeAttackDetected
        | ResultCode::AuthenticationRequest
        | ResultCode::AuthenticationReply => Scope::Server,
        ResultCode::NoResources => Scope::NewMappings,
        ResultCode::Success
        | ResultCode::NotAuthorized
        | ResultCode::MalformedRequest
        | ResultCode::UnsuppOption
        | ResultCode::MalformedOption
        | ResultCode::NetworkFailure
        | ResultCode::UnsuppProtocol
        | ResultCode::UserExQuota
        | ResultCode::CannotProvideExternal
        | ResultCode::ExcessiveRemotePeers
        | ResultCode::ThirdPartyIdUnknown
        | ResultCode::ThirdPartyMissingOption
        | ResultCode::UnsuppThirdPartyIdLength
        | ResultCode::Other(_) => Scope::Question,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(port: u16) -> Question {
        let port = ExternalPort::new(port).expect("not 0");
        Question {
            protocol: Protocol::Tcp,
            port,
            behalf: None,
            exact: Some(port),
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    #[test]
    fn a_refusal_holds_for_its_lifetime_within_bounds() {
        for (result, lifetime, until) in [
            (ResultCode::NotAuthorized, 600, 600),
            (ResultCode::NotAuthorized, u32::MAX, 1800),
            (ResultCode::CannotProvideExternal, 30, 30),
            (ResultCode::CannotProvideExternal, 1800, 120),
            (ResultCode::NetworkFailure, 30, 30),
        ] {
            let mut cache = NegativeCache::default();
            cache.put(question(8080), result, Lifetime(lifetime), at(0));
            assert_eq!(cache.get(&question(8080), at(until - 1)), Some(result));
            assert_eq!(cache.get(&question(8080), at(until)), None);
            assert_eq!(cache.get(&question(8081), at(0)), None);
        }
    }

    #[test]
    fn some_refusals_concern_every_mapping() {
        for result in [ResultCode::UnsuppOpcode, ResultCode::NoResources] {
            let mut cache = NegativeCache::default();
            cache.put(question(8080), result, Lifetime(30), at(0));
            assert_eq!(cache.get(&question(9), at(29)), Some(result));
            assert_eq!(cache.get(&question(9), at(30)), None);
        }
    }

    #[test]
    fn a_protocol_that_is_not_supported_says_nothing_of_the_other() {
        let mut cache = NegativeCache::default();
        let udp = Question {
            protocol: Protocol::Udp,
            ..question(8080)
        };
        let result = ResultCode::UnsuppProtocol;
        cache.put(udp, result, Lifetime(1800), at(0));
        assert_eq!(cache.get(&udp, at(1)), Some(result));
        assert_eq!(cache.get(&question(8080), at(1)), None);
    }

    #[test]
    fn stays_bounded() {
        let mut cache = NegativeCache::default();
        for port in 1..2000 {
            let lifetime = Lifetime(u32::from(port));
            cache.put(question(port), ResultCode::NotAuthorized, lifetime, at(0));
        }
        assert_eq!(cache.refused.len(), MAX);
        assert!(cache.get(&question(1999), at(0)).is_some());
    }
}
