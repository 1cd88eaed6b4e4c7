//! The data plane and the netlink watcher against live maps, devices and traffic, without the daemon above
//! them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::netns::may_run;
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{CARRIER, LAN_BRIDGE, LAN1, LAN2, Lab, REMOTE, WAN, WAN_IF};
use iwf_tests::wire::Wire;
use iwf_tests::{netns, wait};
use iwf_userspace::daemon::config::{AttachMode, EphemeralPorts, Ipv6, MssClamp, Timeouts};
use iwf_userspace::daemon::dataplane::inspect::{SessionFilter, SessionRow, Transport};
use iwf_userspace::daemon::dataplane::kernel::{self, KernelPlane, Settings, TcMode};
use iwf_userspace::daemon::dataplane::{DataPlane, DataPlaneError, HALF_WRITTEN, Port, Role};
use iwf_userspace::daemon::netlink::{self, Interfaces};
use iwf_userspace::daemon::netstate::NetState;
use iwf_userspace::reconcile::plan::Plan;
use iwf_userspace::types::{
    ExternalEndpoint, ExternalPort, Generation, Instant, InternalEndpoint, InternalPort, NatEntry,
    Protocol, RemotePeer, RemotePrefix,
};
use proptest::test_runner::{Config as Cases, TestCaseError, TestRunner};
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(600);

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

#[test]
fn a_mapping_lets_the_wan_in_until_it_is_removed() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let echo = Echo::listen(&router.lab.lan1, 8080)?;
    let outside = SocketAddrV4::new(WAN, 9090);
    peers::tcp_is_closed(&router.lab.cgn, outside, SILENCE)?;
    let [tcp, udp] = [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| entry(protocol, 9090, (LAN1, echo.port()), 1));
    for mapping in [tcp, udp] {
        router.plane.write(&mapping)?;
    }
    peers::tcp_echo(&router.lab.cgn, outside, "hello", SOON)?;
    peers::udp_echo(&router.lab.cgn, outside, "hello", SOON)?;

    let mut transfer = peers::Transfer::start(&router.lab.cgn, outside)?;
    transfer.goes_on(100_000, SOON)?;
    // A renewal ends no session.
    let renewed = NatEntry {
        generation: Generation(2),
        expires: Some(router.instant_in(60)?),
        ..tcp
    };
    router.plane.write(&renewed)?;
    transfer.goes_on(100_000, SOON)?;

    router.plane.remove(&renewed)?;
    router.plane.remove(&udp)?;
    router.plane.settle()?;
    let stuck = transfer.moved();
    peers::tcp_is_closed(&router.lab.cgn, outside, SILENCE)?;
    peers::udp_is_closed(&router.lab.cgn, outside, SILENCE)?;
    assert!(
        transfer.moved() <= stuck + 64 * 1024,
        "its session has ended"
    );
    Ok(())
}

#[test]
fn only_the_named_remote_host_comes_in() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let echo = Echo::listen(&router.lab.lan2, 8081)?;
    let outside = SocketAddrV4::new(WAN, 9091);
    let mut mapping = entry(Protocol::Udp, 9091, (LAN2, echo.port()), 1);
    mapping.remote = RemotePeer::Host(REMOTE);
    router.plane.write(&mapping)?;
    peers::udp_is_closed(&router.lab.cgn, outside, SILENCE)?;
    ensure!(router.count("drop_filtered")? > 0);
    mapping.remote = RemotePeer::Host(CARRIER);
    router.plane.write(&mapping)?;
    peers::udp_echo(&router.lab.cgn, outside, "hello", SOON)
}

/// RFC 6887 section 13.3: a list of remotes in the kernel, changed in place and read back.
#[test]
fn only_the_remotes_of_a_list_come_in() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let echo = Echo::listen(&router.lab.lan2, 8081)?;
    let outside = SocketAddrV4::new(WAN, 9091);
    let list = |prefixes: &[(Ipv4Addr, u8)]| {
        let prefix = |(addr, len): &(Ipv4Addr, u8)| RemotePrefix::new(*addr, *len, 0);
        let prefixes: Vec<_> = prefixes.iter().filter_map(prefix).collect();
        RemotePeer::of(&prefixes)
    };
    let mut mapping = entry(Protocol::Udp, 9091, (LAN2, echo.port()), 1);
    mapping.remote = list(&[(REMOTE, 32), (CARRIER, 30)])?;
    router.plane.write(&mapping)?;
    assert_eq!(router.plane.observe()?, [mapping]);
    peers::udp_echo(&router.lab.cgn, outside, "hello", SOON)?;
    mapping.remote = list(&[(REMOTE, 32), (LAN1, 32)])?;
    router.plane.write(&mapping)?;
    router.plane.settle()?;
    assert_eq!(router.plane.observe()?, [mapping]);
    peers::udp_is_closed(&router.lab.cgn, outside, SILENCE)?;
    ensure!(router.count("drop_filtered")? > 0);
    router.plane.remove(&mapping)?;
    assert_eq!(router.plane.observe()?, []);
    Ok(())
}

