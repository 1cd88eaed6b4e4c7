//! WANIPv6FirewallControl:1 with a real client: pinholes of the IPv6 filter between real stacks.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "plays the hosts on both sides, in real time"
)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::topology::{GATEWAY_6, LAN_BRIDGE, LAN1_6, LAN2_6, Lab, REMOTE_6};
use iwf_tests::upnpc;
use iwf_tests::wait;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(1500);
const PORT: u16 = 8080;
/// Over IPv4 the client stops at the description of version 1, which has no firewall, unless it is told.
const V4: &str = "http://192.168.1.1:5000/igd2/desc.xml";

fn start(lab: &Lab, more: &'static str) -> Result<Iwfd> {
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        more,
        ..Options::default()
    };
    let iwfd = Iwfd::start(lab, &options)?;
    for host in [&lab.lan1, &lab.lan2] {
        wait::until_ok("the way out", SOON, || {
            let to = REMOTE_6.to_string();
            host.must(&["ping", "-6", "-n", "-c", "1", "-W", "1", &to])
                .map(drop)
        })?;
        wait::until_ok("a client to find the gateway over IPv6", SOON, || {
            upnpc(host, "-S")?.line("FirewallEnabled").map(drop)
        })?;
    }
    Ok(iwfd)
}

/// `upnpc -6` with these words.
fn upnpc(host: &Namespace, words: &str) -> Result<upnpc::Call> {
    let mut all = vec!["-6", "-i"];
    all.extend(words.split_whitespace());
    upnpc::call(host, &all)
}

/// AddPinhole for everybody; the id.
fn add(host: &Namespace, client: Ipv6Addr, port: u16, lease: u32) -> Result<u16> {
    // "empty" is its word for any host.
    let call = upnpc::call(
        host,
        &[
            "-6",
            "-i",
            "-A",
            "empty",
            "0",
            &client.to_string(),
            &port.to_string(),
            "TCP",
            &lease.to_string(),
        ],
    )?;
    let line = call.line("Pinhole ID =")?;
    let id = line.split("Pinhole ID =").nth(1).context("an id")?;
    id.trim().parse().with_context(|| line.to_owned())
}

/// The code that AddPinhole was refused with.
fn refused(host: &Namespace, client: Ipv6Addr, port: u16) -> Result<u16> {
    let words = format!("-A {REMOTE_6} 0 {client} {port} TCP 600");
    let call = upnpc(host, &words)?;
    code(&call)
}

/// The code in `failed with code 606 (Action not authorized)`, or of DeletePinhole in `returned : 606`.
fn code(call: &upnpc::Call) -> Result<u16> {
    let (line, before) = match call.line("failed with code") {
        Ok(line) => (line, "failed with code"),
        Err(_) => (call.line("UPNP_DeletePinhole() returned")?, "returned :"),
    };
    let rest = line.split(before).nth(1).context("a code")?.trim();
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits
        .and_then(|digits| digits.parse().ok())
        .with_context(|| line.to_owned())
}

/// upnpc says what it wants before it knows whether it got it.
fn updated(call: &upnpc::Call) -> Result<()> {
    call.line("UpdatePinhole: Pinhole ID")?;
    ensure!(
        !call.output.contains("UpdatePinhole: ID"),
        "{}",
        call.output
    );
    Ok(())
}

fn listen(host: &Namespace, addr: Ipv6Addr, port: u16) -> Result<TcpListener> {
    Ok(host.within(|| TcpListener::bind((addr, port)))??)
}

fn connect(host: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    connect_within(host, to, SILENCE)
}

fn connect_within(host: &Namespace, to: SocketAddr, within: Duration) -> Result<TcpStream> {
    let stream = host.within(|| TcpStream::connect_timeout(&to, within))??;
    stream.set_read_timeout(Some(SOON * wait::patience()))?;
    Ok(stream)
}

/// A remote host connects and something goes both ways.
fn conversation(lab: &Lab, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let within = SOON * wait::patience();
    let mut remote = connect_within(&lab.inet, listener.local_addr()?, within)?;
    let (mut local, _) = listener.accept()?;
    local.set_read_timeout(Some(within))?;
    echo(&mut remote, &mut local)?;
    Ok((remote, local))
}

fn echo(remote: &mut TcpStream, local: &mut TcpStream) -> Result<()> {
    let mut buffer = [0; 5];
    remote.write_all(b"hello")?;
    local.read_exact(&mut buffer)?;
    local.write_all(b"there")?;
    remote.read_exact(&mut buffer)?;
    ensure!(&buffer == b"there");
    Ok(())
}

fn rows(iwfd: &Iwfd) -> Result<Vec<Value>> {
    let rows = iwfd.ctl().json(&["pinholes"])?;
    Ok(rows.as_array().context("a list of pinholes")?.clone())
}

