//! What kinds of devices carry, and how fast a way it takes.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use iwf_tests::peers::Echo;
use iwf_tests::topology::{CARRIER, LAN1, LAN2, Lab, REMOTE, WAN, WAN_IF};
use iwf_tests::wire::Wire;
use iwf_tests::{bpf, netns, peers, wait};
use iwf_userspace::daemon::config::AttachMode;
use iwf_userspace::daemon::dataplane::inspect::Transport;
use iwf_userspace::daemon::dataplane::kernel::KernelPlane;
use iwf_userspace::daemon::dataplane::{DataPlane, Port, Role, kernel};
use iwf_userspace::types::Protocol;

use crate::router::{Router, entry, sessions};
use crate::{SILENCE, SOON};

#[test]
fn traffic_of_every_kind_takes_the_fast_path_in_both_directions() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let echo = Echo::listen(&router.lab.cgn, 0)?;
    let carrier = SocketAddrV4::new(CARRIER, echo.port());
    let far = Echo::listen(&router.lab.inet, 0)?;
    let inet = SocketAddrV4::new(REMOTE, far.port());
    for host in [&router.lab.lan1, &router.lab.lan2] {
        for to in [carrier, inet] {
            peers::udp_echo(host, to, "udp", SOON)?;
            peers::tcp_echo(host, to, &"a longer text ".repeat(1000), SOON)?;
        }
        host.must(&[
            "ping",
            "-c",
            "3",
            "-i",
            "0.1",
            "-W",
            "2",
            &REMOTE.to_string(),
        ])?;
    }
    // Sessions begun before the bridge had told where the hosts are must find the short way, too.
    let mut transfer = peers::Transfer::start(&router.lab.lan1, inet)?;
    transfer.goes_on(100_000, SOON)?;
    router.follow(|state| state.fdb.len() == 2)?;
    transfer.goes_on(100_000, SOON)?;
    let (out, back) = (
        router.count("forwarded_out")?,
        router.count("forwarded_in")?,
    );
    transfer.goes_on(1 << 20, SOON)?;
    transfer.finish()?;
    // A megabyte is 700 full segments, and the echo as many.
    for (name, before) in [("forwarded_out", out), ("forwarded_in", back)] {
        let more = router.count(name)? - before;
        ensure!(more > 300, "{name} grew by {more} only: not the fast path");
    }
    let far = SocketAddr::from((REMOTE, far.port()));
    assert!(
        sessions(&mut router)?
            .iter()
            .any(|s| s.protocol == Transport(6)
                && s.internal.ip() == LAN1
                && s.external.is_some_and(|external| external.ip() == WAN)
                && s.remote == far)
    );
    Ok(())
}

/// The kernel drops frames redirected to a veth whose other end has neither XDP nor GRO.
#[test]
fn a_device_that_takes_no_redirected_frames_is_served_by_the_stack() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let gro = |router: &Router, state: &str| {
        let argv = ["ethtool", "-K", "eth0", "gro", state];
        router.lab.lan1.must(&argv).map(drop)
    };
    gro(&router, "off")?;
    router.configure()?;
    let far = Echo::listen(&router.lab.inet, 0)?;
    let inet = SocketAddrV4::new(REMOTE, far.port());
    peers::udp_echo(&router.lab.lan1, inet, "udp", SOON)?;
    peers::tcp_echo(&router.lab.lan1, inet, "tcp", SOON)?;
    assert_eq!(router.count("forwarded_in")?, 0);
    assert!(router.count("pass_no_redirect")? > 0);

    gro(&router, "on")?;
    router.follow(|state| !state.fdb.is_empty())?;
    peers::udp_echo(&router.lab.lan1, inet, "the short way again", SOON)?;
    assert!(router.count("forwarded_in")? > 0);
    Ok(())
}

