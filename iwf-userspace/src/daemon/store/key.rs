//! The device's key and certificate, in a file of its own like its UUID: control points that know the device know it by
//! this certificate, and it outlives a damaged store.
//!
//! The certificate signs itself. Its dates say nothing: a router does not always know the time.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::{OpenError, failed, sync_dir};
use crate::types::access::ControlPointId;
use crate::wire::scpd;

/// Largest file that is looked at, in octets; one has about 1,200.
const MAX_FILE: u64 = 64 << 10;

/// A certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// What it names the device.
    pub fn id(&self) -> ControlPointId {
        id(&self.certificate)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(text).ok()?;
        let key = PrivateKeyDer::from_pem_slice(text).ok()?;
        Some(Self { certificate, key })
    }
}

/// What a certificate names whom it belongs to.
pub fn id(certificate: &CertificateDer<'_>) -> ControlPointId {
    ControlPointId::from_hash(&Sha256::digest(certificate).into())
}

/// Reads key and certificate of this device; makes them the first time, or if the file does not hold them.
///
/// # Errors
/// The file cannot be read or written.
pub fn load_or_make(state_dir: &Path) -> Result<Certificate, OpenError> {
    let path = state_dir.join("device-certificate");
    match File::open(&path) {
        Ok(file) => {
            let mut text = Vec::new();
            let read = file.take(MAX_FILE).read_to_end(&mut text);
            if let (Ok(_), Some(held)) = (read, Certificate::parse(&text)) {
                // Whoever has copied it here may not have thought of it.
                fs::set_permissions(&path, Permissions::from_mode(0o600))
                    .map_err(failed("protect", &path))?;
                return Ok(held);
            }
            warn!(path = %path.display(), "device-certificate is damaged: control points will find another device");
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("read", &path)(e)),
    }
    let made = make().map_err(|e| failed("make", &path)(io::Error::other(e)))?;
    let draft = state_dir.join("device-certificate.new");
    let write = || -> io::Result<()> {
        // What an interrupted start has left may have another mode.
        match fs::remove_file(&draft) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        write!(
            file,
            "{}{}",
            Pem("CERTIFICATE", &made.certificate),
            Pem("PRIVATE KEY", made.key.secret_der())
        )?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        sync_dir(state_dir)
    };
    write().map_err(failed("write", &path))?;
    info!(id = %made.id(), "made a certificate for this device");
    Ok(made)
}

fn make() -> Result<Certificate, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "iwf Internet gateway");
    let certificate = params.self_signed(&key)?.der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok(Certificate {
        certificate,
        key: key.into(),
    })
}

/// RFC 7468.
struct Pem<'a>(&'a str, &'a [u8]);

impl fmt::Display for Pem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(label, octets) = self;
        writeln!(f, "-----BEGIN {label}-----")?;
        // 48 octets are 64 digits.
        for line in octets.chunks(48) {
            writeln!(f, "{}", scpd::base64(line))?;
        }
        writeln!(f, "-----END {label}-----")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Scratch;
    use super::*;

    #[test]
    fn it_is_made_once_and_nobody_else_may_read_it() {
        let scratch = Scratch::new();
        let dir = &scratch.0;
        let made = load_or_make(dir).unwrap();
        let path = dir.join("device-certificate");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let read = load_or_make(dir).unwrap();
        assert_eq!((read.certificate, read.key), (made.certificate, made.key));
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_damaged_file_makes_another_device() {
        let scratch = Scratch::new();
        let dir = &scratch.0;
        let before = load_or_make(dir).unwrap().id();
        let path = dir.join("device-certificate");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let after = load_or_make(dir).unwrap().id();
        assert_ne!(before, after);
        assert_eq!(load_or_make(dir).unwrap().id(), after);
    }

    /// Vector DP-02.
    #[test]
    fn a_certificate_names_whom_it_belongs_to() {
        let certificate = CertificateDer::from(b"example DER certificate".to_vec());
        assert_eq!(
            id(&certificate).to_string(),
            "dfbbc6db-33f8-5630-b3aa-7d45eb1bb7e2"
        );
    }
}
