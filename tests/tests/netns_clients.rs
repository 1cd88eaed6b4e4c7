//! UPnP clients written by others, unmodified: libraries of different families, and a program of an end user.

#[path = "netns_clients/families.rs"]
mod families;
#[path = "netns_clients/quirks.rs"]
mod quirks;
#[path = "netns_clients/replay.rs"]
mod replay;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use igd_next::aio::tokio::search_gateway;
use igd_next::{PortMappingProtocol, SearchOptions};
use iwf_tests::cascade::{self, Cascade};
use iwf_tests::daemon::Options;
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::process::Process;
use iwf_tests::topology::{EXTERNAL, LAN1, LAN2};
use iwf_tests::{packages, upnpc, wait};
use nix::sys::signal::Signal;

/// A client searches for some seconds, and repeats what was lost.
const WITHIN: Duration = Duration::from_secs(40);

fn ports(cascade: &Cascade) -> Result<Vec<(String, u16)>> {
    let mappings = cascade.at_the_iwf()?;
    Ok(mappings.into_iter().map(|(p, port, _)| (p, port)).collect())
}

/// Waits until exactly these are open, here and at the carrier.
fn until_open(cascade: &Cascade, expected: &[(&str, u16)]) -> Result<()> {
    wait::until_ok(&format!("{expected:?} are open"), WITHIN, || {
        let open = ports(cascade)?;
        let expected: Vec<_> = expected
            .iter()
            .map(|(p, n)| ((*p).to_owned(), *n))
            .collect();
        ensure!(open == expected, "open are {open:?}");
        ensure!(cascade.at_the_carrier()? == cascade.at_the_iwf()?);
        Ok(())
    })
}

/// miniupnpc, version 2 of the service: AddAnyPortMapping, both ways to list, and DeletePortMappingRange.
#[test]
fn upnpc_uses_all_of_version_2() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let gateway = Gateway::discover(&cascade.lab.lan1)?;
    let url = format!("http://{}/igd2/desc.xml", gateway.address());
    let call = |host: &Namespace, words: &[&str]| -> Result<upnpc::Call> {
        upnpc::call(host, &[&["-u", &url], words].concat())
    };
    let (lan1, lan2) = (&cascade.lab.lan1, &cascade.lab.lan2);
    let own = LAN1.to_string();
    for port in ["2001", "2002", "2003"] {
        call(lan1, &["-a", &own, port, port, "TCP", "600"])?.line("is redirected to internal")?;
    }
    let other = LAN2.to_string();
    call(lan2, &["-n", &other, "2002", "2002", "TCP", "600"])?.line("is redirected to internal")?;
    until(&cascade, 4)?;

    let listed = call(lan1, &["-l"])?;
    for port in ["2001", "2002", "2003"] {
        listed.line(&format!("->{LAN1}:{port}"))?;
    }
    ensure!(!listed.output.contains(&other), "{}", listed.output);
    // It reads a listing in CDATA only, and is known by its user agent. Of UDP there is none.
    let listed = call(lan1, &["-L"])?;
    for port in ["2001", "2002", "2003"] {
        listed.line(&format!("->{LAN1}:{port}"))?;
    }
    ensure!(!listed.output.contains(&other), "{}", listed.output);
    listed.line("GetListOfPortMappings() returned 730")?;
    let done = call(lan1, &["-N", "2002", "2010", "TCP"])?;
    ensure!(!done.output.contains("failed"), "{}", done.output);
    until(&cascade, 2)?;
    let left = ports(&cascade)?;
    ensure!(left.contains(&("tcp".to_owned(), 2001)), "{left:?}");
    let empty = call(lan1, &["-N", "2002", "2010", "TCP"])?;
    empty.line("730")?;
    cascade.iwfd.ctl().must(&["audit"])?;
    Ok(())
}

/// Waits until so many are open, here and at the carrier.
fn until(cascade: &Cascade, number: usize) -> Result<()> {
    wait::until_ok(&format!("{number} mappings"), WITHIN, || {
        let here = cascade.at_the_iwf()?;
        ensure!(here.len() == number, "{here:?}");
        ensure!(cascade.at_the_carrier()? == here);
        Ok(())
    })
}

/// GUPnP's library for gateways, which many programs of the GNOME family use.
#[test]
fn gupnp_opens_and_closes_a_port() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    // It asks for the address and for the mapping at once, and stays silent if its own turn comes when both are answered,
    // the mapping first in its eyes. An address that is known already is answered long before.
    let gateway = Gateway::discover(&cascade.lab.lan2)?;
    gateway.call("GetExternalIPAddress", &[])?.ok()?;
    let mut client = gupnp(&cascade.lab.lan1, LAN1, 4001, 4001)?;
    client.wait_for_log(&format!("mapped TCP {EXTERNAL} 4001"), WITHIN)?;
    until_open(&cascade, &[("tcp", 4001)])?;
    let rows = cascade::rows(&cascade.iwfd)?;
    let row = rows.first().context("a mapping")?;
    ensure!(row["description"] == "GUPnP client", "{row}");
    client.signal(Signal::SIGUSR1)?;
    client.wait_for_log("closing 4001", WITHIN)?;
    until_open(&cascade, &[])?;
    client.kill_hard()
}

