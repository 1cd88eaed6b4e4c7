//! The servers for LAN hosts over IPv6: found by groups of both scopes, followed where addresses go, closed elsewhere.
#![expect(
    clippy::disallowed_types,
    reason = "plays the hosts on both sides, in real time"
)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::gena::{Manner, Subscriber};
use iwf_tests::igd::{self, Answer};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::ssdp::{Ear, Message};
use iwf_tests::topology::{
    CARRIER_6, GATEWAY_6, LAN_BRIDGE, LAN1, LAN1_6, Lab, REMOTE_6, WAN_6, WAN_IF,
};
use iwf_tests::upnpc;
use iwf_tests::wait;
use iwf_tests::wire_tap::Tap;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

const SOON: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(1500);

const OF_LINK: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xc);
const OF_SITE: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0xc);
/// What one set of announcements has.
const SET: usize = 11;
const LATER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);

fn start(lab: &Lab, more: &'static str) -> Result<Iwfd> {
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        more,
        ..Options::default()
    };
    Iwfd::start(lab, &options)
}

/// Where hosts are served over IPv6, as the daemon says.
fn listeners(iwfd: &Iwfd) -> Result<Vec<SocketAddrV6>> {
    let status = iwfd.ctl().json(&["status"])?;
    let listeners = status["listeners"].as_array().context("a list")?;
    let v6 = |listener: &Value| listener["address"].as_str()?.parse().ok();
    Ok(listeners.iter().filter_map(v6).collect())
}

/// Waits until hosts are served on these addresses, link-local ones not named, and no others.
fn served_on(iwfd: &Iwfd, wanted: &[Ipv6Addr]) -> Result<Vec<SocketAddrV6>> {
    wait::until_ok("servers on the LAN's IPv6 addresses", SOON, || {
        let all = listeners(iwfd)?;
        let (link, other): (Vec<_>, Vec<_>) = all
            .iter()
            .map(|at| *at.ip())
            .partition(Ipv6Addr::is_unicast_link_local);
        ensure!(link.len() == 1 && other == wanted, "served on {all:?}");
        Ok(all)
    })
}

/// The link-local address of an interface.
fn link_local(host: &Namespace, interface: &str) -> Result<Ipv6Addr> {
    wait::until_ok("a link-local address", SOON, || {
        let shown = host.ip(&format!(
            "-6 -o address show dev {interface} scope link -tentative"
        ))?;
        let mut words = shown.split_whitespace();
        words
            .find(|word| *word == "inet6")
            .and_then(|_| words.next()?.split('/').next()?.parse().ok())
            .context("it has none yet")
    })
}

/// A search for the gateway from that address, once, and the LOCATION of what answers within a moment.
fn search(
    host: &Namespace,
    interface: &str,
    from: Ipv6Addr,
    to: Ipv6Addr,
) -> Result<Option<String>> {
    let index = host.ifindex(interface)?;
    host.within(|| -> Result<Option<String>> {
        let socket = searcher(from, index)?;
        socket.send_to(wish(to).as_bytes(), SocketAddrV6::new(to, 1900, 0, index))?;
        let mut answer = [0; 2048];
        let Ok((length, _)) = socket.recv_from(&mut answer) else {
            return Ok(None);
        };
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        let location = answer
            .lines()
            .find_map(|line| line.strip_prefix("LOCATION: "));
        Ok(location.map(str::to_owned))
    })?
}

/// Searches from that address at all of these at once, and everything that answers within a moment.
fn searched(
    host: &Namespace,
    interface: &str,
    from: Ipv6Addr,
    to: &[Ipv6Addr],
) -> Result<Vec<String>> {
    let index = host.ifindex(interface)?;
    host.within(|| -> Result<Vec<String>> {
        let socket = searcher(from, index)?;
        for to in to {
            // Not every address can be reached from every other one.
            drop(socket.send_to(wish(*to).as_bytes(), SocketAddrV6::new(*to, 1900, 0, index)));
        }
        let mut answers = Vec::new();
        let mut answer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut answer) {
            let text = String::from_utf8_lossy(&answer[..length]).into_owned();
            answers.push(format!("{from}: {text}"));
        }
        Ok(answers)
    })?
}

