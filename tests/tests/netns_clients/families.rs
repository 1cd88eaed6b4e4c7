//! Control points that share no code with each other make the same calls, every action that a control point of version 2
//! has; and a library for gateways of another family opens its ports in its own way.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade::{self, Cascade};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::process::Process;
use iwf_tests::topology::{EXTERNAL, LAN1, LAN1_6, LAN2, Lab};
use iwf_tests::{packages, wait};
use nix::sys::signal::Signal;

use super::{WITHIN, until_open};

const IGD2: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:2";
const CONNECTION: &str = "urn:schemas-upnp-org:service:WANIPConnection:2";
const FIREWALL: &str = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1";
/// Held by another host.
const TAKEN: &str = "6198";

/// A call in the words of the scripts, and how the line begins that says what came of it, or what is in it besides.
#[derive(Clone, Copy)]
struct Step {
    words: &'static [&'static str],
    line: &'static str,
    part: &'static str,
}

const fn step(words: &'static [&'static str], line: &'static str, part: &'static str) -> Step {
    Step { words, line, part }
}

/// What is subscribed to is told: first what there is, then each change. One mapping is another host's.
const EVENT_STEPS: &[Step] = &[
    step(&["Subscribe"], "Subscribe ok", ""),
    step(
        &["Await", "PortMappingNumberOfEntries"],
        "Await ok PortMappingNumberOfEntries=1",
        "",
    ),
    step(
        &[
            "AddPortMapping",
            "NewRemoteHost=",
            "NewExternalPort=8203",
            "NewProtocol=UDP",
            "NewInternalPort=8203",
            "NewInternalClient=192.168.1.10",
            "NewEnabled=1",
            "NewPortMappingDescription=family",
            "NewLeaseDuration=600",
        ],
        "AddPortMapping ok",
        "",
    ),
    step(
        &["Await", "PortMappingNumberOfEntries"],
        "Await ok PortMappingNumberOfEntries=2",
        "",
    ),
    step(
        &[
            "DeletePortMapping",
            "NewRemoteHost=",
            "NewExternalPort=8203",
            "NewProtocol=UDP",
        ],
        "DeletePortMapping ok",
        "",
    ),
    step(
        &["Await", "PortMappingNumberOfEntries"],
        "Await ok PortMappingNumberOfEntries=1",
        "",
    ),
    step(&["Unsubscribe"], "Unsubscribe ok", ""),
];

const CONNECTION_STEPS: &[Step] = &[
    step(
        &["GetExternalIPAddress", "NewExternalIPAddress"],
        "GetExternalIPAddress ok NewExternalIPAddress=100.64.0.2",
        "",
    ),
    step(
        &[
            "AddPortMapping",
            "NewRemoteHost=",
            "NewExternalPort=8201",
            "NewProtocol=TCP",
            "NewInternalPort=8201",
            "NewInternalClient=192.168.1.10",
            "NewEnabled=1",
            "NewPortMappingDescription=family",
            "NewLeaseDuration=600",
        ],
        "AddPortMapping ok",
        "",
    ),
    step(
        &[
            "AddPortMapping",
            "NewRemoteHost=",
            "NewExternalPort=6198",
            "NewProtocol=TCP",
            "NewInternalPort=8202",
            "NewInternalClient=192.168.1.10",
            "NewEnabled=1",
            "NewPortMappingDescription=family",
            "NewLeaseDuration=600",
        ],
        "AddPortMapping error 718",
        "",
    ),
    step(
        &[
            "AddAnyPortMapping",
            "NewRemoteHost=",
            "NewExternalPort=6198",
            "NewProtocol=TCP",
            "NewInternalPort=8202",
            "NewInternalClient=192.168.1.10",
            "NewEnabled=1",
            "NewPortMappingDescription=family",
            "NewLeaseDuration=600",
            "NewReservedPort",
        ],
        "AddAnyPortMapping ok",
        "NewReservedPort=",
    ),
    step(
        &[
            "GetGenericPortMappingEntry",
            "NewPortMappingIndex=0",
            "NewExternalPort",
            "NewInternalClient",
        ],
        "GetGenericPortMappingEntry ok",
        "NewInternalClient=192.168.1.10",
    ),
    step(
        &["GetGenericPortMappingEntry", "NewPortMappingIndex=2"],
        "GetGenericPortMappingEntry error 713",
        "",
    ),
    step(
        &[
            "GetSpecificPortMappingEntry",
            "NewRemoteHost=",
            "NewExternalPort=8201",
            "NewProtocol=TCP",
            "NewInternalPort",
        ],
        "GetSpecificPortMappingEntry ok",
        "NewInternalPort=8201",
    ),
    step(
        &[
            "GetListOfPortMappings",
            "NewStartPort=8201",
            "NewEndPort=8201",
            "NewProtocol=TCP",
            "NewManage=0",
            "NewNumberOfPorts=0",
            "NewPortListing",
        ],
        "GetListOfPortMappings ok",
        "family",
    ),
    step(
        &[
            "DeletePortMapping",
            "NewRemoteHost=",
            "NewExternalPort=8201",
            "NewProtocol=TCP",
        ],
        "DeletePortMapping ok",
        "",
    ),
    step(
        &[
            "DeletePortMapping",
            "NewRemoteHost=",
            "NewExternalPort=8201",
            "NewProtocol=TCP",
        ],
        "DeletePortMapping error 714",
        "",
    ),
    step(
        &[
            "DeletePortMappingRange",
            "NewStartPort=1024",
            "NewEndPort=65535",
            "NewProtocol=TCP",
            "NewManage=0",
        ],
        "DeletePortMappingRange ok",
        "",
    ),
    step(
        &["GetGenericPortMappingEntry", "NewPortMappingIndex=0"],
        "GetGenericPortMappingEntry error 713",
        "",
    ),
];

