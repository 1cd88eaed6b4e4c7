//! Everything else on the router goes on as before: its own sockets, somebody's nftables, containers, tunnels, routed networks.
#![expect(
    clippy::disallowed_types,
    reason = "the tests talk over sockets of their own"
)]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::bpf;
use iwf_tests::daemon::{Files, Iwfd, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{CARRIER, LAN1, Lab, REMOTE, WAN};
use iwf_tests::wait;

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(1);
/// The daemon looks at the sockets every five seconds.
const LOOKED: Duration = Duration::from_secs(12);
const BOTH: [(u8, &str); 2] = [(6, "TCP"), (17, "UDP")];

fn local() -> Options {
    Options {
        mode: "local",
        ..Options::default()
    }
}

fn load_rules(host: &Namespace, lab: &Lab, rules: &str) -> Result<()> {
    let file = lab.dir().join("others.nft");
    std::fs::write(&file, rules).context("write a ruleset")?;
    host.must(&["nft", "-f", &file.display().to_string()])
        .map(drop)
}

fn both_echo(host: &Namespace, to: SocketAddrV4) -> Result<()> {
    peers::udp_echo(host, to, "over UDP", SOON)?;
    peers::tcp_echo(host, to, "over TCP", SOON)
}

/// Sends from `port` of a host to a socket and says which source port arrives there.
fn seen_source_port(host: &Namespace, port: u16, at: &UdpSocket) -> Result<SocketAddrV4> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    let socket = host.within(|| UdpSocket::bind(any))??;
    arrives(&socket, "who am I", at, at.local_addr()?)
}

/// Sends that text from one socket until it arrives at another, and says from where.
fn arrives(
    socket: &UdpSocket,
    text: &str,
    at: &UdpSocket,
    to: impl Into<SocketAddr>,
) -> Result<SocketAddrV4> {
    // What was sent more often than it had to be is no answer to a later question.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let text = format!("{text} {}", NEXT.fetch_add(1, Ordering::Relaxed));
    let to = to.into();
    at.set_read_timeout(Some(Duration::from_millis(200)))?;
    wait::until_ok("a datagram", SOON, || {
        socket.send_to(text.as_bytes(), to)?;
        let mut buf = [0; 64];
        loop {
            let (len, from) = at.recv_from(&mut buf)?;
            if &buf[..len] == text.as_bytes() {
                match from {
                    SocketAddr::V4(from) => return Ok(from),
                    SocketAddr::V6(from) => anyhow::bail!("{from}"),
                }
            }
        }
    })
}

#[test]
fn a_port_that_the_router_listens_on_is_no_lan_hosts_until_it_is_closed() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _iwfd = Iwfd::start(&lab, &local())?;
    let bpffs = Files::of(&lab).bpffs_dir;
    let gateway = Gateway::discover(&lab.lan1)?;
    let far = lab.cgn.within(|| UdpSocket::bind((CARRIER, 0)))??;

    let echo = Echo::listen(&lab.cpe, 0)?;
    let port = echo.port();
    wait::until("the port to be kept", LOOKED, || {
        let kept = bpf::own_sockets(&bpffs).ok()?;
        BOTH.iter()
            .all(|(number, _)| kept.contains(&(*number, port)))
            .then_some(())
    })?;

    // A LAN host that sends from that port gets another one, and cannot ask for it.
    let seen = seen_source_port(&lab.lan1, port, &far)?;
    ensure!(
        *seen.ip() == WAN && seen.port() != port,
        "a LAN host has {seen}"
    );
    for (_, protocol) in BOTH {
        let answer = gateway.add(protocol, port, LAN1, 7000, 600)?;
        assert_eq!(answer.error(), Some(718), "{}", answer.text);
    }
    // Nobody is let in for it.
    let target = SocketAddrV4::new(WAN, port);
    peers::tcp_is_closed(&lab.cgn, target, SILENCE)?;
    peers::udp_is_closed(&lab.cgn, target, SILENCE)?;

    drop(echo);
    wait::until("the port to be given up", LOOKED, || {
        let kept = bpf::own_sockets(&bpffs).ok()?;
        BOTH.iter()
            .all(|(number, _)| !kept.contains(&(*number, port)))
            .then_some(())
    })?;
    for (_, protocol) in BOTH {
        gateway.add(protocol, port, LAN1, 7000, 600)?.ok()?;
    }
    Ok(())
}

#[test]
fn a_lan_host_keeps_the_port_it_has_and_the_routers_socket_still_works() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _iwfd = Iwfd::start(&lab, &local())?;
    let far = lab.cgn.within(|| UdpSocket::bind((CARRIER, 0)))??;
    let own = lab.cpe.within(|| UdpSocket::bind((WAN, 0)))??;
    let port = own.local_addr()?.port();
    drop(own);
    let first = seen_source_port(&lab.lan1, port, &far)?;
    assert_eq!(first, SocketAddrV4::new(WAN, port), "kept as it was");

    let own = lab.cpe.within(|| UdpSocket::bind((WAN, port)))??;
    let from = arrives(&own, "mine", &far, far.local_addr()?)?;
    assert_ne!(
        from.port(),
        port,
        "the router's own flow is translated instead"
    );
    arrives(&far, "yours", &own, from)?;
    let again = seen_source_port(&lab.lan1, port, &far)?;
    assert_eq!(again, first, "the LAN host's mapping has not moved");
    Ok(())
}

