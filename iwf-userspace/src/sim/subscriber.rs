//! A control point that follows the events of one service, and knows what it has been told.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::world::{World, host};
use crate::iwf::{Input, Iwf, RequestId};
use crate::proto::gena::{At, Granted, Link, Refusal, Send, SendError};
use crate::types::Instant;
use crate::wire::gena::{Callback, Request, Sid, Timeout};
use crate::wire::scpd::Service;

/// How long a message and its answer take.
const DELAY: Duration = Duration::from_millis(5);

/// The link that it is on.
pub(super) const LINK: Link = Link {
    at: At {
        own: IpAddr::V4(host(1)),
        interface: 2,
    },
    len: 24,
};

#[derive(Debug)]
pub(super) struct Subscriber {
    service: &'static Service,
    sid: Option<Sid>,
    /// SEQ of the last message of this subscription.
    seq: Option<u32>,
    /// The message that is on its way, and what it has.
    on_the_way: Option<(u64, Vec<(String, String)>)>,
    /// What it has been told.
    pub(super) known: BTreeMap<String, String>,
    /// Every message that has got through.
    pub(super) messages: Vec<(Instant, Vec<(String, String)>)>,
    /// The largest SystemUpdateID it ever knew.
    update_id: u32,
    /// What becomes of messages; `None`: nothing is ever heard of them.
    pub(super) fate: Option<Result<(), SendError>>,
}

impl World {
    /// 192.168.1.30 subscribes.
    pub(super) fn subscribe(&mut self, service: &'static Service) {
        self.subscriber = Some(Subscriber {
            service,
            sid: None,
            seq: None,
            on_the_way: None,
            known: BTreeMap::new(),
            messages: Vec::new(),
            update_id: 0,
            fate: Some(Ok(())),
        });
        self.subscribe_again();
    }

    /// After a start, of which discovery tells.
    pub(super) fn subscribe_again(&mut self) {
        let Some(subscriber) = &mut self.subscriber else {
            return;
        };
        let service = subscriber.service;
        let callback = Callback {
            to: "192.168.1.30:5000".parse().expect("an endpoint"),
            path: "/".to_owned(),
        };
        let wanted = Request::Subscribe {
            callbacks: vec![callback],
            timeout: Timeout::Seconds(86_400),
        };
        self.event_request(service, wanted);
    }

    /// It renews, as it has to at least once a day.
    pub(super) fn renew_subscription(&mut self) {
        let subscriber = self.subscriber.as_ref().expect("a subscriber");
        let service = subscriber.service;
        let Some(sid) = subscriber.sid else {
            return;
        };
        let timeout = Timeout::Seconds(86_400);
        self.event_request(service, Request::Renew { sid, timeout });
    }

    fn event_request(&mut self, service: &'static Service, wanted: Request) {
        self.input(Input::Subscription {
            request: RequestId(u64::MAX),
            service,
            host: IpAddr::V4(host(30)).into(),
            at: LINK.at,
            wanted,
        });
    }

    /// What the subscriber was told since `since`, one line for each message.
    pub(super) fn told_since(&self, since: Instant) -> Vec<String> {
        let subscriber = self.subscriber.as_ref().expect("a subscriber");
        let messages = subscriber.messages.iter().filter(|(at, _)| *at >= since);
        let line = |properties: &Vec<(String, String)>| {
            let all = properties
                .iter()
                .map(|(name, value)| format!("{name}={value}"));
            all.collect::<Vec<_>>().join(" ")
        };
        messages.map(|(_, properties)| line(properties)).collect()
    }
}

impl Subscriber {
    /// The daemon does not know of it any more.
    pub(super) fn forgotten(&mut self) {
        (self.sid, self.seq, self.on_the_way) = (None, None, None);
    }

    pub(super) fn answered(&mut self, result: Result<Option<Granted>, Refusal>) {
        self.sid = result.expect("there is room").map(|granted| granted.sid);
    }

    /// A message is sent. After what time the sender hears what, if anything.
    pub(super) fn receives(
        &mut self,
        now: Instant,
        send: &Send,
    ) -> Option<(Duration, Result<(), SendError>)> {
        let text = String::from_utf8(send.message.clone()).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.expect("the header").to_owned()
        };
        assert_eq!(Some(header("SID: ")), self.sid.map(|sid| sid.to_string()));
        let seq = header("SEQ: ").parse().expect("a number");
        assert_eq!(
            seq,
            self.seq.map_or(0, |before: u32| before + 1),
            "in order"
        );
        assert!(self.on_the_way.is_none(), "one at a time");
        self.seq = Some(seq);
        let properties = body.split("<e:property><").skip(1).map(|property| {
            let (name, rest) = property.split_once('>').expect("a tag");
            let (value, _) = rest.split_once('<').expect("its end");
            (name.to_owned(), value.to_owned())
        });
        let properties: Vec<_> = properties.collect();
        let fate = self.fate?;
        if fate.is_ok() {
            self.messages.push((now, properties.clone()));
        }
        self.on_the_way = Some((send.number, properties));
        Some((DELAY, fate))
    }

    pub(super) fn sent(&mut self, number: u64, result: Result<(), SendError>) {
        let Some((_, properties)) = self.on_the_way.take_if(|(of, _)| *of == number) else {
            return;
        };
        if result.is_ok() {
            self.known.extend(properties);
        }
        let id = self.known.get("SystemUpdateID");
        if let Some(id) = id.and_then(|id| id.parse().ok()) {
            assert!(id >= self.update_id, "SystemUpdateID went back to {id}");
            self.update_id = id;
        }
    }

    /// Whoever has confirmed everything and has nothing on its way knows everything.
    pub(super) fn check(&self, iwf: &Iwf, now: Instant) {
        let is_current =
            self.on_the_way.is_none() && self.seq.is_some() && self.fate == Some(Ok(()));
        // Only that the subscription is there makes sure of it, and that nothing is missed.
        let mut subscriptions = iwf.gena().subscriptions();
        let good = subscriptions.any(|s| Some(s.sid) == self.sid && s.failures == 0);
        if !is_current || !good {
            return;
        }
        for variable in self.service.variables.iter().filter(|v| v.evented) {
            assert_eq!(
                self.known.get(variable.name).cloned(),
                iwf.variable(self.service, variable.name, now),
                "{}",
                variable.name
            );
        }
    }
}
