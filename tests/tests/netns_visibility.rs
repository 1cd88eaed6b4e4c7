//! What the owner can see of a router that works: sessions, mappings with counters, hosts, tables, events.
#![expect(clippy::disallowed_types, reason = "plays the hosts on both sides")]

#[path = "netns_visibility/metrics.rs"]
mod metrics;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::bpf;
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::peers;
use iwf_tests::process::Process;
use iwf_tests::topology::{CARRIER, LAN1, LAN2, Lab, WAN};
use iwf_tests::wait;
use iwf_tests::wire_tap::Tap;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
/// A pass of the sweep begins every five seconds, and what ended is removed by the next slices.
const SWEPT: Duration = Duration::from_secs(15);

fn local() -> Options {
    Options {
        mode: "local",
        ..Options::default()
    }
}

fn udp(host: &Namespace, port: u16) -> Result<UdpSocket> {
    let local = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    let socket = host.within(|| UdpSocket::bind(local))??;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

/// Sends `count` datagrams of `len` octets and has each come back before the next.
fn exchange(
    inside: &UdpSocket,
    outside: &UdpSocket,
    to: SocketAddr,
    (count, len): (usize, usize),
) -> Result<()> {
    let mut buf = vec![0; 65536];
    for _ in 0..count {
        inside.send_to(&vec![7; len], to)?;
        let (got, from) = outside.recv_from(&mut buf).context("there")?;
        ensure!(got == len, "{got} octets instead of {len}");
        outside.send_to(&vec![8; len], from)?;
        let (got, _) = inside.recv_from(&mut buf).context("and back")?;
        ensure!(got == len, "{got} octets instead of {len}");
    }
    Ok(())
}

/// The first packets of a path wait for neighbours; what is counted later shall not.
fn warm_up(lab: &Lab, hosts: &[&Namespace]) -> Result<()> {
    let echo = peers::Echo::listen(&lab.cgn, 0)?;
    for host in hosts {
        peers::udp_echo(host, SocketAddrV4::new(CARRIER, echo.port()), "up", SOON)?;
    }
    Ok(())
}

/// Packets and octets of IPv4 from and to NAT1's address.
fn on_the_wire(tap: &Tap) -> Result<[u64; 4]> {
    let mut sums = [0; 4];
    for frame in tap.frames()? {
        let octets = u16::from_be_bytes([frame[16], frame[17]]);
        let place = if frame[26..30] == WAN.octets() { 0 } else { 2 };
        sums[place] += 1;
        sums[place + 1] += u64::from(octets);
    }
    Ok(sums)
}

/// What a row counted, in the same order.
fn counted(row: &Value) -> [u64; 4] {
    ["packets_out", "octets_out", "packets_in", "octets_in"].map(|name| {
        row[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {row}"))
    })
}

fn sessions(iwfd: &Iwfd, filter: &[&str]) -> Result<Vec<Value>> {
    let mut args = vec!["sessions"];
    args.extend(filter);
    let answer = iwfd.ctl().json(&args)?;
    let rows = answer["sessions"].as_array().context("a list")?.clone();
    ensure!(
        answer["matched"] == json!(rows.len() as u64 + answer["more"].as_u64().context("more")?),
        "{answer}"
    );
    Ok(rows)
}

fn only(mut rows: Vec<Value>) -> Result<Value> {
    ensure!(rows.len() == 1, "one row, not {rows:?}");
    rows.pop().context("one row")
}

/// Follows the events as JSON.
fn follow(lab: &Lab, iwfd: &Iwfd, name: &str) -> Result<Process> {
    let argv = iwfd.ctl().argv(&["events", "--follow", "--json"])?;
    lab.cpe.spawn(name, &argv)
}

/// The first event of that kind that the follower has printed and `wanted` accepts.
fn event(follower: &Process, kind: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until_ok(kind, SWEPT, || {
        let log = follower.log();
        let mut rows = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        rows.find(|row| row["kind"] == kind && wanted(row))
            .with_context(|| format!("no {kind} in {log}"))
    })
}

#[test]
fn flows_show_up_with_their_ends_states_and_counters() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = Iwfd::start(&lab, &local())?;
    warm_up(&lab, &[&lab.lan1, &lab.lan2])?;
    let tap = Tap::start(&lab, &lab.cgn, "br0", "udp port 7001")?;

    let (inside, outside) = (udp(&lab.lan1, 4001)?, udp(&lab.cgn, 7001)?);
    let far = SocketAddr::from((CARRIER, 7001));
    exchange(&inside, &outside, far, (7, 333))?;
    let expected = wait::until_ok("the capture", SOON, || {
        let seen = on_the_wire(&tap)?;
        ensure!(seen[0] == 7 && seen[2] == 7, "{seen:?}");
        Ok(seen)
    })?;
    assert_eq!(expected, [7, 7 * 361, 7, 7 * 361]);
    let row = only(sessions(&iwfd, &["--protocol", "udp", "--port", "7001"])?)?;
    assert_eq!(counted(&row), expected, "{row}");
    assert_eq!(row["internal"], "192.168.1.10:4001");
    assert_eq!(row["external"], "100.64.0.2:4001");
    assert_eq!(row["remote"], "100.64.0.1:7001");
    assert_eq!(
        (&row["began"], &row["state"]),
        (&json!("out"), &json!("answered"))
    );
    assert_eq!(row["mapping"], "dynamic");
    assert!(row["idle_seconds"].as_u64().context("idle")? < 60);
    let left = row["left_seconds"].as_u64().context("left")?;
    assert!((240..=300).contains(&left), "{row}");

    // One that nobody answers.
    udp(&lab.lan2, 4002)?.send_to(b"hello", (CARRIER, 9))?;
    // Nothing comes back that would say that it has arrived at the router.
    let row = wait::until_ok("the session to begin", SOON, || {
        only(sessions(&iwfd, &["--state", "unanswered"])?)
    })?;
    assert_eq!(row["internal"], "192.168.1.11:4002");
    assert_eq!(counted(&row), [1, 33, 0, 0]);

    // A connection on its way through its states.
    let listener = lab.cgn.within(|| TcpListener::bind((CARRIER, 7002)))??;
    let mut client = peers::connect(&lab.lan2, SocketAddrV4::new(CARRIER, 7002), SOON)?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(SOON))?;
    client.write_all(b"hello")?;
    server.read_exact(&mut [0; 5])?;
    let state = || -> Result<Value> {
        let row = only(sessions(
            &iwfd,
            &["--protocol", "tcp", "--host", "192.168.1.11"],
        )?)?;
        Ok(row["state"].clone())
    };
    let becomes = |wanted: &str| {
        wait::until_ok(wanted, SOON, || {
            let state = state()?;
            ensure!(state == wanted, "{state}");
            Ok(())
        })
    };
    becomes("established")?;
    let row = only(sessions(&iwfd, &["--state", "established"])?)?;
    assert!(
        row["left_seconds"].as_u64().context("left")? > 7000,
        "{row}"
    );
    client.shutdown(Shutdown::Write)?;
    becomes("closing")?;
    drop(server);
    becomes("closed")?;
    let row = only(sessions(&iwfd, &["--state", "closed"])?)?;
    assert!(
        row["left_seconds"].as_u64().context("left")? <= 240,
        "{row}"
    );

    // One from outside, by a mapping that was asked for.
    let gateway = Gateway::discover(&lab.lan1)?;
    let service = udp(&lab.lan1, 8001)?;
    gateway.add("UDP", 8000, LAN1, 8001, 600)?.ok()?;
    exchange(&outside, &service, (WAN, 8000).into(), (3, 100))?;
    let row = only(sessions(&iwfd, &["--external-port", "8000"])?)?;
    assert_eq!(
        (&row["began"], &row["mapping"]),
        (&json!("in"), &json!("explicit"))
    );
    assert_eq!(row["internal"], "192.168.1.10:8001");
    assert_eq!(counted(&row), [3, 3 * 128, 3, 3 * 128]);
    let mut args = vec!["mappings", "--counters"];
    let rows = iwfd.ctl().json(&args)?;
    assert_eq!(counted(&rows[0]), [3, 3 * 128, 3, 3 * 128], "{rows}");
    args.pop();
    assert!(iwfd.ctl().json(&args)?[0].get("packets_in").is_none());

    // ICMP has an identifier for a port.
    lab.lan2.must(&[
        "ping",
        "-n",
        "-c",
        "2",
        "-i",
        "0.2",
        "-W",
        "2",
        "100.64.0.1",
    ])?;
    let row = only(sessions(&iwfd, &["--protocol", "icmp"])?)?;
    assert_eq!(counted(&row), [2, 2 * 84, 2, 2 * 84]);
    assert_eq!(row["remote"], "100.64.0.1:0");

    // Filters that are left.
    assert_eq!(
        sessions(&iwfd, &["--host", "192.168.2.0/24"])?,
        [] as [Value; 0]
    );
    let of_lan1 = sessions(&iwfd, &["--host", "192.168.1.10"])?;
    assert!(of_lan1.len() >= 3, "{of_lan1:?}");
    assert!(of_lan1.iter().all(|row| {
        row["internal"]
            .as_str()
            .is_some_and(|at| at.starts_with("192.168.1.10:"))
    }));
    let limited = sessions(&iwfd, &["--remote", "100.64.0.1", "--limit", "2"])?;
    assert_eq!(limited.len(), 2);
    let text = iwfd.ctl().must(&["sessions", "--limit", "1"])?;
    assert!(
        text.contains("internal") && text.contains(" more\n"),
        "{text}"
    );
    let wrong = iwfd.ctl().run(&["sessions", "--state", "open"])?;
    assert!(
        !wrong.success() && wrong.text().contains("established"),
        "{}",
        wrong.text()
    );

    // The mappings behind them, and who holds how much.
    let rows = iwfd
        .ctl()
        .json(&["mappings", "--dynamic", "--port", "4001"])?;
    let row = &rows["mappings"][0];
    assert_eq!(rows["matched"], 1, "{rows}");
    assert_eq!(
        (&row["external"], &row["kind"]),
        (&json!("100.64.0.2:4001"), &json!("dynamic"))
    );
    let hosts = iwfd.ctl().json(&["hosts"])?;
    let rows = hosts["hosts"].as_array().context("hosts")?;
    let of = |host: Ipv4Addr| rows.iter().find(|row| row["host"] == host.to_string());
    let (one, two) = (of(LAN1).context("lan1")?, of(LAN2).context("lan2")?);
    assert_eq!(one["sessions"], of_lan1.len());
    assert_eq!(one["external"], WAN.to_string());
    assert!(
        one["sessions_limit"].as_u64() > two["sessions"].as_u64(),
        "{hosts}"
    );
    Ok(())
}

