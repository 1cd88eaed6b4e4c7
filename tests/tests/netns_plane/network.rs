//! The data plane follows addresses, next hops, ports and stations.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use iwf_tests::peers::Echo;
use iwf_tests::topology::{CARRIER, LAN_BRIDGE, LAN1, REMOTE, WAN, WAN_IF};
use iwf_tests::{netns, peers, wait};
use iwf_userspace::daemon::dataplane::DataPlane;
use iwf_userspace::daemon::dataplane::inspect::SessionRow;
use iwf_userspace::daemon::dataplane::kernel::KernelPlane;
use iwf_userspace::types::Protocol;

use crate::SOON;
use crate::router::{Router, entry, sessions};

#[test]
fn a_new_external_address_ends_everything_of_the_old_one() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let echo = Echo::listen(&router.lab.cgn, 0)?;
    let carrier = SocketAddrV4::new(CARRIER, echo.port());
    peers::udp_echo(&router.lab.lan1, carrier, "old", SOON)?;
    router
        .plane
        .write(&entry(Protocol::Tcp, 9090, (LAN1, 8080), 1))?;

    let moved = Ipv4Addr::new(100, 64, 0, 77);
    router.lab.cpe.ip(&format!("addr flush dev {WAN_IF}"))?;
    router.lab.cpe.address(WAN_IF, moved, 24)?;
    router
        .lab
        .cpe
        .ip(&format!("route add default via {CARRIER}"))?;
    router.follow(|state| state.external_addr == Some(moved) && state.wan.gateway.is_some())?;
    assert_eq!(router.plane.observe()?, []);
    // Packets do not use them any more; they are taken out in slices.
    router.plane.settle()?;
    let of = |router: &mut Router, addr: Ipv4Addr| -> Result<usize> {
        let of_addr = |s: &SessionRow| s.external.is_some_and(|external| external.ip() == addr);
        Ok(sessions(router)?.iter().filter(|s| of_addr(s)).count())
    };
    assert_eq!(of(&mut router, WAN)?, 0);
    peers::udp_echo(&router.lab.lan1, carrier, "new", SOON)?;
    assert_eq!(of(&mut router, WAN)?, 0);
    assert_ne!(of(&mut router, moved)?, 0);
    Ok(())
}

#[test]
fn next_hops_follow_a_host_that_moves() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let echo = Echo::listen(&router.lab.cgn, 0)?;
    let carrier = SocketAddrV4::new(CARRIER, echo.port());
    peers::udp_echo(&router.lab.lan1, carrier, "before", SOON)?;
    let mut transfer = peers::Transfer::start(&router.lab.lan1, carrier)?;
    transfer.goes_on(100_000, SOON)?;

    let before = router.state().next_hops;
    // Another network card with the same address: the bridge and the neighbour table hear of it.
    router
        .lab
        .lan1
        .ip("link set eth0 address 02:00:00:00:77:01")?;
    router.lab.lan1.must(&[
        "ping",
        "-c",
        "1",
        "-W",
        "2",
        &Ipv4Addr::new(192, 168, 1, 1).to_string(),
    ])?;
    router.follow(|state| {
        state.next_hops != before && state.fdb.iter().any(|e| e.mac == [2, 0, 0, 0, 0x77, 1])
    })?;
    transfer.goes_on(100_000, SOON)?;
    transfer.finish().map(drop)
}

#[test]
fn a_port_that_joins_the_bridge_is_attached_and_one_that_leaves_is_not() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let ports = router.state().ports.len();
    netns::veth((&router.lab.cpe, "lan3p"), (&router.lab.lan2, "eth1"))?;
    router
        .lab
        .cpe
        .ip(&format!("link set lan3p master {LAN_BRIDGE} up"))?;
    router.follow(|state| state.ports.len() == ports + 1)?;
    let xdp = |router: &Router| -> Result<Vec<String>> {
        let objects = iwf_tests::bpf::Objects::of(&router.lab.cpe)?;
        Ok(objects.xdp.into_iter().map(|(name, _)| name).collect())
    };
    assert!(xdp(&router)?.contains(&"lan3p".to_owned()));

    router.lab.cpe.ip("link set lan3p nomaster")?;
    router.follow(|state| state.ports.len() == ports)?;
    wait::until_ok("the program to be detached", SOON, || {
        ensure!(!xdp(&router)?.contains(&"lan3p".to_owned()));
        Ok(())
    })
}

#[test]
fn a_station_that_the_bridge_has_forgotten_outlives_the_daemon() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let far = Echo::listen(&router.lab.inet, 0)?;
    let inet = SocketAddrV4::new(REMOTE, far.port());
    peers::udp_echo(&router.lab.lan1, inet, "learn me", SOON)?;
    router.follow(|state| !state.fdb.is_empty())?;

    // The bridge learns nothing from what XDP forwards, so an idle host ages out of it.
    let mac = router.lab.lan1.mac("eth0")?;
    let told = router.state();
    router.plane = router
        .lab
        .cpe
        .within(|| KernelPlane::open(&router.settings))??;
    let mut config = told.plane_config(Vec::new());
    config.fdb.retain(|entry| entry.mac != mac);
    ensure!(config.fdb.len() < told.fdb.len(), "was known");
    let Router { lab, plane, .. } = &mut router;
    lab.cpe.within(|| plane.configure(&config))??;
    let before = router.count("forwarded_in")?;
    peers::udp_echo(&router.lab.lan1, inet, "still known", SOON)?;
    ensure!(
        router.count("forwarded_in")? > before,
        "the way to its port is lost"
    );
    Ok(())
}