/// PPP links and tunnels carry packets without an Ethernet header, and have no neighbours.
#[test]
fn a_wan_without_ethernet_is_translated_in_both_directions() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let (wan, far) = (Ipv4Addr::new(100, 64, 9, 2), Ipv4Addr::new(100, 64, 9, 1));
    let _wire = Wire::between((&router.lab.cpe, "tun0"), (&router.lab.inet, "tun0"))?;
    router.lab.cpe.address("tun0", wan, 24)?;
    router.lab.inet.address("tun0", far, 24)?;
    router.lab.cpe.ip("route replace default dev tun0")?;
    let port = |cpe: &netns::Namespace| -> Result<Port> {
        Ok(Port {
            ifindex: cpe.ifindex("tun0")?,
            name: "tun0".to_owned(),
            role: Role::Wan,
            bridge: None,
            mac: [0; 6],
        })
    };
    let mut config = router.state().plane_config(Vec::new());
    config.external_addr = Some(wan);
    config.ports.retain(|port| port.role == Role::Lan);
    config.ports.push(port(&router.lab.cpe)?);
    let Router { lab, plane, .. } = &mut router;
    lab.cpe.within(|| plane.configure(&config))??;

    let outside = Echo::listen(&router.lab.inet, 0)?;
    let text = "a longer text ".repeat(5000);
    let to = SocketAddrV4::new(far, outside.port());
    // Datagrams: segments may be joined before they come to WAN egress, as the receive queue happens to be filled.
    for _ in 0..51 {
        peers::udp_echo(&router.lab.lan1, to, "udp", SOON)?;
    }
    peers::tcp_echo(&router.lab.lan1, to, &text, SOON)?;
    ensure!(router.count("translated_egress")? > 50, "by our program");
    assert_eq!(router.count("drop_private_source")?, 0);
    // Sources outside are the external address: the far end has no route to any other.
    let inside = Echo::listen(&router.lab.lan1, 0)?;
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let mut mapping = entry(protocol, 9090, (LAN1, inside.port()), 1);
        mapping.external.addr = wan;
        router.plane.write(&mapping)?;
    }
    let mapped = SocketAddrV4::new(wan, 9090);
    peers::udp_echo(&router.lab.inet, mapped, "udp", SOON)?;
    peers::tcp_echo(&router.lab.inet, mapped, &text, SOON)?;
    // The router's own.
    peers::tcp_echo(&router.lab.cpe, to, "the router", SOON)?;

    // Another daemon finds what is attached, and nothing of a connection is lost.
    let mut transfer = peers::Transfer::start(&router.lab.lan1, to)?;
    transfer.goes_on(100_000, SOON)?;
    let settings = router.settings.clone();
    router.plane = router.lab.cpe.within(|| KernelPlane::open(&settings))??;
    let Router { lab, plane, .. } = &mut router;
    lab.cpe.within(|| plane.configure(&config))??;
    transfer.goes_on(100_000, SOON)?;
    transfer.finish()?;

    // Without programs nothing is translated, and the far end does not know the LAN.
    let dir = router.settings.bpffs_dir.clone();
    router.lab.cpe.within(|| kernel::detach(&dir))??;
    wait::until_ok("the programs to be gone", SOON, || {
        let left = router.lab.cpe.must(&["bpftool", "net", "show"]);
        match left {
            Ok(left) => ensure!(!left.contains("iwf_"), "{left}"),
            // Not on every machine; the echo below says the same.
            Err(_) => return Ok(()),
        }
        Ok(())
    })?;
    wait::until_ok("nothing to be translated", SOON, || {
        peers::udp_is_closed(&router.lab.lan1, to, SILENCE)
    })
}

