use std::net::Ipv4Addr;

use proptest::prelude::*;
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

#[test]
fn timeouts_have_bounds_and_are_never_infinite() {
    let mut bench = Bench::new();
    for (wanted, expected) in [
        ("Second-1800", 1800),
        ("Second-10", 1800),
        ("Second-3600", 3600),
        ("Second-infinite", 1800),
        ("Second-4000000000", 86_400),
        ("", 1800),
    ] {
        let request = until(&["http://192.168.1.10:5000/"], wanted).expect("a request");
        let granted = bench.ask(HOST, &LAYER3_FORWARDING, request);
        let granted = granted.expect("granted").expect("a subscription");
        assert_eq!(granted.timeout.as_secs(), expected, "{wanted}");
    }
}

#[test]
fn a_subscription_ends_unless_it_is_renewed() {
    let mut bench = Bench::new();
    let sid = bench.subscribe(HOST, &WAN_COMMON_INTERFACE_CONFIG);
    bench.run(ms(100));
    bench.told();
    bench.run(ms(1_798_900));
    assert!(
        bench
            .ask(HOST, &WAN_COMMON_INTERFACE_CONFIG, renew(sid))
            .is_ok()
    );
    bench.run(Duration::from_secs(1799));
    bench.set("PhysicalLinkStatus", "Down");
    assert_eq!(bench.told().len(), 1);
    bench.run(Duration::from_secs(1));
    bench.set("PhysicalLinkStatus", "Up");
    bench.run(Duration::from_secs(10));
    assert_eq!(bench.told(), []);
    let late = bench.ask(HOST, &WAN_COMMON_INTERFACE_CONFIG, renew(sid));
    assert_eq!(late, Err(Refusal::Unknown));
    assert!(bench.gena.is_idle());
    assert_eq!(bench.gena.counts().expired, 1);
}

#[test]
fn only_its_subscriber_renews_or_ends_it_and_at_its_own_service() {
    let mut bench = Bench::new();
    let sid = bench.subscribe(HOST, &WAN_IP_CONNECTION_1);
    for (host, service) in [(OTHER, &WAN_IP_CONNECTION_1), (HOST, &WAN_IP_CONNECTION_2)] {
        let end = Request::Unsubscribe { sid };
        assert_eq!(bench.ask(host, service, end), Err(Refusal::Unknown));
        assert_eq!(bench.ask(host, service, renew(sid)), Err(Refusal::Unknown));
    }
    bench.run(ms(100));
    let end = Request::Unsubscribe { sid };
    assert_eq!(bench.ask(HOST, &WAN_IP_CONNECTION_1, end.clone()), Ok(None));
    assert_eq!(
        bench.ask(HOST, &WAN_IP_CONNECTION_1, end),
        Err(Refusal::Unknown)
    );
    // The message on its way comes back to nobody.
    bench.answer(Ok(()));
    assert_eq!(bench.gena.counts().refused_unknown, 5);
}

