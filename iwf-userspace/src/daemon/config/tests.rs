use super::*;
use crate::mapping::rules::{Kind, Ports, Verdict};
use crate::types::RemotePeer;

const EXAMPLE: &str = include_str!("../../../../packaging/iwf.toml");
const MINIMAL: &str = "[lan]\ninterfaces = [\"br-lan\"]\n[wan]\ninterface = \"wan0\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/iwf.toml"))
}

#[test]
fn example_shows_the_defaults() {
    assert_eq!(parse(EXAMPLE).unwrap(), parse(MINIMAL).unwrap());
}

/// Every key that the reader knows is in the example: removing any key line of the example must not be
/// possible without this noticing, so each `key =` is looked for by name.
#[test]
fn example_shows_every_key() {
    let raw = include_str!("raw.rs");
    let keys = raw
        .lines()
        .filter_map(|line| {
            let line = line.trim().trim_start_matches("pub(super) ");
            let (key, rest) = line.split_once(": ")?;
            let plain = key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            (plain
                && !key.is_empty()
                && (rest.contains(" = ") || rest.starts_with("Spanned") || rest.starts_with("Vec")))
            .then(|| key.to_owned())
        })
        .collect::<std::collections::BTreeSet<_>>();
    assert!(keys.len() > 20, "found only {keys:?}");
    for key in keys {
        let shown = EXAMPLE
            .lines()
            .any(|l| l.trim_start_matches("# ").starts_with(&format!("{key} = ")));
        let table =
            EXAMPLE.contains(&format!("[[{key}]]")) || EXAMPLE.contains(&format!(".{key}]]"));
        assert!(shown || table, "packaging/iwf.toml lacks {key}");
    }
}

#[test]
fn refusals_name_line_problem_and_remedy() {
    let cases = [
        (
            "[ssdp]\nmax_age_seconds = 1799\n",
            2,
            "max_age_seconds: 1799",
            "1800 to",
        ),
        (
            "mode = \"cascade\"\n",
            1,
            "mode: \"cascade\" is unknown",
            "\"cascaded\"",
        ),
        (
            "\nmood = \"auto\"\n",
            2,
            "unknown field `mood`",
            "correct its name",
        ),
        (
            "[http]\nport = 65536\n",
            2,
            "http.port: 65536",
            "0 to 65535",
        ),
        ("[http]\nport = \"x\"\n", 2, "invalid type", "expected type"),
        (
            "[device_protection]\nenabled = true\nport = 5000\n",
            3,
            "is http.port",
            "another port",
        ),
        (
            "[timeouts]\nudp_idle_seconds = 30\n",
            2,
            "udp_idle_seconds: 30",
            "120 to",
        ),
        (
            "[upstream]\npcp_servers = [\"224.0.0.1\"]\n",
            2,
            "is not a server",
            "default-router",
        ),
        (
            "[paths]\nstate_dir = \"var\"\n",
            2,
            "not an absolute path",
            "starts with /",
        ),
        ("[log]\nfilter = \"iwf=loud\"\n", 2, "log.filter", "info"),
        ("[log]\nfilter = \"infoo\"\n", 2, "no level", "info"),
        ("[xdp\n", 1, "", "valid TOML"),
    ];
    for (text, line, problem, advice) in cases {
        // The required sections follow, so that only the case itself is wrong.
        let error = parse(&format!("{text}{MINIMAL}")).unwrap_err();
        assert_eq!(error.line, Some(line), "{error}");
        assert!(error.problem.contains(problem), "{error}");
        assert!(error.advice.contains(advice), "{error}");
        assert!(
            error
                .to_string()
                .starts_with(&format!("/etc/iwf.toml:{line}: "))
        );
    }
}

#[test]
fn interfaces_must_differ_and_exist_on_paper() {
    for (lan, problem) in [
        ("[]", "names 0 interfaces"),
        ("[\"a\", \"a\"]", "listed twice"),
        ("[\"wan0\"]", "both LAN and WAN"),
        ("[\"a-name-of-16-oct\"]", "cannot be an interface name"),
        ("[\"a b\"]", "cannot be an interface name"),
    ] {
        let text = format!("[lan]\ninterfaces = {lan}\n[wan]\ninterface = \"wan0\"\n");
        let error = parse(&text).unwrap_err();
        assert!(error.problem.contains(problem), "{error}");
        assert_eq!(error.line, Some(2));
    }
}

