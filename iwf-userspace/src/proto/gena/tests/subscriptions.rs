//! Who may subscribe, for how long, and how many.

use super::*;

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