fn wish(to: Ipv6Addr) -> String {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: [{to}]:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:2\r\n\r\n"
    )
}

fn searcher(from: Ipv6Addr, index: u32) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SocketAddrV6::new(from, 0, 0, index).into())?;
    socket.set_multicast_if_v6(index)?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(SILENCE))?;
    Ok(socket)
}

fn found(host: &Namespace, from: Ipv6Addr, to: Ipv6Addr) -> Result<String> {
    wait::until_ok("an answer to a search", SOON, || {
        search(host, "eth0", from, to)?.context("none")
    })
}

/// The description from there, by a host of the link, which waits so long for a connection.
fn description(
    host: &Namespace,
    interface: &str,
    at: SocketAddrV6,
    within: Duration,
) -> Result<String> {
    let mut to = at;
    // The zone is a number of the router; here it is another link's.
    let is_of_link = at.ip().is_unicast_link_local();
    to.set_scope_id(if is_of_link {
        host.ifindex(interface)?
    } else {
        0
    });
    let bare = SocketAddrV6::new(*at.ip(), at.port(), 0, 0);
    host.within(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V6(to), within)?;
        stream.set_read_timeout(Some(SOON))?;
        write!(
            stream,
            "GET /igd2/desc.xml HTTP/1.1\r\nHost: {bare}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(answer)
    })?
}

#[test]
fn hosts_find_the_gateway_by_groups_of_both_scopes_and_addresses_are_followed() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "")?;
    let gateway = link_local(&lab.cpe, LAN_BRIDGE)?;
    let own = link_local(&lab.lan1, "eth0")?;
    let all = served_on(&iwfd, &[GATEWAY_6])?;
    for at in &all {
        let text = description(&lab.lan1, "eth0", *at, SOON)?;
        ensure!(text.contains("InternetGatewayDevice:2"), "{text}");
    }
    // Of the scope that was asked in.
    let location = found(&lab.lan1, own, OF_LINK)?;
    ensure!(
        location == format!("http://[{gateway}]:5000/igd2/desc.xml"),
        "{location}"
    );
    let location = found(&lab.lan1, LAN1_6, OF_SITE)?;
    ensure!(
        location == format!("http://[{GATEWAY_6}]:5000/igd2/desc.xml"),
        "{location}"
    );

    // A host that is not of the link, though it sends there.
    let foreign: Ipv6Addr = "2a0e:5::5".parse()?;
    lab.lan1
        .ip(&format!("address add {foreign}/64 dev eth0 nodad"))?;
    lab.cpe
        .ip(&format!("-6 route add {foreign}/128 dev {LAN_BRIDGE}"))?;
    for to in [OF_SITE, OF_LINK, GATEWAY_6] {
        let answer = search(&lab.lan1, "eth0", foreign, to)?;
        ensure!(answer.is_none(), "a host off the link was told {answer:?}");
    }
    found(&lab.lan1, LAN1_6, OF_SITE)?;

    // An address that comes, with its test for duplicates, and goes.
    lab.cpe
        .ip(&format!("address add {LATER}/64 dev {LAN_BRIDGE}"))?;
    lab.lan1.ip("address add fd00:77::10/64 dev eth0 nodad")?;
    let all = served_on(&iwfd, &[GATEWAY_6, LATER])?;
    let at = all.iter().find(|at| *at.ip() == LATER).context("there")?;
    description(&lab.lan1, "eth0", *at, SOON)?;
    let location = found(&lab.lan1, "fd00:77::10".parse()?, OF_SITE)?;
    ensure!(location.contains(&format!("[{LATER}]")), "{location}");
    let mut ear = Ear::open(&lab.lan1, "eth0", OF_SITE.into())?;
    lab.cpe
        .ip(&format!("address del {LATER}/64 dev {LAN_BRIDGE}"))?;
    served_on(&iwfd, &[GATEWAY_6])?;
    wait::until_ok("a goodbye from the address that has gone", SOON, || {
        let heard = ear.heard()?;
        let goodbye = |m: &&Message| m.from == LATER && m.kind() == "byebye";
        let goodbyes = heard.iter().filter(goodbye).count();
        ensure!(goodbyes == SET, "{goodbyes} in {heard:?}");
        let of_other = |m: &Message| m.from == GATEWAY_6 && m.kind() == "alive";
        ensure!(heard.iter().any(of_other), "{heard:?}");
        Ok(())
    })
}

