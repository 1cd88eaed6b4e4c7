mod random;
mod subscriptions;

use std::net::Ipv4Addr;

use rand::SeedableRng;

use super::*;
use crate::wire::gena::RequestError;
use crate::wire::services::{
    LAYER3_FORWARDING, WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION_1, WAN_IP_CONNECTION_2,
};

const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 11);

fn link(own: impl Into<IpAddr>, interface: u32, len: u8) -> Link {
    let own = own.into();
    Link {
        at: At { own, interface },
        len,
    }
}

/// The machine, its clock, and what it has wanted.
struct Bench {
    gena: Gena,
    now: Instant,
    last: u64,
    answers: BTreeMap<u64, Result<Option<Granted>, Refusal>>,
    sent: Vec<(Instant, Send)>,
    /// Messages that the sender works on.
    open: BTreeSet<u64>,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            gena: Gena::new(StdRng::seed_from_u64(1)),
            now: Instant::from_millis(1_000_000),
            last: 0,
            answers: BTreeMap::new(),
            sent: Vec::new(),
            open: BTreeSet::new(),
        };
        bench.lan(&[(OWN, 24)]);
        bench.input(Input::Values(vec![
            ("ConnectionStatus", "Connected".to_owned()),
            ("PossibleConnectionTypes", "IP_Routed".to_owned()),
            ("ExternalIPAddress", "11.22.33.1".to_owned()),
            ("PortMappingNumberOfEntries", "0".to_owned()),
            ("SystemUpdateID", "0".to_owned()),
            ("PhysicalLinkStatus", "Up".to_owned()),
            ("DefaultConnectionService", "uuid:x".to_owned()),
        ]));
        bench
    }

    fn lan(&mut self, prefixes: &[(Ipv4Addr, u8)]) {
        let links = prefixes.iter().map(|(own, len)| link(*own, 1, *len));
        self.input(Input::Lan {
            links: links.collect(),
            own: BTreeSet::new(),
        });
    }

    fn input(&mut self, input: Input) {
        if let Input::Sent { number, .. } = input {
            self.open.remove(&number);
        }
        self.gena.handle_input(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.gena.poll_effect() {
            match effect {
                Effect::Answer { id, result } => {
                    assert_eq!(self.answers.insert(id, result), None);
                }
                Effect::Send(send) => {
                    self.open.insert(send.number);
                    self.sent.push((self.now, send));
                }
                Effect::Cancel(number) => assert!(self.open.remove(&number)),
            }
        }
        assert!(self.gena.is_consistent());
        let numbers: BTreeSet<_> = self.gena.numbers.keys().copied().collect();
        assert_eq!(self.open, numbers, "what is not cancelled is waited for");
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.gena.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.gena.handle_timeout(self.now);
            self.drain();
            let again = self.gena.poll_timeout();
            assert!(again.is_none_or(|at| at > self.now), "due for ever");
        }
        self.now = end;
    }

    fn ask(
        &mut self,
        host: Ipv4Addr,
        service: &'static Service,
        request: Request,
    ) -> Result<Option<Granted>, Refusal> {
        self.last += 1;
        let id = self.last;
        self.input(Input::Request {
            id,
            service,
            host: IpAddr::V4(host).into(),
            at: link(OWN, 1, 24).at,
            request,
        });
        self.answers.remove(&id).expect("answered at once")
    }

    /// A host over IPv6, which asks us at that address.
    fn ask6(
        &mut self,
        (addr, mac): (&str, u8),
        at: At,
        request: Request,
    ) -> Result<Option<Granted>, Refusal> {
        self.last += 1;
        let id = self.last;
        self.input(Input::Request {
            id,
            service: &LAYER3_FORWARDING,
            host: Host {
                addr: addr.parse().expect("an address"),
                mac: Some([2, 0, 0, 0, 0, mac]),
            },
            at,
            request,
        });
        self.answers.remove(&id).expect("answered at once")
    }

    fn subscribe(&mut self, host: Ipv4Addr, service: &'static Service) -> Sid {
        let request = to(&[&format!("http://{host}:5000/evt")]);
        let granted = self.ask(host, service, request);
        granted.expect("granted").expect("a subscription").sid
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.input(Input::Values(vec![(name, value.to_owned())]));
    }

    /// The last message confirmed, or not.
    fn answer(&mut self, result: Result<(), SendError>) {
        let number = self.sent.last().expect("a message").1.number;
        self.input(Input::Sent { number, result });
    }

    /// The messages sent since the last look: number and body.
    fn look(&mut self) -> Vec<(u32, String)> {
        let sent = std::mem::take(&mut self.sent);
        sent.iter().map(|(_, send)| read(send)).collect()
    }

    /// As [`Bench::look`], with every message confirmed.
    fn told(&mut self) -> Vec<(u32, String)> {
        let sent = std::mem::take(&mut self.sent);
        for (_, send) in &sent {
            self.input(Input::Sent {
                number: send.number,
                result: Ok(()),
            });
        }
        sent.iter().map(|(_, send)| read(send)).collect()
    }
}

