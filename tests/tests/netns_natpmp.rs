//! A carrier that speaks NAT-PMP only: Debian's miniupnpd, whose PCP is answered by a version error in its place.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::{self, Cascade};
use iwf_tests::daemon::Options;
use iwf_tests::igd::Gateway;
use iwf_tests::natpmp::NatPmpOnly;
use iwf_tests::netns::may_run;
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{EXTERNAL, LAN1, LAN2, REMOTE};
use iwf_tests::{upnpc, wait};

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(2);

/// Protocol of each lease, as `iwfctl leases` says.
fn via(cascade: &Cascade) -> Result<Vec<String>> {
    let leases = cascade.iwfd.ctl().json(&["leases"])?;
    let rows = leases.as_array().context("a list")?.iter();
    Ok(rows
        .map(|row| row["via"].as_str().unwrap_or_default().to_owned())
        .collect())
}

#[test]
fn upnpc_opens_a_port_through_natpmp_and_the_internet_reaches_it() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let front = NatPmpOnly::start(&cascade.lab)?;
    let (lan1, inet) = (&cascade.lab.lan1, &cascade.lab.inet);
    let echo = Echo::listen(lan1, 0)?;
    let outside = SocketAddrV4::new(EXTERNAL, 20_000);
    for protocol in ["TCP", "UDP"] {
        let (_, opened) = upnpc::open(lan1, LAN1, echo.port(), 20_000, protocol)?;
        assert_eq!(opened, outside);
    }
    ensure!(front.asked() > 0, "PCP was tried first");
    let (_, address) = upnpc::external_address(lan1)?;
    assert_eq!(address, EXTERNAL);
    peers::tcp_echo(inet, outside, "over TCP", SOON)?;
    peers::udp_echo(inet, outside, "over UDP", SOON)?;
    assert_eq!(via(&cascade)?, ["nat-pmp", "nat-pmp"]);
    assert_eq!(cascade.at_the_carrier()?, cascade.at_the_iwf()?);
    let status = cascade.iwfd.ctl().json(&["status"])?;
    assert_eq!(status["servers"][0]["via"], "nat-pmp");
    assert_eq!(status["servers"][0]["state"], "answering");
    cascade.iwfd.ctl().must(&["audit"])?;

    for protocol in ["TCP", "UDP"] {
        upnpc::close(lan1, 20_000, protocol)?;
    }
    peers::tcp_is_closed(inet, outside, SILENCE)?;
    cascade::nothing_is_left(&cascade.iwfd)?;
    cascade.comes_to_hold(&BTreeSet::new())
}

#[test]
fn a_remote_host_is_let_in_and_others_are_not() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let _front = NatPmpOnly::start(&cascade.lab)?;
    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    let echo = Echo::listen(&cascade.lab.lan1, 0)?;
    let call = |port: u16, remote: &str| {
        gateway.call(
            "AddPortMapping",
            &[
                ("NewRemoteHost", remote),
                ("NewExternalPort", &port.to_string()),
                ("NewProtocol", "TCP"),
                ("NewInternalPort", &echo.port().to_string()),
                ("NewInternalClient", &LAN1.to_string()),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", "suite"),
                ("NewLeaseDuration", "3600"),
            ],
        )
    };
    call(20_001, &REMOTE.to_string())?.ok()?;
    call(20_002, "198.51.100.5")?.ok()?;
    let inet = &cascade.lab.inet;
    peers::tcp_echo(inet, SocketAddrV4::new(EXTERNAL, 20_001), "in", SOON)?;
    peers::tcp_is_closed(inet, SocketAddrV4::new(EXTERNAL, 20_002), SILENCE)?;
    assert_eq!(via(&cascade)?, ["nat-pmp", "nat-pmp"]);
    Ok(())
}

#[test]
fn a_carrier_that_learns_pcp_gets_the_leases_in_pcp() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut cascade = Cascade::up(&Options::default())?;
    let front = NatPmpOnly::start(&cascade.lab)?;
    let gateway = Gateway::discover(&cascade.lab.lan2)?;
    let echo = Echo::listen(&cascade.lab.lan2, 0)?;
    gateway.add("TCP", 20_003, LAN2, echo.port(), 3600)?.ok()?;
    assert_eq!(via(&cascade)?, ["nat-pmp"]);

    drop(front);
    cascade.restart_carrier()?;
    wait::until("the lease in PCP", Duration::from_secs(30), || {
        (via(&cascade).ok()? == ["pcp"]).then_some(())
    })?;
    let outside = SocketAddrV4::new(EXTERNAL, 20_003);
    peers::tcp_echo(&cascade.lab.inet, outside, "still there", SOON)?;
    assert_eq!(cascade.at_the_carrier()?, cascade.at_the_iwf()?);
    cascade.iwfd.ctl().must(&["audit"])?;
    Ok(())
}
