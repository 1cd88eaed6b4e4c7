use super::*;
use crate::types::caller::Mac;
use crate::types::prefix::Prefix;

const PC: Mac = [2, 0, 0, 0, 0, 1];

pub(crate) fn rule(verdict: Verdict) -> Rule {
    Rule {
        name: None,
        verdict,
        kind: None,
        devices: Devices::default(),
        protocol: None,
        external: Ports::EVERY,
        internal: Ports::EVERY,
        max_mappings: None,
        max_pinholes: None,
    }
}

pub(crate) fn range(first: u16, last: u16) -> Ports {
    Ports::of(vec![PortRange::new(first, last).expect("a range")])
}

pub(crate) fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

fn asked(addr: &str, external: u16) -> Asked {
    Asked {
        kind: Kind::Mapping,
        device: Device {
            addr: addr.parse().expect("an address"),
            mac: None,
            name: None,
        },
        protocol: Some(6),
        external: Some(external),
        internal: Some(external),
    }
}

fn rules(list: Vec<Rule>, default: Verdict) -> Rules {
    Rules { list, default }
}

fn decided(rules: &Rules, asked: &Asked) -> (Verdict, Decider) {
    let ruling = rules.judge(asked);
    (ruling.verdict, ruling.by)
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = rules(
        vec![
            Rule {
                external: range(8080, 8090),
                ..rule(Verdict::Deny)
            },
            Rule {
                devices: Devices {
                    addresses: vec![prefix("192.168.1.0/25")],
                    ..Devices::default()
                },
                max_mappings: Some(3),
                ..rule(Verdict::Allow)
            },
        ],
        Verdict::Deny,
    );
    let by = |addr, port| decided(&rules, &asked(addr, port));
    assert_eq!(by("192.168.1.20", 8085), (Verdict::Deny, Decider::Rule(1)));
    assert_eq!(by("192.168.1.20", 8091), (Verdict::Allow, Decider::Rule(2)));
    assert_eq!(by("192.168.1.200", 8091), (Verdict::Deny, Decider::Default));
    assert_eq!(rules.judge(&asked("192.168.1.20", 9000)).most, Some(3));
    let udp = Asked {
        protocol: Some(17),
        ..asked("192.168.1.20", 8085)
    };
    assert_eq!(decided(&rules, &udp), (Verdict::Deny, Decider::Rule(1)));
}

#[test]
fn every_criterion_of_a_rule_must_hold() {
    let narrow = Rule {
        kind: Some(Kind::Mapping),
        devices: Devices {
            macs: vec![PC],
            addresses: vec![prefix("192.168.1.20/32")],
            names: vec!["pc".to_owned()],
        },
        protocol: Some(17),
        external: range(1000, 2000),
        internal: range(3000, 4000),
        ..rule(Verdict::Allow)
    };
    let rules = rules(vec![narrow], Verdict::Deny);
    let good = Asked {
        kind: Kind::Mapping,
        device: Device {
            addr: "192.168.1.20".parse().expect("an address"),
            mac: Some(PC),
            name: Some("pc".to_owned()),
        },
        protocol: Some(17),
        external: Some(2000),
        internal: Some(3000),
    };
    assert_eq!(decided(&rules, &good), (Verdict::Allow, Decider::Rule(1)));
    let device = |mac, name: Option<&str>, addr: &str| Asked {
        device: Device {
            addr: addr.parse().expect("an address"),
            mac,
            name: name.map(str::to_owned),
        },
        ..good.clone()
    };
    let pc = Some("pc");
    for other in [
        Asked {
            kind: Kind::Pinhole,
            ..good.clone()
        },
        Asked {
            protocol: Some(6),
            ..good.clone()
        },
        Asked {
            protocol: None,
            ..good.clone()
        },
        Asked {
            external: Some(2001),
            ..good.clone()
        },
        Asked {
            external: None,
            ..good.clone()
        },
        Asked {
            internal: Some(2999),
            ..good.clone()
        },
        device(Some([2, 0, 0, 0, 0, 2]), pc, "192.168.1.20"),
        device(None, pc, "192.168.1.20"),
        device(Some(PC), Some("tv"), "192.168.1.20"),
        device(Some(PC), None, "192.168.1.20"),
        device(Some(PC), pc, "192.168.1.21"),
        device(Some(PC), pc, "2a00::1"),
    ] {
        assert_eq!(
            decided(&rules, &other),
            (Verdict::Deny, Decider::Default),
            "{other:?}"
        );
    }
}

