//! The forms in which requests come, and what is answered to those that are none.

use super::*;

/// What comes for octets that are sent as they are; `{host}` in them stands for the server's address.
fn answered(server: &Server, request: &str) -> String {
    server.raw(&request.replace("{host}", &server.address.to_string()))
}

fn call(fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {CONTROL} HTTP/1.1\r\nHost: {{host}}\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
    )
}

#[test]
fn lines_end_as_they_like_and_names_have_any_case() {
    let server = Server::start(limits());
    let usual = call(ACTION, ADD);
    let (head, body) = usual.split_once("\r\n\r\n").unwrap();
    let bare = format!("{}\n\n{body}", head.replace("\r\n", "\n"));
    let early = format!("\r\n\r\n{usual}");
    let mut lower = String::new();
    for (number, line) in head.split("\r\n").enumerate() {
        match line.split_once(':').filter(|_| number > 0) {
            Some((name, value)) => lower += &format!("{}:{value}\r\n", name.to_lowercase()),
            None => lower += &format!("{line}\r\n"),
        }
    }
    let lower = format!("{lower}\r\n{body}");
    let absolute = usual.replace(CONTROL, &format!("http://{{host}}{CONTROL}"));
    let old = usual
        .replace("HTTP/1.1", "HTTP/1.0")
        .replace("Host: {host}\r\n", "");
    let nameless = usual.replace("Host: {host}\r\n", "");
    for request in [&usual, &bare, &early, &lower, &absolute, &old, &nameless] {
        let answer = answered(&server, request);
        assert_eq!(status(&answer), "200", "{request}\n{answer}");
        assert!(
            answer.ends_with("Envelope>\n") || answer.ends_with("Envelope>"),
            "{answer}"
        );
    }
    let elsewhere = usual.replace(CONTROL, &format!("http://192.0.2.7{CONTROL}"));
    assert_eq!(status(&answered(&server, &elsewhere)), "403");
}

#[test]
fn a_body_is_read_whatever_is_said_of_it_unless_a_web_page_could_have_sent_it() {
    let server = Server::start(limits());
    for (fields, expected) in [
        ("Content-Type: text/xml; charset=\"utf-8\"\r\n", "200"),
        ("Content-Type: text/xml; charset=ISO-8859-1\r\n", "200"),
        ("Content-Type: application/soap+xml\r\n", "200"),
        ("Content-Type: application/octet-stream\r\n", "200"),
        ("Content-Type: \r\n", "200"),
        ("Content-Type: text/html\r\n", "200"),
        ("Content-Type: text/plain\r\n", "415"),
        ("Content-Type: Text/Plain; charset=utf-8\r\n", "415"),
        ("Content-Type: application/x-www-form-urlencoded\r\n", "415"),
        ("Content-Type: multipart/form-data; boundary=x\r\n", "415"),
    ] {
        let answer = answered(&server, &call(fields, ADD));
        assert_eq!(status(&answer), expected, "{fields}\n{answer}");
        // No page can add this, and curl says "form" of everything.
        let answer = answered(&server, &call(&format!("{ACTION}{fields}"), ADD));
        assert_eq!(status(&answer), "200", "{fields}\n{answer}");
    }
    let marked = format!("\u{feff}{ADD}\0");
    assert_eq!(status(&answered(&server, &call("", &marked))), "200");
}

#[test]
fn a_body_without_an_end_is_a_411() {
    let server = Server::start(limits());
    for version in ["1.0", "1.1"] {
        // What follows is not taken for the next request.
        let answer = answered(
            &server,
            &format!("POST {CONTROL} HTTP/{version}\r\nHost: {{host}}\r\n{ACTION}\r\n{ADD}"),
        );
        assert_eq!(status(&answer), "411", "{answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer}");
    }
}

#[test]
fn who_waits_for_a_100_gets_one_only_if_the_body_is_wanted() {
    let server = Server::start(limits());
    let mut stream = server.connect();
    let head = |length: usize| {
        format!(
            "POST {CONTROL} HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n{ACTION}\r\n"
        )
    };
    stream.write_all(head(ADD.len()).as_bytes()).unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(ADD.as_bytes()).unwrap();
    let mut second = [0; 12];
    stream.read_exact(&mut second).unwrap();
    assert_eq!(&second, b"HTTP/1.1 200");
    let refused = server.raw(&head(MAX_BODY + 1));
    assert_eq!(status(&refused), "413", "{refused}");
}

#[test]
fn what_is_no_request_of_http_1_gets_a_status_and_an_end() {
    let server = Server::start(limits());
    let lengths = |fields: &str| format!("POST {CONTROL} HTTP/1.1\r\n{fields}\r\n{ADD}");
    for (request, expected) in [
        (lengths("Content-Length: -1\r\n"), &["400"][..]),
        (lengths("Content-Length: +7\r\n"), &["400"]),
        (lengths("Content-Length: 0x10\r\n"), &["400"]),
        (
            lengths("Content-Length: 99999999999999999999\r\n"),
            &["400", "413"],
        ),
        (
            lengths("Content-Length: 5\r\nContent-Length: 6\r\n"),
            &["400"],
        ),
        (lengths("Transfer-Encoding: gzip\r\n"), &["400", "501"]),
        (
            lengths("Transfer-Encoding: chunked, gzip\r\n"),
            &["400", "501"],
        ),
        (lengths("Transfer-Encoding: chunked\r\n"), &["400"]),
        (lengths("X: a\r\n b\r\n"), &["400"]),
        (lengths("X\0: a\r\n"), &["400"]),
        (lengths("X : a\r\n"), &["400"]),
        (lengths(": a\r\n"), &["400"]),
        ("GET /\r\n\r\n".to_owned(), &["400"]),
        ("GET / HTTP/1.9\r\n\r\n".to_owned(), &["400", "505"]),
        ("GET / HTTP/2.0\r\n\r\n".to_owned(), &["400", "505"]),
        (
            "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".to_owned(),
            &["400"],
        ),
        (
            "CONNECT 192.0.2.1:80 HTTP/1.1\r\n\r\n".to_owned(),
            &["400", "403", "404", "405"],
        ),
        (
            "OPTIONS * HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            &["404", "405"],
        ),
        (
            "TRACE / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            &["405"],
        ),
        (
            "get /igd1/desc.xml HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            &["405"],
        ),
        (
            "GET /../igd1/desc.xml HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            &["404"],
        ),
        (
            "GET http://@/ HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            &["400", "403"],
        ),
    ] {
        let answer = server.raw(&request);
        assert!(expected.contains(&status(&answer)), "{request:?}\n{answer}");
        assert_eq!(
            answer.matches("HTTP/1.").count(),
            1,
            "{request:?}\n{answer}"
        );
    }
    // A body with two ends is none of either, or ends the connection (RFC 9112 section 6.1).
    let smuggled = format!(
        "POST {CONTROL} HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /igd1/desc.xml HTTP/1.1\r\nConnection: close\r\n\r\n"
    );
    let answer = server.raw(&smuggled);
    assert_eq!(status(&answer), "400", "{answer}");
    assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer}");
    // Whoever speaks HTTP/2 would not understand an answer of HTTP/1.
    assert_eq!(server.raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "");
    // And the server is still there.
    assert_eq!(status(&server.raw("GET / HTTP/1.0\r\n\r\n")), "200");
}
