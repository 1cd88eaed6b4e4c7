//! The carrier's PCP server misbehaves: the application gets the right error and nothing is left behind.
#![expect(clippy::disallowed_types, reason = "plays a program of the router's")]

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use iwf_tests::cascade::{self, Cascade, Scripted};
use iwf_tests::daemon::Options;
use iwf_tests::igd::{Gateway, Version};
use iwf_tests::netns::may_run;
use iwf_tests::pcp::{self, Map, Request, result};
use iwf_tests::script::Manner;
use iwf_tests::topology::{CARRIER, EXTERNAL, LAN1, WAN};
use iwf_tests::wait;

const SOON: Duration = Duration::from_secs(5);
/// Below the 30 s after which a UPnP client gives up (AMB-06).
const DEADLINE: Duration = Duration::from_secs(28);
/// RFC 6887 section 13.2.
const PREFER_FAILURE: u8 = 2;

#[test]
fn a_silent_server_costs_28_seconds_gives_501_and_leaves_nothing() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut scripted = Scripted::up(Manner::Silent)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;

    let (answer, took) = wait::timed(|| gateway.add("TCP", 23000, LAN1, 8000, 3600));
    assert_eq!(answer?.error(), Some(501));
    assert!(took <= DEADLINE, "it took {took:?}");
    let requests = scripted.server.map_requests();
    assert!(
        requests.len() >= 3,
        "a lost datagram is repeated: {requests:?}"
    );
    cascade::nothing_is_left(&scripted.iwfd)?;

    // Neither does the store remember it.
    scripted.iwfd.kill()?;
    scripted.server.set(Manner::Grant);
    scripted.iwfd.restart()?;
    cascade::nothing_is_left(&scripted.iwfd)?;
    assert_eq!(scripted.server.leases(), []);
    Ok(())
}

#[test]
fn each_refusal_becomes_the_error_of_the_services_version() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let first = Gateway::discover(&scripted.lab.lan1)?;
    let second = Gateway::discover_version(&scripted.lab.lan1, Version::Two)?;

    // RFC 6970 section 4.3: code of PCP, of WANIPConnection:1, of WANIPConnection:2.
    let table = [
        (result::NOT_AUTHORIZED, 718, 606),
        (result::NETWORK_FAILURE, 501, 501),
        (result::USER_EX_QUOTA, 501, 728),
        (result::CANNOT_PROVIDE_EXTERNAL, 718, 718),
        // Last, because it speaks for every later request too until its lifetime ends.
        (result::NO_RESOURCES, 501, 728),
    ];
    for (row, (code, one, two)) in (0_u16..).zip(table) {
        scripted.server.set(Manner::Refuse(code));
        let answer = first.add("TCP", 24000 + row, LAN1, 8000, 3600)?;
        assert_eq!(answer.error(), Some(one), "PCP {code}, version 1");
        let answer = second.add("TCP", 24100 + row, LAN1, 8000, 3600)?;
        assert_eq!(answer.error(), Some(two), "PCP {code}, version 2");
    }
    cascade::nothing_is_left(&scripted.iwfd)
}

#[test]
fn a_grant_of_another_port_is_given_back_and_reported_as_taken() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::GrantOther(9999))?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;

    let answer = gateway.add("UDP", 25000, LAN1, 8000, 3600)?;
    assert_eq!(answer.error(), Some(718));
    let request = scripted
        .server
        .wait_for_map("the request", SOON, |request| request.lifetime > 0)?;
    assert!(
        request.options.contains(&PREFER_FAILURE),
        "AddPortMapping wants this port or none"
    );
    let deletion = scripted
        .server
        .wait_for_map("its deletion", SOON, |request| request.lifetime == 0)?;
    assert_eq!(
        deletion.map.context("a MAP")?.nonce,
        request.map.context("a MAP")?.nonce
    );
    assert_eq!(scripted.server.leases(), []);
    cascade::nothing_is_left(&scripted.iwfd)
}

