//! The owner's rules, with real hosts: who is known by which MAC address, what is refused and how it is explained, and what
//! becomes of what is open when the rules change.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::{Gateway, Version};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{LAN1, LAN2, Lab, WAN};
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
