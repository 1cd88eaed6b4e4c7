#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the tests are a client"
)]

mod forms;
mod limits;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream as StdStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::*;
use crate::proto::gena::{Granted, Refusal};
use crate::wire::description::{DeviceInfo, DeviceUuid, Tree};
use crate::wire::gena::{self, Sid};

const ADD: &str = r#"<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:GetExternalIPAddress xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"/></s:Body></s:Envelope>"#;
const ACTION: &str =
    "SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#GetExternalIPAddress\"\r\n";
const CONTROL: &str = "/igd1/ctl/WANIPConn";

/// A site on loopback whose core answers a question for the address, and 718 to anything else.
struct Server {
    address: SocketAddr,
    counts: Arc<Counts>,
    /// What asks for `Wait` is answered then.
    waiting: Arc<Waiting>,
    /// The server's thread ends when this is dropped.
    _running: oneshot::Sender<()>,
}

impl Server {
    fn start(limits: HttpConfig) -> Self {
        Self::start_on(limits, Ipv4Addr::LOCALHOST.into(), 8)
    }

    /// The link served is said to have this address.
    fn start_on(limits: HttpConfig, addr: IpAddr, prefix_len: u8) -> Self {
        Self::start_with(limits, Times::default(), addr, prefix_len)
    }

