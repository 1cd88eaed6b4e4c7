//! One question as calls of actions, with what routers do against their standard.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Call, Request};
use crate::proto::natpmp_client::other::{Asked, Mapped, Said};
use crate::types::{ExternalPort, Lifetime, Protocol};
use crate::wire::control_point::{Answer, Connection, MAX_ANSWER, encode_call};
use crate::wire::pcp::ResultCode;

/// Told to routers: descriptions of applications may be private.
const DESCRIPTION: &str = "iwf";
/// Other ports that are tried where any will do and the router cannot choose one.
const MAX_TRIES: u16 = 8;

/// Codes of WANIPConnection and of the architecture.
mod code {
    pub(super) const INVALID_ACTION: u16 = 401;
    pub(super) const INVALID_ARGS: u16 = 402;
    pub(super) const ACTION_FAILED: u16 = 501;
    pub(super) const ARGUMENT_VALUE_INVALID: u16 = 600;
    pub(super) const ARGUMENT_VALUE_OUT_OF_RANGE: u16 = 601;
    pub(super) const OPTIONAL_ACTION: u16 = 602;
    pub(super) const NOT_AUTHORIZED: u16 = 606;
    pub(super) const NO_SUCH_ENTRY: u16 = 714;
    pub(super) const CONFLICT: u16 = 718;
    pub(super) const SAME_PORTS: u16 = 724;
    pub(super) const ONLY_PERMANENT: u16 = 725;
    pub(super) const NO_PORT_MAPS: u16 = 728;
    pub(super) const CONFLICT_ELSEWHERE: u16 = 729;
}

/// How a router was found to behave.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Conduct {
    /// Leases without an end only.
    permanent: bool,
    /// It does not say what it maps.
    blind: bool,
    /// It can choose a port.
    chooses: bool,
}

impl Conduct {
    pub(super) fn of(connection: &Connection) -> Self {
        let chooses = connection.version >= 2 && connection.urn.contains("WANIPConnection");
        Self {
            chooses,
            ..Self::default()
        }
    }
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// GetExternalIPAddress.
    Address,
    /// GetSpecificPortMappingEntry.
    Look(Entry),
    /// AddPortMapping.
    Add(Entry, Lifetime),
    /// AddAnyPortMapping.
    AddAny(Entry, Lifetime),
    /// DeletePortMapping.
    Delete(Entry),
}

/// A port mapping of ours at the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    protocol: Protocol,
    external: ExternalPort,
    internal: SocketAddrV4,
}

impl Step {
    pub(super) const fn action(self) -> &'static str {
        match self {
            Self::Address => "GetExternalIPAddress",
            Self::Look(_) => "GetSpecificPortMappingEntry",
            Self::Add(..) => "AddPortMapping",
            Self::AddAny(..) => "AddAnyPortMapping",
            Self::Delete(_) => "DeletePortMapping",
        }
    }

    /// The port that may be mapped from here on.
    pub(super) const fn trying(self) -> Option<ExternalPort> {
        match self {
            Self::Add(entry, _) | Self::AddAny(entry, _) => Some(entry.external),
            Self::Address | Self::Look(_) | Self::Delete(_) => None,
        }
    }

    pub(super) fn request(self, connection: &Connection) -> Request {
        let (urn, action) = (&connection.urn, self.action());
        let key = |entry: Entry| {
            let protocol = match entry.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Udp => "UDP",
            };
            vec![
                ("NewRemoteHost", String::new()),
                ("NewExternalPort", entry.external.get().to_string()),
                ("NewProtocol", protocol.to_owned()),
            ]
        };
        let args = match self {
            Self::Address => Vec::new(),
            Self::Look(entry) | Self::Delete(entry) => key(entry),
            Self::Add(entry, lease) | Self::AddAny(entry, lease) => {
                let mut args = key(entry);
                args.extend([
                    ("NewInternalPort", entry.internal.port().to_string()),
                    ("NewInternalClient", entry.internal.ip().to_string()),
                    ("NewEnabled", "1".to_owned()),
                    ("NewPortMappingDescription", DESCRIPTION.to_owned()),
                    ("NewLeaseDuration", lease.0.to_string()),
                ]);
                args
            }
        };
        Request {
            at: connection.control.at,
            path: connection.control.path.clone(),
            call: Some(Call {
                soap_action: format!("\"{urn}#{action}\""),
                body: encode_call(urn, action, &args),
            }),
            limit: MAX_ANSWER,
        }
    }
}

