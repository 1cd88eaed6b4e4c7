//! An ISP router that speaks UPnP only: Debian's miniupnpd without PCP and NAT-PMP.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::carrier::{self, Miniupnpd};
use iwf_tests::cascade;
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::may_run;
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{EXTERNAL, LAN1, LAN2, Lab, WAN};
use iwf_tests::{upnpc, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(2);
/// Nobody announces a change: it is looked for every minute.
const LOOKED: Duration = Duration::from_secs(90);

/// A CPE whose ISP router is found by UPnP.
struct Home {
    iwfd: Iwfd,
    router: Option<Miniupnpd>,
    lab: Lab,
}

impl Home {
    fn up() -> Result<Self> {
        let lab = Lab::new()?;
        let router = Some(Miniupnpd::start_upnp(&lab)?);
        let options = Options {
            mode: "auto",
            upstream: "igd = true",
            ..Options::default()
        };
        let iwfd = Iwfd::start(&lab, &options)?;
        let home = Self { iwfd, router, lab };
        wait::until("the router to be found", Duration::from_secs(15), || {
            let server = home.server().ok()?;
            (server["via"] == "igd" && server["state"] == "answering").then_some(())
        })?;
        Ok(home)
    }

    fn server(&self) -> Result<Value> {
        let status = self.iwfd.ctl().json(&["status"])?;
        Ok(status["servers"][0].clone())
    }

    /// The router loses everything and comes back, at another port.
    fn restart_router(&mut self) -> Result<()> {
        self.router.take().context("a router")?.lose_state()?;
        self.router = Some(Miniupnpd::start_upnp(&self.lab)?);
        Ok(())
    }

    /// Protocol and external port of what the router's kernel forwards to us.
    fn at_the_router(&self) -> Result<BTreeSet<(String, u16)>> {
        let forwards = carrier::all_forwards(&self.lab.cgn)?.into_iter();
        let ours = forwards.filter(|forward| forward.to.0 == WAN);
        Ok(ours.map(|f| (f.protocol, f.external_port)).collect())
    }

    fn via(&self) -> Result<Vec<String>> {
        let leases = self.iwfd.ctl().json(&["leases"])?;
        let rows = leases.as_array().context("a list")?.iter();
        Ok(rows
            .map(|row| row["via"].as_str().unwrap_or_default().to_owned())
            .collect())
    }
}

fn both(port: u16) -> BTreeSet<(String, u16)> {
    [("tcp".to_owned(), port), ("udp".to_owned(), port)].into()
}

#[test]
fn upnpc_opens_a_port_through_two_routers_and_the_internet_reaches_it() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let home = Home::up()?;
    let (lan1, inet) = (&home.lab.lan1, &home.lab.inet);
    let echo = Echo::listen(lan1, 0)?;
    let outside = SocketAddrV4::new(EXTERNAL, 20_000);
    for protocol in ["TCP", "UDP"] {
        let (_, opened) = upnpc::open(lan1, LAN1, echo.port(), 20_000, protocol)?;
        assert_eq!(opened, outside);
    }
    let (_, address) = upnpc::external_address(lan1)?;
    assert_eq!(address, EXTERNAL);
    peers::tcp_echo(inet, outside, "over TCP", SOON)?;
    peers::udp_echo(inet, outside, "over UDP", SOON)?;
    assert_eq!(home.via()?, ["igd", "igd"]);
    ensure!(home.at_the_router()?.is_superset(&both(20_000)));
    home.iwfd.ctl().must(&["audit"])?;

    for protocol in ["TCP", "UDP"] {
        upnpc::close(lan1, 20_000, protocol)?;
    }
    peers::tcp_is_closed(inet, outside, SILENCE)?;
    peers::udp_is_closed(inet, outside, SILENCE)?;
    cascade::nothing_is_left(&home.iwfd)?;
    ensure!(home.at_the_router()?.is_disjoint(&both(20_000)));
    Ok(())
}

#[test]
fn a_router_that_restarts_gets_everything_back() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut home = Home::up()?;
    let gateway = Gateway::discover(&home.lab.lan2)?;
    let echo = Echo::listen(&home.lab.lan2, 0)?;
    for protocol in ["TCP", "UDP"] {
        gateway
            .add(protocol, 20_002, LAN2, echo.port(), 3600)?
            .ok()?;
    }
    home.restart_router()?;
    let outside = SocketAddrV4::new(EXTERNAL, 20_002);
    wait::until("the mappings at the router", LOOKED, || {
        home.at_the_router()
            .ok()?
            .is_superset(&both(20_002))
            .then_some(())
    })?;
    peers::tcp_echo(&home.lab.inet, outside, "again", SOON)?;
    assert_eq!(home.via()?, ["igd", "igd"]);
    home.iwfd.ctl().must(&["audit"])?;
    Ok(())
}

#[test]
fn another_external_address_of_the_router_is_noticed() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let home = Home::up()?;
    let gateway = Gateway::discover(&home.lab.lan1)?;
    let echo = Echo::listen(&home.lab.lan1, 0)?;
    gateway.add("TCP", 20_003, LAN1, echo.port(), 3600)?.ok()?;
    let other = Ipv4Addr::new(11, 22, 33, 5);
    let cgn = &home.lab.cgn;
    cgn.must(&["ip", "address", "flush", "dev", "ext0"])?;
    cgn.must(&[
        "ip",
        "address",
        "add",
        &format!("{other}/24"),
        "dev",
        "ext0",
    ])?;
    wait::until("the new address", LOOKED, || {
        let rows = cascade::rows(&home.iwfd).ok()?;
        let at = cascade::endpoint(rows.first()?, "carrier").ok()?;
        (*at.ip() == other).then_some(())
    })?;
    let (_, address) = upnpc::external_address(&home.lab.lan1)?;
    assert_eq!(address, other);
    let outside = SocketAddrV4::new(other, 20_003);
    peers::tcp_echo(&home.lab.inet, outside, "there", SOON)?;
    Ok(())
}

#[test]
fn a_router_that_learns_pcp_is_asked_in_pcp() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut home = Home::up()?;
    let gateway = Gateway::discover(&home.lab.lan1)?;
    let echo = Echo::listen(&home.lab.lan1, 0)?;
    gateway.add("TCP", 20_004, LAN1, echo.port(), 3600)?.ok()?;
    home.router.take().context("a router")?.lose_state()?;
    home.router = Some(Miniupnpd::start(&home.lab)?);
    wait::until("the lease in PCP", LOOKED, || {
        (home.via().ok()? == ["pcp"]).then_some(())
    })?;
    let outside = SocketAddrV4::new(EXTERNAL, 20_004);
    peers::tcp_echo(&home.lab.inet, outside, "in PCP", SOON)?;
    home.iwfd.ctl().must(&["audit"])?;
    Ok(())
}
