//! Events: a control point of another family follows them, a scripted one sees each message, and those that are dead, slow
//! or hostile are nobody's trouble.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::gena::{Manner, Message, Subscriber, subscribe};
use iwf_tests::igd::{Gateway, Version};
use iwf_tests::netns::may_run;
use iwf_tests::packages;
use iwf_tests::topology::{CARRIER, GATEWAY, LAN1, LAN2, Lab, WAN, WAN_IF};
use iwf_tests::wait;
use iwf_tests::wire_tap::Tap;

const SOON: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(30);

fn local() -> Options {
    Options {
        mode: "local",
        ..Options::default()
    }
}

fn has(name: &'static str, value: &'static str) -> impl Fn(&Message) -> bool {
    move |message| message.value(name) == Some(value)
}

/// GENA-001 to GENA-004, IGD-023, IGD-024.
#[test]
fn a_subscriber_hears_what_happens() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = Iwfd::start(&lab, &local())?;
    let gateway = Gateway::discover_version(&lab.lan1, Version::Two)?;
    let subscriber = Subscriber::start(&lab.lan1, LAN1, Manner::Good)?;
    let other = Subscriber::start(&lab.lan2, LAN2, Manner::ByLines)?;
    let sid = subscriber.subscribe(&gateway)?;
    other.subscribe(&gateway)?;
    let first = subscriber.wait_for("the first message", SOON, |m| m.seq == 0)?;
    assert_eq!(first.sid, sid);
    let names: Vec<_> = first
        .properties
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "PossibleConnectionTypes",
            "ConnectionStatus",
            "ExternalIPAddress",
            "PortMappingNumberOfEntries",
            "SystemUpdateID"
        ]
    );
    for line in [
        "NOTIFY /events HTTP/1.1",
        "NT: upnp:event",
        "NTS: upnp:propchange",
        "CONTENT-TYPE: text/xml; charset=\"utf-8\"",
    ] {
        ensure!(first.head.contains(line), "{line} is not in {}", first.head);
    }
    other.wait_for("the same", SOON, |m| m.properties == first.properties)?;

    gateway.add("TCP", 9090, LAN1, 8080, 3600)?.ok()?;
    let added = |m: &Message| {
        m.properties.len() == 2
            && m.value("PortMappingNumberOfEntries") == Some("1")
            && m.value("SystemUpdateID") == Some("1")
    };
    let message = subscriber.wait_for("one message for both", SOON, added)?;
    assert_eq!(message.seq, 1);
    other.wait_for("the same there", SOON, added)?;
    gateway.add("TCP", 9090, LAN1, 8080, 7200)?.ok()?;
    let message = subscriber.wait_for("the overwrite", SOON, has("SystemUpdateID", "2"))?;
    assert_eq!(message.properties.len(), 1, "{message:?}");
    gateway.delete("TCP", 9090)?.ok()?;
    let message = subscriber.wait_for("the end", SOON, has("SystemUpdateID", "3"))?;
    assert_eq!(message.value("PortMappingNumberOfEntries"), Some("0"));

    // Renewal, what the owner sees, and the end.
    let field = vec![format!("SID: {sid}")];
    let path = gateway.events_path().to_owned();
    let renewed = gateway.at_events("SUBSCRIBE", &path, &field)?.ok()?;
    assert_eq!(renewed.header("sid"), Some(sid.as_str()));
    assert_eq!(renewed.header("timeout"), Some("Second-1800"));
    let stranger = gateway.seen_from(&lab.lan2);
    assert_eq!(
        stranger.at_events("UNSUBSCRIBE", &path, &field)?.status,
        412
    );
    let rows = iwfd.ctl().json(&["subscriptions"])?;
    let rows = rows.as_array().context("rows")?;
    assert_eq!(rows.len(), 2, "{rows:?}");
    let row = rows.iter().find(|row| row["sid"] == sid.as_str());
    let row = row.context("its row")?;
    assert_eq!(row["host"], LAN1.to_string());
    assert_eq!(row["service"], "WANIPConnection:2");
    assert_eq!(row["callbacks"][0], subscriber.url());
    assert_eq!(row["next_seq"], 4);
    let text = iwfd.ctl().must(&["subscriptions"])?;
    ensure!(text.contains(&subscriber.url()), "{text}");
    assert_eq!(iwfd.ctl().json(&["status"])?["subscriptions"], 2);
    gateway.at_events("UNSUBSCRIBE", &path, &field)?.ok()?;
    assert_eq!(gateway.at_events("SUBSCRIBE", &path, &field)?.status, 412);

    gateway.add("TCP", 9091, LAN1, 8080, 3600)?.ok()?;
    other.wait_for(
        "what the one that stays hears",
        SOON,
        has("SystemUpdateID", "4"),
    )?;
    let seqs: Vec<_> = subscriber.messages().iter().map(|m| m.seq).collect();
    assert_eq!(seqs, [0, 1, 2, 3], "and the other does not");
    Ok(())
}

