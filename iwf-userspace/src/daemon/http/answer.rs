//! From a request to its answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT_LANGUAGE, ALLOW, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName,
    ORIGIN, SERVER, TRANSFER_ENCODING, USER_AGENT,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::super::gena::SubscriptionCall;
use super::{Ends, Fate, MAX_BODY, Names, Site, SoapCall, Turn};
use crate::proto::firewall;
use crate::proto::gena::{At, Host};
use crate::types::access::Channel;
use crate::types::caller::Caller;
use crate::wire::clients;
use crate::wire::description::Route;
use crate::wire::gena::{self, RequestError};
use crate::wire::scpd::Service;
use crate::wire::soap::{self, Call, CallFault, UpnpError};

/// UPnP Device Architecture 1.1 clause 3.2.2: confirms that a mandatory extension was understood.
const EXT: HeaderName = HeaderName::from_static("ext");
const SID: HeaderName = HeaderName::from_static("sid");
const TIMEOUT: HeaderName = HeaderName::from_static("timeout");
/// A request at an event URL waits for nobody but the core.
const SUBSCRIPTION_TIME: Duration = Duration::from_secs(10);
const SOAP_ACTION: &str = "soapaction";
/// What a browser sends for a page of another origin without asking the server first.
const FORMS: [&str; 3] = [
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "text/plain",
];
/// The service of roles and logins.
const PROTECTION: &str = "DeviceProtection";
const XML: HeaderValue = HeaderValue::from_static("text/xml; charset=\"utf-8\"");
/// The language of every description.
const ENGLISH: HeaderValue = HeaderValue::from_static("en");

const PAGE: &str = "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>iwf</title></head>\
<body><h1>iwf</h1><p>This gateway opens ports here and in the provider's NAT. On the gateway, \
<code>iwfctl status</code> and <code>iwfctl mappings</code> show what it does.</p></body></html>\n";

pub(super) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(Html(PAGE)))
        .fallback(documents_and_control)
        .layer(from_fn(own_name_only))
        .layer(from_fn_with_state(Arc::clone(&site), sign))
        .with_state(site)
}

/// Names the server in every answer, and counts.
async fn sign(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    site.counts.add(Fate::Request);
    let mut response = next.run(request).await;
    if let Some(fate) = Fate::of(response.status()) {
        site.counts.add(fate);
    }
    if let Ok(server) = HeaderValue::from_str(&site.server) {
        response.headers_mut().insert(SERVER, server);
    }
    response
}

/// Refuses what a web page on the Internet can make a browser on the LAN send: requests under a name that an
/// attacker's DNS points at us, and requests of a page with another origin. Control points send neither.
async fn own_name_only(request: Request, next: Next) -> Response {
    let Some(&Ends { local, .. }) = request.extensions().get::<Ends>() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let own = |authority: &str| host_of(authority) == Some(local.ip());
    let hosts = request.headers().get_all(HOST).iter();
    let named_otherwise = hosts
        .map(|host| host.to_str().is_ok_and(own))
        .chain(request.uri().authority().map(|a| own(a.as_str())))
        .any(|is_own| !is_own);
    let foreign_page = request.headers().get_all(ORIGIN).iter().any(|origin| {
        let page = origin.to_str().ok().and_then(|o| {
            o.strip_prefix("http://")
                .or_else(|| o.strip_prefix("https://"))
        });
        !page.is_some_and(own)
    });
    if named_otherwise || foreign_page {
        debug!("request under a foreign name or of a foreign page refused");
        return StatusCode::FORBIDDEN.into_response();
    }
    next.run(request).await
}

/// The address that an authority names, if it names one and not a host. A zone, which is the sender's own name of the
/// link and should not have been sent, is not looked at.
fn host_of(authority: &str) -> Option<IpAddr> {
    let authority = authority.trim();
    if let Some(literal) = authority.strip_prefix('[') {
        let (literal, port) = literal.split_once(']')?;
        let is_port = port.is_empty() || port.starts_with(':');
        let (addr, _) = literal.split_once('%').unwrap_or((literal, ""));
        return Some(IpAddr::V6(addr.parse().ok().filter(|_| is_port)?));
    }
    let (host, _) = authority.rsplit_once(':').unwrap_or((authority, ""));
    Some(IpAddr::V4(host.trim().parse().ok()?))
}