const FIREWALL_STEPS: &[Step] = &[
    step(
        &[
            "GetFirewallStatus",
            "FirewallEnabled",
            "InboundPinholeAllowed",
        ],
        "GetFirewallStatus ok FirewallEnabled=1 InboundPinholeAllowed=1",
        "",
    ),
    step(
        &[
            "AddPinhole",
            "RemoteHost=",
            "RemotePort=0",
            "InternalClient=2a0b:1:2:3::10",
            "InternalPort=8080",
            "Protocol=6",
            "LeaseTime=600",
            "UniqueID",
        ],
        "AddPinhole ok",
        "UniqueID=",
    ),
    step(
        &["UpdatePinhole", "UniqueID=@", "NewLeaseTime=1200"],
        "UpdatePinhole ok",
        "",
    ),
    step(
        &["GetPinholePackets", "UniqueID=@", "PinholePackets"],
        "GetPinholePackets ok PinholePackets=0",
        "",
    ),
    step(
        &["CheckPinholeWorking", "UniqueID=@", "IsWorking"],
        "CheckPinholeWorking error 709",
        "",
    ),
    step(&["DeletePinhole", "UniqueID=@"], "DeletePinhole ok", ""),
    step(
        &["DeletePinhole", "UniqueID=@"],
        "DeletePinhole error 704",
        "",
    ),
];

fn words(steps: &[Step]) -> Vec<String> {
    let all = steps.iter().flat_map(|step| {
        let words = step.words.iter().copied();
        words.chain(["--"]).map(str::to_owned)
    });
    all.collect()
}

/// Whether each step has its line, in their order, behind one that says who was found.
fn check(output: &str, steps: &[Step]) -> Result<()> {
    let mut lines = output
        .lines()
        .skip_while(|line| !line.starts_with("found "));
    lines
        .next()
        .with_context(|| format!("found nothing:\n{output}"))?;
    for step in steps {
        let line = lines.next().unwrap_or_default();
        ensure!(
            line.starts_with(step.line) && line.contains(step.part),
            "not {:?} with {:?}: {line:?} in\n{output}",
            step.line,
            step.part
        );
    }
    Ok(())
}

fn script(name: &str) -> String {
    let path = packages::workspace().join("tests/clients").join(name);
    path.display().to_string()
}

fn environment(variables: &[(&str, String)]) -> Vec<String> {
    let variables = variables.iter();
    let mut argv = vec!["env".to_owned()];
    argv.extend(variables.map(|(name, value)| format!("{name}={value}")));
    argv
}

