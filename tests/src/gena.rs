//! A subscriber to UPnP events: an HTTP server on a host of the LAN that keeps what it is sent, by plain octets. It shares
//! nothing with the codec under test.
#![expect(
    clippy::disallowed_types,
    reason = "the harness talks to real programs over sockets"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::igd::{Answer, Gateway};
use crate::netns::Namespace;
use crate::wait;

/// What becomes of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// They are read and confirmed.
    Good,
    /// They are read line by line, to the end of the last one, and confirmed without a length, as rupnp does.
    ByLines,
    /// They are read and never answered; the connection stays.
    Silent,
    /// They are answered with 500.
    Refusing,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The subscription.
    pub sid: String,
    /// Its number.
    pub seq: u32,
    /// Its head.
    pub head: String,
    /// Its variables in their order.
    pub properties: Vec<(String, String)>,
}

impl Message {
    /// The value of a variable in it.
    pub fn value(&self, name: &str) -> Option<&str> {
        let mut found = self.properties.iter().filter(|(of, _)| of == name);
        found.next().map(|(_, value)| value.as_str())
    }
}

/// A server for messages. It ends with the process: its thread waits for connections.
#[derive(Clone, Debug)]
pub struct Subscriber {
    host: Namespace,
    callback: SocketAddr,
    messages: Arc<Mutex<Vec<Message>>>,
    held: Arc<Mutex<Vec<TcpStream>>>,
}

impl Subscriber {
    /// Listens on that address of a host.
    ///
    /// # Errors
    /// If it cannot.
    pub fn start(host: &Namespace, address: impl Into<IpAddr>, manner: Manner) -> Result<Self> {
        let address = address.into();
        let listener = host.within(|| match address {
            IpAddr::V4(_) => TcpListener::bind((address, 0)),
            // One of link scope would need to be told the link.
            IpAddr::V6(_) => TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)),
        })??;
        let callback = SocketAddr::new(address, listener.local_addr()?.port());
        let subscriber = Self {
            host: host.clone(),
            callback,
            messages: Arc::default(),
            held: Arc::default(),
        };
        let (messages, held) = (
            Arc::clone(&subscriber.messages),
            Arc::clone(&subscriber.held),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // What is no message is nobody's here; the test that waits for one says so.
                if let Ok(message) = receive(&stream, manner) {
                    lock(&messages).push(message);
                }
                if manner == Manner::Silent {
                    lock(&held).push(stream);
                }
            }
        });
        Ok(subscriber)
    }

    /// The URL of its server.
    pub fn url(&self) -> String {
        format!("http://{}/events", self.callback)
    }

    /// Subscribes to the events of WANIPConnection; the SID.
    ///
    /// # Errors
    /// If it is refused.
    pub fn subscribe(&self, gateway: &Gateway) -> Result<String> {
        self.subscribe_at(gateway, gateway.events_path())
    }

    /// Subscribes at an event URL.
    ///
    /// # Errors
    /// If it is refused.
    pub fn subscribe_at(&self, gateway: &Gateway, path: &str) -> Result<String> {
        let gateway = gateway.seen_from(&self.host);
        let answer = subscribe(&gateway, path, &format!("<{}>", self.url()))?.ok()?;
        Ok(answer.header("sid").context("a SID")?.to_owned())
    }

    /// Everything received so far.
    pub fn messages(&self) -> Vec<Message> {
        lock(&self.messages).clone()
    }

    /// Waits until one of the messages is accepted; the first that is.
    ///
    /// # Errors
    /// If none is in time.
    pub fn wait_for(
        &self,
        what: &str,
        within: Duration,
        accepted: impl Fn(&Message) -> bool,
    ) -> Result<Message> {
        wait::until_ok(what, within, || {
            let messages = self.messages();
            let found = messages.iter().find(|message| accepted(message)).cloned();
            found.with_context(|| format!("{what} is not among {messages:?}"))
        })
    }
}

/// SUBSCRIBE with this CALLBACK; whatever is answered.
///
/// # Errors
/// If nothing is.
pub fn subscribe(gateway: &Gateway, path: &str, callback: &str) -> Result<Answer> {
    let lines = [
        format!("CALLBACK: {callback}"),
        "NT: upnp:event".to_owned(),
        "TIMEOUT: Second-1800".to_owned(),
    ];
    gateway.at_events("SUBSCRIBE", path, &lines)
}

fn receive(mut stream: &TcpStream, manner: Manner) -> Result<Message> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut octets = Vec::new();
    let message = loop {
        let mut some = [0; 2048];
        let got = stream.read(&mut some)?;
        ensure!(got > 0, "the message ends early");
        octets.extend_from_slice(some.get(..got).unwrap_or_default());
        let text = String::from_utf8_lossy(&octets);
        if manner == Manner::ByLines && !text.ends_with("</e:propertyset>\n") {
            continue;
        }
        if let Some(message) = read(&text) {
            break message;
        }
    };
    match manner {
        Manner::Good => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?,
        Manner::ByLines => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?,
        Manner::Refusing => stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")?,
        Manner::Silent => {}
    }
    Ok(message)
}

/// `None` until it is complete.
fn read(text: &str) -> Option<Message> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let field = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
    };
    if body.len() < field("content-length")?.parse().ok()? {
        return None;
    }
    let properties = body.split("<e:property>").skip(1).filter_map(|property| {
        let (name, rest) = property.strip_prefix('<')?.split_once('>')?;
        let (value, _) = rest.split_once("</")?;
        Some((name.to_owned(), value.to_owned()))
    });
    Some(Message {
        sid: field("sid")?,
        seq: field("seq")?.parse().ok()?,
        head: head.to_owned(),
        properties: properties.collect(),
    })
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