/// Who calls. Which other addresses are the host's is asked for when an action may depend on it: its source tells nothing
/// of an address of the other family, or of another scope.
async fn caller(site: &Site, ends: Ends, call: &Call) -> Caller {
    let Ends { peer, ifindex, .. } = ends;
    // The firewall's actions speak of IPv6 addresses.
    if peer.is_ipv4() && !firewall::is_meant_by(call) {
        // The owner's rules may be about its MAC address, and a host has its share of lookups of names.
        let by_mac = matches!(call.action.as_str(), "AddPortMapping" | "AddAnyPortMapping");
        // Logins and introductions are counted by it.
        return if by_mac || call.service == PROTECTION || Names::are_in(call) {
            site.neighbours.caller_alone(ifindex, peer)
        } else {
            peer.into()
        };
    }
    let named = call.arg("InternalClient");
    let named = named.or_else(|| call.arg("NewInternalClient"));
    let named = named.and_then(|addr| addr.trim().parse().ok());
    site.neighbours.caller(ifindex, peer, named).await
}

async fn documents_and_control(State(site): State<Arc<Site>>, request: Request) -> Response {
    let trees = site.description.trees();
    let Some(route) = Route::of(request.uri().path(), trees) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match route {
        Route::Description(_) | Route::Scpd(..) => document(&site, route, &request),
        Route::Control(_, service) => match request.method().as_str() {
            "POST" | "M-POST" => control(&site, service, request).await,
            _ => not_allowed("POST, M-POST"),
        },
        Route::Events(_, service) => match request.method().as_str() {
            "SUBSCRIBE" => {
                let wanted = gena::Request::subscribe(fields(request.headers()));
                subscription(&site, asker(&request), service, wanted).await
            }
            "UNSUBSCRIBE" => {
                let wanted = gena::Request::unsubscribe(fields(request.headers()));
                subscription(&site, asker(&request), service, wanted).await
            }
            _ => not_allowed("SUBSCRIBE, UNSUBSCRIBE"),
        },
    }
}

fn document(site: &Site, route: Route, request: &Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return not_allowed("GET, HEAD");
    }
    let user_agent = text(request.headers(), USER_AGENT.as_str());
    let text = match route {
        Route::Description(tree) => site.description.root(tree.for_user_agent(user_agent)),
        Route::Scpd(tree, service) => site.description.scpd(tree, service),
        Route::Control(..) | Route::Events(..) => return StatusCode::NOT_FOUND.into_response(),
    };
    let mut response = ([(CONTENT_TYPE, XML)], text).into_response();
    // UPnP Device Architecture 1.1 clause 2.11: to whoever names a language, and to nobody else.
    if request.headers().contains_key(ACCEPT_LANGUAGE) {
        response.headers_mut().insert(CONTENT_LANGUAGE, ENGLISH);
    }
    response
}

async fn control(site: &Site, service: &Service, request: Request) -> Response {
    let Some((ends, turn)) = asker(&request) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let channel = request.extensions().get::<Channel>().copied();
    let Ends { peer, .. } = ends;
    let (head, body) = request.into_parts();
    if let Some(status) = not_a_call(&head.headers) {
        return refused(status);
    }
    let body = match read_body(&head.headers, body, site.times.body).await {
        Ok(body) => body,
        Err(status) => return refused(status),
    };
    // Whatever takes time now is not the caller's doing.
    let _serving = turn.ours();
    let mut call = match Call::decode(soap_action(&head.headers), &body, MAX_BODY) {
        Ok(call) => call,
        Err(error) => {
            debug!(%peer, %error, "control request refused");
            return match error.answer() {
                CallFault::ContentTooLarge => refused(StatusCode::PAYLOAD_TOO_LARGE),
                CallFault::BadRequest => refused(StatusCode::BAD_REQUEST),
                CallFault::Upnp(fault) => xml(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    soap::encode_fault(&fault),
                ),
            };
        }
    };
    if call.is_query() && call.service.is_empty() {
        service.kind.clone_into(&mut call.service);
        call.version = service.version;
    }
    let begun = Instant::now();
    let caller = Caller {
        channel: channel.unwrap_or_default(),
        link: Some(ends.ifindex),
        ..caller(site, ends, &call).await
    };
    site.names.resolve(&mut call, &caller).await;
    let waited = begun.elapsed();
    let (reply, answer) = oneshot::channel();
    let question = SoapCall {
        caller,
        call: call.clone(),
        waited,
        reply,
    };
    match site.calls.try_send(question) {
        Ok(()) => {}
        // The queue is the bound; the client may try again.
        Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
            return refused(StatusCode::SERVICE_UNAVAILABLE);
        }
    }
    let result = match timeout(site.answer_time().saturating_sub(waited), answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => return refused(StatusCode::SERVICE_UNAVAILABLE),
        Err(_) => Err(UpnpError::ACTION_FAILED),
    };
    let client = clients::of(text(&head.headers, USER_AGENT.as_str()));
    let reply = soap::encode_reply(&call, &result, client.inner);
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    xml(status, reply.body)
}