#[test]
fn callbacks_lead_to_hosts_of_the_same_link_only() {
    let mut bench = Bench::new();
    let second = Ipv4Addr::new(192, 168, 1, 2);
    bench.lan(&[(OWN, 24), (second, 24), (Ipv4Addr::new(192, 168, 2, 1), 24)]);
    for url in [
        "http://8.8.8.8:5000/",
        "http://100.64.0.1:5000/",
        "http://127.0.0.1:5000/",
        "http://0.0.0.0:5000/",
        "http://192.168.1.1:5000/",
        "http://192.168.1.2:5000/",
        "http://192.168.1.0:5000/",
        "http://192.168.1.255:5000/",
        "http://192.168.2.10:5000/",
        "http://239.255.255.250:1900/",
        "http://255.255.255.255:5000/",
        "http://192.168.1.10:22/",
        "http://192.168.1.10:1023/",
    ] {
        let refused = bench.ask(HOST, &LAYER3_FORWARDING, to(&[url]));
        assert_eq!(refused, Err(Refusal::Elsewhere), "{url}");
    }
    for url in ["http://192.168.1.10/", "http://192.168.1.11:1024/"] {
        assert!(
            bench.ask(HOST, &LAYER3_FORWARDING, to(&[url])).is_ok(),
            "{url}"
        );
    }
    // Of several the bad ones are left out.
    bench.run(ms(100));
    bench.sent.clear();
    let mixed = ["http://8.8.8.8:5000/", "http://192.168.1.10:5000/"];
    assert!(bench.ask(HOST, &LAYER3_FORWARDING, to(&mixed)).is_ok());
    bench.run(ms(100));
    bench.answer(Err(SendError::Unreachable));
    let tried: Vec<_> = bench
        .sent
        .iter()
        .map(|(_, s)| s.callback.to_string())
        .collect();
    assert_eq!(tried, [mixed[1]]);
    assert_eq!(bench.gena.counts().refused_callback, 13);
}

#[test]
fn one_host_has_its_bound_and_only_what_is_dead_makes_room() {
    let mut bench = Bench::new();
    for _ in 0..MAX_PER_HOST {
        bench.subscribe(HOST, &WAN_COMMON_INTERFACE_CONFIG);
    }
    bench.run(ms(100));
    let request = || to(&["http://192.168.1.10:5000/"]);
    for _ in 0..1000 {
        let refused = bench.ask(HOST, &WAN_COMMON_INTERFACE_CONFIG, request());
        assert_eq!(refused, Err(Refusal::Full));
    }
    assert_eq!(Refusal::Full.status(), 503);
    bench.subscribe(OTHER, &WAN_COMMON_INTERFACE_CONFIG);
    bench.run(ms(100));
    bench.answer(Err(SendError::Unreachable));
    let refused = bench.ask(HOST, &WAN_COMMON_INTERFACE_CONFIG, request());
    assert_eq!(refused, Err(Refusal::Full), "another host's has to stay");
    bench.sent.truncate(MAX_PER_HOST);
    bench.answer(Err(SendError::Unreachable));
    assert!(
        bench
            .ask(HOST, &WAN_COMMON_INTERFACE_CONFIG, request())
            .is_ok()
    );
    let refused = bench.ask(HOST, &WAN_COMMON_INTERFACE_CONFIG, request());
    assert_eq!(refused, Err(Refusal::Full));
    let counts = bench.gena.counts();
    assert_eq!((counts.dropped, counts.refused_full), (1, 1002));
}

#[test]
fn all_together_have_their_bound() {
    let mut bench = Bench::new();
    for host in 0..MAX_SUBSCRIPTIONS / MAX_PER_HOST {
        let host = Ipv4Addr::new(192, 168, 1, 100 + u8::try_from(host).expect("few"));
        for _ in 0..MAX_PER_HOST {
            bench.subscribe(host, &WAN_COMMON_INTERFACE_CONFIG);
        }
    }
    let refused = bench.ask(HOST, &LAYER3_FORWARDING, to(&["http://192.168.1.10:5000/"]));
    assert_eq!(refused, Err(Refusal::Full));
    bench.run(ms(100));
    assert_eq!(bench.sent.len(), MAX_SUBSCRIPTIONS);
    bench.answer(Err(SendError::Silent));
    let granted = bench.ask(HOST, &LAYER3_FORWARDING, to(&["http://192.168.1.10:5000/"]));
    assert!(granted.is_ok(), "in the place of a dead one");
}

