//! Names of hosts in calls, asked of the DNS server that most routers run.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "plays a host that asks too much and a server that is silent, in real time"
)]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade;
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::{Answer, Gateway};
use iwf_tests::names::Resolver;
use iwf_tests::netns::may_run;
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{EXTERNAL, LAN1, LAN2, Lab, REMOTE, WAN};
use iwf_tests::wait;

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(1);

fn add(gateway: &Gateway, port: u16, client: &str, remote: &str) -> Result<Answer> {
    gateway.call(
        "AddPortMapping",
        &[
            ("NewRemoteHost", remote),
            ("NewExternalPort", &port.to_string()),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", "8080"),
            ("NewInternalClient", client),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "by name"),
            ("NewLeaseDuration", "600"),
        ],
    )
}

/// IGD-032, IWF-015: what is stored and enforced is the address.
#[test]
fn hosts_are_named_as_the_router_knows_them() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let names = [
        ("desk.home.arpa", LAN1),
        ("shelf.home.arpa", LAN2),
        ("peer.example.net", REMOTE),
        ("stranger.example.net", Ipv4Addr::new(11, 22, 33, 77)),
    ];
    let resolver = Resolver::start(&lab, &names)?;
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        own_resolver: true,
        ..Options::default()
    };
    let iwfd = Iwfd::start(&lab, &options)?;
    let gateway = Gateway::discover(&lab.lan1)?;
    add(&gateway, 9001, "desk.home.arpa", "")?.ok()?;
    add(&gateway, 9002, "DESK.home.arpa.", "peer.example.net")?.ok()?;
    add(&gateway, 9003, "desk.home.arpa", "stranger.example.net")?.ok()?;
    // Another host is another host by its name as well, and what nobody knows is nobody.
    let refused = add(&gateway, 9004, "shelf.home.arpa", "")?.error();
    ensure!(refused == Some(718), "{refused:?}");
    let refused = add(&gateway, 9005, "nobody.home.arpa", "")?;
    ensure!(refused.error().is_some(), "{}", refused.text);
    let refused = add(&gateway, 9006, "desk.home.arpa", "nobody.example.net")?;
    ensure!(refused.error().is_some(), "{}", refused.text);
    let asked = resolver.log();
    for (name, _) in names {
        ensure!(
            asked.contains(&format!("query[A] {name} ")),
            "{name}: {asked}"
        );
    }

    let rows = cascade::rows(&iwfd)?;
    ensure!(rows.len() == 3, "{rows:?}");
    for row in &rows {
        ensure!(*cascade::endpoint(row, "internal")?.ip() == LAN1, "{row}");
    }
    let listed = gateway.call(
        "GetGenericPortMappingEntry",
        &[("NewPortMappingIndex", "1")],
    )?;
    let told = |name| listed.element(name).map(str::to_owned).context(name);
    ensure!(told("NewInternalClient")? == LAN1.to_string());
    ensure!(
        told("NewRemoteHost")? == REMOTE.to_string(),
        "{}",
        listed.text
    );

    // And packets are let in by that.
    let _echo = Echo::listen(&lab.lan1, 8080)?;
    lab.inet.ip(&format!("route add {WAN}/32 via {EXTERNAL}"))?;
    lab.cgn.must(&["nft", "flush", "ruleset"])?;
    for port in [9001, 9002] {
        peers::udp_echo(&lab.inet, SocketAddrV4::new(WAN, port), "let in", SOON)?;
    }
    peers::udp_is_closed(&lab.inet, SocketAddrV4::new(WAN, 9003), SILENCE)?;
    iwfd.ctl().must(&["audit"])?;
    Ok(())
}

/// A host whose names nobody answers takes no other host's turn, however many it asks for.
#[test]
fn names_without_an_answer_delay_their_own_host_only() -> Result<()> {
    /// More than are asked for at once for all hosts, and no more than a host may have connections.
    const ASKED: usize = 12;
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let silent = lab.cpe.within(|| UdpSocket::bind("127.0.0.1:0"))??;
    let names = [("peer.example.net", REMOTE)];
    let others = [("silent.example", silent.local_addr()?)];
    let _resolver = Resolver::start_asking(&lab, &names, &others)?;
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        own_resolver: true,
        ..Options::default()
    };
    let mut iwfd = Iwfd::start(&lab, &options)?;
    let greedy = Gateway::discover(&lab.lan1)?;
    let other = greedy.seen_from(&lab.lan2);
    let before = iwfd.ctl().counter("http_requests")?;
    let asking: Vec<_> = (0..ASKED)
        .map(|number| {
            let gateway = greedy.clone();
            let port = 9100 + u16::try_from(number)?;
            Ok(std::thread::spawn(move || {
                let name = format!("n{number}.silent.example");
                add(&gateway, port, &LAN1.to_string(), &name)
            }))
        })
        .collect::<Result<_>>()?;
    wait::until_ok("all of its calls", SOON, || {
        let requests = iwfd.ctl().counter("http_requests")?.saturating_sub(before);
        ensure!(requests >= ASKED as u64, "{requests}");
        Ok(())
    })?;
    wait::until_ok("the first question", SOON, || {
        silent.set_nonblocking(true)?;
        Ok(silent.peek_from(&mut [0; 512]).map(drop)?)
    })?;
    let begun = Instant::now();
    add(&other, 9001, &LAN2.to_string(), "peer.example.net")?.ok()?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(2) * wait::patience(), "{took:?}");
    // Nor does the daemon's end wait for those that nobody answers, each of which takes its time.
    let begun = Instant::now();
    iwfd.stop()?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(4) * wait::patience(), "{took:?}");
    for asked in asking {
        // Whether there was an answer before the end or not.
        drop(asked.join().expect("it does not panic"));
    }
    Ok(())
}
