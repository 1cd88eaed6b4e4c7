//! What a control point says to a gateway, and what it reads of it: search, description, action.
//!
//! Read before editing: UPnP Device Architecture 1.1 clauses 1.3, 2.3 and 3.2.
//!
//! A gateway is any box that answers, so all of it is bounded (octets, depth, elements, services), and a URL is good only
//! with a literal IPv4 address that the caller compares with the one it expects.
#![forbid(unsafe_code)]

mod description;
mod location;
mod read;
mod search;

pub use description::{Connection, MAX_DESCRIPTION, connections};
pub use location::Location;
pub use read::XmlError;
pub use search::{Found, encode_search};

use read::{Piece, pieces};

use super::soap::MAX_ARGUMENTS;
use super::xml::Document;

/// Most octets of an answer to an action. The largest that is asked for here has eight short values.
pub const MAX_ANSWER: usize = 16 * 1024;

/// What a gateway answers to an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Out arguments, unescaped and trimmed.
    Done(Vec<(String, String)>),
    /// A UPnP error code.
    Failed(u16),
}

/// Why an answer says nothing.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Not XML as it is taken here.
    #[error("answer cannot be read")]
    Xml(#[from] XmlError),
    /// Neither the response to this action nor a fault with a code.
    #[error("answer is neither a response to {action} nor a fault")]
    Neither {
        /// What was called.
        action: &'static str,
    },
    /// More values than any action has.
    #[error("answer has too many arguments")]
    TooManyArguments,
}

impl Answer {
    /// Reads the answer to an action, whatever its status in HTTP was.
    pub fn decode(action: &'static str, body: &[u8]) -> Result<Self, AnswerError> {
        let mut inside = None;
        let mut args = None;
        let mut code = None;
        pieces(body, MAX_ANSWER, |piece| match piece {
            Piece::Open { name, depth } if name.strip_suffix("Response") == Some(action) => {
                inside = Some(depth);
                args.get_or_insert_with(Vec::new);
            }
            Piece::Open { .. } | Piece::Close { .. } => {}
            Piece::Leaf { name, depth, text } => {
                if name == "errorCode" {
                    code = code.or(text.trim().parse().ok());
                } else if name.strip_suffix("Response") == Some(action) {
                    args.get_or_insert_with(Vec::new);
                } else if let Some(args) = &mut args
                    && inside.is_some_and(|outer| depth == outer + 1)
                {
                    args.push((name.to_owned(), text.trim().to_owned()));
                }
            }
        })?;
        match (args, code) {
            (Some(args), _) if args.len() > MAX_ARGUMENTS => Err(AnswerError::TooManyArguments),
            (Some(args), _) => Ok(Self::Done(args)),
            (None, Some(code)) => Ok(Self::Failed(code)),
            (None, None) => Err(AnswerError::Neither { action }),
        }
    }

    /// The value of an out argument.
    pub fn arg(&self, name: &str) -> Option<&str> {
        let Self::Done(args) = self else {
            return None;
        };
        let found = args.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The body of a call of `action` at a service of type `urn`.
pub fn encode_call(urn: &str, action: &str, args: &[(&str, String)]) -> String {
    let name = format!("u:{action}");
    let mut document = Document::new();
    document.open(
        "s:Envelope",
        &[
            ("xmlns:s", "http://schemas.xmlsoap.org/soap/envelope/"),
            (
                "s:encodingStyle",
                "http://schemas.xmlsoap.org/soap/encoding/",
            ),
        ],
    );
    document.open("s:Body", &[]);
    document.open(&name, &[("xmlns:u", urn)]);
    for (name, value) in args {
        document.leaf(name, value);
    }
    document.close(&name);
    document.close("s:Body");
    document.close("s:Envelope");
    document.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::wire::soap::{Call, UpnpError, encode_fault, encode_response};

    const URN: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";

    #[test]
    fn calls_are_what_our_own_server_reads() {
        let args = [
            ("NewRemoteHost", String::new()),
            ("NewPortMappingDescription", "a < b & c".to_owned()),
        ];
        let body = encode_call(URN, "AddPortMapping", &args);
        let header = format!("\"{URN}#AddPortMapping\"");
        let call = Call::decode(Some(header.as_bytes()), body.as_bytes(), 4096).expect("a call");
        assert_eq!(
            (call.urn().as_str(), call.action.as_str()),
            (URN, "AddPortMapping")
        );
        assert_eq!(call.arg("NewRemoteHost"), Some(""));
        assert_eq!(call.arg("NewPortMappingDescription"), Some("a < b & c"));
    }

    #[test]
    fn answers_of_our_own_server_are_read() {
        let call = Call {
            service: "WANIPConnection".to_owned(),
            version: 1,
            action: "GetExternalIPAddress".to_owned(),
            args: vec![],
        };
        let args = [("NewExternalIPAddress", "11.22.33.1".to_owned())];
        let body = encode_response(&call, &args);
        let answer = Answer::decode("GetExternalIPAddress", body.as_bytes()).expect("an answer");
        assert_eq!(answer.arg("NewExternalIPAddress"), Some("11.22.33.1"));
        let body = encode_response(&call, &[]);
        let answer = Answer::decode("GetExternalIPAddress", body.as_bytes()).expect("an answer");
        assert_eq!(answer, Answer::Done(vec![]));
        let body = encode_fault(&UpnpError::INVALID_ARGS);
        let answer = Answer::decode("AddPortMapping", body.as_bytes()).expect("a fault");
        assert_eq!(answer, Answer::Failed(402));
    }

    #[test]
    fn anything_else_is_an_error() {
        for body in [
            "",
            "<html><body>please log in</body></html>",
            "<s:Envelope xmlns:s='x'><s:Body><s:Fault><detail/></s:Fault></s:Body></s:Envelope>",
            "<!DOCTYPE x [<!ENTITY a \"b\">]><x>&a;</x>",
            "<a><b></a>",
            "<a>",
        ] {
            assert!(
                Answer::decode("AddPortMapping", body.as_bytes()).is_err(),
                "{body}"
            );
        }
        let other = "<e><b><u:OtherResponse xmlns:u='x'/></b></e>";
        assert!(Answer::decode("AddPortMapping", other.as_bytes()).is_err());
    }
}
