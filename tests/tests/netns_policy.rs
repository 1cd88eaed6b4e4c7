//! The owner's rules, with real hosts: who is known by which MAC address, what is refused and how it is explained, and what
//! becomes of what is open when the rules change.
#![expect(
    clippy::disallowed_types,
    reason = "plays the hosts on both sides, in real time"
)]

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::{Answer, Gateway, Version};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{LAN1, LAN1_6, LAN2, LAN2_6, Lab, REMOTE_6, WAN};
use iwf_tests::wait;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
const LATER: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(2);

/// The rules before it is known which MAC address lan1 has.
const RULES: &str = "[policy]\ndefault = \"deny\"\n\
    [[policy.rule]]\nname = \"no remote desktop\"\naction = \"deny\"\ninternal_ports = [3389]\n\
    [[policy.rule]]\nname = \"console\"\naction = \"allow\"\nmac = [\"02:00:00:00:00:01\"]\nmax_mappings = 2\n";

fn mac(host: &Namespace) -> Result<String> {
    let octets = host.mac("eth0")?.map(|octet| format!("{octet:02x}"));
    Ok(octets.join(":"))
}

fn start(lab: &Lab) -> Result<Iwfd> {
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        more: RULES,
        ..Options::default()
    };
    let mut iwfd = Iwfd::start(lab, &options)?;
    iwfd.reload_with("02:00:00:00:00:01", &mac(&lab.lan1)?)?;
    Ok(iwfd)
}

/// Events of that kind so far.
fn events(iwfd: &Iwfd, kind: &str) -> Result<Vec<Value>> {
    let text = iwfd.ctl().must(&["events", "--json", "--kind", kind])?;
    let rows = text.lines().map(serde_json::from_str);
    Ok(rows.collect::<Result<_, _>>()?)
}

fn tested(iwfd: &Iwfd, words: &str) -> Result<Value> {
    let all: Vec<_> = ["policy", "test"]
        .into_iter()
        .chain(words.split(' '))
        .collect();
    iwfd.ctl().json(&all)
}

#[test]
fn devices_get_what_the_rules_give_them_and_refusals_name_the_rule() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut iwfd = start(&lab)?;
    let console = Gateway::discover_version(&lab.lan1, Version::Two)?;
    let other = console.seen_from(&lab.lan2);

    assert_eq!(other.add("TCP", 8080, LAN2, 8080, 600)?.error(), Some(606));
    assert_eq!(
        console.add("TCP", 13389, LAN1, 3389, 600)?.error(),
        Some(606)
    );
    console.add("TCP", 8080, LAN1, 8080, 600)?.ok()?;
    console.add("UDP", 8081, LAN1, 8081, 600)?.ok()?;
    assert_eq!(
        console.add("TCP", 8082, LAN1, 8082, 600)?.error(),
        Some(728)
    );
    let version_1 = Gateway::discover_version(&lab.lan2, Version::One)?;
    assert_eq!(
        version_1.add("TCP", 8080, LAN2, 8080, 600)?.error(),
        Some(718)
    );

    let refused = events(&iwfd, "mapping-refused")?;
    let said: Vec<_> = refused
        .iter()
        .map(|row| row["decided_by"].as_str())
        .collect();
    let by = ["policy.default", "rule 1", "rule 2", "policy.default"].map(Some);
    ensure!(said == by, "{refused:?}");
    let detail = refused[1]["detail"].as_str().unwrap_or_default();
    ensure!(
        detail.ends_with("606 Action not authorized: policy rule 1 (no remote desktop)"),
        "{detail}"
    );
    iwfd.process()
        .wait_for_log("policy rule 1 (no remote desktop)", SOON)?;

    let answer = tested(&iwfd, &format!("--client {LAN2} --port 8080"))?;
    ensure!(
        answer["refused_by"] == "policy.default" && answer["error"] == 606,
        "{answer}"
    );
    let known = format!("--client {LAN2} --port 8080 --mac {}", mac(&lab.lan1)?);
    let answer = tested(&iwfd, &known)?;
    ensure!(answer["decided_by"] == "rule 2", "{answer}");
    let answer = tested(
        &iwfd,
        &format!("--client {LAN1} --port 8082 --protocol udp"),
    )?;
    ensure!(
        answer["mac"] == mac(&lab.lan1)? && answer["refused_by"] == "rule 2",
        "{answer}"
    );
    ensure!(
        (&answer["held"], &answer["error"]) == (&2.into(), &728.into()),
        "{answer}"
    );
    let text = iwfd.ctl().must(&["policy", "show"])?;
    ensure!(
        text.contains("no remote desktop") && text.contains("deny what no rule"),
        "{text}"
    );

    // What is denied by a reload is closed, and says why.
    let echo = Echo::listen(&lab.lan1, 8080)?;
    let outside = SocketAddrV4::new(WAN, 8080);
    peers::tcp_echo(&lab.cgn, outside, "open", SOON)?;
    iwfd.reload_with(
        "action = \"allow\"",
        "action = \"allow\"\nprotocol = \"udp\"",
    )?;
    wait::until_ok("the mapping to be closed", LATER, || {
        let rows = iwfd.ctl().json(&["mappings"])?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        ensure!(rows.len() == 1 && rows[0]["protocol"] == "Udp", "{rows:?}");
        Ok(())
    })?;
    peers::tcp_is_closed(&lab.cgn, outside, SILENCE)?;
    ensure!(echo.accepted() == 1);
    let withdrawn = events(&iwfd, "mapping-withdrawn")?;
    let detail = withdrawn.first().and_then(|row| row["detail"].as_str());
    ensure!(detail == Some("policy.default denies it"), "{withdrawn:?}");
    assert_eq!(events(&iwfd, "mapping-removed")?.len(), 1);
    ensure!(iwfd.ctl().run(&["audit"])?.success(), "the tables differ");
    Ok(())
}

