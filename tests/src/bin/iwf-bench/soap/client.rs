//! A control point that does little but ask and look at what is answered.
#![expect(
    clippy::disallowed_types,
    reason = "measures real programs over sockets"
)]

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use iwf_tests::igd::WANIP1;
use socket2::{Domain, Socket, Type};

/// How long an answer may take before the run fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the description of each mapping says.
const DESCRIPTION: &str = "bench";

/// How a control point uses its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Manner {
    /// One for all its requests.
    KeepAlive,
    /// One for each request.
    Close,
}

impl Manner {
    pub(super) const ALL: [Self; 2] = [Self::KeepAlive, Self::Close];
}

/// Where control points call.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: SocketAddrV4,
    pub(super) path: String,
    /// What GetExternalIPAddress has to answer.
    pub(super) external: Ipv4Addr,
}

/// A mapping that is there, or shall be: of one port to the same one of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wish {
    pub(super) host: Ipv4Addr,
    pub(super) port: u16,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    Add(Wish),
    Delete(Wish),
    GetSpecific(Wish),
    /// The first that the caller sees.
    GetGeneric,
    /// The one after the last that anybody could see.
    GetGenericBeyond,
    ExternalAddress,
    /// Something that is not to be had.
    Bad(Bad),
}

/// Requests that are refused, each in another place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bad {
    /// No XML.
    Octets,
    UnknownAction,
    MissingArgument,
    /// For another host.
    NotOwn,
    /// Deletes what is not there.
    Absent(u16),
    /// No such document.
    Path,
}

impl Bad {
    /// One after another.
    pub(super) fn nth(n: u64, unused: u16) -> Self {
        match n % 6 {
            0 => Self::Octets,
            1 => Self::UnknownAction,
            2 => Self::MissingArgument,
            3 => Self::NotOwn,
            4 => Self::Absent(unused),
            _ => Self::Path,
        }
    }
}

/// What was answered, as it came.
#[derive(Debug)]
struct Reply {
    status: u16,
    body: String,
}

/// One host's way to the gateway. Made where the host is.
#[derive(Debug)]
pub(super) struct ControlPoint {
    host: Ipv4Addr,
    target: Target,
    manner: Manner,
    stream: Option<TcpStream>,
    octets: Vec<u8>,
}

impl ControlPoint {
    pub(super) fn new(host: Ipv4Addr, target: &Target, manner: Manner) -> Self {
        Self {
            host,
            target: target.clone(),
            manner,
            stream: None,
            octets: Vec::with_capacity(4096),
        }
    }

    /// Where it calls from.
    pub(super) fn host(&self) -> Ipv4Addr {
        self.host
    }

    /// Asks and looks at the answer.
    ///
    /// # Errors
    /// If none came, or another one than there should.
    pub(super) fn ask(&mut self, ask: Ask) -> Result<()> {
        let request = self.request(ask);
        let reply = self
            .exchange(request.as_bytes())
            .with_context(|| format!("{} asks: {ask:?}", self.host))?;
        if self.is_right(ask, &reply) {
            return Ok(());
        }
        bail!(
            "{} asks: {ask:?}, and is answered {} {}",
            self.host,
            reply.status,
            reply.body
        )
    }

    /// Every answer has its status and says what was asked for.
    fn is_right(&self, ask: Ask, reply: &Reply) -> bool {
        let (status, body) = (reply.status, reply.body.as_str());
        let done = |action: &str| status == 200 && body.contains(&format!(":{action}Response"));
        let says = |name: &str, value: String| body.contains(&format!("<{name}>{value}</{name}>"));
        let error = |code: u16| status == 500 && says("errorCode", code.to_string());
        match ask {
            Ask::Add(_) => done("AddPortMapping"),
            Ask::Delete(_) => done("DeletePortMapping"),
            Ask::GetSpecific(wish) => {
                done("GetSpecificPortMappingEntry")
                    && says("NewInternalPort", wish.port.to_string())
                    && says("NewInternalClient", wish.host.to_string())
                    && says("NewPortMappingDescription", DESCRIPTION.to_owned())
            }
            Ask::GetGeneric => {
                done("GetGenericPortMappingEntry")
                    && says("NewInternalClient", self.host.to_string())
            }
            Ask::GetGenericBeyond => error(713),
            Ask::ExternalAddress => {
                done("GetExternalIPAddress")
                    && says("NewExternalIPAddress", self.target.external.to_string())
            }
            Ask::Bad(Bad::Octets) => status == 400,
            Ask::Bad(Bad::UnknownAction) => error(401),
            Ask::Bad(Bad::MissingArgument) => error(402),
            // As version 1 has it: the conflict is with what the router allows.
            Ask::Bad(Bad::NotOwn) => error(718),
            Ask::Bad(Bad::Absent(_)) => error(714),
            Ask::Bad(Bad::Path) => status == 404,
        }
    }

