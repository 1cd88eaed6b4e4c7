//! The same over TLS (DeviceProtection:1 section 2.1).
//!
//! Nobody certifies control points or this device: each knows the other by its certificate, and that the other has its key
//! is proven by the handshake. So every certificate is taken, and what it may do is decided by whoever is called. Without
//! one a control point is nobody in particular.
//!
//! Bounds are those of plain HTTP, but places of its own, a time for the handshake, and a longer life: who has logged in
//! stays so for as long as the connection.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::open::OpenConnections;
use super::places::{Place, Places};
use super::stream::Stream;
use super::{Ends, Fate, Site, Talk, Times, answer};
use crate::daemon::config::ProtectionConfig;
use crate::daemon::netstate::LanLink;
use crate::daemon::store::OpenError;
use crate::daemon::store::key::{self, Certificate};
use crate::types::access::{Channel, ControlPointId};

/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long a request head may take, and how long a connection may be idle between requests.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// How often a host may begin each of its connections in a second: handshakes are the dearest that it can ask for.
const BEGUN: usize = 2;
/// After this a connection takes no further request.
const CONNECTION_TIME: Duration = Duration::from_secs(600);

/// What every listener over TLS shares.
pub struct Secure {
    acceptor: TlsAcceptor,
    limits: ProtectionConfig,
    places: Arc<Places>,
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
            places: Places::slowly_begun(
                limits.max_connections,
                limits.max_connections_per_host,
                limits.max_connections_per_host * BEGUN,
            ),
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
        loop {
            let (stream, ends, place) = site.admit(&listener, &link, &self.places).await;
            let (secure, site, router) = (Arc::clone(&self), Arc::clone(&site), router.clone());
            tokio::spawn(async move {
                secure.converse(&site, stream, ends, &place, router).await;
            });
        }
    }

    async fn converse(
        &self,
        site: &Site,
        stream: TcpStream,
        ends: Ends,
        place: &Place,
        router: TowerToHyperService<axum::Router>,
    ) {
        let times = Times {
            head: IDLE_TIME,
            connection: CONNECTION_TIME,
            ..site.times
        };
        let accepting = self.acceptor.accept(Stream::new(stream, times.take));
        let accepted = tokio::select! {
            accepted = timeout(HANDSHAKE_TIME, accepting) => accepted,
            () = place.taken_away() => {
                return debug!(peer = %ends.peer, "connection closed to make room");
            }
        };
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                site.counts.add(Fate::BrokenOff);
                return debug!(peer = %ends.peer, %error, "no handshake");
            }
            Err(_) => {
                site.counts.add(Fate::TimedOut);
                return debug!(peer = %ends.peer, "no handshake in time");
            }
        };
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let control_point = shown.map(key::id);
        let (connection, hang_up) = self.open.enter();
        let talk = Talk {
            ends,
            channel: Channel::Secure {
                connection,
                control_point,
            },
            place,
            times,
        };
        site.converse(stream, talk, hang_up.notified(), router)
            .await;
        self.open.leave(connection);
        // Its place is kept until the core has heard of it, so that the core need not remember more than there are places.
        if self.closed.send(connection).await.is_err() {
            debug!("the daemon has gone before a connection");
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