#[test]
fn cascaded_needs_a_server() {
    let text = format!("mode = \"cascaded\"\n{MINIMAL}[upstream]\npcp_servers = []\n");
    parse(&text).unwrap();
    let text = format!("{text}discovery = []\n");
    assert!(parse(&text).unwrap_err().problem.contains("no PCP server"));
}

#[test]
fn servers_resolve() {
    let text = format!(
        "{MINIMAL}[upstream]\n\
         pcp_servers = [\"100.64.0.1\", [\"10.0.0.1:15351\", \"10.0.0.2\"], \"default-router\"]\n"
    );
    let servers = parse(&text).unwrap().pcp_servers;
    let addresses = |list: &[&str]| {
        PcpServer::Addresses(list.iter().map(|text| text.parse().unwrap()).collect())
    };
    let expected = [
        addresses(&["100.64.0.1:5351"]),
        addresses(&["10.0.0.1:15351", "10.0.0.2:5351"]),
        PcpServer::DefaultRouter,
    ];
    assert_eq!(servers, expected);
}

#[test]
fn servers_are_looked_for_where_the_configuration_says() {
    let config = parse(MINIMAL).unwrap();
    assert!(config.pcp_servers.is_empty());
    let all = Discovery {
        dhcp: true,
        router: true,
        anycast: true,
    };
    assert_eq!(config.discovery, all);
    assert!(config.asks_dhcp());
    let with = |more: &str| parse(&format!("{MINIMAL}[upstream]\n{more}\n"));
    let config = with("discovery = [\"router\"]").unwrap();
    let router = Discovery {
        router: true,
        ..Discovery::NONE
    };
    assert_eq!(config.discovery, router);
    assert!(!config.asks_dhcp());
    assert!(!with("pcp_servers = [\"100.64.0.1\"]").unwrap().asks_dhcp());
    for bad in [
        "discovery = [\"mdns\"]",
        "pcp_servers = [[]]",
        "pcp_servers = [7]",
        "pcp_servers = [[\"100.64.0.1\", \"default-router\"]]",
        "pcp_servers = [[\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\", \"10.0.0.4\", \"10.0.0.5\"], \
         [\"10.0.1.1\", \"10.0.1.2\", \"10.0.1.3\", \"10.0.1.4\"]]",
    ] {
        with(bad).unwrap_err();
    }
}

#[test]
fn reload_tells_what_needs_a_restart() {
    let old = parse(MINIMAL).unwrap();
    let text = format!("{MINIMAL}[http]\nport = 1\n[log]\nfilter = \"debug\"\n");
    assert_eq!(old.restart_keys(&parse(&text).unwrap()), ["http"]);
}

/// WCIC-001: behind a modem the device is not the line.
#[test]
fn the_line_is_what_is_written_and_followed() {
    let line = |keys: &str| parse(&format!("{MINIMAL}{keys}")).map(|config| config.line);
    assert_eq!(line("").unwrap(), Line::default());
    let read = line(
        "access_type = \"dsl\"\nupstream_bit_rate = 40_000_000\ndownstream_bit_rate = 250_000_000\n",
    )
    .unwrap();
    assert_eq!(read.access, AccessType::Dsl);
    assert_eq!((read.up, read.down), (Some(40_000_000), Some(250_000_000)));
    for (key, problem) in [
        ("upstream_bit_rate = 0", "wan.upstream_bit_rate: 0"),
        ("downstream_bit_rate = -1", "wan.downstream_bit_rate: -1"),
        ("access_type = \"DSL\"", "wan.access_type: \"DSL\""),
    ] {
        let refused = line(&format!("{key}\n")).unwrap_err().to_string();
        assert!(refused.contains(problem), "{refused}");
    }
    let old = parse(MINIMAL).unwrap();
    let new = parse(&format!("{MINIMAL}upstream_bit_rate = 1\n")).unwrap();
    assert!(old.restart_keys(&new).is_empty());
}

#[test]
fn filtering_and_refusals_are_read_and_followed() {
    let default = parse(MINIMAL).unwrap();
    assert_eq!(default.rules, FlowRules::default());
    for (text, filtering) in [
        ("endpoint-independent", Filtering::EndpointIndependent),
        ("address-dependent", Filtering::AddressDependent),
        (
            "address-and-port-dependent",
            Filtering::AddressAndPortDependent,
        ),
    ] {
        let config = parse(&format!("{MINIMAL}[nat]\nfiltering = \"{text}\"\n")).unwrap();
        assert_eq!(config.rules.filtering, filtering);
        // A reload is enough.
        assert!(default.restart_keys(&config).is_empty());
    }
    for (text, refusals) in [
        ("answer", Refusals::Answer),
        ("answer-lan", Refusals::AnswerLan),
        ("silent", Refusals::Silent),
    ] {
        let config = parse(&format!("{MINIMAL}[nat]\nrefusals = \"{text}\"\n")).unwrap();
        assert_eq!(config.rules.refusals, refusals);
        assert!(default.restart_keys(&config).is_empty());
    }
    for key in ["filtering", "refusals"] {
        let error = parse(&format!("{MINIMAL}[nat]\n{key} = \"none\"\n")).unwrap_err();
        assert!(error.problem.contains(&format!("nat.{key}")), "{error}");
        assert_eq!(error.line, Some(6), "{error}");
    }
}