/// A question under way.
#[derive(Debug)]
pub(super) struct Task {
    what: What,
    /// The call to make next, or under way; `None` when all are made.
    step: Option<Step>,
    outcome: Vec<Said>,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Address,
    Map(Map),
    Delete,
    /// Address, then this mapping.
    Check(Option<Entry>),
}

#[derive(Clone, Copy, Debug)]
struct Map {
    entry: Entry,
    /// The port that was wanted first.
    first: ExternalPort,
    exact: bool,
    held: bool,
    lifetime: Lifetime,
    /// With which lease it was added, once it was.
    added: Option<Lifetime>,
    /// What is said when the entry is deleted again.
    undo: Option<ResultCode>,
    tries: u16,
}

impl Map {
    fn add(&self, conduct: &Conduct) -> Step {
        let lease = match conduct.permanent {
            true => Lifetime(0),
            false => self.lifetime,
        };
        match conduct.chooses && !self.exact && !self.held {
            true => Step::AddAny(self.entry, lease),
            false => Step::Add(self.entry, lease),
        }
    }
}

impl Task {
    /// What the leases ask. `local` is our address, by which the router knows us.
    pub(super) fn of(asked: Asked, local: Ipv4Addr, conduct: &Conduct) -> Self {
        let entry = |protocol, port: ExternalPort, external| Entry {
            protocol,
            external,
            internal: SocketAddrV4::new(local, port.get()),
        };
        let (what, step) = match asked {
            Asked::Address => (What::Address, Some(Step::Address)),
            Asked::Map {
                protocol,
                port,
                external,
                exact,
                held,
                lifetime,
            } => {
                let first = external.unwrap_or(port);
                let entry = entry(protocol, port, first);
                let map = Map {
                    entry,
                    first,
                    exact,
                    held,
                    lifetime,
                    added: None,
                    undo: None,
                    tries: 0,
                };
                let step = match conduct.chooses && !exact && !held {
                    true => map.add(conduct),
                    false => Step::Look(entry),
                };
                (What::Map(map), Some(step))
            }
            Asked::Delete {
                protocol,
                port,
                external,
            } => {
                let look = external.map(|external| Step::Look(entry(protocol, port, external)));
                (What::Delete, look)
            }
        };
        // What the router cannot know is gone.
        let gone = matches!(what, What::Delete) && step.is_none();
        Self {
            what,
            step,
            outcome: if gone {
                vec![Said::Deleted]
            } else {
                Vec::new()
            },
        }
    }

    /// A look at the address, and at a mapping that should be there.
    pub(super) fn check(mapped: Option<Mapped>, local: Ipv4Addr) -> Self {
        let entry = mapped.map(|mapped| Entry {
            protocol: mapped.protocol,
            external: mapped.external,
            internal: SocketAddrV4::new(local, mapped.port.get()),
        });
        Self {
            what: What::Check(entry),
            step: Some(Step::Address),
            outcome: Vec::new(),
        }
    }

    pub(super) const fn step(&self) -> Option<Step> {
        self.step
    }