#[test]
fn the_counters_of_a_mapping_outlive_its_sessions_and_the_daemon() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut iwfd = Iwfd::start(&lab, &local())?;
    warm_up(&lab, &[&lab.lan1])?;
    let gateway = Gateway::discover(&lab.lan1)?;
    let service = udp(&lab.lan1, 8001)?;
    gateway.add("UDP", 8000, LAN1, 8001, 3600)?.ok()?;
    let tap = Tap::start(&lab, &lab.cgn, "br0", "udp port 8000")?;
    let outside = SocketAddr::from((WAN, 8000));
    for _ in 0..3 {
        exchange(&udp(&lab.cgn, 0)?, &service, outside, (5, 200))?;
    }
    let first = wait::until_ok("the capture", SOON, || {
        let seen = on_the_wire(&tap)?;
        ensure!(seen[0] == 15 && seen[2] == 15, "{seen:?}");
        Ok(seen)
    })?;
    let usage = |iwfd: &Iwfd| -> Result<[u64; 4]> {
        let rows = iwfd.ctl().json(&["mappings", "--counters"])?;
        Ok(counted(&rows[0]))
    };
    assert_eq!(usage(&iwfd)?, first);
    assert_eq!(sessions(&iwfd, &["--external-port", "8000"])?.len(), 3);

    // A long silence, all at once.
    bpf::age_sessions(&iwfd.files().bpffs_dir, Duration::from_secs(3600))?;
    wait::until_ok("the sessions to end", SWEPT, || {
        let left = sessions(&iwfd, &["--external-port", "8000"])?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    wait::until_ok("their counters to be in the mapping", SWEPT, || {
        let (now, alive) = (
            usage(&iwfd)?,
            bpf::session_entries(&iwfd.files().bpffs_dir)?,
        );
        ensure!(now == first && alive == 0, "{now:?}, {alive} entries");
        Ok(())
    })?;

    exchange(&udp(&lab.cgn, 0)?, &service, outside, (2, 50))?;
    let both = [
        first[0] + 2,
        first[1] + 2 * 78,
        first[2] + 2,
        first[3] + 2 * 78,
    ];
    assert_eq!(usage(&iwfd)?, both);
    iwfd.kill()?;
    exchange(&udp(&lab.cgn, 0)?, &service, outside, (1, 50))?;
    iwfd.restart()?;
    let all = [both[0] + 1, both[1] + 78, both[2] + 1, both[3] + 78];
    assert_eq!(usage(&iwfd)?, all);
    let text = iwfd.ctl().must(&["mappings", "--counters"])?;
    assert!(text.contains("packets in"), "{text}");
    Ok(())
}

#[test]
fn a_follower_is_told_of_what_was_displaced_and_refused() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = Iwfd::start(
        &lab,
        &Options {
            more: "[limits]\nsessions = 256\n",
            ..local()
        },
    )?;
    warm_up(&lab, &[&lab.lan1, &lab.lan2])?;
    let mut follower = follow(&lab, &iwfd, "follower")?;
    let gateway = Gateway::discover(&lab.lan1)?;

    // lan2 has the port by its traffic, until lan1 asks for it.
    udp(&lab.lan2, 23000)?.send_to(b"mine", (CARRIER, 9))?;
    let made = event(&follower, "dynamic-created", |row| {
        row["external"] == "100.64.0.2:23000"
    })?;
    assert_eq!(
        (&made["internal"], &made["protocol"], &made["source"]),
        (
            &json!("192.168.1.11:23000"),
            &json!("udp"),
            &json!("data-plane")
        )
    );
    gateway.add("UDP", 23000, LAN1, 7000, 600)?.ok()?;
    let lost = event(&follower, "mapping-displaced", |_| true)?;
    assert_eq!(
        (&lost["internal"], &lost["external"]),
        (&json!("192.168.1.11:23000"), &json!("100.64.0.2:23000"))
    );
    let won = event(&follower, "mapping-created", |_| true)?;
    assert_eq!(won["internal"], "192.168.1.10:7000");
    let times = [&made, &lost, &won].map(|row| row["time"].as_f64());
    assert!(times[0].is_some() && times.is_sorted(), "{times:?}");

    // Nobody may ask for somebody else.
    let answer = gateway.add("TCP", 23001, LAN2, 7000, 600)?;
    let code = answer.error().context("a refusal")?.to_string();
    let refused = event(&follower, "mapping-refused", |_| true)?;
    let detail = refused["detail"].as_str().context("a reason")?;
    assert!(
        detail.contains("23001") && detail.contains(&code),
        "{detail}"
    );

    // What the hosts of the LAN leave of the table the router's own flows may take. Then one more of a host gets nothing.
    let own = udp(&lab.cpe, 0)?;
    let fill = || -> Result<()> {
        for port in 30000..30400 {
            own.send_to(b"more", (CARRIER, port))?;
        }
        Ok(())
    };
    fill()?;
    let flood = udp(&lab.lan1, 4000)?;
    for port in 30000..30400 {
        flood.send_to(b"more", (CARRIER, port))?;
    }
    let full = event(&follower, "sessions-full", |row| {
        row["internal"] == "192.168.1.10:4000"
    })?;
    assert_eq!(full["counter"], "drop_sessions_full");
    let drops = event(&follower, "drops", |_| true)?;
    assert_eq!(
        (&drops["source"], &drops["counter"]),
        (&json!("control-plane"), &json!("drop_sessions_full"))
    );
    wait::until_ok("the sweep to count a full table", SWEPT, || {
        // Two processors that each got the last place of a session have left two halves, which a pass takes out.
        fill()?;
        let stats = iwfd.ctl().json(&["stats", "--match", "sessions"])?;
        let counters = stats["counters"].as_array().context("counters")?;
        let full = counters.iter().find(|c| c["name"] == "drop_sessions_full");
        ensure!(
            full.is_some_and(|c| c["value"].as_u64() > Some(100)),
            "{stats}"
        );
        ensure!(counters.iter().all(|c| c["name"] != "forwarded_out"));
        let tables = stats["tables"].as_array().context("tables")?;
        let table = tables
            .iter()
            .find(|table| table["table"] == "sessions")
            .context("sessions")?;
        ensure!(
            table["entries"] == 256 && table["capacity"] == 256,
            "{table}"
        );
        ensure!(table["seconds_ago"].as_u64().is_some(), "{table}");
        Ok(())
    })?;
    let text = iwfd.ctl().must(&["stats"])?;
    assert!(
        text.contains("100%") && text.contains("(--all shows them)"),
        "{text}"
    );

    // What is kept, by kind and host.
    let kept = iwfd.ctl().must(&[
        "events",
        "--json",
        "--kind",
        "mapping-created,mapping-refused",
        "--host",
        "192.168.1.10",
    ])?;
    let rows: Vec<Value> = kept
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    assert_eq!(only(rows)?["internal"], "192.168.1.10:7000", "{kept}");
    let text = iwfd
        .ctl()
        .must(&["events", "--kind", "mapping-displaced"])?;
    assert!(
        text.contains("Z mapping-displaced udp internal 192.168.1.11:23000"),
        "{text}"
    );
    assert!(follower.running()?);
    Ok(())
}