/// Issue of an address that changes: each subscriber hears of the new one once, and of the link at once.
#[test]
fn another_wan_address_is_told_once_and_a_lost_link_at_once() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let published = lab.dir().join("published");
    let hook = format!(
        "[[hook]]\nevents = [\"external-address\"]\n\
         run = [\"/bin/sh\", \"-c\", \"echo $IWF_DETAIL >> {}\"]\n",
        published.display()
    );
    let options = Options {
        more: hook.leak(),
        ..local()
    };
    let iwfd = Iwfd::start(&lab, &options)?;
    let gateway = Gateway::discover(&lab.lan1)?;
    for port in 9090..9095 {
        gateway.add("TCP", port, LAN1, 8080, 3600)?.ok()?;
    }
    let subscribers = [
        Subscriber::start(&lab.lan1, LAN1, Manner::Good)?,
        Subscriber::start(&lab.lan2, LAN2, Manner::Good)?,
    ];
    for subscriber in &subscribers {
        subscriber.subscribe(&gateway)?;
        subscriber.wait_for("the first message", SOON, |m| m.seq == 0)?;
    }
    let moved = Ipv4Addr::new(100, 64, 0, 77);
    lab.cpe.ip(&format!("addr flush dev {WAN_IF}"))?;
    lab.cpe.address(WAN_IF, moved, 24)?;
    lab.cpe
        .ip(&format!("route add default via {CARRIER} dev {WAN_IF}"))?;
    for subscriber in &subscribers {
        subscriber.wait_for(
            "the new address",
            LATER,
            has("ExternalIPAddress", "100.64.0.77"),
        )?;
    }
    // What comes after it is behind anything else that it might have caused.
    gateway.delete("TCP", 9090)?.ok()?;
    for subscriber in &subscribers {
        subscriber.wait_for("the deletion", SOON, has("PortMappingNumberOfEntries", "4"))?;
        let messages = subscriber.messages();
        let told = messages
            .iter()
            .filter(|m| has("ExternalIPAddress", "100.64.0.77")(m));
        assert_eq!(told.count(), 1, "{messages:?}");
        let seqs: Vec<_> = messages.iter().map(|m| m.seq).collect();
        let all: Vec<_> = (0..).take(seqs.len()).collect();
        assert_eq!(seqs, all, "each once and in order");
    }
    // A second change shows that nothing was told twice before it.
    let again = Ipv4Addr::new(100, 64, 0, 78);
    lab.cpe.ip(&format!("addr flush dev {WAN_IF}"))?;
    lab.cpe.address(WAN_IF, again, 24)?;
    let last = format!("{again}\n");
    let told = wait::until("the hook to hear of it", LATER, || {
        let told = std::fs::read_to_string(&published).ok()?;
        told.ends_with(&last).then_some(told)
    })?;
    let addresses: Vec<_> = told.lines().filter(|line| *line != "not known").collect();
    let expected = [WAN.to_string(), moved.to_string(), again.to_string()];
    assert_eq!(addresses, expected, "{told}");

    let link = Subscriber::start(&lab.lan1, LAN1, Manner::Good)?;
    let path = gateway.events_path().replace("WANIPConn", "WANCommonIFC");
    link.subscribe_at(&gateway, &path)?;
    link.wait_for("a link", SOON, has("PhysicalLinkStatus", "Up"))?;
    lab.cpe.ip(&format!("link set {WAN_IF} down"))?;
    link.wait_for("no link", SOON, has("PhysicalLinkStatus", "Down"))?;
    subscribers[0].wait_for(
        "no connection",
        SOON,
        has("ConnectionStatus", "Disconnected"),
    )?;
    drop(iwfd);
    Ok(())
}

