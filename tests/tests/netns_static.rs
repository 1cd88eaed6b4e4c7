//! A mapping that the configuration states: there from the start, nobody's on the LAN to take away.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::{self, Cascade};
use iwf_tests::daemon::Options;
use iwf_tests::igd::Gateway;
use iwf_tests::netns::may_run;
use iwf_tests::pcp::{self, Request};
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{CARRIER, EXTERNAL, LAN1, WAN};
use iwf_tests::{upnpc, wait};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(2);

/// LAN1 is 192.168.1.10 (topology.rs); each namespace has its own ports.
const STATED: &str = "[[mapping]]\n\
    protocol = \"tcp\"\n\
    external_port = 20000\n\
    internal = \"192.168.1.10:8080\"\n\
    description = \"camera\"\n";

#[test]
fn a_static_mapping_outlives_everything_but_its_line_in_the_configuration() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut cascade = Cascade::up(&Options {
        more: STATED,
        ..Options::default()
    })?;
    let outside = SocketAddrV4::new(EXTERNAL, 20000);
    let echo = Echo::listen(&cascade.lab.lan1, 8080)?;
    in_force(&cascade)?;
    peers::tcp_echo(&cascade.lab.inet, outside, "from the start", SOON)?;

    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    assert_eq!(gateway.delete("TCP", 20000)?.error(), Some(606));
    let taken = gateway.add("TCP", 20000, LAN1, 8081, 3600)?;
    assert_eq!(taken.error(), Some(729));
    assert!(upnpc::close(&cascade.lab.lan1, 20000, "TCP").is_err());
    let refused = cascade.iwfd.ctl().run(&["delete", "tcp", "20000"])?;
    assert!(!refused.success(), "{}", refused.text());
    peers::tcp_echo(&cascade.lab.inet, outside, "and still", SOON)?;

    cascade.iwfd.kill()?;
    peers::tcp_echo(&cascade.lab.inet, outside, "without a daemon", SOON)?;
    cascade.iwfd.restart()?;
    in_force(&cascade)?;
    peers::tcp_echo(&cascade.lab.inet, outside, "adopted", SOON)?;

    // The epoch of a server that has just started cannot step back far enough to be noticed (RFC 6887 8.5).
    wait::until_ok("the server to be four seconds old", LATER, || {
        let age = pcp::ask(&cascade.lab.cpe, CARRIER, &Request::announce(WAN), SOON)?.epoch;
        ensure!(age >= 4, "it is {age} s old");
        Ok(())
    })?;
    cascade.restart_carrier()?;
    let what = "the carrier to forward the port again";
    wait::until_ok(what, LATER, || {
        let now = cascade.at_the_carrier()?;
        ensure!(!now.is_empty(), "it forwards nothing");
        Ok(())
    })?;
    in_force(&cascade)?;
    peers::tcp_echo(&cascade.lab.inet, outside, "carrier restarted", SOON)?;

    reload_without(&mut cascade)?;
    cascade::nothing_is_left(&cascade.iwfd)?;
    let what = "the carrier to forward nothing";
    wait::until_ok(what, SOON, || {
        let now = cascade.at_the_carrier()?;
        ensure!(now.is_empty(), "it forwards {now:?}");
        Ok(())
    })?;
    peers::tcp_is_closed(&cascade.lab.inet, outside, SILENCE)?;
    assert!(echo.accepted() >= 4);
    Ok(())
}

/// In all three tables, and marked as static.
fn in_force(cascade: &Cascade) -> Result<()> {
    wait::until_ok("the static mapping to be in force", LATER, || {
        let rows = cascade::rows(&cascade.iwfd)?;
        ensure!(
            rows.len() == 1 && rows[0]["static"] == true && rows[0]["kernel"] == true,
            "{rows:?}"
        );
        let ours = cascade.at_the_iwf()?;
        ensure!(ours == cascade.at_the_carrier()?, "the carrier differs");
        let ports: BTreeSet<u16> = ours.into_iter().map(|(_, port, _)| port).collect();
        ensure!(ports == BTreeSet::from([20000]), "{ports:?}");
        Ok(())
    })
}

fn reload_without(cascade: &mut Cascade) -> Result<()> {
    let file = cascade.iwfd.files().config.clone();
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace(STATED, "")).context("change the configuration")?;
    let daemon = cascade.iwfd.process();
    daemon.signal(Signal::SIGHUP)?;
    daemon.wait_for_log("configuration read again", SOON)?;
    let what = "the mapping to be gone";
    wait::until_ok(what, SOON, || {
        let rows = cascade::rows(&cascade.iwfd)?;
        ensure!(rows.is_empty(), "{rows:?}");
        Ok(())
    })
}