/// What the router itself speaks by a port of its WAN address is no reason to refuse that port of the carrier's.
#[test]
fn a_port_of_the_routers_own_is_no_conflict_at_the_carrier() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    let own = scripted.lab.cpe.within(|| UdpSocket::bind((WAN, 0)))??;
    own.connect((CARRIER, 53))?;
    own.send(b"?")?;
    let port = own.local_addr()?.port();

    let answer = gateway.add("UDP", port, LAN1, 8000, 3600)?;
    assert_eq!(answer.error(), None, "{answer:?}");
    let rows = cascade::rows(&scripted.iwfd)?;
    let [row] = rows.as_slice() else {
        bail!("one mapping is wanted: {rows:?}");
    };
    let (nat1, carrier) = (
        cascade::endpoint(row, "nat1")?,
        cascade::endpoint(row, "carrier")?,
    );
    assert_eq!(carrier.port(), port);
    assert_ne!(nat1.port(), port, "the router's own packets need it");
    Ok(())
}

#[test]
fn a_port_that_another_subscriber_holds_at_the_carrier_is_718() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    // Another subscriber of the same carrier.
    let neighbour = "100.64.0.77".parse()?;
    cascade.lab.cpe.ip("addr add 100.64.0.77/24 dev wan0")?;
    let map = Map {
        nonce: [9; 12],
        protocol: 6,
        internal_port: 4000,
        external_port: 26000,
        external_addr: EXTERNAL,
    };
    let held = pcp::ask(
        &cascade.lab.cpe,
        CARRIER,
        &Request::map(neighbour, 3600, map),
        SOON,
    )?;
    assert_eq!(held.result, result::SUCCESS);
    cascade.lab.cpe.ip("addr del 100.64.0.77/24 dev wan0")?;
    let before = cascade.at_the_carrier()?;
    assert_eq!(before.len(), 1);

    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    let answer = gateway.add("TCP", 26000, LAN1, 8000, 3600)?;
    assert_eq!(answer.error(), Some(718));

    cascade::nothing_is_left(&cascade.iwfd)?;
    // What was granted instead is given back, what the neighbour holds is not touched.
    cascade.comes_to_hold(&before)
}

#[test]
fn a_server_that_forgot_everything_is_told_again_with_the_same_nonces() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    gateway.add("TCP", 27000, LAN1, 8000, 3600)?.ok()?;
    gateway.add("UDP", 27001, LAN1, 8000, 3600)?.ok()?;
    let before = scripted.server.leases();
    assert_eq!(before.len(), 2);

    scripted.server.lose_state();
    // Restarted servers announce themselves (RFC 6887 section 14.1.3): epoch 0, to all nodes.
    scripted.server.announce(&scripted.lab)?;

    let what = "both leases at the server again";
    wait::until(what, Duration::from_secs(10), || {
        (scripted.server.leases() == before).then_some(())
    })?;
    scripted.iwfd.ctl().must(&["audit"])?;
    Ok(())
}

#[test]
fn octets_that_are_no_pcp_answer_are_no_answer() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    gateway.add("TCP", 28000, LAN1, 8000, 3600)?.ok()?;
    let request = scripted
        .server
        .wait_for_map("the request", SOON, |_| true)?;
    let client = scripted
        .server
        .arrivals()
        .first()
        .context("an arrival")?
        .from;
    assert_eq!(client.ip(), WAN);

    let grant = request.encode();
    for cut in 0..grant.len() {
        let mut octets = grant[..cut].to_vec();
        scripted.server.send(&octets, client)?;
        if let Some(opcode) = octets.get_mut(1) {
            *opcode |= 0x80;
            scripted.server.send(&octets, client)?;
        }
    }
    scripted.server.send(&[0xff; 1400], client)?;

    // It is alive, and works.
    gateway.add("UDP", 28001, LAN1, 8000, 3600)?.ok()?;
    assert_eq!(cascade::rows(&scripted.iwfd)?.len(), 2);
    Ok(())
}
