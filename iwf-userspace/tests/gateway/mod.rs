//! The core with a shell that does everything at once and always succeeds: octets and calls in, octets and answers out.
//! For tests and fuzz targets, which add what they need of their own.
#![allow(dead_code, reason = "no user needs all of it")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use iwf_userspace::iwf::{
    Effect, Input, Iwf, ModeSetting, RequestId, ServerSource, Settings, Ticket, WanState,
};
use iwf_userspace::mapping::policy::LanPrefix;
use iwf_userspace::types::{Instant, NatEntry, UnixTime};
use iwf_userspace::wire::clients::InnerDocument;
use iwf_userspace::wire::soap::{Call, encode_reply};

/// The PCP server, and the host that calls.
pub(crate) const SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 5351);
pub(crate) const CALLER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);
/// What a MAP message has before and behind its nonce (RFC 6887 section 11.1).
pub(crate) const NONCE: std::ops::Range<usize> = 24..36;

pub(crate) struct Gateway {
    pub(crate) iwf: Iwf,
    pub(crate) now: Instant,
    /// To the server.
    pub(crate) sent: Vec<Vec<u8>>,
    /// Into the kernel.
    pub(crate) written: Vec<NatEntry>,
    /// Calls that are not answered.
    pub(crate) open: BTreeMap<RequestId, Call>,
    /// Status and body.
    pub(crate) answers: Vec<(u16, String)>,
    /// Wishes about pinholes that reached the kernel.
    pub(crate) pinholes: usize,
}

impl Gateway {
    pub(crate) fn new(mode: ModeSetting) -> Self {
        let settings = Settings {
            mode,
            servers: vec![ServerSource::Address(SERVER)],
            default_connection_service: "uuid:x:WANConnectionDevice:1,id".to_owned(),
            ..Settings::default()
        };
        let now = Instant::from_millis(0);
        let mut gateway = Self {
            iwf: Iwf::new(settings, [7; 32], UnixTime::from_secs(1_700_000_000), now),
            now,
            sent: Vec::new(),
            written: Vec::new(),
            open: BTreeMap::new(),
            answers: Vec::new(),
            pinholes: 0,
        };
        gateway.input(Input::Lan(vec![LanPrefix {
            own: Ipv4Addr::new(192, 168, 1, 1),
            len: 24,
            interface: 2,
        }]));
        gateway.input(Input::Wan(WanState {
            address: Some(Ipv4Addr::new(192, 0, 2, 10)),
            gateway: Some(Ipv4Addr::new(192, 0, 2, 1)),
            pool: Vec::new(),
            address6: None,
            gateway6: None,
        }));
        gateway
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.iwf.handle_input(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.iwf.poll_effect() {
            match effect {
                Effect::Reply { request, result } => {
                    let call = self.open.remove(&request).expect("answered once");
                    let reply = encode_reply(&call, &result, InnerDocument::Escaped);
                    assert!([200, 500].contains(&reply.status), "{}", reply.status);
                    self.answers.push((reply.status, reply.body));
                }
                Effect::SendUpstream { server, payload } => {
                    assert_eq!(server, SERVER);
                    self.sent.push(payload);
                }
                Effect::WriteNat { ticket, entry } => {
                    self.written.push(entry);
                    self.done(ticket);
                }
                Effect::RemoveNat { ticket, .. } | Effect::Persist { ticket, .. } => {
                    self.done(ticket);
                }
                Effect::WritePinholes { ticket, .. } => {
                    self.pinholes += 1;
                    self.done(ticket);
                }
                Effect::CountPinhole { request, .. } => {
                    self.pinholes += 1;
                    let packets = Some(1);
                    let counted = Input::PinholeCounted { request, packets };
                    self.iwf.handle_input(counted, self.now);
                }
                Effect::AdminReply { .. }
                | Effect::HangUp { .. }
                | Effect::Errand(_)
                | Effect::SubscriptionReply { .. }
                | Effect::SendEvent(_)
                | Effect::CancelEvent { .. }
                | Effect::Solicit(_)
                | Effect::Notify(_) => {}
            }
        }
    }

    fn done(&mut self, ticket: Ticket) {
        let result = Ok(());
        let done = Input::Done { ticket, result };
        self.iwf.handle_input(done, self.now);
    }

    pub(crate) fn call(&mut self, call: Call) {
        let number = u64::try_from(self.open.len() + self.answers.len()).expect("few");
        let request = RequestId(number);
        self.open.insert(request, call.clone());
        self.input(Input::Soap {
            request,
            caller: CALLER.into(),
            call,
            waited: Duration::ZERO,
        });
    }

    /// A datagram from the server.
    pub(crate) fn hear(&mut self, payload: Vec<u8>) {
        let from = SERVER;
        self.input(Input::Upstream { from, payload });
    }

    /// Lets the time pass until the next thing is due. `false`: nothing is.
    pub(crate) fn wait(&mut self) -> bool {
        let Some(due) = self.iwf.poll_timeout() else {
            return false;
        };
        self.now = due.max(self.now);
        self.iwf.handle_timeout(self.now);
        self.drain();
        true
    }
}
