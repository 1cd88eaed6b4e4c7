//! What known control points do, from the first search to the last call, as data: each is played as octets to a running
//! daemon and has to get what makes it work. What they have in common stands in [`play`].

#[path = "known.rs"]
mod known;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iwf_tests::igd::{self, Answer, Gateway};
use iwf_tests::netns::{Namespace, may_run};
use iwf_tests::ssdp::{self, Question};
use iwf_tests::topology::{GATEWAY, LAN1, LAN2, WAN};
use iwf_tests::wait;

use known::{ALL, CLIENTS, Call, Client, LIBRARIES, Style};

/// Some control points wait no longer for the first answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Searches, reads the description as that control point, and finds the control URL of each service it calls.
fn play(host: &Namespace, own: Ipv4Addr, client: &Client) -> Result<()> {
    let mut found = None;
    for (search, version) in client.searches {
        let question = Question {
            from: (own.into(), client.port),
            to: ssdp::GROUP,
            ttl: client.ttl,
            octets: search.as_bytes(),
        };
        // Answers to a search for everything are spread over MX.
        let patience = if *search == ALL { 3 } else { 1 } * PATIENCE * wait::patience();
        // Datagrams may get lost on a machine that is busy, and everybody repeats a search.
        let tries = if version.is_some() { 3 } else { 1 };
        let mut answer = None;
        for _ in 0..tries {
            answer = ssdp::ask(host, "eth0", &question, patience)?;
            if answer.is_some() {
                break;
            }
        }
        let Some(version) = version else {
            ensure!(answer.is_none(), "{search}: {answer:?}");
            continue;
        };
        let answer = answer.with_context(|| format!("no answer to {search}"))?;
        let sent = search
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("st"))
            .map(|(_, value)| value.trim());
        let is_all = sent == Some("ssdp:all");
        ensure!(is_all || answer.header("ST") == sent, "{answer:?}");
        // Whoever compares with its default router has to find it there.
        let expected = format!("http://{GATEWAY}:5000/igd{version}/desc.xml");
        ensure!(answer.header("LOCATION") == Some(&expected), "{answer:?}");
        found = Some(*version);
    }
    let version = found.context("found nothing")?;
    let path = format!("/igd{version}/desc.xml");
    let description = send(host, &request(client, "GET", &path, "", ""))?.ok()?;
    let text = &description.text;
    ensure!(
        text.contains("<presentationURL>/</presentationURL>"),
        "{text}"
    );
    let root = format!("InternetGatewayDevice:{version}</deviceType>");
    ensure!(text.contains(&root), "{text}");
    ensure!(version == 2 || !text.contains(":2<"), "{text}");
    for step in client.calls {
        let answer = step
            .make(host, client, text, own)
            .with_context(|| format!("{} {:?}", step.action, step.arguments))?;
        match step.answer {
            Ok(expected) => ensure!(
                answer.status == 200 && answer.text.contains(expected),
                "{}: no {expected} in {}",
                step.action,
                answer.text
            ),
            Err(code) => ensure!(
                answer.error() == Some(code),
                "{}: not {code}: {}",
                step.action,
                answer.text
            ),
        }
    }
    Ok(())
}

fn send(host: &Namespace, octets: &[u8]) -> Result<Answer> {
    igd::exchange(host, SocketAddrV4::new(GATEWAY, 5000), octets)
}

impl Call {
    fn make(
        &self,
        host: &Namespace,
        client: &Client,
        description: &str,
        own: Ipv4Addr,
    ) -> Result<Answer> {
        // Who speaks of PPP has found the connection by its place.
        let wanted = self.service.replace("WANPPP", "WANIP");
        let control = description
            .split("<service>")
            .find(|part| part.contains(&format!("service:{wanted}<")))
            .and_then(|part| part.split_once("<controlURL>")?.1.split_once('<'))
            .with_context(|| format!("no {wanted} in the description"))?
            .0;
        let fields: String = self
            .arguments
            .iter()
            .map(|(name, value)| {
                let value = value.replace("OWN", &own.to_string());
                format!("<{name}>{value}</{name}>")
            })
            .collect();
        let urn = format!("urn:schemas-upnp-org:service:{}", self.service);
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{urn}\">\
             {fields}</u:{action}></s:Body></s:Envelope>",
            action = self.action
        );
        let action = format!("{urn}#{}", self.action);
        send(host, &request(client, "POST", control, &action, &body))
    }
}

fn request(client: &Client, method: &str, path: &str, action: &str, body: &str) -> Vec<u8> {
    let agent = client.user_agent;
    let agent = match client.style {
        _ if agent.is_empty() => String::new(),
        Style::Modern => format!("user-agent: {agent}\r\n"),
        Style::Plain | Style::Old => format!("User-Agent: {agent}\r\n"),
    };
    let length = body.len();
    let text = match (client.style, method) {
        (Style::Plain, "GET") => {
            format!(
                "GET {path} HTTP/1.1\r\nHost: {GATEWAY}:5000\r\n{agent}Connection: Close\r\n\r\n"
            )
        }
        (Style::Old, "GET") => format!("GET {path} HTTP/1.0\r\n{agent}\r\n"),
        (Style::Modern, "GET") => {
            format!(
                "GET {path} HTTP/1.1\r\nhost: {GATEWAY}:5000\r\n{agent}connection: close\r\n\r\n"
            )
        }
        (Style::Plain, _) => format!(
            "POST {path} HTTP/1.1\r\nHost: {GATEWAY}:5000\r\n{agent}Content-Length: {length}\r\n\
             Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{action}\"\r\nConnection: Close\r\n\
             Cache-Control: no-cache\r\nPragma: no-cache\r\n\r\n{body}"
        ),
        (Style::Old, _) => format!(
            "POST {path} HTTP/1.0\r\n{agent}Content-Length: {length}\r\nContent-Type: text/xml\r\n\
             SOAPAction: {action}\r\n\r\n{body}"
        ),
        (Style::Modern, _) => format!(
            "POST {path} HTTP/1.1\r\nhost: {GATEWAY}:5000\r\n{agent}transfer-encoding: chunked\r\n\
             content-type: text/xml; charset=\"utf-8\"\r\nsoapaction: \"{action}\"\r\nconnection: close\r\n\r\n\
             {length:x}\r\n{body}\r\n0\r\n\r\n"
        ),
    };
    text.into_bytes()
}

#[test]
fn known_control_points_get_what_makes_them_work() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let (lab, _iwfd, gateway) = super::quirks::alone()?;
    ensure!(WAN == Ipv4Addr::new(100, 64, 0, 2), "as the table says");
    // Somebody else has a port, which nobody meets in a listing, only at the port itself.
    let other = gateway.seen_from(&lab.lan2);
    other.add("UDP", 6199, LAN2, 6199, 3600)?.ok()?;
    for client in CLIENTS.iter().chain(LIBRARIES) {
        play(&lab.lan1, LAN1, client).with_context(|| client.who.to_owned())?;
        listed_is(&gateway, 0).with_context(|| format!("after {}", client.who))?;
    }
    Ok(())
}

/// Whether the host's listing has ended.
fn listed_is(gateway: &Gateway, index: u32) -> Result<()> {
    let answer = gateway.call(
        "GetGenericPortMappingEntry",
        &[("NewPortMappingIndex", &index.to_string())],
    )?;
    ensure!(answer.error() == Some(713), "{}", answer.text);
    Ok(())
}