#[test]
fn the_softwire_ends_where_it_is_written() {
    let ds_lite = |text: &str| parse(&format!("{MINIMAL}[ds_lite]\n{text}\n"));
    assert_eq!(parse(MINIMAL).unwrap().ds_lite, None);
    assert!(ds_lite("").unwrap().asks_dhcp());
    for (text, aftr) in [
        ("", Aftr::Dhcp),
        ("aftr = \"dhcp\"", Aftr::Dhcp),
        (
            "aftr = \"2001:db8::1\"",
            Aftr::Address("2001:db8::1".parse().unwrap()),
        ),
        (
            "aftr = \"aftr-1.example.net.\"",
            Aftr::Name("aftr-1.example.net.".to_owned()),
        ),
    ] {
        assert_eq!(ds_lite(text).unwrap().ds_lite, Some(aftr), "{text}");
    }
    for bad in [
        "",
        "192.0.2.1",
        "fe80::1",
        "::",
        "::1",
        "ff02::1",
        "::ffff:192.0.2.1",
        "a b",
        "a..b",
        "http://aftr",
        "2001:db8::1/64",
    ] {
        let error = ds_lite(&format!("aftr = \"{bad}\"")).unwrap_err();
        assert!(error.to_string().contains("ds_lite.aftr"), "{error}");
    }
}

#[test]
fn segment_sizes_are_clamped_as_written() {
    let clamp = |text: &str| parse(&format!("{MINIMAL}[nat]\nmss_clamp = {text}\n"));
    let auto = parse(MINIMAL).unwrap().mss_clamp;
    assert_eq!((auto.size(Some(1492)), auto.size(None)), (1452, 0));
    // A loopback's MTU needs no clamp.
    assert_eq!((auto.size(Some(65_536)), auto.size(Some(20))), (65_496, 0));
    assert_eq!(clamp("\"off\"").unwrap().mss_clamp.size(Some(1492)), 0);
    assert_eq!(clamp("1400").unwrap().mss_clamp.size(Some(1500)), 1400);
    for bad in ["535", "65536", "-1", "\"on\"", "true"] {
        let error = clamp(bad).unwrap_err();
        assert!(error.to_string().contains("nat.mss_clamp"), "{error}");
    }
}

#[test]
fn metrics_are_served_at_one_address_or_nowhere() {
    let without = parse(MINIMAL).unwrap();
    assert_eq!(without.metrics, None);
    for (written, at) in [
        ("127.0.0.1:9786", ([127, 0, 0, 1], 9786).into()),
        ("[::1]:9786", (Ipv6Addr::LOCALHOST, 9786).into()),
    ] as [(&str, SocketAddr); 2]
    {
        let config = parse(&format!("[metrics]\nlisten = \"{written}\"\n{MINIMAL}")).unwrap();
        assert_eq!(config.metrics, Some(at));
        assert!(without.restart_keys(&config).is_empty());
    }
    for (wrong, why) in [
        ("0.0.0.0:9786", "every address"),
        ("[::]:9786", "every address"),
        ("[::ffff:0.0.0.0]:9786", "every address"),
        ("224.0.0.1:9786", "no address of a machine"),
        ("255.255.255.255:9786", "no address of a machine"),
        ("127.0.0.1:0", "a port"),
        ("127.0.0.1", "no address and port"),
        ("localhost:9786", "no address and port"),
        (":9786", "no address and port"),
    ] {
        let error = parse(&format!("[metrics]\nlisten = \"{wrong}\"\n{MINIMAL}")).unwrap_err();
        assert_eq!(error.line, Some(2), "{wrong}");
        assert!(error.problem.contains(why), "{wrong}: {error}");
        assert!(error.advice.contains("127.0.0.1:9786"), "{error}");
    }
}

#[test]
fn missing_file_is_an_error_with_a_remedy() {
    let error = Config::load(Path::new("/nonexistent/iwf.toml")).unwrap_err();
    assert_eq!(error.line, None);
    assert!(error.advice.contains("--config"));
}

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

