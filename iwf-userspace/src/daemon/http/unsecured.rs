//! In the place of TLS in a daemon that was built without: there never is one.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{OpenConnections, Site};
use crate::daemon::config::ProtectionConfig;
use crate::daemon::netstate::LanLink;
use crate::types::access::ControlPointId;

/// What there has to be before anybody is served.
#[derive(Debug)]
pub enum Protected {}

impl Protected {
    /// The configuration cannot want it.
    ///
    /// # Errors
    /// Never.
    pub fn prepare(
        _wanted: Option<ProtectionConfig>,
        _state_dir: &Path,
    ) -> Result<Option<Self>, Infallible> {
        Ok(None)
    }

    /// What the certificate names the device.
    pub fn id(&self) -> ControlPointId {
        match *self {}
    }

    /// TLS with it.
    ///
    /// # Errors
    /// Never.
    pub fn listen(
        self,
        _open: OpenConnections,
        _closed: mpsc::Sender<u64>,
    ) -> Result<Arc<Secure>, Infallible> {
        match self {}
    }
}

/// What every listener over TLS shares.
#[derive(Debug)]
pub enum Secure {}

impl Secure {
    /// The port that is configured.
    pub const fn port(&self) -> u16 {
        match *self {}
    }

    /// Serves the hosts on one link until dropped.
    pub fn serve(
        self: Arc<Self>,
        _site: Arc<Site>,
        _listener: TcpListener,
        _link: LanLink,
    ) -> std::future::Pending<()> {
        match *self {}
    }
}
