//! The whole shell with a PCP server on loopback, and kernel and store in memory. Control points call where the
//! HTTP server would hand their calls over, because hosts with loopback addresses are refused.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::daemon::control::events::{EventFilter, EventKind, EventRow};
use crate::daemon::control::server::Replies;
use crate::daemon::control::{ListEnd, MappingRow, Request, Response};
use crate::daemon::dataplane::PlaneEvent;
use crate::daemon::dataplane::fake::{FakePlane, Fault, Tables};
use crate::daemon::dataplane::inspect::{
    HostRow, Kind, SessionFilter, SessionRow, State, Transport, Usage, Way,
};
use crate::daemon::gena::Courier;
use crate::daemon::http::{OpenConnections, Site};
use crate::daemon::journal::Journal;
use crate::daemon::neighbours::Neighbours;
use crate::daemon::netstate::LanAddress;
use crate::daemon::ssdp::Identity;
use crate::daemon::store::fake::MemoryStore;
use crate::iwf::{Iwf, WanState};
use crate::types::{Epoch, ExternalPort, Generation, Lifetime, Protocol};
use crate::wire::description::DeviceUuid;
use crate::wire::pcp::{self, Body};
use crate::wire::soap;

/// Our NAT's external address: the PCP server is asked from it.
const WAN: Ipv4Addr = Ipv4Addr::LOCALHOST;
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const CARRIER: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 1);
const SOON: Duration = Duration::from_secs(5);

/// A daemon on loopback.
struct Lab {
    calls: mpsc::Sender<SoapCall>,
    requests: mpsc::Sender<ControlCall>,
    datagrams: mpsc::Sender<UpstreamEvent>,
    wishes: mpsc::Sender<Wish>,
    _network: watch::Sender<NetState>,
    running: JoinHandle<()>,
}

impl Lab {
    fn start(server: SocketAddr, plane: FakePlane, store: MemoryStore) -> Self {
        let text = format!(
            "mode = \"cascaded\"\n[lan]\ninterfaces = [\"lo\"]\n[wan]\ninterface = \"wan0\"\n\
             [upstream]\npcp_servers = [\"{server}\"]\n[http]\nport = 0\n"
        );
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let description = settings::description(DeviceUuid::from_octets([7; 16]), false);
        let now = clock::now();
        let core = Iwf::new(
            settings::core(&config, &description, None),
            [1; 32],
            clock::wall(),
            now,
        );
        let (call_sender, calls) = mpsc::channel(MAX_WAITING_CALLS);
        let (subscription_sender, subscriptions) = mpsc::channel(MAX_WAITING_CALLS);
        let (courier, outcomes) = Courier::new();
        let (requests, request_receiver) = mpsc::channel(MAX_WAITING_REQUESTS);
        let (_, closed) = mpsc::channel(1);
        let (datagram_sender, datagrams) = mpsc::channel(MAX_WAITING_DATAGRAMS);
        let (network, network_receiver) = watch::channel(NetState {
            wan: WanState {
                address: Some(WAN),
                ..WanState::default()
            },
            external_addr: Some(WAN),
            lan: vec![LanAddress {
                interface: "lo".to_owned(),
                ifindex: 1,
                addr: Ipv4Addr::new(192, 168, 1, 1),
                prefix_len: 24,
            }],
            ..NetState::default()
        });
        let (wishes, wish_receiver) = mpsc::channel(1);
        let identity = Identity {
            site: Site::new(
                description,
                settings::server_name(),
                config.http,
                call_sender.clone(),
                subscription_sender,
                Neighbours::unknown(),
            ),
            boot_id: 1,
            config: config.ssdp,
        };
        let daemon = Daemon {
            shell: Shell::new(
                core,
                plane,
                store,
                settings::host_ports(&config),
                courier,
                OpenConnections::default(),
            ),
            hooks: Hooks::new(Journal::default(), PathBuf::new()),
            upstream: Upstream::new("lo".to_owned(), datagram_sender.clone()),
            discovery: Discovery::off(),
            devices: Devices::nobody(),
            softwires: Softwires::off(),
            lan: LanServices::new(identity, 0, None),
            metrics: Metrics::new(requests.clone()),
            uuid: [0; 16],
            config,
            config_path: "/nonexistent".into(),
            log_filter: LogFilter::fixed(),
        };
        let inputs = Inputs {
            calls,
            subscriptions,
            closed,
            outcomes,
            requests: request_receiver,
            datagrams,
            network: network_receiver,
            wishes: wish_receiver,
        };
        Self {
            calls: call_sender,
            requests,
            datagrams: datagram_sender,
            wishes,
            _network: network,
            running: tokio::spawn(daemon.run(inputs)),
        }
    }