#[test]
fn rules_are_read_in_their_order() {
    let text = format!(
        "{MINIMAL}[policy]\ndefault = \"deny\"\n\
         [[policy.rule]]\nname = \"console\"\naction = \"allow\"\nmac = [\"02:00:5E:10:00:0a\"]\nprotocol = \"udp\"\n\
         external_ports = [3074, \"5000-5010\"]\nmax_mappings = 8\nhost = [\"PS5\"]\n\
         [[policy.rule]]\naction = \"deny\"\naddress = [\"192.168.7.0/24\", \"192.168.1.9\", \"2a00:1::/32\"]\n\
         for = \"pinholes\"\ninternal_ports = [22]\n"
    );
    let config = parse(&text).unwrap();
    let rules = &config.policy.rules;
    assert_eq!((rules.default, rules.list.len()), (Verdict::Deny, 2));
    let [first, second] = rules.list.as_slice() else {
        panic!("two rules");
    };
    let shown =
        |ports: &Ports| -> Vec<String> { ports.ranges().iter().map(ToString::to_string).collect() };
    assert_eq!(first.name.as_deref(), Some("console"));
    assert_eq!(
        (first.verdict, first.kind, first.protocol),
        (Verdict::Allow, None, Some(17))
    );
    assert_eq!(first.devices.macs, [[2, 0, 0x5e, 0x10, 0, 0x0a]]);
    assert_eq!(first.devices.names, ["ps5"]);
    assert_eq!(shown(&first.external), ["3074", "5000-5010"]);
    assert_eq!((first.max_mappings, first.max_pinholes), (Some(8), None));
    assert_eq!(
        (second.verdict, second.kind),
        (Verdict::Deny, Some(Kind::Pinhole))
    );
    let addresses: Vec<_> = second
        .devices
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(addresses, ["192.168.7.0/24", "192.168.1.9", "2a00:1::/32"]);
    assert_eq!(shown(&second.internal), ["22"]);
    assert!(config.warnings().is_empty());
    let old = parse(MINIMAL).unwrap();
    assert!(old.restart_keys(&config).is_empty(), "rules are read again");
}

#[test]
fn rules_that_cannot_be_meant_are_refused_with_their_line() {
    let rule = |lines: &str| format!("{MINIMAL}[[policy.rule]]\n{lines}");
    for (lines, line, problem, remedy) in [
        (
            "mac = [\"02:00:5e:10:00:0a\"]\n",
            5,
            "missing field `action`",
            "packaging/iwf.toml",
        ),
        (
            "action = \"refuse\"\n",
            6,
            "action: \"refuse\" is unknown",
            "\"deny\"",
        ),
        (
            "action = \"deny\"\nport = 80\n",
            7,
            "unknown field `port`",
            "correct its name",
        ),
        (
            "action = \"deny\"\nexternal_ports = [\"90-80\"]\n",
            7,
            "\"90-80\" is no port",
            "lower one first",
        ),
        (
            "action = \"deny\"\nexternal_ports = [0]\n",
            7,
            "0 is no port",
            "from 1 to",
        ),
        (
            "action = \"deny\"\ninternal_ports = [65536]\n",
            7,
            "65536 is no port",
            "65535",
        ),
        (
            "action = \"deny\"\ninternal_ports = [true]\n",
            7,
            "true is no port",
            "a range",
        ),
        (
            "action = \"deny\"\nmac = [\"02:00\"]\n",
            7,
            "\"02:00\" is none",
            "02:00:5e",
        ),
        (
            "action = \"deny\"\nmac = [\"ff:ff:ff:ff:ff:ff\"]\n",
            7,
            "is none",
            "of a device",
        ),
        (
            "action = \"deny\"\naddress = [\"192.168.1.7/24\"]\n",
            7,
            "is none",
            "further bits",
        ),
        (
            "action = \"deny\"\naddress = [\"here\"]\n",
            7,
            "\"here\" is none",
            "192.168.1.0/24",
        ),
        (
            "action = \"deny\"\nprotocol = \"sctp\"\n",
            7,
            "protocol: \"sctp\"",
            "\"udp\"",
        ),
        (
            "action = \"deny\"\nfor = \"ports\"\n",
            7,
            "for: \"ports\"",
            "\"pinholes\"",
        ),
        (
            "action = \"deny\"\nmax_mappings = 3\n",
            7,
            "the rule denies",
            "leave the key out",
        ),
        (
            "action = \"allow\"\nfor = \"mappings\"\nmax_pinholes = 3\n",
            8,
            "not for those",
            "leave the key out",
        ),
        (
            "action = \"allow\"\nmax_mappings = 129\n",
            7,
            "129 is out of range",
            "0 to 128",
        ),
        (
            "action = \"allow\"\nname = \"\"\n",
            7,
            "name is empty",
            "at most 64",
        ),
    ] {
        let error = parse(&rule(lines)).unwrap_err();
        assert_eq!(error.line, Some(line), "{error}");
        assert!(error.problem.contains(problem), "{error}");
        assert!(error.advice.contains(remedy), "{error}");
    }
    let many = "[[policy.rule]]\naction = \"deny\"\n".repeat(65);
    let error = parse(&format!("{MINIMAL}{many}")).unwrap_err();
    assert!(error.problem.contains("more than 64 rules"), "{error}");
    let ports: Vec<_> = (1..=17).map(|port| port.to_string()).collect();
    let lines = format!(
        "action = \"deny\"\nexternal_ports = [{}]\n",
        ports.join(", ")
    );
    let error = parse(&rule(&lines)).unwrap_err();
    assert!(error.problem.contains("more than 16 entries"), "{error}");
}

