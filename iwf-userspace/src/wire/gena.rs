//! Eventing: requests for subscriptions in, event messages out.
//!
//! Read before editing: UPnP Device Architecture 1.1 clause 4.
//!
//! A control point names the URLs that events are to be sent to, and whoever believes it sends requests wherever a
//! stranger likes (CVE-2020-12695, "CallStranger"). So a callback here is a literal address, a port and a path, and
//! nothing else: no host name that somebody's DNS answers, no other scheme, no user.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::description::DeviceUuid;
use super::xml::Document;

/// Longest CALLBACK that is looked at, in octets.
pub const MAX_CALLBACK: usize = 2048;
/// Longest URL in it, in octets.
pub const MAX_URL: usize = 512;
/// So many URLs are kept of one subscription; more are not looked at.
pub const MAX_URLS: usize = 4;
/// Longest status line of an answer, in octets.
pub const MAX_STATUS_LINE: usize = 512;

/// What a callback without a port means.
const HTTP_PORT: u16 = 80;

/// A request at an event URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// SUBSCRIBE without a SID.
    Subscribe {
        /// Where events go, in the order in which the subscriber wants them tried. Never empty.
        callbacks: Vec<Callback>,
        /// How long.
        timeout: Timeout,
    },
    /// SUBSCRIBE with a SID.
    Renew {
        /// Which.
        sid: Sid,
        /// For how long from now.
        timeout: Timeout,
    },
    /// UNSUBSCRIBE.
    Unsubscribe {
        /// Which.
        sid: Sid,
    },
}

/// How long a subscription is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// TIMEOUT is missing or nothing that could be read.
    Unsaid,
    /// For ever.
    Infinite,
    /// So many seconds.
    Seconds(u32),
}

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Callback {
    /// The subscriber's server. A zone is never in it: it is the subscriber's own name of the link.
    pub to: SocketAddr,
    /// Path and query: printable ASCII that begins with a slash.
    pub path: String,
}

/// Identity of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sid(DeviceUuid);

/// Why a request is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// SID together with NT or CALLBACK.
    #[error("SID together with NT or CALLBACK")]
    Incompatible,
    /// Neither SID nor NT, or an NT that is not `upnp:event`.
    #[error("NT is not upnp:event")]
    Nt,
    /// No URL in CALLBACK is one that events can be sent to.
    #[error("CALLBACK has no URL of http with an address")]
    Callback,
    /// A SID that nobody here gave out.
    #[error("SID is none of this device")]
    Sid,
}

/// An answer to an event message, as far as it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The status line is not complete.
    Incomplete,
    /// This status.
    Status(u16),
    /// This is not HTTP.
    Nonsense,
}

impl RequestError {
    /// The HTTP status that says so (clause 4.1.1).
    pub const fn status(self) -> u16 {
        match self {
            Self::Incompatible => 400,
            Self::Nt | Self::Callback | Self::Sid => 412,
        }
    }
}

impl Request {
    /// Reads SUBSCRIBE; `header` gives the first header field of a name in lower case.
    pub fn subscribe<'a>(header: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self, RequestError> {
        let timeout = Timeout::decode(header("timeout").unwrap_or_default());
        if let Some(sid) = sid(&header)? {
            return Ok(Self::Renew { sid, timeout });
        }
        if header("nt").map(<[u8]>::trim_ascii) != Some(b"upnp:event") {
            return Err(RequestError::Nt);
        }
        let callbacks = Callback::decode(header("callback").unwrap_or_default());
        if callbacks.is_empty() {
            return Err(RequestError::Callback);
        }
        Ok(Self::Subscribe { callbacks, timeout })
    }

    /// Reads UNSUBSCRIBE likewise.
    pub fn unsubscribe<'a>(
        header: impl Fn(&str) -> Option<&'a [u8]>,
    ) -> Result<Self, RequestError> {
        let sid = sid(&header)?.ok_or(RequestError::Sid)?;
        Ok(Self::Unsubscribe { sid })
    }
}

/// The SID, if there is one, alone as it has to be.
fn sid<'a>(header: &impl Fn(&str) -> Option<&'a [u8]>) -> Result<Option<Sid>, RequestError> {
    let Some(value) = header("sid") else {
        return Ok(None);
    };
    if header("nt").is_some() || header("callback").is_some() {
        return Err(RequestError::Incompatible);
    }
    Sid::decode(value).map(Some).ok_or(RequestError::Sid)
}

impl Timeout {
    fn decode(value: &[u8]) -> Self {
        let text = str::from_utf8(value).unwrap_or_default().trim();
        let Some((unit, amount)) = text.split_once('-') else {
            return Self::Unsaid;
        };
        if !unit.eq_ignore_ascii_case("Second") {
            return Self::Unsaid;
        }
        if amount.eq_ignore_ascii_case("infinite") {
            return Self::Infinite;
        }
        if amount.is_empty() || !amount.bytes().all(|b| b.is_ascii_digit()) {
            return Self::Unsaid;
        }
        // What does not fit is a very long time.
        amount.parse().map_or(Self::Infinite, Self::Seconds)
    }
}

