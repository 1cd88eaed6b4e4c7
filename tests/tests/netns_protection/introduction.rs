//! DP-006: control points are introduced by PIN. The protocol is that of wps.py, whose sums are Python's and OpenSSL's.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Ctl, Iwfd, Options};
use iwf_tests::gena::{Manner, Message, Subscriber};
use iwf_tests::igd::{Gateway, Version};
use iwf_tests::netns::may_run;
use iwf_tests::topology::{LAN1, LAN2, Lab};
use iwf_tests::wait;
use serde_json::{Value, json};

use super::{ControlPoint, ON, SOON, certificate, ok, secure_location};

impl ControlPoint {
    /// One step of an introduction: the kind of message that is answered, or the error.
    fn step(&mut self, wish: &Value, expected: &Value) -> Result<()> {
        let answer = self.tell(wish)?;
        ensure!(answer == *expected, "{wish} was answered {answer}");
        Ok(())
    }

    fn introduce(&mut self, pin: &str) -> Result<Value> {
        self.tell(&json!({"do": "introduce", "pin": pin}))
    }
}

fn show_pin(owner: &Ctl) -> Result<String> {
    let shown = owner.json(&["protection", "pin"])?;
    ensure!(
        shown["good_for_seconds"] == 600,
        "{}",
        shown["good_for_seconds"]
    );
    let pin = shown["pin"].as_str().context("a PIN")?;
    ensure!(pin.len() == 8 && pin.bytes().all(|digit| digit.is_ascii_digit()));
    Ok(pin.to_owned())
}

/// The same with every digit of a half another one.
fn wrong(pin: &str, half: usize) -> String {
    let other = |(at, digit): (usize, u8)| match digit {
        _ if at / 4 != half => char::from(digit),
        b'9' => '0',
        _ => char::from(digit + 1),
    };
    pin.bytes().enumerate().map(other).collect()
}

/// What an event says that the owner reads.
fn wait_for_event(owner: &Ctl, kind: &str, host: Ipv4Addr, detail: &str) -> Result<()> {
    wait::until_ok("an event", SOON, || {
        let argv = ["events", "--kind", kind, "--host", &host.to_string()];
        let events = owner.must(&argv)?;
        ensure!(events.contains(detail), "no {detail:?} in {events}");
        Ok(())
    })
}

