//! How control points write a request, as a table: each form is sent as octets to a running daemon and has to do what
//! the plain one does. The forms are those seen in the field; what they share is in `body` and `head`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use iwf_tests::cascade;
use iwf_tests::daemon::{Iwfd, Options};
use iwf_tests::igd::Gateway;
use iwf_tests::netns::may_run;
use iwf_tests::topology::{LAN1, Lab};

/// One way to write AddPortMapping. Texts are replaced in the plain request, `{port}` and `{host}` after that.
struct Form {
    /// Who does so, or what it is.
    what: &'static str,
    /// Replacements in the head.
    head: &'static [(&'static str, &'static str)],
    /// Replacements in the body.
    body: &'static [(&'static str, &'static str)],
    /// What is sent beside what Content-Length says.
    length: i32,
}

const PLAIN: Form = Form {
    what: "plain",
    head: &[],
    body: &[],
    length: 0,
};

const HEAD: &str = "POST /igd1/ctl/WANIPConn HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
    Content-Type: text/xml; charset=\"utf-8\"\r\n\
    SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"\r\n\
    Content-Length: {length}\r\n\r\n";
const BODY: &str = "<?xml version=\"1.0\"?>\r\n\
    <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
    s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
    <u:AddPortMapping xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\">\
    <NewRemoteHost></NewRemoteHost><NewExternalPort>{port}</NewExternalPort>\
    <NewProtocol>TCP</NewProtocol><NewInternalPort>{port}</NewInternalPort>\
    <NewInternalClient>192.168.1.10</NewInternalClient><NewEnabled>1</NewEnabled>\
    <NewPortMappingDescription>quirk</NewPortMappingDescription>\
    <NewLeaseDuration>600</NewLeaseDuration></u:AddPortMapping></s:Body></s:Envelope>";

const FORMS: &[Form] = &[
    PLAIN,
    Form {
        what: "HTTP/1.0 without Host",
        head: &[("HTTP/1.1\r\nHost: {host}", "HTTP/1.0")],
        ..PLAIN
    },
    Form {
        what: "line feeds only",
        head: &[("\r\n", "\n")],
        body: &[("\r\n", "\n")],
        ..PLAIN
    },
    Form {
        what: "an empty line first",
        head: &[("POST", "\r\nPOST")],
        ..PLAIN
    },
    Form {
        what: "absolute URI",
        head: &[("POST /", "POST http://{host}/")],
        ..PLAIN
    },
    Form {
        what: "M-POST",
        head: &[
            ("POST", "M-POST"),
            (
                "SOAPAction",
                "Man: \"http://schemas.xmlsoap.org/soap/envelope/\"; ns=01\r\n01-SOAPAction",
            ),
        ],
        ..PLAIN
    },
    Form {
        what: "Expect: 100-continue",
        head: &[("Connection", "Expect: 100-continue\r\nConnection")],
        ..PLAIN
    },
    Form {
        what: "no blank behind the colons",
        head: &[(": ", ":")],
        ..PLAIN
    },
    Form {
        what: "SOAPAction without quotes",
        head: &[("\"urn:", "urn:"), ("Mapping\"", "Mapping")],
        ..PLAIN
    },
    Form {
        what: "SOAPAction in single quotes",
        head: &[("\"urn:", "'urn:"), ("Mapping\"", "Mapping'")],
        ..PLAIN
    },
    Form {
        what: "SOAPAction in lower case",
        head: &[
            ("SOAPAction", "soapaction"),
            (
                "WANIPConnection:1#AddPortMapping",
                "wanipconnection:1#addportmapping",
            ),
        ],
        ..PLAIN
    },
    Form {
        what: "no SOAPAction",
        head: &[(
            "SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"\r\n",
            "",
        )],
        ..PLAIN
    },
    Form {
        what: "version 1 at the service of version 2",
        head: &[("/igd1/", "/igd2/")],
        ..PLAIN
    },
    Form {
        what: "the PPP service",
        head: &[("WANIPConnection:1", "WANPPPConnection:1")],
        body: &[("WANIPConnection:1", "WANPPPConnection:1")],
        ..PLAIN
    },
    Form {
        what: "Content-Length a little too small",
        length: -9,
        ..PLAIN
    },
    Form {
        what: "byte order mark and a NUL behind",
        body: &[("<?xml", "\u{feff}<?xml"), ("Envelope>", "Envelope>\0")],
        ..PLAIN
    },
    Form {
        what: "CDATA",
        body: &[("TCP", "<![CDATA[TCP]]>")],
        ..PLAIN
    },
    Form {
        what: "blanks around numbers",
        body: &[("{port}", " {port}\n")],
        ..PLAIN
    },
    Form {
        what: "data types",
        body: &[(
            "<NewExternalPort>",
            "<NewExternalPort xmlns:dt=\"urn:schemas-microsoft-com:datatypes\" dt:dt=\"ui2\">",
        )],
        ..PLAIN
    },
    Form {
        what: "other prefixes",
        body: &[
            ("<s:", "<SOAP-ENV:"),
            ("</s:", "</SOAP-ENV:"),
            (" s:", " SOAP-ENV:"),
            ("xmlns:s=", "xmlns:SOAP-ENV="),
            ("u:Add", "m:Add"),
            ("xmlns:u", "xmlns:m"),
        ],
        ..PLAIN
    },
    Form {
        what: "prefixed arguments",
        body: &[("<New", "<u:New"), ("</New", "</u:New")],
        ..PLAIN
    },
    Form {
        what: "another order",
        body: &[
            ("<NewProtocol>TCP</NewProtocol>", ""),
            (
                "</u:AddPortMapping>",
                "<NewProtocol>TCP</NewProtocol></u:AddPortMapping>",
            ),
        ],
        ..PLAIN
    },
    Form {
        what: "no RemoteHost",
        body: &[("<NewRemoteHost></NewRemoteHost>", "")],
        ..PLAIN
    },
    Form {
        what: "RemoteHost *",
        body: &[("<NewRemoteHost>", "<NewRemoteHost>*")],
        ..PLAIN
    },
    Form {
        what: "RemoteHost 0.0.0.0",
        body: &[("<NewRemoteHost>", "<NewRemoteHost>0.0.0.0")],
        ..PLAIN
    },
    Form {
        what: "lease 0",
        body: &[(">600<", ">0<")],
        ..PLAIN
    },
    Form {
        what: "empty lease",
        body: &[(">600<", "><")],
        ..PLAIN
    },
    Form {
        what: "no lease",
        body: &[("<NewLeaseDuration>600</NewLeaseDuration>", "")],
        ..PLAIN
    },
    Form {
        what: "a lease without end, as version 1 has it",
        body: &[(">600<", ">4294967295<")],
        ..PLAIN
    },
    Form {
        what: "InternalClient empty: the sender",
        body: &[("192.168.1.10", "")],
        ..PLAIN
    },
    Form {
        what: "a description with a bare ampersand, as miniupnpc sends it",
        body: &[(">quirk<", ">quirk & more<")],
        ..PLAIN
    },
    Form {
        what: "enabled as a word",
        body: &[("<NewEnabled>1", "<NewEnabled>true")],
        ..PLAIN
    },
];