#[test]
fn what_is_for_every_port_is_denied_by_a_part_and_allowed_only_as_a_whole() {
    let ssh = |verdict| Rule {
        protocol: Some(6),
        internal: range(22, 22),
        ..rule(verdict)
    };
    let every = Asked {
        kind: Kind::Pinhole,
        protocol: None,
        external: None,
        internal: None,
        ..asked("2a00::1", 1)
    };
    let deny = rules(vec![ssh(Verdict::Deny)], Verdict::Allow);
    assert_eq!(decided(&deny, &every), (Verdict::Deny, Decider::Rule(1)));
    let udp = Asked {
        protocol: Some(17),
        ..every.clone()
    };
    assert_eq!(decided(&deny, &udp), (Verdict::Allow, Decider::Default));
    let allow = rules(vec![ssh(Verdict::Allow)], Verdict::Deny);
    assert_eq!(decided(&allow, &every), (Verdict::Deny, Decider::Default));
}

#[test]
fn nothing_is_taken_away_for_lack_of_knowledge() {
    let pc_only = Rule {
        devices: Devices {
            macs: vec![PC],
            ..Devices::default()
        },
        ..rule(Verdict::Allow)
    };
    let allow_list = rules(vec![pc_only.clone()], Verdict::Deny);
    let unknown = asked("192.168.1.20", 8080);
    let other = Asked {
        device: Device {
            mac: Some([2, 0, 0, 0, 0, 9]),
            ..unknown.device.clone()
        },
        ..unknown.clone()
    };
    assert_eq!(allow_list.surely_denied(&unknown), None);
    assert_eq!(allow_list.surely_denied(&other), Some(Decider::Default));
    let deny = Rule {
        verdict: Verdict::Deny,
        ..pc_only
    };
    let deny_list = rules(vec![deny.clone()], Verdict::Allow);
    assert_eq!(deny_list.surely_denied(&unknown), None);
    let then_all = rules(vec![deny, rule(Verdict::Deny)], Verdict::Allow);
    assert_eq!(then_all.surely_denied(&unknown), Some(Decider::Rule(2)));
}

#[test]
fn the_ports_that_may_be_had() {
    let some = rules(
        vec![
            Rule {
                external: range(5000, 5009),
                ..rule(Verdict::Deny)
            },
            Rule {
                external: range(4990, 5019),
                ..rule(Verdict::Allow)
            },
        ],
        Verdict::Deny,
    );
    let asked = asked("192.168.1.20", 5000);
    let ranges = |rules: &Rules, lowest| {
        let ports = rules.external_ports(&asked, lowest)?;
        Ok(ports
            .iter()
            .map(|r| (r.first(), r.last()))
            .collect::<Vec<_>>())
    };
    assert_eq!(ranges(&some, 1024), Ok(vec![(4990, 4999), (5010, 5019)]));
    assert_eq!(ranges(&some, 5015), Ok(vec![(5015, 5019)]));
    assert_eq!(ranges(&some, 5020), Err(Decider::Default));
    assert_eq!(ranges(&Rules::default(), 1024), Ok(vec![(1024, 65_535)]));
    assert_eq!(ranges(&Rules::default(), 1), Ok(vec![(1, 65_535)]));
    let none = rules(vec![rule(Verdict::Deny)], Verdict::Allow);
    assert_eq!(ranges(&none, 1024), Err(Decider::Rule(1)));
}

#[test]
fn a_port_is_denied_for_good_only_if_no_internal_one_helps() {
    let only_to = Rule {
        internal: range(8080, 8080),
        ..rule(Verdict::Allow)
    };
    let asked = Asked {
        internal: None,
        ..asked("192.168.1.20", 9000)
    };
    let some = rules(vec![only_to.clone()], Verdict::Deny);
    assert_eq!(some.denies_every_internal(&asked), None);
    let none = rules(vec![rule(Verdict::Deny), only_to], Verdict::Allow);
    assert_eq!(none.denies_every_internal(&asked), Some(Decider::Rule(1)));
    assert_eq!(Rules::default().denies_every_internal(&asked), None);
}

