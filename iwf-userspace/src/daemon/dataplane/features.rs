//! Asks which devices can receive what XDP redirects to them.
//!
//! A driver may run XDP and still have no way to send a frame of another device; a veth end has one only while
//! its peer runs XDP or GRO. The kernel drops such frames without a word, so they must take the stack.
//!
//! Read before editing: Documentation/netlink/specs/netdev.yaml (Linux 6.3 and later), genetlink(7).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;

use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

/// linux/genetlink.h.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// linux/netdev.h.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;
/// linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

/// Octets of struct nlmsghdr and of struct genlmsghdr.
const HEADERS: (usize, usize) = (16, 4);

/// Indexes of the devices of this network namespace that redirected frames cannot leave by. Kernels before 6.3
/// cannot tell; then it is an error, and nothing is known against any device.
pub(super) fn without_redirect() -> io::Result<BTreeSet<u32>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let mut family = None;
    ask(
        &socket,
        GENL_ID_CTRL,
        CTRL_CMD_GETFAMILY,
        0,
        &name,
        |body| {
            family = attributes(body)
                .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
                .and_then(|(_, value)| value.try_into().ok())
                .map(u16::from_ne_bytes);
        },
    )?;
    let family = family.ok_or(io::ErrorKind::Unsupported)?;

    let mut without = BTreeSet::new();
    ask(
        &socket,
        family,
        NETDEV_CMD_DEV_GET,
        NLM_F_DUMP,
        &[],
        |body| {
            if let Some((ifindex, features)) = device(body)
                && features & NETDEV_XDP_ACT_NDO_XMIT == 0
            {
                without.insert(ifindex);
            }
        },
    )?;
    Ok(without)
}

/// Index and XDP features of one device.
fn device(body: &[u8]) -> Option<(u32, u64)> {
    let mut ifindex = None;
    let mut features = None;
    for (kind, value) in attributes(body) {
        match kind {
            NETDEV_A_DEV_IFINDEX => ifindex = value.try_into().ok().map(u32::from_ne_bytes),
            NETDEV_A_DEV_XDP_FEATURES => features = value.try_into().ok().map(u64::from_ne_bytes),
            _ => {}
        }
    }
    Some((ifindex?, features?))
}

/// Sends one request and hands the attributes of every answer to `each`.
fn ask(
    socket: &Socket,
    family: u16,
    command: u8,
    flags: u16,
    attributes: &[u8],
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    socket.send(&message(family, command, flags, attributes), 0)?;
    let dump = flags & NLM_F_DUMP != 0;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&datagram) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = body.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                    return match code {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    };
                }
                _ => each(body.get(HEADERS.1..).unwrap_or_default()),
            }
        }
        if !dump {
            return Ok(());
        }
    }
}

fn message(family: u16, command: u8, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let len = HEADERS.0 + HEADERS.1 + attributes.len();
    let mut message = Vec::with_capacity(len);
    message.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: one question at a time, and the kernel fills in the port.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// Type and content of every netlink message of a datagram.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    pieces(datagram, |head| {
        let len = u32::from_ne_bytes(*head.first_chunk()?);
        let kind = u16::from_ne_bytes(*head.get(4..)?.first_chunk()?);
        Some((usize::try_from(len).ok()?, kind, HEADERS.0))
    })
}

/// Type and content of every attribute.
fn attributes(body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The two highest bits are flags.
    const KIND: u16 = 0x3fff;
    pieces(body, |head| {
        let len = u16::from_ne_bytes(*head.first_chunk()?);
        let kind = u16::from_ne_bytes(*head.get(2..)?.first_chunk()?);
        Some((usize::from(len), kind & KIND, 4))
    })
}

/// Splits octets into pieces that begin with their own length and are padded to four octets. `read` tells length,
/// type and octets of the header; a length that cannot be ends the walk.
fn pieces(
    mut rest: &[u8],
    read: impl Fn(&[u8]) -> Option<(usize, u16, usize)>,
) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind, header) = read(rest)?;
        let content = rest.get(header..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_padded_and_cut_short() {
        let mut body = attribute(NETDEV_A_DEV_IFINDEX, &7u32.to_ne_bytes());
        body.extend(attribute(99, b"odd"));
        body.extend(attribute(
            NETDEV_A_DEV_XDP_FEATURES | 0x8000,
            &4u64.to_ne_bytes(),
        ));
        assert_eq!(device(&body), Some((7, 4)));
        for cut in 0..body.len() {
            assert_eq!(device(&body[..cut]), None, "cut at {cut}");
        }
        // A length below its own header must not loop.
        assert_eq!(attributes(&[0, 0, 1, 0, 9, 9]).count(), 0);
    }

    #[test]
    fn messages_carry_their_length() {
        let message = message(0x10, 3, 0, &attribute(2, b"netdev\0"));
        let read: Vec<_> = messages(&message).collect();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].0, 0x10);
        assert_eq!(read[0].1.len(), message.len() - 16);
    }
}
