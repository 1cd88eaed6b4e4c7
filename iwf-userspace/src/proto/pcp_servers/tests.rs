use super::*;

const START: Instant = Instant::from_millis(7_000_000);

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 5351))
}

fn server(origin: Origin, addresses: &[u8]) -> Server {
    Server {
        origin,
        addresses: addresses.iter().map(|n| at(*n)).collect(),
        last: None,
    }
}

struct Lab {
    now: Instant,
    selection: Selection,
    effects: Vec<Effect>,
}

impl Lab {
    fn new(servers: &[Server]) -> Self {
        let mut lab = Self {
            now: START,
            selection: Selection::default(),
            effects: Vec::new(),
        };
        lab.input(Input::Servers(servers.to_vec()));
        lab
    }

    fn input(&mut self, input: Input) -> Vec<Effect> {
        self.selection.handle_input(input, self.now);
        self.drain()
    }

    fn drain(&mut self) -> Vec<Effect> {
        let effects: Vec<_> = std::iter::from_fn(|| self.selection.poll_effect()).collect();
        self.effects.extend(effects.clone());
        effects
    }

    fn run(&mut self, seconds: u64) -> Vec<Effect> {
        let end = self.now + Duration::from_secs(seconds);
        let mut all = Vec::new();
        while let Some(at) = self.selection.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.selection.handle_timeout(self.now);
            all.extend(self.drain());
            let next = self.selection.poll_timeout();
            assert!(next.is_none_or(|at| at > self.now), "due for ever");
        }
        self.now = end;
        all
    }

    fn current(&self) -> Vec<(Origin, SocketAddr, Health)> {
        self.selection.servers().collect()
    }

    fn used(&self) -> SocketAddr {
        self.current()[0].1
    }
}

fn moved(from: u8, to: u8) -> Effect {
    Effect::Move {
        from: at(from),
        to: at(to),
    }
}

fn watched(all: &[u8], several: &[u8]) -> Effect {
    Effect::Watch {
        all: all.iter().map(|n| at(*n)).collect(),
        several: several.iter().map(|n| at(*n)).collect(),
    }
}

#[test]
fn every_address_is_watched_and_the_first_is_used() {
    let lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2]), server(Origin::Dhcp4, &[3])]);
    assert_eq!(lab.effects, [watched(&[1, 2, 3], &[1, 2])]);
    let unknown = |n| (Origin::Dhcp4, at(n), Health::Unknown);
    assert_eq!(lab.current(), [unknown(1), unknown(3)]);
}

#[test]
fn an_address_is_named_once_by_the_first_who_names_it() {
    let lab = Lab::new(&[
        server(Origin::Dhcp4, &[1, 2]),
        server(Origin::Dhcp6, &[2, 1]),
        server(Origin::Dhcp6, &[2, 3]),
    ]);
    let named: Vec<_> = lab.selection.listing().collect();
    assert_eq!(named.len(), 2);
    assert_eq!(named[1], (Origin::Dhcp6, vec![(at(3), true)]));
}

#[test]
fn the_first_has_a_head_start_of_three_seconds() {
    let mut lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2])]);
    assert_eq!(lab.input(Input::Answering(at(2))), []);
    lab.run(2);
    assert_eq!(lab.used(), at(1));
    assert_eq!(lab.input(Input::Answering(at(1))), []);
    lab.run(60);
    assert_eq!(lab.used(), at(1), "it answered in time");

    let mut lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2])]);
    lab.input(Input::Answering(at(2)));
    assert_eq!(lab.run(3), [moved(1, 2)]);
    assert_eq!(lab.input(Input::Answering(at(1))), [], "too late");
    lab.run(60);
    assert_eq!(lab.used(), at(2), "it stays where it was answered");
}

#[test]
fn four_questions_without_an_answer_are_enough() {
    let mut lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2, 3])]);
    lab.input(Input::Silent(at(1)));
    assert_eq!(lab.used(), at(1), "three are not");
    let rest = Effect::Rest(at(1));
    assert_eq!(lab.input(Input::Spent(at(1))), [rest, moved(1, 2)]);
    lab.input(Input::Spent(at(2)));
    assert_eq!(lab.used(), at(3));
}

#[test]
fn the_last_wait_ends_even_if_nobody_waits_any_more() {
    let mut lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2])]);
    lab.input(Input::Silent(at(1)));
    assert_eq!(lab.run(26), []);
    assert_eq!(lab.run(1), [Effect::Rest(at(1)), moved(1, 2)]);
}

#[test]
fn a_hard_error_moves_on_at_once() {
    let mut lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2])]);
    let rest = Effect::Rest(at(1));
    assert_eq!(lab.input(Input::Unreachable(at(1))), [rest, moved(1, 2)]);
}