/// GENA-002, GENA-005, GENA-006 (CallStranger, CVE-2020-12695).
#[test]
fn nobody_is_sent_anything_by_a_strangers_wish() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = Iwfd::start(&lab, &local())?;
    let gateway = Gateway::discover(&lab.lan1)?;
    let path = gateway.events_path().to_owned();
    let port = gateway.address().port();
    let tap = Tap::start(&lab, &lab.cgn, "br0", "tcp or udp port 53")?;
    for callback in [
        "<http://100.64.0.1:5000/>",
        "<http://11.22.33.9:5000/>",
        "<http://100.64.0.2:5000/>",
        "<http://127.0.0.1:5000/>",
        &format!("<http://{GATEWAY}:{port}/igd1/ctl/WANIPConn>"),
        "<http://192.168.1.255:5000/>",
        "<http://192.168.2.10:5000/>",
        "<http://192.168.1.11:25/>",
        "<http://attacker.example/>",
        "<http://localhost:5000/>",
        "<https://192.168.1.10:5000/>",
        "<http://192.168.1.10:5000@11.22.33.9/>",
        "http://192.168.1.10:5000/",
        "",
    ] {
        let answer = subscribe(&gateway, &path, callback)?;
        assert_eq!(answer.status, 412, "{callback}");
    }
    assert_eq!(iwfd.ctl().counter("gena_refused_callback")?, 8);
    let huge = format!("<http://192.168.1.10:5000/{}>", "x".repeat(20_000));
    assert_eq!(subscribe(&gateway, &path, &huge)?.status, 431);
    let long = format!("<http://192.168.1.10:5000/{}>", "x".repeat(3000));
    assert_eq!(subscribe(&gateway, &path, &long)?.status, 412);
    let both = [
        "NT: upnp:event".to_owned(),
        "SID: uuid:00000000-0000-4000-8000-000000000000".to_owned(),
    ];
    assert_eq!(gateway.at_events("SUBSCRIBE", &path, &both)?.status, 400);
    assert_eq!(
        gateway.at_events("SUBSCRIBE", &path, &both[1..])?.status,
        412
    );
    assert_eq!(gateway.at_events("NOTIFY", &path, &both)?.status, 405);

    // A host has its bound, another one is not concerned by it.
    let good = Subscriber::start(&lab.lan1, LAN1, Manner::Good)?;
    for _ in 0..16 {
        good.subscribe(&gateway)?;
    }
    wait::until_ok("the first messages", LATER, || {
        let told = good.messages().len();
        ensure!(told == 16, "{told} of 16");
        Ok(())
    })?;
    for _ in 0..200 {
        let callback = format!("<{}>", good.url());
        assert_eq!(subscribe(&gateway, &path, &callback)?.status, 503);
    }
    // Nor by another of its addresses.
    lab.lan1.ip("address add 192.168.1.40/24 dev eth0")?;
    lab.lan1
        .ip("route replace 192.168.1.0/24 dev eth0 src 192.168.1.40")?;
    let callback = format!("<{}>", good.url());
    assert_eq!(subscribe(&gateway, &path, &callback)?.status, 503);
    assert_eq!(iwfd.ctl().counter("gena_refused_full")?, 201);
    Subscriber::start(&lab.lan2, LAN2, Manner::Good)?.subscribe(&gateway)?;
    assert_eq!(tap.frames()?.len(), 0, "nothing has left by the WAN");
    Ok(())
}

/// One that is there hears of each change at once, whatever the others do.
#[test]
fn dead_and_slow_subscribers_delay_nobody() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let iwfd = Iwfd::start(&lab, &local())?;
    let gateway = Gateway::discover_version(&lab.lan1, Version::Two)?;
    let bad = gateway.seen_from(&lab.lan2);
    let path = gateway.events_path();
    let silent = Subscriber::start(&lab.lan2, LAN2, Manner::Silent)?;
    let refusing = Subscriber::start(&lab.lan2, LAN2, Manner::Refusing)?;
    for _ in 0..4 {
        silent.subscribe(&gateway)?;
        refusing.subscribe(&gateway)?;
        // Nobody listens, and nobody is there.
        for callback in ["<http://192.168.1.11:4999/>", "<http://192.168.1.99:5000/>"] {
            subscribe(&bad, path, callback)?.ok()?;
        }
    }
    let good = Subscriber::start(&lab.lan1, LAN1, Manner::Good)?;
    // The second URL is tried when the first takes nothing.
    let callbacks = format!("<http://192.168.1.10:4999/><{}>", good.url());
    subscribe(&gateway, path, &callbacks)?.ok()?;
    good.wait_for("the first message", SOON, |m| m.seq == 0)?;
    let before = iwfd.resident_kib()?;
    for round in 1..=50_u32 {
        let port = 9000 + u16::try_from(round)?;
        let (done, took) = wait::timed(|| {
            gateway.add("TCP", port, LAN1, 8080, 3600)?.ok()?;
            let id = round.to_string();
            good.wait_for("the change", SOON, |m| {
                m.value("SystemUpdateID") == Some(&id)
            })
        });
        done?;
        let bound = Duration::from_secs(1) * wait::patience();
        ensure!(took < bound, "round {round} took {took:?}");
    }
    ensure!(
        silent.messages().len() <= 4,
        "one message on its way at most"
    );
    let seqs: Vec<_> = good.messages().iter().map(|m| m.seq).collect();
    assert_eq!(seqs, (0..=50).collect::<Vec<_>>(), "each change, in order");
    let after = iwfd.resident_kib()?;
    ensure!(after < before + 4096, "{before} KiB became {after}");
    // All but the silent ones, whose time is not over yet.
    wait::until_ok("failures that are shown", LATER, || {
        let rows = iwfd.ctl().json(&["subscriptions"])?;
        let rows = rows.as_array().context("rows")?;
        let failing = rows.iter().filter(|row| row["failures"].as_u64() > Some(0));
        ensure!(failing.count() >= 12, "{rows:?}");
        Ok(())
    })?;
    let failed = iwfd.ctl().counter("gena_failed")?;
    ensure!(failed >= 12, "{failed}");
    Ok(())
}

