//! Responses and faults.

use super::{ActionResult, Call, UpnpError};
use crate::wire::clients::InnerDocument;
use crate::wire::xml::Document;

/// An answer ready for HTTP; its content type is `text/xml; charset="utf-8"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status: 200 for a response, 500 for a fault.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// The out argument that is a document itself (WANIPConnection:2 section 2.5.21).
const INNER_DOCUMENT: &str = "NewPortListing";

/// The answer to a call; `inner` is how its caller reads a document in it.
pub fn encode_reply(call: &Call, result: &ActionResult, inner: InnerDocument) -> Reply {
    match result {
        Ok(args) => Reply {
            status: 200,
            body: response(call, args, inner),
        },
        Err(error) => Reply {
            status: 500,
            body: encode_fault(error),
        },
    }
}

/// The body of a success: the out arguments as given, in the namespace that was called.
pub fn encode_response(call: &Call, args: &[(&'static str, String)]) -> String {
    response(call, args, InnerDocument::Escaped)
}

fn response(call: &Call, args: &[(&'static str, String)], inner: InnerDocument) -> String {
    let name = format!("u:{}Response", call.action);
    envelope(|document| {
        document.open(&name, &[("xmlns:u", &call.urn())]);
        for (name, value) in args {
            if *name == INNER_DOCUMENT && inner == InnerDocument::Cdata {
                document.leaf_cdata(name, value);
            } else {
                document.leaf(name, value);
            }
        }
        document.close(&name);
    })
}

/// The body of a fault.
pub fn encode_fault(error: &UpnpError) -> String {
    envelope(|document| {
        document.open("s:Fault", &[]);
        document.leaf("faultcode", "s:Client");
        document.leaf("faultstring", "UPnPError");
        document.open("detail", &[]);
        document.open(
            "UPnPError",
            &[("xmlns", "urn:schemas-upnp-org:control-1-0")],
        );
        document.leaf("errorCode", &error.code.to_string());
        document.leaf("errorDescription", error.description);
        document.close("UPnPError");
        document.close("detail");
        document.close("s:Fault");
    })
}

fn envelope(body: impl FnOnce(&mut Document)) -> String {
    let mut document = Document::new();
    document.open(
        "s:Envelope",
        &[
            ("xmlns:s", "http://schemas.xmlsoap.org/soap/envelope/"),
            (
                "s:encodingStyle",
                "http://schemas.xmlsoap.org/soap/encoding/",
            ),
        ],
    );
    document.open("s:Body", &[]);
    body(&mut document);
    document.close("s:Body");
    document.close("s:Envelope");
    document.finish()
}
