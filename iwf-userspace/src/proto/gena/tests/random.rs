//! Whatever happens in whatever order.

use proptest::prelude::*;

use super::*;

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