/// SUBSCRIBE there with that callback.
fn subscribe(host: &Namespace, at: SocketAddrV6, callback: &str) -> Result<Answer> {
    let mut to = at;
    let is_of_link = at.ip().is_unicast_link_local();
    to.set_scope_id(if is_of_link { host.ifindex("eth0")? } else { 0 });
    let bare = SocketAddrV6::new(*at.ip(), at.port(), 0, 0);
    let request = format!(
        "SUBSCRIBE /igd2/evt/WANIPConn HTTP/1.1\r\nHOST: {bare}\r\nCALLBACK: <{callback}>\r\nNT: upnp:event\r\n\
         TIMEOUT: Second-1800\r\nConnection: close\r\n\r\n"
    );
    igd::exchange(host, to, request.as_bytes())
}

/// GENA-001, GENA-003 and GENA-005 over IPv6: by addresses of either scope, and to hosts of the link only.
#[test]
fn events_go_to_hosts_of_the_link_over_ipv6() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "")?;
    let own = link_local(&lab.lan1, "eth0")?;
    let all = served_on(&iwfd, &[GATEWAY_6])?;
    let tap = Tap::start(&lab, &lab.cgn, "br0", "ip6 and tcp")?;
    let mut subscribers = Vec::new();
    for at in &all {
        for address in [own, LAN1_6] {
            let subscriber = Subscriber::start(&lab.lan1, address, Manner::Good)?;
            let answer = subscribe(&lab.lan1, *at, &subscriber.url())?.ok()?;
            let sid = answer.header("sid").context("a SID")?.to_owned();
            let first = subscriber.wait_for("the first message", SOON, |m| m.seq == 0)?;
            ensure!(first.sid == sid, "{first:?}");
            let host = format!("HOST: [{address}]:");
            ensure!(first.head.contains(&host), "{}", first.head);
            subscribers.push(subscriber);
        }
    }
    // As programs write an address of the link, in a zone of their own.
    let subscriber = Subscriber::start(&lab.lan1, own, Manner::Good)?;
    let url = subscriber
        .url()
        .replace(&own.to_string(), &format!("{own}%25eth0"));
    subscribe(&lab.lan1, all[0], &url)?.ok()?;
    subscriber.wait_for("the first message", SOON, |m| m.seq == 0)?;
    subscribers.push(subscriber);
    let gateway = igd::Gateway::discover(&lab.lan1)?;
    gateway.add("TCP", 9090, LAN1, 8080, 3600)?.ok()?;
    for subscriber in &subscribers {
        subscriber.wait_for("the change", SOON, |m| {
            m.value("PortMappingNumberOfEntries") == Some("1")
        })?;
    }

    let gateway = link_local(&lab.cpe, LAN_BRIDGE)?;
    for callback in [
        format!("http://[{REMOTE_6}]:5000/"),
        format!("http://[{WAN_6}]:5000/"),
        format!("http://[{GATEWAY_6}]:5000/"),
        format!("http://[{gateway}]:5000/"),
        "http://[ff02::1]:5000/".to_owned(),
        "http://[::1]:5000/".to_owned(),
        "http://192.168.1.11:5000/".to_owned(),
        format!("http://[{LAN1_6}]:22/"),
    ] {
        for at in &all {
            let answer = subscribe(&lab.lan1, *at, &callback)?;
            ensure!(answer.status == 412, "{callback}: {}", answer.text);
        }
    }
    // A host is the same by all of its addresses, and has its bound.
    for _ in subscribers.len()..16 {
        subscribe(&lab.lan1, all[0], &subscribers[0].url())?.ok()?;
    }
    for at in &all {
        let refused = subscribe(&lab.lan1, *at, &subscribers[0].url())?;
        ensure!(refused.status == 503, "{}", refused.text);
    }
    let frames = tap.frames()?;
    ensure!(frames.is_empty(), "{} have left by the WAN", frames.len());
    Ok(())
}

