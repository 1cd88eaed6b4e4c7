//! A device whose packets a program reads and writes (TUN).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The name of the softwire's device. There is one softwire (RFC 6334 section 5).
pub(crate) const SOFTWIRE: &str = "iwf-b4";

/// Opened once for each handle.
const DEVICE: &str = "/dev/net/tun";

/// Makes the device of this name, or takes over the one that an earlier process left. It stays when this process ends.
pub(crate) fn open(name: &str) -> io::Result<OwnedFd> {
    let handle = attach(name)?;
    set(&handle, libc::TUNSETPERSIST, 1)?;
    Ok(handle)
}

/// Lets the device go with its last handle, which `handle` may be.
pub(crate) fn release(handle: &OwnedFd) -> io::Result<()> {
    set(handle, libc::TUNSETPERSIST, 0)
}

/// Removes the device of this name, if there is one and no other process has it open.
pub(crate) fn remove(name: &str) -> io::Result<()> {
    let there = Path::new("/proc/sys/net/ipv4/conf").join(name).exists();
    if !there {
        return Ok(());
    }
    release(&attach(name)?)
}

fn attach(name: &str) -> io::Result<OwnedFd> {
    let handle: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)?
        .into();
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the descriptor is open, and the request is what the kernel reads and writes for this number.
    let answer = unsafe { libc::ioctl(handle.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(handle)
}

fn set(handle: &OwnedFd, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the kernel takes the value itself.
    let answer = unsafe { libc::ioctl(handle.as_raw_fd(), request, value) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
