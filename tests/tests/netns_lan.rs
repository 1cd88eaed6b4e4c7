//! A LAN of several interfaces and addresses: hosts meet the gateway at the address of their own link, and hear of each
//! change of the addresses in the order that UPnP Device Architecture 1.1 clause 1.2 wants.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::{Gateway, Version};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::ssdp::{self, Ear, Message};
use iwf_tests::topology::{GATEWAY, LAN_BRIDGE, LAN1, LAN2, Lab};
use iwf_tests::wait;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
const SECOND_IF: &str = "lan3p";
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 168, 3, 1);
const LAN3: Ipv4Addr = Ipv4Addr::new(192, 168, 3, 10);
/// An address that comes and goes on the bridge, and the host's in its prefix.
const LATER: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
const LAN1_LATER: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 10);
/// Three for the root, two for each of two devices in it, one for each of four services.
const SET: usize = 11;

/// What a search by the device's type tells a host, with the tree of that version.
fn found(host: &Namespace, from: Ipv4Addr, version: u8) -> Result<Message> {
    let target = format!("urn:schemas-upnp-org:device:InternetGatewayDevice:{version}");
    let lines = format!("MX: 1\r\nST: {target}\r\n");
    wait::until_ok("an answer to a search", SOON, || {
        ssdp::search(host, "eth0", from.into(), ssdp::GROUP, &lines)?.context("none")
    })
}

/// What has been announced by an address on a link, as (kind, BOOTID, how often), in the order of first times.
fn said(messages: &[Message], by: Ipv4Addr) -> Result<Vec<(&str, u64, usize)>> {
    let mut sets: Vec<(&str, u64, usize)> = Vec::new();
    for message in messages.iter().filter(|m| m.from == IpAddr::V4(by)) {
        let (kind, boot_id) = (message.kind(), message.number("BOOTID.UPNP.ORG")?);
        match sets
            .iter_mut()
            .find(|(k, b, _)| (*k, *b) == (kind, boot_id))
        {
            Some((_, _, times)) => *times += 1,
            None => sets.push((kind, boot_id, 1)),
        }
    }
    Ok(sets)
}

/// Waits until these sets have been announced there by that address, and nothing else.
fn until_said(
    ear: &mut Ear,
    by: Ipv4Addr,
    expected: &[(&str, u64, usize)],
) -> Result<Vec<Message>> {
    wait::until_ok(&format!("announcements by {by}"), SOON, || {
        let messages = ear.heard()?.to_vec();
        let said = said(&messages, by)?;
        ensure!(said == expected, "said {said:?}, not {expected:?}");
        Ok(messages)
    })
}

/// Position of the first, or of the last, message of that kind.
fn first(messages: &[Message], kind: &str) -> Option<usize> {
    messages.iter().position(|m| m.kind() == kind)
}

fn last(messages: &[Message], kind: &str) -> Option<usize> {
    messages.iter().rposition(|m| m.kind() == kind)
}

fn lab() -> Result<(Lab, Namespace)> {
    let lab = Lab::new()?;
    let lan3 = lab.joined_to_cpe("lan3", SECOND_IF, (LAN3, SECOND))?;
    lab.lan1
        .ip(&format!("address add {LAN1_LATER}/24 dev eth0"))?;
    Ok((lab, lan3))
}

fn options() -> Options {
    Options {
        mode: "local",
        lan: &[LAN_BRIDGE, SECOND_IF],
        pcp_servers: Vec::new(),
        ..Options::default()
    }
}