    async fn ask(&self, request: Request) -> Response {
        let mut answers = self.open(request).await;
        next(&mut answers).await
    }

    async fn open(&self, request: Request) -> mpsc::Receiver<Response> {
        let (replies, answers) = Replies::channel();
        self.requests.send((request, replies)).await.unwrap();
        answers
    }

    /// Every event of these kinds that is kept.
    async fn events(&self, kinds: &[EventKind]) -> Vec<EventRow> {
        let mut answers = self
            .open(Request::Events {
                filter: EventFilter {
                    kinds: kinds.to_vec(),
                    ..EventFilter::default()
                },
                follow: false,
                new: false,
            })
            .await;
        let mut events = Vec::new();
        loop {
            let answer = next(&mut answers).await;
            if let Response::Events(page) = answer {
                events.extend(page.events);
                continue;
            }
            assert_eq!(answer, Response::End(ListEnd::default()));
            return events;
        }
    }

    async fn mappings(&self) -> Vec<MappingRow> {
        let Response::Mappings(rows) = self.ask(Request::Mappings {}).await else {
            panic!("not the mappings");
        };
        rows
    }

    /// Waits until so many mappings are in the table.
    async fn has_mappings(&self, count: usize) {
        let wait = async { while self.mappings().await.len() != count {} };
        timeout(SOON, wait).await.expect("soon");
    }

    async fn is_clean(&self) -> bool {
        let Response::Audit(audit) = self.ask(Request::Audit {}).await else {
            panic!("not an audit");
        };
        audit.clean
    }

    async fn call(&self, action: &str, args: &[(&str, &str)]) -> soap::ActionResult {
        answered(self.begin(action, args)).await
    }

    /// Calls and does not wait. Nothing else runs meanwhile.
    fn begin(&self, action: &str, args: &[(&str, &str)]) -> oneshot::Receiver<soap::ActionResult> {
        let (reply, answer) = oneshot::channel();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let call = SoapCall {
            caller: HOST.into(),
            call: soap::Call {
                service: "WANIPConnection".to_owned(),
                version: 1,
                action: action.to_owned(),
                args: args.iter().map(owned).collect(),
            },
            waited: Duration::ZERO,
            reply,
        };
        self.calls.try_send(call).unwrap();
        answer
    }

    async fn add(&self, port: &str) -> soap::ActionResult {
        answered(self.begin_to_add(port)).await
    }

    fn begin_to_add(&self, port: &str) -> oneshot::Receiver<soap::ActionResult> {
        let host = HOST.to_string();
        let args = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", port),
            ("NewProtocol", "TCP"),
            ("NewInternalPort", "8080"),
            ("NewInternalClient", host.as_str()),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "test"),
            ("NewLeaseDuration", "600"),
        ];
        self.begin("AddPortMapping", &args)
    }

    /// How often something was stored.
    async fn commits(&self) -> u64 {
        let Response::Stats(stats) = self.ask(Request::Stats {}).await else {
            panic!("not the counters");
        };
        let mut counters = stats.daemon.iter();
        let found = counters.find(|counter| counter.name == "store_commits");
        found.expect("a counter").value
    }

    async fn stop(self) {
        self.wishes.send(Wish::Stop).await.unwrap();
        timeout(SOON, self.running)
            .await
            .expect("ends soon")
            .unwrap();
    }
}

