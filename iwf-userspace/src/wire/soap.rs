//! SOAP control messages.
//!
//! Read before editing: UPnP Device Architecture 1.1 clause 3; WANIPConnection:2 section 2.5.
//!
//! Decoding tolerates what control points in the field send (any prefix, any argument order, CDATA, a byte order
//! mark, trailing NULs, a SOAPAction that is unquoted or missing) and refuses what only an attacker sends
//! (document types, entities beyond the five, depth, floods of arguments).
#![forbid(unsafe_code)]

mod decode;
mod encode;
mod error;

pub(super) use decode::readable;
pub use decode::{CallError, CallFault, MAX_ARGUMENTS, MAX_DEPTH};
pub use encode::{Reply, encode_fault, encode_reply, encode_response};
pub use error::{UpnpError, firewall, protection};

/// The action of every service that reads one of its variables, and its namespace (UPnP Device Architecture 1.0
/// clause 3.3; deprecated since, and still sent by Windows).
const QUERY: &str = "QueryStateVariable";
const CONTROL_URN: &str = "urn:schemas-upnp-org:control-1-0";

/// What every service type of the UPnP Forum begins with.
const SERVICE_URN: &str = "urn:schemas-upnp-org:service:";

/// An action call, decoded but not yet interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Service type without version, for example `WANIPConnection`. Empty in a query: the control URL names it.
    pub service: String,
    /// Version of the URN that was called; the response uses the same.
    pub version: u8,
    /// Action name.
    pub action: String,
    /// In arguments in the order received, values unescaped but not trimmed. No name occurs twice.
    pub args: Vec<(String, String)>,
}

/// Out arguments in SCPD order, or the error.
pub type ActionResult = Result<Vec<(&'static str, String)>, UpnpError>;

impl Call {
    /// The value of an argument as it was sent; `None` if it is missing.
    pub fn arg(&self, name: &str) -> Option<&str> {
        self.args
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a variable is asked for.
    pub fn is_query(&self) -> bool {
        self.action == QUERY
    }

    /// The URN that was called.
    pub fn urn(&self) -> String {
        if self.is_query() {
            return CONTROL_URN.to_owned();
        }
        format!("{SERVICE_URN}{}:{}", self.service, self.version)
    }
}

/// Splits a service URN into type and version. The prefix may be spelled in any case.
fn split_urn(urn: &str) -> Option<(&str, u8)> {
    let (prefix, rest) = urn.trim().split_at_checked(SERVICE_URN.len())?;
    let (service, version) = rest.rsplit_once(':')?;
    if !prefix.eq_ignore_ascii_case(SERVICE_URN) || service.is_empty() {
        return None;
    }
    Some((service, version.parse().ok()?))
}