/// IGD-010: two external ports of one internal endpoint; the second outlives the first and takes its place.
#[test]
fn two_external_ports_lead_to_one_internal_endpoint() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let echo = Echo::listen(&router.lab.lan2, 8081)?;
    let of = |external, generation| entry(Protocol::Udp, external, (LAN2, echo.port()), generation);
    let (first, second) = (of(9092, 1), of(9091, 2));
    router.plane.write(&first)?;
    router.plane.write(&second)?;
    assert_eq!(router.plane.observe()?, [second, first]);
    for port in [9091, 9092] {
        let outside = SocketAddrV4::new(WAN, port);
        peers::udp_echo(&router.lab.cgn, outside, "hello", SOON)?;
    }
    router.plane.remove(&first)?;
    router.plane.settle()?;
    assert_eq!(router.plane.observe()?, [second]);
    let outside = SocketAddrV4::new(WAN, 9091);
    peers::udp_echo(&router.lab.cgn, outside, "still", SOON)?;
    peers::udp_is_closed(&router.lab.cgn, SocketAddrV4::new(WAN, 9092), SILENCE)
}

#[test]
fn a_mapping_ends_in_the_kernel_without_the_daemon() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let echo = Echo::listen(&router.lab.lan1, 8082)?;
    let outside = SocketAddrV4::new(WAN, 9092);
    let mut mapping = entry(Protocol::Udp, 9092, (LAN1, echo.port()), 1);
    mapping.expires = Some(router.instant_in(3)?);
    router.plane.write(&mapping)?;
    peers::udp_echo(&router.lab.cgn, outside, "in time", Duration::from_secs(2))?;
    wait::until_ok("the mapping to end", Duration::from_secs(5), || {
        peers::udp_is_closed(&router.lab.cgn, outside, Duration::from_millis(300))
    })?;
    // Neither a flow that was there nor a new one gets through, and the sweep frees it.
    router.plane.sweep()?;
    assert_eq!(router.plane.observe()?, []);
    Ok(())
}

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
fn ports_of_the_routers_own_services_are_not_for_mappings() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let own = Echo::listen(&router.lab.cpe, 7070)?;
    let outside = SocketAddrV4::new(WAN, own.port());
    peers::udp_is_closed(&router.lab.cgn, outside, SILENCE)?;
    router.host_ports = vec![(Protocol::Udp, 7070), (Protocol::Tcp, 7070)];
    router.configure()?;
    peers::udp_echo(&router.lab.cgn, outside, "own", SOON)?;
    peers::tcp_echo(&router.lab.cgn, outside, "own", SOON)?;
    let taken = router
        .plane
        .write(&entry(Protocol::Udp, 7070, (LAN1, 7070), 1));
    assert!(matches!(taken, Err(DataPlaneError::InUse)));

    router.host_ports.clear();
    router.configure()?;
    peers::udp_is_closed(&router.lab.cgn, outside, SILENCE)?;
    router
        .plane
        .write(&entry(Protocol::Udp, 7070, (LAN1, 7070), 1))?;
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

#[test]
fn live_tables_fill_up_and_say_so() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let mut written = Vec::new();
    let full = loop {
        let port = 2000 + u16::try_from(written.len())?;
        let new = entry(Protocol::Udp, port, (LAN1, port), u32::from(port));
        match router.plane.write(&new) {
            Ok(_) => written.push(new),
            Err(error) => break error,
        }
        ensure!(written.len() <= MAPPINGS, "more than there is room for");
    };
    assert!(matches!(full, DataPlaneError::Full { .. }), "{full}");
    assert_eq!(router.plane.observe()?, written, "and nothing half-written");
    router.plane.remove(&written[0])?;
    router.plane.write(&written[0])?;
    Ok(())
}