impl Callback {
    /// The URLs of a CALLBACK that events can be sent to, in their order, at most [`MAX_URLS`].
    fn decode(value: &[u8]) -> Vec<Self> {
        if value.len() > MAX_CALLBACK {
            return Vec::new();
        }
        let Ok(mut rest) = str::from_utf8(value) else {
            return Vec::new();
        };
        let mut callbacks = Vec::new();
        while let Some((_, after)) = rest.split_once('<') {
            let Some((url, next)) = after.split_once('>') else {
                break;
            };
            rest = next;
            callbacks.extend(Self::of(url.trim()));
            if callbacks.len() == MAX_URLS {
                break;
            }
        }
        callbacks
    }

    fn of(url: &str) -> Option<Self> {
        if url.len() > MAX_URL || !url.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let (scheme, rest) = url.split_at_checked("http://".len())?;
        if !scheme.eq_ignore_ascii_case("http://") {
            return None;
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end)?;
        let to = server(authority)?;
        if to.port() == 0 {
            return None;
        }
        let path = path.split_once('#').map_or(path, |(path, _)| path);
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(Self {
            to,
            path: format!("{slash}{path}"),
        })
    }
}

/// The address and port that an authority names; `None` if it names a host, a user or anything else.
fn server(authority: &str) -> Option<SocketAddr> {
    let (host, port): (IpAddr, &str) = if let Some(literal) = authority.strip_prefix('[') {
        let (literal, port) = literal.split_once(']')?;
        let (addr, _zone) = literal.split_once('%').unwrap_or((literal, ""));
        (addr.parse::<Ipv6Addr>().ok()?.into(), port)
    } else {
        let end = authority.find(':').unwrap_or(authority.len());
        let (addr, port) = authority.split_at_checked(end)?;
        (addr.parse::<Ipv4Addr>().ok()?.into(), port)
    };
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
        None if port.is_empty() => HTTP_PORT,
        None => return None,
    };
    Some(SocketAddr::new(host, port))
}

impl fmt::Display for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.to, self.path)
    }
}

impl Sid {
    /// The subscription with these octets of randomness.
    pub fn new(random: [u8; 16]) -> Self {
        // RFC 9562 section 5.4: version 4 and its variant.
        let bits = u128::from_be_bytes(random);
        let bits = bits & !(0xf << 76) | (4 << 76);
        let bits = bits & !(0b11 << 62) | (0b10 << 62);
        Self(DeviceUuid::from_octets(bits.to_be_bytes()))
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let text = str::from_utf8(value).ok()?.trim();
        let (prefix, uuid) = text.split_at_checked("uuid:".len())?;
        if !prefix.eq_ignore_ascii_case("uuid:") {
            return None;
        }
        DeviceUuid::parse(uuid).ok().map(Self)
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uuid:{}", self.0)
    }
}

/// The body of an event message (clause 4.3). It ends with the end of a line, because there are subscribers that read it line
/// by line, and wait for the end of its last one.
pub fn property_set<'a>(properties: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut xml = Document::new();
    xml.open(
        "e:propertyset",
        &[("xmlns:e", "urn:schemas-upnp-org:event-1-0")],
    );
    for (name, value) in properties {
        xml.open("e:property", &[]);
        xml.leaf(name, value);
        xml.close("e:property");
    }
    xml.close("e:propertyset");
    let mut body = xml.finish();
    body.push('\n');
    body
}

/// An event message to that URL.
pub fn encode_notify(callback: &Callback, sid: Sid, seq: u32, body: &str) -> Vec<u8> {
    let Callback { to, path } = callback;
    format!(
        "NOTIFY {path} HTTP/1.1\r\n\
         HOST: {to}\r\n\
         CONTENT-TYPE: text/xml; charset=\"utf-8\"\r\n\
         CONTENT-LENGTH: {}\r\n\
         NT: upnp:event\r\n\
         NTS: upnp:propchange\r\n\
         SID: {sid}\r\n\
         SEQ: {seq}\r\n\
         CONNECTION: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// What a subscriber has answered so far. Nothing but the status is looked at.
pub fn answer(received: &[u8]) -> Answer {
    const VERSION: &[u8] = b"HTTP/1.";
    let compared = VERSION.len().min(received.len());
    if received.get(..compared) != VERSION.get(..compared) {
        return Answer::Nonsense;
    }
    let Some(end) = received.iter().position(|b| *b == b'\n') else {
        return if received.len() > MAX_STATUS_LINE {
            Answer::Nonsense
        } else {
            Answer::Incomplete
        };
    };
    let line = received.get(..end).unwrap_or_default();
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let status = words.nth(1).and_then(|word| str::from_utf8(word).ok());
    match status.and_then(|status| status.parse().ok()) {
        Some(status @ 100..=999) => Answer::Status(status),
        Some(_) | None => Answer::Nonsense,
    }
}

#[cfg(test)]
mod tests;
