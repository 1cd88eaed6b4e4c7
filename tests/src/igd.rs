//! A UPnP control point: discovery, description and SOAP, by plain octets, so that a test sees exactly what
//! the daemon answered. It shares nothing with the codec under test.
#![expect(
    clippy::disallowed_types,
    reason = "the harness talks to real programs over sockets"
)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Namespace;
use crate::wait;

/// UPnP Device Architecture section 1.2: group and port of discovery.
pub const SSDP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// The service that opens ports, as the first version of the device has it.
pub const WANIP1: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";

/// Version of the device a control point looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// InternetGatewayDevice:1 with WANIPConnection:1.
    One,
    /// InternetGatewayDevice:2 with WANIPConnection:2.
    Two,
}

impl Version {
    fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }

    fn service(self) -> String {
        format!(
            "urn:schemas-upnp-org:service:WANIPConnection:{}",
            self.number()
        )
    }
}

/// RFC 6970 leaves no more than this to an answer: the client would give up by the architecture's 30 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(35);
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);

/// An answer over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines and body.
    pub text: String,
}

impl Answer {
    /// Value of the first header field of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.text.lines().take_while(|line| !line.is_empty());
        let mut fields = lines.filter_map(|line| line.split_once(':'));
        let field = fields.find(|(found, _)| found.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.trim())
    }

    /// Content of the first element of that name.
    pub fn element(&self, name: &str) -> Option<&str> {
        element(&self.text, name)
    }

    /// The UPnP error code, if it is a fault.
    pub fn error(&self) -> Option<u16> {
        self.element("errorCode")?.trim().parse().ok()
    }

    /// Fails unless the action succeeded.
    ///
    /// # Errors
    /// With the whole answer.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.status == 200, "the gateway refused: {}", self.text);
        Ok(self)
    }
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(&format!("<{name}>"))? + name.len() + 2;
    let rest = text.get(start..)?;
    rest.get(..rest.find(&format!("</{name}>"))?)
}

/// One gateway, as a host of the LAN found it.
#[derive(Clone, Debug)]
pub struct Gateway {
    host: Namespace,
    address: SocketAddrV4,
    description: String,
    control: String,
    events: String,
    service: String,
}

impl Gateway {
    /// Searches as a control point of the first version does.
    ///
    /// # Errors
    /// As [`discover_version`](Self::discover_version).
    pub fn discover(host: &Namespace) -> Result<Self> {
        Self::discover_version(host, Version::One)
    }

    /// Searches, reads the description and finds the control address of WANIPConnection.
    ///
    /// # Errors
    /// If no gateway answers within 10 s, or its description lacks the service.
    pub fn discover_version(host: &Namespace, version: Version) -> Result<Self> {
        let name = version.service();
        let (address, path) = location(host, version)?;
        let description = exchange(host, address, &get(address, &path))?;
        let service = description
            .text
            .split("<service>")
            .find(|part| part.contains(&name))
            .with_context(|| format!("the description has {name}"))?;
        let control = element(service, "controlURL").context("the service has a controlURL")?;
        let events = element(service, "eventSubURL").context("the service has an eventSubURL")?;
        Ok(Self {
            host: host.clone(),
            address,
            description: path,
            control: control.trim().to_owned(),
            events: events.trim().to_owned(),
            service: name,
        })
    }

    /// Where it serves HTTP.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Where its description is, for who does not search.
    pub fn description_url(&self) -> String {
        format!("http://{}{}", self.address, self.description)
    }

    /// The same gateway, called from another host.
    pub fn seen_from(&self, host: &Namespace) -> Self {
        Self {
            host: host.clone(),
            ..self.clone()
        }
    }

    /// Calls an action of WANIPConnection and returns whatever is answered.
    ///
    /// # Errors
    /// If nothing is answered.
    pub fn call(&self, action: &str, arguments: &[(&str, &str)]) -> Result<Answer> {
        self.call_at(&self.control, &self.service, action, arguments)
    }

    /// Calls an action of any service at its control URL.
    ///
    /// # Errors
    /// If nothing is answered.
    pub fn call_at(
        &self,
        control: &str,
        service: &str,
        action: &str,
        arguments: &[(&str, &str)],
    ) -> Result<Answer> {
        let fields: String = arguments
            .iter()
            .map(|(name, value)| format!("<{name}>{value}</{name}>"))
            .collect();
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n\
             <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{action} xmlns:u=\"{service}\">{fields}</u:{action}></s:Body></s:Envelope>\r\n"
        );
        let request = format!(
            "POST {control} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
             SOAPAction: \"{service}#{action}\"\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        self.raw(request.as_bytes())
    }