    pub(super) fn outcome(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.outcome)
    }

    /// Takes the answer to the step under way; `None` for one that is none. What the router is found to be like stays.
    pub(super) fn answered(&mut self, answer: Option<Answer>, conduct: &mut Conduct) {
        let Some(step) = self.step.take() else {
            return;
        };
        match self.what {
            What::Address => self.outcome.push(match address(answer.as_ref()) {
                Ok(addr) => Said::Address(addr),
                Err(result) => Said::Refused(result),
            }),
            What::Check(entry) => self.checked(step, entry, answer.as_ref(), conduct),
            What::Delete => self.deleting(step, answer.as_ref(), conduct),
            What::Map(mut map) => {
                match step {
                    Step::Look(_) if map.added.is_none() => {
                        self.looked(&mut map, answer.as_ref(), conduct);
                    }
                    Step::Look(_) => self.verified(&mut map, answer.as_ref(), conduct),
                    Step::Add(_, lease) => self.added(&mut map, lease, answer.as_ref(), conduct),
                    Step::AddAny(_, lease) => {
                        self.chosen(&mut map, lease, answer.as_ref(), conduct)
                    }
                    Step::Delete(_) | Step::Address => {
                        let result = map.undo.unwrap_or(ResultCode::NetworkFailure);
                        self.outcome.push(Said::Refused(result));
                    }
                }
                self.what = What::Map(map);
            }
        }
    }

    fn checked(
        &mut self,
        step: Step,
        entry: Option<Entry>,
        answer: Option<&Answer>,
        conduct: &mut Conduct,
    ) {
        match step {
            Step::Address => {
                self.outcome.extend(address(answer).ok().map(Said::Address));
                self.step = entry.filter(|_| !conduct.blind).map(Step::Look);
            }
            Step::Look(entry) => match seen(answer, entry, conduct) {
                Seen::Ours(_) | Seen::Unknown => {}
                Seen::Nothing | Seen::Others => self.outcome.push(Said::Restarted),
            },
            Step::Add(..) | Step::AddAny(..) | Step::Delete(_) => {}
        }
    }

    /// Only what is ours is deleted: anybody may have the port by now.
    fn deleting(&mut self, step: Step, answer: Option<&Answer>, conduct: &mut Conduct) {
        match step {
            Step::Look(entry) => match seen(answer, entry, conduct) {
                Seen::Ours(_) | Seen::Unknown => self.step = Some(Step::Delete(entry)),
                Seen::Nothing | Seen::Others => self.outcome.push(Said::Deleted),
            },
            Step::Address | Step::Add(..) | Step::AddAny(..) | Step::Delete(_) => {
                self.outcome.push(match answer {
                    Some(Answer::Done(_) | Answer::Failed(code::NO_SUCH_ENTRY)) => Said::Deleted,
                    Some(Answer::Failed(code)) => Said::Refused(result_of(*code)),
                    None => Said::Refused(ResultCode::NetworkFailure),
                });
            }
        }
    }

    /// Before a port is asked for: many routers hand over the port of another client without a word.
    fn looked(&mut self, map: &mut Map, answer: Option<&Answer>, conduct: &mut Conduct) {
        match seen(answer, map.entry, conduct) {
            Seen::Others => self.taken(map),
            Seen::Nothing => {
                if map.held {
                    self.outcome.push(Said::Restarted);
                }
                self.step = Some(map.add(conduct));
            }
            Seen::Ours(_) | Seen::Unknown => self.step = Some(map.add(conduct)),
        }
    }

    fn added(
        &mut self,
        map: &mut Map,
        lease: Lifetime,
        answer: Option<&Answer>,
        conduct: &mut Conduct,
    ) {
        match answer {
            Some(Answer::Done(_)) => {
                map.added = Some(lease);
                if conduct.blind {
                    self.grant(map, lease);
                } else {
                    self.step = Some(Step::Look(map.entry));
                }
            }
            Some(Answer::Failed(code::CONFLICT | code::CONFLICT_ELSEWHERE | code::SAME_PORTS)) => {
                self.taken(map)
            }
            // Some say so by another code than 725.
            Some(Answer::Failed(
                code::ONLY_PERMANENT
                | code::INVALID_ARGS
                | code::ACTION_FAILED
                | code::ARGUMENT_VALUE_INVALID
                | code::ARGUMENT_VALUE_OUT_OF_RANGE,
            )) if lease.0 > 0 => self.step = Some(Step::Add(map.entry, Lifetime(0))),
            Some(Answer::Failed(code)) => self.outcome.push(Said::Refused(result_of(*code))),
            None => self.undo(map, ResultCode::NetworkFailure),
        }
    }

    fn chosen(
        &mut self,
        map: &mut Map,
        lease: Lifetime,
        answer: Option<&Answer>,
        conduct: &mut Conduct,
    ) {
        let port = answer
            .and_then(|answer| answer.arg("NewReservedPort"))
            .and_then(|port| port.parse().ok())
            .and_then(ExternalPort::new);
        match (answer, port) {
            (Some(Answer::Done(_)), Some(port)) => {
                map.entry.external = port;
                self.added(map, lease, answer, conduct);
            }
            (Some(Answer::Failed(code::ONLY_PERMANENT)), _) if lease.0 > 0 => {
                self.step = Some(Step::AddAny(map.entry, Lifetime(0)));
            }
            // Without it.
            _ => {
                conduct.chooses = false;
                self.step = Some(Step::Look(map.entry));
            }
        }
    }

    /// An answer says little; the entry says what is mapped.
    fn verified(&mut self, map: &mut Map, answer: Option<&Answer>, conduct: &mut Conduct) {
        let asked = map.added.unwrap_or_default();
        match seen(answer, map.entry, conduct) {
            Seen::Ours(left) => {
                // The first one that says so: 725 or not, it keeps what has no end.
                let lease = left.unwrap_or(asked).min(asked);
                conduct.permanent |= asked.0 == 0;
                self.grant(map, lease);
            }
            Seen::Unknown => self.grant(map, asked),
            Seen::Nothing => self.outcome.push(Said::Refused(ResultCode::NetworkFailure)),
            Seen::Others => self.undo(map, ResultCode::NetworkFailure),
        }
    }

    /// `lease` 0: it has no end there, so that renewals are looks whether it is still there.
    fn grant(&mut self, map: &Map, lease: Lifetime) {
        let permanent = lease.0 == 0;
        self.outcome.push(Said::Granted {
            external: map.entry.external,
            lifetime: if permanent { map.lifetime } else { lease },
            permanent,
        });
    }

    /// What may have been mapped and is not what was asked for goes again.
    fn undo(&mut self, map: &mut Map, result: ResultCode) {
        map.undo = Some(result);
        self.step = Some(Step::Delete(map.entry));
    }

    /// The port is not to be had: another one, if any will do.
    fn taken(&mut self, map: &mut Map) {
        if map.exact || map.tries == MAX_TRIES {
            self.outcome.push(Said::Taken);
            return;
        }
        map.tries += 1;
        map.entry.external = other_port(map.first, map.entry.internal.port(), map.tries);
        self.step = Some(Step::Look(map.entry));
    }
}

