//! The main job: a port opened by UPnP works from the Internet, and survives what may happen to the daemon.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_tests::bpf::{self, Objects};
use iwf_tests::cascade::{self, Cascade};
use iwf_tests::daemon::{Ctl, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::may_run;
use iwf_tests::pcp::{self, Request};
use iwf_tests::peers::{self, Echo, Transfer};
use iwf_tests::topology::{CARRIER, EXTERNAL, LAN1, LAN2, WAN};
use iwf_tests::wire_tap::PcpTap;
use iwf_tests::{upnpc, wait};

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(2);
const MORE: u64 = 1 << 20;

#[test]
fn upnpc_learns_the_carriers_address_and_opens_ports_in_both_nats() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let (_, address) = upnpc::external_address(&cascade.lab.lan1)?;
    assert_eq!(address, EXTERNAL);

    let (_, tcp) = upnpc::open(&cascade.lab.lan1, LAN1, 8080, 8080, "TCP")?;
    let (_, udp) = upnpc::open(&cascade.lab.lan1, LAN1, 8081, 8081, "UDP")?;
    assert_eq!(tcp, SocketAddrV4::new(EXTERNAL, 8080));
    assert_eq!(udp, SocketAddrV4::new(EXTERNAL, 8081));

    let ours = cascade.at_the_iwf()?;
    assert_eq!(ours.len(), 2);
    assert_eq!(cascade.at_the_carrier()?, ours);
    cascade.iwfd.ctl().must(&["audit"])?;
    for row in cascade::rows(&cascade.iwfd)? {
        assert_eq!(*cascade::endpoint(&row, "nat1")?.ip(), WAN);
        assert_eq!(*cascade::endpoint(&row, "internal")?.ip(), LAN1);
    }
    Ok(())
}

#[test]
fn the_internet_reaches_a_mapped_port_and_nobody_after_its_deletion() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let (lan1, inet) = (&cascade.lab.lan1, &cascade.lab.inet);
    let gateway = Gateway::discover(lan1)?;
    let echo = Echo::listen(lan1, 0)?;
    let outside = SocketAddrV4::new(EXTERNAL, 20000);
    for protocol in ["TCP", "UDP"] {
        gateway
            .add(protocol, 20000, LAN1, echo.port(), 3600)?
            .ok()?;
    }

    peers::tcp_echo(inet, outside, "over TCP", SOON)?;
    peers::udp_echo(inet, outside, "over UDP", SOON)?;

    // A session that is open when its mapping goes, from where the carrier's NAT has no say.
    let rows = cascade::rows(&cascade.iwfd)?;
    let nat1 = cascade::endpoint(rows.first().context("a mapping")?, "nat1")?;
    let mut transfer = Transfer::start(&cascade.lab.cgn, nat1)?;
    transfer.goes_on(MORE, SOON)?;
    for protocol in ["TCP", "UDP"] {
        gateway.delete(protocol, 20000)?.ok()?;
    }
    let answered = transfer.moved();
    peers::tcp_is_closed(inet, outside, SILENCE)?;
    peers::udp_is_closed(inet, outside, SILENCE)?;
    // What had arrived may still be read.
    assert!(
        transfer.moved() <= answered + 64 * 1024,
        "its session has ended with the answer"
    );
    cascade::nothing_is_left(&cascade.iwfd)?;
    cascade.comes_to_hold(&BTreeSet::new())
}

#[test]
fn a_transfer_survives_a_killed_daemon_that_then_adopts_everything() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut cascade = Cascade::up(&Options::default())?;
    let tap = PcpTap::start(&cascade.lab)?;
    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    let echo = Echo::listen(&cascade.lab.lan1, 0)?;
    gateway.add("TCP", 20001, LAN1, echo.port(), 3600)?.ok()?;
    let outside = SocketAddrV4::new(EXTERNAL, 20001);
    let mut transfer = Transfer::start(&cascade.lab.inet, outside)?;
    transfer.goes_on(MORE, SOON)?;
    let kernel = Objects::of(&cascade.lab.cpe)?;
    let mappings = cascade.at_the_iwf()?;
    let asked = tap.map_requests()?;
    let nonce = asked
        .iter()
        .find_map(|request| request.map)
        .context("a MAP was sent")?
        .nonce;

    cascade.iwfd.kill()?;
    transfer.goes_on(MORE, SOON)?;
    cascade.iwfd.restart()?;
    transfer.goes_on(MORE, SOON)?;

    cascade.iwfd.ctl().must(&["audit"])?;
    assert_eq!(
        Objects::of(&cascade.lab.cpe)?,
        kernel,
        "programs, maps and links are the same by id"
    );
    assert_eq!(cascade.at_the_iwf()?, mappings);
    assert_eq!(cascade.at_the_carrier()?, mappings);
    for request in tap.map_requests()? {
        let map = request.map.context("a MAP request")?;
        assert_eq!(map.nonce, nonce, "a mapping was requested anew");
    }
    // One connection from first to last.
    assert_eq!(echo.accepted(), 1);
    transfer.finish().map(drop)
}