fn in_perl(host: &Namespace, steps: &[Step]) -> Result<String> {
    let modules = packages::net_upnp()?;
    let include = |path: &Path| format!("-I{}", path.display());
    let mut argv = vec!["perl".to_owned(), include(&modules), script("net-upnp.pl")];
    argv.extend([IGD2, CONNECTION].map(str::to_owned));
    argv.extend(words(steps));
    host.must(&argv)
}

fn in_gupnp(host: &Namespace, service: &str, steps: &[Step]) -> Result<String> {
    let variables = packages::gupnp()?;
    in_python(host, "gupnp-control-point.py", &variables, service, steps)
}

fn in_libupnp(host: &Namespace, service: &str, steps: &[Step]) -> Result<String> {
    in_python(host, "libupnp.py", &packages::libupnp()?, service, steps)
}

fn in_python(
    host: &Namespace,
    name: &str,
    variables: &[(&str, String)],
    service: &str,
    steps: &[Step],
) -> Result<String> {
    let mut argv = environment(variables);
    argv.push("/usr/bin/python3".to_owned());
    argv.push(script(name));
    argv.push(service.to_owned());
    argv.extend(words(steps));
    let name = format!("{name}-{}", service.rsplit(':').nth(1).unwrap_or_default());
    let mut client = host.spawn(&name, &argv)?;
    let status = client.wait(WITHIN).with_context(|| client.log())?;
    ensure!(status.success(), "{status}:\n{}", client.log());
    Ok(client.log())
}

/// GUPnP's control point, libupnp and Net::UPnP: all that there is to call, by IPv4 and IPv6 hosts.
#[test]
fn control_points_of_three_more_families_call_everything() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        more: "[ipv6]\nfilter = true\n",
        ..Options::default()
    };
    let iwfd = Iwfd::start(&lab, &options)?;
    let other = Gateway::discover(&lab.lan1)?.seen_from(&lab.lan2);
    other.add("TCP", TAKEN.parse()?, LAN2, 6198, 3600)?.ok()?;
    ensure!(LAN1.to_string() == "192.168.1.10" && LAN1_6.to_string() == "2a0b:1:2:3::10");

    check(&in_perl(&lab.lan1, CONNECTION_STEPS)?, CONNECTION_STEPS).context("Net::UPnP")?;
    let log = in_gupnp(&lab.lan1, CONNECTION, CONNECTION_STEPS)?;
    check(&log, CONNECTION_STEPS).context("GUPnP")?;
    let log = in_gupnp(&lab.lan1, FIREWALL, FIREWALL_STEPS)?;
    check(&log, FIREWALL_STEPS).context("GUPnP and pinholes")?;
    let steps = [EVENT_STEPS, CONNECTION_STEPS].concat();
    let log = in_libupnp(&lab.lan1, CONNECTION, &steps)?;
    check(&log, &steps).context("libupnp")?;
    let log = in_libupnp(&lab.lan1, FIREWALL, FIREWALL_STEPS)?;
    check(&log, FIREWALL_STEPS).context("libupnp and pinholes")?;
    iwfd.ctl().must(&["audit"])?;
    Ok(())
}

/// Two programs in Go, whose XML, HTTP and SSDP have nothing in common with those in C: Syncthing has a UPnP client of its
/// own, and Sia uses goupnp, as most others in Go do.
#[test]
fn programs_in_go_open_their_ports() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let mut sync = syncthing(&cascade, "22007")?;
    let node = siad(&cascade, "9981")?;
    wait::until_ok("both have opened their ports", WITHIN, || {
        let open = internal_ports(&cascade)?;
        // Syncthing searches for both versions, and takes a port by each; Sia takes one for both protocols.
        let expected = [
            ("tcp".to_owned(), LAN1, 22007),
            ("tcp".to_owned(), LAN1, 22007),
            ("tcp".to_owned(), LAN2, 9981),
            ("udp".to_owned(), LAN2, 9981),
        ];
        ensure!(open == expected, "{open:?}");
        ensure!(cascade.at_the_carrier()? == cascade.at_the_iwf()?);
        Ok(())
    })
    .with_context(|| format!("{}\n{}", sync.log(), node.log()))?;
    sync.wait_for_log(&format!("external TCP address {EXTERNAL}:"), WITHIN)?;
    // It closes its ports when it ends; Syncthing leaves them to their lease.
    node.signal(Signal::SIGINT)?;
    wait::until_ok("the node has closed its ports", WITHIN, || {
        let open = internal_ports(&cascade)?;
        let others = open.iter().all(|(_, host, _)| *host == LAN1);
        ensure!(others && open.len() == 2, "{open:?}");
        Ok(())
    })
    .with_context(|| node.log())?;
    sync.kill_hard()?;
    cascade.iwfd.ctl().must(&["audit"])?;
    Ok(())
}