/// The port to try next: our own first, as routers exist that map no other, then some that are spread over the range of
/// dynamic ports. No randomness: what matters is that another client has not got it, and the next try is another one.
fn other_port(first: ExternalPort, internal: u16, tries: u16) -> ExternalPort {
    let spread = u32::from(internal) * 40_503 + u32::from(tries) * 7919;
    let port = match tries {
        1 if internal != first.get() => internal,
        _ => 49_152 + u16::try_from(spread % 16_384).unwrap_or(0),
    };
    ExternalPort::new(port).unwrap_or(first)
}

/// What an entry of the router is.
enum Seen {
    /// There is none.
    Nothing,
    /// As it should be, for so long, if it says so.
    Ours(Option<Lifetime>),
    /// Somebody else's, or another port of ours.
    Others,
    /// It does not say.
    Unknown,
}

fn seen(answer: Option<&Answer>, entry: Entry, conduct: &mut Conduct) -> Seen {
    let Some(answer) = answer else {
        return Seen::Unknown;
    };
    match answer {
        Answer::Failed(code::NO_SUCH_ENTRY) => Seen::Nothing,
        Answer::Failed(code) => {
            conduct.blind |= matches!(*code, code::INVALID_ACTION | code::OPTIONAL_ACTION);
            Seen::Unknown
        }
        Answer::Done(_) => {
            let port = answer.arg("NewInternalPort").and_then(|p| p.parse().ok());
            let client = answer.arg("NewInternalClient").map(str::parse);
            let lease = answer.arg("NewLeaseDuration").and_then(|l| l.parse().ok());
            match (client, port) {
                (Some(Ok(client)), Some(port)) => {
                    match SocketAddrV4::new(client, port) == entry.internal {
                        true => Seen::Ours(lease.map(Lifetime)),
                        false => Seen::Others,
                    }
                }
                // A name, or nothing.
                (Some(Err(_)) | None, _) | (_, None) => Seen::Unknown,
            }
        }
    }
}

fn address(answer: Option<&Answer>) -> Result<Ipv4Addr, ResultCode> {
    answer.map_or(Err(ResultCode::NetworkFailure), address_of)
}

/// The external address in the answer to [`Step::Address`].
pub(super) fn address_of(answer: &Answer) -> Result<Ipv4Addr, ResultCode> {
    if let Answer::Failed(code) = answer {
        return Err(result_of(*code));
    }
    let addr = answer.arg("NewExternalIPAddress");
    let addr = addr.and_then(|addr| addr.parse::<Ipv4Addr>().ok());
    addr.filter(|addr| !addr.is_unspecified() && !addr.is_broadcast())
        .ok_or(ResultCode::NetworkFailure)
}

/// The result of PCP of the same meaning.
fn result_of(code: u16) -> ResultCode {
    match code {
        code::CONFLICT | code::CONFLICT_ELSEWHERE | code::SAME_PORTS => {
            ResultCode::CannotProvideExternal
        }
        code::NO_PORT_MAPS => ResultCode::NoResources,
        code::NOT_AUTHORIZED => ResultCode::NotAuthorized,
        code::INVALID_ACTION | code::OPTIONAL_ACTION => ResultCode::UnsuppOpcode,
        _ => ResultCode::NetworkFailure,
    }
}
