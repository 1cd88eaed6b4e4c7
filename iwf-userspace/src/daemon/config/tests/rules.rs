//! The policy: rules, and devices that are away.

use super::*;

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
            "action = \"allow\"\nmac = []\n",
            7,
            "mac: the list is empty",
            "leave the key out",
        ),
        (
            "action = \"deny\"\naddress = []\n",
            7,
            "address: the list is empty",
            "remove the rule",
        ),
        (
            "action = \"allow\"\nhost = []\n",
            7,
            "host: the list is empty",
            "name at least one",
        ),
        (
            "action = \"allow\"\nexternal_ports = []\n",
            7,
            "external_ports: the list is empty",
            "name at least one",
        ),
        (
            "action = \"deny\"\ninternal_ports = []\n",
            7,
            "internal_ports: the list is empty",
            "name at least one",
        ),
        (
            "action = \"deny\"\nhost = [\"xbox*\"]\n",
            7,
            "\"xbox*\" is none",
            "no patterns",
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
    for (lines, about) in [
        (
            "for = \"pinholes\"\naddress = [\"192.168.1.7\"]\n",
            "an IPv4 address",
        ),
        (
            "host = [\"console\"]\n[policy]\nlease_files = []\n",
            "no device has a name",
        ),
    ] {
        let text = format!("{MINIMAL}[[policy.rule]]\naction = \"deny\"\n{lines}");
        let warnings = parse(&text).unwrap().warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("policy rule 1 never decides"));
        assert!(warnings[0].contains(about), "{warnings:?}");
    }
}

#[test]
fn devices_that_are_away_have_their_time() {
    let with = |lines: &str| parse(&format!("{MINIMAL}[policy]\n{lines}"));
    let policy = parse(MINIMAL).unwrap().policy;
    assert_eq!(policy.departed_after, Some(Duration::from_secs(3600)));
    let files: Vec<_> = policy
        .lease_files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    assert_eq!(
        files,
        [
            "/var/lib/misc/dnsmasq.leases",
            "/tmp/dhcp.leases",
            "/tmp/hosts/odhcpd",
            "/tmp/odhcpd.leases",
        ]
    );
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