#[test]
fn who_knows_the_pin_is_introduced_and_nobody_else() -> Result<()> {
    const M1: u8 = 4;
    const M3: u8 = 7;
    const M5: u8 = 9;
    const ACK: u8 = 13;
    const NACK: u8 = 14;
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        more: ON,
        log: "debug",
        ..Options::default()
    };
    let mut iwfd = Iwfd::start(&lab, &options)?;
    let owner = iwfd.ctl();
    let (at, _) = secure_location(&lab.lan1)?;
    let algorithm = "ec -pkeyopt ec_paramgen_curve:P-256";
    let key = certificate(&lab, "phone", algorithm)?;
    let mut phone = ControlPoint::start(&lab.lan1, at, &key)?;
    let who = phone.tell(&json!({"do": "who"}))?;
    let own = who["own"].as_str().context("an identity")?.to_owned();
    let other_key = certificate(&lab, "other", algorithm)?;
    let mut other = ControlPoint::start(&lab.lan2, at, &other_key)?;
    let gateway = Gateway::discover_version(&lab.lan1, Version::Two)?;
    let subscriber = Subscriber::start(&lab.lan1, LAN1, Manner::Good)?;
    subscriber.subscribe_at(&gateway, "/igd2/evt/DeviceProtection")?;
    let ready = |value: &'static str, seq: u32| {
        let is =
            |message: &Message| message.seq >= seq && message.value("SetupReady") == Some(value);
        subscriber
            .wait_for("SetupReady", SOON, is)
            .map(|found| found.seq)
    };
    let mut pins = Vec::new();
    let begin = |pin: &str| json!({"do": "begin", "pin": pin});
    let go_on = json!({"do": "go on"});
    let again = json!({"do": "again"});

    // Nobody is introduced before the owner shows a PIN, nor without a certificate.
    let protocols = phone.protection("GetSupportedProtocols", &[])?;
    let list = protocols["out"]["ProtocolList"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        list.contains("<Introduction><Name>WPS</Name>"),
        "{protocols}"
    );
    let seq = ready("0", 0)?;
    ensure!(phone.introduce("12345670")? == json!({"error": 708}));
    pins.push(show_pin(&owner)?);
    let pin = pins[0].as_str();
    let seq = ready("1", seq)?;
    let mut nobody = ControlPoint::start(&lab.lan1, at, &[])?;
    let args = [("ProtocolType", "WPS"), ("InMessage", "")];
    ensure!(nobody.protection("SendSetupMessage", &args)?["error"] == 606);

    // One at a time.
    phone.step(&begin(pin), &json!({"kind": M1}))?;
    ready("0", seq)?;
    other.step(&begin(pin), &json!({"error": 708}))?;
    let shown = owner.json(&["protection"])?;
    ensure!(shown["introduction"]["control_point"] == own, "{shown}");
    ensure!(owner.must(&["protection"])?.contains("is being introduced"));
    phone.step(&json!({"do": "wait"}), &json!({"kind": ACK}))?;
    phone.step(&go_on, &json!({"kind": M3}))?;
    other.step(&begin(pin), &json!({"error": 708}))?;
    phone.step(&json!({"do": "give up"}), &json!({"kind": NACK}))?;

    // A message once more, and one of another place.
    phone.step(&begin(pin), &json!({"kind": M1}))?;
    phone.step(&go_on, &json!({"kind": M3}))?;
    phone.step(&again, &json!({"error": 704}))?;
    phone.step(&go_on, &json!({"error": 704}))?;
    // In somebody else's name.
    let mut posing = begin(pin);
    posing["as"] = json!(own);
    other.step(&posing, &json!({"kind": M1}))?;
    other.step(&go_on, &json!({"error": 704}))?;

    // Wrong halves: the first one is told on M4, the second one on M6.
    phone.step(&begin(&wrong(pin, 0)), &json!({"kind": M1}))?;
    phone.step(&go_on, &json!({"kind": M3}))?;
    phone.step(&go_on, &json!({"error": 701}))?;
    wait_for_event(&owner, "introduction-failed", LAN1, "2 more")?;
    other.step(&begin(&wrong(pin, 1)), &json!({"kind": M1}))?;
    other.step(&go_on, &json!({"kind": M3}))?;
    other.step(&go_on, &json!({"kind": M5}))?;
    other.step(&go_on, &json!({"error": 701}))?;
    wait_for_event(&owner, "introduction-failed", LAN2, "1 more")?;
    // The third one locks.
    ensure!(other.introduce(&wrong(pin, 0))? == json!({"error": 701}));
    wait_for_event(&owner, "introduction-locked", LAN2, "not good any more")?;
    ensure!(phone.introduce(pin)? == json!({"error": 708}));
    ensure!(phone.roles()? == "Public" && other.roles()? == "Public");

    // With another one it goes well, for one control point and for longer than this life.
    pins.push(show_pin(&owner)?);
    ensure!(phone.add(443, LAN2, 22)?["error"] == 606);
    ensure!(phone.introduce(&pins[1])? == json!({"kind": null}));
    wait_for_event(&owner, "control-point-introduced", LAN1, &own)?;
    ensure!(phone.roles()? == "Public Basic");
    ok(&phone.add(443, LAN2, 22)?)?;
    ensure!(other.introduce(&pins[1])? == json!({"error": 708}));
    pins.push(show_pin(&owner)?);
    owner.must(&["protection", "pin", "--withdraw"])?;
    ensure!(other.introduce(&pins[2])? == json!({"error": 708}));
    pins.push(show_pin(&owner)?);
    let mut shown = vec![
        owner.must(&["protection"])?,
        owner.must(&["protection", "--json"])?,
        owner.must(&["events"])?,
    ];
    ensure!(
        shown[0].contains(&own) && shown[0].contains("PIN"),
        "{}",
        shown[0]
    );
    iwfd.kill()?;
    iwfd.restart()?;
    let (at, _) = secure_location(&lab.lan1)?;
    let mut phone = ControlPoint::start(&lab.lan1, at, &key)?;
    ensure!(phone.roles()? == "Public Basic");
    // A PIN is of one life.
    ensure!(phone.introduce(&pins[3])? == json!({"error": 708}));

    // SEC-02: it is shown to who asks for it, and written nowhere.
    shown.push(iwfd.process().log());
    ensure!(shown[3].contains("wrong PIN"), "the log was searched");
    for pin in &pins {
        ensure!(
            shown.iter().all(|text| !text.contains(pin)),
            "a PIN is shown"
        );
        let state = std::fs::read_dir(&iwfd.files().state_dir)?;
        for file in state {
            let octets = std::fs::read(file?.path())?;
            let found = octets
                .windows(pin.len())
                .any(|window| window == pin.as_bytes());
            ensure!(!found, "a PIN is stored");
        }
    }
    Ok(())
}