/// The same for pinholes, before it is known which MAC address lan1 has.
const PINHOLE_RULES: &str = "[policy]\ndefault = \"deny\"\n\
    [[policy.rule]]\nname = \"no remote desktop\"\naction = \"deny\"\nfor = \"pinholes\"\ninternal_ports = [3389]\n\
    [[policy.rule]]\nname = \"not there\"\naction = \"deny\"\naddress = [\"2a0b:1:2:3::66\"]\n\
    [[policy.rule]]\nname = \"console\"\naction = \"allow\"\nfor = \"pinholes\"\nmac = [\"02:00:00:00:00:01\"]\nprotocol = \"tcp\"\n\
    max_pinholes = 2\n\
    [[policy.rule]]\naction = \"allow\"\naddress = [\"192.168.1.0/24\"]\n";
const FIREWALL: &str = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1";
const TCP: u8 = 6;
const UDP: u8 = 17;

/// AddPinhole for everybody.
fn open(gateway: &Gateway, client: Ipv6Addr, port: u16, protocol: u8) -> Result<Answer> {
    gateway.call_at(
        "/igd2/ctl/WANIPv6Firewall",
        FIREWALL,
        "AddPinhole",
        &[
            ("RemoteHost", ""),
            ("RemotePort", "0"),
            ("InternalClient", &client.to_string()),
            ("InternalPort", &port.to_string()),
            ("Protocol", &protocol.to_string()),
            ("LeaseTime", "600"),
        ],
    )
}

fn id(answer: Answer) -> Result<u16> {
    let answer = answer.ok()?;
    let id = answer.element("UniqueID").context("an id")?;
    Ok(id.parse()?)
}

fn gets_in(lab: &Lab, to: SocketAddr) -> Result<bool> {
    let connected = lab
        .inet
        .within(|| TcpStream::connect_timeout(&to, SILENCE))?;
    Ok(connected.is_ok())
}

