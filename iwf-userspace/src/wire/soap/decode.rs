//! Control requests.

use std::borrow::Cow;

use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::Event;
use quick_xml::name::{Namespace, ResolveResult};
use quick_xml::reader::NsReader;

use super::{CONTROL_URN, Call, QUERY, UpnpError, split_urn};

/// Elements inside each other; a call needs four.
pub const MAX_DEPTH: usize = 16;
/// Arguments of one call; the largest standard action has eight.
pub const MAX_ARGUMENTS: usize = 32;

/// Depths of the elements of a call, the root being 1.
const ENVELOPE: usize = 1;
const BODY: usize = 2;
const ACTION: usize = 3;
const ARGUMENT: usize = 4;

/// Why a control request is refused. [`CallError::answer`] says what to send.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The body is larger than the caller allows.
    #[error("body of {have} octets exceeds {limit}")]
    TooLong {
        /// Octets received.
        have: usize,
        /// Octets allowed.
        limit: usize,
    },
    /// The body is UTF-16 or UTF-32, which no control point sends.
    #[error("body is not in an encoding based on ASCII")]
    Encoding,
    /// Not well-formed.
    #[error("body is not well-formed")]
    Malformed(#[source] quick_xml::Error),
    /// The body ends inside of the envelope.
    #[error("body is truncated")]
    Truncated,
    /// The root is not an envelope.
    #[error("body is not an envelope")]
    NotAnEnvelope,
    /// A document type definition: never needed, the door of entity attacks.
    #[error("body has a document type")]
    DocumentType,
    /// An entity other than the five of XML.
    #[error("body refers to an entity that XML does not define")]
    Entity,
    /// More than [`MAX_DEPTH`] levels.
    #[error("body is nested too deeply")]
    TooDeep,
    /// More than [`MAX_ARGUMENTS`] arguments.
    #[error("call has too many arguments")]
    TooManyArguments,
    /// An argument occurs twice.
    #[error("argument {name} is repeated")]
    RepeatedArgument {
        /// Its name.
        name: String,
    },
    /// An argument has elements inside.
    #[error("argument {name} is not plain text")]
    StructuredArgument {
        /// Its name.
        name: String,
    },
    /// The envelope's body is empty.
    #[error("body calls no action")]
    NoAction,
    /// SOAPAction and body name different actions or services.
    #[error("header and body call different actions")]
    Mismatch,
    /// Neither SOAPAction nor body names a service type.
    #[error("call names no service")]
    NoService,
}

/// How to answer a request that is not a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFault {
    /// HTTP 413 without a fault.
    ContentTooLarge,
    /// HTTP 400 without a fault.
    BadRequest,
    /// HTTP 500 with this fault.
    Upnp(UpnpError),
}

impl CallError {
    /// What to send back.
    pub const fn answer(&self) -> CallFault {
        match self {
            Self::TooLong { .. } => CallFault::ContentTooLarge,
            Self::Encoding
            | Self::Malformed(_)
            | Self::Truncated
            | Self::NotAnEnvelope
            | Self::DocumentType
            | Self::Entity
            | Self::TooDeep => CallFault::BadRequest,
            Self::TooManyArguments
            | Self::RepeatedArgument { .. }
            | Self::StructuredArgument { .. } => CallFault::Upnp(UpnpError::INVALID_ARGS),
            Self::NoAction | Self::Mismatch | Self::NoService => {
                CallFault::Upnp(UpnpError::INVALID_ACTION)
            }
        }
    }
}

impl Call {
    /// Reads a control request of at most `limit` octets from the value of its SOAPAction header (`None`: no
    /// such header) and its body.
    ///
    /// The body decides what is called; the header fills in a namespace that the body lacks, and has to agree
    /// where both speak (the version excepted: the body's counts). Reading ends with the action element, so
    /// that a body cut short after it (a Content-Length slightly too small) still works.
    pub fn decode(
        soap_action: Option<&[u8]>,
        body: &[u8],
        limit: usize,
    ) -> Result<Self, CallError> {
        if body.len() > limit {
            return Err(CallError::TooLong {
                have: body.len(),
                limit,
            });
        }
        let header = soap_action.and_then(SoapAction::parse);
        let text = readable(body).ok_or(CallError::Encoding)?;
        let element = read_action(&text)?;
        if element.name == QUERY && element.namespace.as_deref() == Some(CONTROL_URN) {
            return Ok(Self {
                service: String::new(),
                version: 0,
                action: element.name,
                args: element.args,
            });
        }
        let called = element.namespace.as_deref().and_then(split_urn);
        let (service, version) = match (&header, called) {
            (Some(header), Some((service, version))) => {
                if !header.service.eq_ignore_ascii_case(service) {
                    return Err(CallError::Mismatch);
                }
                (service, version)
            }
            (None, Some(called)) => called,
            (Some(header), None) => (header.service.as_str(), header.version),
            (None, None) => return Err(CallError::NoService),
        };
        if header
            .as_ref()
            .is_some_and(|h| !h.action.eq_ignore_ascii_case(&element.name))
        {
            return Err(CallError::Mismatch);
        }
        Ok(Self {
            service: service.to_owned(),
            version,
            action: element.name,
            args: element.args,
        })
    }
}

