//! The lab itself, without the daemon: the carrier is a NAT that answers PCP.
#![expect(
    clippy::disallowed_types,
    reason = "the suites talk to real programs over sockets"
)]

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result};
use iwf_tests::carrier::{self, Forward, Miniupnpd};
use iwf_tests::netns;
use iwf_tests::pcp::{self, Map, Request, result};
use iwf_tests::topology::{CARRIER, EXTERNAL, Lab, REMOTE, WAN};

#[test]
fn the_carrier_opens_a_port_by_pcp_and_forwards_it() -> Result<()> {
    if !netns::may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let server = Miniupnpd::start(&lab)?;

    let map = Map {
        nonce: [1; 12],
        protocol: 17,
        internal_port: 40000,
        external_port: 5000,
        external_addr: [0, 0, 0, 0].into(),
    };
    let request = Request::map(WAN, 3600, map);
    let answer = pcp::ask(&lab.cpe, CARRIER, &request, Duration::from_secs(5))?;
    assert_eq!(answer.result, result::SUCCESS);
    let granted = answer.map.context("a MAP answer")?;
    assert_eq!(
        (granted.external_addr, granted.external_port),
        (EXTERNAL, 5000)
    );
    let expected = Forward {
        protocol: "udp".to_owned(),
        external_port: 5000,
        to: (WAN, 40000),
    };
    assert_eq!(carrier::forwards(&lab.cgn)?, [expected]);

    let inside = lab.cpe.within(|| UdpSocket::bind((WAN, 40000)))??;
    inside.set_read_timeout(Some(Duration::from_secs(5)))?;
    let outside = lab.inet.within(|| UdpSocket::bind((REMOTE, 0)))??;
    outside.send_to(b"through", (EXTERNAL, 5000))?;
    let mut buf = [0; 16];
    let (len, from) = inside.recv_from(&mut buf)?;
    assert_eq!(&buf[..len], b"through");
    assert_eq!(from, outside.local_addr()?);

    server.lose_state()?;
    assert_eq!(carrier::forwards(&lab.cgn)?, []);
    Ok(())
}