/// Who asks, and whose move it is on the connection.
fn asker(request: &Request) -> Option<(Ends, Turn)> {
    let extensions = request.extensions();
    Some((*extensions.get()?, extensions.get::<Turn>()?.clone()))
}

/// How a request is refused whose head says that its body is no call. Most of what control points say there is not looked
/// at: they say what they like. But a body whose end is not told has none, and a page in a browser, which can send the three
/// types of forms anywhere without asking, cannot add a SOAPAction to one.
fn not_a_call(headers: &HeaderMap) -> Option<StatusCode> {
    if !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING) {
        return Some(StatusCode::LENGTH_REQUIRED);
    }
    let form = |value: &str| {
        let (kind, _) = value.split_once(';').unwrap_or((value, ""));
        FORMS
            .iter()
            .any(|form| kind.trim().eq_ignore_ascii_case(form))
    };
    let is_form = text(headers, CONTENT_TYPE.as_str()).is_some_and(form);
    (is_form && soap_action(headers).is_none()).then_some(StatusCode::UNSUPPORTED_MEDIA_TYPE)
}

/// Gives the first header field of a name.
fn fields<'a>(headers: &'a HeaderMap) -> impl Fn(&str) -> Option<&'a [u8]> {
    move |name: &str| headers.get(name).map(HeaderValue::as_bytes)
}

/// UPnP Device Architecture 1.1 clause 4.1.
async fn subscription(
    site: &Site,
    asker: Option<(Ends, Turn)>,
    service: &'static Service,
    wanted: Result<gena::Request, RequestError>,
) -> Response {
    let Some((
        Ends {
            local,
            peer,
            ifindex,
        },
        turn,
    )) = asker
    else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(error) => {
            debug!(%peer, %error, "request at an event URL refused");
            return refused(status(error.status()));
        }
    };
    let _serving = turn.ours();
    let (reply, answer) = oneshot::channel();
    let question = SubscriptionCall {
        service,
        host: subscriber(site, ifindex, peer),
        at: At {
            own: local.ip(),
            interface: ifindex,
        },
        request: wanted,
        reply,
    };
    // The queue is the bound; the client may try again.
    if site.subscriptions.try_send(question).is_err() {
        return refused(StatusCode::SERVICE_UNAVAILABLE);
    }
    match timeout(SUBSCRIPTION_TIME, answer).await {
        Ok(Ok(Ok(Some(granted)))) => {
            let seconds = granted.timeout.as_secs();
            let fields = [
                (SID, granted.sid.to_string()),
                (TIMEOUT, format!("Second-{seconds}")),
            ];
            fields.into_response()
        }
        Ok(Ok(Ok(None))) => StatusCode::OK.into_response(),
        Ok(Ok(Err(refusal))) => {
            debug!(%peer, %refusal, "request at an event URL refused");
            refused(status(refusal.status()))
        }
        Ok(Err(_)) | Err(_) => refused(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// A host has as many addresses as it likes.
fn subscriber(site: &Site, ifindex: u32, peer: IpAddr) -> Host {
    let mac = site.neighbours.caller_alone(ifindex, peer).mac;
    Host { addr: peer, mac }
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

async fn read_body(headers: &HeaderMap, body: Body, within: Duration) -> Result<Bytes, StatusCode> {
    let announced = text(headers, CONTENT_LENGTH.as_str()).and_then(|n| n.parse::<u64>().ok());
    if announced.is_some_and(|n| n > MAX_BODY as u64) {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    match timeout(within, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => {
            let source = std::error::Error::source(&error);
            let too_long = source.is_some_and(|e| e.to_string().contains("length limit"));
            Err(if too_long {
                StatusCode::PAYLOAD_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            })
        }
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

/// SOAPAction, which M-POST carries under a number that its Man header chose (HTTP Extension Framework,
/// RFC 2774).
fn soap_action(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(SOAP_ACTION).or_else(|| {
        headers
            .keys()
            .find(|name| {
                let prefixed = name.as_str().split_once('-');
                prefixed.is_some_and(|(number, rest)| {
                    rest == SOAP_ACTION && number.bytes().all(|b| b.is_ascii_digit())
                })
            })
            .and_then(|name| headers.get(name))
    });
    value.map(HeaderValue::as_bytes)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn xml(status: StatusCode, body: String) -> Response {
    let ext = (EXT, HeaderValue::from_static(""));
    (status, [(CONTENT_TYPE, XML), ext], body).into_response()
}

/// An answer to a request whose body may not have been read to its end.
fn refused(status: StatusCode) -> Response {
    let close = HeaderValue::from_static("close");
    (status, [(axum::http::header::CONNECTION, close)]).into_response()
}

fn not_allowed(methods: &'static str) -> Response {
    let allow = HeaderValue::from_static(methods);
    (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, allow)]).into_response()
}