#[test]
fn the_routers_own_flows_and_open_ports_work() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let service = Echo::listen(&lab.cpe, 0)?;
    let options = Options {
        open_ports: vec![service.port()],
        ..local()
    };
    let _iwfd = Iwfd::start(&lab, &options)?;
    both_echo(&lab.cgn, SocketAddrV4::new(WAN, service.port()))?;
    let outside = Echo::listen(&lab.inet, 0)?;
    both_echo(&lab.cpe, SocketAddrV4::new(REMOTE, outside.port()))?;
    lab.cpe
        .must(&["ping", "-n", "-c", "2", "-W", "2", &REMOTE.to_string()])?;
    Ok(())
}

#[test]
fn rules_of_others_hold_and_their_flush_takes_nothing_of_ours() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let own = Echo::listen(&lab.cpe, 0)?;
    let refused = Echo::listen(&lab.cpe, 0)?;
    load_rules(
        &lab.cpe,
        &lab,
        &format!(
            "table inet others {{
               chain input {{
                 type filter hook input priority 0; policy drop;
                 iif lo accept
                 ct state established,related accept
                 iifname br-lan udp dport 1900 accept
                 iifname br-lan tcp dport 5000 accept
                 iifname br-lan tcp dport {0} accept
                 iifname br-lan udp dport {0} accept
                 meta l4proto icmp accept
               }}
               chain forward {{
                 type filter hook forward priority 0; policy drop;
                 iifname br-lan accept
                 ct state established,related accept
                 iifname wan0 oifname br-lan accept
               }}
             }}",
            own.port()
        ),
    )?;
    let _iwfd = Iwfd::start(&lab, &local())?;
    let outside = Echo::listen(&lab.inet, 0)?;
    let remote = SocketAddrV4::new(REMOTE, outside.port());
    both_echo(&lab.lan1, remote)?;
    both_echo(&lab.cpe, remote)?;
    let gateway = Gateway::discover(&lab.lan1)?;
    let inside = Echo::listen(&lab.lan1, 0)?;
    for (_, protocol) in BOTH {
        gateway
            .add(protocol, 20000, LAN1, inside.port(), 3600)?
            .ok()?;
    }
    let mapped = SocketAddrV4::new(WAN, 20000);
    both_echo(&lab.cgn, mapped)?;
    let at_gateway = |port| SocketAddrV4::new(iwf_tests::topology::GATEWAY, port);
    both_echo(&lab.lan1, at_gateway(own.port()))?;
    peers::tcp_is_closed(&lab.lan1, at_gateway(refused.port()), SILENCE)?;

    lab.cpe.must(&["nft", "flush", "ruleset"])?;
    both_echo(&lab.cgn, mapped)?;
    both_echo(&lab.lan1, remote)
}

#[test]
fn a_container_that_somebody_masquerades_reaches_the_internet() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let ends = (Ipv4Addr::new(10, 55, 0, 2), Ipv4Addr::new(10, 55, 0, 1));
    let container = lab.joined_to_cpe("box", "box0", ends)?;
    load_rules(
        &lab.cpe,
        &lab,
        "table ip containers {
           chain postrouting {
             type nat hook postrouting priority srcnat;
             ip saddr 10.55.0.0/24 oifname wan0 masquerade
           }
         }",
    )?;
    let _iwfd = Iwfd::start(&lab, &local())?;
    let outside = Echo::listen(&lab.inet, 0)?;
    let remote = SocketAddrV4::new(REMOTE, outside.port());
    both_echo(&container, remote)?;
    both_echo(&lab.lan1, remote)?;
    container
        .must(&["ping", "-n", "-c", "2", "-W", "2", &REMOTE.to_string()])
        .map(drop)
}

#[test]
fn a_tunnel_to_the_lan_is_routed_without_nat() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let ends = (Ipv4Addr::new(10, 99, 0, 2), Ipv4Addr::new(10, 99, 0, 1));
    let far = lab.joined_to_cpe("vpn", "vpn0", ends)?;
    let _iwfd = Iwfd::start(&lab, &local())?;
    let at_far = far.within(|| UdpSocket::bind((ends.0, 0)))??;
    let seen = seen_source_port(&lab.lan1, 4500, &at_far)?;
    assert_eq!(seen, SocketAddrV4::new(LAN1, 4500), "untranslated");
    let (there, here) = (Echo::listen(&far, 0)?, Echo::listen(&lab.lan1, 0)?);
    both_echo(&lab.lan1, SocketAddrV4::new(ends.0, there.port()))?;
    both_echo(&far, SocketAddrV4::new(LAN1, here.port()))
}

#[test]
fn a_second_lan_with_addresses_of_its_own_is_routed_to_the_wan() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let ends = (Ipv4Addr::new(11, 44, 0, 2), Ipv4Addr::new(11, 44, 0, 1));
    let dmz = lab.joined_to_cpe("dmz", "dmz0", ends)?;
    lab.cgn.ip(&format!("route add 11.44.0.0/24 via {WAN}"))?;
    let _iwfd = Iwfd::start(&lab, &local())?;
    let at_carrier = lab.cgn.within(|| UdpSocket::bind((CARRIER, 0)))??;
    let seen = seen_source_port(&dmz, 4500, &at_carrier)?;
    assert_eq!(seen, SocketAddrV4::new(ends.0, 4500), "untranslated");
    let (there, here) = (Echo::listen(&lab.cgn, 0)?, Echo::listen(&dmz, 0)?);
    both_echo(&dmz, SocketAddrV4::new(CARRIER, there.port()))?;
    both_echo(&lab.cgn, SocketAddrV4::new(ends.0, here.port()))?;
    // And to the first LAN.
    let inside = Echo::listen(&lab.lan1, 0)?;
    both_echo(&dmz, SocketAddrV4::new(LAN1, inside.port()))
}