#[test]
fn detach_after_a_stop_leaves_nothing_in_the_kernel() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut cascade = Cascade::up(&Options::default())?;
    let kernel = Objects::of(&cascade.lab.cpe)?;
    assert!(!kernel.is_empty());
    assert!(!kernel.links.is_empty());

    cascade.iwfd.stop()?;
    assert_eq!(
        Objects::of(&cascade.lab.cpe)?,
        kernel,
        "a stop does not stop the forwarding"
    );
    Ctl::of(&cascade.lab).detach()?;

    kernel.are_gone(SOON)?;
    assert!(Objects::of(&cascade.lab.cpe)?.is_empty());
    assert_eq!(
        bpf::classifier_qdiscs(&cascade.lab.cpe)?,
        Vec::<String>::new()
    );
    Ok(())
}

#[test]
fn of_two_clients_racing_for_one_port_exactly_one_gets_it() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let first = Gateway::discover(&cascade.lab.lan1)?;
    let second = first.seen_from(&cascade.lab.lan2);

    for port in 21000..21010 {
        let (one, two) = std::thread::scope(|scope| {
            let other = scope.spawn(|| second.add("UDP", port, LAN2, port, 3600));
            let one = first.add("UDP", port, LAN1, port, 3600);
            let two = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (one, two)
        });
        let (one, two) = (one?, two?);
        let codes = [one.error(), two.error()];
        assert!(
            codes == [None, Some(718)] || codes == [Some(718), None],
            "port {port}: {codes:?}"
        );
        let winner = if codes[0].is_none() { LAN1 } else { LAN2 };
        let rows = cascade::rows(&cascade.iwfd)?;
        let row = rows
            .iter()
            .find(|row| cascade::endpoint(row, "carrier").is_ok_and(|end| end.port() == port))
            .context("the winner's mapping is listed")?;
        assert_eq!(*cascade::endpoint(row, "internal")?.ip(), winner);
    }
    assert_eq!(cascade.at_the_iwf()?.len(), 10);
    assert_eq!(cascade.at_the_carrier()?, cascade.at_the_iwf()?);
    Ok(())
}

#[test]
fn mappings_come_back_after_the_carriers_server_lost_its_state() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut cascade = Cascade::up(&Options::default())?;
    // The epoch of a server that has just started cannot step back far enough to be noticed (RFC 6887 8.5).
    let what = "the server to be four seconds old";
    wait::until_ok(what, Duration::from_secs(20), || {
        let announce = Request::announce(WAN);
        let age = pcp::ask(&cascade.lab.cpe, CARRIER, &announce, SOON)?.epoch;
        anyhow::ensure!(age >= 4, "it is {age} s old");
        Ok(())
    })?;
    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    let echo = Echo::listen(&cascade.lab.lan1, 0)?;
    for (protocol, port) in [("TCP", 22000), ("UDP", 22001)] {
        gateway.add(protocol, port, LAN1, echo.port(), 3600)?.ok()?;
    }
    let before = cascade.at_the_iwf()?;
    assert_eq!(cascade.at_the_carrier()?, before);

    cascade.restart_carrier()?;

    cascade.comes_to_hold(&before)?;
    assert_eq!(cascade.at_the_iwf()?, before);
    let outside = SocketAddrV4::new(EXTERNAL, 22000);
    peers::tcp_echo(&cascade.lab.inet, outside, "again", SOON)?;
    Ok(())
}