/// Segments stay together through tc: the checksums are left to the device, and so is the cutting.
#[test]
fn tc_mode_keeps_segmentation_offload() -> Result<()> {
    let offloads = |lab: &Lab| {
        for (host, interface) in [
            (&lab.lan1, "eth0"),
            (&lab.lan2, "eth0"),
            (&lab.cgn, "br0"),
            (&lab.inet, "eth0"),
        ] {
            let argv = [
                "ethtool", "-K", interface, "tx", "on", "tso", "on", "gso", "on",
            ];
            host.must(&argv)?;
        }
        Ok(())
    };
    let Some(mut router) = Router::with(AttachMode::Tc, offloads)? else {
        return Ok(());
    };
    let far = Echo::listen(&router.lab.inet, 0)?;
    let inet = SocketAddrV4::new(REMOTE, far.port());
    peers::udp_echo(&router.lab.lan1, inet, "udp", SOON)?;
    peers::tcp_echo(&router.lab.lan1, inet, &"a longer text ".repeat(1000), SOON)?;
    router.follow(|state| state.fdb.len() == 2 || !state.fdb.is_empty())?;
    let mut transfer = peers::Transfer::start(&router.lab.lan1, inet)?;
    transfer.goes_on(1 << 20, SOON)?;
    let (out, back) = (
        router.count("forwarded_out")?,
        router.count("forwarded_in")?,
    );
    transfer.goes_on(16 << 20, SOON)?;
    let moved = transfer.finish()?;
    let (out, back) = (
        router.count("forwarded_out")? - out,
        router.count("forwarded_in")? - back,
    );
    ensure!(out > 0 && back > 0, "{out} and {back}: not by our programs");
    // 16 MiB each way are 11,600 full segments.
    ensure!(out < 6000, "{out} packets for {moved} octets: segmented");
    for dropped in ["drop_private_source", "drop_rewrite_failed"] {
        assert_eq!(router.count(dropped)?, 0, "{dropped}");
    }

    // Unasked from outside, through a mapping.
    let echo = Echo::listen(&router.lab.lan2, 0)?;
    router
        .plane
        .write(&entry(Protocol::Tcp, 9091, (LAN2, echo.port()), 1))?;
    let mapped = SocketAddrV4::new(WAN, 9091);
    peers::tcp_echo(&router.lab.cgn, mapped, &"in ".repeat(10_000), SOON)?;
    Ok(())
}

/// Somebody else's XDP program is in the way: both kinds of XDP are refused.
#[test]
fn a_device_that_refuses_xdp_is_served_by_tc() -> Result<()> {
    let mut occupied = None;
    let occupy = |lab: &Lab| {
        occupied = Some(lab.cpe.within(|| occupy(&["lan1p", WAN_IF]))??);
        Ok(())
    };
    let Some(mut router) = Router::with(AttachMode::Auto, occupy)? else {
        return Ok(());
    };
    let far = Echo::listen(&router.lab.inet, 0)?;
    let inet = SocketAddrV4::new(REMOTE, far.port());
    for host in [&router.lab.lan1, &router.lab.lan2] {
        peers::udp_echo(host, inet, "udp", SOON)?;
        peers::tcp_echo(host, inet, &"a longer text ".repeat(1000), SOON)?;
    }
    router.follow(|state| !state.fdb.is_empty())?;
    ensure!(router.count("forwarded_out")? > 0, "lan1 by tc");
    ensure!(router.count("forwarded_in")? > 0, "the WAN by tc");

    // It goes: the next start takes XDP and drops what stood in for it.
    drop(occupied.take());
    let settings = router.settings.clone();
    wait::until_ok("XDP everywhere", SOON, || {
        router.plane = router.lab.cpe.within(|| KernelPlane::open(&settings))??;
        router.configure()?;
        let links = std::fs::read_dir(bpf::pinned(&settings.bpffs_dir, "links"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<Vec<_>>>()?;
        let xdp = |link: &String| link.contains("-native-");
        ensure!(
            links.iter().filter(|link| xdp(link)).count() == 3,
            "{links:?}"
        );
        ensure!(links.len() == 4, "with WAN egress: {links:?}");
        Ok(())
    })?;
    for host in [&router.lab.lan1, &router.lab.lan2] {
        peers::udp_echo(host, inet, "udp", SOON)?;
    }
    Ok(())
}

/// Attaches a program that passes everything; it goes when the value drops.
fn occupy(interfaces: &[&str]) -> Result<aya::Ebpf> {
    let mut ebpf = aya::Ebpf::load(iwf_userspace::daemon::dataplane::object::OBJECT)?;
    let program: &mut aya::programs::Xdp = ebpf
        .program_mut(iwf_common::names::XDP_PASS)
        .context("iwf_xdp_pass")?
        .try_into()?;
    program.load()?;
    for interface in interfaces {
        program.attach(interface, aya::programs::XdpMode::Driver)?;
    }
    Ok(ebpf)
}