#[test]
fn a_rule_that_never_decides_is_a_warning() {
    let text = format!(
        "{MINIMAL}[[policy.rule]]\naction = \"deny\"\nprotocol = \"tcp\"\n\
         [[policy.rule]]\naction = \"allow\"\nprotocol = \"tcp\"\nexternal_ports = [80]\n"
    );
    let warnings = parse(&text).unwrap().warnings();
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("policy rule 2 never decides: rule 1 comes first"),
        "{warnings:?}"
    );
}

#[test]
fn devices_that_are_away_have_their_time() {
    let with = |lines: &str| parse(&format!("{MINIMAL}[policy]\n{lines}"));
    let policy = parse(MINIMAL).unwrap().policy;
    assert_eq!(policy.departed_after, Some(Duration::from_secs(3600)));
    assert_eq!(policy.lease_files.len(), 3);
    let policy = with("departed_after_seconds = 0\nlease_files = []\n")
        .unwrap()
        .policy;
    assert_eq!((policy.departed_after, policy.lease_files.len()), (None, 0));
    let error = with("departed_after_seconds = 604801\n").unwrap_err();
    assert!(error.problem.contains("604801 is out of range"), "{error}");
    let error = with("lease_files = [\"leases\"]\n").unwrap_err();
    assert!(error.problem.contains("not an absolute path"), "{error}");
    let many = ["\"/l\""; 9].join(", ");
    let error = with(&format!("lease_files = [{many}]\n")).unwrap_err();
    assert!(error.problem.contains("more than 8"), "{error}");
}

#[test]
fn servers_have_addresses_of_the_family_that_the_mode_asks_over() {
    let with = |mode: &str, server: &str| {
        let text = format!(
            "mode = \"{mode}\"\n{MINIMAL}[upstream]\npcp_servers = [\"{server}\"]\nthird_party = true\n"
        );
        parse(&text)
    };
    let v6 = "2001:db8::1";
    for (mode, server, good) in [
        ("no-nat", v6, true),
        ("no-nat", "[2001:db8::1]:15351", true),
        ("no-nat", "100.64.0.1", true),
        ("no-nat", "fe80::1", true),
        ("no-nat", "fe80::1%wan0", true),
        ("no-nat", "[fe80::1%wan0]:15351", true),
        ("no-nat", "fe80::1%lan0", false),
        ("no-nat", "2001:db8::1%wan0", false),
        ("no-nat", "ff02::1", false),
        ("no-nat", "::1", false),
        ("no-nat", "::ffff:192.0.2.1", false),
        ("no-nat", "[2001:db8::1]:0", false),
        ("ds-lite", v6, true),
        ("ds-lite", "100.64.0.1", false),
        ("auto", v6, true),
        ("cascaded", v6, false),
        ("local", v6, false),
    ] {
        assert_eq!(with(mode, server).is_ok(), good, "{mode} {server}");
    }
    let config = with("no-nat", "[fe80::1%wan0]:15351").unwrap();
    let expected = "[fe80::1]:15351".parse().unwrap();
    assert_eq!(config.pcp_servers, [PcpServer::Addresses(vec![expected])]);
    assert!(config.trusts_upstream);
    // All of it is read again without a restart.
    let default = parse(MINIMAL).unwrap();
    assert!(default.restart_keys(&config).is_empty());
}
