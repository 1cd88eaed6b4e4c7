//! PCP servers that the network names: real DHCP servers on the carrier, and what the daemon makes of it.
#![expect(clippy::disallowed_types, reason = "plays a DHCP client's socket")]

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::carrier::{Miniupnpd, forwards};
use iwf_tests::cascade::{endpoint, rows};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::dhcp::{Dnsmasq, Kea, hex, option158};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::may_run;
use iwf_tests::packages;
use iwf_tests::script::{Manner, ScriptedServer};
use iwf_tests::topology::{CARRIER, EXTERNAL, LAN1, Lab, WAN, WAN_IF};
use iwf_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
/// Longer than the wait for DHCP, and than the verdict that a server does not answer.
const LATER: Duration = Duration::from_secs(40);

/// Where the PCP server is: on the subscribers' link, but not the default router.
const SERVER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 7);
/// Another address of it, beyond the router.
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// Where nobody is.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

/// The lab with both addresses of the server.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.cgn.ip(&format!("address add {SERVER}/24 dev br0"))?;
    lab.cgn.ip(&format!("address add {FAR}/32 dev lo"))?;
    // Requests there vanish.
    lab.cgn.ip(&format!("route add blackhole {NOBODY}/32"))?;
    Ok(lab)
}

/// The daemon that looks for servers.
fn looking(lab: &Lab) -> Result<Iwfd> {
    let options = Options {
        pcp_servers: Vec::new(),
        ..Options::default()
    };
    Iwfd::start(lab, &options)
}

/// The server in use: who named it, its address, its state.
fn used(iwfd: &Iwfd) -> Option<(String, String, String)> {
    let status = iwfd.ctl().json(&["status"]).ok()?;
    let servers = status["servers"].as_array()?;
    let row = servers.iter().find(|row| row["in_use"] == true)?;
    let text = |key: &str| row[key].as_str().map(ToOwned::to_owned);
    Some((text("origin")?, text("address")?, text("state")?))
}

fn wait_for(iwfd: &Iwfd, origin: &str, address: Ipv4Addr) -> Result<()> {
    let wanted = (
        origin.to_owned(),
        format!("{address}:5351"),
        "answering".to_owned(),
    );
    let what = format!("{address} to be used, named by {origin}");
    let found = wait::until(&what, LATER, || (used(iwfd)? == wanted).then_some(()));
    found.with_context(|| format!("{:?}", iwfd.ctl().json(&["status"])))
}

fn discovery(iwfd: &Iwfd, family: &str) -> Result<Value> {
    let status = iwfd.ctl().json(&["status"])?;
    let all = status["discovery"].as_array().context("a list")?;
    let row = all.iter().find(|row| row["family"] == family);
    row.cloned()
        .with_context(|| format!("{family} in {status}"))
}

/// Maps a port and checks that it is at the server of that address.
fn map(iwfd: &Iwfd, lab: &Lab, port: u16) -> Result<Value> {
    let gateway = Gateway::discover(&lab.lan1)?;
    gateway.add("TCP", port, LAN1, 8000, 3600)?.ok()?;
    let rows = rows(iwfd)?;
    let found = |row: &&Value| endpoint(row, "carrier").is_ok_and(|at| at.port() == port);
    rows.iter().find(found).cloned().context("the new mapping")
}

#[test]
fn dnsmasq_names_a_server_and_the_router_is_never_asked() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let router = ScriptedServer::start(&lab, Manner::Grant)?;
    let _server = Miniupnpd::start_at(&lab, &format!("{SERVER}/24"), SERVER)?;
    let dnsmasq = Dnsmasq::start(&lab, Some(&option158(&[&[SERVER]])))?;
    let iwfd = looking(&lab)?;
    wait_for(&iwfd, "dhcp4", SERVER).with_context(|| dnsmasq.log())?;

    let row = map(&iwfd, &lab, 30_000)?;
    ensure!(endpoint(&row, "carrier")?.ip() == &EXTERNAL, "{row}");
    assert_eq!(forwards(&lab.cgn)?.len(), 1);
    assert_eq!(router.arrivals().len(), 0, "PCPC-001");
    let row = discovery(&iwfd, "dhcp4")?;
    assert_eq!(row["state"], "answered");
    assert_eq!(row["servers"], serde_json::json!([[SERVER]]));
    let text = iwfd.ctl().must(&["status"])?;
    ensure!(text.contains("by dhcp4"), "{text}");
    ensure!(dnsmasq.log().contains("DHCPINFORM"), "{}", dnsmasq.log());
    Ok(())
}

