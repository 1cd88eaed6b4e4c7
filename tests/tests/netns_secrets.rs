//! The nonces of mappings prove their ownership to the PCP server (RFC 6887 section 11.2): whoever reads one can delete the
//! mapping or move it. They are for the server and nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::daemon::{Ctl, Iwfd, Options};
use iwf_tests::fault::Fault;
use iwf_tests::gena::{self, Subscriber};
use iwf_tests::igd::{Gateway, Version};
use iwf_tests::netns::may_run;
use iwf_tests::pcp::result;
use iwf_tests::script::{Manner, ScriptedServer};
use iwf_tests::secret::{Given, Secret};
use iwf_tests::topology::{LAN1, Lab};
use iwf_tests::wait;
use iwf_tests::wire_tap::Tap;

const SOON: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(30);

/// What a LAN host or the owner was given, with a name for the report.
#[derive(Default)]
struct Shown(Vec<(String, Vec<u8>)>);

impl Shown {
    fn add(&mut self, what: impl Into<String>, octets: impl Into<Vec<u8>>) {
        self.0.push((what.into(), octets.into()));
    }
}

/// SEC-02, of the display: mappings are made, refused, renewed after a loss of the server's state, spoiled, restored and
/// deleted, while everything is asked for that can be asked for.
#[test]
fn nonces_are_shown_to_nobody_but_the_server() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let lab = Lab::new()?;
    let server = ScriptedServer::start(&lab, Manner::Grant)?;
    let upstream = Tap::start(&lab, &lab.cgn, "br0", "udp")?;
    let taps = [&lab.lan1, &lab.lan2].map(|host| Tap::start(&lab, host, "eth0", ""));
    let mut iwfd = Iwfd::start(
        &lab,
        &Options {
            log: "debug",
            ..Options::default()
        },
    )?;
    let gateway = Gateway::discover_version(&lab.lan1, Version::Two)?;
    let subscriber = Subscriber::start(&lab.lan1, LAN1, gena::Manner::Good)?;
    subscriber.subscribe(&gateway)?;
    let mut shown = Shown::default();

    live(&gateway, &server)?;
    server.lose_state();
    server.announce(&lab)?;
    wait::until("the mappings to come back", LATER, || {
        (server.leases().len() >= 3).then_some(())
    })?;
    wait::until_ok("a clean audit", LATER, || iwfd.ctl().must(&["audit"]))?;
    documents(&gateway, &mut shown)?;
    listings(&iwfd.ctl(), &mut shown)?;

    iwfd.kill()?;
    iwfd.restart()?;
    wait::until_ok("a clean audit", LATER, || iwfd.ctl().must(&["audit"]))?;
    let gateway = Gateway::discover(&lab.lan1)?;
    documents(&gateway, &mut shown)?;
    listings(&iwfd.ctl(), &mut shown)?;
    gateway.delete("TCP", 9000)?.ok()?;
    let deleted = iwfd.ctl().must(&["delete", "udp", "9001"])?;
    shown.add("iwfctl delete", deleted);
    subscriber.wait_for("an event", SOON, |message| message.seq == 0)?;
    for message in subscriber.messages() {
        shown.add("an event", format!("{message:?}"));
    }
    iwfd.stop()?;
    shown.add("the log", iwfd.process().log());
    for tap in taps {
        shown.add("the LAN", tap?.finish()?.concat());
    }

    let asked = server.map_requests().into_iter();
    let nonces: BTreeSet<_> = asked
        .filter_map(|(_, request)| Some(Secret(request.map?.nonce)))
        .collect();
    // Of three mappings, the refused one and the probe.
    ensure!(nonces.len() >= 5, "only {} nonces", nonces.len());
    let upstream = Given::new(&upstream.finish()?.concat());
    for nonce in &nonces {
        ensure!(
            nonce.shown_in(&upstream).is_some(),
            "{nonce:02x?} is not even found where it went"
        );
    }
    ensure!(shown.0.len() > 150, "only {} things shown", shown.0.len());
    for (what, octets) in &shown.0 {
        let given = Given::new(octets);
        for nonce in &nonces {
            if let Some(form) = nonce.shown_in(&given) {
                let text = String::from_utf8_lossy(octets);
                let lines: Vec<_> = text
                    .lines()
                    .filter(|line| nonce.shown_in(&Given::new(line.as_bytes())).is_some())
                    .collect();
                anyhow::bail!("{what} shows {nonce:02x?} {form}: {lines:#?}");
            }
        }
    }
    Ok(())
}

/// Three mappings that stay, one that is refused, answers that are not believed, and a probe.
fn live(gateway: &Gateway, server: &ScriptedServer) -> Result<()> {
    gateway.add("TCP", 9000, LAN1, 8000, 3600)?.ok()?;
    server.spoil_next(&[&[Fault::Nonce, Fault::Twice]]);
    gateway.add("UDP", 9001, LAN1, 8001, 3600)?.ok()?;
    let any = gateway.call(
        "AddAnyPortMapping",
        &[
            ("NewRemoteHost", ""),
            ("NewExternalPort", "9002"),
            ("NewProtocol", "TCP"),
            ("NewInternalPort", "8002"),
            ("NewInternalClient", &LAN1.to_string()),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "suite"),
            ("NewLeaseDuration", "3600"),
        ],
    )?;
    any.ok()?;
    server.set(Manner::Refuse(result::NOT_AUTHORIZED));
    let refused = gateway.add("TCP", 9003, LAN1, 8003, 3600)?;
    ensure!(refused.error().is_some(), "{}", refused.text);
    server.set(Manner::Grant);
    let free = gateway.call(
        "GetSpecificPortMappingEntry",
        &[
            ("NewRemoteHost", ""),
            ("NewExternalPort", "9004"),
            ("NewProtocol", "TCP"),
        ],
    )?;
    ensure!(free.error().is_some(), "{}", free.text);
    Ok(())
}

