//! Empties maps of any key type: the library's own interface wants to know the types.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Map, MapData};

/// Removes every entry of a hash, of whatever kind. Other maps stay as they are.
///
/// # Errors
/// What the kernel says.
pub fn hash(map: &Map) -> io::Result<()> {
    let (Map::HashMap(data) | Map::LruHashMap(data) | Map::DevMapHash(data)) = map else {
        return Ok(());
    };
    let key_size = data.info().map_err(io::Error::other)?.key_size();
    let mut key = vec![0; usize::try_from(key_size).map_err(io::Error::other)?];
    loop {
        match call(BPF_MAP_GET_NEXT_KEY, data, None, Some(&mut key)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            other => other?,
        }
        match call(BPF_MAP_DELETE_ELEM, data, Some(&mut key), None) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
}

const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

/// The part of `union bpf_attr` that commands on elements take.
#[repr(C, align(8))]
struct Attributes {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// The value, or the next key.
    value: u64,
    flags: u64,
}

fn call(
    command: libc::c_long,
    map: &MapData,
    key: Option<&mut [u8]>,
    value: Option<&mut [u8]>,
) -> io::Result<()> {
    let pointer = |octets: Option<&mut [u8]>| octets.map_or(0, |octets| octets.as_mut_ptr() as u64);
    let fd = map.fd().as_fd().as_raw_fd();
    let attributes = Attributes {
        map_fd: u32::try_from(fd).map_err(io::Error::other)?,
        pad: 0,
        key: pointer(key),
        value: pointer(value),
        flags: 0,
    };
    // SAFETY: the kernel reads the attributes and, by the map's key size, the slices behind the two pointers; they
    // have that size and live as long as the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