/// Subscriptions end with the daemon, and SystemUpdateID does not go back.
#[test]
fn a_new_life_knows_the_id_and_no_subscription() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut iwfd = Iwfd::start(&lab, &local())?;
    let gateway = Gateway::discover_version(&lab.lan1, Version::Two)?;
    for port in 9090..9093 {
        gateway.add("TCP", port, LAN1, 8080, 3600)?.ok()?;
    }
    gateway.delete("TCP", 9090)?.ok()?;
    let subscriber = Subscriber::start(&lab.lan1, LAN1, Manner::Good)?;
    let sid = subscriber.subscribe(&gateway)?;
    subscriber.wait_for("the id", SOON, has("SystemUpdateID", "4"))?;
    iwfd.kill()?;
    iwfd.restart()?;
    let gateway = Gateway::discover_version(&lab.lan1, Version::Two)?;
    let field = [format!("SID: {sid}")];
    let path = gateway.events_path();
    assert_eq!(gateway.at_events("SUBSCRIBE", path, &field)?.status, 412);
    let new = subscriber.subscribe(&gateway)?;
    let first = subscriber.wait_for("the first message", SOON, |m| m.sid == new)?;
    assert_eq!(first.seq, 0);
    assert_eq!(first.value("SystemUpdateID"), Some("4"));
    assert_eq!(first.value("PortMappingNumberOfEntries"), Some("2"));
    Ok(())
}

/// Prints each variable that GUPnP hears of. It finds the gateway by itself.
const FOLLOWER: &str = r#"
import gi, sys
gi.require_version("GUPnP", "1.6")
from gi.repository import GLib, GObject, GUPnP
target = sys.argv[1]
context = GUPnP.Context.new("eth0", 0)
point = GUPnP.ControlPoint.new(context, target)
kept = []
def heard(proxy, variable, value, data):
    print("heard", variable, value, flush=True)
def lost(proxy, error):
    print("lost", error, flush=True)
def found(point, proxy):
    kept.append(proxy)
    print("found", proxy.get_service_type(), flush=True)
    proxy.connect("subscription-lost", lost)
    for variable in sys.argv[2:]:
        proxy.add_notify(variable, GObject.TYPE_STRING, heard, None)
    proxy.set_subscribed(True)
point.connect("service-proxy-available", found)
point.set_active(True)
GLib.MainLoop().run()
"#;

/// A control point that shares no line with this program or with miniupnpc.
#[test]
fn gupnp_follows_the_events() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _iwfd = Iwfd::start(&lab, &local())?;
    let environment = packages::gupnp()?;
    let mut argv = vec!["env".to_owned()];
    argv.extend(
        environment
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    argv.extend(["/usr/bin/python3", "-c", FOLLOWER].map(str::to_owned));
    argv.push("urn:schemas-upnp-org:service:WANIPConnection:2".to_owned());
    argv.extend(
        [
            "ExternalIPAddress",
            "PortMappingNumberOfEntries",
            "SystemUpdateID",
        ]
        .map(str::to_owned),
    );
    let mut follower = lab.lan2.spawn("gupnp", &argv)?;
    follower.wait_for_log(
        "found urn:schemas-upnp-org:service:WANIPConnection:2",
        LATER,
    )?;
    follower.wait_for_log("heard SystemUpdateID 0", LATER)?;
    follower.wait_for_log("heard ExternalIPAddress 100.64.0.2", SOON)?;
    let gateway = Gateway::discover_version(&lab.lan1, Version::Two)?;
    gateway.add("UDP", 9090, LAN1, 8080, 3600)?.ok()?;
    follower.wait_for_log("heard PortMappingNumberOfEntries 1", SOON)?;
    follower.wait_for_log("heard SystemUpdateID 1", SOON)?;
    gateway.delete("UDP", 9090)?.ok()?;
    follower.wait_for_log("heard SystemUpdateID 2", SOON)?;
    lab.cpe.ip(&format!("addr flush dev {WAN_IF}"))?;
    lab.cpe.address(WAN_IF, Ipv4Addr::new(100, 64, 0, 77), 24)?;
    follower.wait_for_log("heard ExternalIPAddress 100.64.0.77", LATER)?;
    ensure!(!follower.log().contains("lost"), "{}", follower.log());
    Ok(())
}