    fn start_with(limits: HttpConfig, times: Times, addr: IpAddr, prefix_len: u8) -> Self {
        let (running, stopped) = oneshot::channel::<()>();
        let (started, address) = std::sync::mpsc::channel();
        let link = LanLink {
            interface: "lo".to_owned(),
            ifindex: 1,
            addr,
            prefix_len,
        };
        let waiting = Arc::new(Waiting::default());
        let with_core = Arc::clone(&waiting);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async move {
                let (calls, questions) = mpsc::channel(4);
                let server = "Linux/6 UPnP/1.1 iwf/0".to_owned();
                let (subscriptions, wishes) = mpsc::channel(4);
                tokio::spawn(grant_all(wishes));
                let neighbours = Neighbours::unknown();
                let mut site = Site::new(
                    description(),
                    server,
                    limits,
                    calls,
                    subscriptions,
                    neighbours,
                );
                Arc::get_mut(&mut site).unwrap().times = times;
                let at: IpAddr = match addr {
                    IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                };
                let listener = TcpListener::bind((at, 0)).await.unwrap();
                let address = listener.local_addr().unwrap();
                started.send((address, site.counts())).unwrap();
                tokio::spawn(site.serve(listener, link));
                tokio::spawn(answer_all(questions, with_core));
                stopped.await.unwrap_err();
            });
        });
        let (address, counts) = address.recv().unwrap();
        Self {
            address,
            counts,
            waiting,
            _running: running,
        }
    }

    fn count(&self, name: &str) -> u64 {
        let mut rows = self.counts.rows();
        rows.find(|(row, _)| *row == name).unwrap().1
    }

    /// Waits until it stands at that: a connection is counted when it is over, a little after the client has seen it.
    fn counts(&self, name: &str, expected: u64) {
        let begun = std::time::Instant::now();
        while self.count(name) != expected {
            let all: Vec<_> = self.counts.rows().filter(|(_, n)| *n > 0).collect();
            assert!(begun.elapsed() < Duration::from_secs(5), "{name} {all:?}");
            std::thread::yield_now();
        }
    }

    fn connect(&self) -> StdStream {
        let stream = StdStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream
    }

    /// Sends octets, then reads to the end.
    fn raw(&self, request: &str) -> String {
        let mut stream = self.connect();
        // A server that refuses may reset what it did not read.
        let _sent = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _read = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    /// `{host}` in the head stands for the server's address.
    fn ask(&self, head: &str, body: &str) -> String {
        let head = head.replace("{host}", &self.address.to_string());
        let length = body.len();
        self.raw(&format!(
            "{head}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }
}

async fn grant_all(mut wishes: mpsc::Receiver<SubscriptionCall>) {
    let mut last = None;
    while let Some(wish) = wishes.recv().await {
        assert_eq!(
            (wish.at.own, wish.host.addr),
            (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into())
        );
        assert_eq!(wish.service.kind, "WANIPConnection");
        let granted = |sid| Granted {
            sid,
            timeout: Duration::from_secs(1800),
        };
        let result = match wish.request {
            gena::Request::Subscribe { .. } => {
                last = Some(Sid::new([1; 16]));
                Ok(last.map(granted))
            }
            gena::Request::Renew { sid, .. } if last == Some(sid) => Ok(last.map(granted)),
            gena::Request::Unsubscribe { sid } if last == Some(sid) => Ok(None),
            gena::Request::Renew { .. } | gena::Request::Unsubscribe { .. } => {
                Err(Refusal::Unknown)
            }
        };
        wish.reply.send(result).unwrap();
    }
}

#[derive(Default)]
struct Waiting {
    calls: AtomicUsize,
    go_on: Notify,
}

async fn answer_all(mut questions: mpsc::Receiver<SoapCall>, waiting: Arc<Waiting>) {
    while let Some(question) = questions.recv().await {
        if question.call.action == "Wait" {
            let waiting = Arc::clone(&waiting);
            tokio::spawn(async move {
                let go_on = waiting.go_on.notified();
                waiting.calls.fetch_add(1, Ordering::SeqCst);
                go_on.await;
                question.reply.send(Ok(Vec::new())).unwrap();
            });
            continue;
        }
        let result = match question.call.action.as_str() {
            "QueryStateVariable" => {
                let (service, version) = (question.call.service, question.call.version);
                Ok(vec![("return", format!("{service}:{version}"))])
            }
            "GetExternalIPAddress" => Ok(vec![("NewExternalIPAddress", "11.22.33.1".to_owned())]),
            _ => Err(soap::UpnpError::CONFLICT_IN_MAPPING_ENTRY),
        };
        question.reply.send(result).unwrap();
    }
}

fn description() -> Description {
    Description::new(DeviceInfo {
        uuid: DeviceUuid::from_octets([1; 16]),
        friendly_name: "iwf".to_owned(),
        manufacturer: "iwf".to_owned(),
        manufacturer_url: "/".to_owned(),
        model_description: "gateway".to_owned(),
        model_name: "iwf".to_owned(),
        model_number: "0".to_owned(),
        serial_number: "1".to_owned(),
        presentation_url: "/".to_owned(),
    })
}

fn limits() -> HttpConfig {
    HttpConfig {
        port: 0,
        max_connections: 8,
        max_connections_per_host: 8,
        answer_within: Duration::from_secs(28),
    }
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("none")
}

#[test]
fn control_is_answered_in_every_form_seen_in_the_field() {
    let server = Server::start(limits());
    let forms = [
        format!("POST {CONTROL} HTTP/1.1\r\nHost: {{host}}\r\n{ACTION}"),
        format!("POST {CONTROL} HTTP/1.0\r\n{ACTION}"),
        format!(
            "\r\nPOST {CONTROL} HTTP/1.1\r\nhost:{{host}}\r\n{}",
            ACTION
                .to_lowercase()
                .replace("wanipconnection", "WANIPConnection")
                .replace("getexternalipaddress", "GetExternalIPAddress")
        ),
        format!("POST {CONTROL} HTTP/1.1\nHost: {{host}}\n{ACTION}"),
        format!("POST http://{{host}}{CONTROL} HTTP/1.1\r\nHost: {{host}}\r\n{ACTION}"),
        format!(
            "M-POST {CONTROL} HTTP/1.1\r\nHost: {{host}}\r\nMan: \"http://schemas.xmlsoap.org/soap/envelope/\"; ns=01\r\n01-{ACTION}"
        ),
        "POST /igd2/ctl/WANIPConn HTTP/1.1\r\nHost: {host}\r\n".to_owned(),
        format!("POST {CONTROL} HTTP/1.1\r\nHost: {{host}}\r\nExpect: 100-continue\r\n{ACTION}"),
    ];
    for form in forms {
        let answer = server.ask(&form, ADD);
        let answer = answer.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(status(answer), "200", "{form}\n{answer}");
        assert!(
            answer.contains("<NewExternalIPAddress>11.22.33.1<"),
            "{answer}"
        );
        assert!(
            answer.to_ascii_lowercase().contains("\r\next: \r\n"),
            "{answer}"
        );
    }
}

#[test]
fn a_request_may_come_in_pieces_and_chunks_and_be_followed_by_another() {
    let server = Server::start(limits());
    let mut stream = server.connect();
    let (first, second) = ADD.split_at(40);
    let head = format!(
        "POST {CONTROL} HTTP/1.1\r\nHost: {}\r\n{ACTION}Transfer-Encoding: chunked\r\n\r\n",
        server.address
    );
    let body = format!(
        "{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    for _ in 0..2 {
        for octet in format!("{head}{body}").as_bytes().chunks(7) {
            stream.write_all(octet).unwrap();
        }
        let mut answer = Vec::new();
        let mut buffer = [0; 512];
        while !answer.ends_with(b"Envelope>\n") && !answer.ends_with(b"Envelope>") {
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&buffer[..n]);
        }
        assert_eq!(status(&String::from_utf8(answer).unwrap()), "200");
    }
}

/// A query names no service; the path it is sent to does.
#[test]
fn a_query_is_for_the_service_of_its_path() {
    let server = Server::start(limits());
    let query = ADD
        .replace("GetExternalIPAddress", "QueryStateVariable")
        .replace("service:WANIPConnection:1", "control-1-0")
        .replace("urn:schemas-upnp-org:service:", "urn:schemas-upnp-org:");
    for (path, service) in [
        ("/igd1/ctl/WANIPConn", "WANIPConnection:1"),
        ("/igd2/ctl/WANIPConn", "WANIPConnection:2"),
        ("/igd1/ctl/WANCommonIFC", "WANCommonInterfaceConfig:1"),
    ] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: {{host}}\r\n");
        let answer = server.ask(&head, &query);
        assert_eq!(status(&answer), "200", "{answer}");
        let expected = format!("<return>{service}</return>");
        assert!(answer.contains(&expected), "{answer}");
    }
}

#[test]
fn faults_are_upnp_errors_in_a_500() {
    let server = Server::start(limits());
    let head = format!("POST {CONTROL} HTTP/1.1\r\nHost: {{host}}\r\n");
    let other = ADD.replace("GetExternalIPAddress", "AddPortMapping");
    let answer = server.ask(&head, &other);
    assert_eq!(status(&answer), "500");
    assert!(answer.contains("<errorCode>718</errorCode>"), "{answer}");
}

#[test]
fn malformed_requests_get_their_own_status() {
    let server = Server::start(limits());
    let head = format!("POST {CONTROL} HTTP/1.1\r\nHost: {{host}}\r\n{ACTION}");
    let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaa\">]><x>&a;</x>";
    for (head, body, expected) in [
        (head.as_str(), "<not", "400"),
        (&head, bomb, "400"),
        (&head, "", "400"),
        (&head, &"x".repeat(MAX_BODY + 1), "413"),
        ("GET /nothing HTTP/1.1\r\nHost: {host}\r\n", "", "404"),
        (
            "GET /igd1/ctl/WANIPConn HTTP/1.1\r\nHost: {host}\r\n",
            "",
            "405",
        ),
        ("PUT /igd1/desc.xml HTTP/1.1\r\nHost: {host}\r\n", "", "405"),
        (
            "SUBSCRIBE /igd1/evt/WANIPConn HTTP/1.1\r\nHost: {host}\r\n",
            "",
            "412",
        ),
        (
            "UNSUBSCRIBE /igd1/evt/WANIPConn HTTP/1.1\r\nHost: {host}\r\n",
            "",
            "412",
        ),
        (
            "SUBSCRIBE /igd1/evt/Nothing HTTP/1.1\r\nHost: {host}\r\n",
            "",
            "404",
        ),
        (
            "NOTIFY /igd1/evt/WANIPConn HTTP/1.1\r\nHost: {host}\r\n",
            "",
            "405",
        ),
        ("nonsense\r\n", "", "400"),
    ] {
        assert_eq!(status(&server.ask(head, body)), expected, "{head}");
    }
    let endless = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
    assert_eq!(status(&server.raw(&endless)), "431");
    // And the server is still there.
    assert_eq!(status(&server.ask("GET / HTTP/1.1\r\n", "")), "200");
}

#[test]
fn subscriptions_are_made_renewed_and_ended() {
    let server = Server::start(limits());
    let ask = |method: &str, fields: &str| {
        let head = format!("{method} /igd1/evt/WANIPConn HTTP/1.1\r\nHOST: {{host}}\r\n{fields}");
        server.ask(&head, "").to_ascii_lowercase()
    };
    let new = "CALLBACK: <http://127.0.0.1:5000/>\r\nNT: upnp:event\r\nTIMEOUT: Second-1800\r\n";
    let made = ask("SUBSCRIBE", new);
    assert_eq!(status(&made), "200", "{made}");
    for field in [
        "\r\ntimeout: second-1800\r\n",
        "\r\ncontent-length: 0\r\n",
        "\r\nserver: linux/6 upnp/1.1 iwf/0\r\n",
        "\r\ndate: ",
    ] {
        assert!(made.contains(field), "{field:?} {made}");
    }
    let (_, sid) = made.split_once("\r\nsid: ").unwrap();
    let sid = format!("SID: {}\r\n", sid.lines().next().unwrap());
    assert!(ask("SUBSCRIBE", &sid).contains(&sid.to_ascii_lowercase()));
    assert_eq!(status(&ask("SUBSCRIBE", &format!("{new}{sid}"))), "400");
    let other = sid.replace("uuid:01", "uuid:02");
    assert_eq!(status(&ask("SUBSCRIBE", &other)), "412");
    assert_eq!(status(&ask("UNSUBSCRIBE", &other)), "412");
    assert_eq!(status(&ask("UNSUBSCRIBE", &sid)), "200");
}

#[test]
fn foreign_names_and_pages_are_refused() {
    let server = Server::start(limits());
    for (head, expected) in [
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n", "403"),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.2\r\n", "403"),
        (
            "GET / HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n",
            "403",
        ),
        (
            "GET http://evil.example/ HTTP/1.1\r\nHost: {host}\r\n",
            "403",
        ),
        (
            "GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: http://evil.example\r\n",
            "403",
        ),
        ("GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: null\r\n", "403"),
        (
            "GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n",
            "200",
        ),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", "200"),
        ("GET / HTTP/1.0\r\n", "200"),
    ] {
        let head = head.replace("{host}", &server.address.to_string());
        assert_eq!(status(&server.ask(&head, "")), expected, "{head}");
    }
}