async fn answered(answer: oneshot::Receiver<soap::ActionResult>) -> soap::ActionResult {
    let answer = timeout(SOON, answer).await;
    answer.expect("an answer soon").unwrap()
}

async fn next(answers: &mut mpsc::Receiver<Response>) -> Response {
    let answer = timeout(SOON, answers.recv()).await;
    answer.expect("an answer soon").expect("an answer")
}

/// A PCP server that grants what is asked for.
struct Carrier {
    socket: Arc<UdpSocket>,
    address: SocketAddr,
    epoch: Arc<AtomicU32>,
    /// What it was asked to map, in order.
    asked: mpsc::Receiver<pcp::MapBody>,
}

impl Carrier {
    /// Each test has a server of its own, so that none hears what another one announces.
    async fn start(last: u8) -> Self {
        let addr = Ipv4Addr::new(127, 0, 0, last);
        let socket = Arc::new(UdpSocket::bind((addr, 0)).await.unwrap());
        socket2::SockRef::from(&*socket)
            .set_multicast_if_v4(&Ipv4Addr::LOCALHOST)
            .unwrap();
        let epoch = Arc::new(AtomicU32::new(1000));
        let (sender, asked) = mpsc::channel(16);
        tokio::spawn(serve(Arc::clone(&socket), Arc::clone(&epoch), sender));
        Self {
            address: socket.local_addr().unwrap(),
            socket,
            epoch,
            asked,
        }
    }

    /// Loses its state and says so.
    async fn restart(&self) {
        self.epoch.store(1, Ordering::SeqCst);
        let message = response(Body::Announce, Lifetime(0), Epoch(1));
        let group = (Ipv4Addr::new(224, 0, 0, 1), pcp::CLIENT_PORT);
        self.socket.send_to(&message, group).await.unwrap();
    }

    async fn next_asked(&mut self) -> pcp::MapBody {
        let wait = timeout(SOON, self.asked.recv()).await;
        wait.expect("a request soon").unwrap()
    }
}

async fn serve(socket: Arc<UdpSocket>, epoch: Arc<AtomicU32>, asked: mpsc::Sender<pcp::MapBody>) {
    let mut buffer = [0; 1100];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let request = pcp::Request::decode(&buffer[..length]).unwrap();
        let mut body = request.body;
        if let Body::Map(map) = &mut body {
            asked.try_send(*map).unwrap();
            map.external_addr = CARRIER.into();
            map.external_port = map.external_port.or(ExternalPort::new(7000));
        }
        let lifetime = Lifetime(request.lifetime.0.min(120));
        let message = response(body, lifetime, Epoch(epoch.load(Ordering::SeqCst)));
        socket.send_to(&message, from).await.unwrap();
    }
}

fn response(body: Body, lifetime: Lifetime, epoch: Epoch) -> Vec<u8> {
    let response = pcp::Response {
        result: pcp::ResultCode::Success,
        lifetime,
        epoch,
        body,
        options: Vec::new(),
    };
    response.encode().unwrap()
}

#[tokio::test]
async fn a_port_opens_in_three_tables_and_closes_again() {
    let carrier = Carrier::start(31).await;
    let lab = Lab::start(carrier.address, FakePlane::new(), MemoryStore::default());
    assert_eq!(lab.add("5000").await, Ok(Vec::new()));
    let rows = lab.mappings().await;
    let [row] = rows.as_slice() else {
        panic!("one mapping, not {rows:?}");
    };
    assert!(row.kernel);
    assert_eq!(row.internal, SocketAddrV4::new(HOST, 8080));
    assert_eq!(row.carrier, Some(SocketAddrV4::new(CARRIER, 5000)));
    assert!(
        row.granted_left_seconds
            .is_some_and(|left| (100..=120).contains(&left))
    );
    assert!(lab.is_clean().await);

    let answer = lab.call("GetExternalIPAddress", &[]).await;
    assert_eq!(
        answer,
        Ok(vec![("NewExternalIPAddress", CARRIER.to_string())])
    );

    assert_eq!(lab.ask(DELETE).await, Response::Done);
    assert_eq!(lab.mappings().await, []);
    assert!(matches!(lab.ask(DELETE).await, Response::Error(_)));
    assert!(lab.is_clean().await);
    lab.stop().await;
}