/// Every document, and what every reading action of every service and every variable says to the host that
/// has the mappings.
fn documents(gateway: &Gateway, shown: &mut Shown) -> Result<()> {
    let mut pages = vec!["/".to_owned()];
    let mut services = BTreeMap::new();
    for tree in ["/igd1/desc.xml", "/igd2/desc.xml"] {
        let description = get(gateway, tree)?;
        for service in description.split("<service>").skip(1) {
            let field = |name: &str| between(service, name).context("a service");
            pages.push(field("SCPDURL")?);
            services.insert(
                field("controlURL")?,
                (field("serviceType")?, field("SCPDURL")?),
            );
        }
        shown.add(tree, description);
    }
    for page in pages {
        let text = get(gateway, &page)?;
        shown.add(page, text);
    }
    let mut answered = 0;
    for (control, (service, scpd)) in services {
        let scpd = get(gateway, &scpd)?;
        for action in scpd.split("<action>").skip(1) {
            let name = between(action, "name").context("an action's name")?;
            if !["Get", "List", "Check"]
                .iter()
                .any(|read| name.starts_with(read))
            {
                continue;
            }
            let arguments: String = action
                .split("<argument>")
                .skip(1)
                .filter(|argument| between(argument, "direction").as_deref() == Some("in"))
                .filter_map(|argument| between(argument, "name"))
                .map(|name| format!("<{name}>{}</{name}>", value(&name)))
                .collect();
            let call = format!("<u:{name} xmlns:u=\"{service}\">{arguments}</u:{name}>");
            let answer = gateway.raw(&post(gateway, &control, &call))?;
            answered += usize::from(answer.status == 200);
            shown.add(format!("{service}#{name}"), answer.text);
        }
        for variable in scpd.split("<stateVariable").skip(1) {
            let name = between(variable, "name").context("a variable's name")?;
            let call = format!(
                "<u:QueryStateVariable xmlns:u=\"urn:schemas-upnp-org:control-1-0\"><u:varName>{name}</u:varName>\
                 </u:QueryStateVariable>"
            );
            let answer = gateway.raw(&post(gateway, &control, &call))?;
            answered += usize::from(answer.status == 200);
            shown.add(format!("{service} {name}"), answer.text);
        }
    }
    ensure!(answered > 30, "only {answered} readings were answered");
    Ok(())
}

fn value(argument: &str) -> &'static str {
    match argument {
        "NewPortMappingIndex" => "0",
        "NewExternalPort" => "9000",
        "NewProtocol" => "TCP",
        "NewStartPort" => "1024",
        "NewEndPort" => "65535",
        "NewManage" => "0",
        "NewNumberOfPorts" => "0",
        _ => "",
    }
}

fn get(gateway: &Gateway, path: &str) -> Result<String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        gateway.address()
    );
    Ok(gateway.raw(request.as_bytes())?.ok()?.text)
}

fn post(gateway: &Gateway, path: &str, call: &str) -> Vec<u8> {
    let body = format!(
        "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{call}</s:Body></s:Envelope>"
    );
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        gateway.address(),
        body.len()
    );
    format!("{head}{body}").into_bytes()
}

fn between(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (found, _) = rest.split_once(&format!("</{name}>"))?;
    Some(found.trim().to_owned())
}

/// What each subcommand of iwfctl that shows something prints, as a table and as JSON.
fn listings(ctl: &Ctl, shown: &mut Shown) -> Result<()> {
    let all: [&[&str]; 16] = [
        &["status"],
        &["mappings"],
        &["mappings", "--counters"],
        &["mappings", "--dynamic"],
        &["sessions"],
        &["hosts"],
        &["events"],
        &["leases"],
        &["subscriptions"],
        &["pinholes"],
        &["audit"],
        &["stats", "--all"],
        &["discover"],
        &["policy", "show"],
        &[
            "policy",
            "test",
            "--client",
            "192.168.1.10",
            "--port",
            "9000",
        ],
        &["protection"],
    ];
    // These take something and show nothing of mappings, or end the forwarding.
    let others = ["dhcp-option", "delete", "detach", "help"];
    let help = ctl.must(&["help"])?;
    let (_, commands) = help.split_once("Commands:\n").context("subcommands")?;
    for line in commands.lines().take_while(|line| !line.is_empty()) {
        let name = line.split_whitespace().next().unwrap_or_default();
        let known = all.iter().any(|words| words.first() == Some(&name)) || others.contains(&name);
        ensure!(known, "iwfctl {name} is not searched");
    }
    for words in all {
        let text = ctl.run(words)?.text();
        shown.add(format!("iwfctl {}", words.join(" ")), text);
        let mut json = words.to_vec();
        json.push("--json");
        let text = ctl.run(&json)?.text();
        shown.add(format!("iwfctl {}", json.join(" ")), text);
    }
    let mappings = ctl.must(&["mappings"])?;
    ensure!(
        mappings.contains("9000"),
        "the mappings are listed: {mappings}"
    );
    Ok(())
}