/// GENA-005 for IPv6, where a host has addresses of several prefixes, and of each as many as it likes.
#[test]
fn over_ipv6_the_link_counts_and_a_host_is_known_by_its_mac_address() {
    let v6 = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
    let mut bench = Bench::new();
    let here = link(v6("fe80::1"), 1, 64);
    let links = vec![
        link(OWN, 1, 24),
        here,
        link(v6("2a0b::1"), 1, 64),
        // The same address on another link, and a prefix there.
        link(v6("fe80::1"), 2, 64),
        link(v6("2a0c::1"), 2, 64),
    ];
    let own = ["fe80::1", "2a0b::1", "2a0b::5", "2a0c::1"].map(v6);
    bench.input(Input::Lan {
        links: links.clone(),
        own: own.into(),
    });
    let refused = [
        "http://[2a0b::1]:5000/",
        "http://[2a0b::5]:5000/",
        "http://[2a0b::]:5000/",
        "http://[2a0c::10]:5000/",
        "http://[2a0d::10]:5000/",
        "http://[ff02::1]:5000/",
        "http://[::1]:5000/",
        "http://[::]:5000/",
        "http://[::ffff:192.168.1.10]:5000/",
        "http://[fe80::10]:25/",
        "http://192.168.1.10:5000/",
    ];
    for url in refused {
        let answer = bench.ask6(("fe80::10", 10), here.at, to(&[url]));
        assert_eq!(answer, Err(Refusal::Elsewhere), "{url}");
    }
    for (url, from) in [
        ("http://[fe80::10%25eth0]:5000/", here.at),
        ("http://[2a0b::10]:5000/", links[2].at),
    ] {
        let answer = bench.ask6(("fe80::10", 10), here.at, to(&[url]));
        assert!(answer.is_ok(), "{url}");
        bench.run(ms(100));
        assert_eq!(bench.sent.last().expect("sent").1.from, Some(from), "{url}");
        bench.answer(Ok(()));
    }
    let there = link(v6("fe80::1"), 2, 64).at;
    let granted = bench.ask6(("fe80::20", 20), there, to(&["http://[fe80::20]:5000/"]));
    let sid = granted.expect("granted").expect("a subscription").sid;
    bench.run(ms(100));
    assert_eq!(bench.sent.last().expect("sent").1.from, Some(there));
    bench.answer(Ok(()));

    // Its other addresses may look after it, other hosts may not.
    assert!(bench.ask6(("2a0c::77", 20), there, renew(sid)).is_ok());
    let stranger = bench.ask6(("fe80::20", 21), there, renew(sid));
    assert_eq!(stranger, Err(Refusal::Unknown));
    for n in 2..MAX_PER_HOST {
        let addr = format!("2a0b::{n:x}00");
        let url = format!("http://[{addr}]:5000/");
        assert!(bench.ask6((&addr, 10), here.at, to(&[&url])).is_ok());
    }
    let another = bench.ask6(("2a0b::77", 10), here.at, to(&["http://[2a0b::77]:5000/"]));
    assert_eq!(another, Err(Refusal::Full));
    // The link goes, the other one stays.
    bench.input(Input::Lan {
        links: links[3..].to_vec(),
        own: own.into(),
    });
    assert_eq!(bench.gena.subscriptions().count(), 1);
}

#[test]
fn a_link_that_goes_takes_its_subscriptions_along() {
    let mut bench = Bench::new();
    bench.subscribe(HOST, &WAN_COMMON_INTERFACE_CONFIG);
    bench.lan(&[(OWN, 24), (Ipv4Addr::new(192, 168, 2, 1), 24)]);
    assert!(!bench.gena.is_idle());
    bench.lan(&[(Ipv4Addr::new(192, 168, 2, 1), 24)]);
    assert!(bench.gena.is_idle());
    bench.run(ms(1000));
    assert_eq!(bench.look(), []);
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u8),
    Answer(u8, bool),
    Wait(u16),
    Subscribe(bool),
    Renew,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, any::<u8>()).prop_map(|(name, value)| Step::Set(name, value)),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(which, good)| Step::Answer(which, good)),
        3 => (0u16..40_000).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Subscribe),
        1 => Just(Step::Renew),
    ]
}