#[test]
fn another_option_at_run_time_is_followed_by_servers_and_mappings() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let first = ScriptedServer::start_at(&lab, SERVER, Manner::Grant)?;
    let second = ScriptedServer::start_at(&lab, FAR, Manner::Grant)?;
    let router = ScriptedServer::start(&lab, Manner::Grant)?;
    let dnsmasq = Dnsmasq::start(&lab, Some(&option158(&[&[SERVER]])))?;
    let mut iwfd = looking(&lab)?;
    wait_for(&iwfd, "dhcp4", SERVER)?;
    map(&iwfd, &lab, 30_100)?;
    assert_eq!(first.leases().len(), 1);

    drop(dnsmasq);
    let dnsmasq = Dnsmasq::start(&lab, Some(&option158(&[&[FAR]])))?;
    // Whoever tells it to read its configuration again has it ask again as well.
    iwfd.process().signal(Signal::SIGHUP)?;
    wait_for(&iwfd, "dhcp4", FAR)?;
    wait::until("the mapping at the new server", SOON, || {
        (second.leases().len() == 1 && first.leases().is_empty()).then_some(())
    })?;
    let (old, new) = (first.map_requests(), second.map_requests());
    let nonce = |requests: &[(Duration, iwf_tests::pcp::Request)]| {
        let map = requests.first().and_then(|(_, request)| request.map);
        map.map(|map| map.nonce)
    };
    assert_ne!(nonce(&old), nonce(&new), "DISC-025");
    let to_the_old_one = first.map_requests().len();
    map(&iwfd, &lab, 30_101)?;
    assert_eq!(first.map_requests().len(), to_the_old_one);
    assert_eq!(second.leases().len(), 2);
    iwfd.ctl().must(&["audit"])?;

    // No option any more: the router.
    drop(dnsmasq);
    let _dnsmasq = Dnsmasq::start(&lab, None)?;
    iwfd.ctl().must(&["discover"])?;
    wait_for(&iwfd, "router", CARRIER)?;
    wait::until("the mappings at the router", SOON, || {
        (router.leases().len() == 2).then_some(())
    })?;
    Ok(())
}

#[test]
fn the_other_address_of_a_server_is_used_when_the_first_dies() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let first = ScriptedServer::start_at(&lab, SERVER, Manner::Grant)?;
    let second = ScriptedServer::start_at(&lab, FAR, Manner::Grant)?;
    let kea = Kea::start_v4(&lab, &option158(&[&[FAR, SERVER]]))?;
    let iwfd = looking(&lab)?;
    // The nearer one by RFC 6724, in whichever order they are named.
    wait_for(&iwfd, "dhcp4", SERVER).with_context(|| kea.log())?;
    map(&iwfd, &lab, 30_200)?;
    let nonce = first.leases()[0].nonce;
    assert_eq!(second.map_requests().len(), 0);

    drop(first);
    let (row, took) = wait::timed(|| map(&iwfd, &lab, 30_201));
    row?;
    ensure!(
        took < SOON,
        "an ICMP error moves on at once, not after {took:?}"
    );
    wait_for(&iwfd, "dhcp4", FAR)?;
    wait::until("both mappings at the other address", SOON, || {
        let leases = second.leases();
        (leases.len() == 2 && leases.iter().any(|lease| lease.nonce == nonce)).then_some(())
    })?;
    iwfd.ctl().must(&["audit"])?;
    Ok(())
}

