use super::*;

fn row() -> SessionRow {
    SessionRow {
        protocol: Transport(6),
        internal: "192.168.1.10:5000".parse().unwrap(),
        external: Some("100.64.0.2:5001".parse().unwrap()),
        remote: "11.22.33.9:443".parse().unwrap(),
        began: Some(Way::Out),
        state: State::Established,
        packets_out: 3,
        octets_out: 180,
        packets_in: 2,
        octets_in: 120,
        idle_seconds: 4,
        left_seconds: 7436,
        mapping: Some(Kind::Dynamic),
        hairpin: false,
        pinhole: None,
    }
}

#[test]
fn every_field_of_a_filter_selects() {
    let wanted = |change: &dyn Fn(&mut SessionFilter)| {
        let mut filter = SessionFilter::default();
        change(&mut filter);
        filter.admits(&row())
    };
    let prefix = |text: &str| text.parse::<Prefix>().ok();
    assert!(wanted(&|_| {}));
    assert!(wanted(&|f| f.host = prefix("192.168.1.10")));
    assert!(wanted(&|f| f.host = prefix("192.168.1.0/24")));
    assert!(!wanted(&|f| f.host = prefix("192.168.1.11")));
    assert!(!wanted(&|f| f.host = prefix("::/0")));
    assert!(wanted(&|f| f.remote = prefix("11.22.33.9")));
    assert!(!wanted(&|f| f.remote = prefix("192.168.1.10")));
    assert!(wanted(&|f| f.protocol = Some(Transport(6))));
    assert!(!wanted(&|f| f.protocol = Some(Transport(17))));
    assert!(wanted(&|f| f.port = Some(5000)));
    assert!(wanted(&|f| f.port = Some(443)));
    assert!(!wanted(&|f| f.port = Some(5001)));
    assert!(wanted(&|f| f.external_port = Some(5001)));
    assert!(!wanted(&|f| f.external_port = Some(5000)));
    assert!(wanted(&|f| f.state = Some(State::Established)));
    assert!(!wanted(&|f| f.state = Some(State::Closing)));
}

#[test]
fn protocols_have_names_and_numbers() {
    for (text, number, shown) in [
        ("TCP", 6, "tcp"),
        ("icmpv6", 58, "icmpv6"),
        ("17", 17, "udp"),
        ("4", 4, "4"),
    ] {
        let transport: Transport = text.parse().unwrap();
        assert_eq!(
            (transport, transport.to_string()),
            (Transport(number), shown.to_owned())
        );
    }
    assert!("256".parse::<Transport>().is_err());
    assert!("tpc".parse::<Transport>().is_err());
}

#[test]
fn a_connection_has_a_state_from_what_both_sides_showed() {
    const OPEN: u8 = tcp::SYN | tcp::ACK;
    let state = |a: u8, b: u8| {
        let shown = |flags| Shown { flags, last: 7 };
        State::of(Transport(6), [shown(a), shown(b)], [1, 1])
    };
    assert_eq!(state(tcp::SYN, 0), State::Opening);
    assert_eq!(state(tcp::SYN, OPEN), State::Opening);
    assert_eq!(state(OPEN, OPEN), State::Established);
    assert_eq!(state(OPEN | tcp::FIN, OPEN), State::Closing);
    assert_eq!(state(OPEN, OPEN | tcp::FIN), State::Closing);
    assert_eq!(state(OPEN | tcp::FIN, OPEN | tcp::FIN), State::Closed);
    assert_eq!(state(OPEN | tcp::RST, OPEN), State::Reset);
    assert_eq!(state(OPEN, tcp::RST | tcp::ACK), State::Reset);

    let datagrams = |packets| State::of(Transport(17), [Shown::default(); 2], packets);
    assert_eq!(datagrams([1, 0]), State::Unanswered);
    assert_eq!(datagrams([0, 1]), State::Unanswered);
    assert_eq!(datagrams([1, 1]), State::Answered);
}

#[test]
fn every_state_has_its_name_in_json() {
    for (state, name) in State::ALL {
        assert_eq!(
            serde_json::to_value(state).unwrap(),
            serde_json::json!(name)
        );
        assert_eq!(state.to_string(), name);
    }
}

/// A stable interface: names and kinds of values.
#[test]
fn a_session_in_json() {
    assert_eq!(
        serde_json::to_value(row()).unwrap(),
        serde_json::json!({
            "protocol": "tcp",
            "internal": "192.168.1.10:5000",
            "external": "100.64.0.2:5001",
            "remote": "11.22.33.9:443",
            "began": "out",
            "state": "established",
            "packets_out": 3,
            "octets_out": 180,
            "packets_in": 2,
            "octets_in": 120,
            "idle_seconds": 4,
            "left_seconds": 7436,
            "mapping": "dynamic",
            "hairpin": false,
            "pinhole": null,
        })
    );
}

#[test]
fn a_filter_on_the_wire_has_only_what_was_asked() {
    let filter = SessionFilter {
        protocol: Some(Transport(17)),
        host: "192.168.1.0/24".parse().ok(),
        ..SessionFilter::default()
    };
    let wire = r#"{"host":"192.168.1.0/24","protocol":"udp"}"#;
    assert_eq!(serde_json::to_string(&filter).unwrap(), wire);
    assert_eq!(serde_json::from_str::<SessionFilter>(wire).unwrap(), filter);
    assert!(serde_json::from_str::<SessionFilter>(r#"{"hots":"1.2.3.4"}"#).is_err());
}