const NAMES: [&str; 4] = [
    "ConnectionStatus",
    "ExternalIPAddress",
    "PortMappingNumberOfEntries",
    "SystemUpdateID",
];

proptest! {
    /// Whatever happens: each subscriber has one message on its way at most, its numbers rise by one, and once its
    /// messages get through it knows the newest value of everything.
    #[test]
    fn numbers_rise_by_one_and_the_newest_state_arrives(
        steps in prop::collection::vec(step(), 0..80)
    ) {
        let mut bench = Bench::new();
        let mut state: BTreeMap<String, String> = BTreeMap::new();
        let mut sids = Vec::new();
        let mut open: Vec<Send> = Vec::new();
        let mut seqs: BTreeMap<String, u32> = BTreeMap::new();
        let mut known: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        // At the end what is on its way is given up, rests are over, and everything gets through.
        let rest = std::iter::repeat_n(Step::Wait(61_000), 4);
        let end = rest.chain([Step::Set(2, 1), Step::Set(2, 2), Step::Wait(200), Step::Answer(0, true)]);
        let total = steps.len();
        for (at, step) in steps.into_iter().chain(end).enumerate() {
            match step {
                Step::Set(name, value) => {
                    let name = NAMES[usize::from(name)];
                    bench.set(name, &value.to_string());
                    state.insert(name.to_owned(), value.to_string());
                }
                Step::Wait(millis) => bench.run(ms(millis.into())),
                Step::Subscribe(first) => {
                    let host = if first { HOST } else { OTHER };
                    let request = to(&[&format!("http://{host}:5000/evt")]);
                    if let Ok(Some(granted)) = bench.ask(host, &WAN_IP_CONNECTION_2, request) {
                        sids.push((host, granted.sid));
                    }
                }
                Step::Renew => for (host, sid) in &sids {
                    let _renewed = bench.ask(*host, &WAN_IP_CONNECTION_2, renew(*sid));
                },
                Step::Answer(which, good) => {
                    let all = at >= total;
                    while !open.is_empty() {
                        let send = open.swap_remove(usize::from(which) % open.len());
                        let result = if good { Ok(()) } else { Err(SendError::Silent) };
                        let current = bench.gena.numbers.contains_key(&send.number);
                        bench.input(Input::Sent { number: send.number, result });
                        if good && current {
                            let (_, text) = read(&send);
                            let sid = sid_of(&send);
                            for property in text.split(' ').filter(|p| !p.is_empty()) {
                                let (name, value) = property.split_once('=').expect("a pair");
                                known.entry(sid.clone()).or_default().insert(name.to_owned(), value.to_owned());
                            }
                        }
                        open.extend(bench.sent.drain(..).map(|(_, send)| send).inspect(|send| {
                            check(&mut seqs, send);
                        }));
                        if !all {
                            break;
                        }
                    }
                }
            }
            open.extend(bench.sent.drain(..).map(|(_, send)| send).inspect(|send| check(&mut seqs, send)));
            open.retain(|send| bench.gena.numbers.contains_key(&send.number));
            let on_the_way: BTreeSet<_> = open.iter().map(sid_of).collect();
            prop_assert_eq!(on_the_way.len(), open.len(), "one at a time");
        }
        for view in bench.gena.subscriptions() {
            let known = known.get(&view.sid.to_string()).cloned().unwrap_or_default();
            for (name, value) in &state {
                prop_assert_eq!(known.get(name), Some(value), "{} of {}", name, view.sid);
            }
        }
    }
}

fn sid_of(send: &Send) -> String {
    let message = String::from_utf8(send.message.clone()).expect("text");
    let (_, sid) = message.split_once("SID: ").expect("SID");
    sid.lines().next().expect("a line").to_owned()
}

fn check(seqs: &mut BTreeMap<String, u32>, send: &Send) {
    let (seq, _) = read(send);
    let before = seqs.insert(sid_of(send), seq);
    assert_eq!(seq, before.map_or(0, |before| before + 1));
}