#[test]
fn kea_names_more_servers_than_one_option_holds() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let _server = ScriptedServer::start_at(&lab, SERVER, Manner::Grant)?;
    // Nobody is at the first one, which vanishes; the good one is the second.
    let mut lists: Vec<&[Ipv4Addr]> = vec![&[NOBODY], &[SERVER]];
    lists.extend(vec![[FAR].as_slice(); 58]);
    let value = option158(&lists);
    assert_eq!(value.len(), 300, "RFC 3396");
    let kea = Kea::start_v4(&lab, &value)?;
    let iwfd = looking(&lab)?;
    let what = "an answer in two pieces";
    let row = wait::until_ok(what, LATER, || {
        let row = discovery(&iwfd, "dhcp4")?;
        ensure!(row["state"] == "answered", "{row}");
        Ok(row)
    })
    .with_context(|| kea.log())?;
    let servers = row["servers"].as_array().context("a list")?;
    assert_eq!(servers.len(), 4, "bounded: {row}");
    assert_eq!(servers[1], serde_json::json!([SERVER]));
    // The call does not wait for the one that is dead.
    let (mapped, took) = wait::timed(|| map(&iwfd, &lab, 30_300));
    mapped?;
    ensure!(took < SOON, "{took:?}");
    Ok(())
}

#[test]
fn without_a_word_the_router_is_asked_and_a_bad_option_is_no_word() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let _router = ScriptedServer::start(&lab, Manner::Grant)?;
    let iwfd = looking(&lab)?;
    // The call waits until it is known who has to agree.
    map(&iwfd, &lab, 30_400)?;
    wait_for(&iwfd, "router", CARRIER)?;
    assert_eq!(discovery(&iwfd, "dhcp4")?["state"], "unanswered");

    for bad in [
        vec![3, 100, 64, 0, 7],
        vec![8, 100, 64, 0, 7],
        option158(&[&[Ipv4Addr::LOCALHOST, Ipv4Addr::new(224, 0, 0, 1)]]),
    ] {
        let before = discovery(&iwfd, "dhcp4")?["discarded"].as_u64();
        let dnsmasq = Dnsmasq::start(&lab, Some(&bad))?;
        iwfd.ctl().must(&["discover"])?;
        wait::until_ok("the option to be discarded", SOON, || {
            let row = discovery(&iwfd, "dhcp4")?;
            ensure!(
                row["discarded"].as_u64() > before,
                "{row} {}",
                dnsmasq.log()
            );
            ensure!(row["servers"] == serde_json::json!([]), "{row}");
            Ok(())
        })?;
    }
    wait_for(&iwfd, "router", CARRIER)
}

#[test]
fn an_address_is_asked_by_the_wan_whatever_the_routes_say() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let server = ScriptedServer::start_at(&lab, FAR, Manner::Grant)?;
    // A host of the LAN has that address as well, and a route leads there.
    lab.lan1.ip(&format!("address add {FAR}/32 dev lo"))?;
    lab.cpe.ip(&format!("route add {FAR}/32 via {LAN1}"))?;
    let _dnsmasq = Dnsmasq::start(&lab, Some(&option158(&[&[FAR]])))?;
    let iwfd = looking(&lab)?;
    wait_for(&iwfd, "dhcp4", FAR)?;
    map(&iwfd, &lab, 30_450)?;
    assert_eq!(server.leases().len(), 1, "DISC-005");
    Ok(())
}

#[test]
fn what_is_configured_is_not_looked_for() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let first = ScriptedServer::start_at(&lab, SERVER, Manner::Grant)?;
    let second = ScriptedServer::start_at(&lab, FAR, Manner::Grant)?;
    let router = ScriptedServer::start(&lab, Manner::Grant)?;
    let dnsmasq = Dnsmasq::start(&lab, Some(&option158(&[&[CARRIER]])))?;
    // One server with two addresses, in a list of its own.
    let options = Options {
        pcp_servers: vec![format!("{FAR} {SERVER}")],
        ..Options::default()
    };
    let iwfd = Iwfd::start(&lab, &options)?;
    wait_for(&iwfd, "config", SERVER)?;
    map(&iwfd, &lab, 30_460)?;
    assert_eq!((first.leases().len(), second.leases().len()), (1, 0));
    let done = iwfd.ctl().run(&["discover"])?;
    assert_eq!(done.code, Some(1));
    ensure!(done.text().contains("not asked"), "{}", done.text());
    ensure!(!dnsmasq.log().contains("DHCPINFORM"), "{}", dnsmasq.log());
    assert_eq!(router.arrivals().len(), 0, "PCPC-001");
    Ok(())
}

