//! The device's UUID, in a file of its own: it outlives a damaged store, because control points would take a
//! gateway with another UUID for another gateway.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use rand::TryRng;
use rand::rngs::SysRng;
use tracing::warn;

use super::{OpenError, failed, sync_dir};

/// Reads the UUID of this device; makes one the first time, or if the file is no UUID.
pub(super) fn load_or_make(state_dir: &Path) -> Result<String, OpenError> {
    let path = state_dir.join("device-uuid");
    let mut text = String::new();
    match File::open(&path) {
        Ok(file) => {
            // One octet more than a UUID and its line end, so that a longer file is noticed.
            let read = file.take(38).read_to_string(&mut text);
            let uuid = text.trim_end();
            if read.is_ok() && is_uuid(uuid) {
                return Ok(uuid.to_owned());
            }
            warn!(path = %path.display(), "device-uuid holds no UUID: making a new identity");
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("read", &path)(e)),
    }
    let uuid = random_uuid().map_err(failed("make", &path))?;
    let draft = state_dir.join("device-uuid.new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&draft)?;
        writeln!(file, "{uuid}")?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        sync_dir(state_dir)
    };
    write().map_err(failed("write", &path))?;
    Ok(uuid)
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, octet)| match i {
            8 | 13 | 18 | 23 => octet == b'-',
            _ => octet.is_ascii_digit() || (b'a'..=b'f').contains(&octet),
        })
}

/// A random UUID (RFC 9562 section 5.4).
fn random_uuid() -> io::Result<String> {
    let mut octets = [0; 16];
    SysRng
        .try_fill_bytes(&mut octets)
        .map_err(io::Error::other)?;
    let bits = u128::from_be_bytes(octets);
    let bits = bits & !(0xf << 76) | (4 << 76);
    let bits = bits & !(0b11 << 62) | (0b10 << 62);
    Ok(format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        bits >> 96,
        bits >> 80 & 0xffff,
        bits >> 64 & 0xffff,
        bits >> 48 & 0xffff,
        bits & 0xffff_ffff_ffff
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_uuids_are_version_4_and_differ() {
        let (a, b) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert!(is_uuid(&a), "{a}");
        assert_eq!(a.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&a.as_bytes()[19]));
        assert_ne!(a, b);
    }
}
