//! The control protocol between `iwfctl` and the daemon.
//!
//! A stream socket in the file system, mode 0600. The client writes one [`Request`] as one line of JSON and
//! reads one [`Response`] as one line of JSON; the connection may then carry the next request. To a request that
//! [`Request::is_stream`] come several answers, the last of which is [`Response::End`] or [`Response::Error`]. Fields
//! are only ever added, so that scripts which read `--json` keep working.

pub mod client;
pub mod events;
mod figures;
pub mod lists;
pub mod policy;
mod rows;
pub mod server;
pub mod stats_text;
mod status;
pub mod table;
pub mod terminal;

use serde::{Deserialize, Serialize};

use self::events::{EventFilter, EventPage};
use self::policy::PolicyTest;
use super::dataplane::inspect::{DynamicFilter, DynamicRow, HostRow, SessionFilter, SessionRow};
use crate::proto::protection::OwnerCommand;
use crate::types::Protocol;
pub use figures::{Audit, Counter, Held, Repairs, Stats};
pub use rows::{
    IdentityRow, IntroductionRow, LeaseRow, MappingRow, PinholeRow, Protection, ShownPin,
    SubscriptionRow,
};
pub use status::{
    Discovered, ExternalAddress, Listener, Prefix64Row, Reconciler, Server, SoftwireEnds, Status,
    StoreState,
};

/// Longest request line, in octets. A longer one ends the connection.
pub const MAX_REQUEST: usize = 4096;

/// Longest answer a client reads, in octets: every mapping of a full table with the longest description.
pub const MAX_RESPONSE: u64 = 64 << 20;

/// What the owner of the router asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the daemon is doing.
    Status {},
    /// The three tables side by side.
    Mappings {},
    /// What was granted upstream.
    Leases {},
    /// Who is told of changes.
    Subscriptions {},
    /// What is let in over IPv6 unasked. Walks the IPv6 sessions.
    Pinholes {},
    /// The differences among kernel, leases and mapping table, looked for now.
    Audit {},
    /// Every counter of the data plane, and how full its tables are.
    Stats {},
    /// The three tables side by side, with what went through each mapping. Walks all sessions.
    MappingUsage {},
    /// The sessions, in pages.
    Sessions {
        /// Which.
        #[serde(default)]
        filter: SessionFilter,
        /// How many at most; the others are counted.
        #[serde(default)]
        limit: Option<u64>,
    },
    /// The mappings that nobody asked for, in pages.
    Dynamic {
        /// Which.
        #[serde(default)]
        filter: DynamicFilter,
        /// How many at most; the others are counted.
        #[serde(default)]
        limit: Option<u64>,
    },
    /// The LAN hosts that hold sessions or mappings, in pages, those with the most sessions first.
    Hosts {
        /// How many at most; the others are counted.
        #[serde(default)]
        limit: Option<u64>,
    },
    /// What happened lately, in pages.
    Events {
        /// Which.
        #[serde(default)]
        filter: EventFilter,
        /// Also what comes, without an end.
        #[serde(default)]
        follow: bool,
        /// Only what comes, not what is kept.
        #[serde(default)]
        new: bool,
    },
    /// Ask the DHCP servers of the WAN again.
    Discover {},
    /// What the DHCP client of the system was told of PCP servers.
    DhcpOption {
        /// Of DHCPv4 or of DHCPv6.
        family: Family,
        /// The value of option 158, or those of each instance of option 86, in hexadecimal digits. None: it was not
        /// told.
        #[serde(default)]
        values: Vec<String>,
        /// It does not know any more: what the daemon finds out by itself counts.
        #[serde(default)]
        forget: bool,
    },
    /// What the policy says, and what it would say to a wish.
    Policy {
        /// The wish.
        #[serde(default)]
        test: Option<PolicyTest>,
    },
    /// Who may do more than everybody.
    Protection {},
    /// Change that.
    Access {
        /// What to change.
        change: OwnerCommand,
    },
    /// Remove a mapping.
    Delete {
        /// Transport protocol.
        protocol: Protocol,
        /// External port as `mappings` lists it (the carrier's, in cascaded mode).
        external_port: u16,
    },
}

impl Request {
    /// Whether several answers come.
    pub fn is_stream(&self) -> bool {
        match self {
            Self::Sessions { .. }
            | Self::Dynamic { .. }
            | Self::Hosts { .. }
            | Self::Events { .. } => true,
            Self::Status {}
            | Self::Mappings {}
            | Self::Leases {}
            | Self::Subscriptions {}
            | Self::Pinholes {}
            | Self::Audit {}
            | Self::Stats {}
            | Self::MappingUsage {}
            | Self::Discover {}
            | Self::DhcpOption { .. }
            | Self::Policy { .. }
            | Self::Protection {}
            | Self::Access { .. }
            | Self::Delete { .. } => false,
        }
    }
}

