//! Raw sockets that send, and take nothing in.

use std::io;
use std::os::fd::AsRawFd as _;

use aya::Pod;
use socket2::{Domain, Protocol, Socket, Type};

/// Opens one that does not wait.
pub(super) fn open(domain: Domain, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sets an option that socket2 does not know. The kernel refuses a value of another size.
pub(super) fn set<T: Pod>(
    socket: &Socket,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the descriptor is the socket's, and the value is plain octets of the length given.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