#[test]
fn a_rule_behind_a_wider_one_is_found() {
    let of = |verdict, addresses: &[&str], external| Rule {
        devices: Devices {
            addresses: addresses.iter().map(|text| prefix(text)).collect(),
            ..Devices::default()
        },
        external,
        ..rule(verdict)
    };
    let list = vec![
        of(Verdict::Allow, &["192.168.1.0/24"], range(1000, 2000)),
        of(Verdict::Deny, &["192.168.1.7/32"], range(1500, 1600)),
        of(Verdict::Deny, &["192.168.1.7/32"], range(1500, 2001)),
        of(Verdict::Deny, &[], range(1500, 1600)),
        of(
            Verdict::Deny,
            &["192.168.1.7/32", "10.0.0.0/8"],
            range(1500, 1600),
        ),
        of(Verdict::Deny, &["192.168.0.0/16"], Ports::EVERY),
        of(Verdict::Allow, &["192.168.9.0/24"], range(1, 2)),
    ];
    assert_eq!(
        rules(list, Verdict::Allow).shadowed(),
        [(2, 1), (5, 4), (7, 6)]
    );
    let udp = Rule {
        protocol: Some(17),
        ..rule(Verdict::Allow)
    };
    let all = rules(vec![udp.clone(), rule(Verdict::Deny), udp], Verdict::Allow);
    assert_eq!(all.shadowed(), [(3, 1)]);
}

/// A pinhole for every port is denied by a rule about some, behind one that allows these: who removes it as one that never
/// decides would open them.
#[test]
fn a_denial_behind_a_wider_permission_still_decides_about_all_ports() {
    let allow = Rule {
        external: range(5000, 5010),
        ..rule(Verdict::Allow)
    };
    let deny = Rule {
        external: range(5005, 5005),
        ..rule(Verdict::Deny)
    };
    let all = rules(vec![allow.clone(), deny.clone()], Verdict::Allow);
    let pinhole = Asked {
        kind: Kind::Pinhole,
        external: None,
        internal: None,
        ..asked("2a00::1", 1)
    };
    assert_eq!(decided(&all, &pinhole), (Verdict::Deny, Decider::Rule(2)));
    assert_eq!(all.shadowed(), []);
    let for_mappings = Rule {
        kind: Some(Kind::Mapping),
        ..deny.clone()
    };
    let of = |deny| rules(vec![allow.clone(), deny], Verdict::Allow).shadowed();
    assert_eq!(of(for_mappings), [(2, 1)], "these have one port each");
    let of_ipv4 = Rule {
        devices: Devices {
            addresses: vec![prefix("192.168.1.0/24")],
            ..Devices::default()
        },
        ..deny.clone()
    };
    assert_eq!(of(of_ipv4), [(2, 1)], "these are mappings");
    let every = rules(vec![rule(Verdict::Allow), deny], Verdict::Allow);
    assert_eq!(every.shadowed(), [(2, 1)]);
}

#[test]
fn a_rule_about_nothing_is_found() {
    let at = |kind, addresses: &[&str]| Rule {
        kind,
        devices: Devices {
            addresses: addresses.iter().map(|text| prefix(text)).collect(),
            ..Devices::default()
        },
        ..rule(Verdict::Allow)
    };
    let ports = |kind, external, internal| Rule {
        kind,
        external,
        internal,
        ..rule(Verdict::Allow)
    };
    let (mappings, pinholes) = (Some(Kind::Mapping), Some(Kind::Pinhole));
    let list = vec![
        at(pinholes, &["192.168.1.0/24"]),
        at(pinholes, &["192.168.1.0/24", "2a00::/64"]),
        at(mappings, &["2a00::/64"]),
        at(None, &["2a00::/64"]),
        ports(pinholes, range(1, 5), range(6, 9)),
        ports(pinholes, range(1, 5), range(5, 9)),
        ports(None, range(1, 5), range(6, 9)),
        at(mappings, &[]),
    ];
    assert_eq!(rules(list, Verdict::Deny).about_nothing(), [1, 3, 5]);
}
