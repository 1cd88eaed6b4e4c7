mod lists;
mod rules;

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