/// The lab with IPv6 on the WAN.
fn lab6() -> Result<Lab> {
    let lab = lab()?;
    // Kea does not wait until its address is known to be its own.
    lab.cgn.sysctl("net/ipv6/conf/br0/accept_dad", "0")?;
    for (host, interface, address) in [
        (&lab.cpe, WAN_IF, "2a0c:9::2/64"),
        (&lab.cgn, "br0", "2a0c:9::1/64"),
    ] {
        host.sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0")?;
        host.ip(&format!("address add {address} dev {interface} nodad"))?;
    }
    Ok(lab)
}

#[test]
fn kea_names_a_server_over_ipv6() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab6()?;
    let _server = ScriptedServer::start_at(&lab, SERVER, Manner::Grant)?;
    let addresses = [SERVER.to_ipv6_mapped(), "2a0c:9::1".parse()?];
    let kea = Kea::start_v6(&lab, &addresses, "aftr.example.net.")?;
    let iwfd = looking(&lab)?;
    wait_for(&iwfd, "dhcp6", SERVER).with_context(|| kea.log())?;
    map(&iwfd, &lab, 30_500)?;
    let row = discovery(&iwfd, "dhcp6")?;
    assert_eq!(
        row["servers"],
        serde_json::json!([["100.64.0.7", "2a0c:9::1"]])
    );
    let status = iwfd.ctl().json(&["status"])?;
    assert_eq!(status["aftr"], "aftr.example.net");
    Ok(())
}

#[test]
fn dnsmasq_names_a_server_over_ipv6() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab6()?;
    let _server = ScriptedServer::start_at(&lab, FAR, Manner::Grant)?;
    let option = format!("dhcp-option=option6:86,[{}]\n", FAR.to_ipv6_mapped());
    let dnsmasq = Dnsmasq::start_v6(&lab, &option)?;
    let iwfd = looking(&lab)?;
    wait_for(&iwfd, "dhcp6", FAR).with_context(|| dnsmasq.log())?;
    map(&iwfd, &lab, 30_600)?;
    Ok(())
}

#[test]
fn another_wan_address_and_another_router_are_followed() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let server = ScriptedServer::start_at(&lab, SERVER, Manner::Grant)?;
    let router = ScriptedServer::start(&lab, Manner::Grant)?;
    let dnsmasq = Dnsmasq::start(&lab, Some(&option158(&[&[SERVER]])))?;
    let iwfd = looking(&lab)?;
    wait_for(&iwfd, "dhcp4", SERVER)?;
    map(&iwfd, &lab, 30_700)?;

    // The lease changes: asked again from the new address, and everything is told to the server anew.
    let moved = Ipv4Addr::new(100, 64, 0, 3);
    lab.cpe.ip(&format!("address del {WAN}/24 dev {WAN_IF}"))?;
    lab.cpe.address(WAN_IF, moved, 24)?;
    lab.cpe
        .ip(&format!("route replace default via {CARRIER}"))?;
    wait::until("a question from the new address", LATER, || {
        let log = dnsmasq.log();
        log.contains(&format!("DHCPINFORM(br0) {moved}"))
            .then_some(())
    })?;
    wait_for(&iwfd, "dhcp4", SERVER)?;
    wait::until("a request from the new address", LATER, || {
        let arrivals = server.arrivals();
        let from_there = |arrival: &iwf_tests::script::Arrival| {
            let request = arrival.request.as_ref();
            arrival.from.ip() == moved && request.is_some_and(|request| request.map.is_some())
        };
        arrivals.iter().any(from_there).then_some(())
    })?;
    assert_eq!(router.arrivals().len(), 0);

    // The cable is pulled and comes back, with another router and without the option.
    drop(dnsmasq);
    let _dnsmasq = Dnsmasq::start(&lab, None)?;
    lab.cgn.ip("link set br0 down")?;
    wait::until("the WAN to be down", SOON, || {
        let status = iwfd.ctl().json(&["status"]).ok()?;
        (status["mode"] == "down").then_some(())
    })?;
    lab.cgn.ip("link set br0 up")?;
    lab.cpe
        .ip(&format!("route replace default via {CARRIER} dev {WAN_IF}"))?;
    wait_for(&iwfd, "router", CARRIER)?;
    wait::until("the mapping at the router", LATER, || {
        (router.leases().len() == 1).then_some(())
    })?;
    iwfd.ctl().must(&["audit"])?;
    Ok(())
}

