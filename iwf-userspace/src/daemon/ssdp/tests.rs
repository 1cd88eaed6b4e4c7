//! Discovery on loopback. Other tests may discover there at the same time: each has an address of its own, and
//! what was announced by others is skipped by its LOCATION or USN.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::daemon::config::HttpConfig;
use crate::daemon::neighbours::Neighbours;
use crate::daemon::settings;
use crate::wire::description::DeviceUuid;
use crate::wire::ssdp;

const SOON: Duration = Duration::from_secs(5);
const SEARCH: &str = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n";

/// A device at this address of a link with four addresses.
struct Device {
    addr: Ipv4Addr,
    uuid: String,
    boot_ids: watch::Sender<u32>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Device {
    fn start(last: u8) -> Self {
        let addr = Ipv4Addr::new(127, 0, 0, last);
        let uuid = DeviceUuid::from_octets([last; 16]);
        let http = HttpConfig {
            port: 0,
            max_connections: 1,
            max_connections_per_host: 1,
            answer_within: Duration::from_secs(28),
        };
        let (calls, _) = mpsc::channel(1);
        let (subscriptions, _) = mpsc::channel(1);
        let server = settings::server_name();
        let identity = Identity {
            site: Site::new(
                settings::description(uuid, false),
                server,
                http,
                calls,
                subscriptions,
                Neighbours::unknown(),
            ),
            boot_id: 7,
            config: SsdpConfig {
                max_age: Duration::from_secs(1800),
                ttl: 2,
            },
        };
        let link = LanLink {
            interface: "lo".to_owned(),
            ifindex: 1,
            addr: addr.into(),
            prefix_len: 30,
        };
        let served = Served {
            http: (addr, 5000).into(),
            https: None,
        };
        let (boot_ids, boot_id) = watch::channel(7);
        let discovery = Discovery::new(identity, link, served, boot_id).unwrap();
        let (stop, stopped) = oneshot::channel();
        Self {
            addr,
            uuid: uuid.to_string(),
            stop,
            running: tokio::spawn(discovery.run(Opening::Goodbye, stopped)),
            boot_ids,
        }
    }
}

/// A host that hears the group and may send to it.
fn listener() -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
        .bind(&SocketAddrV4::new(ssdp::GROUP, ssdp::PORT).into())
        .unwrap();
    socket
        .join_multicast_v4(&ssdp::GROUP, &Ipv4Addr::LOCALHOST)
        .unwrap();
    UdpSocket::from_std(socket.into()).unwrap()
}

async fn host(last: u8) -> UdpSocket {
    let addr = Ipv4Addr::new(127, 0, 0, last);
    let socket = UdpSocket::bind((addr, 0)).await.unwrap();
    socket2::SockRef::from(&socket)
        .set_multicast_if_v4(&addr)
        .unwrap();
    socket
}

/// The next message of the device. The last digits of its parts' identities differ.
async fn next(socket: &UdpSocket, uuid: &str) -> String {
    let mut buffer = [0; 2048];
    let wait = async {
        loop {
            let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if message.contains(&uuid[..34]) {
                return message;
            }
        }
    };
    timeout(SOON, wait).await.expect("a message soon")
}

#[tokio::test]
async fn announces_goodbye_then_twice_alive_then_goodbye() {
    let group = listener();
    let device = Device::start(17);
    // 3 for the root, 2 for each of 2 embedded devices, 4 services: once goodbye, twice alive.
    let mut kinds = BTreeMap::new();
    let mut order = Vec::new();
    for _ in 0..33 {
        let message = next(&group, &device.uuid).await;
        let nts = message
            .lines()
            .find_map(|l| l.strip_prefix("NTS: ssdp:"))
            .unwrap()
            .to_owned();
        let located = message.contains("LOCATION: http://127.0.0.17:5000/igd2/desc.xml\r\n");
        assert_eq!(located, nts == "alive", "{message}");
        assert!(message.contains("BOOTID.UPNP.ORG: 7\r\n"), "{message}");
        *kinds.entry(nts.clone()).or_insert(0) += 1;
        order.push(nts);
    }
    assert_eq!(
        kinds,
        BTreeMap::from([("byebye".to_owned(), 11), ("alive".to_owned(), 22)])
    );
    assert!(order[..11].iter().all(|nts| nts == "byebye"));
    drop(device.stop);
    timeout(SOON, device.running)
        .await
        .expect("ends soon")
        .unwrap();
    for _ in 0..11 {
        let message = next(&group, &device.uuid).await;
        assert!(message.contains("NTS: ssdp:byebye\r\n"), "{message}");
    }
}