#[test]
fn a_real_client_works_over_ipv6() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "")?;
    link_local(&lab.lan1, "eth0")?;
    served_on(&iwfd, &[GATEWAY_6])?;
    wait::until_ok("upnpc to find the gateway", SOON, || {
        let call = upnpc::call(&lab.lan1, &["-6", "-i", "-s"])?;
        call.line("IGD : http://[")?;
        call.line("Status : Connected").map(drop)
    })?;
    // An IPv4 mapping of the host itself, which is known by its MAC address; and of another one.
    let call = upnpc::call(
        &lab.lan1,
        &[
            "-6",
            "-i",
            "-a",
            "192.168.1.10",
            "8080",
            "8080",
            "TCP",
            "600",
        ],
    )?;
    call.line("is redirected to internal 192.168.1.10:8080")?;
    let call = upnpc::call(
        &lab.lan1,
        &[
            "-6",
            "-i",
            "-a",
            "192.168.1.11",
            "8081",
            "8081",
            "TCP",
            "600",
        ],
    )?;
    call.line("failed with code 606")?;
    Ok(())
}

/// SEC-01 for IPv6: by the binding of the sockets alone, and with the filter.
#[test]
fn nothing_for_lan_hosts_is_open_to_the_wan_over_ipv6() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    lab.cpe
        .ip(&format!("address add {LATER}/64 dev {LAN_BRIDGE} nodad"))?;
    lab.lan1.ip("address add fd00:77::10/64 dev eth0 nodad")?;
    // So that whoever is outside has a way to it as well.
    lab.cgn
        .ip(&format!("-6 route add {LATER}/64 via {WAN_6}"))?;
    for filter in [false, true] {
        let more = if filter {
            "[ipv6]\nfilter = true\n"
        } else {
            "[ipv6]\nfilter = false\n"
        };
        let mut iwfd = start(&lab, more)?;
        let lan = served_on(&iwfd, &[GATEWAY_6, LATER])?;
        for at in &lan {
            description(&lab.lan1, "eth0", *at, SOON)?;
        }
        let wan = link_local(&lab.cpe, WAN_IF)?;
        let port = lan[0].port();
        // Global, unique local and link-local ones of the LAN, and the WAN's own.
        let addresses: Vec<_> = lan.iter().map(|at| *at.ip()).chain([WAN_6, wan]).collect();
        let groups = [OF_LINK, OF_SITE];
        let carrier = link_local(&lab.cgn, "br0")?;
        // All at once: each waits for an answer that does not come.
        let mut tries = Vec::new();
        for (host, interface, from) in [
            (&lab.cgn, "br0", carrier),
            (&lab.cgn, "br0", CARRIER_6),
            (&lab.inet, "eth0", REMOTE_6),
        ] {
            for addr in addresses.clone() {
                let at = SocketAddrV6::new(addr, port, 0, 0);
                let host = host.clone();
                tries.push(thread::spawn(move || {
                    let opened = description(&host, interface, at, SILENCE);
                    ensure!(opened.is_err(), "{at} from {}", host.name());
                    Ok(())
                }));
            }
            let to: Vec<_> = addresses.iter().chain(&groups).copied().collect();
            let host = host.clone();
            tries.push(thread::spawn(move || {
                let answers = searched(&host, interface, from, &to)?;
                ensure!(answers.is_empty(), "{from}: {answers:?}");
                Ok(())
            }));
        }
        for tried in tries {
            tried.join().expect("it does not panic")?;
        }
        if !filter {
            // They were refused, not lost: packets do get in, and it is the sockets that are closed.
            for addr in [WAN_6, GATEWAY_6, LATER] {
                let to = SocketAddr::from((addr, port));
                let opened = lab.cgn.within(|| TcpStream::connect_timeout(&to, SOON))?;
                let kind = opened.expect_err("closed").kind();
                ensure!(kind == ErrorKind::ConnectionRefused, "{addr}: {kind}");
            }
        }
        let listening = lab.cpe.must(&["ss", "-6Htulnp"])?;
        let mut bound = 0;
        for line in listening.lines().filter(|line| line.contains("iwfd")) {
            ensure!(line.contains(&format!("%{LAN_BRIDGE}")), "{line}");
            bound += 1;
        }
        ensure!(bound > lan.len(), "{listening}");
        // All the while it was there.
        found(&lab.lan1, LAN1_6, OF_SITE)?;
        iwfd.stop()?;
    }
    Ok(())
}
