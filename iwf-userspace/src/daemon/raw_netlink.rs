//! Messages of netlink families that no library here speaks.
//!
//! Read before editing: netlink(7).
#![forbid(unsafe_code)]

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

/// linux/netlink.h.
pub(super) const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

/// A socket of that family, connected to the kernel.
pub(super) fn socket(family: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(family)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// struct nlmsghdr and what follows.
pub(super) fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut octets = Vec::with_capacity(HEADER + body.len());
    octets.extend(len.to_ne_bytes());
    octets.extend(kind.to_ne_bytes());
    octets.extend(flags.to_ne_bytes());
    octets.extend([0; 8]);
    octets.extend(body);
    octets
}

/// Type and content of the first message, and what comes after it.
pub(super) fn message(octets: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = usize::try_from(u32::from_ne_bytes(*octets.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*octets.get(4..)?.first_chunk()?);
    let body = octets.get(HEADER..len)?;
    let rest = octets.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, rest))
}

/// The error that a message of type [`NLMSG_ERROR`] carries; 0 is none.
pub(super) fn error(body: &[u8]) -> io::Error {
    let code = body.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// One attribute: length, type, content, padding.
pub(super) fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let len = 4 + content.len();
    let mut octets = Vec::with_capacity(len.next_multiple_of(4));
    octets.extend(u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
    octets.extend(kind.to_ne_bytes());
    octets.extend(content);
    octets.resize(len.next_multiple_of(4), 0);
    octets
}

/// Content of the first attribute of that type.
pub(super) fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    /// NLA_F_NESTED and NLA_F_NET_BYTEORDER are no part of the type.
    const TYPE: u16 = 0x3fff;
    loop {
        let len = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let found = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?) & TYPE;
        let content = attributes.get(4..len)?;
        if found == kind {
            return Some(content);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_are_read_as_written_and_cut_short_are_nothing() {
        let attributes = [
            attribute(1, b"abc"),
            attribute(0x8002, &attribute(7, &[1, 2, 3, 4])),
            attribute(3, &[]),
        ]
        .concat();
        assert_eq!(find(&attributes, 1), Some(&b"abc"[..]));
        let inner = find(&attributes, 2).unwrap();
        assert_eq!(find(inner, 7), Some(&[1, 2, 3, 4][..]));
        assert_eq!(find(&attributes, 3), Some(&[][..]));
        assert_eq!(find(&attributes, 4), None);
        for cut in 0..7 {
            assert_eq!(find(&attributes[..cut], 1), None, "cut at {cut}");
        }
        // A length that leads nowhere.
        assert_eq!(find(&[0; 8], 1), None);
        let whole = request(9, 1, &attributes);
        let (kind, body, rest) = message(&whole).unwrap();
        assert_eq!((kind, body, rest.len()), (9, &attributes[..], 0));
        for cut in 0..whole.len() {
            assert_eq!(message(&whole[..cut]), None, "cut at {cut}");
        }
    }
}