#[test]
fn pinholes_are_what_the_rules_give_each_device() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let second: Ipv6Addr = "2a0b:1:2:3::66".parse()?;
    lab.lan1
        .ip(&format!("address add {second}/64 dev eth0 nodad"))?;
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        more: PINHOLE_RULES,
        ..Options::default()
    };
    let mut iwfd = Iwfd::start(&lab, &options)?;
    iwfd.reload_with("02:00:00:00:00:01", &mac(&lab.lan1)?)?;
    for host in [&lab.lan1, &lab.lan2] {
        wait::until_ok("the way out", SOON, || {
            let to = REMOTE_6.to_string();
            host.must(&["ping", "-6", "-n", "-c", "1", "-W", "1", &to])
                .map(drop)
        })?;
    }
    let console = Gateway::discover_version(&lab.lan1, Version::Two)?;
    let other = console.seen_from(&lab.lan2);

    let first = id(open(&console, LAN1_6, 8080, TCP)?)?;
    for (gateway, client, port, protocol, code) in [
        // By port, by address, by protocol, by device; each before the quota is asked about.
        (&console, LAN1_6, 3389, TCP, 606),
        (&console, second, 8081, TCP, 606),
        (&console, LAN1_6, 8081, UDP, 606),
        (&other, LAN2_6, 8081, TCP, 606),
    ] {
        let answer = open(gateway, client, port, protocol)?;
        assert_eq!(answer.error(), Some(code), "[{client}]:{port} {protocol}");
    }
    id(open(&console, LAN1_6, 8081, TCP)?)?;
    assert_eq!(open(&console, LAN1_6, 8082, TCP)?.error(), Some(701));
    assert_eq!(id(open(&console, LAN1_6, 8080, TCP)?)?, first, "extended");
    // A rule about IPv4 addresses is about mappings.
    other.add("TCP", 8081, LAN2, 8081, 600)?.ok()?;

    let refused = events(&iwfd, "pinhole-refused")?;
    let said: Vec<_> = refused
        .iter()
        .map(|row| row["decided_by"].as_str())
        .collect();
    let by = [
        "rule 1",
        "rule 2",
        "policy.default",
        "policy.default",
        "rule 3",
    ]
    .map(Some);
    ensure!(said == by, "{refused:?}");
    for (row, ends) in refused.iter().zip([
        "606 Action not authorized: policy rule 1 (no remote desktop)",
        "606 Action not authorized: policy rule 2 (not there)",
        "606 Action not authorized: policy.default",
        "606 Action not authorized: policy.default",
        "701 PinholeSpaceExhausted: the quota of policy rule 3 (console)",
    ]) {
        let detail = row["detail"].as_str().unwrap_or_default();
        ensure!(detail.ends_with(ends), "{detail:?}, not {ends:?}");
    }
    iwfd.process()
        .wait_for_log("policy rule 2 (not there)", SOON)?;

    wait::until_ok("the daemon to look who is there", SOON, || {
        let answer = tested(&iwfd, &format!("--client {LAN1_6} --port 8080"))?;
        ensure!(answer["mac"] == mac(&lab.lan1)?, "{answer}");
        Ok(())
    })?;
    for (words, refused_by, error) in [
        (format!("--client {LAN1_6} --port 3389"), "rule 1", 606),
        (format!("--client {second} --port 8081"), "rule 2", 606),
        (
            format!("--client {LAN1_6} --port 8081 --protocol udp"),
            "policy.default",
            606,
        ),
        (format!("--client {LAN1_6} --port 8082"), "rule 3", 701),
        (
            format!("--client {LAN2_6} --port 8081"),
            "policy.default",
            606,
        ),
    ] {
        let answer = tested(&iwfd, &words)?;
        ensure!(
            answer["refused_by"] == refused_by && answer["error"] == error,
            "{words}: {answer}"
        );
    }
    let known = format!("--client {LAN2_6} --port 8081 --mac {}", mac(&lab.lan1)?);
    let answer = tested(&iwfd, &known)?;
    ensure!(answer["decided_by"] == "rule 3", "{answer}");

    // What is refused is closed, what is not is open, and a reload closes it.
    let listen = |port: u16| lab.lan1.within(|| TcpListener::bind((LAN1_6, port)));
    let (allowed, denied) = (listen(8080)??, listen(3389)??);
    ensure!(gets_in(&lab, allowed.local_addr()?)?, "it is open");
    ensure!(!gets_in(&lab, denied.local_addr()?)?, "it was refused");
    iwfd.reload_with("internal_ports = [3389]", "internal_ports = [3389, 8080]")?;
    wait::until_ok("the pinhole to be closed", LATER, || {
        let rows = iwfd.ctl().json(&["pinholes"])?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        ensure!(
            rows.len() == 1 && rows[0]["internal_port"] == 8081,
            "{rows:?}"
        );
        Ok(())
    })?;
    ensure!(!gets_in(&lab, allowed.local_addr()?)?, "it is closed");
    let closed = events(&iwfd, "pinhole-closed")?;
    let detail = closed.first().and_then(|row| row["detail"].as_str());
    ensure!(
        detail.is_some_and(|detail| detail.contains("policy rule 1")),
        "{closed:?}"
    );
    ensure!(iwfd.ctl().run(&["audit"])?.success(), "the tables differ");
    Ok(())
}
