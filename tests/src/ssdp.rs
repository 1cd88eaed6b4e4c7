//! Discovery as a host of the LAN sees it: what is announced, and what answers a search.
#![expect(
    clippy::disallowed_types,
    reason = "plays a host of the LAN, in real time"
)]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Namespace;

/// The port of discovery.
pub const PORT: u16 = 1900;
/// The group of IPv4.
pub const GROUP: IpAddr = IpAddr::V4(Ipv4Addr::new(239, 255, 255, 250));
/// The group of IPv6 that reaches a site.
pub const GROUP_SITE: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0xc));

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who has sent it.
    pub from: IpAddr,
    /// All of it.
    pub text: String,
}

impl Message {
    /// Value of the first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.text.lines().filter_map(|line| line.split_once(':'));
        let field = fields.find(|(found, _)| found.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.trim())
    }

    /// Value of a header that is a number.
    ///
    /// # Errors
    /// If it is missing or none.
    pub fn number(&self, name: &str) -> Result<u64> {
        let value = self.header(name).and_then(|value| value.parse().ok());
        value.with_context(|| format!("no number {name} in {}", self.text))
    }

    /// What it announces without `ssdp:`, for example `alive`; empty for an answer.
    pub fn kind(&self) -> &str {
        let nts = self.header("NTS").unwrap_or_default();
        nts.strip_prefix("ssdp:").unwrap_or(nts)
    }
}

/// A host that listens to announcements on one interface.
#[derive(Debug)]
pub struct Ear {
    socket: UdpSocket,
    heard: Vec<Message>,
}

impl Ear {
    /// Joins the group there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open(host: &Namespace, interface: &str, group: IpAddr) -> Result<Self> {
        let index = host.ifindex(interface)?;
        let socket = host.within(|| -> Result<UdpSocket> {
            let socket = socket_of(group)?;
            socket.set_reuse_address(true)?;
            socket.bind_device(Some(interface.as_bytes()))?;
            socket.bind(&on_link(group, PORT, index).into())?;
            match group {
                IpAddr::V4(group) => socket
                    .join_multicast_v4_n(&group, &socket2::InterfaceIndexOrAddress::Index(index))?,
                IpAddr::V6(group) => socket.join_multicast_v6(&group, index)?,
            }
            // Some sets of some addresses, while nobody reads.
            socket.set_recv_buffer_size(1 << 20)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        })??;
        Ok(Self {
            socket,
            heard: Vec::new(),
        })
    }

    /// Everything heard so far, in its order, but for searches of others.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn heard(&mut self) -> Result<&[Message]> {
        let mut buffer = [0; 2048];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let message = message(&buffer, length, from);
                    if message.text.starts_with("NOTIFY") {
                        self.heard.push(message);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(&self.heard),
                Err(error) => bail!(error),
            }
        }
    }

    /// Forgets what was heard so far.
    ///
    /// # Errors
    /// As [`heard`](Self::heard).
    pub fn forget(&mut self) -> Result<()> {
        self.heard()?;
        self.heard.clear();
        Ok(())
    }
}

/// A search as it is sent.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Where it comes from; port 0: any.
    pub from: (IpAddr, u16),
    /// The group, or an address of the gateway.
    pub to: IpAddr,
    /// TTL or hop limit.
    pub ttl: u32,
    /// All of it.
    pub octets: &'a [u8],
}

/// Sends a search once by that interface and returns what first answers in that time.
///
/// # Errors
/// If it cannot be sent.
pub fn ask(
    host: &Namespace,
    interface: &str,
    question: &Question<'_>,
    within: Duration,
) -> Result<Option<Message>> {
    let index = host.ifindex(interface)?;
    let (from, port) = question.from;
    host.within(|| -> Result<Option<Message>> {
        let socket = socket_of(question.to)?;
        socket.set_reuse_address(true)?;
        socket.bind(&on_link(from, port, index).into())?;
        match from {
            IpAddr::V4(from) => {
                socket.set_multicast_if_v4(&from)?;
                socket.set_multicast_ttl_v4(question.ttl)?;
            }
            IpAddr::V6(_) => {
                socket.set_multicast_if_v6(index)?;
                socket.set_multicast_hops_v6(question.ttl)?;
            }
        }
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(within))?;
        socket.send_to(question.octets, on_link(question.to, PORT, index))?;
        let mut answer = [0; 2048];
        let received = socket.recv_from(&mut answer).ok();
        Ok(received.map(|(length, from)| message(&answer, length, from)))
    })?
}

/// The same for a search of the usual form with these lines behind HOST and MAN.
///
/// # Errors
/// If it cannot be sent.
pub fn search(
    host: &Namespace,
    interface: &str,
    from: IpAddr,
    to: IpAddr,
    lines: &str,
) -> Result<Option<Message>> {
    let group = SocketAddr::new(to, PORT);
    let search =
        format!("M-SEARCH * HTTP/1.1\r\nHOST: {group}\r\nMAN: \"ssdp:discover\"\r\n{lines}\r\n");
    let question = Question {
        from: (from, 0),
        to,
        ttl: 2,
        octets: search.as_bytes(),
    };
    ask(host, interface, &question, Duration::from_millis(1500))
}

fn socket_of(addr: IpAddr) -> Result<Socket> {
    let family = if addr.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    Ok(Socket::new(family, Type::DGRAM, Some(Protocol::UDP))?)
}

fn on_link(addr: IpAddr, port: u16, index: u32) -> SocketAddr {
    match addr {
        IpAddr::V4(_) => SocketAddr::new(addr, port),
        IpAddr::V6(addr) => SocketAddrV6::new(addr, port, 0, index).into(),
    }
}

fn message(buffer: &[u8], length: usize, from: SocketAddr) -> Message {
    let octets = buffer.get(..length).unwrap_or_default();
    Message {
        from: from.ip(),
        text: String::from_utf8_lossy(octets).into_owned(),
    }
}