/// Random desired tables, reconciled against the live maps of one router, on top of whatever the case before
/// left and of dynamic mappings that hosts made.
#[test]
fn random_desired_tables_converge_on_live_maps() -> Result<()> {
    let Some(router) = Router::new()? else {
        return Ok(());
    };
    let echo = Echo::listen(&router.lab.cgn, 0)?;
    let carrier = SocketAddrV4::new(CARRIER, echo.port());
    for _ in 0..5 {
        peers::udp_echo(&router.lab.lan1, carrier, "a dynamic mapping", SOON)?;
    }
    let now = router.instant_in(0)?.as_millis();
    let router = std::cell::RefCell::new(router);
    let strategy = proptest::collection::vec(
        (
            proptest::bool::ANY,
            1024u16..1040,
            1024u16..1040,
            proptest::option::of(now + 60_000..now + 86_400_000),
            proptest::bool::ANY,
        ),
        0..12,
    );
    let mut runner = TestRunner::new_with_rng(
        Cases {
            cases: 64,
            failure_persistence: None,
            ..Cases::default()
        },
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let generation = std::cell::Cell::new(0);
    runner
        .run(&strategy, |rows| {
            let mut desired: Vec<NatEntry> = Vec::new();
            for (tcp, external, internal, expires, filtered) in rows {
                generation.set(generation.get() + 1);
                let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
                let new = NatEntry {
                    expires: expires.map(Instant::from_millis),
                    remote: if filtered {
                        RemotePeer::Host(REMOTE)
                    } else {
                        RemotePeer::Any
                    },
                    ..entry(protocol, external, (LAN1, internal), generation.get())
                };
                let clashes = desired.iter().any(|e| {
                    e.protocol == protocol
                        && (e.external == new.external || e.internal == new.internal)
                });
                if !clashes {
                    desired.push(new);
                }
            }
            converge(&mut router.borrow_mut().plane, &desired)
                .map_err(|error| TestCaseError::fail(format!("{error:#}")))
        })
        .map_err(|error| anyhow::anyhow!("{error}"))
}

#[test]
fn a_half_written_mapping_is_told_and_completed() -> Result<()> {
    let Some(mut router) = Router::new()? else {
        return Ok(());
    };
    let whole = entry(Protocol::Udp, 9090, (LAN1, 8080), 7);
    router.plane.write(&whole)?;
    // As a kill between the two writes leaves it.
    let pin = router.settings.bpffs_dir.join("v3/maps/MAPPINGS_INT");
    let map = aya::maps::Map::from_map_data(aya::maps::MapData::from_pin(pin)?)?;
    let mut internal: aya::maps::HashMap<
        _,
        iwf_common::nat::EndpointKey,
        iwf_common::nat::MappingValue,
    > = map.try_into()?;
    internal.remove(&iwf_common::nat::EndpointKey::new(
        LAN1.octets(),
        8080u16.to_be_bytes(),
        17,
    ))?;
    let half = NatEntry {
        generation: HALF_WRITTEN,
        ..whole
    };
    assert_eq!(router.plane.observe()?, [half]);
    converge(&mut router.plane, &[whole])?;
    router.plane.remove(&half)?;
    assert_eq!(router.plane.observe()?, []);
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
    peers::udp_echo(&router.lab.lan1, to, "udp", SOON)?;
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
    peers::udp_is_closed(&router.lab.lan1, to, SILENCE)?;
    Ok(())
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
        let links = std::fs::read_dir(settings.bpffs_dir.join("v3/links"))?
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

/// One reconciler run, after which a second one has nothing to do.
fn converge(plane: &mut KernelPlane, desired: &[NatEntry]) -> Result<()> {
    let plan = Plan::new(&plane.observe()?, desired);
    for gone in &plan.remove {
        plane.remove(gone)?;
    }
    for new in plan.create.iter().chain(&plan.update) {
        plane.write(new)?;
    }
    let rest = Plan::new(&plane.observe()?, desired);
    ensure!(rest.is_empty(), "{rest:?}");
    Ok(())
}

fn entry(
    protocol: Protocol,
    external: u16,
    (addr, port): (Ipv4Addr, u16),
    generation: u32,
) -> NatEntry {
    NatEntry {
        protocol,
        external: ExternalEndpoint {
            addr: WAN,
            port: ExternalPort::new(external).expect("not 0"),
        },
        internal: InternalEndpoint {
            addr,
            port: InternalPort::new(port).expect("not 0"),
        },
        remote: RemotePeer::Any,
        generation: Generation(generation),
        expires: None,
    }
}

const MAPPINGS: usize = 256;

/// The lab with a data plane that follows its network, and nothing else.
struct Router {
    plane: KernelPlane,
    settings: Settings,
    host_ports: Vec<(Protocol, u16)>,
    network: watch::Receiver<NetState>,
    /// Ends the watcher's thread.
    _stop: tokio::sync::oneshot::Sender<()>,
    lab: Lab,
}

/// Every session in the kernel.
fn sessions(router: &mut Router) -> Result<Vec<SessionRow>> {
    let mut rows = Vec::new();
    let mut inspector = router.plane.inspector()?;
    inspector.sessions(&SessionFilter::default(), &mut |row| {
        rows.push(row);
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

impl Router {
    /// `None` without the privilege (and the reason printed).
    fn new() -> Result<Option<Self>> {
        Self::with(AttachMode::Auto, |_| Ok(()))
    }

    /// The same attached in another way, in a lab that is prepared for it.
    fn with(attach: AttachMode, prepare: impl FnOnce(&Lab) -> Result<()>) -> Result<Option<Self>> {
        if !may_run() {
            return Ok(None);
        }
        let lab = Lab::new()?;
        prepare(&lab)?;
        let settings = Settings {
            bpffs_dir: lab.dir().join("bpf"),
            attach,
            tc: TcMode::Auto,
            ephemeral_ports: EphemeralPorts::Share,
            mss_clamp: MssClamp::Auto,
            sessions: 4096,
            sessions6: 4096,
            ipv6: Ipv6::default(),
            mappings: u32::try_from(MAPPINGS)?,
            log_drops: false,
            timeouts: Timeouts {
                udp_idle: Duration::from_secs(300),
                tcp_established: Duration::from_secs(7440),
                tcp_transitory: Duration::from_secs(240),
                icmp_query: Duration::from_secs(60),
            },
        };
        let interfaces = Interfaces {
            lan: vec![LAN_BRIDGE.to_owned()],
            wan: WAN_IF.to_owned(),
        };
        let (ready, network) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        lab.cpe.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (network, _task) = netlink::watch(interfaces).await?;
                ready.send(network)?;
                stopped.await.ok();
                Ok(())
            })
        })?;
        let network = network.recv_timeout(SOON).context("the watcher starts")?;
        let plane = lab.cpe.within(|| KernelPlane::open(&settings))??;
        let mut router = Self {
            plane,
            settings,
            host_ports: Vec::new(),
            network,
            _stop: stop,
            lab,
        };
        router.follow(|state| state.ports.len() == 3 && state.wan.gateway.is_some())?;
        Ok(Some(router))
    }

    fn state(&self) -> NetState {
        self.network.borrow().clone()
    }

    /// Configures the plane whenever the network changes, until it is as wanted.
    fn follow(&mut self, wanted: impl Fn(&NetState) -> bool) -> Result<()> {
        wait::until_ok("the network to be as wanted", SOON, || {
            ensure!(wanted(&self.state()), "{:?}", self.state());
            Ok(())
        })?;
        self.configure()
    }

    fn configure(&mut self) -> Result<()> {
        let config = self.state().plane_config(self.host_ports.clone());
        let Self { lab, plane, .. } = self;
        lab.cpe
            .within(|| plane.configure(&config))?
            .context("configure")
    }

    fn count(&self, name: &str) -> Result<u64> {
        let counters = self.plane.counters()?;
        let found = counters.iter().find(|(n, _)| *n == name);
        found.map(|(_, count)| *count).context("a counter")
    }

    /// The boot clock some seconds from now.
    fn instant_in(&self, seconds: u64) -> Result<Instant> {
        let uptime = std::fs::read_to_string("/proc/uptime")?;
        let up: f64 = uptime.split(' ').next().context("/proc/uptime")?.parse()?;
        let now = Instant::from_millis((up * 1000.0) as u64);
        Ok(now + Duration::from_secs(seconds))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // Also after a panic: what is pinned would outlive the namespaces.
        let dir = self.settings.bpffs_dir.clone();
        let outcome = self.lab.cpe.within(|| kernel::detach(&dir));
        if !std::thread::panicking() {
            outcome.expect("enter the namespace").expect("detach");
        }
    }
}