/// The SOAPAction header: `"urn:schemas-upnp-org:service:type:version#action"`.
struct SoapAction {
    service: String,
    version: u8,
    action: String,
}

impl SoapAction {
    /// `None` for a value that says nothing (empty, or of another form): the body decides then.
    fn parse(value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        let quoted = |c: char| c.is_whitespace() || c == '"' || c == '\'';
        let (urn, action) = value.trim_matches(quoted).rsplit_once('#')?;
        let (service, version) = split_urn(urn)?;
        let action = action.trim();
        if action.is_empty() {
            return None;
        }
        Some(Self {
            service: service.to_owned(),
            version,
            action: action.to_owned(),
        })
    }
}

/// The action element.
#[derive(Default)]
struct ActionElement {
    name: String,
    namespace: Option<String>,
    args: Vec<(String, String)>,
}

/// The body as text: without byte order mark and what surrounds the document. `None` for UTF-16 and UTF-32.
pub(in crate::wire) fn readable(body: &[u8]) -> Option<Cow<'_, str>> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if body.starts_with(&[0xff, 0xfe]) || body.starts_with(&[0xfe, 0xff]) {
        return None;
    }
    let edge = |b: &u8| *b == 0 || b.is_ascii_whitespace();
    let start = body.iter().position(|b| !edge(b)).unwrap_or(body.len());
    let end = body
        .iter()
        .rposition(|b| !edge(b))
        .map_or(start, |last| last + 1);
    let body = body.get(start..end).unwrap_or(&[]);
    Some(match std::str::from_utf8(body) {
        Ok(text) => Cow::Borrowed(text),
        // A description typed on an old system: taken as Latin-1, so that it does not cost the mapping.
        Err(_) => Cow::Owned(body.iter().copied().map(char::from).collect()),
    })
}

fn read_action(text: &str) -> Result<ActionElement, CallError> {
    let mut reader = NsReader::from_str(text);
    let config = reader.config_mut();
    config.expand_empty_elements = true;
    config.allow_dangling_amp = true;

    let mut depth = 0_usize;
    let mut rooted = false;
    let mut in_body = false;
    let mut action: Option<ActionElement> = None;
    let mut argument: Option<(String, String)> = None;
    loop {
        let (namespace, event) = reader.read_resolved_event().map_err(CallError::Malformed)?;
        match event {
            Event::Start(start) => {
                depth += 1;
                rooted = true;
                let name = start.local_name();
                let name = name.as_ref();
                match depth {
                    ENVELOPE if name != "Envelope" => return Err(CallError::NotAnEnvelope),
                    BODY => in_body = name == "Body",
                    ACTION if in_body => {
                        action = Some(ActionElement {
                            name: name.to_owned(),
                            namespace: match namespace {
                                ResolveResult::Bound(Namespace(urn)) => Some(urn.to_owned()),
                                ResolveResult::Unbound | ResolveResult::Unknown(_) => None,
                            },
                            args: Vec::new(),
                        });
                    }
                    ARGUMENT if in_body => argument = Some((name.to_owned(), String::new())),
                    _ => {
                        if let Some((name, _)) = argument {
                            return Err(CallError::StructuredArgument { name });
                        }
                        if depth > MAX_DEPTH {
                            return Err(CallError::TooDeep);
                        }
                    }
                }
            }
            Event::End(_) => {
                if depth == ACTION
                    && let Some(action) = action.take()
                {
                    return Ok(action);
                }
                if let (Some(argument), Some(action)) = (argument.take(), &mut action) {
                    action.push(argument)?;
                }
                depth = depth.saturating_sub(1);
            }
            Event::Text(text) => {
                if let Some((_, value)) = &mut argument {
                    value.push_str(&text.xml10_content());
                }
            }
            Event::CData(text) => {
                if let Some((_, value)) = &mut argument {
                    value.push_str(&text.xml10_content());
                }
            }
            Event::GeneralRef(reference) => {
                let character = reference.resolve_char_ref().map_err(CallError::Malformed)?;
                if let Some((_, value)) = &mut argument {
                    match character {
                        Some(character) => value.push(character),
                        None => {
                            value.push_str(resolve_xml_entity(&reference).ok_or(CallError::Entity)?)
                        }
                    }
                }
            }
            Event::DocType(_) => return Err(CallError::DocumentType),
            Event::Eof if !rooted => return Err(CallError::NotAnEnvelope),
            Event::Eof if depth == 0 => return Err(CallError::NoAction),
            Event::Eof => return Err(CallError::Truncated),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

impl ActionElement {
    fn push(&mut self, (name, value): (String, String)) -> Result<(), CallError> {
        if self.args.iter().any(|(n, _)| *n == name) {
            return Err(CallError::RepeatedArgument { name });
        }
        if self.args.len() == MAX_ARGUMENTS {
            return Err(CallError::TooManyArguments);
        }
        self.args.push((name, value));
        Ok(())
    }
}