fn row(iwfd: &Iwfd, id: u16) -> Result<Value> {
    let rows = rows(iwfd)?;
    let found = rows.iter().find(|row| row["id"] == id);
    found
        .cloned()
        .with_context(|| format!("no pinhole {id}: {rows:?}"))
}

fn is_clean(iwfd: &Iwfd) -> Result<()> {
    let audit = iwfd.ctl().run(&["audit"])?;
    ensure!(audit.success(), "{}", audit.text());
    Ok(())
}

#[test]
fn a_pinhole_lets_a_remote_host_in_until_it_is_deleted() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "")?;
    let status = upnpc(&lab.lan1, "-S")?;
    status.line("FirewallEnabled: 1 & Inbound Pinhole Allowed: 1")?;
    let timeout = format!("-G {REMOTE_6} 9 {LAN1_6} 9 6");
    let timeout = upnpc(&lab.lan1, &timeout)?;
    timeout.line("7440")?;

    let server = listen(&lab.lan1, LAN1_6, PORT)?;
    ensure!(connect(&lab.inet, server.local_addr()?).is_err());
    let id = add(&lab.lan1, LAN1_6, PORT, 3600)?;
    let (mut remote, mut local) = conversation(&lab, &server)?;
    // Only there.
    let other = listen(&lab.lan1, LAN1_6, PORT + 1)?;
    ensure!(connect(&lab.inet, other.local_addr()?).is_err());
    let elsewhere = listen(&lab.lan2, LAN2_6, PORT)?;
    ensure!(connect(&lab.inet, elsewhere.local_addr()?).is_err());

    wait::until_ok("the packets to be counted", SOON, || {
        let call = upnpc(&lab.lan1, &format!("-K {id}"))?;
        let line = call.line("PinholePackets =")?;
        let packets: u32 = line
            .rsplit(|c: char| !c.is_ascii_digit())
            .find(|digits| !digits.is_empty())
            .and_then(|digits| digits.parse().ok())
            .with_context(|| line.to_owned())?;
        ensure!(packets >= 3, "{line}");
        Ok(())
    })?;
    let check = upnpc(&lab.lan1, &format!("-C {id}"))?;
    check.line("IsWorking = Yes")?;
    let shown = row(&iwfd, id)?;
    ensure!(shown["packets"].as_u64() >= Some(3), "{shown}");
    ensure!(shown["kernel"] == true, "{shown}");
    let host = lab.lan1.mac("eth0")?;
    let host = host.map(|octet| format!("{octet:02x}")).join(":");
    ensure!(shown["host"] == host, "{shown}");

    // Extended by both actions, under the same id.
    let longer = add(&lab.lan1, LAN1_6, PORT, 7200)?;
    ensure!(longer == id, "{longer}");
    ensure!(row(&iwfd, id)?["lease_left_seconds"].as_u64() > Some(7000));
    updated(&upnpc(&lab.lan1, &format!("-U {id} 1800"))?)?;
    let left = row(&iwfd, id)?["lease_left_seconds"].as_u64();
    ensure!(left > Some(1700) && left <= Some(1800), "{left:?}");
    is_clean(&iwfd)?;

    // Another host may not touch it.
    for words in [
        format!("-D {id}"),
        format!("-U {id} 60"),
        format!("-K {id}"),
    ] {
        let call = upnpc(&lab.lan2, &words)?;
        ensure!(code(&call)? == 606, "{}", call.output);
    }
    echo(&mut remote, &mut local)?;

    // Deleted, it is closed, also for who came in by it.
    let deleted = upnpc(&lab.lan1, &format!("-D {id}"))?;
    ensure!(code(&deleted)? == 0, "{}", deleted.output);
    ensure!(rows(&iwfd)?.is_empty());
    ensure!(connect(&lab.inet, server.local_addr()?).is_err());
    remote.write_all(b"hello")?;
    local.set_read_timeout(Some(SILENCE))?;
    ensure!(local.read(&mut [0; 5]).is_err(), "the session goes on");
    let call = upnpc(&lab.lan1, &format!("-K {id}"))?;
    ensure!(code(&call)? == 704, "{}", call.output);

    let events = iwfd.ctl().must(&["events"])?;
    for kind in ["pinhole-opened", "pinhole-closed", "pinhole-refused"] {
        ensure!(events.contains(kind), "{kind} is not in {events}");
    }
    Ok(())
}