#[test]
fn when_the_one_in_use_falls_silent_the_others_are_asked_and_whoever_answers_is_used() {
    let mut lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2, 3])]);
    lab.input(Input::Answering(at(1)));
    lab.input(Input::Answering(at(2)));
    lab.input(Input::Spent(at(3)));
    lab.run(10_000);
    // What was known of the others is old.
    let probes = [Effect::Probe(at(2)), Effect::Probe(at(3))];
    assert_eq!(lab.input(Input::Silent(at(1))), probes);
    assert_eq!(lab.used(), at(1));
    let left = [Effect::Rest(at(1)), moved(1, 3)];
    assert_eq!(lab.input(Input::Answering(at(3))), left);
    assert_eq!(lab.input(Input::Answering(at(2))), []);
    assert_eq!(lab.used(), at(3));
}

#[test]
fn one_that_answers_again_in_time_stays() {
    let mut lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2])]);
    lab.input(Input::Answering(at(1)));
    lab.input(Input::Silent(at(1)));
    lab.input(Input::Answering(at(1)));
    lab.input(Input::Answering(at(2)));
    lab.run(60);
    assert_eq!(lab.used(), at(1));
}

#[test]
fn all_dead_is_asked_again_every_15_minutes() {
    let mut lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2])]);
    for n in [1, 2] {
        lab.input(Input::Silent(at(n)));
        lab.input(Input::Spent(at(n)));
    }
    assert_eq!(lab.current()[0].2, Health::Spent);
    for round in 0..3 {
        assert_eq!(lab.run(899), [], "round {round}");
        let again = [Effect::Probe(at(1)), Effect::Probe(at(2))];
        assert_eq!(lab.run(1), again, "round {round}");
        lab.run(45);
        lab.input(Input::Spent(at(1)));
        lab.input(Input::Spent(at(2)));
    }
    lab.run(900);
    lab.input(Input::Answering(at(1)));
    lab.run(3);
    assert_eq!(lab.used(), at(1));
    assert_eq!(lab.run(10_000), []);
}

#[test]
fn a_server_with_one_address_is_never_given_up() {
    let mut lab = Lab::new(&[server(Origin::Config, &[1])]);
    assert_eq!(lab.input(Input::Silent(at(1))), []);
    assert_eq!(lab.input(Input::Unreachable(at(1))), []);
    assert_eq!(lab.current(), [(Origin::Config, at(1), Health::Silent)]);
    assert_eq!(lab.selection.poll_timeout(), None);
}

#[test]
fn other_addresses_of_the_same_server_take_over_what_was_at_one_that_is_gone() {
    let mut lab = Lab::new(&[server(Origin::Dhcp4, &[1, 2])]);
    lab.input(Input::Answering(at(1)));
    lab.input(Input::Answering(at(2)));
    let next = [server(Origin::Dhcp4, &[3, 2])];
    let effects = lab.input(Input::Servers(next.to_vec()));
    assert_eq!(effects, [moved(1, 2), watched(&[3, 2], &[3, 2])]);
    assert_eq!(lab.current(), [(Origin::Dhcp4, at(2), Health::Answering)]);
    // The same list again changes nothing.
    let effects = lab.input(Input::Servers(next.to_vec()));
    assert_eq!(effects, []);
    // Another server altogether: nothing moves, it has nonces of its own.
    let other = server(Origin::Dhcp4, &[7]);
    assert_eq!(lab.input(Input::Servers(vec![other])), [watched(&[7], &[])]);
    assert!(!lab.selection.contains(at(2)));
}

#[test]
fn anycast_is_asked_only_when_nobody_else_answers() {
    let list = [server(Origin::Router, &[1]), server(Origin::Anycast, &[9])];
    let mut lab = Lab::new(&list);
    assert_eq!(lab.effects, [watched(&[1], &[])]);
    assert_eq!(lab.current().len(), 1);
    assert_eq!(lab.input(Input::Silent(at(1))), [watched(&[1, 9], &[])]);
    assert_eq!(lab.current().len(), 2);
    // It stays in contact, and the router is still preferred.
    lab.input(Input::Answering(at(9)));
    lab.input(Input::Answering(at(1)));
    assert_eq!(lab.current()[0], (Origin::Router, at(1), Health::Answering));
    // Another router has its own chance.
    let list = [server(Origin::Router, &[2]), server(Origin::Anycast, &[9])];
    assert_eq!(
        lab.input(Input::Servers(list.to_vec())),
        [watched(&[2], &[])]
    );
    // Without a router there is nobody to wait for.
    let alone = Lab::new(&[server(Origin::Anycast, &[9])]);
    assert_eq!(alone.effects.last(), Some(&watched(&[9], &[])));
    assert_eq!(alone.current().len(), 1);
}

#[test]
fn a_restart_goes_on_where_leases_are() {
    let lab = Lab::new(&[Server {
        last: Some(at(2)),
        ..server(Origin::Dhcp4, &[1, 2])
    }]);
    assert_eq!(lab.used(), at(2));
}