fn replace(text: &str, replacements: &[(&str, &str)]) -> Result<String> {
    let mut text = text.to_owned();
    for (from, to) in replacements {
        ensure!(text.contains(from), "nothing to replace: {from:?}");
        text = text.replace(from, to);
    }
    Ok(text)
}

/// A daemon that asks nobody upstream.
pub(super) fn alone() -> Result<(Lab, Iwfd, Gateway)> {
    let lab = Lab::new()?;
    let options = Options {
        mode: "local",
        pcp_servers: Vec::new(),
        ..Options::default()
    };
    let iwfd = Iwfd::start(&lab, &options)?;
    let gateway = Gateway::discover(&lab.lan1)?;
    Ok((lab, iwfd, gateway))
}

#[test]
fn every_form_of_a_request_opens_its_port() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let (_lab, iwfd, gateway) = alone()?;
    let host = gateway.address().to_string();
    let mut expected = BTreeSet::new();
    for (form, port) in FORMS.iter().zip(6001..) {
        let form_of = |problem| format!("{}: {problem}", form.what);
        let body = replace(BODY, form.body).with_context(|| form_of("body"))?;
        let body = body.replace("{port}", &port.to_string());
        let length = i32::try_from(body.len())? + form.length;
        let head = replace(HEAD, form.head).with_context(|| form_of("head"))?;
        let head = head
            .replace("{host}", &host)
            .replace("{length}", &length.to_string());
        let answer = gateway
            .raw(format!("{head}{body}").as_bytes())
            .with_context(|| form_of("no answer"))?;
        let is_ok = answer.text.contains("AddPortMappingResponse");
        ensure!(is_ok, "{}: {}", form.what, answer.text);
        expected.insert(u64::try_from(port)?);
    }
    let rows = cascade::rows(&iwfd)?;
    let mut open = BTreeSet::new();
    for row in &rows {
        let internal = cascade::endpoint(row, "internal")?;
        ensure!(*internal.ip() == LAN1, "{row}");
        open.insert(u64::from(internal.port()));
    }
    ensure!(open == expected, "open are {open:?}");
    iwfd.ctl().must(&["audit"])?;
    Ok(())
}

/// Stacks that give up at anything of version 2 never see any, by whichever LOCATION they come.
#[test]
fn stacks_of_version_1_never_see_version_2() -> Result<()> {
    if !may_run() {
        return Ok(());
    }
    let (_lab, _iwfd, gateway) = alone()?;
    let get = |path: &str, agent: &str| -> Result<String> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n",
            gateway.address()
        );
        Ok(gateway.raw(request.as_bytes())?.ok()?.text)
    };
    let of_version_2 = [
        "InternetGatewayDevice:2",
        "WANDevice:2",
        "WANConnectionDevice:2",
        "WANIPConnection:2",
        "AddAnyPortMapping",
        "SystemUpdateID",
        "configId",
        "/igd2/",
    ];
    for agent in [
        "Microsoft-Windows/10.0 UPnP/1.0 Microsoft-UPnP-Device-Host/1.0",
        "FDSSDP",
        "Xbox/2.0.17559.0 UPnP/1.0 Xbox/2.0.17559.0",
    ] {
        for start in ["/igd1/desc.xml", "/igd2/desc.xml"] {
            let description = get(start, agent)?;
            let documents = description
                .split("<SCPDURL>")
                .skip(1)
                .filter_map(|rest| rest.split_once('<'))
                .map(|(path, _)| get(path, agent))
                .collect::<Result<Vec<_>>>()?;
            ensure!(documents.len() == 3, "{description}");
            for document in [description].iter().chain(&documents) {
                for word in of_version_2 {
                    ensure!(!document.contains(word), "{agent} sees {word}: {document}");
                }
            }
        }
    }
    ensure!(get("/igd2/desc.xml", "GUPnP/1.6")?.contains("WANIPConnection:2"));
    Ok(())
}