#[test]
fn an_ipv6_address_is_named_in_brackets_with_or_without_a_zone() {
    let server = Server::start_on(limits(), Ipv6Addr::LOCALHOST.into(), 128);
    let port = server.address.port();
    for (host, expected) in [
        (format!("[::1]:{port}"), "200"),
        ("[::1]".to_owned(), "200"),
        ("[0:0:0:0:0:0:0:1]:80".to_owned(), "200"),
        (format!("[::1%25lo]:{port}"), "200"),
        (format!("[::1%lo]:{port}"), "200"),
        (format!("[::2]:{port}"), "403"),
        (format!("[::2%::1]:{port}"), "403"),
        ("::1".to_owned(), "403"),
        ("[::1".to_owned(), "403"),
        ("[::1]evil.example".to_owned(), "403"),
        ("evil.example".to_owned(), "403"),
        ("127.0.0.1".to_owned(), "403"),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n");
        assert_eq!(status(&server.ask(&head, "")), expected, "{head}");
    }
    for (origin, expected) in [("[::1]", "200"), ("[::2]", "403"), ("evil.example", "403")] {
        let head = format!("GET / HTTP/1.1\r\nHost: [::1]\r\nOrigin: http://{origin}\r\n");
        assert_eq!(status(&server.ask(&head, "")), expected, "{head}");
    }
}

