use proptest::prelude::*;

use super::*;

type Headers<'a> = &'a [(&'static str, &'a str)];

fn find<'a>(headers: Headers<'a>) -> impl Fn(&str) -> Option<&'a [u8]> {
    move |name| {
        let found = headers.iter().find(|(found, _)| *found == name);
        found.map(|(_, value)| value.as_bytes())
    }
}

fn subscribe(headers: Headers<'_>) -> Result<Request, RequestError> {
    Request::subscribe(find(headers))
}

fn callbacks(value: &str) -> Vec<String> {
    match subscribe(&[("nt", "upnp:event"), ("callback", value)]) {
        Ok(Request::Subscribe { callbacks, .. }) => {
            callbacks.iter().map(ToString::to_string).collect()
        }
        Ok(other) => panic!("{other:?}"),
        Err(RequestError::Callback) => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

const SID: &str = "uuid:01234567-89ab-4def-8123-456789abcdef";

#[test]
fn the_three_requests() {
    let one = subscribe(&[
        ("callback", "<http://192.168.1.10:8058/evt?x=1>"),
        ("nt", "upnp:event"),
        ("timeout", "Second-3600"),
    ]);
    let callback = Callback {
        to: "192.168.1.10:8058".parse().unwrap(),
        path: "/evt?x=1".to_owned(),
    };
    assert_eq!(
        one,
        Ok(Request::Subscribe {
            callbacks: vec![callback],
            timeout: Timeout::Seconds(3600)
        })
    );
    let Ok(Request::Renew { sid, timeout }) = subscribe(&[("sid", SID)]) else {
        panic!("no renewal");
    };
    assert_eq!((sid.to_string().as_str(), timeout), (SID, Timeout::Unsaid));
    let end = Request::unsubscribe(find(&[("sid", SID)]));
    assert_eq!(end, Ok(Request::Unsubscribe { sid }));
}

#[test]
fn each_mistake_has_its_status() {
    let url = "<http://192.168.1.10/>";
    for (headers, status) in [
        (&[("sid", SID), ("nt", "upnp:event")][..], 400),
        (&[("sid", SID), ("callback", url)], 400),
        (&[("sid", "nonsense"), ("callback", url)], 400),
        (&[("callback", url)], 412),
        (&[("callback", url), ("nt", "upnp:rootdevice")], 412),
        (&[("nt", "upnp:event")], 412),
        (&[("nt", "upnp:event"), ("callback", "")], 412),
        (
            &[("nt", "upnp:event"), ("callback", "http://192.168.1.10/")],
            412,
        ),
        (&[("sid", "")], 412),
        (&[("sid", "01234567-89ab-4def-8123-456789abcdef")], 412),
        (&[], 412),
    ] {
        let error = subscribe(headers).unwrap_err();
        assert_eq!(error.status(), status, "{headers:?}");
    }
    for (headers, status) in [
        (&[("sid", SID), ("nt", "upnp:event")][..], 400),
        (&[], 412),
        (&[("sid", "uuid:x")], 412),
    ] {
        let error = Request::unsubscribe(find(headers)).unwrap_err();
        assert_eq!(error.status(), status, "{headers:?}");
    }
}

#[test]
fn callbacks_are_literals_of_http_and_nothing_else() {
    for (value, expected) in [
        ("<http://192.168.1.10>", "http://192.168.1.10:80/"),
        ("<HTTP://192.168.1.10:1>", "http://192.168.1.10:1/"),
        ("< http://192.168.1.10:1/a >", "http://192.168.1.10:1/a"),
        ("<http://192.168.1.10:1?q>", "http://192.168.1.10:1/?q"),
        ("<http://192.168.1.10:1/a#f>", "http://192.168.1.10:1/a"),
        ("<http://[fe80::1]/>", "http://[fe80::1]:80/"),
        ("<http://[FE80:0::1%25eth0]:1/a>", "http://[fe80::1]:1/a"),
        ("<http://[2a0b::1%3]:1>", "http://[2a0b::1]:1/"),
    ] {
        assert_eq!(callbacks(value), [expected], "{value}");
    }
    for value in [
        "<https://192.168.1.10/>",
        "<http://console/>",
        "<http://192.168.1/>",
        "<http://0xc0a8010a/>",
        "<http://192.168.001.010/>",
        "<http://3232235786/>",
        "<http://192.168.1.10:0/>",
        "<http://192.168.1.10:65536/>",
        "<http://192.168.1.10:+80/>",
        "<http://192.168.1.10:/>",
        "<http://192.168.1.10:80:80/>",
        "<http://user@192.168.1.10/>",
        "<http://192.168.1.10:80@8.8.8.8/>",
        "<http://fe80::1/>",
        "<http://[fe80::1/>",
        "<http://[fe80::1]80/>",
        "<http://[fe80::1]:/>",
        "<http://[fe80::1]:0/>",
        "<http://[fe80::1]:80@8.8.8.8/>",
        "<http://[192.168.1.10]/>",
        "<http://[console]/>",
        "<http://192.168.1.10/a b>",
        "<http://192.168.1.10/\u{e9}>",
        "<http://192.168.1.10/",
        "<//192.168.1.10/>",
        "<>",
    ] {
        assert_eq!(callbacks(value), [""; 0], "{value}");
    }
    let long = format!("<http://192.168.1.10/{}>", "a".repeat(MAX_URL));
    assert_eq!(callbacks(&long), [""; 0]);
}

#[test]
fn several_urls_keep_their_order_and_are_bounded() {
    assert_eq!(
        callbacks("<http://10.0.0.1/a><ftp://x/> <http://10.0.0.2/b>"),
        ["http://10.0.0.1:80/a", "http://10.0.0.2:80/b"]
    );
    let many: String = (1..=9).map(|n| format!("<http://10.0.0.{n}/>")).collect();
    assert_eq!(callbacks(&many).len(), MAX_URLS);
    let much = format!("<http://10.0.0.1/>{}", " ".repeat(MAX_CALLBACK));
    assert_eq!(callbacks(&much), [""; 0]);
}

#[test]
fn timeouts_in_every_form() {
    for (value, expected) in [
        ("Second-1800", Timeout::Seconds(1800)),
        ("second-0", Timeout::Seconds(0)),
        ("Second-infinite", Timeout::Infinite),
        ("Second-99999999999", Timeout::Infinite),
        ("infinite", Timeout::Unsaid),
        ("Second--5", Timeout::Unsaid),
        ("Second-", Timeout::Unsaid),
        ("Minute-5", Timeout::Unsaid),
        ("", Timeout::Unsaid),
    ] {
        assert_eq!(Timeout::decode(value.as_bytes()), expected, "{value}");
    }
}

#[test]
fn a_message_to_the_letter() {
    let callback = Callback {
        to: "192.168.1.10:8058".parse().unwrap(),
        path: "/evt".to_owned(),
    };
    let body = property_set([("ExternalIPAddress", "11.22.33.1"), ("X", "<&>")]);
    let message = encode_notify(&callback, Sid::decode(SID.as_bytes()).unwrap(), 7, &body);
    let expected = format!(
        "NOTIFY /evt HTTP/1.1\r\nHOST: 192.168.1.10:8058\r\n\
         CONTENT-TYPE: text/xml; charset=\"utf-8\"\r\nCONTENT-LENGTH: {}\r\nNT: upnp:event\r\n\
         NTS: upnp:propchange\r\nSID: {SID}\r\nSEQ: 7\r\nCONNECTION: close\r\n\r\n\
         <?xml version=\"1.0\"?>\n<e:propertyset xmlns:e=\"urn:schemas-upnp-org:event-1-0\">\
         <e:property><ExternalIPAddress>11.22.33.1</ExternalIPAddress></e:property>\
         <e:property><X>&lt;&amp;&gt;</X></e:property></e:propertyset>\n",
        body.len()
    );
    assert_eq!(String::from_utf8(message).unwrap(), expected);
}

#[test]
fn the_status_of_an_answer_is_read_as_it_comes() {
    let whole = b"HTTP/1.0 200 OK\r\nX: y\r\n";
    for end in 0..16 {
        assert_eq!(answer(&whole[..end]), Answer::Incomplete, "{end}");
    }
    assert_eq!(answer(whole), Answer::Status(200));
    assert_eq!(answer(b"HTTP/1.1 412\n"), Answer::Status(412));
    for nonsense in [&b"SSH-2.0\r\n"[..], b"HTTP/1.1 \r\n", b"HTTP/1.1 9 x\r\n"] {
        assert_eq!(answer(nonsense), Answer::Nonsense);
    }
    let endless = format!("HTTP/1.1 {}", "2".repeat(MAX_STATUS_LINE));
    assert_eq!(answer(endless.as_bytes()), Answer::Nonsense);
}

fn octets() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        // What looks like one, so that the depths are reached.
        "(<?(http|HTTP|ftp)://[0-9.a@:\\[\\]]{0,20}[/?#]?[ -~]{0,20}>? ?){0,6}"
            .prop_map(String::into_bytes),
        "(uuid:|UUID:|)[0-9a-f-]{30,40}".prop_map(String::into_bytes),
    ]
}