    /// Sends any octets to the HTTP server and reads until it closes.
    ///
    /// # Errors
    /// If it answers nothing that looks like HTTP.
    pub fn raw(&self, octets: &[u8]) -> Result<Answer> {
        exchange(&self.host, self.address, octets)
    }

    /// Where SOAP goes, for requests built by hand.
    pub fn control_path(&self) -> &str {
        &self.control
    }

    /// Where subscriptions go.
    pub fn events_path(&self) -> &str {
        &self.events
    }

    /// A request of that method at an event URL, with these header lines.
    ///
    /// # Errors
    /// If nothing is answered.
    pub fn at_events(&self, method: &str, path: &str, lines: &[String]) -> Result<Answer> {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHOST: {}\r\nConnection: close\r\n{lines}\r\n",
            self.address
        );
        self.raw(request.as_bytes())
    }

    /// AddPortMapping for the calling host or another one.
    ///
    /// # Errors
    /// If nothing is answered.
    pub fn add(
        &self,
        protocol: &str,
        external_port: u16,
        client: Ipv4Addr,
        internal_port: u16,
        lease: u32,
    ) -> Result<Answer> {
        self.call(
            "AddPortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", &external_port.to_string()),
                ("NewProtocol", protocol),
                ("NewInternalPort", &internal_port.to_string()),
                ("NewInternalClient", &client.to_string()),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "suite"),
                ("NewLeaseDuration", &lease.to_string()),
            ],
        )
    }

    /// DeletePortMapping.
    ///
    /// # Errors
    /// If nothing is answered.
    pub fn delete(&self, protocol: &str, external_port: u16) -> Result<Answer> {
        self.call(
            "DeletePortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", &external_port.to_string()),
                ("NewProtocol", protocol),
            ],
        )
    }
}

/// Searches for a gateway from a host; returns address and path of its description.
fn location(host: &Namespace, version: Version) -> Result<(SocketAddrV4, String)> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let socket = host.within(|| UdpSocket::bind(any))??;
    socket.set_read_timeout(Some(Duration::from_millis(1200)))?;
    let search = format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {SSDP}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:{}\r\n\r\n",
        version.number()
    );
    let what = "an answer to a search for a gateway";
    wait::until_ok(what, Duration::from_secs(10), || {
        socket.send_to(search.as_bytes(), SSDP)?;
        let mut buf = [0; 2048];
        let (len, _) = socket.recv_from(&mut buf)?;
        let text = String::from_utf8_lossy(&buf[..len]).into_owned();
        let line = text
            .lines()
            .find(|line| line.to_ascii_lowercase().starts_with("location:"))
            .context("the answer has a LOCATION")?;
        let url = line
            .split_once("http://")
            .context("LOCATION is a URL")?
            .1
            .trim();
        let (authority, path) = url.split_once('/').context("LOCATION has a path")?;
        Ok((authority.parse()?, format!("/{path}")))
    })
}

fn get(address: SocketAddrV4, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").into_bytes()
}

/// Sends any octets to an HTTP server and reads until it closes.
///
/// # Errors
/// If it answers nothing that looks like HTTP.
pub fn exchange(host: &Namespace, address: impl Into<SocketAddr>, octets: &[u8]) -> Result<Answer> {
    let address = address.into();
    let mut stream = host
        .within(|| TcpStream::connect_timeout(&address, CONNECTED_WITHIN * wait::patience()))?
        .context("connect to the gateway")?;
    stream.set_read_timeout(Some(ANSWER_WITHIN * wait::patience()))?;
    stream.write_all(octets)?;
    let mut bytes = Vec::new();
    // A reset after the answer is how a server refuses the rest of a request; what came before counts.
    let ended = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok());
    match (status, ended) {
        (Some(status), _) => Ok(Answer { status, text }),
        (None, Err(error)) => Err(error).context("read the gateway's answer"),
        (None, Ok(_)) => anyhow::bail!("the gateway closed without an answer: {text:?}"),
    }
}
