//! What a host may take, and what becomes of it beyond that.

use std::io::ErrorKind;
use std::net::Shutdown;

use super::*;

/// More than a busy machine keeps a client waiting between connecting and asking.
const SHORT: Duration = Duration::from_secs(1);
/// Enough for whatever is to happen at once.
const SOON: Duration = Duration::from_secs(5);

fn short() -> Times {
    Times {
        head: SHORT,
        body: SHORT,
        take: SHORT,
        connection: SOON,
    }
}

fn quick() -> Server {
    Server::start_with(limits(), short(), Ipv4Addr::LOCALHOST.into(), 8)
}

/// What comes until the server closes. It must within the client's read timeout.
fn rest(stream: &mut StdStream) -> String {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8(answer).unwrap()
}

fn is_served(stream: &mut StdStream) -> bool {
    let asked = stream.write_all(b"HEAD / HTTP/1.1\r\n\r\n");
    let got = asked.and_then(|()| stream.read(&mut [0; 512]));
    got.is_ok_and(|got| got > 0)
}

#[test]
fn chunks_are_limited_as_well() {
    let server = Server::start(limits());
    let chunk = format!("{:x}\r\n{}\r\n", 8192, "x".repeat(8192)).repeat(9);
    let answer = server.raw(&format!(
        "POST {CONTROL} HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"
    ));
    assert_eq!(status(&answer), "413", "{answer}");
}

#[test]
fn the_newest_connections_of_a_host_stay_and_the_others_make_room() {
    let server = Server::start(HttpConfig {
        max_connections_per_host: 2,
        ..limits()
    });
    let mut held = [server.connect(), server.connect()];
    for stream in &mut held {
        assert!(is_served(stream));
    }
    let [mut first, mut second] = held;
    assert!(is_served(&mut first), "the second has waited longer now");
    let mut third = server.connect();
    assert!(is_served(&mut third));
    assert_eq!(rest(&mut second), "");
    assert!(is_served(&mut first));
    assert!(is_served(&mut third));
    server.counts("http_made_room", 1);
    server.counts("http_full", 0);
}

/// As many as there are places, none of which asks for anything, and as many requests.
#[test]
fn connections_that_do_nothing_keep_nobody_out() {
    let server = Server::start(limits());
    let _idle: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for _ in 0..8 {
        assert_eq!(status(&server.raw("GET / HTTP/1.0\r\n\r\n")), "200");
    }
}

#[test]
fn calls_that_are_being_answered_are_not_cut_for_others() {
    let server = Server::start(HttpConfig {
        max_connections_per_host: 2,
        ..limits()
    });
    let slow = ADD.replace("GetExternalIPAddress", "Wait");
    let request = format!(
        "POST {CONTROL} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{slow}",
        slow.len()
    );
    let mut waiting = [server.connect(), server.connect()];
    for stream in &mut waiting {
        stream.write_all(request.as_bytes()).unwrap();
    }
    let begun = std::time::Instant::now();
    while server.waiting.calls.load(Ordering::SeqCst) < 2 {
        assert!(begun.elapsed() < SOON, "the calls do not arrive");
        std::thread::yield_now();
    }
    assert_eq!(server.raw("GET / HTTP/1.0\r\n\r\n"), "");
    server.counts("http_full", 1);
    server.waiting.go_on.notify_waiters();
    for mut stream in waiting {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
}

#[test]
fn a_slow_head_ends_the_connection() {
    let server = quick();
    for begun in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: 127.0"] {
        let mut stream = server.connect();
        stream.write_all(begun.as_bytes()).unwrap();
        let answer = rest(&mut stream);
        assert!(["none", "408"].contains(&status(&answer)), "{answer}");
    }
    server.counts("http_timed_out", 3);
}

/// One octet at a time, each long before the time is over: it is the head that has a time, not the octet.
#[test]
fn octets_that_drip_do_not_make_a_head_last() {
    let server = quick();
    let mut stream = server.connect();
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let mut drips = 0;
    let ended = b"GET / HTTP/1.1\r\nX: "
        .iter()
        .chain(std::iter::repeat(&b'x'))
        .take(200)
        .any(|octet| {
            drips += 1;
            let sent = stream.write_all(&[*octet]);
            let got = sent.and_then(|()| stream.read(&mut [0; 64]));
            !got.is_err_and(|error| {
                matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
            })
        });
    assert!(ended, "still there after {drips} octets");
}

#[test]
fn an_idle_connection_ends() {
    let server = quick();
    let mut stream = server.connect();
    stream.write_all(b"GET /nothing HTTP/1.1\r\n\r\n").unwrap();
    let answer = rest(&mut stream);
    assert_eq!(status(&answer), "404");
    server.counts("http_bad_requests", 1);
}

#[test]
fn a_slow_body_is_a_408_and_a_short_one_no_call() {
    let server = quick();
    let head = format!("POST {CONTROL} HTTP/1.1\r\nHost: {}\r\n", server.address);
    for begun in [
        format!("{head}Content-Length: 2000\r\n\r\n<s:Envelope"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n4\r\n<s:E\r\n"),
    ] {
        let mut stream = server.connect();
        stream.write_all(begun.as_bytes()).unwrap();
        let answer = rest(&mut stream);
        assert_eq!(status(&answer), "408", "{answer}");
        let mut stream = server.connect();
        stream.write_all(begun.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = rest(&mut stream);
        assert!(["none", "400"].contains(&status(&answer)), "{answer}");
    }
    server.counts("http_slow_body", 2);
}

#[test]
fn whoever_does_not_take_answers_is_reset() {
    let server = quick();
    let mut stream = server.connect();
    socket2::SockRef::from(&stream)
        .set_recv_buffer_size(2048)
        .unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    let request = b"GET /igd1/desc.xml HTTP/1.1\r\n\r\n";
    // More than all buffers on the way hold, and the server reads no next request before an answer is taken.
    let stuck = (0..10_000_000).find_map(|_| stream.write_all(request).err());
    let stuck = stuck.expect("the server took everything").kind();
    assert!(
        matches!(stuck, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{stuck}"
    );
    server.counts("http_timed_out", 1);
}

/// A refusal arrives, although most of what it refuses has not been read.
#[test]
fn a_refusal_is_not_lost_in_a_reset() {
    let server = Server::start(limits());
    let head = format!("POST {CONTROL} HTTP/1.1\r\nContent-Length: 200000\r\n\r\n");
    for _ in 0..10 {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&[b'x'; 200_000]).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(status(&String::from_utf8(answer).unwrap()), "413");
    }
    server.counts("http_too_large", 10);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let server = Server::start(limits());
    let one = format!(
        "POST {CONTROL} HTTP/1.1\r\n{ACTION}Content-Length: {}\r\n\r\n{ADD}",
        ADD.len()
    );
    let all = format!(
        "{one}GET /nothing HTTP/1.1\r\n\r\n{one}HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n"
    );
    let answers = server.raw(&all);
    let statuses: Vec<_> = answers
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| status(&answers[at..]))
        .collect();
    assert_eq!(statuses, ["200", "404", "200", "200"], "{answers}");
}

#[test]
fn header_lines_have_a_number_and_heads_a_size() {
    let server = Server::start(limits());
    let lines = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
    let first =
        |request: &str| server.raw(&request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    assert_eq!(status(&first(&lines(MAX_HEADERS - 1))), "200");
    assert_eq!(status(&server.raw(&lines(MAX_HEADERS + 1))), "431");
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MAX_HEAD));
    let answer = server.raw(&long);
    assert!(["414", "431"].contains(&status(&answer)), "{answer}");
    server.counts("http_too_large", 2);
}
