//! The core with a shell that does everything at once and always succeeds: octets and calls in, octets and answers out.
//! For tests and fuzz targets, which add what they need of their own.
#![allow(dead_code, reason = "no user needs all of it")]

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use iwf_userspace::iwf::{
    Effect, Errand, Input, Iwf, ModeSetting, RequestId, Saved, ServerSource, Settings, Ticket,
    WanState,
};
use iwf_userspace::mapping::policy::LanPrefix;
use iwf_userspace::proto::gena;
use iwf_userspace::types::caller::Caller;
use iwf_userspace::types::{ExternalEndpoint, Instant, NatEntry, Protocol, UnixTime};
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
    /// Other servers that were sent something.
    pub(crate) elsewhere: Vec<SocketAddr>,
    /// Into the kernel.
    pub(crate) written: Vec<NatEntry>,
    /// Calls that are not answered.
    pub(crate) open: BTreeMap<RequestId, Call>,
    /// Status and body.
    pub(crate) answers: Vec<(u16, String)>,
    /// Wishes about pinholes that reached the kernel.
    pub(crate) pinholes: usize,
    /// What the kernel holds.
    pub(crate) kernel: BTreeMap<(Protocol, ExternalEndpoint), NatEntry>,
    /// What is to be done at a router that speaks UPnP.
    pub(crate) errands: VecDeque<Errand>,
    /// Event messages on their way.
    pub(crate) events: VecDeque<gena::Send>,
    /// What came of requests for events.
    pub(crate) subscribed: Vec<Result<Option<gena::Granted>, gena::Refusal>>,
}

impl Gateway {
    pub(crate) fn new(mode: ModeSetting) -> Self {
        Self::with(Self::settings(mode), Saved::default(), wan())
    }

    pub(crate) fn settings(mode: ModeSetting) -> Settings {
        Settings {
            mode,
            servers: vec![ServerSource::Address(SERVER)],
            default_connection_service: "uuid:x:WANConnectionDevice:1,id".to_owned(),
            ..Settings::default()
        }
    }

    /// With settings and a WAN of its own, and what an earlier life has left.
    pub(crate) fn with(settings: Settings, saved: Saved, wan: WanState) -> Self {
        let now = Instant::from_millis(0);
        let mut gateway = Self {
            iwf: Iwf::new(settings, [7; 32], UnixTime::from_secs(1_700_000_000), now),
            now,
            sent: Vec::new(),
            elsewhere: Vec::new(),
            written: Vec::new(),
            open: BTreeMap::new(),
            answers: Vec::new(),
            pinholes: 0,
            kernel: BTreeMap::new(),
            errands: VecDeque::new(),
            events: VecDeque::new(),
            subscribed: Vec::new(),
        };
        gateway.iwf.restore(saved, now);
        gateway.input(Input::Lan(vec![LanPrefix {
            own: Ipv4Addr::new(192, 168, 1, 1),
            len: 24,
            interface: 2,
        }]));
        gateway.input(Input::Wan(wan));
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
                    if server == SERVER {
                        self.sent.push(payload);
                    } else {
                        self.elsewhere.push(server);
                    }
                }
                Effect::WriteNat { ticket, entry } => {
                    self.written.push(entry);
                    self.kernel
                        .retain(|_, held| held.generation != entry.generation);
                    self.kernel.insert((entry.protocol, entry.external), entry);
                    self.done(ticket);
                }
                Effect::RemoveNat { ticket, entry } => {
                    self.kernel
                        .retain(|_, held| held.generation != entry.generation);
                    self.done(ticket);
                }
                Effect::Persist { ticket, .. } => self.done(ticket),
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
                Effect::Errand(errand) => self.errands.push_back(errand),
                Effect::SubscriptionReply { result, .. } => self.subscribed.push(result),
                Effect::SendEvent(message) => self.events.push_back(message),
                Effect::CancelEvent { number } => self.events.retain(|sent| sent.number != number),
                Effect::AdminReply { .. }
                | Effect::ShowPin { .. }
                | Effect::HangUp { .. }
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
        self.call_from(CALLER.into(), call);
    }

    pub(crate) fn call_from(&mut self, caller: Caller, call: Call) {
        let number = u64::try_from(self.open.len() + self.answers.len()).expect("few");
        let request = RequestId(number);
        self.open.insert(request, call.clone());
        self.input(Input::Soap {
            request,
            caller,
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

/// A WAN whose address is nobody's; the server is its next hop.
pub(crate) fn wan() -> WanState {
    wan_at(Ipv4Addr::new(192, 0, 2, 10))
}

/// The same at another address: NAT-PMP and UPnP are not spoken from a public one.
pub(crate) fn wan_at(address: Ipv4Addr) -> WanState {
    WanState {
        address: Some(address),
        gateway: Some(Ipv4Addr::new(192, 0, 2, 1)),
        pool: Vec::new(),
        address6: None,
        gateway6: None,
    }
}