#[tokio::test]
async fn a_grant_and_a_call_that_wait_together_cost_one_commit() {
    let server = UdpSocket::bind("127.0.0.39:0").await.unwrap();
    let from = server.local_addr().unwrap();
    let lab = Lab::start(from, FakePlane::new(), MemoryStore::default());
    let first = lab.begin_to_add("5000");
    let mut buffer = [0; 1100];
    let granted = loop {
        let received = timeout(SOON, server.recv_from(&mut buffer)).await;
        let (length, _) = received.expect("a request soon").unwrap();
        let request = pcp::Request::decode(&buffer[..length]).unwrap();
        if let Body::Map(mut map) = request.body {
            map.external_addr = CARRIER.into();
            break response(Body::Map(map), Lifetime(120), Epoch(1000));
        }
    };
    let before = lab.commits().await;
    let grant = UpstreamEvent::Datagram {
        from,
        payload: granted,
    };
    lab.datagrams.try_send(grant).unwrap();
    let _second = lab.begin_to_add("5001");
    assert_eq!(answered(first).await, Ok(Vec::new()));
    // The record of the first, and the mark of what the second one asks for.
    assert_eq!(lab.commits().await, before + 1);
    lab.stop().await;
}

const DELETE: Request = Request::Delete {
    protocol: Protocol::Tcp,
    external_port: 5000,
};

/// Looking for the sessions of a mapping takes long in a large table. Everything else goes on, and the answer waits.
#[tokio::test]
async fn a_removal_is_answered_when_its_sessions_have_ended_and_stops_nothing() {
    let carrier = Carrier::start(34).await;
    let mut plane = FakePlane::new();
    let held = plane.hold();
    let lab = Lab::start(carrier.address, plane, MemoryStore::default());
    assert_eq!(lab.add("5000").await, Ok(Vec::new()));
    assert_eq!(lab.add("5001").await, Ok(Vec::new()));
    let mut answer = lab.open(DELETE).await;
    // Server, store and the table in the kernel come first.
    lab.has_mappings(1).await;
    assert!(answer.try_recv().is_err(), "not yet");
    // The next one joins, and calls of others are served meanwhile.
    let second = Request::Delete {
        protocol: Protocol::Tcp,
        external_port: 5001,
    };
    let mut second = lab.open(second).await;
    lab.has_mappings(0).await;
    assert_eq!(lab.add("5002").await, Ok(Vec::new()));
    assert!(answer.try_recv().is_err() && second.try_recv().is_err());
    held.store(false, Ordering::SeqCst);
    for mut answer in [answer, second] {
        assert_eq!(next(&mut answer).await, Response::Done);
    }
    assert_eq!(lab.mappings().await.len(), 1);
    assert!(lab.is_clean().await);
    lab.stop().await;
}

#[tokio::test]
async fn a_removal_that_cannot_be_completed_is_not_called_done() {
    let carrier = Carrier::start(35).await;
    let mut plane = FakePlane::new();
    plane.fail_to_settle();
    let lab = Lab::start(carrier.address, plane, MemoryStore::default());
    assert_eq!(lab.add("5000").await, Ok(Vec::new()));
    assert!(matches!(lab.ask(DELETE).await, Response::Error(_)));
    assert_eq!(lab.mappings().await, []);
    lab.stop().await;
}

/// Nobody would end those sessions when the daemon is gone.
#[tokio::test]
async fn a_stop_waits_for_what_is_being_removed() {
    let carrier = Carrier::start(36).await;
    let mut plane = FakePlane::new();
    let held: Arc<AtomicBool> = plane.hold();
    let lab = Lab::start(carrier.address, plane, MemoryStore::default());
    assert_eq!(lab.add("5000").await, Ok(Vec::new()));
    let mut answer = lab.open(DELETE).await;
    lab.has_mappings(0).await;
    held.store(false, Ordering::SeqCst);
    lab.stop().await;
    assert_eq!(next(&mut answer).await, Response::Done);
}