/// A list of any length costs the daemon a page, waits for its reader, and stops neither packets nor questions.
#[test]
fn a_long_list_holds_up_nobody_and_is_kept_nowhere() -> Result<()> {
    const MANY: u32 = 100_000;
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = Iwfd::start(
        &lab,
        &Options {
            more: "[limits]\nsessions = 131072\n",
            ..local()
        },
    )?;
    warm_up(&lab, &[&lab.lan1])?;
    let (inside, outside) = (udp(&lab.lan1, 4001)?, udp(&lab.cgn, 7001)?);
    let far = SocketAddr::from((CARRIER, 7001));
    exchange(&inside, &outside, far, (1, 100))?;
    bpf::multiply_session(&iwfd.files().bpffs_dir, 4001, MANY)?;
    let before = iwfd.resident_kib()?;

    // Readers that do not read, and one that does.
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut stream = UnixStream::connect(&iwfd.files().control_socket)?;
        stream.write_all(b"{\"command\":\"sessions\"}\n")?;
        stream.read_exact(&mut [0; 1])?;
        idle.push(stream);
    }
    let listed = std::thread::scope(|scope| -> Result<Value> {
        let listing = scope.spawn(|| iwfd.ctl().json(&["sessions", "--remote", "10.0.0.0/8"]));
        while !listing.is_finished() {
            exchange(&inside, &outside, far, (10, 100))?;
            iwfd.ctl().must(&["status"])?;
        }
        listing
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    assert_eq!(listed["matched"], MANY);
    let rows = listed["sessions"].as_array().context("a list")?;
    let remotes: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| row["remote"].as_str())
        .collect();
    assert_eq!(remotes.len(), usize::try_from(MANY)?);
    let after = iwfd.resident_kib()?;
    assert!(after < before + 8192, "{before} KiB before, {after} after");

    let few = iwfd
        .ctl()
        .json(&["sessions", "--remote", "10.0.0.0/8", "--limit", "3"])?;
    assert_eq!(
        (&few["matched"], &few["more"]),
        (&json!(MANY), &json!(MANY - 3))
    );
    assert_eq!(few["sessions"].as_array().map(Vec::len), Some(3));
    Ok(())
}

#[test]
fn followers_leave_room_for_questions_and_end_with_the_daemon() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut iwfd = Iwfd::start(&lab, &local())?;
    let mut followers = Vec::new();
    for number in 0..4 {
        let follower = follow(&lab, &iwfd, &format!("follower{number}"))?;
        event(&follower, "wan-changed", |_| true)?;
        followers.push(follower);
    }
    let refused = iwfd.ctl().run(&["sessions"])?;
    assert!(
        !refused.success() && refused.text().contains("try again"),
        "{}",
        refused.text()
    );
    iwfd.ctl().must(&["status"])?;
    // One that is interrupted frees its place.
    let mut first = followers.remove(0);
    first.kill_hard()?;
    wait::until_ok("the place to be free", SOON, || {
        iwfd.ctl().must(&["sessions"]).map(drop)
    })?;

    iwfd.stop()?;
    for mut follower in followers {
        assert!(!follower.wait(SOON)?.success(), "{}", follower.log());
    }
    for command in [&["sessions"][..], &["events"], &["hosts"], &["stats"]] {
        let dead = iwfd.ctl().run(command)?;
        assert!(
            !dead.success() && dead.text().contains("is iwfd running"),
            "{}",
            dead.text()
        );
    }
    Ok(())
}