#[test]
fn documents_follow_tree_and_user_agent() {
    let server = Server::start(limits());
    for (path, agent, version) in [
        (Tree::Igd1.path(), "curl", "InternetGatewayDevice:1"),
        (Tree::Igd2.path(), "curl", "InternetGatewayDevice:2"),
        (
            Tree::Igd2.path(),
            "Microsoft-Windows/10.0 UPnP/1.0",
            "InternetGatewayDevice:1",
        ),
    ] {
        let answer = server.ask(
            &format!("GET {path} HTTP/1.1\r\nUser-Agent: {agent}\r\n"),
            "",
        );
        assert_eq!(status(&answer), "200");
        assert!(answer.contains(version), "{path} for {agent}");
        assert!(
            answer.contains("Server: Linux/6 UPnP/1.1 iwf/0\r\n"),
            "{answer}"
        );
        for name in ["Content-Length: ", "Content-Type: text/xml", "Date: "] {
            assert!(answer.contains(&format!("\r\n{name}")), "{name}: {answer}");
        }
        assert!(!answer.contains("Content-Language"), "{answer}");
    }
    for path in ["/igd1/desc.xml", "/igd2/WANIPConn.xml"] {
        let asked = format!("GET {path} HTTP/1.1\r\nACCEPT-LANGUAGE: de, fr;q=0.5\r\n");
        let answer = server.ask(&asked, "");
        assert!(answer.contains("\r\nContent-Language: en\r\n"), "{answer}");
    }
    let head = server.ask("HEAD /igd1/desc.xml HTTP/1.1\r\n", "");
    assert_eq!(status(&head), "200");
    assert!(
        head.ends_with("\r\n\r\n"),
        "a HEAD answer has no body: {head}"
    );
}

#[test]
fn hosts_of_other_links_are_not_served() {
    // The link has the address 192.0.2.1: what arrives on another address, or from outside, is not for it.
    let server = Server::start_on(limits(), Ipv4Addr::new(192, 0, 2, 1).into(), 24);
    assert_eq!(server.raw("GET / HTTP/1.0\r\n\r\n"), "");
}
