//! Malformed input from the LAN and a damaged store: the daemon answers properly, stays up and stays small.
#![expect(
    clippy::disallowed_types,
    reason = "the suites talk to real programs over sockets"
)]

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Result;
use iwf_tests::cascade::{self, Scripted};
use iwf_tests::igd::{Gateway, SSDP, Version, WANIP1};
use iwf_tests::netns::may_run;
use iwf_tests::script::Manner;
use iwf_tests::topology::{GATEWAY, LAN1};
use iwf_tests::wait;

/// What a flood of bad input may add to the daemon's memory, in KiB: arenas of an allocator, no leak.
const GROWTH: u64 = 4096;

fn soap(gateway: &Gateway, action: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: text/xml\r\n\
         SOAPAction: \"{WANIP1}#{action}\"\r\nContent-Length: {}\r\n\r\n{body}",
        gateway.control_path(),
        gateway.address(),
        body.len()
    )
    .into_bytes()
}

fn envelope(inner: &str) -> String {
    format!(
        "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{inner}</s:Body></s:Envelope>"
    )
}

#[test]
fn bad_soap_and_http_get_their_own_errors() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;

    let unknown = gateway.call("MakeCoffee", &[])?;
    assert_eq!(unknown.error(), Some(401));
    let missing = gateway.call("AddPortMapping", &[("NewProtocol", "TCP")])?;
    assert_eq!(missing.error(), Some(402));
    for (protocol, client) in [("ICMP", "192.168.1.10"), ("TCP", "not an address")] {
        let answer = gateway.call(
            "AddPortMapping",
            &[
                ("NewRemoteHost", ""),
                ("NewExternalPort", "29000"),
                ("NewProtocol", protocol),
                ("NewInternalPort", "8000"),
                ("NewInternalClient", client),
                ("NewEnabled", "1"),
                ("NewPortMappingDescription", ""),
                ("NewLeaseDuration", "0"),
            ],
        )?;
        let code = answer.error();
        assert!(
            code.is_some_and(|code| [402, 600, 601].contains(&code)),
            "{protocol} {client}: {code:?}"
        );
    }

    // What can be nobody's address is no more than that, whatever else it may mean to the kernel or the LAN.
    let version_2 = Gateway::discover_version(&scripted.lab.lan1, Version::Two)?;
    for client in [
        "255.255.255.255",
        "192.168.1.255",
        "0.0.0.0",
        "127.0.0.1",
        "192.168.1.1",
    ] {
        let answer = gateway.add("UDP", 29000, client.parse()?, 8000, 600)?;
        assert_eq!(answer.error(), Some(718), "{client}");
        let answer = version_2.add("UDP", 29000, client.parse()?, 8000, 600)?;
        assert_eq!(answer.error(), Some(606), "{client}");
    }
    let optional = gateway.call("GetAutoDisconnectTime", &[])?;
    assert_eq!(optional.error(), Some(602));

    for body in [
        "",
        "<",
        "no XML at all",
        "<s:Envelope>",
        &envelope("<u:AddPortMapping>"),
        &"<a>".repeat(3000),
    ] {
        let answer = gateway.raw(&soap(&gateway, "AddPortMapping", body))?;
        assert!(
            (400..=500).contains(&answer.status),
            "{body:.40}: {}",
            answer.text
        );
    }
    for request in [
        &b"GET /\r\n\r\n"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: 192.168.1.1\r\nConnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: 192.168.1.1\r\nContent-Length: -1\r\nConnection: close\r\n\r\n",
    ] {
        // Refused with a status or closed without one.
        if let Ok(answer) = gateway.raw(request) {
            assert!((400..=505).contains(&answer.status), "{}", answer.text);
        }
    }
    // Each has its counter: faults of 401, 402 and of arguments, requests that are none.
    // What is no HTTP is counted when its connection has ended.
    wait::until_ok("the counters", Duration::from_secs(5), || {
        let counter = |name: &str| scripted.iwfd.ctl().counter(name);
        let (faults, bad) = (counter("http_faults")?, counter("http_bad_requests")?);
        anyhow::ensure!(faults >= 4 && bad >= 9, "{faults} and {bad}");
        Ok(())
    })?;
    assert_eq!(scripted.server.map_requests().len(), 0);
    cascade::nothing_is_left(&scripted.iwfd)
}