#[tokio::test]
async fn a_full_kernel_map_fails_the_call_and_leaves_nothing() {
    let mut plane = FakePlane::new();
    plane.fail_change(1, Fault::Full);
    let carrier = Carrier::start(32).await;
    let lab = Lab::start(carrier.address, plane, MemoryStore::default());
    assert!(lab.add("5000").await.is_err());
    assert_eq!(lab.mappings().await, []);
    assert!(lab.is_clean().await);
    assert_eq!(lab.add("5000").await, Ok(Vec::new()));
    lab.stop().await;
}

#[tokio::test]
async fn a_full_store_fails_the_call_and_leaves_nothing() {
    // The first commit is that of the mark; the second one that of the mapping, and of the server's epoch with it.
    let carrier = Carrier::start(33).await;
    let lab = Lab::start(
        carrier.address,
        FakePlane::new(),
        MemoryStore::failing_at(2),
    );
    assert!(lab.add("5000").await.is_err());
    assert_eq!(lab.mappings().await, []);
    assert!(lab.is_clean().await);
    assert_eq!(lab.add("5000").await, Ok(Vec::new()));
    lab.stop().await;
}

#[tokio::test]
async fn an_announced_restart_of_the_server_brings_the_mapping_back_at_once() {
    let mut carrier = Carrier::start(40).await;
    let lab = Lab::start(carrier.address, FakePlane::new(), MemoryStore::default());
    assert_eq!(lab.add("5000").await, Ok(Vec::new()));
    let first = carrier.next_asked().await;
    carrier.restart().await;
    let again = carrier.next_asked().await;
    assert_eq!(again.nonce, first.nonce);
    assert_eq!(again.internal_port, first.internal_port);
    lab.stop().await;
}

#[tokio::test]
async fn what_happens_to_mappings_is_told_with_the_reason() {
    let mut plane = FakePlane::new();
    plane.fail_change(1, Fault::Full);
    let carrier = Carrier::start(41).await;
    let lab = Lab::start(carrier.address, plane, MemoryStore::default());
    assert!(lab.add("5000").await.is_err());
    assert_eq!(lab.add("5001").await, Ok(Vec::new()));
    let delete = Request::Delete {
        protocol: Protocol::Tcp,
        external_port: 5001,
    };
    assert_eq!(lab.ask(delete).await, Response::Done);
    let kinds = [
        EventKind::MappingCreated,
        EventKind::MappingRemoved,
        EventKind::MappingRefused,
    ];
    let events = lab.events(&kinds).await;
    let told: Vec<_> = events.iter().map(|event| event.kind).collect();
    assert_eq!(
        told,
        [
            EventKind::MappingRefused,
            EventKind::MappingCreated,
            EventKind::MappingRemoved
        ]
    );
    let host = Some((HOST, 8080).into());
    assert!(events.iter().all(|event| event.internal == host));
    let [refused, created, removed] = events.as_slice() else {
        panic!("three events, not {events:?}");
    };
    assert!(
        refused
            .detail
            .starts_with("AddPortMapping of external port 5000 refused: "),
        "{refused:?}"
    );
    assert!(
        created.detail.contains("at the carrier 11.22.33.1:5001"),
        "{created:?}"
    );
    assert_eq!(created.external, removed.external);
    assert!(created.time <= removed.time);

    let of_the_daemon = [EventKind::WanChanged, EventKind::ServerAnswering];
    let events = lab.events(&of_the_daemon).await;
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[0].detail, "address 127.0.0.1, gateway none");
    assert_eq!(events[1].remote, Some(carrier.address));
    lab.stop().await;
}

