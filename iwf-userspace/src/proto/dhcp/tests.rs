use std::net::IpAddr;

use rand::SeedableRng;

use super::*;

const START: Instant = Instant::from_millis(5_000_000);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn v4() -> Client {
    Client::V4 {
        address: [100, 64, 0, 2].into(),
        mac: MAC,
    }
}

fn v6() -> Client {
    Client::V6 {
        duid: Duid::from_uuid([3; 16]),
    }
}

struct Lab {
    now: Instant,
    asker: DhcpClient,
    sent: Vec<(Instant, Vec<u8>)>,
    known: Vec<Known>,
    discarded: Vec<Discarded>,
}

impl Lab {
    fn new(seed: u64) -> Self {
        Self {
            now: START,
            asker: DhcpClient::new(StdRng::seed_from_u64(seed)),
            sent: Vec::new(),
            known: Vec::new(),
            discarded: Vec::new(),
        }
    }

    fn input(&mut self, input: Input) {
        self.asker.handle_input(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.asker.poll_effect() {
            match effect {
                Effect::Send(payload) => self.sent.push((self.now, payload)),
                Effect::Known(known) => self.known.push(known),
                Effect::Discarded(what) => self.discarded.push(what),
            }
        }
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while let Some(at) = self.asker.poll_timeout().filter(|at| *at <= end) {
            assert!(at >= self.now, "time does not go back");
            self.now = self.now.max(at);
            self.asker.handle_timeout(self.now);
            self.drain();
            assert!(
                self.asker.poll_timeout().is_none_or(|at| at > self.now),
                "something is due for ever"
            );
        }
        self.now = end;
    }

    fn last(&self) -> &[u8] {
        &self.sent.last().expect("a question").1
    }

    fn settled(&self) -> Option<bool> {
        self.known.last().map(|known| known.settled)
    }

    fn lists(&self) -> Vec<Vec<IpAddr>> {
        let known = self.known.last().expect("something is known");
        known.servers.lists.clone()
    }
}

/// A DHCPACK to that question.
fn ack(question: &[u8], option: Option<&[u8]>) -> Vec<u8> {
    let mut out = question[..240].to_vec();
    out[0] = 2;
    out.extend([53, 1, 5, 54, 4, 100, 64, 0, 1]);
    if let Some(value) = option {
        out.extend([158, u8::try_from(value.len()).unwrap()]);
        out.extend(value);
    }
    out.push(255);
    out
}

/// A Reply to that question.
fn reply(question: &[u8], options: &[u8]) -> Vec<u8> {
    let mut out = vec![7];
    out.extend(&question[1..4 + 22]);
    out.extend([0, 2, 0, 4, 0, 3, 0, 1]);
    out.extend(options);
    out
}

fn gaps(lab: &Lab) -> Vec<f64> {
    let times = lab.sent.iter().map(|(at, _)| *at);
    let later = lab.sent.iter().skip(1).map(|(at, _)| *at);
    times
        .zip(later)
        .map(|(a, b)| b.saturating_duration_since(a).as_secs_f64())
        .collect()
}

const ONE: [u8; 5] = [4, 192, 0, 2, 1];

#[test]
fn an_unanswered_inform_is_repeated_at_doubled_intervals() {
    for seed in 0..20 {
        let mut lab = Lab::new(seed);
        lab.input(Input::Client(Some(v4())));
        assert_eq!(lab.sent.len(), 1, "at once");
        lab.run(12 * 3600);
        let gaps = gaps(&lab);
        assert!((3.0..=5.0).contains(&gaps[0]), "{gaps:?}");
        for pair in gaps.windows(2) {
            let base = (pair[0] * 2.0).min(3600.0);
            assert!((base - 1.0..=base + 1.0).contains(&pair[1]), "{gaps:?}");
        }
        let xid = |n: usize| lab.sent[n].1[4..8].to_vec();
        assert_eq!(xid(0), xid(5), "one exchange");
        assert_ne!(lab.sent[0].1[8..10], lab.sent[1].1[8..10], "secs");
    }
}

#[test]
fn an_unanswered_information_request_follows_rfc_8415() {
    for seed in 0..20 {
        let mut lab = Lab::new(seed);
        lab.input(Input::Client(Some(v6())));
        lab.run(5 * 3600);
        let first = lab.sent[0].0.saturating_duration_since(START);
        assert!(first <= V6_MAX_DELAY);
        let gaps = gaps(&lab);
        assert!((0.9..=1.1).contains(&gaps[0]), "{gaps:?}");
        for pair in gaps.windows(2) {
            let base = (pair[0] * 2.0).min(3600.0);
            let close = base * 0.899..=base * 1.101;
            assert!(close.contains(&pair[1]), "{gaps:?}");
        }
    }
}

#[test]
fn silence_is_an_answer_after_five_seconds_and_a_late_answer_counts() {
    let mut lab = Lab::new(1);
    lab.input(Input::Client(Some(v4())));
    lab.run(4);
    assert_eq!(lab.settled(), None);
    lab.run(1);
    assert_eq!(lab.settled(), Some(true));
    assert!(lab.lists().is_empty());
    let late = ack(&lab.sent[0].1, Some(&ONE));
    lab.input(Input::Datagram(late));
    assert_eq!(lab.lists(), [vec![IpAddr::from([192, 0, 2, 1])]]);
}

#[test]
fn an_answer_is_asked_for_anew_within_the_hour_and_may_differ() {
    let mut lab = Lab::new(2);
    lab.input(Input::Client(Some(v4())));
    lab.input(Input::Datagram(ack(lab.last(), Some(&ONE))));
    assert_eq!(lab.settled(), Some(true), "at once");
    lab.run(53 * 60);
    assert_eq!(lab.sent.len(), 1);
    while lab.sent.len() < 2 {
        lab.run(1);
    }
    let waited = lab.now.saturating_duration_since(START);
    assert!(waited <= REFRESH, "{waited:?}");
    assert_ne!(lab.sent[0].1[4..8], lab.sent[1].1[4..8], "another exchange");
    lab.input(Input::Datagram(ack(lab.last(), None)));
    assert!(lab.lists().is_empty(), "it is no longer offered");
    // What is asked for by hand goes out at once.
    lab.input(Input::Again);
    assert_eq!(lab.sent.len(), 3);
}

#[test]
fn the_second_server_may_know_what_the_first_does_not() {
    let mut lab = Lab::new(3);
    lab.input(Input::Client(Some(v4())));
    let question = lab.last().to_vec();
    lab.input(Input::Datagram(ack(&question, None)));
    lab.input(Input::Datagram(ack(&question, Some(&ONE))));
    assert_eq!(lab.lists().len(), 1);
    lab.input(Input::Datagram(ack(&question, None)));
    assert_eq!(lab.lists().len(), 1);
}

#[test]
fn only_answers_to_us_count() {
    let mut lab = Lab::new(4);
    lab.input(Input::Datagram(vec![1; 300]));
    lab.input(Input::Client(Some(v4())));
    let good = ack(lab.last(), Some(&ONE));
    for at in [0, 4, 7, 28, 33, 242] {
        let mut other = good.clone();
        other[at] ^= 1;
        lab.input(Input::Datagram(other));
    }
    assert_eq!(lab.asker.heard().ignored, 7);
    assert_eq!(lab.known, []);
    lab.input(Input::Datagram(good));
    assert_eq!(lab.asker.heard().answers, 1);

    let mut lab = Lab::new(5);
    lab.input(Input::Client(Some(v6())));
    lab.run(1);
    let good = reply(lab.last(), &[]);
    for at in [0, 1, 3, 8, 25] {
        let mut other = good.clone();
        other[at] ^= 1;
        lab.input(Input::Datagram(other));
    }
    assert_eq!(lab.asker.heard().ignored, 5);
    lab.input(Input::Datagram(good));
    assert_eq!(lab.settled(), Some(true));
}

#[test]
fn what_is_left_out_is_counted_and_told_once() {
    let mut lab = Lab::new(6);
    lab.input(Input::Client(Some(v4())));
    for _ in 0..3 {
        let bad = ack(lab.last(), Some(&[3, 1, 2, 3, 9]));
        lab.input(Input::Datagram(bad));
        lab.input(Input::Again);
    }
    assert_eq!(lab.asker.heard().discarded, 3);
    let bad = Discarded::Option(OptionError::BadList { have: 3 });
    assert_eq!(lab.discarded, [bad]);
    let local = ack(lab.last(), Some(&[8, 127, 0, 0, 1, 192, 0, 2, 1]));
    lab.input(Input::Datagram(local));
    assert_eq!(lab.discarded.len(), 2);
    assert_eq!(lab.discarded[1], Discarded::Addresses(1));
    assert_eq!(lab.lists(), [vec![IpAddr::from([192, 0, 2, 1])]]);
}

#[test]
fn another_network_has_to_be_asked_before_anybody_is_used() {
    let mut lab = Lab::new(7);
    lab.input(Input::Client(Some(v4())));
    lab.input(Input::Datagram(ack(lab.last(), Some(&ONE))));
    // The cable is pulled and comes back: asked at once, and nothing changes until there is an answer.
    lab.input(Input::Client(None));
    assert_eq!(lab.lists().len(), 1);
    lab.input(Input::Client(Some(v4())));
    assert_eq!(lab.sent.len(), 2);
    assert_eq!(lab.settled(), Some(false));
    assert_eq!(lab.lists().len(), 1);
    lab.input(Input::Datagram(ack(lab.last(), Some(&ONE))));
    assert_eq!(lab.settled(), Some(true));
    // Another address: another network, for all that is known.
    lab.input(Input::Client(Some(Client::V4 {
        address: [10, 0, 0, 2].into(),
        mac: MAC,
    })));
    assert_eq!(lab.sent.len(), 3);
    assert_eq!(lab.settled(), Some(false));
    assert!(lab.lists().is_empty());
}

#[test]
fn the_server_says_when_to_ask_again() {
    let mut lab = Lab::new(8);
    lab.input(Input::Client(Some(v6())));
    lab.run(1);
    let aftr = b"\x00\x40\x00\x0e\x04aftr\x07example\x00";
    let refresh = [0, 32, 0, 4, 0, 0, 0x1c, 0x20];
    let options = [&aftr[..], &refresh].concat();
    lab.input(Input::Datagram(reply(lab.last(), &options)));
    let known = lab.known.last().unwrap();
    assert_eq!(known.aftr.as_deref(), Some("aftr.example"));
    lab.run(6400);
    assert_eq!(lab.sent.len(), 1);
    lab.run(900);
    assert!(lab.sent.len() >= 2);
}

#[test]
fn without_an_interface_there_is_nothing_to_wait_for() {
    let mut lab = Lab::new(9);
    lab.input(Input::Client(None));
    assert_eq!(lab.settled(), Some(true));
    lab.input(Input::Again);
    assert_eq!(lab.sent.len(), 0);
    assert_eq!(lab.asker.poll_timeout(), None);
}
