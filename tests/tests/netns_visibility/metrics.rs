//! What a collector of metrics gets, read by the parser of its own library.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Ctl, Iwfd, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::script::{Manner, ScriptedServer};
use iwf_tests::topology::{CARRIER, GATEWAY, LAN1, Lab, WAN};
use iwf_tests::{packages, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{SOON, exchange, udp, warm_up};

const PORT: u16 = 9786;
/// Connections that are served at once.
const PLACES: usize = 4;

/// One collection.
struct Scrape {
    json: Value,
    text: String,
}

impl Scrape {
    fn of(host: &Namespace, at: Ipv4Addr) -> Result<Self> {
        let modules = packages::prometheus_client()?;
        let script = packages::workspace().join("tests/clients/openmetrics.py");
        let text = host.must(&[
            "env".to_owned(),
            format!("PYTHONPATH={}", modules.display()),
            "/usr/bin/python3".to_owned(),
            script.display().to_string(),
            format!("http://{at}:{PORT}/metrics"),
        ])?;
        let json = serde_json::from_str(&text).with_context(|| text.clone())?;
        Ok(Self { json, text })
    }

    /// The sample of that name, with that label if one is named.
    fn value(&self, name: &str, label: Option<(&str, &str)>) -> Result<f64> {
        let samples = self.json["samples"].as_array().context("samples")?;
        let found = samples.iter().find(|sample| {
            sample[0] == name && label.is_none_or(|(key, value)| sample[1][key] == value)
        });
        let value = found.and_then(|sample| sample[2].as_f64());
        value.with_context(|| format!("no {name} {label:?} in {}", self.json))
    }

    fn held(&self, of: &str) -> Result<f64> {
        self.value("iwf_held", Some(("of", of)))
    }

    /// Family and label of a packet's counter, or the family of one of the daemon's.
    fn counter(&self, list: &str, name: &str) -> Result<f64> {
        if list == "daemon" {
            return self.value(&format!("iwf_{name}_total"), None);
        }
        let family = match name.split_once('_') {
            Some(("pass", _)) => "iwf_passed_packets_total",
            Some(("drop", _)) => "iwf_dropped_packets_total",
            _ => "iwf_done_total",
        };
        self.value(family, Some(("counter", name)))
    }
}

/// Everything that iwfctl counts, with its list, name and value.
fn counters(ctl: &Ctl) -> Result<Vec<(&'static str, String, f64)>> {
    let stats = ctl.json(&["stats"])?;
    let mut all = Vec::new();
    for list in ["counters", "daemon"] {
        for row in stats[list].as_array().context("counters")? {
            let name = row["name"].as_str().context("a name")?;
            let value = row["value"].as_f64().context("a number")?;
            all.push((list, name.to_owned(), value));
        }
    }
    Ok(all)
}

/// Reads the configuration anew with that address for the metrics.
fn serve_at(iwfd: &mut Iwfd, before: &str, now: &str) -> Result<()> {
    let config = std::fs::read_to_string(&iwfd.files().config)?;
    let line = |at: &str| format!("listen = \"{at}\"");
    ensure!(config.contains(&line(before)), "{config}");
    std::fs::write(
        &iwfd.files().config,
        config.replace(&line(before), &line(now)),
    )?;
    iwfd.process().signal(Signal::SIGHUP)?;
    Ok(())
}

fn connect(host: &Namespace, at: Ipv4Addr) -> Result<TcpStream> {
    let at = SocketAddr::from((at, PORT));
    Ok(host.within(|| TcpStream::connect_timeout(&at, SOON / 5))??)
}

/// The status line of the answer to a request.
fn asked(host: &Namespace, at: Ipv4Addr, request: &str) -> Result<String> {
    let mut stream = connect(host, at)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "{request} HTTP/1.1\r\nHost: here\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn collectors_get_what_iwfctl_shows_and_nobody_on_the_wan_does() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let server = ScriptedServer::start(&lab, Manner::Grant)?;
    let options = Options {
        more: "[metrics]\nlisten = \"127.0.0.1:9786\"\n",
        ..Options::default()
    };
    let mut iwfd = Iwfd::start(&lab, &options)?;
    warm_up(&lab, &[&lab.lan1])?;
    let home = Ipv4Addr::LOCALHOST;

    // Who says nothing takes a place for a while, and no longer.
    let silent: Vec<TcpStream> = (0..PLACES)
        .map(|_| connect(&lab.cpe, home))
        .collect::<Result<_>>()?;
    let before = Scrape::of(&lab.cpe, home)?;
    drop(silent);

    let gateway = Gateway::discover(&lab.lan1)?;
    gateway.add("UDP", 4001, LAN1, 4001, 3600)?.ok()?;
    let (inside, outside) = (udp(&lab.lan1, 4001)?, udp(&lab.cgn, 7001)?);
    exchange(&inside, &outside, (CARRIER, 7001).into(), (7, 100))?;
    // To a port that nobody has.
    outside.send_to(b"?", SocketAddrV4::new(WAN, 4002))?;
    wait::until_ok("the stray to be counted", SOON, || {
        ensure!(iwfd.ctl().counter("drop_unsolicited")? > 0, "not yet");
        Ok(())
    })?;

    let first = counters(&iwfd.ctl())?;
    let after = Scrape::of(&lab.cpe, home)?;
    let last = counters(&iwfd.ctl())?;
    for ((list, name, low), (_, _, high)) in first.iter().zip(&last) {
        let seen = after.counter(list, name)?;
        ensure!(
            (low..=high).contains(&&seen),
            "{name}: {low}, {seen}, {high}"
        );
    }
    let count = |scrape: &Scrape| {
        let types = scrape.json["types"].as_object();
        types.map(|types| types.values().filter(|of| *of == "counter").count())
    };
    let own = first.iter().filter(|(list, ..)| *list == "daemon").count();
    assert_eq!(count(&after), Some(own + 3), "{}", after.json["types"]);
    let moved = |list, name| -> Result<f64> {
        Ok(after.counter(list, name)? - before.counter(list, name)?)
    };
    ensure!(moved("counters", "forwarded_out")? >= 7.0);
    ensure!(moved("counters", "forwarded_in")? >= 7.0);
    ensure!(moved("counters", "drop_unsolicited")? >= 1.0);
    ensure!(moved("daemon", "store_commits")? >= 2.0);
    assert_eq!(
        (before.held("mappings")?, before.held("leases")?),
        (0.0, 0.0)
    );
    assert_eq!((after.held("mappings")?, after.held("leases")?), (1.0, 1.0));
    assert_eq!(
        after.value("iwf_held_limit", Some(("of", "mappings")))?,
        4096.0
    );
    let carrier = format!("{CARRIER}:5351");
    let here = Some(("address", carrier.as_str()));
    assert_eq!(after.value("iwf_upstream_answering", here)?, 1.0);
    let state = Some(("state", "answering"));
    assert_eq!(after.value("iwf_upstream_server", state)?, 1.0);
    let filters = Some(("table", "filters"));
    assert_eq!(after.value("iwf_table_entries", filters)?, 0.0);
    ensure!(after.value("iwf_table_capacity", filters)? > 0.0);
    for lease in server.leases() {
        let nonce: String = lease.nonce.iter().map(|o| format!("{o:02x}")).collect();
        ensure!(!after.text.to_lowercase().contains(&nonce), "a nonce");
    }
    let help = after.json["help"].as_object().context("help")?;
    ensure!(help.values().all(|text| text != ""), "{help:?}");

    assert_eq!(asked(&lab.cpe, home, "GET /")?, "HTTP/1.1 404 Not Found");
    let refused = asked(&lab.cpe, home, "POST /metrics")?;
    assert_eq!(refused, "HTTP/1.1 405 Method Not Allowed");

    // To the LAN, if the owner wants it.
    serve_at(&mut iwfd, "127.0.0.1:9786", &format!("{GATEWAY}:{PORT}"))?;
    wait::until_ok("the LAN to be served", SOON, || {
        Scrape::of(&lab.lan1, GATEWAY)
    })?;
    wait::until_ok("the old address to be left", SOON, || {
        ensure!(connect(&lab.cpe, home).is_err(), "still served at {home}");
        Ok(())
    })?;
    // And even what is bound to the WAN's address is closed to the WAN.
    serve_at(
        &mut iwfd,
        &format!("{GATEWAY}:{PORT}"),
        &format!("{WAN}:{PORT}"),
    )?;
    wait::until_ok("the router to be served", SOON, || {
        Scrape::of(&lab.cpe, WAN)
    })?;
    ensure!(connect(&lab.cgn, WAN).is_err(), "the WAN is served");
    serve_at(&mut iwfd, &format!("{WAN}:{PORT}"), "")?;
    wait::until_ok("nobody to be served", SOON, || {
        ensure!(connect(&lab.cpe, WAN).is_err(), "still served");
        Ok(())
    })
}
