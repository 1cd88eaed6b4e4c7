//! Explicit mappings in live maps: whom they let in, when they end, and that what is wanted is what is there.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, ensure};
use iwf_tests::peers::Echo;
use iwf_tests::topology::{CARRIER, LAN1, LAN2, REMOTE, WAN};
use iwf_tests::{bpf, peers, wait};
use iwf_userspace::daemon::dataplane::kernel::KernelPlane;
use iwf_userspace::daemon::dataplane::{DataPlane, DataPlaneError, HALF_WRITTEN};
use iwf_userspace::reconcile::plan::Plan;
use iwf_userspace::types::{Generation, Instant, NatEntry, Protocol, RemotePeer, RemotePrefix};
use proptest::test_runner::{Config as Cases, TestCaseError, TestRunner};

use crate::router::{MAPPINGS, Router, entry};
use crate::{SILENCE, SOON};

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
    // Long enough that the echo comes before, however late.
    let end = router.instant_in(3 * u64::from(wait::patience()))?;
    mapping.expires = Some(end);
    router.plane.write(&mapping)?;
    peers::udp_echo(&router.lab.cgn, outside, "in time", Duration::from_secs(2))?;
    // By the clock: that no echo comes may also mean that it is late.
    wait::until_ok("the mapping to end", SOON, || {
        ensure!(router.instant_in(0)? > end + Duration::from_millis(100));
        Ok(())
    })?;
    peers::udp_is_closed(&router.lab.cgn, outside, SILENCE)?;
    // Neither a flow that was there nor a new one gets through, and the sweep frees it.
    router.plane.sweep()?;
    assert_eq!(router.plane.observe()?, []);
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
    let pin = bpf::pinned(&router.settings.bpffs_dir, "maps/MAPPINGS_INT");
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