fn read(send: &Send) -> (u32, String) {
    let message = String::from_utf8(send.message.clone()).expect("text");
    let (head, body) = message.split_once("\r\n\r\n").expect("a head");
    let seq = head.split_once("SEQ: ").expect("SEQ").1;
    let seq = seq.lines().next().expect("a line").parse();
    let properties = body.split("<e:property>").skip(1).map(|property| {
        let (name, rest) = property
            .trim_start_matches('<')
            .split_once('>')
            .expect("a tag");
        let (value, _) = rest.split_once('<').expect("its end");
        format!("{name}={value}")
    });
    let properties: Vec<_> = properties.collect();
    (seq.expect("a number"), properties.join(" "))
}

fn to(urls: &[&str]) -> Request {
    until(urls, "Second-1800").expect("a request")
}

fn until(urls: &[&str], timeout: &str) -> Result<Request, RequestError> {
    let callback: String = urls.iter().map(|url| format!("<{url}>")).collect();
    Request::subscribe(|name| match name {
        "nt" => Some(b"upnp:event".as_slice()),
        "callback" => Some(callback.as_bytes()),
        "timeout" => Some(timeout.as_bytes()),
        _ => None,
    })
}

fn renew(sid: Sid) -> Request {
    Request::Renew {
        sid,
        timeout: Timeout::Unsaid,
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const FIRST: &str = "PossibleConnectionTypes=IP_Routed ConnectionStatus=Connected \
                     ExternalIPAddress=11.22.33.1 PortMappingNumberOfEntries=0";

#[test]
fn the_first_message_has_everything_and_comes_after_the_answer() {
    let mut bench = Bench::new();
    bench.subscribe(HOST, &WAN_IP_CONNECTION_1);
    bench.run(ms(99));
    assert_eq!(bench.look(), []);
    bench.run(ms(1));
    assert_eq!(bench.look(), [(0, FIRST.to_owned())]);
    bench.subscribe(HOST, &WAN_IP_CONNECTION_2);
    bench.subscribe(HOST, &WAN_COMMON_INTERFACE_CONFIG);
    bench.subscribe(HOST, &LAYER3_FORWARDING);
    bench.run(ms(100));
    let mut told = bench.look();
    told.sort();
    assert_eq!(
        told,
        [
            (0, "DefaultConnectionService=uuid:x".to_owned()),
            (0, "PhysicalLinkStatus=Up".to_owned()),
            (0, format!("{FIRST} SystemUpdateID=0")),
        ]
    );
}

#[test]
fn a_change_is_told_once_to_those_whose_service_has_it() {
    let mut bench = Bench::new();
    bench.subscribe(HOST, &WAN_IP_CONNECTION_2);
    bench.subscribe(OTHER, &WAN_COMMON_INTERFACE_CONFIG);
    bench.run(ms(100));
    assert_eq!(bench.told().len(), 2);
    let mut now = vec![
        ("PortMappingNumberOfEntries", "1".to_owned()),
        ("SystemUpdateID", "1".to_owned()),
    ];
    bench.input(Input::Values(now.clone()));
    let both = "PortMappingNumberOfEntries=1 SystemUpdateID=1".to_owned();
    assert_eq!(bench.told(), [(1, both)], "in one message");
    now.reverse();
    bench.input(Input::Values(now));
    bench.run(ms(60_000));
    assert_eq!(bench.told(), [], "nothing has changed");
    bench.input(Input::Again("ExternalIPAddress"));
    let same = "ExternalIPAddress=11.22.33.1".to_owned();
    assert_eq!(bench.told(), [(2, same)]);
}

#[test]
fn what_changes_while_a_message_is_on_its_way_is_told_in_its_newest_state() {
    let mut bench = Bench::new();
    bench.subscribe(HOST, &WAN_IP_CONNECTION_2);
    bench.run(ms(100));
    bench.look();
    let number = bench.gena.last_number;
    for count in 1..=1000 {
        bench.set("SystemUpdateID", &count.to_string());
        bench.set("PortMappingNumberOfEntries", &(count % 7).to_string());
    }
    bench.run(ms(500));
    assert_eq!(bench.look(), [], "one at a time");
    bench.input(Input::Sent {
        number,
        result: Ok(()),
    });
    let newest = "PortMappingNumberOfEntries=6 SystemUpdateID=1000".to_owned();
    assert_eq!(bench.told(), [(1, newest)]);
    bench.run(ms(60_000));
    assert_eq!(bench.told(), []);
}

#[test]
fn a_subscriber_that_never_answers_delays_nobody() {
    let mut bench = Bench::new();
    bench.subscribe(OTHER, &WAN_IP_CONNECTION_1);
    bench.run(ms(100));
    bench.look();
    bench.subscribe(HOST, &WAN_IP_CONNECTION_1);
    bench.run(ms(100));
    bench.told();
    for count in 1..100 {
        bench.set("PortMappingNumberOfEntries", &count.to_string());
        let told = bench.told();
        assert_eq!(
            told,
            [(count, format!("PortMappingNumberOfEntries={count}"))]
        );
    }
}

#[test]
fn numbers_go_on_from_the_largest_with_1() {
    let mut bench = Bench::new();
    let sid = bench.subscribe(HOST, &WAN_COMMON_INTERFACE_CONFIG);
    bench.run(ms(100));
    bench.told();
    bench.gena.subscriptions.get_mut(&sid).expect("there").seq = u32::MAX;
    bench.set("PhysicalLinkStatus", "Down");
    bench.set("PhysicalLinkStatus", "Down");
    let down = "PhysicalLinkStatus=Down".to_owned();
    assert_eq!(bench.told(), [(u32::MAX, down)]);
    bench.set("PhysicalLinkStatus", "Up");
    assert_eq!(bench.told(), [(1, "PhysicalLinkStatus=Up".to_owned())]);
}

#[test]
fn a_message_that_failed_is_not_repeated_but_goes_along_with_the_next() {
    let mut bench = Bench::new();
    bench.subscribe(HOST, &WAN_IP_CONNECTION_1);
    bench.run(ms(100));
    bench.answer(Err(SendError::Unreachable));
    assert_eq!(bench.look(), [(0, FIRST.to_owned())]);
    bench.run(Duration::from_secs(600));
    assert_eq!(bench.look(), [], "not repeated");
    bench.set("PortMappingNumberOfEntries", "1");
    let all = FIRST.replace("Entries=0", "Entries=1");
    assert_eq!(bench.told(), [(1, all)], "its number is used up");
    assert_eq!(bench.gena.counts().failed, 1);
    bench.set("PortMappingNumberOfEntries", "2");
    let only = "PortMappingNumberOfEntries=2".to_owned();
    assert_eq!(bench.told(), [(2, only)]);
}

#[test]
fn the_rest_after_failures_grows_and_ends_with_a_success() {
    let mut bench = Bench::new();
    bench.subscribe(HOST, &WAN_IP_CONNECTION_1);
    let mut count = 0;
    let mut waits = Vec::new();
    bench.run(ms(100));
    for _ in 0..9 {
        bench.answer(Err(SendError::Unreachable));
        bench.look();
        let failed = bench.now;
        count += 1;
        bench.set("PortMappingNumberOfEntries", &count.to_string());
        while bench.sent.is_empty() {
            bench.run(ms(500));
        }
        waits.push(bench.sent[0].0.saturating_duration_since(failed).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    bench.answer(Ok(()));
    bench.look();
    bench.set("PortMappingNumberOfEntries", "0");
    assert_eq!(bench.look().len(), 1, "at once again");
}

#[test]
fn a_renewal_brings_what_was_missed() {
    let mut bench = Bench::new();
    let sid = bench.subscribe(HOST, &WAN_COMMON_INTERFACE_CONFIG);
    bench.run(ms(100));
    bench.answer(Err(SendError::Silent));
    bench.look();
    let renewed = bench.ask(HOST, &WAN_COMMON_INTERFACE_CONFIG, renew(sid));
    assert!(renewed.is_ok());
    bench.run(ms(100));
    assert_eq!(bench.told(), [(1, "PhysicalLinkStatus=Up".to_owned())]);
    let renewed = bench.ask(HOST, &WAN_COMMON_INTERFACE_CONFIG, renew(sid));
    assert!(renewed.is_ok());
    bench.run(ms(100));
    assert_eq!(bench.told(), [], "nothing was missed");
}

#[test]
fn urls_are_tried_in_their_order_within_30_seconds() {
    let mut bench = Bench::new();
    let urls = ["http://192.168.1.10:5000/a", "http://192.168.1.10:5001/b"];
    let granted = bench.ask(HOST, &WAN_COMMON_INTERFACE_CONFIG, to(&urls));
    assert!(granted.is_ok());
    bench.run(ms(100));
    let (_, first) = bench.sent[0].clone();
    assert_eq!(first.callback.to_string(), urls[0]);
    assert_eq!(first.connect_within, Duration::from_secs(5));
    assert_eq!(first.answer_within, Duration::from_secs(15), "a share each");
    bench.answer(Err(SendError::Refused(500)));
    let (_, second) = bench.sent[1].clone();
    assert_eq!(second.callback.to_string(), urls[1]);
    assert_eq!(second.answer_within, Duration::from_secs(30));
    assert_eq!(read(&first), read(&second), "the same message");
    bench.answer(Ok(()));
    bench.set("PhysicalLinkStatus", "Down");
    assert_eq!(
        bench.sent[2].1.callback.to_string(),
        urls[0],
        "from the first on"
    );
    let counts = bench.gena.counts();
    assert_eq!((counts.delivered, counts.failed), (1, 0));
}

#[test]
fn a_sender_that_says_nothing_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.subscribe(HOST, &WAN_COMMON_INTERFACE_CONFIG);
    bench.run(ms(100));
    bench.set("PhysicalLinkStatus", "Down");
    bench.run(ms(30_999));
    let (_, lost) = bench.sent.pop().expect("the first");
    assert_eq!(bench.gena.counts().failed, 0);
    bench.run(ms(1001));
    assert_eq!(bench.gena.counts().failed, 1);
    assert_eq!(bench.look(), [(1, "PhysicalLinkStatus=Down".to_owned())]);
    // What comes too late says nothing of the message that is on its way now.
    bench.input(Input::Sent {
        number: lost.number,
        result: Ok(()),
    });
    assert_eq!(bench.gena.counts().delivered, 0);
}
