//! Devices that leave the LAN, with a DHCP server and a DHCP client by others: what they have opened is closed here and at
//! the carrier, and nothing else is.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::{self, Cascade};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::dhcp::Dnsmasq;
use iwf_tests::igd::{Gateway, Version};
use iwf_tests::netns::may_run;
use iwf_tests::packages;
use iwf_tests::process::Process;
use iwf_tests::topology::{LAN_PORTS, LAN2, LAN2_6, Lab, REMOTE_6};
use iwf_tests::{upnpc, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
const LATER: Duration = Duration::from_secs(60);

/// Who has no lease is away after some seconds. The file is named when the lab's directory is known.
const POLICY: &str = "[policy]\ndefault = \"deny\"\ndeparted_after_seconds = 3\nlease_files = [\"/lan.leases\"]\n\
    [[policy.rule]]\naction = \"allow\"\nhost = [\"Console\"]\n\
    [[policy.rule]]\naction = \"allow\"\naddress = [\"192.168.1.11\"]\n";

/// What a DHCP client runs to follow its lease.
const SCRIPT: &str = "#!/bin/sh\n\
    case \"$1\" in\n\
    deconfig) ip address flush dev \"$interface\" scope global ;;\n\
    bound|renew) ip address replace \"$ip/24\" dev \"$interface\"; ip route replace default via \"$router\" ;;\n\
    esac\n";

/// A DHCP client on lan1, in place of the address that the lab gives it; its address.
fn client(lab: &Lab, dnsmasq: &Dnsmasq) -> Result<(Process, Ipv4Addr)> {
    let script = lab.dir().join("udhcpc.script");
    std::fs::write(&script, SCRIPT)?;
    let script = script.display().to_string();
    lab.cpe.must(&["chmod", "+x", &script])?;
    lab.lan1.ip("address flush dev eth0 scope global")?;
    let busybox = packages::busybox()?.display().to_string();
    let argv = [
        busybox.as_str(),
        "udhcpc",
        "-f",
        "-i",
        "eth0",
        "-x",
        "hostname:console",
        "-s",
        &script,
    ];
    let process = lab.lan1.spawn("udhcpc", &argv)?;
    let addr = wait::until_ok("the client to get an address", SOON, || {
        let shown = lab.lan1.ip("-4 -o address show dev eth0 scope global")?;
        let addr = shown.split_whitespace().find_map(|word| {
            let (addr, _) = word.split_once('/')?;
            addr.parse().ok()
        });
        addr.with_context(|| dnsmasq.log())
    })?;
    Ok((process, addr))
}

/// Reasons for which mappings were taken away so far.
fn withdrawn(iwfd: &Iwfd) -> Result<Vec<String>> {
    let text = iwfd
        .ctl()
        .must(&["events", "--json", "--kind", "mapping-withdrawn"])?;
    let rows = text.lines().map(serde_json::from_str::<Value>);
    rows.map(|row| Ok(row?["detail"].as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// Waits until these external ports are mapped, and no others, here and at the carrier.
fn open(cascade: &Cascade, ports: &[u16]) -> Result<()> {
    wait::until_ok(&format!("{ports:?} to be all that is open"), LATER, || {
        let mut ours: Vec<_> = cascade
            .at_the_iwf()?
            .into_iter()
            .map(|(_, port, _)| port)
            .collect();
        let mut carriers: Vec<_> = cascade
            .at_the_carrier()?
            .into_iter()
            .map(|(_, port, _)| port)
            .collect();
        ours.sort_unstable();
        carriers.sort_unstable();
        ensure!(
            ours == ports && carriers == ports,
            "{ours:?}, at the carrier {carriers:?}"
        );
        Ok(())
    })
}

#[test]
fn what_a_device_has_opened_is_closed_when_it_leaves() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut cascade = Cascade::up(&Options {
        more: POLICY,
        ..Options::default()
    })?;
    let dnsmasq = Dnsmasq::start_lan(&cascade.lab)?;
    let leases = dnsmasq.leases().display().to_string();
    cascade.iwfd.reload_with("/lan.leases", &leases)?;
    let (client, addr) = client(&cascade.lab, &dnsmasq)?;

    // By its name, which only the lease has.
    wait::until_ok("the name of the device to be known", SOON, || {
        let client = addr.to_string();
        let words = ["policy", "test", "--client", &client, "--port", "8080"];
        let answer = cascade.iwfd.ctl().json(&words)?;
        ensure!(
            answer["granted"] == true && answer["name"] == "console",
            "{answer}"
        );
        Ok(())
    })?;
    let console = Gateway::discover_version(&cascade.lab.lan1, Version::Two)?;
    console.add("TCP", 8080, addr, 8080, 3600)?.ok()?;
    let other = console.seen_from(&cascade.lab.lan2);
    other.add("TCP", 9090, LAN2, 9090, 3600)?.ok()?;
    open(&cascade, &[8080, 9090])?;

    // Both are silent now. One has a lease, and may be asleep.
    cascade.lab.lan1.ip("link set eth0 down")?;
    cascade.lab.lan2.ip("link set eth0 down")?;
    open(&cascade, &[8080])?;
    let said = withdrawn(&cascade.iwfd)?;
    ensure!(
        said.len() == 1 && said[0].contains("has no lease and has not answered"),
        "{said:?}"
    );
    cascade.lab.lan1.ip("link set eth0 up")?;
    // The client says farewell once, and then has no address: what the link does not take yet is lost.
    wait::until_ok("the link to be up at both ends", SOON, || {
        let here = cascade.lab.lan1.ip("link show dev eth0")?;
        ensure!(here.contains("state UP"), "{here}");
        let port = format!("-d link show dev {}", LAN_PORTS[0]);
        let there = cascade.lab.cpe.ip(&port)?;
        ensure!(
            there.contains("state UP") && there.contains("state forwarding"),
            "{there}"
        );
        Ok(())
    })?;

    // DHCPRELEASE.
    client.signal(Signal::SIGUSR2)?;
    wait::until_ok("the lease to be released", SOON, || {
        let left = std::fs::read_to_string(&leases)?;
        ensure!(
            !left.contains(&addr.to_string()),
            "{left}\n{}",
            dnsmasq.log()
        );
        Ok(())
    })?;
    open(&cascade, &[])?;
    let said = withdrawn(&cascade.iwfd)?;
    ensure!(
        said.len() == 2 && said[1].contains("the lease of its address is over"),
        "{said:?}"
    );
    cascade::nothing_is_left(&cascade.iwfd)?;

    // A file that is none stops nobody.
    drop(dnsmasq);
    std::fs::write(&leases, [0xff, 0, b'\n', b'x'])?;
    let daemon = cascade.iwfd.process();
    daemon.wait_for_log("lines that are no leases", SOON)?;
    cascade.iwfd.ctl().must(&["status"])?;
    Ok(())
}

#[test]
fn a_pinhole_is_closed_when_its_address_has_gone() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = Iwfd::start(
        &lab,
        &Options {
            mode: "local",
            pcp_servers: Vec::new(),
            more: "[policy]\ndeparted_after_seconds = 3\nlease_files = []\n",
            ..Options::default()
        },
    )?;
    wait::until_ok("the way out", SOON, || {
        let to = REMOTE_6.to_string();
        lab.lan2
            .must(&["ping", "-6", "-n", "-c", "1", "-W", "1", &to])
            .map(drop)
    })?;
    let client = LAN2_6.to_string();
    let words = [
        "-6", "-i", "-A", "empty", "0", &client, "8080", "TCP", "3600",
    ];
    wait::until_ok("a pinhole", SOON, || {
        let call = upnpc::call(&lab.lan2, &words)?;
        call.line("Pinhole ID =").map(drop)
    })?;
    let held = || -> Result<usize> {
        let rows = iwfd.ctl().json(&["pinholes"])?;
        Ok(rows.as_array().context("a list of pinholes")?.len())
    };
    assert_eq!(held()?, 1);
    // The host is still there, by its other addresses.
    lab.lan2.ip(&format!("address del {LAN2_6}/64 dev eth0"))?;
    wait::until_ok("the pinhole to be closed", LATER, || {
        let left = held()?;
        ensure!(left == 0, "there are {left}");
        Ok(())
    })?;
    let text = iwfd.ctl().must(&["events", "--kind", "pinhole-closed"])?;
    ensure!(text.contains("has not answered"), "{text}");
    Ok(())
}