#[test]
fn too_much_is_refused_by_its_own_status_and_counted() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    let add = |inner: &str| {
        let call = format!("<u:AddPortMapping xmlns:u=\"{WANIP1}\">{inner}</u:AddPortMapping>");
        let request = soap(&gateway, "AddPortMapping", &envelope(&call));
        gateway.raw(&request)
    };
    let deep = "<a>".repeat(100);
    let entity = "<NewExternalPort>&port;</NewExternalPort>";
    let typed = format!("<!DOCTYPE x [<!ENTITY port \"80\">]>{}", envelope(entity));
    assert_eq!(add(&"x".repeat(100_000))?.status, 413);
    assert_eq!(add(&deep)?.error(), Some(402));
    assert_eq!(add(&"<a/>".repeat(1000))?.error(), Some(402));
    assert_eq!(add(entity)?.status, 400);
    let typed = gateway.raw(&soap(&gateway, "AddPortMapping", &typed))?;
    assert_eq!(typed.status, 400);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000));
    assert_eq!(gateway.raw(long.as_bytes())?.status, 431);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    assert_eq!(gateway.raw(many.as_bytes())?.status, 431);
    let endless = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Length: 99999999999\r\n\r\n",
        gateway.control_path(),
        gateway.address()
    );
    assert_eq!(gateway.raw(endless.as_bytes())?.status, 413);
    wait::until_ok("the counters", Duration::from_secs(5), || {
        let counter = |name: &str| scripted.iwfd.ctl().counter(name);
        let counted = [
            counter("http_too_large")?,
            counter("http_faults")?,
            counter("http_bad_requests")?,
        ];
        anyhow::ensure!(counted == [4, 2, 2], "{counted:?}");
        Ok(())
    })?;
    cascade::nothing_is_left(&scripted.iwfd)
}

#[test]
fn a_flood_of_bad_input_costs_no_memory() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    let lan1 = &scripted.lab.lan1;
    let ssdp = lan1.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    let nat = lan1.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    let search =
        format!("M-SEARCH * HTTP/1.1\r\nHOST: {SSDP}\r\nMAN: \"ssdp:discover\"\r\nST: x\r\n\r\n");
    let round = |count: u16| -> Result<()> {
        for number in 0..count {
            let cut = usize::from(number) % search.len();
            ssdp.send_to(&search.as_bytes()[..cut], SSDP)?;
            ssdp.send_to(&[number as u8; 1400], SSDP)?;
            // No server listens there in this version; a datagram must do no harm all the same.
            nat.send_to(&vec![2; cut], (GATEWAY, 5351)).ok();
            let body = format!("{}<{}", envelope("<u:x>"), "&#x0;".repeat(cut));
            gateway.raw(&soap(&gateway, "AddPortMapping", &body))?;
            gateway.call(
                "DeletePortMapping",
                &[("NewExternalPort", &"9".repeat(cut))],
            )?;
        }
        Ok(())
    };

    round(100)?;
    let before = scripted.iwfd.resident_kib()?;
    round(500)?;
    let after = scripted.iwfd.resident_kib()?;
    assert!(
        after <= before + GROWTH,
        "{before} KiB before, {after} KiB after"
    );
    assert!(scripted.iwfd.process().running()?);
    // It still serves.
    gateway.add("TCP", 29001, LAN1, 8000, 3600)?.ok()?;
    Ok(())
}

#[test]
fn ten_clients_that_never_finish_a_request_do_not_stop_an_eleventh() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(iwf_tests::peers::connect(
            &scripted.lab.lan2,
            gateway.address(),
            Duration::from_secs(5),
        )?);
    }
    let (answer, took) = wait::timed(|| gateway.call("GetExternalIPAddress", &[]));
    answer?.ok()?;
    assert!(took < Duration::from_secs(3), "it took {took:?}");
    Ok(())
}

#[test]
fn a_damaged_store_never_keeps_the_daemon_from_starting() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let mut scripted = Scripted::up(Manner::Grant)?;
    let gateway = Gateway::discover(&scripted.lab.lan1)?;
    gateway.add("TCP", 29002, LAN1, 8000, 3600)?.ok()?;
    let state = scripted.iwfd.files().state_dir.clone();

    for damage in [Damage::Truncated, Damage::Overwritten, Damage::Empty] {
        scripted.iwfd.kill()?;
        for entry in std::fs::read_dir(&state)? {
            damage.apply(&entry?.path())?;
        }
        scripted.iwfd.restart()?;
        let log = scripted.iwfd.process().log();
        assert!(log.contains("store"), "{damage:?} is not mentioned: {log}");
        // Whatever was lost: the tables agree, and new mappings work.
        wait::until_ok("a clean audit", Duration::from_secs(10), || {
            scripted.iwfd.ctl().must(&["audit"])
        })?;
        Gateway::discover(&scripted.lab.lan1)?
            .add("UDP", 29003, LAN1, 8000, 3600)?
            .ok()?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Truncated,
    Overwritten,
    Empty,
}

impl Damage {
    fn apply(self, file: &std::path::Path) -> Result<()> {
        if !file.is_file() {
            return Ok(());
        }
        let mut bytes = std::fs::read(file)?;
        match self {
            Self::Truncated => bytes.truncate(bytes.len() / 2),
            Self::Overwritten => {
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte ^= (at as u8).wrapping_mul(31) | 1;
                }
            }
            Self::Empty => bytes.clear(),
        }
        std::fs::write(file, bytes)?;
        Ok(())
    }
}
