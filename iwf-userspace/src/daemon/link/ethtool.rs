//! What a device says of its link.
//!
//! Read before editing: Documentation/networking/ethtool-netlink.rst, Documentation/networking/generic_netlink.rst. By
//! netlink and not by /sys, which may be that of another network namespace.
#![forbid(unsafe_code)]

use std::io;

use crate::daemon::raw_netlink::{self as raw, NLMSG_ERROR, attribute, find};

/// linux/netlink.h, linux/genetlink.h.
const NETLINK_GENERIC: isize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// struct genlmsghdr: command, version, two octets reserved.
const HEADER: usize = 4;
/// linux/ethtool_netlink.h.
const ETHTOOL_MSG_LINKMODES_GET: u8 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_LINKMODES_HEADER: u16 = 1;
const ETHTOOL_A_LINKMODES_SPEED: u16 = 5;
/// linux/ethtool.h.
const SPEED_UNKNOWN: u32 = u32::MAX;

/// Bits per second of the link of a device, either way; `None`: it has none, or does not know.
pub(super) fn speed(ifindex: u32) -> io::Result<Option<u64>> {
    let socket = raw::socket(NETLINK_GENERIC)?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
    let family = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)?;
    let family = find(attributes(&family), CTRL_ATTR_FAMILY_ID)
        .and_then(|id| id.first_chunk())
        .map(|id| u16::from_ne_bytes(*id))
        .ok_or(io::ErrorKind::Unsupported)?;
    let device = attribute(ETHTOOL_A_HEADER_DEV_INDEX, &ifindex.to_ne_bytes());
    let device = attribute(ETHTOOL_A_LINKMODES_HEADER | NLA_F_NESTED, &device);
    let modes = ask(&socket, family, ETHTOOL_MSG_LINKMODES_GET, &device)?;
    Ok(speed_of(&modes))
}

/// One question, one answer: the kernel has put it into the socket when the question is sent.
fn ask(
    socket: &rtnetlink::sys::Socket,
    family: u16,
    command: u8,
    attributes: &[u8],
) -> io::Result<Vec<u8>> {
    let body = [&[command, 1, 0, 0], attributes].concat();
    socket.send(&raw::request(family, NLM_F_REQUEST, &body), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    match raw::message(&datagram) {
        Some((NLMSG_ERROR, body, _)) => Err(raw::error(body)),
        Some((_, body, _)) => Ok(body.to_vec()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn attributes(body: &[u8]) -> &[u8] {
    body.get(HEADER..).unwrap_or_default()
}

fn speed_of(modes: &[u8]) -> Option<u64> {
    let megabits = find(attributes(modes), ETHTOOL_A_LINKMODES_SPEED)?.first_chunk()?;
    let megabits = u32::from_ne_bytes(*megabits);
    // Some drivers say 0 for what they do not know.
    (megabits != SPEED_UNKNOWN && megabits != 0).then(|| u64::from(megabits) * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(megabits: u32) -> Vec<u8> {
        [
            vec![ETHTOOL_MSG_LINKMODES_GET, 1, 0, 0],
            attribute(2, &[1]),
            attribute(ETHTOOL_A_LINKMODES_SPEED, &megabits.to_ne_bytes()),
        ]
        .concat()
    }

    #[test]
    fn a_speed_is_read_and_an_unknown_one_is_none() {
        assert_eq!(speed_of(&answer(2500)), Some(2_500_000_000));
        assert_eq!(speed_of(&answer(SPEED_UNKNOWN)), None);
        assert_eq!(speed_of(&answer(0)), None);
        let whole = answer(10);
        for cut in 0..whole.len() {
            assert_eq!(speed_of(&whole[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn the_kernel_answers_and_refuses() {
        // Loopback has no link; nobody has the other one.
        assert!(matches!(speed(1), Ok(None) | Err(_)));
        assert!(speed(u32::MAX >> 1).is_err());
    }
}