/// SEC-05: where hosts may act for others, those of one LAN act for none of another, and see nothing of theirs.
#[test]
fn nobody_acts_for_hosts_of_another_lan() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let (lab, lan3) = lab()?;
    let iwfd = Iwfd::start(
        &lab,
        &Options {
            more: "[policy]\nthird_party = true\n",
            ..options()
        },
    )?;
    let home = Gateway::discover_version(&lab.lan1, Version::Two)?;
    let guest = Gateway::discover_version(&lan3, Version::Two)?;
    home.add("TCP", 8080, LAN1, 8080, 600)?.ok()?;
    home.add("TCP", 8081, LAN2, 8080, 600)?.ok()?;
    guest.add("TCP", 8082, LAN3, 8080, 600)?.ok()?;
    assert_eq!(guest.add("TCP", 8083, LAN1, 8083, 600)?.error(), Some(606));
    assert_eq!(home.add("TCP", 8083, LAN3, 8083, 600)?.error(), Some(606));
    let one = Gateway::discover_version(&lan3, Version::One)?;
    assert_eq!(one.add("TCP", 8083, LAN1, 8083, 600)?.error(), Some(718));
    // A port that another LAN's host has is taken, and that is all there is to know of it.
    assert_eq!(guest.add("TCP", 8080, LAN3, 8080, 600)?.error(), Some(718));
    assert_eq!(guest.delete("TCP", 8080)?.error(), Some(606));
    let listed = |gateway: &Gateway| -> Result<Vec<String>> {
        let range = [
            ("NewStartPort", "1024"),
            ("NewEndPort", "65535"),
            ("NewProtocol", "TCP"),
            ("NewManage", "1"),
            ("NewNumberOfPorts", "0"),
        ];
        let text = gateway.call("GetListOfPortMappings", &range)?.ok()?.text;
        let clients = text.split("NewInternalClient&gt;").skip(1).step_by(2);
        let clients = clients.filter_map(|rest| rest.split("&lt;").next());
        Ok(clients.map(str::to_owned).collect())
    };
    assert_eq!(listed(&home)?, [LAN1.to_string(), LAN2.to_string()]);
    assert_eq!(listed(&guest)?, [LAN3.to_string()]);
    let first = [("NewPortMappingIndex", "1")];
    let beyond = guest.call("GetGenericPortMappingEntry", &first)?;
    assert_eq!(beyond.error(), Some(713));

    let refused = iwfd
        .ctl()
        .must(&["events", "--json", "--kind", "mapping-refused"])?;
    let refused: Vec<Value> = refused
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let for_others = refused.iter().filter(|row| {
        let detail = row["detail"].as_str().unwrap_or_default();
        row["decided_by"] == "policy.third_party" && detail.contains("another LAN")
    });
    assert_eq!(for_others.count(), 3, "{refused:?}");
    // At home everybody may still do everything for everybody.
    home.seen_from(&lab.lan2).delete("TCP", 8080)?.ok()?;
    Ok(())
}

/// DEV-006 and DEV-007: a description says nothing of addresses, so that it is right at each, and has the number that
/// discovery has named.
#[test]
fn hosts_of_each_link_are_served_at_its_address() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let (lab, lan3) = lab()?;
    let _iwfd = Iwfd::start(&lab, &options())?;
    for (host, own, gateway) in [(&lab.lan1, LAN1, GATEWAY), (&lan3, LAN3, SECOND)] {
        for version in [1, 2] {
            let answer = found(host, own, version)?;
            let expected = format!("http://{gateway}:5000/igd{version}/desc.xml");
            ensure!(answer.header("LOCATION") == Some(&expected), "{answer:?}");
            ensure!(answer.header("SEARCHPORT.UPNP.ORG").is_none(), "{answer:?}");
        }
        let found_id = found(host, own, 2)?.number("CONFIGID.UPNP.ORG")?;
        let igd = Gateway::discover_version(host, Version::Two)?;
        let get = |path: &str| -> Result<String> {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                igd.address()
            );
            Ok(igd.raw(request.as_bytes())?.ok()?.text)
        };
        let description = get("/igd2/desc.xml")?;
        let own_id = format!("configId=\"{found_id}\"");
        ensure!(description.contains(&own_id), "{own_id} in {description}");
        ensure!(!description.contains("URLBase"), "{description}");
        let urls: Vec<_> = ["SCPDURL", "controlURL", "eventSubURL", "presentationURL"]
            .iter()
            .flat_map(|name| {
                let open = format!("<{name}>");
                let urls = description.split(open.as_str()).skip(1);
                urls.filter_map(|rest| rest.split_once('<'))
                    .map(|(url, _)| (*name, url.to_owned()))
                    .collect::<Vec<_>>()
            })
            .collect();
        ensure!(urls.len() == 13, "{urls:?}");
        for (name, url) in urls {
            ensure!(
                url.starts_with('/') && !url.starts_with("//"),
                "{name} {url}"
            );
            if name == "SCPDURL" {
                let document = get(&url)?;
                ensure!(document.contains(&own_id), "{own_id} in {document}");
            }
        }
        // Where the client has come to is where it works.
        igd.add("TCP", 4000 + u16::from(own.octets()[2]), own, 4000, 600)?
            .ok()?;
    }
    // The other link's address is not for its hosts.
    let there = Gateway::discover(&lab.lan1)?;
    let elsewhere = there.seen_from(&lan3).add("TCP", 4100, LAN3, 4100, 600);
    ensure!(elsewhere.is_err(), "{elsewhere:?}");
    Ok(())
}