proptest! {
    /// Whatever the headers are: a request or an error, and every URL kept can be written into a message of one request
    /// line and read back as itself.
    #[test]
    fn any_header_is_survived(
        nt in prop::option::of(prop_oneof![octets(), Just(b"upnp:event".to_vec())]),
        callback in prop::option::of(octets()),
        sid in prop::option::of(octets()),
        timeout in prop::option::of(octets()),
    ) {
        let header = |name: &str| match name {
            "nt" => nt.as_deref(),
            "callback" => callback.as_deref(),
            "sid" => sid.as_deref(),
            "timeout" => timeout.as_deref(),
            _ => None,
        };
        let _end = Request::unsubscribe(header);
        match Request::subscribe(header) {
            Ok(Request::Subscribe { callbacks, .. }) => {
                prop_assert!((1..=MAX_URLS).contains(&callbacks.len()));
                for callback in callbacks {
                    let text = format!("<{callback}>");
                    prop_assert_eq!(Callback::decode(text.as_bytes()), [callback.clone()]);
                    let message = encode_notify(&callback, Sid::new([0; 16]), 0, "");
                    let message = String::from_utf8(message).expect("ASCII");
                    prop_assert_eq!(message.split("\r\n").count(), 11);
                    let words = message.split("\r\n").next().unwrap_or_default().split(' ').count();
                    prop_assert_eq!(words, 3);
                }
            }
            Ok(Request::Renew { sid: read, .. }) => {
                prop_assert!(nt.is_none() && callback.is_none());
                prop_assert_eq!(Sid::decode(read.to_string().as_bytes()), Some(read));
            }
            Ok(Request::Unsubscribe { .. }) => prop_assert!(false),
            Err(error) => prop_assert!(matches!(error.status(), 400 | 412)),
        }
    }

    #[test]
    fn any_answer_is_survived(received in prop::collection::vec(any::<u8>(), 0..600)) {
        let _status = answer(&received);
    }
}