#[test]
fn hooks_of_dhcp_clients_are_believed() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let _server = ScriptedServer::start_at(&lab, SERVER, Manner::Grant)?;
    let _router = ScriptedServer::start(&lab, Manner::Grant)?;
    let iwfd = looking(&lab)?;
    wait_for(&iwfd, "router", CARRIER)?;

    // A real client with the hook of the package, which takes an address besides the one that is there.
    let dnsmasq = Dnsmasq::start(&lab, Some(&option158(&[&[SERVER]])))?;
    let hook = packages::workspace().join("packaging/dhcp/udhcpc.script");
    let busybox = packages::busybox()?.display().to_string();
    let iwfctl = iwfd.ctl().argv(&[])?.join(" ");
    let client = |more: &[&str]| {
        let script = hook.display().to_string();
        let mut argv = vec![
            "env".to_owned(),
            format!("IWFCTL={iwfctl}"),
            busybox.clone(),
        ];
        argv.extend(
            ["udhcpc", "-f", "-n", "-q", "-i", WAN_IF, "-O", "158", "-s"].map(str::to_owned),
        );
        argv.push(script);
        argv.extend(more.iter().map(|word| (*word).to_owned()));
        lab.cpe.must(&argv)
    };
    client(&[]).with_context(|| dnsmasq.log())?;
    assert_eq!(discovery(&iwfd, "dhcp4")?["state"], "told");
    wait_for(&iwfd, "dhcp4", SERVER)?;
    iwfd.ctl().must(&["dhcp-option", "158"])?;
    wait_for(&iwfd, "router", CARRIER)?;

    // Another one, which writes the value in another way.
    let place = |name: &str| lab.dir().join(name).display().to_string();
    let text = "option pcp-servers code 158 = string;\nalso request pcp-servers;\ntimeout 10;\n";
    std::fs::write(place("dhclient.conf"), text)?;
    let hook = packages::workspace().join("packaging/dhcp/dhclient-exit-hook");
    let argv = [
        "env".to_owned(),
        packages::dhclient()?.display().to_string(),
        "-e".to_owned(),
        format!("IWFCTL={iwfctl}"),
        "-4".to_owned(),
        "-1".to_owned(),
        "-v".to_owned(),
        "-cf".to_owned(),
        place("dhclient.conf"),
        "-lf".to_owned(),
        place("dhclient.leases"),
        "-pf".to_owned(),
        place("dhclient.pid"),
        "-sf".to_owned(),
        hook.display().to_string(),
        WAN_IF.to_owned(),
    ];
    let started = lab.cpe.must(&argv).with_context(|| dnsmasq.log());
    // It stays in the background to renew its lease.
    let pid = std::fs::read_to_string(place("dhclient.pid"));
    if let Ok(pid) = pid.unwrap_or_default().trim().parse() {
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    started?;
    assert_eq!(discovery(&iwfd, "dhcp4")?["state"], "told");
    wait_for(&iwfd, "dhcp4", SERVER)?;

    // As dhcpcd 9 calls its hooks.
    let hook = packages::workspace().join("packaging/dhcp/dhcpcd-hook");
    let hook = hook.display().to_string();
    for (reason, value, state) in [
        ("BOUND", hex(&option158(&[&[FAR]]), ""), "told"),
        ("EXPIRE", String::new(), "unanswered"),
    ] {
        lab.cpe.must(&[
            "env".to_owned(),
            format!("IWFCTL={iwfctl}"),
            format!("reason={reason}"),
            format!("new_pcp_servers={value}"),
            hook.clone(),
        ])?;
        assert_eq!(discovery(&iwfd, "dhcp4")?["state"], state);
    }

    // By hand, in the words of other clients.
    let value = option158(&[&[FAR], &[SERVER]]);
    let loose = value.iter().map(|octet| format!("{octet:x}"));
    let loose = loose.collect::<Vec<_>>().join(":");
    for text in [hex(&value, ""), hex(&value, ":"), loose] {
        iwfd.ctl().must(&["dhcp-option", "158", &text])?;
        let row = discovery(&iwfd, "dhcp4")?;
        assert_eq!(
            row["servers"],
            serde_json::json!([[FAR], [SERVER]]),
            "{text}"
        );
    }
    let six = hex(&SERVER.to_ipv6_mapped().octets(), "");
    iwfd.ctl().must(&["dhcp-option", "86", &six])?;
    assert_eq!(
        discovery(&iwfd, "dhcp6")?["servers"],
        serde_json::json!([[SERVER]])
    );
    for bad in [
        &["dhcp-option", "158", "zz"][..],
        &["dhcp-option", "158", "03646400"],
        &["dhcp-option", "158", &six, &six],
        &["dhcp-option", "86", "0102"],
    ] {
        assert_eq!(iwfd.ctl().run(bad)?.code, Some(1), "{bad:?}");
    }
    assert_eq!(iwfd.ctl().run(&["dhcp-option", "99"])?.code, Some(2));

    // It was told that there is none, and then nothing: the daemon has asked by itself as well.
    iwfd.ctl().must(&["dhcp-option", "86", "--forget"])?;
    iwfd.ctl().must(&["dhcp-option", "158"])?;
    wait_for(&iwfd, "router", CARRIER)?;
    iwfd.ctl().must(&["dhcp-option", "158", "--forget"])?;
    iwfd.ctl().must(&["discover"])?;
    wait_for(&iwfd, "dhcp4", SERVER)?;
    assert_eq!(discovery(&iwfd, "dhcp4")?["state"], "answered");
    Ok(())
}

