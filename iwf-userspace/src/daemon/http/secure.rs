//! The same over TLS (DeviceProtection:1 section 2.1).
//!
//! Nobody certifies control points or this device: each knows the other by its certificate, and that the other has its key
//! is proven by the handshake. So every certificate is taken, and what it may do is decided by whoever is called. Without
//! one a control point is nobody in particular.
//!
//! Bounds are those of plain HTTP, but places of its own, a time for the handshake, and a longer life: who has logged in
//! stays so for as long as the connection.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::open::OpenConnections;
use super::{BODY_TIME, Ends, MAX_HEAD, MAX_HEADERS, Site, answer, ends};
use crate::daemon::config::ProtectionConfig;
use crate::daemon::netstate::LanLink;
use crate::daemon::store::OpenError;
use crate::daemon::store::key::{self, Certificate};
use crate::types::access::{Channel, ControlPointId};

/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long a request head may take, and how long a connection may be idle between requests.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// After this a connection takes no further request.
const CONNECTION_TIME: Duration = Duration::from_secs(600);

/// What every listener over TLS shares.
pub struct Secure {
    acceptor: TlsAcceptor,
    limits: ProtectionConfig,
    places: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    open: OpenConnections,
    closed: mpsc::Sender<u64>,
}

impl std::fmt::Debug for Secure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Secure");
        shown.field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What there has to be before anybody is served: the device's certificate.
#[derive(Debug)]
pub struct Protected {
    identity: Certificate,
    limits: ProtectionConfig,
}

impl Protected {
    /// Reads the certificate of this device, or makes it, if the configuration wants the service.
    ///
    /// # Errors
    /// The file of the certificate cannot be read or written.
    pub fn prepare(
        wanted: Option<ProtectionConfig>,
        state_dir: &Path,
    ) -> Result<Option<Self>, OpenError> {
        let prepare = |limits| {
            let identity = key::load_or_make(state_dir)?;
            Ok(Self { identity, limits })
        };
        wanted.map(prepare).transpose()
    }

    /// What the certificate names the device.
    pub fn id(&self) -> ControlPointId {
        self.identity.id()
    }

    /// TLS with it. See [`Secure::new`].
    ///
    /// # Errors
    /// As for [`Secure::new`].
    pub fn listen(
        self,
        open: OpenConnections,
        closed: mpsc::Sender<u64>,
    ) -> Result<Arc<Secure>, Error> {
        Secure::new(self.identity, self.limits, open, closed)
    }
}

impl Secure {
    /// TLS with this certificate. Connections are entered in `open` while they last, and `closed` hears of the end of each.
    ///
    /// # Errors
    /// The key is none that can be used, or not the certificate's.
    pub fn new(
        identity: Certificate,
        limits: ProtectionConfig,
        open: OpenConnections,
        closed: mpsc::Sender<u64>,
    ) -> Result<Arc<Self>, Error> {
        let provider = Arc::new(ring::default_provider());
        let any = AnyCertificate(provider.signature_verification_algorithms);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(any))
            .with_single_cert(vec![identity.certificate], identity.key)?;
        // A connection is all that a login holds for, so there is nothing to take up again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            limits,
            places: Arc::default(),
            open,
            closed,
        }))
    }

    /// The port that is configured.
    pub const fn port(&self) -> u16 {
        self.limits.port
    }

    /// Serves the hosts on one link until dropped.
    pub async fn serve(self: Arc<Self>, site: Arc<Site>, listener: TcpListener, link: LanLink) {
        let router = TowerToHyperService::new(answer::router(Arc::clone(&site)));
        let last = BODY_TIME + site.answer_time();
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let Some(ends) = ends(&stream, peer, &link) else {
                debug!(%peer, interface = link.interface, "connection from elsewhere closed");
                continue;
            };
            let Some(place) = self.place(ends.peer) else {
                debug!(%peer, "connection over the limit closed");
                continue;
            };
            let (secure, router) = (Arc::clone(&self), router.clone());
            tokio::spawn(async move {
                secure.converse(stream, ends, router, last).await;
                drop(place);
            });
        }
    }

    async fn converse(
        &self,
        stream: TcpStream,
        ends: Ends,
        router: TowerToHyperService<axum::Router>,
        last: Duration,
    ) {
        let stream = match timeout(HANDSHAKE_TIME, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(peer = %ends.peer, %error, "no handshake"),
            Err(_) => return debug!(peer = %ends.peer, "no handshake in time"),
        };
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let control_point = shown.map(key::id);
        let (connection, hang_up) = self.open.enter();
        let channel = Channel::Secure {
            connection,
            control_point,
        };
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(ends);
            request.extensions_mut().insert(channel);
            router.call(request)
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIME)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS);
        let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = serving.as_mut() => Some(ended),
            () = hang_up.notified() => None,
            () = sleep(CONNECTION_TIME) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                serving.as_mut().graceful_shutdown();
                timeout(last, serving).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            debug!(peer = %ends.peer, %error, "connection ended early");
        }
        self.open.leave(connection);
        // Its place is kept until the core has heard of it, so that the core need not remember more than there are places.
        if self.closed.send(connection).await.is_err() {
            debug!("the daemon has gone before a connection");
        }
    }

    fn place(&self, host: IpAddr) -> Option<Place> {
        let mut held = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let of_host = held.get(&host).copied().unwrap_or(0);
        if held.values().sum::<usize>() >= self.limits.max_connections
            || of_host >= self.limits.max_connections_per_host
        {
            return None;
        }
        held.insert(host, of_host + 1);
        let places = Arc::clone(&self.places);
        Some(Place { places, host })
    }
}

/// One of the places for connections, given back when dropped.
struct Place {
    places: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    host: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_host) = held.get_mut(&self.host) {
            *of_host -= 1;
            if *of_host == 0 {
                held.remove(&self.host);
            }
        }
    }
}

/// Takes every certificate whose key the other side has, and none as well.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