fn gupnp(host: &Namespace, address: Ipv4Addr, internal: u16, external: u16) -> Result<Process> {
    let typelibs = packages::gupnp_igd()?;
    let typelibs = typelibs
        .parent()
        .context("its directory")?
        .display()
        .to_string();
    let modules = packages::cache().join("usr/lib/python3/dist-packages");
    let script = packages::workspace().join("tests/clients/gupnp-igd.py");
    let argv = [
        "env".to_owned(),
        format!("LD_LIBRARY_PATH={}", packages::library_path()?),
        format!("GI_TYPELIB_PATH={typelibs}"),
        format!("PYTHONPATH={}", modules.display()),
        "GIO_USE_VFS=local".to_owned(),
        "/usr/bin/python3".to_owned(),
        script.display().to_string(),
        address.to_string(),
        internal.to_string(),
        external.to_string(),
        "600".to_owned(),
    ];
    host.spawn("gupnp", &argv)
}

/// A library of the Rust family, with an HTTP client and an XML reader of its own.
#[test]
fn igd_next_opens_lists_and_closes_ports() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build()
    };
    let (first, any) = cascade.lab.lan1.within(|| {
        runtime()?.block_on(async {
            let gateway = search_gateway(from_lan1()).await.context("search")?;
            ensure!(gateway.get_external_ip().await? == EXTERNAL);
            let tcp = PortMappingProtocol::TCP;
            let local = SocketAddr::new(LAN1.into(), 5001);
            gateway.add_port(tcp, 5001, local, 600, "igd-next").await?;
            let local = SocketAddr::new(LAN1.into(), 5002);
            let any = gateway.add_any_port(tcp, local, 0, "igd-next").await?;
            let entry = gateway.get_generic_port_mapping_entry(0).await?;
            ensure!(gateway.get_generic_port_mapping_entry(2).await.is_err());
            Ok((entry.external_port, any))
        })
    })??;
    ensure!(first == 5001, "the first entry is at port {first}");
    let mut expected = [("tcp", 5001), ("tcp", any)];
    expected.sort_unstable();
    until_open(&cascade, &expected)?;
    cascade.lab.lan1.within(|| {
        runtime()?.block_on(async {
            let gateway = search_gateway(from_lan1()).await.context("search")?;
            let tcp = PortMappingProtocol::TCP;
            gateway.remove_port(tcp, 5001).await?;
            gateway.remove_port(tcp, any).await?;
            ensure!(gateway.remove_port(tcp, 5001).await.is_err());
            Ok(())
        })
    })??;
    until_open(&cascade, &[])
}

fn from_lan1() -> SearchOptions {
    let mut options = SearchOptions::default();
    options.bind_addr = SocketAddr::new(LAN1.into(), 0);
    options
}

/// A program that people use, with its own idea of how to open a port.
#[test]
fn a_bittorrent_client_opens_its_port() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let cascade = Cascade::up(&Options::default())?;
    let dir = cascade.lab.dir().join("torrent");
    std::fs::create_dir_all(&dir)?;
    let (shared, torrent) = (dir.join("shared"), dir.join("shared.torrent"));
    std::fs::write(&shared, vec![7; 1 << 16])?;
    let libraries = format!("LD_LIBRARY_PATH={}", packages::library_path()?);
    let host = &cascade.lab.lan1;
    let text = |path: &Path| path.display().to_string();
    host.must(&[
        "env".to_owned(),
        libraries.clone(),
        text(&packages::transmission("create")?),
        "-o".to_owned(),
        text(&torrent),
        text(&shared),
    ])?;
    let client = host.spawn(
        "transmission",
        &[
            "env".to_owned(),
            libraries,
            format!("HOME={}", dir.display()),
            text(&packages::transmission("cli")?),
            "--portmap".to_owned(),
            "--port=51413".to_owned(),
            "--download-dir".to_owned(),
            text(&dir),
            text(&torrent),
        ],
    )?;
    let open = [("tcp", 51413), ("udp", 51413)];
    until_open(&cascade, &open).with_context(|| client.log())?;
    for row in cascade::rows(&cascade.iwfd)? {
        ensure!(*cascade::endpoint(&row, "internal")?.ip() == LAN1, "{row}");
    }
    // It closes them when it ends.
    client.signal(Signal::SIGINT)?;
    until_open(&cascade, &[])
}