/// SSDP-007: an address comes and goes while the gateway runs, and the gateway itself.
#[test]
fn each_change_of_the_addresses_has_its_number() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let (lab, lan3) = lab()?;
    let mut here = Ear::open(&lab.lan1, "eth0", ssdp::GROUP)?;
    let mut there = Ear::open(&lan3, "eth0", ssdp::GROUP)?;
    let mut iwfd = Iwfd::start(&lab, &options())?;
    let first_id = found(&lab.lan1, LAN1, 1)?.number("BOOTID.UPNP.ORG")?;
    let start = [("byebye", first_id, SET), ("alive", first_id, 2 * SET)];
    until_said(&mut here, GATEWAY, &start)?;
    until_said(&mut there, SECOND, &start)?;

    for ear in [&mut here, &mut there] {
        ear.forget()?;
    }
    lab.cpe
        .ip(&format!("address add {LATER}/24 dev {LAN_BRIDGE}"))?;
    let answer = found(&lab.lan1, LAN1_LATER, 1)?;
    let location = format!("http://{LATER}:5000/igd1/desc.xml");
    ensure!(answer.header("LOCATION") == Some(&location), "{answer:?}");
    let with_it = answer.number("BOOTID.UPNP.ORG")?;
    ensure!(with_it > first_id, "{with_it} after {first_id}");
    let stays = [("update", first_id, SET), ("alive", with_it, 2 * SET)];
    until_said(&mut there, SECOND, &stays)?;
    until_said(&mut here, LATER, &[("alive", with_it, 2 * SET)])?;
    let messages = until_said(&mut here, GATEWAY, &stays)?;
    ensure!(
        last(&messages, "update") < first(&messages, "alive"),
        "all hear of the number before anything has it: {messages:?}"
    );
    let updates: Vec<_> = messages.iter().filter(|m| m.kind() == "update").collect();
    for message in &updates {
        ensure!(
            message.number("NEXTBOOTID.UPNP.ORG")? == with_it,
            "{message:?}"
        );
        let location = format!("http://{GATEWAY}:5000/igd2/desc.xml");
        ensure!(message.header("LOCATION") == Some(&location), "{message:?}");
    }
    let names: BTreeSet<_> = updates.iter().map(|m| m.header("USN")).collect();
    ensure!(names.len() == SET, "{names:?}");

    for ear in [&mut here, &mut there] {
        ear.forget()?;
    }
    lab.cpe
        .ip(&format!("address del {LATER}/24 dev {LAN_BRIDGE}"))?;
    // From the address that is no longer there, to those who know it.
    until_said(&mut here, LATER, &[("byebye", with_it, SET)])?;
    let answer = wait::until_ok("the next number", SOON, || {
        let answer = found(&lab.lan1, LAN1, 1)?;
        ensure!(answer.number("BOOTID.UPNP.ORG")? > with_it, "{answer:?}");
        Ok(answer)
    })?;
    let without_it = answer.number("BOOTID.UPNP.ORG")?;
    let stays = [("update", with_it, SET), ("alive", without_it, 2 * SET)];
    until_said(&mut there, SECOND, &stays)?;
    let messages = until_said(&mut here, GATEWAY, &stays)?;
    ensure!(
        last(&messages, "byebye") < first(&messages, "alive"),
        "a goodbye must not follow what holds: {messages:?}"
    );
    let request = ssdp::search(
        &lab.lan1,
        "eth0",
        LAN1_LATER.into(),
        LATER.into(),
        "ST: upnp:rootdevice\r\n",
    )?;
    ensure!(request.is_none(), "{request:?}");

    for ear in [&mut here, &mut there] {
        ear.forget()?;
    }
    iwfd.kill()?;
    iwfd.restart()?;
    let again = found(&lan3, LAN3, 1)?.number("BOOTID.UPNP.ORG")?;
    ensure!(again > without_it, "{again} after {without_it}");
    let start = [("byebye", again, SET), ("alive", again, 2 * SET)];
    until_said(&mut there, SECOND, &start)?;
    Ok(())
}