#[tokio::test]
async fn a_follower_hears_what_the_programs_tell() {
    let mut plane = FakePlane::new();
    plane.tell(PlaneEvent {
        kind: Some(iwf_common::event::EventKind::HostSessions),
        age: Duration::from_secs(1),
        protocol: 17,
        internal: Some((HOST, 4000).into()),
        station: None,
        external: None,
    });
    let carrier = Carrier::start(42).await;
    let lab = Lab::start(carrier.address, plane, MemoryStore::default());
    let mut answers = lab
        .open(Request::Events {
            filter: EventFilter {
                host: "192.168.1.0/24".parse().ok(),
                ..EventFilter::default()
            },
            follow: true,
            new: false,
        })
        .await;
    let Response::Events(page) = next(&mut answers).await else {
        panic!("no events");
    };
    assert_eq!(page.events.len(), 1);
    assert_eq!(page.events[0].kind, EventKind::HostSessions);
    assert_eq!(
        page.events[0].counter.as_deref(),
        Some("drop_host_sessions")
    );
    assert_eq!(lab.add("5000").await, Ok(Vec::new()));
    let Response::Events(page) = next(&mut answers).await else {
        panic!("no events");
    };
    assert_eq!(page.events[0].kind, EventKind::MappingCreated);
    lab.stop().await;
    assert_eq!(
        timeout(SOON, answers.recv()).await.expect("ends soon"),
        None
    );
}

#[tokio::test]
async fn tables_are_looked_at_beside_the_loop() {
    let session = |port: u16| SessionRow {
        protocol: Transport(17),
        internal: (HOST, port).into(),
        external: Some((WAN, port).into()),
        remote: (CARRIER, 53).into(),
        began: Some(Way::Out),
        state: State::Answered,
        packets_out: 1,
        octets_out: 100,
        packets_in: 1,
        octets_in: 200,
        idle_seconds: 0,
        left_seconds: 300,
        mapping: Some(Kind::Dynamic),
        hairpin: false,
        pinhole: None,
    };
    let host = |last: u8, sessions: u64| HostRow {
        host: Ipv4Addr::new(192, 168, 1, last).into(),
        station: None,
        sessions,
        sessions_limit: 16_384,
        mappings: 1,
        mappings_limit: 16_384,
        external: Some(WAN),
        idle_seconds: 0,
    };
    let usage = Usage {
        packets_out: 1,
        octets_out: 2,
        packets_in: 3,
        octets_in: 4,
    };
    let mut plane = FakePlane::new();
    plane.show(Tables {
        sessions: (1000..1010).map(session).collect(),
        usage: [(Generation(1), usage)].into(),
        hosts: vec![host(10, 2), host(11, 9), host(12, 2)],
        ..Tables::default()
    });
    let carrier = Carrier::start(43).await;
    let lab = Lab::start(carrier.address, plane, MemoryStore::default());
    let filter = SessionFilter {
        port: Some(1003),
        ..SessionFilter::default()
    };
    let request = Request::Sessions {
        filter,
        limit: None,
    };
    let mut answers = lab.open(request).await;
    assert_eq!(
        next(&mut answers).await,
        Response::Sessions(vec![session(1003)])
    );
    let end = ListEnd {
        matched: 1,
        more: 0,
    };
    assert_eq!(next(&mut answers).await, Response::End(end));

    let mut answers = lab.open(Request::Hosts { limit: Some(2) }).await;
    assert_eq!(
        next(&mut answers).await,
        Response::Hosts(vec![host(11, 9), host(10, 2)])
    );
    let end = ListEnd {
        matched: 3,
        more: 1,
    };
    assert_eq!(next(&mut answers).await, Response::End(end));

    assert_eq!(lab.add("5000").await, Ok(Vec::new()));
    let Response::Mappings(rows) = lab.ask(Request::MappingUsage {}).await else {
        panic!("not the mappings");
    };
    assert_eq!(rows[0].generation, 1);
    assert_eq!(rows[0].usage, Some(usage));
    assert_eq!(lab.mappings().await[0].usage, None);

    let Response::Stats(stats) = lab.ask(Request::Stats {}).await else {
        panic!("not the counters");
    };
    let tables = stats.tables.iter().map(|t| (t.table.as_str(), t.entries));
    assert_eq!(
        tables.collect::<Vec<_>>(),
        [("sessions", 10), ("filters", 0)]
    );
    lab.stop().await;
}