    fn request(&self, ask: Ask) -> String {
        let port = |port: u16| ("NewExternalPort", port.to_string());
        let remote = || ("NewRemoteHost", String::new());
        let udp = || ("NewProtocol", "UDP".to_owned());
        let add = |wish: Wish| {
            vec![
                remote(),
                port(wish.port),
                udp(),
                ("NewInternalPort", wish.port.to_string()),
                ("NewInternalClient", wish.host.to_string()),
                ("NewEnabled", "1".to_owned()),
                ("NewPortMappingDescription", DESCRIPTION.to_owned()),
                ("NewLeaseDuration", "86400".to_owned()),
            ]
        };
        let index = |index: u32| vec![("NewPortMappingIndex", index.to_string())];
        let (action, arguments) = match ask {
            Ask::Add(wish) => ("AddPortMapping", add(wish)),
            Ask::Delete(Wish { port: at, .. }) | Ask::Bad(Bad::Absent(at)) => {
                ("DeletePortMapping", vec![remote(), port(at), udp()])
            }
            Ask::GetSpecific(wish) => (
                "GetSpecificPortMappingEntry",
                vec![remote(), port(wish.port), udp()],
            ),
            Ask::GetGeneric => ("GetGenericPortMappingEntry", index(0)),
            Ask::GetGenericBeyond => ("GetGenericPortMappingEntry", index(65_535)),
            Ask::ExternalAddress => ("GetExternalIPAddress", Vec::new()),
            Ask::Bad(Bad::UnknownAction) => ("GetWeather", Vec::new()),
            Ask::Bad(Bad::MissingArgument) => ("AddPortMapping", vec![remote()]),
            Ask::Bad(Bad::NotOwn) => {
                let host = Ipv4Addr::from_bits(self.host.to_bits() ^ 1);
                ("AddPortMapping", add(Wish { host, port: 2000 }))
            }
            Ask::Bad(Bad::Octets) => return self.post(&self.target.path, "AddPortMapping", "<<<"),
            Ask::Bad(Bad::Path) => return self.post("/elsewhere", "AddPortMapping", ""),
        };
        let mut body = format!(
            "<?xml version=\"1.0\"?>\r\n\
             <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{action} xmlns:u=\"{WANIP1}\">"
        );
        for (name, value) in arguments {
            // Writing into a String does not fail.
            write!(body, "<{name}>{value}</{name}>").ok();
        }
        write!(body, "</u:{action}></s:Body></s:Envelope>\r\n").ok();
        self.post(&self.target.path, action, &body)
    }

    fn post(&self, path: &str, action: &str, body: &str) -> String {
        let address = self.target.address;
        let connection = match self.manner {
            Manner::KeepAlive => "keep-alive",
            Manner::Close => "close",
        };
        format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: {connection}\r\n\
             Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{WANIP1}#{action}\"\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// Over the connection that is there, if the gateway has not closed it meanwhile; else over a new one.
    fn exchange(&mut self, request: &[u8]) -> Result<Reply> {
        if let Some(stream) = self.stream.take()
            && let Some(reply) = self.exchange_on(stream, request)?
        {
            return Ok(reply);
        }
        let stream = self.connect().context("connect to the gateway")?;
        self.exchange_on(stream, request)?
            .context("the gateway closed without an answer")
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(IpAddr::V4(self.host), 0).into())?;
        socket.connect_timeout(&SocketAddr::V4(self.target.address).into(), PATIENCE)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    }

    /// `None`: the connection was closed before anything was answered.
    fn exchange_on(&mut self, mut stream: TcpStream, request: &[u8]) -> Result<Option<Reply>> {
        let closed = |error: &std::io::Error| {
            [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind())
        };
        match stream.write_all(request) {
            Err(error) if closed(&error) => return Ok(None),
            sent => sent.context("send a request")?,
        }
        self.octets.clear();
        let mut piece = [0; 4096];
        loop {
            let len = match stream.read(&mut piece) {
                Ok(0) if self.octets.is_empty() => return Ok(None),
                Err(error) if self.octets.is_empty() && closed(&error) => return Ok(None),
                Ok(0) => bail!("the gateway closed in the middle of an answer"),
                received => received.context("receive an answer")?,
            };
            self.octets.extend_from_slice(&piece[..len]);
            if let Some((reply, closes)) = whole(&self.octets)? {
                if !closes && self.manner == Manner::KeepAlive {
                    self.stream = Some(stream);
                }
                return Ok(Some(reply));
            }
        }
    }
}

/// An answer, if all of it is there, and whether the connection ends with it.
fn whole(octets: &[u8]) -> Result<Option<(Reply, bool)>> {
    let Some(head) = octets.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&octets[..head]).context("the head of an answer")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status = status.and_then(|word| word.parse().ok());
    let (mut length, mut closes) = (0, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().context("Content-Length")?;
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.eq_ignore_ascii_case("close");
        }
    }
    let Some(body) = octets.get(head + 4..head + 4 + length) else {
        return Ok(None);
    };
    let reply = Reply {
        status: status.context("an answer with a status")?,
        body: String::from_utf8_lossy(body).into_owned(),
    };
    Ok(Some((reply, closes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nConnection: close\r\n\r\nabc";
        for end in 0..text.len() {
            assert!(whole(&text[..end]).expect("no error").is_none(), "{end}");
        }
        let (reply, closes) = whole(text).expect("no error").expect("all of it");
        assert_eq!(
            (reply.status, reply.body.as_str(), closes),
            (200, "abc", true)
        );
    }

    #[test]
    fn only_what_was_asked_for_is_right() {
        let target = Target {
            address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1),
            path: "/".into(),
            external: Ipv4Addr::LOCALHOST,
        };
        let host = Ipv4Addr::new(192, 168, 1, 20);
        let point = ControlPoint::new(host, &target, Manner::Close);
        let reply = |status, body: &str| Reply {
            status,
            body: body.to_owned(),
        };
        let wish = Wish { host, port: 7 };
        let added = "<u:AddPortMappingResponse xmlns:u=\"x\"/>";
        assert!(point.is_right(Ask::Add(wish), &reply(200, added)));
        assert!(!point.is_right(Ask::Add(wish), &reply(500, added)));
        assert!(!point.is_right(Ask::Delete(wish), &reply(200, added)));
        assert!(!point.is_right(Ask::Add(wish), &reply(200, "")));
        let fault = "<errorCode>714</errorCode>";
        assert!(point.is_right(Ask::Bad(Bad::Absent(9)), &reply(500, fault)));
        assert!(!point.is_right(Ask::Bad(Bad::NotOwn), &reply(500, fault)));
    }
}
