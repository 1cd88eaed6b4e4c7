//! What there may be several of: mappings, pinholes, hooks, external addresses.

use super::*;

#[test]
fn pinholes_are_read_and_wrong_ones_refused() {
    let text = format!(
        "{MINIMAL}[[pinhole]]\ninternal = \"2a00::10\"\ninternal_port = 443\nprotocol = \"tcp\"\n\
         [[pinhole]]\ninternal = \"2a00::10\"\n"
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.pinholes.len(), 2);
    assert_eq!(config.pinholes[0].internal_port, Some(443));
    assert_eq!(config.pinholes[0].protocol, Some(6));
    assert_eq!(config.pinholes[1].protocol, None);
    for (body, problem) in [
        ("internal = \"fe80::1\"", "is not an IPv6 address of a host"),
        (
            "internal = \"10.0.0.1\"",
            "is not an IPv6 address of a host",
        ),
        ("internal = \"2a00::1\"\nprotocol = \"256\"", "is unknown"),
        ("internal = \"2a00::1\"\ninternal_port = 80", "has no ports"),
        (
            "internal = \"2a00::1\"\nremote_port = 0\nprotocol = \"tcp\"",
            "out of range",
        ),
        (
            "internal = \"2a00::1\"\n[[pinhole]]\ninternal = \"2a00::1\"",
            "listed twice",
        ),
    ] {
        let error = parse(&format!("{MINIMAL}[[pinhole]]\n{body}\n")).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn hooks_are_read_and_wrong_ones_refused() {
    let text = format!(
        "{MINIMAL}[[hook]]\nevents = [\"external-address\", \"mapping-moved\", \"external-address\"]\n\
         run = [\"/bin/true\", \"a b\"]\n"
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.hooks.len(), 1);
    let kinds = [EventKind::ExternalAddress, EventKind::MappingMoved];
    assert_eq!(config.hooks[0].events, kinds);
    assert_eq!(config.hooks[0].run, ["/bin/true", "a b"]);
    let good = "events = [\"external-address\"]\nrun = [\"/bin/true\"]";
    let twice = format!("{good}\n[[hook]]\n{good}");
    let many: Vec<_> = (0..=MAX_HOOKS)
        .map(|n| format!("{good}#\n").replace("true", &n.to_string()))
        .collect();
    let many = many.join("[[hook]]\n");
    for (body, problem) in [
        ("events = []\nrun = [\"/bin/true\"]", "hook.events is empty"),
        (
            "events = [\"x\"]\nrun = [\"/bin/true\"]",
            "\"x\" is no event",
        ),
        ("events = [\"other\"]\nrun = []", "hook.run is empty"),
        (
            "events = [\"other\"]\nrun = [\"true\"]",
            "is not an absolute path",
        ),
        ("events = [\"other\"]\nrun = [\"/a\\u0000\"]", "zero octet"),
        (&twice, "listed twice"),
        (&many, "more than 16 hooks"),
    ] {
        let error = parse(&format!("{MINIMAL}[[hook]]\n{body}\n")).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn mappings_are_read_in_full() {
    let text = format!(
        "{MINIMAL}[[mapping]]\nprotocol = \"both\"\nexternal_port = 443\ninternal = \"192.168.1.10:8443\"\n\
         [[mapping]]\nprotocol = \"udp\"\nexternal_port = 51820\ninternal = \"192.168.1.11:51820\"\n\
         remote = [\"203.0.113.0/24\", \"198.51.100.7\"]\ndescription = \"tunnel\"\n"
    );
    let mappings = parse(&text).unwrap().mappings;
    let shown: Vec<_> = mappings
        .iter()
        .map(|m| {
            format!(
                "{} {} {} {}",
                m.protocol, m.external, m.internal, m.description
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "TCP 443 192.168.1.10:8443 ",
            "UDP 443 192.168.1.10:8443 ",
            "UDP 51820 192.168.1.11:51820 tunnel"
        ]
    );
    let remote: Vec<_> = mappings[2]
        .remote
        .prefixes()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(remote, ["198.51.100.7", "203.0.113.0/24"]);
}

#[test]
fn a_mapping_may_have_a_filter_of_its_own() {
    let table =
        "[[mapping]]\nprotocol = \"udp\"\nexternal_port = 5060\ninternal = \"192.168.1.10:5060\"\n";
    for (filtering, remote) in [
        ("endpoint-independent", RemotePeer::Any),
        ("address-dependent", RemotePeer::SentToHost),
        ("address-and-port-dependent", RemotePeer::SentToEndpoint),
    ] {
        let text = format!("{MINIMAL}{table}filtering = \"{filtering}\"\n");
        assert_eq!(parse(&text).unwrap().mappings[0].remote, remote);
        let both = format!("{text}remote = [\"11.22.33.4\"]\n");
        match parse(&both) {
            Ok(config) => {
                assert_eq!(remote, RemotePeer::Any);
                assert_eq!(config.mappings[0].remote.prefixes().len(), 1);
            }
            Err(error) => {
                assert_ne!(remote, RemotePeer::Any);
                assert!(error.problem.contains("mapping.remote"), "{error}");
                assert_eq!(error.line, Some(10));
            }
        }
    }
    let error = parse(&format!("{MINIMAL}{table}filtering = \"any\"\n")).unwrap_err();
    assert!(error.problem.contains("mapping.filtering"), "{error}");
}

#[test]
fn mappings_that_cannot_be_are_refused_with_their_line() {
    let many = "remote = [\"11.1.0.0/16\", \"11.2.0.0/16\", \"11.3.0.0/16\", \"11.4.0.0/16\", \"11.5.0.0/16\", \
                \"11.6.0.0/16\", \"11.7.0.0/16\", \"11.8.0.0/16\", \"11.9.0.0/16\"]";
    // Line of the file, what changes in which line of the table, the problem.
    for (line, changed, problem) in [
        (7, "protocol = \"icmp\"", "mapping.protocol: \"icmp\""),
        (8, "external_port = 0", "external_port: 0 is out of range"),
        (8, "external_port = 22", "also in wan.open_tcp_ports"),
        (
            9,
            "internal = \"192.168.1.10\"",
            "no endpoint of a LAN host",
        ),
        (
            9,
            "internal = \"192.168.1.10:0\"",
            "no endpoint of a LAN host",
        ),
        (
            9,
            "internal = \"11.22.33.1:80\"",
            "no endpoint of a LAN host",
        ),
        (
            9,
            "internal = \"127.0.0.1:80\"",
            "no endpoint of a LAN host",
        ),
        (10, "remote = [\"11.22.33.0/33\"]", "is no prefix"),
        (10, "remote = [\"0.0.0.0\"]", "is no prefix"),
        (10, "remote = [\"host.example\"]", "is no prefix"),
        (10, many, "more than 8 prefixes"),
        (11, "description = \"a\\nb\"", "mapping.description"),
    ] {
        let mut table = [
            "protocol = \"tcp\"",
            "external_port = 80",
            "internal = \"192.168.1.10:80\"",
            "remote = []",
            "description = \"web\"",
        ];
        let key = changed.split(' ').next().unwrap();
        let slot = table.iter_mut().find(|l| l.starts_with(key)).unwrap();
        *slot = changed;
        let table = table.join("\n");
        let text = format!("{MINIMAL}open_tcp_ports = [22]\n[[mapping]]\n{table}\n");
        let error = parse(&text).unwrap_err();
        assert!(error.problem.contains(problem), "{changed}: {error}");
        assert_eq!(error.line, Some(line), "{error}");
    }
    let one = "[[mapping]]\nprotocol = \"tcp\"\nexternal_port = 80\ninternal = \"10.0.0.2:80\"\n";
    let both = one.replace("tcp", "both");
    let error = parse(&format!("{MINIMAL}{one}{both}")).unwrap_err();
    assert!(
        error.problem.contains("TCP port 80 is mapped twice"),
        "{error}"
    );
    assert_eq!(error.line, Some(11));
    let pcp = one.replace("tcp", "udp").replace("= 80", "= 5351");
    let error = parse(&format!("{MINIMAL}{pcp}")).unwrap_err();
    assert!(error.problem.contains("belongs to PCP"), "{error}");
    let lacks = one.replace("internal = \"10.0.0.2:80\"\n", "");
    let error = parse(&format!("{MINIMAL}{lacks}")).unwrap_err();
    assert!(
        error.problem.contains("missing field `internal`"),
        "{error}"
    );
}

#[test]
fn external_addresses_are_hosts_and_few() {
    let pool = |text: &str| parse(&format!("{MINIMAL}[nat]\nexternal_addresses = {text}\n"));
    assert_eq!(
        parse(MINIMAL).unwrap().external_addresses,
        [Ipv4Addr::UNSPECIFIED; 0]
    );
    let two = pool("[\"192.0.2.7\", \"192.0.2.9\"]").unwrap();
    let addresses = [Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 9)];
    assert_eq!(two.external_addresses, addresses);
    // Read again without a restart.
    assert!(parse(MINIMAL).unwrap().restart_keys(&two).is_empty());
    let many = (1..=8)
        .map(|n| format!("\"192.0.2.{n}\""))
        .collect::<Vec<_>>();
    for wrong in [
        "[\"192.0.2.7\", \"192.0.2.7\"]",
        "[\"0.0.0.0\"]",
        "[\"127.0.0.1\"]",
        "[\"224.0.0.1\"]",
        "[\"192.0.2.0/24\"]",
        "[\"wan0\"]",
        &format!("[{}]", many.join(", ")),
    ] {
        let error = pool(wrong).unwrap_err();
        assert!(
            error.to_string().contains("nat.external_addresses"),
            "{error}"
        );
        assert!(error.line.is_some(), "{error}");
    }
}