/// One of the two DHCP protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// DHCPv4, whose option 158 names PCP servers.
    Dhcp4,
    /// DHCPv6, whose option 86 does.
    Dhcp6,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To `status`.
    Status(Box<Status>),
    /// To `mappings`, by generation.
    Mappings(Vec<MappingRow>),
    /// To `leases`, by generation.
    Leases(Vec<LeaseRow>),
    /// To `subscriptions`.
    Subscriptions(Vec<SubscriptionRow>),
    /// To `pinholes`, by id.
    Pinholes(Vec<PinholeRow>),
    /// To `protection`.
    Protection(Protection),
    /// To the wish for a PIN.
    Pin(ShownPin),
    /// To `audit`.
    Audit(Audit),
    /// To `stats`.
    Stats(Stats),
    /// Some of the answer to `sessions`.
    Sessions(Vec<SessionRow>),
    /// Some of the answer to `dynamic`.
    Dynamic(Vec<DynamicRow>),
    /// Some of the answer to `hosts`.
    Hosts(Vec<HostRow>),
    /// Some of the answer to `events`.
    Events(EventPage),
    /// To `policy`, without a wish.
    Policy(policy::Policy),
    /// To `policy`, with one.
    PolicyTest(Box<policy::Tested>),
    /// That was all.
    End(ListEnd),
    /// Done, nothing more to say.
    Done,
    /// Not done; why.
    Error(String),
}

impl Response {
    /// The answer as JSON for scripts: the value itself without the name of its kind. An error is an object
    /// with the one key `error`, a bare success one with the key `done`.
    pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        match self {
            Self::Status(status) => serde_json::to_value(status),
            Self::Mappings(rows) => serde_json::to_value(rows),
            Self::Leases(rows) => serde_json::to_value(rows),
            Self::Subscriptions(rows) => serde_json::to_value(rows),
            Self::Pinholes(rows) => serde_json::to_value(rows),
            Self::Protection(protection) => serde_json::to_value(protection),
            Self::Pin(shown) => serde_json::to_value(shown),
            Self::Audit(audit) => serde_json::to_value(audit),
            Self::Stats(stats) => serde_json::to_value(stats),
            Self::Sessions(rows) => serde_json::to_value(rows),
            Self::Dynamic(rows) => serde_json::to_value(rows),
            Self::Hosts(rows) => serde_json::to_value(rows),
            Self::Events(page) => serde_json::to_value(page),
            Self::Policy(policy) => serde_json::to_value(policy),
            Self::PolicyTest(tested) => serde_json::to_value(tested),
            Self::End(end) => serde_json::to_value(end),
            Self::Done => Ok(serde_json::json!({ "done": true })),
            Self::Error(why) => Ok(serde_json::json!({ "error": why })),
        }
    }
}

/// The end of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEnd {
    /// How many there are of what was asked for.
    pub matched: u64,
    /// How many of them were not shown.
    pub more: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_their_form_on_the_wire() {
        let cases = [
            (Request::Status {}, r#"{"command":"status"}"#),
            (Request::Audit {}, r#"{"command":"audit"}"#),
            (
                Request::Delete {
                    protocol: Protocol::Tcp,
                    external_port: 5000,
                },
                r#"{"command":"delete","protocol":"Tcp","external_port":5000}"#,
            ),
            (
                Request::Sessions {
                    filter: SessionFilter {
                        external_port: Some(5000),
                        ..SessionFilter::default()
                    },
                    limit: None,
                },
                r#"{"command":"sessions","filter":{"external_port":5000},"limit":null}"#,
            ),
            (
                Request::Events {
                    filter: EventFilter::default(),
                    follow: true,
                    new: false,
                },
                r#"{"command":"events","filter":{},"follow":true,"new":false}"#,
            ),
        ];
        for (request, wire) in cases {
            assert_eq!(serde_json::to_string(&request).unwrap(), wire);
            assert_eq!(serde_json::from_str::<Request>(wire).unwrap(), request);
        }
    }

    #[test]
    fn what_is_left_out_is_any() {
        let request: Request = serde_json::from_str(r#"{"command":"sessions"}"#).unwrap();
        let all = Request::Sessions {
            filter: SessionFilter::default(),
            limit: None,
        };
        assert_eq!(request, all);
    }

    #[test]
    fn unknown_requests_and_fields_are_refused() {
        for wire in [
            r#"{"command":"format-disk"}"#,
            r#"{"command":"status","verbose":true}"#,
            r#"{"command":"delete","protocol":"Tcp","external_port":65536}"#,
            r#"{"command":"delete","protocol":"Sctp","external_port":1}"#,
            r#"{"command":"sessions","filter":{"host":"nobody"}}"#,
            r#"{"command":"events","filter":{"kinds":["nothing"]}}"#,
            "[]",
            "",
        ] {
            assert!(serde_json::from_str::<Request>(wire).is_err(), "{wire}");
        }
    }
}