/// Whose ports are open, in order.
fn internal_ports(cascade: &Cascade) -> Result<Vec<(String, Ipv4Addr, u16)>> {
    let mut open = Vec::new();
    for row in cascade::rows(&cascade.iwfd)? {
        let internal = cascade::endpoint(&row, "internal")?;
        let protocol = row["protocol"].as_str().unwrap_or_default();
        open.push((protocol.to_lowercase(), *internal.ip(), internal.port()));
    }
    open.sort();
    Ok(open)
}

/// At the first LAN host, with nothing to do but to listen.
fn syncthing(cascade: &Cascade, port: &str) -> Result<Process> {
    let (lab, program) = (&cascade.lab, packages::syncthing()?.display().to_string());
    let home = lab.dir().join("syncthing");
    let config = home.join("config.xml");
    let home = format!("--home={}", home.display());
    let generate = ["generate", &home, "--no-default-folder"];
    let argv = [&[program.as_str()][..], &generate].concat();
    lab.lan1.must(&argv)?;
    let mut text = std::fs::read_to_string(&config).context("read what it has generated")?;
    for (name, from, to) in [
        (
            "listenAddress",
            "default",
            &*format!("tcp://0.0.0.0:{port}"),
        ),
        ("globalAnnounceEnabled", "true", "false"),
        ("localAnnounceEnabled", "true", "false"),
        ("relaysEnabled", "true", "false"),
        ("crashReportingEnabled", "true", "false"),
        ("natTimeoutSeconds", "10", "3"),
    ] {
        let element = |value: &str| format!("<{name}>{value}</{name}>");
        ensure!(text.contains(&element(from)), "no {name} in {text}");
        text = text.replace(&element(from), &element(to));
    }
    std::fs::write(&config, text).context("write its configuration")?;
    let serve = [
        "serve",
        &home,
        "--no-browser",
        "--no-restart",
        "--no-upgrade",
    ];
    let argv = [&[program.as_str()][..], &serve].concat();
    lab.lan1.spawn("syncthing", &argv)
}

/// At the second LAN host, alone in the world.
fn siad(cascade: &Cascade, port: &str) -> Result<Process> {
    let (lab, program) = (&cascade.lab, packages::siad()?.display().to_string());
    let dir = lab.dir().join("sia");
    std::fs::create_dir_all(&dir).context("make its directory")?;
    let dir = format!("--sia-directory={}", dir.display());
    let address = format!("--rpc-addr=:{port}");
    // Debian's writes its log below /var/log, whatever it is told: it gets one of its own.
    let own_log = "mount -t tmpfs none /var/log && mkdir /var/log/sia && exec \"$@\"";
    let argv = [
        ["unshare", "--mount", "sh", "-c", own_log, "sh"].as_slice(),
        &[&program, &dir, &address, "--modules=g", "--no-bootstrap"],
    ]
    .concat();
    lab.lan2.spawn("siad", &argv)
}

/// libtorrent, which qBittorrent and Deluge use, has a control point of its own.
#[test]
fn libtorrent_opens_its_ports() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let mut argv = environment(&packages::libtorrent()?);
    argv.push("/usr/bin/python3".to_owned());
    argv.push(script("torrent-session.py"));
    argv.extend([LAN1.to_string(), "6901".to_owned()]);
    let mut client = cascade.lab.lan1.spawn("libtorrent", &argv)?;
    until_open(&cascade, &[("tcp", 6901), ("udp", 6901)]).with_context(|| client.log())?;
    // It is told the outermost address.
    client.wait_for_log(&EXTERNAL.to_string(), WITHIN)?;
    client.signal(Signal::SIGUSR1)?;
    until_open(&cascade, &[]).with_context(|| client.log())?;
    client.wait_for_log("closed", Duration::from_secs(30))?;
    Ok(())
}