#[test]
fn a_client_gets_pinholes_for_itself_only() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "")?;
    ensure!(refused(&lab.lan1, LAN2_6, PORT)? == 606, "another host");
    ensure!(refused(&lab.lan1, GATEWAY_6, PORT)? == 606, "the gateway");
    ensure!(refused(&lab.lan1, LAN1_6, 80)? == 606, "a low port");
    ensure!(
        refused(&lab.lan1, "2a0b:1:2:4::10".parse()?, PORT)? == 606,
        "no LAN"
    );
    ensure!(refused(&lab.lan1, LAN1_6, 0)? == 706, "any port");
    ensure!(rows(&iwfd)?.is_empty());
    // An address that the router has never heard of is found out.
    let new: Ipv6Addr = "2a0b:1:2:3::abcd".parse()?;
    lab.lan1
        .ip(&format!("address add {new}/64 dev eth0 nodad"))?;
    let id = add(&lab.lan1, new, PORT, 600)?;
    // Over IPv4 it is known by the same MAC address.
    let over_v4 = upnpc::call(&lab.lan1, &["-i", "-u", V4, "-U", &id.to_string(), "60"])?;
    updated(&over_v4)?;
    ensure!(row(&iwfd, id)?["lease_left_seconds"].as_u64() <= Some(60));
    let foreign = upnpc::call(&lab.lan2, &["-i", "-u", V4, "-D", &id.to_string()])?;
    ensure!(code(&foreign)? == 606, "{}", foreign.output);
    let done = upnpc::call(&lab.lan1, &["-i", "-u", V4, "-D", &id.to_string()])?;
    ensure!(code(&done)? == 0, "{}", done.output);
    ensure!(rows(&iwfd)?.is_empty());
    Ok(())
}

#[test]
fn a_pinhole_ends_with_its_lease_and_survives_the_daemon() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let mut iwfd = start(&lab, "")?;
    let server = listen(&lab.lan1, LAN1_6, PORT)?;
    let id = add(&lab.lan1, LAN1_6, PORT, 3600)?;
    let (mut remote, mut local) = conversation(&lab, &server)?;
    // Killed: what is open stays open, and what is left of the lease stays.
    iwfd.kill()?;
    echo(&mut remote, &mut local)?;
    drop(conversation(&lab, &server)?);
    iwfd.restart()?;
    echo(&mut remote, &mut local)?;
    let shown = row(&iwfd, id)?;
    let left = shown["lease_left_seconds"].as_u64();
    ensure!(shown["kernel"] == true && left < Some(3600), "{shown}");
    ensure!(left > Some(3000), "{shown}");
    is_clean(&iwfd)?;
    // Long enough to be seen.
    let lease = 5 * wait::patience();
    wait::until_ok("the client to find the gateway again", SOON, || {
        updated(&upnpc(&lab.lan1, &format!("-U {id} {lease}"))?)?;
        ensure!(row(&iwfd, id)?["lease_left_seconds"].as_u64() <= Some(lease.into()));
        Ok(())
    })?;
    // And ends when that is over, not much earlier and not later.
    let began = Instant::now();
    wait::until_ok("the end of the lease", SOON, || {
        ensure!(rows(&iwfd)?.is_empty());
        Ok(())
    })?;
    ensure!(began.elapsed() < Duration::from_secs(7) * wait::patience());
    ensure!(connect(&lab.inet, server.local_addr()?).is_err());
    remote.write_all(b"hello")?;
    local.set_read_timeout(Some(SILENCE))?;
    ensure!(local.read(&mut [0; 5]).is_err(), "the session goes on");
    is_clean(&iwfd)
}

#[test]
fn a_pinhole_is_closed_when_its_prefix_is_withdrawn() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    let iwfd = start(&lab, "")?;
    let id = add(&lab.lan1, LAN1_6, PORT, 3600)?;
    lab.cpe
        .ip(&format!("address del {GATEWAY_6}/64 dev {LAN_BRIDGE}"))?;
    wait::until_ok("the pinhole to be closed", SOON, || {
        ensure!(row(&iwfd, id)?["kernel"] == false);
        Ok(())
    })?;
    is_clean(&iwfd)?;
    // Not for good: an interface may only have been taken down and up again.
    lab.cpe.ip(&format!(
        "address add {GATEWAY_6}/64 dev {LAN_BRIDGE} nodad"
    ))?;
    wait::until_ok("the pinhole to be open", SOON, || {
        ensure!(row(&iwfd, id)?["kernel"] == true);
        Ok(())
    })
}

#[test]
fn the_owner_decides_whether_there_are_pinholes() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::with_ipv6()?;
    for (more, status, code) in [
        (
            "[ipv6]\nfilter = false\n",
            "FirewallEnabled: 0 & Inbound Pinhole Allowed: 1",
            702,
        ),
        (
            "[ipv6]\npinholes = false\n",
            "FirewallEnabled: 1 & Inbound Pinhole Allowed: 0",
            703,
        ),
    ] {
        let mut iwfd = start(&lab, more)?;
        upnpc(&lab.lan1, "-S")?.line(status)?;
        ensure!(refused(&lab.lan1, LAN1_6, PORT)? == code, "{more}");
        iwfd.stop()?;
    }
    let iwfd = start(&lab, "[ipv6]\npinhole_wildcards = true\n")?;
    let id = add(&lab.lan1, LAN1_6, 0, 600)?;
    let server = listen(&lab.lan1, LAN1_6, 0)?;
    conversation(&lab, &server)?;
    ensure!(row(&iwfd, id)?["internal_port"].is_null());
    Ok(())
}
