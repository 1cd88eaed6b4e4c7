//! What control points are told of the line to the provider: how fast it is, what it has carried, and whether it is there.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::{Answer, Gateway};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers::{self, Echo};
use iwf_tests::topology::{Lab, REMOTE, WAN_IF};
use iwf_tests::wait;

const SOON: Duration = Duration::from_secs(15);
const COMMON: &str = "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1";

fn ask(gateway: &Gateway, action: &str) -> Result<Answer> {
    gateway
        .call_at("/igd1/ctl/WANCommonIFC", COMMON, action, &[])?
        .ok()
}

/// Access type, bits per second up and down, and status.
fn properties(gateway: &Gateway) -> Result<(String, u64, u64, String)> {
    let answer = ask(gateway, "GetCommonLinkProperties")?;
    let text = |name| answer.element(name).map(str::to_owned).context(name);
    Ok((
        text("NewWANAccessType")?,
        text("NewLayer1UpstreamMaxBitRate")?.parse()?,
        text("NewLayer1DownstreamMaxBitRate")?.parse()?,
        text("NewPhysicalLinkStatus")?,
    ))
}

fn until_properties(gateway: &Gateway, expected: (&str, u64, u64, &str)) -> Result<()> {
    wait::until_ok("the link's properties", SOON, || {
        let (access, up, down, status) = properties(gateway)?;
        let told = (access.as_str(), up, down, status.as_str());
        ensure!(told == expected, "told {told:?}, not {expected:?}");
        Ok(())
    })
}

/// Octets and packets sent, octets and packets received.
fn totals(gateway: &Gateway) -> Result<[u64; 4]> {
    let mut totals = [0; 4];
    let names = [
        "BytesSent",
        "PacketsSent",
        "BytesReceived",
        "PacketsReceived",
    ];
    for (total, name) in totals.iter_mut().zip(names) {
        let answer = ask(gateway, &format!("GetTotal{name}"))?;
        let value = answer.element(&format!("NewTotal{name}")).context(name)?;
        *total = value.parse()?;
    }
    Ok(totals)
}

/// What another program says of the same device, cut to what fits.
fn speed(host: &Namespace, interface: &str) -> Result<u64> {
    let text = host.must(&["ethtool", interface])?;
    let (_, rest) = text.split_once("Speed: ").context("a speed")?;
    let (megabits, _) = rest.split_once("Mb/s").context("in Mbit/s")?;
    let bits = megabits.parse::<u64>()? * 1_000_000;
    Ok(bits.min(u32::MAX.into()))
}

/// WCIC-001, and the counters with traffic that no stack has seen.
#[test]
fn the_link_is_told_as_it_is() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        ..Options::default()
    };
    let mut iwfd = Iwfd::start(&lab, &options)?;
    let gateway = Gateway::discover(&lab.lan1)?;
    let of_device = speed(&lab.cpe, WAN_IF)?;
    until_properties(&gateway, ("Ethernet", of_device, of_device, "Up"))?;

    let echo = Echo::listen(&lab.inet, 0)?;
    let to = SocketAddrV4::new(REMOTE, echo.port());
    let text = "x".repeat(1000);
    peers::udp_echo(&lab.lan1, to, &text, SOON)?;
    let before = totals(&gateway)?;
    for _ in 0..20 {
        peers::udp_echo(&lab.lan1, to, &text, SOON)?;
    }
    wait::until_ok("the counters", SOON, || {
        let now = totals(&gateway)?;
        let least = [20 * 1028, 20, 20 * 1028, 20];
        let enough = (0..4).all(|at| now[at].wrapping_sub(before[at]) >= least[at]);
        ensure!(enough, "{before:?} became {now:?}");
        Ok(())
    })?;

    iwfd.reload(&Options {
        wan: "access_type = \"dsl\"\nupstream_bit_rate = 40_000_000\n",
        ..options.clone()
    })?;
    until_properties(&gateway, ("DSL", 40_000_000, of_device, "Up"))?;
    // Somebody pulls the cable at the other end.
    lab.cgn.ip("link set br0 down")?;
    until_properties(&gateway, ("DSL", 40_000_000, 0, "Down"))?;
    lab.cgn.ip("link set br0 up")?;
    until_properties(&gateway, ("DSL", 40_000_000, of_device, "Up"))?;
    Ok(())
}