/// SSDP-007: with another number all is said again, and nobody is told that the device has gone.
#[tokio::test]
async fn another_boot_id_is_announced_at_once_and_answered_with() {
    let group = listener();
    let device = Device::start(37);
    for _ in 0..33 {
        next(&group, &device.uuid).await;
    }
    device.boot_ids.send_replace(9);
    for _ in 0..22 {
        let message = next(&group, &device.uuid).await;
        assert!(message.contains("NTS: ssdp:alive\r\n"), "{message}");
        assert!(message.contains("BOOTID.UPNP.ORG: 9\r\n"), "{message}");
    }
    let host = host(38).await;
    let unicast = SocketAddrV4::new(device.addr, ssdp::PORT);
    host.send_to(SEARCH.as_bytes(), unicast).await.unwrap();
    let answer = next(&host, &device.uuid).await;
    assert!(answer.contains("BOOTID.UPNP.ORG: 9\r\n"), "{answer}");
}

/// A control point that is answered first and then hears the goodbye of an earlier life would take the gateway for gone.
#[tokio::test]
async fn nobody_is_answered_before_the_goodbye_of_an_earlier_life() {
    let group = listener();
    let host = host(42).await;
    let unicast = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 41), ssdp::PORT);
    let device = Device::start(41);
    host.send_to(SEARCH.as_bytes(), unicast).await.unwrap();
    next(&host, &device.uuid).await;
    // What the kernel has by now, whether or not the runtime has noticed.
    let mut heard = Vec::new();
    let mut buffer = [0; 2048];
    let group = socket2::SockRef::from(&group);
    while let Ok(length) = (&*group).read(&mut buffer) {
        let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
        if message.contains(&device.uuid[..34]) {
            heard.push(message);
        }
    }
    let goodbyes = heard.iter().filter(|m| m.contains("ssdp:byebye")).count();
    assert_eq!(goodbyes, 11, "{heard:?}");
}

#[test]
fn announcements_are_renewed_at_random_before_half_of_their_validity() {
    let mut rng = StdRng::seed_from_u64(3);
    let max_age = Duration::from_secs(1800);
    let waits: Vec<_> = (0..200).map(|_| until_renewal(max_age, &mut rng)).collect();
    assert!(waits.iter().all(|wait| *wait < max_age / 2));
    let spread = *waits.iter().max().unwrap() - *waits.iter().min().unwrap();
    assert!(spread > max_age / 5, "they differ by {spread:?} only");
}

#[tokio::test]
async fn answers_hosts_of_the_link_by_unicast_and_multicast() {
    let device = Device::start(21);
    let host = host(22).await;
    let group = SocketAddrV4::new(ssdp::GROUP, ssdp::PORT);
    let unicast = SocketAddrV4::new(device.addr, ssdp::PORT);
    for (to, version) in [(unicast, 1), (unicast, 2), (group, 1)] {
        let search = SEARCH.replace("Device:1", &format!("Device:{version}"));
        host.send_to(search.as_bytes(), to).await.unwrap();
        let answer = next(&host, &device.uuid).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let location = format!("LOCATION: http://127.0.0.21:5000/igd{version}/desc.xml\r\n");
        assert!(answer.contains(&location), "{answer}");
    }
}

#[tokio::test]
async fn searches_from_elsewhere_and_nonsense_are_not_answered() {
    let device = Device::start(25);
    let unicast = SocketAddrV4::new(device.addr, ssdp::PORT);
    let stranger = host(40).await;
    stranger.send_to(SEARCH.as_bytes(), unicast).await.unwrap();
    let host = host(26).await;
    for nonsense in [
        &b""[..],
        b"\0\xff",
        &[b'M'; 3000],
        b"M-SEARCH * HTTP/1.1\r\n\r\n",
    ] {
        host.send_to(nonsense, unicast).await.unwrap();
    }
    // What came before this search has been looked at when it is answered.
    host.send_to(SEARCH.as_bytes(), unicast).await.unwrap();
    next(&host, &device.uuid).await;
    assert!(is_empty(&stranger), "an answer to a stranger");
    assert!(is_empty(&host), "more than one answer");
}

/// Asks the kernel itself: the runtime may not have noticed yet what has arrived.
fn is_empty(socket: &UdpSocket) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 16];
    let received = socket2::SockRef::from(socket).recv(&mut buffer);
    received.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