#[test]
fn answers_to_a_client_that_rebinds_reach_it_in_every_mode() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    for mode in ["local", "cascaded"] {
        let lab = lab()?;
        let options = Options {
            mode,
            ..Options::default()
        };
        let _iwfd = Iwfd::start(&lab, &options)?;
        // It has asked everybody, so the programs have seen nothing that this is the answer to.
        let client = lab.cpe.within(|| UdpSocket::bind((WAN, 68)))??;
        let server = lab.cgn.within(|| UdpSocket::bind((CARRIER, 67)))??;
        client.set_read_timeout(Some(Duration::from_millis(50)))?;
        wait::until_ok("an answer at the client's port", SOON, || {
            server.send_to(b"lease", (WAN, 68))?;
            let mut buffer = [0; 16];
            let (length, _) = client.recv_from(&mut buffer)?;
            ensure!(&buffer[..length] == b"lease");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_clients_own_exchange_is_not_disturbed() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = lab()?;
    let _server = ScriptedServer::start_at(&lab, SERVER, Manner::Grant)?;
    let dnsmasq = Dnsmasq::start(&lab, Some(&option158(&[&[SERVER]])))?;
    let iwfd = looking(&lab)?;
    wait_for(&iwfd, "dhcp4", SERVER)?;
    // A client that gets its lease while questions of the daemon are answered at the same port, several times over.
    let busybox = packages::busybox()?.display().to_string();
    let tries = (3 * wait::patience()).to_string();
    for _ in 0..5 {
        let before = discovery(&iwfd, "dhcp4")?["answers"].as_u64();
        iwfd.ctl().must(&["discover"])?;
        let quick = [
            "-f",
            "-n",
            "-q",
            "-t",
            &tries,
            "-T",
            "1",
            "-i",
            WAN_IF,
            "-s",
            "/bin/true",
        ];
        let mut argv = vec![busybox.as_str(), "udhcpc"];
        argv.extend(quick);
        let done = lab.cpe.run(&argv)?;
        ensure!(done.success(), "{}\n{}", done.text(), dnsmasq.log());
        ensure!(
            done.text().contains("lease of 100.64.0."),
            "{}",
            done.text()
        );
        // Before the next question, which makes this one void.
        wait::until_ok("the question to be answered", SOON, || {
            let row = discovery(&iwfd, "dhcp4")?;
            ensure!(row["answers"].as_u64() > before, "{row}");
            Ok(())
        })?;
    }
    Ok(())
}
